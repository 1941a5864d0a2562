//! One node's agent: which entries a caller matches, SVIDs kept until half of their life, and streams that are
//! told of every change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

use super::ca::Issued;
use super::world::{State, World};
use crate::{Entry, Selector, SpiffeId};

/// SPIRE's words when nothing is registered for a caller.
pub(crate) const NO_IDENTITY: &str = "no identity issued";
const BACKDATING: Duration = Duration::from_secs(10);

/// An agent and the SVIDs that it has cached.
#[derive(Debug)]
pub(crate) struct Agent {
    world: Arc<World>,
    id: SpiffeId,
    delegate: SpiffeId,
    default_ttl: Duration,
    cache: Mutex<BTreeMap<String, Cached>>,
}

#[derive(Debug, Clone)]
struct Cached {
    issued: Arc<Issued>,
    entry: Entry,
    authorities: usize,
    renew_at: Instant,
}

/// An entry's SVID, and when a newer one will be due.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) entry: Entry,
    pub(crate) issued: Arc<Issued>,
    pub(crate) renew_at: Instant,
}

impl Agent {
    pub(crate) fn new(world: Arc<World>, id: SpiffeId, delegate: SpiffeId, default_ttl: Duration) -> Self {
        Self { world, id, delegate, default_ttl, cache: Mutex::new(BTreeMap::new()) }
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Entries of this node whose selectors the workload has, all of them.
    pub(crate) fn matching<'s>(
        &'s self,
        state: &'s State,
        selectors: &'s BTreeSet<Selector>,
    ) -> impl Iterator<Item = &'s Entry> {
        state.entries_of(&self.id).filter(|entry| entry.selectors.is_subset(selectors))
    }

    /// Refuses a caller that is not this node's delegate.
    pub(crate) fn authorize(&self, state: &State, caller: &BTreeSet<Selector>) -> Result<(), Status> {
        let mut identities = self.matching(state, caller).map(|entry| &entry.spiffe_id).peekable();
        if identities.peek().is_none() {
            return Err(Status::permission_denied(NO_IDENTITY));
        }
        if !identities.any(|identity| *identity == self.delegate) {
            return Err(Status::permission_denied("caller not configured as an authorized delegate"));
        }
        Ok(())
    }

    /// The SVIDs that workloads with `selectors` get now, by entry ID.
    pub(crate) fn current(
        &self,
        state: &State,
        selectors: &BTreeSet<Selector>,
    ) -> Result<Vec<Current>, Status> {
        self.matching(state, selectors).map(|entry| self.svid(state, entry)).collect()
    }

    fn svid(&self, state: &State, entry: &Entry) -> Result<Current, Status> {
        let now = Instant::now();
        let authorities = state.authorities.len();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|id, _| state.entries.contains_key(id));
        if let Some(cached) = cache.get(&entry.id)
            && cached.renew_at > now
            && cached.authorities == authorities
            && cached.entry == *entry
        {
            let issued = Arc::clone(&cached.issued);
            return Ok(Current { entry: entry.clone(), issued, renew_at: cached.renew_at });
        }
        let authority = state.authorities.last().ok_or_else(|| Status::internal("no authority"))?;
        let ttl = entry.svid_ttl.unwrap_or(self.default_ttl);
        let issued =
            authority.issue(&entry.spiffe_id, ttl).map_err(|error| Status::internal(error.to_string()))?;
        let issued = Arc::new(issued);
        let renew_at = now + renewal(ttl);
        let cached = Cached { issued: Arc::clone(&issued), entry: entry.clone(), authorities, renew_at };
        cache.insert(entry.id.clone(), cached);
        Ok(Current { entry: entry.clone(), issued, renew_at })
    }
}

/// When half of the validity, backdating included, is over: as SPIRE does, give or take a tenth. Lifetimes so
/// short that this would be at once are renewed at a quarter.
fn renewal(ttl: Duration) -> Duration {
    let half = ttl.saturating_add(BACKDATING) / 2;
    let base = ttl.saturating_sub(half).max(ttl / 4);
    base.mul_f64(rand::random_range(0.9..=1.1))
}

/// Who calls, by the kernel's word.
pub(crate) fn attest<T>(request: &Request<T>) -> Result<BTreeSet<Selector>, Status> {
    let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    let credentials = credentials.ok_or_else(|| Status::internal("no peer credentials"))?;
    Ok(BTreeSet::from([
        Selector::new("unix", format!("uid:{}", credentials.uid())),
        Selector::new("unix", format!("gid:{}", credentials.gid())),
    ]))
}

/// A message, and when the next is due if nothing else changes.
pub(crate) struct Update<M> {
    pub(crate) message: M,
    pub(crate) next: Option<Instant>,
}

/// A stream of what `build` makes of each state, without repetitions, until it refuses or the agent stops.
pub(crate) fn updates<M>(
    agent: &Agent,
    stop: CancellationToken,
    build: impl Fn(&State) -> Result<Update<M>, Status> + Send + 'static,
) -> ReceiverStream<Result<M, Status>>
where
    M: Clone + PartialEq + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(1);
    let changes = agent.world.changes();
    tokio::spawn(push(changes, stop, build, sender));
    ReceiverStream::new(receiver)
}

async fn push<M>(
    mut changes: tokio::sync::watch::Receiver<State>,
    stop: CancellationToken,
    build: impl Fn(&State) -> Result<Update<M>, Status> + Send,
    sender: mpsc::Sender<Result<M, Status>>,
) where
    M: Clone + PartialEq + Send,
{
    let mut last = None;
    loop {
        let state = changes.borrow_and_update().clone();
        let (item, next) = match build(&state) {
            Ok(update) => (Ok(update.message), update.next),
            Err(status) => (Err(status), None),
        };
        let end = item.is_err();
        let repeated = matches!((&item, &last), (Ok(message), Some(last)) if message == last);
        if !repeated {
            last = item.as_ref().ok().cloned();
            if sender.send(item).await.is_err() {
                return;
            }
        }
        if end {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sender.closed() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep_until(next) => {}
        }
    }
}

async fn sleep_until(next: Option<Instant>) {
    match next {
        Some(next) => tokio::time::sleep_until(next).await,
        None => std::future::pending().await,
    }
}
