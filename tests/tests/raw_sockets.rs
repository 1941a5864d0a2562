//! What raw sockets send, in pods and on hosts: any protocol by its number, any mark, whole frames. All of it
//! is judged like the rest.

#[path = "hold/raw.rs"]
mod raw;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use anyhow::{Result, bail, ensure};
use authd_tests::lab::node::Family;
use authd_tests::star_wars::PATIENCE;
use authd_tests::{Capture, Namespace, StarWars, skip, wait};
use etherparse::{IpNumber, PacketBuilder};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, setsockopt,
    socket, sockopt,
};

/// The empire's ships reach the deathstar by every protocol.
const EVERY_PROTOCOL: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: every-protocol, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
    - authentication: {mode: required}
      fromEndpoints: [{matchLabels: {org: empire}}]
";
/// GRE, ESP, SCTP, UDP-Lite, and one that nobody uses.
const NUMBERS: [u8; 5] = [47, 50, 132, 136, 253];

fn cluster(name: &str) -> Result<StarWars> {
    let mut scene = StarWars::new(name)?;
    scene.write_manifest("every-protocol.yaml", EVERY_PROTOCOL)?;
    scene.start_tunnels()?;
    scene.start_agents(&[])?;
    scene.settle()?;
    Ok(scene)
}

/// A packet of a protocol; of that of ICMP, an echo request.
fn packet((from, to): (IpAddr, IpAddr), number: Option<u8>, payload: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match (from, to, number) {
        (IpAddr::V4(from), IpAddr::V4(to), Some(number)) => {
            PacketBuilder::ipv4(from.octets(), to.octets(), 64).write(
                &mut bytes,
                IpNumber(number),
                payload,
            )?;
        }
        (IpAddr::V6(from), IpAddr::V6(to), Some(number)) => {
            PacketBuilder::ipv6(from.octets(), to.octets(), 64).write(
                &mut bytes,
                IpNumber(number),
                payload,
            )?;
        }
        (IpAddr::V4(from), IpAddr::V4(to), None) => {
            let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64).icmpv4_echo_request(7, 1);
            builder.write(&mut bytes, payload)?;
        }
        (IpAddr::V6(from), IpAddr::V6(to), None) => {
            let builder = PacketBuilder::ipv6(from.octets(), to.octets(), 64).icmpv6_echo_request(7, 1);
            builder.write(&mut bytes, payload)?;
        }
        _ => bail!("{from} and {to} are of two families"),
    }
    Ok(bytes)
}

/// Sends it from a namespace, headers and all.
fn send(namespace: &Namespace, to: IpAddr, bytes: &[u8]) -> Result<()> {
    let open = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
    namespace.run(|| -> Result<()> {
        let sent = match SocketAddr::new(to, 0) {
            SocketAddr::V4(to) => {
                let socket = open(AddressFamily::Inet)?;
                sendto(socket.as_raw_fd(), bytes, &SockaddrIn::from(to), MsgFlags::empty())?
            }
            SocketAddr::V6(to) => {
                let socket = open(AddressFamily::Inet6)?;
                sendto(socket.as_raw_fd(), bytes, &SockaddrIn6::from(to), MsgFlags::empty())?
            }
        };
        ensure!(sent == bytes.len(), "only {sent} of {} bytes were sent", bytes.len());
        Ok(())
    })?
}

#[test]
fn every_protocol_reaches_whom_policy_lets_it() {
    if !skip::lab_available("every_protocol_reaches_whom_policy_lets_it") {
        return;
    }
    let scene = cluster("protocols").unwrap();
    let deathstar = scene.pod("deathstar").unwrap().clone();
    let mut capture = Capture::start(&deathstar, "eth0").unwrap();
    let mut sent = vec![];
    for family in Family::ALL {
        for number in NUMBERS.map(Some).into_iter().chain([None]) {
            for name in ["xwing", "tiefighter"] {
                let pod = scene.pod(name).unwrap();
                let (from, to) = (pod.address(family).unwrap(), deathstar.address(family).unwrap());
                let needle = format!("It's {name}'s {number:?} by {family}.");
                send(pod, to, &packet((from, to), number, needle.as_bytes()).unwrap()).unwrap();
                sent.push((name, number, needle));
            }
        }
    }
    for (name, number, needle) in &sent {
        // An echo is answered.
        let wanted = if number.is_none() { 2 } else { 1 };
        let came = || {
            let frames = capture.frames().ok()?;
            (frames.containing(needle.as_bytes()) >= wanted).then_some(())
        };
        if *name == "tiefighter" {
            assert!(wait::until(PATIENCE, came).is_some(), "{needle}");
        }
    }
    let frames = capture.stop().unwrap();
    for (_, _, needle) in sent.iter().filter(|(name, ..)| *name == "xwing") {
        assert_eq!(frames.containing(needle.as_bytes()), 0, "{needle}");
    }
}

#[test]
fn no_mark_and_no_frame_gets_past_the_tunnel_or_policy() {
    if !skip::lab_available("no_mark_and_no_frame_gets_past_the_tunnel_or_policy") {
        return;
    }
    let mut scene = cluster("marks").unwrap();
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    let (node, deathstar) = (scene.node("node1").unwrap().clone(), scene.pod("deathstar").unwrap().clone());
    let (wire, mut inside) = (scene.lab.capture().unwrap(), Capture::start(&deathstar, "eth0").unwrap());
    let needle = |from: &str, family, mark: u32| format!("It's {from} by {family} with {mark:#010x}.");
    let marks: Vec<u32> = (0..32).map(|bit| 1 << bit).chain([u32::MAX]).collect();
    let senders: [(&str, Namespace); 3] = [
        ("the host", (*node).clone()),
        ("xwing", (**scene.pod("xwing").unwrap()).clone()),
        ("tiefighter", (**scene.pod("tiefighter").unwrap()).clone()),
    ];
    for family in Family::ALL {
        let to = SocketAddr::new(deathstar.address(family).unwrap(), 80);
        for (name, namespace) in &senders {
            let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
            let socket = namespace.udp_bind(any.parse().unwrap()).unwrap();
            for mark in &marks {
                setsockopt(&socket, sockopt::Mark, mark).unwrap();
                socket.send_to(needle(name, family, *mark).as_bytes(), to).unwrap();
            }
        }
    }
    // Whole frames of the host, straight out of the uplink.
    let before = scene.counted("node1", "DROPPED", "UNENCRYPTED").unwrap();
    let pods = (
        scene.pod("tiefighter").unwrap().address(Family::V4).unwrap(),
        scene.target(Family::V4).unwrap().ip(),
    );
    let ip = packet(pods, Some(253), needle("the host's frame", Family::V4, 0).as_bytes()).unwrap();
    let frame = [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0], ip.as_slice()].concat();
    node.run(|| raw::send("eth0", &frame)).unwrap().unwrap();
    let dropped = || (scene.counted("node1", "DROPPED", "UNENCRYPTED").ok()? > before).then_some(());
    assert!(wait::until(PATIENCE, dropped).is_some());

    let from_all = |name: &str| -> Vec<String> {
        let families = Family::ALL.into_iter();
        families.flat_map(|family| marks.iter().map(move |mark| needle(name, family, *mark))).collect()
    };
    let all = || {
        let frames = inside.frames().ok()?;
        from_all("tiefighter").iter().all(|it| frames.containing(it.as_bytes()) > 0).then_some(())
    };
    assert!(wait::until(PATIENCE, all).is_some(), "what may pass passes under any mark");
    let (wire, inside) = (wire.stop().unwrap(), inside.stop().unwrap());
    assert_eq!(wire.containing(b"It's "), 0, "something has crossed in the clear");
    for it in [from_all("the host"), from_all("xwing")].concat() {
        assert_eq!(inside.containing(it.as_bytes()), 0, "{it}");
    }
    assert_eq!(inside.containing(needle("the host's frame", Family::V4, 0).as_bytes()), 0);
}
