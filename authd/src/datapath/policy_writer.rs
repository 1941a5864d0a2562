//! Keeps the policy map as policies, identities and the pods here want it, change by change.
//!
//! The map is read once, when the daemon starts and after a write has failed. From then on only plans are
//! made, whose order lets no packet meet a state between the old one and the new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use auth_ebpf::Maps;
use auth_ebpf_abi::{Address, AddressEntry, IdentityNumber, PolicyClasses, capacity, identity};
use ipnet::IpNet;
use policy::{AuthenticationPairs, Engine, Overflow, RuleRef, Step};

use super::plan::{Inputs, Plan};
use crate::cluster::Cluster;

/// The engine, and what is known of the map.
#[derive(Debug, Default)]
pub(super) struct PolicyWriter {
    engine: Engine,
    /// What the engine has followed last.
    source: Option<(Arc<Cluster>, BTreeSet<IdentityNumber>)>,
    /// Whether the engine knows what the map holds.
    is_known: bool,
    /// Which prefix lengths the map has entries of, by local identity.
    classes: BTreeMap<IdentityNumber, PolicyClasses>,
    overflow: Option<Box<Overflow>>,
    required: Option<AuthenticationPairs>,
    rule_names: BTreeMap<u32, String>,
    logs: BTreeMap<u32, String>,
    conditions: Vec<(String, String)>,
}

impl PolicyWriter {
    /// Writes what has changed, if anything has.
    ///
    /// Addresses change their identity only where both have the same verdicts: a prefix outside the cluster,
    /// or another node, gets its entries before its addresses, and loses them after those; an identity's
    /// addresses go first.
    /// That holds without room for all entries too, since what is held back is as strict towards new
    /// identities as what should have been written.
    pub(super) fn write(
        &mut self,
        maps: &Maps,
        cluster: &Arc<Cluster>,
        plan: &Plan,
        inputs: &Inputs<'_>,
    ) -> Result<(), auth_ebpf::Error> {
        let locals = plan.local_identities();
        let is_followed =
            self.source.as_ref().is_some_and(|(last, of)| Arc::ptr_eq(last, cluster) && *of == locals);
        if is_followed && self.is_known {
            return Ok(());
        }
        if !is_followed {
            let is_new = self.engine.hold_places(cluster.policy_input());
            if self.source.is_some() && (is_new || !self.is_known) {
                self.apply(maps)?;
                self.write_places(maps, plan, inputs)?;
            }
            forget_addresses(maps, &self.engine.gone(&cluster.identities))?;
            self.engine.follow(cluster.policy_input(), &locals);
            self.source = Some((Arc::clone(cluster), locals));
            self.describe(cluster);
        }
        self.apply(maps)?;
        if self.engine.release_places() {
            self.write_places(maps, plan, inputs)?;
            self.apply(maps)?;
        }
        Ok(())
    }

    /// Makes the engine's plan.
    fn apply(&mut self, maps: &Maps) -> Result<(), auth_ebpf::Error> {
        if !self.is_known {
            let entries = maps.policy().entries()?;
            self.classes.clear();
            for ((key, prefix_len), _) in &entries {
                self.classes.entry(key.local).or_default().add(key, *prefix_len);
            }
            self.engine.adopt(entries);
        }
        let (plan, overflow) = match self.engine.plan(capacity::POLICY) {
            Ok(plan) => (plan, None),
            Err(mut overflow) => (std::mem::take(&mut overflow.instead), Some(overflow)),
        };
        // Until all of it is done, what the map holds is not known.
        self.is_known = false;
        maps.change_policy(plan.steps.iter().map(|step| match step {
            Step::Put(key, entry) => (*key, Some(*entry)),
            Step::Remove(key) => (*key, None),
        }))?;
        self.engine.applied(&plan);
        for local in plan.steps.iter().map(|step| step.key().0.local).collect::<BTreeSet<_>>() {
            self.classes.insert(local, self.engine.classes(local));
        }
        self.classes.retain(|_, classes| *classes != PolicyClasses::default());
        self.is_known = true;
        if !plan.steps.is_empty() {
            tracing::info!(
                steps = plan.steps.len(),
                entries = plan.after,
                peak = plan.peak,
                "policy map updated"
            );
        }
        self.overflow = overflow;
        Ok(())
    }

    /// Writes the identities of addresses outside the cluster, and of other nodes' addresses.
    fn write_places(&self, maps: &Maps, plan: &Plan, inputs: &Inputs<'_>) -> Result<(), auth_ebpf::Error> {
        let (addresses, prefixes) = (plan.addresses.clone(), plan.prefixes.clone());
        let mut named = Plan { addresses, prefixes, ..Plan::default() };
        named.add_prefixes(self.engine.prefixes(), inputs);
        named.add_nodes(self.engine.nodes(), inputs);
        maps.prefixes().reconcile(&named.prefixes)?;
        write_nodes(maps, &named.addresses)
    }

    fn describe(&mut self, cluster: &Cluster) {
        self.required = Some(self.engine.authentication());
        self.rule_names =
            self.engine.rules().iter().map(|(cookie, rule)| (*cookie, rule.to_string())).collect();
        let specs =
            cluster.policies.iter().flat_map(|policy| policy.specs.iter().map(move |spec| (policy, spec)));
        let logs: BTreeMap<_, &String> = specs
            .filter_map(|(policy, spec)| Some(((&policy.object, spec.place), spec.log.as_ref()?)))
            .collect();
        let log_of = |rule: &RuleRef| {
            let RuleRef::Rule { object, spec, .. } = rule else { return None };
            logs.get(&(object, *spec)).map(|log| (*log).clone())
        };
        let rules = self.engine.rules().iter();
        self.logs = rules.filter_map(|(cookie, rule)| Some((*cookie, log_of(rule)?))).collect();
        let conditions = self.engine.conditions().iter().flat_map(|(object, conditions)| {
            conditions.iter().map(|condition| (object.to_string(), condition.to_string()))
        });
        self.conditions = conditions.collect();
    }

    /// Which prefix lengths the map has entries of for this identity: those that its endpoints look for.
    pub(super) fn classes(&self, local: IdentityNumber) -> PolicyClasses {
        self.classes.get(&local).copied().unwrap_or_default()
    }

    /// How many entries the map holds.
    pub(super) const fn len(&self) -> usize {
        self.engine.len()
    }

    /// Identities of prefixes outside the cluster.
    pub(super) const fn prefixes(&self) -> &BTreeMap<IpNet, IdentityNumber> {
        self.engine.prefixes()
    }

    /// Identities of other nodes that policies choose by label.
    pub(super) const fn nodes(&self) -> &BTreeMap<String, IdentityNumber> {
        self.engine.nodes()
    }

    /// Why the map doesn't hold all that policies ask.
    pub(super) fn overflow(&self) -> Option<&Overflow> {
        self.overflow.as_deref()
    }

    pub(super) const fn required(&self) -> Option<&AuthenticationPairs> {
        self.required.as_ref()
    }

    pub(super) const fn rule_names(&self) -> &BTreeMap<u32, String> {
        &self.rule_names
    }

    /// What policies say for logs, by the cookies of their rules.
    pub(super) const fn logs(&self) -> &BTreeMap<u32, String> {
        &self.logs
    }

    /// What isn't done as written, by policy: policies that have no room among them.
    pub(super) fn conditions(&self) -> Vec<(String, String)> {
        let growth = self.overflow.iter().flat_map(|overflow| {
            let of = |growth: &policy::Growth| {
                let object = growth.object.as_ref()?;
                Some((object.to_string(), format!("Capacity: not in force as a whole: {overflow}")))
            };
            overflow.growth.iter().filter_map(of).collect::<Vec<_>>()
        });
        self.conditions.iter().cloned().chain(growth).collect()
    }
}

/// Gives the nodes' addresses in the map their identities. One that is no node's any more becomes unknown,
/// which drops what it sends and receives until it is written for whom it is now.
fn write_nodes(maps: &Maps, wanted: &BTreeMap<Address, AddressEntry>) -> Result<(), auth_ebpf::Error> {
    let is_node = |entry: &AddressEntry| {
        entry.identity == identity::REMOTE_NODE || entry.identity >= identity::FIRST_LOCAL
    };
    let addresses = maps.addresses();
    for (address, entry) in addresses.entries()?.iter().filter(|(_, entry)| is_node(entry)) {
        match wanted.get(address).filter(|wanted| is_node(wanted)) {
            Some(wanted) if wanted == entry => {}
            Some(wanted) => addresses.insert(address, wanted)?,
            None => drop(addresses.remove(address)?),
        }
    }
    Ok(())
}

/// Makes the addresses of these identities unknown, which drops what they send and receive.
fn forget_addresses(maps: &Maps, gone: &BTreeSet<IdentityNumber>) -> Result<(), auth_ebpf::Error> {
    if gone.is_empty() {
        return Ok(());
    }
    let addresses = maps.addresses();
    for (address, _) in addresses.entries()?.iter().filter(|(_, entry)| gone.contains(&entry.identity)) {
        addresses.remove(address)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
