//! A proof that is held: the other end of a session has the key of this certificate.
//!
//! That does not say that the certificate is to be trusted. Each pair is verified by the bundles of its own identity
//! here, as in a handshake of its own; where these are the same, the verdict is.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use auth_ebpf_abi::IdentityNumber;
use rustls::pki_types::CertificateDer;
use spiffe::SpiffeId;
use spire_adapter::{Bundle, Bundles, ExpectedPeer, PeerSvid, Violation};

use crate::clock::{BootTime, Clock};
use crate::peer::error::Error;
use crate::svids::Svids;

/// How long a verdict on a chain counts: not only leaves end, and clocks are set.
const VERDICT: Duration = Duration::from_secs(60);
/// Verdicts that are kept. Bundles of identities differ for a moment, when anchors come and go.
const VERDICTS: usize = 4;

/// A proof, and by which bundles its chain has been verified.
#[derive(Debug)]
pub(in crate::peer) struct Held {
    pub(in crate::peer) svid: PeerSvid,
    chain: Vec<CertificateDer<'static>>,
    /// When the certificate ends: no step of the wall clock moves it.
    pub(super) ends: BootTime,
    verdicts: Mutex<Vec<(Bundle, BootTime)>>,
}

impl Held {
    /// Of a chain whose key the other end has shown to have.
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, svids: &Svids) -> Result<Self, Error> {
        let svid = spire_adapter::peer_svid(&chain).map_err(Error::Certificate)?;
        let ends = svids.ends(svid.leaf_hash, svid.not_after);
        Ok(Self { svid, chain, ends, verdicts: Mutex::default() })
    }

    /// Whether it is the proof of that identity to whoever has these bundles.
    pub(in crate::peer) fn check(
        &self,
        identity: IdentityNumber,
        expected: &SpiffeId,
        bundles: &Bundles,
        clock: &dyn Clock,
    ) -> Result<(), Error> {
        if self.svid.spiffe_id != *expected {
            return Err(Error::WrongIdentity { spiffe_id: self.svid.spiffe_id.clone(), claimed: identity });
        }
        let now = clock.now();
        if self.ends <= now {
            return Err(Error::Certificate(Violation::Expired));
        }
        let bundle = bundles.get(expected.trust_domain());
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.retain(|(_, until)| *until > now);
        if verdicts.iter().any(|(by, _)| Some(by) == bundle) {
            return Ok(());
        }
        spire_adapter::verify_chain(
            &self.chain,
            bundles,
            &ExpectedPeer::Exact(expected.clone()),
            clock.wall(),
        )
        .map_err(Error::Certificate)?;
        if verdicts.len() >= VERDICTS {
            verdicts.remove(0);
        }
        verdicts.extend(bundle.map(|bundle| (bundle.clone(), now.saturating_add(VERDICT))));
        Ok(())
    }
}
