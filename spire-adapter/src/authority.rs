//! The embedded development authority: a SPIRE-shaped server with the Entry and Agent APIs and any number of agents, each
//! with a Workload API, a Delegated Identity API and a Broker API, all on unix sockets in one directory.
//!
//! It shows the behaviour of SPIRE that clients can see: entries matched by parent and selectors, callers
//! attested by the kernel's word, full state per message, rotation at half life, streams that are told at once.
//! Its CA key lives in memory only. It attests no node and is no substitute for SPIRE where that matters.

mod agent;
mod agent_api;
mod broker_api;
mod ca;
mod delegated_api;
mod entry_api;
pub(crate) mod grpc;
pub(crate) mod listener;
mod workload_api;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::info;

pub use ca::{CertificateAuthority, Issued};

use agent::Agent;
use agent_api::AgentApi;
use broker_api::BrokerApi;
use delegated_api::DelegatedApi;
use entry_api::EntryApi;
use grpc::ApiService;
use listener::Socket;
use workload_api::WorkloadApi;
use world::World;

use crate::{Bundle, Entry, Selector, SpiffeId, TrustDomain};

/// SPIRE's default lifetime of an X509-SVID.
pub const DEFAULT_SVID_TTL: Duration = Duration::from_secs(3600);
/// How long open calls may take to end at shutdown.
const GRACE: Duration = Duration::from_secs(2);

/// What an authority serves, and where.
#[derive(Debug, Clone)]
pub struct Config {
    /// The trust domain it issues for.
    pub trust_domain: TrustDomain,
    /// Directory of the sockets: `server.sock`, `<node>/workload/api.sock`, `<node>/admin/api.sock`,
    /// `<node>/admin/broker.sock`.
    pub dir: PathBuf,
    /// Nodes that get an agent.
    pub nodes: Vec<String>,
    /// Lifetime of SVIDs whose entry says none.
    pub svid_ttl: Duration,
    /// Path of the SPIFFE ID whose holder may use a node's Delegated Identity API and Broker API; `{node}` is the node.
    pub delegate_path: String,
    /// If set, each node's delegate is registered from the start, as the process of this user.
    pub delegate_uid: Option<u32>,
}

impl Config {
    /// The usual settings, with no nodes yet.
    pub fn new(trust_domain: TrustDomain, dir: impl Into<PathBuf>) -> Self {
        Self {
            trust_domain,
            dir: dir.into(),
            nodes: Vec::new(),
            svid_ttl: DEFAULT_SVID_TTL,
            delegate_path: "/authd/node/{node}".to_owned(),
            delegate_uid: None,
        }
    }
}

/// Why an authority cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A directory or socket cannot be made.
    #[error("{}: {reason}", path.display())]
    Path {
        /// The directory or socket.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Somebody listens there already.
    #[error("{}: another process listens on this socket: stop it or choose another directory", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A node name that cannot be part of a SPIFFE ID or of a path.
    #[error("node {node:?}: not usable as a segment of a SPIFFE ID")]
    Node {
        /// The name.
        node: String,
    },
    /// A node that is not of this authority.
    #[error("node {node:?}: no such node here")]
    UnknownNode {
        /// The name.
        node: String,
    },
    /// A certificate could not be made.
    #[error("certificate for {subject}: {reason}")]
    Certificate {
        /// Whose.
        subject: String,
        /// What the library said.
        reason: String,
    },
}

/// The development authority: see [`Authority::start`].
#[derive(Debug)]
pub struct Authority;

impl Authority {
    /// Makes the CA, binds every socket and serves. Must be called within a tokio runtime.
    pub fn start(config: Config) -> Result<Running, AuthorityError> {
        // Nothing is bound for a configuration that cannot work.
        for node in &config.nodes {
            agent_id(&config.trust_domain, node)?;
        }
        let ca = CertificateAuthority::new(&config.trust_domain)?;
        let world = World::new(config.trust_domain.clone(), ca);
        let mut running = Running { world, config, server: None, agents: BTreeMap::new() };
        running.start_server()?;
        for node in running.config.nodes.clone() {
            running.register_delegate(&node)?;
            running.start_agent(&node)?;
        }
        let dir = running.config.dir.display().to_string();
        info!(trust_domain = %running.config.trust_domain, dir, nodes = running.config.nodes.len(), "authority");
        Ok(running)
    }
}

/// A running authority. Dropped, it stops without waiting for open calls.
#[derive(Debug)]
pub struct Running {
    world: Arc<World>,
    config: Config,
    server: Option<Service>,
    agents: BTreeMap<String, (Arc<Agent>, Service)>,
}

impl Running {
    /// The server's socket with the Entry API.
    pub fn server_socket(&self) -> PathBuf {
        self.config.dir.join("server.sock")
    }

    /// A node's Workload API socket.
    pub fn workload_socket(&self, node: &str) -> PathBuf {
        self.config.dir.join(node).join("workload/api.sock")
    }

    /// A node's Delegated Identity API socket.
    pub fn admin_socket(&self, node: &str) -> PathBuf {
        self.config.dir.join(node).join("admin/api.sock")
    }

    /// A node's Broker API socket.
    pub fn broker_socket(&self, node: &str) -> PathBuf {
        self.config.dir.join(node).join("admin/broker.sock")
    }

    /// The SPIFFE ID of a node's agent: the parent of that node's entries.
    pub fn agent_id(&self, node: &str) -> Result<SpiffeId, AuthorityError> {
        agent_id(&self.config.trust_domain, node)
    }

    /// The SPIFFE ID that may use a node's Delegated Identity API.
    pub fn delegate_id(&self, node: &str) -> Result<SpiffeId, AuthorityError> {
        let path = self.config.delegate_path.replace("{node}", node);
        spiffe_id(&self.config.trust_domain, &path, node)
    }

    /// The trust bundle as it is now.
    pub fn bundle(&self) -> Result<Bundle, crate::Error> {
        Bundle::from_der(self.config.trust_domain.clone(), &self.world.bundle_der())
    }

    /// Issues from now on with a new CA; the old one stays in the bundle.
    pub fn rotate_authority(&self) -> Result<(), AuthorityError> {
        self.world.add_authority(CertificateAuthority::new(&self.config.trust_domain)?);
        Ok(())
    }

    /// Takes all CAs but the one that issues out of the bundle: what they have issued is worth nothing any more.
    pub fn revoke_old_authorities(&self) {
        self.world.revoke_old_authorities();
    }

    /// Hands out the bundle of a foreign trust domain to entries that federate with it; `None` takes it back,
    /// and with it the federation of those entries.
    pub fn federate(&self, trust_domain: TrustDomain, bundle: Option<&Bundle>) {
        let der = bundle.map(|bundle| bundle.certificates().flat_map(|der| der.to_vec()).collect());
        self.world.set_federated(trust_domain, der);
    }

    /// Serves a node's sockets (again).
    pub fn start_agent(&mut self, node: &str) -> Result<(), AuthorityError> {
        let agent = Arc::new(Agent::new(
            Arc::clone(&self.world),
            self.agent_id(node)?,
            self.delegate_id(node)?,
            self.config.svid_ttl,
        ));
        let workload = Socket::bind(&self.workload_socket(node))?;
        let admin = Socket::bind(&self.admin_socket(node))?;
        let broker = Socket::bind(&self.broker_socket(node))?;
        let token = CancellationToken::new();
        let workload_api = WorkloadApi::new(Arc::clone(&agent), token.clone());
        let delegated_api = DelegatedApi::new(Arc::clone(&agent), token.clone());
        let broker_api = BrokerApi::new(Arc::clone(&agent), token.clone());
        let tasks = vec![
            workload.serve(Routes::new(ApiService::new(workload_api)), token.clone()),
            admin.serve(Routes::new(ApiService::new(delegated_api)), token.clone()),
            broker.serve_admitted(Routes::new(ApiService::new(broker_api)), token.clone(), |listener| {
                broker_api::admitted(listener, Arc::clone(&agent), token.clone())
            }),
        ];
        self.agents.insert(node.to_owned(), (agent, Service { token, tasks }));
        Ok(())
    }

    /// Stops a node's agent as if it had been ended: its streams break and its sockets go.
    pub async fn stop_agent(&mut self, node: &str) -> Result<(), AuthorityError> {
        let agent = self.agents.remove(node);
        let (_, service) = agent.ok_or_else(|| AuthorityError::UnknownNode { node: node.to_owned() })?;
        service.stop().await;
        Ok(())
    }

    /// Has a node's agent say nothing any more, as if its process had been stopped, or go on.
    pub fn freeze_agent(&self, node: &str, frozen: bool) -> Result<(), AuthorityError> {
        let agent = self.agents.get(node);
        let (agent, _) = agent.ok_or_else(|| AuthorityError::UnknownNode { node: node.to_owned() })?;
        agent.freeze(frozen);
        Ok(())
    }

    /// Stops the server: agents live on with what they have, and hand it out even when it has expired.
    pub async fn stop_server(&mut self) {
        self.world.set_away(true);
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// Ends every stream and call, and removes the sockets.
    pub async fn shutdown(mut self) {
        for (_, service) in std::mem::take(&mut self.agents).into_values() {
            service.stop().await;
        }
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// Serves the Entry API (again).
    pub fn start_server(&mut self) -> Result<(), AuthorityError> {
        let socket = Socket::bind(&self.server_socket())?;
        let token = CancellationToken::new();
        let nodes = self.config.nodes.iter();
        let agents = nodes.map(|node| Ok((node.clone(), self.agent_id(node)?))).collect::<Result<_, _>>()?;
        let entries = ApiService::new(EntryApi::new(Arc::clone(&self.world)));
        let routes = Routes::new(entries).add_service(ApiService::new(AgentApi::new(agents)));
        let tasks = vec![socket.serve(routes, token.clone())];
        self.server = Some(Service { token, tasks });
        self.world.set_away(false);
        Ok(())
    }

    fn register_delegate(&self, node: &str) -> Result<(), AuthorityError> {
        let Some(uid) = self.config.delegate_uid else {
            return Ok(());
        };
        let selector = Selector::new("unix", format!("uid:{uid}"));
        let entry = Entry::new(self.agent_id(node)?, self.delegate_id(node)?, [selector]);
        // A second node of the same name finds its entry there, which is what is wanted.
        drop(self.world.create(entry));
        Ok(())
    }
}

/// Tasks that serve one process's worth of sockets.
#[derive(Debug)]
struct Service {
    token: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Service {
    async fn stop(mut self) {
        self.token.cancel();
        for task in std::mem::take(&mut self.tasks) {
            let abort = task.abort_handle();
            if tokio::time::timeout(GRACE, task).await.is_err() {
                abort.abort();
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

fn agent_id(trust_domain: &TrustDomain, node: &str) -> Result<SpiffeId, AuthorityError> {
    spiffe_id(trust_domain, &format!("/spire/agent/dev/{node}"), node)
}

fn spiffe_id(trust_domain: &TrustDomain, path: &str, node: &str) -> Result<SpiffeId, AuthorityError> {
    let invalid = || AuthorityError::Node { node: node.to_owned() };
    if node.is_empty() || node.contains('/') {
        return Err(invalid());
    }
    SpiffeId::new(format!("spiffe://{trust_domain}{path}")).ok().ok_or_else(invalid)
}

fn path_error(path: &Path, error: &std::io::Error) -> AuthorityError {
    AuthorityError::Path { path: path.to_path_buf(), reason: error.to_string() }
}
