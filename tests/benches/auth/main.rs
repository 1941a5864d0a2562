//! How long the first connection of a pair takes: its SYN waits for the handshake of the two identities.
//!
//! `make bench-auth`; without cargo's `--bench`, as in `cargo test`, there are few pairs. Every pair is two
//! pods on two nodes with identities of their own, so each first connection needs a handshake of its own.

mod report;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use authd_tests::lab::node::Family;
use authd_tests::netstat::syns_sent_again;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{Pod, StarWars, wait};
use report::Report;

const PORT: u16 = 9000;

const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: servers, namespace: default}
spec:
  endpointSelector: {matchLabels: {role: server}}
  ingress:
    - authentication: {mode: required}
      fromEndpoints: [{matchLabels: {role: client}}]
      toPorts: [{ports: [{port: \"9000\", protocol: TCP}]}]
";

/// Pods of one kind on one node, of which each has its own identity.
struct Kind {
    role: &'static str,
    node: &'static str,
    subnet: u8,
}

const CLIENTS: Kind = Kind { role: "client", node: "node1", subnet: 1 };
const SERVERS: Kind = Kind { role: "server", node: "node2", subnet: 2 };

impl Kind {
    fn add(&self, scene: &mut StarWars, count: u8) -> Result<Vec<Pod>> {
        let mut manifests = String::new();
        let mut pods = vec![];
        for number in 100..100 + count {
            let Self { role, node, subnet } = self;
            let name = format!("{role}-{number}");
            let (v4, v6) = (format!("10.244.{subnet}.{number}"), format!("fd00:10:244:{subnet}::{number:x}"));
            manifests += &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: {name}, namespace: default, labels: {{role: {role}, class: {name}}}}}\n\
                 spec: {{nodeName: {node}, containers: [{{name: it, image: none}}]}}\n\
                 status: {{phase: Running, podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n---\n"
            );
            let addresses: [IpAddr; 2] = [v4.parse()?, v6.parse()?];
            pods.push(scene.node(node)?.pod(&name, &addresses)?);
        }
        scene.write_manifest(&format!("{}.yaml", self.role), &manifests)?;
        Ok(pods)
    }
}

/// The cluster with so many clients and servers, everybody ready.
fn cluster(clients: u8, servers: u8) -> Result<(StarWars, Vec<Pod>, Vec<Pod>)> {
    let mut scene = StarWars::new("bench-auth")?;
    scene.write_manifest("servers-policy.yaml", POLICY)?;
    let client_pods = CLIENTS.add(&mut scene, clients)?;
    let server_pods = SERVERS.add(&mut scene, servers)?;
    scene.allocate()?;
    for (identity, node) in scene.manifests.placements()? {
        scene.registry.add_identity(identity, &node)?;
    }
    scene.start_tunnels()?;
    scene.start_agents(&[])?;
    scene.settle()?;
    for (node, pods) in NODES.into_iter().zip([clients, servers]) {
        let ready = wait::until(PATIENCE, || {
            let metrics = scene.agent(node).ok()?.metrics().ok()?;
            let all = metrics.sum("authd_endpoints", &[]) >= f64::from(pods + 2)
                && metrics.sum("authd_svids", &[("state", "missing")]) == 0.0
                && metrics.sum("authd_svids", &[("state", "valid")]) >= f64::from(pods);
            all.then_some(())
        });
        ready.with_context(|| format!("{node} is not ready"))?;
    }
    Ok((scene, client_pods, server_pods))
}

/// How long a pod takes to connect.
fn connect(from: &Pod, to: SocketAddr) -> Result<Duration> {
    let begun = Instant::now();
    from.run(move || {
        let begun = Instant::now();
        std::net::TcpStream::connect_timeout(&to, PATIENCE).map(|_stream| begun.elapsed())
    })?
    .with_context(|| format!("{} to {to} after {:?}", from.name(), begun.elapsed()))
}

#[expect(clippy::print_stdout, reason = "the table is what people run this for")]
fn main() -> Result<()> {
    let brief = !std::env::args().any(|argument| argument == "--bench");
    if !authd_tests::skip::lab_available("bench auth") {
        return Ok(());
    }
    let (clients, servers) = if brief { (2, 2) } else { (15, 14) };
    let (_scene, clients, servers) = cluster(clients, servers)?;
    let listen = |pod: &Pod| pod.tcp_listen(SocketAddr::new([0_u16; 8].into(), PORT));
    let _listeners: Vec<TcpListener> = servers.iter().map(listen).collect::<Result<_>>()?;
    let mut report = Report::default();
    // By turns, so that a pair is no neighbour of the one before.
    for turn in 0..servers.len() {
        for (number, client) in clients.iter().enumerate() {
            let server = servers.get((number + turn) % servers.len()).context("a server")?;
            let to =
                SocketAddr::new(server.address(if turn % 2 == 0 { Family::V4 } else { Family::V6 })?, PORT);
            let first = connect(client, to)?;
            report.add(first, connect(client, to)?);
        }
    }
    for client in &clients {
        report.sent_again += syns_sent_again(client)?;
    }
    print!("{report}");
    if brief { Ok(()) } else { report.write() }
}
