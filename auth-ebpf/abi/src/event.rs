//! What the programs tell user space through the ring buffer.

use crate::Direction;
use crate::layout::plain;

/// What an event reports.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A pair needs to authenticate. Comes besides the verdict.
    AuthWanted = 1,
    /// A packet's verdict.
    Verdict = 2,
    /// A node has to hear whose the addresses here are. Comes besides the verdict.
    AnnouncementWanted = 3,
}

impl EventKind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::AuthWanted),
            2 => Some(Self::Verdict),
            3 => Some(Self::AnnouncementWanted),
            _ => None,
        }
    }
}

/// A packet's fate. Numbers are those of Hubble's flows.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It passed.
    Forwarded = 1,
    /// It dropped, for the event's reason.
    Dropped = 2,
    /// It passed although the event's reason would have dropped it: mode `observe`, or `authctl off`.
    Audit = 4,
    /// It waits for an authentication in the daemon. Hubble's number for what user space gets.
    Held = 5,
}

impl Verdict {
    /// The word in flows and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "FORWARDED",
            Self::Dropped => "DROPPED",
            Self::Audit => "AUDIT",
            Self::Held => "HELD",
        }
    }

    /// The verdict with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Forwarded),
            2 => Some(Self::Dropped),
            4 => Some(Self::Audit),
            5 => Some(Self::Held),
            _ => None,
        }
    }
}

/// Where a program is attached.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Host end of a pod's veth pair, ingress.
    FromPod = 1,
    /// Host end of a pod's veth pair, egress.
    ToPod = 2,
    /// WireGuard device, ingress.
    FromWireguard = 3,
    /// WireGuard device, egress.
    ToWireguard = 4,
    /// Uplink, ingress.
    FromUplink = 5,
    /// Uplink, egress.
    ToUplink = 6,
    /// Hold device, ingress.
    FromHold = 7,
    /// Hold device, egress.
    ToHold = 8,
}

impl Hook {
    /// Every hook.
    pub const ALL: [Self; 8] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromWireguard,
        Self::ToWireguard,
        Self::FromUplink,
        Self::ToUplink,
        Self::FromHold,
        Self::ToHold,
    ];

    /// The name of the program, and the word in flows and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromWireguard => "from_wireguard",
            Self::ToWireguard => "to_wireguard",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
            Self::FromHold => "from_hold",
            Self::ToHold => "to_hold",
        }
    }

    /// The direction of what is met here, seen from the endpoint.
    #[must_use]
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        match self {
            Self::FromPod | Self::ToWireguard | Self::ToUplink | Self::ToHold => Direction::Egress,
            Self::ToPod | Self::FromWireguard | Self::FromUplink | Self::FromHold => Direction::Ingress,
        }
    }

    /// The hook with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::FromPod),
            2 => Some(Self::ToPod),
            3 => Some(Self::FromWireguard),
            4 => Some(Self::ToWireguard),
            5 => Some(Self::FromUplink),
            6 => Some(Self::ToUplink),
            7 => Some(Self::FromHold),
            8 => Some(Self::ToHold),
            _ => None,
        }
    }
}

plain! {
    /// One event. The tuple is the packet's own, whichever way it goes; `local` and `remote` are the
    /// identities seen from the endpoint at the hook.
    pub struct Event [96] {
        /// When.
        pub time: u64,
        /// Source address.
        pub source: crate::Address,
        /// Destination address.
        pub destination: crate::Address,
        /// The service's address to which the pod has sent it, if the destination is its backend; else
        /// unspecified.
        pub service: crate::Address,
        /// Source port, network order; of an ICMP echo its identifier.
        pub source_port: [u8; 2],
        /// Destination port, network order; of ICMP its type and code.
        pub destination_port: [u8; 2],
        /// Identity of the local endpoint.
        pub local: u32,
        /// Identity at the other end.
        pub remote: u32,
        /// Interface index at the hook.
        pub ifindex: u32,
        /// Length of the packet in bytes.
        pub length: u32,
        /// Cookie of the rule that decided, 0 for none.
        pub cookie: u32,
        /// Node of the other end, 0 for this node.
        pub node: u16,
        /// [`EventKind`].
        pub kind: u8,
        /// [`Verdict`].
        pub verdict: u8,
        /// [`DropReason`](crate::DropReason), 0 for none.
        pub reason: u8,
        /// [`Hook`].
        pub hook: u8,
        /// [`Direction`], seen from the endpoint.
        pub direction: u8,
        /// [`AuthType`](crate::AuthType) that policy wants.
        pub auth_type: u8,
        /// IP protocol number.
        pub protocol: u8,
        /// 1: the path to the other end is encrypted; 0: same node, or unknown.
        pub encrypted: u8,
        /// 1: a reply within a tracked connection.
        pub reply: u8,
        /// The service's port, network order; 0 for none.
        pub service_port: [u8; 2],
        /// Reserved, 0.
        pub pad: [u8; 3],
    }
}
