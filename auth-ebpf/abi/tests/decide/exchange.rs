//! Policy, connections, authentication, encryption.

use auth_ebpf_abi::packet::icmp as types;
use auth_ebpf_abi::{
    AuthType, ConnectionEntry, Direction, DropReason, EventKind, Hook, NodeEntry, PolicyEntry, PolicyKey,
    Setting, Verdict, identity,
};

use super::frames::{Parts, ack, icmp, syn, syn_ack, udp};
use super::scene::*;
use super::tables::{Policy, Tables};

fn sends(tables: &Tables, parts: &Parts) -> (Verdict, Option<DropReason>) {
    run(tables, context(Hook::FromPod, HERE_IFINDEX), &parts.ethernet())
}

fn receives(tables: &Tables, parts: &Parts) -> (Verdict, Option<DropReason>) {
    run(tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &parts.ethernet())
}

/// Deny for one port, as a policy compiler writes it.
fn rule(tables: &mut Tables, direction: Direction, remote: u32, protocol: u8, port: u16, entry: PolicyEntry) {
    let key =
        PolicyKey { local: HERE_ID, remote, direction: direction as u8, protocol, port: port.to_be_bytes() };
    tables
        .policy
        .insert((key, PolicyKey::FULL_BITS), PolicyEntry { port_prefix: 24, precedence: 1, ..entry });
}

#[test]
fn nothing_passes_without_a_rule() {
    let tables = locked();
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), drops(DropReason::PolicyDenied));
    assert_eq!(receives(&tables, &syn((THERE, 1), (HERE, 80))), drops(DropReason::PolicyDenied));
    assert!(connections(&tables).is_empty());
}

#[test]
fn rules_match_protocol_and_port() {
    let mut tables = locked();
    rule(&mut tables, Direction::Ingress, THERE_ID, 6, 80, PolicyEntry::default());
    assert_eq!(receives(&tables, &syn((THERE, 1), (HERE, 80))), PASSES);
    assert_eq!(receives(&tables, &syn((THERE, 1), (HERE, 81))), drops(DropReason::PolicyDenied));
    assert_eq!(receives(&tables, &udp((THERE, 1), (HERE, 80))), drops(DropReason::PolicyDenied));
    assert_eq!(receives(&tables, &syn((OTHER_NODE, 1), (HERE, 80))), drops(DropReason::PolicyDenied));
}

/// Rules of HERE for THERE over TCP, for so many bits of port 80.
fn rules<const N: usize>(rules: [(u32, PolicyEntry); N]) -> Policy {
    rules
        .map(|(bits, entry)| {
            let prefix_len = PolicyKey::prefix_len(Some(bits));
            let port = 80u16.to_be_bytes();
            let key = PolicyKey { local: HERE_ID, remote: THERE_ID, direction: 1, protocol: 6, port };
            (
                (key.masked(prefix_len), prefix_len),
                PolicyEntry { port_prefix: 8 + bits as u8, precedence: 1, ..entry },
            )
        })
        .into()
}

#[test]
fn a_packet_that_a_change_overtakes_looks_again() {
    let (allow, deny) = (PolicyEntry::default(), PolicyEntry { deny: 1, ..PolicyEntry::default() });
    let before = rules([(12, allow), (0, deny)]);
    let after = rules([(16, allow), (0, deny)]);
    let packet = syn((HERE, 1), (THERE, 80));
    for policy in [&before, &after] {
        let tables = Tables { policy: policy.clone(), ..locked() };
        assert_eq!(sends(&tables, &packet), PASSES);
    }
    // Between its lookups of the port and of the range, the one has come and the other gone.
    let tables = Tables { policy: before.clone(), meanwhile: vec![after.clone()], ..locked() };
    assert_eq!(sends(&tables, &packet), PASSES);
    let [(_, entry)] = connections(&tables)[..] else { panic!("one connection") };
    assert_eq!(entry.generation, 0, "the generation from before all of it: it is decided anew");
    // The same with a rule for any identity, which is looked up last.
    let any = |policy: &Policy| -> Policy {
        policy.iter().map(|((key, bits), entry)| ((PolicyKey { remote: 0, ..*key }, *bits), *entry)).collect()
    };
    let mut after = any(&rules([(0, allow)]));
    after.extend(rules([(16, deny)]));
    let tables = Tables { policy: any(&rules([(16, deny), (0, allow)])), meanwhile: vec![after], ..locked() };
    assert_eq!(sends(&tables, &packet), drops(DropReason::PolicyDeny));
}

#[test]
fn what_changes_without_end_passes_nothing() {
    let allow = PolicyEntry::default();
    let tables = Tables {
        policy: rules([(16, allow)]),
        meanwhile: std::iter::repeat_n(rules([(16, allow)]), 100).collect(),
        ..locked()
    };
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), drops(DropReason::PolicyChanging));
    assert!(connections(&tables).is_empty());
}

#[test]
fn rules_for_icmp_match_the_type() {
    let mut tables = locked();
    rule(
        &mut tables,
        Direction::Egress,
        identity::UNKNOWN,
        1,
        u16::from(types::ECHO) << 8,
        PolicyEntry::default(),
    );
    assert_eq!(sends(&tables, &icmp(HERE, THERE, types::ECHO, 5)), PASSES);
    assert_eq!(sends(&tables, &icmp(HERE, THERE, 3, 5)), drops(DropReason::PolicyDenied));
}

#[test]
fn a_deny_wins_and_names_itself() {
    let mut tables = cluster();
    let deny = PolicyEntry { deny: 1, cookie: 77, ..PolicyEntry::default() };
    rule(&mut tables, Direction::Egress, THERE_ID, 6, 80, deny);
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), drops(DropReason::PolicyDeny));
    assert_eq!(tables.events.borrow().last().unwrap().cookie, 77);
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 81))), PASSES);
}

#[test]
fn an_audited_rule_drops_nothing() {
    let mut tables = locked();
    let deny = PolicyEntry { deny: 1, audit: 1, cookie: 77, ..PolicyEntry::default() };
    rule(&mut tables, Direction::Egress, THERE_ID, 6, 80, deny);
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), (Verdict::Audit, Some(DropReason::PolicyDeny)));
    assert_eq!(tables.events.borrow().last().unwrap().cookie, 77);
    assert_eq!(receives(&tables, &syn_ack((THERE, 80), (HERE, 1))), PASSES);
}

#[test]
fn an_audited_rule_has_pairs_authenticate() {
    let mut tables = locked();
    let required = PolicyEntry { auth_type: 1, auth_explicit: 1, audit: 1, ..PolicyEntry::default() };
    rule(&mut tables, Direction::Egress, THERE_ID, 6, 80, required);
    assert_eq!(
        sends(&tables, &syn((HERE, 1), (THERE, 80))),
        (Verdict::Audit, Some(DropReason::AuthRequired))
    );
    assert!(tables.events.borrow().iter().any(|event| event.kind == EventKind::AuthWanted as u8));
    assert_eq!(receives(&tables, &syn_ack((THERE, 80), (HERE, 1))), PASSES, "a reply rests on nothing");
}

#[test]
fn replies_need_no_rule() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Disabled);
    assert_eq!(receives(&tables, &syn_ack((THERE, 80), (HERE, 1))), drops(DropReason::PolicyDenied));
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), PASSES);
    assert_eq!(receives(&tables, &syn_ack((THERE, 80), (HERE, 1))), PASSES);
    assert_eq!(receives(&tables, &ack((THERE, 80), (HERE, 1))), PASSES);
    // Another port, and a connection of its own, are no replies.
    assert_eq!(receives(&tables, &ack((THERE, 81), (HERE, 1))), drops(DropReason::PolicyDenied));
    assert_eq!(receives(&tables, &syn((THERE, 80), (HERE, 1))), drops(DropReason::PolicyDenied));
}

#[test]
fn only_a_first_segment_opens_a_tcp_connection() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Disabled);
    assert_eq!(sends(&tables, &ack((HERE, 1), (THERE, 80))), PASSES);
    assert!(connections(&tables).is_empty());
    assert_eq!(receives(&tables, &ack((THERE, 80), (HERE, 1))), drops(DropReason::PolicyDenied));
}

#[test]
fn only_an_echo_request_opens_an_echo() {
    let tables = cluster();
    assert_eq!(sends(&tables, &icmp(HERE, THERE, types::ECHO_REPLY, 5)), PASSES);
    assert_eq!(sends(&tables, &icmp(HERE, THERE, 3, 5)), PASSES);
    assert!(connections(&tables).is_empty());
    assert_eq!(sends(&tables, &icmp(HERE_V6, THERE_V6, types::V6_ECHO, 5)), PASSES);
    assert_eq!(connections(&tables).len(), 1);
}

#[test]
fn an_address_that_changed_hands_takes_no_connection_with_it() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Disabled);
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), PASSES);
    tables.addresses.get_mut(&THERE).unwrap().identity = THERE_ID + 1;
    reopen_all(&mut tables);
    assert_eq!(receives(&tables, &ack((THERE, 80), (HERE, 1))), drops(DropReason::PolicyDenied));
}

#[test]
fn required_authentication_is_asked_for() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Ingress, THERE_ID, AuthType::Spire);
    assert_eq!(receives(&tables, &syn((THERE, 1), (HERE, 80))), drops(DropReason::AuthRequired));
    let events = tables.events.borrow();
    let kinds: Vec<u8> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::AuthWanted as u8, EventKind::Verdict as u8]);
    let wanted = events[0];
    assert_eq!((wanted.local, wanted.remote, wanted.node, wanted.auth_type), (HERE_ID, THERE_ID, NODE, 1));
}

#[test]
fn authentication_holds_until_it_ends_or_its_node_is_revoked() {
    let packet = syn((THERE, 1), (HERE, 80));
    for (expires, epoch, expected) in [
        (NOW + 1, 7, PASSES),
        (NOW, 7, drops(DropReason::AuthRequired)),
        (NOW + 1, 6, drops(DropReason::AuthRequired)),
    ] {
        let mut tables = locked();
        allow(&mut tables, HERE_ID, Direction::Ingress, THERE_ID, AuthType::Spire);
        authenticate(&mut tables, THERE_ID, NODE, epoch, expires);
        assert_eq!(receives(&tables, &packet), expected);
    }
    // On the same node there is no session to revoke it by.
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, NEIGHBOUR_ID, AuthType::Spire);
    assert_eq!(sends(&tables, &syn((HERE, 1), (NEIGHBOUR, 80))), drops(DropReason::AuthRequired));
    authenticate(&mut tables, NEIGHBOUR_ID, 0, 0, NOW + 1);
    assert_eq!(sends(&tables, &syn((HERE, 1), (NEIGHBOUR, 80))), PASSES);
}

#[test]
fn a_reply_needs_the_authentication_of_its_connection() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Ingress, THERE_ID, AuthType::Spire);
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    assert_eq!(receives(&tables, &syn((THERE, 1), (HERE, 80))), PASSES);
    assert_eq!(sends(&tables, &syn_ack((HERE, 80), (THERE, 1))), PASSES);
    tables.auth.clear();
    reopen(&mut tables, HERE_ID, THERE_ID);
    assert_eq!(sends(&tables, &ack((HERE, 80), (THERE, 1))), drops(DropReason::AuthRequired));
}

#[test]
fn authentication_of_the_reserved_is_impossible() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, identity::UNKNOWN, AuthType::Spire);
    for destination in [WORLD, HOST, OTHER_NODE] {
        assert_eq!(sends(&tables, &syn((HERE, 1), (destination, 80))), drops(DropReason::AuthImpossible));
    }
    assert!(tables.events.borrow().iter().all(|event| event.kind == EventKind::Verdict as u8));
}

#[test]
fn the_failing_authentication_never_passes_and_is_not_asked_for() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, identity::UNKNOWN, AuthType::AlwaysFail);
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), drops(DropReason::AuthRequired));
    assert_eq!(tables.events.borrow().len(), 1);
}

#[test]
fn pods_of_other_nodes_need_a_live_session() {
    for (expires, wireguard, expected) in [
        (NOW + 1, WIREGUARD_IFINDEX, PASSES),
        (NOW, WIREGUARD_IFINDEX, drops(DropReason::NoNodeSession)),
        (0, WIREGUARD_IFINDEX, drops(DropReason::NoNodeSession)),
        (NOW + 1, 0, drops(DropReason::NoNodeSession)),
    ] {
        let mut tables = cluster();
        tables.nodes.insert(NODE, NodeEntry { expires, epoch: 7, acknowledged: 1 });
        tables.settings.insert(Setting::WireguardIfindex, u64::from(wireguard));
        assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), expected);
    }
    let mut tables = cluster();
    tables.nodes.clear();
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), drops(DropReason::NoNodeSession));
    assert_eq!(receives(&tables, &syn((THERE, 1), (HERE, 80))), drops(DropReason::NoNodeSession));
}

#[test]
fn a_rule_for_encryption_keeps_traffic_off_the_world() {
    let mut tables = locked();
    let encrypted = PolicyEntry { encryption: 1, ..PolicyEntry::default() };
    rule(&mut tables, Direction::Egress, identity::UNKNOWN, 6, 80, encrypted);
    assert_eq!(sends(&tables, &syn((HERE, 1), (WORLD, 80))), drops(DropReason::Unencrypted));
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), PASSES);
    assert_eq!(sends(&tables, &syn((HERE, 1), (NEIGHBOUR, 80))), PASSES);
}

#[test]
fn a_rule_for_encryption_exempts_what_stays_on_the_node_or_not() {
    let encrypted = PolicyEntry { encryption: 1, ..PolicyEntry::default() };
    for (setting, here) in [(0, PASSES), (1, drops(DropReason::Unencrypted))] {
        let mut tables = locked();
        tables.settings.insert(Setting::SameNodeEncryption, setting);
        rule(&mut tables, Direction::Egress, identity::UNKNOWN, 6, 80, encrypted);
        assert_eq!(sends(&tables, &syn((HERE, 1), (NEIGHBOUR, 80))), here);
        assert_eq!(sends(&tables, &syn((HERE, 3), (THERE, 80))), PASSES);
        let mut plain = locked();
        plain.settings.insert(Setting::SameNodeEncryption, setting);
        rule(&mut plain, Direction::Egress, identity::UNKNOWN, 6, 80, PolicyEntry::default());
        assert_eq!(sends(&plain, &syn((HERE, 1), (NEIGHBOUR, 80))), PASSES, "nobody asked for it");
    }
}

#[test]
fn a_full_connection_map_drops_what_it_cannot_remember() {
    let tables = Tables { full: true, ..cluster() };
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), drops(DropReason::MapError));
    assert_eq!(sends(&tables, &ack((HERE, 1), (THERE, 80))), PASSES);
}

#[test]
fn a_connection_is_announced_once() {
    let tables = cluster();
    for _ in 0..3 {
        assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80))), PASSES);
    }
    let events = tables.events.borrow();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].verdict, Verdict::Forwarded as u8);
    assert_eq!((events[0].encrypted, events[0].time), (1, NOW));
    let (key, connection) = connections(&tables)[0];
    assert_eq!((key.local, key.remote, connection.direction), (HERE, THERE, Direction::Egress as u8));
    assert_eq!(connection.flags, 0);
    assert_eq!(connection, ConnectionEntry { last_seen: NOW, ..connection });
}

#[test]
fn the_clock_is_read_once() {
    let tables = cluster();
    sends(&tables, &syn((HERE, 1), (THERE, 80)));
    assert_eq!(tables.clock_reads.get(), 1);
}
