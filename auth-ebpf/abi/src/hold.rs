//! Packets that only lack authentication: what is known of each while it is held, and how many there may be.
//!
//! Such a packet goes to the hold device with its token as VLAN tag, which nothing but the programs reads.
//! The table of tokens is written and read in the kernel, so what comes back has the provenance with which
//! it went, whoever wrote it into the device. Credits are taken before a packet is held and given back when
//! it has come back to its hook.

use crate::layout::plain;
use crate::{AuthKey, Hook};

/// How long a packet may be held, in nanoseconds; one that comes back later drops.
pub const HOLD_LIMIT: u64 = 2_000_000_000;
/// Age in nanoseconds at which a token whose packet never came back is free again.
pub const TOKEN_LIMIT: u64 = 2 * HOLD_LIMIT;
/// Units of credit for the whole node: as many packets, or 8 KiB of them each, and the device's queue.
pub const HOLD_UNITS: u64 = 4096;
/// Units of credit for one endpoint in one direction.
pub const ENDPOINT_UNITS: u64 = 1024;

/// Units of credit that everyone has for himself.
const OWN_UNITS: u64 = 4;
/// Bytes that one unit of credit stands for.
const UNIT: u32 = 8192;

plain! {
    /// A packet that is held.
    pub struct Held [40] {
        /// Since when.
        pub since: u64,
        /// Index of the interface at the hook.
        pub ifindex: u32,
        /// Index of the interface by which it had come into this host.
        pub ingress_ifindex: u32,
        /// [`AuthKey::local`] of the authentication that it waits for.
        pub local: u32,
        /// [`AuthKey::remote`].
        pub remote: u32,
        /// [`AuthKey::node`].
        pub node: u16,
        /// [`AuthKey::auth_type`].
        pub auth_type: u8,
        /// The [`Hook`] that holds it.
        pub hook: u8,
        /// Units of credit that it has taken.
        pub units: u32,
        /// [`HoldStage`].
        pub stage: u32,
        /// Reserved, 0.
        pub pad: u32,
    }
}

impl Held {
    /// The authentication that it waits for.
    #[must_use]
    #[inline(always)]
    pub const fn key(&self) -> AuthKey {
        AuthKey { local: self.local, remote: self.remote, node: self.node, auth_type: self.auth_type, pad: 0 }
    }

    /// Whether its token can be given to another packet.
    #[must_use]
    #[inline(always)]
    pub const fn is_free(&self, now: u64) -> bool {
        self.stage == HoldStage::FREE || self.since.saturating_add(TOKEN_LIMIT) <= now
    }

    /// Whether it has been held for too long.
    #[must_use]
    #[inline(always)]
    pub const fn is_late(since: u64, now: u64) -> bool {
        since.saturating_add(HOLD_LIMIT) <= now
    }
}

/// How far a held packet has come. Each stage leads to the next and to no other.
pub struct HoldStage;

impl HoldStage {
    /// There is none.
    pub const FREE: u32 = 0;
    /// Its hook has sent it to the device.
    pub const TAKEN: u32 = 1;
    /// It is in the device, or in the daemon's queue.
    pub const HELD: u32 = 2;
    /// It is on its way from the device to its hook.
    pub const RELEASED: u32 = 3;
}

/// The places in the map of credits that one packet needs: units taken by all, by the endpoint, and by the
/// pair at this endpoint. Endpoints and pairs share places by their hash: none is ever made or removed, and
/// whose places coincide share a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credits {
    /// Place of the endpoint.
    pub endpoint: u32,
    /// Place of the pair.
    pub pair: u32,
}

impl Credits {
    /// Place of the number of the last token, counted on without end.
    pub const LAST_TOKEN: u32 = 0;
    /// Place of all that is held.
    pub const ALL: u32 = 1;
    /// Number of places.
    pub const COUNT: u32 = Self::PAIRS + Self::PAIRS_COUNT;

    const ENDPOINTS: u32 = 2;
    const ENDPOINTS_COUNT: u32 = 2048;
    const PAIRS: u32 = Self::ENDPOINTS + Self::ENDPOINTS_COUNT;
    const PAIRS_COUNT: u32 = 16_384;

    /// The places for a packet at `hook` of the interface `ifindex`.
    #[must_use]
    #[inline(always)]
    pub const fn of(hook: Hook, ifindex: u32, key: &AuthKey) -> Self {
        // One interface has one place for each direction, next to each other.
        let endpoint = ifindex.wrapping_mul(2).wrapping_add(hook as u32 & 1);
        let pair = mix(mix(mix(mix(endpoint, key.local), key.remote), key.node as u32), key.auth_type as u32);
        Self {
            endpoint: Self::ENDPOINTS + endpoint % Self::ENDPOINTS_COUNT,
            pair: Self::PAIRS + (pair >> 16 ^ pair) % Self::PAIRS_COUNT,
        }
    }
}

/// Adds a word to a hash (FNV-1a's step, by words).
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    (hash ^ word).wrapping_mul(0x0100_0193)
}

/// Units of credit that a packet of this length takes.
#[must_use]
#[inline(always)]
pub const fn units(length: u32) -> u32 {
    1 + length / UNIT
}

/// Whether there is room for another packet of one that has `own` of the `all` units taken of `limit`.
///
/// Of three quarters, each may have half of what is left, so that one alone has much and many share. The
/// last quarter is for the first few packets of those who have next to nothing: whoever comes next finds
/// room, however many others have taken all they can.
#[must_use]
#[inline(always)]
pub const fn has_room(own: u64, all: u64, limit: u64) -> bool {
    let shared = (limit / 4 * 3).saturating_sub(all);
    all < limit && (own < OWN_UNITS || own < shared / 2)
}
