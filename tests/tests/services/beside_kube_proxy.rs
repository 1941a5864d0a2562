//! Beside the real kube-proxy, which keeps what hosts send to services, and what comes from outside.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use authd_tests::lab::node::{Family, Node};
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{Namespace, skip, wait};

use super::kube_proxy;
use super::ships::Call;
use super::{FAMILIES, Hangar, NODE_PORT, SERVICE, TRIES, service};

/// Somebody who is no node.
const OUTSIDER: [&str; 2] = ["10.0.0.66", "fd00:10::66"];

/// A service whose clients keep their backends, one on each node.
const FLEET: &str = "apiVersion: v1
kind: Service
metadata: {name: fleet, namespace: default}
spec:
  clusterIP: 10.96.0.11
  clusterIPs: [10.96.0.11]
  ipFamilies: [IPv4]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  ports: [{name: tcp, port: 80, targetPort: http}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: fleet-1, namespace: default, labels: {kubernetes.io/service-name: fleet}}
addressType: IPv4
ports: [{name: tcp, port: 8080}]
endpoints:
  - {addresses: ['10.244.1.12'], nodeName: node1}
  - {addresses: ['10.244.2.10'], nodeName: node2}
";

/// The interceptor lets in the world, and opens nothing to its host.
const OUTSIDE: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: outside, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: interceptor}}
  ingress: [{fromEntities: [world], toPorts: [{ports: [{port: \"8080\", protocol: TCP}]}]}]
  egress: [{toEndpoints: [{matchLabels: {org: empire}}]}]
";

/// Packets that the node's rules have met from an interface, to a range or port.
fn met(node: &Namespace, rule: &str) -> Result<u64> {
    let table = node.exec(["nft", "list", "table", "inet", "met"])?;
    let line = table.lines().find(|line| line.contains(rule)).with_context(|| table.clone())?;
    let (_, count) = line.split_once("packets ").with_context(|| line.to_owned())?;
    Ok(count.split_whitespace().next().context("a number")?.parse()?)
}

#[test]
fn kube_proxy_and_authd_translate_each_what_is_theirs() {
    if !skip::kube_proxy_available("kube_proxy_and_authd_translate_each_what_is_theirs") {
        return;
    }
    let both = SERVICE.replace("spec:\n", "spec:\n  ipFamilies: [IPv4, IPv6]\n");
    let mut hangar = Hangar::open("svc-kube-proxy", &both, &["interceptor"]).unwrap();
    hangar.scene.write_manifest("outside.yaml", OUTSIDE).unwrap();
    hangar.scene.write_manifest("fleet.yaml", FLEET).unwrap();
    let outside = hangar.scene.lab.node("outside", &OUTSIDER.map(|it| it.parse().unwrap()), &[]).unwrap();
    let node = hangar.scene.node("node1").unwrap().clone();
    node.ip("route add 10.96.0.0/16 via 10.0.0.2\n").unwrap();
    let tiefighter = hangar.pod("tiefighter").unwrap().clone();
    let rules = format!(
        "add table inet met; add chain inet met first {{ type filter hook prerouting priority -300; }};
         add rule inet met first iifname {} ip daddr 10.96.0.0/16 counter;
         add rule inet met first iifname {0} tcp dport {NODE_PORT} counter;
         add rule inet met first iifname eth0 tcp dport {NODE_PORT} counter",
        tiefighter.interface()
    );
    node.exec(["nft", &rules]).unwrap();
    assert!(Call::open_within(&node, service(Family::V4), Duration::from_secs(1)).is_err(), "nobody's yet");
    let proxy = kube_proxy::start(&hangar.scene, "node1").unwrap();

    // The node's own, and what comes from outside, is kube-proxy's, in front of a pod that authd guards.
    let by_proxy = |from: &Namespace, at| {
        let answer = wait::until(PATIENCE, || Call::open(from, at).and_then(|mut call| call.ask()).ok());
        answer.map(|(name, _)| name)
    };
    let own = by_proxy(&node, service(Family::V4));
    assert_eq!(own.as_deref(), Some("interceptor"), "{}", proxy.process.failure("does not serve the node"));
    for family in FAMILIES {
        let addresses = node.addresses().to_owned();
        let address = addresses.into_iter().find(|it| Family::of(*it) == family).unwrap();
        let at = SocketAddr::new(address, NODE_PORT);
        assert_eq!(by_proxy(&outside, at).as_deref(), Some("interceptor"), "{at}");
        let mut call = Call::open(&outside, at).unwrap();
        assert_eq!(call.whence().unwrap(), address, "it bears the node's address");
        // What the pod answers goes to that, and is nothing that it opens.
        call.exchange(1 << 20).unwrap();

        // A pod's calls to the same addresses are authd's, and the backend sees who calls.
        for at in [service(family), at] {
            let mut call = Call::open(&tiefighter, at).unwrap();
            assert_eq!(call.ask().unwrap(), "interceptor", "{at}");
            assert_eq!(call.whence().unwrap(), tiefighter.address(family).unwrap(), "{at}");
            let denied = Call::open_within(hangar.pod("xwing").unwrap(), at, Duration::from_millis(1500));
            assert!(denied.is_err(), "{at}: policy is about the backend");
        }
    }
    let fleet = SocketAddr::new([10, 96, 0, 11].into(), 80);
    assert_eq!(hangar.all_answers("tiefighter", fleet).unwrap().len(), 1, "a client keeps its backend");
    let from_pod = format!("iifname \"{}\"", tiefighter.interface());
    for to in ["ip daddr 10.96.0.0/16", &format!("tcp dport {NODE_PORT}")] {
        assert_eq!(met(&node, &format!("{from_pod} {to}")).unwrap(), 0, "no pod's packet meets kube-proxy");
    }
    assert!(met(&node, "iifname \"eth0\"").unwrap() > 0);
    assert_eq!(hangar.scene.counted("node1", "DROPPED", "SERVICE_CONFLICT").unwrap(), 0.0);
}

/// How long one who may not call waits.
const IN_VAIN: Duration = Duration::from_millis(1500);

/// The service in both families, with these lines more.
fn both_families(more: &str) -> String {
    SERVICE.replace("spec:\n", &format!("spec:\n  ipFamilies: [IPv4, IPv6]\n{more}"))
}

/// The node's address in this family, with a port.
fn at_node(node: &Node, family: Family, port: u16) -> Result<SocketAddr> {
    let address = node.addresses().iter().find(|it| Family::of(**it) == family).context("no such address")?;
    Ok(SocketAddr::new(*address, port))
}

/// The world may call any of the empire's ships.
const OPEN: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: open, namespace: default}
spec:
  endpointSelector: {matchLabels: {org: empire}}
  ingress: [{fromEntities: [all], toPorts: [{ports: [{port: \"8080\", protocol: TCP}]}]}]
";

/// What kube-proxy sends on to another node's pod bears its own node's address, and would be taken for the
/// node's there. With `externalTrafficPolicy: Local` it stays where it came in, and bears its sender's.
#[test]
fn what_comes_from_outside_meets_backends_of_the_node_where_it_comes_in() {
    if !skip::kube_proxy_available("what_comes_from_outside_meets_backends_of_the_node_where_it_comes_in") {
        return;
    }
    let mut hangar = Hangar::open("svc-outside", &both_families(""), &["deathstar"]).unwrap();
    hangar.scene.write_manifest("open.yaml", OPEN).unwrap();
    let outside = hangar.scene.lab.node("outside", &OUTSIDER.map(|it| it.parse().unwrap()), &[]).unwrap();
    let nodes = NODES.map(|name| hangar.scene.node(name).unwrap().clone());
    let proxies = NODES.map(|name| kube_proxy::start(&hangar.scene, name).unwrap());
    let answered = |node: &Node, family| {
        let at = at_node(node, family, NODE_PORT).ok()?;
        wait::until(PATIENCE, || Call::open_within(&outside, at, IN_VAIN).ok()?.ask().ok()).map(|(it, _)| it)
    };
    let masqueraded = |hangar: &mut Hangar| hangar.scene.counted("node1", "DROPPED", "MASQUERADED").unwrap();
    let [node1, node2] = &nodes;
    for family in FAMILIES {
        let found = answered(node2, family);
        assert_eq!(found.as_deref(), Some("deathstar"), "{}", proxies[1].process.failure("does not serve"));
        let before = masqueraded(&mut hangar);
        let at = at_node(node1, family, NODE_PORT).unwrap();
        let dropped = wait::until(PATIENCE, || {
            assert!(Call::open_within(&outside, at, IN_VAIN).is_err(), "{at}: under the node's identity");
            (masqueraded(&mut hangar) > before).then_some(())
        });
        assert!(dropped.is_some(), "{at}");
    }
    let options = ["--verdict", "DROPPED", "--reason", "MASQUERADED"];
    let flows = hangar.scene.flows("node1", &options).unwrap();
    assert!(flows.iter().all(|flow| flow["hook"] == "TO_WIREGUARD"), "{flows:?}");

    // One backend on each node.
    hangar.scene.write_manifest("hangar.yaml", &both_families("  externalTrafficPolicy: Local\n")).unwrap();
    hangar.write_slices(&[("deathstar", "{}"), ("interceptor", "{}")]).unwrap();
    proxies.iter().try_for_each(|proxy| proxy.tell(&hangar.scene)).unwrap();
    for family in FAMILIES {
        for (node, expected) in [(node1, "interceptor"), (node2, "deathstar")] {
            assert_eq!(answered(node, family).as_deref(), Some(expected), "{family:?}");
            let at = at_node(node, family, NODE_PORT).unwrap();
            let own = outside.addresses().iter().find(|it| Family::of(**it) == family).unwrap();
            let seen = wait::until(PATIENCE, || {
                Call::open_within(&outside, at, IN_VAIN).ok()?.whence().ok().filter(|whence| whence == own)
            });
            assert!(seen.is_some(), "{at}: it bears its own address");
            for _ in 0..TRIES {
                let mut call = Call::open(&outside, at).unwrap();
                assert_eq!((call.ask().unwrap().as_str(), call.whence().unwrap()), (expected, *own));
            }
            Call::open(&outside, at).unwrap().exchange(1 << 20).unwrap();
        }
    }
    // Without one, the node has nobody to ask, and asks nobody.
    hangar.write_slices(&[("deathstar", "{}")]).unwrap();
    proxies.iter().try_for_each(|proxy| proxy.tell(&hangar.scene)).unwrap();
    for family in FAMILIES {
        let at = at_node(node1, family, NODE_PORT).unwrap();
        let refused =
            wait::until(PATIENCE, || Call::open_within(&outside, at, IN_VAIN).is_err().then_some(()));
        assert!(refused.is_some(), "{at}");
        let before = masqueraded(&mut hangar);
        assert!(Call::open_within(&outside, at, IN_VAIN).is_err(), "{at}");
        assert_eq!(masqueraded(&mut hangar), before, "{at}");
        assert_eq!(answered(node2, family).as_deref(), Some("deathstar"), "{family:?}");
    }
}
