//! Services: their addresses, what stands behind them, and the choice among that.

use crate::Address;
use crate::layout::plain;
use crate::packet::protocol;

plain! {
    /// A port of a service's address.
    pub struct ServiceKey [24] {
        /// The address; unspecified, of either family, for every address of a node (NodePort).
        pub address: Address,
        /// The port, network order.
        pub port: [u8; 2],
        /// IP protocol number.
        pub protocol: u8,
        /// Reserved, 0.
        pub pad: [u8; 5],
    }
}

impl ServiceKey {
    /// The same port of every address of a node, in this address' family.
    #[must_use]
    #[inline(always)]
    pub const fn of_any_node(&self) -> Self {
        let address = if self.address.is_v4() { Address::from_v4([0; 4]) } else { Address([0; 16]) };
        Self { address, ..*self }
    }
}

plain! {
    /// The backends of a service's port, as far as pods of this node may use them.
    pub struct ServiceEntry [16] {
        /// Number of this set of backends on this node.
        pub set: u32,
        /// How many there are: slots 0 to one less of [`BackendKey`].
        pub backends: u32,
        /// For how many seconds a client keeps its backend; 0 for one connection only.
        pub affinity: u32,
        /// Reserved, 0.
        pub pad: u32,
    }
}

plain! {
    /// A place in a set of backends.
    pub struct BackendKey [8] {
        /// [`ServiceEntry::set`].
        pub set: u32,
        /// The place.
        pub slot: u32,
    }
}

plain! {
    /// A backend.
    pub struct BackendEntry [24] {
        /// Its address.
        pub address: Address,
        /// Its port, network order.
        pub port: [u8; 2],
        /// Reserved, 0.
        pub pad: [u8; 6],
    }
}

plain! {
    /// A client of a service with session affinity.
    pub struct AffinityKey [24] {
        /// The client's address.
        pub client: Address,
        /// [`ServiceEntry::set`].
        pub set: u32,
        /// Reserved, 0.
        pub pad: u32,
    }
}

plain! {
    /// The backend that a client keeps.
    pub struct AffinityEntry [32] {
        /// Its address.
        pub address: Address,
        /// Until when, unless another connection prolongs it.
        pub until: u64,
        /// Its port, network order.
        pub port: [u8; 2],
        /// Reserved, 0.
        pub pad: [u8; 6],
    }
}

/// Whether services can be reached by this protocol.
#[must_use]
#[inline(always)]
pub const fn may_serve(protocol: u8) -> bool {
    matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}

impl ServiceEntry {
    /// The slot that a client's connection gets.
    ///
    /// By a hash of who asks, not by chance: a packet that comes back from where it was held gets the backend
    /// for whose authentication it has waited, and nothing is remembered of connections that policy refuses.
    /// Ports tell connections apart, so among those of one client all backends are chosen alike often; with
    /// affinity the client alone decides, so that it comes to the same backend by all its connections.
    #[must_use]
    #[inline(always)]
    pub const fn slot(&self, client: &Address, port: [u8; 2]) -> u32 {
        let [a, b, c, d] = client.words();
        let port = if self.affinity == 0 { u16::from_be_bytes(port) as u32 } else { 0 };
        let hash = finish(mix(mix(mix(mix(mix(self.set, a), b), c), d), port));
        // The upper half of the product is as even as the hash, without a division.
        ((hash as u64 * self.backends as u64) >> 32) as u32
    }
}

/// Adds a word to a hash (murmur3's step).
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// Spreads a hash over all its bits (murmur3's end).
#[inline(always)]
const fn finish(hash: u32) -> u32 {
    let hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}
