//! Pairs that are due, and the room for those that run, in turns: one lane for each other node, identity here and kind of attempt, so that one
//! noisy pod, or one node that never answers, keeps only itself waiting. Within a lane the longest waiting is
//! next.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use auth_ebpf_abi::{AuthKey, IdentityNumber, NodeNumber};

use super::machine::Config;
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

/// Handshakes that run.
#[derive(Debug, Default)]
pub(super) struct Running {
    by_kind: BTreeMap<Why, usize>,
    by_node: BTreeMap<NodeNumber, usize>,
}

impl Running {
    pub(super) fn total(&self) -> usize {
        self.by_kind.values().sum()
    }

    /// No kind takes the room of the others, and no node that of all.
    pub(super) fn has_room(&self, lane: &Lane, config: &Config) -> bool {
        let share = match lane.why {
            Why::Ahead => config.max_running.div_ceil(4),
            Why::Requested | Why::Renewed | Why::Accepted | Why::Adopted => {
                config.max_running - config.max_running / 8
            }
        };
        let of_kind = self.by_kind.get(&lane.why).copied().unwrap_or(0);
        let with_node = self.by_node.get(&lane.node).copied().unwrap_or(0);
        self.total() < config.max_running && of_kind < share && with_node < config.max_per_node
    }

    pub(super) fn begin(&mut self, node: NodeNumber, why: Why) {
        *self.by_kind.entry(why).or_default() += 1;
        *self.by_node.entry(node).or_default() += 1;
    }

    pub(super) fn end(&mut self, node: NodeNumber, why: Why) {
        let kind = self.by_kind.get_mut(&why);
        for count in kind.into_iter().chain(self.by_node.get_mut(&node)) {
            *count = count.saturating_sub(1);
        }
        self.by_node.retain(|_, count| *count > 0);
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
