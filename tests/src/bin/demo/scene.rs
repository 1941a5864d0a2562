//! The scene: the cluster of the manifests in a lab, its server, authd's processes, and who talks to whom.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use authd_tests::capture::Expected;
use authd_tests::daemon::{Cluster, Daemon};
use authd_tests::http::Connection;
use authd_tests::issuer::Issuer;
use authd_tests::lab::Options;
use authd_tests::lab::node::Family;
use authd_tests::manifests::{Manifests, World};
use authd_tests::{Lab, Node, Pod, Process, binaries, wait};

/// The trust domain of the demo.
pub(crate) const TRUST_DOMAIN: &str = "empire.example";
/// Ports of authd, which are its defaults.
const WIREGUARD: u16 = 51871;
const HANDSHAKE: u16 = 4250;
/// What the server answers.
pub(crate) const ANSWER: &str = "Ship landed\n";
/// How long anything local may take that is no expectation of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Everything on the stage. Daemons end before the lab does.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) agents: Vec<Daemon>,
    pub(crate) tunnels: Vec<Daemon>,
    pub(crate) operator: Option<Daemon>,
    pub(crate) issuer: Option<Issuer>,
    server: Process,
    world: World,
    pub(crate) manifests: Manifests,
    /// In every request, and in no other traffic of this machine.
    needle: String,
    pub(crate) lab: Lab,
}

impl Scene {
    /// Builds nodes and pods and starts the server. Nothing of authd runs yet.
    pub(crate) fn new(manifests: &Path, rp_filter: u8) -> Result<Self> {
        let lab = Lab::with_options("demo", Options { rp_filter, ..Options::default() })?;
        let cluster = lab.outside("cluster");
        fs::create_dir(&cluster)?;
        for file in fs::read_dir(manifests).with_context(|| format!("read {}", manifests.display()))? {
            let file = file?;
            fs::copy(file.path(), cluster.join(file.file_name()))?;
        }
        let manifests = Manifests::read(&cluster)?;
        let world = manifests.build(&lab)?;
        let pod = world.pods.get("deathstar").context("the manifests have no deathstar")?.clone();
        let server = Process::start(&lab, &pod, "deathstar", pod.command(binaries::path("deathstar")?))?;
        let needle = format!("exhaust port {}", lab.name());
        let (agents, tunnels) = (Vec::new(), Vec::new());
        let scene =
            Self { agents, tunnels, operator: None, issuer: None, server, world, manifests, needle, lab };
        let at = scene.target(Family::V6)?;
        wait::until(PATIENCE, || Connection::open(&pod, at, PATIENCE).ok())
            .ok_or_else(|| scene.server.failure("does not listen"))?;
        Ok(scene)
    }

    /// A pod.
    pub(crate) fn pod(&self, name: &str) -> Result<&Pod> {
        self.world.pods.get(name).with_context(|| format!("the manifests have no pod {name}"))
    }

    /// The node of a pod.
    pub(crate) fn node_of(&self, pod: &str) -> Result<&Node> {
        let manifest = self.manifests.pods.get(pod).with_context(|| format!("no pod {pod}"))?;
        self.world.nodes.get(&manifest.node).with_context(|| format!("no node {}", manifest.node))
    }

    /// The nodes and pods.
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Where the server listens.
    pub(crate) fn target(&self, family: Family) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.pod("deathstar")?.address(family)?, 80))
    }

    /// Connects a pod to the server; the connection has proven nothing yet.
    pub(crate) fn connect(&self, pod: &str, family: Family, limit: Duration) -> Result<Connection> {
        Connection::open(self.pod(pod)?, self.target(family)?, limit)
    }

    /// Requests landing over a connection; how long that took.
    pub(crate) fn land(&self, connection: &mut Connection, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let answer = connection.request("POST", "/v1/request-landing", &self.needle, limit)?;
        ensure!(answer.status == 200 && answer.body == ANSWER, "the answer is {answer:?}");
        Ok(start.elapsed())
    }

    /// Sends a request for landing without awaiting the answer.
    pub(crate) fn send(&self, connection: &mut Connection) -> Result<()> {
        connection.send("POST", "/v1/request-landing", &self.needle)
    }

    /// What no frame between nodes may contain: what requests carry, and what the server answers.
    pub(crate) fn needles(&self) -> [&[u8]; 2] {
        [self.needle.as_bytes(), ANSWER.trim_ascii_end().as_bytes()]
    }

    /// What may be on the wire once authd runs.
    pub(crate) fn expected(&self) -> Expected {
        let nodes = self.world.nodes.values().flat_map(|node| node.addresses().to_owned()).collect();
        Expected { nodes, wireguard: WIREGUARD, handshake: HANDSHAKE }
    }

    /// What all daemons are told.
    pub(crate) fn cluster(&self) -> Cluster {
        let cidrs = self.manifests.nodes.values().flat_map(|node| node.pod_cidrs.clone()).collect();
        Cluster {
            trust_domain: TRUST_DOMAIN.to_owned(),
            directory: self.lab.inside("cluster"),
            cidrs,
            flags: Vec::new(),
        }
    }

    /// Who registers.
    pub(crate) fn operator(&mut self) -> Result<&mut Daemon> {
        self.operator.as_mut().context("the operator has not been started")
    }

    /// The daemon of the node on which a pod runs, and its tunnel.
    pub(crate) fn daemons_of(&mut self, pod: &str) -> Result<(&mut Daemon, &mut Daemon)> {
        let node = self.node_of(pod)?.name().to_owned();
        let index = self.world.nodes.keys().position(|name| *name == node).context("no such node")?;
        let agent = self.agents.get_mut(index).context("its daemon has not been started")?;
        Ok((agent, self.tunnels.get_mut(index).context("its tunnel has not been started")?))
    }
}
