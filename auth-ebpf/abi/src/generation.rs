//! Generations: how a change of policy or authentication re-opens the connections that it can touch, and
//! no others, without a walk over them.
//!
//! Each connection carries the generation under which it was decided: the sum of a counter of the pair, one
//! of the local identity, and one of everything ([`Setting::Generation`](crate::Setting)). Who changes a map
//! raises the counter of what it touches, after the change; a packet of a connection of another generation
//! is decided anew. Policy takes several lookups, so its counter is raised before each change as well, and a
//! packet that finds it raised meanwhile looks again. Pairs share counters by a hash: at worst, a connection
//! is decided once more than needed.
//! A node's epoch needs none of its own: who raises it raises the counter of everything.

use crate::IdentityNumber;

/// Counters in the `generations` map.
pub const GENERATIONS: usize = 65_536;

/// The place of a pair's counter; with a remote identity of 0, of the local identity's.
#[must_use]
#[inline(always)]
pub const fn generation_slot(local: IdentityNumber, remote: IdentityNumber) -> u32 {
    // Odd constants of 32 bits that spread numbers close to each other (Knuth's, and murmur's).
    let mixed = local.wrapping_mul(0x9e37_79b1) ^ remote.wrapping_mul(0x85eb_ca6b).rotate_left(15);
    mixed.wrapping_mul(0xc2b2_ae35) >> 16
}
