//! `authd operator`: keeps SPIRE's registration entries as the cluster state says, so that each node can obtain
//! its own SVID and those of the identities that it runs, and no others.
//!
//! Nothing that is allowed already depends on it: without it, entries stay as they are. It elects no leader yet;
//! two of them write the same entries.

mod agents;
mod config;
mod metrics;
mod wishes;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures::FutureExt as _;
use spire_adapter::registration::{self, Plan, Registered, Registrar, Report, Round, Wanted};
use spire_adapter::{AgentClient, AttestedAgent, Entry, EntryClient, ServerAddress, Subscription, workload};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Rules, Server, Settings};

use crate::cluster::{self, Cluster};
use crate::http;
use crate::readiness::Readiness;
use metrics::Metrics;
use wishes::{Wishes, wishes};

/// How long the operator's own SVID may take, where it is asked for once.
const OWN_SVID: Duration = Duration::from_secs(20);
/// What `/readyz` waits for.
const CLUSTER: &str = "cluster";
const REGISTRATION: &str = "registration";

/// The server's two APIs, and what keeps the SVID coming by which it knows us.
struct Clients {
    entries: EntryClient,
    agents: AgentClient,
    own: Option<Subscription>,
}

impl Clients {
    fn new(config: &Config) -> anyhow::Result<Self> {
        let (address, own) = match &config.server {
            Server::Socket(path) => (ServerAddress::Socket(path.clone()), None),
            Server::Tcp { address, workload_socket } => {
                let id = config.rules.naming.operator().context("the operator has no SPIFFE ID")?;
                let own = workload::subscribe(workload_socket.clone(), id);
                (ServerAddress::Tcp { address: address.clone(), own: own.watch() }, Some(own))
            }
        };
        Ok(Self { entries: EntryClient::at(address.clone()), agents: AgentClient::at(address), own })
    }

    /// Waits for the SVID, if one is needed.
    async fn ready(&self) -> anyhow::Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        let mut snapshots = own.watch();
        let usable = snapshots.wait_for(|snapshot| snapshot.svid().is_some());
        if tokio::time::timeout(OWN_SVID, usable.map(drop)).await.is_err() {
            let why = own.current().problem.map(|problem| format!(": {problem}")).unwrap_or_default();
            anyhow::bail!("no SVID of {} within {} s{why}", own.spiffe_id(), OWN_SVID.as_secs());
        }
        Ok(())
    }
}

/// Runs the operator until `shutdown`.
///
/// # Errors
/// What can't be bound or read at the start; or a part that has ended by itself.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        owner = config.rules.owner.prefix(),
        "operator starts"
    );
    if !config.rules.naming.is_by_number() {
        tracing::warn!("SPIFFE IDs are those of service accounts: identities are registered by others");
    }
    let listener = http::bind(config.http_address).await?;
    let (cluster, _watched) = cluster::watch(&config.cluster_dir, &config.site)?;
    let clients = Clients::new(&config)?;
    let (metrics, readiness) = (Arc::new(Metrics::new()), Readiness::new());
    readiness.wait_for(REGISTRATION, "the server has not answered yet");
    let (listed, agents) = watch::channel(None);
    let (lacking, lacks) = watch::channel(false);
    let (wanted, wants) = watch::channel(None);
    let (reported, report) = watch::channel(Report::default());
    let options = registration::Options { interval: config.interval, grace: config.grace };
    let wishing = Wishing {
        rules: config.rules.clone(),
        cluster,
        agents,
        wanted,
        lacking,
        metrics: Arc::clone(&metrics),
        readiness: readiness.clone(),
    };
    let mut tasks = JoinSet::new();
    let shown = Arc::clone(&metrics);
    let served = http::serve(listener, shown, readiness.clone(), shutdown.clone());
    tasks.spawn(served.map(|ended| ended.context("metrics and health")));
    tasks.spawn(agents::follow(clients.agents.clone(), config.interval, listed, lacks).map(Ok));
    tasks.spawn(wishing.run().map(Ok));
    tasks.spawn(tell(report, metrics, readiness).map(Ok));
    tasks.spawn(converge(clients.entries.clone(), options, wants, reported).map(Ok));
    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) if shutdown.is_cancelled() => Ok(()),
            Ok(Ok(())) => Err(anyhow::anyhow!("a part of the operator has ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error).context("a part of the operator has crashed"),
        },
    };
    // A batch that is cut off is looked at anew by whoever comes next.
    tasks.shutdown().await;
    tracing::info!("operator stopped; entries stay as they are");
    ended
}

/// Converges as soon as it is known what is wanted.
async fn converge(
    client: EntryClient,
    options: registration::Options,
    mut wants: watch::Receiver<Option<Wanted>>,
    report: watch::Sender<Report>,
) {
    let Ok(first) = wants.wait_for(Option::is_some).await.map(|wanted| wanted.clone().unwrap_or_default())
    else {
        return;
    };
    let (sender, receiver) = watch::channel(first);
    let forward = async {
        while wants.changed().await.is_ok() {
            if let Some(wanted) = wants.borrow_and_update().clone() {
                sender.send_replace(wanted);
            }
        }
    };
    tokio::join!(registration::converge(client, options, receiver, report), forward);
}

/// Makes wishes of cluster state and agents.
struct Wishing {
    rules: Rules,
    cluster: watch::Receiver<Arc<Cluster>>,
    agents: watch::Receiver<Option<Vec<AttestedAgent>>>,
    wanted: watch::Sender<Option<Wanted>>,
    lacking: watch::Sender<bool>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

impl Wishing {
    async fn run(mut self) {
        let mut last = Wishes::default();
        loop {
            let cluster = Arc::clone(&self.cluster.borrow_and_update());
            let agents = self.agents.borrow_and_update().clone();
            if let Some(agents) = agents
                && self.is_usable(&cluster)
            {
                let next = wishes(&cluster, &agents, &self.rules, SystemTime::now());
                tell_problems(&last, &next);
                self.metrics.wishes(&next, cluster.problems.len());
                self.lacking.send_if_modified(|lacking| {
                    std::mem::replace(lacking, next.without_agent > 0) != (next.without_agent > 0)
                });
                self.wanted.send_if_modified(|wanted| {
                    let differs = wanted.as_ref() != Some(&next.wanted);
                    *wanted = Some(next.wanted.clone());
                    differs
                });
                last = next;
            }
            tokio::select! {
                Ok(()) = self.cluster.changed() => {}
                Ok(()) = self.agents.changed() => {}
                else => return,
            }
        }
    }

    /// A directory without nodes is a mistake or a mount that is missing, not the end of a cluster.
    fn is_usable(&self, cluster: &Cluster) -> bool {
        if cluster.nodes.is_empty() {
            let reason = "the cluster state has no node: entries stay as they are";
            tracing::error!("{reason}");
            self.readiness.wait_for(CLUSTER, reason);
            return false;
        }
        self.readiness.reached(CLUSTER);
        true
    }
}

fn tell_problems(before: &Wishes, now: &Wishes) {
    for (node, problem) in now.problems.iter().filter(|(node, it)| before.problems.get(*node) != Some(it)) {
        tracing::warn!(node, problem, "nothing, or not the right thing, can be registered for a node");
    }
    for node in before.problems.keys().filter(|node| !now.problems.contains_key(*node)) {
        tracing::info!(node, "a node can be registered again");
    }
}

/// Shows what the rounds report.
async fn tell(mut report: watch::Receiver<Report>, metrics: Arc<Metrics>, readiness: Readiness) {
    while report.changed().await.is_ok() {
        let report = report.borrow_and_update().clone();
        metrics.report(&report);
        match &report.problem {
            Some(problem) => readiness.wait_for(REGISTRATION, problem.to_string()),
            None => readiness.reached(REGISTRATION),
        }
    }
}

/// What there should be now, asked of directory and server once.
async fn wishes_now(config: &Config, clients: &Clients) -> anyhow::Result<Wishes> {
    let cluster = cluster::load(&config.cluster_dir, &config.site)?;
    anyhow::ensure!(
        !cluster.nodes.is_empty(),
        "{}: there is no node in the cluster state",
        config.cluster_dir.display()
    );
    clients.ready().await?;
    let agents = clients.agents.list().await?;
    Ok(wishes(&cluster, &agents, &config.rules, SystemTime::now()))
}

/// What a run would do now, for people. Entries that nobody wants are deleted only after their grace, which
/// begins when a running operator first sees them.
///
/// # Errors
/// The directory can't be read or the server does not answer.
pub async fn plan(config: &Config) -> anyhow::Result<String> {
    let clients = Clients::new(config)?;
    let Wishes { wanted, problems, .. } = wishes_now(config, &clients).await?;
    let mut registrar = Registrar::new(config.grace);
    let plan = registration::survey(&clients.entries, &mut registrar, &wanted).await?;
    let mut text = lines(&plan);
    for (node, problem) in problems {
        writeln!(text, "node {node}: {problem}")?;
    }
    if text.is_empty() {
        text = format!("nothing to do: {} entries are as they should be\n", wanted.iter().count());
    }
    Ok(text)
}

fn lines(plan: &Plan) -> String {
    let line = |what: &'static str| {
        move |entry: &Entry| format!("{what} {} below {}\n", entry.spiffe_id, entry.parent_id)
    };
    let deleted = plan.delete.iter().map(line("delete"));
    let updated = plan.update.iter().map(line("update"));
    deleted.chain(updated).chain(plan.create.iter().map(line("create"))).collect()
}

/// One round.
///
/// # Errors
/// The directory can't be read, the server does not answer or refuses an entry, or a node has no agent.
pub async fn once(config: &Config) -> anyhow::Result<()> {
    let clients = Clients::new(config)?;
    let Wishes { wanted, problems, .. } = wishes_now(config, &clients).await?;
    let mut registrar = Registrar::new(config.grace);
    let mut round = Round { client: &clients.entries, changes: registration::Changes::default() };
    let entries = round.run(&mut registrar, &wanted).await?;
    let refused = entries.iter().filter_map(|(id, registered)| {
        let Registered::Refused { reason } = registered else { return None };
        Some(format!("entry {id}: {reason}"))
    });
    let nodes = problems.iter().map(|(node, problem)| format!("node {node}: {problem}"));
    let wrong: Vec<String> = refused.chain(nodes).collect();
    anyhow::ensure!(wrong.is_empty(), "not everything is registered:\n  {}", wrong.join("\n  "));
    Ok(())
}
