//! At the WireGuard device and the uplinks.

use auth_ebpf_abi::packet::{ethertype, icmp as types};
use auth_ebpf_abi::{Address, Context, DropReason, Hook, Verdict};

use super::frames::{Parts, ack, arp, encapsulations, ethernet, icmp, packet, syn, tagged, udp};
use super::scene::*;
use super::tables::Tables;

type Fate = (Verdict, Option<DropReason>);

fn at(hook: Hook, ingress: u32, parts: &Parts) -> Fate {
    at_with(&cluster(), hook, ingress, parts)
}

fn at_with(tables: &Tables, hook: Hook, ingress: u32, parts: &Parts) -> Fate {
    let bytes = match hook {
        Hook::FromWireguard | Hook::ToWireguard => parts.ip(),
        _ => parts.ethernet(),
    };
    run(tables, context(hook, ingress), &bytes)
}

#[test]
fn the_tunnel_delivers_other_nodes_traffic_to_who_is_here() {
    for (source, destination, expected) in [
        (THERE, HERE, PASSES),
        (THERE, NEIGHBOUR, PASSES),
        (OTHER_NODE, HOST, PASSES),
        (THERE_V6, HERE_V6, PASSES),
        (THERE, NOBODY, drops(DropReason::NoEndpoint)),
        (THERE, WORLD, drops(DropReason::NoEndpoint)),
        (HERE, NEIGHBOUR, drops(DropReason::UnknownSource)),
        (HOST, HERE, drops(DropReason::UnknownSource)),
        (WORLD, HERE, drops(DropReason::UnknownSource)),
        (NOBODY, HERE, drops(DropReason::UnknownSource)),
    ] {
        let fate = at(Hook::FromWireguard, WIREGUARD_IFINDEX, &udp((source, 1), (destination, 2)));
        assert_eq!(fate, expected, "{source:?} to {destination:?}");
    }
}

#[test]
fn the_tunnel_takes_a_source_from_where_it_belongs() {
    for (source, ingress, expected) in [
        (HERE, HERE_IFINDEX, PASSES),
        (HERE, NEIGHBOUR_IFINDEX, drops(DropReason::Spoofed)),
        (HERE, 0, drops(DropReason::Spoofed)),
        (NEIGHBOUR, NEIGHBOUR_IFINDEX, PASSES),
        (HOST, 0, PASSES),
        (HOST, HERE_IFINDEX, drops(DropReason::Masqueraded)),
        (WORLD, UPLINK_IFINDEX, drops(DropReason::Spoofed)),
        (OTHER_NODE, 0, drops(DropReason::Spoofed)),
    ] {
        let fate = at(Hook::ToWireguard, ingress, &udp((source, 1), (THERE, 2)));
        assert_eq!(fate, expected, "{source:?} from {ingress}");
    }
}

#[test]
fn the_kernels_own_signalling_dies_in_the_tunnel_unremarked() {
    let solicit = Parts { hop_limit: 255, ..icmp(LINK_LOCAL, ALL_NODES, types::V6_NEIGHBOUR_FIRST, 0) };
    assert_eq!(at(Hook::ToWireguard, 0, &solicit), PASSES);
    assert_eq!(at(Hook::ToWireguard, HERE_IFINDEX, &solicit), drops(DropReason::Spoofed));
}

#[test]
fn fragments_travel_through_the_tunnel() {
    let fragment = Parts { fragment: 0x00b9, payload: vec![1, 2, 3], ..udp((THERE, 1), (HERE, 2)) };
    assert_eq!(at(Hook::FromWireguard, WIREGUARD_IFINDEX, &fragment), PASSES);
}

#[test]
fn what_is_no_ip_packet_has_no_business_in_the_tunnel() {
    for hook in [Hook::FromWireguard, Hook::ToWireguard] {
        assert_eq!(run(&cluster(), context(hook, 0), &[0x50; 60]), drops(DropReason::InvalidPacket));
    }
}

#[test]
fn bootstrap_flows_pass_the_uplinks() {
    for (hook, ingress, source, destination) in
        [(Hook::FromUplink, UPLINK_IFINDEX, OTHER_NODE, HOST), (Hook::ToUplink, 0, HOST, OTHER_NODE)]
    {
        for parts in [
            udp((source, WIREGUARD_PORT), (destination, WIREGUARD_PORT)),
            udp((source, WIREGUARD_PORT), (destination, 9)),
            udp((source, 9), (destination, WIREGUARD_PORT)),
            syn((source, 40000), (destination, HANDSHAKE_PORT)),
            ack((source, HANDSHAKE_PORT), (destination, 40000)),
        ] {
            assert_eq!(at(hook, ingress, &parts), PASSES, "{parts:?}");
        }
        for parts in [
            udp((source, 1), (destination, HANDSHAKE_PORT)),
            syn((source, 1), (destination, WIREGUARD_PORT)),
            udp((source, 0), (destination, 0)),
            syn((source, 1), (destination, 22)),
            icmp(source, destination, types::ECHO, 1),
            packet(source, destination, 4, vec![0; 20]),
            Parts { fragment: 0x2000, ..udp((source, WIREGUARD_PORT), (destination, WIREGUARD_PORT)) },
        ] {
            assert_eq!(at(hook, ingress, &parts), drops(DropReason::Unencrypted), "{parts:?}");
        }
    }
}

#[test]
fn ports_that_are_not_set_exempt_nothing() {
    let mut tables = cluster();
    tables.settings.clear();
    let parts = udp((OTHER_NODE, 0), (HOST, 0));
    assert_eq!(at_with(&tables, Hook::FromUplink, UPLINK_IFINDEX, &parts), drops(DropReason::Unencrypted));
}

#[test]
fn bootstrap_flows_are_the_nodes_own() {
    // Forwarded for somebody, under the host's address.
    let parts = syn((HOST, 40000), (OTHER_NODE, HANDSHAKE_PORT));
    assert_eq!(at(Hook::ToUplink, HERE_IFINDEX, &parts), drops(DropReason::Unencrypted));
    // From or to a pod.
    for (source, destination) in [(HERE, OTHER_NODE), (HOST, THERE)] {
        let parts = udp((source, 1), (destination, WIREGUARD_PORT));
        assert_eq!(at(Hook::ToUplink, 0, &parts), drops(DropReason::Unencrypted));
    }
    for (source, destination) in [(THERE, HOST), (OTHER_NODE, HERE)] {
        let parts = udp((source, 1), (destination, WIREGUARD_PORT));
        assert_eq!(at(Hook::FromUplink, UPLINK_IFINDEX, &parts), drops(DropReason::Unencrypted));
    }
}

#[test]
fn the_clusters_addresses_do_not_come_in_by_an_uplink() {
    for source in [THERE, THERE_V6, HERE, NEIGHBOUR, NOBODY, OTHER_NODE] {
        let destination = if source.is_v4() { HOST } else { HOST_V6 };
        let fate = at(Hook::FromUplink, UPLINK_IFINDEX, &udp((source, 1), (destination, 2)));
        assert_eq!(fate, drops(DropReason::Unencrypted), "{source:?}");
    }
    for destination in [HOST, HERE] {
        assert_eq!(at(Hook::FromUplink, UPLINK_IFINDEX, &udp((WORLD, 1), (destination, 2))), PASSES);
    }
}

#[test]
fn the_clusters_traffic_does_not_leave_by_an_uplink() {
    for (source, destination, ingress) in [
        (HERE, THERE, HERE_IFINDEX),
        (HOST, THERE, 0),
        (HERE, NOBODY, HERE_IFINDEX),
        (HERE, NEIGHBOUR, HERE_IFINDEX),
        (WORLD, THERE, UPLINK_IFINDEX),
        (HOST, OTHER_NODE, 0),
        (HERE_V6, THERE_V6, HERE_IFINDEX),
    ] {
        let fate = at(Hook::ToUplink, ingress, &udp((source, 1), (destination, 2)));
        assert_eq!(fate, drops(DropReason::Unencrypted), "{source:?} to {destination:?}");
    }
    for source in [HERE, HOST] {
        assert_eq!(at(Hook::ToUplink, 0, &udp((source, 1), (WORLD, 2))), PASSES);
    }
}

#[test]
fn a_vlan_tag_hides_nothing() {
    let clear = udp((THERE, 1), (HOST, 2)).ethernet();
    let uplink = context(Hook::FromUplink, UPLINK_IFINDEX);
    let offloaded = Context { tagged: true, ..uplink };
    let tables = cluster();
    assert_eq!(run(&tables, uplink, &tagged(&clear)), drops(DropReason::Unencrypted));
    assert_eq!(run(&tables, offloaded, &clear), drops(DropReason::Unencrypted));
    // More than one is not looked through.
    assert_eq!(run(&tables, uplink, &tagged(&tagged(&clear))), drops(DropReason::UnsupportedL3));
    assert_eq!(run(&tables, offloaded, &tagged(&clear)), drops(DropReason::UnsupportedL3));
}

#[test]
fn uplinks_pass_what_carries_no_packets() {
    let tables = cluster();
    for hook in [Hook::FromUplink, Hook::ToUplink] {
        let uplink = context(hook, 0);
        assert_eq!(run(&tables, uplink, &arp([192, 168, 0, 2], [192, 168, 0, 1])), PASSES);
        assert_eq!(run(&tables, uplink, &ethernet(0x88cc, &[0; 30])), PASSES);
        assert_eq!(run(&tables, uplink, &ethernet(0x0026, &[0; 38])), PASSES);
        for carrier in [0x8847, 0x8864, 0x6558, 0x894f, ethertype::OLD_PROVIDER_VLAN] {
            assert_eq!(run(&tables, uplink, &ethernet(carrier, &[0; 30])), drops(DropReason::UnsupportedL3));
        }
        let solicit = Parts { hop_limit: 255, ..icmp(THERE_V6, HOST_V6, types::V6_NEIGHBOUR_FIRST + 2, 0) };
        assert_eq!(run(&tables, uplink, &solicit.ethernet()), PASSES);
    }
}

/// What has no single receiver: how machines find addresses, names and each other.
fn to_everybody(source: Address, source_v6: Address) -> Vec<Parts> {
    let group = |last: [u8; 3]| {
        let [a, b, c] = last;
        Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c])
    };
    let listener = vec![(0, vec![0, 5, 2, 0, 0, 1, 0])];
    vec![
        udp((source, 67), (v4([255, 255, 255, 255]), 68)),
        udp((source, 137), (v4([192, 168, 0, 255]), 137)),
        udp((source, 5353), (v4([224, 0, 0, 251]), 5353)),
        packet(source, v4([224, 0, 0, 22]), 2, vec![0x22; 16]),
        packet(source, v4([224, 0, 0, 18]), 112, vec![0x31; 20]),
        packet(source, v4([224, 0, 0, 5]), 89, vec![2; 24]),
        udp((source_v6, 546), (group([1, 0, 2]), 547)),
        udp((source_v6, 5353), (group([0, 0, 0xfb]), 5353)),
        Parts {
            hop_limit: 1,
            extensions: listener,
            ..icmp(source_v6, group([0, 0, 22]), types::V6_MLD2_REPORT, 0)
        },
    ]
}

#[test]
fn an_uplink_lets_the_underlay_find_its_way() {
    let request = udp((v4([0; 4]), 68), (v4([255, 255, 255, 255]), 67));
    for parts in to_everybody(WORLD, LINK_LOCAL).into_iter().chain([request]) {
        assert_eq!(at(Hook::FromUplink, UPLINK_IFINDEX, &parts), PASSES, "{parts:?}");
    }
    for parts in to_everybody(HOST, HOST_V6) {
        assert_eq!(at(Hook::ToUplink, 0, &parts), PASSES, "{parts:?}");
    }
    // Routers and neighbours, from whom and about whom it may be, since nobody forwards it.
    for kind in types::V6_NEIGHBOUR_FIRST..=types::V6_NEIGHBOUR_LAST {
        for hop_limit in [254, 255] {
            let parts = Parts { hop_limit, ..icmp(THERE_V6, ALL_NODES, kind, 0) };
            let expected = if hop_limit == 255 { PASSES } else { drops(DropReason::Unencrypted) };
            assert_eq!(at(Hook::FromUplink, UPLINK_IFINDEX, &parts), expected, "{kind}");
        }
        let forwarded = Parts { hop_limit: 254, ..icmp(HERE_V6, THERE_V6, kind, 0) };
        assert_eq!(at(Hook::ToUplink, HERE_IFINDEX, &forwarded), drops(DropReason::Unencrypted), "{kind}");
    }
}

#[test]
fn to_everybody_is_in_the_clear_as_well() {
    for (source, source_v6) in [(OTHER_NODE, THERE_V6), (THERE, THERE_V6), (HERE, HERE_V6), (NOBODY, HERE_V6)]
    {
        for parts in to_everybody(source, source_v6) {
            let fate = at(Hook::FromUplink, UPLINK_IFINDEX, &parts);
            assert_eq!(fate, drops(DropReason::Unencrypted), "{parts:?}");
        }
    }
}

const WORLD_V6: Address = v6(0xaa, 7);

#[test]
fn what_an_uplink_carries_for_the_cluster_within_another_packet_is_in_the_clear() {
    let mut tables = cluster();
    // Not of the cluster's ranges.
    tables.prefixes.retain(|(address, _), _| address.is_v4());
    let unencrypted = drops(DropReason::Unencrypted);
    for (outer_source, outer_destination) in [(HOST, WORLD), (HOST_V6, WORLD_V6)] {
        for (source, destination, sent, received) in [
            (HERE, THERE, unencrypted, unencrypted),
            (HERE_V6, THERE_V6, unencrypted, unencrypted),
            (WORLD, NOBODY, unencrypted, PASSES),
            (NOBODY, WORLD, PASSES, unencrypted),
            (OTHER_NODE, WORLD, PASSES, unencrypted),
            (WORLD, WORLD, PASSES, PASSES),
            (WORLD_V6, WORLD_V6, PASSES, PASSES),
        ] {
            for (name, number, payload) in encapsulations(&udp((source, 1), (destination, 2))) {
                let out = packet(outer_source, outer_destination, number, payload.clone());
                let fate = at_with(&tables, Hook::ToUplink, 0, &out);
                assert_eq!(fate, sent, "{name} out: {source:?} to {destination:?}");
                let into = packet(outer_destination, outer_source, number, payload);
                let fate = at_with(&tables, Hook::FromUplink, UPLINK_IFINDEX, &into);
                assert_eq!(fate, received, "{name} in: {source:?} to {destination:?}");
            }
        }
    }
}

#[test]
fn between_nodes_every_encapsulation_drops_whatever_it_carries() {
    let harmless = udp((WORLD, 1), (WORLD, 2));
    for (name, number, payload) in encapsulations(&harmless) {
        let out = packet(HOST, OTHER_NODE, number, payload);
        assert_eq!(at(Hook::ToUplink, 0, &out), drops(DropReason::Unencrypted), "{name}");
    }
    // ESP, EtherIP, L2TP, MPLS in IP.
    for number in [50, 97, 115, 137] {
        let out = packet(HOST, OTHER_NODE, number, vec![0; 40]);
        assert_eq!(at(Hook::ToUplink, 0, &out), drops(DropReason::Unencrypted), "{number}");
    }
}

#[test]
fn what_could_not_be_unpacked_is_no_encapsulation() {
    let inner = udp((HERE, 1), (THERE, 2));
    for (name, number, payload) in encapsulations(&inner) {
        let whole = packet(HOST, WORLD, number, payload.clone());
        assert_eq!(at(Hook::ToUplink, 0, &whole), drops(DropReason::Unencrypted), "{name}");
        // Cut before the inner destination.
        let header = payload.len() - inner.payload.len() - 4;
        let cut = packet(HOST, WORLD, number, payload[..header].to_vec());
        assert_eq!(at(Hook::ToUplink, 0, &cut), PASSES, "{name}");
        let later = Parts { fragment: 0x00b9, ..packet(HOST, WORLD, number, payload.clone()) };
        assert_eq!(at(Hook::ToUplink, 0, &later), PASSES, "{name}");
        let first = Parts { fragment: 0x2000, ..packet(HOST, WORLD, number, [payload, vec![0; 7]].concat()) };
        let length = first.payload.len() / 8 * 8;
        let first = Parts { payload: first.payload[..length].to_vec(), ..first };
        assert_eq!(at(Hook::ToUplink, 0, &first), drops(DropReason::Unencrypted), "{name}");
    }
    let no_identifier = [&[0x80, 0, 0x12, 0xb5, 0, 0, 0, 0][..], &[0; 8], &inner.ethernet()].concat();
    assert_eq!(at(Hook::ToUplink, 0, &packet(HOST, WORLD, 17, no_identifier)), PASSES);
}
