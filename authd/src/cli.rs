//! The command line of the `authd` binary.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Settings;

/// Mutual authentication and encryption between workloads, on any CNI, without sidecars.
#[derive(Debug, Parser)]
#[command(name = "authd", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to run; the node daemon if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the node daemon.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the binary can run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node daemon (the default).
    Run(Box<RunArgs>),
    /// Run the userspace WireGuard device, in a process that outlives the daemon.
    Tunnel(TunnelArgs),
    /// Keep SPIRE's registration entries as the cluster state says. Run one of a cluster: there is no leader
    /// election yet; a second one does no harm, but makes the same calls again.
    Operator(Box<OperatorArgs>),
    /// Run the embedded development authority: SPIRE's APIs, without SPIRE's attestation.
    Authority(AuthorityArgs),
    /// Check the configuration and say what it means; touch nothing.
    Validate(Box<RunArgs>),
    /// Print the version.
    Version,
}

/// Options of `authd run` and `authd validate`.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// YAML file with the settings below, by the same names; flags and environment win over it.
    #[arg(long, env = "AUTHD_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The settings themselves.
    #[command(flatten)]
    pub settings: Settings,
}

/// Options of `authd operator`.
#[derive(Clone, Debug, Default, Args)]
pub struct OperatorArgs {
    /// YAML file with the settings below, by the same names; flags and environment win over it.
    #[arg(long, env = "AUTHD_OPERATOR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Register once, say what is not as it should be, and end: status 0 if everything is
    #[arg(long)]
    pub once: bool,
    /// Print what would be done, and do nothing
    #[arg(long, conflicts_with = "once")]
    pub dry_run: bool,
    /// The settings themselves.
    #[command(flatten)]
    pub settings: crate::operator::Settings,
}

/// Options of `authd tunnel`.
#[derive(Clone, Debug, Args)]
pub struct TunnelArgs {
    /// Unix socket on which the daemon tells it what to do.
    #[arg(long, env = "AUTHD_TUNNEL_SOCKET", value_name = "PATH", default_value = crate::config::DEFAULT_TUNNEL_SOCKET)]
    pub socket: PathBuf,
    /// Name of the TUN device.
    #[arg(long, env = "AUTHD_WIREGUARD_INTERFACE", value_name = "NAME", default_value = crate::config::DEFAULT_WIREGUARD_INTERFACE)]
    pub interface: String,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Options of `authd authority`.
#[derive(Clone, Debug, Args)]
pub struct AuthorityArgs {
    /// Trust domain for which it signs.
    #[arg(long, value_name = "NAME")]
    pub trust_domain: String,
    /// Directory for its sockets: `server.sock`, `<node>/workload/api.sock`, `<node>/admin/api.sock`,
    /// `<node>/admin/broker.sock`.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A node whose agent it plays; repeat for more.
    #[arg(long = "node", value_name = "NAME", required = true)]
    pub nodes: Vec<String>,
    /// Lifetime of the SVIDs it issues.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    pub svid_ttl: String,
    /// How to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// How a process logs.
#[derive(Clone, Debug, Default, Args)]
pub struct LogArgs {
    /// `json` or `text` [default: json]
    #[arg(long, env = "AUTHD_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,authd::peer=debug` [default: info]
    #[arg(long, env = "AUTHD_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
}
