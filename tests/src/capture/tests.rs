//! Classes of frames, made by hand.

use etherparse::PacketBuilder;

use super::*;

const NODE1: [u8; 4] = [10, 0, 0, 1];
const NODE2: [u8; 4] = [10, 0, 0, 2];
const POD: [u8; 4] = [10, 244, 1, 10];

fn expected() -> Expected {
    Expected { nodes: vec![NODE1.into(), NODE2.into()], wireguard: 51871, handshake: 4250 }
}

fn udp(from: [u8; 4], to: [u8; 4], source: u16, destination: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(from, to, 64)
        .udp(source, destination)
        .write(&mut frame, b"payload")
        .unwrap();
    frame
}

fn tcp(from: [u8; 4], to: [u8; 4], source: u16, destination: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4(from, to, 64)
        .tcp(source, destination, 1, 1000)
        .write(&mut frame, b"payload")
        .unwrap();
    frame
}

#[test]
fn wireguard_is_between_nodes_with_its_port_at_both_ends() {
    let expected = expected();
    assert_eq!(classify(&udp(NODE1, NODE2, 51871, 51871), &expected), Class::WireGuard);
    assert_eq!(classify(&udp(NODE1, NODE2, 40000, 51871), &expected), Class::Other);
    assert_eq!(classify(&udp(POD, NODE2, 51871, 51871), &expected), Class::Other);
}

#[test]
fn handshakes_have_their_port_at_one_end() {
    let expected = expected();
    assert_eq!(classify(&tcp(NODE1, NODE2, 40000, 4250), &expected), Class::Handshake);
    assert_eq!(classify(&tcp(NODE2, NODE1, 4250, 40000), &expected), Class::Handshake);
    assert_eq!(classify(&tcp(POD, NODE2, 40000, 4250), &expected), Class::Other);
    assert_eq!(classify(&tcp(NODE1, NODE2, 40000, 80), &expected), Class::Other);
}

#[test]
fn tunnelled_and_broken_frames_are_other() {
    let expected = expected();
    assert_eq!(classify(&[], &expected), Class::Other);
    let mut cut = udp(NODE1, NODE2, 51871, 51871);
    cut.truncate(30);
    assert_eq!(classify(&cut, &expected), Class::Other);
}

#[test]
fn neighbour_discovery_is_the_links_own() {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6([1; 16], [2; 16], 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut frame, &[0; 16])
        .unwrap();
    assert_eq!(classify(&frame, &expected()), Class::Link);
}

#[test]
fn others_are_told_in_words_and_found_by_content() {
    let frame = |bytes| Frame { time: SystemTime::UNIX_EPOCH, bytes };
    let frames = Frames(vec![frame(tcp(POD, NODE2, 40000, 80)), frame(udp(NODE1, NODE2, 51871, 51871))]);
    let counts = frames.count(&expected());
    assert_eq!((counts.wireguard, counts.other), (1, 1));
    assert_eq!(
        counts.to_string(),
        "1 WireGuard, 0 handshake, 0 link, 1 other (10.244.1.10 > 10.0.0.2 TCP 40000 > 80, 61 bytes)"
    );
    assert_eq!(frames.containing(b"payload"), 2);
    assert_eq!(frames.containing(b"Ship landed"), 0);
}
