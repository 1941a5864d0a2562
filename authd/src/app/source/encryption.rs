//! The WireGuard device and its peers.

use std::time::SystemTime;

use wg_mesh::{BackendKind, PeerStatus};

use super::{DaemonSource, SourceError, to_timestamp, v1};

impl DaemonSource {
    pub(super) fn build_encryption(&self) -> Result<v1::Encryption, SourceError> {
        let found = self.found.borrow().clone();
        let sessions = self.sessions.borrow().clone();
        let wall = self.clock.wall();
        let Some(status) = &found.status else {
            return Ok(v1::Encryption {
                guard: Some(self.encryption_guard()?),
                backend: v1::Backend::Unspecified.into(),
                interface: self.config.encryption.interface.clone(),
                listen_port: self.config.encryption.port.get().into(),
                reachable: false,
                ..v1::Encryption::default()
            });
        };
        let peers = status.peers.iter().map(|peer| {
            let node = found.nodes.get(&peer.public_key).cloned().unwrap_or_default();
            let live = sessions.get(&node).is_some_and(|session| session.live);
            to_message(peer, node, live, wall)
        });
        let mut peers: Vec<_> = peers.collect();
        peers.sort_by(|one, other| one.node.cmp(&other.node));
        Ok(v1::Encryption {
            guard: Some(self.encryption_guard()?),
            backend: match status.backend {
                BackendKind::Userspace => v1::Backend::Userspace,
                BackendKind::Memory => v1::Backend::Unspecified,
            }
            .into(),
            interface: status.interface.clone(),
            public_key: status.public_key.to_string(),
            listen_port: status.listen_port.unwrap_or_default().into(),
            reachable: found.failure.is_none(),
            peers,
        })
    }
}

fn to_message(peer: &PeerStatus, node: String, session_live: bool, wall: SystemTime) -> v1::WireguardPeer {
    v1::WireguardPeer {
        node,
        public_key: peer.public_key.to_string(),
        endpoint: peer.endpoint.to_string(),
        allowed_ips: peer.allowed_ips.iter().map(ToString::to_string).collect(),
        latest_handshake: peer.last_handshake.and_then(|ago| wall.checked_sub(ago)).map(to_timestamp),
        received_bytes: peer.rx_bytes,
        sent_bytes: peer.tx_bytes,
        session_live,
    }
}
