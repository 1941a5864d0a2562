//! The address of a service as an end: policy is about the pods behind it, and about their port.

use std::net::IpAddr;

use super::{
    Error,
    end::{End, Resolved, of_address, of_pod},
    port::{Number, Port},
};
use crate::cluster::{Cluster, Pod, TargetPort};

/// A service, one of whose addresses was given.
pub(super) struct Service<'a> {
    pub(super) name: &'a (String, String),
    pub(super) front: &'a crate::cluster::Service,
    pub(super) address: IpAddr,
}

impl Service<'_> {
    /// What is behind it as one end, and the port that is seen there.
    pub(super) fn resolve(
        &self,
        cluster: &Cluster,
        from: &End,
        port: &Port,
    ) -> Result<(Resolved, Port), Error> {
        let full_name = format!("{}/{}", self.name.0, self.name.1);
        let ends = self.ends(cluster, from)?;
        let Some(first) = ends.first() else {
            return Err(Error(format!("nothing with an identity is behind Service {full_name}")));
        };
        if ends.iter().any(|end| end.identity != first.identity) {
            let name =
                |end: &Resolved| end.pod.clone().or(end.address.map(|address| format!("ip:{address}")));
            let names = ends.iter().filter_map(name).collect::<Vec<_>>().join(", ");
            let message =
                format!("what is behind Service {full_name} differs in identity; trace to one of {names}");
            return Err(Error(message));
        }
        let port = self.port(port).ok_or_else(|| {
            let ports = self.front.ports.iter();
            let ports = ports
                .map(|one| Port { protocol: one.protocol, number: Number::Given(one.port) }.to_string())
                .collect::<Vec<_>>()
                .join(", ");
            Error(format!(
                "Service {full_name} has no port {port}, so nothing comes through it; it has {ports}"
            ))
        })?;
        let first = first.clone();
        Ok((Resolved { service: Some(full_name), address: Some(self.address), pod: None, ..first }, port))
    }

    fn ends(&self, cluster: &Cluster, from: &End) -> Result<Vec<Resolved>, Error> {
        let Some(service) = cluster.surroundings.services.get(self.name) else { return Ok(Vec::new()) };
        let Some(selector) = &service.pods else {
            let end = |address: &IpAddr| {
                let resolved = of_address(cluster, *address, from)?;
                Ok(Resolved { address: Some(*address), ..resolved })
            };
            return service.addresses.iter().map(end).collect();
        };
        let is_behind = |pod: &&Pod| {
            let identity = pod.identity.and_then(|identity| cluster.identities.get(identity));
            identity.is_some_and(|identity| selector.matches(identity.labels()))
        };
        cluster.pods.iter().filter(is_behind).map(|pod| of_pod(cluster, pod, from)).collect()
    }

    /// What has no ports isn't translated.
    fn port(&self, port: &Port) -> Option<Port> {
        let Number::Given(number) = port.number else { return Some(port.clone()) };
        if !policy::protocol::has_ports(port.protocol) {
            return Some(port.clone());
        }
        let mut ports = self.front.ports.iter();
        let found = ports.find(|one| one.protocol == port.protocol && one.port == number)?;
        let number = match &found.target {
            TargetPort::Number(number) => Number::Given(*number),
            TargetPort::Name(name) => Number::Named(name.clone()),
        };
        Some(Port { protocol: port.protocol, number })
    }
}
