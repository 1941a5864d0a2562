//! The pure difference between what is and what shall be.
//!
//! Addresses are taken away before they are given, so that those which move never belong to two peers.

use std::{collections::BTreeSet, net::SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Desired, Peer, PresharedKey, PublicKey};

/// One step from the observed to the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// Forget a peer and its sessions.
    RemovePeer {
        /// Which.
        public_key: PublicKey,
    },
    /// Listen on another port.
    ListenPort {
        /// Which.
        port: u16,
    },
    /// Give the interface another MTU.
    Mtu {
        /// Which.
        mtu: u16,
    },
    /// Replace a peer's addresses; its sessions stay.
    AllowedIps {
        /// Whose.
        public_key: PublicKey,
        /// All that it has from now on.
        allowed_ips: BTreeSet<IpNet>,
    },
    /// Send to another place; sessions stay.
    Endpoint {
        /// Whose.
        public_key: PublicKey,
        /// Where to.
        endpoint: SocketAddr,
    },
    /// Change the interval of keepalives; sessions stay.
    PersistentKeepalive {
        /// Whose.
        public_key: PublicKey,
        /// Seconds, or none.
        seconds: Option<u16>,
    },
    /// Use another pre-shared key from the next handshake on; sessions stay.
    PresharedKey {
        /// Whose.
        public_key: PublicKey,
        /// Which, or none.
        preshared_key: Option<PresharedKey>,
    },
    /// Add a peer.
    AddPeer {
        /// All about it.
        peer: Peer,
    },
}

/// The changes that lead from `observed` to `desired`. Equal states need none.
#[must_use]
pub fn plan(desired: &Desired, observed: &Desired) -> Vec<Change> {
    let gone = observed.peers.keys().filter(|key| !desired.peers.contains_key(key));
    let mut changes: Vec<Change> = gone.map(|key| Change::RemovePeer { public_key: *key }).collect();
    if desired.listen_port != observed.listen_port {
        changes.push(Change::ListenPort { port: desired.listen_port });
    }
    if desired.mtu != observed.mtu {
        changes.push(Change::Mtu { mtu: desired.mtu });
    }
    let both = desired.peers.iter().filter_map(|(key, to)| Some((*key, to, observed.peers.get(key)?)));
    // Peers may swap addresses: everyone gives before anyone takes.
    for (public_key, to, from) in both.clone() {
        if !from.allowed_ips.is_subset(&to.allowed_ips) {
            let allowed_ips = from.allowed_ips.intersection(&to.allowed_ips).copied().collect();
            changes.push(Change::AllowedIps { public_key, allowed_ips });
        }
    }
    for (public_key, to, from) in both {
        changes.extend(peer_changes(public_key, to, from));
    }
    let new = desired.peers.iter().filter(|(key, _)| !observed.peers.contains_key(key));
    changes.extend(new.map(|(_, peer)| Change::AddPeer { peer: peer.clone() }));
    changes
}

fn peer_changes(public_key: PublicKey, to: &Peer, from: &Peer) -> Vec<Change> {
    let mut changes = Vec::new();
    if !to.allowed_ips.is_subset(&from.allowed_ips) {
        changes.push(Change::AllowedIps { public_key, allowed_ips: to.allowed_ips.clone() });
    }
    if to.endpoint != from.endpoint {
        changes.push(Change::Endpoint { public_key, endpoint: to.endpoint });
    }
    if to.persistent_keepalive != from.persistent_keepalive {
        changes.push(Change::PersistentKeepalive { public_key, seconds: to.persistent_keepalive });
    }
    if to.preshared_key != from.preshared_key {
        let preshared_key = to.preshared_key.clone();
        changes.push(Change::PresharedKey { public_key, preshared_key });
    }
    changes
}

/// Applies one change to a state in memory; what speaks of an unknown peer does nothing.
pub fn apply(state: &mut Desired, change: &Change) {
    match change {
        Change::RemovePeer { public_key } => {
            state.peers.remove(public_key);
        }
        Change::ListenPort { port } => state.listen_port = *port,
        Change::Mtu { mtu } => state.mtu = *mtu,
        Change::AllowedIps { public_key, allowed_ips } => {
            if let Some(peer) = state.peers.get_mut(public_key) {
                peer.allowed_ips.clone_from(allowed_ips);
            }
        }
        Change::Endpoint { public_key, endpoint } => {
            if let Some(peer) = state.peers.get_mut(public_key) {
                peer.endpoint = *endpoint;
            }
        }
        Change::PersistentKeepalive { public_key, seconds } => {
            if let Some(peer) = state.peers.get_mut(public_key) {
                peer.persistent_keepalive = *seconds;
            }
        }
        Change::PresharedKey { public_key, preshared_key } => {
            if let Some(peer) = state.peers.get_mut(public_key) {
                peer.preshared_key.clone_from(preshared_key);
            }
        }
        Change::AddPeer { peer } => {
            state.peers.insert(peer.public_key, peer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{DEFAULT_MTU, Invalid, PeerField};

    pub(super) fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    fn peer(number: u8, nets: &[&str]) -> Peer {
        Peer {
            public_key: key(number),
            endpoint: ([192, 0, 2, number], 51_871).into(),
            allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
            persistent_keepalive: None,
            preshared_key: None,
        }
    }

    fn desired(peers: impl IntoIterator<Item = Peer>) -> Desired {
        let peers = peers.into_iter().map(|peer| (peer.public_key, peer)).collect();
        Desired { peers, ..Desired::default() }
    }

    #[test]
    fn addresses_leave_a_peer_before_another_gets_them() {
        let before =
            desired([peer(1, &["10.1.0.0/24"]), peer(2, &["10.2.0.0/24"]), peer(3, &["10.3.0.0/24"])]);
        let after = desired([peer(1, &["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"]), peer(2, &[])]);
        let changes = plan(&after, &before);
        assert_eq!(changes.first(), Some(&Change::RemovePeer { public_key: key(3) }));
        let mut state = before;
        for change in &changes {
            apply(&mut state, change);
            assert_eq!(state.check(None), Ok(()), "after {change:?}");
        }
        assert_eq!(state, after);
    }

    #[test]
    fn peers_may_swap_addresses() {
        let before = desired([peer(1, &["10.1.0.0/24"]), peer(2, &["10.2.0.0/24"])]);
        let after = desired([peer(1, &["10.2.0.0/24"]), peer(2, &["10.1.0.0/24"])]);
        let mut state = before.clone();
        for change in plan(&after, &before) {
            apply(&mut state, &change);
            assert_eq!(state.check(None), Ok(()), "after {change:?}");
        }
        assert_eq!(state, after);
    }

    #[test]
    fn a_new_endpoint_touches_nothing_else() {
        let before = desired([peer(1, &["10.1.0.0/24"])]);
        let mut after = before.clone();
        let endpoint = "[2001:db8::9]:1".parse().unwrap();
        after.peers.get_mut(&key(1)).unwrap().endpoint = endpoint;
        assert_eq!(plan(&after, &before), [Change::Endpoint { public_key: key(1), endpoint }]);
    }

    #[test]
    fn overlapping_addresses_are_refused_by_name() {
        let nested = desired([peer(1, &["10.0.0.0/8"]), peer(2, &["10.2.0.0/24"])]);
        let error = nested.check(None).unwrap_err();
        assert_eq!(error.field(), format!("peers[{}].allowed_ips", key(2)));
        assert!(error.to_string().contains("10.2.0.0/24 overlaps 10.0.0.0/8"), "{error}");
        // A range of the same peer between the two hides nothing.
        let hidden = desired([peer(1, &["10.0.0.0/8", "10.1.0.0/16"]), peer(2, &["10.2.0.0/24"])]);
        assert!(matches!(hidden.check(None), Err(Invalid::Overlap { .. })));
        let equal = desired([peer(1, &["fd00::/64"]), peer(2, &["fd00::/64"])]);
        assert!(matches!(equal.check(None), Err(Invalid::Overlap { .. })));
        assert_eq!(desired([peer(1, &["10.0.0.0/8", "10.2.0.0/24"])]).check(None), Ok(()));
    }

    #[test]
    fn what_cannot_work_is_refused_by_field() {
        let good = desired([peer(1, &["10.1.0.0/24"])]);
        assert_eq!(good.check(Some(&key(9))), Ok(()));
        assert_eq!(good.check(Some(&key(1))).unwrap_err().field(), format!("peers[{}].public_key", key(1)));
        assert_eq!(Desired { listen_port: 0, ..good.clone() }.check(None), Err(Invalid::ListenPort));
        assert_eq!(Desired { mtu: 1279, ..good.clone() }.check(None), Err(Invalid::Mtu(1279)));
        assert_eq!(Desired { mtu: 65_500, ..good }.check(None), Err(Invalid::Mtu(65_500)));
    }

    #[test]
    fn bad_peers_are_refused_by_field() {
        let field = |change: &dyn Fn(&mut Peer)| {
            let mut bad = peer(1, &["10.1.0.0/24"]);
            change(&mut bad);
            let state = Desired { peers: BTreeMap::from([(key(1), bad)]), ..Desired::default() };
            match state.check(None) {
                Err(Invalid::Peer { field, .. }) => Some(field),
                _ => None,
            }
        };
        assert_eq!(field(&|_| ()), None);
        assert_eq!(field(&|peer| peer.public_key = key(2)), Some(PeerField::PublicKey));
        assert_eq!(field(&|peer| peer.endpoint.set_port(0)), Some(PeerField::Endpoint));
        for address in ["0.0.0.0:1", "[::]:1", "255.255.255.255:1", "224.0.0.1:1", "[ff02::1]:1"] {
            assert_eq!(field(&|peer| peer.endpoint = address.parse().unwrap()), Some(PeerField::Endpoint));
        }
        let host_bits = |peer: &mut Peer| peer.allowed_ips = ["10.1.0.1/24".parse().unwrap()].into();
        assert_eq!(field(&host_bits), Some(PeerField::AllowedIps));
        assert_eq!(field(&|peer| peer.persistent_keepalive = Some(0)), Some(PeerField::PersistentKeepalive));
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0_u8..8, 16_u8..=24).prop_map(|(third, length)| {
                IpNet::new([10, third, third, 0].into(), length).unwrap().trunc()
            }),
            (0_u16..8, 48_u8..=64).prop_map(|(part, length)| {
                IpNet::new([0xfd00, part, part, 0, 0, 0, 0, 0].into(), length).unwrap().trunc()
            }),
        ]
    }

    fn any_peer() -> impl Strategy<Value = Peer> {
        let nets = proptest::collection::btree_set(any_net(), 0..4);
        let preshared = proptest::option::of((1_u8..3).prop_map(|byte| PresharedKey::new([byte; 32].into())));
        (1_u8..6, 1_u16..4, nets, proptest::option::of(1_u16..3), preshared).prop_map(
            |(number, port, allowed_ips, persistent_keepalive, preshared_key)| Peer {
                endpoint: ([192, 0, 2, number], port).into(),
                allowed_ips,
                persistent_keepalive,
                preshared_key,
                ..peer(number, &[])
            },
        )
    }

    fn any_desired() -> impl Strategy<Value = Desired> {
        (proptest::collection::vec(any_peer(), 0..6), 1_u16..3, DEFAULT_MTU..DEFAULT_MTU + 2)
            .prop_map(|(peers, listen_port, mtu)| Desired { listen_port, mtu, ..desired(peers) })
    }

    /// By force: every pair of prefixes of two peers.
    fn overlaps(state: &Desired) -> bool {
        let nets: Vec<_> = state
            .peers
            .iter()
            .flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |net| (key, net)))
            .collect();
        nets.iter().any(|(key, net)| {
            nets.iter().any(|(other, outer)| key != other && (outer.contains(*net) || net.contains(*outer)))
        })
    }

    proptest! {
        #[test]
        fn changes_lead_to_the_desired_state(to in any_desired(), from in any_desired()) {
            let changes = plan(&to, &from);
            let mut state = from.clone();
            changes.iter().for_each(|change| apply(&mut state, change));
            prop_assert_eq!(&state, &to);
            prop_assert!(plan(&to, &state).is_empty());
            prop_assert_eq!(changes.is_empty(), to == from);
        }

        #[test]
        fn overlaps_are_found_exactly(state in any_desired()) {
            prop_assert_eq!(matches!(state.check(None), Err(Invalid::Overlap { .. })), overlaps(&state));
        }

        #[test]
        fn no_step_between_valid_states_overlaps(to in any_desired(), from in any_desired()) {
            prop_assume!(to.check(None).is_ok() && from.check(None).is_ok());
            let mut state = from.clone();
            for change in plan(&to, &from) {
                apply(&mut state, &change);
                prop_assert!(!overlaps(&state), "after {:?}", change);
            }
        }

        #[test]
        fn the_wire_form_is_faithful(state in any_desired()) {
            let wire = serde_json::to_string(&state).unwrap();
            prop_assert_eq!(serde_json::from_str::<Desired>(&wire).unwrap(), state);
        }
    }
}
