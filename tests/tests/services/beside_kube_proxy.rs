//! Beside the real kube-proxy, which keeps what hosts send to services, and what comes from outside.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use auth_ebpf::Maps;
use auth_ebpf_abi::packet::Ports;
use auth_ebpf_abi::{Address, ConnectionEntry, ConnectionKey};
use authd_tests::lab::node::{Family, Node};
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{Namespace, skip, wait};

use super::kube_proxy;
use super::ships::{Call, Datagrams};
use super::{
    FAMILIES, Hangar, IN_VAIN, NODE_PORT, SERVICE, TRIES, at_node, names, outsider, packets, service,
};

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
    packets(line)
}

/// The service in both families, with these lines more.
fn both_families(more: &str) -> String {
    SERVICE.replace("spec:\n", &format!("spec:\n  ipFamilies: [IPv4, IPv6]\n{more}"))
}

#[test]
fn kube_proxy_and_authd_translate_each_what_is_theirs() {
    if !skip::kube_proxy_available("kube_proxy_and_authd_translate_each_what_is_theirs") {
        return;
    }
    let mut hangar = Hangar::open("svc-kube-proxy", &both_families(""), &["interceptor"]).unwrap();
    hangar.scene.write_manifest("outside.yaml", OUTSIDE).unwrap();
    hangar.scene.write_manifest("fleet.yaml", FLEET).unwrap();
    let outside = outsider(&hangar).unwrap();
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
        let at = at_node(&node, family, NODE_PORT).unwrap();
        assert_eq!(by_proxy(&outside, at).as_deref(), Some("interceptor"), "{at}");
        let mut call = Call::open(&outside, at).unwrap();
        assert_eq!(call.whence().unwrap(), at.ip(), "it bears the node's address");
        // What the pod answers goes to that, and is nothing that it opens.
        call.exchange(1 << 20).unwrap();

        // A pod's calls to the same addresses are authd's, and the backend sees who calls.
        for at in [service(family), at] {
            let mut call = Call::open(&tiefighter, at).unwrap();
            assert_eq!(call.ask().unwrap(), "interceptor", "{at}");
            assert_eq!(call.whence().unwrap(), tiefighter.address(family).unwrap(), "{at}");
            let denied = Call::open_within(hangar.pod("xwing").unwrap(), at, IN_VAIN);
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

/// The world may call any of the empire's ships.
const OPEN: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: open, namespace: default}
spec:
  endpointSelector: {matchLabels: {org: empire}}
  ingress: [{fromEntities: [all], toPorts: [{ports: [{port: \"8080\", protocol: TCP}]}]}]
";

/// What kube-proxy sends on to another node's pod bears its own node's address. Where no other is there to take
/// its place, it would be taken for the node's. With `externalTrafficPolicy: Local` it stays where it came in, and bears its sender's.
#[test]
fn what_comes_from_outside_meets_backends_of_the_node_where_it_comes_in() {
    if !skip::kube_proxy_available("what_comes_from_outside_meets_backends_of_the_node_where_it_comes_in") {
        return;
    }
    let none = ["--outside-ranges", "none"];
    let mut hangar = Hangar::open_with("svc-outside", &both_families(""), &["deathstar"], &none).unwrap();
    hangar.scene.write_manifest("open.yaml", OPEN).unwrap();
    let outside = outsider(&hangar).unwrap();
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
    let told = ["SERVICE_FROM_OUTSIDE", "Service default/hangar", "on node2", "externalTrafficPolicy: Local"];
    hangar.scene.wait_condition("node1", &told).unwrap();
    assert!(hangar.scene.conditions("node2").unwrap().is_empty(), "its only backend is there");

    // One backend on each node.
    hangar.scene.write_manifest("hangar.yaml", &both_families("  externalTrafficPolicy: Local\n")).unwrap();
    hangar.write_slices(&[("deathstar", "{}"), ("interceptor", "{}")]).unwrap();
    proxies.iter().try_for_each(|proxy| proxy.tell(&hangar.scene)).unwrap();
    let quiet = wait::until(PATIENCE, || hangar.scene.conditions("node1").ok()?.is_empty().then_some(()));
    assert!(quiet.is_some(), "{:?}", hangar.scene.conditions("node1"));
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

/// The interceptor lets in the world, the deathstar other nodes.
const PORTS: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: ports, namespace: default}
specs:
  - endpointSelector: {matchLabels: {class: interceptor}}
    ingress: [{fromEntities: [world], toPorts: [{ports: [{port: \"8080\", protocol: TCP}]}]}]
  - endpointSelector: {matchLabels: {class: deathstar}}
    ingress: [{fromEntities: [remote-node], toPorts: [{ports: [{port: \"8080\", protocol: ANY}]}]}]
";

/// Talks until it is over, with whom it began, and counts the rounds.
fn talk(mut call: Call, rounds: &AtomicU64, over: &AtomicBool) -> Result<()> {
    let who = call.ask()?;
    while !over.load(Ordering::Relaxed) {
        call.exchange(16 << 10)?;
        ensure!(call.ask()? == who, "another answers");
        rounds.fetch_add(1, Ordering::Relaxed);
        wait::pause(Duration::from_millis(10));
    }
    Ok(())
}

/// Waits until new calls are answered by these, and by nobody else.
fn until_answered_by(from: &Namespace, at: SocketAddr, by: &[&str]) -> Result<()> {
    let ask = || Call::open_within(from, at, IN_VAIN)?.ask();
    let found = wait::until(PATIENCE, || {
        let all: BTreeSet<String> = (0..TRIES).map(|_| ask()).collect::<Result<_>>().ok()?;
        (all == names(by)).then_some(())
    });
    found.map(drop).with_context(|| format!("{at} is never answered by {by:?} from {}", from.name()))
}

fn until_refused(from: &Namespace, at: SocketAddr) -> Result<()> {
    let refused = wait::until(PATIENCE, || Call::open_within(from, at, IN_VAIN).is_err().then_some(()));
    refused.map(drop).with_context(|| format!("{at} is still answered from {}", from.name()))
}

/// The two entries of each connection of a pod's by way of a service that goes on: under its address, and
/// under the backend's.
fn pairs(hangar: &Hangar, pod: &str, family: Family) -> Result<Vec<[ConnectionEntry; 2]>> {
    let maps = Maps::open_pinned(&hangar.scene.node("node1")?.outside("/sys/fs/bpf/authd".as_ref()))?;
    let at = service(family);
    let ends = (Address::from(hangar.pod(pod)?.address(family)?), Address::from(at.ip()));
    let all = maps.connections().entries()?;
    let to_service = all.iter().filter(|(key, entry)| {
        let to_port = key.ports.destination() == at.port().to_be_bytes();
        (key.local, key.remote) == ends && to_port && !entry.is_closed()
    });
    to_service
        .map(|(key, entry)| {
            let ports = Ports::new(key.ports.source(), entry.translation_port);
            let backend = ConnectionKey { remote: entry.translation, ports, ..*key };
            Ok([*entry, maps.connections().get(&backend)?.context("it has lost its partner")?])
        })
        .collect()
}

#[test]
fn connections_outlast_what_changes_behind_their_service() {
    if !skip::kube_proxy_available("connections_outlast_what_changes_behind_their_service") {
        return;
    }
    let mut hangar = Hangar::open("svc-changes", &both_families(""), &["interceptor"]).unwrap();
    hangar.scene.write_manifest("ports.yaml", PORTS).unwrap();
    let outside = outsider(&hangar).unwrap();
    let node = hangar.scene.node("node1").unwrap().clone();
    node.ip("route add 10.96.0.0/16 via 10.0.0.2\nroute add fd00:96::/64 via fd00:10::2\n").unwrap();
    let tiefighter = hangar.pod("tiefighter").unwrap().clone();
    let proxy = kube_proxy::start(&hangar.scene, "node1").unwrap();
    // By way of another port of the service, a call from the port of one that goes on would be a conflict.
    let ports = |range| tiefighter.sysctl(&[("ipv4/ip_local_port_range", range)]).unwrap();
    ports("20000 20999");
    let mut calls = Vec::new();
    for family in FAMILIES {
        let from_outside = at_node(&node, family, NODE_PORT).unwrap();
        let callers: [(&Namespace, SocketAddr); 3] =
            [(&outside, from_outside), (&node, service(family)), (&tiefighter, service(family))];
        for (from, at) in callers {
            until_answered_by(from, at, &["interceptor"])
                .unwrap_or_else(|error| panic!("{error:#}: {}", proxy.process.failure("does not serve")));
            calls.push(Call::open(from, at).unwrap());
        }
    }
    let datagrams: Vec<(&Namespace, Family, Datagrams)> = FAMILIES
        .into_iter()
        .flat_map(|family| [(&*node, family), (&*tiefighter, family)])
        .map(|(from, family)| (from, family, Datagrams::open(from, service(family)).unwrap()))
        .collect();
    let until_datagrams_reach = |name: &str| {
        datagrams.iter().try_for_each(|(from, family, socket)| {
            let mut heard = Ok(String::new());
            let reached = wait::until(PATIENCE, || {
                heard = socket.ask();
                heard.as_ref().is_ok_and(|found| found == name).then_some(())
            });
            reached.map(drop).with_context(|| {
                format!("{family:?} datagrams from {} never reach {name}, but {heard:?}", from.name())
            })
        })
    };
    ports("32768 60999");
    let (over, rounds) =
        (AtomicBool::new(false), calls.iter().map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    let go_on = || {
        rounds.iter().try_for_each(|rounds| {
            let before = rounds.load(Ordering::Relaxed);
            let more = || (rounds.load(Ordering::Relaxed) > before + 1).then_some(());
            wait::until(PATIENCE, more).map(drop).context("a connection has come to a halt")
        })
    };
    let at = |family, port| SocketAddr::new(service(family).ip(), port);
    let change = || -> Result<()> {
        go_on()?;
        until_datagrams_reach("interceptor")?;
        hangar.write_slices(&[("deathstar", "{}")])?;
        proxy.tell(&hangar.scene)?;
        // Of the same sockets, which kept to the one who was there.
        until_datagrams_reach("deathstar")?;
        for family in FAMILIES {
            until_answered_by(&node, service(family), &["deathstar"])?;
            until_answered_by(&tiefighter, service(family), &["deathstar"])?;
        }
        go_on()?;
        hangar.write_slices(&[("interceptor", "{}"), ("deathstar", "{}")])?;
        proxy.tell(&hangar.scene)?;
        for family in FAMILIES {
            until_answered_by(&node, service(family), &["interceptor", "deathstar"])?;
            until_answered_by(&tiefighter, service(family), &["interceptor", "deathstar"])?;
        }
        go_on()?;
        let moved = both_families("").replace("port: 80,", "port: 81,").replace("30080", "30081");
        hangar.scene.write_manifest("hangar.yaml", &moved)?;
        hangar.write_slices(&[("interceptor", "{}")])?;
        proxy.tell(&hangar.scene)?;
        for family in FAMILIES {
            let node_port = |port| at_node(&node, family, port);
            until_answered_by(&node, at(family, 81), &["interceptor"])?;
            until_answered_by(&tiefighter, at(family, 81), &["interceptor"])?;
            until_answered_by(&outside, node_port(30081)?, &["interceptor"])?;
            until_refused(&node, service(family))?;
            until_refused(&tiefighter, service(family))?;
            until_refused(&outside, node_port(NODE_PORT)?)?;
        }
        go_on()
    };
    thread::scope(|scope| {
        let talks: Vec<_> = calls
            .into_iter()
            .zip(&rounds)
            .map(|(call, rounds)| scope.spawn(|| talk(call, rounds, &over)))
            .collect();
        let changed = change();
        let kept = FAMILIES.map(|family| pairs(&hangar, "tiefighter", family));
        over.store(true, Ordering::Relaxed);
        for talk in talks {
            talk.join().unwrap().unwrap();
        }
        changed.unwrap();
        for kept in kept {
            let kept = kept.unwrap();
            assert_eq!(kept.len(), 1, "the one that goes on: {kept:?}");
            for (entry, flag) in
                kept[0].iter().zip([ConnectionEntry::TO_BACKEND, ConnectionEntry::FROM_SERVICE])
            {
                assert!(entry.flags & flag != 0 && entry.is_answered() && !entry.is_closed(), "{entry:?}");
            }
        }
    });
    assert_eq!(hangar.scene.counted("node1", "DROPPED", "SERVICE_CONFLICT").unwrap(), 0.0);
}
