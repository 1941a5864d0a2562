//! Tracing: what policy says about a pair of identities and a port, and which rules say so.

use auth_ebpf_abi::{AuthType, Direction, IdentityNumber, identity as reserved};
use serde::{Serialize, Serializer};

use crate::compile::{Compiled, Input, compile};
use crate::lookup::lookup;
use crate::object::RuleRef;

/// Packets from one identity to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Where they come from.
    pub from: IdentityNumber,
    /// Where they go.
    pub to: IdentityNumber,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; for ICMP the type, in the upper byte.
    pub port: u16,
}

/// What policy says. What still needs authentication is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceVerdict {
    /// They pass.
    Allowed,
    /// They are dropped.
    Denied,
}

/// The authentication that packets need, as policies write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Authentication(pub AuthType);

impl Authentication {
    /// The word in policies.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self.0 {
            AuthType::Disabled => "disabled",
            AuthType::Spire => "required",
            AuthType::AlwaysFail => "test-always-fail",
        }
    }
}

impl Serialize for Authentication {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How packets must travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// As the node's mode says for all traffic.
    Default,
    /// Over an encrypted path only.
    Required,
}

impl Encryption {
    /// The word for tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Required => "required",
        }
    }
}

/// What policy says at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectionTrace {
    /// Whether they pass.
    pub verdict: TraceVerdict,
    /// What they need.
    pub authentication: Authentication,
    /// How they must travel.
    pub encryption: Encryption,
    /// The rule that decides; none if no rule allows it, or if this end isn't an endpoint with policies.
    pub rule: Option<RuleRef>,
}

/// What policy says at both ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// Allowed if both ends allow it.
    pub verdict: TraceVerdict,
    /// What either end requires.
    pub authentication: Authentication,
    /// What either end requires of their path.
    pub encryption: Encryption,
    /// Authentication is required, but one end can't have an SVID: the packets are dropped.
    pub authentication_impossible: bool,
    /// Where they come from.
    pub egress: DirectionTrace,
    /// Where they go.
    pub ingress: DirectionTrace,
    /// The rules that decide; those that deny if any does.
    pub decided_by: Vec<RuleRef>,
}

/// Traces packets through the policies of both ends.
#[must_use]
pub fn trace(input: Input<'_>, traffic: Traffic) -> Trace {
    let compiled = compile(input, [traffic.from, traffic.to]);
    trace_compiled(&compiled, traffic)
}

/// As [`trace`], over what has been compiled for both ends.
#[must_use]
pub fn trace_compiled(compiled: &Compiled, traffic: Traffic) -> Trace {
    let Traffic { from, to, .. } = traffic;
    let egress = one_end(compiled, from, to, Direction::Egress, traffic);
    let ingress = one_end(compiled, to, from, Direction::Ingress, traffic);
    let ends = [&egress, &ingress];
    let is_denied = ends.iter().any(|end| end.verdict == TraceVerdict::Denied);
    let verdict = if is_denied { TraceVerdict::Denied } else { TraceVerdict::Allowed };
    let authentication = egress.authentication.max(ingress.authentication);
    let decided_by =
        ends.iter().filter(|end| end.verdict == verdict).filter_map(|end| end.rule.clone()).collect();
    let is_reserved = reserved::is_reserved(from) || reserved::is_reserved(to);
    Trace {
        verdict,
        authentication,
        encryption: egress.encryption.max(ingress.encryption),
        authentication_impossible: is_reserved && authentication.0 == AuthType::Spire,
        decided_by,
        egress,
        ingress,
    }
}

fn one_end(
    compiled: &Compiled,
    local: IdentityNumber,
    remote: IdentityNumber,
    direction: Direction,
    traffic: Traffic,
) -> DirectionTrace {
    let open = DirectionTrace {
        verdict: TraceVerdict::Allowed,
        authentication: Authentication(AuthType::Disabled),
        encryption: Encryption::Default,
        rule: None,
    };
    if reserved::is_reserved(local) && local != reserved::UNKNOWN {
        return open;
    }
    let Some(choice) = lookup(&compiled.map, local, remote, direction, traffic.protocol, traffic.port) else {
        return DirectionTrace { verdict: TraceVerdict::Denied, ..open };
    };
    let rule = compiled.rules.get(&choice.entry.cookie).cloned();
    if choice.entry.deny != 0 {
        return DirectionTrace { verdict: TraceVerdict::Denied, rule, ..open };
    }
    // A type that isn't known can't be satisfied.
    let auth_type = AuthType::from_number(choice.auth_type).unwrap_or(AuthType::AlwaysFail);
    let encryption = if choice.entry.encryption == 0 { Encryption::Default } else { Encryption::Required };
    DirectionTrace { authentication: Authentication(auth_type), encryption, rule, ..open }
}
