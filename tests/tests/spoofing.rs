//! What a compromised pod, or somebody on the wire, sends under another's name or to where it must not.

#[path = "spoofing/raw.rs"]
mod raw;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use authd_tests::lab::node::{Family, Node};
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{Namespace, StarWars, skip, wait};
use serde_json::Value;

use self::raw::{Datagram, send};

/// How often a packet is sent: each time it must drop.
const TIMES: usize = 3;
const LIMIT: Duration = Duration::from_millis(300);

/// A cluster, and somebody on the wire who is no node of it.
fn cluster_and_rogue(name: &str) -> Result<(StarWars, Node)> {
    let scene = StarWars::settled(name, &[])?;
    let rogue = scene.lab.node("rogue", &["10.0.0.66".parse()?, "fd00:10::66".parse()?], &[])?;
    Ok((scene, rogue))
}

fn address(scene: &StarWars, pod: &str, family: Family) -> Result<SocketAddr> {
    Ok(SocketAddr::new(scene.pod(pod)?.address(family)?, 80))
}

/// Sends datagrams and waits until as many have dropped on a node for a reason; their flows.
fn drops(
    scene: &mut StarWars,
    from: &Namespace,
    datagram: &Datagram,
    node: &str,
    reason: &str,
) -> Result<Vec<Value>> {
    let before = scene.counted(node, "DROPPED", reason)?;
    let wanted = before + f64::from(u32::try_from(TIMES)?);
    // Some may never get there: a neighbour that is asked for keeps a few of what waits.
    let dropped = wait::until(PATIENCE, || {
        from.run(|| (0..TIMES).try_for_each(|_| send(datagram))).ok()?.ok()?;
        let count = || scene.counted(node, "DROPPED", reason).ok().filter(|count| *count >= wanted);
        wait::until(LIMIT, count).map(drop)
    });
    dropped.with_context(|| format!("{node} does not count {reason} for {datagram:?}"))?;
    let source = datagram.source.ip().to_string();
    let is_it = |flow: &Value| flow.pointer("/source/address").is_some_and(|it| *it == source.as_str());
    let shown = || {
        let flows = scene.flows(node, &["--verdict", "DROPPED", "--reason", reason]).ok()?;
        let flows: Vec<_> = flows.into_iter().filter(is_it).collect();
        (!flows.is_empty()).then_some(flows)
    };
    let flows = wait::until(PATIENCE, shown).map(|(flows, _)| flows);
    flows.with_context(|| format!("{node} shows no flow of {datagram:?} with {reason}"))
}

/// Whether a pod that listens at UDP port 80 hears anything.
fn hears(socket: &UdpSocket) -> Result<bool> {
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket.recv(&mut [0; 64]).is_ok())
}

#[test]
fn a_pod_speaks_under_its_own_addresses_only() {
    if !skip::lab_available("a_pod_speaks_under_its_own_addresses_only") {
        return;
    }
    let mut scene = StarWars::settled("spoof", &[]).unwrap();
    let xwing = scene.pod("xwing").unwrap().clone();
    let listener = scene.pod("deathstar").unwrap().udp_bind("[::]:80".parse().unwrap()).unwrap();
    for family in Family::ALL {
        let destination = address(&scene, "deathstar", family).unwrap();
        let node = scene.node("node1").unwrap().addresses().to_owned();
        let host = node.into_iter().find(|it| Family::of(*it) == family).unwrap();
        let tiefighter = address(&scene, "tiefighter", family).unwrap();
        let stormtrooper = address(&scene, "stormtrooper", family).unwrap();
        for source in [tiefighter, stormtrooper, SocketAddr::new(host, 80)] {
            let datagram = Datagram { source, destination, fragment: false };
            let flows = drops(&mut scene, &xwing, &datagram, "node1", "SPOOFED").unwrap();
            assert!(flows.iter().all(|flow| flow["hook"] == "FROM_POD"), "{flows:?}");
            assert!(flows.iter().all(|flow| flow["interface"] == xwing.interface()), "{flows:?}");
        }
    }
    assert!(!hears(&listener).unwrap());
}

#[test]
fn a_fragment_is_dropped_by_name() {
    if !skip::lab_available("a_fragment_is_dropped_by_name") {
        return;
    }
    let mut scene = StarWars::settled("fragment", &[]).unwrap();
    let pod = scene.pod("tiefighter").unwrap().clone();
    for family in Family::ALL {
        let source = address(&scene, "tiefighter", family).unwrap();
        let destination = address(&scene, "deathstar", family).unwrap();
        let datagram = Datagram { source, destination, fragment: true };
        drops(&mut scene, &pod, &datagram, "node1", "FRAGMENT").unwrap();
    }
}

#[test]
fn ports_between_nodes_and_unknown_addresses_are_closed_to_pods() {
    if !skip::lab_available("ports_between_nodes_and_unknown_addresses_are_closed_to_pods") {
        return;
    }
    let mut scene = StarWars::settled("reserved", &[]).unwrap();
    let pod = scene.pod("tiefighter").unwrap().clone();
    for name in NODES {
        let addresses = scene.node(name).unwrap().addresses().to_owned();
        for node in addresses {
            let source = address(&scene, "tiefighter", Family::of(node)).unwrap();
            let datagram = Datagram { source, destination: SocketAddr::new(node, 51871), fragment: false };
            drops(&mut scene, &pod, &datagram, "node1", "RESERVED_PORT").unwrap();
            let before = scene.counted("node1", "DROPPED", "RESERVED_PORT").unwrap();
            assert!(pod.tcp_connect(SocketAddr::new(node, 4250), LIMIT).is_err());
            assert!(scene.counted("node1", "DROPPED", "RESERVED_PORT").unwrap() > before);
        }
    }
    for unknown in ["10.244.2.99:80", "10.244.1.99:80", "[fd00:10:244:2::99]:80"] {
        let destination: SocketAddr = unknown.parse().unwrap();
        let source = address(&scene, "tiefighter", Family::of(destination.ip())).unwrap();
        let datagram = Datagram { source, destination, fragment: false };
        drops(&mut scene, &pod, &datagram, "node1", "UNKNOWN_DESTINATION").unwrap();
    }
}

#[test]
fn nobody_on_the_wire_speaks_for_the_cluster() {
    if !skip::lab_available("nobody_on_the_wire_speaks_for_the_cluster") {
        return;
    }
    let (mut scene, rogue) = cluster_and_rogue("rogue").unwrap();
    let listener = scene.pod("deathstar").unwrap().udp_bind("[::]:80".parse().unwrap()).unwrap();
    let own: [IpAddr; 2] = ["10.0.0.66".parse().unwrap(), "fd00:10::66".parse().unwrap()];
    // What follows gets as far as the node: unprotected, the pod would hear it.
    assert!(rogue.addresses().iter().eq(&own));
    for family in Family::ALL {
        let destination = address(&scene, "deathstar", family).unwrap();
        for pod in ["tiefighter", "stormtrooper", "deathstar"] {
            let source = address(&scene, pod, family).unwrap();
            let datagram = Datagram { source, destination, fragment: false };
            let flows = drops(&mut scene, &rogue, &datagram, "node2", "UNENCRYPTED").unwrap();
            assert!(flows.iter().any(|flow| flow["hook"] == "FROM_UPLINK"), "{flows:?}");
        }
        let node1 = scene.node("node1").unwrap().addresses().to_owned();
        let node1 = node1.into_iter().find(|it| Family::of(*it) == family).unwrap();
        let datagram = Datagram { source: SocketAddr::new(node1, 80), destination, fragment: false };
        drops(&mut scene, &rogue, &datagram, "node2", "UNENCRYPTED").unwrap();
    }
    assert!(!hears(&listener).unwrap());
}
