//! From the authentication's driver to what waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use auth_ebpf_abi::{AuthKey, IdentityNumber, NodeNumber};
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::Notify;

use crate::auth::{Failure, Proof, driver::Handshakes};

/// What became of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its entry stands in the map.
    Authenticated,
    /// It won't be tried again soon.
    Failed,
}

/// Outcomes that have not been seen to yet: one of each pair and node, so their number is bounded.
#[derive(Debug, Default)]
pub struct Outcomes {
    pending: Mutex<Pending>,
    notify: Notify,
}

/// What has become of what was waited for.
#[derive(Debug, Default)]
pub struct Pending {
    /// Of pairs.
    pub pairs: BTreeMap<AuthKey, Outcome>,
    /// Nodes that know whose the addresses here are.
    pub announced: BTreeSet<NodeNumber>,
}

impl Outcomes {
    /// Tells an outcome.
    pub fn tell(&self, key: AuthKey, outcome: Outcome) {
        let mut pending = self.pending();
        let last = pending.pairs.entry(key).or_insert(outcome);
        // An entry that was written has to be settled, whatever else was tried besides.
        if outcome == Outcome::Authenticated {
            *last = outcome;
        }
        drop(pending);
        self.notify.notify_one();
    }

    /// Tells that a node knows whose the addresses here are.
    pub fn announced(&self, node: NodeNumber) {
        self.pending().announced.insert(node);
        self.notify.notify_one();
    }

    /// Waits until there are some.
    pub async fn come(&self) {
        self.notify.notified().await;
    }

    /// Takes them.
    #[must_use]
    pub fn take(&self) -> Pending {
        std::mem::take(&mut *self.pending())
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handshakes whose final failures are told.
pub struct Telling {
    /// Does them.
    pub handshakes: Arc<dyn Handshakes>,
    /// Hears of it.
    pub outcomes: Arc<Outcomes>,
}

impl Handshakes for Telling {
    fn dial(&self, key: AuthKey) -> BoxFuture<'static, Result<Proof, Failure>> {
        let outcomes = Arc::clone(&self.outcomes);
        let dial = self.handshakes.dial(key);
        async move { dial.await.inspect_err(|failure| tell(&outcomes, key, failure)) }.boxed()
    }

    fn verify_local(&self, key: AuthKey) -> Result<Proof, Failure> {
        self.handshakes.verify_local(key).inspect_err(|failure| {
            tell(&self.outcomes, key, failure);
            tell(&self.outcomes, reversed(key), failure);
        })
    }

    fn give_up(&self, key: AuthKey) {
        self.outcomes.tell(key, Outcome::Failed);
        if key.node == 0 {
            self.outcomes.tell(reversed(key), Outcome::Failed);
        }
        self.handshakes.give_up(key);
    }

    fn revoke(&self, node: NodeNumber, identity: IdentityNumber) {
        self.handshakes.revoke(node, identity);
    }
}

/// The same pair on this node, seen from its other end.
const fn reversed(key: AuthKey) -> AuthKey {
    AuthKey { local: key.remote, remote: key.local, ..key }
}

fn tell(outcomes: &Outcomes, key: AuthKey, failure: &Failure) {
    if !failure.retryable {
        outcomes.tell(key, Outcome::Failed);
    }
}
