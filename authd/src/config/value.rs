//! Parsers of single values: each names its key in the error.

use std::{num::NonZeroU16, path::PathBuf, str::FromStr, time::Duration};

use auth_ebpf::Mechanism;
use auth_ebpf_abi::Mode;
use ipnet::IpNet;
use spiffe::TrustDomain;
use spire_adapter::tls::Groups;

use super::ConfigError;
use crate::{
    cluster::DEFAULT_CLUSTER_NAME,
    outside::OutsideRanges,
    peer::{Naming, PairProof},
    svids::Choice,
};

/// Path of an identity's SPIFFE ID unless something else is said.
pub const DEFAULT_SPIFFE_ID_TEMPLATE: &str = "/identity/{id}";

/// Longest path that a unix socket can have (`sockaddr_un`).
const SOCKET_PATH_MAX: usize = 107;
/// Longest name of a cluster, as Cilium has it.
const CLUSTER_NAME_MAX: usize = 32;
/// Longest name of an interface (`IFNAMSIZ`).
const INTERFACE_NAME_MAX: usize = 15;

pub(crate) fn invalid(key: &'static str, value: impl Into<String>, reason: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key, value: value.into(), reason: reason.into() }
}

pub(crate) fn parse<T: FromStr>(key: &'static str, value: &str, reason: &str) -> Result<T, ConfigError> {
    let Ok(parsed) = value.parse() else { return Err(invalid(key, value, reason)) };
    Ok(parsed)
}

pub(crate) fn port(key: &'static str, port: u16) -> Result<NonZeroU16, ConfigError> {
    NonZeroU16::new(port).ok_or_else(|| invalid(key, "0", "is no port: all nodes must know it"))
}

pub(crate) fn mode(key: &'static str, value: Option<&str>) -> Result<Mode, ConfigError> {
    match value {
        None | Some("enforce") => Ok(Mode::Enforce),
        Some("observe") => Ok(Mode::Observe),
        Some(other) => Err(invalid(key, other, "is no mode; use enforce or observe")),
    }
}

/// Key exchange groups by their word.
pub(crate) fn groups(key: &'static str, value: Option<&str>) -> Result<Groups, ConfigError> {
    match value {
        None | Some("post-quantum") => Ok(Groups::PostQuantum),
        Some("any") => Ok(Groups::Any),
        Some(other) => Err(invalid(key, other, "is neither post-quantum nor any")),
    }
}

/// How pairs are proven, by its word.
pub(crate) fn pair_proof(key: &'static str, value: Option<&str>) -> Result<PairProof, ConfigError> {
    match value {
        None => Ok(PairProof::default()),
        Some("session") => Ok(PairProof::Session),
        Some("handshake") => Ok(PairProof::Handshake),
        Some(other) => Err(invalid(key, other, "is neither session nor handshake")),
    }
}

pub(crate) fn svid_source(key: &'static str, value: Option<&str>) -> Result<Choice, ConfigError> {
    match value {
        None | Some("auto") => Ok(Choice::Auto),
        Some("broker") => Ok(Choice::Broker),
        Some("delegated-pid") => Ok(Choice::DelegatedPid),
        Some("delegated") => Ok(Choice::Delegated),
        Some(other) => Err(invalid(key, other, "is none of auto, broker, delegated-pid and delegated")),
    }
}

pub(crate) fn switch(key: &'static str, value: Option<&str>) -> Result<bool, ConfigError> {
    is_second(key, value, ["on", "off"]).map(|off| !off)
}

/// Whether it is the second of two words, of which the first is the default.
pub(super) fn is_second(
    key: &'static str,
    value: Option<&str>,
    [first, second]: [&str; 2],
) -> Result<bool, ConfigError> {
    match value {
        Some(word) if word == second => Ok(true),
        Some(word) if word != first => Err(invalid(key, word, format!("is neither {first} nor {second}"))),
        _ => Ok(false),
    }
}

pub(crate) fn mechanism(key: &'static str, value: &str) -> Result<Mechanism, ConfigError> {
    [Mechanism::Tcx, Mechanism::Clsact].into_iter().find(|mechanism| mechanism.as_str() == value).ok_or_else(
        || invalid(key, value, "is no way to attach programs; use tcx or clsact, or leave it out"),
    )
}

pub(crate) fn net(key: &'static str, value: &str) -> Result<IpNet, ConfigError> {
    let net: IpNet = parse(key, value, "is no range such as 10.244.0.0/16 or fd00:10:244::/48")?;
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(invalid(key, value, format!("has bits behind its prefix; did you mean {}?", net.trunc())))
    }
}

/// Outside ranges, beside those of the cluster.
pub(super) fn outside_ranges(
    key: &'static str,
    values: Option<&[String]>,
    cluster_cidrs: &[IpNet],
) -> Result<OutsideRanges, ConfigError> {
    let mut ranges = OutsideRanges::none();
    match values {
        None => ranges = OutsideRanges::default(),
        Some([none]) if none == "none" => {}
        Some(values) => {
            for value in values {
                ranges.add(net(key, value)?).map_err(|why| invalid(key, value, why.to_string()))?;
            }
        }
    }
    let overlap = cluster_cidrs.iter().find_map(|cidr| Some((cidr, ranges.over(cidr)?)));
    match overlap {
        None => Ok(ranges),
        Some((cidr, range)) => Err(invalid(
            key,
            range.to_string(),
            format!(
                "overlaps {cidr} of cluster-cidrs; use a range that nobody has, the same on every node, or none"
            ),
        )),
    }
}

pub(crate) fn interface_name(key: &'static str, name: &str) -> Result<String, ConfigError> {
    let valid = !name.is_empty()
        && name.len() <= INTERFACE_NAME_MAX
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c == '/' || c.is_whitespace());
    if valid { Ok(name.into()) } else { Err(invalid(key, name, "is no interface name (1 to 15 characters)")) }
}

pub(crate) fn socket_path(
    key: &'static str,
    path: Option<PathBuf>,
    default: &str,
) -> Result<PathBuf, ConfigError> {
    let path = path.unwrap_or_else(|| default.into());
    // SPIFFE_ENDPOINT_SOCKET and SPIRE's documents write it as a URI.
    let path = match path.to_str().and_then(|text| text.strip_prefix("unix:")) {
        Some(rest) => PathBuf::from(rest.strip_prefix("//").unwrap_or(rest)),
        None => path,
    };
    let text = path.display().to_string();
    if !path.is_absolute() {
        return Err(invalid(key, text, "is no absolute path of a unix socket"));
    }
    if text.len() > SOCKET_PATH_MAX {
        return Err(invalid(key, text, format!("is longer than a unix socket's {SOCKET_PATH_MAX} bytes")));
    }
    Ok(path)
}

pub(crate) fn cluster_name(name: Option<String>) -> Result<String, ConfigError> {
    let name = name.unwrap_or_else(|| DEFAULT_CLUSTER_NAME.to_owned());
    parse_cluster_name(&name).map_err(|reason| invalid("cluster-name", name, reason))
}

/// Reads the name of a cluster, which is the value of a label.
///
/// # Errors
/// What a name must be.
pub fn parse_cluster_name(name: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_edged = name.starts_with('-') || name.ends_with('-');
    if !name.is_empty() && name.len() <= CLUSTER_NAME_MAX && !is_edged && name.bytes().all(allowed) {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "is no name of a cluster: lower-case letters, digits and dashes, at most {CLUSTER_NAME_MAX}"
        ))
    }
}

pub(crate) fn node_name(name: Option<String>) -> Result<String, ConfigError> {
    let name = match name {
        Some(name) => name,
        None => nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .ok_or(ConfigError::Missing { key: "node-name" })?,
    };
    let valid = !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
    if valid {
        Ok(name)
    } else {
        Err(invalid("node-name", name, "is no node name: lower-case letters, digits, dashes, dots"))
    }
}

pub(crate) fn trust_domain(name: &str) -> Result<TrustDomain, ConfigError> {
    parse("trust-domain", name, "is no trust domain: lower-case letters, digits, dots, dashes, underscores")
}

pub(crate) fn naming(
    trust_domain: &TrustDomain,
    template: Option<&str>,
    cluster: &str,
) -> Result<Naming, ConfigError> {
    let template = template.unwrap_or(DEFAULT_SPIFFE_ID_TEMPLATE);
    Naming::new(trust_domain.clone(), template, cluster)
        .map_err(|error| invalid("spiffe-id-template", template, format!("can't be used: {error}")))
}

/// Reads a template for those who ask only which identities share a SPIFFE ID: neither the trust domain nor the
/// cluster's name tells any of them apart.
///
/// # Errors
/// Why the template can't be used.
pub fn parse_spiffe_id_template(template: &str) -> Result<Naming, String> {
    let trust_domain = TrustDomain::new("example.org").map_err(|error| error.to_string())?;
    Naming::new(trust_domain, template, DEFAULT_CLUSTER_NAME).map_err(|error| error.to_string())
}

pub(crate) fn duration(key: &'static str, text: &str) -> Result<Duration, ConfigError> {
    parse_duration(text).ok_or_else(|| invalid(key, text, "is no duration such as 30m, 24h or 1h30m"))
}

/// Parses a duration such as `30m` or `1h30m`; `None` if it is none, or negative.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let parsed: jiff::SignedDuration = text.parse().ok()?;
    Duration::try_from(parsed).ok()
}
