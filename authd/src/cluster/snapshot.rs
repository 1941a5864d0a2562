//! Builds a [`Cluster`] out of objects, refusing what contradicts what was there before.
//!
//! Of two claims to the same thing (an address, a number, a name) the one that was there first stays,
//! also across snapshots: [`Memory`] knows who that was.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use policy::{Identity, IdentityNumber, LabelSet, NodeNumber};

use super::manifest::{Body, Object, ObjectKey, PodBody};
use super::problem::Problem;
use super::surroundings;
use super::{Cluster, Node, Pod, Site};

/// The label that the API server sets on every namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// What earlier snapshots settled.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// The file that an object was last taken from.
    owners: BTreeMap<ObjectKey, Arc<str>>,
    /// Names that were there twice from the first.
    contested: BTreeSet<ObjectKey>,
    /// Every identity ever seen: a number never gets other labels.
    identities: BTreeMap<IdentityNumber, Identity>,
    /// The identities of the last snapshot.
    current: BTreeSet<IdentityNumber>,
    /// Every node number ever seen.
    node_numbers: BTreeMap<NodeNumber, String>,
    /// The node of each pod range in the last snapshot.
    ranges: BTreeMap<IpNet, String>,
    /// Who held each address in the last snapshot.
    holders: BTreeMap<IpAddr, ObjectKey>,
}

impl Memory {
    /// The largest identity number and node number ever seen.
    pub(super) fn highest(&self) -> (IdentityNumber, NodeNumber) {
        let last = |number: Option<&IdentityNumber>| number.copied().unwrap_or_default();
        (last(self.identities.keys().last()), self.node_numbers.keys().last().copied().unwrap_or_default())
    }
}

/// What becomes of objects that nobody has numbered or declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// They have no traffic, and are reported.
    Reported,
    /// They are assumed, so that policies can be tried on manifests alone.
    Assumed,
}

/// Builds the snapshot; its policies are left empty.
pub(super) fn build(objects: &[Object], memory: &mut Memory, missing: Missing, site: &Site) -> Cluster {
    let mut builder = Builder {
        cluster: Cluster::default(),
        missing,
        site,
        memory,
        namespaces: BTreeMap::new(),
        holders: BTreeMap::new(),
    };
    builder.remembered_claims(objects);
    builder.namespaces = namespaces(objects);
    if missing == Missing::Assumed {
        builder.assume_namespaces(objects);
    }
    builder.nodes(objects);
    builder.node_numbers(objects);
    builder.identities(objects);
    if missing == Missing::Assumed {
        builder.assume_identities(objects);
    }
    builder.pods(objects);
    for object in objects {
        if let Body::Revocation(revoked) = &object.body {
            builder.cluster.revoked.add(revoked);
        }
    }
    builder.cluster.surroundings = surroundings::collect(objects, &builder.cluster, site);
    builder.cluster.services = surroundings::services(objects);
    let Builder { mut cluster, memory, holders, namespaces, .. } = builder;
    cluster.namespaces = namespaces;
    memory.holders = holders;
    cluster
}

/// An object whose name another one has.
pub(super) struct Duplicate {
    pub(super) object: Object,
    pub(super) problem: Problem,
    /// Whether it was settled before which of them stays.
    pub(super) is_settled: bool,
}

/// Of objects with the same name the one from the file that had it first; the others are duplicates.
pub(super) fn unique(objects: Vec<Object>, memory: &mut Memory) -> (Vec<Object>, Vec<Duplicate>) {
    let before = std::mem::take(&mut memory.owners);
    for object in &objects {
        let is_before = before.get(&object.key) == Some(&object.file);
        if is_before || !memory.owners.contains_key(&object.key) {
            memory.owners.insert(object.key.clone(), Arc::clone(&object.file));
        }
    }
    let mut lines: BTreeMap<ObjectKey, u32> = BTreeMap::new();
    let (mut kept, mut others) = (Vec::new(), Vec::new());
    for object in objects {
        let is_owner = memory.owners.get(&object.key) == Some(&object.file);
        if is_owner && !lines.contains_key(&object.key) {
            lines.insert(object.key.clone(), object.document.line());
            kept.push(object);
        } else {
            others.push(object);
        }
    }
    let was_contested = std::mem::take(&mut memory.contested);
    let duplicate = |object: Object| {
        let file = memory.owners.get(&object.key).map(AsRef::as_ref).unwrap_or_default();
        let line = lines.get(&object.key).copied().unwrap_or(1);
        let message = format!("there twice; the one in {file}:{line} stays, remove one of them");
        let is_settled = before.contains_key(&object.key) && !was_contested.contains(&object.key);
        if !is_settled {
            memory.contested.insert(object.key.clone());
        }
        Duplicate { problem: object.error("metadata.name", message), is_settled, object }
    };
    let duplicates = others.into_iter().map(duplicate).collect();
    (kept, duplicates)
}

struct Builder<'a> {
    cluster: Cluster,
    missing: Missing,
    site: &'a Site,
    memory: &'a mut Memory,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    holders: BTreeMap<IpAddr, ObjectKey>,
}

impl Builder<'_> {
    fn nodes(&mut self, objects: &[Object]) {
        for object in objects {
            let Body::Node { addresses, claimed_key, .. } = &object.body else { continue };
            let claim = claimed_key.iter().map(|key| (object.key.name.clone(), key.clone()));
            self.cluster.claimed_keys.extend(claim);
            let addresses = self.claim_all(object, addresses);
            let node = Node { name: object.key.name.clone(), number: None, addresses, pod_cidrs: Vec::new() };
            self.cluster.nodes.insert(node.name.clone(), node);
        }
        self.pod_cidrs(objects);
    }

    fn pod_cidrs(&mut self, objects: &[Object]) {
        let mut declared = Vec::new();
        for object in objects {
            if let Body::Node { pod_cidrs, .. } = &object.body {
                declared.extend(pod_cidrs.iter().enumerate().map(|(index, cidr)| (object, index, *cidr)));
            }
        }
        declared.sort_by_key(|(object, _, cidr)| self.memory.ranges.get(cidr) != Some(&object.key.name));
        let mut ranges: BTreeMap<IpNet, String> = BTreeMap::new();
        let mut refused = Vec::new();
        for (object, index, cidr) in declared {
            let name = &object.key.name;
            if overlapping(&ranges, cidr, name).is_some() {
                refused.push((object, index, cidr));
                continue;
            }
            ranges.insert(cidr, name.clone());
            if let Some(node) = self.cluster.nodes.get_mut(name) {
                node.pod_cidrs.push(cidr);
                // The order of claims depends on the past, and nothing else may.
                node.pod_cidrs.sort();
            }
        }
        for (object, index, cidr) in refused {
            let holder = overlapping(&ranges, cidr, &object.key.name).unwrap_or_default();
            let message = format!("{cidr} overlaps a range of node {holder}; it is not used");
            let problem = object.error(&format!("spec.podCIDRs[{index}]"), message);
            self.cluster.problems.push(problem);
        }
        self.memory.ranges = ranges;
    }

    fn node_numbers(&mut self, objects: &[Object]) {
        for object in objects {
            let Body::NodeNumber(number) = object.body else { continue };
            let name = &object.key.name;
            let own = self.memory.node_numbers.iter().find(|(_, holder)| *holder == name);
            let message = match (own, self.memory.node_numbers.get(&number)) {
                (Some((before, _)), _) if *before != number => {
                    Some(format!("the node's number is {before}; numbers can't be changed"))
                }
                (None, Some(holder)) => {
                    Some(format!("{number} is the number of node {holder}; numbers are never used again"))
                }
                _ => None,
            };
            if let Some(message) = message {
                self.cluster.problems.push(object.error("spec.number", message));
                continue;
            }
            self.memory.node_numbers.insert(number, name.clone());
        }
        // A NodeNumber that was changed is refused, and its node keeps the number that it had.
        for object in objects.iter().filter(|object| matches!(object.body, Body::NodeNumber(_))) {
            let before = self.memory.node_numbers.iter().find(|(_, holder)| **holder == object.key.name);
            if let (Some((before, _)), Some(node)) = (before, self.cluster.nodes.get_mut(&object.key.name)) {
                node.number = Some(*before);
            }
        }
        for object in objects.iter().filter(|object| matches!(object.body, Body::Node { .. })) {
            let is_reported = self.missing == Missing::Reported;
            if is_reported
                && self.cluster.nodes.get(&object.key.name).is_some_and(|node| node.number.is_none())
            {
                let message = "no number; run `authctl identities allocate DIR`";
                self.cluster.problems.push(object.notice("", message));
            }
        }
    }

    fn identities(&mut self, objects: &[Object]) {
        let mut declared: Vec<(&Object, &Identity)> = Vec::new();
        for object in objects {
            if let Body::Identity(identity) = &object.body {
                declared.push((object, identity));
            }
        }
        // Of two with the same labels, the one that was in force stays.
        declared.sort_by_key(|(_, identity)| !self.memory.current.contains(&identity.number()));
        for (object, identity) in declared {
            let before = self.memory.identities.get(&identity.number());
            if before.is_some_and(|before| before != identity) {
                let message = "the identity was changed; identities can't be, so the first version stays";
                self.cluster.problems.push(object.error("spec.labels", message));
            }
            let kept = before.unwrap_or(identity).clone();
            match self.cluster.identities.insert(kept.clone()) {
                Ok(()) => {
                    self.memory.identities.insert(kept.number(), kept);
                }
                Err(error) => self.cluster.problems.push(object.error("spec.labels", error.to_string())),
            }
        }
        self.memory.current = self.cluster.identities.iter().map(Identity::number).collect();
    }

    /// Namespaces that pods are in without being declared, with the label that the API server sets.
    fn assume_namespaces(&mut self, objects: &[Object]) {
        for namespace in objects.iter().filter_map(|object| object.key.namespace.as_ref()) {
            let named = || BTreeMap::from([(NAME_LABEL.to_owned(), namespace.clone())]);
            self.namespaces.entry(namespace.clone()).or_insert_with(named);
        }
    }

    /// Identities of the label sets that have none.
    fn assume_identities(&mut self, objects: &[Object]) {
        let labels = objects.iter().filter_map(|object| {
            let Body::Pod(body) = &object.body else { return None };
            let namespace = object.key.namespace.as_deref().unwrap_or_default();
            labels(&self.site.cluster, namespace, body, &self.namespaces).ok().filter(|_| !body.host_network)
        });
        let nodes = BTreeMap::new();
        let allocated = policy::Allocated {
            identities: &self.cluster.identities,
            nodes: &nodes,
            highest_identity: 0,
            highest_node: 0,
        };
        // Labels that make no identity are reported with their pod.
        let new = policy::allocate(allocated, labels.collect::<Vec<_>>(), []).unwrap_or_default();
        for identity in new.identities {
            if let Err(error) = self.cluster.identities.insert(identity) {
                self.cluster.problems.push(Problem::error(error.to_string()));
            }
        }
    }

    fn pods(&mut self, objects: &[Object]) {
        for object in objects {
            let Body::Pod(body) = &object.body else { continue };
            if body.has_ended {
                let namespace = object.key.namespace.clone().unwrap_or_default();
                self.cluster.ended.insert((namespace, object.key.name.clone()));
            } else {
                let pod = self.pod(object, body);
                self.cluster.pods.push(pod);
            }
        }
        self.cluster.pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    }

    fn pod(&mut self, object: &Object, body: &PodBody) -> Pod {
        let namespace = object.key.namespace.clone().unwrap_or_default();
        let mut pod = Pod {
            namespace,
            name: object.key.name.clone(),
            node: body.node.clone(),
            addresses: Vec::new(),
            host_network: body.host_network,
            mirror: body.mirror,
            service_account: body.service_account.clone(),
            named_ports: body.named_ports.clone(),
            labels: body.labels.clone(),
            identity: None,
        };
        if body.host_network {
            return pod;
        }
        let is_reported = self.missing == Missing::Reported;
        let absent = |node: &&String| is_reported && !self.cluster.nodes.contains_key(*node);
        if let Some(node) = body.node.as_ref().filter(absent) {
            let message = format!("there is no Node {node}; the pod has no traffic until there is");
            self.cluster.problems.push(object.notice("spec.nodeName", message));
        }
        let in_range = self.in_range(object, body);
        pod.addresses = self.claim_all(object, &in_range);
        pod.identity = self.identity(object, body);
        pod
    }

    fn identity(&mut self, object: &Object, body: &PodBody) -> Option<IdentityNumber> {
        let namespace = object.key.namespace.as_deref().unwrap_or_default();
        let found = match labels(&self.site.cluster, namespace, body, &self.namespaces) {
            Ok(labels) => {
                let identity = self.cluster.identities.by_labels(&labels).map(Identity::number);
                identity
                    .ok_or_else(|| object.notice("", "no identity; run `authctl identities allocate DIR`"))
            }
            Err((field, message)) => Err(object.error(field, message)),
        };
        found.map_err(|problem| self.cluster.problems.push(problem)).ok()
    }

    /// The addresses that may be this pod's, as far as ranges say.
    fn in_range(&mut self, object: &Object, body: &PodBody) -> Vec<(String, IpAddr)> {
        let mut usable = Vec::new();
        for (field, address) in &body.addresses {
            match self.out_of_range(*address, body.node.as_deref()) {
                None => usable.push((field.clone(), *address)),
                Some(why) => {
                    let problem = object.error(field, format!("{address} {why}; the address is not used"));
                    self.cluster.problems.push(problem);
                }
            }
        }
        usable
    }

    fn out_of_range(&self, address: IpAddr, node: Option<&str>) -> Option<String> {
        let Some(name) = node else {
            if self.missing == Missing::Assumed {
                return None;
            }
            return Some("is the address of a pod without spec.nodeName".to_owned());
        };
        let node = self.cluster.nodes.get(name).filter(|node| !node.pod_cidrs.is_empty());
        let has = |node: &Node| node.pod_cidrs.iter().any(|range| range.contains(&address));
        match node {
            Some(node) => (!has(node)).then(|| format!("is in no podCIDR of node {name}")),
            // A node without ranges has whatever isn't another's.
            None => {
                let other = self.cluster.nodes.values().find(|node| has(node));
                other.map(|other| format!("is in a podCIDR of node {}", other.name))
            }
        }
    }

    /// Addresses that were held in the last snapshot and are still declared go to their holder first.
    fn remembered_claims(&mut self, objects: &[Object]) {
        for object in objects {
            let (Body::Node { addresses, .. }
            | Body::Pod(PodBody { addresses, has_ended: false, host_network: false, .. })) = &object.body
            else {
                continue;
            };
            for (_, address) in addresses {
                if self.memory.holders.get(address) == Some(&object.key) {
                    self.holders.insert(*address, object.key.clone());
                }
            }
        }
    }

    fn claim_all(&mut self, object: &Object, addresses: &[(String, IpAddr)]) -> Vec<IpAddr> {
        let mut claimed = Vec::new();
        for (field, address) in addresses {
            let message = if let Some(kind) = unusable(address) {
                format!("{address} is {kind}; the address is not used")
            } else {
                let holder = self.holders.entry(*address).or_insert_with(|| object.key.clone());
                if *holder == object.key {
                    if !claimed.contains(address) {
                        claimed.push(*address);
                    }
                    continue;
                }
                format!("{address} belongs to {holder}; this second claim is refused")
            };
            self.cluster.problems.push(object.error(field, message));
        }
        claimed
    }
}

/// The node other than `name` that has a range which overlaps this one.
fn overlapping<'a>(ranges: &'a BTreeMap<IpNet, String>, cidr: IpNet, name: &str) -> Option<&'a str> {
    let overlaps = |range: &IpNet| range.contains(&cidr) || cidr.contains(range);
    let mut others = ranges.iter().filter(|(range, holder)| *holder != name && overlaps(range));
    others.next().map(|(_, holder)| holder.as_str())
}

/// The labels of each namespace.
pub(super) fn namespaces(objects: &[Object]) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut namespaces = BTreeMap::new();
    for object in objects {
        if let Body::Namespace { labels, .. } = &object.body {
            let mut labels = labels.clone();
            // The API server sets this on every namespace.
            labels.insert(NAME_LABEL.to_owned(), object.key.name.clone());
            namespaces.insert(object.key.name.clone(), labels);
        }
    }
    namespaces
}

/// The labels of a pod's identity, or the field at fault and why.
pub(super) fn labels(
    cluster: &str,
    namespace: &str,
    body: &PodBody,
    namespaces: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<LabelSet, (&'static str, String)> {
    if let Some(labels) = &body.identity {
        return Ok(labels.clone());
    }
    let of_namespace = namespaces.get(namespace).ok_or_else(|| {
        let message = format!("there is no Namespace {namespace}; the pod has no identity until there is");
        ("metadata.namespace", message)
    })?;
    let pod = policy::Pod { cluster, namespace, service_account: &body.service_account };
    pod.labels(
        body.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())),
        of_namespace.iter().map(|(key, value)| (key.as_str(), value.as_str())),
    )
    .map_err(|error| ("metadata.labels", error.to_string()))
}

fn unusable(address: &IpAddr) -> Option<&'static str> {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some("unspecified")
    } else if address.is_loopback() {
        Some("a loopback address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else {
        is_link_local.then_some("link-local")
    }
}
