//! What policies refer to beside identities, and each kind of change of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use policy::{CidrGroup, Identity, LabelSet, Node, Requirement, Selector, Service, Surroundings, reserved};
use proptest::collection::{btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::random::{identities, surroundings};

/// What the SPIFFE IDs of identities are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sharing {
    Numbers,
    Namespaces,
    Labels,
}

/// One change. Named ports and addresses of pods change one by one elsewhere.
#[derive(Clone, Debug)]
pub(crate) enum Tweak {
    /// All there can be, or nothing.
    All(bool),
    /// A service with this label for pods with another, or for none.
    Service(&'static str, &'static str, Option<&'static str>),
    ServiceGone(&'static str),
    /// The addresses behind a service that were put there by hand.
    Endpoints(&'static str, BTreeSet<u8>),
    /// A group of prefixes with this label, or none.
    Group(&'static str, Option<(&'static str, Vec<&'static str>)>),
    /// The addresses that DNS has given for a name.
    Name(&'static str, BTreeSet<u8>),
    /// A node with this label and address, or none.
    Node(&'static str, Option<(&'static str, u8)>),
    /// The node whose engine it is.
    Host(Option<&'static str>),
    /// The namespaces whose policies are only tried.
    Audited(Vec<&'static str>),
    Shared(Sharing),
}

pub(crate) fn tweak() -> impl Strategy<Value = Tweak> {
    let name = || select(["web", "ext", "new"].as_slice());
    let kind = select(["k8s:kind=svc", "k8s:kind=group", "k8s:kind=other"].as_slice());
    let nets = subsequence(vec!["10.2.0.0/16", "10.2.1.0/24", "198.51.100.0/24", "fd00:2::/32"], 0..=3);
    let node = || select(["n1", "n2", "n3", "n4"].as_slice());
    let label = || select(["k8s:a=0", "k8s:a=1", "k8s:b=1"].as_slice());
    prop_oneof![
        2 => any::<bool>().prop_map(Tweak::All),
        2 => (name(), kind.clone(), of(label())).prop_map(|(name, kind, pods)| Tweak::Service(name, kind, pods)),
        1 => name().prop_map(Tweak::ServiceGone),
        2 => (name(), btree_set(1u8..4, 0..3)).prop_map(|(name, behind)| Tweak::Endpoints(name, behind)),
        2 => (select(["g", "h"].as_slice()), of((kind, nets))).prop_map(|(name, group)| Tweak::Group(name, group)),
        2 => (select(["a.example", "b.example", "c.test"].as_slice()), btree_set(5u8..9, 0..3))
            .prop_map(|(name, addresses)| Tweak::Name(name, addresses)),
        3 => (node(), of((label(), 1u8..9))).prop_map(|(name, node)| Tweak::Node(name, node)),
        1 => of(node()).prop_map(Tweak::Host),
        2 => subsequence(vec!["x", "y"], 0..=2).prop_map(Tweak::Audited),
        2 => select(vec![Sharing::Numbers, Sharing::Namespaces, Sharing::Labels]).prop_map(Tweak::Shared),
    ]
}

/// Surroundings that a few changes have made.
pub(crate) fn scenery() -> impl Strategy<Value = Surroundings> {
    vec(tweak(), 0..4).prop_map(|tweaks| {
        let mut made = surroundings();
        tweaks.iter().for_each(|tweak| tweak.apply(&mut made));
        made
    })
}

impl Tweak {
    pub(crate) fn apply(&self, surroundings: &mut Surroundings) {
        let key = |name: &str| ("x".to_owned(), name.to_owned());
        match self {
            Self::All(true) => *surroundings = self::surroundings(),
            Self::All(false) => *surroundings = Surroundings::default(),
            Self::Service(name, kind, pods) => {
                let service = surroundings.services.entry(key(name)).or_default();
                service.labels = labels(kind);
                service.pods = pods.map(selector);
            }
            Self::ServiceGone(name) => drop(surroundings.services.remove(&key(name))),
            Self::Endpoints(name, behind) => {
                let service: &mut Service = surroundings.services.entry(key(name)).or_default();
                service.addresses = outside(behind);
            }
            Self::Group(name, group) => {
                let group = group.as_ref().map(|(kind, nets)| CidrGroup {
                    labels: labels(kind),
                    nets: nets.iter().map(|net| net.parse().unwrap()).collect(),
                });
                put(&mut surroundings.cidr_groups, name, group);
            }
            Self::Name(name, addresses) => {
                let addresses = Some(outside(addresses)).filter(|addresses| !addresses.is_empty());
                put(&mut surroundings.names, name, addresses);
            }
            Self::Node(name, node) => {
                let node = node.map(|(label, last)| Node {
                    labels: labels(label),
                    addresses: BTreeSet::from([[10, 1, 0, last].into()]),
                });
                put(&mut surroundings.nodes, name, node);
                let all: BTreeSet<IpAddr> =
                    surroundings.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
                for identity in [reserved::HOST, reserved::REMOTE_NODE] {
                    surroundings.addresses.insert(identity, all.clone());
                }
            }
            Self::Host(name) => surroundings.host = name.map(str::to_owned),
            Self::Audited(namespaces) => {
                surroundings.audited_namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
            }
            Self::Shared(sharing) => {
                let spiffe_id = |identity: &Identity| match sharing {
                    Sharing::Numbers => identity.number().to_string(),
                    Sharing::Namespaces => identity.namespace().to_owned(),
                    Sharing::Labels => {
                        identity.labels().get(policy::Source::K8s, "a").unwrap_or_default().to_owned()
                    }
                };
                surroundings.share_spiffe_ids(&identities(), |identity| Some(spiffe_id(identity)));
            }
        }
    }
}

fn labels(text: &str) -> LabelSet {
    LabelSet::from_labels([text.parse().unwrap()]).unwrap()
}

fn selector(text: &str) -> Selector {
    let (key, value) = text.split_once('=').unwrap();
    Selector { requirements: vec![Requirement::equals(key.parse().unwrap(), value)] }
}

fn outside(last: &BTreeSet<u8>) -> BTreeSet<IpAddr> {
    last.iter().map(|last| [192, 0, 2, *last].into()).collect()
}

fn put<V>(map: &mut std::collections::BTreeMap<String, V>, name: &str, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(name.to_owned(), value)),
        None => drop(map.remove(name)),
    }
}
