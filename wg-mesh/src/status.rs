//! What a device is and has done: the answer to `status`.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Desired, Peer, PresharedKey, PublicKey};

/// Which implementation moves the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// The tunnel process of this crate.
    Userspace,
    /// A fake in memory, for tests.
    Memory,
}

impl BackendKind {
    /// The word for it in output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Memory => "memory",
        }
    }
}

/// State of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Our own key. It changes when the tunnel process starts anew.
    pub public_key: PublicKey,
    /// Name of the network interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// Where it listens; nothing before the first desired state has come.
    pub listen_port: Option<u16>,
    /// The interface's MTU.
    pub mtu: u16,
    /// The peers, ordered by key.
    pub peers: Vec<PeerStatus>,
    /// Which implementation this is.
    pub backend: BackendKind,
    /// What it carried and what it dropped.
    #[serde(default)]
    pub counters: Counters,
}

/// State of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Who it is.
    pub public_key: PublicKey,
    /// Where packets go to now: where it was last heard from.
    pub endpoint: SocketAddr,
    /// Where the desired state has it.
    pub configured_endpoint: SocketAddr,
    /// Its addresses.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds between keepalives.
    #[serde(default)]
    pub persistent_keepalive: Option<u16>,
    /// Its pre-shared key, without the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKey>,
    /// For how long a handshake with that key has been awaited; nothing once one was done. Longer than some
    /// seconds means that the peer has another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekeying: Option<Duration>,
    /// Time since the last completed handshake.
    #[serde(default)]
    pub last_handshake: Option<Duration>,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
}

/// Packets of a device since it started. Each dropped packet is in exactly one of the drops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Inner packets encrypted and handed to the underlay.
    pub tx_packets: u64,
    /// Inner packets decrypted and handed to the interface.
    pub rx_packets: u64,
    /// From the interface: no peer has the destination.
    pub dropped_no_peer: u64,
    /// From the interface: not an IP packet, or larger than the MTU.
    pub dropped_malformed: u64,
    /// From the interface: our own encrypted packet, routed back into the tunnel.
    pub dropped_loop: u64,
    /// From the interface: waited for a handshake longer than the queue is.
    pub dropped_queue_full: u64,
    /// The underlay's socket refused it, or there is none yet.
    pub dropped_send: u64,
    /// From a peer: the source is not among its allowed IPs.
    pub dropped_source: u64,
    /// From the underlay: no peer of ours, a replay, or forged.
    pub dropped_refused: u64,
    /// From the underlay: more handshakes from one address than are answered.
    pub dropped_flood: u64,
    /// Decrypted, but the interface refused it.
    pub dropped_interface: u64,
}

impl Status {
    /// The desired state that this state answers to; nothing before one was applied.
    #[must_use]
    pub fn observed(&self) -> Option<Desired> {
        let peers = self.peers.iter().map(|peer| (peer.public_key, peer.as_desired())).collect();
        Some(Desired { listen_port: self.listen_port?, mtu: self.mtu, peers })
    }
}

impl PeerStatus {
    fn as_desired(&self) -> Peer {
        Peer {
            public_key: self.public_key,
            endpoint: self.configured_endpoint,
            allowed_ips: self.allowed_ips.clone(),
            persistent_keepalive: self.persistent_keepalive,
            preshared_key: self.preshared_key.clone(),
        }
    }
}
