//! What handshakes report to whoever counts them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Which part of a handshake was ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// We dialled.
    Client,
    /// The other node dialled.
    Server,
    /// Both identities are on this node.
    Local,
    /// A node session that we dialled.
    SessionClient,
    /// A node session that the other node dialled.
    SessionServer,
    /// A connection at the port that ended before it was either.
    Stranger,
}

impl Side {
    /// The word for metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Local => "local",
            Self::SessionClient => "session_client",
            Self::SessionServer => "session_server",
            Self::Stranger => "stranger",
        }
    }
}

/// Which part of a proof over a node session was ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proving {
    /// Of an identity of ours.
    Made,
    /// Of one of the other node.
    Verified,
}

impl Proving {
    /// The word for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Verified => "verified",
        }
    }
}

/// Takes note of every handshake that ends, and of every proof.
pub trait Observer: Send + Sync + 'static {
    /// An identity's proof over a node session was made or verified, or refused for a reason out of a fixed set of
    /// words.
    fn proof(&self, proving: Proving, outcome: Result<(), &'static str>);

    /// A handshake ended: `Ok`, or a reason out of a fixed set of words.
    fn handshake(&self, side: Side, outcome: Result<(), &'static str>, latency: Duration);
}

/// Counts in memory, by side and reason (`ok` for success).
#[derive(Debug, Default)]
pub struct Stats {
    handshakes: Mutex<BTreeMap<(Side, &'static str), u64>>,
    proofs: Mutex<BTreeMap<(Proving, &'static str), u64>>,
}

impl Stats {
    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<(Side, &'static str), u64> {
        self.handshakes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many proofs ended so.
    #[must_use]
    pub fn proofs(&self, proving: Proving, reason: &'static str) -> u64 {
        let proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.get(&(proving, reason)).copied().unwrap_or(0)
    }

    /// How many ended so at that side.
    #[must_use]
    pub fn count(&self, side: Side, reason: &'static str) -> u64 {
        self.counts().get(&(side, reason)).copied().unwrap_or(0)
    }
}

impl Observer for Stats {
    fn proof(&self, proving: Proving, outcome: Result<(), &'static str>) {
        let mut counts = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((proving, outcome.err().unwrap_or("ok"))).or_default() += 1;
    }

    fn handshake(&self, side: Side, outcome: Result<(), &'static str>, _: Duration) {
        let reason = outcome.err().unwrap_or("ok");
        let mut counts = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((side, reason)).or_default() += 1;
    }
}
