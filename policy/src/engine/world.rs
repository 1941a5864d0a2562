//! What policies are about: everything that selections are made from.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::{IdentityNumber, identity as reserved};

use super::by_label::ByLabel;
use crate::identity::IdentitySet;
use crate::label::CLUSTER_KEY;
use crate::label_set::LabelSet;
use crate::local::{LocalIdentities, Place, complete};
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
    pub(super) local: LocalIdentities,
    /// Every identity, local ones too.
    labels: ByLabel<IdentityNumber>,
    /// How many policies name a place.
    places: BTreeMap<Place, usize>,
    /// The places that each policy names, and those held for none.
    places_of: BTreeMap<Option<ObjectRef>, BTreeSet<Place>>,
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
            return Some(Remote { number, labels: identity.labels(), place: None });
        }
        self.local.get(number)
    }

    /// Adds an identity to those that are found by label, or takes it out.
    pub(super) fn index(&mut self, number: IdentityNumber, is_there: bool) {
        let Self { identities, local, labels, .. } = self;
        let of_place = local.get(number).map(|remote| remote.labels);
        if let Some(of) = identities.get(number).map(crate::Identity::labels).or(of_place) {
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
                let remotes = self.identities.remotes().chain(self.local.remotes());
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
            candidates.extend(nets.iter().flat_map(|net| self.local.within(*net)));
            match peer {
                Peer::Selector(selector) => candidates.extend(self.with_labels(selector)?),
                Peer::OwnCluster(selector) => match self.with_labels(selector) {
                    Some(selected) => candidates.extend(selected),
                    None => {
                        candidates.extend(self.labels.get(CLUSTER_KEY, own.cluster()));
                    }
                },
                Peer::Services { namespace, services } => {
                    let services = services.of(namespace.as_deref(), &self.surroundings);
                    for pods in services.filter_map(|service| service.pods.as_ref()) {
                        candidates.extend(self.with_labels(pods)?);
                    }
                }
                Peer::IpBlock(_) => {
                    candidates.insert(reserved::HOST);
                    candidates.extend(self.surroundings.addresses.keys());
                    candidates.extend(self.local.by_node().values());
                }
                Peer::Nodes(_) => {
                    candidates.extend([reserved::HOST, reserved::REMOTE_NODE, reserved::KUBE_APISERVER]);
                    candidates.extend(self.local.by_node().values());
                }
                Peer::Cidr(_) | Peer::CidrGroups { .. } | Peer::Name(_) => {}
            }
        }
        Some(candidates)
    }

    /// The places that a policy names.
    pub(super) fn places(&self, policy: &Policy) -> BTreeSet<Place> {
        let rules = policy.specs.iter().flat_map(|spec| &spec.rules);
        rules.flat_map(|rule| rule.peers.places(&self.surroundings)).flat_map(complete).collect()
    }

    /// Notes the places that a policy names now, or that are held for none; gives those that nothing named
    /// before, and those that nothing does any more.
    pub(super) fn count_places(
        &mut self,
        object: Option<&ObjectRef>,
        places: BTreeSet<Place>,
    ) -> (Vec<Place>, Vec<Place>) {
        let object = object.cloned();
        let before = self.places_of.remove(&object).unwrap_or_default();
        let (mut new, mut gone) = (Vec::new(), Vec::new());
        for place in places.difference(&before) {
            let count = self.places.entry(place.clone()).or_default();
            *count += 1;
            if *count == 1 {
                new.push(place.clone());
            }
        }
        for place in before.difference(&places) {
            let Some(count) = self.places.get_mut(place) else { continue };
            *count -= 1;
            if *count == 0 {
                self.places.remove(place);
                gone.push(place.clone());
            }
        }
        if !places.is_empty() {
            self.places_of.insert(object, places);
        }
        (new, gone)
    }
}

/// Whether a peer selects local identities by the places that they stand for.
pub(super) const fn names_places(peer: &Peer) -> bool {
    match peer {
        Peer::Cidr(_)
        | Peer::IpBlock(_)
        | Peer::CidrGroups { .. }
        | Peer::Services { .. }
        | Peer::Nodes(_)
        | Peer::Name(_) => true,
        Peer::Selector(_) | Peer::OwnCluster(_) => false,
    }
}

/// Whether whom a peer selects depends on more than identities and their addresses.
pub(super) const fn is_indirect(peer: &Peer) -> bool {
    match peer {
        Peer::CidrGroups { .. } | Peer::Services { .. } | Peer::Nodes(_) | Peer::Name(_) => true,
        Peer::Selector(_) | Peer::OwnCluster(_) | Peer::Cidr(_) | Peer::IpBlock(_) => false,
    }
}
