//! The machine's rules one by one. `model` holds the properties.

mod model;
mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use auth_ebpf_abi::{AuthEntry, AuthKey, AuthType};
use policy::AuthenticationPairs;
use spiffe::SpiffeId;

use super::*;
use crate::clock::BootTime;

const START: BootTime = BootTime(1_000_000_000_000);
pub(super) const FAILURE: Failure = Failure { reason: "test", retryable: true };

pub(super) const fn key(local: u32, remote: u32, node: u16) -> AuthKey {
    AuthKey { local, remote, node, auth_type: AuthType::Spire as u8, pad: 0 }
}

/// The same numbers in every run.
pub(super) fn jitter() -> Jitter {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    Box::new(move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if below == 0 { 0 } else { (state >> 16) % below }
    })
}

pub(super) fn spiffe(identity: u32) -> SpiffeId {
    format!("spiffe://example.test/identity/{identity}").parse().unwrap()
}

pub(super) fn success(key: AuthKey, expires: BootTime, epoch: u32) -> Success {
    let proof = Proof {
        expires,
        local_spiffe: spiffe(key.local),
        remote_spiffe: spiffe(key.remote),
        group: "X25519MLKEM768",
        epoch,
        method: Method::Handshake,
    };
    Success { proof, latency: Duration::from_millis(3) }
}

pub(super) fn rests_on(key: &AuthKey, identity: u32) -> bool {
    key.local == identity || (key.node == 0 && key.remote == identity)
}

fn after(duration: Duration) -> BootTime {
    START.saturating_add(duration)
}

fn seconds(seconds: u64) -> BootTime {
    after(Duration::from_secs(seconds))
}

fn numbers(numbers: &[u32]) -> BTreeSet<u32> {
    numbers.iter().copied().collect()
}

/// Identities 256 and 257 here, 300 and 301 on node 1, all well for 60 s.
fn machine() -> Machine {
    let mut machine = Machine::new(Config::default(), jitter());
    let placed = [(0, numbers(&[256, 257])), (1, numbers(&[300, 301]))].into();
    machine.handle(Event::Desired(Arc::new(Desired { pairs: None, placed })), START);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(60) }, START);
    machine.handle(Event::SvidChanged { identity: 257, expires: seconds(60) }, START);
    machine.handle(up(1, &[300, 301]), START);
    machine
}

fn up(epoch: u32, identities: &[u32]) -> Event {
    Event::PeerUp { node: 1, epoch, identities: Arc::new(numbers(identities)) }
}

/// What is to be done; for whom nothing is held any longer is a matter of `a_pair_that_lost_its_svid_is_given_up`.
fn actions(machine: &mut Machine) -> Vec<Action> {
    machine.actions().filter(|action| !matches!(action, Action::GiveUp(_))).collect()
}

/// A machine in which 256 and 300 have authenticated at the start.
fn authenticated() -> Machine {
    let mut machine = machine();
    machine.handle(Event::AuthWanted(key(256, 300, 1)), START);
    machine.handle(Event::Finished(key(256, 300, 1), Ok(success(key(256, 300, 1), seconds(50), 1))), START);
    let done = actions(&mut machine);
    assert_eq!(done.len(), 2, "{done:?}");
    machine
}

#[test]
fn a_wanted_pair_is_dialled_once_and_written() {
    let mut machine = machine();
    let pair = key(256, 300, 1);
    machine.handle(Event::AuthWanted(pair), START);
    machine.handle(Event::AuthWanted(pair), START);
    assert_eq!(actions(&mut machine), [Action::StartHandshake(pair)]);
    machine.handle(Event::Finished(pair, Ok(success(pair, seconds(50), 1))), START);
    let entry = AuthEntry { expires: seconds(50).0, epoch: 1, flags: 0 };
    assert_eq!(actions(&mut machine), [Action::WriteEntry(pair, entry)]);
    let records: Vec<Record> = machine.records().collect();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].why, Why::Requested);
    assert_eq!(machine.counters().deduplicated, 1);
}

#[test]
fn reserved_unknown_and_always_failing_pairs_are_never_dialled() {
    let mut machine = machine();
    let always_fail = AuthKey { auth_type: AuthType::AlwaysFail as u8, ..key(256, 300, 1) };
    for pair in
        [key(256, 1, 1), key(2, 300, 1), key(256, 999, 1), key(256, 300, 7), key(300, 256, 1), always_fail]
    {
        machine.handle(Event::AuthWanted(pair), START);
    }
    assert_eq!(actions(&mut machine), []);
    assert_eq!(machine.counters().not_desired, 6);
}

#[test]
fn a_pair_on_this_node_gets_both_directions() {
    let mut machine = machine();
    machine.handle(Event::AuthWanted(key(257, 256, 0)), START);
    machine.handle(Event::AuthWanted(key(256, 257, 0)), START);
    assert_eq!(actions(&mut machine), [Action::VerifyLocal(key(256, 257, 0))]);
    let success = success(key(256, 257, 0), seconds(60), 0);
    machine.handle(Event::Finished(key(256, 257, 0), Ok(success)), START);
    let entry = AuthEntry { expires: seconds(60).0, epoch: 0, flags: 0 };
    let written = [Action::WriteEntry(key(256, 257, 0), entry), Action::WriteEntry(key(257, 256, 0), entry)];
    assert_eq!(actions(&mut machine), written);
    let records: Vec<Record> = machine.records().collect();
    assert_eq!(records[1].local_spiffe, Some(spiffe(257)));
    machine.handle(Event::SvidWithdrawn(257), START);
    let removed = [Action::RemoveEntry(key(256, 257, 0)), Action::RemoveEntry(key(257, 256, 0))];
    assert_eq!(actions(&mut machine), removed);
}

#[test]
fn failures_back_off_between_bounds_and_a_new_svid_resets_that() {
    let mut machine = machine();
    let pair = key(256, 300, 1);
    machine.handle(Event::AuthWanted(pair), START);
    let mut now = START;
    for round in 0..10u32 {
        assert_eq!(actions(&mut machine), [Action::StartHandshake(pair)], "round {round}");
        machine.handle(Event::Finished(pair, Err(FAILURE)), now);
        machine.handle(Event::AuthWanted(pair), now);
        assert_eq!(actions(&mut machine), []);
        let at = machine.next_deadline().unwrap();
        let longest = Duration::from_millis(100).saturating_mul(1 << round).min(Duration::from_secs(5));
        assert!(at.since(now) >= longest / 2 && at.since(now) <= longest, "{:?}", at.since(now));
        now = at;
        machine.handle(Event::Tick, now);
    }
    machine.handle(Event::Finished(pair, Err(FAILURE)), now);
    assert_eq!(actions(&mut machine).len(), 1);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(90) }, now);
    assert_eq!(actions(&mut machine), [Action::StartHandshake(pair)]);
}

#[test]
fn a_request_is_forgotten_when_nobody_repeats_it() {
    let mut machine = machine();
    machine.handle(Event::PeerDown(1), START);
    machine.handle(Event::AuthWanted(key(256, 300, 1)), START);
    assert_eq!(machine.next_deadline(), Some(seconds(30)));
    machine.handle(Event::Tick, seconds(30));
    machine.handle(up(1, &[300]), seconds(31));
    assert_eq!(actions(&mut machine), []);
    assert_eq!(machine.next_deadline(), None);
}

#[test]
fn an_entry_ends_with_its_svid() {
    let mut machine = authenticated();
    machine.handle(Event::Tick, seconds(50));
    assert!(actions(&mut machine).contains(&Action::RemoveEntry(key(256, 300, 1))));
    assert_eq!(machine.counters().expired, 1);
}

#[test]
fn renewal_comes_at_half_life_while_the_entry_stands() {
    let mut machine = authenticated();
    let at = machine.next_deadline().unwrap();
    assert!(at >= seconds(25) && at <= seconds(29), "{:?}", at.since(START));
    machine.handle(Event::Tick, at);
    assert_eq!(actions(&mut machine), [Action::StartHandshake(key(256, 300, 1))]);
    let again = success(key(256, 300, 1), seconds(60), 1);
    machine.handle(Event::Finished(key(256, 300, 1), Ok(again)), at);
    assert_eq!(machine.records().next().unwrap().why, Why::Renewed);
}

#[test]
fn a_renewal_that_can_gain_nothing_waits_for_the_next_svid() {
    let mut machine = machine();
    let pair = key(256, 300, 1);
    machine.handle(Event::AuthWanted(pair), START);
    machine.handle(Event::Finished(pair, Ok(success(pair, seconds(60), 1))), START);
    assert_eq!(actions(&mut machine).len(), 2);
    machine.handle(Event::Tick, seconds(40));
    assert_eq!(actions(&mut machine), []);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(120) }, seconds(41));
    assert_eq!(actions(&mut machine), [Action::StartHandshake(pair)]);
}

#[test]
fn a_withdrawal_removes_at_once_and_tells_the_node() {
    let mut machine = authenticated();
    machine.handle(Event::SvidWithdrawn(256), START);
    let expected = [Action::RemoveEntry(key(256, 300, 1)), Action::TellPeer { node: 1, identity: 256 }];
    assert_eq!(actions(&mut machine), expected);
}

#[test]
fn a_success_overtaken_by_a_withdrawal_counts_for_nothing() {
    let mut machine = machine();
    let pair = key(256, 300, 1);
    machine.handle(Event::AuthWanted(pair), START);
    assert_eq!(actions(&mut machine).len(), 1);
    machine.handle(Event::SvidWithdrawn(256), START);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(60) }, START);
    assert_eq!(actions(&mut machine), [Action::TellPeer { node: 1, identity: 256 }]);
    machine.handle(Event::Finished(pair, Ok(success(pair, seconds(50), 1))), START);
    assert_eq!(actions(&mut machine), [Action::StartHandshake(pair)], "afresh, not written");
    assert_eq!(machine.counters().overtaken, 1);
}

#[test]
fn a_gap_stops_new_work_and_keeps_what_stands() {
    let mut machine = authenticated();
    machine.handle(Event::SvidMissing(256), START);
    machine.handle(Event::AuthWanted(key(256, 301, 1)), START);
    assert_eq!(actions(&mut machine), []);
    assert_eq!(machine.records().count(), 1);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(60) }, START);
    assert_eq!(actions(&mut machine), [Action::StartHandshake(key(256, 301, 1))]);
}

#[test]
fn what_a_node_revokes_goes_and_an_older_handshake_can_not_bring_it_back() {
    let mut machine = authenticated();
    let began = START;
    machine.handle(Event::PeerRevoked { node: 1, identity: 300 }, seconds(1));
    assert_eq!(actions(&mut machine), [Action::RemoveEntry(key(256, 300, 1))]);
    machine.handle(up(1, &[300, 301]), seconds(1));
    assert_eq!(actions(&mut machine), [Action::StartHandshake(key(256, 300, 1))]);
    let success = success(key(256, 300, 1), seconds(50), 1);
    let accepted = |began| Accepted { key: key(256, 300, 1), began, success: success.clone() };
    assert_eq!(machine.accept(accepted(began), seconds(2)), Err(Refused::Overtaken));
    assert_eq!(machine.accept(accepted(seconds(2)), seconds(2)), Ok(()));
    assert_eq!(machine.records().next().unwrap().why, Why::Accepted);
}

#[test]
fn a_raised_epoch_revokes_all_that_the_node_vouched_for() {
    let mut machine = authenticated();
    machine.handle(up(2, &[300, 301]), START);
    let expected = [Action::RemoveEntry(key(256, 300, 1)), Action::StartHandshake(key(256, 300, 1))];
    assert_eq!(actions(&mut machine), expected);
}

#[test]
fn a_lost_session_keeps_entries_and_an_announcement_without_the_identity_ends_them() {
    let mut machine = authenticated();
    machine.handle(Event::PeerDown(1), START);
    assert_eq!(actions(&mut machine), []);
    machine.handle(up(1, &[301]), START);
    assert_eq!(actions(&mut machine), [Action::RemoveEntry(key(256, 300, 1))]);
}

#[test]
fn policy_that_no_longer_asks_ends_the_entry() {
    let mut machine = authenticated();
    let placed = [(0, numbers(&[256, 257])), (1, numbers(&[300, 301]))].into();
    let pairs = Some([(300, 256)].into_iter().collect());
    machine.handle(Event::Desired(Arc::new(Desired { pairs, placed })), START);
    assert_eq!(actions(&mut machine), [], "the order within a pair does not matter");
    let placed = [(0, numbers(&[256, 257])), (1, numbers(&[300, 301]))].into();
    machine.handle(
        Event::Desired(Arc::new(Desired { pairs: Some(AuthenticationPairs::default()), placed })),
        START,
    );
    assert_eq!(actions(&mut machine), [Action::RemoveEntry(key(256, 300, 1))]);
}

#[test]
fn a_handshake_of_another_node_is_refused_for_what_it_lacks() {
    let mut machine = machine();
    let accepted = |local, remote, epoch| {
        let pair = key(local, remote, 1);
        Accepted { key: pair, began: seconds(1), success: success(pair, seconds(50), epoch) }
    };
    assert_eq!(machine.accept(accepted(256, 999, 1), seconds(1)), Err(Refused::NotDesired));
    assert_eq!(machine.accept(accepted(256, 1, 1), seconds(1)), Err(Refused::NotDesired));
    assert_eq!(machine.accept(accepted(256, 300, 2), seconds(1)), Err(Refused::NotAnnounced));
    machine.handle(Event::SvidWithdrawn(257), START);
    assert_eq!(machine.accept(accepted(257, 300, 1), seconds(1)), Err(Refused::NoSvid));
    assert_eq!(machine.counters().refused, 4);
    assert_eq!(machine.records().count(), 0);
}

#[test]
fn entries_found_in_the_map_stay_and_are_renewed() {
    let mut machine = Machine::new(Config::default(), jitter());
    let entry = |expires: BootTime| AuthEntry { expires: expires.0, epoch: 1, flags: 0 };
    machine.adopt(key(256, 300, 1), entry(seconds(40)), START);
    machine.adopt(key(256, 301, 1), entry(START), START);
    machine.adopt(key(256, 2, 1), entry(seconds(40)), START);
    let removed = [Action::RemoveEntry(key(256, 301, 1)), Action::RemoveEntry(key(256, 2, 1))];
    assert_eq!(actions(&mut machine), removed);
    let placed = [(0, numbers(&[256])), (1, numbers(&[300]))].into();
    machine.handle(Event::Desired(Arc::new(Desired { pairs: None, placed })), START);
    machine.handle(up(1, &[300]), START);
    assert_eq!(actions(&mut machine), []);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(60) }, START);
    machine.handle(Event::Tick, seconds(5));
    assert_eq!(actions(&mut machine), [Action::StartHandshake(key(256, 300, 1))]);
}

#[test]
fn only_so_many_run_at_a_time_and_the_longest_waiting_comes_next() {
    let mut machine = Machine::new(Config { max_running: 1, ..Config::default() }, jitter());
    let placed = [(0, numbers(&[256, 257])), (1, numbers(&[300, 301]))].into();
    machine.handle(Event::Desired(Arc::new(Desired { pairs: None, placed })), START);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(60) }, START);
    machine.handle(up(1, &[300, 301]), START);
    machine.handle(Event::AuthWanted(key(256, 301, 1)), START);
    machine.handle(Event::AuthWanted(key(256, 300, 1)), seconds(1));
    assert_eq!(actions(&mut machine), [Action::StartHandshake(key(256, 301, 1))]);
    assert_eq!(machine.load(), (1, 1));
    machine.handle(Event::Finished(key(256, 301, 1), Err(FAILURE)), seconds(1));
    assert_eq!(actions(&mut machine), [Action::StartHandshake(key(256, 300, 1))]);
}

#[test]
fn the_number_of_pairs_is_bounded() {
    let mut machine = Machine::new(Config { max_pairs: 1, ..Config::default() }, jitter());
    let placed = [(0, numbers(&[256])), (1, numbers(&[300, 301]))].into();
    machine.handle(Event::Desired(Arc::new(Desired { pairs: None, placed })), START);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(60) }, START);
    machine.handle(up(1, &[300, 301]), START);
    machine.handle(Event::AuthWanted(key(256, 301, 1)), START);
    machine.handle(Event::AuthWanted(key(256, 300, 1)), START);
    assert_eq!(machine.counters().no_room, 1);
    let success = success(key(256, 300, 1), seconds(50), 1);
    let accepted = Accepted { key: key(256, 300, 1), began: seconds(1), success };
    assert_eq!(machine.accept(accepted, seconds(1)), Err(Refused::Full));
}

#[test]
fn a_map_that_refuses_an_entry_gets_no_storm_of_handshakes() {
    let mut machine = authenticated();
    machine.handle(Event::WriteFailed(key(256, 300, 1)), START);
    assert_eq!(actions(&mut machine), [Action::RemoveEntry(key(256, 300, 1))]);
    assert_eq!(machine.records().count(), 0);
    assert_eq!(machine.next_deadline(), Some(seconds(5)));
}

#[test]
fn a_flush_empties_the_map_and_authenticates_anew() {
    let mut machine = authenticated();
    machine.handle(Event::Flush, seconds(40));
    let expected = [Action::RemoveEntry(key(256, 300, 1)), Action::StartHandshake(key(256, 300, 1))];
    assert_eq!(actions(&mut machine), expected);
}

/// A node that takes connections and never answers held every place for as long as a handshake may take.
#[test]
fn a_node_that_never_answers_leaves_room_for_the_others() {
    let mut machine = Machine::new(Config::default(), jitter());
    let remotes: BTreeSet<u32> = (300..400).collect();
    let placed = [(0, numbers(&[256])), (1, remotes.clone()), (2, numbers(&[300]))].into();
    machine.handle(Event::Desired(Arc::new(Desired { pairs: None, placed })), START);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(60) }, START);
    for (node, identities) in [(1, remotes.clone()), (2, numbers(&[300]))] {
        machine.handle(Event::PeerUp { node, epoch: 1, identities: Arc::new(identities) }, START);
    }
    for remote in remotes {
        machine.handle(Event::AuthWanted(key(256, remote, 1)), START);
    }
    assert_eq!(actions(&mut machine).len(), Config::default().max_per_node);
    machine.handle(Event::AuthWanted(key(256, 300, 2)), START);
    assert_eq!(actions(&mut machine), [Action::StartHandshake(key(256, 300, 2))]);
    machine.handle(Event::Finished(key(256, 300, 1), Err(FAILURE)), START);
    assert_eq!(actions(&mut machine).len(), 1, "a place of node 1 is free again");
}

#[test]
fn requests_leave_room_for_renewals() {
    let mut machine = Machine::new(Config { max_running: 8, ..Config::default() }, jitter());
    let nodes: Vec<u16> = (1..20).collect();
    let placed = nodes.iter().map(|node| (*node, numbers(&[300]))).chain([(0, numbers(&[256]))]).collect();
    machine.handle(Event::Desired(Arc::new(Desired { pairs: None, placed })), START);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(60) }, START);
    for node in &nodes {
        let identities = Arc::new(numbers(&[300]));
        machine.handle(Event::PeerUp { node: *node, epoch: 1, identities }, START);
    }
    machine.handle(Event::AuthWanted(key(256, 300, 1)), START);
    machine.handle(Event::Finished(key(256, 300, 1), Ok(success(key(256, 300, 1), seconds(50), 1))), START);
    assert_eq!(actions(&mut machine).len(), 2);
    for node in nodes.iter().skip(1) {
        machine.handle(Event::AuthWanted(key(256, 300, *node)), seconds(20));
    }
    assert_eq!(actions(&mut machine).len(), 7);
    machine.handle(Event::Tick, seconds(30));
    assert_eq!(actions(&mut machine), [Action::StartHandshake(key(256, 300, 1))], "the renewal");
}

#[test]
fn an_entry_that_the_map_has_lost_is_written_again() {
    let mut machine = authenticated();
    machine.handle(Event::AuthWanted(key(256, 300, 1)), START);
    assert_eq!(actions(&mut machine), [], "the packet was on its way before the entry stood");
    machine.handle(Event::AuthWanted(key(256, 300, 1)), seconds(2));
    let entry = AuthEntry { expires: seconds(50).0, epoch: 1, flags: 0 };
    assert_eq!(actions(&mut machine), [Action::WriteEntry(key(256, 300, 1), entry)]);
    machine.handle(Event::AuthWanted(key(256, 300, 1)), seconds(2));
    assert_eq!(actions(&mut machine), []);
    assert_eq!(machine.counters().rewritten, 1);
}

#[test]
fn what_policy_asks_for_is_authenticated_ahead_within_the_budget() {
    let config = Config { preauthenticate: 2, ..Config::default() };
    let mut machine = Machine::new(config, jitter());
    let placed: BTreeMap<u16, BTreeSet<u32>> =
        [(0, numbers(&[256, 310])), (1, numbers(&[300, 301])), (2, numbers(&[300]))].into();
    let pairs = AuthenticationPairs::from_iter([(256, 300), (256, 301), (310, 300)]);
    let desired = |pairs| Event::Desired(Arc::new(Desired { pairs: Some(pairs), placed: placed.clone() }));
    machine.handle(desired(pairs), START);
    machine.handle(Event::SvidChanged { identity: 256, expires: seconds(60) }, START);
    assert_eq!(actions(&mut machine), [], "no node is there yet");
    machine.handle(up(1, &[300, 301]), START);
    machine.handle(Event::PeerUp { node: 2, epoch: 1, identities: Arc::new(numbers(&[300])) }, START);
    let first = key(256, 300, 1);
    assert_eq!(
        actions(&mut machine),
        [Action::StartHandshake(first), Action::StartHandshake(key(256, 300, 2))]
    );
    machine.handle(Event::Finished(first, Ok(success(first, seconds(50), 1))), START);
    assert_eq!(machine.records().next().unwrap().why, Why::Ahead);
    assert_eq!(actions(&mut machine).len(), 1);
    machine.handle(desired(AuthenticationPairs::default()), seconds(1));
    machine.handle(Event::Finished(key(256, 300, 2), Err(FAILURE)), seconds(1));
    assert_eq!(actions(&mut machine), [Action::RemoveEntry(first)]);
    assert_eq!(machine.next_deadline(), None, "nothing is left of it");
}

#[test]
fn only_one_of_two_nodes_authenticates_ahead() {
    let pairs = Some(AuthenticationPairs::from_iter([(256, 300)]));
    let here: BTreeMap<u16, BTreeSet<u32>> = [(0, numbers(&[256])), (1, numbers(&[300]))].into();
    let there = [(0, numbers(&[300])), (1, numbers(&[256]))].into();
    assert_eq!(Desired { pairs: pairs.clone(), placed: here }.ahead(9).len(), 1);
    assert_eq!(Desired { pairs, placed: there }.ahead(9).len(), 0);
}

#[test]
fn a_pair_that_lost_its_svid_is_given_up() {
    let mut machine = authenticated();
    machine.handle(Event::SvidWithdrawn(256), START);
    machine.handle(Event::AuthWanted(key(256, 300, 1)), seconds(1));
    assert!(machine.actions().any(|action| action == Action::GiveUp(key(256, 300, 1))));
}

fn changes(machine: &mut Machine) -> Vec<Change> {
    machine.changes().collect()
}

#[test]
fn what_may_rest_on_a_lost_anchor_is_proven_anew_at_once() {
    let mut machine = authenticated();
    let pair = key(256, 300, 1);
    machine.handle(Event::AnchorLost(256), seconds(1));
    assert_eq!(actions(&mut machine), [Action::StartHandshake(pair)], "although it gains no time");
    changes(&mut machine);
    machine.handle(Event::Finished(pair, Ok(success(pair, seconds(50), 1))), seconds(2));
    assert!(matches!(changes(&mut machine).as_slice(), [Change::Renewed(_)]));
    machine.handle(Event::Tick, seconds(20));
    assert!(machine.holds(pair));
}

#[test]
fn what_can_not_be_proven_by_the_anchors_that_are_left_goes() {
    let mut machine = authenticated();
    let pair = key(256, 300, 1);
    changes(&mut machine);
    machine.handle(Event::AnchorLost(256), seconds(1));
    machine.handle(Event::Finished(pair, Err(FAILURE)), seconds(1));
    assert!(machine.holds(pair), "that may have been the network");
    let refused = Failure { reason: "certificate", retryable: false };
    machine.handle(Event::Tick, seconds(2));
    machine.handle(Event::Finished(pair, Err(refused)), seconds(2));
    assert!(!machine.holds(pair));
    assert!(changes(&mut machine).contains(&Change::Ended(pair, Cause::Untrusted)));
    // And with nobody there to prove it to.
    let mut machine = authenticated();
    machine.handle(Event::PeerDown(1), seconds(1));
    machine.handle(Event::AnchorLost(256), seconds(1));
    machine.handle(Event::Tick, seconds(5));
    assert!(machine.holds(pair));
    machine.handle(Event::Tick, seconds(6));
    assert!(!machine.holds(pair));
}

#[test]
fn a_handshake_from_before_an_anchor_was_lost_counts_for_nothing() {
    let mut machine = authenticated();
    let pair = key(256, 301, 1);
    machine.handle(Event::AuthWanted(pair), seconds(1));
    machine.handle(Event::AnchorLost(256), seconds(1));
    machine.handle(Event::Finished(pair, Ok(success(pair, seconds(50), 1))), seconds(2));
    assert!(!machine.holds(pair));
    let accepted = |began| Accepted { key: pair, began, success: success(pair, seconds(50), 1) };
    assert_eq!(machine.accept(accepted(seconds(1)), seconds(2)), Err(Refused::Overtaken));
    assert_eq!(machine.accept(accepted(seconds(2)), seconds(2)), Ok(()));
}

#[test]
fn each_change_is_told_once_with_its_cause() {
    let pair = key(256, 300, 1);
    let ends: [(Event, Cause); 6] = [
        (Event::SvidWithdrawn(256), Cause::Withdrawn),
        (Event::PeerRevoked { node: 1, identity: 300 }, Cause::PeerRevoked),
        (up(1, &[301]), Cause::NotAnnounced),
        (up(2, &[300]), Cause::Epoch),
        (Event::Flush, Cause::Flushed),
        (Event::WriteFailed(pair), Cause::NotWritten),
    ];
    for (event, cause) in ends {
        let mut machine = authenticated();
        assert!(matches!(changes(&mut machine).as_slice(), [Change::Authenticated(_)]));
        machine.handle(event, seconds(1));
        assert_eq!(changes(&mut machine), [Change::Ended(pair, cause)]);
    }
    let mut machine = authenticated();
    changes(&mut machine);
    machine.handle(Event::Tick, seconds(50));
    assert_eq!(changes(&mut machine), [Change::Ended(pair, Cause::Expired)]);
    machine.handle(Event::Desired(Arc::new(Desired::default())), seconds(50));
    assert_eq!(changes(&mut machine), [], "it has ended already");
}

#[test]
fn a_pair_that_goes_on_failing_is_told_when_the_reason_changes() {
    let mut machine = machine();
    let pair = key(256, 300, 1);
    machine.handle(Event::AuthWanted(pair), START);
    let mut fail = |reason, at| {
        machine.handle(Event::Tick, seconds(at));
        machine.handle(Event::AuthWanted(pair), seconds(at));
        machine.handle(Event::Finished(pair, Err(Failure { reason, retryable: true })), seconds(at));
        let told: Vec<Change> = machine.changes().collect();
        (told.len(), machine.outlook(pair).last_failure.map(|(failure, _)| failure.reason))
    };
    assert_eq!(fail("timeout", 0), (1, Some("timeout")));
    assert_eq!(fail("timeout", 6), (0, Some("timeout")));
    assert_eq!(fail("no_svid", 12), (1, Some("no_svid")));
    let refused = |machine: &mut Machine| {
        let accepted = Accepted { key: pair, began: seconds(1), success: success(pair, seconds(50), 9) };
        assert_eq!(machine.accept(accepted, seconds(13)), Err(Refused::NotAnnounced));
        machine.changes().count()
    };
    assert_eq!((refused(&mut machine), refused(&mut machine)), (1, 0));
}

#[test]
fn an_outlook_has_what_people_ask_for() {
    let mut machine = machine();
    let pair = key(256, 300, 1);
    assert_eq!(machine.outlook(pair), Outlook { desired: true, ..Outlook::default() });
    assert!(!machine.outlook(key(256, 999, 1)).desired);
    machine.handle(Event::AuthWanted(pair), START);
    assert_eq!(machine.outlook(pair).running_since, Some(START));
    machine.handle(Event::Finished(pair, Err(FAILURE)), seconds(1));
    let outlook = machine.outlook(pair);
    assert_eq!((outlook.failures, outlook.last_failure), (1, Some((FAILURE, seconds(1)))));
    assert!(outlook.retry_at > seconds(1) && outlook.asked_until == seconds(30));
    machine.handle(Event::Tick, seconds(60));
    assert_eq!(machine.outlook(pair).last_failure, Some((FAILURE, seconds(1))), "it outlasts the pair");
    machine.handle(Event::AuthWanted(pair), seconds(60));
    assert_eq!(machine.outlook(pair).running_since, None, "its SVID has expired meanwhile");
}
