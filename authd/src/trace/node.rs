//! Nodes as ends: which one is meant, and what it is for the other end.

use policy::{Peer, Peers, Place, Selector, Subject, reserved};

use super::end::{Resolved, of_local};
use crate::cluster::Cluster;

/// A node as an end whose other end is on the node `other`: its host, or another node.
pub(super) fn of_node(cluster: &Cluster, node: Option<&str>, other: Option<&str>) -> Resolved {
    known(cluster, node, node.is_some() && other == node)
}

/// The host of the other end, or any other node: one of each kind that policies tell apart.
pub(super) fn kinds(cluster: &Cluster, other: Option<&str>, is_host: bool) -> Vec<Resolved> {
    if is_host && other.is_some() {
        return vec![known(cluster, other, is_host)];
    }
    let local = cluster.policies.local_identities(&cluster.surroundings);
    let selectors = selectors(cluster);
    let mut seen = Vec::new();
    let is_new = |name: &&String| {
        let node = cluster.surroundings.nodes.get(*name);
        let matches = |selector: &&Selector| node.is_some_and(|node| selector.matches(&node.labels));
        let chosen: Vec<bool> = selectors.iter().map(matches).collect();
        let kind = (chosen, local.of(&Place::Node((*name).clone())).is_some());
        let is_new = !seen.contains(&kind);
        seen.push(kind);
        is_new
    };
    let names = cluster.nodes.keys().filter(|name| Some(name.as_str()) != other).filter(is_new);
    let kinds: Vec<Resolved> = names.map(|name| known(cluster, Some(name), is_host)).collect();
    if kinds.is_empty() { vec![known(cluster, None, is_host)] } else { kinds }
}

fn known(cluster: &Cluster, node: Option<&str>, is_host: bool) -> Resolved {
    let local = cluster.policies.local_identities(&cluster.surroundings);
    let number = match node {
        _ if is_host => reserved::HOST,
        Some(name) => local.identity_of_node(name),
        None => reserved::REMOTE_NODE,
    };
    Resolved { node: node.map(str::to_owned), ..of_local(cluster, &local, number) }
}

/// All selectors of nodes in policies.
fn selectors(cluster: &Cluster) -> Vec<&Selector> {
    let specs = || cluster.policies.iter().flat_map(|policy| &policy.specs);
    let of_subjects = specs().filter_map(|spec| match &spec.subject {
        Subject::Nodes(selector) => Some(selector),
        Subject::Endpoints(_) => None,
    });
    let peers = specs().flat_map(|spec| &spec.rules).filter_map(|rule| match &rule.peers {
        Peers::Selected(peers) => Some(peers),
        Peers::Any => None,
    });
    let of_peers = peers
        .flatten()
        .filter_map(|peer| if let Peer::Nodes(selector) = peer { Some(selector) } else { None });
    of_subjects.chain(of_peers).collect()
}
