//! SVIDs by pods' processes, which SPIRE's agent attests itself: no entry selects anything that a daemon could say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use authd_tests::issuer::{Issuer, Kind, SVID_TTL};
use authd_tests::lab::node::Family;
use authd_tests::spire::Spire;
use authd_tests::star_wars::{NODES, PATIENCE, TRUST_DOMAIN};
use authd_tests::{Process, StarWars, skip, wait};
use serde_json::Value;

use super::{cluster, held, on_both};

const BROKER: &str = "Broker API";
const BY_PID: &str = "Delegated Identity API by PID";
const BY_SELECTORS: &str = "Delegated Identity API";
/// How long a withdrawal may take to show, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(5);

/// The cluster, with a container in each pod, whose user SPIRE knows it by.
struct Users {
    scene: StarWars,
    users: BTreeMap<String, u32>,
    /// Ended before the lab.
    containers: BTreeMap<String, Process>,
    started: u32,
}

impl Users {
    fn new(name: &str, kind: Kind) -> Result<Self> {
        let scene = cluster(name, kind, SVID_TTL)?;
        scene.registry.clear()?;
        NODES.iter().try_for_each(|node| scene.registry.add_node(node))?;
        let pods: Vec<String> = scene.world.pods.keys().cloned().collect();
        let mut all = Self { scene, users: BTreeMap::new(), containers: BTreeMap::new(), started: 0 };
        for pod in pods {
            let identity = all.scene.manifests.identity_of(&pod)?;
            let uid = 3000 + identity;
            let placements = all.scene.manifests.placements()?;
            let node = placements.iter().find(|(of, _)| *of == identity).context(pod.clone())?.1.clone();
            all.scene.registry.add_user(identity, &node, uid)?;
            all.users.insert(pod.clone(), uid);
            let container = all.container(&pod)?;
            all.containers.insert(pod, container);
        }
        Ok(all)
    }

    /// Another container of a pod.
    fn container(&mut self, pod: &str) -> Result<Process> {
        let uid = self.users.get(pod).context("a user")?.to_string();
        let place = self.scene.pod(pod)?;
        let mut command = place.command("setpriv");
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--", "sleep", "infinity"]);
        self.started += 1;
        Process::start(&self.scene.lab, place, &format!("{pod}-{}", self.started), command)
    }

    fn kill(&mut self, pod: &str) -> Result<()> {
        self.containers.remove(pod).context("no container")?.kill9()
    }

    fn start(&mut self, source: &str) -> Result<()> {
        self.scene.start_tunnels()?;
        NODES.iter().try_for_each(|node| self.start_daemon(node, source))
    }

    fn start_daemon(&mut self, node: &str, source: &str) -> Result<()> {
        let socket = self.scene.lab.inside(&format!("authority/{node}/admin/broker.sock"));
        let socket = socket.to_str().context("a path that is no text")?.to_owned();
        if let Some(mut before) = self.scene.agents.remove(node) {
            before.kill9()?;
        }
        self.scene.start_agent(node, &["--svid-source", source, "--broker-socket", &socket])
    }

    fn spire(&mut self) -> Result<&mut Spire> {
        match &mut self.scene.issuer {
            Issuer::Real(spire) => Ok(spire),
            Issuer::Embedded(_) => bail!("another issuer"),
        }
    }

    fn id(&self, pod: &str) -> Result<String> {
        Ok(format!("spiffe://{TRUST_DOMAIN}/identity/{}", self.scene.manifests.identity_of(pod)?))
    }

    /// The SVIDs of the identities on a node.
    fn svids(&self, node: &str) -> Result<Vec<Value>> {
        let list = self.scene.authctl_json(node, &["svid", "list"])?;
        let svids = list.get("svids").and_then(Value::as_array).context("no SVIDs")?;
        Ok(svids.iter().filter(|svid| svid["identity"] != 0).cloned().collect())
    }

    /// Waits until all SVIDs of a node come this way.
    fn wait_source(&self, node: &str, source: &str) -> Result<()> {
        let is = |svid: &Value| svid["state"] == "AVAILABLE" && svid["source"] == source;
        let all = || self.svids(node).ok().filter(|all| !all.is_empty() && all.iter().all(is));
        let found = wait::until(PATIENCE, all);
        found.map(drop).with_context(|| format!("not all by {source}: {:#?}", self.svids(node)))
    }

    fn leaf(&self, node: &str, pod: &str) -> Result<Value> {
        let id = self.id(pod)?;
        let svids = self.svids(node)?;
        Ok(svids.iter().find(|svid| svid["spiffeId"] == id.as_str()).context("no SVID")?["leafSha256"]
            .clone())
    }
}

fn svids_come_by_processes(name: &str, kind: Kind, source: &str, api: &str) -> Result<()> {
    let mut all = Users::new(name, kind)?;
    all.start(source)?;
    all.scene.settle()?;
    for node in NODES {
        all.wait_source(node, api)?;
        let text = all.scene.authctl(node, &["status"])?;
        ensure!(text.contains(&format!("with SVID by {api}\n")), "{text}");
    }
    let mut there = all.scene.land("tiefighter", Family::V4, PATIENCE)?;
    drop(all.scene.land("stormtrooper", Family::V6, PATIENCE)?);
    ensure!(all.scene.is_refused("xwing", Family::V4), "xwing lands");
    ensure!(
        !all.scene.authenticated("node1", "tiefighter", "deathstar")?.is_empty(),
        "nothing authenticated"
    );

    // Another container of the pod takes the place of one that ends: nobody notices.
    let second = all.container("tiefighter")?;
    wait::pause(SOON / 2);
    all.kill("tiefighter")?;
    let killed = Instant::now();
    while killed.elapsed() < SOON / 2 {
        all.scene.land_over(&mut there, PATIENCE).context("cut by the end of one of two containers")?;
    }
    all.containers.insert("tiefighter".to_owned(), second);
    all.wait_source("node1", api)?;

    // With the last the SVID goes, and what rests on it.
    let id = all.id("tiefighter")?;
    all.kill("tiefighter")?;
    let gone = || (!held(&all.scene, "node1").ok()?.contains(&id)).then_some(());
    wait::until(SOON, gone).context("the SVID of who has no process is kept")?;
    let cut = || all.scene.land_over(&mut there, Duration::from_secs(1)).is_err().then_some(());
    wait::until(SOON, cut).context("a connection outlasts the SVID that it rests on")?;
    all.scene.wait_condition("node1", &["SVID_MISSING", &id, "no process of its pods"])?;
    ensure!(all.scene.is_refused("tiefighter", Family::V6), "who has no SVID lands");
    let container = all.container("tiefighter")?;
    all.containers.insert("tiefighter".to_owned(), container);
    drop(all.scene.land("tiefighter", Family::V6, PATIENCE)?);

    // The agent starts anew, and gives new ones.
    if kind == Kind::Real {
        let before = all.leaf("node1", "tiefighter")?;
        all.spire()?.kill_agent("node1")?;
        drop(all.scene.land("tiefighter", Family::V4, PATIENCE).context("while the agent is away")?);
        all.spire()?.start_agent("node1")?;
        let renewed = || (all.leaf("node1", "tiefighter").ok()? != before).then_some(());
        wait::until(PATIENCE, renewed).context("no new SVID of the new agent")?;
        all.wait_source("node1", api)?;
        drop(all.scene.land("tiefighter", Family::V6, PATIENCE)?);
    }
    Ok(())
}

#[test]
fn svids_come_by_the_broker_api_while_a_process_of_the_identity_lives() {
    on_both("broker", |name, kind| svids_come_by_processes(name, kind, "broker", BROKER)).unwrap();
}

#[test]
fn svids_come_by_pid_from_an_agent_without_broker_api() {
    on_both("bypid", |name, kind| svids_come_by_processes(name, kind, "delegated-pid", BY_PID)).unwrap();
}

/// An agent that does not take its daemon for a broker, and one that comes to.
fn who_is_no_broker_falls_back(name: &str) -> Result<()> {
    let mut all = Users::new(name, Kind::Real)?;
    all.spire()?.allow_broker("node1", false)?;
    all.start("auto")?;
    all.scene.settle()?;
    all.wait_source("node1", BY_PID)?;
    all.wait_source("node2", BROKER)?;
    all.scene
        .wait_condition("node1", &["SVID_SOURCE", "Delegated Identity API", "experimental.broker.brokers"])?;
    drop(all.scene.land("tiefighter", Family::V4, PATIENCE)?);

    // Who insists on it is told what to do.
    all.start_daemon("node1", "broker")?;
    let node = format!("is spiffe://{TRUST_DOMAIN}/authd/node/node1 among its brokers?");
    all.scene.wait_condition("node1", &["SVID_MISSING", "experimental.broker.brokers", &node])?;
    ensure!(held(&all.scene, "node1")?.is_empty(), "SVIDs by an API that refuses");
    all.spire()?.allow_broker("node1", true)?;
    all.wait_source("node1", BROKER)?;
    drop(all.scene.land("tiefighter", Family::V4, PATIENCE)?);

    // What no process is given comes by selectors, to who allows that.
    all.kill("tiefighter")?;
    all.start_daemon("node1", "auto")?;
    let identity = all.scene.manifests.identity_of("tiefighter")?;
    all.scene.registry.add_identity(identity, "node1")?;
    let id = all.id("tiefighter")?;
    let by_selectors = || {
        let svids = all.svids("node1").ok()?;
        svids
            .iter()
            .any(|svid| svid["spiffeId"] == id.as_str() && svid["source"] == BY_SELECTORS)
            .then_some(())
    };
    wait::until(PATIENCE, by_selectors).context("not by selectors")?;
    drop(all.scene.land("tiefighter", Family::V6, PATIENCE)?);
    all.scene.wait_condition("node1", &["SVID_SOURCE", &identity.to_string(), "gives it to no process"])?;
    Ok(())
}

#[test]
fn who_is_no_broker_falls_back_where_that_is_allowed() {
    let name = "who_is_no_broker_falls_back_where_that_is_allowed";
    if skip::lab_available(name) && skip::spire_available(name) {
        who_is_no_broker_falls_back("nobroker").unwrap();
    }
}
