//! The little that a tunnel reads of inner packets and of WireGuard's own messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const UDP: u8 = 17;
/// WireGuard pads what it encrypts to this.
const PADDING: usize = 16;
/// What the AEAD's tag and the header add to an inner packet.
pub(super) const OVERHEAD: usize = 32;

/// Kinds of WireGuard messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Initiation,
    Response,
    Cookie,
    Data,
}

/// The kind and, in all but an initiation, the receiver's index, by which a message finds its peer.
pub(super) fn message(datagram: &[u8]) -> Option<(Kind, u32)> {
    let kind = match u32::from_le_bytes(array(datagram, 0)?) {
        1 => return Some((Kind::Initiation, 0)),
        2 => Kind::Response,
        3 => Kind::Cookie,
        4 => Kind::Data,
        _ => return None,
    };
    let offset = if kind == Kind::Response { 8 } else { 4 };
    Some((kind, u32::from_le_bytes(array(datagram, offset)?)))
}

/// Destination of an IP packet whose header agrees with its length.
pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 && packet.len() == usize::from(u16::from_be_bytes(array(packet, 2)?)) => {
            Some(Ipv4Addr::from(array::<4>(packet, 16)?).into())
        }
        6 if packet.len() >= 40
            && packet.len() - 40 == usize::from(u16::from_be_bytes(array(packet, 4)?)) =>
        {
            Some(Ipv6Addr::from(array::<16>(packet, 24)?).into())
        }
        _ => None,
    }
}

/// The source port if this is UDP, not a fragment, and without IPv6 extension headers.
pub(super) fn udp_source_port(packet: &[u8]) -> Option<u16> {
    let header = match packet.first()? >> 4 {
        4 if *packet.get(9)? == UDP && u16::from_be_bytes(array(packet, 6)?) & 0x1fff == 0 => {
            usize::from(packet.first()? & 0x0f) * 4
        }
        6 if *packet.get(6)? == UDP => 40,
        _ => return None,
    };
    Some(u16::from_be_bytes(array(packet, header)?))
}

/// The length to which a packet is padded: a multiple of 16, but no longer than the MTU, so that padding
/// never makes a datagram that the underlay cannot carry. Hides the exact length of what is inside.
pub(super) fn padded_length(length: usize, mtu: usize) -> usize {
    length.next_multiple_of(PADDING).min(mtu).max(length)
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(total: usize, protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; total];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(total).unwrap().to_be_bytes());
        packet[9] = protocol;
        packet[16..20].copy_from_slice(&[10, 1, 2, 3]);
        packet[20..22].copy_from_slice(&51_871_u16.to_be_bytes());
        packet
    }

    #[test]
    fn destination_needs_a_true_length() {
        let mut packet = v4(28, UDP);
        assert_eq!(destination(&packet), Some("10.1.2.3".parse().unwrap()));
        packet.push(0);
        assert_eq!(destination(&packet), None);
        assert_eq!(destination(&packet[..27]), None);
        let mut packet = vec![0; 48];
        packet[0] = 0x60;
        packet[5] = 8;
        packet[39] = 1;
        assert_eq!(destination(&packet), Some("::1".parse().unwrap()));
        assert_eq!(destination(&packet[..40]), None);
    }

    #[test]
    fn udp_source_port_of_first_fragments_only() {
        let mut packet = v4(28, UDP);
        assert_eq!(udp_source_port(&packet), Some(51_871));
        packet[7] = 1;
        assert_eq!(udp_source_port(&packet), None);
        assert_eq!(udp_source_port(&v4(28, 6)), None);
    }

    #[test]
    fn padding_is_a_multiple_of_16_within_the_mtu() {
        assert_eq!(padded_length(0, 1420), 0);
        assert_eq!(padded_length(1, 1420), 16);
        assert_eq!(padded_length(100, 1420), 112);
        assert_eq!(padded_length(1409, 1420), 1420);
        assert_eq!(padded_length(1420, 1420), 1420);
    }

    #[test]
    fn messages_are_told_apart() {
        assert_eq!(message(&[1, 0, 0, 0]), Some((Kind::Initiation, 0)));
        assert_eq!(message(&[2, 0, 0, 0, 9, 9, 9, 9, 7, 0, 0, 0]), Some((Kind::Response, 7)));
        assert_eq!(message(&[4, 0, 0, 0, 8, 1, 0, 0]), Some((Kind::Data, 264)));
        assert_eq!(message(&[4, 0, 0, 1, 8, 1, 0, 0]), None);
        assert_eq!(message(&[3, 0, 0, 0, 8]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (message(&bytes), destination(&bytes), udp_source_port(&bytes));
        }
    }
}
