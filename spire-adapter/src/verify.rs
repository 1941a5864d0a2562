//! Verification of a peer's certificate chain, the same for both roles of TLS and for pairs on one node.
//!
//! The leaf is `chain[0]` and nothing else; it is judged clause by clause before any signature is looked at.
//! The chain is then built by webpki to the anchors of the one trust domain that the leaf's SPIFFE ID names.

mod chain;
mod explain;
pub(crate) mod issuer;
pub(crate) mod leaf;
pub(crate) mod met;
mod violation;

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

pub use explain::violations;
pub use violation::Violation;

use leaf::Leaf;

use crate::{Bundles, SpiffeId, TrustDomain, svid};

/// Who may be at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpectedPeer {
    /// This SPIFFE ID alone.
    Exact(SpiffeId),
    /// Any SPIFFE ID of the trust domain below this path, by whole segments: `/authd/node/` fits
    /// `/authd/node/n1`, not `/authd/nodes`.
    PathPrefix(TrustDomain, String),
}

impl ExpectedPeer {
    /// Whether `spiffe_id` may be at the other end.
    pub fn matches(&self, spiffe_id: &SpiffeId) -> bool {
        match self {
            Self::Exact(expected) => expected == spiffe_id,
            Self::PathPrefix(trust_domain, prefix) => {
                spiffe_id.is_member_of(trust_domain)
                    && spiffe_id
                        .path()
                        .strip_prefix(prefix.trim_end_matches('/'))
                        .is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
            }
        }
    }

    /// The trust domain that the peer must belong to.
    pub fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Exact(spiffe_id) => spiffe_id.trust_domain(),
            Self::PathPrefix(trust_domain, _) => trust_domain,
        }
    }
}

/// A kind of public key in a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on P-256, SPIRE's default.
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// Ed25519, which SPIRE never issues.
    Ed25519,
    /// RSA of 2,048 to 8,192 bits.
    Rsa,
}

/// What is asked of a peer's certificate beyond the standard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Longest validity of a leaf (SPIRE's 10 s of backdating come on top).
    pub max_lifetime: Duration,
    /// How far a certificate's NotBefore may lie ahead of this host's clock.
    pub not_before_tolerance: Duration,
    /// Kinds of leaf keys that are accepted.
    pub key_types: Vec<KeyType>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            max_lifetime: Duration::from_secs(7 * 24 * 3600),
            not_before_tolerance: Duration::from_secs(60),
            key_types: vec![KeyType::EcP256, KeyType::EcP384, KeyType::Rsa],
        }
    }
}

/// Who a verified peer is, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSvid {
    /// Its SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// When its leaf expires.
    pub not_after: SystemTime,
    /// SHA-256 of its leaf's DER.
    pub leaf_hash: [u8; 32],
}

/// Reads who a peer is from the chain that TLS has already verified. Verifies nothing itself.
pub fn peer_svid(chain: &[CertificateDer<'_>]) -> Result<PeerSvid, Violation> {
    let first = chain.first().ok_or(Violation::NoCertificate)?;
    let leaf = leaf::read(first)?;
    Ok(PeerSvid { spiffe_id: leaf.spiffe_id, not_after: leaf.not_after, leaf_hash: svid::hash(first) })
}

/// Verifies a chain under the default [`Rules`].
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    expected: &ExpectedPeer,
    now: SystemTime,
) -> Result<PeerSvid, Violation> {
    verify_chain_with(chain, bundles, expected, now, &Rules::default())
}

/// Verifies a chain at `now`: the leaf's clauses, that it is the expected peer, and its way to an anchor of its
/// own trust domain.
pub fn verify_chain_with(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    expected: &ExpectedPeer,
    now: SystemTime,
    rules: &Rules,
) -> Result<PeerSvid, Violation> {
    chain::check_size(chain)?;
    let (first, intermediates) = chain.split_first().ok_or(Violation::NoCertificate)?;
    let parsed = leaf::parse(first)?;
    let leaf = Leaf::of(&parsed)?;
    leaf.check_rules(rules, now)?;
    if !expected.matches(&leaf.spiffe_id) {
        return Err(Violation::UnexpectedPeer { found: leaf.spiffe_id });
    }
    let trust_domain = leaf.spiffe_id.trust_domain();
    let bundle = bundles
        .get(trust_domain)
        .ok_or_else(|| Violation::UnknownTrustDomain { trust_domain: trust_domain.clone() })?;
    chain::verify(first, &parsed, intermediates, bundle, now, rules)?;
    Ok(PeerSvid { not_after: leaf.not_after, leaf_hash: svid::hash(first), spiffe_id: leaf.spiffe_id })
}
