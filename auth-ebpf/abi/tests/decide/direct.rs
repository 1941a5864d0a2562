//! Connections between pods of one node that go straight from interface to interface.

use std::collections::BTreeMap;

use auth_ebpf_abi::packet::{icmp as types, tcp as flags};
use auth_ebpf_abi::{
    Address, AuthType, Context, Direction, Hook, Mode, Setting, TCP_OPENING_TIMEOUT, Verdict, Workspace,
    decide,
};

use proptest::prelude::*;

use super::frames::{Parts, ack, error, icmp, syn, syn_ack, tcp, udp};
use super::scene::*;
use super::tables::Tables;

const NEIGHBOUR_V6: Address = v6(1, 0x11);
const MTU: u32 = 1500;
const TO_NEIGHBOUR: Option<(u32, Address)> = Some((NEIGHBOUR_IFINDEX, NEIGHBOUR));
const TO_HERE: Option<(u32, Address)> = Some((HERE_IFINDEX, HERE));

/// Two pods with routes of their own.
fn routed() -> Tables {
    let mut tables = cluster();
    let neighbour = tables.endpoints[&NEIGHBOUR];
    tables.endpoints.insert(NEIGHBOUR_V6, neighbour);
    tables.addresses.insert(NEIGHBOUR_V6, tables.addresses[&NEIGHBOUR]);
    set_mtu(&mut tables, &[HERE, HERE_V6, NEIGHBOUR, NEIGHBOUR_V6], MTU);
    tables
}

fn set_mtu(tables: &mut Tables, pods: &[Address], mtu: u32) {
    for pod in pods {
        tables.endpoints.get_mut(pod).unwrap().direct_mtu = mtu;
    }
}

fn at(tables: &Tables, context: Context, parts: &Parts) -> Option<(u32, Address)> {
    let bytes = parts.ethernet();
    let context = Context { length: u32::try_from(bytes.len()).unwrap(), ..context };
    let mut workspace = Workspace::default();
    let verdict = decide(tables, bytes.as_slice(), &context, &mut workspace);
    assert!(matches!(verdict, Verdict::Forwarded | Verdict::Audit), "{parts:?}: {verdict:?}");
    workspace.straight_to()
}

/// Where HERE's packet goes straight.
fn sends(tables: &Tables, parts: &Parts) -> Option<(u32, Address)> {
    at(tables, context(Hook::FromPod, HERE_IFINDEX), parts)
}

/// The neighbour receives a packet of HERE's, which came by HERE's interface.
fn arrives(tables: &Tables, parts: &Parts) {
    let context = Context { ifindex: NEIGHBOUR_IFINDEX, ..context(Hook::ToPod, HERE_IFINDEX) };
    at(tables, context, parts);
}

/// Where the neighbour's packet goes straight.
fn answers(tables: &Tables, parts: &Parts) -> Option<(u32, Address)> {
    let context = Context { ifindex: NEIGHBOUR_IFINDEX, ..context(Hook::FromPod, NEIGHBOUR_IFINDEX) };
    at(tables, context, parts)
}

/// HERE receives a packet of the neighbour's.
fn returns(tables: &Tables, parts: &Parts) {
    at(tables, context(Hook::ToPod, NEIGHBOUR_IFINDEX), parts);
}

/// Opens a connection from HERE's port to the neighbour's port 80; where its segment and the answer go.
fn open(tables: &Tables, port: u16) -> [Option<(u32, Address)>; 2] {
    let (client, server) = ((HERE, port), (NEIGHBOUR, 80));
    let there = sends(tables, &syn(client, server));
    arrives(tables, &syn(client, server));
    let back = answers(tables, &syn_ack(server, client));
    returns(tables, &syn_ack(server, client));
    [there, back]
}

/// Where later segments of that go.
fn goes_on(tables: &Tables, port: u16) -> [Option<(u32, Address)>; 2] {
    let (client, server) = ((HERE, port), (NEIGHBOUR, 80));
    [sends(tables, &ack(client, server)), answers(tables, &ack(server, client))]
}

#[test]
fn both_directions_of_a_connection_go_straight() {
    let tables = routed();
    assert_eq!(open(&tables, 1), [TO_NEIGHBOUR, TO_HERE]);
    for _ in 0..2 {
        assert_eq!(goes_on(&tables, 1), [TO_NEIGHBOUR, TO_HERE]);
    }
}

#[test]
fn every_tracked_protocol_of_both_families_goes_straight() {
    let tables = routed();
    let sctp = |from, to| Parts { protocol: 132, ..udp(from, to) };
    for (here, there) in [(HERE, NEIGHBOUR), (HERE_V6, NEIGHBOUR_V6)] {
        let (client, server) = ((here, 1), (there, 53));
        let (ask, answer) = match here {
            HERE => (types::ECHO, types::ECHO_REPLY),
            _ => (types::V6_ECHO, types::V6_ECHO_REPLY),
        };
        for (request, reply) in [
            (udp(client, server), udp(server, client)),
            (sctp(client, server), sctp(server, client)),
            (icmp(here, there, ask, 7), icmp(there, here, answer, 7)),
        ] {
            assert_eq!(sends(&tables, &request), Some((NEIGHBOUR_IFINDEX, there)), "{request:?}");
            arrives(&tables, &request);
            assert_eq!(answers(&tables, &reply), Some((HERE_IFINDEX, here)), "{reply:?}");
            returns(&tables, &reply);
            assert_eq!(sends(&tables, &request), Some((NEIGHBOUR_IFINDEX, there)), "{request:?}");
        }
    }
}

#[test]
fn who_has_no_such_interface_gets_nothing_straight() {
    for mtus in [[0, 0], [MTU, 0], [0, MTU], [MTU, MTU - 1], [MTU, MTU + 1]] {
        let mut tables = routed();
        for (pod, mtu) in [HERE, NEIGHBOUR].into_iter().zip(mtus) {
            set_mtu(&mut tables, &[pod], mtu);
        }
        assert_eq!(open(&tables, 1), [None, None], "{mtus:?}");
        assert_eq!(goes_on(&tables, 1), [None, None], "{mtus:?}");
    }
    let tables = routed();
    for other in [THERE, HOST, OTHER_NODE, WORLD] {
        assert_eq!(sends(&tables, &syn((HERE, 1), (other, 80))), None, "{other:?}");
    }
}

#[test]
fn a_pod_without_an_interface_that_is_only_observed_gets_nothing_straight() {
    let mut tables = routed();
    tables.settings.insert(Setting::PolicyMode, Mode::Observe as u64);
    tables.settings.insert(Setting::EncryptionMode, Mode::Observe as u64);
    assert_eq!(sends(&tables, &syn((HERE, 1), (NEIGHBOUR, 80))), TO_NEIGHBOUR);
    tables.endpoints.remove(&NEIGHBOUR);
    reopen_all(&mut tables);
    assert_eq!(sends(&tables, &syn((HERE, 1), (NEIGHBOUR, 80))), None);
}

/// What a pod sends to a `hostPort` or to a service that only the host knows arrives by the host's translation, and
/// the answer has to pass that.
#[test]
fn what_the_host_has_translated_is_answered_by_way_of_the_host() {
    let tables = routed();
    let (client, server) = ((HERE, 1), (NEIGHBOUR, 80));
    assert_eq!(sends(&tables, &syn(client, (HOST, 8080))), None);
    arrives(&tables, &syn(client, server));
    assert_eq!(answers(&tables, &syn_ack(server, client)), None);
    assert_eq!(answers(&tables, &ack(server, client)), None);
    assert_eq!(open(&tables, 2), [TO_NEIGHBOUR, TO_HERE], "one beside it");
    // What is left of a connection that never was says nothing of one that the host translates.
    sends(&tables, &syn((HERE, 3), server));
    tables.now.set(NOW + TCP_OPENING_TIMEOUT);
    arrives(&tables, &syn((HERE, 3), server));
    assert_eq!(answers(&tables, &syn_ack(server, (HERE, 3))), None);
}

#[test]
fn a_connection_keeps_its_way_and_the_next_takes_the_new_one() {
    let mut tables = routed();
    open(&tables, 1);
    set_mtu(&mut tables, &[HERE, NEIGHBOUR], 0);
    open(&tables, 2);
    reopen_all(&mut tables);
    for _ in 0..2 {
        assert_eq!(goes_on(&tables, 1), [TO_NEIGHBOUR, TO_HERE]);
        assert_eq!(goes_on(&tables, 2), [None, None]);
    }
    set_mtu(&mut tables, &[HERE, NEIGHBOUR], MTU);
    reopen_all(&mut tables);
    assert_eq!(goes_on(&tables, 2), [None, None]);
    assert_eq!(open(&tables, 3), [TO_NEIGHBOUR, TO_HERE]);
    // The ports of one that has ended are another's.
    sends(&tables, &tcp((HERE, 2), (NEIGHBOUR, 80), flags::RST));
    arrives(&tables, &tcp((HERE, 2), (NEIGHBOUR, 80), flags::RST));
    assert_eq!(open(&tables, 2), [TO_NEIGHBOUR, TO_HERE]);
}

#[test]
fn a_pod_that_has_become_a_bridges_port_is_reached_by_the_bridge() {
    let mut tables = routed();
    open(&tables, 1);
    tables.endpoints.get_mut(&NEIGHBOUR).unwrap().bridge = 77;
    set_mtu(&mut tables, &[NEIGHBOUR], 0);
    reopen_all(&mut tables);
    assert_eq!(sends(&tables, &ack((HERE, 1), (NEIGHBOUR, 80))), None);
}

#[test]
fn what_belongs_to_no_connection_passes_the_host() {
    let tables = routed();
    assert_eq!(sends(&tables, &ack((HERE, 9), (NEIGHBOUR, 80))), None, "a segment");
    assert_eq!(answers(&tables, &ack((NEIGHBOUR, 80), (HERE, 9))), None, "one that may be an answer");
    open(&tables, 1);
    let about = error(types::UNREACHABLE, NEIGHBOUR, HERE, &ack((HERE, 1), (NEIGHBOUR, 80)));
    assert_eq!(answers(&tables, &about), None, "an error");
    let datagram = udp((HERE, 1), (NEIGHBOUR, 53));
    let first =
        Parts { fragment: 0x2000, payload: [datagram.payload.clone(), vec![0; 4]].concat(), ..datagram };
    let later = Parts { fragment: 2, payload: vec![9; 8], ..first.clone() };
    for fragment in [&first, &later, &first, &later] {
        assert_eq!(sends(&tables, fragment), None, "{fragment:?}");
    }
}

#[test]
fn a_services_connection_goes_straight_to_its_backend() {
    let mut tables = routed();
    serve(&mut tables, SERVICE, 80, 1, 0, &[(NEIGHBOUR, 8080)]);
    serve(&mut tables, SERVICE, 81, 2, 0, &[(HERE, 8080)]);
    let (client, service, backend) = ((HERE, 1), (SERVICE, 80), (NEIGHBOUR, 8080));
    assert_eq!(sends(&tables, &syn(client, service)), TO_NEIGHBOUR);
    arrives(&tables, &syn(client, backend));
    assert_eq!(answers(&tables, &syn_ack(backend, client)), TO_HERE);
    returns(&tables, &syn_ack(backend, client));
    for _ in 0..2 {
        assert_eq!(sends(&tables, &ack(client, service)), TO_NEIGHBOUR);
        arrives(&tables, &ack(client, backend));
        assert_eq!(answers(&tables, &ack(backend, client)), TO_HERE);
        reopen_all(&mut tables);
    }
    assert_eq!(sends(&tables, &syn(client, (SERVICE, 81))), None, "to itself");
}

/// What waits at the hold device comes back, and then goes its way.
#[test]
fn a_packet_that_was_held_goes_straight_once_it_has_passed() {
    let mut tables = routed();
    tables.policy.clear();
    hold(&mut tables);
    allow(&mut tables, HERE_ID, Direction::Egress, NEIGHBOUR_ID, AuthType::Spire);
    let segment = syn((HERE, 1), (NEIGHBOUR, 80));
    assert_eq!(run(&tables, context(Hook::FromPod, HERE_IFINDEX), &segment.ethernet()), HELD);
    authenticate(&mut tables, NEIGHBOUR_ID, 0, 0, NOW + 1000);
    let back = Context { held_since: NOW, held_for: 1, ..context(Hook::FromPod, HERE_IFINDEX) };
    assert_eq!(at(&tables, back, &segment), TO_NEIGHBOUR);
}

#[derive(Clone, Debug)]
enum Step {
    /// HERE opens a connection from this port, anew if there is one.
    Open(u16),
    GoOn(u16),
    Reset(u16),
    /// A connection from this port reaches the neighbour by the host's translation.
    Translated(u16),
    /// The daemon has packets go straight from now on, or not.
    Set(bool),
    Reopen,
}

fn steps() -> impl Strategy<Value = Step> {
    let port = 1_u16..5;
    prop_oneof![
        port.clone().prop_map(Step::Open),
        port.clone().prop_map(Step::GoOn),
        port.clone().prop_map(Step::Reset),
        (5_u16..8).prop_map(Step::Translated),
        any::<bool>().prop_map(Step::Set),
        Just(Step::Reopen),
    ]
}

proptest! {
    /// Both ends have the way that was set when the connection was opened.
    #[test]
    fn both_ends_of_a_connection_go_one_way(steps in prop::collection::vec(steps(), 1..60)) {
        let mut tables = routed();
        let mut straight = true;
        let mut ways: BTreeMap<u16, bool> = BTreeMap::new();
        let both = |way: bool| if way { [TO_NEIGHBOUR, TO_HERE] } else { [None, None] };
        for step in steps {
            match step {
                Step::Open(port) => {
                    let way = *ways.entry(port).or_insert(straight);
                    prop_assert_eq!(open(&tables, port), both(way));
                }
                Step::GoOn(port) => {
                    if let Some(way) = ways.get(&port) {
                        prop_assert_eq!(goes_on(&tables, port), both(*way));
                    }
                }
                Step::Reset(port) => {
                    let reset = tcp((HERE, port), (NEIGHBOUR, 80), flags::RST);
                    sends(&tables, &reset);
                    arrives(&tables, &reset);
                    ways.remove(&port);
                }
                Step::Translated(port) => {
                    let (client, server) = ((HERE, port), (NEIGHBOUR, 80));
                    arrives(&tables, &syn(client, server));
                    prop_assert_eq!(answers(&tables, &syn_ack(server, client)), None);
                }
                Step::Set(now) => {
                    straight = now;
                    set_mtu(&mut tables, &[HERE, NEIGHBOUR], if now { MTU } else { 0 });
                }
                Step::Reopen => reopen_all(&mut tables),
            }
        }
    }
}
