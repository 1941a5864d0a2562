//! One node's agent: which entries a caller matches, SVIDs kept until half of their life, and streams that are
//! told of every change.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

use super::ca::{CertificateAuthority, Issued};
use super::world::{State, World};
use crate::{Entry, Selector, SpiffeId, Svid};

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
    frozen: watch::Sender<bool>,
}

#[derive(Debug, Clone)]
struct Cached {
    issued: Arc<Issued>,
    entry: Entry,
    authority: Arc<CertificateAuthority>,
    renew_at: Instant,
}

/// An entry's SVID, and when a newer one will be due.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) entry: Entry,
    pub(crate) issued: Arc<Issued>,
    pub(crate) renew_at: Option<Instant>,
}

impl Agent {
    pub(crate) fn new(world: Arc<World>, id: SpiffeId, delegate: SpiffeId, default_ttl: Duration) -> Self {
        let (cache, frozen) = (Mutex::default(), watch::Sender::new(false));
        Self { world, id, delegate, default_ttl, cache, frozen }
    }

    /// While frozen, streams are silent, as those of a stopped process are.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Who may ask for others' SVIDs.
    pub(crate) fn delegate(&self) -> &SpiffeId {
        &self.delegate
    }

    /// An SVID of the agent itself, and the CAs by which it verifies.
    pub(crate) fn own_svid(&self) -> Option<(Svid, Vec<u8>)> {
        let state = self.world.now();
        let issued = state.authorities.last()?.issue(&self.id, self.default_ttl).ok()?;
        Some((issued.to_svid().ok()?, state.bundle_der()))
    }

    /// Entries of this node whose selectors the workload has, all of them.
    pub(crate) fn matching<'s>(
        &'s self,
        state: &'s State,
        selectors: &'s BTreeSet<Selector>,
    ) -> impl Iterator<Item = &'s Entry> {
        self.entries(state).filter(|entry| !entry.store_svid && entry.selectors.is_subset(selectors))
    }

    /// Entries of this node.
    pub(crate) fn entries<'s>(&'s self, state: &'s State) -> impl Iterator<Item = &'s Entry> {
        state.entries_of(&self.id)
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
        self.matching(state, selectors).filter_map(|entry| self.svid(state, entry).transpose()).collect()
    }

    /// The same for what others may ask on their behalf: nobody gets an administrator's SVID that way.
    pub(crate) fn current_delegated(
        &self,
        state: &State,
        selectors: &BTreeSet<Selector>,
    ) -> Result<Vec<Current>, Status> {
        let mut current = self.current(state, selectors)?;
        current.retain(|svid| !svid.entry.admin && !svid.entry.downstream);
        Ok(current)
    }

    /// The SVID of an entry. With the server away that is the last one, expired or not, as SPIRE's agent
    /// has it, or none.
    fn svid(&self, state: &State, entry: &Entry) -> Result<Option<Current>, Status> {
        let now = Instant::now();
        let authority = state.authorities.last().ok_or_else(|| Status::internal("no authority"))?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|id, _| state.entries.contains_key(id));
        let cached = cache.get(&entry.id);
        if state.away {
            return Ok(cached.map(|cached| cached.current(None)));
        }
        if let Some(cached) = cached
            && cached.renew_at > now
            && Arc::ptr_eq(&cached.authority, authority)
            && cached.entry == *entry
        {
            return Ok(Some(cached.current(Some(cached.renew_at))));
        }
        let ttl = entry.svid_ttl.unwrap_or(self.default_ttl);
        let issued =
            authority.issue(&entry.spiffe_id, ttl).map_err(|error| Status::internal(error.to_string()))?;
        let renew_at = now + renewal(ttl);
        let authority = Arc::clone(authority);
        let fresh = Cached { issued: Arc::new(issued), entry: entry.clone(), authority, renew_at };
        let current = fresh.current(Some(renew_at));
        cache.insert(entry.id.clone(), fresh);
        Ok(Some(current))
    }
}

impl Cached {
    fn current(&self, renew_at: Option<Instant>) -> Current {
        Current { entry: self.entry.clone(), issued: Arc::clone(&self.issued), renew_at }
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
    let program = credentials.pid().and_then(program_of);
    Ok(selectors(credentials.uid(), credentials.gid(), program))
}

/// The same for a process of this host; `None` if there is none with this number.
pub(crate) fn selectors_of_process(pid: i32) -> Option<BTreeSet<Selector>> {
    let owner = std::fs::metadata(format!("/proc/{pid}")).ok().filter(|_| pid > 0)?;
    Some(selectors(owner.uid(), owner.gid(), program_of(pid)))
}

fn program_of(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

fn selectors(uid: u32, gid: u32, program: Option<PathBuf>) -> BTreeSet<Selector> {
    let mut properties = vec![format!("uid:{uid}"), format!("gid:{gid}")];
    properties.extend(program.map(|path| format!("path:{}", path.display())));
    properties.into_iter().map(|property| Selector::new("unix", property)).collect()
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
    let (changes, frozen) = (agent.world.changes(), agent.frozen.subscribe());
    tokio::spawn(stop.run_until_cancelled_owned(push(changes, frozen, build, sender)));
    ReceiverStream::new(receiver)
}

async fn push<M>(
    mut changes: watch::Receiver<State>,
    mut frozen: watch::Receiver<bool>,
    build: impl Fn(&State) -> Result<Update<M>, Status> + Send,
    sender: mpsc::Sender<Result<M, Status>>,
) where
    M: Clone + PartialEq + Send,
{
    let mut last = None;
    while frozen.wait_for(|frozen| !frozen).await.is_ok() {
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
