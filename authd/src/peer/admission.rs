//! Who may set up a connection at the handshake port, before anything of it has been read.
//!
//! A connection costs memory and a key exchange, and whoever can reach the port may open one. So addresses of
//! known nodes share most of the room, no single one can take it all, and everybody else has a small budget of
//! his own: a flood of strangers takes nothing from the nodes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::pace::Pace;
use crate::clock::BootTime;

/// Set-ups of known nodes at a time, and of one of them.
const KNOWN: Budget = Budget { total: 256, each: 64 };
/// Set-ups of strangers at a time, and of one address (IPv6: one network).
const STRANGERS: Budget = Budget { total: 16, each: 4 };

#[derive(Clone, Copy)]
struct Budget {
    total: usize,
    each: usize,
}

/// New connections of one node: as many as it may have at once, then 200 a second.
const fn node_pace() -> Pace {
    Pace::new(256, Duration::from_millis(5))
}

/// New connections of all strangers together.
const fn stranger_pace() -> Pace {
    Pace::new(32, Duration::from_millis(20))
}

/// One source of connections.
#[derive(Debug)]
struct Source {
    open: usize,
    pace: Pace,
}

#[derive(Debug)]
struct Open {
    known: usize,
    strangers: usize,
    strangers_pace: Pace,
    sources: BTreeMap<(bool, IpAddr), Source>,
}

/// Counts the connections that are being set up.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Mutex<Open>>);

/// Room for one connection; gives it back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Admission,
    source: (bool, IpAddr),
}

impl Admission {
    pub(super) fn new() -> Self {
        let open = Open { known: 0, strangers: 0, strangers_pace: stranger_pace(), sources: BTreeMap::new() };
        Self(Arc::new(Mutex::new(open)))
    }

    /// Room for a connection from there, if there is any. `known`: the address is that of a node.
    pub(super) fn admit(&self, from: IpAddr, known: bool, now: BootTime) -> Option<Permit> {
        let from = if known { from } else { network(from) };
        let mut open = self.open();
        let Open { known: nodes, strangers, strangers_pace, sources } = &mut *open;
        let (budget, total) = if known { (KNOWN, nodes) } else { (STRANGERS, strangers) };
        let there = sources.get(&(known, from)).map_or(0, |source| source.open);
        if *total >= budget.total || there >= budget.each {
            return None;
        }
        let source = sources.entry((known, from)).or_insert_with(|| Source { open: 0, pace: node_pace() });
        let pace = if known { &mut source.pace } else { strangers_pace };
        let taken = pace.take(now);
        if taken {
            source.open += 1;
            *total += 1;
        }
        // Strangers are remembered while they are there only: their addresses are as many as they like.
        sources.retain(|_, source| source.open > 0 || !source.pace.is_full(now));
        taken.then(|| Permit { admission: self.clone(), source: (known, from) })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.admission.open();
        let (known, _) = self.source;
        let total = if known { &mut open.known } else { &mut open.strangers };
        *total = total.saturating_sub(1);
        if let Some(source) = open.sources.get_mut(&self.source) {
            source.open = source.open.saturating_sub(1);
        }
    }
}

/// Who has one IPv6 address mostly has a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> BootTime {
        BootTime(seconds * 1_000_000_000)
    }

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn strangers_take_nothing_from_nodes() {
        let admission = Admission::new();
        let strangers: Vec<Permit> =
            (0..200).filter_map(|last| admission.admit(address(last), false, at(9))).collect();
        assert_eq!(strangers.len(), STRANGERS.total);
        let nodes: Vec<Permit> =
            (0..200).filter_map(|last| admission.admit(address(last % 8), true, at(9))).collect();
        assert_eq!(nodes.len(), 200);
        drop(strangers);
        assert!(admission.admit(address(1), false, at(10)).is_some());
    }

    #[test]
    fn no_source_takes_the_room_of_all() {
        let admission = Admission::new();
        let many = |from: IpAddr, known| -> Vec<Permit> {
            (0..300).filter_map(|_| admission.admit(from, known, at(9))).collect()
        };
        let node = many(address(1), true);
        assert_eq!(node.len(), KNOWN.each);
        assert!(admission.admit(address(2), true, at(9)).is_some());
        let first = many("2001:db8::1".parse().unwrap(), false);
        let same_network = many("2001:db8::2".parse().unwrap(), false);
        assert_eq!((first.len(), same_network.len()), (STRANGERS.each, 0));
        assert!(admission.admit("2001:db8:1::1".parse().unwrap(), false, at(9)).is_some());
    }

    #[test]
    fn connections_that_end_at_once_are_paced_and_leave_nothing_behind() {
        let admission = Admission::new();
        let passed = (0..1000u32)
            .filter(|number| admission.admit(IpAddr::V4((*number).into()), false, at(9)).is_some())
            .count();
        assert_eq!(passed, 32);
        let passed = (0..1000).filter(|_| admission.admit(address(1), true, at(9)).is_some()).count();
        assert_eq!(passed, 256);
        assert!(admission.admit(address(2), true, at(20)).is_some());
        assert!(admission.open().sources.len() <= 1, "{:?}", admission.open().sources);
    }
}
