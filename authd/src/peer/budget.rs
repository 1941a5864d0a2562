//! What one node may have us do over its sessions.
//!
//! A node that has proven itself may still be hostile, and each of its messages may cost a signature, a
//! verification, or a write to the map with a line in the log. What it has spent it can't have back by another session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::pace::Pace;
use crate::clock::BootTime;

/// What is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spend {
    /// A proof of an identity of ours: a signature.
    Proving,
    /// A proof of one of its identities: the verification of a signature, and of a chain.
    Verifying,
    /// A pair that it has us record.
    Recording,
}

/// Proofs of each kind: of as many identities as a node may well have at once, then 200 a second, like connections.
const PROOFS: (u32, Duration) = (1024, Duration::from_millis(5));
/// Pairs: all that there can be at once, and more, then 1,000 a second.
const PAIRS: (u32, Duration) = (131_072, Duration::from_millis(1));

/// Of one node.
#[derive(Debug)]
pub(super) struct Budget {
    proving: Pace,
    verifying: Pace,
    recording: Pace,
}

impl Budget {
    const fn new() -> Self {
        Self {
            proving: Pace::new(PROOFS.0, PROOFS.1),
            verifying: Pace::new(PROOFS.0, PROOFS.1),
            recording: Pace::new(PAIRS.0, PAIRS.1),
        }
    }

    /// Takes one; false if there is none left.
    pub(super) fn take(&mut self, what: Spend, now: BootTime) -> bool {
        match what {
            Spend::Proving => self.proving.take(now),
            Spend::Verifying => self.verifying.take(now),
            Spend::Recording => self.recording.take(now),
        }
    }
}

/// Of every node that the cluster state has.
#[derive(Debug, Default)]
pub(super) struct Budgets(Mutex<BTreeMap<String, Arc<Mutex<Budget>>>>);

impl Budgets {
    pub(super) fn of(&self, node: &str) -> Arc<Mutex<Budget>> {
        let mut all = self.all();
        Arc::clone(all.entry(node.to_owned()).or_insert_with(|| Arc::new(Mutex::new(Budget::new()))))
    }

    pub(super) fn retain(&self, known: impl Fn(&str) -> bool) {
        self.all().retain(|node, _| known(node));
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Mutex<Budget>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_stays_spent_and_each_kind_is_apart() {
        let budgets = Budgets::default();
        let now = BootTime(1_000_000_000_000);
        let spend = |what| (0..5000).filter(|_| budgets.of("n1").lock().unwrap().take(what, now)).count();
        assert_eq!(spend(Spend::Proving), 1024);
        assert_eq!(spend(Spend::Proving), 0, "another session");
        assert_eq!(spend(Spend::Verifying), 1024);
        assert_eq!(spend(Spend::Recording), 5000);
        assert!(budgets.of("n2").lock().unwrap().take(Spend::Proving, now), "another node");
        let later = now.saturating_add(Duration::from_millis(5));
        assert!(budgets.of("n1").lock().unwrap().take(Spend::Proving, later));
        budgets.retain(|node| node == "n2");
        assert!(budgets.of("n1").lock().unwrap().take(Spend::Proving, now), "forgotten");
    }
}
