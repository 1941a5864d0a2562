//! Services: how they are reached, and what stands behind them.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// How a service is reached; which pods its selector means is among the surroundings of policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its addresses: within the cluster, external ones, and those of load balancers.
    pub addresses: Vec<IpAddr>,
    /// Those of them that are not within the cluster.
    pub external: BTreeSet<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// For how many seconds a client keeps its backend; 0 for one connection only.
    pub affinity: u32,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Somebody else translates it (`service.kubernetes.io/service-proxy-name`), or nobody (it is headless).
    pub is_left_alone: bool,
    /// What stands behind it.
    pub slices: Vec<Slice>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which slices give it numbers; empty for none.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// The port of the service's addresses.
    pub port: u16,
    /// The port of the pods.
    pub target: TargetPort,
    /// The port of every node's addresses, 0 for none.
    pub node_port: u16,
}

/// The port of the pods behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// Its number.
    Number(u16),
    /// Its name, to which each pod gives a number.
    Name(String),
}

impl Default for TargetPort {
    fn default() -> Self {
        Self::Number(0)
    }
}

/// Some of the endpoints of a service, which have the same ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// The ports that the service's ports have there.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<ServiceEndpoint>,
}

/// A port of the endpoints of a [`Slice`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service's port.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// The endpoints' port.
    pub port: u16,
}

/// An endpoint of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEndpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node it is on.
    pub node: Option<String>,
    /// It takes new connections.
    pub is_ready: bool,
    /// It is about to end, but still takes connections if nobody else does.
    pub is_last_resort: bool,
    /// The zones whose clients it is meant for; empty if nothing says so.
    pub for_zones: Vec<String>,
    /// The nodes whose clients it is meant for; empty if nothing says so.
    pub for_nodes: Vec<String>,
}
