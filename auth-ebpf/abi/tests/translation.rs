//! Rewriting: that every translated packet is the one that the other end would have sent, checksums included.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "decide/checksum.rs"]
mod checksum;
#[path = "decide/frames.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod frames;

use auth_ebpf_abi::packet::{Packet, parse_ethernet, protocol};
use auth_ebpf_abi::{Address, Direction, Rewrite, Translation, TranslationKind, loopback, translate};
use checksum::sealed;
use frames::{Parts, error, tcp, udp};
use proptest::prelude::*;

const NETWORK: usize = 14;

/// A frame in memory, with checksums as hosts without offloads have them.
struct Bytes(Vec<u8>);

impl Bytes {
    fn mend(&mut self, offset: u32, difference: u32, optional: bool) -> Option<()> {
        let place = self.0.get_mut(offset as usize..)?.first_chunk_mut::<2>()?;
        let old = u16::from_ne_bytes(*place);
        if optional && old == 0 {
            return Some(());
        }
        let mut new = !fold(u32::from(!old) + u32::from(fold(difference)));
        if optional && new == 0 {
            new = 0xffff;
        }
        *place = new.to_ne_bytes();
        Some(())
    }
}

/// Sums of words in any order of bytes are the same, in that order.
fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

impl Rewrite for Bytes {
    const NETWORK: u32 = NETWORK as u32;

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        *self.0.get_mut(offset as usize..)?.first_chunk_mut()? = *bytes;
        Some(())
    }

    fn mend_network(&mut self, offset: u32, difference: u32) -> Option<()> {
        self.mend(offset, difference, false)
    }

    fn mend_transport(&mut self, offset: u32, difference: u32, optional: bool) -> Option<()> {
        self.mend(offset, difference, optional)
    }

    fn mend_pseudo(&mut self, offset: u32, difference: u32, optional: bool, _: bool) -> Option<()> {
        self.mend(offset, difference, optional)
    }
}

fn changed(parts: &Parts, direction: Direction, translation: &Translation) -> Vec<u8> {
    let mut bytes = Bytes(sealed(&parts.ethernet()));
    let mut header = Packet::default();
    parse_ethernet(bytes.0.as_slice(), false, &mut header).unwrap();
    translate(&mut bytes, &header, direction, translation).unwrap();
    bytes.0
}

fn translation(kind: u8, old: (Address, u16), new: (Address, u16)) -> Translation {
    let mut change = Translation::default();
    change.kind = kind;
    (change.old, change.old_port) = (old.0, old.1.to_be_bytes());
    (change.new, change.new_port) = (new.0, new.1.to_be_bytes());
    change
}

fn addresses() -> impl Strategy<Value = [Address; 3]> {
    let v4 = prop::array::uniform3(any::<[u8; 4]>()).prop_map(|three| three.map(Address::from_v4));
    let v6 = prop::array::uniform3(any::<[u8; 16]>()).prop_map(|three| {
        three.map(|mut octets| {
            octets[0] = 0xfd;
            Address(octets)
        })
    });
    prop_oneof![v4, v6]
}

fn payloads() -> impl Strategy<Value = (bool, Vec<u8>, usize)> {
    (any::<bool>(), prop::collection::vec(any::<u8>(), 0..40), 0..3_usize)
}

/// A datagram or segment with this content behind its header, and options where the family has them.
fn packet(
    udp_not_tcp: bool,
    from: (Address, u16),
    to: (Address, u16),
    content: &[u8],
    options: usize,
) -> Parts {
    let mut parts = if udp_not_tcp { udp(from, to) } else { tcp(from, to, 0x10) };
    parts.payload.extend(content);
    if udp_not_tcp {
        let length = u16::try_from(parts.payload.len()).unwrap();
        parts.payload[4..6].copy_from_slice(&length.to_be_bytes());
    }
    if from.0.is_v4() {
        parts.options = vec![1; options * 4];
    } else {
        parts.extensions = vec![(protocol::DESTINATION_OPTIONS, vec![0, 1, 4, 0, 0, 0, 0]); options];
    }
    parts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn what_is_translated_is_what_would_have_been_sent(
        [pod, old, new] in addresses(),
        ports in any::<[u16; 3]>(),
        (kind, content, options) in payloads(),
    ) {
        let (pod, old, new) = ((pod, ports[0]), (old, ports[1]), (new, ports[2]));
        let change = translation(TranslationKind::END, old, new);
        let out = packet(kind, pod, old, &content, options);
        let expected = sealed(&packet(kind, pod, new, &content, options).ethernet());
        prop_assert_eq!(changed(&out, Direction::Egress, &change), expected);
        let back = packet(kind, old, pod, &content, options);
        let expected = sealed(&packet(kind, new, pod, &content, options).ethernet());
        prop_assert_eq!(changed(&back, Direction::Ingress, &change), expected);
    }

    #[test]
    fn a_pod_meets_itself_by_an_address_that_is_nobodys(
        [pod, service, _] in addresses(),
        ports in any::<[u16; 3]>(),
        (kind, content, options) in payloads(),
    ) {
        let client = (pod, ports[0]);
        let (service, backend, meets) = ((service, ports[1]), (pod, ports[2]), (loopback(&pod), ports[0]));
        let change = translation(TranslationKind::HAIRPIN, service, backend);
        let out = packet(kind, client, service, &content, options);
        let expected = sealed(&packet(kind, meets, backend, &content, options).ethernet());
        prop_assert_eq!(changed(&out, Direction::Egress, &change), expected);
        let change = translation(TranslationKind::HAIRPIN_REPLY, meets, service);
        let back = packet(kind, backend, meets, &content, options);
        let expected = sealed(&packet(kind, service, client, &content, options).ethernet());
        prop_assert_eq!(changed(&back, Direction::Egress, &change), expected);
    }

    #[test]
    fn errors_are_what_they_would_have_been_about(
        [pod, old, new] in addresses(),
        ports in any::<[u16; 3]>(),
        (datagram, content, options) in payloads(),
        of_end in any::<bool>(),
    ) {
        let router = if pod.is_v4() { Address::from_v4([1, 2, 3, 4]) } else { Address([0xfc; 16]) };
        let kind = if of_end { TranslationKind::ERROR_OF_END } else { TranslationKind::ERROR };
        let unreachable = if pod.is_v4() { 3 } else { 1 };
        let about = |from, to| {
            let mut about = packet(datagram, from, to, &content, 0);
            // Its own checksum is nobody's business any more.
            let place = if datagram { 6 } else { 16 };
            about.payload[place..place + 2].fill(0);
            about.options = vec![1; if pod.is_v4() { options * 4 } else { 0 }];
            about
        };
        let (pod, old, new) = ((pod, ports[0]), (old, ports[1]), (new, ports[2]));
        let change = translation(kind, old, new);
        let sender = |end: (Address, u16)| if of_end { end.0 } else { router };
        let parts = error(unreachable, sender(old), pod.0, &about(pod, old));
        let expected = sealed(&error(unreachable, sender(new), pod.0, &about(pod, new)).ethernet());
        prop_assert_eq!(changed(&parts, Direction::Ingress, &change), expected);
        if of_end {
            let parts = error(unreachable, pod.0, old.0, &about(old, pod));
            let expected = sealed(&error(unreachable, pod.0, new.0, &about(new, pod)).ethernet());
            prop_assert_eq!(changed(&parts, Direction::Egress, &change), expected);
        }
    }
}

const POD: Address = Address::from_v4([10, 0, 0, 1]);
const OLD: Address = Address::from_v4([10, 96, 0, 1]);
const NEW: Address = Address::from_v4([10, 0, 0, 2]);

#[test]
fn a_datagram_without_checksum_keeps_none() {
    let change = translation(TranslationKind::END, (OLD, 80), (NEW, 8080));
    let mut frame = Bytes(sealed(&udp((POD, 1), (OLD, 80)).ethernet()));
    frame.0[NETWORK + 20 + 6..][..2].fill(0);
    let mut header = Packet::default();
    parse_ethernet(frame.0.as_slice(), false, &mut header).unwrap();
    translate(&mut frame, &header, Direction::Egress, &change).unwrap();
    assert_eq!(frame.0[NETWORK + 20 + 6..][..2], [0, 0]);
}

#[test]
fn a_later_fragment_has_no_ports_to_change() {
    let later = Parts { fragment: 2, payload: vec![7; 16], ..udp((POD, 1), (OLD, 80)) };
    let change = translation(TranslationKind::END, (OLD, 80), (NEW, 8080));
    let expected = sealed(&Parts { destination: NEW, ..later.clone() }.ethernet());
    assert_eq!(changed(&later, Direction::Egress, &change), expected);
}
