//! Tables in slots: hashes that lie open in the memory of an array, which user space maps and writes, and
//! programs only read, with a load where a hash of the kernel's costs a call and two loads from elsewhere.
//!
//! A key has a home, a slot by its hash, and lies there or in one of the next; the home's [`Head`] says how
//! far. Three rules make it safe to read while it is written:
//! - the head is written last and read first, and whoever finds it live reads the rest through it;
//! - no entry moves, and a value is changed by whole words only, in an order in which each mixture is true;
//! - what has left keeps its slot and its value until no program can be looking at it any more.

use crate::{Address, AddressEntry, AuthEntry, AuthKey, NodeEntry, NodeNumber, PolicyEntry, PolicyKey};

/// A slot: its [`Head`], one or two words of the key, and two or one of the value.
pub type Slot = [u64; 4];

/// Slots of a table for so many entries, twice as many, so that most lie at home; and one more, in which
/// user space keeps count.
#[must_use]
pub const fn slots(capacity: usize) -> usize {
    capacity * 2 + 1
}

/// The first word of a slot: whether there is an entry, up to 48 bits of its key, and how far from here lie
/// those that have their home here.
pub struct Head;

impl Head {
    /// There is an entry.
    pub const LIVE: u64 = 1 << 63;
    /// There was one, which programs may still be looking at.
    pub const LEFT: u64 = 1 << 62;
    /// The part that belongs to the entry.
    pub const ENTRY: u64 = Self::LIVE | Self::LEFT | Self::TAIL;
    /// How far an entry can lie from its home.
    pub const FARTHEST: u32 = 127;

    const TAIL: u64 = (1 << Self::REACH_SHIFT) - 1;
    const REACH_SHIFT: u32 = 48;

    /// The part of the key that is in it.
    #[must_use]
    pub const fn tail(head: u64) -> u64 {
        head & Self::TAIL
    }

    /// How far those lie that have their home here.
    #[must_use]
    #[inline(always)]
    pub const fn reach(head: u64) -> u32 {
        (head >> Self::REACH_SHIFT) as u32 & Self::FARTHEST
    }

    /// This head with another reach.
    #[must_use]
    pub const fn with_reach(head: u64, reach: u32) -> u64 {
        head & Self::ENTRY | (reach as u64) << Self::REACH_SHIFT
    }

    /// 0 if there is an entry whose key has this [tail](SlotKey::tail).
    #[must_use]
    #[inline(always)]
    pub const fn difference(head: u64, tail: u64) -> u64 {
        (head ^ (Self::LIVE | tail)) & (Self::LIVE | Self::TAIL)
    }
}

/// A key as it stands in a slot: what fits of it into the head, and `N` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotKey<const N: usize> {
    /// In the head, at most 48 bits.
    pub tail: u64,
    /// The rest.
    pub words: [u64; N],
}

/// By what keys are multiplied to find their homes. Nobody outside knows, so nobody can choose keys that
/// share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multipliers(pub [u64; 3]);

impl Multipliers {
    /// Those that belong to a seed.
    #[must_use]
    pub const fn from_seed(seed: u64) -> Self {
        let [a, b, c] = [spread(seed, 1), spread(seed, 2), spread(seed, 3)];
        Self([a | 1, b | 1, c | 1])
    }

    /// The home of a key among `slots`, a power of two.
    #[must_use]
    #[inline(always)]
    pub const fn home<const N: usize>(&self, key: &SlotKey<N>, slots: usize) -> u32 {
        let Self([a, b, c]) = *self;
        let sum = match key.words.as_slice() {
            [first, second] => first.wrapping_mul(b).wrapping_add(second.wrapping_mul(c)),
            [first, ..] => first.wrapping_mul(b),
            [] => 0,
        };
        let sum = sum.wrapping_add(key.tail.wrapping_mul(a));
        // Once is not enough for keys that count up: some multipliers would crowd them together.
        let mixed = (sum ^ sum >> 32).wrapping_mul(c);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(b);
        (mixed >> (64 - slots.trailing_zeros())) as u32
    }
}

/// A number that has nothing to do with the others of the same seed (SplitMix64).
const fn spread(seed: u64, number: u64) -> u64 {
    let z = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What can be the key of a table in slots, in `N` words beside the head.
pub trait AsSlotKey<const N: usize>: Sized {
    /// The key as it stands in a slot.
    fn to_slot(&self) -> SlotKey<N>;
    /// The key that stands there so.
    fn from_slot(key: &SlotKey<N>) -> Self;
}

/// What can be the value of a table in slots, in `N` words.
pub trait AsSlotValue<const N: usize>: Sized {
    /// Whether `new` may be written over `old`, the first word last, under the eyes of programs, which read the
    /// first word first: what they can meet is the first word of `old` with others of `new`, and must be true.
    fn may_mix(old: &[u64; N], new: &[u64; N]) -> bool;

    /// The value as it stands in a slot.
    fn to_slot(&self) -> [u64; N];
    /// The value that stands there so.
    fn from_slot(words: [u64; N]) -> Self;
}

/// Two halves of a word.
#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

#[inline(always)]
const fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

impl AsSlotKey<2> for Address {
    #[inline(always)]
    fn to_slot(&self) -> SlotKey<2> {
        SlotKey { tail: 0, words: self.halves() }
    }
    fn from_slot(key: &SlotKey<2>) -> Self {
        Self::from_halves(key.words)
    }
}

impl AsSlotValue<1> for AddressEntry {
    fn may_mix(_: &[u64; 1], _: &[u64; 1]) -> bool {
        true
    }

    #[inline(always)]
    fn to_slot(&self) -> [u64; 1] {
        [pair(self.identity, self.node as u32 | (self.flags as u32) << 16)]
    }
    #[inline(always)]
    fn from_slot([word]: [u64; 1]) -> Self {
        let [identity, rest] = halves(word);
        Self { identity, node: rest as u16, flags: (rest >> 16) as u16 }
    }
}

impl AsSlotKey<1> for NodeNumber {
    #[inline(always)]
    fn to_slot(&self) -> SlotKey<1> {
        SlotKey { tail: u64::from(*self), words: [0] }
    }
    fn from_slot(key: &SlotKey<1>) -> Self {
        key.tail as Self
    }
}

impl AsSlotValue<2> for NodeEntry {
    // A session that lasts longer is one until the end of the one before, too.
    fn may_mix([old, _]: &[u64; 2], [new, _]: &[u64; 2]) -> bool {
        old <= new
    }

    #[inline(always)]
    fn to_slot(&self) -> [u64; 2] {
        [self.expires, pair(self.epoch, self.acknowledged)]
    }
    #[inline(always)]
    fn from_slot([expires, rest]: [u64; 2]) -> Self {
        let [epoch, acknowledged] = halves(rest);
        Self { expires, epoch, acknowledged }
    }
}

impl AsSlotKey<1> for AuthKey {
    #[inline(always)]
    fn to_slot(&self) -> SlotKey<1> {
        let Self { local, remote, node, auth_type, pad } = *self;
        let tail = node as u64 | (auth_type as u64) << 16 | (pad as u64) << 24;
        SlotKey { tail, words: [pair(local, remote)] }
    }
    fn from_slot(key: &SlotKey<1>) -> Self {
        let ([local, remote], tail) = (halves(key.words[0]), key.tail);
        Self { local, remote, node: tail as u16, auth_type: (tail >> 16) as u8, pad: (tail >> 24) as u8 }
    }
}

impl AsSlotValue<2> for AuthEntry {
    // What is authenticated for longer is so until the end of what was before, too.
    fn may_mix([old, _]: &[u64; 2], [new, _]: &[u64; 2]) -> bool {
        old <= new
    }

    #[inline(always)]
    fn to_slot(&self) -> [u64; 2] {
        [self.expires, pair(self.epoch, self.flags)]
    }
    #[inline(always)]
    fn from_slot([expires, rest]: [u64; 2]) -> Self {
        let [epoch, flags] = halves(rest);
        Self { expires, epoch, flags }
    }
}

/// With the length of the prefix.
impl AsSlotKey<1> for (PolicyKey, u32) {
    #[inline(always)]
    fn to_slot(&self) -> SlotKey<1> {
        let (PolicyKey { local, remote, direction, protocol, port: [first, second] }, prefix_len) = *self;
        let last = u32::from_ne_bytes([direction, protocol, first, second]);
        SlotKey { tail: pair(last, prefix_len & 0xff), words: [pair(local, remote)] }
    }
    #[inline(always)]
    fn from_slot(key: &SlotKey<1>) -> Self {
        let ([local, remote], [last, prefix_len]) = (halves(key.words[0]), halves(key.tail));
        let [direction, protocol, first, second] = last.to_ne_bytes();
        (PolicyKey { local, remote, direction, protocol, port: [first, second] }, prefix_len)
    }
}

impl SlotKey<1> {
    /// A policy key, with any identity at the other end.
    #[must_use]
    #[inline(always)]
    pub const fn for_any_identity(&self) -> Self {
        let [word] = self.words;
        Self { tail: self.tail, words: [word & u32::MAX as u64] }
    }

    /// A policy key in full, with the prefix of this length in its stead: in few steps, as programs need it.
    #[must_use]
    #[inline(always)]
    pub const fn shortened(&self, prefix_len: u32) -> Self {
        let free = PolicyKey::FULL_BITS.saturating_sub(prefix_len) & 31;
        let last = (u32::from_be(self.tail as u32) >> free << free).to_be();
        Self { tail: pair(last, prefix_len), words: self.words }
    }
}

impl AsSlotValue<2> for PolicyEntry {
    // All that decides is in the first word; the other names the rule.
    fn may_mix(_: &[u64; 2], _: &[u64; 2]) -> bool {
        true
    }

    #[inline(always)]
    fn to_slot(&self) -> [u64; 2] {
        let flags = [self.deny, self.auth_explicit, self.encryption, self.audit];
        let [deny, explicit, encryption, audit] = flags.map(|flag| u8::from(flag != 0));
        let flags = deny | explicit << 1 | encryption << 2 | audit << 3;
        let rest = u32::from_le_bytes([self.port_prefix, self.auth_type, flags, 0]);
        [pair(self.precedence, rest), u64::from(self.cookie)]
    }
    #[inline(always)]
    fn from_slot([word, cookie]: [u64; 2]) -> Self {
        let [precedence, rest] = halves(word);
        let flag = |number: u32| (rest >> (16 + number)) as u8 & 1;
        Self {
            precedence,
            cookie: cookie as u32,
            port_prefix: rest as u8,
            deny: flag(0),
            auth_type: (rest >> 8) as u8,
            auth_explicit: flag(1),
            encryption: flag(2),
            audit: flag(3),
            pad: [0; 2],
        }
    }
}
