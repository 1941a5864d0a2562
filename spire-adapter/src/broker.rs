//! The SPIFFE Broker API: SVIDs of other processes on this node, which the agent attests itself.
//!
//! Mutual TLS with the node's own SVID over the agent's unix socket. The agent looks at who we are only when we
//! connect, and never notices that a process has ended: so every rotation of the own SVID makes a new connection,
//! and each process is held by a pidfd that ends its stream.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use crate::proto::broker::{
    self, Any, PID_REFERENCE, Reference, SECURITY_HEADER, SERVICE, SUBSCRIBE_TO_X509_SVID, SvidRequest,
};
use crate::proto::workload::X509SvidResponse;
use crate::snapshot::{Heard, Message, Trust};
use crate::socket::Dial;
use crate::stream::{self, Agent, Call};
use crate::subscription::{self, Svids};
use crate::{ApiError, Snapshot, SpiffeId, Subscription, workload};

/// A process that cannot be taken for that of a later one with the same number.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// The process that has this number now. Must be called within a tokio runtime.
    pub fn open(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(number, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that own no descriptor as OwnedFd does"
        )]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { pid, pidfd })
    }

    /// Waits until it has ended.
    async fn ended(&self) {
        // An error says nothing of the process, which is then not known to live.
        drop(self.pidfd.readable().await);
    }
}

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
        let value = broker::Pid { pid: process.pid }.encode_to_vec();
        let any = Any { type_url: PID_REFERENCE.to_owned(), value };
        let request = SvidRequest { reference: Some(Reference { reference: Some(any) }) };
        let call =
            Call { api: SERVICE, method: SUBSCRIBE_TO_X509_SVID, header: Some(SECURITY_HEADER), request };
        let (keep, trust) = watch::channel(Trust::default());
        let (agent, wanted) = (Arc::clone(&self.0), expected.clone());
        subscription::start(expected, trust, move |sink| async move {
            let parse = Svids(|response: X509SvidResponse| workload::read(&response, &wanted));
            tokio::select! {
                () = stream::follow(&agent, call, parse, sink.clone()) => {}
                () = process.ended() => ended(&agent, process.pid, sink).await,
            }
            drop(keep);
        })
    }

    /// The broker socket.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Withdraws what a process had, and stays so until nobody listens.
async fn ended(agent: &Agent, pid: i32, sink: mpsc::Sender<Heard<Message>>) {
    let gone = ApiError::ProcessEnded { path: agent.path().to_path_buf(), pid };
    if sink.send(Heard::Denied(gone)).await.is_ok() {
        sink.closed().await;
    }
}
