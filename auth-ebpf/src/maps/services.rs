//! Keeps services and their backends in step, and forgets backends that have gone.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::packet::protocol;
use auth_ebpf_abi::{
    Address, AffinityKey, BackendEntry, BackendKey, ConnectionEntry, ConnectionKey, ServiceEntry, ServiceKey,
};
use auth_ebpf_memory::wait_for_programs;

use crate::error::Error;
use crate::maps::Maps;
use crate::maps::table::{Changes, Table};

/// Ports of services' addresses that have the same backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// The ports.
    pub ports: BTreeSet<ServiceKey>,
    /// For how many seconds a client keeps its backend; 0 for one connection only.
    pub affinity: u32,
    /// The backends: address and port.
    pub backends: BTreeSet<(Address, u16)>,
}

/// A backend: its address, and its port in network order.
type End = (Address, [u8; 2]);

/// The backends that have gone and may be remembered: by set of backends, where clients keep theirs, and by
/// service's port, of datagrams.
#[derive(Debug, Default)]
struct Gone {
    sets: BTreeMap<u32, BTreeSet<End>>,
    ports: BTreeMap<ServiceKey, BTreeSet<End>>,
}

impl Gone {
    fn is_nothing(&self) -> bool {
        self.sets.is_empty() && self.ports.is_empty()
    }
}

impl Maps {
    /// Makes these all the services there are. New backends come before what leads to them, old ones go after
    /// it. Of a backend that has gone, no client keeps it, and datagrams go to another; other connections go
    /// on with it until they end. Connections to an address that has had no service before are decided anew.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room, or if the kernel refuses. What has been written until then stays.
    pub fn change_services(&self, desired: &[Backends]) -> Result<Changes, Error> {
        let before: BTreeMap<ServiceKey, ServiceEntry> = self.services().entries()?.into_iter().collect();
        let there: BTreeMap<BackendKey, BackendEntry> = self.backends().entries()?.into_iter().collect();
        let (services, backends) = number(desired, &before);
        if services == before && backends == there {
            return Ok(Changes::default());
        }
        let both = there.iter().chain(&backends).map(|(key, entry)| (*key, *entry)).collect();
        self.backends().reconcile(&both)?;
        let changes = self.services().reconcile(&services)?;
        self.backends().reconcile(&backends)?;
        // Also of sets that no longer are: they may be again before a client's time is over.
        let mut keeping: BTreeSet<u32> = self.affinities().keys()?.iter().map(|client| client.set).collect();
        keeping.extend(before.values().filter(|entry| entry.affinity != 0).map(|entry| entry.set));
        let gone = gone((&before, &there), (&services, &backends), &keeping);
        while !gone.is_nothing() {
            // What runs now may have found one that has gone, and write it down.
            wait_for_programs();
            if !self.forget(&gone)? {
                break;
            }
        }
        if changes.added > 0 {
            self.reopen_connections()?;
        }
        Ok(changes)
    }

    /// Whether anything had to be forgotten.
    fn forget(&self, gone: &Gone) -> Result<bool, Error> {
        let mut forgotten = false;
        for (key, kept) in self.affinities().entries()? {
            let AffinityKey { set, .. } = key;
            if gone.sets.get(&set).is_some_and(|ends| ends.contains(&(kept.address, kept.port))) {
                forgotten |= self.affinities().remove(&key)?;
            }
        }
        if gone.ports.is_empty() {
            return Ok(forgotten);
        }
        // In this order: entries move from the first to the second.
        for table in [self.half_open(), self.connections()] {
            forgotten |= forget_datagrams(table, gone)?;
        }
        Ok(forgotten)
    }
}

/// Whether there were any.
fn forget_datagrams(table: &Table<ConnectionKey, ConnectionEntry>, gone: &Gone) -> Result<bool, Error> {
    let mut forgotten = false;
    for key in table.keys()? {
        let port = ServiceKey {
            address: key.remote,
            port: key.ports.destination(),
            protocol: key.protocol(),
            pad: [0; 5],
        };
        // Of a port that every node has, and one address differently, at worst a datagram too many chooses.
        let Some(ends) = gone.ports.get(&port).or_else(|| gone.ports.get(&port.of_any_node())) else {
            continue;
        };
        let goes_there = |entry: ConnectionEntry| {
            entry.flags & ConnectionEntry::TO_BACKEND != 0
                && ends.contains(&(entry.translation, entry.translation_port))
        };
        if table.get(&key)?.is_some_and(goes_there) {
            forgotten |= table.remove(&key)?;
        }
    }
    Ok(forgotten)
}

type Numbered = (BTreeMap<ServiceKey, ServiceEntry>, BTreeMap<BackendKey, BackendEntry>);

/// What the maps shall hold. A set of backends keeps the number that one of its ports has already, so that
/// clients keep their backends, also under a daemon that has just come.
fn number(desired: &[Backends], before: &BTreeMap<ServiceKey, ServiceEntry>) -> Numbered {
    let mut taken: BTreeSet<u32> = BTreeSet::new();
    let mut numbers: Vec<Option<u32>> = Vec::new();
    for group in desired {
        let own = group.ports.iter().filter_map(|port| Some(before.get(port)?.set));
        let number = own.into_iter().find(|number| !taken.contains(number));
        taken.extend(number);
        numbers.push(number);
    }
    // What is still in the map under a number of its own must not be found by another's.
    taken.extend(before.values().map(|entry| entry.set));
    let mut free = (1..).filter(|number| !taken.contains(number));
    let (mut services, mut backends) = Numbered::default();
    for (group, number) in desired.iter().zip(numbers) {
        let Some(set) = number.or_else(|| free.next()) else { break };
        let count = u32::try_from(group.backends.len()).unwrap_or(u32::MAX);
        let entry = ServiceEntry { set, backends: count, affinity: group.affinity, pad: 0 };
        services.extend(group.ports.iter().map(|port| (*port, entry)));
        for (slot, (address, port)) in (0..).zip(&group.backends) {
            let entry = BackendEntry { address: *address, port: port.to_be_bytes(), pad: [0; 6] };
            backends.insert(BackendKey { set, slot }, entry);
        }
    }
    (services, backends)
}

type Held<'a> = (&'a BTreeMap<ServiceKey, ServiceEntry>, &'a BTreeMap<BackendKey, BackendEntry>);

/// What has gone between these two; clients keep backends of `keeping`.
fn gone(before: Held<'_>, now: Held<'_>, keeping: &BTreeSet<u32>) -> Gone {
    let (old, new) = (by_set(before.1), by_set(now.1));
    let none = BTreeSet::new();
    let without = |set: u32, others: u32| -> BTreeSet<End> {
        let had = old.get(&set).unwrap_or(&none);
        had - new.get(&others).unwrap_or(&none)
    };
    let mut gone = Gone::default();
    for set in keeping {
        let ends = without(*set, *set);
        if !ends.is_empty() {
            gone.sets.insert(*set, ends);
        }
    }
    for (port, entry) in before.0.iter().filter(|(port, _)| port.protocol == protocol::UDP) {
        // A set that is no more is under number 0, which none has.
        let ends = without(entry.set, now.0.get(port).map_or(0, |entry| entry.set));
        if !ends.is_empty() {
            gone.ports.insert(*port, ends);
        }
    }
    gone
}

fn by_set(backends: &BTreeMap<BackendKey, BackendEntry>) -> BTreeMap<u32, BTreeSet<End>> {
    let mut sets: BTreeMap<u32, BTreeSet<End>> = BTreeMap::new();
    for (key, entry) in backends {
        sets.entry(key.set).or_default().insert((entry.address, entry.port));
    }
    sets
}
