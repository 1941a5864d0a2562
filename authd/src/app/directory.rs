//! Cluster state and sessions in the terms of peers, of the authentication machine and of the maps.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

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
            let directory = self.directory(&cluster);
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

    fn directory(&self, cluster: &Cluster) -> Directory {
        let node = |node: &crate::cluster::Node| {
            let addresses =
                node.addresses.iter().map(|address| SocketAddr::new(*address, self.handshake_port)).collect();
            let identities: BTreeSet<_> =
                cluster.local_pods(&node.name).filter_map(|pod| pod.identity).collect();
            // Without a number or a name that fits into a SPIFFE ID there is nobody to dial.
            let known = Node {
                number: node.number?,
                spiffe_id: self.naming.node(&node.name)?,
                addresses,
                identities,
            };
            Some((node.name.clone(), known))
        };
        let identities = cluster.identities.iter().filter(|identity| !identity.is_reserved());
        Directory {
            nodes: cluster.nodes.values().filter_map(node).collect(),
            identities: identities
                .filter_map(|identity| Some((identity.number(), self.naming.identity(identity.number())?)))
                .collect(),
        }
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
