//! Configuration of the node daemon: flags over environment over file over defaults, validated once.
//!
//! [`Settings`] is what people write, every key optional; [`Config`] is what the daemon runs on, valid by
//! construction. Errors name the key, the value and the way out.

pub(crate) mod settings;
pub(crate) mod value;

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    path::{Path, PathBuf},
    time::Duration,
};

use auth_ebpf::Mechanism;
use auth_ebpf_abi::Mode;
use ipnet::IpNet;
use spiffe::TrustDomain;
use spire_adapter::tls::Groups;

pub use settings::Settings;
pub use value::{DEFAULT_SPIFFE_ID_TEMPLATE, parse_cluster_name, parse_duration, parse_spiffe_id_template};
use value::{duration, interface_name, mode, net, node_name, socket_path};

use crate::{
    cluster::Site,
    logging::{Format, LogConfig},
    outside::OutsideRanges,
    peer::{Naming, PairProof},
    svids::Choice,
};

/// Where `authctl` finds the daemon.
pub const DEFAULT_API_SOCKET: &str = "/run/authd/authd.sock";
/// Where the daemon finds its tunnel process.
pub const DEFAULT_TUNNEL_SOCKET: &str = "/run/authd/tunnel.sock";
/// Where maps and links are pinned.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/authd";
/// Name of the WireGuard device.
pub const DEFAULT_WIREGUARD_INTERFACE: &str = "authd0";
pub(crate) const DEFAULT_WORKLOAD_SOCKET: &str = "/run/spire/sockets/agent/agent.sock";
const DEFAULT_ADMIN_SOCKET: &str = "/run/spire/sockets/admin.sock";
const DEFAULT_BROKER_SOCKET: &str = "/run/spire/sockets/broker.sock";
pub(crate) const DEFAULT_CLUSTER_DIR: &str = "/etc/authd/cluster";
const DEFAULT_HTTP_ADDRESS: &str = "[::]:9465";
const DEFAULT_HANDSHAKE_PORT: u16 = 4250;
const DEFAULT_WIREGUARD_PORT: u16 = 51871;
const DEFAULT_SVID_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of `--config` can't be read.
    #[error("configuration file {path}: {source}; check --config (AUTHD_CONFIG)")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not YAML, or has a key that does not exist.
    #[error("configuration file {path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A key without default is missing.
    #[error("{key} is missing: set --{key}, {env} or `{key}:` in the configuration file", env = env_name(.key))]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value makes no sense.
    #[error("{key}: {value:?} {reason}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
}

/// The environment variable of a key.
fn env_name(key: &str) -> String {
    format!("AUTHD_{}", key.to_ascii_uppercase().replace('-', "_"))
}

/// What the node daemon runs on.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node in the cluster state.
    pub node_name: String,
    /// Name of this cluster in the labels of identities.
    pub cluster_name: String,
    /// Directory of manifests.
    pub cluster_dir: PathBuf,
    /// SPIRE and the names it gives.
    pub spire: SpireConfig,
    /// Unix socket of the gRPC API.
    pub api_socket: PathBuf,
    /// Directory of pinned maps and links.
    pub pin_dir: PathBuf,
    /// Where metrics and health are served.
    pub http_address: SocketAddr,
    /// TCP port of node sessions and identity handshakes.
    pub handshake_port: NonZeroU16,
    /// Key exchange groups of sessions and handshakes.
    pub key_exchange: Groups,
    /// How pairs are proven to other nodes.
    pub pair_proof: PairProof,
    /// Pairs that are authenticated ahead of traffic.
    pub preauthenticate: usize,
    /// Tunnel and steering.
    pub encryption: EncryptionConfig,
    /// How programs are attached; `None` for what the kernel has.
    pub attach: Option<Mechanism>,
    /// Whether a packet that policy or authentication refuses drops.
    pub policy_mode: Mode,
    /// Whether a packet that only lacks authentication waits for it.
    pub hold: bool,
    /// Whether packets between pods here go from interface to interface, round the host's stack.
    pub forwards_directly: bool,
    /// How to log.
    pub log: LogConfig,
}

/// SPIRE and the names it gives.
#[derive(Clone, Debug)]
pub struct SpireConfig {
    /// Trust domain of this cluster.
    pub trust_domain: TrustDomain,
    /// How identities and nodes are called.
    pub naming: Naming,
    /// The agent's Workload API socket.
    pub workload_socket: PathBuf,
    /// The agent's admin socket (Delegated Identity API).
    pub admin_socket: PathBuf,
    /// The agent's Broker API socket.
    pub broker_socket: PathBuf,
    /// Which of the two gives the SVIDs of identities.
    pub source: Choice,
}

/// Tunnel and steering.
#[derive(Clone, Debug)]
pub struct EncryptionConfig {
    /// Whether a packet that would cross the wire in the clear drops.
    pub mode: Mode,
    /// Whether a rule that wants encryption drops what stays on one node.
    pub drops_same_node: bool,
    /// Control socket of `authd tunnel`.
    pub tunnel_socket: PathBuf,
    /// Name of the WireGuard device.
    pub interface: String,
    /// UDP port of WireGuard.
    pub port: NonZeroU16,
    /// Interfaces that lead to other nodes; empty for those that carry the node's addresses.
    pub uplinks: Vec<String>,
    /// Ranges whose addresses belong to this cluster: an unknown one in them is undecidable.
    pub cluster_cidrs: Vec<IpNet>,
    /// Ranges of the addresses under which nodes forward what comes from outside.
    pub outside: OutsideRanges,
    /// How long tunnels outlive their peer's SVID while SPIRE is away.
    pub svid_grace: Duration,
}

impl Config {
    /// Reads `file` if there is one, lays `overrides` (flags and environment) over it, and validates.
    ///
    /// # Errors
    /// The first key that is unreadable, unknown, missing or makes no sense.
    pub fn load(file: Option<&Path>, overrides: Settings) -> Result<Self, ConfigError> {
        let from_file = match file {
            Some(path) => settings::read(path)?,
            None => Settings::default(),
        };
        Self::from_settings(overrides.or(from_file))
    }

    /// Where the manifests are read.
    #[must_use]
    pub fn site(&self) -> Site {
        Site {
            cluster: self.cluster_name.clone(),
            node: Some(self.node_name.clone()),
            sharing: self.spire.naming.sharing(),
        }
    }

    fn from_settings(settings: Settings) -> Result<Self, ConfigError> {
        let spire = SpireConfig::from_settings(&settings)?;
        let encryption = EncryptionConfig::from_settings(&settings)?;
        let handshake_port =
            value::port("handshake-port", settings.handshake_port.unwrap_or(DEFAULT_HANDSHAKE_PORT))?;
        Ok(Self {
            node_name: node_name(settings.node_name)?,
            cluster_name: value::cluster_name(settings.cluster_name)?,
            cluster_dir: settings.cluster_dir.unwrap_or_else(|| DEFAULT_CLUSTER_DIR.into()),
            spire,
            api_socket: socket_path("api-socket", settings.api_socket, DEFAULT_API_SOCKET)?,
            attach: settings.attach.as_deref().map(|text| value::mechanism("attach", text)).transpose()?,
            pin_dir: settings.pin_dir.unwrap_or_else(|| DEFAULT_PIN_DIR.into()),
            http_address: value::parse(
                "http-address",
                settings.http_address.as_deref().unwrap_or(DEFAULT_HTTP_ADDRESS),
                "is no address and port such as 127.0.0.1:9465 or [::]:9465",
            )?,
            handshake_port,
            key_exchange: value::groups("key-exchange", settings.key_exchange.as_deref())?,
            pair_proof: value::pair_proof("pair-proof", settings.pair_proof.as_deref())?,
            preauthenticate: settings.preauthenticate.unwrap_or_default(),
            encryption,
            policy_mode: mode("policy-mode", settings.policy_mode.as_deref())?,
            hold: value::switch("hold", settings.hold.as_deref())?,
            forwards_directly: value::is_second(
                "same-node-forwarding",
                settings.same_node_forwarding.as_deref(),
                ["host", "direct"],
            )?,
            log: LogConfig {
                format: Format::from_setting(settings.log_format.as_deref())?,
                level: settings.log_level.unwrap_or_else(|| "info".into()),
            },
        })
    }
}

impl SpireConfig {
    fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let trust_domain =
            settings.trust_domain.as_deref().ok_or(ConfigError::Missing { key: "trust-domain" })?;
        let trust_domain: TrustDomain = value::trust_domain(trust_domain)?;
        let cluster = value::cluster_name(settings.cluster_name.clone())?;
        let naming = value::naming(&trust_domain, settings.spiffe_id_template.as_deref(), &cluster)?;
        Ok(Self {
            trust_domain,
            naming,
            workload_socket: socket_path(
                "workload-socket",
                settings.workload_socket.clone(),
                DEFAULT_WORKLOAD_SOCKET,
            )?,
            admin_socket: socket_path("admin-socket", settings.admin_socket.clone(), DEFAULT_ADMIN_SOCKET)?,
            broker_socket: socket_path(
                "broker-socket",
                settings.broker_socket.clone(),
                DEFAULT_BROKER_SOCKET,
            )?,
            source: value::svid_source("svid-source", settings.svid_source.as_deref())?,
        })
    }
}

impl EncryptionConfig {
    fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let cidrs = settings.cluster_cidrs.iter().flatten();
        let cluster_cidrs: Vec<IpNet> =
            cidrs.map(|cidr| net("cluster-cidrs", cidr)).collect::<Result<_, _>>()?;
        Ok(Self {
            mode: mode("encryption-mode", settings.encryption_mode.as_deref())?,
            drops_same_node: value::is_second(
                "same-node-encryption",
                settings.same_node_encryption.as_deref(),
                ["exempt", "drop"],
            )?,
            tunnel_socket: socket_path(
                "tunnel-socket",
                settings.tunnel_socket.clone(),
                DEFAULT_TUNNEL_SOCKET,
            )?,
            interface: interface_name(
                "wireguard-interface",
                settings.wireguard_interface.as_deref().unwrap_or(DEFAULT_WIREGUARD_INTERFACE),
            )?,
            port: value::port("wireguard-port", settings.wireguard_port.unwrap_or(DEFAULT_WIREGUARD_PORT))?,
            uplinks: settings
                .uplinks
                .iter()
                .flatten()
                .map(|name| interface_name("uplinks", name))
                .collect::<Result<_, _>>()?,
            outside: value::outside_ranges(
                "outside-ranges",
                settings.outside_ranges.as_deref(),
                &cluster_cidrs,
            )?,
            cluster_cidrs,
            svid_grace: match &settings.svid_grace {
                Some(text) => duration("svid-grace", text)?,
                None => DEFAULT_SVID_GRACE,
            },
        })
    }
}

#[cfg(test)]
mod tests;
