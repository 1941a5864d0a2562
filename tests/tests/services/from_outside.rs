//! What comes from outside at one node and has its backend on another, by real kube-proxies.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use authd_tests::capture::Capture;
use authd_tests::lab::node::{Family, Node};
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{Namespace, skip, wait};

use super::kube_proxy::{self, KubeProxy};
use super::ships::{Call, Datagrams, Ship};
use super::{FAMILIES, Hangar, IN_VAIN, NODE_PORT, OUTSIDER, SERVICE, TRIES, at_node, names, outsider};

/// Under which the first node forwards what comes from outside.
const OUTSIDE: [&str; 2] = ["198.18.0.1", "fd41:7574:6864:6f75::1"];
/// The same of the second, and their ranges.
const OUTSIDE_THERE: [&str; 2] = ["198.18.0.2", "fd41:7574:6864:6f75::2"];
const RANGES: [&str; 2] = ["198.18.0.0/16", "fd41:7574:6864:6f75::/112"];
/// A port of each node, and what is behind it.
const BEACON_PORT: u16 = 30090;
const BEACON: u16 = 9090;

/// A second service, over UDP, on the other node.
const BEACON_SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: beacon, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.12
  clusterIPs: [10.96.0.12, 'fd00:96::12']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: udp, port: 90, targetPort: 9090, protocol: UDP, nodePort: 30090}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: beacon-4, namespace: default, labels: {kubernetes.io/service-name: beacon}}
addressType: IPv4
ports: [{name: udp, port: 9090, protocol: UDP}]
endpoints: [{addresses: ['DEATHSTAR4'], nodeName: node2}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: beacon-6, namespace: default, labels: {kubernetes.io/service-name: beacon}}
addressType: IPv6
ports: [{name: udp, port: 9090, protocol: UDP}]
endpoints: [{addresses: ['DEATHSTAR6'], nodeName: node2}]
";

/// A third one, behind which is the other node itself.
const LIGHTHOUSE_PORT: u16 = 30091;
const LIGHTHOUSE: u16 = 9100;
const LIGHTHOUSE_SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: lighthouse, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.13
  clusterIPs: [10.96.0.13, 'fd00:96::13']
  ipFamilies: [IPv4, IPv6]
  ports:
    - {name: tcp, port: 91, targetPort: 9100, nodePort: 30091}
    - {name: udp, port: 91, targetPort: 9100, protocol: UDP, nodePort: 30091}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: lighthouse-4, namespace: default, labels: {kubernetes.io/service-name: lighthouse}}
addressType: IPv4
ports: [{name: tcp, port: 9100}, {name: udp, port: 9100, protocol: UDP}]
endpoints: [{addresses: ['NODE4'], nodeName: node2}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: lighthouse-6, namespace: default, labels: {kubernetes.io/service-name: lighthouse}}
addressType: IPv6
ports: [{name: tcp, port: 9100}, {name: udp, port: 9100, protocol: UDP}]
endpoints: [{addresses: ['NODE6'], nodeName: node2}]
";

/// Lets these in at the empire's ships.
fn letting_in(entities: &str, authentication: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: visitors, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{org: empire}}}}
  ingress:
    - {authentication}
      fromEntities: [{entities}]
      toPorts: [{{ports: [{{port: \"8080\", protocol: ANY}}, {{port: \"9090\", protocol: UDP}}]}}]
"
    )
}

fn family_index(family: Family) -> usize {
    usize::from(family == Family::V6)
}

/// Two nodes with a kube-proxy each, and somebody outside.
struct Visit {
    hangar: Hangar,
    outside: Node,
    proxies: [KubeProxy; 2],
}

impl Visit {
    /// Behind the service are these.
    fn begin(name: &str, behind: &[&str]) -> Result<Self> {
        let service = SERVICE
            .replace("spec:\n", "spec:\n  ipFamilies: [IPv4, IPv6]\n")
            .replace("protocol: UDP}", &format!("protocol: UDP, nodePort: {NODE_PORT}}}"));
        let hangar = Hangar::open(name, &service, behind)?;
        let deathstar = hangar.pod("deathstar")?;
        let beacon = BEACON_SERVICE
            .replace("DEATHSTAR4", &deathstar.address(Family::V4)?.to_string())
            .replace("DEATHSTAR6", &deathstar.address(Family::V6)?.to_string());
        hangar.scene.write_manifest("beacon.yaml", &beacon)?;
        let outside = outsider(&hangar)?;
        let proxies =
            [kube_proxy::start(&hangar.scene, NODES[0])?, kube_proxy::start(&hangar.scene, NODES[1])?];
        Ok(Self { hangar, outside, proxies })
    }

    /// A port of the node where the visitor comes in.
    fn at(&self, family: Family, port: u16) -> Result<SocketAddr> {
        at_node(self.hangar.scene.node("node1")?, family, port)
    }

    fn lets_in(&self, entities: &str, authentication: &str) -> Result<()> {
        self.hangar.scene.write_manifest("visitors.yaml", &letting_in(entities, authentication))
    }

    fn call(&self, family: Family) -> Result<Call> {
        Call::open_within(&self.outside, self.at(family, NODE_PORT)?, IN_VAIN)
    }

    /// Waits for the visitor to be answered.
    fn until_let_in(&self, family: Family) -> Result<Call> {
        let call = wait::until(PATIENCE, || self.call(family).ok());
        call.map(|(call, _)| call).with_context(|| format!("never answered, {family:?}"))
    }

    /// Nothing else has passed the wire, nothing was masqueraded without an outside address, and nobody complains.
    fn all_went_by_the_tunnel(&mut self, wire: Capture) -> Result<()> {
        let scene = &mut self.hangar.scene;
        let counts = wire.stop()?.count(&scene.expected());
        ensure!(counts.wireguard > 0 && counts.other == 0, "{counts:?}");
        for node in NODES {
            let dropped = scene.counted(node, "DROPPED", "MASQUERADED")?;
            let conditions = scene.conditions(node)?;
            ensure!(dropped == 0.0 && conditions.is_empty(), "{node}: {dropped} drops, {conditions:?}");
        }
        Ok(())
    }

    /// Calls in vain until the second node has dropped one for this reason.
    fn until_dropped_there(&mut self, family: Family, reason: &str) -> Result<()> {
        let before = self.hangar.scene.counted("node2", "DROPPED", reason)?;
        let dropped = wait::until(PATIENCE, || {
            drop(self.call(family));
            (self.hangar.scene.counted("node2", "DROPPED", reason).ok()? > before).then_some(())
        });
        dropped.with_context(|| format!("nothing drops for {reason}, {family:?}"))?;
        // And every other one too.
        match self.call(family) {
            Ok(_) => anyhow::bail!("it is let in, {family:?}"),
            Err(_) => Ok(()),
        }
    }
}

#[test]
fn the_world_reaches_pods_of_other_nodes_as_the_world() {
    if !skip::kube_proxy_available("the_world_reaches_pods_of_other_nodes_as_the_world") {
        return;
    }
    let mut visit = Visit::begin("out-world", &["deathstar"]).unwrap();
    for family in FAMILIES {
        visit.until_dropped_there(family, "POLICY_DENIED").unwrap();
    }
    // Whoever comes from outside is no node, whatever kube-proxy has made of him.
    visit.lets_in("remote-node, host, cluster", "authentication: {mode: disabled}").unwrap();
    for family in FAMILIES {
        visit.until_dropped_there(family, "POLICY_DENIED").unwrap();
    }
    visit.lets_in("world", "authentication: {mode: required}").unwrap();
    for family in FAMILIES {
        visit.until_dropped_there(family, "AUTH_IMPOSSIBLE").unwrap();
    }
    visit.lets_in("world", "authentication: {mode: disabled}").unwrap();
    drop(visit.until_let_in(Family::V4).unwrap());

    let node2 = visit.hangar.scene.node("node2").unwrap().clone();
    let wire = Capture::start(&node2, "eth0").unwrap();
    for family in FAMILIES {
        let mut call = visit.until_let_in(family).unwrap();
        assert_eq!(call.ask().unwrap(), "deathstar", "{family:?}");
        assert_eq!(
            call.whence().unwrap(),
            OUTSIDE[family_index(family)].parse::<std::net::IpAddr>().unwrap()
        );
        call.exchange(4 << 20).unwrap();
        let datagrams = Datagrams::open(&visit.outside, visit.at(family, NODE_PORT).unwrap()).unwrap();
        assert_eq!(datagrams.ask().unwrap(), "deathstar", "{family:?}");
        datagrams.echo_all(&[1, 1_000, 4_000, 20_000]).unwrap();
        assert_eq!(call.ask().unwrap(), "deathstar", "it goes on");
    }
    visit.all_went_by_the_tunnel(wire).unwrap();
}

#[test]
fn backends_in_the_host_network_of_another_node_are_reached() {
    if !skip::kube_proxy_available("backends_in_the_host_network_of_another_node_are_reached") {
        return;
    }
    let mut visit = Visit::begin("out-host", &["deathstar"]).unwrap();
    let node2 = visit.hangar.scene.node("node2").unwrap().clone();
    let _lighthouse = Ship::launch(&node2, "lighthouse", LIGHTHOUSE).unwrap();
    let [v4, v6] = FAMILIES.map(|family| at_node(&node2, family, 0).unwrap().ip().to_string());
    let service = LIGHTHOUSE_SERVICE.replace("NODE4", &v4).replace("NODE6", &v6);
    visit.hangar.scene.write_manifest("lighthouse.yaml", &service).unwrap();
    visit.proxies.iter().try_for_each(|proxy| proxy.tell(&visit.hangar.scene)).unwrap();
    let wire = Capture::start(&node2, "eth0").unwrap();
    for family in FAMILIES {
        let at = visit.at(family, LIGHTHOUSE_PORT).unwrap();
        let reached = wait::until(PATIENCE, || Call::open_within(&visit.outside, at, IN_VAIN).ok());
        let (mut call, _) = reached.unwrap();
        assert_eq!(call.ask().unwrap(), "lighthouse", "{family:?}");
        let outside = OUTSIDE[family_index(family)].parse::<std::net::IpAddr>().unwrap();
        assert_eq!(call.whence().unwrap(), outside, "no node's");
        call.exchange(4 << 20).unwrap();
        let datagrams = Datagrams::open(&visit.outside, at).unwrap();
        datagrams.echo_all(&[1, 4_000]).unwrap();
    }
    visit.all_went_by_the_tunnel(wire).unwrap();
}

/// What a load balancer's clients see: any of the backends, wherever it is.
#[test]
fn half_of_the_backends_may_be_elsewhere() {
    if !skip::kube_proxy_available("half_of_the_backends_may_be_elsewhere") {
        return;
    }
    let mut visit = Visit::begin("out-half", &["deathstar", "interceptor"]).unwrap();
    visit.lets_in("world", "authentication: {mode: disabled}").unwrap();
    for family in FAMILIES {
        let all = || (0..TRIES).map(|_| visit.call(family)?.ask()).collect::<Result<BTreeSet<String>>>().ok();
        let found =
            wait::until(PATIENCE, || all().filter(|all| *all == names(&["deathstar", "interceptor"])));
        assert!(found.is_some(), "{family:?}");
        // Connections outlast the daemon where they come in, and where they go.
        let mut calls: Vec<Call> = (0..TRIES).map(|_| visit.call(family).unwrap()).collect();
        for node in NODES {
            visit.hangar.scene.agent(node).unwrap().restart().unwrap();
        }
        calls.iter_mut().try_for_each(|call| call.exchange(64 << 10)).unwrap();
        for node in NODES {
            visit.hangar.scene.agent(node).unwrap().wait_ready(PATIENCE).unwrap();
        }
        calls.iter_mut().try_for_each(|call| call.exchange(64 << 10)).unwrap();
    }
}

#[test]
fn errors_find_their_way_between_a_pod_and_the_world() {
    if !skip::kube_proxy_available("errors_find_their_way_between_a_pod_and_the_world") {
        return;
    }
    let visit = Visit::begin("out-errors", &["deathstar"]).unwrap();
    visit.lets_in("world", "authentication: {mode: disabled}").unwrap();
    let deathstar = visit.hangar.pod("deathstar").unwrap();
    for family in FAMILIES {
        let at = visit.at(family, BEACON_PORT).unwrap();
        let any = SocketAddr::new(if at.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() }, 0);
        let client = || {
            let client = visit.outside.udp_bind(any).unwrap();
            visit.outside.run(|| client.connect(at)).unwrap().unwrap();
            client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            client
        };
        let refused = |socket: &std::net::UdpSocket| {
            let told = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
            socket.send(b"x").err().is_some_and(told) || socket.recv(&mut [0; 8]).err().is_some_and(told)
        };
        let server = deathstar.udp_bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), BEACON)).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let first = client();
        let reached = wait::until(PATIENCE, || {
            drop(first.send(b"x"));
            server.recv_from(&mut [0; 8]).ok()
        });
        let ((_, from), _) = reached.unwrap();
        deathstar.run(|| server.connect(from)).unwrap().unwrap();
        drop(first);
        let heard = wait::until(PATIENCE, || refused(&server).then_some(()));
        assert!(heard.is_some(), "the client has gone, and its host says so, {family:?}");

        drop(server);
        let second = client();
        let heard = wait::until(PATIENCE, || refused(&second).then_some(()));
        assert!(heard.is_some(), "nobody listens, and the pod says so, {family:?}");
    }
}

/// What is too large for the rest of its way, the node that knows it says to the pod.
#[test]
fn a_pod_hears_how_narrow_the_way_to_the_world_is() {
    if !skip::kube_proxy_available("a_pod_hears_how_narrow_the_way_to_the_world_is") {
        return;
    }
    let visit = Visit::begin("out-narrow", &["deathstar"]).unwrap();
    let [v4, v6] = OUTSIDER;
    let narrow = format!("route add {v4}/32 dev eth0 mtu 1300\nroute add {v6}/128 dev eth0 mtu 1300\n");
    visit.hangar.scene.node("node1").unwrap().ip(&narrow).unwrap();
    visit.lets_in("world", "authentication: {mode: disabled}").unwrap();
    for family in FAMILIES {
        visit.until_let_in(family).unwrap().exchange(1 << 20).unwrap();
        let datagrams = Datagrams::open(&visit.outside, visit.at(family, NODE_PORT).unwrap()).unwrap();
        datagrams.echo_all(&[1_350, 4_000]).unwrap();
    }
}

#[test]
fn nobody_reaches_a_node_by_its_outside_address() {
    if !skip::kube_proxy_available("nobody_reaches_a_node_by_its_outside_address") {
        return;
    }
    let mut visit = Visit::begin("out-closed", &["deathstar"]).unwrap();
    for (family, range) in FAMILIES.into_iter().zip(RANGES) {
        let by = visit.at(family, NODE_PORT).unwrap().ip();
        visit.outside.ip(&format!("route add {range} via {by}\n")).unwrap();
    }
    visit.lets_in("world", "authentication: {mode: disabled}").unwrap();
    for family in FAMILIES {
        let mut call = visit.until_let_in(family).unwrap();
        let outside = OUTSIDE[family_index(family)].parse().unwrap();
        let counted = |visit: &mut Visit, node| {
            visit.hangar.scene.counted(node, "DROPPED", "UNKNOWN_DESTINATION").unwrap()
        };
        for port in [NODE_PORT, 4250, 22] {
            let at = SocketAddr::new(outside, port);
            let fails = |from: &Namespace| Call::open_within(from, at, Duration::from_millis(300)).is_err();
            let scene = &visit.hangar.scene;
            for pod in ["deathstar", "stormtrooper", "tiefighter"] {
                assert!(fails(scene.pod(pod).unwrap()), "{pod} {at}");
            }
            for node in NODES {
                assert!(fails(scene.node(node).unwrap()), "{node} {at}");
            }
            assert!(fails(&visit.outside), "{at}");
            let of_other = SocketAddr::new(OUTSIDE_THERE[family_index(family)].parse().unwrap(), port);
            let limit = Duration::from_millis(300);
            assert!(Call::open_within(&visit.outside, of_other, limit).is_err(), "{of_other}");
        }
        // Dropped where the pods are; what the other node itself sends, where it arrives.
        for node in NODES {
            assert!(counted(&mut visit, node) > 0.0, "{node}");
        }
        let by_tunnel = visit.hangar.scene.flows("node1", &["--reason", "UNKNOWN_DESTINATION"]).unwrap();
        assert!(by_tunnel.iter().any(|flow| flow["hook"] == "FROM_WIREGUARD"), "{by_tunnel:?}");
        assert_eq!(call.ask().unwrap(), "deathstar", "answers go on");
    }
}
