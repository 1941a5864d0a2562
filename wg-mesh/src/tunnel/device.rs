//! The device without its sockets: packets and time in, packets out. One owner, no lock, no I/O of its own.
//!
//! What leaves goes through [`Wire`], so tests put two devices together in memory. Limits of the protocol
//! library that remain: a replay window of 1024 packets, session keys that are not wiped, no batching.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::noise::{Packet, TunnResult, handshake::parse_handshake_anon, rate_limiter::RateLimiter};

use super::{
    allowed_ips::AllowedIps,
    flood::Flood,
    packet::{self, Kind},
    peer::{Session, message_length},
};
use crate::{
    BackendKind, Change, Counters, DEFAULT_MTU, Desired, Peer, PresharedKey, PrivateKey, PublicKey, Status,
    plan,
};

/// How often [`Device::tick`] wants to be called.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// Largest datagram and inner packet, and room for padding and headers.
pub(super) const BUFFER: usize = 65_536 + packet::OVERHEAD + 16;
/// Handshake messages a second above which senders must prove their address. Each is counted twice: when
/// its sender is looked up and in the peer's own state machine.
const LOAD_LIMIT: u64 = 200;
const SWEEP: Duration = Duration::from_secs(10);

/// Where packets leave the device. False if they could not.
pub(super) trait Wire {
    fn to_network(&mut self, datagram: &[u8], to: SocketAddr) -> bool;
    fn to_interface(&mut self, packet: &[u8]) -> bool;
}

/// State of the device.
pub(super) struct Device {
    key: PrivateKey,
    public_key: PublicKey,
    limiter: Arc<RateLimiter>,
    sessions: HashMap<u32, Session>,
    by_key: BTreeMap<PublicKey, u32>,
    /// Peers by the indices that messages to us carry: a peer has several while its pre-shared key changes.
    by_index: HashMap<u32, u32>,
    allowed: AllowedIps<u32>,
    listen_port: Option<u16>,
    mtu: u16,
    counters: Counters,
    flood: Flood,
    swept: Option<Instant>,
    scratch: Box<[u8]>,
}

impl Device {
    pub(super) fn new(key: PrivateKey) -> Self {
        let public_key = key.public_key();
        Self {
            limiter: Arc::new(RateLimiter::new(&public_key.to_x25519(), LOAD_LIMIT)),
            key,
            public_key,
            sessions: HashMap::new(),
            by_key: BTreeMap::new(),
            by_index: HashMap::new(),
            allowed: AllowedIps::new(),
            listen_port: None,
            mtu: DEFAULT_MTU,
            counters: Counters::default(),
            flood: Flood::default(),
            swept: None,
            scratch: vec![0; BUFFER].into_boxed_slice(),
        }
    }

    pub(super) const fn public_key(&self) -> PublicKey {
        self.public_key
    }

    pub(super) const fn listen_port(&self) -> Option<u16> {
        self.listen_port
    }

    pub(super) const fn mtu(&self) -> u16 {
        self.mtu
    }

    pub(super) const fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
    }

    /// Takes an IP packet from the interface: the first `length` bytes of `buffer`, which has room behind.
    pub(super) fn take_packet(
        &mut self,
        buffer: &mut [u8],
        length: usize,
        now: Instant,
        wire: &mut impl Wire,
    ) {
        let mtu = usize::from(self.mtu);
        let Some(packet) = buffer.get(..length).filter(|packet| packet.len() <= mtu) else {
            self.counters.dropped_malformed += 1;
            return;
        };
        let Some(destination) = packet::destination(packet) else {
            self.counters.dropped_malformed += 1;
            return;
        };
        let owner = self.allowed.owner(destination);
        let Some(session) = owner.and_then(|index| self.sessions.get_mut(&index)) else {
            self.counters.dropped_no_peer += 1;
            return;
        };
        if destination == session.endpoint.ip() && packet::udp_source_port(packet) == self.listen_port {
            self.counters.dropped_loop += 1;
            return;
        }
        if session.is_established() {
            if let Some(plaintext) = buffer.get_mut(..packet::padded_length(length, mtu)) {
                plaintext.get_mut(length..).unwrap_or_default().fill(0);
                send_data(session, plaintext, length, &mut self.scratch, now, wire, &mut self.counters);
            }
            return;
        }
        self.counters.dropped_queue_full += session.enqueue(packet);
        if let Some(length) = session.initiate(&mut self.scratch) {
            send(session, self.scratch.get(..length), now, wire, &mut self.counters);
        }
    }

    /// Takes a datagram from the underlay.
    pub(super) fn take_datagram(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
        wire: &mut impl Wire,
    ) {
        let Some((kind, receiver)) = packet::message(datagram) else {
            self.counters.dropped_refused += 1;
            return;
        };
        let index = match kind {
            Kind::Initiation => self.initiator(datagram, from, now, wire),
            Kind::Response | Kind::Cookie | Kind::Data => {
                let found = self.by_index.get(&(receiver >> 8)).copied();
                self.counters.dropped_refused += u64::from(found.is_none());
                found
            }
        };
        // Whoever `initiator` turned away is counted there.
        let Some(index) = index else { return };
        let receiver = (kind != Kind::Initiation).then_some(receiver);
        if self.open(index, kind, receiver, datagram, from, wire) {
            self.authenticated(index, receiver, from, now);
            self.flush(index, now, wire);
        }
    }

    /// Hands a message to its peer's state machine and passes on what comes out. Returns whether it is
    /// certain that the peer has sent it.
    fn open(
        &mut self,
        index: u32,
        kind: Kind,
        receiver: Option<u32>,
        datagram: &[u8],
        from: SocketAddr,
        wire: &mut impl Wire,
    ) -> bool {
        let counters = &mut self.counters;
        let Some(session) = self.sessions.get_mut(&index) else {
            counters.dropped_refused += 1;
            return false;
        };
        let peer = session.public_key;
        let Some(tunn) = session.tunn(receiver.map(|receiver| receiver >> 8)) else {
            counters.dropped_refused += 1;
            return false;
        };
        let (packet, source) = match tunn.decapsulate(Some(from.ip()), datagram, &mut self.scratch) {
            TunnResult::Done => return kind == Kind::Data,
            TunnResult::Err(error) => {
                tracing::debug!(%peer, %from, ?error, "refused a message");
                counters.dropped_refused += 1;
                return false;
            }
            TunnResult::WriteToNetwork(answer) => {
                counters.dropped_send += u64::from(!wire.to_network(answer, from));
                // A cookie is what senders get whose address is not proven yet.
                return packet::message(answer).is_some_and(|(kind, _)| kind != Kind::Cookie);
            }
            TunnResult::WriteToTunnelV4(packet, source) => (packet, IpAddr::from(source)),
            TunnResult::WriteToTunnelV6(packet, source) => (packet, IpAddr::from(source)),
        };
        if self.allowed.owner(source) != Some(index) {
            counters.dropped_source += 1;
        } else if wire.to_interface(packet) {
            session.rx_bytes += packet.len() as u64;
            counters.rx_packets += 1;
        } else {
            counters.dropped_interface += 1;
        }
        true
    }

    /// Follows a peer to where it was heard from, and notes completed handshakes. An initiation moves nothing:
    /// a state that has had no handshake yet can't tell an old one that somebody has kept.
    fn authenticated(&mut self, index: u32, receiver: Option<u32>, from: SocketAddr, now: Instant) {
        let Some(session) = self.sessions.get_mut(&index) else { return };
        let Some(receiver) = receiver else { return };
        if session.endpoint != from {
            tracing::info!(peer = %session.public_key, old = %session.endpoint, new = %from, "peer roamed");
            session.endpoint = from;
        }
        session.confirm(receiver, now);
        session.promote(now);
    }

    /// The peer that an initiation comes from. Costs a Diffie-Hellman, so floods end before it.
    fn initiator(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
        wire: &mut impl Wire,
    ) -> Option<u32> {
        let verified = self.limiter.verify_packet(Some(from.ip()), datagram, &mut self.scratch);
        let initiation = match verified {
            Ok(Packet::HandshakeInit(initiation)) => initiation,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                wire.to_network(cookie, from);
                self.counters.dropped_flood += 1;
                return None;
            }
            Ok(_) | Err(_) => {
                self.counters.dropped_refused += 1;
                return None;
            }
        };
        if !self.flood.admits(from.ip(), now) {
            self.counters.dropped_flood += 1;
            return None;
        }
        let half = parse_handshake_anon(self.key.secret(), &self.public_key.to_x25519(), &initiation);
        let key = half.ok().and_then(|half| PublicKey::from_bytes(half.peer_static_public).ok());
        let index = key.and_then(|key| self.by_key.get(&key)).copied();
        if index.is_none() {
            tracing::debug!(%from, "refused a handshake of a stranger");
            self.counters.dropped_refused += 1;
        }
        index
    }

    /// Sends what waited for the session that now is, the library's own empty packets included.
    fn flush(&mut self, index: u32, now: Instant, wire: &mut impl Wire) {
        let mtu = usize::from(self.mtu);
        let Some(session) = self.sessions.get_mut(&index) else { return };
        while let Some(length) = message_length(&session.sender().decapsulate(None, &[], &mut self.scratch)) {
            send(session, self.scratch.get(..length), now, wire, &mut self.counters);
        }
        while session.is_established() {
            let Some(mut packet) = session.dequeue() else { return };
            let length = packet.len();
            packet.resize(packet::padded_length(length, mtu), 0);
            send_data(session, &packet, length, &mut self.scratch, now, wire, &mut self.counters);
        }
    }

    /// Runs every peer's timers.
    pub(super) fn tick(&mut self, now: Instant, wire: &mut impl Wire) {
        self.limiter.reset_count();
        if self.swept.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP) {
            self.flood.sweep(now);
            self.swept = Some(now);
            let sessions = &self.sessions;
            let stands = |index: u32, peer: &u32| {
                sessions.get(peer).is_some_and(|session| session.indices().any(|one| one == index))
            };
            self.by_index.retain(|index, peer| stands(*index, peer));
        }
        for session in self.sessions.values_mut() {
            if let Some(length) = session.timers(now, &mut self.scratch) {
                send(session, self.scratch.get(..length), now, wire, &mut self.counters);
            } else if session.has_given_up() {
                self.counters.dropped_queue_full += session.drop_queue();
            }
            if let Some(length) = session.next_timers(now, &mut self.scratch) {
                send(session, self.scratch.get(..length), now, wire, &mut self.counters);
            }
        }
    }

    /// Becomes what is desired, which must have been checked. Peers that stay keep their sessions.
    pub(super) fn apply(&mut self, desired: &Desired) -> Vec<Change> {
        let blank = Desired { listen_port: 0, mtu: self.mtu, peers: BTreeMap::new() };
        let now = Instant::now();
        let observed = self.status(String::new(), 0, now).observed().unwrap_or(blank);
        let changes = plan(desired, &observed);
        changes.iter().for_each(|change| self.change(change, now));
        changes
    }

    fn change(&mut self, change: &Change, now: Instant) {
        match change {
            Change::RemovePeer { public_key } => self.remove(public_key),
            Change::ListenPort { port } => self.listen_port = Some(*port),
            Change::Mtu { mtu } => self.mtu = *mtu,
            Change::AddPeer { peer } => self.add(peer),
            Change::PresharedKey { public_key, preshared_key } => {
                self.rekey(public_key, preshared_key.clone(), now);
            }
            Change::AllowedIps { public_key, allowed_ips } => {
                let Some((index, session)) = find(&self.by_key, &mut self.sessions, public_key) else {
                    return;
                };
                session.allowed_ips.difference(allowed_ips).for_each(|net| self.allowed.remove(*net));
                allowed_ips.iter().for_each(|net| self.allowed.insert(*net, index));
                session.allowed_ips.clone_from(allowed_ips);
            }
            Change::Endpoint { public_key, endpoint } => {
                let Some((_, session)) = find(&self.by_key, &mut self.sessions, public_key) else { return };
                session.endpoint = canonical(*endpoint);
                session.configured_endpoint = *endpoint;
            }
            Change::PersistentKeepalive { public_key, seconds } => {
                let Some((_, session)) = find(&self.by_key, &mut self.sessions, public_key) else { return };
                session.persistent_keepalive = *seconds;
            }
        }
    }

    fn unused_index(&self) -> u32 {
        loop {
            let index = rand::random::<u32>() >> 8;
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }

    fn rekey(&mut self, public_key: &PublicKey, preshared_key: Option<PresharedKey>, now: Instant) {
        let new = self.unused_index();
        let Some((index, session)) = find(&self.by_key, &mut self.sessions, public_key) else { return };
        session.rekey(preshared_key, &self.key, new, &self.limiter, now);
        self.by_index.insert(new, index);
    }

    fn add(&mut self, peer: &Peer) {
        let index = self.unused_index();
        let mut session = Session::new(peer, &self.key, index, &self.limiter);
        session.endpoint = canonical(peer.endpoint);
        peer.allowed_ips.iter().for_each(|net| self.allowed.insert(*net, index));
        self.by_key.insert(peer.public_key, index);
        self.sessions.insert(index, session);
        self.by_index.insert(index, index);
    }

    fn remove(&mut self, public_key: &PublicKey) {
        let session = self.by_key.remove(public_key).and_then(|index| self.sessions.remove(&index));
        for index in session.iter().flat_map(Session::indices) {
            self.by_index.remove(&index);
        }
        session.iter().flat_map(|session| &session.allowed_ips).for_each(|net| self.allowed.remove(*net));
    }

    pub(super) fn status(&self, interface: String, ifindex: u32, now: Instant) -> Status {
        let in_order = self.by_key.values().filter_map(|index| self.sessions.get(index));
        Status {
            public_key: self.public_key,
            interface,
            ifindex,
            listen_port: self.listen_port,
            mtu: self.mtu,
            peers: in_order.map(|session| session.status(now)).collect(),
            backend: BackendKind::Userspace,
            counters: self.counters,
        }
    }
}

/// An IPv4 address in IPv6 clothes, as a dual-stack socket gives it, would not compare equal.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

fn find<'a>(
    by_key: &BTreeMap<PublicKey, u32>,
    sessions: &'a mut HashMap<u32, Session>,
    key: &PublicKey,
) -> Option<(u32, &'a mut Session)> {
    let index = by_key.get(key)?;
    Some((*index, sessions.get_mut(index)?))
}

fn send(
    session: &mut Session,
    message: Option<&[u8]>,
    now: Instant,
    wire: &mut impl Wire,
    counters: &mut Counters,
) -> bool {
    let Some(message) = message else { return false };
    session.sent(now);
    let sent = wire.to_network(message, session.endpoint);
    counters.dropped_send += u64::from(!sent);
    sent
}

fn send_data(
    session: &mut Session,
    plaintext: &[u8],
    length: usize,
    scratch: &mut [u8],
    now: Instant,
    wire: &mut impl Wire,
    counters: &mut Counters,
) {
    let Some(sealed) = message_length(&session.sender().encapsulate(plaintext, scratch)) else { return };
    if send(session, scratch.get(..sealed), now, wire, counters) {
        session.tx_bytes += length as u64;
        counters.tx_packets += 1;
    }
}

#[cfg(test)]
mod tests;
