//! Why a packet drops. One enum for the kernel, metrics, logs, `authctl` and the documentation.

/// Defines the enum once with numbers, names and descriptions.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal;)*) => {
        /// Why a packet drops. Numbers and names that Cilium's flows have are theirs; ours are below 100.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant = $number,)* }

        impl DropReason {
            /// Every reason, by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in flows, metrics, logs and tables.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for people.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)* }
            }

            /// The reason with this number.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

drop_reasons! {
    /// A pod's address that has no attached endpoint on this node.
    NoEndpoint = 1, "NO_ENDPOINT";
    /// A destination inside the cluster's ranges that nobody is known to have.
    UnknownDestination = 2, "UNKNOWN_DESTINATION";
    /// A source inside the cluster's ranges that nobody is known to have.
    UnknownSource = 3, "UNKNOWN_SOURCE";
    /// A pod's packet, or one from outside, under a node's address: its identity is lost.
    Masqueraded = 4, "MASQUERADED";
    /// Authentication is required of a reserved identity, which has no SVID.
    AuthImpossible = 5, "AUTH_IMPOSSIBLE";
    /// The other node has no live session, so nothing vouches for it or encrypts towards it.
    NoNodeSession = 6, "NO_NODE_SESSION";
    /// A pod's packet to WireGuard's or the handshakes' port of a node.
    ReservedPort = 7, "RESERVED_PORT";
    /// A map has no room, or lacks an entry that must be there.
    MapError = 8, "MAP_ERROR";
    /// It waits for authentication, as too many packets do already.
    HoldFull = 9, "HOLD_FULL";
    /// It has waited too long for authentication.
    HoldTimeout = 10, "HOLD_TIMEOUT";
    /// Somebody other than the programs has sent it through the hold device.
    NotHeld = 11, "NOT_HELD";
    /// It lacks authentication, and the identity on this node has not got its SVID yet.
    SvidPending = 12, "SVID_PENDING";
    /// The other node has not acknowledged yet that this address is this pod's now.
    AddressUnannounced = 16, "ADDRESS_UNANNOUNCED";
    /// The same ports of the same backend are in use already, under another address.
    ServiceConflict = 17, "SERVICE_CONFLICT";
    /// The rules about it changed each time that they were looked at.
    PolicyChanging = 18, "POLICY_CHANGING";
    /// The source address is not one of the pod's.
    Spoofed = 132, "SPOOFED";
    /// No rule allows it.
    PolicyDenied = 133, "POLICY_DENIED";
    /// The packet cannot be parsed.
    InvalidPacket = 134, "INVALID_PACKET";
    /// Neither IPv4, IPv6, ARP nor neighbour discovery.
    UnsupportedL3 = 139, "UNSUPPORTED_L3";
    /// A fragment whose first one has not passed, or that hides or would write over what was judged.
    Fragment = 157, "FRAGMENT";
    /// The service has no backend that could take it.
    NoServiceBackend = 158, "NO_SERVICE_BACKEND";
    /// A rule denies it.
    PolicyDeny = 181, "POLICY_DENY";
    /// Policy allows it once both identities have authenticated, which they have not.
    AuthRequired = 189, "AUTH_REQUIRED";
    /// It would travel, or has travelled, in the clear.
    Unencrypted = 195, "UNENCRYPTED";
}
