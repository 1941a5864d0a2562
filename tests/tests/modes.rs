//! `observe` and `enforce`, for policy and for encryption: what passes, and what is said of it.

use anyhow::{Context, Result};
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{StarWars, skip, wait};
use serde_json::Value;

#[test]
fn policy_that_is_observed_drops_nothing_and_says_all() {
    if !skip::lab_available("policy_that_is_observed_drops_nothing_and_says_all") {
        return;
    }
    let mut scene = StarWars::settled("observe", &["--policy-mode", "observe"]).unwrap();
    for family in Family::ALL {
        scene.land_at_once("xwing", family).unwrap();
    }
    let options = ["--verdict", "AUDIT", "--reason", "POLICY_DENIED", "--from-pod", "default/xwing"];
    let flows = scene.wait_flows("node2", &options, |flows| flows.len() >= 2).unwrap();
    assert_eq!(flows[0]["destination"]["pod"], "default/deathstar");
    assert!(scene.flows("node2", &["--verdict", "DROPPED", "--from-pod", "xwing"]).unwrap().is_empty());
    assert!(scene.counted("node2", "AUDIT", "POLICY_DENIED").unwrap() >= 2.0);
    let dropped = scene.counted("node2", "DROPPED", "POLICY_DENIED").unwrap();
    assert!(dropped.abs() < f64::EPSILON, "{dropped}");

    let observing = |metrics: authd_tests::scrape::Samples, of| metrics.sum("authd_observing", &[("of", of)]);
    for (of, expected) in [("policy", 1.0), ("encryption", 0.0)] {
        let value = observing(scene.agent("node2").unwrap().metrics().unwrap(), of);
        assert!((value - expected).abs() < f64::EPSILON, "{of}: {value}");
    }
    assert_eq!(scene.authctl_json("node1", &["status"]).unwrap()["policy"]["mode"], "OBSERVE");
}

#[test]
fn identities_authenticate_while_policy_is_observed() {
    if !skip::lab_available("identities_authenticate_while_policy_is_observed") {
        return;
    }
    let mut scene = StarWars::settled("rehearsal", &["--policy-mode", "observe"]).unwrap();
    scene.land_at_once("tiefighter", Family::V4).unwrap();
    assert!(scene.counted("node2", "AUDIT", "AUTH_REQUIRED").unwrap() >= 1.0);
    for (node, here, there) in [("node1", "tiefighter", "deathstar"), ("node2", "deathstar", "tiefighter")] {
        let entry = wait::until(PATIENCE, || scene.authenticated(node, here, there).unwrap().pop());
        assert!(entry.is_some(), "no entry on {node}");
    }
    // From now on nothing would have dropped.
    let before = scene.counted("node2", "AUDIT", "AUTH_REQUIRED").unwrap();
    drop(scene.land("tiefighter", Family::V6, PATIENCE).unwrap());
    let after = scene.counted("node2", "AUDIT", "AUTH_REQUIRED").unwrap();
    assert!((after - before).abs() < f64::EPSILON, "{before} {after}");
}

/// A cluster that has no tunnels, once programs and sessions are there.
fn without_tunnels(name: &str, flags: &[&str]) -> Result<StarWars> {
    let mut scene = StarWars::new(name)?;
    scene.start_agents(flags)?;
    for node in NODES {
        let agent = scene.agent(node)?;
        let there = wait::until(PATIENCE, || {
            let metrics = agent.metrics().ok()?;
            let sessions = metrics.sum("authd_node_sessions", &[("state", "live")]);
            let endpoints = metrics.sum("authd_endpoints", &[]);
            (sessions >= 1.0 && endpoints >= 2.0).then_some(())
        });
        there.with_context(|| format!("no session or no programs on {node}"))?;
    }
    Ok(scene)
}

#[test]
fn encryption_that_is_observed_passes_in_the_clear_and_says_so() {
    if !skip::lab_available("encryption_that_is_observed_passes_in_the_clear_and_says_so") {
        return;
    }
    let mut scene = without_tunnels("clear", &["--encryption-mode", "observe"]).unwrap();
    let capture = scene.lab.capture().unwrap();
    for family in Family::ALL {
        drop(scene.land("tiefighter", family, PATIENCE).unwrap());
    }
    assert!(scene.is_refused("xwing", Family::V4), "policy still enforces");
    let frames = capture.stop().unwrap();
    assert!(frames.containing(scene.needle().as_bytes()) >= 2, "it travelled in the clear");

    for node in NODES {
        let options = ["--verdict", "AUDIT", "--from-pod", "default/tiefighter"];
        let flows = scene.wait_flows(node, &options, |flows| !flows.is_empty()).unwrap();
        let reasons =
            |flow: &Value| ["UNENCRYPTED", "NO_NODE_SESSION"].iter().any(|it| flow["reason"] == *it);
        assert!(flows.iter().all(reasons), "{flows:?}");
        assert!(scene.counted(node, "AUDIT", "UNENCRYPTED").unwrap() >= 2.0);
        let metrics = scene.agent(node).unwrap().metrics().unwrap();
        assert!(metrics.sum("authd_observing", &[("of", "encryption")]) > 0.0);
        assert!(metrics.sum("authd_tunnel_up", &[]) < 1.0);
    }
}

#[test]
fn without_a_tunnel_nothing_passes_and_nothing_is_in_the_clear() {
    if !skip::lab_available("without_a_tunnel_nothing_passes_and_nothing_is_in_the_clear") {
        return;
    }
    let scene = without_tunnels("dark", &[]).unwrap();
    let capture = scene.lab.capture().unwrap();
    for family in Family::ALL {
        assert!(scene.is_refused("tiefighter", family), "{family}");
    }
    // On one node no tunnel is needed.
    drop(scene.land("stormtrooper", Family::V4, PATIENCE).unwrap());
    let frames = capture.stop().unwrap();
    let counts = frames.count(&scene.expected());
    assert_eq!((counts.other, counts.wireguard), (0, 0), "{counts}");
    assert_eq!(frames.containing(scene.needle().as_bytes()), 0);
    scene.wait_condition("node1", &["TUNNEL", "/run/authd/tunnel.sock"]).unwrap();
}
