//! The gRPC service: answers from a [`Source`], streams flows, and logs who has changed something.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::server::UdsConnectInfo};
use tracing::{debug, info};

use super::{
    filter,
    v1::{self, authd_server::Authd, observe_response::Item},
};

/// Where the answers come from. The composition root implements it over the daemon's parts.
#[tonic::async_trait]
pub trait Source: Send + Sync + 'static {
    /// The node at a glance.
    async fn status(&self) -> Result<v1::Status, SourceError>;

    /// The authentications in force, by local identity, remote identity and node.
    async fn auth_entries(&self) -> Result<Vec<v1::AuthEntry>, SourceError>;

    /// What is missing for two ends to talk.
    async fn explain_auth(&self, request: v1::ExplainAuthRequest)
    -> Result<v1::AuthExplanation, SourceError>;

    /// Ends every authentication, on behalf of `caller`; says how many there were.
    async fn flush_auth(&self, caller: Caller) -> Result<u32, SourceError>;

    /// The WireGuard device and its peers.
    async fn encryption(&self) -> Result<v1::Encryption, SourceError>;

    /// The identities of the cluster, by number.
    async fn identities(&self) -> Result<Vec<v1::Identity>, SourceError>;

    /// The policies that are loaded.
    async fn policies(&self) -> Result<Vec<v1::Policy>, SourceError>;

    /// What they say about packets between two ends.
    async fn trace_policy(&self, request: v1::TracePolicyRequest) -> Result<v1::PolicyTrace, SourceError>;

    /// The SVIDs of this node, its own first, then by identity.
    async fn svids(&self) -> Result<Vec<v1::Svid>, SourceError>;

    /// The trust bundles, by trust domain.
    async fn bundles(&self) -> Result<Vec<v1::Bundle>, SourceError>;

    /// Up to `last` flows that there were, the oldest first, and all from there on.
    fn flows(&self, last: usize) -> Flows;

    /// Puts an override that `caller` has written to the pinned maps into the audit.
    async fn record_override(
        &self,
        note: v1::RecordOverrideRequest,
        caller: Caller,
    ) -> Result<(), SourceError>;
}

/// Flows that there were, and a receiver that goes on right after the last of them.
pub type Flows = (Vec<Arc<v1::Flow>>, broadcast::Receiver<Arc<v1::Flow>>);

/// Why a [`Source`] has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not yet, or not at the moment.
    #[error("{0}")]
    Unavailable(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Something has failed that should not.
    #[error("{0}")]
    Failed(String),
}

impl From<SourceError> for Status {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Unavailable(message) => Self::unavailable(message),
            SourceError::Invalid(message) => Self::invalid_argument(message),
            SourceError::Failed(message) => Self::internal(message),
        }
    }
}

/// The process at the other end of the socket, by the kernel's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// Its process id in our namespace, if it has one there.
    pub pid: Option<i32>,
}

impl Caller {
    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let credentials = credentials.ok_or_else(|| Status::unauthenticated("no peer credentials"))?;
        Ok(Self { uid: credentials.uid(), pid: credentials.pid() })
    }
}

/// The service.
pub(super) struct Service {
    source: Arc<dyn Source>,
    shutdown: CancellationToken,
}

impl Service {
    pub(super) fn new(source: Arc<dyn Source>, shutdown: CancellationToken) -> Self {
        Self { source, shutdown }
    }
}

type Items = Pin<Box<dyn Stream<Item = Result<v1::ObserveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Authd for Service {
    type ObserveStream = Items;

    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        log_read("GetStatus", &request)?;
        let status = Some(self.source.status().await?);
        Ok(Response::new(v1::GetStatusResponse { status }))
    }

    async fn list_auth(
        &self,
        request: Request<v1::ListAuthRequest>,
    ) -> Result<Response<v1::ListAuthResponse>, Status> {
        log_read("ListAuth", &request)?;
        let entries = self.source.auth_entries().await?;
        Ok(Response::new(v1::ListAuthResponse { entries }))
    }

    async fn explain_auth(
        &self,
        request: Request<v1::ExplainAuthRequest>,
    ) -> Result<Response<v1::ExplainAuthResponse>, Status> {
        log_read("ExplainAuth", &request)?;
        let explanation = Some(self.source.explain_auth(request.into_inner()).await?);
        Ok(Response::new(v1::ExplainAuthResponse { explanation }))
    }

    async fn flush_auth(
        &self,
        request: Request<v1::FlushAuthRequest>,
    ) -> Result<Response<v1::FlushAuthResponse>, Status> {
        let caller = Caller::of(&request)?;
        let flushed = self.source.flush_auth(caller).await?;
        info!(uid = caller.uid, pid = caller.pid, flushed, "authentications flushed");
        Ok(Response::new(v1::FlushAuthResponse { flushed }))
    }

    async fn get_encryption(
        &self,
        request: Request<v1::GetEncryptionRequest>,
    ) -> Result<Response<v1::GetEncryptionResponse>, Status> {
        log_read("GetEncryption", &request)?;
        let encryption = Some(self.source.encryption().await?);
        Ok(Response::new(v1::GetEncryptionResponse { encryption }))
    }

    async fn observe(
        &self,
        request: Request<v1::ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        log_read("Observe", &request)?;
        let items = observe(self.source.as_ref(), request.into_inner());
        Ok(Response::new(items.take_until(self.shutdown.clone().cancelled_owned()).map(Ok).boxed()))
    }

    async fn list_identities(
        &self,
        request: Request<v1::ListIdentitiesRequest>,
    ) -> Result<Response<v1::ListIdentitiesResponse>, Status> {
        log_read("ListIdentities", &request)?;
        let identities = self.source.identities().await?;
        Ok(Response::new(v1::ListIdentitiesResponse { identities }))
    }

    async fn list_policies(
        &self,
        request: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        log_read("ListPolicies", &request)?;
        let policies = self.source.policies().await?;
        Ok(Response::new(v1::ListPoliciesResponse { policies }))
    }

    async fn trace_policy(
        &self,
        request: Request<v1::TracePolicyRequest>,
    ) -> Result<Response<v1::TracePolicyResponse>, Status> {
        log_read("TracePolicy", &request)?;
        let trace = Some(self.source.trace_policy(request.into_inner()).await?);
        Ok(Response::new(v1::TracePolicyResponse { trace }))
    }

    async fn list_svids(
        &self,
        request: Request<v1::ListSvidsRequest>,
    ) -> Result<Response<v1::ListSvidsResponse>, Status> {
        log_read("ListSvids", &request)?;
        let svids = self.source.svids().await?;
        Ok(Response::new(v1::ListSvidsResponse { svids }))
    }

    async fn list_bundles(
        &self,
        request: Request<v1::ListBundlesRequest>,
    ) -> Result<Response<v1::ListBundlesResponse>, Status> {
        log_read("ListBundles", &request)?;
        let bundles = self.source.bundles().await?;
        Ok(Response::new(v1::ListBundlesResponse { bundles }))
    }

    async fn record_override(
        &self,
        request: Request<v1::RecordOverrideRequest>,
    ) -> Result<Response<v1::RecordOverrideResponse>, Status> {
        let caller = Caller::of(&request)?;
        let note = request.into_inner();
        if note.guard() == v1::Guard::Unspecified {
            return Err(Status::invalid_argument("guard: neither policy nor encryption"));
        }
        info!(uid = caller.uid, pid = caller.pid, ?note, "override noted");
        self.source.record_override(note, caller).await?;
        Ok(Response::new(v1::RecordOverrideResponse {}))
    }
}

fn log_read<T>(call: &'static str, request: &Request<T>) -> Result<(), Status> {
    let caller = Caller::of(request)?;
    debug!(call, uid = caller.uid, pid = caller.pid, "request");
    Ok(())
}

/// The flows that there were, then, if asked to follow, those that come. The receiver loses flows rather
/// than make the daemon wait; how many is told in their place.
fn observe(
    source: &dyn Source,
    request: v1::ObserveRequest,
) -> impl Stream<Item = v1::ObserveResponse> + Send + use<> {
    let filter = request.filter.unwrap_or_default();
    let last = usize::try_from(request.last).unwrap_or(usize::MAX);
    // With a filter, the last ones are the last that match.
    let (mut history, receiver) =
        source.flows(if filter == v1::FlowFilter::default() { last } else { usize::MAX });
    history.retain(|flow| filter::matches(&filter, flow));
    let past = history.split_off(history.len().saturating_sub(last));

    let news = BroadcastStream::new(receiver).filter_map(move |received| {
        std::future::ready(match received {
            Ok(flow) => filter::matches(&filter, &flow).then(|| Item::Flow(v1::Flow::clone(&flow))),
            Err(BroadcastStreamRecvError::Lagged(count)) => Some(Item::Lost(v1::LostFlows { count })),
        })
    });
    let news = if request.follow { news.left_stream() } else { stream::empty().right_stream() };
    stream::iter(past)
        .map(|flow| Item::Flow(v1::Flow::clone(&flow)))
        .chain(news)
        .map(|item| v1::ObserveResponse { item: Some(item) })
}
