//! Certificates made clause by clause, each row with what the verifier has to say of it.
//!
//! By clause: X509-SVID 2 (one URI SAN) 03, 13 to 16, 43; 3.1 (subject) 58, 59; 3.2 (signing certificates) 04,
//! 71 to 75; 4.1 18, 24; 4.2 (name constraints) 76 to 79; 4.3 (key usage) 19 to 23; 4.4 (extended key usage) 02,
//! 25 to 28, 85; 5.1 (RFC 5280) 10, 12, 50 to 52, 54, 55, 60 to 64, 70, 80, 81; 5.2 30. SPIFFE-ID 2: 17, 31 to
//! 46. Federation 4.2 and Workload API 4.6 (a bundle per trust domain) 01, 10, 11, 42, 74, 82. Stricter than the
//! standards: 36, 41, 53, 56, 57, 84, 90 to 93.

#[path = "matrix/chains.rs"]
mod chains;
#[path = "matrix/der.rs"]
mod der;
#[path = "matrix/leaves.rs"]
mod leaves;
#[path = "matrix/making.rs"]
mod making;

use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use spire_adapter::{Bundle, Bundles, TrustDomain};

use self::making::Ca;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// One row: a chain with the leaf's key, and the expected reason (`None`: accepted).
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    pub(crate) expected: Option<&'static str>,
}

impl Row {
    /// Whether the key is the leaf's. Some leaves have one that nobody has the private half of.
    pub(crate) fn has_its_key(&self) -> bool {
        let info = self.key.subject_public_key_info();
        self.chain[0].windows(info.len()).any(|part| part == info)
    }
}

/// The CAs of two trust domains, and one that only pretends.
pub(crate) struct Authorities {
    a: Ca,
    b: Ca,
    evil: Ca,
    expired: Ca,
    ending: Ca,
}

impl Authorities {
    pub(crate) fn new() -> Self {
        Self {
            a: Ca::root("A", "spiffe://a.test", |_| {}),
            b: Ca::root("B", "spiffe://b.test", |_| {}),
            evil: Ca::root("A", "spiffe://a.test", |_| {}),
            expired: Ca::root("old", "spiffe://a.test", |params| {
                params.not_before = (SystemTime::now() - 3 * DAY).into();
                params.not_after = (SystemTime::now() - DAY).into();
            }),
            ending: Ca::root("ending", "spiffe://a.test", |params| {
                params.not_after = (SystemTime::now() + DAY / 48).into();
            }),
        }
    }

    pub(crate) fn bundles(&self) -> Bundles {
        let bundle = |name: &str, der: &[u8]| Bundle::from_der(TrustDomain::new(name).unwrap(), der).unwrap();
        let a: Vec<u8> =
            [&self.a, &self.expired, &self.ending].iter().flat_map(|ca| ca.certificate.to_vec()).collect();
        [bundle("a.test", &a), bundle("b.test", &self.b.certificate)].into_iter().collect()
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = leaves::accepted(self);
        rows.extend(leaves::names(self));
        rows.extend(leaves::usages(self));
        rows.extend(leaves::times_and_keys(self));
        rows.extend(chains::chains(self));
        rows.extend(chains::signatures(self));
        rows.extend(chains::constraints(self));
        rows
    }
}
