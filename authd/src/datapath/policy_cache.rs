//! The compiled policies, made anew only when policies, identities or the pods here change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use auth_ebpf_abi::IdentityNumber;
use ipnet::IpNet;
use policy::{Compiled, PolicyMap};

use crate::cluster::Cluster;

/// The last compilation and what it was made from.
#[derive(Debug, Default)]
pub(super) struct PolicyCache {
    source: Option<(Arc<Cluster>, BTreeSet<IdentityNumber>)>,
    local: PolicyMap,
    required: BTreeSet<(IdentityNumber, IdentityNumber)>,
    prefixes: BTreeMap<IpNet, IdentityNumber>,
    rule_names: BTreeMap<u32, String>,
    conditions: Vec<(String, String)>,
}

impl PolicyCache {
    /// Compiles if anything is different.
    pub(super) fn refresh(&mut self, cluster: &Arc<Cluster>, locals: BTreeSet<IdentityNumber>) {
        if self.source.as_ref().is_some_and(|(last, of)| Arc::ptr_eq(last, cluster) && *of == locals) {
            return;
        }
        // The other end's policy may require authentication too, so all identities are compiled; the
        // kernel gets those of the pods here.
        let everyone = cluster.identities.iter().map(policy::Identity::number);
        let compiled = policy::compile(cluster.policy_input(), everyone);
        self.required = required(&compiled, cluster, &locals);
        self.rule_names = compiled.rules.iter().map(|(cookie, rule)| (*cookie, rule.to_string())).collect();
        self.conditions = compiled
            .conditions
            .iter()
            .flat_map(|(object, conditions)| {
                conditions.iter().map(|condition| (object.to_string(), condition.to_string()))
            })
            .collect();
        self.local = compiled.map.into_iter().filter(|((key, _), _)| locals.contains(&key.local)).collect();
        self.prefixes = compiled.prefixes;
        self.source = Some((Arc::clone(cluster), locals));
    }

    pub(super) const fn local_entries(&self) -> &PolicyMap {
        &self.local
    }

    /// Identities of prefixes outside the cluster.
    pub(super) const fn prefixes(&self) -> &BTreeMap<IpNet, IdentityNumber> {
        &self.prefixes
    }

    pub(super) const fn required(&self) -> &BTreeSet<(IdentityNumber, IdentityNumber)> {
        &self.required
    }

    pub(super) const fn rule_names(&self) -> &BTreeMap<u32, String> {
        &self.rule_names
    }

    pub(super) fn conditions(&self) -> &[(String, String)] {
        &self.conditions
    }
}

/// Pairs of a local and any other identity for which the policy of either end requires authentication.
fn required(
    compiled: &Compiled,
    cluster: &Cluster,
    locals: &BTreeSet<IdentityNumber>,
) -> BTreeSet<(IdentityNumber, IdentityNumber)> {
    let others = || cluster.identities.iter().map(policy::Identity::number);
    locals
        .iter()
        .flat_map(|local| others().map(|other| (*local, other)))
        .filter(|(local, other)| {
            compiled.asks_authentication(*local, *other) || compiled.asks_authentication(*other, *local)
        })
        .collect()
}
