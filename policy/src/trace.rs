//! Tracing: what policy says about a pair of identities and a port, which rules say so, and which others
//! were considered.

use auth_ebpf_abi::{AuthType, Direction, IdentityNumber, identity as reserved};
use serde::{Serialize, Serializer};

use crate::compile::{Compiled, Input, compile, selected};
use crate::identity::Identity;
use crate::label_set::LabelSet;
use crate::local::LocalIdentities;
use crate::lookup::lookup;
use crate::object::RuleRef;
use crate::peer::Peers;
use crate::port::PortPrefix;
use crate::rule::Rule;

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

/// A rule for this end and direction, and how far it is about the packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Considered {
    /// The rule.
    pub rule: RuleRef,
    /// Whether it denies.
    pub denies: bool,
    /// Whether it is about the other end.
    pub matches_peer: bool,
    /// Whether it is about protocol and port.
    pub matches_port: bool,
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
    /// The policy that says so is only tried: they pass whatever the verdict.
    pub audit: bool,
    /// The rule that decides; none if no rule allows it, or if this end isn't an endpoint with policies.
    pub rule: Option<RuleRef>,
    /// The policies that deny what no rule allows, if that decides.
    pub default_deny: Vec<RuleRef>,
    /// Every rule for this end.
    pub considered: Vec<Considered>,
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
    /// What would be dropped passes, since the policies that say so are only tried.
    pub audit: bool,
    /// Authentication is required, but one end can't have an SVID: the packets are dropped.
    pub authentication_impossible: bool,
    /// Where they come from.
    pub egress: DirectionTrace,
    /// Where they go.
    pub ingress: DirectionTrace,
    /// The rules that decide; those that deny if any does.
    pub decided_by: Vec<RuleRef>,
}

/// The reserved identities that policies select: endpoints without labels of their own, and an endpoint that
/// nobody knows, which gets nothing.
const HAVE_POLICIES: [IdentityNumber; 4] =
    [reserved::UNKNOWN, reserved::HEALTH, reserved::INIT, reserved::INGRESS];

/// What is said of an end that no policy is about.
const OPEN: DirectionTrace = DirectionTrace {
    verdict: TraceVerdict::Allowed,
    authentication: Authentication(AuthType::Disabled),
    encryption: Encryption::Default,
    audit: false,
    rule: None,
    default_deny: Vec::new(),
    considered: Vec::new(),
};

impl Trace {
    /// The packets of a pod to itself, which never leave it.
    #[must_use]
    pub fn within_a_pod() -> Self {
        let mut trace = Self::of_ends(OPEN, OPEN, false);
        trace.decided_by = vec![RuleRef::SamePod];
        trace
    }

    fn of_ends(egress: DirectionTrace, ingress: DirectionTrace, is_reserved: bool) -> Self {
        let ends = [&egress, &ingress];
        let is_denied = ends.iter().any(|end| end.verdict == TraceVerdict::Denied);
        let verdict = if is_denied { TraceVerdict::Denied } else { TraceVerdict::Allowed };
        let authentication = egress.authentication.max(ingress.authentication);
        let deciding = ends.iter().filter(|end| end.verdict == verdict);
        // Unless an end is in force, what is denied passes all the same.
        let audit = if is_denied {
            deciding.clone().all(|end| end.audit)
        } else {
            deciding.clone().any(|end| end.audit)
        };
        let decided_by = deciding.flat_map(|end| end.rule.iter().chain(&end.default_deny).cloned()).collect();
        Self {
            verdict,
            authentication,
            encryption: egress.encryption.max(ingress.encryption),
            audit,
            authentication_impossible: is_reserved && authentication.0 == AuthType::Spire,
            decided_by,
            egress,
            ingress,
        }
    }
}

/// Nodes that are the ends of packets, by their labels; see [`Node`](crate::Node).
#[derive(Clone, Copy, Debug, Default)]
pub struct Nodes<'a> {
    /// The node that they come from.
    pub from: Option<&'a LabelSet>,
    /// The node that they go to.
    pub to: Option<&'a LabelSet>,
}

/// Traces packets through the policies of both ends.
#[must_use]
pub fn trace(input: Input<'_>, traffic: Traffic) -> Trace {
    trace_with_nodes(input, traffic, Nodes::default())
}

/// The same, with the policies for the nodes that the ends are.
#[must_use]
pub fn trace_with_nodes(input: Input<'_>, traffic: Traffic, nodes: Nodes<'_>) -> Trace {
    let Traffic { from, to, .. } = traffic;
    let egress = end(input, traffic, (from, to, Direction::Egress), nodes.from);
    let ingress = end(input, traffic, (to, from, Direction::Ingress), nodes.to);
    Trace::of_ends(egress, ingress, reserved::is_reserved(from) || reserved::is_reserved(to))
}

/// What is said at one end, which for a node is its host.
fn end(
    input: Input<'_>,
    traffic: Traffic,
    (local, remote, direction): (IdentityNumber, IdentityNumber, Direction),
    node: Option<&LabelSet>,
) -> DirectionTrace {
    let of_host = node.map(|labels| input.identities.with_host(labels));
    let identities = of_host.as_ref().unwrap_or(input.identities);
    let local = if node.is_some() { reserved::HOST } else { local };
    if node.is_none() && reserved::is_reserved(local) && !HAVE_POLICIES.contains(&local) {
        return OPEN;
    }
    let input = Input { identities, ..input };
    let places = input.policies.local_identities(input.surroundings);
    Tracer { input, compiled: compile(input, [local]), places, traffic }.end(local, remote, direction)
}

struct Tracer<'a> {
    input: Input<'a>,
    compiled: Compiled,
    places: LocalIdentities,
    traffic: Traffic,
}

impl Tracer<'_> {
    fn end(&self, local: IdentityNumber, remote: IdentityNumber, direction: Direction) -> DirectionTrace {
        let endpoint = self.input.identities.get(local);
        let considered = endpoint.map(|endpoint| self.considered(endpoint, remote, direction));
        let open = DirectionTrace { considered: considered.unwrap_or_default(), ..OPEN };
        let Traffic { protocol, port, .. } = self.traffic;
        let Some(choice) = lookup(&self.compiled.map, local, remote, direction, protocol, port) else {
            let default_deny = endpoint.map(|endpoint| self.default_deny(endpoint, direction));
            let default_deny = default_deny.unwrap_or_default();
            return DirectionTrace { verdict: TraceVerdict::Denied, default_deny, ..open };
        };
        let rule = self.compiled.rules.get(&choice.entry.cookie).cloned();
        let open = DirectionTrace { audit: choice.entry.audit == 1, rule, ..open };
        if choice.entry.deny != 0 {
            return DirectionTrace { verdict: TraceVerdict::Denied, ..open };
        }
        // A type that isn't known can't be satisfied.
        let auth_type = AuthType::from_number(choice.auth_type).unwrap_or(AuthType::AlwaysFail);
        let is_encrypted = choice.entry.encryption != 0;
        let encryption = if is_encrypted { Encryption::Required } else { Encryption::Default };
        DirectionTrace { authentication: Authentication(auth_type), encryption, ..open }
    }

    /// The policies that deny what no rule allows.
    fn default_deny(&self, endpoint: &Identity, direction: Direction) -> Vec<RuleRef> {
        let denies = self.input.policies.iter().filter(|policy| {
            let mut specs = policy.specs.iter().filter(|spec| spec.subject.matches(endpoint.labels()));
            specs.any(|spec| spec.default_deny(direction))
        });
        let rule = |object| RuleRef::DefaultDeny { object, direction: direction.as_str() };
        denies.map(|policy| rule(policy.object.clone())).collect()
    }

    fn considered(
        &self,
        endpoint: &Identity,
        remote: IdentityNumber,
        direction: Direction,
    ) -> Vec<Considered> {
        let mut considered = Vec::new();
        for policy in self.input.policies.iter() {
            let specs = policy.specs.iter().filter(|spec| spec.subject.matches(endpoint.labels()));
            for spec in specs {
                let mut name = None;
                for rule in spec.rules.iter().filter(|rule| rule.list.direction() == direction) {
                    let (object, list, place) = (policy.object.clone(), rule.list, spec.place);
                    let part = Considered {
                        rule: RuleRef::Rule { object, spec: place, list, rule: rule.index },
                        denies: list.is_deny(),
                        matches_peer: self.matches_peer(rule, endpoint, remote),
                        matches_port: self.matches_port(rule, endpoint, remote),
                    };
                    // What a rule allows and what it denies, since it can't be kept, follow each other.
                    let this = Some((list.as_str(), rule.index));
                    if std::mem::replace(&mut name, this) != this {
                        considered.push(part);
                    } else if let Some(last) = considered.last_mut()
                        && part.matches_peer
                        && part.matches_port
                    {
                        *last = part;
                    }
                }
            }
        }
        considered
    }

    fn matches_peer(&self, rule: &Rule, endpoint: &Identity, remote: IdentityNumber) -> bool {
        let Input { identities, surroundings, .. } = self.input;
        rule.peers == Peers::Any
            || selected(rule, endpoint.labels(), identities, &self.places, surroundings).contains(&remote)
    }

    fn matches_port(&self, rule: &Rule, endpoint: &Identity, remote: IdentityNumber) -> bool {
        let packet = PortPrefix::port(self.traffic.protocol, self.traffic.port);
        let at = match rule.list.direction() {
            Direction::Ingress => endpoint.number(),
            Direction::Egress => remote,
        };
        let by_name = rule.named_ports.iter().filter(|port| port.protocol == self.traffic.protocol);
        let mut numbers =
            by_name.flat_map(|port| self.input.surroundings.numbers_of(port, at, rule.list.is_deny()));
        rule.ports.iter().any(|ports| ports.covers(packet))
            || numbers.any(|number| number == self.traffic.port)
    }
}
