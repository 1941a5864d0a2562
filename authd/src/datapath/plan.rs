//! What the maps shall hold, from cluster state, interfaces and sessions. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use auth_ebpf::Backends;
use auth_ebpf_abi::{
    Address, AddressEntry, AddressFlags, EndpointEntry, IdentityNumber, NodeEntry, NodeNumber, identity,
};
use ipnet::IpNet;

use policy::prefix_key;

use super::{
    host_end::{Refusal, host_end},
    interfaces::Interfaces,
};
use crate::{
    clock::BootTime,
    cluster::{Cluster, Pod},
    handover::{Claims, withheld},
    outside::OutsideRanges,
};

/// What the plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Cluster state.
    pub cluster: &'a Cluster,
    /// Name of this node.
    pub node: &'a str,
    /// This node's interfaces.
    pub interfaces: &'a Interfaces,
    /// Configured ranges of the cluster; empty for the nodes' pod ranges.
    pub cluster_cidrs: &'a [IpNet],
    /// Ranges of the addresses under which nodes forward what comes from outside.
    pub outside: &'a OutsideRanges,
    /// Until when each node's session counts, tunnels' grace included, and its epoch.
    pub sessions: &'a BTreeMap<NodeNumber, (BootTime, u32)>,
    /// Index of the host end where each pod was found before, by its name.
    pub before: &'a BTreeMap<String, u32>,
    /// Whether packets between pods here go from interface to interface.
    pub forwards_directly: bool,
}

impl<'a> Inputs<'a> {
    /// The ranges of the cluster, in which nobody is the world's but those that stand for it.
    pub fn ranges(&self) -> impl Iterator<Item = &'a IpNet> {
        let of_nodes = self.cluster.nodes.values().flat_map(|node| &node.pod_cidrs);
        self.cluster_cidrs.iter().chain(of_nodes).chain(self.outside.nets())
    }
}

/// An endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Namespace and name of the pod, with a slash between.
    pub pod: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its identity, 0 while it has none.
    pub identity: IdentityNumber,
    /// Index and name of the host end of its interface.
    pub interface: Option<(u32, String)>,
    /// Why it has none, if that is known and will not change by itself.
    pub refused: Option<Refusal>,
    /// Whether what other such pods here send it goes straight there.
    pub direct: bool,
}

/// What the maps shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Who has an address.
    pub addresses: BTreeMap<Address, AddressEntry>,
    /// Ranges of the cluster.
    pub prefixes: BTreeMap<(Address, u32), AddressEntry>,
    /// Addresses of pods here, without the epochs of their assignments.
    pub endpoints: BTreeMap<Address, EndpointEntry>,
    /// Other nodes' sessions, as if they had acknowledged nothing.
    pub nodes: BTreeMap<NodeNumber, NodeEntry>,
    /// Addresses under which this node forwards what comes from outside.
    pub outside: Vec<IpAddr>,
    /// The pods here, by name.
    pub pods: Vec<Endpoint>,
    /// Services, as pods here reach them.
    pub backends: Vec<Backends>,
    /// Services that are not translated as a whole, and why.
    pub refused_services: Vec<(String, String)>,
}

impl Plan {
    /// Plans everything but the policy, which is compiled only when it changes. `claims` is what nodes say of
    /// their addresses.
    #[must_use]
    pub fn make(inputs: &Inputs<'_>, claims: &Claims) -> Self {
        let mut plan = Self::default();
        plan.nodes_and_hosts(inputs);
        for pod in inputs.cluster.pods.iter().filter(|pod| !pod.host_network) {
            plan.pod(inputs, claims, pod);
        }
        plan.outside(inputs);
        plan.ranges(inputs);
        plan.services(inputs);
        plan.nodes = inputs
            .sessions
            .iter()
            .map(|(number, (expires, epoch))| {
                (*number, NodeEntry { expires: expires.0, epoch: *epoch, acknowledged: 0 })
            })
            .collect();
        plan
    }

    fn nodes_and_hosts(&mut self, inputs: &Inputs<'_>) {
        for node in inputs.cluster.nodes.values().filter(|node| node.name != inputs.node) {
            // A node without a number can't be told from others in the maps: its addresses stay unknown.
            let Some(number) = node.number else { continue };
            let entry = AddressEntry { identity: identity::REMOTE_NODE, node: number, flags: 0 };
            self.addresses.extend(node.addresses.iter().map(|address| (Address::from(*address), entry)));
        }
        let host = AddressEntry { identity: identity::HOST, ..AddressEntry::default() };
        let own = inputs.interfaces.addresses.keys().filter(|address| !is_link_local(address));
        self.addresses.extend(own.map(|address| (Address::from(*address), host)));
    }

    fn pod(&mut self, inputs: &Inputs<'_>, claims: &Claims, pod: &Pod) {
        let local = pod.node.as_deref() == Some(inputs.node);
        let name = format!("{}/{}", pod.namespace, pod.name);
        let found = if local { host_end(inputs, pod, inputs.before.get(&name).copied()) } else { Ok(None) };
        let (index, refused) = match found {
            Ok(index) => (index, None),
            Err(refusal) => (None, Some(refusal)),
        };
        let interface = index.and_then(|index| Some((index, inputs.interfaces.names.get(&index)?.clone())));
        let direct_mtu = |address: IpAddr| {
            let index = index.filter(|_| inputs.forwards_directly)?;
            inputs.interfaces.direct_mtu(index, address)
        };
        if local {
            self.pods.push(Endpoint {
                pod: name,
                addresses: pod.addresses.clone(),
                identity: pod.identity.unwrap_or(identity::UNKNOWN),
                interface: interface.clone(),
                refused,
                direct: pod.addresses.iter().any(|address| direct_mtu(*address).is_some()),
            });
        }
        // Without an identity a pod gets no traffic: its addresses stay unknown in the cluster's ranges.
        let Some(number) = pod.identity else { return };
        let Some(node) = node_of(inputs, pod) else { return };
        for address in pod.addresses.iter().map(|address| Address::from(*address)) {
            let entry = if node != 0 && claims.contradicts(node, &address.to_ip(), number) {
                withheld(node)
            } else {
                AddressEntry { identity: number, node, flags: 0 }
            };
            self.addresses.insert(address, entry);
            if let (true, Some((ifindex, _))) = (local, &interface) {
                let endpoint = EndpointEntry {
                    identity: number,
                    ifindex: *ifindex,
                    bridge: inputs.interfaces.bridge_of(*ifindex).unwrap_or_default(),
                    direct_mtu: direct_mtu(address.to_ip()).unwrap_or_default(),
                    ..EndpointEntry::default()
                };
                self.endpoints.insert(address, endpoint);
            }
        }
    }

    /// What stands for the world at each node. Nobody else has such an address, whatever he claims.
    fn outside(&mut self, inputs: &Inputs<'_>) {
        for node in inputs.cluster.nodes.values() {
            let Some(number) = node.number else { continue };
            let addresses = inputs.outside.of(number);
            if node.name == inputs.node {
                self.outside = addresses.collect();
                continue;
            }
            let entry = AddressEntry { identity: identity::WORLD, node: number, flags: 0 };
            self.addresses.extend(addresses.map(|address| (Address::from(address), entry)));
        }
    }

    fn ranges(&mut self, inputs: &Inputs<'_>) {
        let entry = AddressEntry { flags: AddressFlags::CLUSTER_RANGE, ..AddressEntry::default() };
        self.prefixes.extend(inputs.ranges().map(|range| (prefix_key(*range), entry)));
        // A pod without a usable range or identity is undecidable by its address alone.
        let unidentified = inputs.cluster.pods.iter().filter(|pod| pod.identity.is_none());
        let addresses = unidentified.flat_map(|pod| &pod.addresses);
        self.prefixes.extend(addresses.map(|address| (prefix_key(IpNet::from(*address)), entry)));
    }

    /// Adds the identities of prefixes outside the cluster; what lies in the cluster's ranges stays theirs.
    pub fn add_prefixes(&mut self, prefixes: &BTreeMap<IpNet, IdentityNumber>, inputs: &Inputs<'_>) {
        for (net, number) in prefixes {
            if !inputs.ranges().any(|range| range.contains(net)) {
                let entry = AddressEntry { identity: *number, ..AddressEntry::default() };
                self.prefixes.entry(prefix_key(*net)).or_insert(entry);
            }
        }
    }

    /// Gives other nodes that policies choose by label their identities.
    pub fn add_nodes(&mut self, nodes: &BTreeMap<String, IdentityNumber>, inputs: &Inputs<'_>) {
        for (name, number) in nodes.iter().filter(|(name, _)| *name != inputs.node) {
            let addresses = inputs.cluster.nodes.get(name).map(|node| node.addresses.as_slice());
            for address in addresses.unwrap_or_default() {
                let entry = self.addresses.get_mut(&Address::from(*address));
                if let Some(entry) = entry.filter(|entry| entry.identity == identity::REMOTE_NODE) {
                    entry.identity = *number;
                }
            }
        }
    }

    /// Identities of the pods here: those for which policy is compiled and SVIDs are needed.
    #[must_use]
    pub fn local_identities(&self) -> BTreeSet<IdentityNumber> {
        self.pods.iter().map(|pod| pod.identity).filter(|number| !identity::is_reserved(*number)).collect()
    }
}

/// Addresses of pods here to which no host route leads by a veth pair.
pub(super) fn without_route(cluster: &Cluster, node: &str, interfaces: &Interfaces) -> BTreeSet<IpAddr> {
    let routed = |pod: &Pod| {
        let routes = pod.addresses.iter().filter_map(|address| interfaces.host_routes.get(address));
        routes.filter_map(|index| interfaces.links.get(index)).any(|link| link.kind == "veth")
    };
    let here = cluster.pods.iter().filter(|pod| !pod.host_network && pod.node.as_deref() == Some(node));
    here.filter(|pod| !routed(pod)).flat_map(|pod| pod.addresses.iter().copied()).collect()
}

/// The number of the pod's node in the maps: 0 for this one, `None` while the node has none.
fn node_of(inputs: &Inputs<'_>, pod: &Pod) -> Option<NodeNumber> {
    let name = pod.node.as_deref()?;
    if name == inputs.node { Some(0) } else { inputs.cluster.nodes.get(name)?.number }
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
