//! What was lost lately, so that a handshake which began before the loss can't outlive it.

use std::collections::BTreeMap;
use std::time::Duration;

use auth_ebpf_abi::{IdentityNumber, NodeNumber};

use crate::clock::BootTime;

/// How long a loss is remembered: longer than any handshake may take.
const MEMORY: Duration = Duration::from_secs(60);

/// Identities of one node that are remembered one by one when they go at once.
const SEPARATELY: usize = 16;

/// Whose proof was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loss {
    /// An identity of ours.
    Local(IdentityNumber),
    /// An identity of a node.
    Remote(NodeNumber, IdentityNumber),
    /// A node, with all that it vouches for.
    Node(NodeNumber),
}

#[derive(Debug, Default)]
pub(super) struct Losses(BTreeMap<Loss, BootTime>);

impl Losses {
    pub(super) fn note(&mut self, loss: Loss, now: BootTime) {
        self.forget(now);
        self.0.insert(loss, now);
    }

    /// Identities that a node vouches for no more. Of many the whole node is remembered, which says more and
    /// takes no room: a peer may announce and take back what it likes.
    pub(super) fn note_gone(&mut self, node: NodeNumber, gone: &[IdentityNumber], now: BootTime) {
        self.forget(now);
        if gone.len() > SEPARATELY {
            self.0.insert(Loss::Node(node), now);
        } else {
            self.0.extend(gone.iter().map(|identity| (Loss::Remote(node, *identity), now)));
        }
    }

    fn forget(&mut self, now: BootTime) {
        self.0.retain(|_, at| now.since(*at) <= MEMORY);
    }

    /// Whether one of these losses is remembered.
    pub(super) fn lately(&self, now: BootTime, of: &[Loss]) -> bool {
        of.iter().any(|loss| self.0.get(loss).is_some_and(|at| now.since(*at) <= MEMORY))
    }

    /// Whether something that began then may have been overtaken by one of these losses.
    pub(super) fn overtook(&self, began: BootTime, now: BootTime, of: &[Loss]) -> bool {
        now.since(began) >= MEMORY || of.iter().any(|loss| self.0.get(loss).is_some_and(|at| began <= *at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was quadratic, and without a bound: 4,096 identities announced and taken back 20 times a second.
    #[test]
    fn a_node_that_takes_back_identities_without_end_fills_no_memory() {
        let mut losses = Losses::default();
        let mut now = BootTime(1_000_000_000_000);
        for round in 0..1000u32 {
            let gone: Vec<u32> = (0..4096).map(|number| round * 4096 + number).collect();
            losses.note_gone(1, &gone, now);
            now = now.saturating_add(Duration::from_millis(50));
        }
        assert_eq!(losses.0.len(), 1);
        assert!(losses.overtook(BootTime(1_000_000_000_000), now, &[Loss::Node(1)]));
    }
}
