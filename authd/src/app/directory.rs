//! Cluster state and sessions in the terms of peers, of the authentication machine and of the maps.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use auth_ebpf_abi::IdentityNumber;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Desired, Event, Handle},
    cluster::Cluster,
    datapath::{NodeSessions, View},
    metrics::Metrics,
    peer::{Directory, Naming, Node, SessionMap},
};

/// Keeps peers and the machine informed of who runs where and what policy asks.
pub(super) struct DirectoryTask {
    pub(super) node: String,
    pub(super) naming: Naming,
    pub(super) handshake_port: u16,
    pub(super) cluster: watch::Receiver<Arc<Cluster>>,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) directory: watch::Sender<Arc<Directory>>,
    pub(super) auth: Handle,
    pub(super) stop: CancellationToken,
}

impl DirectoryTask {
    pub(super) async fn run(mut self) {
        let mut desired = Desired::default();
        loop {
            let cluster = Arc::clone(&self.cluster.borrow_and_update());
            let directory = directory_of(&cluster, &self.naming, self.handshake_port);
            let required = self.view.borrow_and_update().required.clone();
            let placed = directory.placed(&self.node);
            self.directory.send_if_modified(|last| {
                let differs = **last != directory;
                if differs {
                    *last = Arc::new(directory);
                }
                differs
            });
            // Until policies are compiled nothing is said: an empty wish would end what stands in the map.
            if let Some(pairs) = required {
                let now = Desired { pairs: Some(pairs), placed };
                if now != desired {
                    desired = now.clone();
                    self.auth.tell(Event::Desired(Arc::new(now))).await;
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                Ok(()) = self.cluster.changed() => {}
                Ok(()) = self.view.changed() => {}
            }
        }
    }
}

/// Cluster state in the terms of peers. Whatever is revoked is not in it: then nothing of it can be dialled,
/// accepted, recorded or kept.
fn directory_of(cluster: &Cluster, naming: &Naming, handshake_port: u16) -> Directory {
    let counts = |identity: &IdentityNumber| !cluster.revoked.identities.contains(identity);
    let node = |node: &crate::cluster::Node| {
        if cluster.revoked.nodes.contains(&node.name) {
            return None;
        }
        let addresses =
            node.addresses.iter().map(|address| SocketAddr::new(*address, handshake_port)).collect();
        let identities: BTreeSet<_> =
            cluster.local_pods(&node.name).filter_map(|pod| pod.identity).filter(counts).collect();
        // Without a number or a name that fits into a SPIFFE ID there is nobody to dial.
        let known = Node { number: node.number?, spiffe_id: naming.node(&node.name)?, addresses, identities };
        Some((node.name.clone(), known))
    };
    let identities = cluster.identities.iter().filter(|identity| !identity.is_reserved());
    let identities = identities.filter(|identity| counts(&identity.number()));
    Directory {
        nodes: cluster.nodes.values().filter_map(node).collect(),
        identities: identities
            .filter_map(|identity| Some((identity.number(), naming.identity(identity)?)))
            .collect(),
    }
}

/// Keeps the maps informed of when sessions end.
pub(super) struct NodeSessionsTask {
    pub(super) sessions: watch::Receiver<SessionMap>,
    pub(super) grace: Duration,
    pub(super) metrics: Arc<Metrics>,
    pub(super) sender: watch::Sender<Arc<NodeSessions>>,
    pub(super) stop: CancellationToken,
}

impl NodeSessionsTask {
    pub(super) async fn run(mut self) {
        loop {
            let sessions = Arc::clone(&self.sessions.borrow_and_update());
            let live = sessions.values().filter(|session| session.live).count();
            self.metrics.set_node_sessions(live, sessions.len() - live);
            let known: NodeSessions = sessions
                .values()
                .map(|session| (session.number, (session.ends.saturating_add(self.grace), session.epoch)))
                .collect();
            self.sender.send_if_modified(|last| {
                let differs = **last != known;
                if differs {
                    *last = Arc::new(known);
                }
                differs
            });
            tokio::select! {
                () = self.stop.cancelled() => return,
                Ok(()) = self.sessions.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use spiffe::TrustDomain;

    use super::*;

    #[test]
    fn what_is_revoked_is_not_there() {
        let mut cluster = Cluster::default();
        for (name, number) in [("n1", 1), ("n2", 2)] {
            let node = crate::cluster::Node {
                name: name.to_owned(),
                number: Some(number),
                addresses: vec![[192, 0, 2, 1].into()],
                pod_cidrs: Vec::new(),
            };
            cluster.nodes.insert(name.to_owned(), node);
            cluster.pods.push(crate::cluster::Pod {
                namespace: "default".to_owned(),
                name: name.to_owned(),
                node: Some(name.to_owned()),
                addresses: Vec::new(),
                host_network: false,
                mirror: false,
                service_account: "default".to_owned(),
                named_ports: Vec::new(),
                labels: BTreeMap::default(),
                identity: Some(255 + u32::from(number)),
            });
        }
        let naming =
            Naming::new(TrustDomain::new("example.test").unwrap(), "/identity/{id}", "default").unwrap();
        let directory = |cluster: &Cluster| directory_of(cluster, &naming, 4250);
        assert!(directory(&cluster).runs_on(256, "n1") && directory(&cluster).runs_on(257, "n2"));
        cluster.revoked.identities.insert(256);
        assert!(!directory(&cluster).runs_on(256, "n1") && directory(&cluster).runs_on(257, "n2"));
        cluster.revoked.nodes.insert("n2".to_owned());
        assert_eq!(directory(&cluster).nodes.keys().collect::<Vec<_>>(), ["n1"]);
        assert_eq!(directory(&cluster).placed("n1").len(), 1);
    }
}
