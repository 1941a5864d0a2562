//! The parser: Ethernet, at most one VLAN tag, IPv4 with options, IPv6 with a bounded number of extension
//! headers, and what tells flows of the transport protocols apart.

use super::{Bytes, Frame, Packet, ethertype, icmp, protocol};
use crate::Address;

/// IPv6 extension headers before a packet counts as unparsable.
const MAX_EXTENSION_HEADERS: u32 = 6;
const ETHERNET_HEADER: u32 = 14;
const VLAN_TAG: u32 = 4;

/// Parses an Ethernet frame into `packet`; `vlan` allows one VLAN tag. `None` if it cannot be parsed.
#[inline(always)]
pub fn parse_ethernet<B: Bytes + ?Sized>(bytes: &B, vlan: bool, packet: &mut Packet) -> Option<Frame> {
    let mut offset = ETHERNET_HEADER;
    let mut ether = u16::from_be_bytes(bytes.load(offset - 2)?);
    if vlan && matches!(ether, ethertype::VLAN | ethertype::PROVIDER_VLAN) {
        offset += VLAN_TAG;
        ether = u16::from_be_bytes(bytes.load(offset - 2)?);
    }
    match ether {
        ethertype::IPV4 => parse_v4(bytes, offset, packet).map(|()| Frame::Ip),
        ethertype::IPV6 => parse_v6(bytes, offset, packet).map(|()| Frame::Ip),
        ethertype::ARP => parse_arp(bytes, offset, packet).map(|()| Frame::Arp),
        other => Some(Frame::Other(other)),
    }
}

/// Parses an IP packet that begins at `offset` into `packet`. `None` if it cannot be parsed.
#[inline(always)]
pub fn parse_ip<B: Bytes + ?Sized>(bytes: &B, offset: u32, packet: &mut Packet) -> Option<Frame> {
    let [first] = bytes.load(offset)?;
    match first >> 4 {
        4 => parse_v4(bytes, offset, packet)?,
        6 => parse_v6(bytes, offset, packet)?,
        _ => return None,
    }
    Some(Frame::Ip)
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
fn parse_v4<B: Bytes + ?Sized>(bytes: &B, offset: u32, packet: &mut Packet) -> Option<()> {
    let header: [u8; 20] = bytes.load(offset)?;
    let [version, _, l0, l1, _, _, f0, f1, hop_limit, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        header;
    let length = u32::from(version & 0x0f) * 4;
    let total = u32::from(u16::from_be_bytes([l0, l1]));
    if version >> 4 != 4 || length < 20 || total < length {
        return None;
    }
    const MORE_OR_OFFSET: u16 = 0x3fff;
    packet.source = Address::from_v4([s0, s1, s2, s3]);
    packet.destination = Address::from_v4([d0, d1, d2, d3]);
    packet.protocol = protocol;
    packet.hop_limit = hop_limit;
    packet.fragment = u16::from_be_bytes([f0, f1]) & MORE_OR_OFFSET != 0;
    if packet.fragment { Some(()) } else { transport(bytes, offset + length, total - length, packet) }
}

#[inline(always)]
fn parse_v6<B: Bytes + ?Sized>(bytes: &B, offset: u32, packet: &mut Packet) -> Option<()> {
    let [version, _, _, _, l0, l1, next, hop_limit]: [u8; 8] = bytes.load(offset)?;
    packet.source = Address(bytes.load(offset + 8)?);
    packet.destination = Address(bytes.load(offset + 24)?);
    packet.hop_limit = hop_limit;
    // A mapped address in a real IPv6 header would pass for the IPv4 address.
    if version >> 4 != 6 || packet.source.is_v4() || packet.destination.is_v4() {
        return None;
    }
    let payload = u32::from(u16::from_be_bytes([l0, l1]));
    // The kernel's own big segments (BIG TCP) have no length here, but a jumbo option.
    let mut left = if payload == 0 && next == protocol::HOP_BY_HOP { u32::MAX } else { payload };
    let mut offset = offset + 40;
    let mut next = next;
    for _ in 0..MAX_EXTENSION_HEADERS {
        packet.protocol = next;
        match next {
            protocol::FRAGMENT => {
                packet.fragment = true;
                return Some(());
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
            _ => return transport(bytes, offset, left, packet),
        }
    }
    None
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
    let [a, b, c, d]: [u8; 4] = bytes.load(offset)?;
    if packet.is_icmp() {
        packet.destination_port = [a, b];
        if matches!(a, icmp::ECHO | icmp::ECHO_REPLY | icmp::V6_ECHO | icmp::V6_ECHO_REPLY) && left >= 8 {
            packet.source_port = bytes.load(offset + 4)?;
        }
        return Some(());
    }
    packet.source_port = [a, b];
    packet.destination_port = [c, d];
    if packet.protocol == protocol::TCP {
        let [flags] = bytes.load(offset + 13)?;
        packet.tcp_flags = flags;
    }
    Some(())
}
