//! Registration entries, kept as somebody wants them: which of those that the server has are created, updated
//! in place or deleted. Pure; [`converge()`] does what is planned here.
//!
//! An entry is ours if its ID begins with the mark of its [`Owner`]. The rest of the ID is a hash of parent and
//! SPIFFE ID, so two writers make the same entry, not two, and an entry that does not fit its ID has been tampered
//! with.

mod converge;
mod owner;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub use converge::{Changes, Options, Registered, Report, Round, converge, survey};
pub use owner::Owner;

use crate::{Entry, SpiffeId};

/// How long an entry stays that nobody wants any more.
pub const GRACE: Duration = Duration::from_secs(600);

/// The entries that should be there, by their IDs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    owner: Owner,
    entries: BTreeMap<String, Entry>,
    revoked: BTreeSet<SpiffeId>,
}

impl Wanted {
    /// Nothing yet; what else `owner` has at the server is not wanted.
    pub fn new(owner: Owner) -> Self {
        Self { owner, ..Self::default() }
    }

    /// An entry; of two with the same parent and SPIFFE ID the later one counts.
    pub fn add(&mut self, mut entry: Entry) {
        entry.id = self.owner.entry_id(&entry.parent_id, &entry.spiffe_id);
        self.entries.insert(entry.id.clone(), entry);
    }

    /// Whatever we have registered as `spiffe_id`, or below it as parent, goes at once.
    pub fn revoke(&mut self, spiffe_id: SpiffeId) {
        self.revoked.insert(spiffe_id);
    }

    /// The entries with their IDs.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    fn is_revoked(&self, entry: &Entry) -> bool {
        self.revoked.contains(&entry.spiffe_id) || self.revoked.contains(&entry.parent_id)
    }
}

impl FromIterator<Entry> for Wanted {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut wanted = Self::default();
        entries.into_iter().for_each(|entry| wanted.add(entry));
        wanted
    }
}

/// What is to be done at the server, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Entries to delete.
    pub delete: Vec<Entry>,
    /// Entries to change in place.
    pub update: Vec<Entry>,
    /// Entries to create.
    pub create: Vec<Entry>,
    /// IDs of wanted entries that somebody else's entry stands for already, which stays as it is.
    pub foreign: BTreeSet<String>,
}

impl Plan {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.update.is_empty() && self.create.is_empty()
    }
}

/// Plans, and remembers since when an entry has been wanted no more.
#[derive(Debug)]
pub struct Registrar {
    grace: Duration,
    unwanted: BTreeMap<String, Instant>,
}

impl Registrar {
    /// Deletes what nobody has wanted for `grace`. A new one counts from when it first sees the entry.
    pub fn new(grace: Duration) -> Self {
        Self { grace, unwanted: BTreeMap::new() }
    }

    /// What leads from `present`, all entries of the server, to `wanted`.
    pub fn plan(&mut self, wanted: &Wanted, present: &[Entry], now: Instant) -> Plan {
        let mut plan = Plan::default();
        let mut unwanted = BTreeMap::new();
        let (ours, foreign): (Vec<&Entry>, Vec<&Entry>) =
            present.iter().partition(|entry| wanted.owner.owns(entry));
        for entry in &ours {
            match wanted.entries.get(&entry.id) {
                _ if wanted.is_revoked(entry) => plan.delete.push((*entry).clone()),
                Some(wanted) if wanted == *entry => {}
                Some(wanted) => plan.update.push(wanted.clone()),
                None if entry.id != wanted.owner.entry_id(&entry.parent_id, &entry.spiffe_id) => {
                    plan.delete.push((*entry).clone());
                }
                None => {
                    let since = self.unwanted.get(&entry.id).copied().unwrap_or(now);
                    if now.saturating_duration_since(since) >= self.grace {
                        plan.delete.push((*entry).clone());
                    }
                    unwanted.insert(entry.id.clone(), since);
                }
            }
        }
        self.unwanted = unwanted;
        let ours: BTreeSet<&str> = ours.iter().map(|entry| entry.id.as_str()).collect();
        let foreign: BTreeSet<_> = foreign.iter().map(|entry| registration(entry)).collect();
        let missing = |entry: &&Entry| !ours.contains(entry.id.as_str()) && !wanted.is_revoked(entry);
        for entry in wanted.iter().filter(missing) {
            if foreign.contains(&registration(entry)) {
                plan.foreign.insert(entry.id.clone());
            } else {
                plan.create.push(entry.clone());
            }
        }
        plan
    }

    /// When the next entry is due for deletion, if any is.
    pub fn next_deletion(&self) -> Option<Instant> {
        self.unwanted.values().min().and_then(|since| since.checked_add(self.grace))
    }
}

/// What the server holds to be the same entry.
fn registration(entry: &Entry) -> (&SpiffeId, &SpiffeId, &BTreeSet<crate::Selector>) {
    (&entry.parent_id, &entry.spiffe_id, &entry.selectors)
}
