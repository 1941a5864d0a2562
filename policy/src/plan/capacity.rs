//! Whether a plan fits into the map, and what is done if it doesn't.
//!
//! A plan needs most room in its middle, where old and new entries stand side by side. Sides (one direction
//! of one endpoint) change one after the other, those first that shrink, so that only one of them is in its
//! middle at a time.
//!
//! If that doesn't fit, nothing new is allowed, but what is newly restricted must be: each side that fits
//! changes, and each that doesn't keeps its old entries with the restrictions of the new ones. If even these
//! have no room its entries are removed, which drops everything and always fits.

use std::collections::BTreeMap;
use std::fmt;

use auth_ebpf_abi::{Direction, IdentityNumber};

use super::restrict::restrict;
use super::{Entries, Plan, Replacement, Side, Step, find, order};
use crate::object::ObjectRef;

/// How many objects an error names.
const NAMED: usize = 3;

/// What a side that doesn't fit gets instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// Its old entries: the new ones restrict nothing.
    Kept,
    /// Its old entries, restricted as the new ones are.
    Restricted,
    /// Nothing, so that everything is dropped: there is no room for the restrictions.
    Closed,
}

/// How many entries an object adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The policy; none for what no policy restricts.
    pub object: Option<ObjectRef>,
    /// Entries that it adds.
    pub entries: usize,
}

/// A change doesn't fit into the map. Nothing has been applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Overflow {
    /// Entries that there is room for.
    pub capacity: usize,
    /// Entries that there are now.
    pub present: usize,
    /// Entries that the change would need at its peak.
    pub needed: usize,
    /// The policies that add most, the largest first.
    pub growth: Vec<Growth>,
    /// The directions of endpoints that the change is held back for.
    pub held: Vec<(IdentityNumber, Direction, Held)>,
    /// What is safe to apply instead: changes that fit, and restrictions.
    pub instead: Plan,
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { capacity, present, needed, growth, held, .. } = self;
        write!(
            f,
            "the policy map has room for {capacity} entries and this change needs {needed} ({present} now)"
        )?;
        for (at, Growth { object, entries }) in growth.iter().enumerate() {
            let start = if at == 0 { "; most are added by " } else { ", " };
            match object {
                Some(object) => write!(f, "{start}{object} (+{entries})")?,
                None => write!(f, "{start}endpoints without policy (+{entries})")?,
            }
        }
        let closed = held.iter().filter(|(_, _, held)| *held == Held::Closed);
        let closed: Vec<String> =
            closed.map(|(local, direction, _)| format!("{local} {}", direction.as_str())).collect();
        write!(
            f,
            "; {} directions of identities keep what was allowed and is still",
            held.len() - closed.len()
        )?;
        if !closed.is_empty() {
            write!(f, ", closed for lack of room: {}", closed.join(", "))?;
        }
        f.write_str("; select fewer identities, use fewer port ranges, or put fewer identities on this node")
    }
}

/// A side that is to change.
pub(crate) struct Target {
    pub(crate) side: Side,
    pub(crate) replacements: Vec<Replacement>,
}

/// A side's steps and what they do to the number of entries.
struct Sized {
    target: Target,
    steps: Vec<Step>,
    growth: isize,
}

/// The plan for all targets, from the number of entries that are there; `whole` gives a side's replacements
/// with those remote identities that don't change, `name` the policy of a cookie.
pub(crate) fn fit(
    targets: Vec<Target>,
    present: usize,
    capacity: usize,
    whole: impl Fn(Side) -> Vec<Replacement>,
    name: impl Fn(u32) -> Option<ObjectRef>,
) -> Result<Plan, Box<Overflow>> {
    let mut sized: Vec<Sized> = targets.into_iter().map(Sized::new).collect();
    sized.sort_by_key(|one| (one.growth, one.target.side));
    let mut size = Size::new(present);
    for one in &sized {
        size.add(&one.steps, one);
    }
    if size.peak <= capacity {
        let steps = sized.into_iter().flat_map(|one| one.steps).collect();
        return Ok(Plan { steps, peak: size.peak, after: size.now, is_whole: true });
    }
    let growth = growth(&sized, name);
    let needed = size.peak;
    let (instead, held) = hold(sized, present, capacity, whole);
    Err(Box::new(Overflow { capacity, present, needed, growth, held, instead }))
}

/// What fits, and restrictions of the rest.
fn hold(
    sized: Vec<Sized>,
    present: usize,
    capacity: usize,
    whole: impl Fn(Side) -> Vec<Replacement>,
) -> (Plan, Vec<(IdentityNumber, Direction, Held)>) {
    let mut size = Size::new(present);
    let mut held = Vec::new();
    let mut steps = Vec::new();
    for one in sized {
        if size.try_add(&one, capacity) {
            steps.extend(one.steps);
            continue;
        }
        let side = one.target.side;
        let all = whole(side);
        let restricted = Sized::new(Target { side, replacements: restrict(&all) });
        let (chosen, what) = if size.try_add(&restricted, capacity) {
            let what = if restricted.steps.is_empty() { Held::Kept } else { Held::Restricted };
            (restricted, what)
        } else {
            let close = |one: Replacement| Replacement { new: Entries::default(), ..one };
            let closed = Sized::new(Target { side, replacements: all.into_iter().map(close).collect() });
            size.add(&closed.steps, &closed);
            (closed, Held::Closed)
        };
        held.push((side.local, side.direction, what));
        steps.extend(chosen.steps);
    }
    (Plan { steps, peak: size.peak, after: size.now, is_whole: false }, held)
}

impl Sized {
    fn new(target: Target) -> Self {
        let steps = order(target.side, &target.replacements);
        let (old, new) = target
            .replacements
            .iter()
            .fold((0, 0), |(old, new), one| (old + one.old.len(), new + one.new.len()));
        let growth = new.cast_signed() - old.cast_signed();
        Self { target, steps, growth }
    }

    /// The old entry that a step changes.
    fn is_new(&self, step: &Step) -> bool {
        let Some((_, remote, prefix)) = Side::of_key(step.key()) else { return false };
        let at = self.target.replacements.binary_search_by_key(&remote, |one| one.remote);
        let old = at.ok().and_then(|at| self.target.replacements.get(at)).map(|one| &one.old);
        old.is_none_or(|old| find(old, prefix).is_none())
    }
}

/// The number of entries, now and at most.
#[derive(Clone, Copy)]
struct Size {
    now: usize,
    peak: usize,
}

impl Size {
    const fn new(now: usize) -> Self {
        Self { now, peak: now }
    }

    fn add(&mut self, steps: &[Step], of: &Sized) {
        for step in steps {
            match step {
                Step::Put(..) if of.is_new(step) => self.now += 1,
                Step::Put(..) => {}
                Step::Remove(_) => self.now = self.now.saturating_sub(1),
            }
            self.peak = self.peak.max(self.now);
        }
    }

    /// Adds the steps if they fit. A map that is overfull already has room for what adds nothing.
    fn try_add(&mut self, of: &Sized, capacity: usize) -> bool {
        let mut with = Self::new(self.now);
        with.add(&of.steps, of);
        let fits = with.peak <= capacity.max(self.now);
        if fits {
            *self = Self { now: with.now, peak: self.peak.max(with.peak) };
        }
        fits
    }
}

/// Which policies add most.
fn growth(sized: &[Sized], name: impl Fn(u32) -> Option<ObjectRef>) -> Vec<Growth> {
    let mut by_cookie: BTreeMap<u32, usize> = BTreeMap::new();
    for one in sized {
        for step in &one.steps {
            if let Step::Put(_, entry) = step
                && one.is_new(step)
            {
                *by_cookie.entry(entry.cookie).or_default() += 1;
            }
        }
    }
    let mut by_object: BTreeMap<Option<ObjectRef>, usize> = BTreeMap::new();
    for (cookie, entries) in by_cookie {
        *by_object.entry(name(cookie)).or_default() += entries;
    }
    let mut growth: Vec<Growth> =
        by_object.into_iter().map(|(object, entries)| Growth { object, entries }).collect();
    growth.sort_by(|a, b| b.entries.cmp(&a.entries).then_with(|| a.object.cmp(&b.object)));
    growth.truncate(NAMED);
    growth
}
