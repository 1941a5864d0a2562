//! Connections and fragments: keys, entries, and how a connection ages.

use crate::layout::plain;
use crate::packet::{Packet, Ports, protocol, tcp};
use crate::{Address, Direction};

const SECOND: u64 = 1_000_000_000;

/// How long a TCP connection is remembered after its last packet, once it has been answered.
pub const TCP_TIMEOUT: u64 = 6 * 3600 * SECOND;
/// The same while its first segment has not been answered.
pub const TCP_OPENING_TIMEOUT: u64 = 60 * SECOND;
/// The same once both ends have finished, or one has reset it: time for what is still on its way.
pub const TCP_CLOSED_TIMEOUT: u64 = 10 * SECOND;
/// The same for every other protocol.
pub const CONNECTION_TIMEOUT: u64 = 120 * SECOND;
/// How much older than a connection's last packet the time may be that is noted of it.
pub const LAST_SEEN_STEP: u64 = SECOND;
/// How long fragments may follow their first, as long as Linux waits for them itself.
pub const FRAGMENT_TIMEOUT: u64 = 30 * SECOND;
/// Connections in `connections` that one interface may have; those beyond stay in `half_open`, where they
/// work as well but can be evicted.
pub const CONNECTION_QUOTA: u64 = 16_384;

plain! {
    /// A connection of one local endpoint: the same key for all its packets, so one lookup finds it whoever
    /// has opened it. The two ends of a connection between pods of one node are two connections.
    pub struct ConnectionKey [40] {
        /// The endpoint's address.
        pub local: Address,
        /// The address at the other end.
        pub remote: Address,
        /// The endpoint's port and the one at the other end; for ICMP echo the identifier, twice.
        pub ports: Ports,
        /// [`ConnectionKey::kind`].
        pub kind: u32,
    }
}

impl ConnectionKey {
    /// What tells connections between the same ends apart: the IP protocol number, and for ICMP echo in the
    /// next byte the [`Direction`] of its requests, since both ends may ask under one identifier. One number,
    /// for the reason that [`Ports`] is one.
    #[must_use]
    #[inline(always)]
    pub const fn kind(protocol: u8, asked: u8) -> u32 {
        (asked as u32) << 8 | protocol as u32
    }

    /// IP protocol number.
    #[must_use]
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        self.kind as u8
    }

    /// The key that the other end has for it, if that is an endpoint here.
    #[must_use]
    #[inline(always)]
    pub const fn of_other_end(&self) -> Self {
        let asked = (self.kind >> 8) as u8;
        let asked = match self.protocol() {
            protocol::ICMP | protocol::ICMPV6 => opened(asked).reverse() as u8,
            _ => asked,
        };
        Self {
            local: self.remote,
            remote: self.local,
            ports: self.ports.reverse(),
            kind: Self::kind(self.protocol(), asked),
        }
    }
}

plain! {
    /// State of a connection, with all that the next packet needs to pass without another lookup. Written
    /// only when a packet has passed everything, and then only if there is something to write.
    pub struct ConnectionEntry [64] {
        /// When a packet last passed, or up to [`LAST_SEEN_STEP`] before.
        pub last_seen: u64,
        /// Until when packets pass on the strength of this entry: the end of the authentication and of the
        /// node's session that it rests on, `u64::MAX` if on none, 0 if each packet must be decided anew.
        pub valid_until: u64,
        /// Identity of the endpoint.
        pub local_identity: u32,
        /// Identity at the other end.
        pub remote_identity: u32,
        /// [Generation](crate::generation_slot) of these two when it was decided.
        pub generation: u32,
        /// Index of the endpoint's interface.
        pub ifindex: u32,
        /// Index of the interface by which the other end's packets come in; [`ConnectionEntry::ANY`].
        pub peer_ifindex: u32,
        /// Another one by which they may, if the other end is a port of that bridge; else 0.
        pub peer_bridge: u32,
        /// The [`Direction`] in which it was opened.
        pub direction: u8,
        /// [`ConnectionEntry::AUDITED`] and the other bits there.
        pub flags: u8,
        /// What TCP has come to, and whether there was an answer: bits of this module.
        pub state: u8,
        /// [`AuthType`](crate::AuthType) that it rests on.
        pub auth_type: u8,
        /// Node of the other end.
        pub node: u16,
        /// The port that belongs to [`ConnectionEntry::translation`], network order.
        pub translation_port: [u8; 2],
        /// With [`ConnectionEntry::TO_BACKEND`] the backend's address, with
        /// [`ConnectionEntry::FROM_SERVICE`] the service's.
        pub translation: Address,
    }
}

impl ConnectionEntry {
    /// Policy would have refused it, so it counts for nothing once policy is enforced.
    pub const AUDITED: u8 = 1;
    /// What the pod sends to a service: goes to the backend. Another entry, under the backend's address, is
    /// the connection with that; each is found by what its own direction sends, and they tell each other
    /// what both must know.
    pub const TO_BACKEND: u8 = 2;
    /// That connection: what comes from the backend gets the service's address.
    pub const FROM_SERVICE: u8 = 4;
    /// With either: the pod itself is the backend, and policy has no say.
    pub const HAIRPIN: u8 = 8;
    /// What the endpoint sends goes straight to the other end's interface, round the host's stack. Both ends have it or
    /// neither, for as long as the connection lasts: what the host has seen the half of, it may take for invalid.
    pub const DIRECT: u8 = 16;
    pub(crate) const TRANSLATES: u8 = Self::TO_BACKEND | Self::FROM_SERVICE;
    /// As `peer_ifindex`: the other end's packets may come in anywhere.
    pub const ANY: u32 = u32::MAX;

    const ANSWERED: u8 = 1;
    const OPENER_FINISHED: u8 = 2;
    const REPLIER_FINISHED: u8 = 4;
    const RESET: u8 = 8;
    const FINISHED: u8 = Self::OPENER_FINISHED | Self::REPLIER_FINISHED;

    /// Whether the other end's packets may have come into this host by `ingress`: what
    /// [`EndpointEntry::sends_by`](crate::EndpointEntry::sends_by) lets pass, if it is a pod here.
    #[must_use]
    #[inline(always)]
    pub const fn peer_sends_by(&self, ingress: u32) -> bool {
        self.peer_ifindex == Self::ANY
            || self.peer_ifindex == ingress
            || (self.peer_bridge != 0 && self.peer_bridge == ingress)
    }

    /// Index of the interface to which what its endpoint sends goes straight; 0 for none.
    #[must_use]
    #[inline(always)]
    pub const fn straight_to(&self) -> u32 {
        if self.flags & Self::DIRECT != 0 { self.peer_ifindex } else { 0 }
    }

    /// Whether it has been answered: its place is `connections`, not `half_open`.
    #[must_use]
    #[inline(always)]
    pub const fn is_answered(&self) -> bool {
        self.state & Self::ANSWERED != 0
    }

    /// Whether it is over but for what is still on its way.
    #[must_use]
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        self.state & Self::RESET != 0 || self.state & Self::FINISHED == Self::FINISHED
    }

    /// Whether it still stands at `now`. `protocol` is that of its key.
    #[must_use]
    #[inline(always)]
    pub const fn is_alive(&self, protocol: u8, now: u64) -> bool {
        let timeout = if protocol != protocol::TCP {
            CONNECTION_TIMEOUT
        } else if self.is_closed() {
            TCP_CLOSED_TIMEOUT
        } else if self.is_answered() {
            TCP_TIMEOUT
        } else {
            TCP_OPENING_TIMEOUT
        };
        now < self.last_seen.wrapping_add(timeout)
    }

    /// What tells apart connections with the same backend on the same ports.
    #[inline(always)]
    pub(crate) fn is_by_way_of(&self, other: &Self) -> bool {
        let differs = (self.flags ^ other.flags) & Self::FROM_SERVICE;
        differs == 0
            && self.translation == other.translation
            && self.translation_port == other.translation_port
    }

    /// Takes down a packet that has passed. The packets of a connection come by several CPUs, and each must
    /// fetch what another has written: so most write nothing.
    #[inline(always)]
    pub const fn record(&mut self, packet: &Packet, reply: bool, now: u64) {
        let before = self.state;
        if reply && !self.is_answered() && packet.answers() {
            self.state |= Self::ANSWERED;
        }
        if packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
            self.end(packet.tcp_flags, reply);
        }
        if self.state != before || now.saturating_sub(self.last_seen) >= LAST_SEEN_STEP {
            self.last_seen = now;
        }
    }

    #[inline(always)]
    const fn end(&mut self, flags: u8, reply: bool) {
        if flags & tcp::RST != 0 {
            self.state |= Self::RESET;
        }
        if flags & tcp::FIN != 0 {
            self.state |= if reply { Self::REPLIER_FINISHED } else { Self::OPENER_FINISHED };
        }
    }
}

impl Packet {
    /// Whether this, as a reply, shows that the other end has taken the connection.
    #[must_use]
    #[inline(always)]
    pub const fn answers(&self) -> bool {
        self.protocol != protocol::TCP || self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN | tcp::ACK
    }
}

plain! {
    /// How much of the connections one interface has.
    pub struct QuotaEntry [8] {
        /// Connections in `connections`; programs count up, user space counts anew.
        pub established: u64,
    }
}

plain! {
    /// A datagram in fragments, as met at one hook.
    pub struct FragmentKey [48] {
        /// Source address.
        pub source: Address,
        /// Destination address.
        pub destination: Address,
        /// Identification, as many bytes as the family has.
        pub identification: u32,
        /// Index of the interface at the hook.
        pub ifindex: u32,
        /// IPv4: the protocol number, part of what tells datagrams apart. IPv6: 0.
        pub protocol: u8,
        /// The [`Direction`] of the hook.
        pub direction: u8,
        /// Reserved, 0.
        pub pad: [u8; 6],
    }
}

plain! {
    /// What the first fragment of a datagram that has passed tells about those after it.
    pub struct FragmentEntry [16] {
        /// Until when others may follow.
        pub expires: u64,
        /// As of [`Packet`].
        pub source_port: [u8; 2],
        /// As of [`Packet`].
        pub destination_port: [u8; 2],
        /// Where the first fragment ends: what begins before would write over headers that were judged.
        pub end: u16,
        /// Protocol number behind all extension headers.
        pub protocol: u8,
        /// Reserved, 0.
        pub pad: u8,
    }
}

/// The direction with this number; what no version writes is egress.
#[inline(always)]
pub(crate) const fn opened(number: u8) -> Direction {
    if number == Direction::Ingress as u8 { Direction::Ingress } else { Direction::Egress }
}
