//! The policy map's types, and the choice between two entries that match one packet.

use crate::layout::plain;

/// Which way a packet goes, seen from the endpoint.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Into the endpoint.
    Ingress = 0,
    /// Out of the endpoint.
    Egress = 1,
}

impl Direction {
    /// The word for logs, metrics and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The other direction.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// The direction with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Ingress),
            1 => Some(Self::Egress),
            _ => None,
        }
    }
}

/// How a pair must have authenticated; a larger one includes nothing of a smaller one.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuthType {
    /// Not at all.
    #[default]
    Disabled = 0,
    /// Mutual TLS with the SVIDs of both identities.
    Spire = 1,
    /// Never satisfied; for tests.
    AlwaysFail = 2,
}

impl AuthType {
    /// The word for logs, metrics and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Spire => "spire",
            Self::AlwaysFail => "test-always-fail",
        }
    }

    /// The type with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Disabled),
            1 => Some(Self::Spire),
            2 => Some(Self::AlwaysFail),
            _ => None,
        }
    }
}

plain! {
    /// Whom a policy entry is for. Identities and direction are always matched whole; of protocol and port
    /// a prefix ([`PolicyKey::prefix_len`]), the rest being 0.
    pub struct PolicyKey [12] {
        /// The endpoint's identity.
        pub local: u32,
        /// The identity at the other end, or 0 for any.
        pub remote: u32,
        /// [`Direction`].
        pub direction: u8,
        /// IP protocol number.
        pub protocol: u8,
        /// Destination port in network order; for ICMP the type, in the first byte.
        pub port: [u8; 2],
    }
}

impl PolicyKey {
    /// Bits of the part that is always matched whole.
    pub const FIXED_BITS: u32 = 72;
    /// Bits of a key in full.
    pub const FULL_BITS: u32 = 96;

    /// Prefix length that matches any protocol (`None`) or one protocol and the first `port_bits` bits of
    /// the port.
    #[must_use]
    pub const fn prefix_len(port_bits: Option<u32>) -> u32 {
        match port_bits {
            None => Self::FIXED_BITS,
            Some(bits) => Self::FIXED_BITS + 8 + bits,
        }
    }

    /// This key with what is behind the first `prefix_len` bits cleared.
    #[must_use]
    #[inline(always)]
    pub const fn masked(mut self, prefix_len: u32) -> Self {
        if prefix_len <= Self::FIXED_BITS {
            self.protocol = 0;
            self.port = [0, 0];
        } else {
            let free = Self::FULL_BITS.saturating_sub(prefix_len);
            self.port = (((u16::from_be_bytes(self.port) as u32) >> free << free) as u16).to_be_bytes();
        }
        self
    }
}

plain! {
    /// Which prefix lengths the policy of one identity has entries of, one bit each: bit 0 for any protocol,
    /// bit 1 + n for a protocol and n bits of the port.
    ///
    /// The map is no trie, whose lookup grows with its entries (a bit of the key is a step): the prefix is part
    /// of the key, and a lookup tries the lengths that are in use, which are few. Most rules name one port, or
    /// none.
    pub struct PolicyClasses [16] {
        /// Ingress, from a certain identity.
        pub ingress: u32,
        /// Ingress, from any identity.
        pub ingress_any: u32,
        /// Egress, to a certain identity.
        pub egress: u32,
        /// Egress, to any identity.
        pub egress_any: u32,
    }
}

impl PolicyClasses {
    /// Bit of what matches any protocol.
    pub const ANY: u32 = 1;
    /// Bit of what matches one protocol and any port.
    pub const PROTOCOL: u32 = 1 << 1;
    /// Bit of what matches one port.
    pub const PORT: u32 = 1 << 17;
    /// Bits of what matches ranges of ports, and types of ICMP.
    pub const RANGES: u32 = Self::PORT - (Self::PROTOCOL << 1);

    /// Adds what is needed to find the entry under `key` with this length of its prefix.
    pub const fn add(&mut self, key: &PolicyKey, prefix_len: u32) {
        let bit = if prefix_len <= PolicyKey::FIXED_BITS {
            Self::ANY
        } else {
            Self::PROTOCOL << (prefix_len.saturating_sub(PolicyKey::prefix_len(Some(0))) % 17)
        };
        let ingress = key.direction == Direction::Ingress as u8;
        match (ingress, key.remote) {
            (true, 0) => self.ingress_any |= bit,
            (true, _) => self.ingress |= bit,
            (false, 0) => self.egress_any |= bit,
            (false, _) => self.egress |= bit,
        }
    }

    /// What either has.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self {
            ingress: self.ingress | other.ingress,
            ingress_any: self.ingress_any | other.ingress_any,
            egress: self.egress | other.egress,
            egress_any: self.egress_any | other.egress_any,
        }
    }

    /// Those of one direction: for a certain identity, and for any.
    #[must_use]
    #[inline(always)]
    pub const fn of(&self, direction: Direction) -> [u32; 2] {
        match direction {
            Direction::Ingress => [self.ingress, self.ingress_any],
            Direction::Egress => [self.egress, self.egress_any],
        }
    }
}

impl crate::layout::Field for PolicyClasses {
    fn put<'a>(&self, to: &'a mut [u8]) -> &'a mut [u8] {
        crate::Layout::to_bytes(self).put(to)
    }
    fn take(from: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, rest) = <[u8; 16]>::take(from)?;
        Some((<Self as crate::Layout>::from_bytes(&bytes)?, rest))
    }
}

plain! {
    /// What a policy entry says.
    pub struct PolicyEntry [16] {
        /// The larger precedence wins; [`PolicyEntry::DENY_PRECEDENCE`] for every deny that isn't audited.
        pub precedence: u32,
        /// Names the rule that this entry comes from, for flows and explanations.
        pub cookie: u32,
        /// Bits of protocol and port that this entry matches (0, or 8 to 24): its specificity.
        pub port_prefix: u8,
        /// 1: deny.
        pub deny: u8,
        /// [`AuthType`].
        pub auth_type: u8,
        /// 1: the rule names its authentication mode; 0: it may be derived from a broader entry.
        pub auth_explicit: u8,
        /// 1: only over an encrypted path.
        pub encryption: u8,
        /// 1: what this entry would drop passes, and is reported.
        pub audit: u8,
        /// Reserved, 0.
        pub pad: [u8; 2],
    }
}

impl PolicyEntry {
    /// Precedence of every deny that isn't audited: nothing is above it.
    pub const DENY_PRECEDENCE: u32 = u32::MAX;
}

/// What policy says about one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The entry that decides.
    pub entry: PolicyEntry,
    /// [`AuthType`] number which the packet needs, derived ones included.
    pub auth_type: u8,
}

/// What policy says about one packet, in a word, as a function that the verifier looks at by itself can return it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling(u64);

impl Ruling {
    /// No entry matches.
    pub const NONE: Self = Self(0);

    const AUTH_TYPE: u32 = 32;
    const FOUND: u64 = 1 << 40;
    const DENY: u64 = 1 << 41;
    const ENCRYPTION: u64 = 1 << 42;
    const AUDIT: u64 = 1 << 43;

    /// What these two entries say ([`choose`]).
    #[must_use]
    #[inline(always)]
    pub fn between(with_identity: Option<PolicyEntry>, any_identity: Option<PolicyEntry>) -> Self {
        match choose(with_identity, any_identity) {
            Some(choice) => Self::of(&choice),
            None => Self::NONE,
        }
    }

    const fn of(choice: &Choice) -> Self {
        let Choice { entry, auth_type } = choice;
        let mut word = Self::FOUND | entry.cookie as u64 | (*auth_type as u64) << Self::AUTH_TYPE;
        if entry.deny != 0 {
            word |= Self::DENY;
        }
        if entry.encryption != 0 {
            word |= Self::ENCRYPTION;
        }
        if entry.audit != 0 {
            word |= Self::AUDIT;
        }
        Self(word)
    }

    /// The ruling in this word.
    #[must_use]
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The word that it is.
    #[must_use]
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// Whether any entry matches.
    #[must_use]
    #[inline(always)]
    pub const fn is_found(self) -> bool {
        self.0 & Self::FOUND != 0
    }

    /// [`PolicyEntry::cookie`] of the entry that decides.
    #[must_use]
    #[inline(always)]
    pub const fn cookie(self) -> u32 {
        self.0 as u32
    }

    /// [`Choice::auth_type`].
    #[must_use]
    #[inline(always)]
    pub const fn auth_type(self) -> u8 {
        (self.0 >> Self::AUTH_TYPE) as u8
    }

    /// Whether it denies.
    #[must_use]
    #[inline(always)]
    pub const fn denies(self) -> bool {
        self.0 & Self::DENY != 0
    }

    /// Whether what it allows has to be encrypted.
    #[must_use]
    #[inline(always)]
    pub const fn wants_encryption(self) -> bool {
        self.0 & Self::ENCRYPTION != 0
    }

    /// Whether it is only tried.
    #[must_use]
    #[inline(always)]
    pub const fn is_audited(self) -> bool {
        self.0 & Self::AUDIT != 0
    }
}

/// Chooses between the entry found for the remote identity and the one found for any identity.
///
/// The larger precedence wins, then the more specific port, then the identity. The authentication of the
/// entry chosen is its own if the rule names it, otherwise the larger of both at equal precedence, as
/// Cilium documents for its policy map.
#[must_use]
#[inline(always)]
pub fn choose(with_identity: Option<PolicyEntry>, any_identity: Option<PolicyEntry>) -> Option<Choice> {
    let (chosen, other) = match (with_identity, any_identity) {
        (None, None) => return None,
        (Some(only), None) | (None, Some(only)) => {
            return Some(Choice { entry: only, auth_type: only.auth_type });
        }
        (Some(identity), Some(any)) => {
            let any_wins = any.precedence > identity.precedence
                || (any.precedence == identity.precedence && any.port_prefix > identity.port_prefix);
            if any_wins { (any, identity) } else { (identity, any) }
        }
    };
    let derived = chosen.auth_explicit == 0
        && other.precedence == chosen.precedence
        && other.auth_type > chosen.auth_type;
    Some(Choice { entry: chosen, auth_type: if derived { other.auth_type } else { chosen.auth_type } })
}
