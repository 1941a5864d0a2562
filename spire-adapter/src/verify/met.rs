//! The chains that have led to an anchor of a bundle before.
//!
//! Signatures and constraints of a chain say the same whenever it is met, and identities of other nodes are met
//! again with each pair and at each renewal. All that is kept is until when such a chain's certificates and its
//! anchor last: who is expected, the leaf's clauses and the time are judged anew each time. A bundle has a memory of
//! its own, so that what one bundle vouches for is never taken for another's, and it goes with the bundle.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

/// Chains of one age. Twice as many are kept at most: 200 kB for a bundle.
const AGE: usize = 1024;

/// SHA-256 of all certificates of a chain, each with its length before it.
type Chain = [u8; 32];

/// What a bundle has vouched for.
#[derive(Default)]
pub(crate) struct Met(Mutex<Ages>);

/// Who is not met for a whole age is forgotten.
#[derive(Default)]
struct Ages {
    this: BTreeMap<Chain, SystemTime>,
    last: BTreeMap<Chain, SystemTime>,
}

impl Met {
    /// Until when the chain's certificates last, if it has been met.
    pub(crate) fn until(&self, chain: &Chain) -> Option<SystemTime> {
        let mut ages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = ages.this.get(chain) {
            return Some(*until);
        }
        let until = ages.last.remove(chain)?;
        ages.keep(*chain, until);
        Some(until)
    }

    /// Keeps that the chain has led to an anchor, and that it can do so until then.
    pub(crate) fn keep(&self, chain: Chain, until: SystemTime) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keep(chain, until);
    }
}

impl Ages {
    fn keep(&mut self, chain: Chain, until: SystemTime) {
        if self.this.len() >= AGE {
            self.last = std::mem::take(&mut self.this);
        }
        self.this.insert(chain, until);
    }
}

/// By what a chain is known.
pub(crate) fn chain(first: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Chain {
    let mut hash = Sha256::new();
    for certificate in std::iter::once(first).chain(intermediates) {
        hash.update(certificate.len().to_be_bytes());
        hash.update(certificate);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::CertificateAuthority;
    use crate::{Bundles, ExpectedPeer, SpiffeId, TrustDomain, verify_chain};

    fn numbered(number: usize) -> Chain {
        chain(&CertificateDer::from(number.to_be_bytes().to_vec()), &[])
    }

    #[test]
    fn certificates_that_are_cut_otherwise_are_another_chain() {
        let certificate = |bytes: &'static [u8]| CertificateDer::from(bytes);
        let chains = [
            chain(&certificate(b"ab"), &[certificate(b"c")]),
            chain(&certificate(b"a"), &[certificate(b"bc")]),
            chain(&certificate(b"abc"), &[]),
            chain(&certificate(b"abc"), &[certificate(b"")]),
        ];
        let distinct: std::collections::BTreeSet<_> = chains.iter().collect();
        assert_eq!(distinct.len(), chains.len());
    }

    #[test]
    fn who_is_met_again_stays_and_the_others_are_forgotten() {
        let (met, until) = (Met::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(7));
        met.keep(numbered(0), until);
        for number in 1..10 * AGE {
            met.keep(numbered(number), until);
            assert_eq!(met.until(&numbered(0)), Some(until), "{number}");
        }
        assert_eq!(met.until(&numbered(1)), None);
        let ages = met.0.lock().unwrap();
        assert!(ages.this.len() + ages.last.len() <= 2 * AGE);
    }

    #[test]
    fn a_bundle_remembers_whom_it_has_vouched_for_and_no_other_does() {
        let ca = CertificateAuthority::new(&TrustDomain::new("a.test").unwrap()).unwrap();
        let id = SpiffeId::new("spiffe://a.test/x").unwrap();
        let svid = ca.issue(&id, Duration::from_secs(60)).unwrap().to_svid().unwrap();
        let (bundle, same) = (ca.bundle().unwrap(), ca.bundle().unwrap());
        assert_eq!(bundle, same);
        let [bundles, others]: [Bundles; 2] =
            [&bundle, &same].map(|bundle| std::iter::once(bundle.clone()).collect());
        let until = |bundle: &crate::Bundle| bundle.met().until(&chain(&svid.chain()[0], &svid.chain()[1..]));
        assert_eq!(until(&bundle), None);
        let verify = |peer: &SpiffeId| {
            verify_chain(svid.chain(), &bundles, &ExpectedPeer::Exact(peer.clone()), SystemTime::now())
        };
        verify(&SpiffeId::new("spiffe://a.test/y").unwrap()).unwrap_err();
        assert_eq!(until(&bundle), None, "it was refused");
        verify(&id).unwrap();
        assert_eq!((until(&bundle), until(&same)), (Some(svid.not_after()), None));
        // What an agent says once more is no other bundle.
        let continued = others.continuing(&bundles);
        assert_eq!(until(continued.get(id.trust_domain()).unwrap()), Some(svid.not_after()));
        let other = CertificateAuthority::new(id.trust_domain()).unwrap().bundle().unwrap();
        let replaced = Bundles::from_iter([other.clone()]).continuing(&bundles);
        assert_eq!(replaced.iter().collect::<Vec<_>>(), [&other]);
        assert_eq!(until(replaced.get(id.trust_domain()).unwrap()), None);
    }
}
