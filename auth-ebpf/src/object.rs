//! The embedded object, and what the kernel must hold once it is loaded.

use auth_ebpf_abi::{
    Address, AddressEntry, AffinityEntry, AffinityKey, BackendEntry, BackendKey, ConnectionEntry,
    ConnectionKey, Counter, EndpointEntry, FragmentEntry, FragmentKey, Held, Hook, OutsideEntry, OutsideKey,
    PendingEntry, QuotaEntry, ServiceEntry, ServiceKey, Slot, UplinkEntry, capacity, map, slots,
};
use aya::programs::TcAttachType;

/// The object that `build.rs` has built.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/datapath.bpf.o"));

/// Sizes of a map.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) key: usize,
    pub(crate) value: usize,
    pub(crate) capacity: usize,
}

const PREFIX_LEN: usize = size_of::<u32>();

/// Every pinned map.
pub(crate) const SHAPES: [Shape; 22] = [
    shape(map::CONFIG, size_of::<u32>(), size_of::<u64>(), capacity::CONFIG),
    in_slots(map::ADDRESSES, capacity::ADDRESSES),
    shape(map::PREFIXES, PREFIX_LEN + size_of::<Address>(), size_of::<AddressEntry>(), capacity::PREFIXES),
    shape(map::ENDPOINTS, size_of::<Address>(), size_of::<EndpointEntry>(), capacity::ENDPOINTS),
    in_slots(map::POLICY, capacity::POLICY),
    in_slots(map::NODES, capacity::NODES),
    in_slots(map::AUTH, capacity::AUTH),
    shape(map::CONNECTIONS, size_of::<ConnectionKey>(), size_of::<ConnectionEntry>(), capacity::CONNECTIONS),
    shape(map::HALF_OPEN, size_of::<ConnectionKey>(), size_of::<ConnectionEntry>(), capacity::HALF_OPEN),
    shape(map::QUOTAS, size_of::<u32>(), size_of::<QuotaEntry>(), capacity::QUOTAS),
    shape(map::FRAGMENTS, size_of::<FragmentKey>(), size_of::<FragmentEntry>(), capacity::FRAGMENTS),
    shape(map::GENERATIONS, size_of::<u32>(), size_of::<u32>(), capacity::GENERATIONS),
    shape(map::EVENTS, 0, 0, capacity::EVENTS),
    shape(map::METRICS, size_of::<u32>(), size_of::<Counter>(), capacity::METRICS),
    shape(map::HELD, size_of::<u32>(), size_of::<Held>(), capacity::HELD),
    shape(map::CREDITS, size_of::<u32>(), size_of::<u64>(), capacity::CREDITS),
    shape(map::SVID_PENDING, size_of::<u32>(), size_of::<PendingEntry>(), capacity::SVID_PENDING),
    shape(map::SERVICES, size_of::<ServiceKey>(), size_of::<ServiceEntry>(), capacity::SERVICES),
    shape(map::BACKENDS, size_of::<BackendKey>(), size_of::<BackendEntry>(), capacity::BACKENDS),
    shape(map::AFFINITIES, size_of::<AffinityKey>(), size_of::<AffinityEntry>(), capacity::AFFINITIES),
    shape(map::UPLINKS, size_of::<u32>(), size_of::<UplinkEntry>(), capacity::UPLINKS),
    shape(map::OUTSIDE, size_of::<OutsideKey>(), size_of::<OutsideEntry>(), capacity::OUTSIDE),
];

const fn shape(name: &'static str, key: usize, value: usize, capacity: usize) -> Shape {
    Shape { name, key, value, capacity }
}

const fn in_slots(name: &'static str, capacity: usize) -> Shape {
    shape(name, size_of::<u32>(), size_of::<Slot>(), slots(capacity))
}

/// The direction of traffic control in which a hook's program is attached.
pub(crate) const fn attach_type(hook: Hook) -> TcAttachType {
    match hook {
        Hook::FromPod | Hook::FromWireguard | Hook::FromUplink | Hook::FromHold => TcAttachType::Ingress,
        Hook::ToPod | Hook::ToWireguard | Hook::ToUplink | Hook::ToHold => TcAttachType::Egress,
    }
}
