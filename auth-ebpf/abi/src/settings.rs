//! The `config` map: one `u64` a slot, so that the daemon and `authctl` write theirs without a race.

/// Version of the maps' layout. A daemon refuses pinned maps of another version.
pub const SCHEMA_VERSION: u64 = 6;

/// A slot of the `config` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Setting {
    /// [`SCHEMA_VERSION`].
    Schema = 0,
    /// [`Mode`] of policy and authentication.
    PolicyMode = 1,
    /// [`Mode`] of encryption.
    EncryptionMode = 2,
    /// Boot time until which policy is off (as `observe`), 0 for not.
    PolicyOffUntil = 3,
    /// Boot time until which encryption is off (as `observe`), 0 for not.
    EncryptionOffUntil = 4,
    /// Interface index of the WireGuard device, 0 while there is none.
    WireguardIfindex = 5,
    /// UDP port of WireGuard.
    WireguardPort = 6,
    /// TCP port of the handshakes.
    HandshakePort = 7,
    /// Interface index of the hold device, 0 while there is none or it is not guarded.
    HoldIfindex = 8,
    /// Boot time until which the daemon reads the hold device: a dead one holds nothing.
    HoldUntil = 9,
    /// The [generation](crate::generation_slot) of everything.
    Generation = 10,
    /// Whether a rule that wants encryption drops what stays on its node: 1 for yes, 0 for exempt.
    SameNodeEncryption = 11,
    /// Seed of the [`Multipliers`](crate::Multipliers), the same for as long as the maps live.
    Seed = 12,
    /// Whether the hold device takes datagrams in one, as the kernel's UDP segmentation leaves them: 1 for yes.
    HoldDatagrams = 13,
    /// Last half of this node's outside address of IPv4, mapped into IPv6, as it stands in memory; 0 for none.
    OutsideV4 = 16,
    /// First half of that of IPv6.
    OutsideV6First = 17,
    /// Its last half; 0 for none.
    OutsideV6Last = 18,
}

impl Setting {
    /// Number of slots.
    pub const COUNT: u32 = 24;

    /// Whether connections rest on it: a change has them decided anew. What is written all the time must not
    /// be among them.
    #[must_use]
    pub const fn decides_on_connections(self) -> bool {
        match self {
            Self::PolicyMode
            | Self::EncryptionMode
            | Self::PolicyOffUntil
            | Self::EncryptionOffUntil
            | Self::WireguardIfindex
            | Self::WireguardPort
            | Self::HandshakePort
            | Self::SameNodeEncryption => true,
            Self::Schema
            | Self::HoldIfindex
            | Self::HoldUntil
            | Self::Generation
            | Self::Seed
            | Self::HoldDatagrams
            | Self::OutsideV4
            | Self::OutsideV6First
            | Self::OutsideV6Last => false,
        }
    }

    /// The name for `authctl` and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::PolicyMode => "policy-mode",
            Self::EncryptionMode => "encryption-mode",
            Self::PolicyOffUntil => "policy-off-until",
            Self::EncryptionOffUntil => "encryption-off-until",
            Self::WireguardIfindex => "wireguard-ifindex",
            Self::WireguardPort => "wireguard-port",
            Self::HandshakePort => "handshake-port",
            Self::HoldIfindex => "hold-ifindex",
            Self::HoldUntil => "hold-until",
            Self::Generation => "generation",
            Self::SameNodeEncryption => "same-node-encryption",
            Self::Seed => "seed",
            Self::HoldDatagrams => "hold-datagrams",
            Self::OutsideV4 => "outside-v4",
            Self::OutsideV6First => "outside-v6-first",
            Self::OutsideV6Last => "outside-v6-last",
        }
    }
}

/// What happens to a packet that a check would drop.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// It passes, is counted, and the event says what would have been.
    Observe = 1,
    /// It drops.
    Enforce = 2,
}

impl Mode {
    /// The word for configuration, logs and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }

    /// What programs do with the number in the map: all but a clear `observe` enforces.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        if number == Self::Observe as u64 { Self::Observe } else { Self::Enforce }
    }
}
