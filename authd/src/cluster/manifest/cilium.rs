//! What Cilium keeps of a cluster, where manifests are tried: an endpoint stands for its pod, a node for the
//! Node, and an identity for ours. The daemon doesn't look at them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use policy::{Identity, Label, LabelSet, NamedPort, SERVICE_ACCOUNT_KEY, Source, protocol};
use serde_json::Value;

use super::spec::Parsed;
use super::{Body, Mistake, PodBody, typed};

/// A kind of `cilium.io/v2` that stands for one of Kubernetes or ours.
pub(super) const KINDS: [&str; 3] = ["CiliumEndpoint", "CiliumIdentity", "CiliumNode"];

#[derive(Debug, serde::Deserialize)]
struct Endpoint {
    #[serde(default)]
    status: EndpointStatus,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct EndpointStatus {
    identity: EndpointIdentity,
    networking: Option<Networking>,
    named_ports: Option<Vec<Port>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct EndpointIdentity {
    labels: Vec<String>,
}

#[derive(Debug, serde::Deserialize)]
struct Networking {
    #[serde(default)]
    addressing: Vec<AddressPair>,
}

#[derive(Debug, serde::Deserialize)]
struct AddressPair {
    ipv4: Option<Parsed<IpAddr>>,
    ipv6: Option<Parsed<IpAddr>>,
}

#[derive(Debug, serde::Deserialize)]
struct Port {
    name: String,
    port: u16,
    protocol: String,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CiliumIdentity {
    security_labels: BTreeMap<String, String>,
}

#[derive(Debug, serde::Deserialize)]
struct Node {
    #[serde(default)]
    spec: NodeSpec,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct NodeSpec {
    addresses: Vec<NodeAddress>,
    ipam: Ipam,
}

#[derive(Debug, serde::Deserialize)]
struct NodeAddress {
    ip: Parsed<IpAddr>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Ipam {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<Parsed<IpNet>>,
}

/// The object that one of these kinds stands for.
pub(super) fn read(
    kind: &str,
    name: &str,
    labels: BTreeMap<String, String>,
    value: &Value,
) -> Result<Body, Mistake> {
    match kind {
        "CiliumEndpoint" => Ok(Body::Pod(endpoint(typed(value)?)?)),
        "CiliumIdentity" => identity(name, typed(value)?),
        _ => Ok(node(labels, typed(value)?)),
    }
}

/// A pod whose identity's labels are known, and nothing else of its own.
fn endpoint(Endpoint { status }: Endpoint) -> Result<PodBody, Mistake> {
    let wrong = |error: policy::LabelError| Mistake::new("status.identity.labels", error.to_string());
    let labels: Result<Vec<Label>, _> = status.identity.labels.iter().map(|text| text.parse()).collect();
    let labels = labels.and_then(LabelSet::from_labels).map_err(wrong)?;
    let pairs = status.networking.into_iter().flat_map(|networking| networking.addressing);
    let addresses = pairs.flat_map(|pair| [pair.ipv4, pair.ipv6]).flatten();
    let port = |port: Port| Some((NamedPort::new(&port.name, protocol::number(&port.protocol)?), port.port));
    let service_account = labels.get(Source::K8s, SERVICE_ACCOUNT_KEY).unwrap_or_default().to_owned();
    Ok(PodBody {
        labels: BTreeMap::new(),
        node: None,
        service_account,
        host_network: false,
        has_ended: false,
        mirror: false,
        addresses: addresses
            .map(|ip| ("status.networking.addressing".to_owned(), ip.0.to_canonical()))
            .collect(),
        named_ports: status.named_ports.into_iter().flatten().filter_map(port).collect(),
        identity: Some(labels),
    })
}

fn identity(name: &str, CiliumIdentity { security_labels }: CiliumIdentity) -> Result<Body, Mistake> {
    let wrong = |message: String| Mistake::new("security-labels", message);
    let number =
        name.parse().map_err(|_error| Mistake::new("metadata.name", "must be the identity's number"))?;
    let label = |(key, value): (&String, &String)| format!("{key}={value}").parse();
    let labels: Result<Vec<Label>, policy::LabelError> = security_labels.iter().map(label).collect();
    let labels = labels.and_then(LabelSet::from_labels).map_err(|error| wrong(error.to_string()))?;
    let identity = Identity::new(number, labels).map_err(|error| wrong(error.to_string()))?;
    Ok(Body::Identity(Box::new(identity)))
}

fn node(labels: BTreeMap<String, String>, Node { spec }: Node) -> Body {
    let internal = spec.addresses.into_iter().filter(|one| one.kind.as_deref() == Some("InternalIP"));
    let address = |one: NodeAddress| ("spec.addresses".to_owned(), one.ip.0.to_canonical());
    let pod_cidrs = spec.ipam.pod_cidrs.into_iter().map(|Parsed(net)| net.trunc());
    Body::Node {
        labels,
        addresses: internal.map(address).collect(),
        pod_cidrs: pod_cidrs.collect(),
        claimed_key: None,
    }
}
