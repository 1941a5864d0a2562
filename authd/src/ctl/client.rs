//! A connection to the daemon. Every call has a deadline: a daemon that hangs counts as dead.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{cli::Global, error::Error};
use crate::{
    api::v1::{self, authd_client::AuthdClient},
    explain,
    trace::Question,
};

/// An auth table has as many entries as the map, each with two SPIFFE IDs.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The daemon, as far as authctl is concerned.
pub(super) struct Daemon {
    client: AuthdClient<Channel>,
    socket: PathBuf,
    timeout: Duration,
}

impl Daemon {
    pub(super) async fn connect(global: &Global) -> Result<Self, Error> {
        let socket = global.socket.clone();
        let connection = deadline(global, async { Ok(UnixStream::connect(&socket).await) }).await?;
        let stream = connection.map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                return Error::Forbidden(socket.clone());
            }
            Error::NotRunning { socket: socket.clone(), source }
        })?;
        // One connection for one command: when it breaks, so does the command.
        let stream = Mutex::new(Some(TokioIo::new(stream)));
        let connector = tower::service_fn(move |_uri| {
            let stream = stream.lock().ok().and_then(|mut stream| stream.take());
            std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
        });
        let endpoint = Endpoint::from_static("http://authd");
        let channel = deadline(global, async { Ok(endpoint.connect_with_connector(connector).await) })
            .await?
            .map_err(|_broken| ended(&socket))?;
        let client = AuthdClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        Ok(Self { client, socket, timeout: global.timeout })
    }

    pub(super) async fn status(&mut self) -> Result<v1::Status, Error> {
        let (socket, timeout) = self.limits();
        let response = call(socket, timeout, self.client.get_status(v1::GetStatusRequest {})).await?;
        response.status.ok_or(Error::Incomplete("status"))
    }

    pub(super) async fn auth_entries(&mut self) -> Result<Vec<v1::AuthEntry>, Error> {
        let (socket, timeout) = self.limits();
        Ok(call(socket, timeout, self.client.list_auth(v1::ListAuthRequest {})).await?.entries)
    }

    pub(super) async fn explain_auth(
        &mut self,
        question: &explain::Question,
    ) -> Result<v1::AuthExplanation, Error> {
        let (socket, timeout) = self.limits();
        let explain::Question { from, to, port } = question;
        let port = port.as_ref().map(ToString::to_string).unwrap_or_default();
        let request = v1::ExplainAuthRequest { from: from.to_string(), to: to.to_string(), port };
        let response = call(socket, timeout, self.client.explain_auth(request)).await?;
        response.explanation.ok_or(Error::Incomplete("explanation"))
    }

    pub(super) async fn flush_auth(&mut self) -> Result<u32, Error> {
        let (socket, timeout) = self.limits();
        Ok(call(socket, timeout, self.client.flush_auth(v1::FlushAuthRequest {})).await?.flushed)
    }

    pub(super) async fn encryption(&mut self) -> Result<v1::Encryption, Error> {
        let (socket, timeout) = self.limits();
        let response = call(socket, timeout, self.client.get_encryption(v1::GetEncryptionRequest {})).await?;
        response.encryption.ok_or(Error::Incomplete("encryption"))
    }

    pub(super) async fn identities(&mut self) -> Result<Vec<v1::Identity>, Error> {
        let (socket, timeout) = self.limits();
        let request = v1::ListIdentitiesRequest {};
        Ok(call(socket, timeout, self.client.list_identities(request)).await?.identities)
    }

    pub(super) async fn policies(&mut self) -> Result<Vec<v1::Policy>, Error> {
        let (socket, timeout) = self.limits();
        let request = v1::ListPoliciesRequest {};
        Ok(call(socket, timeout, self.client.list_policies(request)).await?.policies)
    }

    pub(super) async fn trace_policy(&mut self, question: &Question) -> Result<v1::PolicyTrace, Error> {
        let (socket, timeout) = self.limits();
        let Question { from, to, port } = question;
        let request =
            v1::TracePolicyRequest { from: from.to_string(), to: to.to_string(), port: port.to_string() };
        let response = call(socket, timeout, self.client.trace_policy(request)).await?;
        response.trace.ok_or(Error::Incomplete("trace"))
    }

    pub(super) async fn svids(&mut self) -> Result<Vec<v1::Svid>, Error> {
        let (socket, timeout) = self.limits();
        Ok(call(socket, timeout, self.client.list_svids(v1::ListSvidsRequest {})).await?.svids)
    }

    pub(super) async fn bundles(&mut self) -> Result<Vec<v1::Bundle>, Error> {
        let (socket, timeout) = self.limits();
        Ok(call(socket, timeout, self.client.list_bundles(v1::ListBundlesRequest {})).await?.bundles)
    }

    pub(super) async fn record_override(&mut self, note: v1::RecordOverrideRequest) -> Result<(), Error> {
        let (socket, timeout) = self.limits();
        call(socket, timeout, self.client.record_override(note)).await.map(|_recorded| ())
    }

    pub(super) async fn observe(&mut self, request: v1::ObserveRequest) -> Result<Observed, Error> {
        let (socket, timeout) = self.limits();
        let patience = (!request.follow).then_some(timeout);
        let stream = call(socket.clone(), timeout, self.client.observe(request)).await?;
        Ok(Observed { stream, socket, patience })
    }

    fn limits(&self) -> (PathBuf, Duration) {
        (self.socket.clone(), self.timeout)
    }
}

/// A stream of flows.
pub(super) struct Observed {
    stream: Streaming<v1::ObserveResponse>,
    socket: PathBuf,
    /// How long the next item may take; `None` when following.
    patience: Option<Duration>,
}

impl Observed {
    /// The next item; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<v1::observe_response::Item>, Error> {
        loop {
            let next = self.stream.message();
            let message = match self.patience {
                None => next.await,
                Some(timeout) => tokio::time::timeout(timeout, next)
                    .await
                    .map_err(|_elapsed| Error::NoAnswer { socket: self.socket.clone(), timeout })?,
            };
            match message.map_err(|status| refused(&self.socket, status))? {
                None => return Ok(None),
                // A kind of item that a newer daemon has.
                Some(v1::ObserveResponse { item: None }) => {}
                Some(v1::ObserveResponse { item }) => return Ok(item),
            }
        }
    }
}

async fn deadline<T>(global: &Global, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let (socket, timeout) = (global.socket.clone(), global.timeout);
    tokio::time::timeout(timeout, work).await.map_err(|_elapsed| Error::NoAnswer { socket, timeout })?
}

async fn call<T>(
    socket: PathBuf,
    timeout: Duration,
    request: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(timeout, request).await {
        Err(_elapsed) => Err(Error::NoAnswer { socket, timeout }),
        Ok(Err(status)) => Err(refused(&socket, status)),
        Ok(Ok(response)) => Ok(response.into_inner()),
    }
}

fn refused(socket: &Path, status: Status) -> Error {
    if status.code() == Code::Unimplemented {
        return Error::Unknown;
    }
    // Not the daemon's word, but the transport's.
    if std::error::Error::source(&status).is_some() {
        return ended(socket);
    }
    Error::Refused(Box::new(status))
}

/// The connection has gone: the daemon ended, or was killed, meanwhile.
fn ended(socket: &Path) -> Error {
    let source = io::Error::new(io::ErrorKind::ConnectionReset, "the connection has ended");
    Error::NotRunning { socket: socket.to_owned(), source }
}
