//! Names: of policy objects, and of the rules in them.
//!
//! Everything that decides about a packet can be named by a [`RuleRef`], in flows, traces and conditions.

use std::fmt;

use auth_ebpf_abi::Direction;
use serde::{Serialize, Serializer};

/// Kind of a policy object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// `cilium.io/v2`, for one namespace.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, for the cluster.
    CiliumClusterwideNetworkPolicy,
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// Not said, or not a policy.
    Unknown,
}

impl Kind {
    /// The kind with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        match name {
            "CiliumNetworkPolicy" => Self::CiliumNetworkPolicy,
            "CiliumClusterwideNetworkPolicy" => Self::CiliumClusterwideNetworkPolicy,
            "NetworkPolicy" => Self::NetworkPolicy,
            _ => Self::Unknown,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Unknown => "object",
        }
    }

    /// Whether its objects are in namespaces.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        matches!(self, Self::CiliumNetworkPolicy | Self::NetworkPolicy)
    }
}

/// A policy object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty if it is the cluster's.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {}{slash}{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// A list of rules in a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleList {
    /// `ingress`
    Ingress,
    /// `ingressDeny`
    IngressDeny,
    /// `egress`
    Egress,
    /// `egressDeny`
    EgressDeny,
    /// `ingress`, of a rule that denies: what it is about, where it can't be kept and nothing else denies, or
    /// those who don't meet its requirements (`fromRequires`).
    UnkeptIngress,
    /// The same in `egress`.
    UnkeptEgress,
}

impl RuleList {
    /// The fields of a policy.
    pub const ALL: [Self; 4] = [Self::Ingress, Self::IngressDeny, Self::Egress, Self::EgressDeny];

    /// The name of its field.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress | Self::UnkeptIngress => "ingress",
            Self::IngressDeny => "ingressDeny",
            Self::Egress | Self::UnkeptEgress => "egress",
            Self::EgressDeny => "egressDeny",
        }
    }

    /// Which way the packets go that its rules are about.
    #[must_use]
    pub const fn direction(self) -> Direction {
        match self {
            Self::Ingress | Self::IngressDeny | Self::UnkeptIngress => Direction::Ingress,
            Self::Egress | Self::EgressDeny | Self::UnkeptEgress => Direction::Egress,
        }
    }

    /// The list of what rules of this direction deny although they stand among those that allow.
    #[must_use]
    pub const fn unkept(self) -> Self {
        match self.direction() {
            Direction::Ingress => Self::UnkeptIngress,
            Direction::Egress => Self::UnkeptEgress,
        }
    }

    /// Whether its rules deny.
    #[must_use]
    pub const fn is_deny(self) -> bool {
        !matches!(self, Self::Ingress | Self::Egress)
    }
}

impl Serialize for RuleList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What a map entry comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase", tag = "origin")]
pub enum RuleRef {
    /// No policy restricts this direction.
    NoDefaultDeny {
        /// The direction, as a word.
        direction: &'static str,
    },
    /// A node always reaches its own pods, as its probes must.
    LocalHost,
    /// A rule of a policy.
    Rule {
        /// The policy.
        object: ObjectRef,
        /// Which of its `specs`, from 0; none for `spec`.
        #[serde(skip_serializing_if = "Option::is_none")]
        spec: Option<usize>,
        /// Which list of rules.
        list: RuleList,
        /// Which rule in the list, from 0.
        rule: usize,
    },
    /// A policy whose rules don't allow it, and which denies what no rule allows.
    DefaultDeny {
        /// The policy.
        object: ObjectRef,
        /// The direction, as a word.
        direction: &'static str,
    },
    /// The packets of a pod to itself, which never leave it.
    SamePod,
    /// A policy that was refused, so that everything it is about is denied.
    Refused {
        /// The policy.
        object: ObjectRef,
    },
}

impl RuleRef {
    /// The policy, if it is one.
    #[must_use]
    pub const fn object(&self) -> Option<&ObjectRef> {
        match self {
            Self::NoDefaultDeny { .. } | Self::LocalHost | Self::SamePod => None,
            Self::Rule { object, .. } | Self::DefaultDeny { object, .. } | Self::Refused { object } => {
                Some(object)
            }
        }
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDefaultDeny { direction } => write!(f, "no {direction} policy"),
            Self::LocalHost => f.write_str("local host"),
            Self::SamePod => f.write_str("same pod"),
            Self::DefaultDeny { object, direction } => write!(f, "{object} allows no such {direction}"),
            Self::Rule { object, spec: None, list, rule } => write!(f, "{object} {}[{rule}]", list.as_str()),
            Self::Rule { object, spec: Some(spec), list, rule } => {
                write!(f, "{object} specs[{spec}].{}[{rule}]", list.as_str())
            }
            Self::Refused { object } => write!(f, "{object} refused"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> ObjectRef {
        ObjectRef { kind: Kind::CiliumNetworkPolicy, namespace: "galaxy".into(), name: "rule1".into() }
    }

    #[test]
    fn objects_and_rules_print_as_people_know_them() {
        assert_eq!(object().to_string(), "CiliumNetworkPolicy galaxy/rule1");
        let rule = |spec| RuleRef::Rule { object: object(), spec, list: RuleList::EgressDeny, rule: 2 };
        assert_eq!(rule(None).to_string(), "CiliumNetworkPolicy galaxy/rule1 egressDeny[2]");
        assert_eq!(rule(Some(1)).to_string(), "CiliumNetworkPolicy galaxy/rule1 specs[1].egressDeny[2]");
        let clusterwide = ObjectRef {
            kind: Kind::CiliumClusterwideNetworkPolicy,
            namespace: String::new(),
            name: "base".into(),
        };
        assert_eq!(clusterwide.to_string(), "CiliumClusterwideNetworkPolicy base");
    }

    #[test]
    fn rules_serialise_with_their_list() {
        let rule = RuleRef::Rule { object: object(), spec: None, list: RuleList::Ingress, rule: 0 };
        assert_eq!(
            serde_json::to_value(rule).unwrap(),
            serde_json::json!({
                "origin": "rule",
                "object": {"kind": "CiliumNetworkPolicy", "namespace": "galaxy", "name": "rule1"},
                "list": "ingress", "rule": 0,
            })
        );
    }
}
