//! The peers of a rule: `fromEndpoints`, `fromEntities`, `fromCIDR` and the like, and their egress twins.

use super::addresses;
use super::node::{Fields, Node};
use super::policy_error::Fault;
use super::selector;
use super::spec::RuleContext;
use crate::cidr::{ALL_V4, ALL_V6, CidrBlock};
use crate::label::{CLUSTER_KEY, LabelKey, Source};
use crate::peer::{Peer, Peers};
use crate::selector::{Operator, Requirement, Selector};

/// How a field selects peers.
#[derive(Clone, Copy)]
enum Kind {
    Endpoints,
    Entities,
    Cidr,
    CidrSet,
    Nodes,
    Services,
    Names,
    Requirements,
    Unsupported,
}

/// Fields that select peers.
pub(super) struct PeerFields(&'static [(&'static str, Kind)]);

pub(super) const FROM: PeerFields = PeerFields(&[
    ("fromEndpoints", Kind::Endpoints),
    ("fromEntities", Kind::Entities),
    ("fromCIDR", Kind::Cidr),
    ("fromCIDRSet", Kind::CidrSet),
    ("fromNodes", Kind::Nodes),
    ("fromGroups", Kind::Unsupported),
    ("fromRequires", Kind::Requirements),
]);

pub(super) const TO: PeerFields = PeerFields(&[
    ("toEndpoints", Kind::Endpoints),
    ("toEntities", Kind::Entities),
    ("toCIDR", Kind::Cidr),
    ("toCIDRSet", Kind::CidrSet),
    ("toFQDNs", Kind::Names),
    ("toServices", Kind::Services),
    ("toNodes", Kind::Nodes),
    ("toGroups", Kind::Unsupported),
    ("toRequires", Kind::Requirements),
]);

/// Deny rules can't be about names: whoever answers for DNS would decide what is denied.
pub(super) const TO_DENY: PeerFields = PeerFields(&[
    ("toEndpoints", Kind::Endpoints),
    ("toEntities", Kind::Entities),
    ("toCIDR", Kind::Cidr),
    ("toCIDRSet", Kind::CidrSet),
    ("toServices", Kind::Services),
    ("toNodes", Kind::Nodes),
    ("toGroups", Kind::Unsupported),
    ("toRequires", Kind::Requirements),
]);

impl PeerFields {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }
}

/// An entity.
#[derive(Clone, Copy)]
enum Entity {
    All,
    None,
    Cluster,
    ClusterMesh,
    WorldV4,
    WorldV6,
    Reserved(&'static str),
}

const ENTITIES: [(&str, Entity); 14] = [
    ("all", Entity::All),
    ("none", Entity::None),
    ("cluster", Entity::Cluster),
    ("cluster-mesh", Entity::ClusterMesh),
    ("host", Entity::Reserved("host")),
    ("remote-node", Entity::Reserved("remote-node")),
    ("world", Entity::Reserved("world")),
    ("world-ipv4", Entity::WorldV4),
    ("world-ipv6", Entity::WorldV6),
    ("init", Entity::Reserved("init")),
    ("health", Entity::Reserved("health")),
    ("unmanaged", Entity::Reserved("unmanaged")),
    ("kube-apiserver", Entity::Reserved("kube-apiserver")),
    ("ingress", Entity::Reserved("ingress")),
];

/// The reserved part of entity `cluster`.
const IN_CLUSTER: [&str; 7] =
    ["host", "remote-node", "init", "ingress", "health", "unmanaged", "kube-apiserver"];

/// The peers of a rule; none if no field selects any.
pub(super) fn parse(
    fields: &Fields<'_>,
    names: &PeerFields,
    rule: &mut RuleContext<'_>,
) -> Result<Option<Peers>, Fault> {
    let present: Vec<(Node<'_>, Kind)> =
        names.0.iter().filter_map(|(name, kind)| Some((fields.get(name)?, *kind))).collect();
    if present.is_empty() {
        return Ok(None);
    }
    let mut selected = Vec::new();
    let (mut all, mut kinds, mut has_empty) = (false, 0, false);
    for (node, kind) in &present {
        // An empty list means no one, never everyone (CVE-2025-64715).
        if node.items()?.is_empty() {
            rule.selects_nothing(node.path());
            has_empty = true;
            continue;
        }
        if matches!(kind, Kind::Requirements) && !rule.is_deny() {
            continue;
        }
        kinds += 1;
        if kinds > 1 {
            rule.unsupported_peers(node.path(), "several kinds of peers in one rule");
        }
        match parse_kind(node, *kind, rule)? {
            Peers::Any => all = true,
            Peers::Selected(peers) => selected.extend(peers),
        }
    }
    // Beside an empty list nothing else counts; one that denies denies what the others say all the same.
    if has_empty && !rule.is_deny() {
        return Ok(Some(Peers::NONE));
    }
    Ok(Some(if all { Peers::Any } else { Peers::Selected(selected) }))
}

/// Those that don't meet the requirements in a rule that allows: no other rule allows them either. None if it
/// has no requirements.
///
/// A node reaches its own pods whatever is required, as its probes must.
pub(super) fn unmet(
    fields: &Fields<'_>,
    names: &PeerFields,
    rule: &RuleContext<'_>,
) -> Result<Option<Peers>, Fault> {
    let mut names = names.0.iter().filter(|(_, kind)| matches!(kind, Kind::Requirements) && !rule.is_deny());
    let Some(node) = names.find_map(|(name, _)| fields.get(name)) else { return Ok(None) };
    let mut peers = Vec::new();
    for node in node.items()? {
        let required = selector::of_peers(selector::parse(&node)?, rule.object, rule.subject_is_init);
        for requirement in required.requirements {
            let mut requirements = vec![requirement.negated()];
            if rule.is_ingress() {
                requirements.extend(about(Source::Reserved, "host", Operator::DoesNotExist));
            }
            peers.push(Peer::Selector(Selector { requirements }));
        }
    }
    Ok((!peers.is_empty()).then_some(Peers::Selected(peers)))
}

fn parse_kind(node: &Node<'_>, kind: Kind, rule: &mut RuleContext<'_>) -> Result<Peers, Fault> {
    if matches!(kind, Kind::Unsupported | Kind::Requirements) {
        rule.unsupported_peers(node.path(), "this field");
        return Ok(Peers::NONE);
    }
    let items = node.items()?;
    if matches!(kind, Kind::Entities) {
        return parse_entities(&items);
    }
    let peer = |node: &Node<'_>| match kind {
        Kind::Cidr => addresses::cidr(node),
        Kind::CidrSet => addresses::cidr_set(node),
        Kind::Services => addresses::service(node),
        Kind::Names => addresses::name(node),
        Kind::Nodes => Ok(Peer::Nodes(selector::parse(node)?)),
        Kind::Endpoints | Kind::Entities | Kind::Requirements | Kind::Unsupported => {
            let selector = selector::of_peers(selector::parse(node)?, rule.object, rule.subject_is_init);
            Ok(selector::in_cluster(selector))
        }
    };
    Ok(Peers::Selected(items.iter().map(peer).collect::<Result<_, Fault>>()?))
}

fn parse_entities(items: &[Node<'_>]) -> Result<Peers, Fault> {
    let mut peers = Vec::new();
    let mut all = false;
    for node in items {
        match node.one_of(&ENTITIES)? {
            Entity::All => all = true,
            Entity::None => {}
            Entity::Cluster => {
                peers.extend(IN_CLUSTER.iter().filter_map(|name| reserved(name)));
                peers.push(Peer::OwnCluster(Selector::default()));
            }
            Entity::ClusterMesh => {
                peers.extend(IN_CLUSTER.iter().filter_map(|name| reserved(name)));
                peers.extend(exists(Source::K8s, CLUSTER_KEY));
            }
            Entity::WorldV4 => peers.push(Peer::Cidr(CidrBlock::whole(ALL_V4))),
            Entity::WorldV6 => peers.push(Peer::Cidr(CidrBlock::whole(ALL_V6))),
            Entity::Reserved(name) => peers.extend(reserved(name)),
        }
    }
    Ok(if all { Peers::Any } else { Peers::Selected(peers) })
}

fn reserved(name: &str) -> Option<Peer> {
    exists(Source::Reserved, name)
}

fn exists(source: Source, key: &str) -> Option<Peer> {
    let requirements = vec![about(source, key, Operator::Exists)?];
    Some(Peer::Selector(Selector { requirements }))
}

fn about(source: Source, key: &str, operator: Operator) -> Option<Requirement> {
    Some(Requirement { key: LabelKey::new(source, key).ok()?, operator })
}
