//! Who issues SVIDs in a lab: the embedded authority or real SPIRE, with the same sockets in the same places.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use spire_adapter::{SpiffeId, TrustDomain};

use crate::Lab;
use crate::daemon::Daemon;
use crate::spire::{self, Options, Place, Spire};
use crate::star_wars::PATIENCE;

/// The lab's directory of sockets: `server.sock`, `<node>/workload/api.sock`, `<node>/admin/api.sock`.
const DIRECTORY: &str = "authority";

/// Lifetime of SVIDs where nothing else is wanted.
pub const SVID_TTL: Duration = Duration::from_secs(3600);

/// Which of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// `authd authority`.
    #[default]
    Embedded,
    /// spire-server and a spire-agent for each node.
    Real,
}

/// A running issuer.
#[derive(Debug)]
pub enum Issuer {
    /// `authd authority`.
    Embedded(Daemon),
    /// spire-server and a spire-agent for each node.
    Real(Box<Spire>),
}

impl Issuer {
    /// Sends a signal to the process of a node's agent. That of the embedded authority is its other agents', too.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal_agent(&mut self, node: &str, signal: Signal) -> Result<()> {
        match self {
            Self::Embedded(daemon) => daemon.process().signal(signal),
            Self::Real(spire) => spire.agent(node)?.signal(signal),
        }
    }
}

impl Kind {
    /// Starts it, with an agent for each node and SVIDs that live so long, and waits until all serve.
    ///
    /// # Errors
    /// When something does not.
    pub fn start(self, lab: &Lab, trust_domain: &str, nodes: &[&str], svid_ttl: Duration) -> Result<Issuer> {
        match self {
            Self::Embedded => {
                let mut daemon = Daemon::authority(lab, trust_domain, nodes, svid_ttl)?;
                daemon.wait_ready(PATIENCE)?;
                Ok(Issuer::Embedded(daemon))
            }
            Self::Real => {
                let options = Options { svid_ttl, ..Options::new(TrustDomain::new(trust_domain)?, nodes) };
                Ok(Issuer::Real(Box::new(Spire::start(Place::Lab(lab.clone(), DIRECTORY), options)?)))
            }
        }
    }

    /// How soon the end of an entry shows in traffic. SPIRE's agent has to ask its server first, and that its
    /// database.
    #[must_use]
    pub const fn withdrawal(self) -> Duration {
        match self {
            Self::Embedded => Duration::from_secs(1),
            Self::Real => Duration::from_secs(3),
        }
    }

    /// What the agent of `{node}` is known by.
    #[must_use]
    pub const fn agent_selector(self) -> &'static str {
        match self {
            Self::Embedded => "dev:subject:cn:{node}",
            Self::Real => "x509pop:subject:cn:{node}",
        }
    }

    /// The SPIFFE ID of a node's agent.
    ///
    /// # Errors
    /// When the node's name is no segment of a SPIFFE ID.
    pub fn agent_id(self, trust_domain: &TrustDomain, node: &str) -> Result<SpiffeId> {
        match self {
            Self::Embedded => Ok(SpiffeId::new(format!("spiffe://{trust_domain}/spire/agent/dev/{node}"))?),
            Self::Real => spire::agent_id(trust_domain, node),
        }
    }
}
