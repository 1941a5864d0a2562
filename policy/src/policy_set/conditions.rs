//! Conditions that follow from what a rule selects.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::{AuthType, IdentityNumber, identity::is_reserved};

use crate::compile::split_shared;
use crate::condition::{Condition, ConditionKind};
use crate::identity::{IdentitySet, RESERVED, reserved_name};
use crate::label_set::LabelSet;
use crate::local::{LocalIdentities, Place};
use crate::peer::{Peer, Peers};
use crate::rule::{Policy, Rule, Spec};
use crate::surroundings::Surroundings;

/// What rules are looked at with.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) identities: &'a IdentitySet,
    pub(crate) surroundings: &'a Surroundings,
    pub(crate) local: &'a LocalIdentities,
}

impl View<'_> {
    /// The conditions of one policy.
    pub(crate) fn of_policy(&self, policy: &Policy) -> Vec<Condition> {
        let of_spec = |spec| self.of_spec(spec);
        policy.conditions.iter().cloned().chain(policy.specs.iter().flat_map(of_spec)).collect()
    }

    fn of_spec(&self, spec: &Spec) -> Vec<Condition> {
        spec.rules.iter().flat_map(|rule| self.of_rule(spec, rule)).collect()
    }

    /// The conditions of one rule.
    fn of_rule(&self, spec: &Spec, rule: &Rule) -> Vec<Condition> {
        let place = spec.place.map_or("spec".to_owned(), |place| format!("specs[{place}]"));
        let path = format!("{place}.{}[{}]", rule.list.as_str(), rule.index);
        let found = [self.impossible(rule), self.shared(rule), self.blocks(rule), self.ports(rule)];
        let conditions = found.into_iter().flatten().chain(self.nothing(rule));
        let at = |(kind, field, message): (ConditionKind, &str, String)| {
            let dot = if field.is_empty() { "" } else { "." };
            Condition { kind, path: format!("{path}{dot}{field}"), message }
        };
        conditions.map(at).collect()
    }

    /// Authentication is required of peers for which no SVID exists.
    fn impossible(&self, rule: &Rule) -> Option<(ConditionKind, &'static str, String)> {
        if !requires(rule) {
            return None;
        }
        let mut names: Vec<&str> = RESERVED
            .iter()
            .filter(|(number, _)| self.selects(rule, *number))
            .filter_map(|(number, _)| reserved_name(*number))
            .collect();
        let has_place = |is_wanted: fn(&Place) -> bool| match &rule.peers {
            Peers::Any => false,
            peers @ Peers::Selected(_) => self.local.remotes().any(|remote| {
                // The endpoint's own labels matter for pods of its cluster only.
                remote.place.is_some_and(is_wanted)
                    && peers.select(remote, &LabelSet::new(), self.surroundings, false)
            }),
        };
        if !names.contains(&"world") && has_place(|place| matches!(place, Place::Net(_))) {
            names.push("addresses outside the cluster");
        }
        if !names.contains(&"remote-node") && has_place(|place| matches!(place, Place::Node(_))) {
            names.push("nodes");
        }
        (!names.is_empty()).then(|| {
            let message = format!(
                "required of {}, which can't have an SVID: their packets are dropped (AUTH_IMPOSSIBLE)",
                names.join(", ")
            );
            (ConditionKind::AuthImpossible, "authentication", message)
        })
    }

    fn selects(&self, rule: &Rule, number: IdentityNumber) -> bool {
        let Peers::Selected(_) = rule.peers else { return true };
        let mut remotes = self.identities.remotes().take_while(|remote| remote.number <= number);
        remotes.any(|remote| {
            remote.number == number && rule.peers.select(remote, remote.labels, self.surroundings, false)
        })
    }

    /// Authentication is required of some who share a SPIFFE ID, and not of others.
    fn shared(&self, rule: &Rule) -> Option<(ConditionKind, &'static str, String)> {
        if !requires(rule) || self.surroundings.shared().is_empty() || rule.peers == Peers::Any {
            return None;
        }
        // What a rule selects depends on the endpoint's cluster.
        let seen_from: BTreeMap<_, _> =
            self.identities.remotes().map(|remote| (remote.labels.cluster(), remote.labels)).collect();
        seen_from.values().find_map(|own| self.shared_from(rule, own))
    }

    /// The same, seen from an endpoint with the `own` labels.
    fn shared_from(&self, rule: &Rule, own: &LabelSet) -> Option<(ConditionKind, &'static str, String)> {
        let remotes = self.identities.remotes();
        let selected: BTreeSet<IdentityNumber> = remotes
            .filter(|remote| rule.peers.select(*remote, own, self.surroundings, false))
            .map(|remote| remote.number)
            .collect();
        let sharing = split_shared(rule, &selected, self.surroundings)?;
        let [inside, outside] = [true, false]
            .map(|is_inside| sharing.iter().find(|number| selected.contains(number) == is_inside));
        let identity = inside.and_then(|number| self.identities.get(*number))?;
        let message = format!(
            "tells apart identities that have the same SPIFFE ID, which authentication can't (of service \
             account {}/{}, {} but not {}): the rule allows nothing; select all pods of a service account, \
             or none",
            identity.namespace(),
            identity.service_account(),
            identity.number(),
            outside?,
        );
        Some((ConditionKind::SharedSpiffeId, "authentication", message))
    }

    /// An `ipBlock` has some addresses of an identity, but not all.
    fn blocks(&self, rule: &Rule) -> Option<(ConditionKind, &'static str, String)> {
        let blocks = || {
            rule.peers
                .list()
                .iter()
                .filter_map(|peer| if let Peer::IpBlock(block) = peer { Some(block) } else { None })
        };
        blocks().next()?;
        let partly = |addresses: &BTreeSet<_>| {
            let inside =
                addresses.iter().filter(|address| blocks().any(|block| block.has(**address))).count();
            inside != 0 && inside != addresses.len()
        };
        // Nodes are told apart.
        let addresses = self.surroundings.addresses.iter().filter(|(number, _)| !is_reserved(**number));
        let mut partial = addresses.filter(|(_, addresses)| partly(addresses));
        let (number, _) = partial.next()?;
        let message = format!(
            "an ipBlock has some addresses of identity {number} but not all: pods of one identity can't be \
             told apart, so it is not allowed by this"
        );
        Some((ConditionKind::Ambiguous, "", message))
    }

    /// Pods of one identity give a port's name different numbers.
    fn ports(&self, rule: &Rule) -> Option<(ConditionKind, &'static str, String)> {
        let ambiguous = rule.named_ports.iter().find(|port| {
            let numbers = self.surroundings.named_ports.values().filter_map(|ports| ports.get(port));
            numbers.into_iter().any(|numbers| numbers.len() > 1)
        })?;
        let effect = if rule.list.is_deny() { "denies all of them" } else { "allows none of them" };
        let message = format!(
            "pods of one identity give port `{}` different numbers: of these the rule {effect}",
            ambiguous.name
        );
        Some((ConditionKind::Ambiguous, "", message))
    }

    /// Something that is named isn't there.
    fn nothing(&self, rule: &Rule) -> Option<(ConditionKind, &'static str, String)> {
        let missing = |peer: &Peer| match peer {
            Peer::CidrGroups { groups, .. } => {
                groups.of(self.surroundings).next().is_none().then_some("no CiliumCIDRGroup like this")
            }
            Peer::Services { namespace, services } => {
                let mut found = services.of(namespace.as_deref(), self.surroundings);
                found.next().is_none().then_some("no service like this")
            }
            Peer::Nodes(selector) => {
                let mut nodes = self.surroundings.nodes.values();
                let is_known =
                    selector.requirements.is_empty() || nodes.any(|node| selector.matches(&node.labels));
                (!is_known).then_some("no node like this")
            }
            Peer::Name(name) => {
                let is_known = self.surroundings.names.keys().any(|known| name.matches(known));
                (!is_known).then_some("no address known of this name, since none are learnt from DNS yet")
            }
            Peer::Selector(_) | Peer::OwnCluster(_) | Peer::Cidr(_) | Peer::IpBlock(_) => None,
        };
        let what = rule.peers.list().iter().find_map(missing)?;
        let message = format!("there is {what}: it selects nothing");
        Some((ConditionKind::SelectsNothing, "", message))
    }
}

fn requires(rule: &Rule) -> bool {
    !rule.list.is_deny() && rule.authentication == Some(AuthType::Spire)
}
