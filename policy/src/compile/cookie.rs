//! Numbers that name rules in map entries.
//!
//! They are derived from the rule's name alone, so that an entry doesn't change when other policies come
//! and go.

use std::collections::BTreeMap;

use auth_ebpf_abi::Direction;
use sha2::{Digest, Sha256};

use crate::object::RuleRef;
use crate::policy_set::PolicySet;
use crate::rule::{Policy, Rule};

/// Cookies of all rules there are.
#[derive(Clone, Debug)]
pub(crate) struct Cookies {
    of: BTreeMap<RuleRef, u32>,
    rules: BTreeMap<u32, RuleRef>,
}

impl Cookies {
    /// Those of rules that no policy has.
    pub(crate) fn built_in() -> Self {
        let mut cookies = Self { of: BTreeMap::new(), rules: BTreeMap::new() };
        let built_in = [
            RuleRef::LocalHost,
            RuleRef::NoDefaultDeny { direction: Direction::Ingress.as_str() },
            RuleRef::NoDefaultDeny { direction: Direction::Egress.as_str() },
        ];
        for rule in built_in {
            cookies.add(rule);
        }
        cookies
    }

    pub(super) fn new(policies: &PolicySet) -> Self {
        let mut cookies = Self::built_in();
        for policy in policies.iter() {
            cookies.insert(policy);
        }
        cookies
    }

    /// Gives the rules of a policy their cookies.
    pub(crate) fn insert(&mut self, policy: &Policy) {
        for rule in names(policy) {
            self.add(rule);
        }
    }

    /// Takes those of a policy back, and gives them.
    pub(crate) fn remove(&mut self, policy: &Policy) -> Vec<u32> {
        let cookies: Vec<u32> = names(policy).filter_map(|rule| self.of.remove(&rule)).collect();
        for cookie in &cookies {
            self.rules.remove(cookie);
        }
        cookies
    }

    /// The cookie of a rule; 0 for one of no policy in the set.
    pub(crate) fn of(&self, rule: &RuleRef) -> u32 {
        self.of.get(rule).copied().unwrap_or_default()
    }

    /// What each cookie stands for.
    pub(crate) const fn rules(&self) -> &BTreeMap<u32, RuleRef> {
        &self.rules
    }

    pub(super) fn into_rules(self) -> BTreeMap<u32, RuleRef> {
        self.rules
    }

    fn add(&mut self, rule: RuleRef) {
        let digest = Sha256::digest(rule.to_string());
        let mut cookie = digest.first_chunk().map_or(1, |bytes| u32::from_le_bytes(*bytes)).max(1);
        // Two rules alike in 32 bits: the later one goes on to the next free number.
        while self.rules.contains_key(&cookie) {
            cookie = cookie.wrapping_add(1).max(1);
        }
        self.of.insert(rule.clone(), cookie);
        self.rules.insert(cookie, rule);
    }
}

/// Everything in a policy that has a cookie.
fn names(policy: &Policy) -> impl Iterator<Item = RuleRef> {
    let object = &policy.object;
    let refused = policy.refused.as_ref().map(|_| RuleRef::Refused { object: object.clone() });
    let directions = [Direction::Ingress, Direction::Egress].into_iter();
    let denying =
        directions.filter(|direction| policy.specs.iter().any(|spec| spec.default_deny(*direction)));
    let default_deny = denying
        .map(|direction| RuleRef::DefaultDeny { object: object.clone(), direction: direction.as_str() });
    let rules = policy.specs.iter().flat_map(move |spec| {
        let name = |rule: &Rule| RuleRef::Rule {
            object: object.clone(),
            spec: spec.place,
            list: rule.list,
            rule: rule.index,
        };
        spec.rules.iter().map(name)
    });
    refused.into_iter().chain(default_deny).chain(rules)
}
