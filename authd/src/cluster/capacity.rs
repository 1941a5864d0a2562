//! Whether the entries that policies come to fit into a node's map.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use policy::{Engine, Growth, IdentityNumber, Overflow};

use super::problem::Problem;
use super::{Cluster, Severity};

/// How many nodes are looked at, those with most identities first.
const NODES: usize = 8;

/// What is to be said of room in the maps of the nodes, which have `capacity` entries: an error if they are too
/// few somewhere, a notice from three quarters on. Pods that are on no node yet are taken to be on one.
#[must_use]
pub fn capacity(cluster: &Cluster, capacity: usize) -> Option<Problem> {
    let mut of_node: BTreeMap<Option<&str>, BTreeSet<IdentityNumber>> = BTreeMap::new();
    for pod in &cluster.pods {
        let locals = of_node.entry(pod.node.as_deref()).or_default();
        locals.extend(pod.identity);
    }
    let mut nodes: Vec<_> = of_node.into_iter().collect();
    nodes.sort_by_key(|(_, locals)| Reverse(locals.len()));
    let mut engine = Engine::new();
    let too_many = nodes.iter().take(NODES).filter_map(|(node, locals)| {
        engine.follow(cluster.policy_input(), locals);
        // Nothing is ever applied, so all entries are asked for each time.
        let overflow = engine.plan(capacity / 4 * 3).err()?;
        Some((overflow.needed, problem(*node, &overflow, capacity)))
    });
    too_many.max_by_key(|(needed, _)| *needed).map(|(_, problem)| problem)
}

fn problem(node: Option<&str>, overflow: &Overflow, capacity: usize) -> Problem {
    let place = node.map_or("a node with one pod of each".to_owned(), |node| format!("node {node}"));
    let needed = overflow.needed;
    let by = |Growth { object, entries }: &Growth| {
        let name = object.as_ref().map_or("endpoints without policy".to_owned(), ToString::to_string);
        format!("{name} ({entries})")
    };
    let most: Vec<String> = overflow.growth.iter().map(by).collect();
    let message = format!(
        "the policies need {needed} entries on {place}, and its map has room for {capacity}; most are for {}; \
         select fewer identities, use fewer port ranges, or put fewer identities on a node",
        most.join(", ")
    );
    let problem = Problem::error(message);
    if needed > capacity { problem } else { Problem { severity: Severity::Notice, ..problem } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Site, load_offline};

    #[test]
    fn the_fullest_node_is_named_with_what_fills_it() {
        let pod = |name: &str, node: &str| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{nodeName: {node}}}}}"
            )
        };
        let policy = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: wide}, spec: {endpointSelector: {}, \
                      ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '1', endPort: 1022, protocol: TCP}]}]}]}}";
        let documents = [pod("a", "n1"), pod("b", "n2"), pod("c", "n2"), policy.to_owned()];
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cluster.yaml");
        std::fs::write(&file, documents.join("\n---\n")).unwrap();
        let cluster = load_offline(&[file], &Site::default()).unwrap();
        assert_eq!(capacity(&cluster, 1000), None);
        let tight = capacity(&cluster, 130).unwrap();
        assert_eq!(tight.severity, Severity::Notice, "{tight}");
        let full = capacity(&cluster, 20).unwrap();
        assert_eq!(full.severity, Severity::Error);
        for part in ["entries on node n2, and its map has room for 20", "CiliumNetworkPolicy default/wide ("]
        {
            assert!(full.message.contains(part), "{part}: {full}");
        }
    }
}
