//! Pre-shared keys that differ at the two ends of a tunnel. Pure.
//!
//! Such ends keep the WireGuard session that they have, which ends after 180 s: long before that they are to come
//! to another key, by another node session.

use std::{collections::BTreeMap, time::Duration};

use wg_mesh::{PublicKey, Status};

use crate::clock::BootTime;

/// How long a tunnel may take to use a new pre-shared key before that is taken for a mismatch, and until the next try.
/// Ends get it within a round trip and a rescan, and the one that waits tries after 6 s.
const MISMATCH: Duration = Duration::from_secs(30);

/// Nodes that were asked for another key, and when.
#[derive(Debug, Default)]
pub(super) struct Mending(BTreeMap<String, BootTime>);

impl Mending {
    /// The nodes with which another key is to be agreed on now.
    pub(super) fn stuck(
        &mut self,
        status: &Status,
        nodes: &BTreeMap<PublicKey, String>,
        now: BootTime,
    ) -> Vec<String> {
        self.0.retain(|_, at| now.since(*at) < MISMATCH);
        let stuck = status.peers.iter().filter(|peer| peer.rekeying.is_some_and(|since| since >= MISMATCH));
        let stuck = stuck.filter_map(|peer| nodes.get(&peer.public_key)).cloned();
        let ask: Vec<String> = stuck.filter(|node| !self.0.contains_key(node)).collect();
        self.0.extend(ask.iter().map(|node| (node.clone(), now)));
        ask
    }
}

#[cfg(test)]
mod tests {
    use wg_mesh::{BackendKind, Counters, PeerStatus};

    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    /// A tunnel whose peer has not used its new pre-shared key for so long.
    fn status(rekeying: Option<u64>) -> Status {
        let peer = PeerStatus {
            public_key: key(7),
            endpoint: "10.0.0.2:51871".parse().unwrap(),
            configured_endpoint: "10.0.0.2:51871".parse().unwrap(),
            allowed_ips: std::collections::BTreeSet::default(),
            persistent_keepalive: None,
            preshared_key: None,
            rekeying: rekeying.map(Duration::from_secs),
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
        };
        Status {
            public_key: key(1),
            interface: "authd0".into(),
            ifindex: 9,
            listen_port: Some(51871),
            mtu: 1420,
            peers: vec![peer],
            backend: BackendKind::Userspace,
            counters: Counters::default(),
        }
    }

    /// WireGuard ends a session after 180 s: by then there are to have been several tries.
    #[test]
    fn a_mismatch_is_mended_long_before_wireguard_ends_the_session() {
        let nodes = BTreeMap::from([(key(7), "n2".to_owned())]);
        let mut mending = Mending::default();
        let at = |seconds: u64| BootTime(1_000_000_000_000 + seconds * 1_000_000_000);
        let asked: Vec<u64> = (0..180)
            .filter(|seconds| !mending.stuck(&status(Some(*seconds)), &nodes, at(*seconds)).is_empty())
            .collect();
        assert_eq!(asked, [30, 60, 90, 120, 150]);
    }

    #[test]
    fn a_key_that_is_in_use_or_new_and_a_peer_that_nobody_wants_ask_for_nothing() {
        let nodes = BTreeMap::from([(key(7), "n2".to_owned())]);
        let mut mending = Mending::default();
        let now = BootTime(1_000_000_000_000);
        assert_eq!(mending.stuck(&status(None), &nodes, now), [""; 0]);
        assert_eq!(mending.stuck(&status(Some(29)), &nodes, now), [""; 0]);
        assert_eq!(mending.stuck(&status(Some(60)), &BTreeMap::new(), now), [""; 0]);
    }
}
