//! The queue under simulated time, and against a naive model.

use std::{collections::BTreeMap, time::Duration};

use auth_ebpf_abi::{AuthKey, AuthType, HOLD_LIMIT, HOLD_UNITS};
use proptest::prelude::*;

use super::{Action, Event, Frame, Outcome, Outcomes, Queue, device};
use crate::clock::BootTime;

const START: BootTime = BootTime(1_000_000_000_000);
const LIMIT: Duration = Duration::from_nanos(HOLD_LIMIT);

fn after(milliseconds: u64) -> BootTime {
    START.saturating_add(Duration::from_millis(milliseconds))
}

fn key(remote: u32) -> AuthKey {
    AuthKey { local: 256, remote, node: 1, auth_type: 1, pad: 0 }
}

fn frame(remote: u32, number: u16, since: BootTime) -> Frame {
    Frame { key: key(remote), since, bytes: number.to_be_bytes().into() }
}

fn arrive(queue: &mut Queue, remote: u32, number: u16, now: BootTime) {
    queue.handle(Event::Arrived(frame(remote, number, now), false), now);
}

fn released(queue: &mut Queue) -> Vec<(u32, u16)> {
    let of = |frame: &Frame| u16::from_be_bytes([frame.bytes[0], frame.bytes[1]]);
    queue
        .actions()
        .filter_map(|action| match action {
            Action::Release(frame) => Some((frame.key.remote, of(&frame))),
            Action::Settle(_) | Action::Ask(_) => None,
        })
        .collect()
}

#[test]
fn what_is_held_goes_in_its_order_once_its_pair_has_authenticated() {
    let mut queue = Queue::default();
    for (remote, number) in [(300, 1), (301, 2), (300, 3)] {
        arrive(&mut queue, remote, number, START);
    }
    assert_eq!((released(&mut queue), queue.held()), (vec![], 3));
    queue.handle(Event::Authenticated(key(300)), after(3));
    assert_eq!((released(&mut queue), queue.held()), (vec![(300, 1), (300, 3)], 1));
    // Late ones of the device's queue go at once.
    queue.handle(Event::Arrived(frame(300, 4, after(3)), true), after(4));
    assert_eq!(released(&mut queue), [(300, 4)]);
}

#[test]
fn a_frame_that_finds_its_pair_authenticated_takes_those_before_it_along() {
    let mut queue = Queue::default();
    arrive(&mut queue, 300, 1, START);
    queue.handle(Event::Arrived(frame(300, 2, START), true), START);
    assert_eq!((released(&mut queue), queue.held()), (vec![(300, 1), (300, 2)], 0));
}

#[test]
fn a_pair_settles_when_nothing_of_it_has_come_for_a_while_or_after_a_second() {
    let mut queue = Queue::default();
    queue.handle(Event::Authenticated(key(300)), START);
    assert_eq!(queue.next_deadline(), Some(after(50)));
    queue.handle(Event::Arrived(frame(300, 1, after(40)), true), after(40));
    assert_eq!(released(&mut queue), [(300, 1)]);
    queue.handle(Event::Tick, after(89));
    assert_eq!(queue.actions().count(), 0);
    queue.handle(Event::Tick, after(90));
    assert_eq!(queue.actions().collect::<Vec<_>>(), [Action::Settle(key(300))]);
    assert!(queue.is_idle() && queue.next_deadline().is_none());
    queue.handle(Event::Authenticated(key(300)), START);
    for at in 0..=100 {
        queue.handle(Event::Arrived(frame(300, 1, after(at * 10)), true), after(at * 10));
    }
    assert!(queue.actions().any(|action| action == Action::Settle(key(300))));
}

/// After a stall the device may have frames of a pair whose time to be quiet is over.
#[test]
fn nothing_settles_while_the_device_may_have_more_to_give() {
    let mut queue = Queue::default();
    queue.handle(Event::Authenticated(key(300)), START);
    arrive(&mut queue, 301, 1, after(60));
    queue.handle(Event::Failed(key(302)), after(60));
    assert!(queue.actions().all(|action| action == Action::Ask(key(301))));
    queue.handle(Event::Arrived(frame(300, 2, after(40)), true), after(60));
    assert_eq!(released(&mut queue), [(300, 2)]);
    queue.handle(Event::Tick, after(109));
    assert_eq!(queue.actions().count(), 0);
    queue.handle(Event::Tick, after(110));
    assert_eq!(queue.actions().collect::<Vec<_>>(), [Action::Settle(key(300))]);
}

#[test]
fn what_has_waited_too_long_goes_to_its_end() {
    let mut queue = Queue::default();
    arrive(&mut queue, 300, 1, START);
    arrive(&mut queue, 300, 2, after(5));
    assert_eq!(queue.next_deadline(), Some(START.saturating_add(LIMIT)));
    queue.handle(Event::Tick, START.saturating_add(LIMIT));
    assert_eq!((released(&mut queue), queue.held()), (vec![(300, 1)], 1));
    queue.handle(Event::Tick, after(5).saturating_add(LIMIT));
    assert_eq!((released(&mut queue), queue.held()), (vec![(300, 2)], 0));
    arrive(&mut queue, 300, 3, after(9000));
    queue.handle(Event::Failed(key(300)), after(9001));
    assert_eq!((released(&mut queue), queue.is_idle()), (vec![(300, 3)], true));
}

#[test]
fn what_comes_just_after_a_failure_does_not_wait() {
    let mut queue = Queue::default();
    queue.handle(Event::Failed(key(300)), START);
    arrive(&mut queue, 300, 1, after(49));
    arrive(&mut queue, 301, 2, after(49));
    assert_eq!((released(&mut queue), queue.held()), (vec![(300, 1)], 1));
    arrive(&mut queue, 300, 3, after(50));
    assert_eq!((released(&mut queue), queue.held()), (vec![], 2));
}

#[test]
fn what_waits_for_an_announcement_goes_when_its_node_has_acknowledged() {
    let mut queue = Queue::default();
    let waiting = |node, token| {
        let key = AuthKey { node, auth_type: AuthType::Disabled as u8, ..key(300) };
        Frame { key, ..frame(300, token, START) }
    };
    let (first, second) = (waiting(2, 1), waiting(3, 2));
    queue.handle(Event::Arrived(first.clone(), false), START);
    queue.handle(Event::Arrived(second.clone(), false), START);
    let asked: Vec<_> = queue.actions().collect();
    assert_eq!(asked, [Action::Ask(first.key), Action::Ask(second.key)]);
    // The pair's authentication is another matter.
    queue.handle(
        Event::Arrived(Frame { key: AuthKey { node: 2, ..key(300) }, ..frame(300, 3, START) }, false),
        START,
    );
    assert!(queue.actions().all(|action| matches!(action, Action::Ask(_))));
    queue.handle(Event::Announced(2), after(1));
    assert_eq!(queue.actions().collect::<Vec<_>>(), [Action::Release(first)]);
    assert_eq!(queue.held(), 2);
}

#[test]
fn at_the_end_everything_goes() {
    let mut queue = Queue::default();
    arrive(&mut queue, 300, 1, START);
    arrive(&mut queue, 301, 2, START);
    queue.handle(Event::Ended, START);
    assert_eq!((released(&mut queue), queue.is_idle()), (vec![(300, 1), (301, 2)], true));
}

#[test]
fn beyond_the_bound_nothing_is_kept() {
    let mut queue = Queue::default();
    for number in 0..u16::try_from(HOLD_UNITS).unwrap() {
        arrive(&mut queue, u32::from(number), number, START);
    }
    assert_eq!(released(&mut queue), []);
    arrive(&mut queue, 9000, 9000, START);
    assert_eq!(released(&mut queue), [(9000, 9000)]);
}

#[test]
fn a_token_is_read_from_the_tag() {
    let mut bytes = vec![0; 40];
    assert_eq!(device::token(&bytes), None);
    bytes[22..26].copy_from_slice(&[0x81, 0, 0x12, 0x34]);
    assert_eq!(device::token(&bytes), Some(0x1234));
    assert_eq!(device::token(&bytes[..25]), None);
}

#[test]
fn a_success_is_not_forgotten_over_a_failure() {
    let outcomes = Outcomes::default();
    outcomes.tell(key(300), Outcome::Authenticated);
    outcomes.tell(key(300), Outcome::Failed);
    outcomes.tell(key(301), Outcome::Failed);
    outcomes.tell(key(301), Outcome::Authenticated);
    outcomes.tell(key(302), Outcome::Failed);
    let expected = [(300, Outcome::Authenticated), (301, Outcome::Authenticated), (302, Outcome::Failed)];
    assert_eq!(outcomes.take().pairs, expected.map(|(remote, outcome)| (key(remote), outcome)).into());
    assert_eq!(outcomes.take().pairs, BTreeMap::new());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Arrive(u32, bool),
    Authenticated(u32),
    Failed(u32),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let pair = 0..4_u32;
    prop_oneof![
        4 => (pair.clone(), prop::bool::weighted(0.2)).prop_map(|(pair, known)| Step::Arrive(pair, known)),
        2 => pair.clone().prop_map(Step::Authenticated),
        1 => pair.prop_map(Step::Failed),
        3 => (0..1500_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// The model is a list of frames: each goes when its pair does, at once if that has just failed, or two
    /// seconds after it came; none twice, none before an older one of its pair. Every pair that drains settles within a second.
    #[test]
    fn the_queue_is_a_list(all in prop::collection::vec(steps(), 1..120)) {
        let (mut queue, mut now, mut number) = (Queue::default(), START, 0_u16);
        let mut waiting: Vec<(u32, u16, BootTime)> = vec![];
        let mut draining: BTreeMap<u32, BootTime> = BTreeMap::new();
        let mut failed: BTreeMap<u32, BootTime> = BTreeMap::new();
        for step in all {
            let mut expected: Vec<(u32, u16)> = vec![];
            let mut go = |waiting: &mut Vec<(u32, u16, BootTime)>, pair: u32| {
                expected.extend(waiting.iter().filter(|it| it.0 == pair).map(|it| (it.0, it.1)));
                waiting.retain(|it| it.0 != pair);
            };
            match step {
                Step::Arrive(pair, known) => {
                    number += 1;
                    waiting.push((pair, number, now));
                    let news = |at: &BootTime| now.since(*at) < Duration::from_millis(50);
                    if known || failed.get(&pair).is_some_and(news) {
                        go(&mut waiting, pair);
                    }
                    queue.handle(Event::Arrived(frame(pair, number, now), known), now);
                }
                Step::Authenticated(pair) => {
                    go(&mut waiting, pair);
                    failed.remove(&pair);
                    draining.insert(pair, now.saturating_add(Duration::from_secs(1)));
                    queue.handle(Event::Authenticated(key(pair)), now);
                }
                Step::Failed(pair) => {
                    go(&mut waiting, pair);
                    failed.insert(pair, now);
                    queue.handle(Event::Failed(key(pair)), now);
                }
                Step::Wait(time) => {
                    now = now.saturating_add(Duration::from_millis(time));
                    let late = |it: &(u32, u16, BootTime)| it.2.saturating_add(LIMIT) <= now;
                    expected.extend(waiting.iter().filter(|it| late(it)).map(|it| (it.0, it.1)));
                    waiting.retain(|it| !late(it));
                    queue.handle(Event::Tick, now);
                }
            }
            let (mut gone, mut asked) = (vec![], vec![]);
            for action in queue.actions() {
                match action {
                    Action::Release(frame) => {
                        gone.push((frame.key.remote, u16::from_be_bytes([frame.bytes[0], frame.bytes[1]])));
                    }
                    Action::Ask(key) => asked.push(key.remote),
                    Action::Settle(key) => prop_assert!(draining.remove(&key.remote).is_some()),
                }
            }
            // Between pairs there is no order.
            let by_pair = |frames: &[(u32, u16)]| {
                let mut frames = frames.to_vec();
                frames.sort_by_key(|(pair, _)| *pair);
                frames
            };
            prop_assert_eq!(by_pair(&gone), by_pair(&expected));
            let is_first = |pair| waiting.iter().filter(|it| it.0 == pair).count() == 1;
            let first = match step {
                Step::Arrive(pair, false) if is_first(pair) => vec![pair],
                Step::Arrive(..) | Step::Authenticated(_) | Step::Failed(_) | Step::Wait(_) => vec![],
            };
            prop_assert_eq!(asked, first);
            prop_assert_eq!(queue.held(), waiting.len());
            prop_assert!(draining.values().all(|ends| *ends > now));
            prop_assert_eq!(queue.is_idle(), waiting.is_empty() && draining.is_empty());
            prop_assert!(queue.next_deadline().is_some() || queue.is_idle());
            prop_assert!(queue.next_deadline().is_none_or(|at| at > now));
        }
    }
}
