//! What somebody tries who owns a pod, or a machine beside the nodes.

use auth_ebpf_abi::packet::icmp as types;
use auth_ebpf_abi::{Address, DropReason, Hook, Verdict};

use super::frames::{Parts, icmp, neighbour, syn, udp};
use super::scene::*;
use super::tables::Tables;

type Fate = (Verdict, Option<DropReason>);

const NEIGHBOUR_V6: Address = v6(1, 0x11);
const OTHER_LINK_LOCAL: Address = Address([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6]);
const SPOOFED: Fate = drops(DropReason::Spoofed);

fn sends(tables: &Tables, parts: &Parts) -> Fate {
    run(tables, context(Hook::FromPod, HERE_IFINDEX), &parts.ethernet())
}

fn receives(tables: &Tables, ingress: u32, parts: &Parts) -> Fate {
    run(tables, context(Hook::ToPod, ingress), &parts.ethernet())
}

#[test]
fn a_pod_advertises_no_address_but_its_own() {
    let tables = cluster();
    let advertise = |source, destination, target| {
        neighbour(types::V6_NEIGHBOUR_ADVERTISEMENT, source, destination, target, 255)
    };
    for destination in [ALL_NODES, HOST_V6, OTHER_LINK_LOCAL, NEIGHBOUR_V6] {
        for source in [HERE_V6, LINK_LOCAL] {
            for target in [NEIGHBOUR_V6, HOST_V6, THERE_V6] {
                assert_eq!(sends(&tables, &advertise(source, destination, target)), SPOOFED);
            }
        }
    }
    for source in [HERE_V6, LINK_LOCAL] {
        assert_eq!(sends(&tables, &advertise(source, ALL_NODES, HERE_V6)), PASSES);
        assert_eq!(sends(&tables, &advertise(source, HOST_V6, LINK_LOCAL)), PASSES);
    }
    assert_eq!(sends(&tables, &advertise(NEIGHBOUR_V6, ALL_NODES, HERE_V6)), SPOOFED);
}

#[test]
fn a_pod_probes_for_no_address_but_its_own() {
    let tables = cluster();
    let unspecified = Address::default();
    let probe = |target| neighbour(types::V6_NEIGHBOUR_SOLICITATION, unspecified, ALL_NODES, target, 255);
    assert_eq!(sends(&tables, &probe(HERE_V6)), PASSES);
    assert_eq!(sends(&tables, &probe(LINK_LOCAL)), PASSES);
    assert_eq!(sends(&tables, &probe(NEIGHBOUR_V6)), SPOOFED);
    // To ask for another's address is what solicitations are for.
    let ask = neighbour(types::V6_NEIGHBOUR_SOLICITATION, HERE_V6, ALL_NODES, NEIGHBOUR_V6, 255);
    assert_eq!(sends(&tables, &ask), PASSES);
}

#[test]
fn nobody_on_the_underlay_speaks_for_this_host() {
    let tables = cluster();
    let from_uplink = context(Hook::FromUplink, UPLINK_IFINDEX);
    for (host, here) in [(HOST, HERE), (HOST_V6, HERE_V6)] {
        for parts in [udp((host, 53), (here, 1)), syn((host, HANDSHAKE_PORT), (here, 80))] {
            assert_eq!(run(&tables, from_uplink, &parts.ethernet()), SPOOFED);
        }
    }
}

#[test]
fn a_pod_is_no_router() {
    let tables = cluster();
    for kind in [types::V6_ROUTER_ADVERTISEMENT, types::V6_NEIGHBOUR_LAST] {
        for source in [LINK_LOCAL, HERE_V6] {
            for destination in [ALL_NODES, OTHER_LINK_LOCAL, HOST_V6, THERE_V6] {
                let parts = Parts { hop_limit: 255, ..icmp(source, destination, kind, 0) };
                assert_eq!(sends(&tables, &parts), SPOOFED);
            }
        }
        // Nor does one hear of any but its host.
        let parts = Parts { hop_limit: 255, ..icmp(LINK_LOCAL, ALL_NODES, kind, 0) };
        assert_eq!(receives(&tables, 0, &parts), PASSES);
        for ingress in [UPLINK_IFINDEX, NEIGHBOUR_IFINDEX] {
            assert_ne!(receives(&tables, ingress, &parts), PASSES);
        }
    }
    assert_eq!(
        sends(
            &tables,
            &Parts { hop_limit: 255, ..icmp(LINK_LOCAL, ALL_NODES, types::V6_NEIGHBOUR_FIRST, 0) }
        ),
        PASSES
    );
}

#[test]
fn neighbour_discovery_in_fragments_is_none() {
    let tables = locked();
    let parts = Parts {
        extensions: vec![(44, vec![0, 0, 1, 0, 0, 0, 9])],
        ..neighbour(types::V6_NEIGHBOUR_ADVERTISEMENT, HERE_V6, ALL_NODES, NEIGHBOUR_V6, 255)
    };
    assert_eq!(sends(&tables, &parts), drops(DropReason::PolicyDenied));
}

#[test]
fn nobodys_address_is_no_source() {
    let tables = cluster();
    for source in [
        v4([0, 0, 0, 0]),
        v4([127, 0, 0, 1]),
        v4([224, 0, 0, 1]),
        v4([239, 1, 1, 1]),
        v4([255, 255, 255, 255]),
    ] {
        assert_eq!(sends(&tables, &udp((source, 1), (WORLD, 2))), SPOOFED);
        assert_eq!(receives(&tables, UPLINK_IFINDEX, &udp((source, 1), (HERE, 2))), SPOOFED);
    }
    let loopback = Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    for source in [Address::default(), loopback, ALL_NODES] {
        assert_eq!(sends(&tables, &udp((source, 1), (HOST_V6, 2))), SPOOFED);
        assert_eq!(receives(&tables, UPLINK_IFINDEX, &udp((source, 1), (HERE_V6, 2))), SPOOFED);
    }
}

#[test]
fn the_hosts_loopback_is_out_of_reach() {
    let tables = cluster();
    assert_eq!(sends(&tables, &syn((HERE, 1), (v4([127, 0, 0, 1]), 80))), drops(DropReason::InvalidPacket));
    let loopback = Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(sends(&tables, &syn((HERE_V6, 1), (loopback, 80))), drops(DropReason::InvalidPacket));
}

#[test]
fn the_nodes_ports_have_no_back_door() {
    let tables = cluster();
    for destination in [HOST_V6, LINK_LOCAL, ALL_NODES] {
        let wireguard = udp((HERE_V6, 1), (destination, WIREGUARD_PORT));
        let handshake = syn((HERE_V6, 1), (destination, HANDSHAKE_PORT));
        assert_eq!(sends(&tables, &wireguard), drops(DropReason::ReservedPort), "{destination:?}");
        assert_eq!(sends(&tables, &handshake), drops(DropReason::ReservedPort), "{destination:?}");
    }
    for destination in [HOST, OTHER_NODE, v4([255, 255, 255, 255]), v4([224, 0, 0, 1])] {
        let wireguard = udp((HERE, 1), (destination, WIREGUARD_PORT));
        assert_eq!(sends(&tables, &wireguard), drops(DropReason::ReservedPort), "{destination:?}");
    }
    // In fragments, or with ports that only the first one shows.
    let mut first = Parts { fragment: 0x2000, ..udp((HERE, 1), (HOST, WIREGUARD_PORT)) };
    first.payload.resize(16, 0);
    assert_eq!(sends(&tables, &first), drops(DropReason::ReservedPort));
    assert_eq!(sends(&tables, &Parts { fragment: 2, ..first }), drops(DropReason::Fragment));
}

#[test]
fn the_links_other_end_is_this_host() {
    let tables = locked();
    assert_eq!(sends(&tables, &udp((HERE_V6, 1), (LINK_LOCAL, 53))), drops(DropReason::PolicyDenied));
    assert_eq!(tables.events.borrow().last().unwrap().remote, auth_ebpf_abi::identity::HOST);
}

#[test]
fn what_a_bridge_floods_reaches_no_other_pod() {
    let tables = cluster();
    for destination in [v4([255, 255, 255, 255]), v4([224, 0, 0, 251]), NEIGHBOUR] {
        let parts = udp((NEIGHBOUR, 1), (destination, 2));
        assert_eq!(receives(&tables, NEIGHBOUR_IFINDEX, &parts), drops(DropReason::NoEndpoint));
    }
}
