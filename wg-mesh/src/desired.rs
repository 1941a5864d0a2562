//! What the mesh of this node shall be, and what may not be asked for.
//!
//! On the wire peers are a list; in memory they are ordered by key, so that equal meshes compare equal.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{PresharedKey, PublicKey};

/// WireGuard's port where nothing else is asked for.
pub const DEFAULT_LISTEN_PORT: u16 = 51_871;
/// What an underlay of 1500 bytes leaves after IPv6, UDP and WireGuard headers.
pub const DEFAULT_MTU: u16 = 1420;
/// The least that IPv6 demands of a link.
const MIN_MTU: u16 = 1280;
/// With headers and padding on top a datagram still fits into 65,535 bytes.
const MAX_MTU: u16 = 65_424;

/// A node at the other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where to reach it first; it may roam from there.
    pub endpoint: SocketAddr,
    /// What is sent to it, and the only sources that are accepted from it.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds after which an idle tunnel sends an empty packet.
    #[serde(default)]
    pub persistent_keepalive: Option<u16>,
    /// What is mixed into its handshakes. It is changed without a gap: the one before goes on until a
    /// handshake with the new one is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKey>,
}

/// The full desired state of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// The UDP port to listen on, at every address of the node.
    pub listen_port: u16,
    /// The largest packet the device takes.
    pub mtu: u16,
    /// The peers, by their keys.
    #[serde(with = "as_list")]
    pub peers: BTreeMap<PublicKey, Peer>,
}

impl Default for Desired {
    fn default() -> Self {
        Self { listen_port: DEFAULT_LISTEN_PORT, mtu: DEFAULT_MTU, peers: BTreeMap::new() }
    }
}

/// A field of a peer, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerField {
    /// `public_key`
    PublicKey,
    /// `endpoint`
    Endpoint,
    /// `allowed_ips`
    AllowedIps,
    /// `persistent_keepalive`
    PersistentKeepalive,
    /// `preshared_key`
    PresharedKey,
}

impl PeerField {
    /// The name that it has in the protocol.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PublicKey => "public_key",
            Self::Endpoint => "endpoint",
            Self::AllowedIps => "allowed_ips",
            Self::PersistentKeepalive => "persistent_keepalive",
            Self::PresharedKey => "preshared_key",
        }
    }
}

impl fmt::Display for PeerField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a desired state cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Port 0 would be another one after every restart.
    #[error("listen_port is 0; name the port that peers send to")]
    ListenPort,
    /// Outside of what IPv6 demands and a datagram can carry.
    #[error("mtu {0} is not between {MIN_MTU} and {MAX_MTU}")]
    Mtu(u16),
    /// A field of one peer.
    #[error("peer {peer}: {field} {problem}")]
    Peer {
        /// Whose field.
        peer: PublicKey,
        /// Which field.
        field: PeerField,
        /// What is wrong with it.
        problem: String,
    },
    /// Two peers claim the same addresses, so neither could be believed.
    #[error("peer {second}: allowed_ips {second_net} overlaps {first_net} of peer {first}")]
    Overlap {
        /// Who has it.
        first: PublicKey,
        /// What it has.
        first_net: IpNet,
        /// Who claims it too.
        second: PublicKey,
        /// What it claims.
        second_net: IpNet,
    },
}

impl Invalid {
    /// The field at fault, as it is called in the protocol.
    #[must_use]
    pub fn field(&self) -> String {
        match self {
            Self::ListenPort => "listen_port".into(),
            Self::Mtu(_) => "mtu".into(),
            Self::Peer { peer, field, .. } => format!("peers[{peer}].{field}"),
            Self::Overlap { second, .. } => format!("peers[{second}].allowed_ips"),
        }
    }
}

impl Desired {
    /// Checks all that can be known without a device. `own` is the key of the device it is meant for.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is wrong.
    pub fn check(&self, own: Option<&PublicKey>) -> Result<(), Invalid> {
        if self.listen_port == 0 {
            return Err(Invalid::ListenPort);
        }
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(Invalid::Mtu(self.mtu));
        }
        for (key, peer) in &self.peers {
            peer.check(key, own)?;
        }
        self.check_overlaps()
    }

    /// Prefixes nest or are disjoint, so in order each can only overlap the widest one before it.
    fn check_overlaps(&self) -> Result<(), Invalid> {
        let claims =
            self.peers.iter().flat_map(|(key, peer)| peer.allowed_ips.iter().map(move |net| (net, key)));
        let mut sorted: Vec<(&IpNet, &PublicKey)> = claims.collect();
        sorted.sort_unstable_by_key(|(net, key)| (net.network(), net.prefix_len(), **key));
        let mut enclosing: Option<(&IpNet, &PublicKey)> = None;
        for (net, key) in sorted {
            match enclosing {
                Some((outer, holder)) if outer.contains(net) => {
                    if holder != key {
                        return Err(Invalid::Overlap {
                            first: *holder,
                            first_net: *outer,
                            second: *key,
                            second_net: *net,
                        });
                    }
                }
                _ => enclosing = Some((net, key)),
            }
        }
        Ok(())
    }
}

impl Peer {
    fn check(&self, key: &PublicKey, own: Option<&PublicKey>) -> Result<(), Invalid> {
        let invalid = |field, problem: String| Err(Invalid::Peer { peer: *key, field, problem });
        if self.public_key != *key {
            return invalid(
                PeerField::PublicKey,
                format!("{} is not the one it is listed under", self.public_key),
            );
        }
        if own == Some(key) {
            return invalid(PeerField::PublicKey, "is this node's own".into());
        }
        let address = self.endpoint.ip();
        if self.endpoint.port() == 0
            || address.is_unspecified()
            || address.is_multicast()
            || is_broadcast(address)
        {
            return invalid(PeerField::Endpoint, format!("{} cannot be sent to", self.endpoint));
        }
        if let Some(net) = self.allowed_ips.iter().find(|net| net.trunc() != **net) {
            return invalid(PeerField::AllowedIps, format!("{net} has host bits set; write {}", net.trunc()));
        }
        if self.persistent_keepalive == Some(0) {
            return invalid(PeerField::PersistentKeepalive, "is 0; leave it out to send none".into());
        }
        Ok(())
    }
}

const fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

/// Peers as a list on the wire, in which no key may come twice.
mod as_list {
    use serde::{Deserializer, Serializer, de::Error as _};

    use super::{BTreeMap, Deserialize, Entry, Peer, PublicKey};

    pub(super) fn serialize<S: Serializer>(
        peers: &BTreeMap<PublicKey, Peer>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(peers.values())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<PublicKey, Peer>, D::Error> {
        let mut peers = BTreeMap::new();
        for peer in Vec::<Peer>::deserialize(deserializer)? {
            match peers.entry(peer.public_key) {
                Entry::Vacant(slot) => slot.insert(peer),
                Entry::Occupied(_) => {
                    return Err(D::Error::custom(format_args!("peer {} is listed twice", peer.public_key)));
                }
            };
        }
        Ok(peers)
    }
}
