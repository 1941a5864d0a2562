//! One pair's state, and when it next needs a look.

use std::time::Duration;

use auth_ebpf_abi::{AuthEntry, AuthKey};

use super::queue::Place;
use super::record::{Record, Why};
use crate::clock::BootTime;

/// Shortest time between two renewals: while the other identity's SVID is not renewed, ours gain nothing.
const RENEWAL_FLOOR: Duration = Duration::from_millis(250);

/// Over how long the renewals of entries found at the start are spread at most.
const ADOPTED_SPREAD: Duration = Duration::from_secs(5);

/// What the machine knows of a pair. Pairs on this node are kept once, smaller identity first.
#[derive(Debug, Default)]
pub(super) struct Pair {
    /// Until when a packet's request counts.
    pub(super) asked_until: BootTime,
    /// To be authenticated although no packet has asked.
    pub(super) ahead: bool,
    /// The handshake that runs.
    pub(super) attempt: Option<Attempt>,
    /// Failures since the last success or reset.
    pub(super) failures: u32,
    /// Why it failed last, since it was well.
    pub(super) failing: Option<&'static str>,
    /// No attempt before.
    pub(super) retry_at: BootTime,
    /// What stands in the map.
    pub(super) held: Option<Held>,
    /// Place in the machine's timers.
    pub(super) wake: Option<BootTime>,
    /// Place in the machine's queue.
    pub(super) queued: Option<Place>,
}

/// A handshake that runs.
#[derive(Debug)]
pub(super) struct Attempt {
    /// When it began.
    pub(super) since: BootTime,
    /// Its cause has gone meanwhile: whatever it brings doesn't count.
    pub(super) void: bool,
    /// What it is for.
    pub(super) why: Why,
}

/// An entry in the map.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) record: Record,
    pub(super) renew_at: BootTime,
    /// It may rest on an anchor that is trusted no longer: proven anew until then, or gone.
    pub(super) prove_until: Option<BootTime>,
    /// When it was written to the map last.
    pub(super) written_at: BootTime,
}

impl Pair {
    pub(super) fn reset_backoff(&mut self) {
        self.failures = 0;
        self.retry_at = BootTime::ZERO;
    }

    /// The handshake that runs, if any, no longer counts.
    pub(super) const fn void(&mut self) {
        if let Some(attempt) = &mut self.attempt {
            attempt.void = true;
        }
    }

    /// What an attempt now would be for: a renewal that is due and can gain something, or a request.
    /// `svid_expires` is the end of the local SVIDs, which a new entry can't outlive.
    pub(super) fn due(&self, now: BootTime, svid_expires: BootTime) -> Option<Why> {
        match &self.held {
            Some(held) => {
                // What was found in the map is proven anew in any case: nobody here has seen its proof.
                let gains = svid_expires > held.record.expires
                    || held.record.why == Why::Adopted
                    || held.prove_until.is_some();
                (held.renew_at <= now && gains).then_some(Why::Renewed)
            }
            None if self.asked_until > now => Some(Why::Requested),
            None => self.ahead.then_some(Why::Ahead),
        }
    }

    /// When something happens by time alone.
    pub(super) fn next_wake(&self, now: BootTime) -> Option<BootTime> {
        let times = [
            self.held.as_ref().map(Held::ends),
            self.held.as_ref().map(|held| held.renew_at),
            (self.held.is_none()).then_some(self.asked_until),
            Some(self.retry_at),
        ];
        times.into_iter().flatten().filter(|time| *time > now).min()
    }

    /// Nothing stands, runs or is asked for.
    pub(super) fn is_idle(&self, now: BootTime) -> bool {
        self.held.is_none() && self.attempt.is_none() && self.asked_until <= now && !self.ahead
    }
}

impl Held {
    /// Renewal at half-life; the side that was dialled waits longer, so that one side renews and not both.
    pub(super) fn new(record: Record, jitter: &mut dyn FnMut(u64) -> u64) -> Self {
        let life = record.expires.since(record.established);
        let part = match record.why {
            Why::Requested | Why::Renewed | Why::Ahead => life / 2,
            Why::Accepted => life * 3 / 4,
            Why::Adopted => Duration::ZERO,
        };
        let spread = if record.why == Why::Adopted { ADOPTED_SPREAD.min(life / 16) } else { life / 16 };
        let spread = u64::try_from(spread.as_nanos()).unwrap_or(u64::MAX);
        let part = part.saturating_add(Duration::from_nanos(jitter(spread)));
        let floor = if record.why == Why::Adopted { Duration::ZERO } else { RENEWAL_FLOOR };
        let renew_at = record.established.saturating_add(part.max(floor));
        let written_at = record.established;
        Self { record, renew_at, written_at, prove_until: None }
    }

    /// When it ends unless it is proven anew.
    pub(super) fn ends(&self) -> BootTime {
        self.prove_until.map_or(self.record.expires, |until| until.min(self.record.expires))
    }

    pub(super) const fn entry(&self) -> AuthEntry {
        AuthEntry { expires: self.record.expires.0, epoch: self.record.epoch, flags: 0 }
    }
}

/// The key under which a pair is kept.
pub(super) const fn canonical(key: AuthKey) -> AuthKey {
    if key.node == 0 && key.local > key.remote { swapped(key) } else { key }
}

/// The keys under which a pair stands in the map: on one node, both directions.
pub(super) fn written(key: AuthKey) -> impl Iterator<Item = AuthKey> {
    let other = (key.node == 0 && key.local != key.remote).then(|| swapped(key));
    std::iter::once(key).chain(other)
}

const fn swapped(key: AuthKey) -> AuthKey {
    AuthKey { local: key.remote, remote: key.local, ..key }
}
