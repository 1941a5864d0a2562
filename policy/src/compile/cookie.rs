//! Numbers that name rules in map entries.
//!
//! They are derived from the rule's name alone, so that an entry doesn't change when other policies come
//! and go.

use std::collections::BTreeMap;

use auth_ebpf_abi::Direction;
use sha2::{Digest, Sha256};

use crate::object::RuleRef;
use crate::policy_set::PolicySet;

/// Cookies of all rules there are.
pub(super) struct Cookies {
    of: BTreeMap<RuleRef, u32>,
    rules: BTreeMap<u32, RuleRef>,
}

impl Cookies {
    pub(super) fn new(policies: &PolicySet) -> Self {
        let mut cookies = Self { of: BTreeMap::new(), rules: BTreeMap::new() };
        let built_in = [
            RuleRef::LocalHost,
            RuleRef::NoDefaultDeny { direction: Direction::Ingress.as_str() },
            RuleRef::NoDefaultDeny { direction: Direction::Egress.as_str() },
        ];
        for rule in built_in {
            cookies.add(rule);
        }
        for policy in policies.iter() {
            let object = &policy.object;
            if policy.refused.is_some() {
                cookies.add(RuleRef::Refused { object: object.clone() });
            }
            for direction in [Direction::Ingress, Direction::Egress] {
                if policy.specs.iter().any(|spec| spec.default_deny(direction)) {
                    let (object, direction) = (object.clone(), direction.as_str());
                    cookies.add(RuleRef::DefaultDeny { object, direction });
                }
            }
            for spec in &policy.specs {
                for rule in &spec.rules {
                    let (object, spec) = (object.clone(), spec.place);
                    cookies.add(RuleRef::Rule { object, spec, list: rule.list, rule: rule.index });
                }
            }
        }
        cookies
    }

    /// The cookie of a rule; 0 for one of no policy in the set.
    pub(super) fn of(&self, rule: &RuleRef) -> u32 {
        self.of.get(rule).copied().unwrap_or_default()
    }

    pub(super) fn into_rules(self) -> BTreeMap<u32, RuleRef> {
        self.rules
    }

    fn add(&mut self, rule: RuleRef) {
        let digest = Sha256::digest(rule.to_string());
        let mut cookie = digest.first_chunk().map_or(1, |bytes| u32::from_le_bytes(*bytes)).max(1);
        // Two rules alike in 32 bits: the later name goes on to the next free number.
        while self.rules.contains_key(&cookie) {
            cookie = cookie.wrapping_add(1).max(1);
        }
        self.of.insert(rule.clone(), cookie);
        self.rules.insert(cookie, rule);
    }
}
