//! The SPIFFE Workload API of one agent, for X.509.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Request, Status};

use super::agent::{Agent, Current, NO_IDENTITY, Update, attest, updates};
use super::grpc::{self, Api};
use super::world::State;
use crate::Selector;
use crate::proto::workload::{
    FETCH_X509_BUNDLES, FETCH_X509_SVID, SECURITY_HEADER, SERVICE, X509BundlesRequest, X509BundlesResponse,
    X509Svid, X509SvidRequest, X509SvidResponse,
};

#[derive(Debug)]
pub(crate) struct WorkloadApi {
    agent: Arc<Agent>,
    stop: CancellationToken,
}

impl WorkloadApi {
    pub(crate) fn new(agent: Arc<Agent>, stop: CancellationToken) -> Self {
        Self { agent, stop }
    }

    fn svids(
        &self,
        request: &Request<X509SvidRequest>,
    ) -> Result<ReceiverStream<Result<X509SvidResponse, Status>>, Status> {
        let caller = admit(request)?;
        let agent = Arc::clone(&self.agent);
        let build = move |state: &State| svids(&agent, state, &caller);
        Ok(updates(&self.agent, self.stop.clone(), build))
    }

    fn bundles(
        &self,
        request: &Request<X509BundlesRequest>,
    ) -> Result<ReceiverStream<Result<X509BundlesResponse, Status>>, Status> {
        let caller = admit(request)?;
        let agent = Arc::clone(&self.agent);
        let build = move |state: &State| bundles(&agent, state, &caller);
        Ok(updates(&self.agent, self.stop.clone(), build))
    }
}

impl Api for WorkloadApi {
    const NAME: &'static str = SERVICE;

    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            FETCH_X509_SVID => grpc::streaming(request, |request| self.svids(&request)).await,
            FETCH_X509_BUNDLES => grpc::streaming(request, |request| self.bundles(&request)).await,
            _ => grpc::unimplemented(),
        }
    }
}

fn admit<T>(request: &Request<T>) -> Result<BTreeSet<Selector>, Status> {
    let header = request.metadata().get(SECURITY_HEADER);
    if header.is_none_or(|value| value != "true") {
        return Err(Status::invalid_argument("security header missing from request"));
    }
    attest(request)
}

fn svids(
    agent: &Agent,
    state: &State,
    caller: &BTreeSet<Selector>,
) -> Result<Update<X509SvidResponse>, Status> {
    let current = agent.current(state, caller)?;
    if current.is_empty() {
        return Err(Status::permission_denied(NO_IDENTITY));
    }
    Ok(message(state, &current))
}

/// What a workload is told that has these SVIDs.
pub(crate) fn message(state: &State, current: &[Current]) -> Update<X509SvidResponse> {
    let bundle = state.bundle_der();
    let svids = current
        .iter()
        .map(|svid| X509Svid {
            spiffe_id: svid.entry.spiffe_id.to_string(),
            x509_svid: svid.issued.certificate.to_vec(),
            x509_svid_key: svid.issued.key.to_vec(),
            bundle: bundle.clone(),
            hint: svid.entry.hint.clone(),
        })
        .collect();
    let mut federated_bundles = BTreeMap::new();
    for domain in current.iter().flat_map(|svid| &svid.entry.federates_with) {
        if let Some(der) = state.federated.get(domain) {
            federated_bundles.insert(domain.id_string(), der.clone());
        }
    }
    let next = current.iter().filter_map(|svid| svid.renew_at).min();
    Update { message: X509SvidResponse { svids, crl: Vec::new(), federated_bundles }, next }
}

fn bundles(
    agent: &Agent,
    state: &State,
    caller: &BTreeSet<Selector>,
) -> Result<Update<X509BundlesResponse>, Status> {
    let mut entries = agent.matching(state, caller).peekable();
    if entries.peek().is_none() {
        return Err(Status::permission_denied(NO_IDENTITY));
    }
    let own = agent.world().trust_domain().id_string();
    let mut bundles = BTreeMap::from([(own, state.bundle_der())]);
    for domain in entries.flat_map(|entry| &entry.federates_with) {
        if let Some(der) = state.federated.get(domain) {
            bundles.insert(domain.id_string(), der.clone());
        }
    }
    Ok(Update { message: X509BundlesResponse { crl: Vec::new(), bundles }, next: None })
}
