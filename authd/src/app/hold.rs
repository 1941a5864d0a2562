//! Holding packets, joined to the authentication's driver.

use std::sync::Arc;

use auth_ebpf_abi::NodeNumber;

use super::Daemon;
use crate::{
    auth::{Handle, driver::Handshakes},
    hold::{self, HoldingAuth, Outcomes, Telling},
    peer::Peers,
};

/// What driver and holding share.
pub(super) struct Holding {
    pub(super) table: Arc<HoldingAuth>,
    /// None: nothing is held.
    outcomes: Option<Arc<Outcomes>>,
}

impl Holding {
    /// Tells that a node has acknowledged whose the addresses here are.
    pub(super) fn announced(&self) -> Box<dyn Fn(NodeNumber) + Send + Sync> {
        let outcomes = self.outcomes.clone();
        Box::new(move |node| {
            if let Some(outcomes) = &outcomes {
                outcomes.announced(node);
            }
        })
    }

    /// Handshakes whose failures are told.
    pub(super) fn telling(&self, handshakes: Arc<dyn Handshakes>) -> Arc<dyn Handshakes> {
        match &self.outcomes {
            Some(outcomes) => Arc::new(Telling { handshakes, outcomes: Arc::clone(outcomes) }),
            None => handshakes,
        }
    }
}

impl Daemon {
    /// The pinned `auth` map, taken over.
    pub(super) fn holding(&self) -> Result<Holding, auth_ebpf::Error> {
        let outcomes: Option<Arc<Outcomes>> = self.config.hold.then(Arc::default);
        let table = HoldingAuth::new(self.maps.clone(), Arc::clone(&self.clock), outcomes.clone())?;
        Ok(Holding { table: Arc::new(table), outcomes })
    }

    /// Holds packets from now on, or has the programs drop them.
    pub(super) fn start_holding(
        &mut self,
        holding: Holding,
        peers: &Peers,
        auth: Handle,
    ) -> Result<(), auth_ebpf::Error> {
        let peers = peers.clone();
        let Some(outcomes) = holding.outcomes else { return hold::switch_off(&self.maps) };
        let task = hold::Task::new(hold::Parts {
            maps: self.maps.clone(),
            table: holding.table,
            auth,
            announce: Box::new(move |node| peers.announce(node)),
            outcomes,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
        })?;
        let stop = self.stop.clone();
        self.spawn("hold", async move {
            task.run(stop).await;
            Ok(())
        });
        Ok(())
    }
}
