//! The parser: what it finds, and that no bytes upset it.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "decide/frames.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod frames;

use auth_ebpf_abi::Address;
use auth_ebpf_abi::packet::{
    Bytes, Fragment, Frame, Number, Packet, icmp, parse_ethernet, parse_ip, protocol, read_directly,
};
use frames::{Parts, ack, ethernet, packet, syn, tagged, udp};
use proptest::prelude::*;

const A: Address = Address::from_v4([10, 0, 0, 1]);
const B: Address = Address::from_v4([10, 0, 0, 2]);
const C: Address = Address([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const D: Address = Address([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);

fn parse(bytes: &[u8]) -> Option<Packet> {
    let mut packet = Packet::default();
    parse_ip(bytes, &mut packet).map(|_| packet)
}

#[test]
fn ports_and_flags_are_found() {
    for (source, destination) in [(A, B), (C, D)] {
        let found = parse(&syn((source, 1000), (destination, 80)).ip()).unwrap();
        assert_eq!((found.source, found.destination), (source, destination));
        assert_eq!(
            (found.source_port(), found.destination_port()),
            (1000_u16.to_be_bytes(), 80_u16.to_be_bytes())
        );
        assert_eq!((found.protocol, found.hop_limit, found.is_syn()), (protocol::TCP, 64, true));
        assert!(!parse(&ack((source, 1), (destination, 2)).ip()).unwrap().is_syn());
    }
    let sctp = packet(A, B, protocol::SCTP, vec![0, 7, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parse(&sctp.ip()).unwrap().destination_port(), [0, 8]);
}

#[test]
fn icmp_shows_type_and_identifier() {
    let echo = parse(&frames::icmp(A, B, icmp::ECHO, 0x1234).ip()).unwrap();
    assert_eq!((echo.destination_port(), echo.source_port()), ([icmp::ECHO, 0], [0x12, 0x34]));
    let error = parse(&frames::icmp(A, B, 3, 0x1234).ip()).unwrap();
    assert_eq!((error.destination_port(), error.source_port()), ([3, 0], [0, 0]));
    assert!(parse(&frames::icmp(C, D, icmp::V6_ECHO, 1).ip()).unwrap().is_echo_request());
    assert!(parse(&frames::icmp(C, D, icmp::V6_ECHO_REPLY, 1).ip()).unwrap().is_echo_reply());
}

#[test]
fn options_and_extension_headers_are_skipped() {
    let with_options = Parts { options: vec![1; 40], ..udp((A, 5), (B, 6)) };
    assert_eq!(parse(&with_options.ip()).unwrap().destination_port(), [0, 6]);
    for number in [
        protocol::HOP_BY_HOP,
        protocol::DESTINATION_OPTIONS,
        protocol::MOBILITY,
        protocol::HIP,
        protocol::SHIM6,
    ] {
        let long = [vec![2], vec![0; 22]].concat();
        let with_extensions =
            Parts { extensions: vec![(number, vec![0; 7]), (number, long)], ..udp((C, 5), (D, 6)) };
        let found = parse(&with_extensions.ip()).unwrap();
        assert_eq!((found.protocol, found.destination_port()), (protocol::UDP, [0, 6]));
    }
}

#[test]
fn too_many_extension_headers_are_refused() {
    let with = |count| Parts { extensions: vec![(60, vec![0; 7]); count], ..udp((C, 5), (D, 6)) };
    assert!(parse(&with(5).ip()).is_some());
    assert!(parse(&with(6).ip()).is_none());
}

#[test]
fn a_routing_header_with_a_way_to_go_is_refused() {
    let with = |left| Parts { extensions: vec![(43, vec![0, 4, left, 0, 0, 0, 0])], ..udp((C, 5), (D, 6)) };
    assert!(parse(&with(0).ip()).is_some());
    assert!(parse(&with(1).ip()).is_none());
}

#[test]
fn mapped_addresses_in_a_real_ipv6_header_are_refused() {
    for (source, destination) in [(A, D), (C, B)] {
        assert!(parse(&udp((source, 1), (destination, 2)).ip()).is_none());
    }
}

#[test]
fn fragments_show_what_they_have() {
    let first = Parts {
        fragment: 0x2000,
        payload: [udp((A, 5), (B, 6)).payload, vec![0; 4]].concat(),
        ..udp((A, 5), (B, 6))
    };
    let found = parse(&first.ip()).unwrap();
    assert_eq!((found.fragment, found.destination_port(), found.fragment_end), (Fragment::First, [0, 6], 16));
    let later = parse(&Parts { fragment: 0x00b9, ..udp((A, 5), (B, 6)) }.ip()).unwrap();
    assert_eq!((later.fragment, later.destination_port()), (Fragment::Later, [0, 0]));
    assert_eq!(later.fragment_offset, 0xb9 * 8);
    for (offset, expected) in
        [(0_u16, Fragment::Whole), (1, Fragment::First), (8, Fragment::Later), (9, Fragment::Later)]
    {
        let [high, low] = offset.to_be_bytes();
        let header = (44, vec![0, high, low, 1, 2, 3, 4]);
        let payload = [udp((C, 5), (D, 6)).payload, vec![0; 4]].concat();
        let found = parse(
            &Parts { extensions: vec![header.clone()], payload: payload.clone(), ..udp((C, 5), (D, 6)) }.ip(),
        )
        .unwrap();
        assert_eq!((found.fragment, found.identification), (expected, 0x0102_0304));
        assert_eq!(found.protocol, protocol::UDP);
        assert_eq!(found.destination_port(), if expected == Fragment::Later { [0, 0] } else { [0, 6] });
        let twice = Parts { extensions: vec![header.clone(), header], payload, ..udp((C, 5), (D, 6)) };
        assert_eq!(parse(&twice.ip()).is_some(), expected == Fragment::Whole || expected == Fragment::Later);
    }
}

#[test]
fn a_first_fragment_without_its_transport_header_is_broken() {
    for (parts, length) in [(syn((A, 5), (B, 6)), 16), (udp((A, 5), (B, 6)), 0), (udp((A, 5), (B, 6)), 12)] {
        let mut parts = Parts { fragment: 0x2000, ..parts };
        parts.payload.resize(length, 0);
        assert_eq!(parse(&parts.ip()).unwrap().fragment, Fragment::Broken, "{length}");
    }
}

#[test]
fn errors_show_what_they_are_about() {
    for (kind, source, destination) in [(icmp::UNREACHABLE, A, B), (2, C, D)] {
        let inner = udp((destination, 7), (source, 8)).ip();
        let mut parts = frames::icmp(source, destination, kind, 0);
        parts.payload.extend(&inner);
        let embedded = parse(&parts.ip()).unwrap().embedded;
        assert!(embedded.present);
        assert_eq!(
            (embedded.source, embedded.destination, embedded.protocol),
            (destination, source, protocol::UDP)
        );
        assert_eq!((embedded.source_port, embedded.destination_port), ([0, 7], [0, 8]));
        parts.payload.truncate(8 + inner.len() - 8);
        assert!(!parse(&parts.ip()).unwrap().embedded.present, "cut short");
    }
    assert!(!parse(&frames::icmp(A, B, icmp::ECHO, 0).ip()).unwrap().embedded.present);
}

#[test]
fn lengths_that_do_not_add_up_are_refused() {
    for (offset, value) in [(0, 0x44), (0, 0x35), (2, 0xff), (3, 19), (3, 27)] {
        let mut bytes = udp((A, 5), (B, 6)).ip();
        bytes[offset] = value;
        // A length beyond the packet is the receiver's to refuse; the headers are all there.
        let expected = offset == 2;
        assert_eq!(parse(&bytes).is_some(), expected, "{offset} {value}");
    }
    let mut bytes = udp((C, 5), (D, 6)).ip();
    bytes[5] = 7;
    assert!(parse(&bytes).is_none());
}

#[test]
fn one_vlan_tag_is_looked_through_where_allowed() {
    let frame = udp((A, 5), (B, 6)).ethernet();
    let mut packet = Packet::default();
    assert_eq!(parse_ethernet(tagged(&frame).as_slice(), true, &mut packet), Some(Frame::Ip));
    assert_eq!(packet.source, A);
    assert_eq!(parse_ethernet(tagged(&frame).as_slice(), false, &mut packet), Some(Frame::Other(0x8100)));
    assert_eq!(
        parse_ethernet(tagged(&tagged(&frame)).as_slice(), true, &mut packet),
        Some(Frame::Other(0x8100))
    );
}

#[test]
fn padding_does_not_stand_in_for_a_header() {
    // An IP packet that says it ends after its header, in a frame that goes on.
    let mut bytes = udp((A, 5), (B, 6)).ethernet();
    bytes[14 + 3] = 20;
    let mut found = Packet::default();
    assert_eq!(parse_ethernet(bytes.as_slice(), false, &mut found), None);
    assert_eq!(
        parse_ethernet(ethernet(0x88cc, &[0; 46]).as_slice(), false, &mut found),
        Some(Frame::Other(0x88cc))
    );
}

fn addresses(v4: bool) -> BoxedStrategy<Address> {
    if v4 {
        any::<[u8; 4]>().prop_map(Address::from_v4).boxed()
    } else {
        any::<[u8; 16]>().prop_map(Address).prop_filter("mapped", |address| !address.is_v4()).boxed()
    }
}

/// A packet of which only the beginning lies where it can be read without a helper.
struct Partly<'a> {
    bytes: &'a [u8],
    directly: u32,
}

impl Bytes for Partly<'_> {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes.load(offset)
    }

    fn numbers_at<const OFFSET: u32, T: Number, const N: usize>(&self) -> Option<[T; N]> {
        let end = OFFSET + u32::try_from(size_of::<[T; N]>()).unwrap();
        if end <= self.directly { self.numbers(OFFSET) } else { None }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_bytes_upset_it(bytes in prop::collection::vec(any::<u8>(), 0..200), vlan: bool) {
        let mut packet = Packet::default();
        let _ = parse_ethernet(bytes.as_slice(), vlan, &mut packet);
        let _ = parse_ip(bytes.as_slice(), &mut packet);
    }

    /// The same with a beginning that gets further.
    #[test]
    fn no_bytes_behind_a_good_beginning_upset_it(
        kind in prop::sample::select(vec![(0x0800_u16, 0x40_u8), (0x86dd, 0x60), (0x8100, 0x08), (0x0806, 0)]),
        bytes in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        let mut bytes = bytes;
        bytes[0] = (bytes[0] & 0x0f) | kind.1;
        let mut packet = Packet::default();
        let _ = parse_ethernet(ethernet(kind.0, &bytes).as_slice(), true, &mut packet);
    }

    #[test]
    fn what_was_built_is_found(
        (source, destination) in any::<bool>().prop_flat_map(|v4| (addresses(v4), addresses(v4))),
        ports: (u16, u16),
        options in (0..10_usize).prop_map(|words| vec![1; words * 4]),
        extensions in prop::collection::vec((prop::sample::select(vec![0_u8, 60, 135]), 0..3_u8), 0..5),
        cut in 0..60_usize,
    ) {
        let extensions = extensions.into_iter().map(|(number, words)| {
            let mut content = vec![0; 7 + usize::from(words) * 8];
            content[0] = words;
            (number, content)
        }).collect();
        let parts = Parts { options, extensions, ..syn((source, ports.0), (destination, ports.1)) };
        let bytes = parts.ip();
        let found = parse(&bytes).unwrap();
        prop_assert_eq!((found.source, found.destination), (source, destination));
        prop_assert_eq!(found.source_port(), ports.0.to_be_bytes());
        prop_assert_eq!(found.destination_port(), ports.1.to_be_bytes());
        // Cut anywhere before the end of the word that has TCP's flags, it is refused.
        let kept = bytes.len() - cut.min(bytes.len());
        let enough = kept + 4 >= bytes.len();
        prop_assert_eq!(parse(&bytes[..kept]).is_some(), enough);
    }
    /// The kernel brings so much to the linear part, and no byte more is needed there.
    #[test]
    fn what_is_read_directly_is_enough(
        (source, destination) in any::<bool>().prop_flat_map(|v4| (addresses(v4), addresses(v4))),
        ports: (u16, u16),
        options in (0..3_usize).prop_map(|words| vec![1; words * 4]),
        extended: bool,
        kind in 0..4_usize,
        is_tagged: bool,
    ) {
        let (from, to) = ((source, ports.0), (destination, ports.1));
        let parts = match kind {
            0 => syn(from, to),
            1 => udp(from, to),
            2 => frames::init(from, to),
            _ => frames::icmp(source, destination, if source.is_v4() { icmp::ECHO } else { icmp::V6_ECHO }, 7),
        };
        let extensions = if extended { vec![(protocol::DESTINATION_OPTIONS, vec![0; 7])] } else { vec![] };
        let ip = Parts { options, extensions, ..parts };
        let frame = if is_tagged { tagged(&ip.ethernet()) } else { ip.ethernet() };
        let directly = |at_ethernet| read_directly(at_ethernet, source.is_v4() && !is_tagged);
        let parsed = |bytes: &dyn Fn(&mut Packet) -> Option<Frame>| {
            let mut packet = Packet::default();
            bytes(&mut packet).map(|_| packet)
        };
        let partly = Partly { bytes: &frame, directly: directly(true) };
        prop_assert!(parsed(&|packet| parse_ethernet(&partly, true, packet)).is_some());
        prop_assert_eq!(
            parsed(&|packet| parse_ethernet(&partly, true, packet)),
            parsed(&|packet| parse_ethernet(frame.as_slice(), true, packet))
        );
        let ip = ip.ip();
        let partly = Partly { bytes: &ip, directly: read_directly(false, source.is_v4()) };
        prop_assert_eq!(
            parsed(&|packet| parse_ip(&partly, packet)),
            parsed(&|packet| parse_ip(ip.as_slice(), packet))
        );
    }
}
