//! `spire.api.server.agent.v1.Agent`: list.

use super::{SelectorParts, SpiffeIdParts};

pub(crate) const SERVICE: &str = "spire.api.server.agent.v1.Agent";
pub(crate) const LIST: &str = "/spire.api.server.agent.v1.Agent/ListAgents";

/// `spire.api.types.Agent`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Agent {
    #[prost(message, optional, tag = "1")]
    pub(crate) id: Option<SpiffeIdParts>,
    #[prost(string, tag = "2")]
    pub(crate) attestation_type: String,
    #[prost(int64, tag = "4")]
    pub(crate) x509svid_expires_at: i64,
    #[prost(message, repeated, tag = "5")]
    pub(crate) selectors: Vec<SelectorParts>,
    #[prost(bool, tag = "6")]
    pub(crate) banned: bool,
}

/// `spire.api.types.AgentMask`: the numbers are those of [`Agent`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct AgentMask {
    #[prost(bool, tag = "2")]
    pub(crate) attestation_type: bool,
    #[prost(bool, tag = "4")]
    pub(crate) expires: bool,
    #[prost(bool, tag = "5")]
    pub(crate) selectors: bool,
    #[prost(bool, tag = "6")]
    pub(crate) banned: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ListRequest {
    #[prost(message, optional, tag = "2")]
    pub(crate) output_mask: Option<AgentMask>,
    #[prost(int32, tag = "3")]
    pub(crate) page_size: i32,
    #[prost(string, tag = "4")]
    pub(crate) page_token: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) agents: Vec<Agent>,
    #[prost(string, tag = "2")]
    pub(crate) next_page_token: String,
}
