//! Where the SVIDs of identities come from: the SPIFFE Broker API, where the agent serves it and it is known which
//! process is asked for, else SPIRE's Delegated Identity API.

use std::any::Any;
use std::fmt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use auth_ebpf_abi::IdentityNumber;
use spiffe::SpiffeId;
use spire_adapter::broker::Process;
use spire_adapter::{BrokerAgent, DelegatedAgent, Selector, Snapshot, Subscription};
use tokio::sync::watch;

/// An API of SPIRE's agent that gives out SVIDs of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `spiffe.broker.API`: the agent attests the process itself.
    Broker,
    /// SPIRE's own: the agent believes the selectors that it is told.
    Delegated,
}

impl Api {
    /// The name for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "Broker API",
            Self::Delegated => "Delegated Identity API",
        }
    }
}

/// The setting `svid-source`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The Broker API where it can be used.
    #[default]
    Auto,
    /// The Broker API; where it can't be used that is a condition.
    Broker,
    /// The Delegated Identity API.
    Delegated,
}

/// The snapshots of one identity; dropping it closes its stream.
pub struct Feed {
    /// The snapshots.
    pub snapshots: watch::Receiver<Snapshot>,
    /// Where they come from.
    pub api: Api,
    /// Whatever keeps them coming.
    pub keep: Box<dyn Any + Send>,
}

impl Feed {
    fn new(subscription: Subscription, api: Api) -> Self {
        Self { snapshots: subscription.watch(), api, keep: Box::new(subscription) }
    }
}

/// Where identities' SVIDs come from.
pub trait SvidSource: Send + Sync + 'static {
    /// Follows the SVID of an identity.
    fn subscribe(&self, identity: IdentityNumber, spiffe_id: &SpiffeId) -> Feed;
}

/// Why the Broker API is not used for an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unused {
    /// By configuration.
    Configured,
    /// Nobody listens at its socket.
    NoSocket,
    /// The cluster state tells no process of its pods.
    NoProcess,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configured => "svid-source says so",
            Self::NoSocket => "the agent serves no Broker API at broker-socket",
            Self::NoProcess => {
                "the Broker API asks by a pod's process, and a directory of manifests tells none"
            }
        })
    }
}

/// SPIRE's agent, by the better of its two APIs.
pub struct SpireAgent {
    /// Which of them is wanted.
    pub choice: Choice,
    /// The one.
    pub broker: BrokerAgent,
    /// A process of a pod of an identity here, not one that only holds its namespaces.
    pub process: Box<dyn Fn(IdentityNumber) -> Option<i32> + Send + Sync>,
    /// The other.
    pub delegated: DelegatedAgent,
    /// What an identity's entry asks for, where it is asked by selectors.
    pub selectors: Box<dyn Fn(IdentityNumber) -> Vec<Selector> + Send + Sync>,
}

impl SpireAgent {
    /// The process by which the Broker API can be asked for an identity.
    ///
    /// # Errors
    /// Why it isn't used.
    pub fn process_of(&self, identity: IdentityNumber) -> Result<Process, Unused> {
        if self.choice == Choice::Delegated {
            return Err(Unused::Configured);
        }
        if !is_socket(self.broker.path()) {
            return Err(Unused::NoSocket);
        }
        let pid = (self.process)(identity).ok_or(Unused::NoProcess)?;
        Process::open(pid).map_err(|_ended| Unused::NoProcess)
    }
}

impl SvidSource for SpireAgent {
    fn subscribe(&self, identity: IdentityNumber, spiffe_id: &SpiffeId) -> Feed {
        match self.process_of(identity) {
            Ok(process) => Feed::new(self.broker.subscribe(process, spiffe_id.clone()), Api::Broker),
            Err(reason) => {
                tracing::debug!(identity, %reason, "SVID by the Delegated Identity API");
                let selectors = (self.selectors)(identity);
                Feed::new(self.delegated.subscribe(selectors, spiffe_id.clone()), Api::Delegated)
            }
        }
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use spire_adapter::authority::{Authority, Config, Running};
    use spire_adapter::{Entry, EntryClient, workload};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn agent(authority: &Running, own: &Subscription, choice: Choice, pid: Option<i32>) -> SpireAgent {
        SpireAgent {
            choice,
            broker: BrokerAgent::new(authority.broker_socket("n1"), own.watch()),
            process: Box::new(move |_| pid),
            delegated: DelegatedAgent::new(authority.admin_socket("n1")),
            selectors: Box::new(|number| vec![Selector::new("authd", format!("identity:{number}"))]),
        }
    }

    #[tokio::test]
    async fn the_broker_is_asked_where_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new("example.test".parse().unwrap(), dir.path().join("run"));
        config.nodes = vec!["n1".to_owned()];
        let uid = nix::unistd::getuid().as_raw();
        config.delegate_uid = Some(uid);
        let mut authority = Authority::start(config).unwrap();
        let own = workload::subscribe(authority.workload_socket("n1"), authority.delegate_id("n1").unwrap());
        own.watch().wait_for(|own| own.svid().is_some()).await.unwrap();
        let id = SpiffeId::new("spiffe://example.test/identity/256").unwrap();
        let entry = |selector| Entry::new(authority.agent_id("n1").unwrap(), id.clone(), [selector]);
        let entries = [
            entry(Selector::new("authd", "identity:256")),
            entry(Selector::new("unix", format!("uid:{uid}"))),
        ];
        EntryClient::new(authority.server_socket()).create(&entries).await.unwrap();

        let here = i32::try_from(std::process::id()).unwrap();
        for (choice, pid, expected) in [
            (Choice::Auto, Some(here), Ok(())),
            (Choice::Broker, Some(here), Ok(())),
            (Choice::Delegated, Some(here), Err(Unused::Configured)),
            (Choice::Auto, None, Err(Unused::NoProcess)),
            (Choice::Broker, None, Err(Unused::NoProcess)),
            (Choice::Auto, Some(i32::MAX), Err(Unused::NoProcess)),
        ] {
            let agent = agent(&authority, &own, choice, pid);
            assert_eq!(agent.process_of(256).map(drop), expected, "{choice:?} {pid:?}");
            let mut feed = agent.subscribe(256, &id);
            let api = if expected.is_ok() { Api::Broker } else { Api::Delegated };
            assert_eq!(feed.api, api);
            let usable = feed.snapshots.wait_for(|snapshot| snapshot.svid().is_some());
            tokio::time::timeout(PATIENCE, usable).await.unwrap().unwrap();
        }
        authority.stop_agent("n1").await.unwrap();
        let agent = agent(&authority, &own, Choice::Auto, Some(here));
        assert_eq!(agent.process_of(256).map(drop), Err(Unused::NoSocket));
    }
}
