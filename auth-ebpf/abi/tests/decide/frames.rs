//! Packets to test with, built by hand so that wrong ones can be built as easily.

use auth_ebpf_abi::Address;
use auth_ebpf_abi::packet::{ethertype, protocol, tcp};

/// A packet in the making: addresses and what is behind the IP header.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) protocol: u8,
    pub(crate) hop_limit: u8,
    pub(crate) payload: Vec<u8>,
    /// Fragment bits of IPv4.
    pub(crate) fragment: u16,
    /// IPv4 options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers: number, and content from the second byte on.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
}

pub(crate) fn packet(source: Address, destination: Address, protocol: u8, payload: Vec<u8>) -> Parts {
    Parts {
        source,
        destination,
        protocol,
        hop_limit: 64,
        payload,
        fragment: 0,
        options: vec![],
        extensions: vec![],
    }
}

pub(crate) fn tcp(source: (Address, u16), destination: (Address, u16), flags: u8) -> Parts {
    let mut payload = vec![0; 20];
    payload[..2].copy_from_slice(&source.1.to_be_bytes());
    payload[2..4].copy_from_slice(&destination.1.to_be_bytes());
    payload[12] = 5 << 4;
    payload[13] = flags;
    packet(source.0, destination.0, protocol::TCP, payload)
}

pub(crate) fn syn(source: (Address, u16), destination: (Address, u16)) -> Parts {
    tcp(source, destination, tcp::SYN)
}

pub(crate) fn syn_ack(source: (Address, u16), destination: (Address, u16)) -> Parts {
    tcp(source, destination, tcp::SYN | tcp::ACK)
}

pub(crate) fn ack(source: (Address, u16), destination: (Address, u16)) -> Parts {
    tcp(source, destination, tcp::ACK)
}

pub(crate) fn udp(source: (Address, u16), destination: (Address, u16)) -> Parts {
    let mut payload = vec![0; 12];
    payload[..2].copy_from_slice(&source.1.to_be_bytes());
    payload[2..4].copy_from_slice(&destination.1.to_be_bytes());
    payload[5] = 12;
    packet(source.0, destination.0, protocol::UDP, payload)
}

/// SCTP's INIT.
pub(crate) fn init(source: (Address, u16), destination: (Address, u16)) -> Parts {
    sctp(source, destination, 0, 1)
}

/// SCTP's DATA.
pub(crate) fn data(source: (Address, u16), destination: (Address, u16)) -> Parts {
    sctp(source, destination, 7, 0)
}

fn sctp(source: (Address, u16), destination: (Address, u16), tag: u8, chunk: u8) -> Parts {
    let mut payload = vec![0; 16];
    payload[..2].copy_from_slice(&source.1.to_be_bytes());
    payload[2..4].copy_from_slice(&destination.1.to_be_bytes());
    payload[7] = tag;
    payload[12] = chunk;
    payload[15] = 4;
    packet(source.0, destination.0, protocol::SCTP, payload)
}

pub(crate) fn icmp(source: Address, destination: Address, kind: u8, identifier: u16) -> Parts {
    let number = if source.is_v4() { protocol::ICMP } else { protocol::ICMPV6 };
    let [high, low] = identifier.to_be_bytes();
    packet(source, destination, number, vec![kind, 0, 0, 0, high, low, 0, 1])
}

/// A message of neighbour discovery about `target`.
pub(crate) fn neighbour(
    kind: u8,
    source: Address,
    destination: Address,
    target: Address,
    hop_limit: u8,
) -> Parts {
    let payload = [&[kind, 0, 0, 0, 0, 0, 0, 0], target.0.as_slice()].concat();
    Parts { hop_limit, ..packet(source, destination, protocol::ICMPV6, payload) }
}

/// An ICMP error about a packet.
pub(crate) fn error(kind: u8, source: Address, destination: Address, about: &Parts) -> Parts {
    let mut parts = icmp(source, destination, kind, 0);
    parts.payload.extend(about.ip());
    parts
}

impl Parts {
    /// The IP packet.
    pub(crate) fn ip(&self) -> Vec<u8> {
        if self.source.is_v4() && self.destination.is_v4() { self.v4() } else { self.v6() }
    }

    /// The Ethernet frame.
    pub(crate) fn ethernet(&self) -> Vec<u8> {
        let v4 = self.source.is_v4() && self.destination.is_v4();
        ethernet(if v4 { ethertype::IPV4 } else { ethertype::IPV6 }, &self.ip())
    }

    fn v4(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = u16::try_from(header + self.payload.len()).unwrap();
        let mut bytes = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.hop_limit, self.protocol, 0, 0]);
        bytes.extend(&self.source.0[12..]);
        bytes.extend(&self.destination.0[12..]);
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        bytes
    }

    fn v6(&self) -> Vec<u8> {
        let mut numbers = self.extensions.iter().map(|(number, _)| *number).chain([self.protocol]);
        let first = numbers.next().unwrap();
        let mut payload = vec![];
        for ((_, content), next) in self.extensions.iter().zip(numbers) {
            payload.push(next);
            payload.extend(content);
        }
        payload.extend(&self.payload);
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend([first, self.hop_limit]);
        bytes.extend(self.source.0);
        bytes.extend(self.destination.0);
        bytes.extend(payload);
        bytes
    }
}

pub(crate) fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(kind.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// What is behind an outer IP header in each encapsulation of `inner`: a name, the protocol, and the rest.
pub(crate) fn encapsulations(inner: &Parts) -> Vec<(&'static str, u8, Vec<u8>)> {
    let v4 = inner.source.is_v4();
    let kind = if v4 { ethertype::IPV4 } else { ethertype::IPV6 }.to_be_bytes();
    let (ip, frame) = (inner.ip(), inner.ethernet());
    let to = |port: u16, header: &[u8], rest: &[u8]| {
        let [high, low] = port.to_be_bytes();
        [&[0x80, 0, high, low, 0, 0, 0, 0], header, rest].concat()
    };
    let vxlan = [8, 0, 0, 0, 0, 0, 1, 0];
    let bridged = ethertype::TRANSPARENT_BRIDGING.to_be_bytes();
    let all_words = [&[0xb0, 0], kind.as_slice(), &[0; 12]].concat();
    let with_options = [&[2, 0], bridged.as_slice(), &[0; 12]].concat();
    vec![
        ("IP in IP", if v4 { protocol::IPV4 } else { protocol::IPV6 }, ip.clone()),
        ("GRE", protocol::GRE, [&[0, 0], kind.as_slice(), &ip].concat()),
        ("GRE with all its words", protocol::GRE, [all_words, ip.clone()].concat()),
        ("GRETAP with a key", protocol::GRE, [&[0x20, 0], bridged.as_slice(), &[0; 4], &frame].concat()),
        ("VXLAN", protocol::UDP, to(4789, &vxlan, &frame)),
        ("VXLAN at Linux's port", protocol::UDP, to(8472, &vxlan, &frame)),
        ("VXLAN with a tag", protocol::UDP, to(4789, &vxlan, &tagged(&frame))),
        ("Geneve", protocol::UDP, to(6081, &[&[0, 0], kind.as_slice(), &[0; 4]].concat(), &ip)),
        ("Geneve with options", protocol::UDP, to(6081, &with_options, &frame)),
    ]
}

/// The same frame with a VLAN tag.
pub(crate) fn tagged(frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &ethertype::VLAN.to_be_bytes(), &[0, 100], rest].concat()
}

pub(crate) fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2];
    payload.extend(sender);
    payload.extend([0; 6]);
    payload.extend(target);
    ethernet(ethertype::ARP, &payload)
}

/// The first and a later fragment of a datagram whose first 32 bytes begin with `parts`' payload.
pub(crate) fn fragments(parts: Parts) -> (Parts, Parts) {
    let mut first = parts.clone();
    first.payload.resize(32, 0);
    let mut later = Parts { payload: vec![0; 20], ..parts };
    if first.source.is_v4() {
        first.fragment = 0x2000;
        later.fragment = 4;
    } else {
        first.extensions = vec![(44, vec![0, 0, 1, 0, 0, 0, 9])];
        later.extensions = vec![(44, vec![0, 0, 32, 0, 0, 0, 9])];
    }
    (first, later)
}
