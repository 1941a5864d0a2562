//! The maps by their pins, typed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use auth_ebpf_abi::{
    Address, AddressEntry, AffinityEntry, AffinityKey, AuthEntry, AuthKey, BackendEntry, BackendKey,
    ConnectionEntry, ConnectionKey, EndpointEntry, FragmentEntry, FragmentKey, IdentityNumber, NodeEntry,
    NodeNumber, OutsideEntry, OutsideKey, PendingEntry, PolicyEntry, PolicyKey, QuotaEntry, SCHEMA_VERSION,
    ServiceEntry, ServiceKey, Setting, UplinkEntry, map,
};
use aya::maps::{MapData, MapError};

use crate::error::Error;
use crate::object::SHAPES;

mod config;
mod generations;
mod hash;
mod hold;
mod metrics;
mod policy;
mod services;
mod slots;
mod sweep;
mod table;

pub use config::Config;
use generations::{Generations, Touch};
pub use hold::HoldMaps;
pub use metrics::Metrics;
pub use services::Backends;
use slots::Slots;
pub use sweep::Swept;
pub use table::{Changes, Table, TableKey, TableValue};

/// Every map of a datapath. Cheap to clone; all clones are the same maps.
#[derive(Clone, Debug)]
pub struct Maps {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    generations: Arc<Generations>,
    addresses: Table<Address, AddressEntry>,
    prefixes: Table<(Address, u32), AddressEntry>,
    endpoints: Table<Address, EndpointEntry>,
    policy: Table<(PolicyKey, u32), PolicyEntry>,
    nodes: Table<NodeNumber, NodeEntry>,
    auth: Table<AuthKey, AuthEntry>,
    connections: Table<ConnectionKey, ConnectionEntry>,
    half_open: Table<ConnectionKey, ConnectionEntry>,
    quotas: Table<u32, QuotaEntry>,
    fragments: Table<FragmentKey, FragmentEntry>,
    services: Table<ServiceKey, ServiceEntry>,
    backends: Table<BackendKey, BackendEntry>,
    affinities: Table<AffinityKey, AffinityEntry>,
    uplinks: Table<u32, UplinkEntry>,
    outside: Table<OutsideKey, OutsideEntry>,
    hold: HoldMaps,
    svid_pending: Table<IdentityNumber, PendingEntry>,
    metrics: metrics::Counters,
}

impl Maps {
    /// Opens the maps pinned under `pin_dir`, with or without a daemon.
    ///
    /// # Errors
    /// If there are none, if they are of another version, or for lack of permission.
    pub fn open_pinned(pin_dir: &Path) -> Result<Self, Error> {
        let maps = Self::open_unversioned(pin_dir)?;
        match maps.config().get(Setting::Schema)? {
            SCHEMA_VERSION => Ok(maps),
            found => Err(Error::Schema { path: pin_dir.into(), found, expected: SCHEMA_VERSION }),
        }
    }

    pub(crate) fn open_unversioned(pin_dir: &Path) -> Result<Self, Error> {
        let config = Arc::new(Config::open(pin_dir)?);
        let generations = Arc::new(Generations::open(pin_dir, Arc::clone(&config))?);
        let g = &generations;
        let inner = Inner {
            addresses: Table::new(map::ADDRESSES, Slots::open(pin_dir, map::ADDRESSES, &config)?)
                .touching(g, unless_added),
            prefixes: Table::open(pin_dir, map::PREFIXES)?.touching(g, |_, _| Touch::Everything),
            endpoints: Table::open(pin_dir, map::ENDPOINTS)?.touching(g, unless_added),
            policy: Table::new(map::POLICY, Slots::open(pin_dir, map::POLICY, &config)?)
                .touching(g, |(key, _), _| Touch::of(key.local, key.remote)),
            nodes: Table::new(map::NODES, Slots::open(pin_dir, map::NODES, &config)?)
                .touching(g, unless_added),
            auth: Table::new(map::AUTH, Slots::open(pin_dir, map::AUTH, &config)?)
                .touching(g, |key, _| Touch::of(key.local, key.remote)),
            connections: Table::open(pin_dir, map::CONNECTIONS)?,
            half_open: Table::open(pin_dir, map::HALF_OPEN)?,
            quotas: Table::open(pin_dir, map::QUOTAS)?,
            fragments: Table::open(pin_dir, map::FRAGMENTS)?,
            services: Table::open(pin_dir, map::SERVICES)?,
            backends: Table::open(pin_dir, map::BACKENDS)?,
            affinities: Table::open(pin_dir, map::AFFINITIES)?,
            uplinks: Table::open(pin_dir, map::UPLINKS)?,
            outside: Table::open(pin_dir, map::OUTSIDE)?,
            hold: HoldMaps::open(pin_dir)?,
            svid_pending: Table::open(pin_dir, map::SVID_PENDING)?,
            metrics: metrics::Counters::open(pin_dir)?,
            config,
            generations,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Modes, deadlines, ports.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Single addresses and whose they are.
    #[must_use]
    pub fn addresses(&self) -> &Table<Address, AddressEntry> {
        &self.inner.addresses
    }

    /// Ranges of addresses and whose they are. [`Table::get`] finds the longest match.
    #[must_use]
    pub fn prefixes(&self) -> &Table<(Address, u32), AddressEntry> {
        &self.inner.prefixes
    }

    /// Addresses of the pods on this node.
    #[must_use]
    pub fn endpoints(&self) -> &Table<Address, EndpointEntry> {
        &self.inner.endpoints
    }

    /// Compiled policy. [`Table::get`] finds an entry of just this prefix.
    #[must_use]
    pub fn policy(&self) -> &Table<(PolicyKey, u32), PolicyEntry> {
        &self.inner.policy
    }

    /// Sessions with other nodes.
    #[must_use]
    pub fn nodes(&self) -> &Table<NodeNumber, NodeEntry> {
        &self.inner.nodes
    }

    /// Pairs of identities that have authenticated.
    #[must_use]
    pub fn auth(&self) -> &Table<AuthKey, AuthEntry> {
        &self.inner.auth
    }

    /// Connections of the pods on this node that have been answered.
    #[must_use]
    pub fn connections(&self) -> &Table<ConnectionKey, ConnectionEntry> {
        &self.inner.connections
    }

    /// Packets that are held.
    #[must_use]
    pub fn hold(&self) -> &HoldMaps {
        &self.inner.hold
    }

    /// Connections of the pods on this node that have not been answered, or are beyond the quota.
    #[must_use]
    pub fn half_open(&self) -> &Table<ConnectionKey, ConnectionEntry> {
        &self.inner.half_open
    }

    /// How many connections each interface has.
    #[must_use]
    pub fn quotas(&self) -> &Table<u32, QuotaEntry> {
        &self.inner.quotas
    }

    /// Datagrams whose first fragment has passed.
    #[must_use]
    pub fn fragments(&self) -> &Table<FragmentKey, FragmentEntry> {
        &self.inner.fragments
    }

    /// Takes down up to which of this node's address epochs a node has acknowledged, or, of node 0, which have
    /// been given; whether the node is there under this session epoch. Connections stay as they are: none
    /// rests on what was not known yet.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn acknowledge(&self, node: NodeNumber, session_epoch: u32, epoch: u32) -> Result<bool, Error> {
        match self.nodes().get(&node)?.filter(|entry| entry.epoch == session_epoch) {
            Some(entry) => {
                let entry = NodeEntry { acknowledged: epoch, ..entry };
                self.inner.nodes.write(&node, &entry).map(|()| true)
            }
            None => Ok(false),
        }
    }

    /// Identities on this node that have not got an SVID yet.
    #[must_use]
    pub fn svid_pending(&self) -> &Table<IdentityNumber, PendingEntry> {
        &self.inner.svid_pending
    }

    /// Ports of services' addresses. [`Maps::change_services`] keeps them and their backends in step.
    #[must_use]
    pub fn services(&self) -> &Table<ServiceKey, ServiceEntry> {
        &self.inner.services
    }

    /// What stands behind services.
    #[must_use]
    pub fn backends(&self) -> &Table<BackendKey, BackendEntry> {
        &self.inner.backends
    }

    /// Clients that keep their backends.
    #[must_use]
    pub fn affinities(&self) -> &Table<AffinityKey, AffinityEntry> {
        &self.inner.affinities
    }

    /// Interfaces by which the world's packets come in, by index.
    #[must_use]
    pub fn uplinks(&self) -> &Table<u32, UplinkEntry> {
        &self.inner.uplinks
    }

    /// Flows from outside that this node forwards to other nodes and pods there.
    #[must_use]
    pub fn outside(&self) -> &Table<OutsideKey, OutsideEntry> {
        &self.inner.outside
    }

    /// Has every connection decided anew with its next packet.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn reopen_connections(&self) -> Result<(), Error> {
        self.inner.generations.raise_everything()
    }

    /// What all CPUs have counted since the maps were made.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn metrics(&self) -> Result<Metrics, Error> {
        self.inner.metrics.read()
    }
}

/// What was not there before, no connection rests on.
const fn unless_added<K>(_: &K, added: bool) -> Touch {
    if added { Touch::Nothing } else { Touch::Everything }
}

/// Opens the map pinned as `name`, and checks that it has the sizes which this crate works with.
pub(crate) fn open_map(pin_dir: &Path, name: &'static str) -> Result<MapData, Error> {
    let path = pin_dir.join(name);
    let data = MapData::from_pin(&path).map_err(|error| unopened(error, pin_dir, name))?;
    let info = data.info().map_err(|source| Error::Map {
        map: name,
        action: "inspect it",
        source: source.into(),
    })?;
    let shape = SHAPES.into_iter().find(|shape| shape.name == name);
    if let Some(shape) = shape {
        let sizes = [
            ("key size", info.key_size(), shape.key),
            ("value size", info.value_size(), shape.value),
            ("capacity", info.max_entries(), shape.capacity),
        ];
        for (field, found, expected) in sizes {
            check_size(&path, field, found, expected)?;
        }
    }
    Ok(data)
}

fn check_size(path: &Path, field: &'static str, found: u32, expected: usize) -> Result<(), Error> {
    let expected = u32::try_from(expected).unwrap_or(u32::MAX);
    if found == expected { Ok(()) } else { Err(Error::Layout { path: path.into(), field, found, expected }) }
}

fn unopened(error: MapError, pin_dir: &Path, name: &'static str) -> Error {
    match io_error(&error).map(std::io::Error::kind) {
        Some(std::io::ErrorKind::NotFound) => Error::NotPinned { path: PathBuf::from(pin_dir) },
        Some(std::io::ErrorKind::PermissionDenied) => {
            Error::Permission { action: format!("open the pinned map {}", pin_dir.join(name).display()) }
        }
        _ => Error::Map { map: name, action: "open its pin", source: error.into() },
    }
}

/// The system's error at the bottom of `error`.
pub(crate) fn io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        // A transparent wrapper shows its content's source as its own, and hides the content.
        if let Some(call) = error.downcast_ref::<aya::sys::SyscallError>() {
            return Some(&call.io_error);
        }
        if let Some(MapError::SyscallError(call)) = error.downcast_ref::<MapError>() {
            return Some(&call.io_error);
        }
        cause = error.source();
    }
    None
}
