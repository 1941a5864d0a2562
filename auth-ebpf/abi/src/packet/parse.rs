//! The parser: Ethernet, at most one VLAN tag, IPv4 with options, IPv6 with a bounded number of extension
//! headers, and what tells flows of the transport protocols apart.

use super::{Bytes, Embedded, Fragment, Frame, Packet, Ports, ethertype, icmp, protocol, tcp};
use crate::Address;

/// IPv6 extension headers before a packet counts as unparsable.
const MAX_EXTENSION_HEADERS: u32 = 6;
const ETHERNET_HEADER: u32 = 14;
const TAGGED_HEADER: u32 = ETHERNET_HEADER + 4;
const V4_HEADER: u32 = 20;
const V6_HEADER: u32 = 40;
/// Of a transport header, up to TCP's flags.
const TRANSPORT_START: u32 = 16;

/// How many bytes from a packet's beginning are read by [`Bytes::numbers_at`] at most. Such packets as say
/// themselves that they are IPv4, without a tag among their bytes, need fewer.
#[must_use]
#[inline(always)]
pub const fn read_directly(at_ethernet: bool, v4: bool) -> u32 {
    let network = if v4 { V4_HEADER } else { V6_HEADER };
    if at_ethernet { ETHERNET_HEADER + network + TRANSPORT_START } else { network }
}

/// Parses an Ethernet frame into `packet`; `vlan` allows one VLAN tag. `None` if it cannot be parsed.
#[inline(always)]
pub fn parse_ethernet<B: Bytes + ?Sized>(bytes: &B, vlan: bool, packet: &mut Packet) -> Option<Frame> {
    let ether = ether_type::<B, { ETHERNET_HEADER - 2 }>(bytes)?;
    let payload = match ether {
        ethertype::VLAN | ethertype::PROVIDER_VLAN if vlan => {
            let ether = ether_type::<B, { TAGGED_HEADER - 2 }>(bytes)?;
            match network::<B, TAGGED_HEADER>(bytes, ether, packet)? {
                Network::Ip(payload) => payload,
                Network::Else(frame) => return Some(frame),
            }
        }
        _ => match network::<B, ETHERNET_HEADER>(bytes, ether, packet)? {
            Network::Ip(payload) => payload,
            Network::Else(frame) => return Some(frame),
        },
    };
    upper(bytes, payload, packet).map(|()| Frame::Ip)
}

#[inline(always)]
fn ether_type<B: Bytes + ?Sized, const OFFSET: u32>(bytes: &B) -> Option<u16> {
    let [ether] = bytes.numbers_at::<OFFSET, u16, 1>()?;
    Some(u16::from_be(ether))
}

/// What an Ethernet frame holds, before its payload is looked at.
#[derive(Clone, Copy)]
enum Network {
    Ip(Payload),
    Else(Frame),
}

#[inline(always)]
fn network<B: Bytes + ?Sized, const OFFSET: u32>(
    bytes: &B,
    ether: u16,
    packet: &mut Packet,
) -> Option<Network> {
    Some(match ether {
        ethertype::IPV4 => Network::Ip(parse_v4::<B, OFFSET>(bytes, packet)?),
        ethertype::IPV6 => Network::Ip(parse_v6::<B, OFFSET>(bytes, packet)?),
        ethertype::ARP => {
            parse_arp(bytes, OFFSET, packet)?;
            Network::Else(Frame::Arp)
        }
        other => Network::Else(Frame::Other(other)),
    })
}

/// Parses an IP packet into `packet`. `None` if it cannot be parsed.
#[inline(always)]
pub fn parse_ip<B: Bytes + ?Sized>(bytes: &B, packet: &mut Packet) -> Option<Frame> {
    let [first] = bytes.numbers_at::<0, u16, 1>()?;
    let payload = match u16::from_be(first) >> 12 {
        4 => parse_v4::<B, 0>(bytes, packet)?,
        6 => parse_v6::<B, 0>(bytes, packet)?,
        _ => return None,
    };
    upper(bytes, payload, packet).map(|()| Frame::Ip)
}

/// What is behind the headers of IP: where it begins, and how long it says that it is.
#[derive(Clone, Copy)]
struct Payload {
    offset: u32,
    length: u32,
}

#[inline(always)]
fn parse_arp<B: Bytes + ?Sized>(bytes: &B, offset: u32, packet: &mut Packet) -> Option<()> {
    // Hardware type Ethernet, protocol IPv4, their address lengths; then operation and hardware address.
    let [h0, h1, p0, p1, hardware_length, protocol_length]: [u8; 6] = bytes.load(offset)?;
    let ethernet = u16::from_be_bytes([h0, h1]) == 1 && hardware_length == 6;
    let ipv4 = u16::from_be_bytes([p0, p1]) == ethertype::IPV4 && protocol_length == 4;
    if !ethernet || !ipv4 {
        return None;
    }
    packet.source = Address::from_v4(bytes.load(offset + 14)?);
    Some(())
}

#[inline(always)]
fn parse_v4<B: Bytes + ?Sized, const OFFSET: u32>(bytes: &B, packet: &mut Packet) -> Option<Payload> {
    let [first, second, third, source, destination] = bytes.numbers_at::<OFFSET, u32, 5>()?;
    let (first, second, third) = (u32::from_be(first), u32::from_be(second), u32::from_be(third));
    let length = ((first >> 24) & 0x0f) * 4;
    let total = match first & 0xffff {
        // BIG TCP: more than the field can say.
        0 => bytes.segments_length()?.checked_sub(OFFSET)?,
        total => total,
    };
    if first >> 28 != 4 || length < V4_HEADER || total < length {
        return None;
    }
    const MORE: u32 = 0x2000;
    const BEGIN: u32 = 0x1fff;
    packet.source = Address::from_v4_word(source);
    packet.destination = Address::from_v4_word(destination);
    packet.protocol = (third >> 16) as u8;
    packet.hop_limit = (third >> 24) as u8;
    packet.identification = second >> 16;
    let fragment = second & 0xffff;
    if fragment & BEGIN != 0 {
        packet.fragment = Fragment::Later;
        packet.fragment_offset = ((fragment & BEGIN) << 3) as u16;
    } else if fragment & MORE != 0 {
        first_fragment(total - length, packet);
    }
    Some(Payload { offset: OFFSET + length, length: total - length })
}

#[inline(always)]
fn parse_v6<B: Bytes + ?Sized, const OFFSET: u32>(bytes: &B, packet: &mut Packet) -> Option<Payload> {
    let [first, s0, s1, d0, d1] = bytes.numbers_at::<OFFSET, u64, 5>()?;
    let first = u64::from_be(first);
    packet.source = Address::from_halves([s0, s1]);
    packet.destination = Address::from_halves([d0, d1]);
    packet.hop_limit = first as u8;
    // A mapped address in a real IPv6 header would pass for the IPv4 address.
    if first >> 60 != 6 || packet.source.is_v4() || packet.destination.is_v4() {
        return None;
    }
    let payload = (first >> 16) as u32 & 0xffff;
    let mut next = (first >> 8) as u8;
    // The kernel's own big segments (BIG TCP) have no length here, but a jumbo option.
    let mut left = if payload == 0 && next == protocol::HOP_BY_HOP { u32::MAX } else { payload };
    let mut offset = OFFSET + V6_HEADER;
    for _ in 0..MAX_EXTENSION_HEADERS {
        packet.protocol = next;
        match next {
            protocol::FRAGMENT => {
                let [following, _, f0, f1, id @ ..]: [u8; 8] = bytes.load(offset)?;
                // A fragment of a fragment is nobody's datagram.
                if !matches!(packet.fragment, Fragment::Whole) {
                    return None;
                }
                left = left.checked_sub(8)?;
                offset += 8;
                next = following;
                packet.identification = u32::from_be_bytes(id);
                let fragment = u16::from_be_bytes([f0, f1]);
                if fragment & !7 != 0 {
                    packet.fragment = Fragment::Later;
                    packet.fragment_offset = fragment & !7;
                    packet.protocol = following;
                    return Some(Payload { offset, length: left });
                }
                // Without a fragment to come it is a whole datagram (RFC 6946).
                if fragment & 1 != 0 {
                    first_fragment(left, packet);
                }
            }
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HIP
            | protocol::SHIM6 => {
                let [following, length, _, segments_left]: [u8; 4] = bytes.load(offset)?;
                // The packet goes elsewhere than its destination address says.
                if next == protocol::ROUTING && segments_left != 0 {
                    return None;
                }
                let length = 8 + u32::from(length) * 8;
                left = left.checked_sub(length)?;
                offset += length;
                next = following;
            }
            _ => return Some(Payload { offset, length: left }),
        }
    }
    None
}

/// Notes a first fragment of `length` bytes behind the headers that every fragment repeats.
#[inline(always)]
const fn first_fragment(length: u32, packet: &mut Packet) {
    // The next one begins at a multiple of eight.
    packet.fragment = if length != 0 && length.is_multiple_of(8) && length <= 0xffff {
        Fragment::First
    } else {
        Fragment::Broken
    };
    packet.fragment_end = length as u16;
}

/// The transport header. A first fragment without all of it leaves the judgement to what nobody looks at
/// (RFC 1858, RFC 7112).
#[inline(always)]
fn upper<B: Bytes + ?Sized>(bytes: &B, payload: Payload, packet: &mut Packet) -> Option<()> {
    packet.payload = payload.offset;
    // No header reaches that far: MAX_EXTENSION_HEADERS of at most 2 KiB each.
    packet.transport = payload.offset as u16;
    if matches!(packet.fragment, Fragment::Later) {
        return Some(());
    }
    match transport(bytes, payload.offset, payload.length, packet) {
        None if matches!(packet.fragment, Fragment::First | Fragment::Broken) => {
            packet.fragment = Fragment::Broken;
            Some(())
        }
        outcome => outcome,
    }
}

/// Reads the ports, or what stands for them; `left` bytes of the IP packet begin at `offset`.
#[inline(always)]
fn transport<B: Bytes + ?Sized>(bytes: &B, offset: u32, left: u32, packet: &mut Packet) -> Option<()> {
    let shortest = match packet.protocol {
        protocol::TCP => 20,
        protocol::SCTP => 12,
        protocol::UDP | protocol::ICMP => 8,
        protocol::ICMPV6 => 4,
        _ => return Some(()),
    };
    if left < shortest {
        return None;
    }
    if packet.protocol == protocol::TCP {
        let [ports, _, _, flags] = numbers_near(bytes, offset)?;
        packet.ports = Ports::from_word(ports);
        packet.tcp_flags = (u32::from_be(flags) >> 16) as u8;
        return Some(());
    }
    if packet.protocol == protocol::SCTP {
        let [ports, tag] = numbers_near(bytes, offset)?;
        packet.ports = Ports::from_word(ports);
        // RFC 9260, section 8.5.1: an INIT has no other tag, and nothing else has this.
        packet.tcp_flags = if tag == 0 { tcp::SYN } else { tcp::ACK };
        return Some(());
    }
    let [first] = numbers_near(bytes, offset)?;
    let ports = Ports::from_word(first);
    if packet.is_icmp() {
        packet.ports = Ports::new([0; 2], ports.source());
        return icmp_body(bytes, offset, left, packet);
    }
    packet.ports = ports;
    Some(())
}

/// Numbers at a place where most packets have their transport header.
#[inline(always)]
fn numbers_near<B: Bytes + ?Sized, const N: usize>(bytes: &B, offset: u32) -> Option<[u32; N]> {
    const AFTER_V4: u32 = ETHERNET_HEADER + V4_HEADER;
    const AFTER_V6: u32 = ETHERNET_HEADER + V6_HEADER;
    match offset {
        AFTER_V4 => bytes.numbers_at::<AFTER_V4, u32, N>(),
        AFTER_V6 => bytes.numbers_at::<AFTER_V6, u32, N>(),
        _ => bytes.numbers(offset),
    }
}

/// What ICMP has behind type and code: an echo's identifier, a neighbour, a packet that met an error.
#[inline(always)]
fn icmp_body<B: Bytes + ?Sized>(bytes: &B, offset: u32, left: u32, packet: &mut Packet) -> Option<()> {
    const HEADER: u32 = 8;
    let [kind, code] = packet.destination_port();
    if matches!(kind, icmp::ECHO | icmp::ECHO_REPLY | icmp::V6_ECHO | icmp::V6_ECHO_REPLY) && left >= HEADER {
        packet.ports = Ports::new(bytes.load(offset + 4)?, [kind, code]);
    }
    let neighbour = matches!(kind, icmp::V6_NEIGHBOUR_SOLICITATION | icmp::V6_NEIGHBOUR_ADVERTISEMENT);
    packet.target = Address([0; 16]);
    if packet.protocol == protocol::ICMPV6 && neighbour && left >= HEADER + 16 {
        packet.target = Address(bytes.load(offset + HEADER)?);
    }
    if packet.is_icmp_error() && matches!(packet.fragment, Fragment::Whole | Fragment::First) {
        // One that can't be read is related to nothing.
        let _unread = match packet.protocol {
            protocol::ICMP => embedded_v4(bytes, offset + HEADER, &mut packet.embedded),
            _ => embedded_v6(bytes, offset + HEADER, &mut packet.embedded),
        };
    }
    Some(())
}

#[inline(always)]
fn embedded_v4<B: Bytes + ?Sized>(bytes: &B, offset: u32, embedded: &mut Embedded) -> Option<()> {
    let header: [u8; 20] = bytes.load(offset)?;
    let [version, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let length = u32::from(version & 0x0f) * 4;
    // A later fragment shows no ports.
    if version >> 4 != 4 || length < 20 || u16::from_be_bytes([f0, f1]) & 0x1fff != 0 {
        return None;
    }
    embedded.source = Address::from_v4([s0, s1, s2, s3]);
    embedded.destination = Address::from_v4([d0, d1, d2, d3]);
    embedded.protocol = protocol;
    embedded.network = offset as u16;
    embedded_ports(bytes, offset + length, embedded)
}

/// Extension headers are not looked through here: such an error is left to policy.
#[inline(always)]
fn embedded_v6<B: Bytes + ?Sized>(bytes: &B, offset: u32, embedded: &mut Embedded) -> Option<()> {
    let [version, _, _, _, _, _, next, _]: [u8; 8] = bytes.load(offset)?;
    if version >> 4 != 6 {
        return None;
    }
    embedded.source = Address(bytes.load(offset + 8)?);
    embedded.destination = Address(bytes.load(offset + 24)?);
    embedded.protocol = next;
    embedded.network = offset as u16;
    if embedded.source.is_v4() || embedded.destination.is_v4() {
        return None;
    }
    embedded_ports(bytes, offset + 40, embedded)
}

#[inline(always)]
fn embedded_ports<B: Bytes + ?Sized>(bytes: &B, offset: u32, embedded: &mut Embedded) -> Option<()> {
    let [a, b, c, d, e, f, _, _]: [u8; 8] = bytes.load(offset)?;
    embedded.transport = offset as u16;
    match embedded.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            embedded.source_port = [a, b];
            embedded.destination_port = [c, d];
        }
        protocol::ICMP | protocol::ICMPV6 => {
            embedded.source_port = [e, f];
            embedded.destination_port = [a, b];
        }
        _ => {}
    }
    embedded.present = true;
    Some(())
}
