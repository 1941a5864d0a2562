//! The Star Wars cluster of `demo/manifests`, ready for a scenario: two nodes, five pods, a server, an
//! authority where everybody is registered. Tunnels and daemons are the scenario's to start, and to kill.

mod words;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub use self::words::{Link, is_session_known};
use crate::capture::Expected;
use crate::daemon::{Cluster, Daemon};
use crate::http::Connection;
use crate::issuer::{Issuer, Kind, SVID_TTL};
use crate::lab::Options;
use crate::lab::node::{Family, Node, Pod};
use crate::manifests::{Manifests, World};
use crate::netstat::syns_sent_again;
use crate::registry::Registry;
use crate::scrape::Samples;
use crate::{Lab, Process, binaries, wait};

/// The trust domain.
pub const TRUST_DOMAIN: &str = "empire.example";
/// How long anything local may take.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// How long one who may not land keeps trying: the first SYN and the next.
pub const IN_VAIN: Duration = Duration::from_millis(1500);
/// When a SYN is sent again.
const SENT_AGAIN: Duration = Duration::from_secs(1);
/// What is answered so much later than that is not answered because of it.
const LATE: Duration = Duration::from_millis(250);
/// The nodes: tiefighter, xwing and interceptor are on the first, deathstar and stormtrooper on the other.
pub const NODES: [&str; 2] = ["node1", "node2"];
/// What the server answers.
const ANSWER: &str = "Ship landed\n";
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/manifests");

/// The cluster in a lab of its own. Processes end before the lab does.
#[derive(Debug)]
pub struct StarWars {
    /// Daemons by node.
    pub agents: BTreeMap<String, Daemon>,
    /// Tunnels by node.
    pub tunnels: BTreeMap<String, Daemon>,
    /// Who issues SVIDs.
    pub issuer: Issuer,
    _server: Process,
    /// Who may obtain which SVID.
    pub registry: Registry,
    /// Nodes and pods.
    pub world: World,
    /// What the cluster directory says.
    pub manifests: Manifests,
    /// The lab.
    pub lab: Lab,
}

impl StarWars {
    /// Builds the lab and starts server and authority. Nothing enforces anything yet.
    ///
    /// # Errors
    /// When something does not start.
    pub fn new(name: &str) -> Result<Self> {
        // Strict filtering of reverse paths, the harder case.
        Self::with_options(name, Options { rp_filter: 1, cni: None })
    }

    /// As [`StarWars::new`], with tunnels and daemons, in a lab of this kind.
    ///
    /// # Errors
    /// As [`StarWars::settled`].
    pub fn settled_with(name: &str, options: Options) -> Result<Self> {
        let mut scene = Self::with_options(name, options)?;
        scene.start_tunnels()?;
        scene.start_agents(&[])?;
        scene.settle()?;
        Ok(scene)
    }

    /// As [`StarWars::new`], in a lab of this kind.
    ///
    /// # Errors
    /// As there.
    pub fn with_options(name: &str, options: Options) -> Result<Self> {
        Self::issued_by(name, options, Kind::Embedded, SVID_TTL)
    }

    /// As [`StarWars::with_options`], with this issuer, whose SVIDs live so long.
    ///
    /// # Errors
    /// As there.
    pub fn issued_by(name: &str, options: Options, kind: Kind, svid_ttl: Duration) -> Result<Self> {
        let lab = Lab::with_options(name, options)?;
        copy(Path::new(MANIFESTS), &lab.outside("cluster"))?;
        allocate(&lab)?;
        let manifests = Manifests::read(&lab.outside("cluster"))?;
        let world = manifests.build(&lab)?;
        let deathstar = world.pods.get("deathstar").context("the manifests have no deathstar")?;
        let command = deathstar.command(binaries::path("deathstar")?);
        let server = Process::start(&lab, deathstar, "deathstar", command)?;
        let issuer = kind.start(&lab, TRUST_DOMAIN, &NODES, svid_ttl)?;
        let registry = Registry::new(&lab, kind, TRUST_DOMAIN)?;
        for node in NODES {
            registry.add_node(node)?;
        }
        for (identity, node) in manifests.placements()? {
            registry.add_identity(identity, &node)?;
        }
        let (agents, tunnels) = (BTreeMap::new(), BTreeMap::new());
        let scene = Self { agents, tunnels, issuer, _server: server, registry, world, manifests, lab };
        let at = scene.target(Family::V6)?;
        let pod = scene.pod("deathstar")?;
        wait::until(PATIENCE, || pod.tcp_connect(at, PATIENCE).ok()).context("the server does not listen")?;
        Ok(scene)
    }

    /// With tunnels and daemons on both nodes that have found each other.
    ///
    /// # Errors
    /// As [`StarWars::new`].
    pub fn settled(name: &str, flags: &[&str]) -> Result<Self> {
        let mut scene = Self::new(name)?;
        scene.start_tunnels()?;
        scene.start_agents(flags)?;
        scene.settle()?;
        Ok(scene)
    }

    /// Starts the tunnels of both nodes.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_tunnels(&mut self) -> Result<()> {
        for name in NODES {
            let tunnel = Daemon::tunnel(&self.lab, self.node(name)?)?;
            self.tunnels.insert(name.to_owned(), tunnel);
        }
        self.tunnels.values_mut().try_for_each(|tunnel| tunnel.wait_ready(PATIENCE).map(drop))
    }

    /// Starts the daemons of both nodes, with these flags besides.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_agents(&mut self, flags: &[&str]) -> Result<()> {
        NODES.into_iter().try_for_each(|name| self.start_agent(name, flags))
    }

    /// Starts the daemon of one node. Of flags given twice the last counts.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_agent(&mut self, node: &str, flags: &[&str]) -> Result<()> {
        let agent = Daemon::agent(&self.lab, self.node(node)?, &self.cluster(flags))?;
        self.agents.insert(node.to_owned(), agent);
        Ok(())
    }

    /// Starts an operator in the place of the registry, with these flags besides: what was registered is taken back.
    ///
    /// # Errors
    /// When it does not start, or the issuer does not answer.
    pub fn start_operator(&self, flags: &[&str]) -> Result<Daemon> {
        self.registry.clear()?;
        Daemon::operator(&self.lab, &self.cluster(flags), self.registry.issuer().agent_selector())
    }

    /// What all daemons are told, and these flags.
    fn cluster(&self, flags: &[&str]) -> Cluster {
        Cluster {
            trust_domain: TRUST_DOMAIN.to_owned(),
            directory: self.lab.inside("cluster"),
            cidrs: self.manifests.nodes.values().flat_map(|node| node.pod_cidrs.clone()).collect(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        }
    }

    /// Waits until each daemon has a session with the other node that its programs know, a peer, programs, and its SVIDs.
    ///
    /// # Errors
    /// When one lacks something for too long.
    pub fn settle(&mut self) -> Result<()> {
        let settled = |metrics: &Samples| {
            metrics.sum("authd_node_sessions", &[("state", "live")]) >= 1.0
                && metrics.sum("authd_wireguard_peers", &[]) >= 1.0
                && metrics.sum("authd_endpoints", &[]) >= 2.0
                && metrics.sum("authd_svids", &[("state", "valid")]) >= 1.0
                && metrics.sum("authd_svids", &[("state", "missing")]) == 0.0
        };
        for agent in self.agents.values_mut() {
            agent.wait_ready(PATIENCE)?;
            wait::until(PATIENCE, || agent.metrics().ok().filter(settled))
                .ok_or_else(|| agent.process().failure("lacks a session, a peer, a program or an SVID"))?;
        }
        self.agents.keys().try_for_each(|name| {
            let node = self.node(name)?;
            let known = wait::until(PATIENCE, || is_session_known(node).ok()?.then_some(()));
            known.map(drop).with_context(|| format!("the programs of {name} know no session"))
        })
    }

    /// A node.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.world.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// A pod.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.world.pods.get(name).with_context(|| format!("no pod {name}"))
    }

    /// A daemon.
    ///
    /// # Errors
    /// When it has not been started.
    pub fn agent(&mut self, node: &str) -> Result<&mut Daemon> {
        self.agents.get_mut(node).with_context(|| format!("authd has not been started on {node}"))
    }

    /// Where the server listens.
    ///
    /// # Errors
    /// When it has no such address.
    pub fn target(&self, family: Family) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.pod("deathstar")?.address(family)?, 80))
    }

    /// Connects a pod to the server.
    ///
    /// # Errors
    /// When there is no connection in time.
    pub fn connect(&self, pod: &str, family: Family, limit: Duration) -> Result<Connection> {
        Connection::open(self.pod(pod)?, self.target(family)?, limit)
    }

    /// Connects a pod to the server and has it land.
    ///
    /// # Errors
    /// When it does not.
    pub fn land(&self, pod: &str, family: Family, limit: Duration) -> Result<Connection> {
        let mut connection = self.connect(pod, family, limit)?;
        self.land_over(&mut connection, limit)?;
        Ok(connection)
    }

    /// Has a pod land, and expects that no SYN of its connection was lost.
    ///
    /// # Errors
    /// When it does not land, or a SYN had to be sent again, and not just because it was answered late.
    pub fn land_at_once(&self, pod: &str, family: Family) -> Result<()> {
        let from = self.pod(pod)?;
        let (before, dropped) = (syns_sent_again(from)?, self.dropped());
        let connect_time = self.land(pod, family, PATIENCE)?.connect_time;
        let again = syns_sent_again(from)? - before;
        // One that was lost is made up for by the next.
        let is_late = connect_time > SENT_AGAIN + LATE && self.dropped() <= dropped;
        ensure!(again == 0 || is_late, "{pod} over {family}: {again} SYNs again, {connect_time:?}");
        Ok(())
    }

    /// How many packets have dropped, as far as daemons are there to tell.
    fn dropped(&self) -> f64 {
        let metrics = self.agents.values().filter_map(|agent| agent.metrics().ok());
        metrics.map(|it| it.sum("authd_packets_total", &[("verdict", "DROPPED")])).sum()
    }

    /// Lands over a connection.
    ///
    /// # Errors
    /// When there is no answer, or another one.
    pub fn land_over(&self, connection: &mut Connection, limit: Duration) -> Result<()> {
        let answer = connection.request("POST", "/v1/request-landing", &self.needle(), limit)?;
        ensure!(answer.status == 200 && answer.body == ANSWER, "the answer is {answer:?}");
        Ok(())
    }

    /// Whether a pod can't even connect to the server, however often its kernel tries.
    #[must_use]
    pub fn is_refused(&self, pod: &str, family: Family) -> bool {
        self.connect(pod, family, IN_VAIN).is_err()
    }

    /// What every request carries, and no other traffic of this machine.
    #[must_use]
    pub fn needle(&self) -> String {
        format!("exhaust port {}", self.lab.name())
    }

    /// What may be on the wire.
    #[must_use]
    pub fn expected(&self) -> Expected {
        let nodes = self.world.nodes.values().flat_map(|node| node.addresses().to_owned()).collect();
        Expected { nodes, wireguard: 51871, handshake: 4250 }
    }

    /// Writes a file of the cluster directory, as an editor does: whole.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_manifest(&self, name: &str, text: &str) -> Result<()> {
        let directory = self.lab.outside("cluster");
        let new = directory.join(format!(".{name}.new"));
        fs::write(&new, text)?;
        Ok(fs::rename(new, directory.join(name))?)
    }

    /// Gives numbers to what has none, and reads the directory anew.
    ///
    /// # Errors
    /// When `authctl` fails.
    pub fn allocate(&mut self) -> Result<()> {
        allocate(&self.lab)?;
        self.manifests = Manifests::read(&self.lab.outside("cluster"))?;
        Ok(())
    }

    /// Runs `authctl` on a node and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn authctl(&self, node: &str, arguments: &[&str]) -> Result<String> {
        words::authctl(self.node(node)?, arguments)
    }

    /// As [`StarWars::authctl`], as JSON.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn authctl_json(&self, node: &str, arguments: &[&str]) -> Result<Value> {
        let text = self.authctl(node, &[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// The flows that a node shows with these options of `authctl observe`.
    ///
    /// # Errors
    /// When `authctl` fails.
    pub fn flows(&self, node: &str, options: &[&str]) -> Result<Vec<Value>> {
        let text = self.authctl(node, &[&["observe", "--last", "4000", "-o", "json"], options].concat())?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The same, when there are such flows: a packet goes on before the daemon has heard of it.
    ///
    /// # Errors
    /// When they don't come; with those that are there.
    pub fn wait_flows(
        &self,
        node: &str,
        options: &[&str],
        wanted: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        let found =
            wait::until(PATIENCE, || self.flows(node, options).ok().filter(|flows| wanted(flows.as_slice())));
        let there = || format!("no flows of {node} with {options:?}, but {:?}", self.flows(node, options));
        found.map(|(flows, _)| flows).with_context(there)
    }

    /// The authentications of a node between an identity here and one elsewhere, by their pods.
    ///
    /// # Errors
    /// When `authctl` fails.
    pub fn authenticated(&self, node: &str, here: &str, there: &str) -> Result<Vec<Value>> {
        let (local, remote) = (self.manifests.identity_of(here)?, self.manifests.identity_of(there)?);
        words::authenticated(&self.authctl_json(node, &["auth", "list"])?, local, remote)
    }

    /// The conditions of a node's status, as `TYPE object: message`.
    ///
    /// # Errors
    /// When `authctl` fails.
    pub fn conditions(&self, node: &str) -> Result<Vec<String>> {
        words::conditions(&self.authctl_json(node, &["status"])?)
    }

    /// Waits for a condition whose text has all these parts.
    ///
    /// # Errors
    /// When it does not come; with those that are there.
    pub fn wait_condition(&self, node: &str, parts: &[&str]) -> Result<String> {
        let found = wait::until(PATIENCE, || {
            let all = self.conditions(node).ok()?;
            all.into_iter().find(|text| parts.iter().all(|part| text.contains(part)))
        });
        let there = || format!("no condition with {parts:?}, but {:#?}", self.conditions(node));
        found.map(|(text, _)| text).with_context(there)
    }

    /// The pinned links of a node by their names, such as `to_pod@lxc-xwing:7`.
    ///
    /// # Errors
    /// When `bpftool` fails.
    pub fn links(&self, node: &str) -> Result<BTreeMap<String, Link>> {
        words::pinned_links(self.node(node)?)
    }

    /// The ids of all links that the kernel has, and of their programs.
    ///
    /// # Errors
    /// When `bpftool` fails.
    pub fn kernel_links(&self, node: &str) -> Result<BTreeMap<u64, u64>> {
        words::kernel_links(self.node(node)?)
    }

    /// What the programs of a node have counted, by verdict and reason.
    ///
    /// # Errors
    /// When its daemon does not answer.
    pub fn counted(&mut self, node: &str, verdict: &str, reason: &str) -> Result<f64> {
        let labels = [("verdict", verdict), ("reason", reason)];
        Ok(self.agent(node)?.metrics()?.sum("authd_packets_total", &labels))
    }
}

fn allocate(lab: &Lab) -> Result<()> {
    let directory = lab.inside("cluster");
    let directory = directory.to_str().context("a path that is no text")?;
    words::authctl(lab.underlay(), &["identities", "allocate", directory]).map(drop)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for file in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}
