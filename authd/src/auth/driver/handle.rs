//! What the rest of the daemon sees of the driver.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use auth_ebpf_abi::AuthKey;
use tokio::sync::{mpsc, oneshot, watch};

use super::wanted::Wanted;
use crate::auth::event::{Accepted, Event, Refused};
use crate::auth::machine::Counters;
use crate::auth::outlook::Outlook;
use crate::auth::record::Record;

/// Figures that change with every event.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) dropped: AtomicU64,
    pub(super) running: AtomicUsize,
    pub(super) waiting: AtomicUsize,
    counters: Mutex<Counters>,
}

impl State {
    pub(super) fn publish(&self, counters: Counters) {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// Something for the machine that must not be lost.
#[derive(Debug)]
pub(super) enum Request {
    Event(Event),
    Accept(Accepted, oneshot::Sender<Result<(), Refused>>),
    Inspect(AuthKey, oneshot::Sender<Outlook>),
}

/// Talks to the driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) wanted: Arc<Wanted>,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) accepts: mpsc::Sender<Request>,
    pub(super) records: watch::Receiver<Arc<Vec<Record>>>,
    pub(super) state: Arc<State>,
}

impl Handle {
    /// A packet lacks this authentication. False, and counted, if the queue is full.
    #[must_use]
    pub fn ask(&self, key: AuthKey) -> bool {
        let taken = self.wanted.push(key);
        if !taken {
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Tells the machine what happened; waits while the queue is full. After the driver's end, nothing.
    pub async fn tell(&self, event: Event) {
        if self.requests.send(Request::Event(event)).await.is_err() {
            tracing::debug!("the driver has ended");
        }
    }

    /// Records a handshake that another node began; on `Ok` it stands in the map.
    ///
    /// # Errors
    /// When the machine refuses it.
    pub async fn accept(&self, accepted: Accepted) -> Result<(), Refused> {
        let (answer, outcome) = oneshot::channel();
        if self.accepts.send(Request::Accept(accepted, answer)).await.is_err() {
            return Err(Refused::Full);
        }
        outcome.await.unwrap_or(Err(Refused::Full))
    }

    /// What is known of a pair; `None` after the driver's end.
    pub async fn outlook(&self, key: AuthKey) -> Option<Outlook> {
        let (answer, outlook) = oneshot::channel();
        self.requests.send(Request::Inspect(key, answer)).await.ok()?;
        outlook.await.ok()
    }

    /// What stands in the map, by key; follows changes within a few tens of milliseconds,
    /// or twenty times what it takes to copy them all.
    #[must_use]
    pub fn records(&self) -> watch::Receiver<Arc<Vec<Record>>> {
        self.records.clone()
    }

    /// What has happened since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *self.state.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests dropped because the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }

    /// Handshakes that run, and pairs that wait for one to end.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.state.running.load(Ordering::Relaxed), self.state.waiting.load(Ordering::Relaxed))
    }
}
