//! At a pod's interface: addresses, provenance, what is not IP.

use auth_ebpf_abi::packet::{ethertype, icmp as types};
use auth_ebpf_abi::{Address, Context, DropReason, Hook};

use super::frames::{Parts, arp, ethernet, icmp, neighbour, packet, syn, tagged, udp};
use super::scene::*;
use super::tables::Tables;

fn sends(tables: &Tables, frame: &[u8]) -> (auth_ebpf_abi::Verdict, Option<DropReason>) {
    run(tables, context(Hook::FromPod, HERE_IFINDEX), frame)
}

fn receives(tables: &Tables, ingress: u32, frame: &[u8]) -> (auth_ebpf_abi::Verdict, Option<DropReason>) {
    run(tables, context(Hook::ToPod, ingress), frame)
}

#[test]
fn a_pod_reaches_whom_it_may() {
    let tables = cluster();
    for destination in [NEIGHBOUR, THERE, WORLD, HOST, OTHER_NODE] {
        assert_eq!(
            sends(&tables, &syn((HERE, 1000), (destination, 80)).ethernet()),
            PASSES,
            "{destination:?}"
        );
    }
    assert_eq!(sends(&tables, &udp((HERE_V6, 1000), (THERE_V6, 80)).ethernet()), PASSES);
}

#[test]
fn a_source_that_is_not_the_pods_is_spoofed() {
    let tables = cluster();
    for source in [NEIGHBOUR, THERE, WORLD, HOST, NOBODY] {
        assert_eq!(
            sends(&tables, &udp((source, 1), (WORLD, 2)).ethernet()),
            drops(DropReason::Spoofed),
            "{source:?}"
        );
    }
    assert_eq!(sends(&tables, &udp((LINK_LOCAL, 1), (HOST_V6, 2)).ethernet()), drops(DropReason::Spoofed));
}

#[test]
fn an_address_of_the_cluster_that_nobody_has_is_undecidable() {
    let tables = cluster();
    assert_eq!(
        sends(&tables, &udp((HERE, 1), (NOBODY, 2)).ethernet()),
        drops(DropReason::UnknownDestination)
    );
    assert_eq!(
        receives(&tables, UPLINK_IFINDEX, &udp((NOBODY, 1), (HERE, 2)).ethernet()),
        drops(DropReason::UnknownSource)
    );
}

#[test]
fn what_a_bridge_hands_to_the_host_is_its_ports() {
    const BRIDGE: u32 = 40;
    let mut tables = cluster();
    let frame = udp((NEIGHBOUR, 1), (HERE, 2)).ethernet();
    assert_eq!(receives(&tables, BRIDGE, &frame), drops(DropReason::Spoofed));
    tables.endpoints.get_mut(&NEIGHBOUR).unwrap().bridge = BRIDGE;
    for (ingress, expected) in [
        (BRIDGE, PASSES),
        (NEIGHBOUR_IFINDEX, PASSES),
        (HERE_IFINDEX, drops(DropReason::Spoofed)),
        (0, drops(DropReason::Spoofed)),
    ] {
        assert_eq!(receives(&tables, ingress, &frame), expected, "{ingress}");
        let away = udp((NEIGHBOUR, 1), (THERE, 2)).ip();
        assert_eq!(run(&tables, context(Hook::ToWireguard, ingress), &away), expected, "{ingress}");
    }
}

#[test]
fn a_settled_connection_with_a_port_of_a_bridge_goes_on_by_either_way() {
    const BRIDGE: u32 = 40;
    let mut tables = cluster();
    tables.endpoints.get_mut(&NEIGHBOUR).unwrap().bridge = BRIDGE;
    let frame = udp((NEIGHBOUR, 1), (HERE, 2)).ethernet();
    assert_eq!(receives(&tables, BRIDGE, &frame), PASSES);
    // Nobody has said that anything has changed.
    tables.policy.clear();
    for (ingress, expected) in [
        (BRIDGE, PASSES),
        (NEIGHBOUR_IFINDEX, PASSES),
        (HERE_IFINDEX, drops(DropReason::Spoofed)),
        (0, drops(DropReason::Spoofed)),
    ] {
        assert_eq!(receives(&tables, ingress, &frame), expected, "{ingress}");
    }
}

#[test]
fn pods_do_not_talk_to_the_ports_of_nodes() {
    let tables = cluster();
    for node in [HOST, OTHER_NODE] {
        let wireguard = udp((HERE, 1), (node, WIREGUARD_PORT)).ethernet();
        let handshake = syn((HERE, 1), (node, HANDSHAKE_PORT)).ethernet();
        assert_eq!(sends(&tables, &wireguard), drops(DropReason::ReservedPort));
        assert_eq!(sends(&tables, &handshake), drops(DropReason::ReservedPort));
        assert_eq!(sends(&tables, &syn((HERE, 1), (node, WIREGUARD_PORT)).ethernet()), PASSES);
    }
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, HANDSHAKE_PORT)).ethernet()), PASSES);
}

#[test]
fn a_pod_here_without_an_endpoint_is_unreachable() {
    let mut tables = cluster();
    tables.endpoints.remove(&NEIGHBOUR);
    assert_eq!(sends(&tables, &udp((HERE, 1), (NEIGHBOUR, 2)).ethernet()), drops(DropReason::NoEndpoint));
    assert_eq!(
        receives(&tables, NEIGHBOUR_IFINDEX, &udp((NEIGHBOUR, 1), (HERE, 2)).ethernet()),
        drops(DropReason::NoEndpoint)
    );
    assert_eq!(
        receives(&tables, 0, &udp((HOST, 1), (NEIGHBOUR, 2)).ethernet()),
        drops(DropReason::NoEndpoint)
    );
}

#[test]
fn provenance_is_where_the_kernel_says_it_came_in() {
    let tables = cluster();
    for (source, ingress, expected) in [
        (NEIGHBOUR, NEIGHBOUR_IFINDEX, PASSES),
        (NEIGHBOUR, UPLINK_IFINDEX, drops(DropReason::Spoofed)),
        (NEIGHBOUR, WIREGUARD_IFINDEX, drops(DropReason::Spoofed)),
        (NEIGHBOUR, 0, drops(DropReason::Spoofed)),
        (THERE, WIREGUARD_IFINDEX, PASSES),
        (THERE, UPLINK_IFINDEX, drops(DropReason::Unencrypted)),
        (THERE, NEIGHBOUR_IFINDEX, drops(DropReason::Unencrypted)),
        (THERE, 0, drops(DropReason::Unencrypted)),
        (OTHER_NODE, WIREGUARD_IFINDEX, PASSES),
        (OTHER_NODE, UPLINK_IFINDEX, drops(DropReason::Unencrypted)),
        (WORLD, UPLINK_IFINDEX, PASSES),
        (HOST, 0, PASSES),
    ] {
        let frame = udp((source, 1), (HERE, 2)).ethernet();
        assert_eq!(receives(&tables, ingress, &frame), expected, "{source:?} by {ingress}");
    }
}

#[test]
fn without_a_tunnel_no_interface_is_the_tunnel() {
    let mut tables = cluster();
    tables.settings.remove(&auth_ebpf_abi::Setting::WireguardIfindex);
    let frame = udp((THERE, 1), (HERE, 2)).ethernet();
    assert_eq!(receives(&tables, 0, &frame), drops(DropReason::Unencrypted));
}

#[test]
fn the_host_reaches_its_pods_and_only_the_host() {
    let tables = locked();
    let probe = syn((HOST, 40000), (HERE, 8080)).ethernet();
    assert_eq!(receives(&tables, 0, &probe), PASSES);
    // The host's address by another way is anybody's.
    assert_eq!(receives(&tables, NEIGHBOUR_IFINDEX, &probe), drops(DropReason::PolicyDenied));
    // The answer to the probe is a reply.
    assert_eq!(sends(&tables, &super::frames::syn_ack((HERE, 8080), (HOST, 40000)).ethernet()), PASSES);
    assert_eq!(sends(&tables, &syn((HERE, 8080), (HOST, 40001)).ethernet()), drops(DropReason::PolicyDenied));
}

#[test]
fn arp_speaks_for_the_pods_own_addresses() {
    let tables = cluster();
    assert_eq!(sends(&tables, &arp([10, 0, 1, 10], [10, 0, 1, 1])), PASSES);
    assert_eq!(sends(&tables, &arp([0, 0, 0, 0], [10, 0, 1, 10])), PASSES);
    assert_eq!(sends(&tables, &arp([10, 0, 1, 11], [10, 0, 1, 1])), drops(DropReason::Spoofed));
    assert_eq!(receives(&tables, 0, &arp([169, 254, 1, 1], [10, 0, 1, 10])), PASSES);
    let mut wrong = arp([10, 0, 1, 10], [10, 0, 1, 1]);
    wrong[18] = 8;
    assert_eq!(sends(&tables, &wrong), drops(DropReason::InvalidPacket));
}

#[test]
fn neighbour_discovery_passes_on_the_link_alone() {
    let tables = locked();
    let solicit = |source, destination, hop_limit| {
        neighbour(types::V6_NEIGHBOUR_SOLICITATION, source, destination, HERE_V6, hop_limit).ethernet()
    };
    let unspecified = Address::default();
    for source in [unspecified, LINK_LOCAL, HERE_V6] {
        for destination in [ALL_NODES, LINK_LOCAL, HOST_V6] {
            assert_eq!(sends(&tables, &solicit(source, destination, 255)), PASSES);
        }
    }
    assert_eq!(sends(&tables, &solicit(THERE_V6, ALL_NODES, 255)), drops(DropReason::Spoofed));
    assert_eq!(sends(&tables, &solicit(LINK_LOCAL, ALL_NODES, 254)), drops(DropReason::Spoofed));
    assert_eq!(sends(&tables, &solicit(HERE_V6, THERE_V6, 255)), drops(DropReason::PolicyDenied));
    assert_eq!(receives(&tables, 0, &solicit(HOST_V6, HERE_V6, 255)), PASSES);
    assert_eq!(receives(&tables, 0, &solicit(LINK_LOCAL, HERE_V6, 255)), PASSES);
    assert_eq!(
        receives(&tables, UPLINK_IFINDEX, &solicit(HOST_V6, HERE_V6, 255)),
        drops(DropReason::PolicyDenied)
    );
}

#[test]
fn multicast_listener_reports_pass() {
    let tables = locked();
    let report = |source, destination| {
        let extensions = vec![(0, vec![0, 5, 2, 0, 0, 1, 0])];
        Parts { hop_limit: 1, extensions, ..icmp(source, destination, types::V6_MLD2_REPORT, 0) }.ethernet()
    };
    assert_eq!(sends(&tables, &report(LINK_LOCAL, ALL_NODES)), PASSES);
    assert_eq!(sends(&tables, &report(Address::default(), ALL_NODES)), PASSES);
    assert_eq!(sends(&tables, &report(LINK_LOCAL, HERE_V6)), drops(DropReason::Spoofed));
}

#[test]
fn what_goes_to_everybody_reaches_no_pod_and_leaves_one_as_policy_says() {
    let (everybody, group) = (v4([255, 255, 255, 255]), v4([224, 0, 0, 251]));
    let group_v6 = Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb]);
    // A pod has its address, and asks nobody for one.
    let request = udp((v4([0; 4]), 68), (everybody, 67)).ethernet();
    assert_eq!(sends(&cluster(), &request), drops(DropReason::Spoofed));
    for (source, destination) in [(HERE, everybody), (HERE, group), (HERE_V6, group_v6)] {
        let frame = udp((source, 5353), (destination, 5353)).ethernet();
        assert_eq!(sends(&cluster(), &frame), PASSES, "the world's");
        assert_eq!(sends(&locked(), &frame), drops(DropReason::PolicyDenied));
    }
    for (source, ingress) in [(NEIGHBOUR, NEIGHBOUR_IFINDEX), (WORLD, UPLINK_IFINDEX), (HOST, 0)] {
        for destination in [everybody, group] {
            let frame = udp((source, 5353), (destination, 5353)).ethernet();
            assert_eq!(receives(&cluster(), ingress, &frame), drops(DropReason::NoEndpoint));
        }
    }
    let frame = udp((LINK_LOCAL, 5353), (group_v6, 5353)).ethernet();
    assert_eq!(receives(&cluster(), NEIGHBOUR_IFINDEX, &frame), drops(DropReason::NoEndpoint));
}

#[test]
fn pods_speak_neither_other_protocols_nor_vlan() {
    let tables = cluster();
    assert_eq!(sends(&tables, &ethernet(0x88cc, &[0; 40])), drops(DropReason::UnsupportedL3));
    assert_eq!(sends(&tables, &ethernet(ethertype::VLAN, &[0; 40])), drops(DropReason::UnsupportedL3));
    let frame = udp((HERE, 1), (WORLD, 2)).ethernet();
    assert_eq!(sends(&tables, &tagged(&frame)), drops(DropReason::UnsupportedL3));
    let offloaded = Context { tagged: true, ..context(Hook::FromPod, HERE_IFINDEX) };
    assert_eq!(run(&tables, offloaded, &frame), drops(DropReason::UnsupportedL3));
    assert_eq!(
        run(&tables, offloaded, &arp([10, 0, 1, 10], [10, 0, 1, 1])),
        drops(DropReason::UnsupportedL3)
    );
}

#[test]
fn any_ip_protocol_is_judged_by_its_number() {
    let tables = cluster();
    assert_eq!(sends(&tables, &packet(HERE, WORLD, 47, vec![0; 8]).ethernet()), PASSES);
    assert_eq!(
        sends(&locked(), &packet(HERE, WORLD, 47, vec![0; 8]).ethernet()),
        drops(DropReason::PolicyDenied)
    );
}

#[test]
fn what_cannot_be_parsed_drops() {
    let tables = cluster();
    let whole = udp((HERE, 1), (WORLD, 2)).ethernet();
    for length in 0..14 + 28 {
        let (_, reason) = sends(&tables, &whole[..length.min(whole.len())]);
        // The IP header counts 32 bytes; what is behind the ports isn't read.
        let enough = length >= 14 + 20 + 4;
        assert_eq!(reason, if enough { None } else { Some(DropReason::InvalidPacket) }, "{length}");
    }
}
