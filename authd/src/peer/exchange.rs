//! What the two ends of a node session prove to each other over it: identities, each once and by an authenticator
//! (RFC 9261), and words about pairs of them.
//!
//! A proof is of this session, of one certificate, and goes when the node takes the identity back. One request for an
//! identity is under way at a time, whoever waits for it. Messages come and go by the session's own task, which does
//! nothing here that takes time.

mod proof;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use auth_ebpf_abi::IdentityNumber;
use aws_lc_rs::rand;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::authenticator::{self, Authenticators};
use super::budget::{Budget, Spend};
use super::error::{Error, known_reason};
use super::role::Role;
use super::service::Shared;
use super::wire::{MAX_FRAME, PairAnswer, PairRequest, ProofAnswer, ProofRequest, SessionMessage, WireError};
use crate::auth::Failure;
use crate::auth::stats::Proving;
use crate::clock::BootTime;
use crate::svids::Credential;

pub(super) use proof::Held;

/// Messages that may wait to be sent; their senders wait with them.
const FRAMES: usize = 256;
/// Proofs that are asked for at a time: what comes back to all of them fits between two nodes.
const ASKED: usize = 16;
/// Requests of the other end that are served at a time.
const SERVED: usize = 128;
/// Longest authenticator that goes into a frame, with what is around it.
const MAX_AUTHENTICATOR: usize = MAX_FRAME - 1024;
/// An identity's number, then what nobody can foretell.
const CONTEXT: usize = 36;

/// Context of a request.
type Context = [u8; CONTEXT];
/// How a request for a proof has ended, once it has.
type Landed = Option<Result<Arc<Held>, Failure>>;

/// Of one session.
pub(super) struct Exchange {
    node: String,
    own: Role,
    authenticators: Arc<Authenticators>,
    frames: mpsc::Sender<SessionMessage>,
    budget: Arc<Mutex<Budget>>,
    asked: Semaphore,
    served: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: BTreeMap<IdentityNumber, Arc<Held>>,
    flights: BTreeMap<IdentityNumber, Flight>,
    pairs: BTreeMap<u64, oneshot::Sender<PairAnswer>>,
    last: u64,
    ended: bool,
}

/// A request for a proof that is under way.
struct Flight {
    context: Context,
    answer: Option<oneshot::Sender<ProofAnswer>>,
    landed: watch::Receiver<Landed>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Exchange {
    /// Of a session with `node` at whose end we have this role; what is to be sent comes out of the receiver.
    pub(super) fn new(
        node: String,
        own: Role,
        authenticators: Arc<Authenticators>,
        budget: Arc<Mutex<Budget>>,
    ) -> (Arc<Self>, mpsc::Receiver<SessionMessage>) {
        let (frames, receiver) = mpsc::channel(FRAMES);
        let exchange = Self {
            node,
            own,
            authenticators,
            frames,
            budget,
            asked: Semaphore::new(ASKED),
            served: Arc::new(Semaphore::new(SERVED)),
            state: Mutex::default(),
        };
        (Arc::new(exchange), receiver)
    }

    /// The proof of an identity of the other end, of the certificate with this hash if one is given. What is not held
    /// is asked for; the caller has looked whether the identity runs there.
    pub(super) async fn proof(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        identity: IdentityNumber,
        leaf: Option<&[u8]>,
    ) -> Result<Arc<Held>, Error> {
        let fits = |held: &Held| leaf.is_none_or(|leaf| held.svid.leaf_hash == *leaf);
        let mut landed = {
            let mut state = self.state();
            let now = shared.clock.now();
            if let Some(held) = state.held.get(&identity).filter(|held| held.ends > now && fits(held)) {
                return Ok(Arc::clone(held));
            }
            if state.ended {
                return Err(self.no_session());
            }
            match state.flights.get(&identity) {
                Some(flight) => flight.landed.clone(),
                None => self.take_off(&mut state, shared, identity, now)?,
            }
        };
        let result = landed.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone());
        let held = result
            .ok_or_else(|| self.no_session())?
            .map_err(|failure| Error::NoProof { identity, failure })?;
        if fits(&held) { Ok(held) } else { Err(Error::SvidChanged { identity }) }
    }

    /// Has the other end record a pair.
    pub(super) async fn pair(&self, request: PairRequest) -> Result<PairAnswer, Error> {
        let (sender, answer) = oneshot::channel();
        let number = {
            let mut state = self.state();
            if state.ended {
                return Err(self.no_session());
            }
            state.last = state.last.wrapping_add(1);
            let number = state.last;
            state.pairs.insert(number, sender);
            number
        };
        // Whatever becomes of us, nobody waits any more.
        let _forget = Forget { exchange: self, number };
        self.say(SessionMessage::PairRequest(PairRequest { number, ..request })).await?;
        answer.await.map_err(|_ended| self.no_session())
    }

    /// Room to serve one more request of the other end.
    pub(super) fn serve(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.served).try_acquire_owned().map_err(|_full| Error::Busy)
    }

    pub(super) fn spend(&self, what: Spend, now: BootTime) -> Result<(), Error> {
        let taken = self.budget.lock().unwrap_or_else(PoisonError::into_inner).take(what, now);
        if taken { Ok(()) } else { Err(Error::Busy) }
    }

    /// Sends a message when there is room.
    pub(super) async fn say(&self, message: SessionMessage) -> Result<(), Error> {
        self.frames.send(message).await.map_err(|_ended| self.no_session())
    }

    /// Sends a message if there is room: who doesn't read our answers doesn't get them.
    pub(super) fn say_now(&self, message: SessionMessage) {
        if self.frames.try_send(message).is_err() {
            tracing::debug!(node = self.node, "an answer was not sent: the node does not read");
        }
    }

    /// The other end has answered.
    pub(super) fn hear_proof(&self, answer: ProofAnswer) {
        let mut state = self.state();
        let flight = identity_in(&answer.context).and_then(|identity| state.flights.get_mut(&identity));
        let flight = flight.filter(|flight| *answer.context == flight.context);
        match flight.and_then(|flight| flight.answer.take()) {
            Some(waiting) => drop(waiting.send(answer)),
            None => tracing::debug!(node = self.node, "a proof that nobody waits for"),
        }
    }

    pub(super) fn hear_pair(&self, answer: PairAnswer) {
        match self.state().pairs.remove(&answer.number) {
            Some(waiting) => drop(waiting.send(answer)),
            None => tracing::debug!(node = self.node, "an answer about a pair that nobody waits for"),
        }
    }

    /// Drops the proof of this certificate.
    pub(super) fn outdated(&self, identity: IdentityNumber, leaf: &[u8]) {
        let mut state = self.state();
        if state.held.get(&identity).is_some_and(|held| held.svid.leaf_hash == *leaf) {
            state.held.remove(&identity);
        }
    }

    /// Drops the proofs of all other identities, and those that are under way.
    pub(super) fn retain(&self, keep: impl Fn(IdentityNumber) -> bool) {
        let mut state = self.state();
        state.held.retain(|identity, _| keep(*identity));
        state.flights.retain(|identity, _| keep(*identity));
    }

    /// Drops what has ended and what runs there no longer.
    pub(super) fn prune(&self, runs: impl Fn(IdentityNumber) -> bool, now: BootTime) {
        self.state().held.retain(|identity, held| held.ends > now && runs(*identity));
    }

    /// The session has ended: nothing that was proven over it counts, and nobody waits.
    pub(super) fn end(&self) {
        *self.state() = State { ended: true, ..State::default() };
    }

    /// Asks for a proof, in a task that outlives whoever waits for it.
    fn take_off(
        self: &Arc<Self>,
        state: &mut State,
        shared: &Arc<Shared>,
        identity: IdentityNumber,
        now: BootTime,
    ) -> Result<watch::Receiver<Landed>, Error> {
        self.spend(Spend::Verifying, now)?;
        let context = context(identity)?;
        let (sender, answer) = oneshot::channel();
        let (landing, landed) = watch::channel(None);
        state.flights.insert(identity, Flight { context, answer: Some(sender), landed: landed.clone() });
        let (exchange, shared_here) = (Arc::clone(self), Arc::clone(shared));
        shared.tasks.spawn(async move {
            let shared = shared_here;
            let asking = exchange.ask(&shared, identity, &context, answer);
            let asked = tokio::time::timeout(shared.options.setup_timeout, asking).await;
            let result = asked.unwrap_or(Err(Error::Timeout { stage: "a proof over the session" }));
            let result = exchange.land(identity, &context, result);
            if let Err(error) = &result {
                tracing::debug!(node = exchange.node, identity, %error, "proof over the session");
            }
            shared.observer.proof(Proving::Verified, result.as_ref().map(|_| ()).map_err(Error::as_str));
            landing.send_replace(Some(result.map_err(|error| error.failure())));
        });
        Ok(landed)
    }

    async fn ask(
        &self,
        shared: &Shared,
        identity: IdentityNumber,
        context: &Context,
        answer: oneshot::Receiver<ProofAnswer>,
    ) -> Result<Held, Error> {
        let _room = self.asked.acquire().await.map_err(|_closed| self.no_session())?;
        let prover = self.own.other();
        let request = authenticator::request(prover, context).map_err(not_proven(identity))?;
        let asked = ProofRequest { identity, request: request.clone() };
        self.say(SessionMessage::ProofRequest(asked)).await?;
        let answer = answer.await.map_err(|_ended| self.no_session())?;
        if answer.authenticator.is_empty() {
            return Err(Error::RefusedByPeer { reason: known_reason(&answer.refused) });
        }
        let chain = self.authenticators.verify(prover, &request, &answer.authenticator);
        let chain = chain.map_err(not_proven(identity))?;
        Held::new(chain, &shared.svids)
    }

    /// Keeps the proof, unless the identity has been taken back meanwhile.
    fn land(
        &self,
        identity: IdentityNumber,
        context: &Context,
        result: Result<Held, Error>,
    ) -> Result<Arc<Held>, Error> {
        let mut state = self.state();
        if state.flights.get(&identity).is_none_or(|flight| flight.context != *context) {
            let failure = Failure { reason: "overtaken", retryable: true };
            return Err(Error::NoProof { identity, failure });
        }
        state.flights.remove(&identity);
        let held = Arc::new(result?);
        state.held.insert(identity, Arc::clone(&held));
        Ok(held)
    }

    /// Proves an identity of ours, as the other end has asked.
    pub(super) fn prove(
        &self,
        identity: IdentityNumber,
        request: &[u8],
        own: &Credential,
    ) -> Result<ProofAnswer, Error> {
        let context = self.context(identity, request)?.to_vec();
        let key = own.svid.signing_key();
        let proven = self.authenticators.prove(self.own, request, own.svid.chain(), &*key);
        let authenticator = match proven {
            Err(authenticator::Invalid::TooLong) => return Err(Error::TooLarge { identity }),
            proven => proven.map_err(not_proven(identity))?,
        };
        if authenticator.len() > MAX_AUTHENTICATOR {
            return Err(Error::TooLarge { identity });
        }
        Ok(ProofAnswer { context, authenticator, refused: String::new() })
    }

    /// The context of a request of the other end, which must be about this identity.
    pub(super) fn context<'a>(&self, identity: IdentityNumber, request: &'a [u8]) -> Result<&'a [u8], Error> {
        let context = authenticator::context_of(self.own, request).map_err(not_proven(identity))?;
        if identity_in(context) == Some(identity) {
            return Ok(context);
        }
        Err(WireError::Unexpected { expected: "a context that begins with the identity" }.into())
    }

    fn no_session(&self) -> Error {
        Error::NoSession { node: self.node.clone() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a request for a pair back.
struct Forget<'a> {
    exchange: &'a Exchange,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.exchange.state().pairs.remove(&self.number);
    }
}

/// What is wrong with an authenticator, or a request for one, about this identity.
fn not_proven(identity: IdentityNumber) -> impl Fn(authenticator::Invalid) -> Error {
    move |reason| Error::NotProven { identity, reason: reason.to_string() }
}

/// A new context, for one request.
fn context(identity: IdentityNumber) -> Result<Context, Error> {
    let mut context = [0; CONTEXT];
    let (number, random) = context.split_at_mut(size_of::<IdentityNumber>());
    number.copy_from_slice(&identity.to_be_bytes());
    rand::fill(random).map_err(|_no_randomness| Error::Tls(std::io::Error::other("no randomness")))?;
    Ok(context)
}

/// The identity with which a context begins, if it has the right length.
fn identity_in(context: &[u8]) -> Option<IdentityNumber> {
    let number = context.first_chunk().filter(|_| context.len() == CONTEXT)?;
    Some(IdentityNumber::from_be_bytes(*number))
}
