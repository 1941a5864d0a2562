//! Datagrams that are larger than a packet: in fragments, or in segments that the kernel cuts late.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use authd_tests::lab::node::Family;
use authd_tests::star_wars::PATIENCE;
use authd_tests::{skip, wait};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};

use super::{PORT, QUIET, target, told};

/// More than three packets.
const LARGE: usize = 5_000;

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

/// Sends a datagram of `LARGE` bytes in segments of `size`, which the kernel cuts as late as it can.
fn send_segments(socket: &UdpSocket, to: SocketAddr, size: i32) -> Result<()> {
    setsockopt(socket, UdpGsoSegment, &size)?;
    let sent = socket.send_to(&numbered(0), to)?;
    ensure!(sent == LARGE, "{sent}");
    Ok(())
}

#[test]
fn datagrams_that_the_kernel_segments_arrive_one_by_one() {
    if !skip::lab_available("datagrams_that_the_kernel_segments_arrive_one_by_one") {
        return;
    }
    const SIZE: usize = 1_000;
    let mut scene = told("segments").unwrap();
    let listener = scene.pod("deathstar").unwrap().udp_bind(format!("[::]:{PORT}").parse().unwrap()).unwrap();
    for (pod, family) in [("tiefighter", Family::V4), ("stormtrooper", Family::V6)] {
        let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
        let socket = scene.pod(pod).unwrap().udp_bind(any.parse().unwrap()).unwrap();
        let to = target(&scene, family).unwrap();
        // Such a train can't wait, but it asks: a later one finds what it needs.
        let all = wait::until(PATIENCE, || {
            send_segments(&socket, to, i32::try_from(SIZE).ok()?).ok()?;
            let first = receive(&listener, QUIET).ok()?;
            let rest = (1..LARGE / SIZE).map_while(|_| receive(&listener, PATIENCE).ok());
            Some(std::iter::once(first).chain(rest).collect::<Vec<_>>())
        });
        let sent: Vec<Vec<u8>> = numbered(0).chunks(SIZE).map(<[u8]>::to_vec).collect();
        assert!(all.is_some_and(|(received, _)| received == sent), "{pod}");
    }
    assert!(scene.counted("node1", "DROPPED", "AUTH_REQUIRED").unwrap() >= 1.0);
}
