//! The policy map, kept up to date change by change.
//!
//! An [`Engine`] holds policies, identities and what else policies refer to, and makes the entries for the
//! identities of the pods here. A change is noted at once and compiled only when the next plan is asked for,
//! and only where it matters: a policy for the local identities that it selects, an identity for the rules
//! that select it. [`compile`](crate::compile()) makes the same entries from scratch.

mod authentication;
mod by_label;
mod follow;
mod group;
mod map;
mod selections;
mod surroundings;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use auth_ebpf_abi::{Direction, IdentityNumber};
use ipnet::IpNet;

use crate::compile::Compiled;
use crate::compile::cookie::Cookies;
use crate::compile::terms::End;
use crate::condition::Condition;
use crate::identity::{Identity, IdentityError};
use crate::label_set::LabelSet;
use crate::local::Place;
use crate::object::{ObjectRef, RuleRef};
use crate::peer::Peer;
use crate::plan::Side;
use crate::policy_set::View;
use crate::rule::{Policy, Spec, Subject};
use authentication::{Askers, requires};
use by_label::Asking;
use group::Group;
use map::MapState;
use selections::{Effect, Selections, SideResolver};
use world::{World, is_indirect};

pub use authentication::AuthenticationPairs;

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// What is to be compiled of a side.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Dirty {
    Remotes(BTreeSet<IdentityNumber>),
    All,
}

/// Compiles policies for the identities here, change by change.
#[derive(Clone, Debug)]
pub struct Engine {
    world: World,
    /// The identities of the pods here, known or not.
    locals: BTreeSet<IdentityNumber>,
    cookies: Cookies,
    /// The policies by the labels of whom they are for.
    subjects: Asking<ObjectRef>,
    selections: Selections,
    askers: Askers,
    groups: BTreeMap<Side, Group>,
    dirty: BTreeMap<Side, Dirty>,
    conditions: BTreeMap<ObjectRef, Vec<Condition>>,
    /// Policies whose conditions are to be looked at again.
    unconditioned: BTreeSet<ObjectRef>,
    map: MapState,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// No policies, no pods, and an empty map.
    #[must_use]
    pub fn new() -> Self {
        Self {
            world: World::new(),
            locals: BTreeSet::new(),
            cookies: Cookies::built_in(),
            subjects: Asking::default(),
            selections: Selections::default(),
            askers: Askers::default(),
            groups: BTreeMap::new(),
            dirty: BTreeMap::new(),
            conditions: BTreeMap::new(),
            unconditioned: BTreeSet::new(),
            map: MapState::default(),
        }
    }

    /// Adds a policy, in place of the one of the same name.
    pub fn insert_policy(&mut self, policy: impl Into<Arc<Policy>>) {
        let policy = policy.into();
        if self.world.policies.has(&policy) {
            return;
        }
        self.remove_policy(&policy.object);
        self.cookies.insert(&policy);
        self.touch_subjects(&policy);
        self.index_subjects(&policy);
        let places = self.world.places(&policy);
        self.set_places(Some(&policy.object), places);
        self.askers.insert_policy(&self.world, &policy, &self.locals);
        self.unconditioned.insert(policy.object.clone());
        self.world.policies.insert(policy);
    }

    /// Takes a policy out.
    pub fn remove_policy(&mut self, object: &ObjectRef) {
        let Some(policy) = self.world.policies.remove(object) else { return };
        self.touch_subjects(&policy);
        self.subjects.remove(object);
        self.askers.remove_policy(&policy);
        let cookies = self.cookies.remove(&policy);
        self.selections.forget_rules(&cookies);
        self.set_places(Some(object), BTreeSet::new());
        self.conditions.remove(object);
        self.unconditioned.remove(object);
    }

    /// Adds an identity.
    ///
    /// # Errors
    /// As [`IdentitySet::insert`](crate::IdentitySet::insert); nothing is changed then.
    pub fn insert_identity(&mut self, identity: Identity) -> Result<(), IdentityError> {
        let number = identity.number();
        let is_known = self.world.identities.get(number).is_some();
        self.world.identities.insert(identity)?;
        if !is_known {
            self.world.index(number, true);
            self.set_identity(number, true);
        }
        Ok(())
    }

    /// Takes an identity out; reserved ones stay.
    pub fn remove_identity(&mut self, number: IdentityNumber) {
        let Some(remote) = self.world.remote(number) else { return };
        if remote.place.is_some() || auth_ebpf_abi::identity::is_reserved(number) {
            return;
        }
        let keys = self.selections.candidates(remote);
        self.world.index(number, false);
        self.set_subject(number, false);
        self.world.identities.remove(number);
        self.look_again(&keys, number);
        self.local_changed(number);
    }

    /// A pod of this identity has come to this node. Until the identity is known it has no entries.
    pub fn add_local(&mut self, number: IdentityNumber) {
        if self.locals.insert(number) {
            self.local_changed(number);
        }
    }

    /// The last pod of this identity has left this node.
    pub fn remove_local(&mut self, number: IdentityNumber) {
        if self.locals.remove(&number) {
            self.local_changed(number);
        }
    }

    /// The identities of the pods here.
    #[must_use]
    pub const fn locals(&self) -> &BTreeSet<IdentityNumber> {
        &self.locals
    }

    /// The policies, in the order of their names.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.world.policies.iter()
    }

    /// What the cookies in the entries stand for.
    #[must_use]
    pub const fn rules(&self) -> &BTreeMap<u32, RuleRef> {
        self.cookies.rules()
    }

    /// The prefixes outside the cluster that policies name, and the identities which stand for them.
    #[must_use]
    pub const fn prefixes(&self) -> &BTreeMap<IpNet, IdentityNumber> {
        self.world.local.by_net()
    }

    /// The other nodes that policies choose by label, and the identities which stand for them.
    #[must_use]
    pub const fn nodes(&self) -> &BTreeMap<String, IdentityNumber> {
        self.world.local.by_node()
    }

    /// What isn't done as written, by policy.
    pub fn conditions(&mut self) -> &BTreeMap<ObjectRef, Vec<Condition>> {
        let World { identities, surroundings, local, policies, .. } = &self.world;
        let view = View { identities, surroundings, local };
        for object in std::mem::take(&mut self.unconditioned) {
            let conditions = policies.get(&object).map(|policy| view.of_policy(policy)).unwrap_or_default();
            if conditions.is_empty() {
                self.conditions.remove(&object);
            } else {
                self.conditions.insert(object, conditions);
            }
        }
        &self.conditions
    }

    /// The pairs that may be asked to authenticate.
    pub fn authentication(&mut self) -> AuthenticationPairs {
        self.settle();
        let asks = self.groups.iter().filter(|(_, group)| !group.asks.is_empty());
        self.askers.pairs(asks.map(|(side, group)| (*side, Arc::clone(&group.asks))).collect())
    }

    /// Everything, as [`compile`](crate::compile()) gives it.
    pub fn compiled(&mut self) -> Compiled {
        self.settle();
        let mut compiled = Compiled {
            rules: self.rules().clone(),
            conditions: self.conditions().clone(),
            prefixes: self.prefixes().clone(),
            nodes: self.nodes().clone(),
            ..Compiled::default()
        };
        for (side, group) in &self.groups {
            for (remote, entries) in group.all() {
                compiled
                    .map
                    .extend(entries.iter().map(|(prefix, entry)| (side.key(remote, *prefix), *entry)));
            }
            compiled.authentication.extend(group.asks.iter().map(|remote| (side.local, *remote)));
        }
        compiled
    }

    fn index_subjects(&mut self, policy: &Policy) {
        let subjects = policy.specs.iter().map(|spec| &spec.subject).chain(policy.refused.iter().flatten());
        let selectors = subjects.filter_map(|subject| match subject {
            Subject::Endpoints(selector) => Some(selector),
            Subject::Nodes(_) => None,
        });
        let places: Option<Vec<Vec<_>>> = selectors.map(|selector| self.subjects.place(selector)).collect();
        self.subjects.insert(policy.object.clone(), places.map(|places| places.concat()));
    }

    /// The local identities that a policy is for are to be compiled, in the directions that it is about.
    fn touch_subjects(&mut self, policy: &Policy) {
        let is_about = |spec: &Spec, direction: Direction| {
            spec.default_deny(direction) || spec.rules.iter().any(|rule| rule.list.direction() == direction)
        };
        let is_for = |labels: &LabelSet, direction: Direction| {
            let mut specs = policy.specs.iter().filter(|spec| spec.subject.matches(labels));
            policy.refuses(labels) || specs.any(|spec| is_about(spec, direction))
        };
        for local in &self.locals {
            let Some(identity) = self.world.identities.get(*local) else { continue };
            let directions = DIRECTIONS.into_iter().filter(|direction| is_for(identity.labels(), *direction));
            self.dirty.extend(directions.map(|direction| (Side { local: *local, direction }, Dirty::All)));
        }
    }

    fn touch(&mut self, local: IdentityNumber) {
        self.dirty.extend(DIRECTIONS.map(|direction| (Side { local, direction }, Dirty::All)));
    }

    fn set_identity(&mut self, number: IdentityNumber, is_there: bool) {
        self.set_subject(number, is_there);
        let keys = self.world.remote(number).map(|remote| self.selections.candidates(remote));
        self.look_again(&keys.unwrap_or_default(), number);
        self.local_changed(number);
    }

    fn set_subject(&mut self, number: IdentityNumber, is_there: bool) {
        let Some(identity) = self.world.identities.get(number) else { return };
        let objects = self.subjects.candidates(identity.labels());
        let policies = objects.into_iter().filter_map(|object| self.world.policies.get(object));
        self.askers.set_subject(policies, identity, is_there);
        if !self.world.surroundings.shared().is_empty() {
            self.recondition(|policy| policy.specs.iter().flat_map(|spec| &spec.rules).any(requires));
        }
    }

    /// An identity that may be local is known, or gone, or has come to this node, or left it.
    fn local_changed(&mut self, number: IdentityNumber) {
        let is_local = self.locals.contains(&number);
        if is_local || self.groups.contains_key(&Side { local: number, direction: Direction::Ingress }) {
            self.touch(number);
        }
        // One that has come and gone since the last plan has no group yet.
        self.askers.look_again(&self.world, number, is_local);
    }

    /// Notes the places that a policy names, and gives or takes their identities.
    fn set_places(&mut self, object: Option<&ObjectRef>, places: BTreeSet<Place>) {
        let (new, gone) = self.world.count_places(object, places);
        if !new.is_empty() || !gone.is_empty() {
            self.recondition(|policy| policy.specs.iter().flat_map(|spec| &spec.rules).any(requires));
        }
        for place in new {
            let number = self.world.local.insert(place);
            self.world.index(number, true);
            let keys = self.world.remote(number).map(|remote| self.selections.candidates(remote));
            self.look_again(&keys.unwrap_or_default(), number);
        }
        for place in gone {
            let Some(number) = self.world.local.of(&place) else { continue };
            let keys = self.world.remote(number).map(|remote| self.selections.candidates(remote));
            self.world.index(number, false);
            self.world.local.remove(&place);
            self.look_again(&keys.unwrap_or_default(), number);
        }
    }

    fn look_again(&mut self, keys: &[crate::compile::terms::SelectionKey], number: IdentityNumber) {
        let dirty = &mut self.dirty;
        self.selections.look_again(&self.world, keys, number, |side, effect| mark(dirty, side, effect));
    }

    /// The conditions of these policies are to be looked at again.
    fn recondition(&mut self, which: impl Fn(&Policy) -> bool) {
        let policies = self.world.policies.iter().filter(|policy| which(policy));
        self.unconditioned.extend(policies.map(|policy| policy.object.clone()));
    }

    /// Compiles what is to be compiled.
    fn settle(&mut self) {
        for (side, dirty) in std::mem::take(&mut self.dirty) {
            match dirty {
                Dirty::Remotes(remotes) if !self.depends_on_ports(side, &remotes) => {
                    let Some(group) = self.groups.get_mut(&side) else { continue };
                    for remote in remotes {
                        let (before, now) = group.refresh(remote, side.direction, &self.selections);
                        self.map.changed(side, remote, before, &now);
                    }
                }
                Dirty::Remotes(_) | Dirty::All => self.rebuild(side),
            }
        }
    }

    /// Whether entries out of this side follow from the named ports of these identities.
    fn depends_on_ports(&self, side: Side, remotes: &BTreeSet<IdentityNumber>) -> bool {
        let has_named_ports = self.groups.get(&side).is_some_and(|group| group.has_named_ports);
        let named = &self.world.surroundings.named_ports;
        side.direction == Direction::Egress
            && has_named_ports
            && remotes.iter().any(|remote| named.contains_key(remote))
    }

    fn rebuild(&mut self, side: Side) {
        let before = self.groups.remove(&side).unwrap_or_default();
        let now = self.build(side).unwrap_or_default();
        let unused = before.used.difference(&now.used).cloned().collect();
        self.selections.release(side, &unused);
        self.map.regrouped(side, &before, &now);
        if self.locals.contains(&side.local) && self.world.identities.get(side.local).is_some() {
            self.groups.insert(side, now);
        }
    }

    fn build(&mut self, side: Side) -> Option<Group> {
        let local = self.locals.get(&side.local)?;
        let endpoint = self.world.identities.get(*local)?;
        let objects = self.subjects.candidates(endpoint.labels());
        let policies: Vec<&Policy> =
            objects.into_iter().filter_map(|object| self.world.policies.get(object)).collect();
        let end = End { endpoint, direction: side.direction, surroundings: &self.world.surroundings };
        let (world, cookies, selections) = (&self.world, &self.cookies, &mut self.selections);
        let mut resolver = SideResolver { world, cookies, selections, side, used: BTreeSet::new() };
        let (terms, tried) = end.terms(policies.iter().copied(), &mut resolver);
        let used = resolver.used;
        let mut rules = policies.iter().flat_map(|policy| &policy.specs).flat_map(|spec| &spec.rules);
        let has_named_ports = rules.any(|rule| !rule.named_ports.is_empty());
        Some(Group::new(terms, side.direction, tried, (used, has_named_ports), &self.selections))
    }
}

fn mark(dirty: &mut BTreeMap<Side, Dirty>, side: Side, effect: Effect) {
    let have = dirty.entry(side).or_insert_with(|| Dirty::Remotes(BTreeSet::new()));
    match (&mut *have, effect) {
        (Dirty::Remotes(remotes), Effect::Remote(remote)) => drop(remotes.insert(remote)),
        (_, Effect::All) => *have = Dirty::All,
        (Dirty::All, Effect::Remote(_)) => {}
    }
}

/// Whether what a policy comes to depends on more than identities.
fn has_indirect_peers(policy: &Policy) -> bool {
    let mut rules = policy.specs.iter().flat_map(|spec| &spec.rules);
    rules.any(|rule| rule.peers.list().iter().any(is_indirect))
}

/// Whether a policy's conditions depend on pods' addresses or named ports.
fn looks_at_pods(policy: &Policy) -> bool {
    let mut rules = policy.specs.iter().flat_map(|spec| &spec.rules);
    rules.any(|rule| {
        !rule.named_ports.is_empty() || rule.peers.list().iter().any(|peer| matches!(peer, Peer::IpBlock(_)))
    })
}
