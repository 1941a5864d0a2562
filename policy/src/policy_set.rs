//! All policies there are, by name.

use std::collections::BTreeMap;

use auth_ebpf_abi::AuthType;

use crate::condition::{Condition, ConditionKind};
use crate::identity::{IdentitySet, RESERVED, reserved_name};
use crate::object::ObjectRef;
use crate::rule::{Peers, Policy, Rule, Spec};

/// A set of policies, one of each name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySet {
    policies: BTreeMap<ObjectRef, Policy>,
}

impl PolicySet {
    /// A set without policies.
    #[must_use]
    pub const fn new() -> Self {
        Self { policies: BTreeMap::new() }
    }

    /// Adds a policy; gives the one of the same name that it replaces.
    pub fn insert(&mut self, policy: Policy) -> Option<Policy> {
        self.policies.insert(policy.object.clone(), policy)
    }

    /// Takes a policy out.
    pub fn remove(&mut self, object: &ObjectRef) -> Option<Policy> {
        self.policies.remove(object)
    }

    /// The policy of this name.
    #[must_use]
    pub fn get(&self, object: &ObjectRef) -> Option<&Policy> {
        self.policies.get(object)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values()
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

    /// The conditions of each policy that has any: those of its fields, and those which follow from the
    /// identities that its rules select.
    #[must_use]
    pub fn conditions(&self, identities: &IdentitySet) -> BTreeMap<ObjectRef, Vec<Condition>> {
        let of_policy = |policy: &Policy| {
            let mut conditions = policy.conditions.clone();
            for spec in &policy.specs {
                conditions.extend(spec.rules.iter().filter_map(|rule| impossible(spec, rule, identities)));
            }
            (policy.object.clone(), conditions)
        };
        self.policies.values().map(of_policy).filter(|(_, conditions)| !conditions.is_empty()).collect()
    }
}

impl FromIterator<Policy> for PolicySet {
    fn from_iter<I: IntoIterator<Item = Policy>>(policies: I) -> Self {
        let mut set = Self::new();
        for policy in policies {
            set.insert(policy);
        }
        set
    }
}

/// The condition of a rule that requires authentication of peers for which no SVID exists.
fn impossible(spec: &Spec, rule: &Rule, identities: &IdentitySet) -> Option<Condition> {
    if rule.list.is_deny() || rule.authentication != Some(AuthType::Spire) {
        return None;
    }
    let selected = |number| match &rule.peers {
        Peers::Any => true,
        // The endpoint's own labels matter for pods of its cluster only, and these aren't reserved.
        Peers::Selected(_) => identities
            .get(number)
            .is_some_and(|identity| rule.peers.matches(identity.labels(), identity.labels())),
    };
    let names: Vec<&str> = RESERVED
        .iter()
        .filter(|(number, _)| selected(*number))
        .filter_map(|(number, _)| reserved_name(*number))
        .collect();
    if names.is_empty() {
        return None;
    }
    let spec = spec.place.map_or("spec".to_owned(), |place| format!("specs[{place}]"));
    let path = format!("{spec}.{}[{}].authentication", rule.list.as_str(), rule.index);
    let message = format!(
        "required of {}, which can't have an SVID: their packets are dropped (AUTH_IMPOSSIBLE)",
        names.join(", ")
    );
    Some(Condition { kind: ConditionKind::AuthImpossible, path, message })
}
