//! Maps in memory: the same as the kernel's, slow and obvious.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use auth_ebpf_abi::{
    Address, AddressEntry, AuthEntry, AuthKey, ConnectionEntry, ConnectionKey, Counter, Credits,
    EndpointEntry, Event, Held, Layout, NodeEntry, NodeNumber, PolicyEntry, PolicyKey, Setting, State,
    Tracked, capacity,
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) settings: BTreeMap<Setting, u64>,
    pub(crate) addresses: BTreeMap<Address, AddressEntry>,
    pub(crate) prefixes: BTreeMap<(Address, u32), AddressEntry>,
    pub(crate) endpoints: BTreeMap<Address, EndpointEntry>,
    pub(crate) policy: BTreeMap<(PolicyKey, u32), PolicyEntry>,
    pub(crate) nodes: BTreeMap<NodeNumber, NodeEntry>,
    pub(crate) auth: BTreeMap<AuthKey, AuthEntry>,
    pub(crate) connections: RefCell<BTreeMap<ConnectionKey, ConnectionEntry>>,
    pub(crate) counters: RefCell<BTreeMap<u32, Counter>>,
    pub(crate) events: RefCell<Vec<Event>>,
    pub(crate) now: Cell<u64>,
    /// How often the clock was read.
    pub(crate) clock_reads: Cell<u32>,
    pub(crate) held: RefCell<BTreeMap<u16, Held>>,
    pub(crate) credits: RefCell<BTreeMap<u32, u64>>,
    /// The connection map has no room.
    pub(crate) full: bool,
}

impl State for Tables {
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
        self.endpoints.get(address).copied()
    }

    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        let prefixes: Vec<_> =
            self.policy.iter().map(|((key, bits), entry)| (key.to_bytes(), *bits, *entry)).collect();
        longest(prefixes.iter().map(|(key, bits, entry)| (key.as_slice(), *bits, *entry)), &key.to_bytes())
    }

    fn node(&self, node: NodeNumber) -> Option<NodeEntry> {
        self.nodes.get(&node).copied()
    }

    fn auth(&self, key: &AuthKey) -> Option<AuthEntry> {
        self.auth.get(key).copied()
    }

    fn connection(&self, key: &ConnectionKey) -> Option<ConnectionEntry> {
        self.connections.borrow().get(key).copied()
    }

    fn now(&self) -> u64 {
        self.clock_reads.set(self.clock_reads.get() + 1);
        self.now.get()
    }

    fn track(&self, key: &ConnectionKey, entry: &ConnectionEntry, create: bool) -> Tracked {
        let mut connections = self.connections.borrow_mut();
        if let Some(known) = connections.get_mut(key) {
            *known = ConnectionEntry {
                packets: known.packets + entry.packets,
                bytes: known.bytes + entry.bytes,
                reply_packets: known.reply_packets,
                ..*entry
            };
            return Tracked::Known;
        }
        if !create {
            return Tracked::Absent;
        }
        if self.full {
            return Tracked::Full;
        }
        connections.insert(*key, *entry);
        Tracked::New
    }

    fn replied(&self, key: &ConnectionKey) {
        if let Some(known) = self.connections.borrow_mut().get_mut(key) {
            known.reply_packets += 1;
        }
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
