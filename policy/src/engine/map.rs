//! What the kernel's map holds, and the plan to what it shall hold.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::{IdentityNumber, PolicyClasses, PolicyEntry};

use super::group::Group;
use super::{DIRECTIONS, Engine};
use crate::plan::{Entries, MapKey, Overflow, Plan, Replacement, Side, Step, Target, fit};
use crate::port::PortPrefix;

/// What the map holds where that isn't what it shall hold.
#[derive(Clone, Debug, Default)]
pub(super) struct MapState {
    behind: BTreeMap<Side, BTreeMap<IdentityNumber, Entries>>,
    /// Entries that compiling doesn't make.
    strays: Vec<MapKey>,
    /// How many entries it holds.
    len: usize,
}

impl MapState {
    /// What the map shall hold has changed.
    pub(super) fn changed(&mut self, side: Side, remote: IdentityNumber, before: Entries, now: &Entries) {
        if before != *now {
            self.behind.entry(side).or_default().entry(remote).or_insert(before);
        }
    }

    /// All entries of a side have been made anew.
    pub(super) fn regrouped(&mut self, side: Side, before: &Group, now: &Group) {
        self.changed(side, 0, Entries::clone(&before.any), &now.any);
        for (remote, entries) in &before.of {
            if now.of.get(remote) != Some(entries) {
                self.changed(side, *remote, Entries::clone(entries), &now.entries(*remote));
            }
        }
        for (remote, entries) in now.of.iter().filter(|(remote, _)| !before.of.contains_key(remote)) {
            self.changed(side, *remote, Entries::default(), entries);
        }
    }
}

impl Engine {
    /// The steps from what the map holds to what it shall hold; empty if it does. Once they are made, tell
    /// [`Engine::applied`]; if one of them fails, read the map and tell [`Engine::adopt`].
    ///
    /// # Errors
    /// [`Overflow`] if `capacity` entries are too few. The plan in it may be made instead: it allows nothing
    /// new that doesn't fit, and restricts all that is to be restricted. The next plan tries all of it again.
    pub fn plan(&mut self, capacity: usize) -> Result<Plan, Box<Overflow>> {
        self.settle();
        let targets = self.map.behind.iter().map(|(side, behind)| {
            let replace = |(remote, old): (&IdentityNumber, &Entries)| self.replacement(*side, *remote, old);
            Target { side: *side, replacements: behind.iter().map(replace).collect() }
        });
        let name = |cookie| self.rules().get(&cookie).and_then(|rule| rule.object().cloned());
        let present = self.map.len.saturating_sub(self.map.strays.len());
        let plan = fit(targets.collect(), present, capacity, |side| self.whole(side), name);
        let strays = &self.map.strays;
        match plan {
            Ok(plan) => Ok(plan.after_removing(strays)),
            Err(mut overflow) => {
                overflow.instead = std::mem::take(&mut overflow.instead).after_removing(strays);
                Err(overflow)
            }
        }
    }

    /// All steps of this plan have been made, and nothing was changed since it was.
    pub fn applied(&mut self, plan: &Plan) {
        self.map.strays.clear();
        self.map.len = plan.after;
        if plan.is_whole {
            self.map.behind.clear();
            return;
        }
        let mut touched: BTreeMap<(Side, IdentityNumber), BTreeMap<PortPrefix, PolicyEntry>> =
            BTreeMap::new();
        for step in &plan.steps {
            let Some((side, remote, prefix)) = Side::of_key(step.key()) else { continue };
            let entries = touched
                .entry((side, remote))
                .or_insert_with(|| self.held(side, remote).iter().copied().collect());
            match step {
                Step::Put(_, entry) => drop(entries.insert(prefix, *entry)),
                Step::Remove(_) => drop(entries.remove(&prefix)),
            }
        }
        for ((side, remote), entries) in touched {
            self.set_held(side, remote, entries.into_iter().collect());
        }
    }

    /// This is what the map holds, whoever put it there.
    pub fn adopt(&mut self, entries: impl IntoIterator<Item = (MapKey, PolicyEntry)>) {
        self.settle();
        let mut held: BTreeMap<(Side, IdentityNumber), BTreeMap<PortPrefix, PolicyEntry>> = BTreeMap::new();
        self.map = MapState::default();
        for (key, entry) in entries {
            self.map.len += 1;
            match Side::of_key(&key) {
                Some((side, remote, prefix)) => {
                    held.entry((side, remote)).or_default().insert(prefix, entry);
                }
                None => self.map.strays.push(key),
            }
        }
        let wanted: Vec<(Side, IdentityNumber)> = self
            .groups
            .iter()
            .flat_map(|(side, group)| group.all().map(|(remote, _)| (*side, remote)))
            .collect();
        let all: BTreeSet<(Side, IdentityNumber)> = held.keys().copied().chain(wanted).collect();
        for (side, remote) in all {
            let entries = held.remove(&(side, remote)).unwrap_or_default();
            self.set_held(side, remote, entries.into_iter().collect());
        }
    }

    /// How many entries the map holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.map.len
    }

    /// Whether the map holds nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.map.len == 0
    }

    /// Which prefix lengths the map has entries of for this identity.
    #[must_use]
    pub fn classes(&self, local: IdentityNumber) -> PolicyClasses {
        let mut classes = PolicyClasses::default();
        for side in DIRECTIONS.map(|direction| Side { local, direction }) {
            for remote in self.remotes(side) {
                for (prefix, _) in self.held(side, remote).iter() {
                    let (key, bits) = side.key(remote, *prefix);
                    classes.add(&key, bits);
                }
            }
        }
        classes
    }

    fn wanted(&self, side: Side, remote: IdentityNumber) -> Entries {
        self.groups.get(&side).map(|group| group.entries(remote)).unwrap_or_default()
    }

    fn held(&self, side: Side, remote: IdentityNumber) -> Entries {
        let behind = self.map.behind.get(&side).and_then(|behind| behind.get(&remote));
        behind.cloned().unwrap_or_else(|| self.wanted(side, remote))
    }

    fn set_held(&mut self, side: Side, remote: IdentityNumber, entries: Entries) {
        if entries == self.wanted(side, remote) {
            if let Some(behind) = self.map.behind.get_mut(&side) {
                behind.remove(&remote);
            }
        } else {
            self.map.behind.entry(side).or_default().insert(remote, entries);
        }
    }

    fn replacement(&self, side: Side, remote: IdentityNumber, old: &Entries) -> Replacement {
        Replacement { remote, old: Entries::clone(old), new: self.wanted(side, remote) }
    }

    /// Whom the map holds, or shall hold, entries of a side for.
    fn remotes(&self, side: Side) -> BTreeSet<IdentityNumber> {
        let wanted = self.groups.get(&side).into_iter().flat_map(Group::all).map(|(remote, _)| remote);
        let behind = self.map.behind.get(&side).into_iter().flatten().map(|(remote, _)| *remote);
        wanted.chain(behind).collect()
    }

    /// All replacements of a side, with those that replace nothing.
    fn whole(&self, side: Side) -> Vec<Replacement> {
        self.remotes(side)
            .into_iter()
            .map(|remote| self.replacement(side, remote, &self.held(side, remote)))
            .collect()
    }
}
