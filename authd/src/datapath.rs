//! Keeps the kernel's maps and programs as cluster state, sessions and interfaces want them.
//!
//! [`plan`] says what the maps shall hold; the [`Task`] reads interfaces, applies the plan and attaches the
//! programs, again at every change and once a second. [`events`] takes what the programs report. Nothing is
//! removed because a source of state is silent: a restarted daemon takes over what is pinned.

mod addresses;
mod attach;
mod beside;
pub mod events;
mod host_end;
pub mod interfaces;
mod moves;
pub mod plan;
mod policy_writer;

pub(crate) mod sandboxes;
mod services;
pub mod sweep;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use auth_ebpf::Datapath;
use auth_ebpf_abi::{IdentityNumber, NodeNumber, Setting};
use futures::{FutureExt, StreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use policy::AuthenticationPairs;
use rtnetlink::{
    MulticastGroup, packet_core::NetlinkMessage, packet_route::RouteNetlinkMessage, sys::SocketAddr,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{BootTime, Clock},
    cluster::Cluster,
    config::Config,
    flows::Names,
    handover::{Assigned, Contested, Told},
    metrics::Metrics,
    outside::OutsideRanges,
    readiness::Readiness,
};
use addresses::Addresses;
use interfaces::Interfaces;
use moves::Moves;
use plan::{Endpoint, Inputs, Plan};
use policy_writer::PolicyWriter;
use sandboxes::Sandboxes;

/// How often interfaces are looked at without any other cause.
const RESCAN: Duration = Duration::from_secs(1);
/// How long after a change of interfaces more of them are waited for.
const SETTLE: Duration = Duration::from_millis(10);
/// What the kernel tells of by itself.
const WATCHED: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Tc,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];
/// The readiness condition of this task.
const READY: &str = "datapath";

/// Messages that say that something has changed; what, is read anew.
type Changes = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Until when each node's session counts, tunnels' grace included, and its epoch.
pub type NodeSessions = BTreeMap<NodeNumber, (BootTime, u32)>;

/// What the rest of the daemon, and people, may know of the datapath.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The pods here, and whether the programs are at their interface.
    pub endpoints: Vec<(Endpoint, bool)>,
    /// Identities of the pods here.
    pub identities: BTreeSet<IdentityNumber>,
    /// How programs are attached; empty until they have been.
    pub mechanism: &'static str,
    /// Pairs of a local and another identity that some policy may ask to authenticate; `None` until policies
    /// have been compiled for the first time.
    pub required: Option<AuthenticationPairs>,
    /// Entries of the policy map.
    pub policy_entries: usize,
    /// What is not done as written, by policy.
    pub conditions: Vec<(String, String)>,
    /// What could not be attached or written, and why.
    pub failures: BTreeMap<String, String>,
    /// Addresses that several nodes claim.
    pub contested: Vec<Contested>,
    /// This node's interfaces.
    pub interfaces: Arc<Interfaces>,
}

/// What the task is made of.
pub struct Parts {
    /// The loaded programs.
    pub datapath: Datapath,
    /// Cluster state.
    pub cluster: watch::Receiver<Arc<Cluster>>,
    /// Sessions with other nodes.
    pub sessions: watch::Receiver<Arc<NodeSessions>>,
    /// What other nodes say of addresses.
    pub handover: mpsc::Receiver<Told>,
    /// Where it tells what this node has assigned.
    pub assigned: watch::Sender<Arc<Assigned>>,
    /// Who waits for a node to acknowledge that.
    pub acknowledged: Box<dyn Fn(NodeNumber) + Send + Sync>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where it tells what it has done.
    pub view: watch::Sender<Arc<View>>,
    /// Where it tells names for flows.
    pub names: watch::Sender<Arc<Names>>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Where it says whether enforcement is in place.
    pub readiness: Readiness,
}

/// Owns the programs and the contents of all maps but `auth` and `connections`.
pub struct Task {
    parts: Parts,
    netlink: rtnetlink::Handle,
    changes: Changes,
    sandboxes: Sandboxes,
    moves: Moves,
    node: String,
    cluster_cidrs: Vec<IpNet>,
    outside: OutsideRanges,
    uplinks: Vec<String>,
    wireguard: String,
    hold: bool,
    forwards_directly: bool,
    policy: PolicyWriter,
    addresses: Addresses,
}

/// Why the task can't start.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// No netlink socket.
    #[error("can't open a netlink socket: {0}")]
    Netlink(#[from] std::io::Error),
    /// The maps refuse the settings.
    #[error(transparent)]
    Maps(#[from] auth_ebpf::Error),
}

impl Task {
    /// A task that has written the settings of `config` to the maps and nothing else.
    ///
    /// # Errors
    /// No netlink, or the maps can't be written.
    pub fn new(config: &Config, parts: Parts) -> Result<Self, DatapathError> {
        let (connection, netlink, _messages) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        // A socket of its own: a flood of changes that it has no room for must not disturb requests.
        let (connection, _handle, changes) = rtnetlink::new_multicast_connection(&WATCHED)?;
        tokio::spawn(connection);
        let settings = parts.datapath.maps().config();
        for (setting, value) in [
            (Setting::PolicyMode, config.policy_mode as u64),
            (Setting::EncryptionMode, config.encryption.mode as u64),
            (Setting::SameNodeEncryption, config.encryption.drops_same_node.into()),
            (Setting::WireguardPort, config.encryption.port.get().into()),
            (Setting::HandshakePort, config.handshake_port.get().into()),
        ] {
            settings.set(setting, value)?;
        }
        let addresses = Addresses::adopt(parts.datapath.maps())?;
        let moves = Moves::adopt(parts.datapath.maps().endpoints().entries()?.into_iter().collect());
        parts.readiness.wait_for(READY, "programs are not attached yet");
        Ok(Self {
            parts,
            netlink,
            changes,
            sandboxes: Sandboxes::default(),
            moves,
            node: config.node_name.clone(),
            cluster_cidrs: config.encryption.cluster_cidrs.clone(),
            outside: config.encryption.outside.clone(),
            uplinks: config.encryption.uplinks.clone(),
            wireguard: config.encryption.interface.clone(),
            hold: config.hold,
            forwards_directly: config.forwards_directly,
            policy: PolicyWriter::default(),
            addresses,
        })
    }

    /// Runs until `stop`. Programs and maps stay as they are then.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut rescan = tokio::time::interval(RESCAN);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = rescan.tick() => {}
                () = self.sandboxes.due() => {}
                Ok(()) = self.parts.cluster.changed() => {}
                Ok(()) = self.parts.sessions.changed() => {}
                Some(told) = self.parts.handover.recv() => {
                    self.hear(told).await;
                    continue;
                }
                Some(_) = self.changes.next() => {
                    // What belongs together comes together.
                    tokio::time::sleep(SETTLE).await;
                    while self.changes.next().now_or_never().flatten().is_some() {}
                }
            }
            self.reconcile().await;
        }
    }

    async fn reconcile(&mut self) {
        let mut interfaces = match Interfaces::read(&self.netlink).await {
            Ok(interfaces) => interfaces,
            Err(error) => {
                tracing::error!(%error, "keeping the datapath as it is");
                self.parts.readiness.wait_for(READY, error.to_string());
                return;
            }
        };
        let cluster = Arc::clone(&self.parts.cluster.borrow_and_update());
        let sessions = Arc::clone(&self.parts.sessions.borrow_and_update());
        let wanted = plan::without_route(&cluster, &self.node, &interfaces);
        interfaces.sandboxes = self.sandboxes.find(wanted, &interfaces).await;
        let (node, cluster_cidrs) = (self.node.clone(), self.cluster_cidrs.clone());
        let before = self.moves.before();
        let mut failures = BTreeMap::new();
        let outside = self.outside.beside(&cluster, &node, &interfaces).unwrap_or_else(|taken| {
            failures.insert("outside-ranges".to_owned(), taken.to_string());
            OutsideRanges::none()
        });
        let inputs = Inputs {
            cluster: &cluster,
            node: &node,
            interfaces: &interfaces,
            cluster_cidrs: &cluster_cidrs,
            outside: &outside,
            sessions: &sessions,
            before: &before,
            forwards_directly: self.forwards_directly,
        };
        self.addresses.forget(&cluster, self.parts.clock.now());
        let mut plan = Plan::make(&inputs, &self.addresses.claims);
        self.moves.withhold(&mut plan, self.parts.clock.now());
        let refused =
            plan.pods.iter().filter_map(|pod| Some((pod.pod.clone(), pod.refused.as_ref()?.to_string())));
        failures.extend(refused);
        failures.extend(beside::cilium(&interfaces, &beside::pins()).map(|why| ("Cilium".to_owned(), why)));
        // Programs first: a pod that is not in the maps yet gets no traffic, rather than any.
        let attached = self.attach(&cluster, &plan, &interfaces, &mut failures);
        if let Err(error) = self.write(&mut plan, &inputs, &cluster) {
            failures.insert("maps".to_owned(), chain(&error));
        }
        if let Some(overflow) = self.policy.overflow() {
            failures.insert("policy".to_owned(), overflow.to_string());
        }
        self.publish(&plan, interfaces, &attached, failures);
    }

    /// Writes the maps: what allows or names before what uses it.
    fn write(
        &mut self,
        plan: &mut Plan,
        inputs: &Inputs<'_>,
        cluster: &Arc<Cluster>,
    ) -> Result<(), auth_ebpf::Error> {
        let maps = self.parts.datapath.maps().clone();
        self.policy.write(&maps, cluster, plan, inputs)?;
        for endpoint in plan.endpoints.values_mut() {
            endpoint.classes = self.policy.classes(endpoint.identity);
        }
        plan.add_prefixes(self.policy.prefixes(), inputs);
        plan.add_nodes(self.policy.nodes(), inputs);
        self.assign(&maps, plan)?;
        // A node whose session this process has not seen yet keeps what an earlier one wrote for it.
        for (number, entry) in maps.nodes().entries()? {
            // Node 0 is this one, whose epoch outlives the daemon.
            let known = cluster.node_by_number(number);
            if number == 0 || known.is_some_and(|node| !cluster.revoked.nodes.contains(&node.name)) {
                plan.nodes.entry(number).or_insert(entry);
            }
        }
        self.addresses.acknowledge(&mut plan.nodes);
        let changes = [
            ("services", maps.change_services(&plan.backends)?),
            ("endpoints", maps.endpoints().reconcile(&plan.endpoints)?),
            ("addresses", maps.addresses().reconcile(&plan.addresses)?),
            ("prefixes", maps.prefixes().reconcile(&plan.prefixes)?),
            ("nodes", maps.nodes().reconcile(&plan.nodes)?),
        ];
        maps.config().set_outside(&plan.outside)?;
        for (map, changes) in changes {
            if changes != auth_ebpf::Changes::default() {
                tracing::info!(map, changes.added, changes.changed, changes.removed, "map updated");
            }
        }
        Ok(())
    }

    fn publish(
        &mut self,
        plan: &Plan,
        interfaces: Interfaces,
        attached: &BTreeSet<String>,
        failures: BTreeMap<String, String>,
    ) {
        let endpoints: Vec<(Endpoint, bool)> = plan
            .pods
            .iter()
            .map(|pod| (pod.clone(), pod.interface.as_ref().is_some_and(|(_, name)| attached.contains(name))))
            .collect();
        let readiness = &self.parts.readiness;
        match failures.first_key_value() {
            Some((what, why)) => readiness.wait_for(READY, format!("{what}: {why}")),
            None => readiness.reached(READY),
        }
        let metrics = &self.parts.metrics;
        metrics
            .endpoints
            .set(crate::metrics::saturate(endpoints.iter().filter(|(_, attached)| *attached).count()));
        metrics.policy_entries.set(crate::metrics::saturate(self.policy.len()));
        metrics.policy_overflow.set(self.policy.overflow().is_some().into());
        let ports = plan.backends.iter().map(|group| group.ports.len()).sum();
        metrics.service_ports.set(crate::metrics::saturate(ports));
        let backends = plan.backends.iter().map(|group| group.backends.len()).sum();
        metrics.service_backends.set(crate::metrics::saturate(backends));
        let names = Names {
            interfaces: interfaces.names.clone(),
            rules: self.policy.rule_names().clone(),
            logs: self.policy.logs().clone(),
        };
        self.parts.names.send_if_modified(|last| {
            let differs = **last != names;
            if differs {
                *last = Arc::new(names);
            }
            differs
        });
        let view = View {
            endpoints,
            identities: plan.local_identities(),
            mechanism: self.parts.datapath.mechanism().as_str(),
            required: self.policy.required().cloned(),
            policy_entries: self.policy.len(),
            conditions: self.policy.conditions().into_iter().chain(refused_services(plan)).collect(),
            failures,
            contested: self.contested(),
            interfaces: Arc::new(interfaces),
        };
        self.parts.view.send_if_modified(|last| {
            let differs = **last != view;
            if differs {
                report_failures(last, &view);
                *last = Arc::new(view);
            }
            differs
        });
    }
}

fn refused_services(plan: &Plan) -> impl Iterator<Item = (String, String)> {
    plan.refused_services.iter().map(|(name, why)| (format!("Service {name}"), why.clone()))
}

fn report_failures(before: &View, now: &View) {
    for (what, why) in now.failures.iter().filter(|(what, why)| before.failures.get(*what) != Some(why)) {
        tracing::error!(what, why, "the datapath is not complete");
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
