//! The way out: `authctl off`, `on` and `detach`, with the daemon alive and with everything dead.

use std::time::Duration;

use anyhow::Result;
use authd_tests::lab::node::Family;
use authd_tests::star_wars::NODES;
use authd_tests::{StarWars, log, skip, wait};
use serde_json::Value;

/// How long a guard is off: long enough for a landing over each family.
const OFF: Duration = Duration::from_secs(4);
/// How long what ends by itself may take over its time: the daemon looks once a second.
const LATE: Duration = Duration::from_secs(10);

fn off(scene: &StarWars, node: &str, guard: &str, time: &str) -> Result<Value> {
    scene.authctl_json(node, &["off", guard, "--for", time, "--reason", "incident 4711"])
}

fn observing(scene: &mut StarWars, node: &str, of: &str) -> Option<()> {
    let metrics = scene.agent(node).ok()?.metrics().ok()?;
    (metrics.sum("authd_observing", &[("of", of)]) > 0.0).then_some(())
}

fn lands(scene: &StarWars, pod: &str) -> Result<()> {
    Family::ALL.into_iter().try_for_each(|family| scene.land(pod, family, OFF).map(drop))
}

/// Routes and rules of ours on a node.
fn steering(scene: &StarWars, node: &str) -> Result<String> {
    let node = scene.node(node)?;
    let mut found = String::new();
    for family in ["-4", "-6"] {
        found += &node.exec(["ip", family, "rule", "show"])?;
        found += &node.exec(["ip", family, "route", "show", "table", "all"])?;
    }
    Ok(found.lines().filter(|line| line.contains("proto 97")).collect())
}

#[test]
fn policy_goes_off_for_a_while_and_the_daemon_says_so() {
    if !skip::lab_available("policy_goes_off_for_a_while_and_the_daemon_says_so") {
        return;
    }
    let mut scene = StarWars::settled("off", &[]).unwrap();
    assert!(scene.is_refused("xwing", Family::V4));
    let done = off(&scene, "node2", "policy", "4s").unwrap();
    assert_eq!((&done["guard"], &done["recorded"]), (&"POLICY".into(), &true.into()));
    lands(&scene, "xwing").unwrap();
    let status = scene.authctl_json("node2", &["status"]).unwrap();
    assert!(status["policy"]["offUntil"].is_string(), "{status}");
    assert!(scene.authctl_json("node1", &["status"]).unwrap()["policy"]["offUntil"].is_null());
    assert!(wait::until(LATE, || observing(&mut scene, "node2", "policy")).is_some());

    let ended = wait::until(OFF + LATE, || observing(&mut scene, "node2", "policy").is_none().then_some(()));
    assert!(ended.is_some(), "it does not end");
    assert!(scene.is_refused("xwing", Family::V4));
    assert!(scene.authctl_json("node2", &["status"]).unwrap()["policy"]["offUntil"].is_null());

    off(&scene, "node2", "policy", "1h").unwrap();
    drop(scene.land("xwing", Family::V4, OFF).unwrap());
    let text = scene.authctl("node2", &["on", "policy", "--reason", "mended"]).unwrap();
    assert!(text.starts_with("policy is on again: enforce"), "{text}");
    assert!(scene.is_refused("xwing", Family::V4));

    let said = scene.agent("node2").unwrap().process().log().unwrap();
    let switched = [("message", "a guard was switched by hand"), ("reason", "incident 4711"), ("uid", "0")];
    assert!(log::contains(&said, &switched), "{said}");
    for message in ["a guard is off", "a guard is on again"] {
        assert!(log::contains(&said, &[("message", message), ("guard", "policy")]), "{message}: {said}");
    }
}

#[test]
fn policy_goes_off_with_the_daemon_dead() {
    if !skip::lab_available("policy_goes_off_with_the_daemon_dead") {
        return;
    }
    let mut scene = StarWars::settled("dead", &[]).unwrap();
    // Whose address it is, a node can be told only while its daemon lives.
    assert!(scene.is_refused("xwing", Family::V4));
    scene.agent("node2").unwrap().kill9().unwrap();
    assert!(scene.is_refused("xwing", Family::V4));
    let done = off(&scene, "node2", "policy", "4s").unwrap();
    assert_eq!((&done["source"], &done["recorded"]), (&"pinned maps".into(), &false.into()));
    lands(&scene, "xwing").unwrap();
    assert!(scene.authctl("node2", &["status"]).unwrap().contains("OFF by `authctl off`"));
    wait::pause(OFF);
    assert!(scene.is_refused("xwing", Family::V4), "it ends by itself, without a daemon");

    off(&scene, "node2", "policy", "1h").unwrap();
    drop(scene.land("xwing", Family::V4, OFF).unwrap());
    scene.authctl("node2", &["on", "policy"]).unwrap();
    assert!(scene.is_refused("xwing", Family::V4));
}

#[test]
fn encryption_goes_off_for_a_while_and_comes_back() {
    if !skip::lab_available("encryption_goes_off_for_a_while_and_comes_back") {
        return;
    }
    let mut scene = StarWars::settled("plain", &[]).unwrap();
    lands(&scene, "tiefighter").unwrap();
    let capture = scene.lab.capture().unwrap();
    for node in NODES {
        off(&scene, node, "encryption", "5s").unwrap();
    }
    for node in NODES {
        let lifted = wait::until(LATE, || steering(&scene, node).unwrap().is_empty().then_some(()));
        assert!(lifted.is_some(), "the routes of {node} stay");
    }
    lands(&scene, "tiefighter").unwrap();
    assert!(scene.is_refused("xwing", Family::V4), "policy is still on");
    assert!(capture.stop().unwrap().containing(scene.needle().as_bytes()) >= 2, "not in the clear");

    for node in NODES {
        let on = |scene: &mut StarWars| {
            let steered = !steering(scene, node).ok()?.is_empty();
            (observing(scene, node, "encryption").is_none() && steered).then_some(())
        };
        assert!(wait::until(OFF + LATE, || on(&mut scene)).is_some(), "{node} does not encrypt again");
    }
    let capture = scene.lab.capture().unwrap();
    lands(&scene, "tiefighter").unwrap();
    let frames = capture.stop().unwrap();
    assert_eq!(frames.containing(scene.needle().as_bytes()), 0);
    assert!(frames.count(&scene.expected()).wireguard > 0);
}

#[test]
fn encryption_goes_off_with_daemons_and_tunnels_dead() {
    if !skip::lab_available("encryption_goes_off_with_daemons_and_tunnels_dead") {
        return;
    }
    let mut scene = StarWars::settled("darkness", &[]).unwrap();
    lands(&scene, "tiefighter").unwrap();
    for daemon in scene.agents.values_mut().chain(scene.tunnels.values_mut()) {
        daemon.kill9().unwrap();
    }
    let capture = scene.lab.capture().unwrap();
    assert!(scene.is_refused("tiefighter", Family::V4), "the tunnel is dead");
    for node in NODES {
        assert!(!steering(&scene, node).unwrap().is_empty());
        off(&scene, node, "encryption", "5s").unwrap();
        assert_eq!(steering(&scene, node).unwrap(), "");
    }
    let begun = std::time::Instant::now();
    lands(&scene, "tiefighter").unwrap();
    assert!(capture.stop().unwrap().containing(scene.needle().as_bytes()) >= 2, "not in the clear");

    wait::pause(Duration::from_secs(5).saturating_sub(begun.elapsed()));
    let capture = scene.lab.capture().unwrap();
    assert!(scene.is_refused("tiefighter", Family::V4), "the guard is back, though nothing else is");
    let counts = capture.stop().unwrap().count(&scene.expected());
    assert_eq!(counts.other, 0, "{counts}");
    assert!(scene.authctl("node1", &["drops"]).unwrap().contains("UNENCRYPTED"));

    for daemon in scene.tunnels.values_mut().chain(scene.agents.values_mut()) {
        daemon.restart().unwrap();
    }
    scene.settle().unwrap();
    let capture = scene.lab.capture().unwrap();
    lands(&scene, "tiefighter").unwrap();
    assert_eq!(capture.stop().unwrap().containing(scene.needle().as_bytes()), 0);
}

#[test]
fn detach_leaves_the_node_as_without_authd() {
    if !skip::lab_available("detach_leaves_the_node_as_without_authd") {
        return;
    }
    let mut scene = StarWars::settled("detach", &[]).unwrap();
    assert!(scene.is_refused("xwing", Family::V4));
    for node in NODES {
        let links = scene.links(node).unwrap();
        assert!(links.len() >= 8, "two for each pod, for the uplink and for the tunnel: {links:?}");
        scene.agent(node).unwrap().kill9().unwrap();
        let refused = scene.authctl(node, &["detach"]).unwrap_err().to_string();
        assert!(refused.contains("--yes"), "{refused}");
        let done = scene.authctl_json(node, &["detach", "--yes"]).unwrap();
        assert!(done["detached"].as_u64() >= Some(8) && done["routesRemoved"].as_u64() > Some(4), "{done}");
        let left = || {
            scene
                .kernel_links(node)
                .unwrap()
                .keys()
                .filter(|id| links.values().any(|it| it.id == **id))
                .count()
        };
        assert!(wait::until(LATE, || (left() == 0).then_some(())).is_some(), "programs stay on {node}");
        assert_eq!(steering(&scene, node).unwrap(), "");
        assert!(!scene.node(node).unwrap().outside("/sys/fs/bpf/authd".as_ref()).exists());
    }
    let capture = scene.lab.capture().unwrap();
    lands(&scene, "xwing").unwrap();
    assert!(capture.stop().unwrap().containing(scene.needle().as_bytes()) >= 2, "not in the clear");
}
