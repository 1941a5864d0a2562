//! What policies are about: everything that selections are made from.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::{IdentityNumber, identity as reserved};
use ipnet::IpNet;

use super::by_label::ByLabel;
use crate::cidr::{Prefixes, with_v4};
use crate::identity::IdentitySet;
use crate::label::{CLUSTER_KEY, Source};
use crate::label_set::LabelSet;
use crate::object::ObjectRef;
use crate::peer::{Peer, Peers, Remote};
use crate::policy_set::PolicySet;
use crate::rule::{Policy, Rule};
use crate::surroundings::Surroundings;

/// Policies, identities and surroundings, with the identities by label.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) policies: PolicySet,
    pub(super) identities: IdentitySet,
    pub(super) surroundings: Surroundings,
    pub(super) prefixes: Prefixes,
    /// Every identity, those of prefixes too.
    labels: ByLabel<IdentityNumber>,
    /// How many policies name a prefix.
    nets: BTreeMap<IpNet, usize>,
    /// The prefixes that each policy names, and those held for none.
    nets_of: BTreeMap<Option<ObjectRef>, BTreeSet<IpNet>>,
}

impl World {
    pub(super) fn new() -> Self {
        let mut world = Self::default();
        let reserved: Vec<IdentityNumber> = world.identities.iter().map(crate::Identity::number).collect();
        for number in reserved {
            world.index(number, true);
        }
        world
    }

    /// The identity with this number, as rules look at it.
    pub(super) fn remote(&self, number: IdentityNumber) -> Option<Remote<'_>> {
        if let Some(identity) = self.identities.get(number) {
            return Some(Remote { number, labels: identity.labels(), net: None });
        }
        self.prefixes.get(number).map(|(net, labels)| Remote { number, labels, net: Some(net) })
    }

    /// Adds an identity to those that are found by label, or takes it out.
    pub(super) fn index(&mut self, number: IdentityNumber, is_there: bool) {
        let Self { identities, prefixes, labels, .. } = self;
        let of_prefix = prefixes.get(number).map(|(_, labels)| labels);
        if let Some(of) = identities.get(number).map(crate::Identity::labels).or(of_prefix) {
            labels.set_labels(of, &number, is_there);
        }
    }

    /// The identities that the rule's peers are, seen from an endpoint with the `own` labels.
    pub(super) fn selected(&self, rule: &Rule, own: &LabelSet) -> BTreeSet<IdentityNumber> {
        let is_selected = |remote: Remote<'_>| self.selects(rule, own, remote);
        match self.candidates(&rule.peers, own) {
            Some(candidates) => {
                let remotes = candidates.into_iter().filter_map(|number| self.remote(number));
                remotes.filter(|remote| is_selected(*remote)).map(|remote| remote.number).collect()
            }
            None => {
                let remotes = self.identities.remotes().chain(self.prefixes.remotes());
                remotes.filter(|remote| is_selected(*remote)).map(|remote| remote.number).collect()
            }
        }
    }

    pub(super) fn selects(&self, rule: &Rule, own: &LabelSet, remote: Remote<'_>) -> bool {
        rule.peers.select(remote, own, &self.surroundings, rule.list.is_deny())
    }

    /// The identities with labels that a selector asks for; none for all.
    pub(super) fn with_labels(&self, selector: &crate::Selector) -> Option<BTreeSet<IdentityNumber>> {
        let places = self.labels.narrowest(selector)?;
        Some(places.iter().flat_map(|(key, value)| self.labels.get(key, value.as_deref())).copied().collect())
    }

    /// All that the peers can be; none if that may be anyone.
    fn candidates(&self, peers: &Peers, own: &LabelSet) -> Option<BTreeSet<IdentityNumber>> {
        let Peers::Selected(peers) = peers else { return None };
        let mut candidates = BTreeSet::new();
        for peer in peers {
            let nets = peer.nets(&self.surroundings);
            candidates.extend(nets.iter().flat_map(|net| self.prefixes.within(*net)));
            match peer {
                Peer::Selector(selector) => candidates.extend(self.with_labels(selector)?),
                Peer::OwnCluster => {
                    let cluster = own.get(Source::K8s, CLUSTER_KEY);
                    candidates.extend(
                        cluster.iter().flat_map(|cluster| self.labels.get(CLUSTER_KEY, Some(*cluster))),
                    );
                }
                Peer::Services { namespace, services } => {
                    let services = services.of(namespace.as_deref(), &self.surroundings);
                    for pods in services.filter_map(|service| service.pods.as_ref()) {
                        candidates.extend(self.with_labels(pods)?);
                    }
                }
                Peer::IpBlock(_) => candidates.extend(self.surroundings.addresses.keys()),
                Peer::Nodes(_) => candidates.extend([reserved::REMOTE_NODE, reserved::KUBE_APISERVER]),
                Peer::Cidr(_) | Peer::CidrGroups { .. } | Peer::Name(_) => {}
            }
        }
        Some(candidates)
    }

    /// The prefixes that a policy names.
    pub(super) fn nets(&self, policy: &Policy) -> BTreeSet<IpNet> {
        let rules = policy.specs.iter().flat_map(|spec| &spec.rules);
        rules.flat_map(|rule| rule.peers.nets(&self.surroundings)).flat_map(with_v4).collect()
    }

    /// Notes the prefixes that a policy names now, or that are held for none; gives those that nothing named
    /// before, and those that nothing does any more.
    pub(super) fn count_nets(
        &mut self,
        object: Option<&ObjectRef>,
        nets: BTreeSet<IpNet>,
    ) -> (Vec<IpNet>, Vec<IpNet>) {
        let object = object.cloned();
        let before = self.nets_of.remove(&object).unwrap_or_default();
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        for net in nets.difference(&before) {
            let count = self.nets.entry(*net).or_default();
            *count += 1;
            if *count == 1 {
                new.push(*net);
            }
        }
        for net in before.difference(&nets) {
            let Some(count) = self.nets.get_mut(net) else { continue };
            *count -= 1;
            if *count == 0 {
                self.nets.remove(net);
                gone.push(*net);
            }
        }
        if !nets.is_empty() {
            self.nets_of.insert(object, nets);
        }
        (new, gone)
    }
}

/// Whether a peer selects prefixes by their addresses.
pub(super) const fn names_addresses(peer: &Peer) -> bool {
    match peer {
        Peer::Cidr(_)
        | Peer::IpBlock(_)
        | Peer::CidrGroups { .. }
        | Peer::Services { .. }
        | Peer::Name(_) => true,
        Peer::Selector(_) | Peer::OwnCluster | Peer::Nodes(_) => false,
    }
}

/// Whether whom a peer selects depends on more than identities and their addresses.
pub(super) const fn is_indirect(peer: &Peer) -> bool {
    match peer {
        Peer::CidrGroups { .. } | Peer::Services { .. } | Peer::Nodes(_) | Peer::Name(_) => true,
        Peer::Selector(_) | Peer::OwnCluster | Peer::Cidr(_) | Peer::IpBlock(_) => false,
    }
}
