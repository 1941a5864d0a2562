//! The agents that SPIRE server has attested, by its own list: who is whose parent is its word, nobody else's.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::proto::agent::{AgentMask, LIST, ListRequest, ListResponse, SERVICE};
use crate::server::{Server, ServerAddress};
use crate::{ApiError, Selector, SpiffeId};

const PAGE: i32 = 500;

/// An agent that the server has attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttestedAgent {
    /// The parent of this node's entries.
    pub spiffe_id: SpiffeId,
    /// How it was attested, such as `k8s_psat`, `x509pop` or `join_token`.
    pub attestation_type: String,
    /// What was attested, such as `k8s_psat:agent_node_name:n1` or `x509pop:subject:cn:n1`.
    pub selectors: BTreeSet<Selector>,
    /// Until when its own SVID is valid; it may be dead long before.
    pub expires: SystemTime,
    /// Shut out by an administrator.
    pub banned: bool,
}

/// A client of the Agent API of SPIRE server.
#[derive(Debug, Clone)]
pub struct AgentClient(Server);

impl AgentClient {
    /// A client for the server's socket at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::at(ServerAddress::Socket(path.into()))
    }

    /// A client for the server at `address`.
    pub fn at(address: ServerAddress) -> Self {
        Self(Server::new(address, SERVICE))
    }

    /// Every agent, page by page.
    pub async fn list(&self) -> Result<Vec<AttestedAgent>, ApiError> {
        let output_mask = AgentMask { attestation_type: true, expires: true, selectors: true, banned: true };
        let mut agents = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListRequest { output_mask: Some(output_mask), page_size: PAGE, page_token };
            let response: ListResponse = self.0.unary(LIST, request).await?;
            for agent in response.agents {
                agents.push(self.parse(agent)?);
            }
            if response.next_page_token.is_empty() {
                return Ok(agents);
            }
            page_token = response.next_page_token;
        }
    }

    fn parse(&self, agent: crate::proto::agent::Agent) -> Result<AttestedAgent, ApiError> {
        let spiffe_id = agent.id.as_ref().and_then(crate::proto::SpiffeIdParts::to_id);
        let spiffe_id = spiffe_id.ok_or_else(|| self.0.unusable("agent without SPIFFE ID".to_owned()))?;
        let expires = Duration::from_secs(u64::try_from(agent.x509svid_expires_at).unwrap_or(0));
        Ok(AttestedAgent {
            spiffe_id,
            attestation_type: agent.attestation_type,
            selectors: agent.selectors.into_iter().map(Selector::from).collect(),
            expires: UNIX_EPOCH.checked_add(expires).unwrap_or(UNIX_EPOCH),
            banned: agent.banned,
        })
    }
}

/// The agent of the one node that has `selector`, such as `x509pop:subject:cn:n1`. Several agents of a node are
/// one too many: the last to expire is taken, since the others have been attested before it. Banned ones are none.
pub fn agent_of<'a>(agents: &'a [AttestedAgent], selector: &Selector) -> Option<&'a AttestedAgent> {
    agents
        .iter()
        .filter(|agent| !agent.banned && agent.selectors.contains(selector))
        .max_by_key(|agent| agent.expires)
}
