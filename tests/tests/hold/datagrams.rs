//! Datagrams that are larger than a packet, and packets of many datagrams.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Result, ensure};
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{skip, wait};
use nix::sys::socket::sockopt::{UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt};

use super::{PORT, target, told};

/// More than three packets.
const LARGE: usize = 4_500;
/// As long as a datagram may be in a pod's sight.
const SEGMENT: usize = 1_000;

fn numbered(number: u8) -> Vec<u8> {
    (0..LARGE).map(|at| u8::try_from(at % 251).unwrap_or(0) ^ number).collect()
}

fn receive(socket: &UdpSocket, within: Duration) -> Result<Vec<u8>> {
    socket.set_read_timeout(Some(within))?;
    let mut datagram = vec![0; 1 << 16];
    let length = socket.recv(&mut datagram)?;
    datagram.truncate(length);
    Ok(datagram)
}

#[test]
fn the_first_datagram_of_a_pair_arrives_in_all_its_fragments() {
    if !skip::lab_available("the_first_datagram_of_a_pair_arrives_in_all_its_fragments") {
        return;
    }
    let mut scene = told("fragments").unwrap();
    let listener = scene.pod("deathstar").unwrap().udp_bind(format!("[::]:{PORT}").parse().unwrap()).unwrap();
    // Across the tunnel and with both ends wanting authentication; and on one node.
    for (pod, family) in
        [("tiefighter", Family::V4), ("interceptor", Family::V6), ("stormtrooper", Family::V4)]
    {
        let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
        // No router fragments IPv6: a pod that does not know the tunnel's MTU yet hears of it by losing a packet.
        scene.pod(pod).unwrap().ip("link set eth0 mtu 1280\n").unwrap();
        let socket = scene.pod(pod).unwrap().udp_bind(any.parse().unwrap()).unwrap();
        let to = target(&scene, family).unwrap();
        let sent: Vec<Vec<u8>> = (0..3).map(numbered).collect();
        for datagram in &sent {
            socket.send_to(datagram, to).unwrap();
        }
        for (number, sent) in sent.iter().enumerate() {
            let received = receive(&listener, PATIENCE);
            assert!(received.is_ok_and(|received| received == *sent), "{pod}, {number}");
        }
    }
    assert!(scene.counted("node1", "HELD", "").unwrap() >= 4.0);
    assert!(scene.counted("node2", "HELD", "").unwrap() >= 8.0);
}

/// Sends `LARGE` bytes as datagrams of `SEGMENT`, which the kernel makes of them as late as it can.
fn send_at_once(socket: &UdpSocket, to: SocketAddr, number: u8) -> Result<()> {
    setsockopt(socket, UdpGsoSegment, &i32::try_from(SEGMENT)?)?;
    let sent = socket.send_to(&numbered(number), to)?;
    ensure!(sent == LARGE, "{sent}");
    Ok(())
}

/// What `send_at_once` is to become.
fn segments(numbers: Range<u8>) -> Vec<Vec<u8>> {
    numbers
        .flat_map(|number| numbered(number).chunks(SEGMENT).map(<[u8]>::to_vec).collect::<Vec<_>>())
        .collect()
}

/// `count` datagrams, and how many were the most that came at once: the kernel may hand them over in one, and say
/// how long each is.
fn receive_segments(socket: &UdpSocket, count: usize) -> Result<(Vec<Vec<u8>>, usize)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let (mut datagrams, mut most) = (vec![], 0);
    while datagrams.len() < count {
        let mut bytes = vec![0; 1 << 16];
        let mut control = nix::cmsg_space!(i32);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
        let length = message.bytes;
        let each = message.cmsgs()?.find_map(|found| {
            let ControlMessageOwned::UdpGroSegments(each) = found else { return None };
            usize::try_from(each).ok()
        });
        bytes.truncate(length);
        let before = datagrams.len();
        datagrams.extend(bytes.chunks(each.unwrap_or(length).max(1)).map(<[u8]>::to_vec));
        most = most.max(datagrams.len() - before);
    }
    Ok((datagrams, most))
}

/// Pods whose pairs lack authentication send datagrams in one, to a receiver that takes them in one or doesn't.
fn wait_in_one(family: Family, pods: [(&str, bool); 2]) -> Result<()> {
    const TIMES: u8 = 5;
    let mut scene = told(if family == Family::V4 { "in-one-v4" } else { "in-one-v6" })?;
    let listener = scene.pod("deathstar")?.udp_bind(format!("[::]:{PORT}").parse()?)?;
    let sent = segments(0..TIMES);
    for (pod, takes_in_one) in pods {
        setsockopt(&listener, UdpGroSegment, &takes_in_one)?;
        let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
        let socket = scene.pod(pod)?.udp_bind(any.parse()?)?;
        let to = target(&scene, family)?;
        for number in 0..TIMES {
            send_at_once(&socket, to, number)?;
        }
        let (received, most) = receive_segments(&listener, sent.len())?;
        let wrong = received.iter().zip(&sent).position(|(received, sent)| received != sent);
        ensure!(wrong.is_none() && received.len() == sent.len(), "{pod}: {} came, {wrong:?}", received.len());
        // The tunnel takes them apart; on one node nothing does.
        let stay = pod == "stormtrooper" && takes_in_one;
        ensure!(most == if stay { sent.len() / usize::from(TIMES) } else { 1 }, "{pod}: {most} at once");
    }
    for node in NODES {
        let held = scene.counted(node, "HELD", "")?;
        ensure!(held >= 1.0, "{node} held {held}");
        for reason in ["AUTH_REQUIRED", "NOT_HELD", "HOLD_FULL", "HOLD_TIMEOUT"] {
            let dropped = scene.counted(node, "DROPPED", reason)?;
            ensure!(dropped == 0.0, "{node}: {reason} {dropped}");
        }
    }
    Ok(())
}

#[test]
fn datagrams_in_one_wait_in_one_over_ipv4() {
    if skip::lab_available("datagrams_in_one_wait_in_one_over_ipv4") {
        wait_in_one(Family::V4, [("tiefighter", false), ("stormtrooper", true)]).unwrap();
    }
}

#[test]
fn datagrams_in_one_wait_in_one_over_ipv6() {
    if skip::lab_available("datagrams_in_one_wait_in_one_over_ipv6") {
        wait_in_one(Family::V6, [("stormtrooper", false), ("tiefighter", true)]).unwrap();
    }
}

#[test]
fn of_more_than_may_wait_in_one_each_waits_or_drops_whole() {
    if !skip::lab_available("of_more_than_may_wait_in_one_each_waits_or_drops_whole") {
        return;
    }
    const TIMES: u8 = 200;
    let mut scene = told("too-many-in-one").unwrap();
    scene.agent("node2").unwrap().kill9().unwrap();
    let socket = scene.pod("tiefighter").unwrap().udp_bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let to = target(&scene, Family::V4).unwrap();
    for number in 0..TIMES {
        send_at_once(&socket, to, number).unwrap();
    }
    // Nobody there answers, so what waits gives up: at its limit, or where the pair is known to have failed.
    let mut dropped = |reason: &str| scene.counted("node1", "DROPPED", reason).unwrap_or_default();
    let gone = wait::until(PATIENCE, || {
        let gone = ["HOLD_FULL", "HOLD_TIMEOUT", "AUTH_REQUIRED"].map(&mut dropped);
        (gone.iter().sum::<f64>() >= f64::from(TIMES)).then_some(gone)
    });
    let ([full, late, failed], _) = gone.unwrap();
    assert!(full > 0.0 && late + failed > 0.0, "{full}, {late}, {failed}");
    assert!(full + late + failed == f64::from(TIMES), "{full}, {late}, {failed}");
    assert_eq!(dropped("NOT_HELD"), 0.0);
    assert!(scene.counted("node1", "HELD", "").unwrap() > 0.0);
}
