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

use crate::{Peer, PeerStatus, PresharedKey, PrivateKey, PublicKey};

/// Packets that wait for a handshake; the oldest goes first.
const QUEUE: usize = 64;

/// Pause between handshakes with a pre-shared key that has had none yet. Longer than the protocol's own.
const AWAIT: Duration = Duration::from_secs(6);
/// For how long what was sent under the pre-shared key before is still read.
const LINGER: Duration = Duration::from_secs(10);

/// The protocol's state with one pre-shared key.
struct Keyed {
    /// What messages to it carry in the upper 24 bits of their index.
    index: u32,
    tunn: Tunn,
}

/// The state with the next pre-shared key, until its first handshake.
struct Next {
    keyed: Keyed,
    since: Instant,
    initiate_at: Instant,
    /// The peer's handshakes meanwhile, which may be with either key.
    answered: u32,
}

/// Runtime state of a peer.
pub(super) struct Session {
    pub(super) public_key: PublicKey,
    active: Keyed,
    next: Option<Next>,
    previous: Option<(Keyed, Instant)>,
    preshared_key: Option<PresharedKey>,
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
        let preshared_key = peer.preshared_key.clone();
        Self {
            public_key: peer.public_key,
            active: Keyed::new(own, &peer.public_key, preshared_key.as_ref(), index, limiter),
            next: None,
            previous: None,
            preshared_key,
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
        self.active.is_established()
    }

    /// The state for a message with this index, or for an initiation, which has none: that may be with the key
    /// that we have or with the next, which shows only in what the peer makes of our answer.
    pub(super) fn tunn(&mut self, index: Option<u32>) -> Option<&mut Tunn> {
        let Some(index) = index else {
            return Some(match &mut self.next {
                Some(next) => {
                    next.answered = next.answered.wrapping_add(1);
                    if next.answered % 2 == 1 { &mut next.keyed.tunn } else { &mut self.active.tunn }
                }
                None => &mut self.active.tunn,
            });
        };
        let next = self.next.iter_mut().map(|next| &mut next.keyed);
        let previous = self.previous.iter_mut().map(|(keyed, _)| keyed);
        let mut all = std::iter::once(&mut self.active).chain(next).chain(previous);
        all.find(|keyed| keyed.index == index).map(|keyed| &mut keyed.tunn)
    }

    /// The state that data is sent with.
    pub(super) const fn sender(&mut self) -> &mut Tunn {
        &mut self.active.tunn
    }

    /// Uses another pre-shared key from the next handshake on. What is established goes on until then.
    pub(super) fn rekey(
        &mut self,
        preshared_key: Option<PresharedKey>,
        own: &PrivateKey,
        index: u32,
        limiter: &Arc<RateLimiter>,
        now: Instant,
    ) {
        let keyed = Keyed::new(own, &self.public_key, preshared_key.as_ref(), index, limiter);
        self.preshared_key = preshared_key;
        if !self.is_established() {
            (self.active, self.next) = (keyed, None);
            return;
        }
        // Both ends get the key at about the same time; that both begin at once would be in vain.
        let begins = own.public_key() < self.public_key;
        let initiate_at = if begins { now } else { now + AWAIT };
        self.next = Some(Next { keyed, since: now, initiate_at, answered: 0 });
    }

    /// Goes over to the next pre-shared key once a handshake with it is done.
    pub(super) fn promote(&mut self, now: Instant) {
        if let Some(next) = self.next.take_if(|next| next.keyed.is_established()) {
            let active = std::mem::replace(&mut self.active, next.keyed);
            self.previous = Some((active, now + LINGER));
            tracing::info!(peer = %self.public_key, "pre-shared key in use");
        }
    }

    /// The indices by which messages find this peer.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> {
        let next = self.next.iter().map(|next| next.keyed.index);
        let previous = self.previous.iter().map(|(keyed, _)| keyed.index);
        std::iter::once(self.active.index).chain(next).chain(previous)
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
        message_length(&self.active.tunn.update_timers(buffer)).or_else(|| self.keepalive(now, buffer))
    }

    /// The same for the next pre-shared key, and forgets the one before when its time has come.
    pub(super) fn next_timers(&mut self, now: Instant, buffer: &mut [u8]) -> Option<usize> {
        self.previous.take_if(|(_, until)| *until <= now);
        let next = self.next.as_mut()?;
        let length = message_length(&next.keyed.tunn.update_timers(buffer));
        if length.is_some() || now < next.initiate_at {
            return length;
        }
        next.initiate_at = now + AWAIT;
        message_length(&next.keyed.tunn.format_handshake_initiation(buffer, false))
    }

    /// Begins a handshake unless one is under way.
    pub(super) fn initiate(&mut self, buffer: &mut [u8]) -> Option<usize> {
        message_length(&self.active.tunn.format_handshake_initiation(buffer, false))
    }

    /// Whether the last attempts at a handshake were given up.
    pub(super) fn has_given_up(&self) -> bool {
        self.active.tunn.is_expired()
    }

    fn keepalive(&mut self, now: Instant, buffer: &mut [u8]) -> Option<usize> {
        let interval = Duration::from_secs(self.persistent_keepalive?.into());
        if self.last_sent.is_some_and(|sent| now.saturating_duration_since(sent) < interval) {
            return None;
        }
        self.last_sent = Some(now);
        if self.is_established() {
            message_length(&self.active.tunn.encapsulate(&[], buffer))
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
            preshared_key: self.preshared_key.as_ref().map(PresharedKey::without_secret),
            rekeying: self.next.as_ref().map(|next| now.saturating_duration_since(next.since)),
            last_handshake: self.last_handshake.map(|at| now.saturating_duration_since(at)),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
        }
    }
}

impl Keyed {
    fn new(
        own: &PrivateKey,
        peer: &PublicKey,
        preshared_key: Option<&PresharedKey>,
        index: u32,
        limiter: &Arc<RateLimiter>,
    ) -> Self {
        let (secret, public) = (own.secret().clone(), peer.to_x25519());
        let preshared = preshared_key.and_then(PresharedKey::secret).copied();
        let tunn = Tunn::new(secret, public, preshared, None, index, Some(Arc::clone(limiter)));
        Self { index, tunn }
    }

    fn is_established(&self) -> bool {
        // The library gives this for exactly the session that it would encrypt with.
        self.tunn.time_since_last_handshake().is_some()
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
