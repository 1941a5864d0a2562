//! What the eBPF programs and user space agree on: keys and values of the maps, events, drop reasons, and
//! the decision that kernel and tests share.
//!
//! The leaf of the workspace: `no_std`, no dependencies, no unsafe. Every map type is `repr(C)` without
//! implicit padding and converts to and from its bytes, so user space needs no transmutation. Integers are
//! in host order unless a field says otherwise; times are nanoseconds of boot time (`CLOCK_BOOTTIME`).

#![no_std]

mod connection;
mod decide;
mod drop_reason;
mod event;
mod generation;
mod hold;
mod keys;
mod layout;
mod metrics;
mod outside;
pub mod packet;
mod policy;
mod service;
mod settings;
mod slots;
mod translation;

pub use connection::{
    CONNECTION_QUOTA, CONNECTION_TIMEOUT, ConnectionEntry, ConnectionKey, FRAGMENT_TIMEOUT, FragmentEntry,
    FragmentKey, LAST_SEEN_STEP, QuotaEntry, TCP_CLOSED_TIMEOUT, TCP_OPENING_TIMEOUT, TCP_TIMEOUT,
};
pub use decide::{Context, Place, State, Workspace, come_back, decide, hook_of, longest, ruling};
pub use drop_reason::DropReason;
pub use event::{Event, EventKind, Hook, Verdict};
pub use generation::{GENERATIONS, generation_slot, generation_slots};
pub use hold::{
    Credits, ENDPOINT_UNITS, HOLD_LIMIT, HOLD_UNITS, Held, HoldStage, TOKEN_LIMIT, has_room, units,
};
pub use keys::{
    Address, AddressEntry, AddressFlags, AuthEntry, AuthFlags, AuthKey, EndpointEntry, IdentityNumber,
    NodeEntry, NodeNumber, PendingEntry, identity,
};
pub use layout::Layout;
pub use metrics::{Counter, metric};
pub use outside::{OutsideEntry, OutsideKey, UplinkEntry};
pub use policy::{AuthType, Choice, Direction, PolicyClasses, PolicyEntry, PolicyKey, Ruling, choose};
pub use service::{
    AffinityEntry, AffinityKey, BackendEntry, BackendKey, ServiceEntry, ServiceKey, may_serve,
};
pub use settings::{Mode, SCHEMA_VERSION, Setting};
pub use slots::{AsSlotKey, AsSlotValue, Head, Multipliers, Slot, SlotKey, slots};
pub use translation::{Rewrite, Translation, TranslationKind, loopback, translate};

/// How many entries each map holds.
pub mod capacity {
    /// Of [`map::ADDRESSES`](crate::map::ADDRESSES).
    pub const ADDRESSES: usize = 131_072;
    /// Of [`map::PREFIXES`](crate::map::PREFIXES).
    pub const PREFIXES: usize = 16_384;
    /// Of [`map::ENDPOINTS`](crate::map::ENDPOINTS).
    pub const ENDPOINTS: usize = 4_096;
    /// Of [`map::POLICY`](crate::map::POLICY).
    pub const POLICY: usize = 131_072;
    /// Of [`map::NODES`](crate::map::NODES).
    pub const NODES: usize = 16_384;
    /// Of [`map::AUTH`](crate::map::AUTH).
    pub const AUTH: usize = 131_072;
    /// Of [`map::CONNECTIONS`](crate::map::CONNECTIONS).
    pub const CONNECTIONS: usize = 262_144;
    /// Of [`map::HALF_OPEN`](crate::map::HALF_OPEN), whose least recently used entry makes room.
    pub const HALF_OPEN: usize = 65_536;
    /// Of [`map::QUOTAS`](crate::map::QUOTAS).
    pub const QUOTAS: usize = ENDPOINTS;
    /// Of [`map::FRAGMENTS`](crate::map::FRAGMENTS), whose least recently used entry makes room.
    pub const FRAGMENTS: usize = 8_192;
    /// Of [`map::GENERATIONS`](crate::map::GENERATIONS).
    pub const GENERATIONS: usize = crate::GENERATIONS;
    /// Of [`map::EVENTS`](crate::map::EVENTS), in bytes.
    pub const EVENTS: usize = 1 << 20;
    /// Of [`map::METRICS`](crate::map::METRICS).
    pub const METRICS: usize = crate::metric::COUNT as usize;
    /// Of [`map::HELD`](crate::map::HELD): tokens, a power of two.
    pub const HELD: usize = 16_384;
    /// Of [`map::CREDITS`](crate::map::CREDITS).
    pub const CREDITS: usize = crate::Credits::COUNT as usize;
    /// Of [`map::SVID_PENDING`](crate::map::SVID_PENDING).
    pub const SVID_PENDING: usize = ENDPOINTS;
    /// Of [`map::SERVICES`](crate::map::SERVICES).
    pub const SERVICES: usize = 65_536;
    /// Of [`map::BACKENDS`](crate::map::BACKENDS).
    pub const BACKENDS: usize = 262_144;
    /// Of [`map::AFFINITIES`](crate::map::AFFINITIES), whose least recently used entry makes room.
    pub const AFFINITIES: usize = 32_768;
    /// Of [`map::UPLINKS`](crate::map::UPLINKS).
    pub const UPLINKS: usize = 256;
    /// Of [`map::OUTSIDE`](crate::map::OUTSIDE), whose least recently used entry makes room.
    pub const OUTSIDE: usize = 65_536;
    /// Of [`map::CONFIG`](crate::map::CONFIG).
    pub const CONFIG: usize = crate::Setting::COUNT as usize;
}

/// Names of the maps, which are also their file names under the pin directory.
pub mod map {
    /// [`Setting`](crate::Setting) → `u64`, an array.
    pub const CONFIG: &str = "config";
    /// [`Address`](crate::Address) → [`AddressEntry`](crate::AddressEntry), in [slots](crate::Slot).
    pub const ADDRESSES: &str = "addresses";
    /// [`Address`](crate::Address) prefix → [`AddressEntry`](crate::AddressEntry), a trie.
    pub const PREFIXES: &str = "prefixes";
    /// Local [`Address`](crate::Address) → [`EndpointEntry`](crate::EndpointEntry), a hash.
    pub const ENDPOINTS: &str = "endpoints";
    /// [`PolicyKey`](crate::PolicyKey) and length of its prefix → [`PolicyEntry`](crate::PolicyEntry), in
    /// [slots](crate::Slot).
    pub const POLICY: &str = "policy";
    /// [`NodeNumber`](crate::NodeNumber) → [`NodeEntry`](crate::NodeEntry), in [slots](crate::Slot).
    pub const NODES: &str = "nodes";
    /// [`AuthKey`](crate::AuthKey) → [`AuthEntry`](crate::AuthEntry), in [slots](crate::Slot).
    pub const AUTH: &str = "auth";
    /// [`ConnectionKey`](crate::ConnectionKey) → [`ConnectionEntry`](crate::ConnectionEntry), a hash.
    pub const CONNECTIONS: &str = "connections";
    /// The same, for connections that have not been answered, or are beyond the quota; the least recently
    /// used make room.
    pub const HALF_OPEN: &str = "half_open";
    /// Interface index → [`QuotaEntry`](crate::QuotaEntry), a hash.
    pub const QUOTAS: &str = "quotas";
    /// [`FragmentKey`](crate::FragmentKey) → [`FragmentEntry`](crate::FragmentEntry), a hash; the least
    /// recently used make room.
    pub const FRAGMENTS: &str = "fragments";
    /// [`generation_slot`](crate::generation_slot) → `u32`, an array.
    pub const GENERATIONS: &str = "generations";
    /// [`Event`](crate::Event)s, a ring buffer.
    pub const EVENTS: &str = "events";
    /// [`metric`](crate::metric) index → [`Counter`](crate::Counter), an array per CPU.
    pub const METRICS: &str = "metrics";

    /// Token → [`Held`](crate::Held), an array.
    pub const HELD: &str = "held";
    /// Place by [`Credits`](crate::Credits) → units taken as `u64`, an array.
    pub const CREDITS: &str = "credits";

    /// Identity on this node that has not got an SVID yet → [`PendingEntry`](crate::PendingEntry), a hash. Says
    /// why a packet drops, and decides nothing.
    pub const SVID_PENDING: &str = "svid_pending";

    /// [`ServiceKey`](crate::ServiceKey) → [`ServiceEntry`](crate::ServiceEntry), a hash.
    pub const SERVICES: &str = "services";
    /// [`BackendKey`](crate::BackendKey) → [`BackendEntry`](crate::BackendEntry), a hash.
    pub const BACKENDS: &str = "backends";
    /// [`AffinityKey`](crate::AffinityKey) → [`AffinityEntry`](crate::AffinityEntry), a hash; the least
    /// recently used make room.
    pub const AFFINITIES: &str = "affinities";

    /// Interface index → [`UplinkEntry`](crate::UplinkEntry), a hash: by which ones the world's packets come in.
    pub const UPLINKS: &str = "uplinks";
    /// [`OutsideKey`](crate::OutsideKey) → [`OutsideEntry`](crate::OutsideEntry), a hash; the least recently used
    /// make room.
    pub const OUTSIDE: &str = "outside";

    /// Those that are tables in [slots](crate::Slot).
    pub const IN_SLOTS: [&str; 4] = [ADDRESSES, POLICY, NODES, AUTH];
    /// Every map.
    pub const ALL: [&str; 22] = [
        CONFIG,
        ADDRESSES,
        PREFIXES,
        ENDPOINTS,
        POLICY,
        NODES,
        AUTH,
        CONNECTIONS,
        HALF_OPEN,
        QUOTAS,
        FRAGMENTS,
        GENERATIONS,
        EVENTS,
        METRICS,
        HELD,
        CREDITS,
        SVID_PENDING,
        SERVICES,
        BACKENDS,
        AFFINITIES,
        UPLINKS,
        OUTSIDE,
    ];
}
