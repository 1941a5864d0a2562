//! Daemons end and come back; pods come and go: what is in force stays so, and what changes changes at once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use auth_ebpf_abi::{Event, capacity};
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{StarWars, log, skip, wait};

/// How soon a daemon has to end when it is asked to.
const END: Duration = Duration::from_secs(5);

const PAIR: [(&str, &str, &str); 2] =
    [("node1", "tiefighter", "deathstar"), ("node2", "deathstar", "tiefighter")];

fn end_daemons(scene: &mut StarWars) -> Result<()> {
    for agent in scene.agents.values_mut() {
        let status = agent.process().terminate(END)?;
        anyhow::ensure!(status.success(), "{status}");
    }
    Ok(())
}

#[test]
fn a_daemon_that_is_asked_to_end_leaves_everything_in_force() {
    if !skip::lab_available("a_daemon_that_is_asked_to_end_leaves_everything_in_force") {
        return;
    }
    let mut scene = StarWars::settled("end", &[]).unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    let before: Vec<_> = NODES.iter().map(|node| scene.links(node).unwrap()).collect();
    end_daemons(&mut scene).unwrap();
    for (node, before) in NODES.into_iter().zip(before) {
        assert_eq!(scene.links(node).unwrap(), before);
        let kernel = scene.kernel_links(node).unwrap();
        assert!(before.values().all(|link| kernel.get(&link.id) == Some(&link.program)), "{kernel:?}");
        assert!(!scene.node(node).unwrap().outside("/run/authd/authd.sock".as_ref()).exists());
    }
    for (node, here, there) in PAIR {
        assert_eq!(scene.authenticated(node, here, there).unwrap().len(), 1, "{node}");
    }
    scene.land_over(&mut connection, PATIENCE).unwrap();
    drop(scene.land("tiefighter", Family::V6, PATIENCE).unwrap());
    assert!(scene.is_refused("xwing", Family::V4));
    assert!(scene.is_refused("interceptor", Family::V4), "a new pair, which nobody can authenticate");
}

/// Nobody takes the events, until there is no room for more.
#[test]
fn events_that_are_lost_are_counted_and_change_nothing() {
    if !skip::lab_available("events_that_are_lost_are_counted_and_change_nothing") {
        return;
    }
    const FLOOD: usize = capacity::EVENTS / size_of::<Event>() + 1000;
    let mut scene = StarWars::settled("untold", &[]).unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    scene.agent("node1").unwrap().kill9().unwrap();
    let socket = scene.pod("tiefighter").unwrap().udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    for _ in 0..FLOOD {
        socket.send_to(b"x", "10.244.2.99:80").unwrap();
    }
    scene.land_over(&mut connection, PATIENCE).unwrap();
    drop(scene.land("tiefighter", Family::V6, PATIENCE).unwrap());
    assert!(scene.is_refused("xwing", Family::V4));
    let drops = scene.authctl("node1", &["drops"]).unwrap();
    assert!(drops.contains("events lost: counted above, but in no flow"), "{drops}");
    scene.agent("node1").unwrap().restart().unwrap();
    scene.agent("node1").unwrap().wait_ready(PATIENCE).unwrap();
    let metrics = scene.agent("node1").unwrap().metrics().unwrap();
    assert!(metrics.sum("authd_events_lost_total", &[]) >= 1000.0);
    let dropped = scene.counted("node1", "DROPPED", "UNKNOWN_DESTINATION").unwrap();
    assert!(dropped >= f64::from(u32::try_from(FLOOD).unwrap()), "{dropped}");
    scene.land_over(&mut connection, PATIENCE).unwrap();
}

#[test]
fn a_restarted_daemon_takes_over_and_nobody_notices() {
    if !skip::lab_available("a_restarted_daemon_takes_over_and_nobody_notices") {
        return;
    }
    let mut scene = StarWars::settled("again", &[]).unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    let links: Vec<_> = NODES.iter().map(|node| scene.links(node).unwrap()).collect();
    let (ended, landed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let request = scene.needle();
    thread::scope(|scope| {
        let traffic = scope.spawn(|| -> Result<()> {
            while !ended.load(Ordering::Relaxed) {
                connection.request("POST", "/v1/request-landing", &request, PATIENCE)?;
                landed.fetch_add(1, Ordering::Relaxed);
                wait::pause(Duration::from_millis(5));
            }
            Ok(())
        });
        let restarted = restart(&mut scene);
        ended.store(true, Ordering::Relaxed);
        restarted.unwrap();
        traffic.join().unwrap().unwrap();
    });
    assert!(landed.load(Ordering::Relaxed) > 100, "{landed:?}");

    for (node, before) in NODES.into_iter().zip(links) {
        let after = scene.links(node).unwrap();
        for (name, before) in &before {
            assert_eq!(after[name].id, before.id, "{name} on {node} was attached anew");
            assert_ne!(after[name].program, before.program, "{name} on {node} has its old program");
        }
        assert_eq!(after.len(), before.len());
    }
    let text = |reason| format!("{reason} of the established connection");
    for node in NODES {
        for reason in ["AUTH_REQUIRED", "POLICY_DENIED", "NO_NODE_SESSION", "NO_ENDPOINT", "SPOOFED"] {
            let options = ["--verdict", "DROPPED", "--reason", reason, "--from-pod", "default/tiefighter"];
            assert!(scene.flows(node, &options).unwrap().is_empty(), "{}", text(reason));
        }
    }
    drop(scene.land("tiefighter", Family::V6, PATIENCE).unwrap());
    // The epoch under which a node vouches is pinned: another one would have ended at other nodes what stands there.
    for node in NODES {
        let log = scene.agent(node).unwrap().process().log().unwrap();
        let up = |line: &serde_json::Value| line["event"] == "session_up";
        let epochs: BTreeSet<_> = log::lines(&log).filter(up).map(|line| line["epoch"].to_string()).collect();
        assert_eq!(epochs.len(), 1, "{node}: {epochs:?}");
        assert!(!log::contains(&log, &[("event", "pair_ended")]), "{node}");
    }
}

/// Ends the daemons and starts them again; as soon as one answers, it has the authentications.
fn restart(scene: &mut StarWars) -> Result<()> {
    end_daemons(scene)?;
    scene.agents.values_mut().try_for_each(authd_tests::daemon::Daemon::restart)?;
    for agent in scene.agents.values_mut() {
        agent.wait_ready(PATIENCE)?;
    }
    for _ in 0..20 {
        for (node, here, there) in PAIR {
            let list = scene.authctl_json(node, &["auth", "list"])?;
            anyhow::ensure!(list.get("source").is_some_and(|it| it == "daemon"), "{list}");
            let entries = scene.authenticated(node, here, there)?;
            anyhow::ensure!(entries.len() == 1, "{node}: {here} and {there}: {entries:?}");
        }
    }
    scene.settle()?;
    for (node, here, there) in PAIR {
        anyhow::ensure!(scene.authenticated(node, here, there)?.len() == 1, "{node} after a while");
    }
    Ok(())
}

const BOMBER: &str = "apiVersion: v1
kind: Pod
metadata: {name: bomber, namespace: default, labels: {org: empire, class: bomber}}
spec: {nodeName: node1, containers: [{name: bomber, image: none}]}
status: {phase: Running, podIP: 10.244.1.20, podIPs: [{ip: 10.244.1.20}, {ip: \"fd00:10:244:1::20\"}]}
";

#[test]
fn a_pod_comes_and_goes() {
    if !skip::lab_available("a_pod_comes_and_goes") {
        return;
    }
    let mut scene = StarWars::settled("comes", &[]).unwrap();
    let addresses = ["10.244.1.20".parse().unwrap(), "fd00:10:244:1::20".parse().unwrap()];
    let pod = scene.node("node1").unwrap().pod("bomber", &addresses).unwrap();
    scene.world.pods.insert("bomber".to_owned(), pod.clone());
    assert!(scene.is_refused("bomber", Family::V4), "nobody knows it");

    scene.write_manifest("bomber.yaml", BOMBER).unwrap();
    scene.wait_condition("node1", &["CLUSTER_STATE", "Pod default/bomber", "identities allocate"]).unwrap();
    assert!(scene.is_refused("bomber", Family::V4), "it has no identity");

    scene.allocate().unwrap();
    let identity = scene.manifests.identity_of("bomber").unwrap();
    scene.registry.add_identity(identity, "node1").unwrap();
    for node in NODES {
        let known = || {
            let list = scene.authctl_json(node, &["identities", "list"]).ok()?;
            list.to_string().contains("k8s:class=bomber").then_some(())
        };
        wait::until(PATIENCE, known).with_context(|| format!("{node} does not know it")).unwrap();
    }
    scene.settle().unwrap();
    for family in Family::ALL {
        drop(scene.land("bomber", family, PATIENCE).unwrap());
    }
    // Default deny for what comes in.
    let to = SocketAddr::new(addresses[0], 80);
    assert!(scene.pod("stormtrooper").unwrap().tcp_connect(to, Duration::from_millis(500)).is_err());
    let denied = ["--reason", "POLICY_DENIED", "--to-pod", "default/bomber"];
    scene.wait_flows("node1", &denied, |flows| !flows.is_empty()).unwrap();

    std::fs::remove_file(scene.lab.outside("cluster/bomber.yaml")).unwrap();
    let gone = || {
        let before = scene.counted("node2", "DROPPED", "UNKNOWN_DESTINATION").ok()?;
        let from = scene.pod("stormtrooper").ok()?.clone();
        drop(from.tcp_connect(to, Duration::from_millis(100)));
        (scene.counted("node2", "DROPPED", "UNKNOWN_DESTINATION").ok()? > before).then_some(())
    };
    assert!(wait::until(PATIENCE, gone).is_some(), "its address stays known");
    assert!(scene.is_refused("bomber", Family::V4), "it speaks under an address that is nobody's");
    assert!(
        scene.authenticated("node2", "deathstar", "bomber").is_err() || {
            let identity = u64::from(identity);
            let list = scene.authctl_json("node2", &["auth", "list"]).unwrap();
            let left = list["entries"].as_array().unwrap().clone();
            left.iter().all(|entry| entry["remoteIdentity"] != identity)
        }
    );
}
