//! Addresses that change hands: whoever gets one is never taken for its last owner, however late the other
//! node hears of it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use authd_tests::daemon::{Cluster, Daemon};
use authd_tests::lab::node::{Family, Pod};
use authd_tests::probe::Probe;
use authd_tests::star_wars::{PATIENCE, TRUST_DOMAIN};
use authd_tests::{StarWars, skip, wait};

/// A pod of the alliance, whose ships may not land. Without an address, as long as it is pending.
const REBEL: &str = "apiVersion: v1
kind: Pod
metadata: {name: rebel, namespace: default, labels: {org: alliance, class: rebel}}
spec: {nodeName: node1, containers: [{name: rebel, image: none}]}
";

/// A cluster whose second node reads a state of its own, which is not told of what changes.
fn cluster(name: &str) -> Result<(StarWars, PathBuf)> {
    let mut scene = StarWars::new(name)?;
    // Without ranges of their own, nodes may have each other's addresses.
    let nodes = fs::read_to_string(scene.lab.outside("cluster/nodes.yaml"))?;
    let kept = |line: &&str| !line.contains("podCIDRs") && !line.contains("244");
    let nodes: Vec<_> = nodes.lines().filter(kept).map(|line| line.replace("spec:", "spec: {}")).collect();
    scene.write_manifest("nodes.yaml", &nodes.join("\n"))?;
    scene.write_manifest("rebel.yaml", REBEL)?;
    let ranges = scene.manifests.nodes.clone();
    scene.allocate()?;
    // The cluster as a whole keeps its ranges.
    scene.manifests.nodes = ranges;
    let identity = scene.manifests.identity_of("rebel")?;
    scene.registry.add_identity(identity, "node1")?;
    let stale = scene.lab.outside("stale");
    copy(&scene.lab.outside("cluster"), &stale)?;
    scene.start_tunnels()?;
    scene.start_agent("node1", &[])?;
    let late = Cluster {
        trust_domain: TRUST_DOMAIN.to_owned(),
        directory: scene.lab.inside("stale"),
        cidrs: scene.manifests.nodes.values().flat_map(|node| node.pod_cidrs.clone()).collect(),
        flags: Vec::new(),
    };
    let agent = Daemon::agent(&scene.lab, scene.node("node2")?, &late)?;
    scene.agents.insert("node2".to_owned(), agent);
    scene.settle()?;
    Ok((scene, stale))
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        // Whole or not at all.
        let new = to.join(".new");
        fs::copy(file.path(), &new)?;
        fs::rename(&new, to.join(file.file_name()))?;
    }
    Ok(())
}

/// The pod goes, and its addresses are the rebel's at once.
fn hand_over(scene: &StarWars, from: &str) -> Result<Pod> {
    let last = scene.pod(from)?.clone();
    let owner = &scene.manifests.pods.get(from).context("no such pod")?.node;
    let addresses = last.addresses().to_owned();
    // The old pod of another node doesn't know that it is gone.
    if owner == "node1" {
        scene.node(owner)?.ip(&format!("link del {}\n", last.interface()))?;
    }
    let rebel = scene.node("node1")?.pod("rebel", &addresses)?;
    let text = fs::read_to_string(scene.lab.outside("cluster/pods.yaml"))?;
    let others: Vec<_> =
        text.split("---\n").filter(|pod| !pod.contains(&format!("name: {from}\n"))).collect();
    scene.write_manifest("pods.yaml", &others.join("---\n"))?;
    let ips: Vec<_> = addresses.iter().map(|ip| format!("{{ip: \"{ip}\"}}")).collect();
    let first = addresses.first().context("no address")?;
    let status = format!("status: {{phase: Running, podIP: \"{first}\", podIPs: [{}]}}\n", ips.join(", "));
    scene.write_manifest("rebel.yaml", &format!("{REBEL}{status}"))?;
    Ok(rebel)
}

/// Connects again and again, from both families.
fn try_to_land(scene: &StarWars, rebel: &Pod) -> Result<Vec<Probe>> {
    Family::ALL.into_iter().map(|family| Ok(Probe::start(rebel, scene.target(family)?))).collect()
}

fn counts(scene: &mut StarWars, node: &str, reason: &str) -> bool {
    let Ok(before) = scene.counted(node, "DROPPED", reason) else { return false };
    let more = || (scene.counted(node, "DROPPED", reason).ok()? > before).then_some(());
    wait::until(PATIENCE, more).is_some()
}

#[test]
fn who_gets_an_address_on_the_same_node_is_not_taken_for_who_had_it() {
    if !skip::lab_available("who_gets_an_address_on_the_same_node_is_not_taken_for_who_had_it") {
        return;
    }
    let (mut scene, stale) = cluster("reuse").unwrap();
    for family in Family::ALL {
        drop(scene.land("tiefighter", family, PATIENCE).unwrap());
    }
    assert_eq!(scene.authenticated("node2", "deathstar", "tiefighter").unwrap().len(), 1);
    let rebel = hand_over(&scene, "tiefighter").unwrap();
    let probes = try_to_land(&scene, &rebel).unwrap();
    // The other node still believes that this is the tiefighter, whom it lets land.
    assert!(counts(&mut scene, "node2", "UNKNOWN_SOURCE"), "nothing got as far as the other node");
    let held = scene.counted("node1", "HELD", "").unwrap();
    let dropped = scene.counted("node1", "DROPPED", "ADDRESS_UNANNOUNCED").unwrap();
    // While a daemon gets no time for a second, nothing is let wait for it.
    assert!(dropped < held, "{dropped} did not wait for the announcement, {held} did");
    // A daemon that begins anew with the same old state believes no more.
    scene.agent("node2").unwrap().restart().unwrap();
    scene.agent("node2").unwrap().wait_ready(PATIENCE).unwrap();
    assert!(counts(&mut scene, "node2", "UNKNOWN_SOURCE"));
    copy(&scene.lab.outside("cluster"), &stale).unwrap();
    assert!(counts(&mut scene, "node2", "POLICY_DENIED"), "it is not known as who it is");
    assert!(probes.iter().all(|probe| probe.last().is_none()), "it has landed");
    let options = ["--verdict", "DROPPED", "--reason", "POLICY_DENIED", "--from-pod", "default/rebel"];
    let named = scene.wait_flows("node2", &options, |flows| !flows.is_empty());
    named.context("its flows don't name it").unwrap();
}

#[test]
fn who_gets_an_address_of_another_node_is_nobody_there_and_two_claims_are_an_alarm() {
    if !skip::lab_available("who_gets_an_address_of_another_node_is_nobody_there_and_two_claims_are_an_alarm")
    {
        return;
    }
    let (mut scene, stale) = cluster("elsewhere").unwrap();
    drop(scene.land("stormtrooper", Family::V4, PATIENCE).unwrap());
    let addresses = scene.pod("stormtrooper").unwrap().addresses().to_owned();
    let rebel = hand_over(&scene, "stormtrooper").unwrap();
    let probes = try_to_land(&scene, &rebel).unwrap();
    scene
        .wait_condition("node2", &["ADDRESS_CONTESTED", &addresses[0].to_string(), "node1", "node2"])
        .unwrap();
    let metrics = scene.agent("node2").unwrap().metrics().unwrap();
    assert_eq!(metrics.sum("authd_contested_addresses", &[]), 2.0);
    assert!(metrics.sum("authd_contested_claims_total", &[]) >= 2.0);
    drop(scene.land("stormtrooper", Family::V4, PATIENCE).unwrap());
    // Its own state says so at last: the claim goes, and so does the alarm.
    copy(&scene.lab.outside("cluster"), &stale).unwrap();
    let quiet = wait::until(PATIENCE, || {
        let metrics = scene.agent("node2").ok()?.metrics().ok()?;
        (metrics.sum("authd_contested_addresses", &[]) == 0.0).then_some(())
    });
    assert!(quiet.is_some(), "the alarm stays");
    assert!(counts(&mut scene, "node2", "POLICY_DENIED"), "it is not known as who it is");
    assert!(probes.iter().all(|probe| probe.last().is_none()), "it has landed");
}
