//! Packets through tunnels.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use wg_mesh::Desired;

use crate::{
    node::{exchange, join, pair},
    wire::Capture,
};

const MARKER: &[u8] = b"nobody on the wire may read this line";
const LIMIT: Duration = Duration::from_secs(8);

fn payload(length: usize) -> Vec<u8> {
    MARKER.iter().copied().cycle().take(length).collect()
}

#[test]
fn both_families_pass_and_nothing_is_in_the_clear() {
    let Some((mut left, mut right)) = pair("both_families_pass_and_nothing_is_in_the_clear") else { return };
    let capture = Capture::start(&left.namespace, MARKER);
    left.start();
    right.start();
    join(&left, &right);
    right.echo(7000);
    for address in right.pods() {
        assert!(left.tcp((address, 7000).into(), &payload(1_000_000), LIMIT), "TCP to {address}");
        assert!(left.udp(None, (address, 7000).into(), LIMIT), "UDP to {address}");
    }
    assert!(left.tcp((right.address(), 7000).into(), &payload(1000), LIMIT), "TCP to the node itself");
    let seen = capture.stop();
    assert_eq!((seen.clear, seen.marked, seen.unpadded), (0, 0, 0), "{seen:?}");
    assert!(seen.wireguard > 2000, "{seen:?}");
    let (left, right) = (left.status(), right.status());
    assert!(left.peers[0].last_handshake.is_some() && right.peers[0].last_handshake.is_some());
    assert!(left.peers[0].tx_bytes > 2_000_000 && right.peers[0].rx_bytes > 2_000_000);
    assert_eq!((left.counters.dropped_source, right.counters.dropped_source), (0, 0));
}

#[test]
fn sessions_outlive_a_change_of_their_peer() {
    let Some((mut left, mut right)) = pair("sessions_outlive_a_change_of_their_peer") else { return };
    left.start();
    right.start();
    join(&left, &right);
    right.echo(7000);
    let to = (right.pods()[0], 7000).into();
    let mut stream = left.namespace.run(move || TcpStream::connect_timeout(&to, LIMIT)).expect("connect");
    assert!(exchange(&mut stream, MARKER, LIMIT));
    let capture = Capture::start(&left.namespace, MARKER);
    let mut desired = left.status().observed().expect("a desired state");
    let peer = desired.peers.values_mut().next().expect("a peer");
    peer.allowed_ips.insert("10.99.0.0/16".parse().expect("prefix"));
    peer.endpoint =
        format!("[2001:db8::{}]:{}", right.number, peer.endpoint.port()).parse().expect("endpoint");
    peer.persistent_keepalive = Some(25);
    assert_eq!(left.apply(&desired).changes.len(), 3);
    assert!(left.apply(&desired).changes.is_empty());
    assert!(exchange(&mut stream, MARKER, LIMIT));
    assert_eq!(capture.stop().initiations, 0, "a session was lost");
    // The other side has noticed where packets come from now.
    assert!(right.status().peers[0].endpoint.is_ipv6());
}

#[test]
fn a_source_that_is_not_the_peers_is_dropped() {
    let Some((mut left, mut right)) = pair("a_source_that_is_not_the_peers_is_dropped") else { return };
    left.start();
    right.start();
    join(&left, &right);
    right.echo(7000);
    let to = (right.pods()[0], 7000).into();
    assert!(left.udp(None, to, LIMIT));
    left.namespace.ip("address add 10.66.6.6/32 dev lo");
    assert!(!left.udp(Some([10, 66, 6, 6].into()), to, Duration::from_millis(500)));
    assert!(right.status().counters.dropped_source > 0);
    assert!(left.udp(None, to, LIMIT));
}

#[test]
fn a_killed_tunnel_leaks_nothing_and_the_next_takes_over_its_interface() {
    let test = "a_killed_tunnel_leaks_nothing_and_the_next_takes_over_its_interface";
    let Some((mut left, mut right)) = pair(test) else { return };
    left.start_process();
    right.start();
    join(&left, &right);
    right.echo(7000);
    let to = (right.pods()[0], 7000).into();
    let mut stream = left.namespace.run(move || TcpStream::connect_timeout(&to, LIMIT)).expect("connect");
    assert!(exchange(&mut stream, MARKER, LIMIT));
    let before = left.status();

    let capture = Capture::start(&left.namespace, MARKER);
    left.kill();
    assert!(!left.tcp(to, MARKER, Duration::from_secs(1)));
    let seen = capture.stop();
    assert_eq!((seen.clear, seen.marked, seen.wireguard), (0, 0, 0), "{seen:?}");

    left.start_process();
    let after = left.status();
    assert_eq!(after.ifindex, before.ifindex);
    assert_ne!(after.public_key, before.public_key);
    assert_eq!(after.observed(), None);
    join(&left, &right);
    // The connection of before goes on: neither its route nor its addresses have changed.
    assert!(exchange(&mut stream, MARKER, Duration::from_secs(15)));
}

#[test]
fn a_tunnel_without_peers_drops_and_counts() {
    let Some((mut left, right)) = pair("a_tunnel_without_peers_drops_and_counts") else { return };
    left.start();
    let ifindex = left.status().ifindex;
    left.steer(&left.steering(&right, Some(ifindex)));
    assert!(!left.udp(None, (right.pods()[0], 7000).into(), Duration::from_millis(300)));
    assert!(left.status().counters.dropped_no_peer > 0);
}

#[test]
fn routes_of_the_underlay_may_not_lead_into_the_tunnel() {
    let Some((mut left, mut right)) = pair("routes_of_the_underlay_may_not_lead_into_the_tunnel") else {
        return;
    };
    left.start();
    right.start();
    join(&left, &right);
    right.echo(7000);
    let to = (right.pods()[0], 7000).into();
    assert!(left.udp(None, to, LIMIT));
    // Without a way to the peer, its encrypted packets must not be routed back into the tunnel.
    left.namespace.ip("link set under0 down");
    let before = left.status().counters;
    assert!(!left.udp(None, to, Duration::from_millis(500)));
    let after = left.status().counters;
    assert!(after.dropped_send > before.dropped_send, "{after:?}");
    assert!(after.tx_packets - before.tx_packets < 10, "{after:?}");
}

#[test]
fn a_clean_end_leaves_the_interface_and_a_removal_does_not() {
    let Some((mut left, _right)) = pair("a_clean_end_leaves_the_interface_and_a_removal_does_not") else {
        return;
    };
    left.start();
    left.apply(&Desired::default());
    left.stop().expect("clean end");
    assert!(!left.socket.exists());
    assert!(left.namespace.ip("-br link").contains("authd0"));
    left.start();
    let client = wg_mesh::Userspace::new(&left.socket);
    left.namespace.block_on(move || async move { client.shutdown(true).await }).expect("shutdown");
    left.stop().expect("clean end");
    assert!(!left.namespace.ip("-br link").contains("authd0"));
}

#[test]
fn an_interface_taken_away_ends_the_tunnel_with_words() {
    let Some((mut left, _right)) = pair("an_interface_taken_away_ends_the_tunnel_with_words") else { return };
    left.start();
    left.namespace.ip("link del authd0");
    let deadline = Instant::now() + LIMIT;
    while left.socket.exists() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let error = left.stop().expect_err("no interface").to_string();
    assert!(error.contains("authd0") && error.contains("start the tunnel anew"), "{error}");
}
