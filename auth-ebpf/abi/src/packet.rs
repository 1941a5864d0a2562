//! What the decision needs to know of a packet, and the parser that finds it.
//!
//! The parser reads through [`Bytes`], so the same code runs on a socket buffer in the kernel and on a slice
//! in tests. It refuses what it does not understand completely: a decision is never made on half a header.

use crate::Address;

mod numbers;
mod parse;

pub use numbers::{ethertype, icmp, protocol, tcp};
pub use parse::{parse_ethernet, parse_ip};

/// Bytes that can be read at an offset.
pub trait Bytes {
    /// The `N` bytes at `offset`, or `None` if the packet ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// The same at a place that is known beforehand, where the kernel can read without a helper.
    fn load_at<const OFFSET: u32, const N: usize>(&self) -> Option<[u8; N]> {
        self.load(OFFSET)
    }

    /// The length, if it is a packet of many segments (GSO), whose own length field may be too small for it.
    fn segments_length(&self) -> Option<u32> {
        None
    }
}

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
}

/// The header of an IP packet, as far as the decision looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, network order; of an ICMP echo its identifier.
    pub source_port: [u8; 2],
    /// Destination port, network order; of ICMP its type and code.
    pub destination_port: [u8; 2],
    /// Protocol number behind all extension headers.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Flags of TCP.
    pub tcp_flags: u8,
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
    /// Whether this is a message of IPv6 neighbour discovery that has not crossed a router.
    #[must_use]
    #[inline(always)]
    pub const fn is_neighbour_discovery(&self) -> bool {
        self.is_icmpv6()
            && matches!(self.destination_port[0], icmp::V6_NEIGHBOUR_FIRST..=icmp::V6_NEIGHBOUR_LAST)
            && self.hop_limit == 255
    }

    /// Whether this is a report or query of multicast listeners (MLD).
    #[must_use]
    #[inline(always)]
    pub const fn is_multicast_listener(&self) -> bool {
        self.is_icmpv6()
            && matches!(
                self.destination_port[0],
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
            protocol::ICMP => self.destination_port[0] == icmp::ECHO,
            protocol::ICMPV6 => self.destination_port[0] == icmp::V6_ECHO,
            _ => false,
        }
    }

    /// Whether this is an echo.
    #[must_use]
    #[inline(always)]
    pub const fn is_echo_reply(&self) -> bool {
        match self.protocol {
            protocol::ICMP => self.destination_port[0] == icmp::ECHO_REPLY,
            protocol::ICMPV6 => self.destination_port[0] == icmp::V6_ECHO_REPLY,
            _ => false,
        }
    }

    /// Whether this is an ICMP error, about a packet that the receiver has sent.
    #[must_use]
    #[inline(always)]
    pub const fn is_icmp_error(&self) -> bool {
        let [kind, _] = self.destination_port;
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

    /// Whether this is TCP's first segment of a connection.
    #[must_use]
    #[inline(always)]
    pub const fn is_syn(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}
