//! What an old state becomes when a new one doesn't fit: the old one with all the restrictions of the new.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::{Choice, PolicyEntry, choose, identity as reserved};

use super::{Entries, Replacement, nearest};
use crate::port::PortPrefix;

/// Precedence of what doesn't win over everything.
const PRECEDENCE: u32 = 1;

/// What packets need: authentication, and whether they must be encrypted; none if they are dropped.
pub(super) type Needs = Option<(u8, u8)>;

/// What the kernel asks of a packet for which it has found this.
pub(super) fn needs(choice: Option<Choice>) -> Needs {
    let Choice { entry, auth_type } = choice?;
    match (entry.audit, entry.deny) {
        // What is tried passes, whatever it says.
        (1.., _) => Some((0, entry.encryption)),
        (0, 0) => Some((auth_type, entry.encryption)),
        (0, 1..) => None,
    }
}

/// Replacements of one side, which restrict as the new entries do and allow nothing that the old ones don't.
/// `whole` has every remote identity of the side, and any.
///
/// An entry is put wherever the new state asks for more than the old one. It covers only what had the same
/// old verdict, so nothing else changes, but what it is put above may be held to it as well.
pub(super) fn restrict(whole: &[Replacement]) -> Vec<Replacement> {
    let none = Replacement { remote: reserved::UNKNOWN, old: Entries::default(), new: Entries::default() };
    let any = whole.iter().find(|one| one.remote == reserved::UNKNOWN).unwrap_or(&none);
    let restricted_any = restricted(&none, any, &Entries::default());
    let of = |one: &Replacement| {
        let new = if one.remote == reserved::UNKNOWN {
            Entries::clone(&restricted_any)
        } else {
            restricted(any, one, &restricted_any)
        };
        Replacement { remote: one.remote, old: Entries::clone(&one.old), new }
    };
    whole.iter().map(of).filter(|one| one.old != one.new).collect()
}

/// The old entries for one remote identity, restricted, beside those for any.
fn restricted(any: &Replacement, one: &Replacement, restricted_any: &Entries) -> Entries {
    let lists = [&any.old, &any.new, &one.old, &one.new];
    let prefixes: BTreeSet<PortPrefix> =
        lists.iter().flat_map(|list| list.iter().map(|(prefix, _)| *prefix)).collect();
    let mut by_length: Vec<PortPrefix> = prefixes.into_iter().collect();
    by_length.sort_by_key(|prefix| prefix.bits());
    let mut entries: BTreeMap<PortPrefix, PolicyEntry> = one.old.iter().copied().collect();
    for prefix in by_length {
        let at = |one: &Entries, any: &Entries| {
            choose(nearest(one, prefix).copied(), nearest(any, prefix).copied())
        };
        let Some(entry) = stricter(at(&one.old, &any.old), at(&one.new, &any.new), prefix) else { continue };
        let own = prefix.and_covering().find_map(|prefix| entries.get(&prefix)).copied();
        let already = choose(own, nearest(restricted_any, prefix).copied());
        if !is_at_least(needs(already), needs(choose(Some(entry), None))) {
            entries.insert(prefix, entry);
        }
    }
    entries.into_iter().collect()
}

/// The entry that asks for all that both ask for, if the new one asks for more than the old one.
fn stricter(old: Option<Choice>, new: Option<Choice>, prefix: PortPrefix) -> Option<PolicyEntry> {
    let (old_needs, new_needs) = (needs(old), needs(new));
    if is_at_least(old_needs, new_needs) {
        return None;
    }
    let named = PolicyEntry { port_prefix: prefix.bits(), ..new.map(|new| new.entry).unwrap_or_default() };
    let ranked = PolicyEntry { precedence: PRECEDENCE, auth_explicit: 1, audit: 0, ..named };
    Some(match (old_needs, new_needs) {
        (_, None) if named.precedence == PolicyEntry::DENY_PRECEDENCE => named,
        (_, None) => PolicyEntry { deny: 1, auth_type: 0, encryption: 0, ..ranked },
        (old, Some((auth_type, encryption))) => {
            let (old_auth, old_encryption) = old.unwrap_or_default();
            let (auth_type, encryption) = (auth_type.max(old_auth), encryption.max(old_encryption));
            PolicyEntry { deny: 0, auth_type, encryption, ..ranked }
        }
    })
}

/// Whether this asks for all that the other asks for.
pub(super) fn is_at_least(this: Needs, other: Needs) -> bool {
    match (this, other) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some((auth, encryption)), Some((other_auth, other_encryption))) => {
            auth >= other_auth && encryption >= other_encryption
        }
    }
}
