//! Connections: how they open, live and end, and what re-opens them.

use auth_ebpf_abi::packet::{icmp as types, tcp as flags};
use auth_ebpf_abi::{
    Address, AuthType, CONNECTION_QUOTA, CONNECTION_TIMEOUT, ConnectionEntry, Direction, DropReason, Hook,
    LAST_SEEN_STEP, Setting, TCP_CLOSED_TIMEOUT, TCP_OPENING_TIMEOUT, TCP_TIMEOUT, Verdict, identity,
};

use super::frames::{Parts, ack, data, error, icmp, init, syn, syn_ack, tcp, udp};
use super::scene::*;
use super::tables::Tables;

type Fate = (Verdict, Option<DropReason>);

fn sends(tables: &Tables, parts: &Parts) -> Fate {
    run(tables, context(Hook::FromPod, HERE_IFINDEX), &parts.ethernet())
}

fn receives(tables: &Tables, parts: &Parts) -> Fate {
    run(tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &parts.ethernet())
}

/// HERE may open connections to THERE, and nobody else may anything.
fn outwards(auth_type: AuthType) -> Tables {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, auth_type);
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1000);
    tables
}

/// An answered TCP connection from HERE to THERE.
fn established(auth_type: AuthType) -> Tables {
    let tables = outwards(auth_type);
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), PASSES);
    assert_eq!(receives(&tables, &syn_ack((THERE, 80), (HERE, 1))), PASSES);
    assert_eq!(sends(&tables, &ack((HERE, 1), (THERE, 80))), PASSES);
    tables
}

fn out(port: u16) -> Parts {
    ack((HERE, port), (THERE, 80))
}

fn back(port: u16) -> Parts {
    ack((THERE, 80), (HERE, port))
}

/// Ends that both know their ports beforehand, as SCTP's often do, may each begin.
#[test]
fn who_begins_is_judged_as_that_whoever_has_begun_before() {
    type Make = fn((Address, u16), (Address, u16)) -> Parts;
    let protocols: [(Make, Make, Make); 2] = [(syn, syn_ack, ack), (init, data, data)];
    for (first, answer, next) in protocols {
        let mut tables = outwards(AuthType::Disabled);
        let (here, there) = ((HERE, 80), (THERE, 80));
        assert_eq!(sends(&tables, &first(here, there)), PASSES);
        assert_eq!(receives(&tables, &answer(there, here)), PASSES);
        assert_eq!(receives(&tables, &first(there, here)), drops(DropReason::PolicyDenied));
        assert_eq!(receives(&tables, &next(there, here)), PASSES);
        allow(&mut tables, HERE_ID, Direction::Ingress, THERE_ID, AuthType::Disabled);
        assert_eq!(receives(&tables, &first(there, here)), PASSES);
        assert_eq!(connections(&tables)[0].1.direction, Direction::Ingress as u8);
    }
    let tables = outwards(AuthType::Disabled);
    assert_eq!(sends(&tables, &data((HERE, 1), (THERE, 80))), PASSES);
    assert_eq!(receives(&tables, &data((THERE, 80), (HERE, 1))), PASSES, "another way of an association");
}

/// Each write to an entry is one that another CPU has to fetch.
#[test]
fn what_changes_nothing_writes_nothing() {
    let tables = established(AuthType::Disabled);
    let (_, before) = connections(&tables)[0];
    tables.now.set(NOW + LAST_SEEN_STEP - 1);
    sends(&tables, &out(1));
    receives(&tables, &back(1));
    assert_eq!(connections(&tables)[0].1, before);
    tables.now.set(NOW + LAST_SEEN_STEP);
    receives(&tables, &back(1));
    assert_eq!(connections(&tables)[0].1, ConnectionEntry { last_seen: NOW + LAST_SEEN_STEP, ..before });
    // Time counts exactly from where a connection ends.
    tables.now.set(NOW + LAST_SEEN_STEP + 1);
    sends(&tables, &tcp((HERE, 1), (THERE, 80), flags::RST));
    assert_eq!(connections(&tables)[0].1.last_seen, NOW + LAST_SEEN_STEP + 1);
}

#[test]
fn an_answer_moves_a_connection_out_of_reach_of_eviction() {
    let tables = outwards(AuthType::Disabled);
    sends(&tables, &syn((HERE, 1), (THERE, 80)));
    assert_eq!((tables.half_open.borrow().len(), tables.connections.borrow().len()), (1, 0));
    assert_eq!(receives(&tables, &back(1)), PASSES);
    assert_eq!(tables.half_open.borrow().len(), 1, "no answer to a first segment");
    receives(&tables, &syn_ack((THERE, 80), (HERE, 1)));
    assert_eq!((tables.half_open.borrow().len(), tables.connections.borrow().len()), (0, 1));
    sends(&tables, &udp((HERE, 1), (THERE, 53)));
    receives(&tables, &udp((THERE, 53), (HERE, 1)));
    assert_eq!((tables.half_open.borrow().len(), tables.connections.borrow().len()), (0, 2));
}

#[test]
fn beyond_its_quota_an_endpoint_goes_on_half_open() {
    let tables = outwards(AuthType::Disabled);
    tables.quotas.borrow_mut().insert(HERE_IFINDEX, CONNECTION_QUOTA);
    sends(&tables, &syn((HERE, 1), (THERE, 80)));
    assert_eq!(receives(&tables, &syn_ack((THERE, 80), (HERE, 1))), PASSES);
    assert_eq!(receives(&tables, &back(1)), PASSES);
    assert_eq!((tables.half_open.borrow().len(), tables.connections.borrow().len()), (1, 0));
    // As soon as there is room, it is safe.
    tables.quotas.borrow_mut().insert(HERE_IFINDEX, 0);
    assert_eq!(receives(&tables, &back(1)), PASSES);
    assert_eq!((tables.half_open.borrow().len(), tables.connections.borrow().len()), (0, 1));
}

#[test]
fn a_connection_ends_some_time_after_its_last_packet() {
    for (packets, timeout) in [
        (vec![], TCP_TIMEOUT),
        (vec![(true, flags::FIN | flags::ACK)], TCP_TIMEOUT),
        (vec![(true, flags::FIN | flags::ACK), (false, flags::FIN | flags::ACK)], TCP_CLOSED_TIMEOUT),
        (vec![(true, flags::RST)], TCP_CLOSED_TIMEOUT),
        (vec![(false, flags::RST | flags::ACK)], TCP_CLOSED_TIMEOUT),
    ] {
        for reply in [true, false] {
            let mut tables = established(AuthType::Disabled);
            for (outwards, flags) in &packets {
                let fate = if *outwards {
                    sends(&tables, &tcp((HERE, 1), (THERE, 80), *flags))
                } else {
                    receives(&tables, &tcp((THERE, 80), (HERE, 1), *flags))
                };
                assert_eq!(fate, PASSES);
            }
            if !reply {
                tables.policy.clear();
            }
            tables.nodes.get_mut(&NODE).unwrap().expires = u64::MAX;
            reopen_all(&mut tables);
            let fate = |tables: &Tables| if reply { receives(tables, &back(1)) } else { PASSES };
            tables.now.set(NOW + timeout - 1);
            assert_eq!(fate(&tables), PASSES, "{packets:?}");
            // That packet has prolonged it.
            tables.now.set(NOW + timeout - 1 + timeout);
            assert_eq!(receives(&tables, &back(1)), drops(DropReason::PolicyDenied), "{packets:?}");
        }
    }
}

#[test]
fn what_is_not_answered_ends_soon() {
    for (first, reply, timeout) in [
        (syn((HERE, 1), (THERE, 80)), syn_ack((THERE, 80), (HERE, 1)), TCP_OPENING_TIMEOUT),
        (udp((HERE, 1), (THERE, 53)), udp((THERE, 53), (HERE, 1)), CONNECTION_TIMEOUT),
        (icmp(HERE, THERE, types::ECHO, 5), icmp(THERE, HERE, types::ECHO_REPLY, 5), CONNECTION_TIMEOUT),
    ] {
        let mut tables = outwards(AuthType::Disabled);
        tables.nodes.get_mut(&NODE).unwrap().expires = u64::MAX;
        for (later, expected) in [(timeout - 1, PASSES), (timeout, drops(DropReason::PolicyDenied))] {
            tables.half_open.borrow_mut().clear();
            tables.connections.borrow_mut().clear();
            tables.now.set(NOW);
            assert_eq!(sends(&tables, &first), PASSES);
            tables.now.set(NOW + later);
            assert_eq!(receives(&tables, &reply), expected, "{reply:?}");
        }
    }
}

#[test]
fn a_settled_connection_asks_nothing_else() {
    let mut tables = established(AuthType::Spire);
    // Nobody has said that anything has changed.
    tables.policy.clear();
    tables.auth.clear();
    tables.addresses.clear();
    tables.endpoints.clear();
    assert_eq!(sends(&tables, &out(1)), PASSES);
    assert_eq!(receives(&tables, &back(1)), PASSES);
    assert_eq!(tables.events.borrow().len(), 1, "that it was opened");
}

#[test]
fn a_change_of_policy_reaches_a_connection_in_both_directions() {
    let mut tables = established(AuthType::Disabled);
    tables.policy.clear();
    for (touched, expected) in
        [((NEIGHBOUR_ID, THERE_ID), PASSES), ((HERE_ID, THERE_ID), drops(DropReason::PolicyDenied))]
    {
        reopen(&mut tables, touched.0, touched.1);
        assert_eq!(sends(&tables, &out(1)), expected);
        assert_eq!(receives(&tables, &back(1)), expected);
    }
    // What is allowed again goes on where it was.
    allow(&mut tables, HERE_ID, Direction::Egress, identity::UNKNOWN, AuthType::Disabled);
    reopen(&mut tables, HERE_ID, identity::UNKNOWN);
    assert_eq!(receives(&tables, &back(1)), PASSES);
    tables.policy.clear();
    assert_eq!(receives(&tables, &back(1)), PASSES, "settled again");
}

#[test]
fn a_connection_asks_policy_about_its_opener() {
    let mut tables = established(AuthType::Disabled);
    tables.policy.clear();
    // THERE may open connections now, which HERE's replies to it are none of.
    allow(&mut tables, HERE_ID, Direction::Ingress, THERE_ID, AuthType::Disabled);
    reopen_all(&mut tables);
    assert_eq!(receives(&tables, &back(1)), drops(DropReason::PolicyDenied));
    assert_eq!(sends(&tables, &out(1)), drops(DropReason::PolicyDenied));
}

#[test]
fn an_established_connection_ends_with_its_authentication() {
    let tables = established(AuthType::Spire);
    tables.now.set(NOW + 999);
    assert_eq!(sends(&tables, &out(1)), PASSES);
    tables.now.set(NOW + 1000);
    assert_eq!(sends(&tables, &out(1)), drops(DropReason::AuthRequired));
    assert_eq!(receives(&tables, &back(1)), drops(DropReason::AuthRequired));
}

#[test]
fn a_renewed_authentication_is_found_without_being_announced() {
    let mut tables = established(AuthType::Spire);
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 2000);
    tables.now.set(NOW + 1500);
    assert_eq!(receives(&tables, &back(1)), PASSES);
    tables.auth.clear();
    assert_eq!(receives(&tables, &back(1)), PASSES, "settled until the new end");
    tables.now.set(NOW + 2000);
    assert_eq!(receives(&tables, &back(1)), drops(DropReason::AuthRequired));
}

#[test]
fn an_established_connection_ends_with_its_nodes_session() {
    let mut tables = outwards(AuthType::Disabled);
    tables.nodes.get_mut(&NODE).unwrap().expires = NOW + 10;
    sends(&tables, &syn((HERE, 1), (THERE, 80)));
    receives(&tables, &syn_ack((THERE, 80), (HERE, 1)));
    tables.now.set(NOW + 10);
    assert_eq!(sends(&tables, &out(1)), drops(DropReason::NoNodeSession));
    assert_eq!(receives(&tables, &back(1)), drops(DropReason::NoNodeSession));
}

#[test]
fn a_revoked_node_is_heard_of() {
    let mut tables = established(AuthType::Spire);
    tables.nodes.get_mut(&NODE).unwrap().epoch = 8;
    reopen_all(&mut tables);
    assert_eq!(receives(&tables, &back(1)), drops(DropReason::AuthRequired));
}

#[test]
fn a_settled_connection_keeps_to_its_interfaces() {
    let tables = established(AuthType::Spire);
    let elsewhere =
        auth_ebpf_abi::Context { ifindex: NEIGHBOUR_IFINDEX, ..context(Hook::FromPod, NEIGHBOUR_IFINDEX) };
    assert_eq!(run(&tables, elsewhere, &out(1).ethernet()), drops(DropReason::Spoofed));
    for (ingress, expected) in [(UPLINK_IFINDEX, DropReason::Unencrypted), (0, DropReason::Unencrypted)] {
        assert_eq!(run(&tables, context(Hook::ToPod, ingress), &back(1).ethernet()), drops(expected));
    }
}

#[test]
fn a_connection_to_a_neighbour_keeps_to_the_neighbours_interface() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, NEIGHBOUR_ID, AuthType::Disabled);
    assert_eq!(sends(&tables, &udp((HERE, 1), (NEIGHBOUR, 2))), PASSES);
    let reply = udp((NEIGHBOUR, 2), (HERE, 1)).ethernet();
    assert_eq!(run(&tables, context(Hook::ToPod, UPLINK_IFINDEX), &reply), drops(DropReason::Spoofed));
    assert_eq!(run(&tables, context(Hook::ToPod, NEIGHBOUR_IFINDEX), &reply), PASSES);
}

#[test]
fn the_senders_entry_is_not_the_receivers() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, NEIGHBOUR_ID, AuthType::Disabled);
    assert_eq!(sends(&tables, &udp((HERE, 7), (NEIGHBOUR, 7))), PASSES);
    let at_receiver =
        auth_ebpf_abi::Context { ifindex: NEIGHBOUR_IFINDEX, ..context(Hook::ToPod, HERE_IFINDEX) };
    assert_eq!(
        run(&tables, at_receiver, &udp((HERE, 7), (NEIGHBOUR, 7)).ethernet()),
        drops(DropReason::PolicyDenied)
    );
    // Not even where both ends are one.
    allow(&mut tables, HERE_ID, Direction::Egress, HERE_ID, AuthType::Disabled);
    assert_eq!(sends(&tables, &udp((HERE, 7), (HERE, 7))), PASSES);
    assert_eq!(
        run(&tables, context(Hook::ToPod, HERE_IFINDEX), &udp((HERE, 7), (HERE, 7)).ethernet()),
        drops(DropReason::PolicyDenied)
    );
}

#[test]
fn forged_replies_find_no_connection() {
    let tables = outwards(AuthType::Disabled);
    // The pod's first segment was refused: by another rule, it may not talk to that node.
    assert_eq!(sends(&tables, &syn((HERE, 1), (OTHER_NODE, 80))), drops(DropReason::PolicyDenied));
    assert_eq!(receives(&tables, &syn_ack((OTHER_NODE, 80), (HERE, 1))), drops(DropReason::PolicyDenied));
    for flags in [flags::ACK, flags::SYN | flags::ACK, flags::FIN | flags::ACK, flags::RST, 0] {
        assert_eq!(receives(&tables, &tcp((THERE, 80), (HERE, 1), flags)), drops(DropReason::PolicyDenied));
    }
    // A first segment is never a reply, not even on a connection's own ports.
    let tables = established(AuthType::Disabled);
    assert_eq!(receives(&tables, &syn((THERE, 80), (HERE, 1))), drops(DropReason::PolicyDenied));
    assert_eq!(receives(&tables, &back(1)), PASSES, "and it has changed nothing");
}

#[test]
fn segments_without_a_connection_open_none() {
    let tables = cluster();
    for flags in [flags::ACK, flags::SYN | flags::ACK, flags::FIN | flags::ACK, flags::RST] {
        assert_eq!(sends(&tables, &tcp((HERE, 1), (THERE, 80), flags)), PASSES);
        assert!(connections(&tables).is_empty());
    }
}

#[test]
fn a_new_connection_on_old_ports_starts_anew() {
    let tables = established(AuthType::Disabled);
    sends(&tables, &tcp((HERE, 1), (THERE, 80), flags::RST));
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), PASSES);
    let (_, connection) = connections(&tables)[0];
    assert!(!connection.is_closed());
    assert!(!connection.is_answered());
    assert_eq!(tables.events.borrow().len(), 2, "both were announced");
}

#[test]
fn two_ends_may_ask_for_echoes_under_one_identifier() {
    let mut tables = outwards(AuthType::Disabled);
    allow(&mut tables, HERE_ID, Direction::Ingress, THERE_ID, AuthType::Disabled);
    assert_eq!(sends(&tables, &icmp(HERE, THERE, types::ECHO, 5)), PASSES);
    assert_eq!(receives(&tables, &icmp(THERE, HERE, types::ECHO, 5)), PASSES);
    tables.policy.clear();
    assert_eq!(receives(&tables, &icmp(THERE, HERE, types::ECHO_REPLY, 5)), PASSES);
    assert_eq!(sends(&tables, &icmp(HERE, THERE, types::ECHO_REPLY, 5)), PASSES);
    assert_eq!(sends(&tables, &icmp(HERE, THERE, types::ECHO_REPLY, 6)), drops(DropReason::PolicyDenied));
}

#[test]
fn errors_about_a_connection_pass() {
    for kind in [types::UNREACHABLE, types::TIME_EXCEEDED, types::PARAMETER_PROBLEM] {
        let tables = established(AuthType::Spire);
        // From the other end, from its node, and from this host; about the packet that went out.
        for (source, ingress) in [(THERE, WIREGUARD_IFINDEX), (OTHER_NODE, WIREGUARD_IFINDEX), (HOST, 0)] {
            let packet = error(kind, source, HERE, &out(1)).ethernet();
            assert_eq!(run(&tables, context(Hook::ToPod, ingress), &packet), PASSES, "{kind} {source:?}");
        }
        // To the other end, about the packet that came in.
        assert_eq!(sends(&tables, &error(kind, HERE, THERE, &back(1))), PASSES);
        assert_eq!(connections(&tables).len(), 1, "they open nothing");
    }
}

#[test]
fn errors_about_nothing_known_are_left_to_policy() {
    let tables = established(AuthType::Spire);
    let refused = drops(DropReason::PolicyDenied);
    let unreachable =
        |source, destination, about: &Parts| error(types::UNREACHABLE, source, destination, about);
    // Another port; the wrong way round; about somebody else's packet.
    assert_eq!(receives(&tables, &unreachable(THERE, HERE, &out(2))), refused);
    assert_eq!(receives(&tables, &unreachable(THERE, HERE, &back(1))), refused);
    assert_eq!(receives(&tables, &unreachable(OTHER_NODE, HERE, &ack((NEIGHBOUR, 1), (THERE, 80)))), refused);
    assert_eq!(sends(&tables, &unreachable(HERE, OTHER_NODE, &back(1))), refused);
    // A pod is no router for others.
    let from_neighbour = unreachable(NEIGHBOUR, HERE, &out(1)).ethernet();
    assert_eq!(run(&tables, context(Hook::ToPod, NEIGHBOUR_IFINDEX), &from_neighbour), refused);
    // And nobody's address is spoofed by an error either.
    let by_uplink = unreachable(THERE, HERE, &out(1)).ethernet();
    assert_eq!(
        run(&tables, context(Hook::ToPod, UPLINK_IFINDEX), &by_uplink),
        drops(DropReason::Unencrypted)
    );
    // Redirects are no errors.
    assert_eq!(receives(&tables, &error(5, THERE, HERE, &out(1))), refused);
}

#[test]
fn errors_pass_as_long_as_their_connection_would() {
    let mut tables = established(AuthType::Spire);
    let packet = error(types::UNREACHABLE, THERE, HERE, &out(1));
    tables.now.set(NOW + 999);
    assert_eq!(receives(&tables, &packet), PASSES);
    tables.now.set(NOW + 1000);
    assert_eq!(receives(&tables, &packet), drops(DropReason::PolicyDenied));
    tables.now.set(NOW);
    reopen_all(&mut tables);
    assert_eq!(receives(&tables, &packet), drops(DropReason::PolicyDenied));
}

#[test]
fn what_this_host_opens_stays_its_own() {
    let mut tables = locked();
    let probe = syn((HOST, 40000), (HERE, 8080)).ethernet();
    assert_eq!(run(&tables, context(Hook::ToPod, 0), &probe), PASSES);
    assert_eq!(sends(&tables, &syn_ack((HERE, 8080), (HOST, 40000))), PASSES);
    reopen_all(&mut tables);
    assert_eq!(sends(&tables, &ack((HERE, 8080), (HOST, 40000))), PASSES);
    let next = ack((HOST, 40000), (HERE, 8080)).ethernet();
    assert_eq!(run(&tables, context(Hook::ToPod, 0), &next), PASSES);
    assert_eq!(run(&tables, context(Hook::ToPod, NEIGHBOUR_IFINDEX), &next), drops(DropReason::PolicyDenied));
}

/// kube-proxy does it to what comes to a NodePort.
#[test]
fn what_the_host_translates_under_its_own_address_is_the_worlds_and_is_answered_as_that() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Ingress, identity::WORLD, AuthType::Disabled);
    let comes =
        |tables: &Tables, parts: &Parts| run(tables, context(Hook::ToPod, UPLINK_IFINDEX), &parts.ethernet());
    let answer = syn_ack((HERE, 80), (HOST, 40000));
    let push = ack((HERE, 80), (HOST, 40000));
    assert_eq!(sends(&tables, &answer), drops(DropReason::PolicyDenied));
    assert_eq!(comes(&tables, &syn((HOST, 40000), (HERE, 80))), PASSES);
    assert_eq!(sends(&tables, &answer), PASSES);
    // It goes on when something has changed, whoever speaks next, as long as policy has it so.
    for _ in 0..2 {
        reopen_all(&mut tables);
        assert_eq!(sends(&tables, &push), PASSES);
        assert_eq!(comes(&tables, &ack((HOST, 40000), (HERE, 80))), PASSES);
    }
    assert_eq!(sends(&tables, &syn((HERE, 80), (HOST, 40000))), drops(DropReason::PolicyDenied));
    tables.policy.clear();
    reopen_all(&mut tables);
    assert_eq!(sends(&tables, &push), drops(DropReason::PolicyDenied));
}

#[test]
fn a_device_that_is_not_there_settles_nothing() {
    let mut tables = outwards(AuthType::Disabled);
    tables.settings.insert(Setting::WireguardIfindex, 0);
    allow(&mut tables, HERE_ID, Direction::Egress, identity::REMOTE_NODE, AuthType::Disabled);
    assert_eq!(sends(&tables, &udp((HERE, 1), (OTHER_NODE, 2))), PASSES);
    let (_, connection) = connections(&tables)[0];
    assert_eq!(connection.valid_until, 0);
}
