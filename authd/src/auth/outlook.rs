//! What the machine knows of one pair, for people who ask why it does not talk.

use std::collections::BTreeMap;

use auth_ebpf_abi::AuthKey;

use super::event::Failure;
use super::machine::Machine;
use super::pair::canonical;
use super::record::Record;
use crate::clock::BootTime;

/// How many pairs' last failures are remembered.
const REMEMBERED: usize = 1024;

/// One pair as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Whether policy and cluster state want it authenticated.
    pub desired: bool,
    /// Until when packets have asked for it; [`BootTime::ZERO`] if none has lately.
    pub asked_until: BootTime,
    /// Since when a handshake runs.
    pub running_since: Option<BootTime>,
    /// Since when it waits for its turn.
    pub waiting_since: Option<BootTime>,
    /// Failures in a row.
    pub failures: u32,
    /// When it is tried again after a failure; in the past if nothing is in the way.
    pub retry_at: BootTime,
    /// Its last failure since it was well, and when that was.
    pub last_failure: Option<(Failure, BootTime)>,
    /// Its entry.
    pub record: Option<Record>,
}

/// Last failures, which outlast the pair itself: people ask later. Of too many the oldest is forgotten.
#[derive(Debug, Default)]
pub(super) struct Failures(BTreeMap<AuthKey, (Failure, BootTime)>);

impl Failures {
    /// Notes a failure; whether it is another one than the last that is remembered.
    pub(super) fn is_news(&mut self, key: AuthKey, failure: Failure, now: BootTime) -> bool {
        let news = self.of(&key).is_none_or(|(last, _)| last.reason != failure.reason);
        self.note(key, failure, now);
        news
    }

    pub(super) fn note(&mut self, key: AuthKey, failure: Failure, now: BootTime) {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&key) {
            let oldest = self.0.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| *key);
            oldest.map(|oldest| self.0.remove(&oldest));
        }
        self.0.insert(key, (failure, now));
    }

    pub(super) fn forget(&mut self, key: &AuthKey) {
        self.0.remove(key);
    }

    pub(super) fn of(&self, key: &AuthKey) -> Option<(Failure, BootTime)> {
        self.0.get(key).copied()
    }
}

impl Machine {
    /// What is known of a pair.
    #[must_use]
    pub fn outlook(&self, key: AuthKey) -> Outlook {
        let key = canonical(key);
        let known = Outlook {
            desired: self.allows(&key),
            last_failure: self.failures.of(&key),
            ..Outlook::default()
        };
        let Some(pair) = self.pairs.get(&key) else { return known };
        Outlook {
            asked_until: pair.asked_until,
            running_since: pair.attempt.as_ref().map(|attempt| attempt.since),
            waiting_since: pair.queued.map(|place| place.since),
            failures: pair.failures,
            retry_at: pair.retry_at,
            record: pair.held.as_ref().map(|held| held.record.clone()),
            ..known
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tests::{FAILURE, key};

    #[test]
    fn the_memory_of_failures_is_bounded_and_forgets_the_oldest() {
        let mut failures = Failures::default();
        for remote in 0..5000u32 {
            failures.note(key(256, remote, 1), FAILURE, BootTime(remote.into()));
        }
        assert_eq!(failures.0.len(), REMEMBERED);
        assert_eq!(failures.of(&key(256, 4999, 1)), Some((FAILURE, BootTime(4999))));
        assert_eq!(failures.of(&key(256, 0, 1)), None);
    }
}
