//! Which of the agents that SPIRE has attested is a node's, and what they are now.

use std::time::{Duration, SystemTime};

use spiffe::{SpiffeId, TrustDomain};
use spire_adapter::{AgentClient, AttestedAgent, Selector};
use tokio::sync::watch;

/// What stands for the node's name.
const NODE: &str = "{node}";
const AGENTS: &str = "/spire/agent/";
const RETRY_MIN: Duration = Duration::from_millis(200);
/// How often the list is asked for while the pods of a node that has just joined wait for it.
const EAGER: Duration = Duration::from_secs(2);

/// How a node's agent is known among those that SPIRE has attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentRule {
    /// By what was attested; `{node}` in the value is the node's name.
    Selector(Selector),
    /// By its SPIFFE ID, with `{node}` in it, where that is made of what was attested.
    Id(String),
}

impl AgentRule {
    pub(super) fn by_selector(selector: Selector) -> Option<Self> {
        selector.value.contains(NODE).then_some(Self::Selector(selector))
    }

    pub(super) fn by_path(trust_domain: &TrustDomain, path: &str) -> Option<Self> {
        let template = format!("{}{path}", trust_domain.id_string());
        let valid = path.starts_with(AGENTS) && path.contains(NODE);
        let makes_an_id = || SpiffeId::new(template.replace(NODE, "n")).is_ok();
        (valid && makes_an_id()).then_some(Self::Id(template))
    }

    fn fits(&self, agent: &AttestedAgent, node: &str) -> bool {
        match self {
            Self::Selector(Selector { kind, value }) => {
                agent.selectors.contains(&Selector::new(kind, value.replace(NODE, node)))
            }
            Self::Id(template) => agent.spiffe_id.to_string() == template.replace(NODE, node),
        }
    }

    /// The agents of a node, in no order.
    pub(super) fn all<'a>(
        &'a self,
        agents: &'a [AttestedAgent],
        node: &'a str,
    ) -> impl Iterator<Item = &'a AttestedAgent> {
        agents.iter().filter(move |agent| self.fits(agent, node))
    }

    /// The agent of a node. Of several the last to expire: the others were attested before it.
    ///
    /// # Errors
    /// Why there is none, and the way out.
    pub(super) fn agent<'a>(
        &'a self,
        agents: &'a [AttestedAgent],
        node: &'a str,
    ) -> Result<&'a AttestedAgent, String> {
        let allowed = self.all(agents, node).filter(|agent| !agent.banned);
        allowed.max_by_key(|agent| agent.expires).ok_or_else(|| {
            let banned = self.all(agents, node).next();
            match (banned, self) {
                (Some(agent), _) => format!("its agent {} is banned", agent.spiffe_id),
                (None, Self::Selector(Selector { kind, value })) => format!(
                    "SPIRE has attested no agent with {kind}:{}: does it run there, and is agent-selector right?",
                    value.replace(NODE, node)
                ),
                (None, Self::Id(template)) => format!(
                    "SPIRE has attested no agent {}: does it run there, and is agent-path right?",
                    template.replace(NODE, node)
                ),
            }
        })
    }

    /// How many agents could be this node's, beside one.
    pub(super) fn rivals(&self, agents: &[AttestedAgent], node: &str, now: SystemTime) -> usize {
        let live = self.all(agents, node).filter(|agent| !agent.banned && agent.expires > now);
        live.count().saturating_sub(1)
    }
}

/// Keeps the list of agents, until nobody wants it any more. While a node lacks its agent, or as soon as one does,
/// it is asked for more often. What can't be asked stays as it was.
pub(super) async fn follow(
    client: AgentClient,
    interval: Duration,
    agents: watch::Sender<Option<Vec<AttestedAgent>>>,
    mut lacking: watch::Receiver<bool>,
) {
    let mut retry = RETRY_MIN;
    loop {
        let pause = match client.list().await {
            Ok(list) => {
                agents.send_if_modified(|known| {
                    let differs = known.as_ref() != Some(&list);
                    *known = Some(list);
                    differs
                });
                retry = RETRY_MIN;
                if *lacking.borrow_and_update() { interval.min(EAGER) } else { interval }
            }
            Err(problem) => {
                tracing::debug!(%problem, "SPIRE's list of agents");
                retry = (retry * 2).min(interval);
                retry
            }
        };
        tokio::select! {
            () = agents.closed() => return,
            () = tokio::time::sleep(pause) => {}
            Ok(()) = lacking.changed() => {}
        }
    }
}
