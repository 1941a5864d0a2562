//! What cluster state says about nodes and identities, as far as peers need it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use auth_ebpf_abi::{IdentityNumber, NodeNumber};
use spiffe::SpiffeId;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub number: NodeNumber,
    /// SPIFFE ID of its node SVID.
    pub spiffe_id: SpiffeId,
    /// Where it may be dialled: a hint, since whoever answers must prove to be that node.
    pub addresses: Vec<SocketAddr>,
    /// The identities of its pods.
    pub identities: BTreeSet<IdentityNumber>,
}

/// Nodes and identities. Immutable: a change comes as another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Nodes by name, this one too.
    pub nodes: BTreeMap<String, Node>,
    /// SPIFFE ID of each identity.
    pub identities: BTreeMap<IdentityNumber, SpiffeId>,
}

impl Directory {
    /// The node with this number, and its name.
    #[must_use]
    pub fn node_numbered(&self, number: NodeNumber) -> Option<(&str, &Node)> {
        self.nodes.iter().find(|(_, node)| node.number == number).map(|(name, node)| (name.as_str(), node))
    }

    /// The node whose SVID has this SPIFFE ID, and its name.
    #[must_use]
    pub fn node_of(&self, spiffe_id: &SpiffeId) -> Option<(&str, &Node)> {
        self.nodes
            .iter()
            .find(|(_, node)| node.spiffe_id == *spiffe_id)
            .map(|(name, node)| (name.as_str(), node))
    }

    /// Whether cluster state places a pod of this identity on that node.
    #[must_use]
    pub fn runs_on(&self, identity: IdentityNumber, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|node| node.identities.contains(&identity))
    }

    /// Which identities run where, with `own` as node 0: the form in which the machine wants it.
    #[must_use]
    pub fn placed(&self, own: &str) -> BTreeMap<NodeNumber, BTreeSet<IdentityNumber>> {
        self.nodes
            .iter()
            .map(|(name, node)| (if name == own { 0 } else { node.number }, node.identities.clone()))
            .collect()
    }
}
