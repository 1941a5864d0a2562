//! Ten thousand pairs that ask at once: a few pods, and the many whom they all send to at the same time. Those run by
//! cluster state and have SVIDs, which is all that authentication is about.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{Pod, StarWars, skip, wait};

const CLIENTS: u16 = 20;
const SERVERS: u16 = 500;
const PAIRS: f64 = 10_000.0;
const PORT: u16 = 9000;
/// How long it may take: a busy machine, unoptimised.
const LIMIT: Duration = Duration::from_secs(240);
/// What a daemon may use meanwhile.
const MEGABYTES: f64 = 400.0;

/// Both ends want authentication.
const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: crowd, namespace: default}
specs:
  - endpointSelector: {matchLabels: {role: server}}
    ingress:
      - authentication: {mode: required}
        fromEndpoints: [{matchLabels: {role: client}}]
  - endpointSelector: {matchLabels: {role: client}}
    egress:
      - authentication: {mode: required}
        toEndpoints: [{matchLabels: {role: server}}]
";

fn address(subnet: u16, number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, subnet, 0, 0, 1, number)
}

fn manifests(role: &str, node: &str, subnet: u16, count: u16) -> String {
    let pod = |number| {
        format!(
            "apiVersion: v1\nkind: Pod\n\
             metadata: {{name: {role}-{number}, namespace: default, labels: {{role: {role}, class: {role}-{number}}}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: it, image: none}}]}}\n\
             status: {{phase: Running, podIP: \"{ip}\", podIPs: [{{ip: \"{ip}\"}}]}}\n---\n",
            ip = address(subnet, number),
        )
    };
    (0..count).map(pod).collect()
}

/// The cluster, when everybody has his SVID, and the pods that are real.
fn crowd() -> Result<(StarWars, Vec<Pod>)> {
    let mut scene = StarWars::new("crowd")?;
    scene.write_manifest("crowd.yaml", POLICY)?;
    let clients = (0..CLIENTS).map(|number| {
        let address = IpAddr::from(address(1, number));
        scene.node("node1")?.pod(&format!("client-{number}"), &[address])
    });
    let clients = clients.collect::<Result<Vec<_>>>()?;
    scene.write_manifest("clients.yaml", &manifests("client", "node1", 1, CLIENTS))?;
    scene.write_manifest("servers.yaml", &manifests("server", "node2", 2, SERVERS))?;
    scene.allocate()?;
    for (identity, node) in scene.manifests.placements()? {
        scene.registry.add_identity(identity, &node)?;
    }
    scene.start_tunnels()?;
    scene.start_agents(&[])?;
    for (node, svids) in NODES.into_iter().zip([CLIENTS, SERVERS]) {
        let agent = scene.agent(node)?;
        let ready = wait::until(PATIENCE * 4, || {
            let metrics = agent.metrics().ok()?;
            let all = metrics.sum("authd_node_sessions", &[("state", "live")]) >= 1.0
                && metrics.sum("authd_svids", &[("state", "missing")]) == 0.0
                && metrics.sum("authd_svids", &[("state", "valid")]) >= f64::from(svids);
            all.then_some(())
        });
        ready.ok_or_else(|| agent.process().failure("is not ready"))?;
    }
    Ok((scene, clients))
}

/// A datagram from each to everybody.
fn ask(clients: &[Pod]) -> Result<()> {
    for client in clients {
        client.run(|| {
            let socket = UdpSocket::bind("[::]:0")?;
            for number in 0..SERVERS {
                // Whether it goes out is not what this is about.
                socket.send_to(b"x", SocketAddr::new(address(2, number).into(), PORT)).ok();
            }
            anyhow::Ok(())
        })??;
    }
    Ok(())
}

fn resident(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

#[test]
fn ten_thousand_pairs_that_ask_at_once_all_authenticate_within_bounds() {
    if !skip::lab_available("ten_thousand_pairs_that_ask_at_once_all_authenticate_within_bounds") {
        return;
    }
    let (mut scene, clients) = crowd().unwrap();
    let memory = |scene: &mut StarWars| -> Result<Vec<f64>> {
        NODES.into_iter().map(|node| resident(scene.agent(node)?.process().pid())).collect()
    };
    let before = memory(&mut scene).unwrap();
    let mut all_within = || {
        ask(&clients)?;
        let mut done = true;
        for node in NODES {
            let agent = scene.agent(node)?;
            let metrics = agent.metrics()?;
            let value = |name: &str| metrics.sum(name, &[]);
            ensure!(value("authd_handshakes_running") <= 64.0 && value("authd_handshakes_waiting") <= PAIRS);
            let megabytes = resident(agent.process().pid())?;
            ensure!(megabytes < MEGABYTES, "{node} has {megabytes} MB");
            done &= value("authd_auth_entries") >= PAIRS;
        }
        Ok(done)
    };
    let found = wait::until(LIMIT, || all_within().map(|done| done.then_some(())).transpose());
    let (result, took) = found.expect("somebody starves");
    result.unwrap();
    for node in NODES {
        let metrics = scene.agent(node).unwrap().metrics().unwrap();
        let identities = f64::from(CLIENTS.max(SERVERS));
        let made = metrics.sum("authd_identity_proofs_total", &[("result", "success")]);
        assert!(
            made >= identities && made < PAIRS / 2.0,
            "{node}: {made} proofs: by identities, not by pairs"
        );
    }
    let after = memory(&mut scene).unwrap();
    for (before, after) in before.iter().zip(&after) {
        let each = (after - before) * 1024.0 * 1024.0 / PAIRS;
        writeln!(
            std::io::stdout(),
            "{PAIRS} pairs in {took:?}, {before:.1} to {after:.1} MB: {each:.0} bytes each"
        )
        .unwrap();
    }
}
