//! A backend without a device, for the tests of whoever uses a mesh.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    Applied, Backend, BackendKind, Counters, Desired, Error, PeerStatus, PrivateKey, PublicKey, Status,
    apply, plan,
};

/// Holds a desired state as if it were a device.
#[derive(Debug)]
pub struct Memory {
    public_key: PublicKey,
    state: Mutex<Option<Desired>>,
}

impl Memory {
    /// A device with a key of its own and no peers.
    #[must_use]
    pub fn new() -> Self {
        Self { public_key: PrivateKey::generate().public_key(), state: Mutex::new(None) }
    }

    /// What was applied last.
    #[must_use]
    pub fn applied(&self) -> Option<Desired> {
        self.state().clone()
    }

    fn state(&self) -> MutexGuard<'_, Option<Desired>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Memory {
    async fn status(&self) -> Result<Status, Error> {
        let state = self.state();
        let peers = state.iter().flat_map(|desired| desired.peers.values());
        Ok(Status {
            public_key: self.public_key,
            interface: "memory0".into(),
            ifindex: 1,
            listen_port: state.as_ref().map(|desired| desired.listen_port),
            mtu: state.as_ref().map_or(crate::DEFAULT_MTU, |desired| desired.mtu),
            peers: peers
                .map(|peer| PeerStatus {
                    public_key: peer.public_key,
                    endpoint: peer.endpoint,
                    configured_endpoint: peer.endpoint,
                    allowed_ips: peer.allowed_ips.clone(),
                    persistent_keepalive: peer.persistent_keepalive,
                    preshared_key: peer.preshared_key.as_ref().map(crate::PresharedKey::without_secret),
                    rekeying: None,
                    last_handshake: None,
                    rx_bytes: 0,
                    tx_bytes: 0,
                })
                .collect(),
            backend: BackendKind::Memory,
            counters: Counters::default(),
        })
    }

    async fn apply(&self, desired: &Desired) -> Result<Applied, Error> {
        desired.check(Some(&self.public_key))?;
        let mut state = self.state();
        let blank = Desired { listen_port: 0, mtu: 0, peers: Default::default() };
        let mut next = state.clone().unwrap_or(blank);
        let changes = plan(desired, &next);
        changes.iter().for_each(|change| apply(&mut next, change));
        *state = Some(next);
        Ok(Applied { public_key: self.public_key, interface: "memory0".into(), ifindex: 1, changes })
    }
}
