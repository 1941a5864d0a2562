//! Devices put together in memory.

use super::*;

const DATA_HEADER: usize = 16;

#[derive(Default)]
struct Recorder {
    network: Vec<(Vec<u8>, SocketAddr)>,
    interface: Vec<Vec<u8>>,
    is_full: bool,
}

impl Wire for Recorder {
    fn to_network(&mut self, datagram: &[u8], to: SocketAddr) -> bool {
        if !self.is_full {
            self.network.push((datagram.to_vec(), to));
        }
        !self.is_full
    }

    fn to_interface(&mut self, packet: &[u8]) -> bool {
        if !self.is_full {
            self.interface.push(packet.to_vec());
        }
        !self.is_full
    }
}

/// A device, what has left it, and where it is.
struct End {
    device: Device,
    out: Recorder,
    at: SocketAddr,
}

impl End {
    fn new(number: u8) -> Self {
        let at = ([192, 0, 2, number], 51_871).into();
        Self { device: Device::new(PrivateKey::generate()), out: Recorder::default(), at }
    }

    fn peer(&self, nets: &[&str]) -> Peer {
        Peer {
            public_key: self.device.public_key(),
            endpoint: self.at,
            allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
            persistent_keepalive: None,
            preshared_key: None,
        }
    }

    fn apply(&mut self, peers: impl IntoIterator<Item = Peer>) -> Vec<Change> {
        let peers = peers.into_iter().map(|peer| (peer.public_key, peer)).collect();
        let desired = Desired { peers, ..Desired::default() };
        assert_eq!(desired.check(Some(&self.device.public_key())), Ok(()));
        self.device.apply(&desired)
    }

    fn send(&mut self, packet: &[u8]) {
        let mut buffer = vec![0xaa; BUFFER];
        buffer[..packet.len()].copy_from_slice(packet);
        self.device.take_packet(&mut buffer, packet.len(), Instant::now(), &mut self.out);
    }

    fn receive(&mut self, datagram: &[u8], from: SocketAddr) {
        self.device.take_datagram(datagram, from, Instant::now(), &mut self.out);
    }

    fn counters(&self) -> Counters {
        self.device.counters
    }

    fn status(&self) -> Status {
        self.device.status("test0".into(), 1, Instant::now())
    }
}

/// Carries datagrams to and fro until all is quiet. Returns how many there were.
fn settle(ends: &mut [&mut End]) -> usize {
    let mut carried = 0;
    loop {
        let mut moving = Vec::new();
        for end in &mut *ends {
            let from = end.at;
            moving.extend(end.out.network.drain(..).map(|(datagram, to)| (datagram, from, to)));
        }
        if moving.is_empty() {
            return carried;
        }
        carried += moving.len();
        for (datagram, from, to) in moving {
            if let Some(end) = ends.iter_mut().find(|end| end.at == to) {
                end.receive(&datagram, from);
            }
        }
    }
}

fn pair() -> (End, End) {
    let (mut left, mut right) = (End::new(1), End::new(2));
    left.apply([right.peer(&["10.2.0.0/16", "fd00:2::/64"])]);
    right.apply([left.peer(&["10.1.0.0/16", "fd00:1::/64"])]);
    (left, right)
}

fn joined() -> (End, End) {
    let (mut left, mut right) = pair();
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    settle(&mut [&mut left, &mut right]);
    assert_eq!(right.out.interface.drain(..).count(), 1);
    (left, right)
}

fn v4(source: [u8; 4], destination: [u8; 4], length: u16) -> Vec<u8> {
    let mut packet = vec![0; length.into()];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[9] = 17;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet
}

#[test]
fn what_waited_for_the_handshake_arrives_in_order() {
    let (mut left, mut right) = pair();
    let packets: Vec<_> = (0..10).map(|number| v4([10, 1, 0, number], [10, 2, 0, 1], 33)).collect();
    packets.iter().for_each(|packet| left.send(packet));
    assert_eq!(left.out.network.len(), 1, "one initiation for all");
    settle(&mut [&mut left, &mut right]);
    assert_eq!(right.out.interface, packets);
    assert_eq!((left.counters().tx_packets, right.counters().rx_packets), (10, 10));
    assert_eq!((left.status().peers[0].tx_bytes, right.status().peers[0].rx_bytes), (330, 330));
    assert!(
        left.status().peers[0].last_handshake.is_some() && right.status().peers[0].last_handshake.is_some()
    );
}

#[test]
fn the_queue_is_bounded_and_keeps_the_newest() {
    let (mut left, mut right) = pair();
    (0..100).for_each(|number| left.send(&v4([10, 1, 0, number], [10, 2, 0, 1], 33)));
    assert_eq!(left.counters().dropped_queue_full, 36);
    settle(&mut [&mut left, &mut right]);
    assert_eq!(right.out.interface.len(), 64);
    assert_eq!(right.out.interface.last(), Some(&v4([10, 1, 0, 99], [10, 2, 0, 1], 33)));
}

#[test]
fn lengths_on_the_wire_tell_only_multiples_of_16() {
    let (mut left, mut right) = joined();
    for (length, sealed) in [(20, 32), (32, 32), (33, 48), (1409, 1420), (1420, 1420)] {
        let packet = v4([10, 1, 0, 1], [10, 2, 0, 1], length);
        left.send(&packet);
        assert_eq!(left.out.network[0].0.len(), DATA_HEADER + sealed + 16, "{length}");
        settle(&mut [&mut left, &mut right]);
        assert_eq!(right.out.interface.pop(), Some(packet));
    }
}

#[test]
fn what_has_no_peer_or_is_no_packet_is_dropped() {
    let (mut left, _right) = joined();
    left.send(&v4([10, 1, 0, 1], [10, 9, 0, 1], 64));
    assert_eq!(left.counters().dropped_no_peer, 1);
    left.send(b"no packet");
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 1421));
    assert_eq!(left.counters().dropped_malformed, 2);
    assert!(left.out.network.is_empty());
}

#[test]
fn a_peer_may_only_be_who_it_is() {
    let (mut left, mut right) = joined();
    let other = End::new(3);
    right.apply([left.peer(&["10.1.0.0/16"]), other.peer(&["10.3.0.0/16"])]);
    for source in [[10, 3, 0, 1], [10, 2, 0, 1], [192, 0, 2, 1]] {
        left.send(&v4(source, [10, 2, 0, 1], 64));
        settle(&mut [&mut left, &mut right]);
    }
    assert!(right.out.interface.is_empty());
    assert_eq!(right.counters().dropped_source, 3);
}

#[test]
fn replays_and_forgeries_are_refused() {
    let (mut left, mut right) = joined();
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    let (datagram, _) = left.out.network.remove(0);
    let refused = |right: &mut End, datagram: &[u8]| {
        let before = right.counters().dropped_refused;
        right.receive(datagram, ([203, 0, 113, 9], 9).into());
        right.counters().dropped_refused - before
    };
    let mut forged = datagram.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&mut right, &forged), 1);
    assert_eq!(refused(&mut right, &datagram), 0);
    right.device.sessions.values_mut().for_each(|session| session.endpoint = left.at);
    assert_eq!(refused(&mut right, &datagram), 1);
    assert_eq!(right.status().peers[0].endpoint, left.at, "a replay moves no endpoint");
    assert_eq!(right.out.interface.len(), 1);
    for nonsense in [&[][..], &[4, 0, 0, 0], &[1; 148], &[0; 2000], &[4, 0, 0, 0, 1, 2, 3, 4, 0, 0]] {
        assert_eq!(refused(&mut right, nonsense), 1);
    }
}

#[test]
fn strangers_get_no_answer() {
    let (_left, mut right) = joined();
    let mut stranger = End::new(9);
    stranger.apply([right.peer(&["10.2.0.0/16"])]);
    stranger.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    let (initiation, _) = stranger.out.network.remove(0);
    right.receive(&initiation, stranger.at);
    assert!(right.out.network.is_empty());
    assert_eq!(right.counters().dropped_refused, 1);
}

#[test]
fn a_flood_of_one_address_is_not_answered_for_long() {
    let (mut left, mut right) = pair();
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    let (initiation, _) = left.out.network.remove(0);
    let began = Instant::now();
    (0..50).for_each(|_| right.receive(&initiation, left.at));
    assert_eq!(right.out.network.len(), 1, "the same initiation is answered once");
    // But for a burst, and twenty a second.
    let admitted = 5 + u64::try_from(began.elapsed().as_millis() / 50).unwrap();
    assert!(right.counters().dropped_flood + admitted >= 50, "{admitted}");
}

#[test]
fn under_load_addresses_must_be_proven() {
    let (mut left, mut right) = pair();
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    let (initiation, _) = left.out.network.remove(0);
    for number in 0..=u8::MAX {
        right.receive(&initiation, ([10, 0, 0, number], 1).into());
    }
    let is_cookie = |(datagram, _): &(Vec<u8>, SocketAddr)| {
        packet::message(datagram).is_some_and(|(kind, _)| kind == Kind::Cookie)
    };
    assert!(right.out.network.iter().any(is_cookie));
    assert_ne!(right.status().peers[0].endpoint, SocketAddr::from(([10, 0, 0, 255], 1)));
}

#[test]
fn peers_roam_and_are_followed() {
    let (mut left, mut right) = joined();
    left.at = ([198, 51, 100, 7], 4000).into();
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    settle(&mut [&mut left, &mut right]);
    assert_eq!(right.status().peers[0].endpoint, left.at);
    right.send(&v4([10, 2, 0, 1], [10, 1, 0, 1], 64));
    settle(&mut [&mut left, &mut right]);
    assert_eq!(left.out.interface.len(), 1);
    // The same desired state again does not undo it.
    let configured = right.status().peers[0].configured_endpoint;
    let mut peer = left.peer(&["10.1.0.0/16", "fd00:1::/64"]);
    peer.endpoint = configured;
    assert!(right.apply([peer]).is_empty());
    assert_eq!(right.status().peers[0].endpoint, left.at);
}

#[test]
fn changes_of_one_peer_disturb_nobody() {
    let (mut left, mut right) = joined();
    let other = End::new(3);
    left.apply([right.peer(&["10.2.0.0/24"]), other.peer(&["10.3.0.0/16"])]);
    left.apply([right.peer(&["10.2.0.0/16", "10.20.0.0/16"])]);
    left.send(&v4([10, 1, 0, 1], [10, 20, 0, 1], 64));
    assert_eq!(left.out.network[0].0[0], 4, "data, not a handshake");
    settle(&mut [&mut left, &mut right]);
    assert_eq!(right.out.interface.len(), 1);
    left.send(&v4([10, 1, 0, 1], [10, 3, 0, 1], 64));
    assert_eq!(left.counters().dropped_no_peer, 1, "the removed peer's addresses are gone");
}

#[test]
fn a_removed_peer_is_a_stranger() {
    let (mut left, mut right) = joined();
    right.apply([]);
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    settle(&mut [&mut left, &mut right]);
    assert!(right.out.interface.is_empty());
    assert!(right.status().peers.is_empty());
    assert_eq!(right.counters().dropped_refused, 1);
}

#[test]
fn keepalives_begin_a_session_and_come_when_nothing_else_does() {
    let (mut left, mut right) = (End::new(1), End::new(2));
    let keepalive = Peer { persistent_keepalive: Some(10), ..right.peer(&["10.2.0.0/16"]) };
    left.apply([keepalive]);
    right.apply([left.peer(&["10.1.0.0/16"])]);
    let start = Instant::now();
    left.device.tick(start, &mut left.out);
    assert!(settle(&mut [&mut left, &mut right]) > 0);
    assert!(left.status().peers[0].last_handshake.is_some());
    left.device.tick(start + Duration::from_secs(9), &mut left.out);
    assert_eq!(left.out.network.len(), 0);
    left.device.tick(start + Duration::from_secs(11), &mut left.out);
    assert_eq!(left.out.network.len(), 1);
    left.device.tick(start + Duration::from_secs(12), &mut left.out);
    assert_eq!(left.out.network.len(), 1);
}

#[test]
fn our_own_datagrams_do_not_go_round_in_circles() {
    let (mut left, right) = (End::new(1), End::new(2));
    left.apply([right.peer(&["192.0.2.2/32"])]);
    let mut packet = v4([192, 0, 2, 1], [192, 0, 2, 2], 64);
    packet[20..22].copy_from_slice(&51_871_u16.to_be_bytes());
    left.send(&packet);
    assert_eq!(left.counters().dropped_loop, 1);
    packet[20] = 0;
    left.send(&packet);
    assert_eq!(left.counters().dropped_loop, 1);
    assert_eq!(left.out.network.len(), 1);
}

#[test]
fn full_sockets_drop_and_count() {
    let (mut left, mut right) = joined();
    left.out.is_full = true;
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    assert_eq!(left.counters().dropped_send, 1);
    right.send(&v4([10, 2, 0, 1], [10, 1, 0, 1], 64));
    settle(&mut [&mut left, &mut right]);
    assert_eq!(left.counters().dropped_interface, 1);
}

#[test]
fn addresses_swap_between_peers() {
    let (mut left, b, c) = (End::new(1), End::new(2), End::new(3));
    left.apply([b.peer(&["10.2.0.0/16"]), c.peer(&["10.3.0.0/16"])]);
    left.apply([b.peer(&["10.3.0.0/16"]), c.peer(&["10.2.0.0/16"])]);
    for (destination, endpoint) in [([10, 3, 0, 1], b.at), ([10, 2, 0, 1], c.at)] {
        left.send(&v4([10, 1, 0, 1], destination, 64));
        assert_eq!(left.out.network.pop().map(|(_, to)| to), Some(endpoint));
    }
}

fn preshared(byte: u8) -> PresharedKey {
    PresharedKey::new([byte; 32].into())
}

/// Gives `end` its peer again, with this pre-shared key.
fn give(end: &mut End, byte: u8) {
    let status = end.status();
    let mut desired = status.observed().unwrap();
    desired.peers.values_mut().for_each(|peer| peer.preshared_key = Some(preshared(byte)));
    end.device.apply(&desired);
}

fn tick(ends: &mut [&mut End], seconds: u64) {
    let now = Instant::now() + Duration::from_secs(seconds);
    for end in &mut *ends {
        end.device.tick(now, &mut end.out);
    }
    settle(ends);
}

fn rekeying(end: &End) -> bool {
    end.status().peers[0].rekeying.is_some()
}

/// Sends both ways and expects both to arrive.
fn talk(left: &mut End, right: &mut End) {
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    right.send(&v4([10, 2, 0, 1], [10, 1, 0, 1], 64));
    settle(&mut [left, right]);
    assert_eq!((left.out.interface.drain(..).count(), right.out.interface.drain(..).count()), (1, 1));
}

#[test]
fn a_preshared_key_comes_and_changes_without_losing_a_packet() {
    let (mut left, mut right) = joined();
    for byte in 1..6 {
        give(&mut left, byte);
        talk(&mut left, &mut right);
        assert!(rekeying(&left));
        tick(&mut [&mut left, &mut right], 0);
        talk(&mut left, &mut right);
        give(&mut right, byte);
        talk(&mut left, &mut right);
        tick(&mut [&mut left, &mut right], 7);
        talk(&mut left, &mut right);
        assert!(!rekeying(&left) && !rekeying(&right), "round {byte}");
        assert_eq!(left.status().peers[0].preshared_key, Some(preshared(byte)));
        tick(&mut [&mut left, &mut right], 30);
        talk(&mut left, &mut right);
    }
    tick(&mut [&mut left, &mut right], 60);
    assert_eq!(left.device.by_index.len(), 1, "{:?}", left.device.by_index);
}

#[test]
fn ends_with_different_keys_keep_what_they_have_and_say_so_until_that_is_mended() {
    let (mut left, mut right) = joined();
    give(&mut left, 1);
    give(&mut right, 2);
    for seconds in [0, 7, 14, 21] {
        tick(&mut [&mut left, &mut right], seconds);
        talk(&mut left, &mut right);
        assert!(rekeying(&left) && rekeying(&right));
    }
    give(&mut left, 3);
    give(&mut right, 3);
    tick(&mut [&mut left, &mut right], 0);
    tick(&mut [&mut left, &mut right], 7);
    talk(&mut left, &mut right);
    assert!(!rekeying(&left) && !rekeying(&right));
}

#[test]
fn without_the_key_there_is_no_session() {
    let (mut left, mut right) = pair();
    give(&mut left, 1);
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    settle(&mut [&mut left, &mut right]);
    assert!(right.out.interface.is_empty());
    assert_eq!(right.status().peers[0].last_handshake, None);
    // Nothing was established, so the key is simply another one now.
    give(&mut right, 1);
    right.send(&v4([10, 2, 0, 1], [10, 1, 0, 1], 64));
    settle(&mut [&mut left, &mut right]);
    talk_once(&mut left, &mut right);
}

fn talk_once(left: &mut End, right: &mut End) {
    left.out.interface.clear();
    right.out.interface.clear();
    talk(left, right);
}

/// A fresh state has seen no timestamp yet, so an old initiation passes there once more.
#[test]
fn a_kept_initiation_moves_no_endpoint_after_a_change_of_keys() {
    let (mut left, mut right) = pair();
    left.send(&v4([10, 1, 0, 1], [10, 2, 0, 1], 64));
    let kept = left.out.network[0].0.clone();
    settle(&mut [&mut left, &mut right]);
    give(&mut right, 1);
    let before = right.status().peers[0].endpoint;
    right.receive(&kept, "198.51.100.9:7".parse().unwrap());
    assert_eq!(right.status().peers[0].endpoint, before);
    right.out.interface.clear();
    talk(&mut left, &mut right);
}
