//! Requests of packets on their way to the machine: each pair waits once, however many packets ask, and the
//! identities here take turns, so that a pod which asks for everything takes nothing from the others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use auth_ebpf_abi::{AuthKey, IdentityNumber};
use tokio::sync::Notify;

/// Pairs that may wait, and as many again, one of each identity that has none there.
pub(super) const REQUESTS: usize = 1024;
/// Of these, of one identity here.
pub(super) const EACH: usize = 128;

#[derive(Debug, Default)]
struct Waiting {
    pairs: BTreeSet<AuthKey>,
    lanes: BTreeMap<IdentityNumber, VecDeque<AuthKey>>,
    served: Option<IdentityNumber>,
    closed: bool,
}

/// The requests that wait.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    waiting: Mutex<Waiting>,
    some: Notify,
}

impl Wanted {
    /// Whether the pair waits now; if not, there was no room, or nobody takes requests any more.
    pub(super) fn push(&self, key: AuthKey) -> bool {
        let mut waiting = self.waiting();
        if waiting.closed {
            return false;
        }
        if waiting.pairs.contains(&key) {
            return true;
        }
        let there = waiting.lanes.get(&key.local).map_or(0, VecDeque::len);
        // However many ask for all they can: who has nothing there gets in.
        let room = if there == 0 { 2 * REQUESTS } else { REQUESTS };
        if waiting.pairs.len() >= room || there >= EACH {
            return false;
        }
        waiting.lanes.entry(key.local).or_default().push_back(key);
        waiting.pairs.insert(key);
        self.some.notify_one();
        true
    }

    /// The next request. Cancelling loses nothing.
    pub(super) async fn next(&self) -> AuthKey {
        loop {
            if let Some(key) = self.pop() {
                return key;
            }
            self.some.notified().await;
        }
    }

    /// From now on nothing is taken.
    pub(super) fn close(&self) {
        *self.waiting() = Waiting { closed: true, ..Waiting::default() };
    }

    fn pop(&self) -> Option<AuthKey> {
        let mut waiting = self.waiting();
        let after = waiting.served.map_or(Bound::Unbounded, Bound::Excluded);
        let later = waiting.lanes.range((after, Bound::Unbounded)).next();
        let local = later.or_else(|| waiting.lanes.first_key_value()).map(|(local, _)| *local)?;
        waiting.served = Some(local);
        let lane = waiting.lanes.get_mut(&local)?;
        let key = lane.pop_front();
        if lane.is_empty() {
            waiting.lanes.remove(&local);
        }
        waiting.pairs.remove(&key?);
        key
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tests::key;

    #[test]
    fn a_pair_waits_once_however_many_packets_ask() {
        let wanted = Wanted::default();
        assert!((0..100_000).all(|_| wanted.push(key(256, 300, 1))));
        assert_eq!((wanted.pop(), wanted.pop()), (Some(key(256, 300, 1)), None));
        assert!(wanted.push(key(256, 300, 1)), "taken, it may come again");
    }

    #[test]
    fn one_noisy_identity_leaves_room_and_turns_to_the_others() {
        let wanted = Wanted::default();
        let taken = (0..10_000).filter(|remote| wanted.push(key(256, *remote, 1))).count();
        assert_eq!(taken, EACH);
        assert!(wanted.push(key(257, 300, 1)));
        assert_eq!(wanted.pop().map(|key| key.local), Some(256));
        assert_eq!(wanted.pop().map(|key| key.local), Some(257));
        assert_eq!(std::iter::from_fn(|| wanted.pop()).count(), EACH - 1);
    }

    #[test]
    fn many_noisy_identities_leave_room_to_one_that_asks_once() {
        let wanted = Wanted::default();
        for (local, remote) in (0..100).flat_map(|local| (0..200).map(move |remote| (local, remote))) {
            let _taken = wanted.push(key(local, remote, 1));
        }
        assert!(!wanted.push(key(99, 500, 1)), "it has one there already");
        assert!(wanted.push(key(500, 300, 1)));
        let turn = std::iter::from_fn(|| wanted.pop()).position(|key| key.local == 500);
        assert_eq!(turn, Some(100), "and its turn comes after one of each");
        let wanted = Wanted::default();
        let taken = (0..10_000).filter(|local| wanted.push(key(*local, 300, 1))).count();
        assert_eq!(taken, 2 * REQUESTS);
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_taken_after_the_end() {
        let wanted = Wanted::default();
        let taken =
            (0..100).map(|local| (0..100).filter(|remote| wanted.push(key(local, *remote, 1))).count());
        assert!((REQUESTS..2 * REQUESTS).contains(&taken.sum::<usize>()));
        assert!(wanted.waiting().lanes.values().all(|lane| !lane.is_empty()));
        wanted.close();
        assert_eq!((wanted.push(key(256, 300, 1)), wanted.pop()), (false, None));
    }
}
