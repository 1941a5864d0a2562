//! The fields of Kubernetes' and our own kinds that the daemon uses, and nothing else.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use policy::{IdentitySpec, NodeNumberSpec};
use serde::de::{Deserialize, Deserializer, Error as _};

use super::strict::Shape;

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    pub(super) api_version: String,
    pub(super) kind: String,
    #[serde(default)]
    pub(super) metadata: Metadata,
}

#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// Of an Endpoints object.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Endpoints {
    pub(super) subsets: Option<Vec<EndpointSubset>>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct EndpointSubset {
    pub(super) addresses: Option<Vec<EndpointAddress>>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct EndpointAddress {
    pub(super) ip: String,
}

/// Of a CiliumCIDRGroup.
#[derive(Debug, serde::Deserialize)]
pub(super) struct CidrGroup {
    pub(super) spec: CidrGroupSpec,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CidrGroupSpec {
    #[serde(rename = "externalCIDRs")]
    pub(super) external_cidrs: Vec<Parsed<IpNet>>,
}

/// Of a Node.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Node {
    pub(super) spec: Option<NodeSpec>,
    pub(super) status: Option<NodeStatus>,
}

#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(super) pod_cidr: Option<Parsed<IpNet>>,
    #[serde(rename = "podCIDRs")]
    pub(super) pod_cidrs: Option<Vec<Parsed<IpNet>>>,
}

#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct NodeStatus {
    pub(super) addresses: Option<Vec<NodeAddress>>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct NodeAddress {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) address: String,
}

/// Of a Pod.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Pod {
    pub(super) spec: Option<PodSpec>,
    pub(super) status: Option<PodStatus>,
}

/// Of the template of pods in a Deployment and the like.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Template {
    #[serde(default)]
    pub(super) metadata: Metadata,
    pub(super) spec: Option<PodSpec>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: Option<String>,
    pub(super) service_account_name: Option<String>,
    /// Its older name.
    pub(super) service_account: Option<String>,
    pub(super) host_network: Option<bool>,
    pub(super) containers: Option<Vec<Container>>,
    pub(super) init_containers: Option<Vec<Container>>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct Container {
    pub(super) ports: Option<Vec<ContainerPort>>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerPort {
    pub(super) name: Option<String>,
    pub(super) container_port: u16,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<Parsed<IpAddr>>,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct PodIp {
    pub(super) ip: Parsed<IpAddr>,
}

/// Of an Identity.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Identity {
    pub(super) spec: IdentitySpec,
}

/// Of a NodeNumber.
#[derive(Debug, serde::Deserialize)]
pub(super) struct NodeNumber {
    pub(super) spec: NodeNumberSpec,
}

/// Of a Revocation.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Revocation {
    pub(super) spec: RevocationSpec,
}

#[derive(Debug, serde::Deserialize)]
pub(super) struct RevocationSpec {
    pub(super) identity: Option<u32>,
    pub(super) node: Option<String>,
}

const METADATA: Shape = Shape::Map(&[
    ("name", Shape::Any),
    ("labels", Shape::Any),
    ("annotations", Shape::Any),
    ("creationTimestamp", Shape::Any),
    ("finalizers", Shape::Any),
    ("generation", Shape::Any),
    ("managedFields", Shape::Any),
    ("ownerReferences", Shape::Any),
    ("resourceVersion", Shape::Any),
    ("uid", Shape::Any),
]);

/// The fields of an Identity.
pub(super) const IDENTITY: Shape = Shape::Map(&[
    ("apiVersion", Shape::Any),
    ("kind", Shape::Any),
    ("metadata", METADATA),
    (
        "spec",
        Shape::Map(&[
            ("namespace", Shape::Any),
            ("serviceAccount", Shape::Any),
            ("labels", Shape::Any),
            ("hash", Shape::Any),
        ]),
    ),
]);

/// The fields of a NodeNumber.
pub(super) const NODE_NUMBER: Shape = Shape::Map(&[
    ("apiVersion", Shape::Any),
    ("kind", Shape::Any),
    ("metadata", METADATA),
    ("spec", Shape::Map(&[("number", Shape::Any)])),
]);

/// The fields of a Revocation.
pub(super) const REVOCATION: Shape = Shape::Map(&[
    ("apiVersion", Shape::Any),
    ("kind", Shape::Any),
    ("metadata", METADATA),
    ("spec", Shape::Map(&[("identity", Shape::Any), ("node", Shape::Any), ("reason", Shape::Any)])),
]);

/// A value that is written as a string, with an error that shows the string.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parsed<T>(pub(super) T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|error| D::Error::custom(format_args!("\"{text}\": {error}")))
    }
}
