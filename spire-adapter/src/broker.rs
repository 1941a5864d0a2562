//! The SPIFFE Broker API: SVIDs of other processes on this node, which the agent attests itself.
//!
//! Mutual TLS with the node's own SVID over the agent's unix socket. The agent looks at who we are only when we
//! connect: so every rotation of the own SVID makes a new connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use tokio::sync::watch;

pub use crate::process::Process;
use crate::proto::broker::{
    self, Any, PID_REFERENCE, Reference, SECURITY_HEADER, SERVICE, SUBSCRIBE_TO_X509_SVID, SvidRequest,
};
use crate::proto::workload::X509SvidResponse;
use crate::snapshot::Trust;
use crate::socket::Dial;
use crate::stream::{self, Agent, Call};
use crate::subscription::{self, Svids};
use crate::{Snapshot, SpiffeId, Subscription, workload};

/// An agent's broker socket. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BrokerAgent(Arc<Agent>);

impl BrokerAgent {
    /// The broker socket `socket`, at which the SVID in `own` says who we are.
    pub fn new(socket: impl Into<PathBuf>, own: watch::Receiver<Snapshot>) -> Self {
        Self(Agent::with_dial(socket.into(), Dial::Mutual(own)))
    }

    /// Follows the SVID of `expected`, which the agent gives to `process`, for as long as that lives. Must be
    /// called within a tokio runtime.
    pub fn subscribe(&self, process: Process, expected: SpiffeId) -> Subscription {
        let value = broker::Pid { pid: process.pid() }.encode_to_vec();
        let any = Any { type_url: PID_REFERENCE.to_owned(), value };
        let request = SvidRequest { reference: Some(Reference { reference: Some(any) }) };
        let call =
            Call { api: SERVICE, method: SUBSCRIBE_TO_X509_SVID, header: Some(SECURITY_HEADER), request };
        let (keep, trust) = watch::channel(Trust::default());
        let (agent, wanted) = (Arc::clone(&self.0), expected.clone());
        subscription::start(expected, trust, move |sink| async move {
            let parse = Svids(|response: X509SvidResponse| workload::read(&response, &wanted));
            process.follow(&agent, sink.clone(), stream::follow(&agent, call, parse, sink)).await;
            drop(keep);
        })
    }

    /// The broker socket.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
