//! The shell around the machine: one task owns it and the map, so there is no lock and no race between
//! a revocation and a success. Losses come first, then what other nodes ask for, then our own results,
//! and requests of packets last: those are dropped and counted when the queue is full, for the packet's
//! sender tries again.

mod account;
mod handle;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use auth_ebpf_abi::{AuthEntry, AuthKey, IdentityNumber, NodeNumber};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::event::{Action, Event, Failure, Proof, Refused, Success};
use super::machine::{Config, Jitter, Machine};
use super::record::Record;
use super::stats::{Observer, Side};
use crate::clock::{BootTime, Clock};

pub use handle::Handle;
use handle::{Request, State};
use wanted::Wanted;

/// Events and accepted handshakes that may wait; their senders wait with them.
const EVENTS: usize = 256;
/// Longest sleep: boot time goes on in suspend, the runtime's clock doesn't.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// Shortest time between two publications of the records, as long as they are few.
const PUBLISH: Duration = Duration::from_millis(50);
/// Pause before a failed removal is tried again.
const REMOVE_AGAIN: Duration = Duration::from_millis(100);

/// What became of a handshake whose code has a fault.
const PANICKED: Failure = Failure { reason: "panic", retryable: false };

/// Why the table did not do it.
pub type TableError = Box<dyn std::error::Error + Send + Sync>;

/// The `auth` map. Removing what is not there is no error.
pub trait AuthTable: Send + Sync + 'static {
    /// Writes or replaces an entry.
    ///
    /// # Errors
    /// When the entry does not stand in the map afterwards.
    fn insert(&self, key: AuthKey, entry: AuthEntry) -> Result<(), TableError>;

    /// Removes an entry.
    ///
    /// # Errors
    /// When the entry may still stand in the map.
    fn remove(&self, key: &AuthKey) -> Result<(), TableError>;

    /// What stands in the map.
    ///
    /// # Errors
    /// When the map can't be read.
    fn entries(&self) -> Result<Vec<(AuthKey, AuthEntry)>, TableError>;
}

/// Does what the machine can only ask for.
pub trait Handshakes: Send + Sync + 'static {
    /// Dials the pair's node and proves both identities. Must end by itself in bounded time.
    fn dial(&self, key: AuthKey) -> BoxFuture<'static, Result<Proof, Failure>>;

    /// Verifies both SVIDs of a pair on this node. May take as long as a few signatures: it runs on a thread of its own.
    ///
    /// # Errors
    /// When one is missing or doesn't verify.
    fn verify_local(&self, key: AuthKey) -> Result<Proof, Failure>;

    /// Hears of a pair that is not about to authenticate: nothing need wait for it.
    fn give_up(&self, key: AuthKey);

    /// Tells a node, if its session is up, that an identity of ours has lost its SVID.
    fn revoke(&self, node: NodeNumber, identity: IdentityNumber);
}

/// What a driver is made of.
pub struct Settings {
    /// Limits and times of the machine.
    pub config: Config,
    /// Its randomness.
    pub jitter: Jitter,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// The map.
    pub table: Arc<dyn AuthTable>,
    /// Who counts handshakes.
    pub observer: Arc<dyn Observer>,
}

/// Owns the machine.
pub struct Driver {
    machine: Machine,
    clock: Arc<dyn Clock>,
    table: Arc<dyn AuthTable>,
    observer: Arc<dyn Observer>,
    wanted: Arc<Wanted>,
    requests: mpsc::Receiver<Request>,
    accepts: mpsc::Receiver<Request>,
    records: watch::Sender<Arc<Vec<Record>>>,
    state: Arc<State>,
    running: JoinSet<(AuthKey, Result<Proof, Failure>, BootTime)>,
    dirty: bool,
    stuck: BTreeSet<AuthKey>,
}

impl Driver {
    /// A driver, with what stands in the map taken over, and the handle to it.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn new(settings: Settings) -> Result<(Self, Handle), TableError> {
        let Settings { config, jitter, clock, table, observer } = settings;
        let mut machine = Machine::new(config, jitter);
        let now = clock.now();
        for (key, entry) in table.entries()? {
            machine.adopt(key, entry, now);
        }
        let wanted = Arc::new(Wanted::default());
        let (request_sender, requests) = mpsc::channel(EVENTS);
        let (accept_sender, accepts) = mpsc::channel(EVENTS);
        let (records, records_receiver) = watch::channel(Arc::new(Vec::new()));
        let state = Arc::new(State::default());
        let handle = Handle {
            wanted: Arc::clone(&wanted),
            requests: request_sender,
            accepts: accept_sender,
            records: records_receiver,
            state: Arc::clone(&state),
        };
        let driver = Self {
            machine,
            clock,
            table,
            observer,
            wanted,
            requests,
            accepts,
            records,
            state,
            running: JoinSet::new(),
            dirty: true,
            stuck: BTreeSet::new(),
        };
        Ok((driver, handle))
    }

    /// Runs until `stop`, and leaves the map as it is then.
    pub async fn run(mut self, handshakes: Arc<dyn Handshakes>, stop: CancellationToken) {
        let mut publish = tokio::time::interval(PUBLISH);
        publish.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.carry_out(&handshakes);
        loop {
            let pause = self.pause();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(request) = self.requests.recv() => self.request(request, &handshakes),
                Some(request) = self.accepts.recv() => self.request(request, &handshakes),
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => self.ended(ended),
                _ = publish.tick(), if self.dirty => {
                    let began = self.clock.now();
                    self.publish();
                    // Tens of thousands of records take their time: a twentieth of ours is enough.
                    publish.reset_after(PUBLISH.max(self.clock.now().since(began).saturating_mul(20)));
                }
                key = self.wanted.next() => self.handle(Event::AuthWanted(key)),
                () = tokio::time::sleep(pause) => self.handle(Event::Tick),
            }
            self.carry_out(&handshakes);
        }
        self.wanted.close();
        self.running.shutdown().await;
        self.publish();
    }

    fn handle(&mut self, event: Event) {
        self.machine.handle(event, self.clock.now());
    }

    fn request(&mut self, request: Request, handshakes: &Arc<dyn Handshakes>) {
        match request {
            Request::Event(event) => self.handle(event),
            Request::Inspect(key, answer) => drop(answer.send(self.machine.outlook(key))),
            Request::Accept(accepted, answer) => {
                let key = accepted.key;
                let latency = accepted.success.latency;
                let outcome = self.machine.accept(accepted, self.clock.now());
                // Recorded means that it stands in the map: that comes before the answer.
                self.carry_out(handshakes);
                let outcome =
                    outcome.and_then(|()| self.machine.holds(key).then_some(()).ok_or(Refused::Full));
                self.observer.handshake(Side::Server, outcome.map_err(|refused| refused.as_str()), latency);
                if answer.send(outcome).is_err() {
                    tracing::debug!(
                        local = key.local,
                        remote = key.remote,
                        "its connection has gone meanwhile"
                    );
                }
            }
        }
    }

    fn ended(&mut self, ended: Result<(AuthKey, Result<Proof, Failure>, BootTime), tokio::task::JoinError>) {
        // Panics are caught within, and tasks cancelled at the end only.
        let Ok((key, result, began)) = ended else { return };
        let latency = self.clock.now().since(began);
        let side = if key.node == 0 { Side::Local } else { Side::Client };
        let outcome = result.as_ref().map(|_| ()).map_err(|failure| failure.reason);
        self.observer.handshake(side, outcome, latency);
        self.handle(Event::Finished(key, result.map(|proof| Success { proof, latency })));
    }

    /// Does what the machine wants done, also what it wants because of that.
    fn carry_out(&mut self, handshakes: &Arc<dyn Handshakes>) {
        for key in std::mem::take(&mut self.stuck) {
            self.remove(key);
        }
        loop {
            let actions: Vec<Action> = self.machine.actions().collect();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.act(action, handshakes);
            }
        }
        let now = self.clock.now();
        self.machine.changes().for_each(|change| account::write(&change, now));
        let (running, waiting) = self.machine.load();
        self.state.running.store(running, Ordering::Relaxed);
        self.state.waiting.store(waiting, Ordering::Relaxed);
        self.state.publish(self.machine.counters());
    }

    fn act(&mut self, action: Action, handshakes: &Arc<dyn Handshakes>) {
        match action {
            Action::StartHandshake(key) => {
                let dial = handshakes.dial(key);
                let began = self.clock.now();
                // A pair whose handshake never ended would wait for ever.
                let dial = AssertUnwindSafe(dial).catch_unwind();
                self.running.spawn(async move { (key, dial.await.unwrap_or(Err(PANICKED)), began) });
            }
            Action::VerifyLocal(key) => {
                let (began, handshakes) = (self.clock.now(), Arc::clone(handshakes));
                // Signatures take their time, and there may be many pairs: not on this task.
                self.running.spawn_blocking(move || {
                    let verify = AssertUnwindSafe(|| handshakes.verify_local(key));
                    (key, std::panic::catch_unwind(verify).unwrap_or(Err(PANICKED)), began)
                });
            }
            Action::WriteEntry(key, entry) => {
                self.dirty = true;
                self.stuck.remove(&key);
                if let Err(error) = self.table.insert(key, entry) {
                    tracing::error!(
                        local = key.local,
                        remote = key.remote,
                        node = key.node,
                        error,
                        "auth entry not written"
                    );
                    self.handle(Event::WriteFailed(key));
                }
            }
            Action::RemoveEntry(key) => self.remove(key),
            Action::GiveUp(key) => handshakes.give_up(key),
            Action::TellPeer { node, identity } => handshakes.revoke(node, identity),
        }
    }

    fn remove(&mut self, key: AuthKey) {
        self.dirty = true;
        if let Err(error) = self.table.remove(&key) {
            tracing::error!(
                local = key.local,
                remote = key.remote,
                node = key.node,
                error,
                "auth entry not removed, trying again"
            );
            self.stuck.insert(key);
        }
    }

    fn publish(&mut self) {
        self.dirty = false;
        self.records.send_replace(Arc::new(self.machine.records().collect()));
    }

    fn pause(&self) -> Duration {
        if !self.stuck.is_empty() {
            return REMOVE_AGAIN;
        }
        let left = self.machine.next_deadline().map(|at| at.since(self.clock.now()));
        left.map_or(LONGEST_SLEEP, |left| left.min(LONGEST_SLEEP))
    }
}
