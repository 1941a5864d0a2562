//! Unary calls at SPIRE server. Connects anew for each: calls are rare and the server may restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::Snapshot;
use crate::socket::{self, ApiError};

const MAX_MESSAGE: usize = 64 << 20;

/// How long a call may take: with ten thousand entries under one parent a batch of 200 takes SPIRE 15 s.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where a server is, and how it knows who calls.
#[derive(Debug, Clone)]
pub enum ServerAddress {
    /// Its unix socket. Whoever may connect there may do anything.
    Socket(PathBuf),
    /// TCP, by mutual TLS with an SVID of the server's trust domain.
    Tcp {
        /// Host and port, such as `spire-server.spire:8081`.
        address: String,
        /// Whose SVID says who calls.
        own: watch::Receiver<Snapshot>,
    },
}

/// A server, for one of its services.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    address: ServerAddress,
    service: &'static str,
}

impl Server {
    pub(crate) fn new(address: ServerAddress, service: &'static str) -> Self {
        Self { address, service }
    }

    pub(crate) fn path(&self) -> &Path {
        match &self.address {
            ServerAddress::Socket(path) => path,
            ServerAddress::Tcp { address, .. } => Path::new(address),
        }
    }

    pub(crate) async fn unary<Q, R>(&self, method: &'static str, request: Q) -> Result<R, ApiError>
    where
        Q: prost::Message + Default + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let asked = async {
            let channel = self.connect().await?;
            let answer = call(channel, PathAndQuery::from_static(method), request).await;
            answer.map_err(|status| ApiError::from_status(self.path(), self.service, &status))
        };
        let stuck = || ApiError::Deadline { path: self.path().to_path_buf(), deadline: DEADLINE };
        tokio::time::timeout(DEADLINE, asked).await.unwrap_or_else(|_elapsed| Err(stuck()))
    }

    async fn connect(&self) -> Result<Channel, ApiError> {
        match &self.address {
            ServerAddress::Socket(path) => socket::connect(path).await,
            ServerAddress::Tcp { address, own } => {
                let own = own.borrow().clone();
                socket::connect_server(address, &own).await
            }
        }
    }

    /// A message from here that cannot be used.
    pub(crate) fn unusable(&self, reason: String) -> ApiError {
        ApiError::Message { path: self.path().to_path_buf(), reason }
    }
}

async fn call<Q, R>(channel: Channel, method: PathAndQuery, request: Q) -> Result<R, tonic::Status>
where
    Q: prost::Message + Default + Send + Sync + 'static,
    R: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let response = grpc.unary(tonic::Request::new(request), method, ProstCodec::<Q, R>::default()).await?;
    Ok(response.into_inner())
}
