//! Services: where a packet goes, what is remembered of it, and what comes back.

use auth_ebpf_abi::packet::{Packet, icmp as types, parse_ethernet, protocol, tcp as flags};
use auth_ebpf_abi::{
    Address, AddressEntry, AddressFlags, AffinityKey, AuthType, CONNECTION_TIMEOUT, ConnectionEntry, Context,
    Direction, DropReason, Hook, Mode, ServiceEntry, Setting, TCP_CLOSED_TIMEOUT, Translation,
    TranslationKind, Verdict, Workspace, decide, identity, loopback,
};
use proptest::prelude::*;

use super::frames::{Parts, ack, data, error, icmp, init, packet, syn, syn_ack, tcp, udp};
use super::scene::*;
use super::tables::Tables;

const SET: u32 = 3;

type Make = fn((Address, u16), (Address, u16)) -> Parts;

/// THERE's port 8080 behind the service's port 80, in both families, and HERE may send to it.
fn service(auth_type: AuthType) -> Tables {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, auth_type);
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1000);
    serve(&mut tables, SERVICE, 80, SET, 0, &[(THERE, 8080)]);
    serve(&mut tables, SERVICE_V6, 80, SET + 1, 0, &[(THERE_V6, 8080)]);
    tables
}

/// What the decision says, and how the packet changes.
fn at(tables: &Tables, context: Context, parts: &Parts) -> ((Verdict, Option<DropReason>), Translation) {
    let bytes = parts.ethernet();
    let fate = run(&tables.clone(), context, &bytes);
    let context = Context { length: u32::try_from(bytes.len()).unwrap(), ..context };
    let mut workspace = Workspace::default();
    let verdict = decide(tables, bytes.as_slice(), &context, &mut workspace);
    assert_eq!(verdict, fate.0, "the same twice");
    (fate, workspace.place.translation)
}

fn sends(tables: &Tables, parts: &Parts) -> (Verdict, Option<DropReason>) {
    at(tables, context(Hook::FromPod, HERE_IFINDEX), parts).0
}

/// The end to which the pod's packet goes.
fn goes_to(tables: &Tables, parts: &Parts) -> (Address, u16) {
    let (fate, translation) = at(tables, context(Hook::FromPod, HERE_IFINDEX), parts);
    assert_eq!(fate, PASSES, "{parts:?}");
    end_of(parts, &translation, true)
}

/// The end from which the pod sees it come.
fn comes_from(tables: &Tables, parts: &Parts) -> (Address, u16) {
    let (fate, translation) = at(tables, context(Hook::ToPod, WIREGUARD_IFINDEX), parts);
    assert_eq!(fate, PASSES, "{parts:?}");
    end_of(parts, &translation, false)
}

fn end_of(parts: &Parts, translation: &Translation, outwards: bool) -> (Address, u16) {
    let mut header = Packet::default();
    parse_ethernet(parts.ethernet().as_slice(), false, &mut header);
    let (address, port) = if outwards {
        (header.destination, header.destination_port())
    } else {
        (header.source, header.source_port())
    };
    match translation.kind {
        TranslationKind::NONE => (address, u16::from_be_bytes(port)),
        kind => {
            assert_eq!(kind, TranslationKind::END);
            assert_eq!((translation.old, translation.old_port), (address, port));
            (translation.new, u16::from_be_bytes(translation.new_port))
        }
    }
}

#[test]
fn what_is_sent_to_a_service_goes_to_a_backend_and_comes_back_from_the_service() {
    let protocols: [(Make, Make); 3] = [(syn, syn_ack), (udp, udp), (init, data)];
    for auth_type in [AuthType::Disabled, AuthType::Spire] {
        for (address, here, there) in [(SERVICE, HERE, THERE), (SERVICE_V6, HERE_V6, THERE_V6)] {
            for (first, answer) in protocols {
                let tables = service(auth_type);
                assert_eq!(goes_to(&tables, &first((here, 1), (address, 80))), (there, 8080));
                assert_eq!(comes_from(&tables, &answer((there, 8080), (here, 1))), (address, 80));
                for _ in 0..3 {
                    let next = match first((here, 1), (address, 80)).protocol {
                        protocol::TCP => ack((here, 1), (address, 80)),
                        protocol::SCTP => data((here, 1), (address, 80)),
                        _ => first((here, 1), (address, 80)),
                    };
                    assert_eq!(goes_to(&tables, &next), (there, 8080));
                }
                assert_eq!(tables.half_open.borrow().len(), 0, "both entries are safe");
                assert_eq!(tables.connections.borrow().len(), 2);
            }
        }
    }
}

#[test]
fn the_verdict_is_about_the_backend() {
    let tables = service(AuthType::Disabled);
    let event = |tables: &Tables| *tables.events.borrow().last().unwrap();
    sends(&tables, &syn((HERE, 1), (SERVICE, 80)));
    let opened = event(&tables);
    assert_eq!((opened.remote, opened.node, opened.encrypted), (THERE_ID, NODE, 1));
    assert_eq!((opened.destination, opened.destination_port), (THERE, 8080_u16.to_be_bytes()));
    assert_eq!((opened.service, opened.service_port), (SERVICE, 80_u16.to_be_bytes()));
    // Allowing the service's address allows nobody.
    let mut tables = service(AuthType::Disabled);
    tables.policy.clear();
    allow(&mut tables, HERE_ID, Direction::Egress, identity::WORLD, AuthType::Disabled);
    assert_eq!(sends(&tables, &syn((HERE, 1), (SERVICE, 80))), drops(DropReason::PolicyDenied));
    assert!(connections(&tables).is_empty(), "what is refused leaves nothing behind");
    // Nor does anybody get round authentication or the tunnel.
    let mut tables = service(AuthType::Spire);
    tables.auth.clear();
    assert_eq!(sends(&tables, &syn((HERE, 1), (SERVICE, 80))), drops(DropReason::AuthRequired));
    let mut tables = service(AuthType::Disabled);
    tables.nodes.clear();
    assert_eq!(sends(&tables, &syn((HERE, 1), (SERVICE, 80))), drops(DropReason::NoNodeSession));
    // A node's reserved ports are not reached by way of a service.
    let mut tables = cluster();
    serve(&mut tables, SERVICE, 80, SET, 0, &[(OTHER_NODE, HANDSHAKE_PORT)]);
    assert_eq!(sends(&tables, &syn((HERE, 1), (SERVICE, 80))), drops(DropReason::ReservedPort));
    let spoofed = syn((NEIGHBOUR, 1), (SERVICE, 80));
    assert_eq!(sends(&tables, &spoofed), drops(DropReason::Spoofed));
}

#[test]
fn a_service_without_backends_has_a_reason_of_its_own() {
    let mut tables = service(AuthType::Disabled);
    serve(&mut tables, SERVICE, 80, SET, 0, &[]);
    assert_eq!(sends(&tables, &syn((HERE, 1), (SERVICE, 80))), drops(DropReason::NoServiceBackend));
    tables.settings.insert(Setting::PolicyMode, Mode::Observe as u64);
    assert_eq!(sends(&tables, &syn((HERE, 1), (SERVICE, 80))), audits(DropReason::NoServiceBackend));
}

#[test]
fn other_ports_and_protocols_of_a_services_address_are_left_alone() {
    let mut tables = service(AuthType::Disabled);
    for parts in [
        syn((HERE, 1), (SERVICE, 81)),
        icmp(HERE, SERVICE, types::ECHO, 80),
        packet(HERE, SERVICE, 47, vec![0; 8]),
    ] {
        assert_eq!(sends(&tables, &parts), drops(DropReason::PolicyDenied), "the world's");
    }
    allow(&mut tables, HERE_ID, Direction::Egress, identity::WORLD, AuthType::Disabled);
    assert_eq!(goes_to(&tables, &syn((HERE, 1), (SERVICE, 81))), (SERVICE, 81));
    // An address that a prefix names keeps its identity beside its services.
    tables.prefixes.insert(
        (v4([10, 96, 0, 0]), Address::V4_PREFIX_BITS + 16),
        AddressEntry { identity: identity::FIRST_LOCAL, ..AddressEntry::default() },
    );
    assert_eq!(sends(&tables, &syn((HERE, 1), (SERVICE, 82))), drops(DropReason::PolicyDenied));
}

#[test]
fn a_node_port_is_at_every_address_of_a_node_unless_one_has_its_own() {
    let mut tables = cluster();
    let wildcard = service_key(HOST, 30080, protocol::TCP).of_any_node();
    serve(&mut tables, wildcard.address, 30080, SET, 0, &[(THERE, 8080)]);
    for address in [HOST, OTHER_NODE] {
        tables.addresses.get_mut(&address).unwrap().flags = AddressFlags::SERVICE;
        assert_eq!(goes_to(&tables, &syn((HERE, 1), (address, 30080))), (THERE, 8080));
        assert_eq!(goes_to(&tables, &syn((HERE, 2), (address, 22))), (address, 22));
        tables.half_open.borrow_mut().clear();
    }
    serve(&mut tables, OTHER_NODE, 30080, SET + 1, 0, &[(NEIGHBOUR, 8080)]);
    assert_eq!(goes_to(&tables, &syn((HERE, 3), (OTHER_NODE, 30080))), (NEIGHBOUR, 8080));
    assert_eq!(goes_to(&tables, &syn((HERE, 4), (WORLD, 30080))), (WORLD, 30080), "no node's");
}

#[test]
fn a_settled_connection_asks_no_service() {
    let mut tables = service(AuthType::Spire);
    goes_to(&tables, &syn((HERE, 1), (SERVICE, 80)));
    comes_from(&tables, &syn_ack((THERE, 8080), (HERE, 1)));
    goes_to(&tables, &ack((HERE, 1), (SERVICE, 80)));
    tables.services.clear();
    tables.backends.clear();
    tables.addresses.clear();
    tables.endpoints.clear();
    tables.policy.clear();
    assert_eq!(goes_to(&tables, &ack((HERE, 1), (SERVICE, 80))), (THERE, 8080));
    assert_eq!(comes_from(&tables, &ack((THERE, 8080), (HERE, 1))), (SERVICE, 80));
}

#[test]
fn a_connection_keeps_its_backend_and_is_decided_anew_about_it() {
    for (first, answer, next) in [(syn as Make, syn_ack as Make, ack as Make), (init, data, data)] {
        let mut tables = service(AuthType::Disabled);
        goes_to(&tables, &first((HERE, 1), (SERVICE, 80)));
        comes_from(&tables, &answer((THERE, 8080), (HERE, 1)));
        // The backend goes, another comes, and everything is looked at again.
        serve(&mut tables, SERVICE, 80, SET, 0, &[(NEIGHBOUR, 8080)]);
        reopen_all(&mut tables);
        assert_eq!(goes_to(&tables, &next((HERE, 1), (SERVICE, 80))), (THERE, 8080));
        assert_eq!(comes_from(&tables, &next((THERE, 8080), (HERE, 1))), (SERVICE, 80));
        tables.policy.clear();
        reopen_all(&mut tables);
        assert_eq!(sends(&tables, &next((HERE, 1), (SERVICE, 80))), drops(DropReason::PolicyDenied));
        let back = next((THERE, 8080), (HERE, 1));
        let (fate, _) = at(&tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &back);
        assert_eq!(fate, drops(DropReason::PolicyDenied));
        allow(&mut tables, HERE_ID, Direction::Egress, NEIGHBOUR_ID, AuthType::Disabled);
        let opened = goes_to(&tables, &first((HERE, 1), (SERVICE, 80)));
        assert_eq!(opened, (NEIGHBOUR, 8080), "what opens chooses");
    }
}

#[test]
fn what_went_there_before_the_service_was_goes_on() {
    let before = || {
        let mut tables = cluster();
        allow(&mut tables, HERE_ID, Direction::Egress, identity::WORLD, AuthType::Disabled);
        tables
    };
    let mut tables = before();
    let arrives = |tables: &Tables, parts: &Parts| at(tables, context(Hook::ToPod, UPLINK_IFINDEX), parts).0;
    goes_to(&tables, &syn((HERE, 1), (WORLD, 80)));
    assert_eq!(arrives(&tables, &syn_ack((WORLD, 80), (HERE, 1))), PASSES);
    goes_to(&tables, &udp((HERE, 1), (WORLD, 80)));
    serve(&mut tables, WORLD, 80, SET, 0, &[(THERE, 8080)]);
    reopen_all(&mut tables);
    assert_eq!(goes_to(&tables, &ack((HERE, 1), (WORLD, 80))), (WORLD, 80));
    assert_eq!(arrives(&tables, &ack((WORLD, 80), (HERE, 1))), PASSES);
    assert_eq!(goes_to(&tables, &udp((HERE, 1), (WORLD, 80))), (THERE, 8080), "datagrams come over");
    assert_eq!(goes_to(&tables, &syn((HERE, 2), (WORLD, 80))), (THERE, 8080));
    // Nor do answers go astray, whatever port of whose address they go to.
    let mut tables = before();
    assert_eq!(arrives(&tables, &udp((WORLD, 80), (HERE, 53))), PASSES);
    serve(&mut tables, WORLD, 80, SET, 0, &[(THERE, 8080)]);
    reopen_all(&mut tables);
    assert_eq!(goes_to(&tables, &udp((HERE, 53), (WORLD, 80))), (WORLD, 80));
}

#[test]
fn both_entries_of_a_connection_end_together() {
    let tables = service(AuthType::Disabled);
    let tables = &tables;
    goes_to(tables, &syn((HERE, 1), (SERVICE, 80)));
    comes_from(tables, &syn_ack((THERE, 8080), (HERE, 1)));
    goes_to(tables, &tcp((HERE, 1), (SERVICE, 80), flags::FIN | flags::ACK));
    comes_from(tables, &tcp((THERE, 8080), (HERE, 1), flags::FIN | flags::ACK));
    assert!(connections(tables).iter().all(|(_, entry)| entry.is_closed()));
    // The same ports again: a connection of its own, of which the old one's end says nothing.
    goes_to(tables, &syn((HERE, 1), (SERVICE, 80)));
    assert!(connections(tables).iter().all(|(_, entry)| !entry.is_closed()));
}

#[test]
fn what_is_still_said_of_an_ended_connection_keeps_both_its_entries() {
    let mut tables = service(AuthType::Disabled);
    goes_to(&tables, &syn((HERE, 1), (SERVICE, 80)));
    comes_from(&tables, &tcp((THERE, 8080), (HERE, 1), flags::RST));
    tables.now.set(tables.now.get() + TCP_CLOSED_TIMEOUT * 2 / 3);
    goes_to(&tables, &ack((HERE, 1), (SERVICE, 80)));
    tables.policy.clear();
    tables.now.set(tables.now.get() + TCP_CLOSED_TIMEOUT * 2 / 3);
    assert_eq!(comes_from(&tables, &ack((THERE, 8080), (HERE, 1))), (SERVICE, 80));
}

#[test]
fn an_entry_that_only_the_other_direction_uses_lives_on() {
    let mut tables = service(AuthType::Disabled);
    tables.nodes.get_mut(&NODE).unwrap().expires = u64::MAX;
    goes_to(&tables, &udp((HERE, 1), (SERVICE, 80)));
    comes_from(&tables, &udp((THERE, 8080), (HERE, 1)));
    goes_to(&tables, &udp((HERE, 1), (SERVICE, 80)));
    // Answers for ten minutes, and then a question again: the backend is what it was.
    serve(&mut tables, SERVICE, 80, SET, 0, &[(NEIGHBOUR, 8080)]);
    for _ in 0..10 {
        tables.now.set(tables.now.get() + CONNECTION_TIMEOUT / 2);
        comes_from(&tables, &udp((THERE, 8080), (HERE, 1)));
    }
    assert_eq!(goes_to(&tables, &udp((HERE, 1), (SERVICE, 80))), (THERE, 8080));
    for _ in 0..10 {
        tables.now.set(tables.now.get() + CONNECTION_TIMEOUT / 2);
        goes_to(&tables, &udp((HERE, 1), (SERVICE, 80)));
    }
    tables.policy.clear();
    assert_eq!(comes_from(&tables, &udp((THERE, 8080), (HERE, 1))), (SERVICE, 80));
}

#[test]
fn one_way_traffic_stays_with_its_backend() {
    let mut tables = service(AuthType::Disabled);
    goes_to(&tables, &udp((HERE, 1), (SERVICE, 80)));
    serve(&mut tables, SERVICE, 80, SET, 0, &[(NEIGHBOUR, 8080)]);
    for _ in 0..3 {
        assert_eq!(goes_to(&tables, &udp((HERE, 1), (SERVICE, 80))), (THERE, 8080));
    }
}

#[test]
fn direct_connections_are_not_the_services() {
    let tables = service(AuthType::Disabled);
    goes_to(&tables, &syn((HERE, 1), (SERVICE, 80)));
    comes_from(&tables, &syn_ack((THERE, 8080), (HERE, 1)));
    // The answers to both would look the same.
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 8080))), drops(DropReason::ServiceConflict));
    assert_eq!(sends(&tables, &ack((HERE, 1), (THERE, 8080))), drops(DropReason::ServiceConflict));
    assert_eq!(goes_to(&tables, &ack((HERE, 1), (SERVICE, 80))), (THERE, 8080), "and nothing has changed");
    assert_eq!(goes_to(&tables, &syn((HERE, 2), (THERE, 8080))), (THERE, 8080));
    assert_eq!(comes_from(&tables, &syn_ack((THERE, 8080), (HERE, 2))), (THERE, 8080));
    assert_eq!(sends(&tables, &syn((HERE, 2), (SERVICE, 80))), drops(DropReason::ServiceConflict));
    assert_eq!(comes_from(&tables, &ack((THERE, 8080), (HERE, 2))), (THERE, 8080));
    // Once it has ended, its ports are free.
    goes_to(&tables, &tcp((HERE, 1), (SERVICE, 80), flags::RST));
    assert_eq!(goes_to(&tables, &syn((HERE, 1), (THERE, 8080))), (THERE, 8080));
    assert_eq!(comes_from(&tables, &syn_ack((THERE, 8080), (HERE, 1))), (THERE, 8080));
}

#[test]
fn nobody_answers_in_the_services_name() {
    let mut tables = service(AuthType::Disabled);
    goes_to(&tables, &udp((HERE, 1), (SERVICE, 80)));
    let forged = udp((SERVICE, 80), (HERE, 1));
    let (fate, _) = at(&tables, context(Hook::ToPod, UPLINK_IFINDEX), &forged);
    assert_eq!(fate, drops(DropReason::PolicyDenied));
    // Even whom policy lets in takes no connection's place.
    allow(&mut tables, HERE_ID, Direction::Ingress, identity::UNKNOWN, AuthType::Disabled);
    let (fate, translation) = at(&tables, context(Hook::ToPod, UPLINK_IFINDEX), &forged);
    assert_eq!((fate, translation.kind), (PASSES, TranslationKind::NONE));
    assert_eq!(goes_to(&tables, &udp((HERE, 1), (SERVICE, 80))), (THERE, 8080));
}

#[test]
fn who_has_the_backends_address_now_answers_for_no_service() {
    let mut tables = service(AuthType::Disabled);
    goes_to(&tables, &udp((HERE, 1), (SERVICE, 80)));
    tables.addresses.get_mut(&THERE).unwrap().identity = NEIGHBOUR_ID;
    reopen_all(&mut tables);
    let answer = udp((THERE, 8080), (HERE, 1));
    let (fate, _) = at(&tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &answer);
    assert_eq!(fate, drops(DropReason::PolicyDenied));
    allow(&mut tables, HERE_ID, Direction::Ingress, NEIGHBOUR_ID, AuthType::Disabled);
    assert_eq!(comes_from(&tables, &answer), (THERE, 8080));
}

#[test]
fn errors_about_a_services_connection_speak_of_the_service() {
    // The one service has its address outside the cluster's ranges, the other within.
    for (address, here, there, host, unreachable, refused) in [
        (SERVICE, HERE, THERE, HOST, types::UNREACHABLE, DropReason::PolicyDenied),
        (SERVICE_V6, HERE_V6, THERE_V6, HOST_V6, types::V6_ERROR_FIRST, DropReason::UnknownDestination),
    ] {
        let tables = service(AuthType::Disabled);
        goes_to(&tables, &udp((here, 1), (address, 80)));
        comes_from(&tables, &udp((there, 8080), (here, 1)));
        goes_to(&tables, &udp((here, 1), (address, 80)));
        let about = udp((here, 1), (there, 8080));
        for (source, ingress, kind) in
            [(there, WIREGUARD_IFINDEX, TranslationKind::ERROR_OF_END), (host, 0, TranslationKind::ERROR)]
        {
            let parts = error(unreachable, source, here, &about);
            let (fate, translation) = at(&tables, context(Hook::ToPod, ingress), &parts);
            assert_eq!((fate, translation.kind), (PASSES, kind));
            assert_eq!((translation.old, translation.new), (there, address));
            assert_eq!((translation.old_port, translation.new_port), (8080_u16.to_be_bytes(), [0, 80]));
        }
        let parts = error(unreachable, here, address, &udp((address, 80), (here, 1)));
        let (fate, translation) = at(&tables, context(Hook::FromPod, HERE_IFINDEX), &parts);
        assert_eq!((fate, translation.kind), (PASSES, TranslationKind::ERROR_OF_END));
        assert_eq!((translation.old, translation.new), (address, there));
        // About nothing known: not changed, and not let pass.
        let parts = error(unreachable, here, address, &udp((address, 80), (here, 9)));
        let (fate, translation) = at(&tables, context(Hook::FromPod, HERE_IFINDEX), &parts);
        assert_eq!((fate, translation.kind), (drops(refused), TranslationKind::NONE));
    }
}

#[test]
fn fragments_follow_their_first_to_the_backend() {
    let tables = service(AuthType::Disabled);
    let first = Parts {
        fragment: 0x2000,
        payload: [udp((HERE, 1), (SERVICE, 80)).payload, vec![0; 4]].concat(),
        ..udp((HERE, 1), (SERVICE, 80))
    };
    let later = Parts { fragment: 2, payload: vec![9; 8], ..first.clone() };
    assert_eq!(sends(&tables, &later), drops(DropReason::Fragment));
    for _ in 0..2 {
        assert_eq!(goes_to(&tables, &first), (THERE, 8080));
        let (fate, translation) = at(&tables, context(Hook::FromPod, HERE_IFINDEX), &later);
        assert_eq!((fate, translation.kind, translation.new), (PASSES, TranslationKind::END, THERE));
    }
}

#[test]
fn a_held_packet_comes_back_to_the_same_backend() {
    let mut tables = service(AuthType::Spire);
    hold(&mut tables);
    let backends: Vec<(Address, u16)> = (1..=20).map(|port| (THERE, port)).collect();
    serve(&mut tables, SERVICE, 80, SET, 0, &backends);
    let auth = std::mem::take(&mut tables.auth);
    for port in 1..50 {
        let first = syn((HERE, port), (SERVICE, 80));
        let (fate, chosen) = at(&tables, context(Hook::FromPod, HERE_IFINDEX), &first);
        assert_eq!(fate, HELD);
        assert!(connections(&tables).is_empty());
        let again = Context { held_since: NOW, ..context(Hook::FromPod, HERE_IFINDEX) };
        tables.auth = auth.clone();
        let (fate, translation) = at(&tables, again, &first);
        assert_eq!((fate, translation.new_port), (PASSES, chosen.new_port));
        tables.auth.clear();
        tables.half_open.borrow_mut().clear();
        tables.credits.borrow_mut().clear();
        tables.held.borrow_mut().clear();
    }
}

#[test]
fn clients_with_affinity_keep_their_backend_as_long_as_they_come() {
    let mut tables = cluster();
    let backends: Vec<(Address, u16)> = (1..=7).map(|port| (THERE, port)).collect();
    serve(&mut tables, SERVICE, 80, SET, 10, &backends);
    let (_, kept) = goes_to(&tables, &syn((HERE, 1), (SERVICE, 80)));
    for port in 2..40 {
        assert_eq!(goes_to(&tables, &syn((HERE, port), (SERVICE, 80))), (THERE, kept));
    }
    // Others come before it: it stays while it comes again within its time, and no longer.
    let others: Vec<(Address, u16)> = (100..=140).map(|port| (THERE, port)).collect();
    serve(&mut tables, SERVICE, 80, SET, 10, &others);
    const SECOND: u64 = 1_000_000_000;
    for port in 40..45 {
        tables.now.set(tables.now.get() + 9 * SECOND);
        assert_eq!(goes_to(&tables, &syn((HERE, port), (SERVICE, 80))), (THERE, kept));
    }
    tables.now.set(tables.now.get() + 10 * SECOND);
    assert!(goes_to(&tables, &syn((HERE, 50), (SERVICE, 80))).1 >= 100);
    // What policy refuses keeps nothing.
    let mut tables = locked();
    serve(&mut tables, SERVICE, 80, SET, 10, &backends);
    sends(&tables, &syn((HERE, 1), (SERVICE, 80)));
    assert_eq!(tables.affinities.borrow().get(&AffinityKey { client: HERE, set: SET, pad: 0 }), None);
}

#[test]
fn a_pod_meets_itself_behind_a_service() {
    for (address, here) in [(SERVICE, HERE), (SERVICE_V6, HERE_V6)] {
        // Nobody has to allow that.
        let mut tables = locked();
        serve(&mut tables, address, 80, SET, 0, &[(here, 8080)]);
        let own = |hook, parts: &Parts| at(&tables, context(hook, HERE_IFINDEX), parts);
        let meets = loopback(&here);
        for (out, back, first) in [
            (syn((here, 1), (address, 80)), syn_ack((here, 8080), (meets, 1)), true),
            (ack((here, 1), (address, 80)), ack((here, 8080), (meets, 1)), false),
            (udp((here, 1), (address, 80)), udp((here, 8080), (meets, 1)), true),
        ] {
            let (fate, translation) = own(Hook::FromPod, &out);
            assert_eq!((fate, translation.kind), (PASSES, TranslationKind::HAIRPIN), "{first}");
            assert_eq!((translation.new, translation.new_port), (here, 8080_u16.to_be_bytes()));
            let mut arrives = out.clone();
            (arrives.source, arrives.destination) = (meets, here);
            arrives.payload[2..4].copy_from_slice(&8080_u16.to_be_bytes());
            let (fate, translation) = own(Hook::ToPod, &arrives);
            assert_eq!((fate, translation.kind), (PASSES, TranslationKind::NONE));
            let (fate, translation) = own(Hook::FromPod, &back);
            assert_eq!((fate, translation.kind), (PASSES, TranslationKind::HAIRPIN_REPLY));
            assert_eq!((translation.new, translation.new_port), (address, [0, 80]));
            let mut arrives = back.clone();
            (arrives.source, arrives.destination) = (address, here);
            arrives.payload[..2].copy_from_slice(&[0, 80]);
            let (fate, translation) = own(Hook::ToPod, &arrives);
            assert_eq!((fate, translation.kind), (PASSES, TranslationKind::NONE));
        }
        // The address is nobody else's: neither to send to, nor to send from.
        let stray = udp((here, 9), (meets, 9));
        assert_eq!(sends(&tables, &stray), drops(DropReason::PolicyDenied));
        let forged = udp((meets, 9), (here, 9));
        assert_eq!(sends(&tables, &forged), drops(DropReason::Spoofed));
        let (fate, _) = at(&tables, context(Hook::ToPod, UPLINK_IFINDEX), &forged);
        assert_eq!(fate, drops(DropReason::PolicyDenied));
    }
}

/// A flood of connections to a service that policy refuses leaves no trace, and its own entries make room.
#[test]
fn a_full_map_drops() {
    let mut tables = service(AuthType::Disabled);
    tables.full = true;
    assert_eq!(sends(&tables, &syn((HERE, 1), (SERVICE, 80))), drops(DropReason::MapError));
}

#[test]
fn backends_are_chosen_alike_often() {
    const BACKENDS: u32 = 7;
    const CONNECTIONS: u32 = 28_000;
    let entry = ServiceEntry { set: SET, backends: BACKENDS, affinity: 0, pad: 0 };
    let mut chosen = [0_u32; BACKENDS as usize];
    for port in 0..CONNECTIONS {
        let port = u16::try_from(32_768 + port).unwrap().to_be_bytes();
        chosen[entry.slot(&HERE, port) as usize] += 1;
    }
    let even = CONNECTIONS / BACKENDS;
    // Of that many, by chance, all but one in millions would lie within this.
    assert!(chosen.iter().all(|count| count.abs_diff(even) < even / 8), "{chosen:?}");
    let sticky = ServiceEntry { affinity: 10, ..entry };
    assert_eq!(sticky.slot(&HERE, [0, 1]), sticky.slot(&HERE, [0, 2]));
}

/// A connection of the naive model: a client's port, and whether it goes by the service or directly.
#[derive(Clone, Copy, Debug)]
enum Step {
    Sends { port: u16, direct: bool, opens: bool },
    Receives { port: u16, backend: usize },
    Moves(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..3_u16, prop::bool::weighted(0.2), any::<bool>()).prop_map(|(port, direct, opens)| Step::Sends {
            port,
            direct,
            opens
        }),
        (1..3_u16, 0..3_usize).prop_map(|(port, backend)| Step::Receives { port, backend }),
        (0..3_usize).prop_map(Step::Moves),
    ]
}

proptest! {
    /// Against a model that remembers, for each port and backend, by which address the pod has opened what:
    /// what comes back bears the address to which the pod has sent, and each connection stays where it is.
    #[test]
    fn answers_come_from_where_the_pod_has_sent_to(steps in prop::collection::vec(steps(), 1..40)) {
        let backends = [(THERE, 8080), (NEIGHBOUR, 8080), (THERE, 8081)];
        let mut tables = cluster();
        serve(&mut tables, SERVICE, 80, SET, 0, &backends[..1]);
        let mut behind = backends[0];
        // The way of each connection: by the client's port and the backend.
        let mut opened: std::collections::BTreeMap<(u16, (Address, u16)), (Address, u16)> = Default::default();
        // The backend of each client's port at the service.
        let mut chosen: std::collections::BTreeMap<u16, (Address, u16)> = Default::default();
        for step in steps {
            match step {
                Step::Moves(to) => {
                    behind = backends[to];
                    serve(&mut tables, SERVICE, 80, SET, 0, &[behind]);
                    reopen_all(&mut tables);
                }
                Step::Sends { port, direct, opens } => {
                    let way = if direct { backends[0] } else { (SERVICE, 80) };
                    let make = if opens { syn } else { ack };
                    let target = match (direct, opens, chosen.get(&port)) {
                        (true, ..) => backends[0],
                        (false, false, Some(kept)) => *kept,
                        (false, ..) => behind,
                    };
                    let taken = opened.get(&(port, target)).is_some_and(|by| *by != way);
                    let parts = make((HERE, port), way);
                    if taken {
                        prop_assert_eq!(sends(&tables, &parts), drops(DropReason::ServiceConflict));
                        continue;
                    }
                    prop_assert_eq!(goes_to(&tables, &parts), target);
                    if opens || opened.contains_key(&(port, target)) {
                        if opens {
                            opened.insert((port, target), way);
                        }
                        if !direct {
                            chosen.insert(port, target);
                        }
                    }
                }
                Step::Receives { port, backend } => {
                    let backend = backends[backend];
                    let parts = ack(backend, (HERE, port));
                    let ingress = if backend.0 == NEIGHBOUR { NEIGHBOUR_IFINDEX } else { WIREGUARD_IFINDEX };
                    let (fate, translation) = at(&tables, context(Hook::ToPod, ingress), &parts);
                    prop_assert_eq!(fate, PASSES);
                    let expected = opened.get(&(port, backend)).copied().unwrap_or(backend);
                    prop_assert_eq!(end_of(&parts, &translation, false), expected);
                }
            }
        }
        let to_backends = connections(&tables)
            .into_iter()
            .filter(|(_, entry)| entry.flags & ConnectionEntry::TO_BACKEND != 0);
        for (key, _) in to_backends {
            prop_assert_eq!(key.remote, SERVICE);
        }
    }
}
