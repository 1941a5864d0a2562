//! The first packets of a pair wait for its authentication: they come late, but they come, in their order.

#[path = "hold/datagrams.rs"]
mod datagrams;
#[path = "hold/raw.rs"]
mod raw;

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use auth_ebpf::Maps;
use auth_ebpf_abi::HOLD_UNITS;
use authd_tests::lab::node::Family;
use authd_tests::netstat::syns_sent_again;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{StarWars, skip, wait};
use etherparse::PacketBuilder;

/// A port that the server doesn't have.
const PORT: u16 = 9000;
/// How long nothing more may come before it is taken for the end.
const QUIET: Duration = Duration::from_millis(500);

/// Both ends want authentication, for a port of the deathstar beside the usual one.
const BOTH_ENDS: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: both-ends, namespace: default}
specs:
  - endpointSelector: {matchLabels: {class: deathstar}}
    ingress:
      - authentication: {mode: required}
        fromEndpoints: [{matchLabels: {org: empire}}]
        toPorts: [{ports: [{port: \"9000\", protocol: ANY}]}]
  - endpointSelector: {matchLabels: {class: tiefighter}}
    egress:
      - authentication: {mode: required}
        toEndpoints: [{matchLabels: {class: deathstar}}]
";

/// The cluster with the policy above in force on both nodes.
fn cluster(name: &str) -> Result<StarWars> {
    let mut scene = StarWars::new(name)?;
    scene.write_manifest("both-ends.yaml", BOTH_ENDS)?;
    scene.start_tunnels()?;
    scene.start_agents(&[])?;
    scene.settle()?;
    Ok(scene)
}

/// The same where the second node has been told whose addresses the first one's are: it can't be told by a
/// dead daemon, and what waits for that keeps no order.
fn told(name: &str) -> Result<StarWars> {
    let scene = cluster(name)?;
    ensure!(scene.is_refused("xwing", Family::V4), "xwing lands");
    Ok(scene)
}

fn target(scene: &StarWars, family: Family) -> Result<SocketAddr> {
    Ok(SocketAddr::new(scene.pod("deathstar")?.address(family)?, PORT))
}

/// How many packets a node holds at this moment.
fn held_now(scene: &mut StarWars, node: &str) -> Result<f64> {
    Ok(scene.agent(node)?.metrics()?.sum("authd_held_packets", &[]))
}

#[test]
fn the_first_connection_of_a_pair_loses_no_syn() {
    if !skip::lab_available("the_first_connection_of_a_pair_loses_no_syn") {
        return;
    }
    let mut scene = StarWars::settled("first", &[]).unwrap();
    scene.land_at_once("tiefighter", Family::V4).unwrap();
    scene.land_at_once("interceptor", Family::V6).unwrap();
    scene.land_at_once("stormtrooper", Family::V6).unwrap();
    assert!(scene.counted("node2", "HELD", "").unwrap() >= 3.0);
    assert_eq!(scene.counted("node2", "DROPPED", "AUTH_REQUIRED").unwrap(), 0.0);
    assert_eq!(held_now(&mut scene, "node2").unwrap(), 0.0);
    let options = ["--verdict", "HELD", "--from-pod", "default/tiefighter"];
    scene.wait_flows("node2", &options, |flows| flows.iter().any(|flow| flow["hook"] == "TO_POD")).unwrap();
    assert!(scene.is_refused("xwing", Family::V4));
}

#[test]
fn both_ends_hold_before_and_behind_the_tunnel() {
    if !skip::lab_available("both_ends_hold_before_and_behind_the_tunnel") {
        return;
    }
    let mut scene = cluster("both").unwrap();
    scene.land_at_once("tiefighter", Family::V6).unwrap();
    assert!(scene.counted("node1", "HELD", "").unwrap() >= 1.0, "its own policy wants it first");
    for node in NODES {
        assert_eq!(scene.counted(node, "DROPPED", "AUTH_REQUIRED").unwrap(), 0.0, "{node}");
    }
}

#[test]
fn without_holding_the_first_syn_is_lost() {
    if !skip::lab_available("without_holding_the_first_syn_is_lost") {
        return;
    }
    let mut scene = StarWars::settled("off", &["--hold", "off"]).unwrap();
    let pod = scene.pod("tiefighter").unwrap().clone();
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    assert!(syns_sent_again(&pod).unwrap() >= 1);
    assert_eq!(scene.counted("node2", "HELD", "").unwrap(), 0.0);
    assert!(scene.counted("node2", "DROPPED", "AUTH_REQUIRED").unwrap() >= 1.0);
}

/// Datagrams with ascending numbers: a burst, then some with pauses.
fn send_numbers(from: &UdpSocket, to: SocketAddr, burst: u32, paced: u32) -> Result<()> {
    for number in 0..burst + paced {
        from.send_to(&number.to_be_bytes(), to)?;
        if number >= burst {
            wait::pause(Duration::from_micros(200));
        }
    }
    Ok(())
}

/// As many as come; the last of those that are expected have long to do so, those beyond them have not.
fn receive_numbers(socket: &UdpSocket, expected: u32) -> Result<Vec<u32>> {
    let mut numbers = vec![];
    let mut datagram = [0; 4];
    loop {
        let more = numbers.len() < usize::try_from(expected)?;
        socket.set_read_timeout(Some(if more { PATIENCE } else { QUIET }))?;
        if socket.recv(&mut datagram).is_err() {
            return Ok(numbers);
        }
        numbers.push(u32::from_be_bytes(datagram));
    }
}

#[test]
fn a_burst_arrives_whole_and_in_order() {
    if !skip::lab_available("a_burst_arrives_whole_and_in_order") {
        return;
    }
    // Together fewer than may wait: beyond that some drop, or overtake those that wait.
    const BURST: u32 = 100;
    const PACED: u32 = 150;
    let mut scene = told("burst").unwrap();
    // The tunnel has a queue of its own until its first handshake, and not for so many: it is a host's refusal
    // that says that this is behind us.
    let other = SocketAddr::new(scene.node("node2").unwrap().addresses()[0], PORT);
    let refused = scene.node("node1").unwrap().tcp_connect(other, PATIENCE).unwrap_err();
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    let listener = scene.pod("deathstar").unwrap().udp_bind("[::]:9000".parse().unwrap()).unwrap();
    for (pod, family) in
        [("tiefighter", Family::V4), ("interceptor", Family::V6), ("stormtrooper", Family::V4)]
    {
        let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
        let socket = scene.pod(pod).unwrap().udp_bind(any.parse().unwrap()).unwrap();
        let to = target(&scene, family).unwrap();
        let received = thread::scope(|scope| {
            let receiver = scope.spawn(|| receive_numbers(&listener, BURST + PACED));
            send_numbers(&socket, to, BURST, PACED).unwrap();
            receiver.join().unwrap().unwrap()
        });
        let sent: Vec<u32> = (0..BURST + PACED).collect();
        let wrong = received.iter().zip(&sent).position(|(received, sent)| received != sent);
        assert!(received == sent, "{pod}: {} came, the first wrong one at {wrong:?}", received.len());
    }
    // How many had to wait is a matter of when the sender got its time; most do, where it has a processor.
    for node in NODES {
        assert!(scene.counted(node, "HELD", "").unwrap() >= 1.0, "{node}");
    }
}

#[test]
fn a_flood_neither_fills_the_node_nor_delays_others() {
    if !skip::lab_available("a_flood_neither_fills_the_node_nor_delays_others") {
        return;
    }
    const FLOOD: u32 = 600;
    let mut scene = told("flood").unwrap();
    // Nobody on the other node can authenticate, but its programs let pass what its own policy does.
    scene.agent("node1").unwrap().kill9().unwrap();
    let socket = scene.pod("interceptor").unwrap().udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let to = target(&scene, Family::V4).unwrap();
    let begun = Instant::now();
    send_numbers(&socket, to, 0, FLOOD).unwrap();
    scene.land_at_once("stormtrooper", Family::V4).unwrap();
    let full = wait::until(PATIENCE, || {
        scene.counted("node2", "DROPPED", "HOLD_FULL").ok().filter(|count| *count > 100.0)
    });
    assert!(full.is_some(), "the flood is not bounded");
    assert!(held_now(&mut scene, "node2").unwrap() <= 300.0);
    // What the programs have let wait, the device drops no more.
    let queue = ["cat", "/sys/class/net/authd-hold/tx_queue_len"];
    let queue: u64 = scene.node("node2").unwrap().exec(queue).unwrap().trim().parse().unwrap();
    assert!(queue > HOLD_UNITS, "{queue}");
    let late = wait::until(PATIENCE, || {
        scene.counted("node2", "DROPPED", "HOLD_TIMEOUT").ok().filter(|count| *count > 0.0)
    });
    assert!(late.is_some() && begun.elapsed() >= Duration::from_secs(2), "{late:?}");
    let gone = wait::until(PATIENCE, || (held_now(&mut scene, "node2").ok()? == 0.0).then_some(()));
    assert!(gone.is_some());
}

#[test]
fn what_others_throw_into_the_device_drops() {
    if !skip::lab_available("what_others_throw_into_the_device_drops") {
        return;
    }
    let mut scene = cluster("forged").unwrap();
    let listener = scene.pod("deathstar").unwrap().udp_bind("[::]:9000".parse().unwrap()).unwrap();
    let (node, to) = (scene.node("node2").unwrap().clone(), target(&scene, Family::V4).unwrap());
    let SocketAddr::V4(to) = to else { panic!("{to} is not of IPv4") };
    // As from one who has authenticated.
    scene.land_at_once("tiefighter", Family::V4).unwrap();
    let before = scene.counted("node2", "DROPPED", "NOT_HELD").unwrap();
    let forged = |tag: Option<u16>| {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let (source, port) = ([10, 244, 1, 10], 1);
        let builder = match tag {
            Some(tag) => builder
                .single_vlan(etherparse::VlanId::try_new(tag).unwrap())
                .ipv4(source, to.ip().octets(), 64)
                .udp(port, PORT),
            None => builder.ipv4(source, to.ip().octets(), 64).udp(port, PORT),
        };
        let mut frame = vec![];
        builder.write(&mut frame, &[0; 4]).unwrap();
        frame
    };
    let tags = [None, Some(0), Some(1), Some(2), Some(77), Some(4094)];
    for tag in tags {
        node.run(|| raw::send("authd-hold", &forged(tag))).unwrap().unwrap();
    }
    // A pod may guess any token as well.
    let pod = scene.pod("xwing").unwrap().clone();
    for tag in tags {
        pod.run(|| raw::send("eth0", &forged(tag))).unwrap().unwrap();
    }
    let dropped = wait::until(PATIENCE, || {
        let all = before + f64::from(u8::try_from(tags.len()).unwrap());
        scene.counted("node2", "DROPPED", "NOT_HELD").ok().filter(|count| *count >= all)
    });
    assert!(dropped.is_some());
    let tagged = f64::from(u8::try_from(tags.len() - 1).unwrap());
    assert!(scene.counted("node1", "DROPPED", "UNSUPPORTED_L3").unwrap() >= tagged);
    assert!(scene.counted("node1", "DROPPED", "SPOOFED").unwrap() >= 1.0);
    assert_eq!(receive_numbers(&listener, 0).unwrap(), Vec::<u32>::new());
}

#[test]
fn large_segments_of_a_flow_whose_authentication_lapses_arrive_unharmed() {
    if !skip::lab_available("large_segments_of_a_flow_whose_authentication_lapses_arrive_unharmed") {
        return;
    }
    const CHUNK: usize = 1 << 20;
    const CHUNKS: u8 = 24;
    let mut scene = cluster("bulk").unwrap();
    let deathstar = scene.pod("deathstar").unwrap().clone();
    let listener = deathstar.tcp_listen("[::]:9000".parse().unwrap()).unwrap();
    let pod = scene.pod("tiefighter").unwrap().clone();
    let mut stream = pod.tcp_connect(target(&scene, Family::V4).unwrap(), PATIENCE).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let before = scene.counted("node1", "HELD", "").unwrap();
    let received = thread::scope(|scope| -> Result<Vec<u8>> {
        let reader = scope.spawn(move || {
            let mut all = vec![];
            peer.set_read_timeout(Some(PATIENCE))?;
            peer.read_to_end(&mut all).map(|_| all)
        });
        for number in 0..CHUNKS {
            if number % 8 == 4 {
                scene.authctl("node1", &["auth", "flush"])?;
            }
            stream.write_all(&vec![number; CHUNK])?;
        }
        drop(stream);
        reader.join().ok().context("the reader panicked")?.context("read")
    })
    .unwrap();
    assert_eq!(received.len(), CHUNK * usize::from(CHUNKS));
    assert!(
        received.chunks(CHUNK).zip(0..CHUNKS).all(|(chunk, number)| chunk.iter().all(|it| *it == number))
    );
    assert!(scene.counted("node1", "HELD", "").unwrap() > before, "nothing was held");
}

#[test]
fn a_daemon_killed_while_it_holds_leaves_nothing_behind() {
    if !skip::lab_available("a_daemon_killed_while_it_holds_leaves_nothing_behind") {
        return;
    }
    let mut scene = told("killed").unwrap();
    scene.agent("node1").unwrap().kill9().unwrap();
    let socket = scene.pod("interceptor").unwrap().udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let to = target(&scene, Family::V4).unwrap();
    send_numbers(&socket, to, 50, 0).unwrap();
    let held = wait::until(PATIENCE, || (held_now(&mut scene, "node2").ok()? > 0.0).then_some(()));
    assert!(held.is_some());
    scene.agent("node2").unwrap().kill9().unwrap();
    // The lease ends: what comes now drops by its true reason, not in a device that nobody reads.
    wait::pause(Duration::from_millis(1200));
    send_numbers(&socket, to, 50, 0).unwrap();
    scene.agents.values_mut().try_for_each(authd_tests::daemon::Daemon::restart).unwrap();
    scene.settle().unwrap();
    assert!(scene.counted("node2", "DROPPED", "AUTH_REQUIRED").unwrap() >= 50.0);
    let ready = wait::until(PATIENCE, || {
        scene.agent("node2").ok()?.metrics().ok().filter(|all| all.sum("authd_hold_up", &[]) > 0.0)
    });
    assert!(ready.is_some());
    scene.land_at_once("stormtrooper", Family::V4).unwrap();
    // Two daemons that start at once may need a moment until their tunnel's keys agree.
    drop(scene.land("interceptor", Family::V4, PATIENCE).unwrap());
}

/// What is held for a pod that goes has nowhere to come back to, and its credits would be nobody's for good.
#[test]
fn what_goes_with_its_interface_takes_no_credits_along() {
    if !skip::lab_available("what_goes_with_its_interface_takes_no_credits_along") {
        return;
    }
    let mut scene = told("gone").unwrap();
    let node = scene.node("node2").unwrap().clone();
    let maps = Maps::open_pinned(&node.outside("/sys/fs/bpf/authd".as_ref())).unwrap();
    scene.agent("node1").unwrap().kill9().unwrap();
    let socket = scene.pod("interceptor").unwrap().udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    send_numbers(&socket, target(&scene, Family::V4).unwrap(), 50, 0).unwrap();
    let held = wait::until(PATIENCE, || (held_now(&mut scene, "node2").ok()? >= 50.0).then_some(()));
    assert!(held.is_some());
    node.ip(&format!("link del {}\n", scene.pod("deathstar").unwrap().interface())).unwrap();
    let gone = wait::until(PATIENCE, || (held_now(&mut scene, "node2").ok()? == 0.0).then_some(()));
    assert!(gone.is_some());
    assert!(maps.hold().taken().unwrap() >= 50, "none has come back");
    let back = wait::until(PATIENCE, || (maps.hold().taken().ok()? == 0).then_some(()));
    assert!(back.is_some(), "{:?}", maps.hold().taken());
}
