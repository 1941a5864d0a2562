//! Everything between this node and its peers, behind one handle.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use auth_ebpf_abi::{AuthKey, IdentityNumber, NodeNumber};
use futures::FutureExt;
use futures::future::BoxFuture;
use spire_adapter::PeerSvid;
use spire_adapter::tls::{Cipher, Groups, Options as TlsOptions};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::Admission;
use super::budget::Budgets;
use super::directory::Directory;
use super::error::Error;
use super::naming::Naming;
use super::pace::Pace;
use super::table::{Outgoing, SessionMap, Table, Trouble};
use super::{handshake, listener, pairs, session, wire};
use crate::auth::driver::Handshakes;
use crate::auth::stats::Observer;
use crate::auth::{Failure, Handle, Method, Proof};
use crate::clock::Clock;
use crate::handover::{Assigned, Told};
use crate::svids::{Credential, Svids};

/// What is configured.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name.
    pub node: String,
    /// Names of nodes and identities.
    pub naming: Naming,
    /// Handshake port that is announced; `None` for the listener's.
    pub announced_port: Option<u16>,
    /// Key exchange groups that are accepted.
    pub groups: Groups,
    /// Longest time from a connection's beginning to its purpose.
    pub setup_timeout: Duration,
    /// Between two pings on a session.
    pub ping: Duration,
    /// Silence after which a session is lost.
    pub silence: Duration,
    /// Oldest that a tunnel's pre-shared key may become while its nodes can reach each other.
    pub rotation: Duration,
    /// First and longest pause between two dials of a node.
    pub redial: (Duration, Duration),
    /// How long the end with the higher SPIFFE ID leaves it to the other to dial.
    pub defer: Duration,
    /// How pairs are proven.
    pub pair_proof: PairProof,
}

/// How a pair of identities is proven to another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PairProof {
    /// Each identity once over the node session, and a word for each pair; a handshake with nodes that can't.
    #[default]
    Session,
    /// By a TLS handshake for each pair.
    Handshake,
}

impl PairProof {
    /// The version of the protocol that is announced.
    pub(super) const fn version(self) -> u32 {
        match self {
            Self::Session => wire::VERSION,
            Self::Handshake => wire::VERSION_OF_HANDSHAKES,
        }
    }
}

impl Options {
    /// The defaults for a node.
    #[must_use]
    pub const fn new(node: String, naming: Naming) -> Self {
        Self {
            node,
            naming,
            announced_port: None,
            groups: Groups::PostQuantum,
            setup_timeout: Duration::from_secs(5),
            ping: Duration::from_secs(2),
            silence: Duration::from_secs(6),
            rotation: Duration::from_secs(60 * 60),
            redial: (Duration::from_millis(200), Duration::from_secs(5)),
            defer: Duration::from_secs(1),
            pair_proof: PairProof::Session,
        }
    }
}

/// What this node announces of itself besides its identities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnTunnel {
    /// WireGuard public key, once there is one.
    pub wireguard_key: Option<[u8; 32]>,
    /// WireGuard port.
    pub wireguard_port: u16,
    /// Session epoch: raising it revokes all that this node vouched for.
    pub epoch: u32,
}

/// What peers are made of.
pub struct Parts {
    /// What is configured.
    pub options: Options,
    /// Listener of the handshake port, dual-stack.
    pub listener: TcpListener,
    /// Our SVIDs.
    pub svids: Svids,
    /// What cluster state says.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// What we announce.
    pub own: watch::Receiver<OwnTunnel>,
    /// What this node has assigned, which other nodes are told.
    pub assigned: watch::Receiver<Arc<Assigned>>,
    /// Who hears what they tell about theirs.
    pub handover: mpsc::Sender<Told>,
    /// The authentication driver.
    pub auth: Handle,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Who counts handshakes and sessions.
    pub observer: Arc<dyn Observer>,
}

/// What all tasks share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) port: u16,
    pub(super) svids: Svids,
    pub(super) directory: watch::Receiver<Arc<Directory>>,
    pub(super) own: watch::Receiver<OwnTunnel>,
    pub(super) assigned: watch::Receiver<Arc<Assigned>>,
    pub(super) handover: mpsc::Sender<Told>,
    pub(super) auth: Handle,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) table: Table,
    pub(super) admission: Admission,
    pub(super) budgets: Budgets,
    /// Log lines about connections that were refused: whoever can reach the port can cause them.
    pub(super) refusals: Mutex<Pace>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Shared {
    pub(super) fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.borrow())
    }

    pub(super) fn tls(&self) -> TlsOptions {
        TlsOptions::from(self.options.groups)
    }

    /// For connections that prove an identity and carry nothing else.
    pub(super) fn tls_of_proofs(&self) -> TlsOptions {
        TlsOptions { cipher: Cipher::Aes128, ..self.tls() }
    }

    /// Whether this is the address of another node: by cluster state, or of one that has a session from there.
    pub(super) fn is_node(&self, address: IpAddr) -> bool {
        let directory = self.directory.borrow();
        directory.nodes.values().flat_map(|node| &node.addresses).any(|known| known.ip() == address)
            || self.table.is_live_at(address)
    }

    /// Whether, of that node and this one, this one is to dial first: its SPIFFE ID is the lower.
    pub(super) fn dials_first(&self, node: &str) -> bool {
        let nodes = &self.directory.borrow().nodes;
        let id = |name: &str| nodes.get(name).map(|node| &node.spiffe_id);
        id(&self.options.node) < id(node)
    }

    /// Whether one more line about a refused connection may be written.
    pub(super) fn may_tell_of_refusal(&self) -> bool {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).take(self.clock.now())
    }

    /// What is proven when `other` has shown its SVID to this one of ours: until the earlier of them ends.
    pub(super) fn proof(
        &self,
        own: &Credential,
        other: PeerSvid,
        group: &'static str,
        epoch: u32,
        method: Method,
    ) -> Proof {
        let own_end = self.svids.ends(own.svid.leaf_hash(), own.svid.not_after());
        Proof {
            expires: own_end.min(self.svids.ends(other.leaf_hash, other.not_after)),
            local_spiffe: own.svid.spiffe_id().clone(),
            remote_spiffe: other.spiffe_id,
            group,
            epoch,
            method,
        }
    }

    /// The number of this node, once cluster state has it.
    pub(super) fn own_number(&self) -> Option<NodeNumber> {
        self.directory.borrow().nodes.get(&self.options.node).map(|node| node.number)
    }
}

/// Node sessions and identity handshakes. Cheap to clone.
#[derive(Clone)]
pub struct Peers(pub(super) Arc<Shared>);

impl Peers {
    /// Listens, dials, and keeps sessions with all nodes until `stop`.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(parts: Parts, stop: CancellationToken) -> std::io::Result<Self> {
        let Parts { options, listener, svids, directory, own, assigned, handover, auth, clock, observer } =
            parts;
        let port = options.announced_port.unwrap_or(listener.local_addr()?.port());
        let shared = Arc::new(Shared {
            options,
            port,
            svids,
            directory,
            own,
            assigned,
            handover,
            table: Table::new(auth.clone()),
            auth,
            clock,
            observer,
            admission: Admission::new(),
            budgets: Budgets::default(),
            refusals: Mutex::new(Pace::new(20, Duration::from_secs(1))),
            tasks: TaskTracker::new(),
            stop,
        });
        shared.tasks.spawn(listener::run(Arc::clone(&shared), listener));
        shared.tasks.spawn(dial_nodes(Arc::clone(&shared)));
        Ok(Self(shared))
    }

    /// Sessions, live and last known.
    #[must_use]
    pub fn sessions(&self) -> watch::Receiver<SessionMap> {
        self.0.table.watch()
    }

    /// What went wrong last with a node, since there was a session with it.
    #[must_use]
    pub fn trouble(&self, node: &str) -> Option<Trouble> {
        self.0.table.trouble(node)
    }

    /// Ends the session with a node, so that another one, with a fresh pre-shared key, takes its place.
    pub fn renew(&self, node: &str) {
        self.0.table.stop(node);
    }

    /// Has every identity of other nodes prove itself anew before it becomes part of another pair.
    pub fn forget_proofs(&self) {
        self.0.table.forget_proofs();
    }

    /// A packet waits until this node knows whose the addresses here are.
    pub fn announce(&self, node: NodeNumber) {
        self.0.table.announce(node);
    }

    /// Waits until every session and handshake has ended after `stop`.
    pub async fn ended(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Handshakes for Peers {
    fn dial(&self, key: AuthKey) -> BoxFuture<'static, Result<Proof, Failure>> {
        let shared = Arc::clone(&self.0);
        async move {
            let dial = tokio::time::timeout(shared.options.setup_timeout, pairs::dial(&shared, key));
            let result = dial.await.unwrap_or(Err(Error::Timeout { stage: "proving a pair" }));
            result.map_err(|error| {
                tracing::debug!(local = key.local, remote = key.remote, node = key.node, %error, "pair not proven");
                error.failure()
            })
        }
        .boxed()
    }

    fn verify_local(&self, key: AuthKey) -> Result<Proof, Failure> {
        handshake::verify_local(&self.0, key).map_err(|error| {
            tracing::debug!(local = key.local, remote = key.remote, %error, "verification on this node");
            error.failure()
        })
    }

    /// Nothing waits here.
    fn give_up(&self, _key: AuthKey) {}

    fn revoke(&self, node: NodeNumber, identity: IdentityNumber) {
        if !self.0.table.send(node, Outgoing::Revoke(identity)) {
            tracing::info!(node, identity, "revocation not sent: no live session");
        }
    }
}

/// Keeps one dialling task for each other node, and forgets nodes that are gone.
async fn dial_nodes(shared: Arc<Shared>) {
    let mut directory = shared.directory.clone();
    let mut dialling: BTreeMap<String, CancellationToken> = BTreeMap::new();
    loop {
        let now = Arc::clone(&directory.borrow_and_update());
        let own = &shared.options.node;
        // Until cluster state has this node, nobody would know it.
        let is_other =
            |name: &String| now.nodes.contains_key(own) && name != own && now.nodes.contains_key(name);
        dialling.retain(|name, stop| {
            let keep = is_other(name);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for name in now.nodes.keys().filter(|name| is_other(name)) {
            dialling.entry(name.clone()).or_insert_with(|| {
                let stop = shared.stop.child_token();
                shared.tasks.spawn(session::keep_dialled(Arc::clone(&shared), name.clone(), stop.clone()));
                stop
            });
        }
        shared.table.retain(|name| now.nodes.contains_key(name)).await;
        shared.budgets.retain(|name| now.nodes.contains_key(name));
        tokio::select! {
            () = shared.stop.cancelled() => return,
            changed = directory.changed() => if changed.is_err() { return },
        }
    }
}

/// The address as IPv4 if it is one that a dual-stack socket shows as IPv6.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
