//! SPIRE server's Agent API: the list of agents. This authority attests nobody, so all its nodes are on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::body::Body;

use super::grpc::{self, Api};
use crate::SpiffeId;
use crate::proto::agent::{Agent, LIST, ListRequest, ListResponse, SERVICE};
use crate::proto::{SelectorParts, SpiffeIdParts};

/// What the agents are said to be attested by.
const ATTESTATION: &str = "dev";

#[derive(Debug)]
pub(crate) struct AgentApi {
    agents: BTreeMap<String, SpiffeId>,
}

impl AgentApi {
    /// The agents' SPIFFE IDs by node.
    pub(crate) fn new(agents: BTreeMap<String, SpiffeId>) -> Self {
        Self { agents }
    }

    fn list(&self) -> ListResponse {
        let agent = |(node, id): (&String, &SpiffeId)| Agent {
            id: Some(SpiffeIdParts::from(id)),
            attestation_type: ATTESTATION.to_owned(),
            x509svid_expires_at: i64::MAX,
            selectors: vec![SelectorParts {
                kind: ATTESTATION.to_owned(),
                value: format!("subject:cn:{node}"),
            }],
            banned: false,
        };
        ListResponse { agents: self.agents.iter().map(agent).collect(), next_page_token: String::new() }
    }
}

impl Api for AgentApi {
    const NAME: &'static str = SERVICE;

    async fn route(self: Arc<Self>, request: http::Request<Body>) -> http::Response<Body> {
        match request.uri().path() {
            LIST => grpc::unary::<ListRequest, _>(request, |_| Ok(self.list())).await,
            _ => grpc::unimplemented(),
        }
    }
}
