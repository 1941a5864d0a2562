//! What happens under traffic: policies that change, maps and rings that are full, packets that are larger or
//! smaller than usual, and others who meddle with them on the way.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use auth_ebpf::{Datapath, Maps, Options};
use auth_ebpf_abi::{AuthEntry, AuthKey, Hook, capacity};
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{IN_VAIN, PATIENCE};
use authd_tests::{Namespace, StarWars, skip, wait};
use etherparse::PacketBuilder;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

/// The tiefighter may not land any more.
const CLOSED: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingressDeny: [{fromEndpoints: [{matchLabels: {class: tiefighter}}]}]
";

/// The deathstar opens no connection to anybody.
const SILENT: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: silent, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  egress: [{}]
";

/// Another port of the deathstar for the empire.
const CARGO: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: cargo, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
    - authentication: {mode: required}
      fromEndpoints: [{matchLabels: {org: empire}}]
      toPorts: [{ports: [{port: \"9000\", protocol: TCP}]}]
";

fn cluster(name: &str, policy: &str) -> Result<StarWars> {
    let mut scene = StarWars::new(name)?;
    scene.write_manifest("more.yaml", policy)?;
    scene.start_tunnels()?;
    scene.start_agents(&[])?;
    scene.settle()?;
    Ok(scene)
}

/// Waits until more than `before` packets have dropped on a node for a reason.
fn drops_more(scene: &mut StarWars, node: &str, reason: &str, before: f64) -> bool {
    let more = || (scene.counted(node, "DROPPED", reason).ok()? > before).then_some(());
    wait::until(PATIENCE, more).is_some()
}

#[test]
fn a_change_of_policy_reaches_a_connection_under_way_in_both_directions() {
    if !skip::lab_available("a_change_of_policy_reaches_a_connection_under_way_in_both_directions") {
        return;
    }
    let mut scene = StarWars::settled("flip", &[]).unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    let other = scene.land("interceptor", Family::V6, PATIENCE).unwrap();
    for _ in 0..2 {
        scene.write_manifest("closed.yaml", CLOSED).unwrap();
        let before = scene.counted("node2", "DROPPED", "POLICY_DENY").unwrap();
        let refused = || {
            drop(scene.land("tiefighter", Family::V6, Duration::from_millis(200)));
            (scene.counted("node2", "DROPPED", "POLICY_DENY").ok()? > before).then_some(())
        };
        assert!(wait::until(PATIENCE, refused).is_some(), "the policy does not come into force");
        connection.send("POST", "/v1/request-landing", &scene.needle()).unwrap();
        let answer = connection.receive(Duration::from_millis(700));
        assert!(!matches!(answer, Ok(Some(_))), "{answer:?}");
        std::fs::remove_file(scene.lab.outside("cluster/closed.yaml")).unwrap();
        // What was sent then arrives now, by the connection that was there.
        let answer = connection.receive(PATIENCE).unwrap().unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let mut other = other;
    scene.land_over(&mut other, PATIENCE).unwrap();
}

#[test]
fn a_full_ring_loses_events_which_are_counted_and_no_verdict() {
    if !skip::lab_available("a_full_ring_loses_events_which_are_counted_and_no_verdict") {
        return;
    }
    const FLOOD: u32 = 30_000;
    let mut scene = StarWars::settled("ring", &[]).unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    let socket = scene.pod("xwing").unwrap().udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let before = scene.counted("node1", "DROPPED", "UNKNOWN_DESTINATION").unwrap();
    let lost = scene.agent("node1").unwrap().metrics().unwrap().sum("authd_events_lost_total", &[]);
    // Nobody reads the ring.
    scene.agent("node1").unwrap().process().signal(Signal::SIGSTOP).unwrap();
    let sent = (0..FLOOD).filter(|_| socket.send_to(b"x", "10.244.2.99:80").is_ok()).count();
    let landed = scene.land_over(&mut connection, PATIENCE);
    let refused = scene.is_refused("xwing", Family::V4);
    scene.agent("node1").unwrap().process().signal(Signal::SIGCONT).unwrap();
    landed.unwrap();
    assert!(refused);
    let dropped = scene.counted("node1", "DROPPED", "UNKNOWN_DESTINATION").unwrap() - before;
    assert_eq!(dropped, f64::from(u32::try_from(sent).unwrap()), "each has its verdict, and is counted");
    let metrics = scene.agent("node1").unwrap().metrics().unwrap();
    assert!(metrics.sum("authd_events_lost_total", &[]) > lost + f64::from(FLOOD) / 3.0);
    // The reader goes on: what asks for authentication is heard again.
    drop(scene.land("interceptor", Family::V4, PATIENCE).unwrap());
}

#[test]
fn where_the_map_of_authentications_is_full_new_pairs_stay_out_and_old_ones_go_on() {
    if !skip::lab_available("where_the_map_of_authentications_is_full_new_pairs_stay_out_and_old_ones_go_on")
    {
        return;
    }
    let mut scene = StarWars::settled("full", &[]).unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    let pins = scene.node("node2").unwrap().outside("/sys/fs/bpf/authd".as_ref());
    let maps = Maps::open_pinned(&pins).unwrap();
    let key = |number: usize| AuthKey {
        local: u32::try_from(number).unwrap() + (1 << 20),
        remote: 256,
        node: 9,
        auth_type: 1,
        pad: 0,
    };
    let filler = AuthEntry { expires: 1, epoch: 0, flags: 0 };
    let filled = (0..capacity::AUTH).take_while(|number| maps.auth().insert(&key(*number), &filler).is_ok());
    let filled = filled.count();
    assert!(filled < capacity::AUTH, "the pair that stands has its place");
    let before = scene.counted("node2", "DROPPED", "HOLD_TIMEOUT").unwrap();
    assert!(scene.land("interceptor", Family::V4, Duration::from_secs(4)).is_err());
    assert!(drops_more(&mut scene, "node2", "HOLD_TIMEOUT", before), "it waits for what can't be");
    scene.land_over(&mut connection, PATIENCE).unwrap();
    drop(scene.land("tiefighter", Family::V6, PATIENCE).unwrap());
    for number in 0..filled {
        maps.auth().remove(&key(number)).unwrap();
    }
    drop(scene.land("interceptor", Family::V4, PATIENCE).unwrap());
}

#[test]
fn a_cni_that_masquerades_is_dropped_by_name() {
    if !skip::lab_available("a_cni_that_masquerades_is_dropped_by_name") {
        return;
    }
    let mut scene = StarWars::settled("masquerade", &[]).unwrap();
    let node = scene.node("node1").unwrap().clone();
    for (tool, family, range) in
        [("iptables", Family::V4, "10.244.1.0/24"), ("ip6tables", Family::V6, "fd00:10:244:1::/64")]
    {
        let rule = |change| {
            let words = [tool, "-w", "-t", "nat", change, "POSTROUTING", "-s", range, "-o", "authd0"];
            node.exec(words.into_iter().chain(["-j", "MASQUERADE"]))
        };
        rule("-A").unwrap();
        let before = scene.counted("node1", "DROPPED", "MASQUERADED").unwrap();
        assert!(scene.is_refused("tiefighter", family), "{family}");
        assert!(drops_more(&mut scene, "node1", "MASQUERADED", before), "{family}");
        let flows = scene.flows("node1", &["--verdict", "DROPPED", "--reason", "MASQUERADED"]).unwrap();
        assert!(flows.iter().all(|flow| flow["hook"] == "TO_WIREGUARD"), "{flows:?}");
        rule("-D").unwrap();
        drop(scene.land("tiefighter", family, PATIENCE).unwrap());
    }
}

#[test]
fn another_user_of_the_hook_comes_behind_and_sees_what_passes() {
    if !skip::lab_available("another_user_of_the_hook_comes_behind_and_sees_what_passes") {
        return;
    }
    let mut scene = StarWars::settled("stranger", &[]).unwrap();
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    let node = scene.node("node1").unwrap().clone();
    let interface = scene.pod("tiefighter").unwrap().interface().to_owned();
    let options = Options { pin_dir: node.outside("/sys/fs/bpf/stranger".as_ref()) };
    let repairs = |scene: &mut StarWars| {
        let metrics = scene.agent("node1")?.metrics()?;
        Ok::<_, anyhow::Error>(metrics.sum("authd_program_repairs_total", &[("cause", "displaced")]))
    };
    let before = repairs(&mut scene).unwrap();
    // It gets ahead of ours, which a program at the head must, and is behind it a moment later.
    let stranger = node
        .run(|| -> Result<Datapath> {
            let mut datapath = Datapath::open(&options)?;
            datapath.attach(Hook::FromUplink, &interface)?;
            Ok(datapath)
        })
        .unwrap()
        .unwrap();
    let repaired = wait::until(PATIENCE, || (repairs(&mut scene).ok()? > before).then_some(()));
    assert!(repaired.is_some(), "ours stays behind");
    let seen = || -> u64 {
        let counters = stranger.maps().metrics().unwrap().counters;
        counters.values().map(|counter| counter.packets).sum()
    };
    let some = seen();
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    let passed = seen();
    assert!(passed > some, "what passes ours goes on to the next");
    let socket = scene.pod("tiefighter").unwrap().udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let dropped = scene.counted("node1", "DROPPED", "UNKNOWN_DESTINATION").unwrap();
    for _ in 0..100 {
        socket.send_to(b"x", "10.244.2.99:80").unwrap();
    }
    assert!(drops_more(&mut scene, "node1", "UNKNOWN_DESTINATION", dropped + 99.0));
    assert!(seen() < passed + 50, "what drops does not");
}

/// Sends a TCP segment as it is.
fn segment(from: &Namespace, source: SocketAddr, to: SocketAddr, answers: bool) -> Result<()> {
    let (SocketAddr::V4(source), SocketAddr::V4(to)) = (source, to) else { anyhow::bail!("not of IPv4") };
    let builder = PacketBuilder::ipv4(source.ip().octets(), to.ip().octets(), 64);
    let builder = builder.tcp(source.port(), to.port(), 1, 1000).syn();
    let builder = if answers { builder.ack(2) } else { builder };
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &[])?;
    from.run(|| -> Result<()> {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        ensure!(sendto(raw.as_raw_fd(), &bytes, &SockaddrIn::from(to), MsgFlags::empty())? == bytes.len());
        Ok(())
    })?
}

#[test]
fn a_reply_to_a_syn_that_was_refused_is_no_reply() {
    if !skip::lab_available("a_reply_to_a_syn_that_was_refused_is_no_reply") {
        return;
    }
    let mut scene = cluster("answer", SILENT).unwrap();
    drop(scene.land("tiefighter", Family::V4, PATIENCE).context("replies need no policy").unwrap());
    let (xwing, deathstar) = (scene.pod("xwing").unwrap().clone(), scene.pod("deathstar").unwrap().clone());
    let from = SocketAddr::new(xwing.address(Family::V4).unwrap(), 4000);
    let to = scene.target(Family::V4).unwrap();
    let refused = |scene: &mut StarWars, hook| {
        let labels = [("verdict", "DROPPED"), ("reason", "POLICY_DENIED"), ("hook", hook)];
        let metrics = scene.agent("node2").unwrap().metrics().unwrap();
        metrics.sum("authd_packets_total", &labels)
    };
    let (syns, answers) = (refused(&mut scene, "to_pod"), refused(&mut scene, "from_pod"));
    segment(&xwing, from, to, false).unwrap();
    let came = wait::until(PATIENCE, || (refused(&mut scene, "to_pod") > syns).then_some(()));
    assert!(came.is_some(), "the SYN is not refused");
    segment(&deathstar, to, from, true).unwrap();
    let came = wait::until(PATIENCE, || (refused(&mut scene, "from_pod") > answers).then_some(()));
    assert!(came.is_some(), "the answer passes as a reply");
}

/// Sends so many bytes over a connection, and compares them at the other end.
fn carries(scene: &StarWars, family: Family) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    const CHUNKS: u8 = 64;
    let deathstar = scene.pod("deathstar")?.clone();
    let any = if family == Family::V4 { "0.0.0.0:9000" } else { "[::]:9000" };
    let listener = deathstar.tcp_listen(any.parse()?)?;
    let to = SocketAddr::new(deathstar.address(family)?, 9000);
    let mut stream = scene.pod("tiefighter")?.tcp_connect(to, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut peer, _) = listener.accept()?;
    peer.set_read_timeout(Some(PATIENCE))?;
    let received = thread::scope(|scope| -> Result<Vec<u8>> {
        let reader = scope.spawn(move || {
            let mut all = vec![];
            peer.read_to_end(&mut all).map(|_| all)
        });
        for number in 0..CHUNKS {
            stream.write_all(&vec![number; CHUNK])?;
        }
        drop(stream);
        reader.join().ok().context("the reader panicked")?.context("read")
    })?;
    let sent: Vec<u8> = (0..CHUNKS).flat_map(|number| vec![number; CHUNK]).collect();
    ensure!(received == sent, "{} of {} bytes came, or others", received.len(), sent.len());
    Ok(())
}

#[test]
fn packets_of_any_size_arrive_and_large_ones_hear_of_the_tunnels_mtu() {
    if !skip::lab_available("packets_of_any_size_arrive_and_large_ones_hear_of_the_tunnels_mtu") {
        return;
    }
    let mut scene = cluster("sizes", CARGO).unwrap();
    for mtu in [1280, 9000] {
        for (node, pod) in [("node1", "tiefighter"), ("node2", "deathstar")] {
            let pod = scene.pod(pod).unwrap().clone();
            let outside = format!("link set {} mtu {mtu}\n", pod.interface());
            scene.node(node).unwrap().ip(&outside).unwrap();
            pod.ip(&format!("link set eth0 mtu {mtu}\n")).unwrap();
        }
        for family in Family::ALL {
            carries(&scene, family).with_context(|| format!("{family} with MTU {mtu}")).unwrap();
        }
    }
    for node in ["node1", "node2"] {
        for reason in ["INVALID_PACKET", "FRAGMENT", "POLICY_DENIED"] {
            assert_eq!(scene.counted(node, "DROPPED", reason).unwrap(), 0.0, "{reason} on {node}");
        }
    }
}

#[test]
fn a_daemon_that_is_replaced_under_load_changes_no_verdict() {
    if !skip::lab_available("a_daemon_that_is_replaced_under_load_changes_no_verdict") {
        return;
    }
    let mut scene = StarWars::settled("replaced", &[]).unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    for node in ["node1", "node2"] {
        scene.agent(node).unwrap().kill9().unwrap();
        scene.land_over(&mut connection, PATIENCE).unwrap();
        assert!(scene.connect("xwing", Family::V4, IN_VAIN).is_err());
        scene.agent(node).unwrap().restart().unwrap();
        scene.land_over(&mut connection, PATIENCE).unwrap();
        assert!(scene.connect("xwing", Family::V6, IN_VAIN).is_err());
    }
}
