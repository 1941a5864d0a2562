//! Keys and values of the maps.

use core::net::{IpAddr, Ipv6Addr};

use crate::PolicyClasses;
use crate::layout::plain;

/// Number of a security identity, the same in the whole cluster. Reserved ones are in [`identity`].
pub type IdentityNumber = u32;
/// Number of a node, the same in the whole cluster and never reused; 0 is "this node".
pub type NodeNumber = u16;

/// Reserved identity numbers, with the values that Cilium's users know.
pub mod identity {
    use super::IdentityNumber;

    /// No identity: as a key of the policy map, "any identity"; as a value, "not known".
    pub const UNKNOWN: IdentityNumber = 0;
    /// This node itself: every address on its interfaces.
    pub const HOST: IdentityNumber = 1;
    /// Everything outside the cluster.
    pub const WORLD: IdentityNumber = 2;
    /// Endpoints that nobody manages.
    pub const UNMANAGED: IdentityNumber = 3;
    /// Health checks.
    pub const HEALTH: IdentityNumber = 4;
    /// A pod whose identity has not been determined yet.
    pub const INIT: IdentityNumber = 5;
    /// Another node of the cluster.
    pub const REMOTE_NODE: IdentityNumber = 6;
    /// The Kubernetes API server.
    pub const KUBE_APISERVER: IdentityNumber = 7;
    /// Ingress proxies.
    pub const INGRESS: IdentityNumber = 8;
    /// Everything outside the cluster that has an IPv4 address, where policies name all of IPv4.
    pub const WORLD_IPV4: IdentityNumber = 9;
    /// The same of IPv6.
    pub const WORLD_IPV6: IdentityNumber = 10;
    /// The first number that stands for a set of labels.
    pub const FIRST_USER: IdentityNumber = 256;
    /// The first number that one node alone knows: it stands for a prefix outside the cluster, or another node.
    pub const FIRST_LOCAL: IdentityNumber = 1 << 24;

    /// Whether `number` is reserved, or known to one node alone: no SVID exists for it, so it can't satisfy `required`.
    #[must_use]
    #[inline(always)]
    pub const fn is_reserved(number: IdentityNumber) -> bool {
        number < FIRST_USER || number >= FIRST_LOCAL
    }
}

/// An IPv6 address, or an IPv4 address mapped into IPv6 (`::ffff:a.b.c.d`), in network order.
///
/// Aligned, so that the programs move it by words instead of bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// Bits by which an IPv4 prefix grows when it is mapped into IPv6.
    pub const V4_PREFIX_BITS: u32 = 96;

    /// The IPv4 address with these octets.
    #[must_use]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The IPv4 address that stands in a packet as this number.
    #[must_use]
    #[inline(always)]
    pub(crate) const fn from_v4_word(word: u32) -> Self {
        let [a, b, c, d] = word.to_ne_bytes();
        Self::from_halves([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])])
    }

    /// The address that stands in a packet as these two numbers.
    #[must_use]
    #[inline(always)]
    pub(crate) const fn from_halves(halves: [u64; 2]) -> Self {
        let mut bytes = [0; 16];
        if let Some((first, second)) = bytes.split_first_chunk_mut::<8>() {
            *first = halves[0].to_ne_bytes();
            if let Some(second) = second.first_chunk_mut::<8>() {
                *second = halves[1].to_ne_bytes();
            }
        }
        Self(bytes)
    }

    /// As it stands in memory.
    #[inline(always)]
    pub(crate) const fn halves(&self) -> [u64; 2] {
        // A copy, since a part of what is behind a reference may lie anywhere for all that the compiler knows.
        let Self(bytes) = *self;
        match (bytes.first_chunk(), bytes.last_chunk()) {
            (Some(first), Some(last)) => [u64::from_ne_bytes(*first), u64::from_ne_bytes(*last)],
            _ => [0; 2],
        }
    }

    /// Whether these are the same, compared by words.
    #[must_use]
    #[inline(always)]
    pub(crate) const fn is(&self, other: &Self) -> bool {
        let ([a, b], [c, d]) = (self.halves(), other.halves());
        (a ^ c) | (b ^ d) == 0
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words();
        a == 0 && b == 0 && c == 0xffff
    }

    /// Whether this is the unspecified IPv6 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words();
        a | b | c | d == 0
    }

    /// Whether this is the unspecified IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified_v4(&self) -> bool {
        let [_, _, _, d] = self.words();
        self.is_v4() && d == 0
    }

    /// Whether this is an IPv6 link-local unicast address.
    #[must_use]
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        matches!(self.0, [0xfe, 0x80..=0xbf, ..])
    }

    /// Whether this is a loopback address: no packet on a wire has it.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words();
        (self.is_v4() && d >> 24 == 127) || (a | b | c == 0 && d == 1)
    }

    /// Whether this can't be one host's address: multicast, broadcast, unspecified, loopback.
    #[must_use]
    #[inline(always)]
    pub const fn is_nobodys(&self) -> bool {
        let [_, _, _, d] = self.words();
        let first = d >> 24;
        if self.is_v4() {
            return first == 0 || first == 127 || first >= 224;
        }
        self.is_multicast() || self.is_unspecified() || self.is_loopback()
    }

    /// Whether this is an IPv6 multicast address.
    #[must_use]
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        matches!(self.0, [0xff, ..])
    }

    /// The octets of an IPv4 address.
    #[inline(always)]
    pub(crate) const fn v4_octets(&self) -> [u8; 4] {
        let [_, last] = self.halves();
        let [.., a, b, c, d] = last.to_ne_bytes();
        [a, b, c, d]
    }

    /// As four numbers.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let [first, last] = self.halves();
        let (first, last) = (u64::from_be(first), u64::from_be(last));
        [(first >> 32) as u32, first as u32, (last >> 32) as u32, last as u32]
    }

    /// The address as the standard library has it.
    #[must_use]
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

/// Flags of an [`AddressEntry`].
pub struct AddressFlags;

impl AddressFlags {
    /// A range of the cluster: an address in it which has no entry of its own is undecidable.
    pub const CLUSTER_RANGE: u16 = 1;
    /// Services have this address. Whose it is else, the identity says, or, where that is not known, what
    /// range it is in.
    pub const SERVICE: u16 = 2;
}

plain! {
    /// Who an address or prefix belongs to.
    pub struct AddressEntry [8] {
        /// The identity; [`identity::UNKNOWN`] for a cluster range.
        pub identity: u32,
        /// The node it is on; 0 for this node and for what is on no node. With [`identity::WORLD`], the node that
        /// forwards under this address what comes from outside.
        pub node: u16,
        /// [`AddressFlags`].
        pub flags: u16,
    }
}

plain! {
    /// An address of a pod on this node.
    pub struct EndpointEntry [40] {
        /// The pod's identity.
        pub identity: u32,
        /// Index of the host end of its veth pair.
        pub ifindex: u32,
        /// Epoch of this assignment of the address: no packet goes to a pod of a node that has acknowledged
        /// less.
        pub epoch: u32,
        /// Index of the bridge that the host end is a port of, 0 for none.
        pub bridge: u32,
        /// Which [`PolicyClasses`] the identity's policy has, so that no other is looked for. Written by
        /// whoever writes the policy.
        pub classes: PolicyClasses,
        /// MTU of the host end, if connections with other such pods may go
        /// [straight](crate::ConnectionEntry::DIRECT) from interface to interface; else 0.
        pub direct_mtu: u32,
        /// Reserved, 0.
        pub pad: u32,
    }
}

impl EndpointEntry {
    /// Whether a packet that came into this host by `ingress` can be this pod's: by its own interface, or,
    /// after a bridge has handed it to the host, by that bridge, all of whose ports are guarded.
    #[must_use]
    #[inline(always)]
    pub const fn sends_by(&self, ingress: u32) -> bool {
        ingress == self.ifindex || (self.bridge != 0 && ingress == self.bridge)
    }
}

plain! {
    /// That an identity on this node has not got an SVID yet.
    pub struct PendingEntry [4] {
        /// 1: there is nothing else to say of it.
        pub pending: u32,
    }
}

plain! {
    /// A pair of identities that may have authenticated, seen from this node.
    pub struct AuthKey [12] {
        /// The identity on this node.
        pub local: u32,
        /// The identity at the other end.
        pub remote: u32,
        /// The node of the other end; 0 for this node.
        pub node: u16,
        /// [`AuthType`](crate::AuthType).
        pub auth_type: u8,
        /// Reserved, 0.
        pub pad: u8,
    }
}

plain! {
    /// A successful authentication.
    pub struct AuthEntry [16] {
        /// When it ends.
        pub expires: u64,
        /// The node's session epoch under which it was made; another epoch there revokes it.
        pub epoch: u32,
        /// [`AuthFlags`].
        pub flags: u32,
    }
}

/// Flags of an [`AuthEntry`].
pub struct AuthFlags;

impl AuthFlags {
    /// Packets that were held for it may still be on their way: a new one waits behind them.
    pub const DRAINING: u32 = 1;
}

plain! {
    /// What is known of another node.
    pub struct NodeEntry [16] {
        /// When its session ends, with the grace that the configuration gives to tunnels.
        pub expires: u64,
        /// Session epoch: raising it revokes every authentication that the node vouched for.
        pub epoch: u32,
        /// Highest of this node's address epochs that the other has acknowledged; of node 0, the last one
        /// given.
        pub acknowledged: u32,
    }
}
