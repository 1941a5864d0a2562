//! Plans: the order in which a policy map is changed, so that no packet meets a state which is neither the
//! old one nor the new one.
//!
//! The kernel replaces one entry at a time, and looks at two for each packet: the longest match for the
//! identity at the other end and the longest for any. Order alone is enough, because compiled entries are
//! complete. What they say about a packet is what the longest of all its matches says (that for the identity,
//! if two are as long), unless a shorter one denies: denials win, and everything under one denies too. So the
//! two lookups are one, in the order of length and identity, and:
//!
//! - Entries are written from the longest to the shortest, with identity before any. What wins over an old
//!   entry then has everything that wins over it in the new state in place already.
//! - Afterwards those that are no more are removed from the shortest to the longest, any before identity.
//!   What one leaves uncovered finds the new state.
//! - New denials come before all this, and so does the removal of what they cover. Whatever replaces an old
//!   denial comes after all, and then the denial goes.
//!
//! So each packet has the old verdict up to some step and the new one from there on. That needs no entry
//! which isn't in the old or the new state. The two ends of a connection, and different endpoints, change one
//! after the other: nothing could bind ends on different nodes together. A program that steps overtake while it
//! looks from the longest to the shortest notices, since each raises its pair's generation, and looks again.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use auth_ebpf_abi::{Direction, IdentityNumber, PolicyEntry, PolicyKey, identity as reserved};

use crate::compile::PolicyMap;
use crate::port::PortPrefix;

mod capacity;
mod restrict;

pub use capacity::{Growth, Held, Overflow};
pub(crate) use capacity::{Target, fit};

/// Key and prefix length of an entry in the policy map.
pub type MapKey = (PolicyKey, u32);

/// One change of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Puts an entry, in place of what is there.
    Put(MapKey, PolicyEntry),
    /// Removes an entry.
    Remove(MapKey),
}

impl Step {
    /// Whose entry it changes.
    #[must_use]
    pub const fn key(&self) -> &MapKey {
        match self {
            Self::Put(key, _) | Self::Remove(key) => key,
        }
    }
}

/// Changes of the map, to be made one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes, in order.
    pub steps: Vec<Step>,
    /// The most entries that there are at any step.
    pub peak: usize,
    /// The entries that there are after the last.
    pub after: usize,
    /// Whether it leads to all that was asked for.
    pub(crate) is_whole: bool,
}

impl Plan {
    /// The plan from one compiled map to another.
    ///
    /// # Errors
    /// [`Overflow`] if there is no room for it.
    pub fn between(old: &PolicyMap, new: &PolicyMap, capacity: usize) -> Result<Self, Box<Overflow>> {
        let mut sides = BTreeMap::new();
        let mut strays = Vec::new();
        for (at, map) in [old, new].into_iter().enumerate() {
            for (key, entry) in map {
                let Some((side, remote, prefix)) = Side::of_key(key) else {
                    strays.push(*key);
                    continue;
                };
                let remotes: &mut BTreeMap<_, [Vec<_>; 2]> = sides.entry(side).or_default();
                if let Some(list) = remotes.entry(remote).or_default().get_mut(at) {
                    list.push((prefix, *entry));
                }
            }
        }
        let replacements = |side: &Side| -> Vec<Replacement> {
            let of = |(remote, [old, new]): (&IdentityNumber, &[Vec<_>; 2])| Replacement {
                remote: *remote,
                old: sorted(old),
                new: sorted(new),
            };
            sides.get(side).into_iter().flatten().map(of).collect()
        };
        let targets = sides.keys().map(|side| Target { side: *side, replacements: replacements(side) });
        let present = old.len().saturating_sub(strays.len());
        let plan = fit(targets.collect(), present, capacity, |side| replacements(&side), |_| None)?;
        Ok(plan.after_removing(&strays))
    }

    /// This plan after these entries, which nothing is known of, have been removed.
    pub(crate) fn after_removing(mut self, strays: &[MapKey]) -> Self {
        self.steps.splice(0..0, strays.iter().map(|key| Step::Remove(*key)));
        self
    }
}

/// One direction of an endpoint: what is compiled, and changed, for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Side {
    pub(crate) local: IdentityNumber,
    pub(crate) direction: Direction,
}

impl Side {
    /// The side and the prefix that an entry is for; none for what compiling doesn't make.
    pub(crate) fn of_key((key, bits): &MapKey) -> Option<(Self, IdentityNumber, PortPrefix)> {
        let direction = Direction::from_number(key.direction)?;
        Some((Self { local: key.local, direction }, key.remote, PortPrefix::of_key(key, *bits)?))
    }

    pub(crate) fn key(self, remote: IdentityNumber, prefix: PortPrefix) -> MapKey {
        let Self { local, direction } = self;
        let mut key = PolicyKey { local, remote, direction: direction as u8, ..PolicyKey::default() };
        let bits = prefix.put(&mut key);
        (key, bits)
    }
}

/// The entries for one remote identity, or for any, of one side: sorted, no prefix twice.
pub(crate) type Entries = Arc<[(PortPrefix, PolicyEntry)]>;

/// What becomes of the entries for one remote identity, or for any (0).
#[derive(Clone, Debug)]
pub(crate) struct Replacement {
    pub(crate) remote: IdentityNumber,
    pub(crate) old: Entries,
    pub(crate) new: Entries,
}

fn sorted(entries: &[(PortPrefix, PolicyEntry)]) -> Entries {
    let by_prefix: BTreeMap<PortPrefix, PolicyEntry> = entries.iter().copied().collect();
    by_prefix.into_iter().collect()
}

/// When a step comes, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// New denials are put.
    Deny,
    /// What they cover is removed.
    Clear,
    /// Other entries are put.
    Put,
    /// Other entries are removed.
    Remove,
    /// What stands where a denial was is put.
    Loosen,
    /// Old denials are removed.
    Lift,
}

/// The steps that make these replacements in one side.
pub(crate) fn order(side: Side, replacements: &[Replacement]) -> Vec<Step> {
    let mut steps = Vec::new();
    for Replacement { remote, old, new } in replacements {
        let is_any = *remote == reserved::UNKNOWN;
        for (prefix, entry) in new.iter().filter(|(prefix, entry)| find(old, *prefix) != Some(entry)) {
            let phase = if is_denial(entry) {
                Phase::Deny
            } else if nearest(old, *prefix).is_some_and(is_denial) {
                Phase::Loosen
            } else {
                Phase::Put
            };
            // The longest first, and identity before any.
            let rank = (Reverse(prefix.bits()), is_any);
            steps.push(((phase, Some(rank), None), Step::Put(side.key(*remote, *prefix), *entry)));
        }
        for (prefix, entry) in old.iter().filter(|(prefix, _)| find(new, *prefix).is_none()) {
            let phase = if is_denial(entry) {
                Phase::Lift
            } else if nearest(new, *prefix).is_some_and(is_denial) {
                Phase::Clear
            } else {
                Phase::Remove
            };
            let rank = (prefix.bits(), !is_any);
            steps.push(((phase, None, Some(rank)), Step::Remove(side.key(*remote, *prefix))));
        }
    }
    steps.sort_by_key(|(place, step)| (*place, *step.key()));
    steps.into_iter().map(|(_, step)| step).collect()
}

/// The entry at exactly this prefix.
pub(crate) fn find(entries: &[(PortPrefix, PolicyEntry)], prefix: PortPrefix) -> Option<&PolicyEntry> {
    let at = entries.binary_search_by_key(&prefix, |(have, _)| *have).ok()?;
    entries.get(at).map(|(_, entry)| entry)
}

/// The entry of the longest prefix that covers this one.
pub(crate) fn nearest(entries: &[(PortPrefix, PolicyEntry)], prefix: PortPrefix) -> Option<&PolicyEntry> {
    if entries.is_empty() {
        return None;
    }
    prefix.and_covering().find_map(|prefix| find(entries, prefix))
}

/// Whether nothing else can win over this entry.
const fn is_denial(entry: &PolicyEntry) -> bool {
    entry.precedence == PolicyEntry::DENY_PRECEDENCE
}
