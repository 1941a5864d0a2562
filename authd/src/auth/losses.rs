//! What was lost lately, so that a handshake which began before the loss can't outlive it.

use std::collections::BTreeMap;
use std::time::Duration;

use auth_ebpf_abi::{IdentityNumber, NodeNumber};

use crate::clock::BootTime;

/// How long a loss is remembered: longer than any handshake may take.
const MEMORY: Duration = Duration::from_secs(60);

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
        self.0.retain(|_, at| now.since(*at) <= MEMORY);
        self.0.insert(loss, now);
    }

    /// Whether something that began then may have been overtaken by one of these losses.
    pub(super) fn overtook(&self, began: BootTime, now: BootTime, of: &[Loss]) -> bool {
        now.since(began) >= MEMORY || of.iter().any(|loss| self.0.get(loss).is_some_and(|at| began <= *at))
    }
}
