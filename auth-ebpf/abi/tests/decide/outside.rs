//! What comes from outside for pods of other nodes, at both ends of the tunnel.

use auth_ebpf_abi::packet::{icmp as types, protocol};
use auth_ebpf_abi::{
    Address, AddressEntry, AuthType, Context, Direction, DropReason, Hook, Mode, OutsideEntry, OutsideKey,
    PolicyEntry, PolicyKey, Setting, Translation, TranslationKind, Verdict, Workspace, decide, identity,
};

use super::frames::{Parts, ack, error, fragments, icmp, packet, syn, syn_ack, udp};
use super::scene::*;
use super::tables::Tables;

type Fate = (Verdict, Option<DropReason>);
type Make = fn((Address, u16), (Address, u16)) -> Parts;

const MASQUERADED: Fate = drops(DropReason::Masqueraded);
const NOTHING: Fate = drops(DropReason::UnknownDestination);
/// This node, its outside address, the other node's pod and node.
const FAMILIES: [(Address, Address, Address, u8, u8); 2] = [
    (HOST, OUTSIDE, THERE, types::ECHO, types::UNREACHABLE),
    (HOST_V6, OUTSIDE_V6, THERE_V6, types::V6_ECHO, types::V6_ERROR_FIRST),
];

fn sends(tables: &Tables, ingress: u32, parts: &Parts) -> Fate {
    run(tables, context(Hook::ToWireguard, ingress), &parts.ip())
}

fn receives(tables: &Tables, parts: &Parts) -> Fate {
    run(tables, context(Hook::FromWireguard, WIREGUARD_IFINDEX), &parts.ip())
}

fn pod_receives(tables: &Tables, ingress: u32, parts: &Parts) -> Fate {
    run(tables, context(Hook::ToPod, ingress), &parts.ethernet())
}

fn pod_sends(tables: &Tables, parts: &Parts) -> Fate {
    run(tables, context(Hook::FromPod, HERE_IFINDEX), &parts.ethernet())
}

/// How a packet changes that passes.
fn change(tables: &Tables, hook: Hook, ingress: u32, parts: &Parts) -> (u8, Address, Address) {
    let context: Context = context(hook, ingress);
    let mut workspace = Workspace::default();
    let verdict = decide(tables, parts.ip().as_slice(), &context, &mut workspace);
    assert_eq!(verdict, Verdict::Forwarded, "{parts:?}");
    let Translation { kind, old, new, old_port, new_port, .. } = workspace.place.translation;
    assert_eq!(old_port, new_port, "ports stay");
    (kind, old, new)
}

fn goes(tables: &Tables, parts: &Parts) -> (u8, Address, Address) {
    change(tables, Hook::ToWireguard, UPLINK_IFINDEX, parts)
}

fn comes(tables: &Tables, parts: &Parts) -> (u8, Address, Address) {
    change(tables, Hook::FromWireguard, WIREGUARD_IFINDEX, parts)
}

#[test]
fn what_is_masqueraded_from_outside_bears_the_outside_address_there_and_back() {
    for (host, own, there, echo, _) in FAMILIES {
        let tables = cluster();
        let sctp: Make = |from, to| packet(from.0, to.0, protocol::SCTP, udp(from, to).payload);
        let pairs: [(Make, Make); 4] = [(syn, syn_ack), (ack, ack), (udp, udp), (sctp, sctp)];
        for (out, back) in pairs {
            let (client, pod) = ((host, 40000), (there, 8080));
            assert_eq!(goes(&tables, &out(client, pod)), (TranslationKind::END, host, own));
            assert_eq!(comes(&tables, &back(pod, (own, 40000))), (TranslationKind::END, own, host));
        }
        let ask = icmp(host, there, echo, 7);
        assert_eq!(goes(&tables, &ask), (TranslationKind::END, host, own));
        let reply = if own.is_v4() { types::ECHO_REPLY } else { types::V6_ECHO_REPLY };
        assert_eq!(comes(&tables, &icmp(there, own, reply, 7)), (TranslationKind::END, own, host));
        assert_eq!(receives(&tables, &icmp(there, own, reply, 8)), NOTHING);
        assert_eq!(receives(&tables, &icmp(there, own, echo, 7)), NOTHING, "it asks");
    }
}

/// What a service has in the host network of another node.
#[test]
fn what_is_for_another_node_itself_bears_the_outside_address_as_well() {
    let tables = cluster();
    let (client, server) = ((HOST, 40000), (OTHER_NODE, 9100));
    assert_eq!(goes(&tables, &syn(client, server)), (TranslationKind::END, HOST, OUTSIDE));
    assert_eq!(comes(&tables, &syn_ack(server, (OUTSIDE, 40000))), (TranslationKind::END, OUTSIDE, HOST));
    assert_eq!(receives(&tables, &syn_ack((OTHER_NODE, 9101), (OUTSIDE, 40000))), NOTHING);
    assert_eq!(sends(&tables, NEIGHBOUR_IFINDEX, &syn(client, server)), MASQUERADED, "a pod's");
    let about = error(types::UNREACHABLE, OTHER_NODE, OUTSIDE, &syn((OUTSIDE, 40000), server));
    assert_eq!(comes(&tables, &about), (TranslationKind::ERROR_OF_END, OUTSIDE, HOST));
}

#[test]
fn each_flow_gets_back_the_address_that_it_had() {
    let mut tables = cluster();
    let second = v4([192, 168, 0, 77]);
    let entry = tables.addresses[&HOST];
    tables.addresses.insert(second, entry);
    for (host, port) in [(HOST, 1), (second, 2)] {
        goes(&tables, &udp((host, port), (THERE, 53)));
    }
    assert_eq!(comes(&tables, &udp((THERE, 53), (OUTSIDE, 1))).2, HOST);
    assert_eq!(comes(&tables, &udp((THERE, 53), (OUTSIDE, 2))).2, second);
    // One that takes another's place counts.
    goes(&tables, &udp((second, 1), (THERE, 53)));
    assert_eq!(comes(&tables, &udp((THERE, 53), (OUTSIDE, 1))).2, second);
}

#[test]
fn only_what_an_uplink_has_brought_for_another_nodes_pod_is_the_worlds() {
    let tables = cluster();
    for ingress in [HERE_IFINDEX, NEIGHBOUR_IFINDEX, WIREGUARD_IFINDEX, HOLD_IFINDEX, 77] {
        assert_eq!(sends(&tables, ingress, &udp((HOST, 1), (THERE, 2))), MASQUERADED, "{ingress}");
    }
    for destination in [NOBODY, HERE, WORLD, OUTSIDE, OUTSIDE_THERE, OUTSIDE_NOBODY] {
        let fate = sends(&tables, UPLINK_IFINDEX, &udp((HOST, 1), (destination, 2)));
        assert_eq!(fate, MASQUERADED, "{destination:?}");
    }
    for source in [WORLD, OUTSIDE, OUTSIDE_THERE, OTHER_NODE] {
        let fate = sends(&tables, UPLINK_IFINDEX, &udp((source, 1), (THERE, 2)));
        assert_eq!(fate, drops(DropReason::Spoofed), "{source:?}");
    }
    for parts in [
        packet(HOST, THERE, 47, vec![0; 12]),
        icmp(HOST, THERE, types::ECHO_REPLY, 1),
        icmp(HOST, THERE, 13, 1),
    ] {
        assert_eq!(sends(&tables, UPLINK_IFINDEX, &parts), MASQUERADED, "nobody could answer: {parts:?}");
    }
    assert!(tables.outside.borrow().is_empty());
    // The host's own stays its own.
    let own = udp((HOST, 1), (THERE, 2));
    assert_eq!(change(&tables, Hook::ToWireguard, 0, &own).0, TranslationKind::NONE);
    assert!(tables.outside.borrow().is_empty());
}

#[test]
fn without_an_outside_address_of_the_family_everything_stays_masqueraded() {
    for (without, masqueraded, passes) in [
        (Setting::outside(None, Some(OUTSIDE_V6)), (HOST, THERE), (HOST_V6, THERE_V6)),
        (Setting::outside(Some(OUTSIDE), None), (HOST_V6, THERE_V6), (HOST, THERE)),
    ] {
        let mut tables = cluster();
        tables.settings.extend(without);
        assert_eq!(sends(&tables, UPLINK_IFINDEX, &udp((masqueraded.0, 1), (masqueraded.1, 2))), MASQUERADED);
        assert_eq!(sends(&tables, UPLINK_IFINDEX, &udp((passes.0, 1), (passes.1, 2))), PASSES);
    }
    let mut tables = cluster();
    tables.settings.extend(Setting::outside(None, None));
    assert_eq!(receives(&tables, &udp((THERE, 2), (OUTSIDE, 1))), drops(DropReason::NoEndpoint));
}

#[test]
fn the_outside_address_leads_to_nothing_of_this_node() {
    let tables = cluster();
    goes(&tables, &udp((HOST, 1), (THERE, 2)));
    for (source, destination) in [
        ((THERE, 2), (OUTSIDE, 3)),
        ((THERE, 3), (OUTSIDE, 1)),
        ((OTHER_NODE, 2), (OUTSIDE, 1)),
        ((OUTSIDE_THERE, 2), (OUTSIDE, 1)),
    ] {
        assert_eq!(receives(&tables, &udp(source, destination)), NOTHING, "{source:?}");
    }
    assert_eq!(receives(&tables, &syn((THERE, 2), (OUTSIDE, 1))), NOTHING, "of another protocol");
    assert_eq!(receives(&tables, &udp((THERE, 2), (OUTSIDE_NOBODY, 1))), drops(DropReason::NoEndpoint));
    // The world of another node reaches pods and the host, and nothing else.
    assert_eq!(receives(&tables, &udp((OUTSIDE_THERE, 1), (HERE, 2))), PASSES);
    assert_eq!(receives(&tables, &udp((OUTSIDE_THERE, 1), (HOST, 2))), PASSES, "a host decides for itself");
    assert_eq!(receives(&tables, &udp((OUTSIDE_THERE, 1), (NOBODY, 2))), drops(DropReason::NoEndpoint));
    for source in [OUTSIDE, OUTSIDE_NOBODY] {
        assert_eq!(receives(&tables, &udp((source, 1), (HERE, 2))), drops(DropReason::UnknownSource));
    }
}

#[test]
fn where_there_is_no_room_it_drops() {
    let tables = Tables { full: true, ..cluster() };
    let fate = sends(&tables, UPLINK_IFINDEX, &udp((HOST, 1), (THERE, 2)));
    assert_eq!(fate, drops(DropReason::MapError));
}

#[test]
fn fragments_follow_their_first() {
    for (host, own, there, ..) in FAMILIES {
        let tables = cluster();
        let (first, later) = fragments(udp((host, 1), (there, 2)));
        assert_eq!(sends(&tables, UPLINK_IFINDEX, &later), drops(DropReason::Fragment), "before the first");
        for part in [&first, &later] {
            assert_eq!(goes(&tables, part), (TranslationKind::END, host, own), "{part:?}");
        }
        let (first, later) = fragments(udp((there, 2), (own, 1)));
        assert_eq!(receives(&tables, &later), drops(DropReason::Fragment), "before the first");
        for part in [&first, &later] {
            assert_eq!(comes(&tables, part), (TranslationKind::END, own, host), "{part:?}");
        }
        let (first, later) = fragments(udp((there, 3), (own, 1)));
        assert_eq!(receives(&cluster(), &first), NOTHING);
        assert_eq!(receives(&cluster(), &later), drops(DropReason::Fragment));
    }
}

#[test]
fn errors_are_about_what_each_end_knows() {
    for (host, own, there, echo, unreachable) in FAMILIES {
        let tables = cluster();
        let asked = icmp(host, there, echo, 9);
        for flow in [udp((host, 1), (there, 2)), syn((host, 1), (there, 2)), asked.clone()] {
            goes(&tables, &flow);
        }
        // From a router out there, which conntrack has made this host's; and this host's own.
        let answer = udp((there, 2), (host, 1));
        let told = error(unreachable, host, there, &answer);
        assert_eq!(goes(&tables, &told), (TranslationKind::ERROR_OF_END, host, own));
        assert_eq!(change(&tables, Hook::ToWireguard, 0, &told), (TranslationKind::ERROR, host, own));
        // From the pod.
        for met in [udp((own, 1), (there, 2)), syn((own, 1), (there, 2)), icmp(own, there, echo, 9)] {
            let told = error(unreachable, there, own, &met);
            assert_eq!(comes(&tables, &told), (TranslationKind::ERROR_OF_END, own, host), "{met:?}");
        }
        // About what never was, or went elsewhere.
        for met in [udp((own, 1), (there, 3)), udp((host, 1), (there, 2)), udp((there, 2), (own, 1))] {
            assert_eq!(receives(&tables, &error(unreachable, there, own, &met)), NOTHING, "{met:?}");
        }
        for met in [udp((there, 3), (host, 1)), udp((there, 2), (own, 1)), udp((host, 1), (there, 2))] {
            let told = error(unreachable, host, there, &met);
            assert_eq!(sends(&tables, UPLINK_IFINDEX, &told), MASQUERADED, "{met:?}");
            assert_eq!(change(&tables, Hook::ToWireguard, 0, &told).0, TranslationKind::NONE, "{met:?}");
        }
    }
    // Under an address of this host that the flow has not.
    let mut tables = cluster();
    let second = v4([192, 168, 0, 77]);
    let entry = tables.addresses[&HOST];
    tables.addresses.insert(second, entry);
    goes(&tables, &udp((HOST, 1), (THERE, 2)));
    let told = error(types::UNREACHABLE, second, THERE, &udp((THERE, 2), (HOST, 1)));
    assert_eq!(sends(&tables, UPLINK_IFINDEX, &told), MASQUERADED);
    // From the pod's own node, and from no other.
    let mut tables = cluster();
    let third = v4([192, 168, 0, 3]);
    let entry = tables.addresses[&OTHER_NODE];
    tables.addresses.insert(third, AddressEntry { node: 3, ..entry });
    goes(&tables, &udp((HOST, 1), (THERE, 2)));
    let told = |from| error(types::UNREACHABLE, from, OUTSIDE, &udp((OUTSIDE, 1), (THERE, 2)));
    assert_eq!(comes(&tables, &told(OTHER_NODE)).0, TranslationKind::ERROR_OF_END);
    assert_eq!(receives(&tables, &told(third)), NOTHING);
}

/// Only the world may call the pod here.
fn for_the_world(auth_type: AuthType) -> Tables {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Ingress, identity::WORLD, auth_type);
    tables
}

#[test]
fn to_a_pod_it_is_the_world_if_the_tunnel_has_brought_it() {
    for (outside, here) in [(OUTSIDE_THERE, HERE), (OUTSIDE_THERE_V6, HERE_V6)] {
        let call = syn((outside, 1), (here, 80));
        assert_eq!(pod_receives(&for_the_world(AuthType::Disabled), WIREGUARD_IFINDEX, &call), PASSES);
        assert_eq!(pod_receives(&locked(), WIREGUARD_IFINDEX, &call), drops(DropReason::PolicyDenied));
        for ingress in [0, NEIGHBOUR_IFINDEX, UPLINK_IFINDEX] {
            let fate = pod_receives(&for_the_world(AuthType::Disabled), ingress, &call);
            assert_eq!(fate, drops(DropReason::Unencrypted), "{ingress}");
        }
        let tables = for_the_world(AuthType::Spire);
        let fate = pod_receives(&tables, WIREGUARD_IFINDEX, &call);
        assert_eq!(fate, drops(DropReason::AuthImpossible));
    }
    // Neither the node, nor anybody whose address is known.
    let mut tables = locked();
    for no_one in [identity::REMOTE_NODE, identity::HOST, identity::WORLD_IPV4] {
        allow(&mut tables, HERE_ID, Direction::Ingress, no_one, AuthType::Disabled);
    }
    let call = syn((OUTSIDE_THERE, 1), (HERE, 80));
    assert_eq!(pod_receives(&tables, WIREGUARD_IFINDEX, &call), drops(DropReason::PolicyDenied));
    for source in [OUTSIDE, OUTSIDE_NOBODY] {
        let fate = pod_receives(&cluster(), WIREGUARD_IFINDEX, &syn((source, 1), (HERE, 80)));
        assert_eq!(fate, drops(DropReason::UnknownSource), "{source:?}");
    }
}

/// The first of its way was in the clear.
#[test]
fn a_rule_that_wants_encryption_does_not_take_it_for_encrypted() {
    let mut tables = for_the_world(AuthType::Disabled);
    let key = PolicyKey {
        local: HERE_ID,
        remote: identity::WORLD,
        direction: Direction::Ingress as u8,
        ..PolicyKey::default()
    };
    let entry = PolicyEntry { precedence: 1, encryption: 1, ..PolicyEntry::default() };
    tables.policy.insert((key, PolicyKey::prefix_len(None)), entry);
    let fate = pod_receives(&tables, WIREGUARD_IFINDEX, &syn((OUTSIDE_THERE, 1), (HERE, 80)));
    assert_eq!(fate, drops(DropReason::Unencrypted));
}

#[test]
fn a_pod_answers_to_it_and_opens_nothing() {
    for (outside, here) in [(OUTSIDE_THERE, HERE), (OUTSIDE_THERE_V6, HERE_V6)] {
        for (call, answer, opening) in [(syn as Make, syn_ack as Make, syn as Make), (udp, udp, udp)] {
            let tables = cluster();
            assert_eq!(pod_receives(&tables, WIREGUARD_IFINDEX, &call((outside, 1), (here, 80))), PASSES);
            assert_eq!(pod_sends(&tables, &answer((here, 80), (outside, 1))), PASSES);
            let mut again = tables.clone();
            reopen_all(&mut again);
            assert_eq!(pod_sends(&again, &answer((here, 80), (outside, 1))), PASSES, "decided anew");
            for to in [(outside, 2), (outside, WIREGUARD_PORT), (outside, HANDSHAKE_PORT)] {
                assert_eq!(pod_sends(&tables, &opening((here, 80), to)), NOTHING, "{to:?}");
            }
        }
        for parts in
            [syn((here, 80), (outside, 1)), ack((here, 80), (outside, 1)), udp((here, 80), (outside, 1))]
        {
            assert_eq!(pod_sends(&cluster(), &parts), NOTHING, "{parts:?}");
        }
    }
    for nobody in [OUTSIDE, OUTSIDE_NOBODY] {
        assert_eq!(pod_sends(&cluster(), &udp((HERE, 1), (nobody, 2))), NOTHING);
    }
    // What a pod has opened while policy was observed does not go on as an answer.
    let mut tables = cluster();
    tables.settings.insert(Setting::PolicyMode, Mode::Observe as u64);
    let call = udp((HERE, 80), (OUTSIDE_THERE, 1));
    assert_eq!(pod_sends(&tables, &call), audits(DropReason::UnknownDestination));
    tables.settings.insert(Setting::PolicyMode, Mode::Enforce as u64);
    assert_eq!(pod_sends(&tables, &call), NOTHING);
}

#[test]
fn an_answer_to_it_belongs_to_a_connection_that_came_from_there() {
    let (call, answer) = (udp((OUTSIDE_THERE, 1), (HERE, 80)), udp((HERE, 80), (OUTSIDE_THERE, 1)));
    // A pod had the address.
    let mut tables = cluster();
    let outside = tables.addresses[&OUTSIDE_THERE];
    tables.addresses.insert(OUTSIDE_THERE, AddressEntry { identity: THERE_ID, ..outside });
    assert_eq!(pod_receives(&tables, WIREGUARD_IFINDEX, &call), PASSES);
    tables.addresses.insert(OUTSIDE_THERE, outside);
    reopen_all(&mut tables);
    assert_eq!(pod_sends(&tables, &answer), NOTHING);
    // The pod here has opened it.
    let mut tables = cluster();
    assert_eq!(pod_receives(&tables, WIREGUARD_IFINDEX, &call), PASSES);
    for entry in tables.half_open.borrow_mut().values_mut() {
        entry.direction = Direction::Egress as u8;
    }
    reopen_all(&mut tables);
    assert_eq!(pod_sends(&tables, &answer), NOTHING);
}

/// A node's own ports are not at its outside address, and nothing is excepted for it.
#[test]
fn nothing_of_it_crosses_an_uplink() {
    let tables = cluster();
    for outside in [OUTSIDE, OUTSIDE_THERE, OUTSIDE_NOBODY] {
        for port in [1, WIREGUARD_PORT] {
            for (source, destination) in [((outside, port), (HOST, port)), ((outside, port), (HERE, port))] {
                let into = udp(source, destination).ethernet();
                let fate = run(&tables, context(Hook::FromUplink, UPLINK_IFINDEX), &into);
                assert_eq!(fate, drops(DropReason::Unencrypted), "{source:?}");
            }
            let out = udp((HOST, port), (outside, port)).ethernet();
            let fate = run(&tables, context(Hook::ToUplink, 0), &out);
            assert_eq!(fate, drops(DropReason::Unencrypted), "{outside:?}");
        }
    }
}

#[test]
fn what_only_observes_forwards_under_the_outside_address_as_well() {
    let mut tables = cluster();
    tables.settings.insert(Setting::PolicyMode, Mode::Observe as u64);
    tables.settings.insert(Setting::EncryptionMode, Mode::Observe as u64);
    assert_eq!(goes(&tables, &udp((HOST, 1), (THERE, 2))), (TranslationKind::END, HOST, OUTSIDE));
    let fate = sends(&tables, HERE_IFINDEX, &udp((HOST, 3), (THERE, 2)));
    assert_eq!(fate, audits(DropReason::Masqueraded));
    assert_eq!(receives(&tables, &udp((THERE, 2), (OUTSIDE, 3))), audits(DropReason::UnknownDestination));
    let clear = syn((OUTSIDE_THERE, 1), (HERE, 80));
    assert_eq!(pod_receives(&tables, UPLINK_IFINDEX, &clear), audits(DropReason::Unencrypted));
    let entry = *tables.half_open.borrow().values().next().unwrap();
    assert_eq!((entry.remote_identity, entry.node), (identity::WORLD, 0), "no node has sent it");
}

#[test]
fn what_is_remembered_names_the_pod_and_the_ports() {
    let tables = cluster();
    goes(&tables, &udp((HOST, 1), (THERE, 2)));
    let all: Vec<(OutsideKey, OutsideEntry)> =
        tables.outside.borrow().iter().map(|(key, entry)| (*key, *entry)).collect();
    let ports = auth_ebpf_abi::packet::Ports::new([0, 1], [0, 2]);
    let key = OutsideKey { remote: THERE, ports, protocol: u32::from(protocol::UDP) };
    assert_eq!(all, [(key, OutsideEntry { address: HOST })]);
}
