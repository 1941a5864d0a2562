//! Which pairs of identities policy asks to authenticate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use auth_ebpf_abi::{AuthType, Direction, IdentityNumber, identity as reserved};

use super::world::World;
use crate::object::ObjectRef;
use crate::peer::{Peers, Remote};
use crate::plan::Side;
use crate::rule::{Policy, Rule, Spec, Subject};

/// Pairs of a local and another identity that may be asked to authenticate. Cheap to clone.
///
/// What the identities here ask is known from their entries. What others ask of them is for the others'
/// nodes to decide: here it is taken from every rule that requires authentication and could be meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthenticationPairs {
    /// Whom each local identity asks; 0 for any.
    asks: BTreeMap<Side, Arc<BTreeSet<IdentityNumber>>>,
    /// Those who may ask it.
    asked_by: BTreeMap<IdentityNumber, Vec<Arc<BTreeSet<IdentityNumber>>>>,
}

impl AuthenticationPairs {
    /// Whether policy at either end asks this pair to authenticate. Reserved identities can't.
    #[must_use]
    pub fn contains(&self, local: IdentityNumber, remote: IdentityNumber) -> bool {
        let sides = [Direction::Ingress, Direction::Egress];
        let mut asks =
            sides.iter().filter_map(|direction| self.asks.get(&Side { local, direction: *direction }));
        let asked_by = self.asked_by.get(&local).into_iter().flatten();
        !reserved::is_reserved(remote)
            && (asks.any(|asks| asks.contains(&remote) || asks.contains(&reserved::UNKNOWN))
                || asked_by.clone().any(|subjects| subjects.contains(&remote)))
    }

    /// Whom a local identity is asked to authenticate with; [`reserved::UNKNOWN`] for anyone.
    pub fn remotes(&self, local: IdentityNumber) -> impl Iterator<Item = IdentityNumber> + use<'_> {
        let sides = [Direction::Ingress, Direction::Egress];
        let asks = sides.into_iter().filter_map(move |direction| self.asks.get(&Side { local, direction }));
        let asked_by = self.asked_by.get(&local).into_iter().flatten();
        asks.chain(asked_by).flat_map(|remotes| remotes.iter().copied())
    }
}

/// Pairs as if their local identity asked for them.
impl FromIterator<(IdentityNumber, IdentityNumber)> for AuthenticationPairs {
    fn from_iter<I: IntoIterator<Item = (IdentityNumber, IdentityNumber)>>(pairs: I) -> Self {
        let mut all = Self::default();
        for (local, remote) in pairs {
            let side = Side { local, direction: Direction::Ingress };
            Arc::make_mut(all.asks.entry(side).or_default()).insert(remote);
        }
        all
    }
}

/// A spec of a policy.
type SpecKey = (ObjectRef, usize);

/// The specs with rules that require authentication.
#[derive(Clone, Debug, Default)]
pub(super) struct Askers {
    /// The identities that each spec is for.
    subjects: BTreeMap<SpecKey, Arc<BTreeSet<IdentityNumber>>>,
    /// The specs of which a rule may be about a local identity.
    about: BTreeMap<IdentityNumber, BTreeSet<SpecKey>>,
}

impl Askers {
    pub(super) fn insert_policy(
        &mut self,
        world: &World,
        policy: &Policy,
        locals: &BTreeSet<IdentityNumber>,
    ) {
        for (at, spec) in requiring(policy) {
            let Subject::Endpoints(selector) = &spec.subject else { continue };
            let all = || world.identities.iter().map(crate::Identity::number).collect();
            let candidates = world.with_labels(selector).unwrap_or_else(all);
            let is_subject = |number: &IdentityNumber| {
                let identity = world.identities.get(*number).filter(|identity| !identity.is_reserved());
                identity.is_some_and(|identity| selector.matches(identity.labels()))
            };
            let key = (policy.object.clone(), at);
            self.subjects.insert(key.clone(), Arc::new(candidates.into_iter().filter(is_subject).collect()));
            for local in locals.iter().filter(|local| is_about(world, spec, **local)) {
                self.about.entry(*local).or_default().insert(key.clone());
            }
        }
    }

    pub(super) fn remove_policy(&mut self, policy: &Policy) {
        for (at, _) in requiring(policy) {
            let key = (policy.object.clone(), at);
            self.subjects.remove(&key);
            for about in self.about.values_mut() {
                about.remove(&key);
            }
        }
    }

    /// An identity has come or goes; these policies may be for it.
    pub(super) fn set_subject<'a>(
        &mut self,
        policies: impl Iterator<Item = &'a Policy>,
        identity: &crate::Identity,
        is_there: bool,
    ) {
        for policy in policies {
            for (at, _) in requiring(policy).filter(|(_, spec)| spec.subject.matches(identity.labels())) {
                let Some(subjects) = self.subjects.get_mut(&(policy.object.clone(), at)) else { continue };
                let subjects = Arc::make_mut(subjects);
                let number = identity.number();
                if is_there {
                    subjects.insert(number)
                } else {
                    subjects.remove(&number)
                };
            }
        }
    }

    /// Looks again at who may ask a local identity, which may be gone.
    pub(super) fn look_again(&mut self, world: &World, local: IdentityNumber, is_there: bool) {
        self.about.remove(&local);
        if !is_there {
            return;
        }
        let policies = self.subjects.keys().filter_map(|(object, at)| {
            let spec = world.policies.get(object)?.specs.get(*at)?;
            is_about(world, spec, local).then(|| (object.clone(), *at))
        });
        self.about.insert(local, policies.collect());
    }

    pub(super) fn asked_by(&self) -> BTreeMap<IdentityNumber, Vec<Arc<BTreeSet<IdentityNumber>>>> {
        let subjects = |about: &BTreeSet<SpecKey>| -> Vec<_> {
            about.iter().filter_map(|key| self.subjects.get(key)).cloned().collect()
        };
        let asked = self.about.iter().map(|(local, about)| (*local, subjects(about)));
        asked.filter(|(_, by)| !by.is_empty()).collect()
    }

    pub(super) fn pairs(&self, asks: BTreeMap<Side, Arc<BTreeSet<IdentityNumber>>>) -> AuthenticationPairs {
        AuthenticationPairs { asks, asked_by: self.asked_by() }
    }
}

/// The specs of a policy that require authentication.
fn requiring(policy: &Policy) -> impl Iterator<Item = (usize, &Spec)> {
    policy.specs.iter().enumerate().filter(|(_, spec)| spec.rules.iter().any(requires))
}

pub(super) fn requires(rule: &Rule) -> bool {
    !rule.list.is_deny() && rule.authentication == Some(AuthType::Spire)
}

/// Whether a rule that requires authentication may be about this identity, seen from its own cluster.
fn is_about(world: &World, spec: &Spec, local: IdentityNumber) -> bool {
    let Some(identity) = world.identities.get(local) else { return false };
    let remote = Remote { number: local, labels: identity.labels(), place: None };
    let mut rules = spec.rules.iter().filter(|rule| requires(rule));
    rules.any(|rule| rule.peers == Peers::Any || world.selects(rule, identity.labels(), remote))
}
