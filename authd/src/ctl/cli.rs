//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::time;
use crate::{
    api::{
        v1::{DropReason, Verdict},
        word::Word,
    },
    cluster::{DEFAULT_CLUSTER_NAME, Site},
    config::{DEFAULT_SPIFFE_ID_TEMPLATE, parse_cluster_name, parse_spiffe_id_template},
    peer::Naming,
    trace::{End, Port},
};

/// Ask and steer the authd of this node.
#[derive(Debug, Parser)]
#[command(name = "authctl", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Where help shows the options of every command.
const GLOBAL: &str = "Global options";

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(super) struct Global {
    /// Socket of the daemon
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "PATH",
        env = "AUTHD_API_SOCKET",
        hide_env_values = true,
        default_value = "/run/authd/authd.sock"
    )]
    pub(super) socket: PathBuf,
    /// Directory in which the daemon has pinned its maps
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        value_name = "DIR",
        env = "AUTHD_PIN_DIR",
        hide_env_values = true,
        default_value = "/sys/fs/bpf/authd"
    )]
    pub(super) pin_dir: PathBuf,
    /// Table for people or JSON for programs
    #[arg(short, long, global = true, help_heading = GLOBAL, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub(super) output: Format,
    /// How long to wait for the daemon
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DURATION", default_value = "5s", value_parser = time::parse_timeout)]
    pub(super) timeout: Duration,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    // No doc comments: they would make help twice as long.
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the node at a glance; from the pinned maps if the daemon is dead
    Status(StatusArgs),
    /// List, explain or end authentications between identities
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Show the encryption between nodes
    #[command(subcommand)]
    Encrypt(EncryptCommand),
    /// Show flows: which packets passed or dropped, and why
    Observe(ObserveArgs),
    /// Have every node refuse an identity or a node from now on
    Revoke(RevokeArgs),
    /// List or allocate identities
    #[command(subcommand)]
    Identities(IdentitiesCommand),
    /// List the SVIDs of this node, or say what is wrong with one in a file
    #[command(subcommand)]
    Svid(SvidCommand),
    /// List the trust bundles by which this node verifies peers
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Check policies, and say what they mean for a pair; manifests need no daemon
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Let pass and count what policy or encryption would drop, for a while; works with the daemon dead
    Off(OffArgs),
    /// End what `authctl off` began
    On(OnArgs),
    /// Show what was dropped since the programs were loaded; works with the daemon dead
    Drops,
    /// Take every program and route of authd off this node; works with the daemon dead
    Detach(DetachArgs),
    /// Show the versions of authctl and of the daemon
    Version,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// One line; exit status 1 unless everything is well
    #[arg(long)]
    pub(super) brief: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuthCommand {
    /// List the authentications in force; from the pinned maps if the daemon is dead
    #[command(visible_alias = "ls")]
    List,
    /// Say what is missing for two ends to talk; from the pinned maps, as far as these know, if the daemon is dead
    Explain(ExplainArgs),
    /// End every authentication on this node; pairs that need one authenticate anew
    Flush,
}

/// An end is a pod (namespace/name), identity:NUMBER or ip:ADDRESS. Ask on a node that runs one of them; the other
/// one's node may know more.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  authctl auth explain default/tiefighter default/deathstar --port 80/TCP
  authctl auth explain identity:256 identity:259 -o json")]
pub(super) struct ExplainArgs {
    /// Where packets come from
    #[arg(value_name = "FROM")]
    pub(super) from: End,
    /// Where they go
    #[arg(value_name = "TO")]
    pub(super) to: End,
    /// Port and protocol (80/TCP), for what policy says about these packets
    #[arg(long, value_name = "PORT")]
    pub(super) port: Option<Port>,
}

#[derive(Debug, Subcommand)]
pub(super) enum EncryptCommand {
    /// Show the WireGuard device and its peers
    Status,
}

/// Arguments of `revoke`.
#[derive(Debug, clap::Args)]
pub(super) struct RevokeArgs {
    /// Directory of manifests that the nodes read; the revocation becomes a file in it, and goes with that
    #[arg(value_name = "DIR")]
    pub(super) directory: PathBuf,
    /// Number of the identity
    #[arg(long, value_name = "NUMBER", required_unless_present = "node", conflicts_with = "node")]
    pub(super) identity: Option<u32>,
    /// Name of the node
    #[arg(long, value_name = "NAME")]
    pub(super) node: Option<String>,
    /// Why
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum IdentitiesCommand {
    /// List the identities of the cluster
    #[command(visible_alias = "ls")]
    List,
    /// Give numbers to the identities and nodes of a directory of manifests that have none yet
    Allocate {
        /// The directory; the numbers are appended to authd-identities.yaml in it
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        #[command(flatten)]
        cluster: ClusterName,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum SvidCommand {
    /// List the SVIDs of this node and of the identities that run here
    #[command(visible_alias = "ls")]
    List,
    /// Say which clauses the certificates in a file violate; needs no daemon, exit status 1 if any
    Check(SvidCheckArgs),
}

#[derive(Debug, Args)]
pub(super) struct SvidCheckArgs {
    /// The certificates, the leaf first: PEM or DER. Keys in the file are not looked at
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Trust bundle of the leaf's trust domain, to check signatures as well: PEM or DER
    #[arg(long, value_name = "FILE")]
    pub(super) bundle: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum BundleCommand {
    /// List the anchors of each trust domain
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Look for mistakes in manifests; exit status 1 if there are errors
    Check {
        /// Files, `-` for standard input, or directories whose *.yaml, *.yml and *.json are read
        #[arg(value_name = "FILE|DIR", required = true)]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        site: SiteArgs,
    },
    /// Say what policy says about packets from one end to another, and which rules say so
    Trace(TraceArgs),
    /// List the policies and what isn't done as they are written
    Get {
        #[command(flatten)]
        manifests: Manifests,
        /// Only the policies with this name, or namespace/name
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Where policies, pods and identities are read from.
#[derive(Debug, Args)]
pub(super) struct Manifests {
    /// Directory or file of manifests (`-` for standard input) to read instead of asking the daemon
    #[arg(long, value_name = "DIR")]
    pub(super) manifests: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) site: SiteArgs,
}

/// What daemons are told about the cluster that manifests are of.
#[derive(Debug, Args)]
pub(super) struct SiteArgs {
    #[command(flatten)]
    cluster: ClusterName,
    /// Path of an identity's SPIFFE ID, as the daemons have it: whether identities share one
    #[arg(
        long = "spiffe-id-template",
        value_name = "PATH",
        env = "AUTHD_SPIFFE_ID_TEMPLATE",
        hide_env_values = true,
        default_value = DEFAULT_SPIFFE_ID_TEMPLATE,
        value_parser = parse_spiffe_id_template
    )]
    naming: Naming,
}

impl SiteArgs {
    /// Where the manifests are read: on no node in particular.
    pub(super) fn site(&self) -> Site {
        Site { sharing: self.naming.sharing(), ..self.cluster.site() }
    }
}

/// The cluster that manifests are of.
#[derive(Debug, Args)]
pub(super) struct ClusterName {
    /// Name of the cluster of the manifests, as the daemons have it
    #[arg(
        long = "cluster-name",
        value_name = "NAME",
        env = "AUTHD_CLUSTER_NAME",
        hide_env_values = true,
        default_value = DEFAULT_CLUSTER_NAME,
        value_parser = parse_cluster_name
    )]
    name: String,
}

impl ClusterName {
    /// Where the manifests are read: on no node in particular.
    pub(super) fn site(&self) -> Site {
        Site { cluster: self.name.clone(), ..Site::default() }
    }
}

/// An end is a pod (namespace/name), identity:NUMBER, ip:ADDRESS or entity:NAME. The address of a service stands
/// for the pods behind it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  authctl policy trace --manifests DIR --from default/xwing --to default/deathstar --port 80/TCP
  authctl policy trace --from default/xwing --to ip:192.0.2.7 --port 443/TCP -o json
  authctl policy trace --from entity:world --to default/deathstar --port 8/ICMP")]
pub(super) struct TraceArgs {
    #[command(flatten)]
    pub(super) manifests: Manifests,
    /// Where the packets come from
    #[arg(long, value_name = "END")]
    pub(super) from: End,
    /// Where they go
    #[arg(long, value_name = "END")]
    pub(super) to: End,
    /// Port and protocol (80/TCP), type of ICMP (8/ICMP, 128/ICMPv6), or a protocol alone
    #[arg(long, value_name = "PORT")]
    pub(super) port: Port,
}

/// What is guarded, each with a mode of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum GuardArg {
    Policy,
    Encryption,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  authctl off policy --for 30m --reason 'SPIRE is down, incident 4711'

Encryption must be off on every node that shall talk in the clear.
With the daemon dead, authctl takes away the routes into the tunnel; once the
time is over the guard drops again, and authd puts the routes back.")]
pub(super) struct OffArgs {
    /// What is to be off
    #[arg(value_enum)]
    pub(super) guard: GuardArg,
    /// For how long, such as 30m or 1h30m; at most 24h
    #[arg(long = "for", value_name = "DURATION", value_parser = time::parse_override)]
    pub(super) duration: Duration,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    pub(super) reason: String,
}

#[derive(Debug, Args)]
pub(super) struct OnArgs {
    /// What is to be on again
    #[arg(value_enum)]
    pub(super) guard: GuardArg,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) reason: String,
}

#[derive(Debug, Args)]
pub(super) struct DetachArgs {
    /// Confirm: traffic of this node is neither checked nor encrypted afterwards
    #[arg(long)]
    pub(super) yes: bool,
}

/// Pods are `namespace/name`, `namespace/` or a name in any namespace; names match as a prefix. A flow must
/// match one value of each option that is given.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  authctl observe -f --verdict DROPPED
  authctl observe --last 100 --from-pod default/xwing --reason POLICY_DENIED -o json")]
pub(super) struct ObserveArgs {
    /// Go on with new flows
    #[arg(short, long)]
    pub(super) follow: bool,
    /// How many past flows to show [default: 20, or 0 with --follow]
    #[arg(long, value_name = "N")]
    pub(super) last: Option<u32>,
    /// Only with this verdict
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', ignore_case = true, value_parser = word::<Verdict>())]
    pub(super) verdict: Vec<Verdict>,
    /// Only with this reason
    #[arg(long, value_name = "REASON", value_delimiter = ',', ignore_case = true, value_parser = word::<DropReason>())]
    pub(super) reason: Vec<DropReason>,
    /// Only from this pod
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pub(super) from_pod: Vec<String>,
    /// Only to this pod
    #[arg(long, value_name = "POD", value_delimiter = ',')]
    pub(super) to_pod: Vec<String>,
    /// Only from this identity
    #[arg(long, value_name = "NUMBER", value_delimiter = ',')]
    pub(super) from_identity: Vec<u32>,
    /// Only to this identity
    #[arg(long, value_name = "NUMBER", value_delimiter = ',')]
    pub(super) to_identity: Vec<u32>,
}

fn parse_reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("say why in a few words".to_owned());
    }
    Ok(text.to_owned())
}

/// Parses an enum of the API by its word; the one that stands for "not said" is none.
fn word<E: Word + Default + PartialEq + Send + Sync>() -> impl clap::builder::TypedValueParser<Value = E> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};

    let known = E::ALL.iter().filter(|value| **value != E::default()).map(|value| value.word());
    PossibleValuesParser::new(known)
        .try_map(|given| E::from_word(&given).ok_or_else(|| format!("{given} is not known")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn off_needs_a_time_and_a_reason() {
        let parse = |more: &[&str]| Cli::try_parse_from(["authctl", "off", "policy"].iter().chain(more));
        assert!(parse(&["--for", "1h30m", "--reason", "incident"]).is_ok());
        assert!(parse(&["--for", "1h30m"]).is_err());
        assert!(parse(&["--reason", "incident"]).is_err());
        assert!(parse(&["--for", "1h30m", "--reason", "  "]).is_err());
        assert!(parse(&["--for", "25h", "--reason", "incident"]).is_err());
    }

    #[test]
    fn reasons_are_parsed_in_any_case() {
        let cli =
            Cli::try_parse_from(["authctl", "observe", "--reason", "policy_denied,AUTH_REQUIRED"]).unwrap();
        let Command::Observe(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!(args.reason, [DropReason::PolicyDenied, DropReason::AuthRequired]);
    }

    #[test]
    fn what_is_no_reason_is_refused() {
        for reason in ["NONSENSE", "UNSPECIFIED", ""] {
            let error = Cli::try_parse_from(["authctl", "observe", "--reason", reason]).unwrap_err();
            assert!(error.to_string().contains("POLICY_DENIED"), "{error}");
        }
    }
}
