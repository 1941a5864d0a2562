//! Which kinds of objects there are, and what becomes of each.

use super::spec::Header;
use super::{API_VERSION, GROUP, Mistake, Scope};

/// What becomes of an object, by its type.
pub(super) enum Class {
    Used(Scope),
    Ignored,
    Mistaken(Mistake),
}

/// Kinds of `cilium.io` that allow and deny nothing. Where packets are to go is some kinds' business, and not
/// done; the policy of where they do go counts.
pub(super) const NOT_POLICIES: [&str; 20] = [
    "CiliumBGPAdvertisement",
    "CiliumBGPClusterConfig",
    "CiliumBGPNodeConfig",
    "CiliumBGPNodeConfigOverride",
    "CiliumBGPPeerConfig",
    "CiliumBGPPeeringPolicy",
    "CiliumClusterwideEnvoyConfig",
    "CiliumEgressGatewayPolicy",
    "CiliumEndpoint",
    "CiliumEndpointSlice",
    "CiliumEnvoyConfig",
    "CiliumExternalWorkload",
    "CiliumGatewayClassConfig",
    "CiliumIdentity",
    "CiliumL2AnnouncementPolicy",
    "CiliumLoadBalancerIPPool",
    "CiliumLocalRedirectPolicy",
    "CiliumNode",
    "CiliumNodeConfig",
    "CiliumPodIPPool",
];
const POLICIES: [&str; 3] = ["CiliumClusterwideNetworkPolicy", "CiliumNetworkPolicy", "NetworkPolicy"];
const OURS: [&str; 3] = ["Identity", "NodeNumber", "Revocation"];
const CORE: [&str; 3] = ["Namespace", "Node", "Pod"];

pub(super) fn class(header: &Header) -> Class {
    let kind = header.kind.as_str();
    let group = header.api_version.split_once('/').map_or("", |(group, _)| group);
    match (header.api_version.as_str(), kind) {
        ("v1", "Pod" | "Service" | "Endpoints") | ("discovery.k8s.io/v1", "EndpointSlice") => {
            return Class::Used(Scope::Namespaced);
        }
        ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job" | "CronJob")
        | ("v1", "ReplicationController")
        | ("cilium.io/v2", "CiliumEndpoint") => {
            return Class::Used(Scope::StandIn { in_namespace: true });
        }
        ("cilium.io/v2", "CiliumIdentity" | "CiliumNode") => {
            return Class::Used(Scope::StandIn { in_namespace: false });
        }
        ("v1", "Namespace" | "Node")
        | (API_VERSION, "Identity" | "NodeNumber" | "Revocation")
        | ("cilium.io/v2" | "cilium.io/v2alpha1", "CiliumCIDRGroup") => {
            return Class::Used(Scope::Cluster);
        }
        _ => {}
    }
    if group == GROUP {
        return Class::Mistaken(ours_mistaken(header));
    }
    // A misspelt policy must not be taken for a kind that doesn't matter.
    let is_none = group == "cilium.io" && NOT_POLICIES.contains(&kind);
    let may_be_one =
        kind.contains("NetworkPolicy") || policy::nearest(kind, POLICIES).is_some() || group == "cilium.io";
    if may_be_one && !is_none {
        return Class::Used(Scope::Policy);
    }
    match policy::nearest(kind, CORE) {
        Some(near) if group.is_empty() => Class::Mistaken(kind_mistaken(kind, Some(near))),
        _ => Class::Ignored,
    }
}

fn ours_mistaken(header: &Header) -> Mistake {
    if OURS.contains(&header.kind.as_str()) {
        let message = format!("unknown version {}; use {API_VERSION}", header.api_version);
        return Mistake::new("apiVersion", message);
    }
    kind_mistaken(&header.kind, policy::nearest(&header.kind, OURS))
}

fn kind_mistaken(kind: &str, near: Option<&str>) -> Mistake {
    let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Mistake::new("kind", format!("unknown kind {kind}{hint}"))
}

/// Whether the object of a `Problem` is of a kind that decides about identities and numbers.
pub(in crate::cluster) fn decides_about_numbers(object: &str) -> bool {
    let kind = object.split(' ').next().unwrap_or_default();
    CORE.contains(&kind) || OURS.contains(&kind)
}
