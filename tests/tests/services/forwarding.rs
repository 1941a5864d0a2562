//! `--same-node-forwarding direct`: from pod to pod on one node, round the host's stack and past no program of ours.

use std::time::Duration;

use anyhow::Result;
use authd_tests::netstat::syns_sent_again;
use authd_tests::star_wars::PATIENCE;
use authd_tests::{skip, wait};

use super::ships::{Call, Datagrams};
use super::{BEHIND, FAMILIES, Hangar, SERVICE, packets, service};

const DIRECT: [&str; 2] = ["--same-node-forwarding", "direct"];
/// Not an address of the cluster: the host has it lead to the interceptor.
const ALIAS: &str = "198.51.100.7:80";
/// The tiefighter may call the alias besides.
const ABROAD: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: abroad, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: tiefighter}}
  egress: [{toCIDR: [198.51.100.7/32]}]
";

/// Has the host drop and count what it forwards from pod to pod of its own.
fn raise_wall(hangar: &Hangar) -> Result<()> {
    let pods = ["tiefighter", "xwing", "interceptor"].map(|name| hangar.pod(name));
    let mut names = Vec::new();
    for pod in pods {
        names.push(pod?.interface());
    }
    let names = names.join(", ");
    let rules = format!(
        "add table inet wall; add counter inet wall seen;
         add chain inet wall forward {{ type filter hook forward priority 0; }};
         add rule inet wall forward iifname {{ {names} }} oifname {{ {names} }} counter name seen drop"
    );
    hangar.scene.node("node1")?.exec(["nft", &rules]).map(drop)
}

/// What has met the wall.
fn seen(hangar: &Hangar) -> Result<u64> {
    packets(&hangar.scene.node("node1")?.exec(["nft", "list", "counter", "inet", "wall", "seen"])?)
}

fn lower_wall(hangar: &Hangar) -> Result<()> {
    hangar.scene.node("node1")?.exec(["nft", "delete", "table", "inet", "wall"]).map(drop)
}

/// Has the daemon of the first node start anew with these flags, and wait for its programs.
fn restart(hangar: &mut Hangar, flags: &[&str]) -> Result<()> {
    drop(hangar.scene.agents.remove("node1"));
    hangar.scene.start_agent("node1", flags)?;
    hangar.scene.settle()
}

#[test]
fn pods_of_one_node_reach_each_other_past_the_host_and_past_no_policy() {
    if !skip::lab_available("pods_of_one_node_reach_each_other_past_the_host_and_past_no_policy") {
        return;
    }
    let mut hangar = Hangar::open_with("fwd-direct", SERVICE, &["interceptor"], &DIRECT).unwrap();
    let status = hangar.scene.authctl("node1", &["status"]).unwrap();
    assert!(status.contains("3 reached directly by their neighbours"), "{status}");
    raise_wall(&hangar).unwrap();
    let tiefighter = hangar.pod("tiefighter").unwrap().clone();
    let again = syns_sent_again(&tiefighter).unwrap();
    for family in FAMILIES {
        let pod = (hangar.pod("interceptor").unwrap().address(family).unwrap(), BEHIND).into();
        for at in [pod, service(family)] {
            let mut call = Call::open(&tiefighter, at).unwrap();
            assert_eq!(call.ask().unwrap(), "interceptor");
            call.exchange(4 << 20).unwrap();
            let datagrams = Datagrams::open(&tiefighter, at).unwrap();
            datagrams.echo_all(&[1, 1_000]).unwrap();
        }
        let refused = Call::open_within(hangar.pod("xwing").unwrap(), pod, Duration::from_millis(500));
        assert!(refused.is_err(), "who may not call");
    }
    assert_eq!(
        syns_sent_again(&tiefighter).unwrap(),
        again,
        "the first ones were held, and went on from there"
    );
    assert!(hangar.scene.counted("node1", "HELD", "").unwrap() >= 1.0);
    assert!(hangar.scene.counted("node1", "DROPPED", "POLICY_DENIED").unwrap() >= 2.0);
    assert!(!hangar.scene.authenticated("node1", "tiefighter", "interceptor").unwrap().is_empty());
    assert_eq!(seen(&hangar).unwrap(), 0, "the host has forwarded none of it");
    // Those of other nodes come and go by the tunnel, as ever.
    drop(hangar.scene.land("tiefighter", FAMILIES[0], PATIENCE).unwrap());
}

#[test]
fn a_connection_keeps_its_way_while_the_setting_changes() {
    if !skip::lab_available("a_connection_keeps_its_way_while_the_setting_changes") {
        return;
    }
    let mut hangar = Hangar::open("fwd-change", SERVICE, &["interceptor"]).unwrap();
    let tiefighter = hangar.pod("tiefighter").unwrap().clone();
    let [at, _] = FAMILIES.map(service);
    let call =
        || Call::open_within(&tiefighter, at, Duration::from_millis(700)).and_then(|mut call| call.ask());
    let mut by_host = Call::open(&tiefighter, at).unwrap();
    by_host.ask().unwrap();
    restart(&mut hangar, &DIRECT).unwrap();
    raise_wall(&hangar).unwrap();
    assert!(wait::until(PATIENCE, || call().ok()).is_some(), "new connections go straight");
    let mut straight = Call::open(&tiefighter, at).unwrap();
    straight.ask().unwrap();
    let before = seen(&hangar).unwrap();
    let sent = std::thread::scope(|scope| {
        let asking = scope.spawn(|| by_host.ask());
        let met = wait::until(PATIENCE, || (seen(&hangar).ok()? > before).then_some(()));
        assert!(met.is_some(), "what began by way of the host goes on by it");
        lower_wall(&hangar).unwrap();
        asking.join().unwrap()
    });
    assert_eq!(sent.unwrap(), "interceptor");
    restart(&mut hangar, &[]).unwrap();
    raise_wall(&hangar).unwrap();
    assert!(wait::until(PATIENCE, || call().is_err().then_some(())).is_some(), "new ones go by the host");
    assert_eq!(straight.ask().unwrap(), "interceptor");
}

/// Where the host has translated the destination, and where one end takes larger packets than the other, the host
/// must have both directions.
#[test]
fn what_the_host_has_a_part_in_passes_the_host() {
    if !skip::lab_available("what_the_host_has_a_part_in_passes_the_host") {
        return;
    }
    let hangar = Hangar::open_with("fwd-host", SERVICE, &["interceptor"], &DIRECT).unwrap();
    hangar.scene.write_manifest("abroad.yaml", ABROAD).unwrap();
    let (tiefighter, interceptor) = (hangar.pod("tiefighter").unwrap(), hangar.pod("interceptor").unwrap());
    let node = hangar.scene.node("node1").unwrap();
    let [v4, _] = FAMILIES;
    let address = interceptor.address(v4).unwrap();
    let rules = format!(
        "add table ip alias; add chain ip alias first {{ type nat hook prerouting priority -100; }};
         add rule ip alias first ip daddr 198.51.100.7 tcp dport 80 dnat to {address}:{BEHIND}"
    );
    node.exec(["nft", &rules]).unwrap();
    let alias = ALIAS.parse().unwrap();
    let called = wait::until(PATIENCE, || Call::open_within(tiefighter, alias, Duration::from_secs(1)).ok());
    let (mut call, _) = called.expect("what the host translates reaches the pod");
    assert_eq!(call.ask().unwrap(), "interceptor");
    call.exchange(1 << 20).unwrap();
    // One end takes less than the other: the host says so, and fragments.
    raise_wall(&hangar).unwrap();
    node.ip(&format!("link set {} mtu 1300\n", interceptor.interface())).unwrap();
    interceptor.ip("link set eth0 mtu 1300\n").unwrap();
    let by_host = || {
        let before = seen(&hangar).ok()?;
        drop(Call::open_within(tiefighter, (address, BEHIND).into(), Duration::from_millis(300)));
        (seen(&hangar).ok()? > before).then_some(())
    };
    assert!(wait::until(PATIENCE, by_host).is_some());
    lower_wall(&hangar).unwrap();
    let mut call = Call::open(tiefighter, (address, BEHIND).into()).unwrap();
    call.exchange(1 << 20).unwrap();
    let datagrams = Datagrams::open(tiefighter, (address, BEHIND).into()).unwrap();
    datagrams.echo_all(&[1_400]).unwrap();
}
