//! Hostile bytes through parser and decision, and what must hold whatever they are. The fuzz target and the
//! replay of its corpus share it.

use auth_ebpf_abi::{AuthType, Direction, Hook, Verdict};

use super::scene::*;
use super::tables::Tables;

/// HERE may open connections to its authenticated peer, and nobody else may anything.
fn world() -> Tables {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Spire);
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    tables
}

/// Decides on packets, at one hook after the other: a byte for hook and interface, two for the length, then
/// the packet.
///
/// # Panics
/// If a packet passes that no rule of this small world can let pass.
pub(crate) fn decide_all(mut data: &[u8]) {
    let tables = world();
    let interfaces = [0, HERE_IFINDEX, NEIGHBOUR_IFINDEX, WIREGUARD_IFINDEX, UPLINK_IFINDEX];
    while let Some((&[place, high, low], rest)) = data.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (packet, rest) = rest.split_at(length);
        data = rest;
        let hook = Hook::ALL[usize::from(place) % Hook::ALL.len()];
        let ingress = interfaces[usize::from(place) / Hook::ALL.len() % interfaces.len()];
        let (verdict, _) = run(&tables, context(hook, ingress), packet);
        let passed = verdict != Verdict::Dropped;
        // Whoever is neither the pod's own address nor on its link can't speak by its interface.
        if passed && hook == Hook::FromPod && packet.get(12..15) == Some(&[8, 0, 0x45]) {
            assert_eq!(packet.get(26..30), Some(&HERE.0[12..]), "another's source: {packet:02x?}");
            assert_eq!(packet.get(30..34), Some(&THERE.0[12..]), "an unnamed peer: {packet:02x?}");
        }
        // Nothing but the world and what nodes need for their tunnels comes in by an uplink.
        if passed && hook == Hook::FromUplink && packet.get(12..15) == Some(&[8, 0, 0x45]) {
            assert_ne!(packet.get(26..30), Some(&THERE.0[12..]), "in the clear: {packet:02x?}");
        }
    }
    assert!(connections(&tables).iter().all(|(key, _)| key.local.is_v4() == key.remote.is_v4()));
}
