//! The SPIFFE Broker API of one agent, for X.509 and for processes of this host, by mutual TLS.
//!
//! As in SPIRE 1.15.3, who may ask is looked at when he connects and never again, a process that has ended goes on
//! having its SVID, and whoever is refused hears of it only by the end of the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use super::agent::{Agent, selectors_of_process, updates};
use super::grpc::{self, Api};
use super::workload_api::message;
use super::world::State;
use crate::proto::broker::{
    PID_REFERENCE, Pid, SECURITY_HEADER, SERVICE, SUBSCRIBE_TO_X509_SVID, SvidRequest,
};
use crate::proto::workload::X509SvidResponse;
use crate::{Bundle, Bundles, ExpectedPeer, Groups, tls};

/// How long a caller may take to say who he is.
const HANDSHAKE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct BrokerApi {
    agent: Arc<Agent>,
    stop: CancellationToken,
}

impl BrokerApi {
    pub(crate) fn new(agent: Arc<Agent>, stop: CancellationToken) -> Self {
        Self { agent, stop }
    }

    fn svids(
        &self,
        request: &Request<SvidRequest>,
    ) -> Result<ReceiverStream<Result<X509SvidResponse, Status>>, Status> {
        let header = request.metadata().get(SECURITY_HEADER);
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("security header missing from request"));
        }
        let pid = pid(request.get_ref())?;
        let selectors = selectors_of_process(pid).ok_or_else(|| {
            Status::internal(
                "workload attestor \"unix\" failed: failed to get process: process does not exist",
            )
        })?;
        let agent = Arc::clone(&self.agent);
        let build = move |state: &State| Ok(message(state, &agent.current_delegated(state, &selectors)?));
        Ok(updates(&self.agent, self.stop.clone(), build))
    }
}

impl Api for BrokerApi {
    const NAME: &'static str = SERVICE;

    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            SUBSCRIBE_TO_X509_SVID => grpc::streaming(request, |request| self.svids(&request)).await,
            _ => grpc::unimplemented(),
        }
    }
}

fn pid(request: &SvidRequest) -> Result<i32, Status> {
    let any = request.reference.as_ref().and_then(|reference| reference.reference.as_ref());
    let any = any.ok_or_else(|| Status::invalid_argument("workload reference is required"))?;
    if any.type_url != PID_REFERENCE {
        let kind = &any.type_url;
        return Err(Status::permission_denied(format!("broker is not allowed to use reference type {kind}")));
    }
    let pid = Pid::decode(any.value.as_slice());
    Ok(pid.map_err(|error| Status::invalid_argument(error.to_string()))?.pid)
}

/// The connections of whoever has proven to be the agent's broker. Must be called within a tokio runtime.
pub(crate) fn admitted(
    listener: UnixListener,
    agent: Arc<Agent>,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Secured>> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (agent, sender) = (Arc::clone(&agent), sender.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                if let Ok(Some(secured)) = tokio::time::timeout(HANDSHAKE, admit(stream, &agent)).await {
                    // The server has stopped, if nobody listens.
                    drop(sender.send(Ok(secured)).await);
                }
            }));
        }
    }));
    ReceiverStream::new(receiver)
}

/// The handshake, with an SVID of the agent's own and the CAs of this moment.
async fn admit(stream: UnixStream, agent: &Agent) -> Option<Secured> {
    let (svid, der) = agent.own_svid()?;
    let own = agent.world().trust_domain().clone();
    let bundles: Bundles = [Bundle::from_der(own, &der).ok()?].into_iter().collect();
    let broker = ExpectedPeer::Exact(agent.delegate().clone());
    let config = tls::server_config(&svid, &bundles, broker, b"h2", &Groups::Any.into()).ok()?;
    TlsAcceptor::from(config).accept(stream).await.ok().map(Secured)
}

/// A connection that has been admitted.
#[derive(Debug)]
pub(crate) struct Secured(TlsStream<UnixStream>);

impl Connected for Secured {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
