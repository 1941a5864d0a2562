//! The other ends that a rule is about, and whom they select.

use std::net::IpAddr;

use auth_ebpf_abi::{IdentityNumber, identity as reserved};
use ipnet::IpNet;

use crate::cidr::CidrBlock;
use crate::fqdn::NameSelector;
use crate::label::{CLUSTER_KEY, Source};
use crate::label_set::LabelSet;
use crate::selector::Selector;
use crate::surroundings::{CidrGroup, Service, Surroundings};

/// The other ends that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Every one, known or not.
    Any,
    /// Those that one of these selects; no one if there are none.
    Selected(Vec<Peer>),
}

/// Some of the other ends that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Those selected.
    Selector(Selector),
    /// Pods of the endpoint's own cluster.
    OwnCluster,
    /// Addresses outside the cluster.
    Cidr(CidrBlock),
    /// Addresses of a NetworkPolicy's `ipBlock`, in the cluster or not.
    IpBlock(CidrBlock),
    /// Addresses outside the cluster, in groups of prefixes.
    CidrGroups {
        /// Which groups.
        groups: GroupSelector,
        /// What isn't meant.
        except: Vec<IpNet>,
    },
    /// What stands behind services.
    Services {
        /// Their namespace; none for any.
        namespace: Option<String>,
        /// Which services in it.
        services: ServiceSelector,
    },
    /// Other nodes.
    Nodes(Selector),
    /// The addresses that DNS gives for names.
    Name(NameSelector),
}

/// Which groups of prefixes are meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupSelector {
    /// The one of this name.
    Name(String),
    /// Those with these labels.
    Labels(Selector),
}

/// Which services are meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceSelector {
    /// The one of this name.
    Name(String),
    /// Those with these labels.
    Labels(Selector),
}

/// The other end of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'a> {
    /// Its identity.
    pub number: IdentityNumber,
    /// Its labels.
    pub labels: &'a LabelSet,
    /// The prefix that it stands for, if it is outside the cluster.
    pub net: Option<IpNet>,
}

impl Peers {
    /// No one.
    pub const NONE: Self = Self::Selected(Vec::new());

    /// Whether the other end is meant, seen from an endpoint with the `own` labels. What can't be told for
    /// all that an identity stands for is no for a rule that allows, and yes for one that denies.
    #[must_use]
    pub fn select(
        &self,
        remote: Remote<'_>,
        own: &LabelSet,
        surroundings: &Surroundings,
        is_deny: bool,
    ) -> bool {
        let Self::Selected(peers) = self else { return true };
        peers.iter().any(|peer| peer.selects(remote, own, surroundings, is_deny))
            || has_addresses(peers, remote, surroundings)
    }

    /// The prefixes that are to have identities, so that this can be told.
    #[must_use]
    pub fn nets(&self, surroundings: &Surroundings) -> Vec<IpNet> {
        match self {
            Self::Any => Vec::new(),
            Self::Selected(peers) => peers.iter().flat_map(|peer| peer.nets(surroundings)).collect(),
        }
    }

    /// Whether the answer depends on which prefixes there are.
    pub(crate) fn list(&self) -> &[Peer] {
        match self {
            Self::Any => &[],
            Self::Selected(peers) => peers,
        }
    }
}

/// Whether the `ipBlock`s among the peers together have every address of an identity.
fn has_addresses(peers: &[Peer], remote: Remote<'_>, surroundings: &Surroundings) -> bool {
    let has = |address: &IpAddr| {
        peers.iter().any(|peer| matches!(peer, Peer::IpBlock(block) if block.has(*address)))
    };
    let is_block = |peer: &Peer| matches!(peer, Peer::IpBlock(_));
    if remote.net.is_some() || !peers.iter().any(is_block) {
        return false;
    }
    let addresses = surroundings.addresses.get(&remote.number);
    addresses.is_some_and(|addresses| !addresses.is_empty() && addresses.iter().all(has))
}

impl Peer {
    fn selects(
        &self,
        remote: Remote<'_>,
        own: &LabelSet,
        surroundings: &Surroundings,
        is_deny: bool,
    ) -> bool {
        let inside = |block: &CidrBlock| remote.net.is_some_and(|net| block.covers(&net));
        let is_address = |address: &IpAddr| remote.net == Some(IpNet::from(*address));
        match self {
            Self::Selector(selector) => selector.matches(remote.labels),
            Self::OwnCluster => {
                let cluster = remote.labels.get(Source::K8s, CLUSTER_KEY);
                cluster.is_some() && cluster == own.get(Source::K8s, CLUSTER_KEY)
            }
            Self::Cidr(block) | Self::IpBlock(block) => inside(block),
            Self::CidrGroups { groups, except } => groups.nets(surroundings).any(|net| {
                remote.net.is_some_and(|remote| {
                    net.contains(&remote) && !except.iter().any(|except| except.contains(&remote))
                })
            }),
            Self::Services { namespace, services } => {
                services.of(namespace.as_deref(), surroundings).any(|service| match &service.pods {
                    Some(pods) => pods.matches(remote.labels),
                    None => service.addresses.iter().any(is_address),
                })
            }
            Self::Nodes(selector) => {
                let is_node = [reserved::REMOTE_NODE, reserved::KUBE_APISERVER].contains(&remote.number);
                is_node && nodes(selector, surroundings, is_deny)
            }
            Self::Name(name) => {
                let mut names = surroundings.names.iter().filter(|(known, _)| name.matches(known));
                names.any(|(_, addresses)| addresses.iter().any(is_address))
            }
        }
    }

    /// The prefixes in which all lie that it selects by their addresses.
    pub(crate) fn nets(&self, surroundings: &Surroundings) -> Vec<IpNet> {
        match self {
            Self::Selector(_) | Self::OwnCluster | Self::Nodes(_) => Vec::new(),
            Self::Cidr(block) | Self::IpBlock(block) => block.nets().collect(),
            Self::CidrGroups { groups, except } => {
                groups.nets(surroundings).chain(except.iter().copied()).collect()
            }
            Self::Services { namespace, services } => {
                let services = services.of(namespace.as_deref(), surroundings);
                let by_hand = services.filter(|service| service.pods.is_none());
                by_hand.flat_map(|service| &service.addresses).map(|address| IpNet::from(*address)).collect()
            }
            Self::Name(name) => {
                let names = surroundings.names.iter().filter(|(known, _)| name.matches(known));
                names.flat_map(|(_, addresses)| addresses).map(|address| IpNet::from(*address)).collect()
            }
        }
    }
}

impl GroupSelector {
    /// The groups that are meant.
    pub(crate) fn of<'a>(&'a self, surroundings: &'a Surroundings) -> impl Iterator<Item = &'a CidrGroup> {
        let meant = move |(name, group): &(&String, &CidrGroup)| match self {
            Self::Name(wanted) => wanted == *name,
            Self::Labels(selector) => selector.matches(&group.labels),
        };
        surroundings.cidr_groups.iter().filter(meant).map(|(_, group)| group)
    }

    fn nets<'a>(&'a self, surroundings: &'a Surroundings) -> impl Iterator<Item = IpNet> + use<'a> {
        self.of(surroundings).flat_map(|group| group.nets.iter().copied())
    }
}

impl ServiceSelector {
    /// The services that are meant.
    pub(crate) fn of<'a>(
        &'a self,
        namespace: Option<&'a str>,
        surroundings: &'a Surroundings,
    ) -> impl Iterator<Item = &'a Service> {
        let meant = move |((in_namespace, name), service): &(&(String, String), &Service)| {
            namespace.is_none_or(|namespace| namespace == in_namespace)
                && match self {
                    Self::Name(wanted) => wanted == name,
                    Self::Labels(selector) => selector.matches(&service.labels),
                }
        };
        surroundings.services.iter().filter(meant).map(|(_, service)| service)
    }
}

/// Whether a selector of nodes means the other nodes. All of them have one identity, so a rule that allows
/// must mean every one.
fn nodes(selector: &Selector, surroundings: &Surroundings, is_deny: bool) -> bool {
    let mut nodes = surroundings.nodes.values();
    if selector.requirements.is_empty() {
        return true;
    }
    if is_deny {
        return nodes.any(|labels| selector.matches(labels));
    }
    !surroundings.nodes.is_empty() && nodes.all(|labels| selector.matches(labels))
}
