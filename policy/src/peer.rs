//! The other ends that a rule is about, and whom they select.

use std::net::IpAddr;

use auth_ebpf_abi::{IdentityNumber, identity as reserved};
use ipnet::IpNet;

use crate::cidr::CidrBlock;
use crate::fqdn::NameSelector;
use crate::label_set::LabelSet;
use crate::local::Place;
use crate::selector::Selector;
use crate::surroundings::{CidrGroup, Node, Service, Surroundings};

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
    /// Those selected of the endpoint's own cluster; of every one known, for a reserved endpoint, whose labels name
    /// none.
    OwnCluster(Selector),
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
    /// What it stands for, if it is known on this node only.
    pub place: Option<&'a Place>,
}

impl<'a> Remote<'a> {
    /// The prefix that it stands for, if it is outside the cluster.
    #[must_use]
    pub const fn net(self) -> Option<IpNet> {
        match self.place {
            Some(Place::Net(net)) => Some(*net),
            Some(Place::Node(_)) | None => None,
        }
    }

    /// The node that it is, if the identity stands for one only.
    fn as_node(self, surroundings: &'a Surroundings) -> Option<&'a Node> {
        let name = match self.place {
            Some(Place::Node(name)) => Some(name),
            Some(Place::Net(_)) => None,
            None => surroundings.host.as_ref().filter(|_| self.number == reserved::HOST),
        };
        surroundings.nodes.get(name?)
    }
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

    /// The prefixes and nodes that are to have identities, so that this can be told.
    pub(crate) fn places(&self, surroundings: &Surroundings) -> Vec<Place> {
        let nets = |peer: &Peer| peer.nets(surroundings).into_iter().map(Place::Net).collect::<Vec<_>>();
        let nodes = |peer: &Peer| peer.nodes(surroundings).into_iter().map(Place::Node).collect::<Vec<_>>();
        self.list().iter().flat_map(|peer| [nets(peer), nodes(peer)].concat()).collect()
    }

    /// Whether the answer depends on which prefixes there are.
    pub(crate) fn list(&self) -> &[Peer] {
        match self {
            Self::Any => &[],
            Self::Selected(peers) => peers,
        }
    }
}

/// Whether the `ipBlock`s among the peers together have every address of an identity or node.
fn has_addresses(peers: &[Peer], remote: Remote<'_>, surroundings: &Surroundings) -> bool {
    let has = |address: &IpAddr| {
        peers.iter().any(|peer| matches!(peer, Peer::IpBlock(block) if block.has(*address)))
    };
    let is_block = |peer: &Peer| matches!(peer, Peer::IpBlock(_));
    if remote.net().is_some() || !peers.iter().any(is_block) {
        return false;
    }
    let addresses = match remote.as_node(surroundings) {
        Some(node) => Some(&node.addresses),
        None => surroundings.addresses.get(&remote.number),
    };
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
        let inside = |block: &CidrBlock| remote.net().is_some_and(|net| block.covers(&net));
        let is_address = |address: &IpAddr| remote.net() == Some(IpNet::from(*address));
        match self {
            Self::Selector(selector) => selector.matches(remote.labels),
            Self::OwnCluster(selector) => {
                let is_own = |cluster| own.cluster().is_none_or(|own| own == cluster);
                remote.labels.cluster().is_some_and(is_own) && selector.matches(remote.labels)
            }
            Self::Cidr(block) | Self::IpBlock(block) => inside(block),
            Self::CidrGroups { groups, except } => groups.nets(surroundings).any(|net| {
                remote.net().is_some_and(|remote| {
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
                is_node(remote)
                    && (selector.requirements.is_empty() || is_meant(selector, remote, surroundings, is_deny))
            }
            Self::Name(name) => {
                let mut names = surroundings.names.iter().filter(|(known, _)| name.matches(known));
                names.any(|(_, addresses)| addresses.iter().any(is_address))
            }
        }
    }

    /// The names of the nodes that it tells from others.
    fn nodes(&self, surroundings: &Surroundings) -> Vec<String> {
        let has = |block: &CidrBlock, node: &Node| node.addresses.iter().any(|address| block.has(*address));
        let is_meant = |(_, node): &(&String, &Node)| match self {
            Self::Nodes(selector) => !selector.requirements.is_empty() && selector.matches(&node.labels),
            Self::IpBlock(block) => has(block, node),
            Self::Selector(_)
            | Self::OwnCluster(_)
            | Self::Cidr(_)
            | Self::CidrGroups { .. }
            | Self::Services { .. }
            | Self::Name(_) => false,
        };
        let meant = surroundings.nodes.iter().filter(is_meant);
        let names: Vec<String> = meant.map(|(name, _)| name.clone()).collect();
        // A block of all addresses is about `remote-node` as it is.
        let is_of_all = matches!(self, Self::IpBlock(_)) && names.len() == surroundings.nodes.len();
        if is_of_all { Vec::new() } else { names }
    }

    /// The prefixes in which all lie that it selects by their addresses.
    pub(crate) fn nets(&self, surroundings: &Surroundings) -> Vec<IpNet> {
        match self {
            Self::Selector(_) | Self::OwnCluster(_) | Self::Nodes(_) => Vec::new(),
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

/// Whether the other end is a node, this one or another.
const fn is_node(remote: Remote<'_>) -> bool {
    matches!(remote.place, Some(Place::Node(_)))
        || matches!(remote.number, reserved::HOST | reserved::REMOTE_NODE | reserved::KUBE_APISERVER)
}

/// Whether a selector with requirements means this node. Every other node that it means has an identity of
/// its own, so `remote-node` stands for those that it doesn't. Of the API server's node it isn't known.
fn is_meant(selector: &Selector, remote: Remote<'_>, surroundings: &Surroundings, is_deny: bool) -> bool {
    match remote.as_node(surroundings) {
        Some(node) => selector.matches(&node.labels),
        None => is_deny && remote.number == reserved::KUBE_APISERVER,
    }
}
