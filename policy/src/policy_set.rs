//! All policies there are, by name.

mod conditions;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::condition::Condition;
use crate::identity::IdentitySet;
use crate::local::{LocalIdentities, Place, complete};
use crate::object::ObjectRef;
use crate::rule::Policy;
use crate::surroundings::Surroundings;
pub(crate) use conditions::View;

/// A set of policies, one of each name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    /// Shared by all copies, which are told to be the same by that.
    policies: BTreeMap<ObjectRef, Arc<Policy>>,
}

impl PolicySet {
    /// A set without policies.
    #[must_use]
    pub const fn new() -> Self {
        Self { policies: BTreeMap::new() }
    }

    /// Adds a policy; gives the one of the same name that it replaces.
    pub fn insert(&mut self, policy: impl Into<Arc<Policy>>) -> Option<Arc<Policy>> {
        let policy = policy.into();
        self.policies.insert(policy.object.clone(), policy)
    }

    /// Takes a policy out.
    pub fn remove(&mut self, object: &ObjectRef) -> Option<Arc<Policy>> {
        self.policies.remove(object)
    }

    /// The policy of this name.
    #[must_use]
    pub fn get(&self, object: &ObjectRef) -> Option<&Policy> {
        self.policies.get(object).map(AsRef::as_ref)
    }

    /// The same, shared.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// Whether it is among these.
    pub(crate) fn has(&self, policy: &Arc<Policy>) -> bool {
        self.policies.get(&policy.object) == Some(policy)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().map(AsRef::as_ref)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The prefixes and nodes that the policies name, with their identities.
    #[must_use]
    pub fn local_identities(&self, surroundings: &Surroundings) -> LocalIdentities {
        LocalIdentities::new(self.places(surroundings))
    }

    /// The prefixes and nodes that the policies name.
    pub(crate) fn places(&self, surroundings: &Surroundings) -> impl Iterator<Item = Place> {
        let specs = self.policies.values().flat_map(|policy| &policy.specs);
        let places = specs.flat_map(|spec| &spec.rules).flat_map(|rule| rule.peers.places(surroundings));
        places.flat_map(complete)
    }

    /// The conditions of each policy that has any: those of its fields, and those which follow from the
    /// identities that its rules select.
    #[must_use]
    pub fn conditions(
        &self,
        identities: &IdentitySet,
        surroundings: &Surroundings,
    ) -> BTreeMap<ObjectRef, Vec<Condition>> {
        let local = self.local_identities(surroundings);
        let view = View { identities, surroundings, local: &local };
        let of_policy = |policy: &Policy| (policy.object.clone(), view.of_policy(policy));
        self.iter().map(of_policy).filter(|(_, conditions)| !conditions.is_empty()).collect()
    }
}

impl<P: Into<Arc<Policy>>> FromIterator<P> for PolicySet {
    fn from_iter<I: IntoIterator<Item = P>>(policies: I) -> Self {
        let mut set = Self::new();
        for policy in policies {
            set.insert(policy);
        }
        set
    }
}
