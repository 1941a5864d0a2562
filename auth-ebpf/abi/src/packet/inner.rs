//! What a packet carries in an encapsulation, one layer deep.

use super::{Bytes, Fragment, Packet, ethertype, port, protocol};
use crate::Address;

/// Source and destination of the packet that this one carries: by VXLAN or Geneve at the ports that Linux and
/// IANA give them, by GRE, or as IP in IP. `None` if it carries none, or none that could be unpacked.
#[inline(always)]
pub fn parse_inner<B: Bytes + ?Sized>(bytes: &B, packet: &Packet) -> Option<(Address, Address)> {
    if matches!(packet.fragment, Fragment::Later | Fragment::Broken) {
        return None;
    }
    let offset = packet.payload;
    let (kind, offset) = match packet.protocol {
        // The version in its first byte says which it is.
        protocol::IPV4 | protocol::IPV6 => (ethertype::IPV4, offset),
        protocol::GRE => gre(bytes, offset)?,
        protocol::UDP => datagram(bytes, offset, u16::from_be_bytes(packet.destination_port()))?,
        _ => return None,
    };
    let offset = match kind {
        ethertype::TRANSPARENT_BRIDGING => frame(bytes, offset)?,
        ethertype::IPV4 | ethertype::IPV6 => offset,
        _ => return None,
    };
    addresses(bytes, offset)
}

/// The type of what a datagram to this port carries, and where that begins.
#[inline(always)]
fn datagram<B: Bytes + ?Sized>(bytes: &B, offset: u32, to: u16) -> Option<(u16, u32)> {
    const HEADER: u32 = 8;
    let offset = offset + HEADER;
    match to {
        port::VXLAN | port::VXLAN_LINUX => {
            let [flags, _, _, _]: [u8; 4] = bytes.load(offset)?;
            // Without a network identifier it is no VXLAN (RFC 7348).
            (flags & 0x08 != 0).then_some((ethertype::TRANSPARENT_BRIDGING, offset + HEADER))
        }
        port::GENEVE => {
            let [version, _, a, b]: [u8; 4] = bytes.load(offset)?;
            let options = u32::from(version & 0x3f) * 4;
            (version >> 6 == 0).then_some((u16::from_be_bytes([a, b]), offset + HEADER + options))
        }
        _ => None,
    }
}

/// The type of what GRE carries, and where that begins (RFC 2784, RFC 2890).
#[inline(always)]
fn gre<B: Bytes + ?Sized>(bytes: &B, offset: u32) -> Option<(u16, u32)> {
    const CHECKSUM: u8 = 0x80;
    const KEY: u8 = 0x20;
    const SEQUENCE: u8 = 0x10;
    let [flags, version, a, b]: [u8; 4] = bytes.load(offset)?;
    let word = |flag: u8| if flags & flag != 0 { 4 } else { 0 };
    let length = 4 + word(CHECKSUM) + word(KEY) + word(SEQUENCE);
    (version & 7 == 0).then_some((u16::from_be_bytes([a, b]), offset + length))
}

/// Where the IP packet of an Ethernet frame begins, behind one VLAN tag at most.
#[inline(always)]
fn frame<B: Bytes + ?Sized>(bytes: &B, offset: u32) -> Option<u32> {
    const HEADER: u32 = 14;
    let [a, b]: [u8; 2] = bytes.load(offset + 12)?;
    match u16::from_be_bytes([a, b]) {
        ethertype::IPV4 | ethertype::IPV6 => Some(offset + HEADER),
        ethertype::VLAN | ethertype::PROVIDER_VLAN => Some(offset + HEADER + 4),
        _ => None,
    }
}

#[inline(always)]
fn addresses<B: Bytes + ?Sized>(bytes: &B, offset: u32) -> Option<(Address, Address)> {
    let [version]: [u8; 1] = bytes.load(offset)?;
    match version >> 4 {
        4 => {
            let source = Address::from_v4(bytes.load(offset + 12)?);
            Some((source, Address::from_v4(bytes.load(offset + 16)?)))
        }
        6 => {
            let (source, destination) = (Address(bytes.load(offset + 8)?), Address(bytes.load(offset + 24)?));
            // As everywhere: a mapped address would pass for the IPv4 address.
            (!source.is_v4() && !destination.is_v4()).then_some((source, destination))
        }
        _ => None,
    }
}
