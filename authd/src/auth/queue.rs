//! Pairs that are due, in turns: one lane for each other node, identity here and kind of attempt, so that one
//! noisy pod, or one node that never answers, keeps only itself waiting. Within a lane the longest waiting is
//! next.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use auth_ebpf_abi::{AuthKey, IdentityNumber, NodeNumber};

use super::record::Why;
use crate::clock::BootTime;

/// Who waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lane {
    pub(super) node: NodeNumber,
    pub(super) local: IdentityNumber,
    /// What the attempts are for.
    pub(super) why: Why,
}

impl Lane {
    pub(super) const fn of(key: &AuthKey, why: Why) -> Self {
        Self { node: key.node, local: key.local, why }
    }
}

/// A pair's place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) lane: Lane,
    pub(super) since: BootTime,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    lanes: BTreeMap<Lane, BTreeSet<(BootTime, AuthKey)>>,
    served: Option<Lane>,
    len: usize,
}

impl Queue {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, place: Place, key: AuthKey) {
        self.len += usize::from(self.lanes.entry(place.lane).or_default().insert((place.since, key)));
    }

    pub(super) fn remove(&mut self, place: Place, key: AuthKey) {
        let Some(lane) = self.lanes.get_mut(&place.lane) else { return };
        self.len = self.len.saturating_sub(usize::from(lane.remove(&(place.since, key))));
        if lane.is_empty() {
            self.lanes.remove(&place.lane);
        }
    }

    /// The next pair of the next lane that `may` have a turn.
    pub(super) fn pop(&mut self, may: impl Fn(&Lane) -> bool) -> Option<AuthKey> {
        let after = self.served.map_or(Bound::Unbounded, Bound::Excluded);
        let up_to = self.served.map_or(Bound::Unbounded, Bound::Included);
        let turn =
            self.lanes.range((after, Bound::Unbounded)).chain(self.lanes.range((Bound::Unbounded, up_to)));
        let lane = turn.map(|(lane, _)| *lane).find(|lane| may(lane))?;
        let (since, key) = self.lanes.get(&lane)?.first().copied()?;
        self.served = Some(lane);
        self.remove(Place { lane, since }, key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::tests::key;

    #[test]
    fn lanes_take_turns_and_each_is_first_come_first_served() {
        let mut queue = Queue::default();
        let mut wait = |since, key: AuthKey| {
            queue.insert(Place { lane: Lane::of(&key, Why::Requested), since: BootTime(since) }, key);
        };
        for remote in 300..305 {
            wait(u64::from(remote), key(256, remote, 1));
        }
        wait(900, key(257, 300, 1));
        wait(901, key(256, 300, 2));
        let order: Vec<AuthKey> = std::iter::from_fn(|| queue.pop(|_| true)).collect();
        let expected = [
            key(256, 300, 1),
            key(257, 300, 1),
            key(256, 300, 2),
            key(256, 301, 1),
            key(256, 302, 1),
            key(256, 303, 1),
            key(256, 304, 1),
        ];
        assert_eq!(order, expected);
        assert_eq!((queue.len(), queue.lanes.len()), (0, 0));
    }

    #[test]
    fn a_lane_that_may_not_is_passed_over_and_keeps_its_place() {
        let mut queue = Queue::default();
        for pair in [key(256, 300, 1), key(256, 300, 2)] {
            queue.insert(Place { lane: Lane::of(&pair, Why::Requested), since: BootTime(1) }, pair);
        }
        assert_eq!(queue.pop(|lane| lane.node != 1), Some(key(256, 300, 2)));
        assert_eq!(queue.pop(|lane| lane.node != 1), None);
        assert_eq!(queue.pop(|_| true), Some(key(256, 300, 1)));
    }
}
