//! The SVIDs of this node: its own, and one of each identity that runs here.
//!
//! Whoever needs one asks here and gets it only while it is valid. A missing SVID stops new work at once; only
//! when it stays away for a moment, which the agent's short gaps never do, is it a withdrawal that ends what
//! stands (SPIRE re-signs in such gaps). An agent that is away withdraws nothing: NotAfter does.

mod chooser;
mod deadlines;
mod follow;
mod processes;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use auth_ebpf_abi::IdentityNumber;
use spiffe::SpiffeId;
use spire_adapter::{ApiError, Bundles, Snapshot, Svid};
use tokio::sync::watch;

use crate::clock::{BootTime, Clock};

pub use chooser::{Api, Candidate, Choice, SocketId, Unused};
use deadlines::Deadlines;
pub use follow::{Following, follow};
pub use processes::{Lookout, Seen};
pub use source::{Feed, Offer, SpireAgent, SvidSource};

/// An SVID with the bundles by which its peers are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The SVID.
    pub svid: Svid,
    /// The bundles.
    pub bundles: Bundles,
}

impl Credential {
    fn of(snapshot: &Snapshot) -> Option<Self> {
        Some(Self { svid: snapshot.svid()?.clone(), bundles: snapshot.bundles.clone() })
    }
}

/// What is known of an identity's SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySvid {
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// The SVID, if there is one now.
    pub credential: Option<Credential>,
    /// There has been one since the identity came here.
    pub arrived: bool,
    /// Where it comes from, once that is known.
    pub api: Option<Api>,
    /// Why that is not the API that is preferred, if it is not.
    pub unused: Option<Unused>,
    /// It is missing for longer than a gap.
    pub withdrawn: bool,
    /// What is wrong with the agent, if anything is.
    pub problem: Option<ApiError>,
}

impl IdentitySvid {
    /// Nothing has been heard of it yet.
    fn unknown(spiffe_id: &SpiffeId) -> Self {
        Self {
            spiffe_id: spiffe_id.clone(),
            credential: None,
            arrived: false,
            api: None,
            unused: None,
            withdrawn: false,
            problem: None,
        }
    }
}

/// The SVIDs. Cheap to clone.
#[derive(Clone)]
pub struct Svids(Arc<Inner>);

struct Inner {
    node: watch::Receiver<Snapshot>,
    identities: Mutex<BTreeMap<IdentityNumber, IdentitySvid>>,
    announced: watch::Sender<Option<Arc<BTreeSet<IdentityNumber>>>>,
    pending: watch::Sender<BTreeSet<IdentityNumber>>,
    clock: Arc<dyn Clock>,
    deadlines: Deadlines,
    /// Messages that had SVIDs of others only.
    refused: AtomicU64,
}

impl Svids {
    /// No identities yet; the node's SVID is what `node` has.
    #[must_use]
    pub fn new(node: watch::Receiver<Snapshot>, clock: Arc<dyn Clock>) -> Self {
        let (announced, _) = watch::channel(None);
        let (identities, pending) = (Mutex::default(), watch::Sender::default());
        let deadlines = Deadlines::default();
        let refused = AtomicU64::new(0);
        Self(Arc::new(Inner { node, identities, announced, pending, clock, deadlines, refused }))
    }

    /// The node's SVID, while it is valid.
    #[must_use]
    pub fn node(&self) -> Option<Credential> {
        self.valid(Credential::of(&self.0.node.borrow()))
    }

    /// Changes of the node's SVID.
    #[must_use]
    pub fn node_changes(&self) -> watch::Receiver<Snapshot> {
        self.0.node.clone()
    }

    /// The SVID of an identity that runs here, while it is valid.
    #[must_use]
    pub fn identity(&self, identity: IdentityNumber) -> Option<Credential> {
        let credential = self.identities().get(&identity).and_then(|known| known.credential.clone());
        self.valid(credential)
    }

    /// Everything that is known, for status.
    #[must_use]
    pub fn all(&self) -> BTreeMap<IdentityNumber, IdentitySvid> {
        self.identities().clone()
    }

    /// Whether the agent takes calls and answers none of them.
    #[must_use]
    pub fn agent_is_stuck(&self) -> bool {
        let node = self.0.node.borrow().problem.as_ref().is_some_and(ApiError::is_stuck);
        let is_stuck = |known: &IdentitySvid| known.problem.as_ref().is_some_and(ApiError::is_stuck);
        node || self.identities().values().any(is_stuck)
    }

    /// How often there was an SVID of another SPIFFE ID than the identity's, and none of its own.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// The identities that this node vouches for: those that run here, but for the withdrawn. One whose SVID
    /// has not come yet is among them, lest a restart of the daemon look like a withdrawal. `None` until cluster
    /// state has said what runs here: an empty announcement would end at other nodes what stands there.
    #[must_use]
    pub fn announced(&self) -> watch::Receiver<Option<Arc<BTreeSet<IdentityNumber>>>> {
        self.0.announced.subscribe()
    }

    /// The identities here that have not got an SVID yet.
    #[must_use]
    pub fn pending(&self) -> watch::Receiver<BTreeSet<IdentityNumber>> {
        self.0.pending.subscribe()
    }

    fn valid(&self, credential: Option<Credential>) -> Option<Credential> {
        credential.filter(|credential| {
            let svid = &credential.svid;
            svid.is_valid_at(self.0.clock.wall())
                && self.ends(svid.leaf_hash(), svid.not_after()) > self.0.clock.now()
        })
    }

    /// When an SVID ends, ours or a peer's that has been verified: no step of the wall clock moves it.
    #[must_use]
    pub fn ends(&self, leaf_hash: [u8; 32], not_after: SystemTime) -> BootTime {
        self.0.deadlines.of(leaf_hash, not_after, &*self.0.clock)
    }

    /// Changes what is known, and announces what follows from it.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<IdentityNumber, IdentitySvid>)) {
        let mut identities = self.identities();
        change(&mut identities);
        let vouched: BTreeSet<IdentityNumber> =
            identities.iter().filter(|(_, known)| !known.withdrawn).map(|(identity, _)| *identity).collect();
        let lacking = identities.iter().filter(|(_, known)| !known.arrived);
        let lacking: BTreeSet<IdentityNumber> = lacking.map(|(identity, _)| *identity).collect();
        self.0.pending.send_if_modified(|pending| {
            let modified = *pending != lacking;
            *pending = lacking;
            modified
        });
        self.0.announced.send_if_modified(|announced| {
            let modified = announced.as_deref() != Some(&vouched);
            if modified {
                *announced = Some(Arc::new(vouched));
            }
            modified
        });
    }

    fn identities(&self) -> MutexGuard<'_, BTreeMap<IdentityNumber, IdentitySvid>> {
        self.0.identities.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
