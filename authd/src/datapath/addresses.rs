//! Addresses that change hands, in the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use auth_ebpf::Maps;
use auth_ebpf_abi::{NodeEntry, NodeNumber, identity};

use super::{Plan, Task, chain};
use crate::{
    clock::BootTime,
    cluster::Cluster,
    handover::{Assigned, Claims, Contested, Told, is_withheld, withheld},
};

/// What is known of who has which address.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    pub(super) claims: Claims,
    /// Each node's session epoch, and this node's address epoch that it has acknowledged.
    acknowledged: BTreeMap<NodeNumber, (u32, u32)>,
    /// What has been said of already.
    reported: Vec<Contested>,
}

impl Addresses {
    /// What stands in the maps from before.
    pub(super) fn adopt(maps: &Maps) -> Result<Self, auth_ebpf::Error> {
        let mut claims = Claims::default();
        claims.adopt(&maps.addresses().entries()?);
        let nodes = maps.nodes().entries()?.into_iter();
        let acknowledged = nodes.map(|(node, entry)| (node, (entry.epoch, entry.acknowledged))).collect();
        Ok(Self { claims, acknowledged, reported: Vec::new() })
    }

    /// Has nodes claim nothing that cluster state doesn't know.
    pub(super) fn forget(&mut self, cluster: &Cluster, now: BootTime) {
        self.claims.retain(|node| cluster.node_by_number(node).is_some(), now);
    }

    /// What each node has acknowledged. One that has begun anew knows nothing of what it once did.
    pub(super) fn acknowledge(&self, nodes: &mut BTreeMap<NodeNumber, NodeEntry>) {
        for (node, entry) in nodes {
            let known =
                self.acknowledged.get(node).filter(|(session_epoch, _)| *session_epoch == entry.epoch);
            entry.acknowledged = known.map_or(0, |(_, epoch)| *epoch);
        }
    }
}

impl Task {
    /// Gives the planned endpoints the epochs of their assignments. Sessions know of them before the programs
    /// can ask.
    pub(super) fn assign(&mut self, maps: &Maps, plan: &mut Plan) -> Result<(), auth_ebpf::Error> {
        let before = maps.endpoints().entries()?.into_iter().collect();
        let (session_epoch, last) = self.addresses.acknowledged.get(&0).copied().unwrap_or_default();
        let assigned = Assigned::assign(&mut plan.endpoints, &before, last);
        if assigned.epoch != last {
            // First of all: an epoch that is in use must not be given again.
            maps.acknowledge(0, session_epoch, assigned.epoch)?;
            self.addresses.acknowledged.insert(0, (session_epoch, assigned.epoch));
        }
        self.addresses.claims.take(0, assigned.owners.clone(), self.parts.clock.now());
        self.parts.assigned.send_if_modified(|known| {
            let differs = **known != assigned;
            if differs {
                *known = Arc::new(assigned);
            }
            differs
        });
        Ok(())
    }

    /// Takes down what a session has told.
    pub(super) async fn hear(&mut self, told: Told) {
        match told {
            Told::Acknowledged { node, session_epoch, epoch } => {
                self.addresses.acknowledged.insert(node, (session_epoch, epoch));
                match self.parts.datapath.maps().acknowledge(node, session_epoch, epoch) {
                    Ok(_) => (self.parts.acknowledged)(node),
                    Err(error) => tracing::error!(node, error = chain(&error), "acknowledgement not written"),
                }
            }
            Told::Announced { node, owners, applied } => {
                let changed = self.addresses.claims.take(node, owners, self.parts.clock.now());
                match self.withhold(node, &changed) {
                    Ok(false) => {}
                    // Those whom cluster state knows already get their addresses now.
                    Ok(true) => self.reconcile().await,
                    Err(error) => {
                        tracing::error!(node, error = chain(&error), "addresses not acknowledged");
                        return;
                    }
                }
                if applied.send(()).is_err() {
                    tracing::debug!(node, "the session that told of addresses has ended");
                }
            }
        }
    }

    /// Has nobody count as the owner of these addresses who isn't according to their node; whether any was
    /// affected.
    fn withhold(&self, node: NodeNumber, changed: &BTreeSet<IpAddr>) -> Result<bool, auth_ebpf::Error> {
        let addresses = self.parts.datapath.maps().addresses();
        let mut affected = false;
        for ip in changed {
            let Some(entry) = addresses.get(&(*ip).into())?.filter(|entry| entry.node == node) else {
                continue;
            };
            affected |= is_withheld(&entry);
            let is_pod = !identity::is_reserved(entry.identity);
            if is_pod && self.addresses.claims.contradicts(node, ip, entry.identity) {
                addresses.insert(&(*ip).into(), &withheld(node))?;
                affected = true;
                tracing::info!(address = %ip, node, identity = entry.identity, "address has changed hands");
            }
        }
        Ok(affected)
    }

    /// Addresses that several nodes claim, logged and counted when they begin to be.
    pub(super) fn contested(&mut self) -> Vec<Contested> {
        let contested = self.addresses.claims.contested(self.parts.clock.now());
        for Contested { address, nodes } in &contested {
            if !self.addresses.reported.iter().any(|known| known.address == *address) {
                tracing::error!(
                    %address, ?nodes,
                    "several nodes claim one address; only the one counts where cluster state has its pod"
                );
                self.parts.metrics.contested_claims.inc();
            }
        }
        self.parts.metrics.contested_addresses.set(crate::metrics::saturate(contested.len()));
        self.addresses.reported.clone_from(&contested);
        contested
    }
}
