//! The peers of a rule: `fromEndpoints`, `fromEntities` and their egress twins.

use super::node::{Fields, Node};
use super::policy_error::Fault;
use super::selector;
use super::spec::RuleContext;
use crate::label::{CLUSTER_KEY, LabelKey, Source};
use crate::rule::{Peer, Peers};
use crate::selector::{Operator, Requirement, Selector};

/// Fields that select peers.
pub(super) struct PeerFields {
    endpoints: &'static str,
    entities: &'static str,
    unsupported: &'static [&'static str],
}

pub(super) const FROM: PeerFields = PeerFields {
    endpoints: "fromEndpoints",
    entities: "fromEntities",
    unsupported: &["fromCIDR", "fromCIDRSet", "fromNodes", "fromGroups", "fromRequires"],
};

pub(super) const TO: PeerFields = PeerFields {
    endpoints: "toEndpoints",
    entities: "toEntities",
    unsupported: &["toCIDR", "toCIDRSet", "toFQDNs", "toServices", "toNodes", "toGroups", "toRequires"],
};

impl PeerFields {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.endpoints, self.entities].into_iter().chain(self.unsupported.iter().copied())
    }
}

/// An entity.
#[derive(Clone, Copy)]
enum Entity {
    All,
    None,
    Cluster,
    ClusterMesh,
    Reserved(&'static str),
    Unsupported,
}

const ENTITIES: [(&str, Entity); 14] = [
    ("all", Entity::All),
    ("none", Entity::None),
    ("cluster", Entity::Cluster),
    ("cluster-mesh", Entity::ClusterMesh),
    ("host", Entity::Reserved("host")),
    ("remote-node", Entity::Reserved("remote-node")),
    ("world", Entity::Reserved("world")),
    ("world-ipv4", Entity::Unsupported),
    ("world-ipv6", Entity::Unsupported),
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
    let present: Vec<Node<'_>> = names.names().filter_map(|name| fields.get(name)).collect();
    let Some(last) = present.last() else { return Ok(None) };
    let endpoints = parse_endpoints(fields, names, rule)?;
    let entities = parse_entities(fields, names, rule)?;
    // An empty list means no one, never everyone (CVE-2025-64715).
    if let Some(empty) = present.iter().find(|node| node.is_empty()) {
        rule.selects_nothing(empty.path());
        return Ok(Some(Peers::NONE));
    }
    if present.len() > 1 {
        rule.unsupported_peers(last.path(), "several kinds of peers in one rule");
    }
    for node in names.unsupported.iter().filter_map(|name| fields.get(name)) {
        rule.unsupported_peers(node.path(), "this field");
    }
    Ok(endpoints.or(entities).or(Some(Peers::NONE)))
}

fn parse_endpoints(
    fields: &Fields<'_>,
    names: &PeerFields,
    rule: &RuleContext<'_>,
) -> Result<Option<Peers>, Fault> {
    let Some(items) = fields.items(names.endpoints)? else { return Ok(None) };
    let peer = |node: &Node<'_>| {
        let selector = selector::of_peers(selector::parse(node)?, rule.object, rule.subject_is_init);
        Ok(Peer::Selector(selector))
    };
    Ok(Some(Peers::Selected(items.iter().map(peer).collect::<Result<_, Fault>>()?)))
}

fn parse_entities(
    fields: &Fields<'_>,
    names: &PeerFields,
    rule: &mut RuleContext<'_>,
) -> Result<Option<Peers>, Fault> {
    let Some(items) = fields.items(names.entities)? else { return Ok(None) };
    let mut peers = Vec::new();
    let mut all = false;
    for node in items {
        match node.one_of(&ENTITIES)? {
            Entity::All => all = true,
            Entity::None => {}
            Entity::Cluster => {
                peers.extend(IN_CLUSTER.iter().filter_map(|name| reserved(name)));
                peers.push(Peer::OwnCluster);
            }
            Entity::ClusterMesh => {
                peers.extend(IN_CLUSTER.iter().filter_map(|name| reserved(name)));
                peers.extend(exists(Source::K8s, CLUSTER_KEY));
            }
            Entity::Reserved(name) => peers.extend(reserved(name)),
            Entity::Unsupported => rule.unsupported_peers(node.path(), "this entity"),
        }
    }
    Ok(Some(if all { Peers::Any } else { Peers::Selected(peers) }))
}

fn reserved(name: &str) -> Option<Peer> {
    exists(Source::Reserved, name)
}

fn exists(source: Source, key: &str) -> Option<Peer> {
    let requirement = Requirement { key: LabelKey::new(source, key).ok()?, operator: Operator::Exists };
    Some(Peer::Selector(Selector { requirements: vec![requirement] }))
}
