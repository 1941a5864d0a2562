//! Settings as people write them: the same names as flags, environment variables and keys of the file.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::ConfigError;

/// Defines settings once, with the merge that flags need over a file.
macro_rules! settings {
    (
        $(#[doc = $about:literal])+ $settings:ident:
        $($(#[doc = $doc:literal])+ #[arg($($arg:tt)*)] $name:ident: $type:ty,)*
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, Default, clap::Args, serde::Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct $settings {
            $($(#[doc = $doc])+ #[arg(long, $($arg)*)] pub $name: Option<$type>,)*
        }

        impl $settings {
            /// These settings, and those of `fallback` where these say nothing.
            #[must_use]
            pub fn or(self, fallback: Self) -> Self {
                Self { $($name: self.$name.or(fallback.$name),)* }
            }
        }
    };
}
pub(crate) use settings;

settings! {
    /// Every setting of the node daemon; `None` where nothing was said.
    Settings:
    /// Name of this node in the cluster state [default: the host's name]
    #[arg(env = "AUTHD_NODE_NAME", value_name = "NAME")]
    node_name: String,
    /// Name of this cluster, in the labels of identities and in SPIFFE IDs (`{cluster}`) [default: default]
    #[arg(env = "AUTHD_CLUSTER_NAME", value_name = "NAME")]
    cluster_name: String,
    /// Directory of manifests [default: /etc/authd/cluster]
    #[arg(env = "AUTHD_CLUSTER_DIR", value_name = "DIR")]
    cluster_dir: PathBuf,
    /// SPIFFE trust domain of this cluster (required)
    #[arg(env = "AUTHD_TRUST_DOMAIN", value_name = "NAME")]
    trust_domain: String,
    /// Path of an identity's SPIFFE ID, with `{id}`, or with `{namespace}` and `{serviceaccount}` for
    /// registrations that are there already; `{cluster}` where clusters share a trust domain
    /// [default: /identity/{id}]
    #[arg(env = "AUTHD_SPIFFE_ID_TEMPLATE", value_name = "PATH")]
    spiffe_id_template: String,
    /// The SPIRE agent's Workload API socket [default: /run/spire/sockets/agent/agent.sock]
    #[arg(env = "AUTHD_WORKLOAD_SOCKET", value_name = "PATH")]
    workload_socket: PathBuf,
    /// The SPIRE agent's admin socket, for delegated identities [default: /run/spire/sockets/admin.sock]
    #[arg(env = "AUTHD_ADMIN_SOCKET", value_name = "PATH")]
    admin_socket: PathBuf,
    /// The SPIRE agent's Broker API socket [default: /run/spire/sockets/broker.sock]
    #[arg(env = "AUTHD_BROKER_SOCKET", value_name = "PATH")]
    broker_socket: PathBuf,
    /// Where SVIDs of identities come from: `broker` (SPIFFE Broker API), `delegated-pid` (Delegated Identity API by
    /// pods' processes), `delegated` (the same by selectors), or `auto` for the first by which there is one
    /// [default: auto]
    #[arg(env = "AUTHD_SVID_SOURCE", value_name = "API")]
    svid_source: String,
    /// Unix socket for authctl [default: /run/authd/authd.sock]
    #[arg(env = "AUTHD_API_SOCKET", value_name = "PATH")]
    api_socket: PathBuf,
    /// Unix socket of `authd tunnel` [default: /run/authd/tunnel.sock]
    #[arg(env = "AUTHD_TUNNEL_SOCKET", value_name = "PATH")]
    tunnel_socket: PathBuf,
    /// Directory on a BPF file system for pinned maps and links [default: /sys/fs/bpf/authd]
    #[arg(env = "AUTHD_PIN_DIR", value_name = "DIR")]
    pin_dir: PathBuf,
    /// How programs are attached: `tcx`, or `clsact` as before Linux 6.6 [default: what the kernel has]
    #[arg(env = "AUTHD_ATTACH", value_name = "HOW")]
    attach: String,
    /// Address of /metrics, /healthz and /readyz [default: port 9465 of all addresses]
    #[arg(env = "AUTHD_HTTP_ADDRESS", value_name = "ADDR:PORT")]
    http_address: String,
    /// TCP port of node sessions and handshakes, the same on every node [default: 4250]
    #[arg(env = "AUTHD_HANDSHAKE_PORT", value_name = "PORT")]
    handshake_port: u16,
    /// UDP port of WireGuard [default: 51871]
    #[arg(env = "AUTHD_WIREGUARD_PORT", value_name = "PORT")]
    wireguard_port: u16,
    /// Name of the WireGuard device [default: authd0]
    #[arg(env = "AUTHD_WIREGUARD_INTERFACE", value_name = "NAME")]
    wireguard_interface: String,
    /// Interfaces that lead to other nodes [default: those that carry the node's addresses]
    #[arg(env = "AUTHD_UPLINKS", value_name = "NAME,...", value_delimiter = ',')]
    uplinks: Vec<String>,
    /// Ranges of the cluster, in which an unknown address drops [default: the nodes' pod ranges]
    #[arg(env = "AUTHD_CLUSTER_CIDRS", value_name = "CIDR,...", value_delimiter = ',')]
    cluster_cidrs: Vec<String>,
    /// Ranges of the addresses under which nodes forward to other nodes what comes from outside and is
    /// masqueraded, the same on every node, one for IPv4 (a prefix of 16 bits or fewer) and one for IPv6 (112);
    /// `none` to drop such packets [default: 198.18.0.0/16,fd41:7574:6864:6f75::/112]
    #[arg(env = "AUTHD_OUTSIDE_RANGES", value_name = "CIDR,...", value_delimiter = ',')]
    outside_ranges: Vec<String>,
    /// `enforce`, or `observe` to let pass and report what would drop [default: enforce]
    #[arg(env = "AUTHD_POLICY_MODE", value_name = "MODE")]
    policy_mode: String,
    /// The same for encryption [default: enforce]
    #[arg(env = "AUTHD_ENCRYPTION_MODE", value_name = "MODE")]
    encryption_mode: String,
    /// Whether pods of one node may talk where a rule wants encryption: `exempt`, since it never leaves the
    /// node, or `drop` [default: exempt]
    #[arg(env = "AUTHD_SAME_NODE_ENCRYPTION", value_name = "exempt|drop")]
    same_node_encryption: String,
    /// How packets get from pod to pod on one node: by way of the `host`, its routing and netfilter, or `direct`,
    /// which is faster and past both [default: host]
    #[arg(env = "AUTHD_SAME_NODE_FORWARDING", value_name = "host|direct")]
    same_node_forwarding: String,
    /// `on`, or `off` to drop the first packets of a pair rather than hold them [default: on]
    #[arg(env = "AUTHD_HOLD", value_name = "on|off")]
    hold: String,
    /// Key exchange of sessions and handshakes: `post-quantum` (X25519MLKEM768), or `any` to take classical
    /// groups too [default: post-quantum]
    #[arg(env = "AUTHD_KEY_EXCHANGE", value_name = "GROUPS")]
    key_exchange: String,
    /// How a pair is proven to another node: `session`, each identity once over the node session and a word for each
    /// pair, or `handshake`, by a TLS handshake for each pair, as with nodes that know nothing else [default: session]
    #[arg(env = "AUTHD_PAIR_PROOF", value_name = "session|handshake")]
    pair_proof: String,
    /// Pairs that are authenticated before a packet asks; 0 for none [default: 0]
    #[arg(env = "AUTHD_PREAUTHENTICATE", value_name = "PAIRS")]
    preauthenticate: usize,
    /// How long tunnels to known peers go on without a valid SVID [default: 24h]
    #[arg(env = "AUTHD_SVID_GRACE", value_name = "DURATION")]
    svid_grace: String,
    /// `json` or `text` [default: json]
    #[arg(env = "AUTHD_LOG_FORMAT", value_name = "FORMAT")]
    log_format: String,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives [default: info]
    #[arg(env = "AUTHD_LOG_LEVEL", value_name = "LEVEL")]
    log_level: String,
}

/// Reads the settings of a YAML file.
///
/// # Errors
/// The file can't be read, isn't YAML, or has an unknown key.
pub(crate) fn read<S: DeserializeOwned + Default>(path: &Path) -> Result<S, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
    if text.trim().is_empty() {
        return Ok(S::default());
    }
    serde_saphyr::from_str(&text)
        .map_err(|error| ConfigError::Malformed { path: path.into(), reason: error.to_string() })
}
