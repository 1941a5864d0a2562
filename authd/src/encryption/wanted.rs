//! What tunnel and routes shall be, from sessions and cluster state. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use auth_ebpf_abi::{NodeEntry, NodeNumber};
use ipnet::IpNet;
use wg_mesh::{
    Desired, Invalid, Peer, PublicKey, Status,
    steering::{DEFAULT_TABLE, Flow, Sources, Steering},
};

use super::Enforced;
use crate::{
    clock::BootTime,
    cluster::{Cluster, Node},
    config::EncryptionConfig,
    outside::OutsideRanges,
    peer::{Session, SessionMap},
};

/// What it is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) node: &'a str,
    pub(super) sessions: &'a SessionMap,
    /// Nodes in the pinned map: those that this process or an earlier one has had a session with.
    pub(super) known: &'a BTreeMap<NodeNumber, NodeEntry>,
    /// The tunnel as it answers now.
    pub(super) observed: Option<&'a Status>,
    pub(super) config: &'a EncryptionConfig,
    /// Those of the configuration that are in use.
    pub(super) outside: &'a OutsideRanges,
    pub(super) handshake_port: u16,
    pub(super) enforced: Enforced,
    pub(super) mtu: u16,
    pub(super) now: BootTime,
}

/// What shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) desired: Desired,
    /// `None`: no routes at all.
    pub(super) steering: Option<Steering>,
    pub(super) nodes: BTreeMap<PublicKey, String>,
    /// Why a node has no peer although it has a session.
    pub(super) refused: BTreeMap<String, String>,
}

impl Wanted {
    pub(super) fn make(inputs: &Inputs<'_>) -> Self {
        let mut nodes = BTreeMap::new();
        let mut desired =
            Desired { listen_port: inputs.config.port.get(), mtu: inputs.mtu, peers: BTreeMap::new() };
        let revoked = &inputs.cluster.revoked.nodes;
        let others = inputs.cluster.nodes.values();
        let others = others.filter(|node| node.name != inputs.node && !revoked.contains(&node.name));
        for node in others {
            let Some(peer) = of_session(inputs, node).or_else(|| of_tunnel(inputs, node)) else { continue };
            nodes.insert(peer.public_key, node.name.clone());
            desired.peers.insert(peer.public_key, peer);
        }
        let refused = leave_out(inputs, &mut desired, &mut nodes);
        let steering = (inputs.enforced != Enforced::Off).then(|| steering(inputs, &desired.peers));
        Self { desired, steering, nodes, refused }
    }
}

/// Leaves out peers that the device would refuse, and says why. A device takes a desired state whole or not at
/// all, and what one node announces or claims must cost that node alone. Of two that claim the same addresses
/// the one with the lower number, which is older, stays.
fn leave_out(
    inputs: &Inputs<'_>,
    desired: &mut Desired,
    nodes: &mut BTreeMap<PublicKey, String>,
) -> BTreeMap<String, String> {
    let own_key = inputs.observed.map(|status| &status.public_key);
    let own = inputs.cluster.nodes.get(inputs.node).map(|own| allowed_ips(inputs, own));
    let own: Vec<IpNet> = own.into_iter().flatten().collect();
    let ours = |net: &IpNet| own.iter().any(|own| own.contains(net) || net.contains(own));
    let number = |name: &String| inputs.cluster.nodes.get(name).and_then(|node| node.number);
    let numbers: BTreeMap<PublicKey, NodeNumber> =
        nodes.iter().filter_map(|(key, name)| Some((*key, number(name)?))).collect();
    let mut refused = BTreeMap::new();
    let mut leave = |desired: &mut Desired, key: PublicKey, why: String| {
        desired.peers.remove(&key);
        refused.extend(nodes.remove(&key).map(|node| (node, why)));
    };
    let thieves = desired.peers.values().filter_map(|peer| {
        if let Some(net) = peer.allowed_ips.iter().find(|net| ours(net)) {
            return Some((peer.public_key, format!("claims {net}, which is this node's")));
        }
        let outside = outside_of(inputs, numbers.get(&peer.public_key).copied());
        let mut claims = peer.allowed_ips.iter().filter(|net| !outside.contains(net));
        let (net, range) = claims.find_map(|net| Some((net, inputs.outside.over(net)?)))?;
        Some((peer.public_key, format!("claims {net}, which overlaps {range} of outside-ranges")))
    });
    for (key, why) in thieves.collect::<Vec<_>>() {
        leave(desired, key, why);
    }
    while let Err(invalid) = desired.check(own_key) {
        let why = invalid.to_string();
        match invalid {
            Invalid::Peer { peer, .. } => leave(desired, peer, why),
            Invalid::Overlap { first, second, .. } => {
                let younger = if numbers.get(&first) > numbers.get(&second) { first } else { second };
                leave(desired, younger, why);
            }
            Invalid::ListenPort | Invalid::Mtu(_) => break,
        }
    }
    refused
}

/// The peer that the node's session vouches for, also after that is lost, until the grace has passed.
fn of_session(inputs: &Inputs<'_>, node: &Node) -> Option<Peer> {
    let session = inputs.sessions.get(&node.name)?;
    if session.ends.saturating_add(inputs.config.svid_grace) <= inputs.now {
        return None;
    }
    peer(inputs, session, allowed_ips(inputs, node))
}

/// Without a pre-shared key there is no peer. After a restart the tunnel has one already, for the same peer.
fn peer(inputs: &Inputs<'_>, session: &Session, allowed_ips: BTreeSet<IpNet>) -> Option<Peer> {
    let public_key = PublicKey::from_bytes(session.wireguard_key?).ok()?;
    let observed = || {
        let peer = inputs.observed?.peers.iter().find(|peer| peer.public_key == public_key)?;
        peer.preshared_key.clone()
    };
    let preshared_key = session.preshared_key.clone().or_else(observed)?;
    Some(Peer {
        public_key,
        endpoint: session.wireguard_endpoint,
        allowed_ips,
        persistent_keepalive: None,
        preshared_key: Some(preshared_key),
    })
}

/// The peer that the tunnel has for a node which this process has had no session with yet: an earlier one
/// has put it there, and its time has not run out.
fn of_tunnel(inputs: &Inputs<'_>, node: &Node) -> Option<Peer> {
    if inputs.sessions.contains_key(&node.name) {
        return None;
    }
    let known = inputs.known.get(&node.number?)?;
    let expected = allowed_ips(inputs, node);
    let peer = inputs.observed?.peers.iter().find(|peer| peer.allowed_ips == expected)?;
    (BootTime(known.expires) > inputs.now).then_some(Peer {
        public_key: peer.public_key,
        endpoint: peer.configured_endpoint,
        allowed_ips: expected,
        persistent_keepalive: peer.persistent_keepalive,
        // Its fingerprint: the one that the tunnel has.
        preshared_key: peer.preshared_key.clone(),
    })
}

/// The node's own addresses, those of its pods, and what it has of the world.
fn allowed_ips(inputs: &Inputs<'_>, node: &Node) -> BTreeSet<IpNet> {
    let own = node.addresses.iter().map(|address| IpNet::from(*address));
    own.chain(pods_of(inputs.cluster, node)).chain(outside_of(inputs, node.number)).collect()
}

/// The addresses under which a node forwards what comes from outside.
fn outside_of(inputs: &Inputs<'_>, number: Option<NodeNumber>) -> BTreeSet<IpNet> {
    number.into_iter().flat_map(|number| inputs.outside.of(number)).map(IpNet::from).collect()
}

/// The addresses of a node's pods: by range where it has any, else one by one.
fn pods_of(cluster: &Cluster, node: &Node) -> BTreeSet<IpNet> {
    if !node.pod_cidrs.is_empty() {
        return node.pod_cidrs.iter().copied().collect();
    }
    let pods = cluster.local_pods(&node.name).filter(|pod| !pod.host_network);
    pods.flat_map(|pod| &pod.addresses).map(|address| IpNet::from(*address)).collect()
}

fn steering(inputs: &Inputs<'_>, peers: &BTreeMap<PublicKey, Peer>) -> Steering {
    let own = inputs.cluster.nodes.get(inputs.node);
    let addresses = own.map(|node| node.addresses.as_slice()).unwrap_or_default();
    let sources = Sources {
        v4: addresses.iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None }),
        v6: addresses.iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None }),
    };
    let ranges = inputs.cluster.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied());
    let guarded = match inputs.enforced {
        Enforced::Yes => {
            let configured = inputs.config.cluster_cidrs.iter().chain(inputs.outside.nets()).copied();
            configured.chain(ranges).collect()
        }
        Enforced::No | Enforced::Off => BTreeSet::new(),
    };
    Steering {
        table: DEFAULT_TABLE,
        ifindex: inputs.observed.map(|status| status.ifindex),
        routes: peers.values().flat_map(|peer| peer.allowed_ips.iter().copied()).collect(),
        sources,
        local: own.map(|node| pods_of(inputs.cluster, node)).unwrap_or_default(),
        guarded,
        bootstrap: Flow::wireguard(inputs.config.port.get())
            .into_iter()
            .chain(Flow::tcp(inputs.handshake_port))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
