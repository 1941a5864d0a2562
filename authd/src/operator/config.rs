//! Settings of the operator: flags over environment over file over defaults, as for the daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spiffe::TrustDomain;
use spire_adapter::Selector;
use spire_adapter::registration::{GRACE, Owner};

use super::agents::AgentRule;
use crate::cluster::Site;
use crate::config::settings::{read, settings};
use crate::config::value::{self, invalid};
use crate::config::{ConfigError, DEFAULT_CLUSTER_DIR, DEFAULT_WORKLOAD_SOCKET};
use crate::logging::{Format, LogConfig};
use crate::peer::Naming;

const DEFAULT_SERVER_SOCKET: &str = "/tmp/spire-server/private/api.sock";
const DEFAULT_HTTP_ADDRESS: &str = "[::]:9466";
const DEFAULT_AGENT_SELECTOR: &str = "k8s_psat:agent_node_name:{node}";
const DEFAULT_NODE_SELECTORS: [&str; 2] = ["unix:uid:0", "unix:path:/usr/local/bin/authd"];
const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
/// What many processes of a host have in common.
const WEAK: [&str; 6] = ["uid", "user", "gid", "group", "supplementary_gid", "supplementary_group"];

settings! {
    /// Every setting of the operator; `None` where nothing was said.
    Settings:
    /// Directory of manifests [default: /etc/authd/cluster]
    #[arg(env = "AUTHD_CLUSTER_DIR", value_name = "DIR")]
    cluster_dir: PathBuf,
    /// SPIFFE trust domain of this cluster (required)
    #[arg(env = "AUTHD_TRUST_DOMAIN", value_name = "NAME")]
    trust_domain: String,
    /// Name of this cluster, in the labels of identities, in SPIFFE IDs (`{cluster}`), and in the mark of its
    /// entries at a server that clusters share [default: default]
    #[arg(env = "AUTHD_CLUSTER_NAME", value_name = "NAME")]
    cluster_name: String,
    /// Path of an identity's SPIFFE ID, as the daemons have it. Without `{id}` only nodes are registered
    /// [default: /identity/{id}]
    #[arg(env = "AUTHD_SPIFFE_ID_TEMPLATE", value_name = "PATH")]
    spiffe_id_template: String,
    /// spire-server's unix socket, where everything is allowed
    /// [default: /tmp/spire-server/private/api.sock]
    #[arg(env = "AUTHD_SERVER_SOCKET", value_name = "PATH")]
    server_socket: PathBuf,
    /// spire-server's host and port, instead of its socket: by mutual TLS as /authd/operator
    #[arg(env = "AUTHD_SERVER_ADDRESS", value_name = "HOST:PORT")]
    server_address: String,
    /// The SPIRE agent's Workload API socket, for the SVID of /authd/operator where --server-address is given
    /// [default: /run/spire/sockets/agent/agent.sock]
    #[arg(env = "AUTHD_WORKLOAD_SOCKET", value_name = "PATH")]
    workload_socket: PathBuf,
    /// What SPIRE has attested of the agent of `{node}` [default: k8s_psat:agent_node_name:{node}]
    #[arg(env = "AUTHD_AGENT_SELECTOR", value_name = "TYPE:VALUE")]
    agent_selector: String,
    /// Path of that agent's SPIFFE ID instead, such as /spire/agent/x509pop/cn/{node}
    #[arg(env = "AUTHD_AGENT_PATH", value_name = "PATH")]
    agent_path: String,
    /// What a node's agent must attest of its daemon; never user and group alone
    /// [default: unix:uid:0,unix:path:/usr/local/bin/authd]
    #[arg(env = "AUTHD_NODE_SELECTORS", value_name = "TYPE:VALUE,...", value_delimiter = ',')]
    node_selectors: Vec<String>,
    /// Lifetime of identities' SVIDs [default: the server's]
    #[arg(env = "AUTHD_SVID_TTL", value_name = "DURATION")]
    svid_ttl: String,
    /// How long an entry stays after the last pod that needed it [default: 10m]
    #[arg(env = "AUTHD_REGISTRATION_GRACE", value_name = "DURATION")]
    registration_grace: String,
    /// How often the server's entries and agents are looked at though nothing has changed [default: 30s]
    #[arg(env = "AUTHD_REGISTRATION_INTERVAL", value_name = "DURATION")]
    registration_interval: String,
    /// Address of /metrics, /healthz and /readyz [default: port 9466 of all addresses]
    #[arg(env = "AUTHD_OPERATOR_HTTP_ADDRESS", value_name = "ADDR:PORT")]
    http_address: String,
    /// `json` or `text` [default: json]
    #[arg(env = "AUTHD_LOG_FORMAT", value_name = "FORMAT")]
    log_format: String,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives [default: info]
    #[arg(env = "AUTHD_LOG_LEVEL", value_name = "LEVEL")]
    log_level: String,
}

/// What the operator runs on.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of manifests.
    pub cluster_dir: PathBuf,
    /// Whose manifests they are.
    pub site: Site,
    /// How the server is reached.
    pub server: Server,
    /// What is registered.
    pub rules: Rules,
    /// How long an unwanted entry stays.
    pub grace: Duration,
    /// How often entries and agents are looked at.
    pub interval: Duration,
    /// Where metrics and health are served.
    pub http_address: SocketAddr,
    /// How to log.
    pub log: LogConfig,
}

/// How the server is reached.
#[derive(Clone, Debug)]
pub enum Server {
    /// By its unix socket.
    Socket(PathBuf),
    /// By TCP, with an SVID from this Workload API.
    Tcp {
        /// Host and port.
        address: String,
        /// The agent's socket.
        workload_socket: PathBuf,
    },
}

/// What is registered, and below which agent.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How identities and nodes are called.
    pub naming: Naming,
    /// By which mark the operator knows its entries.
    pub owner: Owner,
    /// Which agent is a node's.
    pub agent: AgentRule,
    /// What the agent must attest of the node's daemon.
    pub node_selectors: Vec<Selector>,
    /// Lifetime of identities' SVIDs.
    pub svid_ttl: Option<Duration>,
}

impl Config {
    /// Reads `file` if there is one, lays `overrides` (flags and environment) over it, and validates.
    ///
    /// # Errors
    /// The first key that is unreadable, unknown, missing or makes no sense.
    pub fn load(file: Option<&Path>, overrides: Settings) -> Result<Self, ConfigError> {
        let from_file = file.map(read).transpose()?.unwrap_or_default();
        Self::from_settings(overrides.or(from_file))
    }

    fn from_settings(settings: Settings) -> Result<Self, ConfigError> {
        let or = |text: &Option<String>, key, default| match text {
            Some(text) => value::duration(key, text),
            None => Ok(default),
        };
        let interval = or(&settings.registration_interval, "registration-interval", DEFAULT_INTERVAL)?;
        if interval < Duration::from_secs(1) {
            return Err(invalid("registration-interval", format!("{interval:?}"), "is less than a second"));
        }
        let rules = Rules::from_settings(&settings)?;
        let site = Site {
            cluster: value::cluster_name(settings.cluster_name.clone())?,
            node: None,
            sharing: rules.naming.sharing(),
        };
        Ok(Self {
            rules,
            site,
            server: Server::from_settings(&settings)?,
            grace: or(&settings.registration_grace, "registration-grace", GRACE)?,
            interval,
            http_address: value::parse(
                "http-address",
                settings.http_address.as_deref().unwrap_or(DEFAULT_HTTP_ADDRESS),
                "is no address and port such as 127.0.0.1:9466 or [::]:9466",
            )?,
            cluster_dir: settings.cluster_dir.unwrap_or_else(|| DEFAULT_CLUSTER_DIR.into()),
            log: LogConfig {
                format: Format::from_setting(settings.log_format.as_deref())?,
                level: settings.log_level.unwrap_or_else(|| "info".into()),
            },
        })
    }
}

impl Server {
    fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let Some(address) = &settings.server_address else {
            let path = settings.server_socket.clone();
            return Ok(Self::Socket(value::socket_path("server-socket", path, DEFAULT_SERVER_SOCKET)?));
        };
        if settings.server_socket.is_some() {
            return Err(invalid("server-address", address, "is given beside server-socket; leave one out"));
        }
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port != 0)) {
            return Err(invalid("server-address", address, "is no host and port such as spire-server:8081"));
        }
        let workload = settings.workload_socket.clone();
        let workload_socket = value::socket_path("workload-socket", workload, DEFAULT_WORKLOAD_SOCKET)?;
        Ok(Self::Tcp { address: address.clone(), workload_socket })
    }
}

impl Rules {
    fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let trust_domain =
            settings.trust_domain.as_deref().ok_or(ConfigError::Missing { key: "trust-domain" })?;
        let trust_domain = value::trust_domain(trust_domain)?;
        let cluster = value::cluster_name(settings.cluster_name.clone())?;
        let naming = value::naming(&trust_domain, settings.spiffe_id_template.as_deref(), &cluster)?;
        let svid_ttl =
            settings.svid_ttl.as_deref().map(|text| value::duration("svid-ttl", text)).transpose()?;
        if let Some(ttl) = svid_ttl
            && !(10..=i32::MAX.unsigned_abs().into()).contains(&ttl.as_secs())
        {
            return Err(invalid(
                "svid-ttl",
                format!("{ttl:?}"),
                "is less than 10s, or more than SPIRE takes",
            ));
        }
        Ok(Self {
            agent: agent_rule(&trust_domain, settings)?,
            node_selectors: node_selectors(settings.node_selectors.as_deref())?,
            owner: Owner::new(&cluster).unwrap_or_default(),
            naming,
            svid_ttl,
        })
    }
}

fn agent_rule(trust_domain: &TrustDomain, settings: &Settings) -> Result<AgentRule, ConfigError> {
    match (&settings.agent_path, &settings.agent_selector) {
        (Some(path), Some(_)) => {
            Err(invalid("agent-path", path, "is given beside agent-selector; leave one out"))
        }
        (Some(path), None) => AgentRule::by_path(trust_domain, path)
            .ok_or_else(|| invalid("agent-path", path, "is no path such as /spire/agent/x509pop/cn/{node}")),
        (None, text) => {
            let text = text.as_deref().unwrap_or(DEFAULT_AGENT_SELECTOR);
            let rule = selector(text).and_then(AgentRule::by_selector);
            let reason = "is no selector with {node}, such as k8s_psat:agent_node_name:{node}";
            rule.ok_or_else(|| invalid("agent-selector", text, reason))
        }
    }
}

fn node_selectors(texts: Option<&[String]>) -> Result<Vec<Selector>, ConfigError> {
    const KEY: &str = "node-selectors";
    let defaults = DEFAULT_NODE_SELECTORS.map(str::to_owned);
    let texts = texts.unwrap_or(&defaults);
    let read = |text: &String| {
        selector(text)
            .ok_or_else(|| invalid(KEY, text, "is no selector such as unix:path:/usr/local/bin/authd"))
    };
    let selectors: Vec<Selector> = texts.iter().map(read).collect::<Result<_, _>>()?;
    let is_weak = |selector: &Selector| {
        let property = selector.value.split(':').next().unwrap_or_default();
        selector.kind == "unix" && WEAK.contains(&property)
    };
    if selectors.iter().all(is_weak) {
        let reason = "selects by user and group alone: any process of that user would be the node; \
                      add unix:path, unix:sha256, or k8s:ns and k8s:sa";
        return Err(invalid(KEY, texts.join(","), reason));
    }
    Ok(selectors)
}

/// A selector as SPIRE writes it.
fn selector(text: &str) -> Option<Selector> {
    let (kind, value) = text.split_once(':')?;
    (!kind.is_empty() && !value.is_empty()).then(|| Selector::new(kind, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Settings {
        Settings { trust_domain: Some("example.org".into()), ..Settings::default() }
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let config = Config::from_settings(minimal()).unwrap();
        assert_eq!((config.grace, config.interval), (Duration::from_secs(600), Duration::from_secs(30)));
        assert_eq!(config.http_address.port(), 9466);
        assert!(matches!(&config.server, Server::Socket(path) if path == Path::new(DEFAULT_SERVER_SOCKET)));
        let selectors: Vec<_> = config.rules.node_selectors.iter().map(ToString::to_string).collect();
        assert_eq!(selectors, DEFAULT_NODE_SELECTORS);
        assert_eq!(config.rules.owner.prefix(), "authd.default.");
    }

    #[test]
    fn bad_values_name_their_key() {
        let text = |text: &str| Some(text.to_owned());
        for (settings, words) in [
            (Settings { trust_domain: None, ..minimal() }, "--trust-domain, AUTHD_TRUST_DOMAIN"),
            (Settings { cluster_name: text("a.b"), ..minimal() }, "cluster-name"),
            (Settings { spiffe_id_template: text("/authd/{id}"), ..minimal() }, "spiffe-id-template"),
            (Settings { server_address: text("spire-server"), ..minimal() }, "server-address"),
            (Settings { server_address: text(":8081"), ..minimal() }, "server-address"),
            (
                Settings { server_address: text("s:1"), server_socket: Some("/s".into()), ..minimal() },
                "leave one out",
            ),
            (Settings { server_socket: Some("s.sock".into()), ..minimal() }, "server-socket"),
            (Settings { agent_selector: text("x509pop:subject:cn:n1"), ..minimal() }, "agent-selector"),
            (Settings { agent_selector: text("{node}"), ..minimal() }, "agent-selector"),
            (Settings { agent_path: text("/spire/agent/x509pop/n1"), ..minimal() }, "agent-path"),
            (Settings { agent_path: text("/identity/{node}"), ..minimal() }, "agent-path"),
            (
                Settings {
                    agent_path: text("/spire/agent/{node}"),
                    agent_selector: text("a:{node}"),
                    ..minimal()
                },
                "leave one out",
            ),
            (Settings { node_selectors: Some(vec!["unix:uid:0".into()]), ..minimal() }, "alone"),
            (
                Settings {
                    node_selectors: Some(vec!["unix:uid:0".into(), "unix:gid:0".into()]),
                    ..minimal()
                },
                "alone",
            ),
            (Settings { node_selectors: Some(vec![]), ..minimal() }, "alone"),
            (Settings { node_selectors: Some(vec!["unix".into()]), ..minimal() }, "node-selectors"),
            (Settings { svid_ttl: text("soon"), ..minimal() }, "svid-ttl"),
            (Settings { svid_ttl: text("1s"), ..minimal() }, "svid-ttl"),
            (Settings { registration_interval: text("0s"), ..minimal() }, "registration-interval"),
            (Settings { registration_grace: text("x"), ..minimal() }, "registration-grace"),
            (Settings { http_address: text("x"), ..minimal() }, "http-address"),
        ] {
            let error = Config::from_settings(settings).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
