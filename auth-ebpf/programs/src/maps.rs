//! The maps. User space makes them with these definitions, pins them, and finds them again by their names.

use auth_ebpf_abi::{
    Address, AddressEntry, AffinityEntry, AffinityKey, BackendEntry, BackendKey, ConnectionEntry,
    ConnectionKey, Counter, EndpointEntry, Event, FragmentEntry, FragmentKey, Held, OutsideEntry, OutsideKey,
    PendingEntry, QuotaEntry, ServiceEntry, ServiceKey, UplinkEntry, Workspace, capacity, slots,
};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;

use crate::slots::Slots;

/// For tables that are far from full in most clusters: memory as they grow.
const GROWING: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "config")]
pub(crate) static CONFIG: Array<u64, { capacity::CONFIG }> = Array::new();

#[btf_map(name = "addresses")]
pub(crate) static ADDRESSES: Slots<{ slots(capacity::ADDRESSES) }> = Slots::new();

#[btf_map(name = "prefixes")]
pub(crate) static PREFIXES: LpmTrie<Address, AddressEntry, { capacity::PREFIXES }> = LpmTrie::new();

#[btf_map(name = "endpoints")]
pub(crate) static ENDPOINTS: HashMap<Address, EndpointEntry, { capacity::ENDPOINTS }> = HashMap::new();

#[btf_map(name = "policy")]
pub(crate) static POLICY: Slots<{ slots(capacity::POLICY) }> = Slots::new();

#[btf_map(name = "nodes")]
pub(crate) static NODES: Slots<{ slots(capacity::NODES) }> = Slots::new();

#[btf_map(name = "auth")]
pub(crate) static AUTH: Slots<{ slots(capacity::AUTH) }> = Slots::new();

#[btf_map(name = "connections")]
pub(crate) static CONNECTIONS: HashMap<ConnectionKey, ConnectionEntry, { capacity::CONNECTIONS }, GROWING> =
    HashMap::new();

#[btf_map(name = "half_open")]
pub(crate) static HALF_OPEN: LruHashMap<ConnectionKey, ConnectionEntry, { capacity::HALF_OPEN }> =
    LruHashMap::new();

#[btf_map(name = "quotas")]
pub(crate) static QUOTAS: HashMap<u32, QuotaEntry, { capacity::QUOTAS }, GROWING> = HashMap::new();

#[btf_map(name = "fragments")]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry, { capacity::FRAGMENTS }> =
    LruHashMap::new();

#[btf_map(name = "generations")]
pub(crate) static GENERATIONS: Array<u32, { capacity::GENERATIONS }> = Array::new();

#[btf_map(name = "events")]
pub(crate) static EVENTS: RingBuf<Event, { capacity::EVENTS }> = RingBuf::new();

#[btf_map(name = "metrics")]
pub(crate) static METRICS: PerCpuArray<Counter, { capacity::METRICS }> = PerCpuArray::new();

#[btf_map(name = "held")]
pub(crate) static HELD: Array<Held, { capacity::HELD }> = Array::new();

#[btf_map(name = "credits")]
pub(crate) static CREDITS: Array<u64, { capacity::CREDITS }> = Array::new();

#[btf_map(name = "svid_pending")]
pub(crate) static SVID_PENDING: HashMap<u32, PendingEntry, { capacity::SVID_PENDING }, GROWING> =
    HashMap::new();

#[btf_map(name = "services")]
pub(crate) static SERVICES: HashMap<ServiceKey, ServiceEntry, { capacity::SERVICES }, GROWING> =
    HashMap::new();

#[btf_map(name = "backends")]
pub(crate) static BACKENDS: HashMap<BackendKey, BackendEntry, { capacity::BACKENDS }, GROWING> =
    HashMap::new();

#[btf_map(name = "affinities")]
pub(crate) static AFFINITIES: LruHashMap<AffinityKey, AffinityEntry, { capacity::AFFINITIES }> =
    LruHashMap::new();

#[btf_map(name = "uplinks")]
pub(crate) static UPLINKS: HashMap<u32, UplinkEntry, { capacity::UPLINKS }> = HashMap::new();

#[btf_map(name = "outside")]
pub(crate) static OUTSIDE: LruHashMap<OutsideKey, OutsideEntry, { capacity::OUTSIDE }> = LruHashMap::new();

/// Not pinned: it holds nothing from one packet to the next.
#[btf_map(name = "workspace")]
pub(crate) static WORKSPACE: PerCpuArray<Workspace, 1> = PerCpuArray::new();

/// A copy of the boot time, and the tick at which it was made.
#[repr(C)]
pub(crate) struct Clock {
    pub(crate) jiffies: u64,
    pub(crate) boot_time: u64,
}

/// Each CPU's own. Not pinned either.
#[btf_map(name = "clock")]
pub(crate) static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();
