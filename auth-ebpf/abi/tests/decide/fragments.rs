//! Fragments follow their first one.

use auth_ebpf_abi::packet::icmp as types;
use auth_ebpf_abi::{
    AuthType, Direction, DropReason, FRAGMENT_TIMEOUT, Hook, Mode, PolicyEntry, PolicyKey, Setting, Verdict,
};

use super::frames::{Parts, fragments, icmp, packet, syn, udp};
use super::scene::*;
use super::tables::Tables;

type Fate = (Verdict, Option<DropReason>);
const LOST: Fate = drops(DropReason::Fragment);

fn sends(tables: &Tables, parts: &Parts) -> Fate {
    run(tables, context(Hook::FromPod, HERE_IFINDEX), &parts.ethernet())
}

#[test]
fn later_fragments_share_the_fate_of_the_first() {
    for (source, destination) in [(HERE, THERE), (HERE_V6, THERE_V6)] {
        let echo = if source.is_v4() { types::ECHO } else { types::V6_ECHO };
        for parts in [
            udp((source, 1), (destination, 2)),
            syn((source, 1), (destination, 2)),
            icmp(source, destination, echo, 5),
            packet(source, destination, 132, vec![0; 12]),
            packet(source, destination, 47, vec![0; 12]),
        ] {
            let (first, later) = fragments(parts);
            let tables = cluster();
            assert_eq!(sends(&tables, &later), LOST, "before the first");
            assert_eq!(sends(&tables, &first), PASSES, "{first:?}");
            assert_eq!(sends(&tables, &later), PASSES, "{later:?}");
            let tables = locked();
            assert_eq!(sends(&tables, &first), drops(DropReason::PolicyDenied));
            assert_eq!(sends(&tables, &later), LOST);
        }
    }
}

#[test]
fn a_fragment_is_judged_by_the_ports_of_its_first() {
    let mut tables = locked();
    let key = PolicyKey {
        local: HERE_ID,
        remote: THERE_ID,
        direction: Direction::Egress as u8,
        protocol: 17,
        port: 2_u16.to_be_bytes(),
    };
    tables.policy.insert(
        (key, PolicyKey::FULL_BITS),
        PolicyEntry { precedence: 1, port_prefix: 24, ..PolicyEntry::default() },
    );
    let (first, later) = fragments(udp((HERE, 1), (THERE, 2)));
    assert_eq!(sends(&tables, &first), PASSES);
    assert_eq!(sends(&tables, &later), PASSES);
    let (first, later) = fragments(udp((HERE, 1), (THERE, 3)));
    assert_eq!(sends(&tables, &first), drops(DropReason::PolicyDenied));
    // It follows the first one that has passed, and the receiver gets no other.
    assert_eq!(sends(&tables, &later), PASSES);
}

#[test]
fn a_fragment_follows_one_datagram_at_one_hook_for_a_while() {
    let (first, later) = fragments(udp((HERE, 1), (THERE, 2)));
    let tables = cluster();
    assert_eq!(sends(&tables, &first), PASSES);
    for other in [
        Parts { source: THERE, destination: HERE, ..later.clone() },
        Parts { destination: NEIGHBOUR, ..later.clone() },
        Parts { protocol: 6, ..later.clone() },
    ] {
        let hook = if other.source == HERE { Hook::FromPod } else { Hook::ToPod };
        let ingress = if other.source == HERE { HERE_IFINDEX } else { WIREGUARD_IFINDEX };
        assert_eq!(run(&tables, context(hook, ingress), &other.ethernet()), LOST, "{other:?}");
    }
    tables.now.set(NOW + FRAGMENT_TIMEOUT - 1);
    assert_eq!(sends(&tables, &later), PASSES);
    tables.now.set(NOW + FRAGMENT_TIMEOUT);
    assert_eq!(sends(&tables, &later), LOST);
}

#[test]
fn nothing_writes_over_what_was_judged() {
    let (first, later) = fragments(udp((HERE, 1), (THERE, 2)));
    let tables = cluster();
    assert_eq!(sends(&tables, &first), PASSES);
    for offset in 1..4 {
        assert_eq!(sends(&tables, &Parts { fragment: offset, ..later.clone() }), LOST);
        assert_eq!(sends(&tables, &Parts { fragment: 0x2000 | offset, ..later.clone() }), LOST);
    }
    assert_eq!(sends(&tables, &Parts { fragment: 5, ..later }), PASSES);
}

#[test]
fn a_first_fragment_that_hides_its_ports_drops() {
    let tables = cluster();
    for length in [8, 16] {
        let mut tiny = Parts { fragment: 0x2000, ..syn((HERE, 1), (THERE, 2)) };
        tiny.payload.truncate(length);
        assert_eq!(sends(&tables, &tiny), LOST);
    }
    // None can follow it.
    let mut odd = Parts { fragment: 0x2000, ..udp((HERE, 1), (THERE, 2)) };
    odd.payload.resize(12, 0);
    assert_eq!(sends(&tables, &odd), LOST);
    let v6 = Parts {
        extensions: vec![(44, vec![0, 0, 1, 0, 0, 0, 9])],
        payload: vec![0; 8],
        ..syn((HERE_V6, 1), (THERE_V6, 2))
    };
    assert_eq!(sends(&tables, &v6), LOST);
}

#[test]
fn a_datagram_that_is_whole_is_no_fragment() {
    let tables = cluster();
    let unfragmentable = Parts { fragment: 0x4000, ..udp((HERE, 1), (WORLD, 2)) };
    assert_eq!(sends(&tables, &unfragmentable), PASSES);
    let atomic = Parts { extensions: vec![(44, vec![0; 7])], ..udp((HERE_V6, 1), (THERE_V6, 2)) };
    assert_eq!(sends(&tables, &atomic), PASSES);
    assert!(tables.fragments.borrow().is_empty());
}

#[test]
fn fragments_of_a_settled_connection_follow_as_well() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Disabled);
    assert_eq!(sends(&tables, &udp((HERE, 1), (THERE, 2))), PASSES);
    let (first, later) = fragments(udp((THERE, 2), (HERE, 1)));
    let receives = |parts: &Parts| run(&tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &parts.ethernet());
    assert_eq!(receives(&first), PASSES);
    assert_eq!(receives(&later), PASSES);
}

#[test]
fn fragments_wait_behind_their_first_and_are_judged_by_themselves() {
    for (source, destination) in [(HERE, THERE), (HERE_V6, THERE_V6)] {
        let mut tables = locked();
        allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Spire);
        let (first, later) = fragments(udp((source, 1), (destination, 2)));
        assert_eq!(sends(&tables, &first), drops(DropReason::AuthRequired), "nothing can wait here");
        assert_eq!(sends(&tables, &later), LOST);
        hold(&mut tables);
        assert_eq!(sends(&tables, &later), LOST, "before the first");
        assert_eq!(sends(&tables, &first), HELD);
        assert_eq!(sends(&tables, &later), HELD);
        authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 10);
        assert_eq!(sends(&tables, &later), PASSES, "whichever comes back first");
        assert_eq!(sends(&tables, &first), PASSES);
    }
}

#[test]
fn lost_fragments_are_observed_like_the_rest() {
    let mut tables = cluster();
    tables.settings.insert(Setting::PolicyMode, Mode::Observe as u64);
    let (_, later) = fragments(udp((HERE, 1), (THERE, 2)));
    assert_eq!(sends(&tables, &later), audits(DropReason::Fragment));
}
