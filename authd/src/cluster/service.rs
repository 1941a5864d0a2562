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

impl Service {
    /// The other nodes to whose backends kube-proxy at `node` may send on what comes from outside, although it
    /// does not reach every address there.
    #[must_use]
    pub fn sent_on_in_vain(&self, node: &str, reaches: impl Fn(&IpAddr) -> bool) -> BTreeSet<&str> {
        let is_reached = !self.external.is_empty() || self.ports.iter().any(|port| port.node_port != 0);
        if self.external_local || self.is_left_alone || !is_reached {
            return BTreeSet::new();
        }
        let endpoints = self.slices.iter().flat_map(|slice| &slice.endpoints);
        let ready = endpoints.filter(|endpoint| endpoint.is_ready);
        let missed = ready.filter(|endpoint| !endpoint.addresses.iter().all(&reaches));
        missed.filter_map(|endpoint| endpoint.node.as_deref()).filter(|other| *other != node).collect()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(node: &str, is_ready: bool) -> ServiceEndpoint {
        let addresses = vec![[10, 244, 0, 1].into()];
        ServiceEndpoint { node: Some(node.to_owned()), is_ready, addresses, ..ServiceEndpoint::default() }
    }

    fn behind(endpoints: &[ServiceEndpoint]) -> Service {
        let slices = vec![Slice { endpoints: endpoints.to_vec(), ..Slice::default() }];
        Service { slices, ports: vec![ServicePort::default()], ..Service::default() }
    }

    #[test]
    fn only_what_is_reached_from_outside_is_sent_on_to_the_nodes_of_ready_backends() {
        let inside = behind(&[endpoint("here", true), endpoint("there", true), endpoint("away", false)]);
        let missed = |service: &Service, node| {
            let missed = service.sent_on_in_vain(node, |_| false);
            assert!(service.sent_on_in_vain(node, |_| true).is_empty(), "all is reached");
            missed.into_iter().map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        assert!(missed(&inside, "here").is_empty());
        let mut by_port = inside.clone();
        by_port.ports.push(ServicePort { node_port: 30080, ..ServicePort::default() });
        let by_address = Service { external: [[203, 0, 113, 7].into()].into(), ..inside };
        for service in [by_port, by_address] {
            assert_eq!(missed(&service, "here"), ["there"]);
            assert_eq!(missed(&service, "elsewhere"), ["here", "there"]);
            let local = Service { external_local: true, ..service.clone() };
            let of_others = Service { is_left_alone: true, ..service };
            assert!(missed(&local, "here").is_empty() && missed(&of_others, "here").is_empty());
        }
    }
}
