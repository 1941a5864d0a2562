//! Which registration entries there should be: pure, from cluster state and SPIRE's list of agents.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use auth_ebpf_abi::IdentityNumber;
use spiffe::SpiffeId;
use spire_adapter::registration::Wanted;
use spire_adapter::{AttestedAgent, Entry};

use super::config::Rules;
use crate::cluster::Cluster;

/// What should be registered, and what can't be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// The entries.
    pub(super) wanted: Wanted,
    /// Why a node has none, or may have the wrong ones.
    pub(super) problems: BTreeMap<String, String>,
    /// How many of these nodes have no agent.
    pub(super) without_agent: usize,
}

/// One entry for each identity and node that runs a pod of it, and one for each node, all parented to the node's
/// own agent: a node can obtain only what it hosts.
pub(super) fn wishes(cluster: &Cluster, agents: &[AttestedAgent], rules: &Rules, now: SystemTime) -> Wishes {
    let mut wishes = Wishes { wanted: Wanted::new(rules.owner.clone()), ..Wishes::default() };
    for number in &cluster.revoked.identities {
        let identity = cluster.identities.get(*number).and_then(|identity| rules.naming.identity(identity));
        // A SPIFFE ID that several share is not revoked with one of them; nor is its entry ours.
        if let Some(spiffe_id) = identity.filter(|_| rules.naming.is_by_number()) {
            wishes.wanted.revoke(spiffe_id);
        }
    }
    for name in &cluster.revoked.nodes {
        rules.naming.node(name).into_iter().for_each(|id| wishes.wanted.revoke(id));
        rules.agent.all(agents, name).for_each(|agent| wishes.wanted.revoke(agent.spiffe_id.clone()));
    }
    let hosted = hosted(cluster);
    for node in cluster.nodes.keys().filter(|name| !cluster.revoked.nodes.contains(*name)) {
        let agent = match rules.agent.agent(agents, node) {
            Ok(agent) => agent,
            Err(problem) => {
                wishes.without_agent += 1;
                wishes.problems.insert(node.clone(), problem);
                continue;
            }
        };
        let rivals = rules.agent.rivals(agents, node, now);
        if rivals > 0 {
            let problem = format!(
                "{rivals} more agents claim to be this node's: evict them, or find out who they are; {} is taken",
                agent.spiffe_id
            );
            wishes.problems.insert(node.clone(), problem);
        }
        wishes.add_node(&agent.spiffe_id, node, rules);
        let identities = hosted.get(node.as_str()).into_iter().flatten();
        for identity in identities {
            wishes.add_identity(&agent.spiffe_id, *identity, cluster, rules);
        }
    }
    wishes
}

/// The identities by node that runs them. Static pods are nobody's word but their node's.
fn hosted(cluster: &Cluster) -> BTreeMap<&str, BTreeSet<IdentityNumber>> {
    let mut hosted: BTreeMap<&str, BTreeSet<IdentityNumber>> = BTreeMap::new();
    for pod in cluster.pods.iter().filter(|pod| !pod.mirror) {
        if let (Some(node), Some(identity)) = (&pod.node, pod.identity)
            && !cluster.revoked.identities.contains(&identity)
        {
            hosted.entry(node).or_default().insert(identity);
        }
    }
    hosted
}

impl Wishes {
    fn add_node(&mut self, agent: &SpiffeId, node: &str, rules: &Rules) {
        match rules.naming.node(node) {
            Some(id) => self.wanted.add(Entry::new(agent.clone(), id, rules.node_selectors.clone())),
            None => {
                let problem = "its name is no segment of a SPIFFE ID".to_owned();
                self.problems.insert(node.to_owned(), problem);
            }
        }
    }

    fn add_identity(&mut self, agent: &SpiffeId, number: IdentityNumber, cluster: &Cluster, rules: &Rules) {
        // Where service accounts share a SPIFFE ID its registration is somebody else's.
        if !rules.naming.is_by_number() {
            return;
        }
        let Some(identity) = cluster.identities.get(number) else { return };
        if let Some(id) = rules.naming.identity(identity) {
            let mut entry = Entry::new(agent.clone(), id, rules.naming.selectors(identity));
            entry.svid_ttl = rules.svid_ttl;
            self.wanted.add(entry);
        }
    }
}

#[cfg(test)]
mod tests;
