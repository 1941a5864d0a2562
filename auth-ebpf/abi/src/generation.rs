//! Generations: how a change of policy or authentication re-opens the connections that it can touch, and
//! few others, without a walk over them.
//!
//! Each connection carries the generation under which it was decided: the sum of a counter of the pair and one
//! of everything ([`Setting::Generation`](crate::Setting)). Who changes a map raises the counter of what it
//! touches, after the change, and those of all pairs of a local identity if that is about any remote one; a packet
//! of a connection of another generation is decided anew. Policy takes several lookups, so its counter is raised
//! before each change as well, and a packet that finds it raised meanwhile looks again. Pairs share counters by a
//! hash: at worst, a connection is decided once more than needed, and what is related to it alone drops until then.
//! A node's epoch needs none of its own: who raises it raises the counter of everything.

use core::ops::Range;

use crate::IdentityNumber;

/// Counters in the `generations` map.
pub const GENERATIONS: usize = 1 << (ROW_BITS + PLACE_BITS);

/// Local identities share a row by this many bits of their hash, and the remote ones a place in it by these. A row
/// is as long as what a processor fetches at once, and short enough to be raised as a whole.
const ROW_BITS: u32 = 13;
const PLACE_BITS: u32 = 3;

/// The place of a pair's counter.
#[must_use]
#[inline(always)]
pub const fn generation_slot(local: IdentityNumber, remote: IdentityNumber) -> u32 {
    row(local) + (mixed(remote) >> (u32::BITS - PLACE_BITS))
}

/// The places of the counters of all pairs of a local identity.
#[must_use]
pub const fn generation_slots(local: IdentityNumber) -> Range<u32> {
    row(local)..row(local) + (1 << PLACE_BITS)
}

/// Where its row begins.
#[inline(always)]
const fn row(local: IdentityNumber) -> u32 {
    (mixed(local) >> (u32::BITS - ROW_BITS)) << PLACE_BITS
}

/// Spreads numbers close to each other over the upper bits (Knuth's multiplicative hash).
#[inline(always)]
const fn mixed(identity: IdentityNumber) -> u32 {
    identity.wrapping_mul(0x9e37_79b1)
}
