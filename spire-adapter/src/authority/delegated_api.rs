//! SPIRE's Delegated Identity API of one agent, for X.509.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Request, Status};

use super::agent::{Agent, Current, Update, attest, selectors_of_process, updates};
use super::grpc::{self, Api};
use super::world::State;
use crate::proto::SpiffeIdParts;
use crate::proto::delegated::{
    BundlesRequest, BundlesResponse, SERVICE, SUBSCRIBE_TO_X509_BUNDLES, SUBSCRIBE_TO_X509_SVIDS,
    SvidWithKey, SvidsRequest, SvidsResponse, X509Svid,
};
use crate::{Selector, TrustDomain};

#[derive(Debug)]
pub(crate) struct DelegatedApi {
    agent: Arc<Agent>,
    stop: CancellationToken,
}

impl DelegatedApi {
    pub(crate) fn new(agent: Arc<Agent>, stop: CancellationToken) -> Self {
        Self { agent, stop }
    }

    fn svids(
        &self,
        request: Request<SvidsRequest>,
    ) -> Result<ReceiverStream<Result<SvidsResponse, Status>>, Status> {
        let caller = attest(&request)?;
        let request = request.into_inner();
        // Looked at once: as in SPIRE 1.15.3, a process that has ended goes on having its SVID.
        let selectors: BTreeSet<Selector> = match (request.pid, request.selectors.is_empty()) {
            (0, false) => request.selectors.into_iter().map(Selector::from).collect(),
            (0, true) | (_, false) => {
                return Err(Status::invalid_argument(
                    "must provide either selectors or non-zero PID, but not both",
                ));
            }
            (pid, true) => {
                selectors_of_process(pid).ok_or_else(|| Status::unavailable("workload attestation failed"))?
            }
        };
        let agent = Arc::clone(&self.agent);
        let build = move |state: &State| {
            agent.authorize(state, &caller)?;
            agent.current_delegated(state, &selectors).map(|current| svids(&current))
        };
        Ok(updates(&self.agent, self.stop.clone(), build))
    }

    fn bundles(
        &self,
        request: &Request<BundlesRequest>,
    ) -> Result<ReceiverStream<Result<BundlesResponse, Status>>, Status> {
        let caller = attest(request)?;
        let agent = Arc::clone(&self.agent);
        // As in SPIRE 1.15.3, what was on the stream once stays on it.
        let sent = Mutex::default();
        let build = move |state: &State| {
            agent.authorize(state, &caller)?;
            let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            add_bundles(&mut sent, &agent, state);
            Ok(Update { message: BundlesResponse { ca_certificates: sent.clone() }, next: None })
        };
        Ok(updates(&self.agent, self.stop.clone(), build))
    }
}

impl Api for DelegatedApi {
    const NAME: &'static str = SERVICE;

    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            SUBSCRIBE_TO_X509_SVIDS => grpc::streaming(request, |request| self.svids(request)).await,
            SUBSCRIBE_TO_X509_BUNDLES => grpc::streaming(request, |request| self.bundles(&request)).await,
            _ => grpc::unimplemented(),
        }
    }
}

fn svids(current: &[Current]) -> Update<SvidsResponse> {
    let x509_svids = current
        .iter()
        .map(|svid| SvidWithKey {
            x509_svid: Some(X509Svid {
                cert_chain: vec![svid.issued.certificate.to_vec()],
                id: Some(SpiffeIdParts::from(&svid.entry.spiffe_id)),
                expires_at: svid.issued.expires_at(),
                hint: svid.entry.hint.clone(),
            }),
            x509_svid_key: svid.issued.key.to_vec(),
        })
        .collect();
    let federates_with: BTreeSet<&TrustDomain> =
        current.iter().flat_map(|svid| &svid.entry.federates_with).collect();
    let federates_with = federates_with.into_iter().map(TrustDomain::id_string).collect();
    let next = current.iter().filter_map(|svid| svid.renew_at).min();
    Update { message: SvidsResponse { x509_svids, federates_with }, next }
}

/// The own bundle, and those of every domain that an entry of this agent federates with.
fn add_bundles(sent: &mut BTreeMap<String, Vec<u8>>, agent: &Agent, state: &State) {
    sent.insert(agent.world().trust_domain().id_string(), state.bundle_der());
    for domain in agent.entries(state).flat_map(|entry| &entry.federates_with) {
        if let Some(der) = state.federated.get(domain) {
            sent.insert(domain.id_string(), der.clone());
        }
    }
}
