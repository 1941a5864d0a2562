//! What the decision needs to know of a packet, and the parser that finds it.
//!
//! The parser reads through [`Bytes`], so the same code runs on a socket buffer in the kernel and on a slice
//! in tests. It refuses what it does not understand completely: a decision is never made on half a header.

use core::fmt;

use crate::Address;

mod inner;
mod numbers;
mod parse;

pub use inner::parse_inner;
pub use numbers::{ethertype, icmp, port, protocol, tcp};
pub use parse::{parse_ethernet, parse_ip, read_directly};

/// Bytes that can be read at an offset.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` if the packet ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// `N` numbers at `offset`, as they stand there.
    fn numbers<T: Number, const N: usize>(&self, offset: u32) -> Option<[T; N]> {
        let mut numbers = [T::default(); N];
        let mut offset = offset;
        for number in &mut numbers {
            *number = T::load(self, offset)?;
            offset += size_of::<T>() as u32;
        }
        Some(numbers)
    }

    /// The same at a place that is known beforehand, where the kernel can read without a helper.
    fn numbers_at<const OFFSET: u32, T: Number, const N: usize>(&self) -> Option<[T; N]> {
        self.numbers(OFFSET)
    }

    /// The length, if it is a packet of many segments (GSO), whose own length field may be too small for it.
    fn segments_length(&self) -> Option<u32> {
        None
    }
}

/// A number that a packet is read by.
pub trait Number: Copy + Default {
    /// The one that stands at `offset`.
    fn load<B: Bytes + ?Sized>(bytes: &B, offset: u32) -> Option<Self>;
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Number for $type {
            #[inline(always)]
            fn load<B: Bytes + ?Sized>(bytes: &B, offset: u32) -> Option<Self> {
                bytes.load(offset).map(Self::from_ne_bytes)
            }
        }
    )*};
}
number!(u16, u32, u64);

impl Bytes for [u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.get(offset as usize..)?.first_chunk().copied()
    }
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// An IPv4 or IPv6 packet.
    Ip,
    /// An ARP message for IPv4 over Ethernet; the packet's source is the protocol address of its sender.
    Arp,
    /// Anything else, by its Ethernet type; that of the VLAN tag where no tag is expected.
    Other(u16),
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// All of it.
    #[default]
    Whole,
    /// Its first fragment, with the transport header.
    First,
    /// A first fragment that is too short for the transport header, or that no other can follow.
    Broken,
    /// A later one. It has no ports of its own.
    Later,
}

/// Two ports, each in network order.
///
/// One number, so that the programs write it at once: what is written in pieces and then read as a whole,
/// the processor waits for.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports(u32);

impl Ports {
    /// These two.
    #[must_use]
    #[inline(always)]
    pub const fn new([a, b]: [u8; 2], [c, d]: [u8; 2]) -> Self {
        Self(u32::from_ne_bytes([a, b, c, d]))
    }

    /// The two that stand in a packet as this number.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// That number.
    #[must_use]
    #[inline(always)]
    pub const fn to_word(self) -> u32 {
        self.0
    }

    /// The first one.
    #[must_use]
    #[inline(always)]
    pub const fn source(self) -> [u8; 2] {
        let [a, b, _, _] = self.0.to_ne_bytes();
        [a, b]
    }

    /// The second one.
    #[must_use]
    #[inline(always)]
    pub const fn destination(self) -> [u8; 2] {
        let [_, _, c, d] = self.0.to_ne_bytes();
        [c, d]
    }

    /// The two the other way round.
    #[must_use]
    #[inline(always)]
    pub const fn reverse(self) -> Self {
        Self(self.0.rotate_left(16))
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [source, destination] = [self.source(), self.destination()].map(u16::from_be_bytes);
        write!(formatter, "{source} > {destination}")
    }
}

/// The packet that an ICMP error is about, as its first bytes tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Embedded {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// As of [`Packet`].
    pub source_port: [u8; 2],
    /// As of [`Packet`].
    pub destination_port: [u8; 2],
    /// As of [`Packet`].
    pub protocol: u8,
    /// There is one, and it could be read.
    pub present: bool,
    /// Where it begins in the frame.
    pub network: u16,
    /// Where its transport header begins in the frame.
    pub transport: u16,
}

/// The header of an IP packet, as far as the decision looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Its ports; of an ICMP echo its identifier, and of ICMP its type and code as the second one.
    pub ports: Ports,
    /// Where what is behind the headers of IP begins.
    pub payload: u32,
    /// Protocol number behind all extension headers.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Flags of TCP. An INIT of SCTP counts as SYN.
    pub tcp_flags: u8,
    /// Where the transport header begins in the frame.
    pub transport: u16,
    /// Which part of a datagram it is.
    pub fragment: Fragment,
    /// Of a fragment, where it begins in the datagram, in bytes.
    pub fragment_offset: u16,
    /// Of a first fragment, where it ends.
    pub fragment_end: u16,
    /// Of a fragment, the datagram's identification.
    pub identification: u32,
    /// Of a neighbour solicitation or advertisement, whose link-layer address it is about.
    pub target: Address,
    /// Of an ICMP error, the packet that it is about.
    pub embedded: Embedded,
}

impl Packet {
    /// Forgets the packet before. What ICMP is about stays as it is: of other packets nobody looks at it.
    #[inline(always)]
    pub(crate) const fn clear(&mut self) {
        self.source = Address([0; 16]);
        self.destination = Address([0; 16]);
        self.ports = Ports(0);
        self.payload = 0;
        self.protocol = 0;
        self.hop_limit = 0;
        self.tcp_flags = 0;
        self.transport = 0;
        self.fragment = Fragment::Whole;
        self.fragment_offset = 0;
        self.fragment_end = 0;
        self.identification = 0;
        self.embedded.present = false;
    }

    /// Source port, network order; of an ICMP echo its identifier.
    #[must_use]
    #[inline(always)]
    pub const fn source_port(&self) -> [u8; 2] {
        self.ports.source()
    }

    /// Destination port, network order; of ICMP its type and code.
    #[must_use]
    #[inline(always)]
    pub const fn destination_port(&self) -> [u8; 2] {
        self.ports.destination()
    }

    /// Whether this is a message of IPv6 neighbour discovery that has not crossed a router.
    #[must_use]
    #[inline(always)]
    pub const fn is_neighbour_discovery(&self) -> bool {
        self.is_icmpv6()
            && matches!(self.destination_port()[0], icmp::V6_NEIGHBOUR_FIRST..=icmp::V6_NEIGHBOUR_LAST)
            && self.hop_limit == 255
    }

    /// Whether this is a report or query of multicast listeners (MLD).
    #[must_use]
    #[inline(always)]
    pub const fn is_multicast_listener(&self) -> bool {
        self.is_icmpv6()
            && matches!(
                self.destination_port()[0],
                icmp::V6_MLD_FIRST..=icmp::V6_MLD_LAST | icmp::V6_MLD2_REPORT
            )
            && self.hop_limit == 1
            && self.destination.is_multicast()
    }

    /// Whether this asks for an echo.
    #[must_use]
    #[inline(always)]
    pub const fn is_echo_request(&self) -> bool {
        match self.protocol {
            protocol::ICMP => self.destination_port()[0] == icmp::ECHO,
            protocol::ICMPV6 => self.destination_port()[0] == icmp::V6_ECHO,
            _ => false,
        }
    }

    /// Whether this is an echo.
    #[must_use]
    #[inline(always)]
    pub const fn is_echo_reply(&self) -> bool {
        match self.protocol {
            protocol::ICMP => self.destination_port()[0] == icmp::ECHO_REPLY,
            protocol::ICMPV6 => self.destination_port()[0] == icmp::V6_ECHO_REPLY,
            _ => false,
        }
    }

    /// Whether this is an ICMP error, about a packet that the receiver has sent.
    #[must_use]
    #[inline(always)]
    pub const fn is_icmp_error(&self) -> bool {
        let [kind, _] = self.destination_port();
        match self.protocol {
            protocol::ICMP => {
                matches!(kind, icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM)
            }
            protocol::ICMPV6 => matches!(kind, icmp::V6_ERROR_FIRST..=icmp::V6_ERROR_LAST),
            _ => false,
        }
    }

    /// Whether this is ICMP of either family.
    #[must_use]
    #[inline(always)]
    pub const fn is_icmp(&self) -> bool {
        matches!(self.protocol, protocol::ICMP | protocol::ICMPV6)
    }

    const fn is_icmpv6(&self) -> bool {
        // RFC 6980: neighbour discovery in fragments is none.
        self.protocol == protocol::ICMPV6 && matches!(self.fragment, Fragment::Whole) && !self.source.is_v4()
    }

    /// Whether this is the first packet of a connection by its own account: TCP's first segment, SCTP's INIT.
    #[must_use]
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}
