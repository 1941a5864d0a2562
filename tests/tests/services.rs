//! Services, as pods see them: each address leads to the backends, the same node's and another's, and all
//! that authd promises of pods it promises of these.

#[path = "services/beside_kube_proxy.rs"]
mod beside_kube_proxy;
#[path = "services/forwarding.rs"]
mod forwarding;
#[path = "services/from_outside.rs"]
mod from_outside;
#[path = "services/kube_proxy.rs"]
mod kube_proxy;
#[path = "services/ships.rs"]
mod ships;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use authd_tests::lab::node::{Family, Node};
use authd_tests::netstat::syns_sent_again;
use authd_tests::star_wars::PATIENCE;
use authd_tests::{Pod, StarWars, skip, wait};
use ships::{Call, Ship};

/// The port behind the services.
const BEHIND: u16 = 8080;
const NODE_PORT: u16 = 30080;
/// Enough that each of two backends has its turn: by chance it would fail once in a million times.
const TRIES: usize = 20;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The empire's ships talk to each other once both have proven who they are.
const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: hangar, namespace: default}
specs:
  - endpointSelector: {matchLabels: {org: empire}}
    ingress:
      - authentication: {mode: required}
        fromEndpoints: [{matchLabels: {org: empire}}]
        toPorts: [{ports: [{port: \"8080\", protocol: ANY}]}]
  - endpointSelector: {matchLabels: {class: tiefighter}}
    egress:
      - authentication: {mode: required}
        toEndpoints: [{matchLabels: {org: empire}}]
";

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: hangar, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  ports:
    - {name: tcp, port: 80, targetPort: http, nodePort: 30080}
    - {name: udp, port: 80, targetPort: http, protocol: UDP}
";

fn service(family: Family) -> SocketAddr {
    let address: IpAddr = match family {
        Family::V4 => [10, 96, 0, 10].into(),
        Family::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10].into(),
    };
    SocketAddr::new(address, 80)
}

/// The cluster with the service in it, and its backends at their posts.
struct Hangar {
    scene: StarWars,
    _ships: Vec<Ship>,
}

impl Hangar {
    /// `service` is the Service's manifest; behind it are these pods.
    fn open(name: &str, service: &str, behind: &[&str]) -> Result<Self> {
        Self::open_with(name, service, behind, &[])
    }

    /// The same, where daemons have these flags.
    fn open_with(name: &str, service: &str, behind: &[&str], flags: &[&str]) -> Result<Self> {
        let scene = StarWars::new(name)?;
        scene.write_manifest("hangar-policy.yaml", POLICY)?;
        scene.write_manifest("hangar.yaml", service)?;
        let mut ships = Vec::new();
        for name in ["interceptor", "deathstar", "stormtrooper"] {
            ships.push(Ship::launch(scene.pod(name)?, name, BEHIND)?);
        }
        let mut hangar = Self { scene, _ships: ships };
        hangar.write_slices(&behind.iter().map(|name| (*name, "{}")).collect::<Vec<_>>())?;
        hangar.scene.start_tunnels()?;
        hangar.scene.start_agents(flags)?;
        hangar.scene.settle()?;
        Ok(hangar)
    }

    /// Writes the slices: pods with their conditions.
    fn write_slices(&self, behind: &[(&str, &str)]) -> Result<()> {
        let mut text = String::new();
        for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
            let mut endpoints = String::new();
            for (name, conditions) in behind {
                let address = self.pod(name)?.address(family)?;
                let manifest = self.scene.manifests.pods.get(*name).context("no such pod")?;
                let node = &manifest.node;
                endpoints += &format!(
                    "  - {{addresses: ['{address}'], nodeName: {node}, conditions: {conditions}}}\n"
                );
            }
            text += &format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: hangar-{}, namespace: default, labels: {{kubernetes.io/service-name: hangar}}}}\naddressType: {kind}\nports: [{{name: tcp, port: 8080}}, {{name: udp, port: 8080, protocol: UDP}}]\nendpoints:\n{}",
                kind.to_ascii_lowercase(),
                if endpoints.is_empty() { "  []\n" } else { &endpoints },
            );
        }
        self.scene.write_manifest("hangar-slices.yaml", &text)
    }

    fn pod(&self, name: &str) -> Result<&Pod> {
        self.scene.pod(name)
    }

    /// Who answers a pod that calls this address, over TCP.
    fn answers(&self, pod: &str, at: SocketAddr) -> Result<String> {
        Call::open(self.pod(pod)?, at)?.ask()
    }

    /// Everybody who answers, of many calls.
    fn all_answers(&self, pod: &str, at: SocketAddr) -> Result<BTreeSet<String>> {
        (0..TRIES).map(|_| self.answers(pod, at)).collect()
    }

    /// The same over UDP, each datagram from a port of its own.
    fn all_echoes(&self, pod: &str, at: SocketAddr) -> Result<BTreeSet<String>> {
        (0..TRIES).map(|_| ships::Datagrams::open(self.pod(pod)?, at)?.ask()).collect()
    }

    /// Waits until whoever answers is this one alone.
    fn until_answered_by(&self, pod: &str, at: SocketAddr, by: &str) -> Result<()> {
        let found = wait::until(PATIENCE, || self.answers(pod, at).ok().filter(|name| name == by));
        found.map(drop).with_context(|| format!("{at} is never answered by {by}"))
    }
}

/// How long one who may not call waits.
const IN_VAIN: Duration = Duration::from_millis(1500);
/// Somebody who is no node.
const OUTSIDER: [&str; 2] = ["10.0.0.66", "fd00:10::66"];

/// A host on the nodes' network that is none of them.
fn outsider(hangar: &Hangar) -> Result<Node> {
    let [v4, v6] = OUTSIDER.map(str::parse);
    hangar.scene.lab.node("outside", &[v4?, v6?], &[])
}

/// The node's address in this family, with a port.
fn at_node(node: &Node, family: Family, port: u16) -> Result<SocketAddr> {
    let address = node.addresses().iter().find(|it| Family::of(**it) == family).context("no such address")?;
    Ok(SocketAddr::new(*address, port))
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What a counter of nft's says.
fn packets(counter: &str) -> Result<u64> {
    let (_, count) = counter.split_once("packets ").with_context(|| counter.to_owned())?;
    Ok(count.split_whitespace().next().context("a number")?.parse()?)
}

#[test]
fn every_address_of_a_service_leads_to_its_backends() {
    if !skip::lab_available("every_address_of_a_service_leads_to_its_backends") {
        return;
    }
    // One on the same node, one behind the tunnel.
    let mut hangar = Hangar::open("svc-all", SERVICE, &["interceptor", "deathstar"]).unwrap();
    let both = names(&["interceptor", "deathstar"]);
    let before = syns_sent_again(hangar.pod("tiefighter").unwrap()).unwrap();
    for family in FAMILIES {
        assert_eq!(hangar.all_answers("tiefighter", service(family)).unwrap(), both, "TCP, {family:?}");
        assert_eq!(hangar.all_echoes("tiefighter", service(family)).unwrap(), both, "UDP, {family:?}");
        for node in ["node1", "node2"] {
            let addresses = hangar.scene.node(node).unwrap().addresses().to_owned();
            let address = addresses.into_iter().find(|it| it.is_ipv4() == (family == Family::V4)).unwrap();
            let at = SocketAddr::new(address, NODE_PORT);
            assert_eq!(hangar.all_answers("tiefighter", at).unwrap(), both, "{at}");
        }
    }
    let again = syns_sent_again(hangar.pod("tiefighter").unwrap()).unwrap() - before;
    assert_eq!(again, 0, "the first ones were held, and went to the backend for which they had waited");
    assert!(hangar.scene.counted("node1", "HELD", "").unwrap() >= 1.0);
    assert!(!hangar.scene.authenticated("node1", "tiefighter", "deathstar").unwrap().is_empty());
    // What is not allowed is not allowed by way of a service.
    assert!(hangar.answers("xwing", service(Family::V4)).is_err());
    let metrics = hangar.scene.agent("node1").unwrap().metrics().unwrap();
    // Two ports on an address of each family, one of them a NodePort as well; two backends behind each.
    assert_eq!(metrics.sum("authd_service_ports", &[]), 6.0);
    assert_eq!(metrics.sum("authd_service_backends", &[]), 8.0);
    let by_service = |flow: &&serde_json::Value| flow["service"] == "default/hangar:80";
    let to_both = |flows: &[serde_json::Value]| {
        let to = flows.iter().filter(by_service).filter_map(|flow| flow["destination"]["pod"].as_str());
        to.collect::<BTreeSet<_>>() == ["default/deathstar", "default/interceptor"].into()
    };
    hangar.scene.wait_flows("node1", &["--from-pod", "default/tiefighter"], to_both).unwrap();
}

#[test]
fn a_pod_behind_its_own_service_meets_itself() {
    if !skip::lab_available("a_pod_behind_its_own_service_meets_itself") {
        return;
    }
    let hangar = Hangar::open("svc-own", SERVICE, &["interceptor"]).unwrap();
    for family in FAMILIES {
        assert_eq!(hangar.answers("interceptor", service(family)).unwrap(), "interceptor", "{family:?}");
        let echoes = hangar.all_echoes("interceptor", service(family)).unwrap();
        assert_eq!(echoes, names(&["interceptor"]), "{family:?}");
        // A conversation, with as much as a stream takes.
        let mut call = Call::open(hangar.pod("interceptor").unwrap(), service(family)).unwrap();
        call.exchange(1 << 20).unwrap();
    }
}

#[test]
fn large_packets_and_fragments_reach_the_backend_whole() {
    if !skip::lab_available("large_packets_and_fragments_reach_the_backend_whole") {
        return;
    }
    let hangar = Hangar::open("svc-big", SERVICE, &["deathstar"]).unwrap();
    for family in FAMILIES {
        let mut call = Call::open(hangar.pod("tiefighter").unwrap(), service(family)).unwrap();
        call.exchange(4 << 20).unwrap();
        let datagrams = ships::Datagrams::open(hangar.pod("tiefighter").unwrap(), service(family)).unwrap();
        datagrams.echo_all(&[1, 1_000, 4_000, 20_000]).unwrap();
    }
}

#[test]
fn a_backend_that_is_unready_keeps_its_connections_and_gets_no_new_ones() {
    if !skip::lab_available("a_backend_that_is_unready_keeps_its_connections_and_gets_no_new_ones") {
        return;
    }
    let mut hangar = Hangar::open("svc-ready", SERVICE, &["deathstar"]).unwrap();
    let at = service(Family::V4);
    let mut call = Call::open(hangar.pod("tiefighter").unwrap(), at).unwrap();
    assert_eq!(call.ask().unwrap(), "deathstar");
    let datagrams = ships::Datagrams::open(hangar.pod("tiefighter").unwrap(), at).unwrap();
    assert_eq!(datagrams.ask().unwrap(), "deathstar");
    hangar
        .write_slices(&[
            ("deathstar", "{ready: false, serving: true, terminating: true}"),
            ("stormtrooper", "{}"),
        ])
        .unwrap();
    hangar.until_answered_by("tiefighter", at, "stormtrooper").unwrap();
    assert_eq!(hangar.all_answers("tiefighter", at).unwrap(), names(&["stormtrooper"]));
    assert_eq!(call.ask().unwrap(), "deathstar", "a connection goes on");
    assert_eq!(datagrams.ask().unwrap(), "stormtrooper", "datagrams go to who is there");
    // Nobody but one who is about to end: better than none.
    hangar.write_slices(&[("deathstar", "{ready: false, serving: true, terminating: true}")]).unwrap();
    hangar.until_answered_by("tiefighter", at, "deathstar").unwrap();
    hangar.write_slices(&[("deathstar", "{ready: false}")]).unwrap();
    let dropped = |hangar: &mut Hangar| {
        drop(Call::open_within(hangar.pod("tiefighter").ok()?, at, Duration::from_millis(300)));
        let count = hangar.scene.counted("node1", "DROPPED", "NO_SERVICE_BACKEND").ok()?;
        (count > 0.0).then_some(())
    };
    assert!(wait::until(PATIENCE, || dropped(&mut hangar)).is_some());
    assert_eq!(call.ask().unwrap(), "deathstar", "and still");
}

#[test]
fn a_client_with_affinity_keeps_its_backend() {
    if !skip::lab_available("a_client_with_affinity_keeps_its_backend") {
        return;
    }
    let affinity = format!("{SERVICE}  sessionAffinity: ClientIP\n");
    let hangar = Hangar::open("svc-stick", &affinity, &["deathstar", "stormtrooper", "interceptor"]).unwrap();
    for family in FAMILIES {
        let kept = hangar.all_answers("tiefighter", service(family)).unwrap();
        assert_eq!(kept.len(), 1, "{kept:?}");
    }
}

/// What kube-proxy does with a node's own traffic stays as it is: its rules, here written by hand, send the
/// service's address elsewhere than the slices do, so it shows whose translation each packet has met.
#[test]
fn the_nodes_own_traffic_is_left_to_its_rules() {
    if !skip::lab_available("the_nodes_own_traffic_is_left_to_its_rules") {
        return;
    }
    let hangar = Hangar::open("svc-proxy", SERVICE, &["deathstar"]).unwrap();
    let node = hangar.scene.node("node1").unwrap();
    let at = service(Family::V4);
    let other = SocketAddr::new(hangar.pod("interceptor").unwrap().address(Family::V4).unwrap(), BEHIND);
    let rule = ["-d", "10.96.0.10/32", "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination"];
    node.ip("route add 10.96.0.0/16 via 10.0.0.2\n").unwrap();
    for chain in ["OUTPUT", "PREROUTING"] {
        let arguments = ["iptables", "-w", "-t", "nat", "-A", chain].into_iter().chain(rule);
        node.exec(arguments.chain([other.to_string().as_str()])).unwrap();
    }
    let own = Call::open(node, at).and_then(|mut call| call.ask()).unwrap();
    assert_eq!(own, "interceptor", "the node's own, by its rules");
    assert_eq!(hangar.all_answers("tiefighter", at).unwrap(), names(&["deathstar"]), "a pod's, by authd");
    let counters = node.exec(["iptables", "-w", "-t", "nat", "-vnxL", "PREROUTING"]).unwrap();
    let met = counters.lines().find(|line| line.contains("10.96.0.10")).context("the rule").unwrap();
    assert_eq!(met.split_whitespace().next(), Some("0"), "no pod's packet has met the rule: {met}");
    check_reverse(&hangar).unwrap();
}

/// The node's connection tracking, which sees only the backend, mistakes nothing.
fn check_reverse(hangar: &Hangar) -> Result<()> {
    let mut call = Call::open(hangar.pod("tiefighter")?, service(Family::V4))?;
    call.exchange(1 << 20)?;
    ensure!(call.ask()? == "deathstar");
    Ok(())
}
