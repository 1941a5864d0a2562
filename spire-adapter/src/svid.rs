//! An X509-SVID with its private key.
//!
//! The key's DER is read in place, checked against the leaf and then lives in the crypto library alone, which
//! zeroizes its memory; this type keeps no bytes of it and shows none.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use sha2::{Digest, Sha256};

use crate::der::{self, Bounds};
use crate::verify::leaf;
use crate::{Error, SpiffeId};

/// Largest chain that is taken from an agent.
const BOUNDS: Bounds = Bounds { certificates: 16, bytes: 64 * 1024 };

/// An X509-SVID and the right to sign with its key. Cheap to clone.
#[derive(Clone)]
pub struct Svid(Arc<Inner>);

struct Inner {
    spiffe_id: SpiffeId,
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
    leaf_hash: [u8; 32],
}

impl Svid {
    /// Reads an SVID: `chain` is concatenated DER with the leaf first, `key` PKCS#8 DER. The leaf must satisfy
    /// the clauses of the X509-SVID standard and the key must belong to it. Times are not judged: see
    /// [`Svid::is_valid_at`].
    ///
    /// The caller zeroizes `key`; no copy of it is made.
    pub fn from_der(chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        Self::from_chain(der::split(chain, BOUNDS, "SVID")?, key)
    }

    /// The same from a chain that is already split into certificates.
    pub fn from_chain(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Result<Self, Error> {
        let Some(first) = chain.first() else {
            return Err(Error::Empty { object: "SVID".to_owned() });
        };
        let leaf = leaf::read(first).map_err(|source| Error::Leaf { source })?;
        let leaf_hash = hash(first);
        let spiffe_id = leaf.spiffe_id.to_string();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        // The parser's own error may describe the key's structure: it stays out of ours.
        let Ok(key) = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key) else {
            return Err(Error::Key { spiffe_id });
        };
        let certified = CertifiedKey::new(chain, key);
        check_key(&certified, spiffe_id)?;
        Ok(Self(Arc::new(Inner {
            spiffe_id: leaf.spiffe_id,
            certified: Arc::new(certified),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            leaf_hash,
        })))
    }

    /// Whose SVID this is.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.spiffe_id
    }

    /// Its certificates, the leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.certified.cert
    }

    /// Start of validity; SPIRE backdates it by 10 s.
    pub fn not_before(&self) -> SystemTime {
        self.0.not_before
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.0.not_after
    }

    /// Whether `now` is not after NotAfter. NotBefore is the verifying peer's to judge, by its clock.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now <= self.0.not_after
    }

    /// SHA-256 of the leaf's DER.
    pub fn leaf_hash(&self) -> [u8; 32] {
        self.0.leaf_hash
    }

    /// Signs with the key without showing it, for records that must be tied to this SVID.
    pub fn signing_key(&self) -> Arc<dyn SigningKey> {
        Arc::clone(&self.0.certified.key)
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.certified)
    }
}

fn check_key(certified: &CertifiedKey, spiffe_id: String) -> Result<(), Error> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else webpki says of a leaf is told as it is"
    )]
    certified.keys_match().map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Error::KeyMismatch { spiffe_id },
        other => Error::Certificate { object: "SVID".to_owned(), index: 0, reason: other.to_string() },
    })
}

/// The same chain means the same key, since the key was checked against the leaf.
impl PartialEq for Svid {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.chain() == other.chain()
    }
}

impl Eq for Svid {}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("spiffe_id", &self.0.spiffe_id.to_string())
            .field("not_before", &self.0.not_before)
            .field("not_after", &self.0.not_after)
            .field("chain_length", &self.chain().len())
            .finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate's DER.
pub(crate) fn hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}
