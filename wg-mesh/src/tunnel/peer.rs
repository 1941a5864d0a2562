//! One peer's end of the protocol: its state machine, its waiting packets, its figures.
//!
//! The library's own queue and persistent keepalive are not used: the queue holds 256 packets a peer, and
//! the keepalive cannot be changed and dies for good when a peer was away for long.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::noise::{Tunn, TunnResult, rate_limiter::RateLimiter};
use ipnet::IpNet;

use crate::{Peer, PeerStatus, PrivateKey, PublicKey};

/// Packets that wait for a handshake; the oldest goes first.
const QUEUE: usize = 64;

/// Runtime state of a peer.
pub(super) struct Session {
    pub(super) public_key: PublicKey,
    pub(super) tunn: Tunn,
    pub(super) endpoint: SocketAddr,
    pub(super) configured_endpoint: SocketAddr,
    pub(super) allowed_ips: BTreeSet<IpNet>,
    pub(super) persistent_keepalive: Option<u16>,
    queue: VecDeque<Vec<u8>>,
    last_sent: Option<Instant>,
    /// The session index under which data last arrived: a new one means a completed handshake.
    confirmed: Option<u32>,
    last_handshake: Option<Instant>,
    pub(super) tx_bytes: u64,
    pub(super) rx_bytes: u64,
}

impl Session {
    /// `index` is what its messages to us will carry in their upper 24 bits.
    pub(super) fn new(peer: &Peer, own: &PrivateKey, index: u32, limiter: &Arc<RateLimiter>) -> Self {
        let (secret, public) = (own.secret().clone(), peer.public_key.to_x25519());
        Self {
            public_key: peer.public_key,
            tunn: Tunn::new(secret, public, None, None, index, Some(Arc::clone(limiter))),
            endpoint: peer.endpoint,
            configured_endpoint: peer.endpoint,
            allowed_ips: peer.allowed_ips.clone(),
            persistent_keepalive: peer.persistent_keepalive,
            queue: VecDeque::new(),
            last_sent: None,
            confirmed: None,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
        }
    }

    /// Whether data can be sent right now.
    pub(super) fn is_established(&self) -> bool {
        // The library gives this for exactly the session that it would encrypt with.
        self.tunn.time_since_last_handshake().is_some()
    }

    /// Keeps a packet for the next session. Returns how many had to go for it.
    pub(super) fn enqueue(&mut self, packet: &[u8]) -> u64 {
        let surplus = (self.queue.len() + 1).saturating_sub(QUEUE);
        self.queue.drain(..surplus);
        self.queue.push_back(packet.to_vec());
        surplus as u64
    }

    pub(super) fn dequeue(&mut self) -> Option<Vec<u8>> {
        self.queue.pop_front()
    }

    /// Gives up on what waits. Returns how many packets that were.
    pub(super) fn drop_queue(&mut self) -> u64 {
        let dropped = self.queue.len() as u64;
        self.queue.clear();
        dropped
    }

    pub(super) const fn sent(&mut self, now: Instant) {
        self.last_sent = Some(now);
    }

    /// Notes an authenticated message under a session of ours.
    pub(super) fn confirm(&mut self, index: u32, now: Instant) {
        if self.confirmed != Some(index) {
            self.confirmed = Some(index);
            self.last_handshake = Some(now);
        }
    }

    /// Makes the message that the peer's timers ask for, if any, and returns its length in `buffer`.
    pub(super) fn timers(&mut self, now: Instant, buffer: &mut [u8]) -> Option<usize> {
        message_length(&self.tunn.update_timers(buffer)).or_else(|| self.keepalive(now, buffer))
    }

    /// Begins a handshake unless one is under way.
    pub(super) fn initiate(&mut self, buffer: &mut [u8]) -> Option<usize> {
        message_length(&self.tunn.format_handshake_initiation(buffer, false))
    }

    /// Whether the last attempts at a handshake were given up.
    pub(super) fn has_given_up(&self) -> bool {
        self.tunn.is_expired()
    }

    fn keepalive(&mut self, now: Instant, buffer: &mut [u8]) -> Option<usize> {
        let interval = Duration::from_secs(self.persistent_keepalive?.into());
        if self.last_sent.is_some_and(|sent| now.saturating_duration_since(sent) < interval) {
            return None;
        }
        self.last_sent = Some(now);
        if self.is_established() {
            message_length(&self.tunn.encapsulate(&[], buffer))
        } else {
            self.initiate(buffer)
        }
    }

    pub(super) fn status(&self, now: Instant) -> PeerStatus {
        PeerStatus {
            public_key: self.public_key,
            endpoint: self.endpoint,
            configured_endpoint: self.configured_endpoint,
            allowed_ips: self.allowed_ips.clone(),
            persistent_keepalive: self.persistent_keepalive,
            last_handshake: self.last_handshake.map(|at| now.saturating_duration_since(at)),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
        }
    }
}

/// Length of a message for the network. The library writes it at the start of the buffer it is given.
pub(super) const fn message_length(result: &TunnResult<'_>) -> Option<usize> {
    match result {
        TunnResult::WriteToNetwork(message) => Some(message.len()),
        TunnResult::Done
        | TunnResult::Err(_)
        | TunnResult::WriteToTunnelV4(..)
        | TunnResult::WriteToTunnelV6(..) => None,
    }
}
