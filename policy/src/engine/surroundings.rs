//! Changes of what policies refer to beside identities.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use auth_ebpf_abi::{Direction, IdentityNumber, identity as reserved};

use super::{Dirty, Engine, has_indirect_peers, looks_at_pods, mark};
use crate::plan::Side;
use crate::policy_set::PolicySet;
use crate::rule::Policy;
use crate::surroundings::{NamedPorts, Surroundings};

impl Engine {
    /// The named ports of an identity's pods; none if it has none.
    pub fn set_named_ports(&mut self, identity: IdentityNumber, ports: NamedPorts) {
        let known = &mut self.world.surroundings.named_ports;
        if !set(known, identity, Some(ports).filter(|ports| !ports.is_empty())) {
            return;
        }
        let depends = |side: &Side| side.direction == Direction::Egress || side.local == identity;
        let sides = self.groups.iter().filter(|(side, group)| group.has_named_ports && depends(side));
        self.dirty.extend(sides.map(|(side, _)| (*side, Dirty::All)));
        self.recondition(looks_at_pods);
    }

    /// The addresses of an identity's pods; none if it has none.
    pub fn set_addresses(&mut self, identity: IdentityNumber, addresses: BTreeSet<IpAddr>) {
        let known = &mut self.world.surroundings.addresses;
        if !set(known, identity, Some(addresses).filter(|addresses| !addresses.is_empty())) {
            return;
        }
        let keys = self.selections.of_blocks();
        self.look_again(&keys, identity);
        if !keys.is_empty() || self.world.policies.iter().any(looks_at_pods) {
            self.askers_look_again([identity]);
            self.recondition(looks_at_pods);
        }
    }

    /// Everything that policies refer to beside identities. Only what is different is looked at.
    pub fn set_surroundings(&mut self, now: &Surroundings) {
        for number in changed(&self.world.surroundings.named_ports, &now.named_ports) {
            self.set_named_ports(number, now.named_ports.get(&number).cloned().unwrap_or_default());
        }
        for number in changed(&self.world.surroundings.addresses, &now.addresses) {
            self.set_addresses(number, now.addresses.get(&number).cloned().unwrap_or_default());
        }
        self.set_audited(&now.audited_namespaces);
        let have = &mut self.world.surroundings;
        let has_other_nodes = (&have.nodes, &have.host) != (&now.nodes, &now.host);
        let is_indirectly_other =
            (&have.services, &have.cidr_groups, &have.names) != (&now.services, &now.cidr_groups, &now.names);
        if is_indirectly_other || has_other_nodes {
            have.services.clone_from(&now.services);
            have.cidr_groups.clone_from(&now.cidr_groups);
            have.nodes.clone_from(&now.nodes);
            have.host.clone_from(&now.host);
            have.names.clone_from(&now.names);
            self.indirect_changed(has_other_nodes);
        }
        if self.world.surroundings.shared() != now.shared() {
            self.world.surroundings.set_shared(now.shared());
            let dirty = &mut self.dirty;
            self.selections.split(&self.world, |side, effect| mark(dirty, side, effect));
            self.recondition(|_| true);
        }
    }

    fn set_audited(&mut self, now: &BTreeSet<String>) {
        let have = &self.world.surroundings.audited_namespaces;
        if have == now {
            return;
        }
        let namespaces: BTreeSet<&String> = have.symmetric_difference(now).collect();
        let is_changed = |local: &&IdentityNumber| {
            let identity = self.world.identities.get(**local);
            identity.is_some_and(|identity| namespaces.iter().any(|name| *name == identity.namespace()))
        };
        let locals: Vec<IdentityNumber> = self.locals.iter().filter(is_changed).copied().collect();
        self.world.surroundings.audited_namespaces.clone_from(now);
        locals.into_iter().for_each(|local| self.touch(local));
    }

    /// Services, groups of prefixes, nodes or names are different.
    fn indirect_changed(&mut self, has_other_nodes: bool) {
        let dirty = &mut self.dirty;
        self.selections.select_indirect(&self.world, |side, effect| mark(dirty, side, effect));
        if has_other_nodes {
            let blocks = self.selections.of_blocks();
            let nodes: Vec<IdentityNumber> = self.nodes().values().copied().collect();
            let all = [reserved::HOST, reserved::REMOTE_NODE].into_iter().chain(nodes);
            all.for_each(|number| self.look_again(&blocks, number));
        }
        let names_places =
            |policy: &Policy| has_indirect_peers(policy) || (has_other_nodes && looks_at_pods(policy));
        let indirect = |policies: &PolicySet| -> Vec<Policy> {
            policies.iter().filter(|policy| names_places(policy)).cloned().collect()
        };
        for policy in indirect(&self.world.policies) {
            let places = self.world.places(&policy);
            self.set_places(Some(&policy.object), places);
        }
        self.recondition(has_indirect_peers);
        let locals: Vec<IdentityNumber> = self.locals.iter().copied().collect();
        self.askers_look_again(locals);
    }

    fn askers_look_again(&mut self, identities: impl IntoIterator<Item = IdentityNumber>) {
        for identity in identities {
            if self.locals.contains(&identity) {
                self.askers.look_again(&self.world, identity, true);
            }
        }
    }
}

/// Sets or removes a value; whether anything is different.
fn set<V: PartialEq>(map: &mut BTreeMap<IdentityNumber, V>, key: IdentityNumber, value: Option<V>) -> bool {
    if map.get(&key) == value.as_ref() {
        return false;
    }
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
    true
}

/// The keys whose values are different.
fn changed<V: PartialEq>(
    have: &BTreeMap<IdentityNumber, V>,
    now: &BTreeMap<IdentityNumber, V>,
) -> Vec<IdentityNumber> {
    let gone_or_other = have.iter().filter(|(key, value)| now.get(key) != Some(value)).map(|(key, _)| key);
    let new = now.keys().filter(|key| !have.contains_key(key));
    gone_or_other.chain(new).copied().collect()
}
