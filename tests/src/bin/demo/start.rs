//! First in the clear, to prove that the capture would see it; then authd comes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use authd_tests::daemon::Daemon;
use authd_tests::issuer::{Kind, SVID_TTL};
use authd_tests::lab::node::Family;
use authd_tests::manifests::Manifests;
use authd_tests::registry::Registry;
use authd_tests::star_wars::is_session_known;
use authd_tests::{Node, wait};

use crate::authctl;
use crate::report::Report;
use crate::scene::{PATIENCE, Scene, TRUST_DOMAIN};

/// How long daemons may take until they have what they need of each other.
const SETTLE: Duration = Duration::from_secs(40);

/// Lands without authd. What a capture does not see now it could not see later either.
pub(crate) fn in_the_clear(scene: &Scene, report: &mut Report) -> Result<()> {
    report.part("Without authd");
    let capture = scene.lab.capture()?;
    for family in Family::ALL {
        let mut connection = scene.connect("tiefighter", family, PATIENCE)?;
        scene.land(&mut connection, PATIENCE)?;
    }
    let frames = capture.stop()?;
    for (needle, what) in scene.needles().into_iter().zip(["request", "answer"]) {
        let seen = frames.containing(needle);
        report.figure(&format!("control: the {what} is seen on the wire"), seen > 0, seen, "frames");
    }
    Ok(())
}

/// Gives identities their numbers, starts who issues SVIDs, and the operator that registers everybody.
pub(crate) fn issuer(scene: &mut Scene, kind: Kind, report: &mut Report) -> Result<Registry> {
    report.part("With authd");
    let directory = scene.lab.inside("cluster");
    let directory = directory.to_str().context("a path that is no text")?;
    authctl::run(scene.lab.underlay(), &["identities", "allocate", directory])?;
    scene.manifests = Manifests::read(&scene.lab.outside("cluster"))?;
    let nodes: Vec<_> = scene.manifests.nodes.keys().map(String::as_str).collect();
    let start = Instant::now();
    let issuer = kind.start(&scene.lab, TRUST_DOMAIN, &nodes, SVID_TTL)?;
    let name = match kind {
        Kind::Embedded => "the embedded authority serves",
        Kind::Real => "spire-server and an agent for each node serve",
    };
    report.time(name, Some(start.elapsed()), SETTLE);
    scene.issuer = Some(issuer);
    let registry = Registry::new(&scene.lab, kind, TRUST_DOMAIN)?;
    let wanted = nodes.len() + scene.manifests.placements()?.len();
    let start = Instant::now();
    let operator = Daemon::operator(&scene.lab, &scene.cluster(), kind.agent_selector())?;
    scene.operator.insert(operator).wait_ready(PATIENCE)?;
    let all = || registry.entries().is_ok_and(|entries| entries == wanted);
    let registered = wait::until(PATIENCE, || all().then_some(()));
    let took = registered.map(|_| start.elapsed());
    report.time(&format!("the operator has made {wanted} registration entries"), took, PATIENCE);
    Ok(registry)
}

/// Starts tunnel and daemon on every node and waits until each has what it needs of the others.
pub(crate) fn daemons(scene: &mut Scene, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let cluster = scene.cluster();
    for node in scene.world().nodes.clone().values() {
        scene.tunnels.push(Daemon::tunnel(&scene.lab, node)?);
        scene.agents.push(Daemon::agent(&scene.lab, node, &cluster)?);
    }
    for daemon in scene.tunnels.iter_mut().chain(&mut scene.agents) {
        daemon.wait_ready(PATIENCE)?;
    }
    report.time("daemons and tunnels of both nodes are ready", Some(start.elapsed()), PATIENCE);
    for node in scene.world().nodes.values() {
        wait_settled(node)?;
    }
    report.time("node sessions, WireGuard peers and SVIDs are there", Some(start.elapsed()), SETTLE);
    Ok(())
}

/// Waits until a node has a session with every other one, each of them as a peer, and the SVIDs of all
/// that it hosts.
pub(crate) fn wait_settled(node: &Node) -> Result<()> {
    let settled = wait::until(SETTLE, || {
        let has_all = authctl::status(node).is_ok_and(|status| status.settled());
        (has_all && is_session_known(node).is_ok_and(|known| known)).then_some(())
    });
    settled.map(drop).with_context(|| {
        let status = authctl::run(node, &["status"]).unwrap_or_else(|error| format!("{error:#}"));
        format!("{} lacks a session, a peer or an SVID:\n{status}", node.name())
    })
}
