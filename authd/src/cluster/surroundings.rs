//! What policies refer to beside identities, out of the cluster's objects.

use std::collections::BTreeMap;

use policy::{CidrGroup, Label, LabelSet, Requirement, Selector, Source, Surroundings, reserved};

use super::manifest::{Body, Object};
use super::{Cluster, Service, Site};

/// The surroundings of these objects; pods and nodes are those of the snapshot.
pub(super) fn collect(objects: &[Object], cluster: &Cluster, site: &Site) -> Surroundings {
    let mut surroundings = Surroundings::default();
    surroundings.host.clone_from(&site.node);
    for pod in &cluster.pods {
        let Some(identity) = pod.identity else { continue };
        surroundings.addresses.entry(identity).or_default().extend(&pod.addresses);
        for (port, number) in &pod.named_ports {
            let ports = surroundings.named_ports.entry(identity).or_default();
            ports.entry(port.clone()).or_default().insert(*number);
        }
    }
    for node in cluster.nodes.values() {
        for identity in [reserved::HOST, reserved::REMOTE_NODE] {
            surroundings.addresses.entry(identity).or_default().extend(&node.addresses);
        }
    }
    for object in objects {
        add(object, cluster, site, &mut surroundings);
    }
    add_endpoints(objects, &mut surroundings);
    surroundings
}

/// How services are reached.
pub(super) fn services(objects: &[Object]) -> BTreeMap<(String, String), Service> {
    let namespace = |object: &Object| object.key.namespace.clone().unwrap_or_default();
    let service = |object: &Object| {
        let Body::Service { service, .. } = &object.body else { return None };
        Some(((namespace(object), object.key.name.clone()), Service::clone(service)))
    };
    let mut services: BTreeMap<_, _> = objects.iter().filter_map(service).collect();
    for object in objects {
        let Body::Endpoints { service, slice: Some(slice), .. } = &object.body else { continue };
        if let Some(service) = services.get_mut(&(namespace(object), service.clone())) {
            service.slices.push(slice.clone());
        }
    }
    services
}

fn add(object: &Object, cluster: &Cluster, site: &Site, surroundings: &mut Surroundings) {
    let name = object.key.name.clone();
    match &object.body {
        Body::Namespace { audit: true, .. } => {
            surroundings.audited_namespaces.insert(name);
        }
        Body::Node { labels, .. } => {
            let addresses = cluster.nodes.get(&name).map(|node| node.addresses.iter().copied().collect());
            let labels = node_labels(labels, &site.cluster);
            let node = policy::Node { labels, addresses: addresses.unwrap_or_default() };
            surroundings.nodes.insert(name, node);
        }
        Body::CidrGroup { labels, nets } => {
            let group = CidrGroup { labels: label_set(labels), nets: nets.iter().copied().collect() };
            surroundings.cidr_groups.insert(name, group);
        }
        Body::Service { labels, selector, .. } => {
            let namespace = object.key.namespace.clone().unwrap_or_default();
            let pods = selector.as_ref().map(|selector| pods(&namespace, selector));
            let service = policy::Service { labels: label_set(labels), pods, ..policy::Service::default() };
            surroundings.services.insert((namespace, name), service);
        }
        Body::Namespace { .. }
        | Body::Endpoints { .. }
        | Body::Pod(_)
        | Body::StandIn(_)
        | Body::Identity(_)
        | Body::NodeNumber(_)
        | Body::Revocation(_)
        | Body::Policy(_) => {}
    }
}

fn add_endpoints(objects: &[Object], surroundings: &mut Surroundings) {
    for object in objects {
        let Body::Endpoints { service, addresses, .. } = &object.body else { continue };
        let namespace = object.key.namespace.clone().unwrap_or_default();
        if let Some(service) = surroundings.services.get_mut(&(namespace, service.clone())) {
            service.addresses.extend(addresses);
        }
    }
}

/// The pods behind a service.
fn pods(namespace: &str, labels: &BTreeMap<String, String>) -> Selector {
    let of_pods = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let all = of_pods.chain([(policy::NAMESPACE_KEY, namespace)]);
    let equals = |(key, value)| {
        let label = Label::new(Source::K8s, key, value).ok()?;
        Some(Requirement::equals(label.label_key().clone(), value))
    };
    Selector { requirements: all.filter_map(equals).collect() }
}

/// Labels of a node, with that of its cluster, whatever its own say of that.
fn node_labels(labels: &BTreeMap<String, String>, cluster: &str) -> LabelSet {
    let mut labels = label_set(labels).without(Source::K8s, policy::CLUSTER_KEY);
    if let Ok(label) = Label::new(Source::K8s, policy::CLUSTER_KEY, cluster) {
        labels.insert(label).unwrap_or_default();
    }
    labels
}

/// Labels of an object; one that can't be a label is left out, so nothing selects it.
fn label_set(labels: &BTreeMap<String, String>) -> LabelSet {
    let labels = labels.iter().filter_map(|(key, value)| Label::new(Source::K8s, key, value).ok());
    LabelSet::from_labels(labels).unwrap_or_default()
}
