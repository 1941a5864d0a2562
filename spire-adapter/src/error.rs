//! What can be wrong with material that SPIRE handed out, or with a TLS configuration made of it.

use crate::{TrustDomain, Violation};

/// An SVID, a bundle or a TLS configuration that cannot be used. The text names the object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a DER certificate.
    #[error("{object}: certificate {index} is not valid DER: {reason}")]
    Certificate {
        /// Which SVID or bundle.
        object: String,
        /// Position in its chain, from 0.
        index: usize,
        /// What the parser said.
        reason: String,
    },
    /// No certificate at all.
    #[error("{object}: holds no certificate")]
    Empty {
        /// Which SVID or bundle.
        object: String,
    },
    /// More bytes than are accepted.
    #[error("{object}: {bytes} bytes are more than the limit of {limit}")]
    TooLarge {
        /// Which SVID or bundle.
        object: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More certificates than are accepted.
    #[error("{object}: more than {limit} certificates")]
    TooMany {
        /// Which SVID or bundle.
        object: String,
        /// The limit.
        limit: usize,
    },
    /// More SVIDs or bundles in one message than are accepted.
    #[error("message: {found} {what} are more than the limit of {limit}")]
    Crowded {
        /// SVIDs or bundles.
        what: &'static str,
        /// How many there were.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A certificate of a bundle that cannot serve as trust anchor.
    #[error("{object}: certificate {index} cannot be a trust anchor: {reason}")]
    Anchor {
        /// Which bundle.
        object: String,
        /// Position in the bundle, from 0.
        index: usize,
        /// Why not.
        reason: String,
    },
    /// The leaf is no X509-SVID.
    #[error("SVID: leaf violates {}: {source}", source.as_str())]
    Leaf {
        /// The violated clause.
        source: Violation,
    },
    /// The private key is unreadable or of another kind than expected.
    #[error("SVID {spiffe_id}: private key cannot be used (PKCS#8 DER expected)")]
    Key {
        /// Whose key.
        spiffe_id: String,
    },
    /// The private key belongs to another certificate.
    #[error("SVID {spiffe_id}: private key does not belong to the leaf certificate")]
    KeyMismatch {
        /// Whose key.
        spiffe_id: String,
    },
    /// A message that calls an SVID by another name than its own.
    #[error("SVID announced as {expected} is that of {found}")]
    OtherIdentity {
        /// What the message said.
        expected: String,
        /// What the leaf says.
        found: String,
    },
    /// The bundle that would be needed is not there.
    #[error("no trust bundle for trust domain {trust_domain}")]
    NoBundle {
        /// Whose bundle.
        trust_domain: TrustDomain,
    },
    /// No TLS configuration could be made.
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
}
