//! Node sessions become WireGuard peers and routes.
//!
//! A peer's key comes from its node session and from nowhere else. [`wanted`] says what tunnel and routes
//! shall be (pure); the [`Task`] makes them so at every change and once a second, and publishes what it
//! found. A restarted daemon keeps the peers that its tunnel already has until their sessions are back.

mod claims;
mod mending;
mod wanted;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use auth_ebpf::Maps;
use auth_ebpf_abi::{Mode, Setting};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wg_mesh::{Mesh, PublicKey, Status, Userspace, steering};

use crate::{
    clock::{BootTime, Clock},
    cluster::Cluster,
    config::EncryptionConfig,
    datapath::View,
    logging::AUDIT,
    metrics::{Metrics, saturate},
    peer::{OwnTunnel, SessionMap},
    readiness::Readiness,
};
use mending::Mending;
use wanted::{Inputs, Wanted};

/// How often tunnel and routes are looked at without any other cause.
const RESCAN: Duration = Duration::from_secs(1);
/// The readiness condition of this task.
const READY: &str = "tunnel";

/// What was found and done last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The device as it last answered.
    pub status: Option<Status>,
    /// Node by key, for the peers that are wanted.
    pub nodes: BTreeMap<PublicKey, String>,
    /// Why the device or the routes are not as they should be.
    pub failure: Option<String>,
    /// What annotations say of nodes' keys, and is wrong.
    pub wrong_claims: BTreeMap<String, String>,
}

/// What the task is made of.
pub struct Parts {
    /// Configuration.
    pub config: EncryptionConfig,
    /// TCP port of the handshakes, which never goes into the tunnel.
    pub handshake_port: u16,
    /// Name of this node.
    pub node: String,
    /// Cluster state.
    pub cluster: watch::Receiver<Arc<Cluster>>,
    /// Sessions with other nodes.
    pub sessions: watch::Receiver<SessionMap>,
    /// This node's interfaces.
    pub view: watch::Receiver<Arc<View>>,
    /// The pinned maps: modes, and which nodes an earlier process has known.
    pub maps: Maps,
    /// Ends the session with a node whose tunnel has another pre-shared key than ours.
    pub renew: Box<dyn Fn(&str) + Send + Sync>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where it tells what it found.
    pub found: watch::Sender<Arc<Found>>,
    /// Where it tells this node's key, for the sessions to announce.
    pub own: watch::Sender<OwnTunnel>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Where it says whether the tunnel answers.
    pub readiness: Readiness,
}

/// Owns the tunnel's desired state, the routes and the rules.
pub struct Task {
    parts: Parts,
    mesh: Mesh<Userspace>,
    /// Nodes that were refused as peers, and why, when it was looked last.
    refused: BTreeMap<String, String>,
    mending: Mending,
}

/// Why tunnel or routes are not as they should be.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{error}{advice}", error = .0, advice = advice(.0))]
    Mesh(#[from] wg_mesh::Error),
    #[error("routes: {0}")]
    Steering(#[from] steering::Error),
    #[error(transparent)]
    Maps(#[from] auth_ebpf::Error),
}

/// The way out, where only the daemon's configuration has it.
fn advice(error: &wg_mesh::Error) -> &'static str {
    if let wg_mesh::Error::Refused { field: Some(field), .. } = error
        && field.ends_with("listen_port")
    {
        "; end what has that port, or set another --wireguard-port"
    } else {
        ""
    }
}

impl Task {
    /// A task that has done nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        parts.readiness.wait_for(READY, "not asked yet");
        let mesh = Mesh::new(Userspace::new(parts.config.tunnel_socket.clone()));
        Self { parts, mesh, refused: BTreeMap::new(), mending: Mending::default() }
    }

    /// Runs until `stop`. Tunnel and routes stay as they are then.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut rescan = tokio::time::interval(RESCAN);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = rescan.tick() => {}
                Ok(()) = self.parts.cluster.changed() => {}
                Ok(()) = self.parts.sessions.changed() => {}
            }
            let (status, nodes, failure) = match self.reconcile().await {
                Ok((status, nodes, failure)) => (Some(status), nodes, failure),
                Err(failure) => (None, BTreeMap::new(), Some(failure)),
            };
            let wrong_claims = self.wrong_claims(status.as_ref());
            self.publish(status, nodes, failure.map(|failure| failure.to_string()), wrong_claims);
        }
    }

    /// Makes tunnel and routes as wanted. Routes are steered even if the tunnel is away: what is meant for
    /// peers is unreachable then, rather than in the clear.
    async fn reconcile(&mut self) -> Result<(Status, BTreeMap<PublicKey, String>, Option<Failure>), Failure> {
        let asked = self.mesh.status().await;
        let cluster = Arc::clone(&self.parts.cluster.borrow_and_update());
        let sessions = Arc::clone(&self.parts.sessions.borrow_and_update());
        let known = self.parts.maps.nodes().entries()?;
        let mtu = self.mtu().await?;
        // The datapath says why.
        let interfaces = Arc::clone(&self.parts.view.borrow().interfaces);
        let outside = self.parts.config.outside.in_use(&cluster, &self.parts.node, &interfaces);
        let wanted = Wanted::make(&Inputs {
            cluster: &cluster,
            node: &self.parts.node,
            sessions: &sessions,
            known: &known.into_iter().collect(),
            observed: asked.as_ref().ok(),
            config: &self.parts.config,
            outside: &outside,
            handshake_port: self.parts.handshake_port,
            enforced: self.is_enforced()?,
            mtu,
            now: self.parts.clock.now(),
        });
        for (node, why) in wanted.refused.iter().filter(|(node, why)| self.refused.get(*node) != Some(*why)) {
            tracing::error!(node, why, "no peer is made of this node");
        }
        self.refused.clone_from(&wanted.refused);
        let applied = match &asked {
            Ok(_) => self.mesh.reconcile(&wanted.desired).await.map(Some),
            Err(_) => Ok(None),
        };
        if let Ok(status) = &asked {
            self.mend(status, &wanted.nodes);
        }
        let steered = self.steer(&wanted).await;
        let failure = applied.map_err(Failure::from).and(steered).err();
        Ok((asked?, wanted.nodes, failure))
    }

    /// Says each that is new.
    fn wrong_claims(&self, status: Option<&Status>) -> BTreeMap<String, String> {
        let (cluster, sessions) = (self.parts.cluster.borrow(), self.parts.sessions.borrow());
        let own = status.map(|status| status.public_key);
        let wrong = claims::wrong(&cluster, &self.parts.node, own, &sessions);
        let known = Arc::clone(&self.parts.found.borrow());
        for (node, why) in wrong.iter().filter(|(node, why)| known.wrong_claims.get(*node) != Some(*why)) {
            tracing::warn!(target: AUDIT, event = "wrong_key_claimed", node, why, "a wrong WireGuard key in the cluster state; it is not used");
        }
        wrong
    }

    fn mend(&mut self, status: &Status, nodes: &BTreeMap<PublicKey, String>) {
        for node in self.mending.stuck(status, nodes, self.parts.clock.now()) {
            tracing::warn!(node, "the tunnel's pre-shared key is not in use yet; asking for another");
            (self.parts.renew)(&node);
        }
    }

    async fn steer(&self, wanted: &Wanted) -> Result<(), Failure> {
        match &wanted.steering {
            Some(steering) => steering.apply().await?,
            None => steering::clear().await?,
        };
        Ok(())
    }

    async fn mtu(&self) -> Result<u16, Failure> {
        let interfaces = Arc::clone(&self.parts.view.borrow().interfaces);
        let cluster = self.parts.cluster.borrow().nodes.get(&self.parts.node).cloned();
        let own = cluster.map(|node| node.addresses).unwrap_or_default();
        let mut uplinks: Vec<u32> =
            own.iter().filter_map(|address| interfaces.addresses.get(address).copied()).collect();
        uplinks.sort_unstable();
        uplinks.dedup();
        Ok(steering::tunnel_mtu(&uplinks).await?)
    }

    /// Whether what is not encrypted must not leave: mode `enforce`, and not switched off.
    fn is_enforced(&self) -> Result<Enforced, Failure> {
        let config = self.parts.maps.config();
        if BootTime(config.get(Setting::EncryptionOffUntil)?) > self.parts.clock.now() {
            return Ok(Enforced::Off);
        }
        Ok(match Mode::from_number(config.get(Setting::EncryptionMode)?) {
            Mode::Enforce => Enforced::Yes,
            Mode::Observe => Enforced::No,
        })
    }

    fn publish(
        &self,
        status: Option<Status>,
        nodes: BTreeMap<PublicKey, String>,
        failure: Option<String>,
        wrong_claims: BTreeMap<String, String>,
    ) {
        let parts = &self.parts;
        parts.metrics.wrong_key_claims.set(saturate(wrong_claims.len()));
        parts.metrics.tunnel_up.set(i64::from(status.is_some()));
        let peers = status.as_ref().map_or(0, |status| status.peers.len());
        parts.metrics.wireguard_peers.set(saturate(peers));
        match &failure {
            Some(why) => parts.readiness.wait_for(READY, why.clone()),
            None => parts.readiness.reached(READY),
        }
        if let Some(status) = &status {
            parts.own.send_if_modified(|own| {
                let key = Some(*status.public_key.as_bytes());
                let differs = own.wireguard_key != key;
                if differs {
                    tracing::info!(public_key = %status.public_key, interface = status.interface, "tunnel found");
                    own.wireguard_key = key;
                }
                differs
            });
        }
        parts.found.send_modify(|found| {
            if let Some(why) = failure.as_ref().filter(|why| found.failure.as_ref() != Some(*why)) {
                tracing::error!(why, "the tunnel or its routes are not as they should be");
            }
            // The last answer stays for people to look at; the failure says that it is old.
            let status = status.or_else(|| found.status.clone());
            *found = Arc::new(Found { status, nodes, failure, wrong_claims });
        });
    }
}

/// How strictly the way into the tunnel is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enforced {
    /// What can't go into the tunnel is unreachable.
    Yes,
    /// What has a peer goes into the tunnel.
    No,
    /// Nothing goes into the tunnel.
    Off,
}
