//! Maps in memory: the same as the kernel's, slow and obvious.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::{
    Address, AddressEntry, AffinityEntry, AffinityKey, AuthEntry, AuthKey, BackendEntry, BackendKey,
    CONNECTION_QUOTA, ConnectionEntry, ConnectionKey, Counter, Credits, EndpointEntry, Event, FragmentEntry,
    FragmentKey, Held, NodeEntry, NodeNumber, OutsideEntry, OutsideKey, PendingEntry, PolicyClasses,
    PolicyEntry, PolicyKey, ServiceEntry, ServiceKey, Setting, State, capacity,
};

pub(crate) type Policy = BTreeMap<(PolicyKey, u32), PolicyEntry>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) settings: BTreeMap<Setting, u64>,
    pub(crate) addresses: BTreeMap<Address, AddressEntry>,
    pub(crate) prefixes: BTreeMap<(Address, u32), AddressEntry>,
    pub(crate) endpoints: BTreeMap<Address, EndpointEntry>,
    pub(crate) policy: Policy,
    /// What `policy` is written to be, one after the other, with each lookup of a key.
    pub(crate) meanwhile: Vec<Policy>,
    pub(crate) written: Cell<usize>,
    pub(crate) nodes: BTreeMap<NodeNumber, NodeEntry>,
    pub(crate) auth: BTreeMap<AuthKey, AuthEntry>,
    pub(crate) connections: RefCell<BTreeMap<ConnectionKey, ConnectionEntry>>,
    pub(crate) half_open: RefCell<BTreeMap<ConnectionKey, ConnectionEntry>>,
    pub(crate) quotas: RefCell<BTreeMap<u32, u64>>,
    pub(crate) fragments: RefCell<BTreeMap<FragmentKey, FragmentEntry>>,
    pub(crate) services: BTreeMap<ServiceKey, ServiceEntry>,
    pub(crate) backends: BTreeMap<BackendKey, BackendEntry>,
    pub(crate) affinities: RefCell<BTreeMap<AffinityKey, AffinityEntry>>,
    pub(crate) uplinks: BTreeSet<u32>,
    pub(crate) outside: RefCell<BTreeMap<OutsideKey, OutsideEntry>>,
    pub(crate) generations: BTreeMap<u32, u32>,
    pub(crate) counters: RefCell<BTreeMap<u32, Counter>>,
    pub(crate) events: RefCell<Vec<Event>>,
    pub(crate) now: Cell<u64>,
    /// How often the clock was read.
    pub(crate) clock_reads: Cell<u32>,
    pub(crate) held: RefCell<BTreeMap<u16, Held>>,
    pub(crate) credits: RefCell<BTreeMap<u32, u64>>,
    pub(crate) svid_pending: BTreeMap<u32, PendingEntry>,
    /// The connection map has no room.
    pub(crate) full: bool,
}

impl State for Tables {
    type Entry<'a> = RefMut<'a, ConnectionEntry>;

    fn setting(&self, setting: Setting) -> u64 {
        self.settings.get(&setting).copied().unwrap_or(0)
    }

    fn address(&self, address: &Address) -> Option<AddressEntry> {
        self.addresses.get(address).copied()
    }

    fn prefix(&self, address: &Address) -> Option<AddressEntry> {
        longest(
            self.prefixes.iter().map(|((prefix, bits), entry)| (prefix.0.as_slice(), *bits, *entry)),
            &address.0,
        )
    }

    fn endpoint(&self, address: &Address) -> Option<EndpointEntry> {
        let endpoint = self.endpoints.get(address).copied()?;
        let mut classes = PolicyClasses::default();
        let keys = self.meanwhile.iter().flat_map(BTreeMap::keys).chain(self.policy.keys());
        for (key, bits) in keys.filter(|(key, _)| key.local == endpoint.identity) {
            classes.add(key, *bits);
        }
        Some(EndpointEntry { classes, ..endpoint })
    }

    fn policy(&self, key: &PolicyKey, classes: u32) -> Option<PolicyEntry> {
        auth_ebpf_abi::longest(key, classes, |key, length| {
            let written = self.written.get();
            let policy = written.checked_sub(1).map_or(&self.policy, |last| &self.meanwhile[last]);
            self.written.set((written + 1).min(self.meanwhile.len()));
            policy.get(&(key.masked(length), length)).copied()
        })
    }

    fn node(&self, node: NodeNumber) -> Option<NodeEntry> {
        self.nodes.get(&node).copied()
    }

    fn auth(&self, key: &AuthKey) -> Option<AuthEntry> {
        self.auth.get(key).copied()
    }

    fn generation(&self, slot: u32) -> u32 {
        self.generations.get(&slot).copied().unwrap_or(0) + self.written.get() as u32
    }

    fn established(&self, key: &ConnectionKey) -> Option<RefMut<'_, ConnectionEntry>> {
        RefMut::filter_map(self.connections.borrow_mut(), |entries| entries.get_mut(key)).ok()
    }

    fn half_open(&self, key: &ConnectionKey) -> Option<RefMut<'_, ConnectionEntry>> {
        RefMut::filter_map(self.half_open.borrow_mut(), |entries| entries.get_mut(key)).ok()
    }

    fn open(&self, key: &ConnectionKey, entry: &ConnectionEntry) -> bool {
        if !self.full {
            self.half_open.borrow_mut().insert(*key, *entry);
        }
        !self.full
    }

    fn establish(&self, key: &ConnectionKey, entry: &ConnectionEntry) {
        let mut quotas = self.quotas.borrow_mut();
        let established = quotas.entry(entry.ifindex).or_default();
        if *established < CONNECTION_QUOTA {
            *established += 1;
            self.connections.borrow_mut().insert(*key, *entry);
            self.half_open.borrow_mut().remove(key);
        }
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry> {
        self.fragments.borrow().get(key).copied()
    }

    fn lead(&self, key: &FragmentKey, entry: &FragmentEntry) {
        self.fragments.borrow_mut().insert(*key, *entry);
    }

    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry> {
        self.services.get(key).copied()
    }

    fn backend(&self, key: &BackendKey) -> Option<BackendEntry> {
        self.backends.get(key).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        self.affinities.borrow().get(key).copied()
    }

    fn stick(&self, key: &AffinityKey, entry: &AffinityEntry) {
        self.affinities.borrow_mut().insert(*key, *entry);
    }

    fn is_uplink(&self, ifindex: u32) -> bool {
        self.uplinks.contains(&ifindex)
    }

    fn outside(&self, key: &OutsideKey) -> Option<OutsideEntry> {
        self.outside.borrow().get(key).copied()
    }

    fn forward_outside(&self, key: &OutsideKey, entry: &OutsideEntry) -> bool {
        if !self.full {
            self.outside.borrow_mut().insert(*key, *entry);
        }
        !self.full
    }

    fn now(&self) -> u64 {
        self.clock_reads.set(self.clock_reads.get() + 1);
        self.now.get()
    }

    fn report(&self, event: &Event) {
        self.events.borrow_mut().push(*event);
    }

    fn count(&self, index: u32, length: u32) {
        let mut counters = self.counters.borrow_mut();
        let counter = counters.entry(index).or_default();
        counter.packets += 1;
        counter.bytes += u64::from(length);
    }

    fn held(&self, token: u16) -> Option<Held> {
        let exists = usize::from(token) < capacity::HELD;
        exists.then(|| self.held.borrow().get(&token).copied().unwrap_or_default())
    }

    fn hold(&self, token: u16, held: &Held) {
        self.held.borrow_mut().insert(token, *held);
    }

    fn is_svid_pending(&self, identity: u32) -> bool {
        self.svid_pending.contains_key(&identity)
    }

    fn credit(&self, place: u32, change: u64) -> u64 {
        assert!(place < Credits::COUNT);
        let mut credits = self.credits.borrow_mut();
        let credit = credits.entry(place).or_default();
        std::mem::replace(credit, credit.wrapping_add(change))
    }
}

/// The entry of the longest prefix of `key`.
fn longest<'a, V>(entries: impl Iterator<Item = (&'a [u8], u32, V)>, key: &[u8]) -> Option<V> {
    let bit = |bytes: &[u8], index: u32| bytes[index as usize / 8] >> (7 - index % 8) & 1;
    entries
        .filter(|(prefix, bits, _)| (0..*bits).all(|index| bit(prefix, index) == bit(key, index)))
        .max_by_key(|(_, bits, _)| *bits)
        .map(|(_, _, entry)| entry)
}
