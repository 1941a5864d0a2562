//! The machine: what it knows, what it does by itself, and the successes that make an entry. The events
//! that end entries are in `fate`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use auth_ebpf_abi::{AuthEntry, AuthKey, AuthType, IdentityNumber, NodeNumber, capacity, identity};

use super::change::{Cause, Change};
use super::event::{Accepted, Action, Desired, Event, Failure, Refused, Success};
use super::losses::{Loss, Losses};
use super::outlook::Failures;
use super::pair::{Attempt, Held, Pair, canonical, written};
use super::queue::{Lane, Place, Queue, Running};
use super::record::{Method, Record, Why};
use crate::clock::BootTime;

/// How many times longer a pair that no packet has asked for pauses at most.
const AHEAD_PAUSE: u32 = 12;
/// Shortest time between two writes of the same entry.
const REWRITE: Duration = Duration::from_secs(1);

/// Limits and times.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Pause after the first failure; doubles with each.
    pub backoff_first: Duration,
    /// Longest pause between attempts.
    pub backoff_limit: Duration,
    /// How long one request for a pair counts.
    pub interest: Duration,
    /// Most handshakes at a time. An eighth of them is kept for renewals, another for requests.
    pub max_running: usize,
    /// Of these, with one other node.
    pub max_per_node: usize,
    /// Pairs that are authenticated ahead of traffic; they have a quarter of the handshakes.
    pub preauthenticate: usize,
    /// Most pairs that are known, with or without an entry. Beyond them requests drop and are counted (`no_room`), and
    /// those of other nodes are refused (`full`).
    pub max_pairs: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            backoff_first: Duration::from_millis(100),
            backoff_limit: Duration::from_secs(5),
            interest: Duration::from_secs(30),
            max_running: 64,
            max_per_node: 16,
            preauthenticate: 0,
            max_pairs: capacity::AUTH,
        }
    }
}

/// A source of randomness: a number below the argument, or 0 for 0.
pub type Jitter = Box<dyn FnMut(u64) -> u64 + Send>;

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests by packets.
    pub wanted: u64,
    /// Of these, for a pair that is already being seen to.
    pub deduplicated: u64,
    /// Of these, not allowed: no policy, a reserved identity, or no longer there.
    pub not_desired: u64,
    /// Of these, dropped for want of room.
    pub no_room: u64,
    /// Of these, for a pair whose entry stands: it was written once more. Should be none.
    pub rewritten: u64,
    /// Handshakes begun here.
    pub started: u64,
    /// Of these, succeeded.
    pub succeeded: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Of these, ended after their cause had gone.
    pub overtaken: u64,
    /// Handshakes of other nodes that were recorded.
    pub accepted: u64,
    /// Handshakes of other nodes that were not recorded.
    pub refused: u64,
    /// Entries that ended with an SVID.
    pub expired: u64,
    /// Entries that ended because an SVID or node was withdrawn or revoked.
    pub revoked: u64,
    /// Entries that ended because policy or placement no longer asks for them.
    pub obsolete: u64,
}

/// What is known of another node.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) up: bool,
    pub(super) epoch: u32,
    pub(super) identities: Arc<BTreeSet<IdentityNumber>>,
}

/// Decides which pairs authenticate, when, and how long that stands.
pub struct Machine {
    pub(super) config: Config,
    pub(super) jitter: Jitter,
    pub(super) pairs: BTreeMap<AuthKey, Pair>,
    pub(super) svids: BTreeMap<IdentityNumber, BootTime>,
    pub(super) peers: BTreeMap<NodeNumber, Peer>,
    pub(super) desired: Option<Arc<Desired>>,
    pub(super) losses: Losses,
    pub(super) failures: Failures,
    /// Handshakes of other nodes that were not recorded.
    refusals: Failures,
    timers: BTreeSet<(BootTime, AuthKey)>,
    queue: Queue,
    running: Running,
    pub(super) actions: VecDeque<Action>,
    pub(super) changes: VecDeque<Change>,
    pub(super) counters: Counters,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("pairs", &self.pairs)
            .field("running", &self.running.total())
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine that knows nothing yet and, until [`Event::Desired`] comes, allows nothing new.
    #[must_use]
    pub fn new(config: Config, jitter: Jitter) -> Self {
        Self {
            config,
            jitter,
            pairs: BTreeMap::new(),
            svids: BTreeMap::new(),
            peers: BTreeMap::new(),
            desired: None,
            losses: Losses::default(),
            failures: Failures::default(),
            refusals: Failures::default(),
            timers: BTreeSet::new(),
            queue: Queue::default(),
            running: Running::default(),
            actions: VecDeque::new(),
            changes: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Takes over an entry that stands in the map from before. It stays until it ends or its cause is known
    /// to have gone, and is renewed as soon as that is possible.
    pub fn adopt(&mut self, key: AuthKey, entry: AuthEntry, now: BootTime) {
        let expires = BootTime(entry.expires);
        if expires <= now || !is_ours(&key) || self.pairs.len() >= self.config.max_pairs {
            self.actions.push_back(Action::RemoveEntry(key));
            return;
        }
        let key = canonical(key);
        let other = self.pairs.get(&key).and_then(|pair| pair.held.as_ref());
        let expires = other.map_or(expires, |held| held.record.expires.min(expires));
        let record = Record {
            key,
            local_spiffe: None,
            remote_spiffe: None,
            established: now,
            expires,
            epoch: entry.epoch,
            group: "",
            latency: Duration::ZERO,
            method: Method::Unknown,
            why: Why::Adopted,
        };
        let held = Held::new(record, &mut *self.jitter);
        self.changes.push_back(Change::Authenticated(held.record.clone()));
        self.pairs.entry(key).or_default().held = Some(held);
        self.evaluate(key, now);
        self.fill(now);
    }

    /// Takes in what has happened. What is to be done about it comes from [`Self::actions`].
    pub fn handle(&mut self, event: Event, now: BootTime) {
        match event {
            Event::AuthWanted(key) => self.wanted(key, now),
            Event::Finished(key, result) => self.finished(canonical(key), result, now),
            Event::SvidChanged { identity, expires } => self.svid_changed(identity, expires, now),
            Event::SvidMissing(identity) => self.svid_missing(identity, now),
            Event::SvidWithdrawn(identity) => self.svid_withdrawn(identity, now),
            Event::AnchorLost(identity) => self.anchor_lost(identity, now),
            Event::PeerUp { node, epoch, identities } => self.peer_up(node, epoch, identities, now),
            Event::PeerDown(node) => self.peer_down(node),
            Event::PeerRevoked { node, identity } => self.peer_revoked(node, identity, now),
            Event::Desired(desired) => self.desire(desired, now),
            Event::WriteFailed(key) => self.write_failed(canonical(key), now),
            Event::Flush => self.flush(now),
            Event::Tick => {}
        }
        self.run_timers(now);
        self.fill(now);
    }

    /// Records a handshake that the other node began, or says why not. The caller carries out
    /// [`Self::actions`] before it tells the other node.
    ///
    /// # Errors
    /// When the pair may not have an entry (any more), or there is no room.
    pub fn accept(&mut self, accepted: Accepted, now: BootTime) -> Result<(), Refused> {
        let key = accepted.key;
        let outcome = self.check(&accepted, now);
        match outcome {
            Ok(()) => {
                self.counters.accepted += 1;
                self.hold(accepted.key, accepted.success, Why::Accepted, now);
            }
            Err(refused) => {
                self.counters.refused += 1;
                // A node may try without end: what is said once about a pair need not be said again.
                let failure = Failure { reason: refused.as_str(), retryable: true };
                if self.refusals.is_news(key, failure, now) {
                    self.changes.push_back(Change::Refused(key, refused));
                }
            }
        }
        self.run_timers(now);
        self.fill(now);
        outcome
    }

    /// What is to be done, in this order. Removes it.
    pub fn actions(&mut self) -> impl Iterator<Item = Action> + use<> {
        std::mem::take(&mut self.actions).into_iter()
    }

    /// What has changed since the last call, in this order. Removes it.
    pub fn changes(&mut self) -> impl Iterator<Item = Change> + use<> {
        std::mem::take(&mut self.changes).into_iter()
    }

    /// When [`Event::Tick`] is due at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<BootTime> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What stands in the map, by key.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        self.pairs.iter().filter_map(|(key, pair)| Some((key, &pair.held.as_ref()?.record))).flat_map(
            |(key, record)| {
                written(*key).map(move |written| {
                    let (local_spiffe, remote_spiffe) = if written == *key {
                        (record.local_spiffe.clone(), record.remote_spiffe.clone())
                    } else {
                        (record.remote_spiffe.clone(), record.local_spiffe.clone())
                    };
                    Record { key: written, local_spiffe, remote_spiffe, ..record.clone() }
                })
            },
        )
    }

    /// Whether this pair has an entry.
    #[must_use]
    pub fn holds(&self, key: AuthKey) -> bool {
        self.pairs.get(&canonical(key)).is_some_and(|pair| pair.held.is_some())
    }

    /// What has happened since the start.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Handshakes that run, and pairs that wait for one to end.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.running.total(), self.queue.len())
    }

    fn wanted(&mut self, key: AuthKey, now: BootTime) {
        self.counters.wanted += 1;
        if !is_ours(&key) || !self.allows(&key) {
            self.counters.not_desired += 1;
            return;
        }
        let key = canonical(key);
        let known = self.pairs.len();
        match self.pairs.get_mut(&key) {
            Some(pair) => {
                self.counters.deduplicated += 1;
                pair.asked_until = now.saturating_add(self.config.interest);
                self.rewrite(key, now);
            }
            None if known >= self.config.max_pairs => {
                self.counters.no_room += 1;
                return;
            }
            None => {
                let asked_until = now.saturating_add(self.config.interest);
                self.pairs.insert(key, Pair { asked_until, ..Pair::default() });
            }
        }
        self.give_up_if_lost(key, now);
        self.evaluate(key, now);
    }

    /// A pair that lacks an SVID which was taken back is not about to authenticate, as one would be that
    /// waits for its first.
    pub(super) fn give_up_if_lost(&mut self, key: AuthKey, now: BootTime) {
        let (other, announced) = if key.node == 0 {
            (Loss::Local(key.remote), true)
        } else {
            let peer = self.peers.get(&key.node);
            let announced = peer.is_none_or(|peer| peer.identities.contains(&key.remote));
            (Loss::Remote(key.node, key.remote), announced)
        };
        let lacks_svid = self.svid_expires(&key) <= now || !announced;
        if lacks_svid && self.losses.lately(now, &[Loss::Local(key.local), other]) {
            self.actions.push_back(Action::GiveUp(key));
        }
    }

    /// A packet asks although the entry stands: the map has lost it, or never had it.
    fn rewrite(&mut self, key: AuthKey, now: BootTime) {
        let Some(held) = self.pairs.get_mut(&key).and_then(|pair| pair.held.as_mut()) else { return };
        if now.since(held.written_at) < REWRITE {
            return;
        }
        held.written_at = now;
        self.counters.rewritten += 1;
        let entry = held.entry();
        self.actions.extend(written(key).map(|key| Action::WriteEntry(key, entry)));
    }

    fn finished(&mut self, key: AuthKey, result: Result<Success, Failure>, now: BootTime) {
        let Some(attempt) = self.pairs.get_mut(&key).and_then(|pair| pair.attempt.take()) else { return };
        self.running.end(key.node, attempt.why);
        match result {
            Ok(success) if !attempt.void && self.counts(&key, &success, now) => {
                self.counters.succeeded += 1;
                self.hold(key, success, attempt.why, now);
                return;
            }
            // The cause has gone or changed: no fault of the pair, which may start afresh.
            Ok(_) => self.counters.overtaken += 1,
            Err(_) if attempt.void => self.counters.overtaken += 1,
            Err(failure) => self.failed(key, failure, now),
        }
        self.evaluate(key, now);
    }

    fn failed(&mut self, key: AuthKey, failure: Failure, now: BootTime) {
        self.counters.failed += 1;
        self.failures.note(key, failure, now);
        let Some(pair) = self.pairs.get_mut(&key) else { return };
        // Nobody need wait to hear once more that what has to be proven anew can't be.
        if !failure.retryable && pair.held.as_ref().is_some_and(|held| held.prove_until.is_some()) {
            let ended = self.remove(key, Cause::Untrusted);
            self.counters.revoked += u64::from(ended);
        }
        let Some(pair) = self.pairs.get_mut(&key) else { return };
        let doublings = if failure.retryable { pair.failures.min(16) } else { 16 };
        pair.failures = pair.failures.saturating_add(1);
        // Nobody waits for a pair that no packet has asked for.
        let limit = if pair.asked_until > now { 1 } else { AHEAD_PAUSE };
        let limit = self.config.backoff_limit.saturating_mul(limit);
        let pause = self.config.backoff_first.saturating_mul(1 << doublings).min(limit);
        let half = u64::try_from((pause / 2).as_nanos()).unwrap_or(u64::MAX);
        let pause = pause / 2 + Duration::from_nanos((self.jitter)(half));
        pair.retry_at = now.saturating_add(pause);
        if pair.failing.replace(failure.reason) != Some(failure.reason) {
            self.changes.push_back(Change::Failing { key, failure, pause });
        }
    }

    /// Whether a success may still become an entry.
    fn counts(&self, key: &AuthKey, success: &Success, now: BootTime) -> bool {
        let vouched = key.node == 0
            || self.peers.get(&key.node).is_some_and(|peer| {
                peer.epoch == success.proof.epoch && peer.identities.contains(&key.remote)
            });
        success.proof.expires > now && vouched && self.allows(key) && self.svid_expires(key) > now
    }

    fn check(&self, accepted: &Accepted, now: BootTime) -> Result<(), Refused> {
        let Accepted { key, began, success } = accepted;
        if !is_ours(key) || key.node == 0 || !self.allows(key) {
            return Err(Refused::NotDesired);
        }
        if self.svid_expires(key) <= now {
            return Err(Refused::NoSvid);
        }
        let causes = [Loss::Local(key.local), Loss::Remote(key.node, key.remote), Loss::Node(key.node)];
        if self.losses.overtook(*began, now, &causes) {
            return Err(Refused::Overtaken);
        }
        if !self.counts(key, success, now) {
            return Err(if success.proof.expires <= now {
                Refused::Overtaken
            } else {
                Refused::NotAnnounced
            });
        }
        if self.pairs.len() >= self.config.max_pairs && !self.pairs.contains_key(key) {
            return Err(Refused::Full);
        }
        Ok(())
    }

    fn hold(&mut self, key: AuthKey, success: Success, why: Why, now: BootTime) {
        let Success { proof, latency } = success;
        let record = Record {
            key,
            local_spiffe: Some(proof.local_spiffe),
            remote_spiffe: Some(proof.remote_spiffe),
            established: now,
            expires: proof.expires,
            epoch: proof.epoch,
            group: proof.group,
            latency,
            method: proof.method,
            why,
        };
        let held = Held::new(record, &mut *self.jitter);
        self.actions.extend(written(key).map(|key| Action::WriteEntry(key, held.entry())));
        self.failures.forget(&key);
        self.refusals.forget(&key);
        let record = held.record.clone();
        let pair = self.pairs.entry(key).or_default();
        pair.reset_backoff();
        pair.failing = None;
        let stood = pair.held.replace(held).is_some();
        self.changes.push_back(if stood { Change::Renewed(record) } else { Change::Authenticated(record) });
        self.evaluate(key, now);
    }

    pub(super) fn allows(&self, key: &AuthKey) -> bool {
        self.desired.as_ref().is_some_and(|desired| desired.allows(key))
    }

    /// The end of our own SVIDs for this pair: beyond it there can be no entry.
    fn svid_expires(&self, key: &AuthKey) -> BootTime {
        let expires = |identity| self.svids.get(&identity).copied().unwrap_or(BootTime::ZERO);
        if key.node == 0 { expires(key.local).min(expires(key.remote)) } else { expires(key.local) }
    }

    /// Whether an attempt could succeed, as far as is known here.
    fn ready(&self, key: &AuthKey, now: BootTime) -> bool {
        let reachable = key.node == 0
            || self.peers.get(&key.node).is_some_and(|peer| peer.up && peer.identities.contains(&key.remote));
        reachable && self.allows(key) && self.svid_expires(key) > now
    }

    /// Brings a pair's timer and its place in the queue up to date, and forgets it when nothing is left.
    pub(super) fn evaluate(&mut self, key: AuthKey, now: BootTime) {
        let ready = self.ready(&key, now);
        let svid_expires = self.svid_expires(&key);
        let Some(pair) = self.pairs.get_mut(&key) else { return };
        if let Some(held) = pair.held.take_if(|held| held.ends() <= now) {
            let (cause, counter) = if held.record.expires <= now {
                (Cause::Expired, &mut self.counters.expired)
            } else {
                (Cause::Untrusted, &mut self.counters.revoked)
            };
            *counter += 1;
            self.actions.extend(written(key).map(Action::RemoveEntry));
            self.changes.push_back(Change::Ended(key, cause));
        }
        let start = ready && pair.attempt.is_none() && pair.retry_at <= now;
        let due = pair.due(now, svid_expires).filter(|_| start);
        let queued = due.map(|why| {
            let since = pair.queued.map_or(now, |place| place.since);
            Place { lane: Lane::of(&key, why), since }
        });
        let idle = pair.is_idle(now);
        let wake = if idle { None } else { pair.next_wake(now) };
        move_within(&mut self.timers, &mut pair.wake, wake, key);
        let queued = queued.filter(|_| !idle);
        if pair.queued != queued {
            if let Some(place) = pair.queued {
                self.queue.remove(place, key);
            }
            if let Some(place) = queued {
                self.queue.insert(place, key);
            }
            pair.queued = queued;
        }
        if idle {
            self.pairs.remove(&key);
        }
    }

    fn run_timers(&mut self, now: BootTime) {
        while let Some((at, key)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(pair) = self.pairs.get_mut(&key) {
                pair.wake = None;
            }
            self.evaluate(key, now);
        }
    }

    /// Starts what is due as far as there is room, in turns.
    fn fill(&mut self, now: BootTime) {
        while let Some(key) = self.queue.pop(|lane| self.running.has_room(lane, &self.config)) {
            let svid_expires = self.svid_expires(&key);
            let ready = self.ready(&key, now);
            let Some(pair) = self.pairs.get_mut(&key) else { continue };
            pair.queued = None;
            let Some(why) = pair.due(now, svid_expires).filter(|_| ready) else { continue };
            pair.attempt = Some(Attempt { since: now, void: false, why });
            self.running.begin(key.node, why);
            self.counters.started += 1;
            let start = if key.node == 0 { Action::VerifyLocal(key) } else { Action::StartHandshake(key) };
            self.actions.push_back(start);
        }
    }
}

/// Whether an entry with this key can come from a handshake at all.
pub(super) const fn is_ours(key: &AuthKey) -> bool {
    key.auth_type == AuthType::Spire as u8
        && key.pad == 0
        && !identity::is_reserved(key.local)
        && !identity::is_reserved(key.remote)
}

fn move_within(
    set: &mut BTreeSet<(BootTime, AuthKey)>,
    place: &mut Option<BootTime>,
    to: Option<BootTime>,
    key: AuthKey,
) {
    if *place == to {
        return;
    }
    if let Some(old) = place.take() {
        set.remove(&(old, key));
    }
    if let Some(new) = to {
        set.insert((new, key));
        *place = Some(new);
    }
}
