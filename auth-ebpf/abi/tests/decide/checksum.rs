//! Checksums by the book, for frames that were built without.

use auth_ebpf_abi::packet::{Fragment, Packet, parse_ethernet, protocol};

const NETWORK: usize = 14;

/// The frame with every checksum that the kernel would put into it.
pub(crate) fn sealed(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let mut header = Packet::default();
    parse_ethernet(frame.as_slice(), false, &mut header);
    if header.embedded.present && header.source.is_v4() {
        seal_v4(&mut frame, usize::from(header.embedded.network));
    }
    if header.source.is_v4() {
        seal_v4(&mut frame, NETWORK);
    }
    let transport = usize::from(header.transport);
    let place = match header.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        protocol::ICMP | protocol::ICMPV6 => 2,
        _ => return frame,
    };
    if header.fragment != Fragment::Whole {
        return frame;
    }
    let place = transport + place;
    frame[place..place + 2].fill(0);
    let body = &frame[transport..];
    let length = u32::try_from(body.len()).unwrap();
    let mut summed = if header.protocol == protocol::ICMP {
        vec![]
    } else {
        let (source, destination) = if header.source.is_v4() {
            (&header.source.0[12..], &header.destination.0[12..])
        } else {
            (header.source.0.as_slice(), header.destination.0.as_slice())
        };
        [source, destination, &length.to_be_bytes(), &[0, 0, 0, header.protocol]].concat()
    };
    summed.extend(body);
    let sum = match checksum(&summed) {
        0 if header.protocol == protocol::UDP => 0xffff,
        sum => sum,
    };
    frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn seal_v4(frame: &mut [u8], at: usize) {
    let length = usize::from(frame[at] & 15) * 4;
    frame[at + 10..at + 12].fill(0);
    let sum = checksum(&frame[at..at + length]);
    frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
