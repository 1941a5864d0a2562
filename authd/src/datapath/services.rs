//! Which backends pods here reach by the addresses of services. Pure.
//!
//! The rules are kube-proxy's, as far as they are about what pods send: it stays in charge of what comes
//! from hosts and from outside, and both must come to the same backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use auth_ebpf::Backends;
use auth_ebpf_abi::{Address, AddressEntry, AddressFlags, ServiceKey, identity, may_serve};
use policy::Source;

use super::plan::{Inputs, Plan};
use crate::cluster::{Service, ServiceEndpoint, ServicePort};

/// The label of a node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
const SCTP: u8 = auth_ebpf_abi::packet::protocol::SCTP;

type Ends = BTreeSet<(Address, u16)>;

impl Plan {
    /// Adds the services, once the addresses of pods and nodes are known.
    pub(super) fn services(&mut self, inputs: &Inputs<'_>) {
        let mut ports = Ports { inputs, taken: BTreeMap::new(), refused: Vec::new() };
        for (name, service) in inputs.cluster.services.iter().filter(|(_, service)| !service.is_left_alone) {
            let full_name = format!("{}/{}", name.0, name.1);
            for port in service.ports.iter().filter(|port| may_serve(port.protocol)) {
                for is_v4 in [true, false] {
                    self.backends.extend(ports.of(self, &full_name, service, port, is_v4));
                }
            }
        }
        self.refused_services = ports.refused;
        self.flag_services();
    }

    /// Has the programs look for services where there are some, and nowhere else.
    fn flag_services(&mut self) {
        let keys: BTreeSet<ServiceKey> =
            self.backends.iter().flat_map(|group| group.ports.iter().copied()).collect();
        let of_nodes: BTreeSet<Address> =
            keys.iter().filter(|key| **key == key.of_any_node()).map(|key| key.address).collect();
        for key in keys.iter().filter(|key| !of_nodes.contains(&key.address)) {
            self.addresses.entry(key.address).or_default().flags |= AddressFlags::SERVICE;
        }
        for (address, entry) in &mut self.addresses {
            let any = ServiceKey { address: *address, ..ServiceKey::default() }.of_any_node().address;
            if is_of_node(entry) && of_nodes.contains(&any) {
                entry.flags |= AddressFlags::SERVICE;
            }
        }
    }
}

const fn is_of_node(entry: &AddressEntry) -> bool {
    let is_of_other =
        entry.node != 0 && identity::is_reserved(entry.identity) && entry.identity != identity::WORLD;
    entry.identity == identity::HOST || is_of_other
}

/// The ports that have been given to services so far.
struct Ports<'a> {
    inputs: &'a Inputs<'a>,
    taken: BTreeMap<ServiceKey, String>,
    refused: Vec<(String, String)>,
}

impl Ports<'_> {
    /// One port of a service in one family: what leads to the same backends belongs together.
    fn of(
        &mut self,
        plan: &Plan,
        name: &str,
        service: &Service,
        port: &ServicePort,
        is_v4: bool,
    ) -> Vec<Backends> {
        let endpoints = Endpoints::of(service, port, is_v4);
        let here = Some(self.inputs.node);
        let inside = endpoints.eligible(if service.internal_local { here } else { None }, self.inputs);
        // What a pod sends to an external address or a port of this node is as good as sent inside.
        let outside = endpoints.eligible(None, self.inputs);
        let family = |address: &&IpAddr| address.is_ipv4() == is_v4;
        let (mut of_inside, mut of_outside) = (BTreeSet::new(), BTreeSet::new());
        for address in service.addresses.iter().filter(family) {
            let keys = if service.external.contains(address) { &mut of_outside } else { &mut of_inside };
            let key = key(Address::from(*address), port.port, port.protocol);
            if key.address.is_nobodys() || key.address.is_link_local() {
                let why = format!("Address: {address} can't be a service's; it is not translated");
                self.refused.push((name.to_owned(), why));
                continue;
            }
            keys.extend(self.claim(plan, name, key));
        }
        let mut groups = Vec::new();
        if port.node_port != 0 {
            let unspecified = if is_v4 { Address::from_v4([0; 4]) } else { Address::default() };
            of_outside.extend(self.claim(plan, name, key(unspecified, port.node_port, port.protocol)));
            if service.external_local {
                groups.extend(self.of_other_nodes(name, port, &endpoints, is_v4));
            }
        }
        if inside == outside {
            of_inside.append(&mut of_outside);
        }
        groups.push((of_inside, inside));
        groups.push((of_outside, outside));
        let groups = groups.into_iter().filter(|(ports, _)| !ports.is_empty());
        groups.map(|(ports, ends)| backends(port.protocol, ports, service.affinity, ends)).collect()
    }

    /// With `externalTrafficPolicy: Local`, the port of another node leads to that node's backends alone.
    fn of_other_nodes(
        &mut self,
        name: &str,
        port: &ServicePort,
        endpoints: &Endpoints<'_>,
        is_v4: bool,
    ) -> Vec<(BTreeSet<ServiceKey>, Ends)> {
        let others = self.inputs.cluster.nodes.values().filter(|node| node.name != self.inputs.node);
        let mut groups = Vec::new();
        for node in others {
            let addresses = node.addresses.iter().filter(|address| address.is_ipv4() == is_v4);
            let keys: BTreeSet<ServiceKey> = addresses
                .map(|address| key(Address::from(*address), port.node_port, port.protocol))
                .filter(|key| *self.taken.entry(*key).or_insert_with(|| name.to_owned()) == name)
                .collect();
            groups.push((keys, endpoints.eligible(Some(&node.name), self.inputs)));
        }
        groups
    }

    /// The port, if nobody else has it: neither another service, nor a pod by its address.
    fn claim(&mut self, plan: &Plan, name: &str, key: ServiceKey) -> Option<ServiceKey> {
        let at = || format!("{} port {}", key.address.to_ip(), u16::from_be_bytes(key.port));
        let owner = plan.addresses.get(&key.address);
        if owner.is_some_and(|entry| !identity::is_reserved(entry.identity)) {
            let why = format!("Address: {} is a pod's address; it is not translated there", at());
            self.refused.push((name.to_owned(), why));
            return None;
        }
        let holder = self.taken.entry(key).or_insert_with(|| name.to_owned());
        if holder != name {
            let why = format!("Address: {} is Service {holder}'s; it is not translated there", at());
            self.refused.push((name.to_owned(), why));
            return None;
        }
        Some(key)
    }
}

fn key(address: Address, port: u16, protocol: u8) -> ServiceKey {
    ServiceKey { address, port: port.to_be_bytes(), protocol, pad: [0; 5] }
}

fn backends(protocol: u8, ports: BTreeSet<ServiceKey>, affinity: u32, ends: Ends) -> Backends {
    // SCTP's checksum covers the ports and all else, so programs leave them as they are.
    let asked: BTreeSet<u16> = ports.iter().map(|key| u16::from_be_bytes(key.port)).collect();
    let serves = |end: &(Address, u16)| protocol != SCTP || asked.iter().all(|port| *port == end.1);
    Backends { ports, affinity, backends: ends.into_iter().filter(serves).collect() }
}

/// The endpoints behind a port of a service, in one family.
struct Endpoints<'a> {
    all: Vec<(&'a ServiceEndpoint, Address, u16)>,
}

impl<'a> Endpoints<'a> {
    fn of(service: &'a Service, port: &ServicePort, is_v4: bool) -> Self {
        let mut all = Vec::new();
        for slice in &service.slices {
            let named =
                |one: &&crate::cluster::SlicePort| one.name == port.name && one.protocol == port.protocol;
            let Some(number) = slice.ports.iter().find(named).map(|one| one.port) else { continue };
            for endpoint in &slice.endpoints {
                let addresses = endpoint.addresses.iter().filter(|address| address.is_ipv4() == is_v4);
                all.extend(addresses.map(|address| (endpoint, Address::from(*address), number)));
            }
        }
        Self { all }
    }

    /// Those that take a new connection: on this node alone, or, without one, those that are meant for here.
    fn eligible(&self, node: Option<&str>, inputs: &Inputs<'_>) -> Ends {
        let of_node =
            |endpoint: &ServiceEndpoint| node.is_none_or(|node| endpoint.node.as_deref() == Some(node));
        let those = |fits: &dyn Fn(&ServiceEndpoint) -> bool| -> Vec<_> {
            self.all.iter().filter(|(endpoint, ..)| of_node(endpoint) && fits(endpoint)).copied().collect()
        };
        let ready = those(&|endpoint| endpoint.is_ready);
        let chosen = match (ready.is_empty(), node) {
            (true, _) => those(&|endpoint| endpoint.is_last_resort),
            (false, Some(_)) => ready,
            (false, None) => nearest(ready, inputs),
        };
        chosen.into_iter().map(|(_, address, port)| (address, port)).collect()
    }
}

type Candidates<'a> = Vec<(&'a ServiceEndpoint, Address, u16)>;

/// Those that hints mean for this node, or for its zone; all where hints are missing or mean nobody.
fn nearest<'a>(ready: Candidates<'a>, inputs: &Inputs<'_>) -> Candidates<'a> {
    let zone = inputs.cluster.surroundings.nodes.get(inputs.node);
    let zone = zone.and_then(|node| node.labels.get(Source::K8s, ZONE));
    let by = |hints: fn(&ServiceEndpoint) -> &[String], wanted: Option<&str>| -> Option<Candidates<'a>> {
        let wanted = wanted?;
        if ready.iter().any(|(endpoint, ..)| hints(endpoint).is_empty()) {
            return None;
        }
        let meant = |(endpoint, ..): &&(&ServiceEndpoint, Address, u16)| {
            hints(endpoint).iter().any(|hint| hint == wanted)
        };
        let meant: Candidates<'a> = ready.iter().filter(meant).copied().collect();
        (!meant.is_empty()).then_some(meant)
    };
    by(|endpoint| &endpoint.for_nodes, Some(inputs.node))
        .or_else(|| by(|endpoint| &endpoint.for_zones, zone))
        .unwrap_or(ready)
}

#[cfg(test)]
mod tests;
