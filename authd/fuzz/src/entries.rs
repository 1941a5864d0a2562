//! What is done with fuzzed manifests, and what must hold of them whatever they are. The tests of `authd`
//! replay the corpus through the same function.

use authd::cluster::{Cluster, Site, from_text};
use authd::trace::{End, Port, Question, answer, policies};

/// A file of manifests.
pub fn manifests(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let cluster = from_text(text, &Site::default());
    assert_eq!(cluster, from_text(text, &Site::default()), "the same text is the same cluster");
    for problem in &cluster.problems {
        assert!(!problem.message.is_empty() && problem.file.is_some() == problem.line.is_some(), "{problem}");
    }
    for policy in policies(&cluster) {
        assert!(!policy.kind.is_empty());
        assert!(!policy.refused || !policy.conditions.is_empty(), "{} says why", policy.name);
    }
    pods_are_whole(&cluster);
    traces_are_given(&cluster);
}

/// Identities are known, and no address is two pods'.
fn pods_are_whole(cluster: &Cluster) {
    let mut addresses = std::collections::BTreeSet::new();
    for pod in &cluster.pods {
        assert!(pod.identity.is_none_or(|number| cluster.identities.get(number).is_some()));
        assert!(pod.addresses.iter().all(|address| addresses.insert(*address)), "an address is one pod's");
    }
}

/// Every two of the first pods, and the world.
fn traces_are_given(cluster: &Cluster) {
    let pods = cluster.pods.iter().take(3);
    let pod =
        |pod: &authd::cluster::Pod| End::Pod { namespace: pod.namespace.clone(), name: pod.name.clone() };
    let mut ends: Vec<End> = pods.filter(|pod| pod.identity.is_some()).map(pod).collect();
    ends.push("entity:world".parse().expect("this is an end"));
    let port: Port = "80/TCP".parse().expect("this is a port");
    for (from, to) in ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to))) {
        let question = Question { from: from.clone(), to: to.clone(), port: port.clone() };
        let trace = answer(cluster, &question).expect("both ends are there");
        assert!(["allowed", "denied"].contains(&trace.verdict.as_str()));
    }
}
