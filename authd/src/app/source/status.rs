//! The node at a glance.

use std::collections::BTreeSet;

use super::{DaemonSource, SourceError, to_timestamp, v1};
use crate::{cluster::Node, datapath::plan::Endpoint, peer::Session};

impl DaemonSource {
    pub(super) fn build_status(&self) -> Result<v1::Status, SourceError> {
        let cluster = self.cluster();
        let view = self.view.borrow().clone();
        let own = cluster.nodes.get(&self.config.node_name);
        let rejected = cluster.policies.iter().filter(|policy| policy.refused.is_some()).count();
        let entries = self.auth.records().borrow().len();
        Ok(v1::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.config.node_name.clone(),
            node_number: own.and_then(|node| node.number).unwrap_or_default().into(),
            trust_domain: self.config.spire.trust_domain.to_string(),
            started: Some(to_timestamp(self.started)),
            policy: Some(self.policy_guard()?),
            encryption: Some(self.encryption_guard()?),
            policies: Some(v1::PolicyState {
                accepted: count(cluster.policies.len().saturating_sub(rejected)),
                rejected: count(rejected),
                map_entries: count(view.policy_entries),
            }),
            spire: Some(self.spire()),
            tunnel: Some(self.tunnel()),
            endpoints: view
                .endpoints
                .iter()
                .map(|(endpoint, attached)| to_message(endpoint, *attached))
                .collect(),
            nodes: cluster
                .nodes
                .values()
                .filter(|node| node.name != self.config.node_name)
                .map(|node| self.node(node))
                .collect(),
            attached_by: view.mechanism.to_owned(),
            auth_entries: count(entries),
            hold: Some(v1::Hold { configured: self.config.hold, active: self.can_hold() }),
            conditions: self.conditions(&cluster, &view),
            pending: self
                .readiness
                .pending()
                .into_iter()
                .map(|(what, why)| format!("{what}: {why}"))
                .collect(),
        })
    }

    fn spire(&self) -> v1::Spire {
        let node = self.svids.node();
        let snapshot = self.svids.node_changes().borrow().clone();
        let all = self.svids.all();
        let (with, missing): (Vec<_>, Vec<_>) =
            all.keys().copied().partition(|identity| self.svids.identity(*identity).is_some());
        let with_svid = all.values().filter(|known| known.credential.is_some());
        let apis: BTreeSet<_> = with_svid.filter_map(|known| known.api).collect();
        v1::Spire {
            connected: node.is_some() && !snapshot.stale,
            node_spiffe_id: self
                .naming
                .node(&self.config.node_name)
                .map(|id| id.to_string())
                .unwrap_or_default(),
            node_svid_expires: node.map(|credential| to_timestamp(credential.svid.not_after())),
            identities_with_svid: with,
            identities_missing_svid: missing,
            svid_source: self.config.spire.source.as_str().to_owned(),
            svid_apis: apis.into_iter().map(|api| api.as_str().to_owned()).collect(),
        }
    }

    /// What went wrong last with a node.
    fn trouble(&self, node: &str) -> String {
        self.peers.trouble(node).map(|trouble| format!(" ({})", trouble.what)).unwrap_or_default()
    }

    fn tunnel(&self) -> v1::Tunnel {
        let found = self.found.borrow();
        let reachable = found.status.is_some() && found.failure.is_none();
        found.status.as_ref().map_or_else(
            || v1::Tunnel { interface: self.config.encryption.interface.clone(), ..v1::Tunnel::default() },
            |status| v1::Tunnel {
                interface: status.interface.clone(),
                public_key: status.public_key.to_string(),
                listen_port: status.listen_port.unwrap_or_default().into(),
                peers: count(status.peers.len()),
                reachable,
            },
        )
    }

    fn node(&self, node: &Node) -> v1::Node {
        let sessions = self.sessions.borrow();
        let session = sessions.get(&node.name);
        let live = session.filter(|session| session.live);
        v1::Node {
            name: node.name.clone(),
            number: node.number.unwrap_or_default().into(),
            addresses: node.addresses.iter().map(ToString::to_string).collect(),
            live: live.is_some(),
            tls_group: live.map(|session| session.group.to_owned()).unwrap_or_default(),
            since: live.map(|session| to_timestamp(session.since)),
            expires: session.map(|session| to_timestamp(session.expires)),
            problem: if self.cluster.borrow().revoked.nodes.contains(&node.name) {
                "it is revoked; nothing of it counts here".to_owned()
            } else {
                problem(node, session) + &self.trouble(&node.name)
            },
        }
    }
}

fn problem(node: &Node, session: Option<&Session>) -> String {
    match session {
        _ if node.number.is_none() => "it has no number; run `authctl identities allocate DIR`".to_owned(),
        None => "no session since this daemon started".to_owned(),
        Some(session) if !session.live => {
            "the session is lost; its tunnel goes on until its SVID's grace ends".to_owned()
        }
        Some(session) if session.wireguard_key.is_none() => {
            "it has announced no WireGuard key; its tunnel is not up".to_owned()
        }
        Some(_) => String::new(),
    }
}

fn to_message(endpoint: &Endpoint, attached: bool) -> v1::Endpoint {
    v1::Endpoint {
        pod: endpoint.pod.clone(),
        addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
        identity: endpoint.identity,
        interface: endpoint.interface.as_ref().map(|(_, name)| name.clone()).unwrap_or_default(),
        attached,
        direct: endpoint.direct,
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
