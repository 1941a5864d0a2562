//! What is held, pair by pair in the order in which it came. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use auth_ebpf_abi::{AuthKey, AuthType, HOLD_LIMIT, HOLD_UNITS, NodeNumber, units};

use crate::clock::BootTime;

/// How long none of a pair's packets must have come by the device before new ones need not wait.
const QUIET: Duration = Duration::from_millis(50);
/// How long a pair's failure is news: its packets may come by the device a moment later.
const NEWS: Duration = Duration::from_millis(50);
/// How long new packets of a pair wait behind those that were held, at most.
const DRAINING: Duration = Duration::from_secs(1);

/// Whether what is held under this key waits for its node to know whose its source is; for the pair's
/// authentication otherwise.
#[must_use]
pub(super) const fn is_announcement(key: &AuthKey) -> bool {
    key.auth_type == AuthType::Disabled as u8
}

/// A frame as the device gave it, and gets it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its pair.
    pub key: AuthKey,
    /// Since when it is held.
    pub since: BootTime,
    /// Header of the device, and the frame with its tag.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// When it has been held for too long.
    fn deadline(&self) -> BootTime {
        self.since.saturating_add(Duration::from_nanos(HOLD_LIMIT))
    }

    fn units(&self) -> u64 {
        units(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)).into()
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The device gave a frame; whether what it waits for has come meanwhile.
    Arrived(Frame, bool),
    /// The pair has authenticated, and its entry says that it is draining.
    Authenticated(AuthKey),
    /// The pair can't authenticate.
    Failed(AuthKey),
    /// The node knows whose the addresses here are.
    Announced(NodeNumber),
    /// Nobody holds anything any more.
    Ended,
    /// Time has passed, and the device has nothing more to give.
    Tick,
}

/// Something to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have what the pair lacks brought about: the packet's own event may have found no room.
    Ask(AuthKey),
    /// Give the frame back to the device.
    Release(Frame),
    /// The pair's entry need not say any more that it is draining.
    Settle(AuthKey),
}

/// A pair whose new packets wait behind those that were held.
#[derive(Clone, Copy, Debug)]
struct Draining {
    quiet_at: BootTime,
    ends: BootTime,
}

/// What is held.
#[derive(Debug, Default)]
pub struct Queue {
    pairs: BTreeMap<AuthKey, VecDeque<Frame>>,
    draining: BTreeMap<AuthKey, Draining>,
    /// Pairs that have just failed, and when.
    failed: BTreeMap<AuthKey, BootTime>,
    /// When a pair's oldest frame is late.
    late: BTreeSet<(BootTime, AuthKey)>,
    /// When a pair has drained, if none of its frames comes before.
    quiet: BTreeSet<(BootTime, AuthKey)>,
    held: usize,
    units: u64,
    actions: VecDeque<Action>,
}

impl Queue {
    /// Takes in what has happened. What is to be done about it comes from [`Self::actions`].
    pub fn handle(&mut self, event: Event, now: BootTime) {
        match event {
            Event::Arrived(frame, authenticated) => self.arrived(frame, authenticated, now),
            Event::Authenticated(key) => {
                self.release(key, None);
                self.failed.remove(&key);
                let ends = now.saturating_add(DRAINING);
                let quiet_at = now.saturating_add(QUIET);
                if let Some(before) = self.draining.insert(key, Draining { quiet_at, ends }) {
                    self.quiet.remove(&(before.quiet_at, key));
                }
                self.quiet.insert((quiet_at, key));
            }
            Event::Failed(key) => {
                self.release(key, None);
                self.failed.retain(|_, at| now.since(*at) < NEWS);
                self.failed.insert(key, now);
            }
            Event::Announced(node) => self.release_all(|key| key.node == node && is_announcement(key)),
            Event::Ended => self.release_all(|_| true),
            Event::Tick => return self.pass(now, true),
        }
        self.pass(now, false);
    }

    /// What is to be done. Removes it.
    pub fn actions(&mut self) -> impl Iterator<Item = Action> + use<> {
        std::mem::take(&mut self.actions).into_iter()
    }

    /// When [`Event::Tick`] is due at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<BootTime> {
        let firsts = [self.late.first(), self.quiet.first()];
        firsts.into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Frames that are held.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.held
    }

    /// Whether nothing is held and no pair is draining.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held == 0 && self.draining.is_empty()
    }

    fn arrived(&mut self, frame: Frame, authenticated: bool, now: BootTime) {
        let key = frame.key;
        self.postpone(key, now);
        // Credits keep it within the bound: beyond it, the programs have the last word at once.
        let failed = self.failed.get(&key).is_some_and(|at| now.since(*at) < NEWS);
        if authenticated || failed || self.units + frame.units() > HOLD_UNITS {
            self.release(key, None);
            self.actions.push_back(Action::Release(frame));
            return;
        }
        let queue = self.pairs.entry(key).or_default();
        if queue.is_empty() {
            self.late.insert((frame.deadline(), key));
            self.actions.push_back(Action::Ask(key));
        }
        self.held += 1;
        self.units += frame.units();
        queue.push_back(frame);
    }

    /// A packet of the pair has come by the device: it is not quiet yet.
    fn postpone(&mut self, key: AuthKey, now: BootTime) {
        if let Some(draining) = self.draining.get_mut(&key) {
            self.quiet.remove(&(draining.quiet_at, key));
            draining.quiet_at = now.saturating_add(QUIET).min(draining.ends);
            self.quiet.insert((draining.quiet_at, key));
        }
    }

    /// Releases the pair's frames, oldest first: all, or those that are late by `late`.
    fn release(&mut self, key: AuthKey, late: Option<BootTime>) {
        let Some(queue) = self.pairs.get_mut(&key) else { return };
        if let Some(first) = queue.front() {
            self.late.remove(&(first.deadline(), key));
        }
        while let Some(frame) = queue.pop_front_if(|frame| late.is_none_or(|now| frame.deadline() <= now)) {
            self.held = self.held.saturating_sub(1);
            self.units = self.units.saturating_sub(frame.units());
            self.actions.push_back(Action::Release(frame));
        }
        match queue.front() {
            Some(first) => drop(self.late.insert((first.deadline(), key))),
            None => drop(self.pairs.remove(&key)),
        }
    }

    fn release_all(&mut self, which: impl Fn(&AuthKey) -> bool) {
        let keys: Vec<AuthKey> = self.pairs.keys().copied().filter(which).collect();
        for key in keys {
            self.release(key, None);
        }
    }

    /// Lets go what is late, and settles what has drained: while the device may have more to give, only pairs that
    /// have taken too long, for frames of theirs could be among it.
    fn pass(&mut self, now: BootTime, is_empty: bool) {
        while let Some((at, key)) = self.late.first().copied()
            && at <= now
        {
            self.late.pop_first();
            self.release(key, Some(now));
        }
        let due = self.quiet.iter().take_while(|(at, _)| *at <= now);
        let ended = |key| self.draining.get(key).is_none_or(|draining| draining.ends <= now);
        let settled: Vec<_> = due.filter(|(_, key)| is_empty || ended(key)).copied().collect();
        for (at, key) in settled {
            self.quiet.remove(&(at, key));
            self.draining.remove(&key);
            self.actions.push_back(Action::Settle(key));
        }
    }
}
