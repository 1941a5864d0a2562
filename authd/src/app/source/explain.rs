//! What is missing for two ends to talk: gathers what the daemon's parts know of it.

use auth_ebpf_abi::{AuthKey, IdentityNumber, NodeNumber};

use super::{DaemonSource, SourceError, in_background, to_timestamp, v1, wall_time};
use crate::{
    api::Timestamp,
    clock::BootTime,
    cluster::Cluster,
    explain::{self, Entry, Facts, Handshake, Path, Policy, Question, Session, Svid},
    peer::Trouble,
    trace::{self, End},
};

/// Pairs that are looked at; an identity may run on every node.
const MOST: usize = 32;

impl DaemonSource {
    pub(super) async fn explain(
        &self,
        request: &v1::ExplainAuthRequest,
    ) -> Result<v1::AuthExplanation, SourceError> {
        let question = Question::try_from(request).map_err(SourceError::Invalid)?;
        let cluster = self.cluster();
        let invalid = |error: trace::Error| SourceError::Invalid(error.to_string());
        let (from, to) = trace::ends(&cluster, &question.from, &question.to).map_err(invalid)?;
        let policy = match &question.port {
            Some(port) => {
                let asked = trace::Question {
                    from: question.from.clone(),
                    to: question.to.clone(),
                    port: port.clone(),
                };
                let cluster = self.cluster();
                let traced = move || {
                    trace::answer(&cluster, &asked).map_err(|error| SourceError::Invalid(error.to_string()))
                };
                Policy::Traced(Box::new(in_background(traced).await?))
            }
            None => {
                let view = self.view.borrow();
                let asks = |pairs: &policy::AuthenticationPairs| {
                    pairs.contains(from.identity, to.identity) || pairs.contains(to.identity, from.identity)
                };
                view.required.as_ref().map_or(Policy::Unknown, |pairs| Policy::Asks(asks(pairs)))
            }
        };
        let (from_nodes, to_nodes) = (
            self.nodes_of(&cluster, &question.from, from.identity),
            self.nodes_of(&cluster, &question.to, to.identity),
        );
        let mut paths = Vec::new();
        let keys = explain::keys((from.identity, &from_nodes), (to.identity, &to_nodes));
        for key in keys.into_iter().take(MOST) {
            paths.push(self.path(&cluster, key).await?);
        }
        let name = |number: &NodeNumber| cluster.node_by_number(*number).map(|node| node.name.clone());
        let mut runs_on: Vec<String> = from_nodes.iter().chain(&to_nodes).filter_map(name).collect();
        runs_on.sort();
        runs_on.dedup();
        Ok(explain::explain(Facts {
            node: self.config.node_name.clone(),
            revoked: self.revoked(&cluster, [from.identity, to.identity], &runs_on),
            port: question.port.map(|port| port.to_string()).unwrap_or_default(),
            from,
            to,
            policy,
            runs_on,
            paths,
        }))
    }

    /// Numbers of the nodes on which an end runs, 0 for this one.
    fn nodes_of(&self, cluster: &Cluster, end: &End, identity: IdentityNumber) -> Vec<NodeNumber> {
        let is_end = |pod: &crate::cluster::Pod| match end {
            End::Pod { namespace, name } => pod.namespace == *namespace && pod.name == *name,
            End::Address(address) => pod.addresses.contains(address),
            End::Identity(_) | End::Entity(_) => pod.identity == Some(identity),
        };
        let nodes = cluster.pods.iter().filter(|pod| is_end(pod)).filter_map(|pod| pod.node.as_ref());
        let mut numbers: Vec<NodeNumber> = nodes
            .filter_map(|node| {
                if *node == self.config.node_name { Some(0) } else { cluster.nodes.get(node)?.number }
            })
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    fn revoked(&self, cluster: &Cluster, identities: [IdentityNumber; 2], nodes: &[String]) -> Vec<String> {
        let own = &self.config.node_name;
        let identities = identities.into_iter().filter(|one| cluster.revoked.identities.contains(one));
        let identities = identities.map(|identity| format!("identity {identity} is"));
        let nodes = nodes.iter().chain([own]).filter(|node| cluster.revoked.nodes.contains(*node));
        identities.chain(nodes.map(|node| format!("node {node} is"))).collect()
    }

    async fn path(&self, cluster: &Cluster, key: AuthKey) -> Result<Path, SourceError> {
        let failed = |error: auth_ebpf::Error| SourceError::Failed(error.to_string());
        let node = cluster.node_by_number(key.node).filter(|_| key.node != 0);
        let (session, announced) = node.map_or((Session::Local, None), |node| self.session(&node.name));
        let (held, oldest) = self.maps.hold().held_for(&key).map_err(failed)?;
        Ok(Path {
            key,
            node: node.map_or_else(|| self.config.node_name.clone(), |node| node.name.clone()),
            local_svid: self.svid(key.local),
            remote_svid: match (key.node, announced) {
                (0, _) => self.svid(key.remote),
                (_, None) => Svid::Unknown,
                (_, Some(announced)) if announced.contains(&key.remote) => Svid::Announced,
                (_, Some(_)) => Svid::NotAnnounced,
            },
            session,
            handshake: self.handshake(key).await,
            entry: self.entry(key).map_err(failed)?,
            held: Some((held, oldest.map(|since| wall_time(&*self.clock, BootTime(since))))),
        })
    }

    /// The session, and what the node vouches for on it.
    fn session(
        &self,
        node: &str,
    ) -> (Session, Option<std::sync::Arc<std::collections::BTreeSet<IdentityNumber>>>) {
        let trouble = || self.peers.trouble(node).map(|Trouble { what, at }| (what, to_timestamp(at)));
        let sessions = self.sessions.borrow();
        let Some(session) = sessions.get(node) else { return (Session::None { trouble: trouble() }, None) };
        if !session.live {
            let until = session.ends.saturating_add(self.config.encryption.svid_grace);
            let tunnel_until = wall_time(&*self.clock, until);
            let over = until <= self.clock.now();
            return (Session::Lost { trouble: trouble(), tunnel_until, over }, None);
        }
        let up = Session::Up {
            since: to_timestamp(session.since),
            expires: to_timestamp(session.expires),
            group: session.group.to_owned(),
            preshared_since: session
                .preshared_since
                .filter(|_| session.preshared_key.is_some())
                .map(to_timestamp),
        };
        (up, Some(std::sync::Arc::clone(&session.identities)))
    }

    fn svid(&self, identity: IdentityNumber) -> Svid {
        let Some(known) = self.svids.all().remove(&identity) else { return Svid::Unknown };
        let spiffe_id = known.spiffe_id.to_string();
        match known.credential {
            Some(credential) if credential.svid.is_valid_at(self.clock.wall()) => {
                Svid::Available { spiffe_id, expires: to_timestamp(credential.svid.not_after()) }
            }
            Some(_) => Svid::Expired(spiffe_id),
            None if known.withdrawn && known.arrived => Svid::Withdrawn(spiffe_id),
            None => Svid::Pending {
                spiffe_id,
                problem: known.problem.map(|problem| problem.to_string()).unwrap_or_default(),
            },
        }
    }

    async fn handshake(&self, key: AuthKey) -> Handshake {
        let Some(outlook) = self.auth.outlook(key).await else { return Handshake::NoDaemon };
        let now = self.clock.now();
        let at = |time: BootTime| -> Timestamp { wall_time(&*self.clock, time) };
        if let Some(record) = outlook.record {
            return Handshake::Done(record.why.as_str());
        }
        if let Some(since) = outlook.running_since {
            return Handshake::Running(at(since));
        }
        if let Some(since) = outlook.waiting_since {
            return Handshake::Queued(at(since));
        }
        if !outlook.desired {
            return Handshake::NotDesired;
        }
        if let Some((failure, when)) = outlook.last_failure {
            let retry = (outlook.retry_at > now).then(|| at(outlook.retry_at));
            return Handshake::Failed {
                failures: outlook.failures,
                reason: failure.reason,
                at: at(when),
                retry,
            };
        }
        if outlook.asked_until > now { Handshake::Asked } else { Handshake::NotAsked }
    }

    fn entry(&self, key: AuthKey) -> Result<Entry, auth_ebpf::Error> {
        let Some(entry) = self.maps.auth().get(&key)? else { return Ok(Entry::None) };
        let epoch = if key.node == 0 {
            entry.epoch
        } else {
            self.maps.nodes().get(&key.node)?.map(|node| node.epoch).unwrap_or_default()
        };
        Ok(Entry::There {
            expires: wall_time(&*self.clock, BootTime(entry.expires)),
            epochs: (entry.epoch, epoch),
            valid: entry.epoch == epoch && self.clock.now().0 < entry.expires,
            draining: entry.flags & auth_ebpf_abi::AuthFlags::DRAINING != 0,
        })
    }

    /// Whether new packets of a pair still wait behind those that were held for it.
    pub(super) fn is_draining(&self, key: &AuthKey) -> bool {
        let entry = self.maps.auth().get(key).ok().flatten();
        entry.is_some_and(|entry| entry.flags & auth_ebpf_abi::AuthFlags::DRAINING != 0)
    }
}
