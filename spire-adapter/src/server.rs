//! Unary calls at SPIRE server's unix socket. Connects anew for each: calls are rare and the server may restart.

use std::path::{Path, PathBuf};

use http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::socket::{self, ApiError, CALL_DEADLINE};

const MAX_MESSAGE: usize = 64 << 20;

/// A server's socket, for one of its services.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    path: PathBuf,
    service: &'static str,
}

impl Server {
    pub(crate) fn new(path: PathBuf, service: &'static str) -> Self {
        Self { path, service }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) async fn unary<Q, R>(&self, method: &'static str, request: Q) -> Result<R, ApiError>
    where
        Q: prost::Message + Default + Send + Sync + 'static,
        R: prost::Message + Default + Send + Sync + 'static,
    {
        let channel = socket::connect(&self.path).await?;
        let call = call(channel, PathAndQuery::from_static(method), request);
        match tokio::time::timeout(CALL_DEADLINE, call).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => Err(ApiError::from_status(&self.path, self.service, &status)),
            Err(_elapsed) => Err(ApiError::Deadline { path: self.path.clone(), deadline: CALL_DEADLINE }),
        }
    }

    /// A message from here that cannot be used.
    pub(crate) fn unusable(&self, reason: String) -> ApiError {
        ApiError::Message { path: self.path.clone(), reason }
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
