//! Map types stand in memory, where the programs read and write them, as their bytes say.

use core::mem::offset_of;

use auth_ebpf_abi::packet::Ports;
use auth_ebpf_abi::{
    Address, AddressEntry, AffinityEntry, AffinityKey, AuthEntry, AuthKey, BackendEntry, BackendKey,
    ConnectionEntry, ConnectionKey, Counter, EndpointEntry, Event, FragmentEntry, FragmentKey, Held, Layout,
    NodeEntry, OutsideEntry, OutsideKey, PendingEntry, PolicyClasses, PolicyEntry, PolicyKey, QuotaEntry,
    ServiceEntry, ServiceKey, UplinkEntry,
};
use proptest::prelude::*;

/// Checks that the bytes of a value with one field set lie where the compiler has put that field.
macro_rules! fields {
    ($type:ident { $($field:ident = $value:expr),* $(,)? }) => {$({
        let value = $type { $field: $value, ..$type::default() };
        let bytes = value.to_bytes();
        let touched: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        let start = offset_of!($type, $field);
        let end = start + size_of_val(&value.$field);
        assert_eq!(touched, (start..end).collect::<Vec<_>>(), "{}.{}", stringify!($type), stringify!($field));
        assert_eq!($type::from_bytes(&bytes), Some(value));
    })*};
}

const ADDRESS: Address = Address([0xff; 16]);

#[test]
fn bytes_lie_where_the_fields_are() {
    fields!(AddressEntry { identity = u32::MAX, node = u16::MAX, flags = u16::MAX });
    fields!(EndpointEntry {
        identity = u32::MAX,
        ifindex = u32::MAX,
        epoch = u32::MAX,
        bridge = u32::MAX,
        direct_mtu = u32::MAX
    });
    fields!(PolicyClasses { ingress = u32::MAX, ingress_any = u32::MAX, egress = u32::MAX, egress_any = u32::MAX });
    fields!(AuthKey { local = u32::MAX, remote = u32::MAX, node = u16::MAX, auth_type = 255, pad = 255 });
    fields!(AuthEntry { expires = u64::MAX, epoch = u32::MAX, flags = u32::MAX });
    fields!(NodeEntry { expires = u64::MAX, epoch = u32::MAX, acknowledged = u32::MAX });
    fields!(PolicyKey { local = u32::MAX, remote = u32::MAX, direction = 255, protocol = 255, port = [255; 2] });
    fields!(PolicyEntry {
        precedence = u32::MAX, cookie = u32::MAX, port_prefix = 255, deny = 255, auth_type = 255,
        auth_explicit = 255, encryption = 255, audit = 255, pad = [255; 2],
    });
    fields!(ConnectionKey {
        local = ADDRESS, remote = ADDRESS, ports = Ports::new([255; 2], [255; 2]), kind = u32::MAX,

    });
    fields!(ConnectionEntry {
        last_seen = u64::MAX, valid_until = u64::MAX, local_identity = u32::MAX, remote_identity = u32::MAX,
        generation = u32::MAX, ifindex = u32::MAX, peer_ifindex = u32::MAX, peer_bridge = u32::MAX,
        direction = 255, flags = 255, state = 255, auth_type = 255, node = u16::MAX,
        translation_port = [255; 2], translation = ADDRESS,
    });
    assert_eq!(QuotaEntry { established: u64::MAX }.to_bytes(), [255; 8]);
    assert_eq!(PendingEntry { pending: u32::MAX }.to_bytes(), [255; 4]);
    fields!(FragmentKey {
        source = ADDRESS, destination = ADDRESS, identification = u32::MAX, ifindex = u32::MAX,
        protocol = 255, direction = 255, pad = [255; 6],
    });
    fields!(FragmentEntry {
        expires = u64::MAX, source_port = [255; 2], destination_port = [255; 2], end = u16::MAX,
        protocol = 255, pad = 255,
    });
    fields!(Held {
        since = u64::MAX, ifindex = u32::MAX, ingress_ifindex = u32::MAX, local = u32::MAX, remote = u32::MAX,
        node = u16::MAX, auth_type = 255, hook = 255, units = u32::MAX, stage = u32::MAX, pad = u32::MAX,
    });
    fields!(ServiceKey { address = ADDRESS, port = [255; 2], protocol = 255, pad = [255; 5] });
    fields!(ServiceEntry { set = u32::MAX, backends = u32::MAX, affinity = u32::MAX, pad = u32::MAX });
    fields!(BackendKey { set = u32::MAX, slot = u32::MAX });
    fields!(BackendEntry { address = ADDRESS, port = [255; 2], pad = [255; 6] });
    fields!(AffinityKey { client = ADDRESS, set = u32::MAX, pad = u32::MAX });
    fields!(AffinityEntry { address = ADDRESS, until = u64::MAX, port = [255; 2], pad = [255; 6] });
    fields!(OutsideKey { remote = ADDRESS, ports = Ports::new([255; 2], [255; 2]), protocol = u32::MAX });
    assert_eq!(OutsideEntry { address: ADDRESS }.to_bytes(), [255; 16]);
    assert_eq!(UplinkEntry { uplink: u32::MAX }.to_bytes(), [255; 4]);
    fields!(Counter { packets = u64::MAX, bytes = u64::MAX });
}

#[test]
fn bytes_of_events_lie_where_the_fields_are() {
    fields!(Event {
        time = u64::MAX, source = ADDRESS, destination = ADDRESS, source_port = [255; 2],
        destination_port = [255; 2], local = u32::MAX, remote = u32::MAX, ifindex = u32::MAX,
        length = u32::MAX, cookie = u32::MAX, node = u16::MAX, kind = 255, verdict = 255, reason = 255,
        hook = 255, direction = 255, auth_type = 255, protocol = 255, encrypted = 255, reply = 255,
        service = ADDRESS, service_port = [255; 2], pad = [255; 3],
    });
}

#[test]
fn integers_are_in_host_order() {
    let entry = AddressEntry { identity: 0x0102_0304, node: 0x0506, flags: 0x0708 };
    let expected = [
        0x0102_0304_u32.to_ne_bytes().to_vec(),
        0x0506_u16.to_ne_bytes().to_vec(),
        0x0708_u16.to_ne_bytes().to_vec(),
    ];
    assert_eq!(entry.to_bytes().to_vec(), expected.concat());
}

#[test]
fn policy_keys_are_matched_from_the_left() {
    assert_eq!(offset_of!(PolicyKey, protocol) * 8, PolicyKey::FIXED_BITS as usize);
    assert_eq!(size_of::<PolicyKey>() * 8, PolicyKey::FULL_BITS as usize);
    assert_eq!(PolicyKey::prefix_len(Some(16)), PolicyKey::FULL_BITS);
}

proptest! {
    #[test]
    fn events_read_back(bytes in prop::array::uniform32(any::<u8>())) {
        let bytes = [bytes, bytes, bytes].concat();
        let bytes = &bytes[..size_of::<Event>()];
        let event = Event::from_bytes(bytes).expect("the right length");
        let again = event.to_bytes();
        prop_assert_eq!(again.as_slice(), bytes);
        prop_assert_eq!(Event::from_bytes(&bytes[1..]), None);
    }
}

/// What stands in a slot is the key or value itself.
mod in_slots {
    use auth_ebpf_abi::{AsSlotKey, AsSlotValue, Head, Multipliers, SlotKey};

    use super::*;

    fn key<K: AsSlotKey<N> + PartialEq + std::fmt::Debug, const N: usize>(key: &K) -> SlotKey<N> {
        let slot = key.to_slot();
        assert_eq!(K::from_slot(&slot), *key);
        assert_eq!(Head::tail(slot.tail), slot.tail, "it fits into the head");
        assert_eq!(Head::difference(Head::with_reach(Head::LIVE | slot.tail, 127), slot.tail), 0);
        assert_ne!(Head::difference(Head::LEFT | slot.tail, slot.tail), 0);
        slot
    }

    fn value<V: AsSlotValue<M> + PartialEq + std::fmt::Debug, const M: usize>(value: &V) {
        assert_eq!(V::from_slot(value.to_slot()), *value);
    }

    proptest! {
        #[test]
        fn keys_and_values_come_back(
            a in any::<u32>(), b in any::<u32>(), c in any::<u64>(), node in any::<u16>(),
            bytes in any::<[u8; 4]>(), flags in any::<[bool; 4]>(), address in any::<[u8; 16]>(),
            prefix_len in 72_u32..=96,
        ) {
            let [first, second, port @ ..] = bytes;
            key(&Address(address));
            key(&node);
            key(&AuthKey { local: a, remote: b, node, auth_type: first, pad: second });
            key(&(PolicyKey { local: a, remote: b, direction: first, protocol: second, port }, prefix_len));
            value(&AddressEntry { identity: a, node, flags: b as u16 });
            value(&NodeEntry { expires: c, epoch: a, acknowledged: b });
            value(&AuthEntry { expires: c, epoch: a, flags: b });
            let [deny, auth_explicit, encryption, audit] = flags.map(u8::from);
            value(&PolicyEntry {
                precedence: a, cookie: b, port_prefix: first, deny, auth_type: second, auth_explicit,
                encryption, audit, pad: [0; 2],
            });
        }

        /// A key that is shortened where it stands is the shorter key. Between any protocol and all ports of one
        /// there is no length.
        #[test]
        fn prefixes_of_keys_are_shortened_in_place(
            local in any::<u32>(), remote in any::<u32>(), bytes in any::<[u8; 4]>(),
            port_bits in prop::option::of(0_u32..=16),
        ) {
            let [direction, protocol, port @ ..] = bytes;
            let whole = PolicyKey { local, remote, direction, protocol, port };
            let length = PolicyKey::prefix_len(port_bits);
            let shortened = (whole, PolicyKey::FULL_BITS).to_slot().shortened(length);
            prop_assert_eq!(shortened, (whole.masked(length), length).to_slot());
        }

        /// Keys that count up, which most do, spread as if they were at random.
        #[test]
        fn homes_are_spread(seed in any::<u64>()) {
            const SLOTS: usize = 1 << 12;
            let multipliers = Multipliers::from_seed(seed);
            let mut counts = vec![0_u32; SLOTS];
            for number in 0..SLOTS as u32 {
                let address = Address::from_v4((0x0b00_0000 + number).to_be_bytes());
                counts[multipliers.home(&key(&address), SLOTS) as usize] += 1;
            }
            let empty = counts.iter().filter(|count| **count == 0).count();
            prop_assert!(empty < SLOTS * 45 / 100, "{empty} of {SLOTS} are nobody's home");
            prop_assert!(counts.into_iter().max() < Some(16));
        }
    }
}
