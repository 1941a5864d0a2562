//! The composition root: makes the parts, connects them by channels, and ends them together.
//!
//! Order matters. What can conflict (ports, sockets, another configuration) is tried first; then programs
//! and modes are put in place from cluster state alone; SPIRE and other nodes come last and are waited for
//! by nothing.

mod directory;
mod hold;
mod observer;
mod pending;
mod source;
mod vitals;

use std::{net::Ipv4Addr, net::Ipv6Addr, num::NonZeroU16, sync::Arc, time::Duration};

use anyhow::Context;
use auth_ebpf::{Datapath, Maps, Mechanism, Options as DatapathOptions};
use auth_ebpf_abi::{NodeEntry, NodeNumber};
use futures::FutureExt;
use spire_adapter::{BrokerAgent, DelegatedAgent, Subscription};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api,
    auth::{Driver, Handle, Settings as AuthSettings},
    clock::{BootClock, Clock},
    cluster::{self, Cluster},
    config::Config,
    datapath::{self, View, events, sweep},
    encryption::{self, Found},
    flows::{Flows, Names},
    handover::{Assigned, Told},
    hold::HoldingAuth,
    http,
    metrics::Metrics,
    peer::{self, Directory, Naming, OwnTunnel, Peers},
    readiness::Readiness,
    svids::{self, Choice, Lookout, Seen, SpireAgent, Svids},
};
use directory::DirectoryTask;
use hold::Holding;
use observer::HandshakeObserver;
use source::DaemonSource;
use vitals::VitalsTask;

/// How long tasks may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// What sessions have told that may wait; each tells one thing at a time.
const HANDOVERS: usize = 64;

/// What sessions and the datapath tell each other of addresses.
struct Handovers {
    assigned: watch::Sender<Arc<Assigned>>,
    told: mpsc::Receiver<Told>,
    acknowledged: Box<dyn Fn(NodeNumber) + Send + Sync>,
}

/// What listens, bound before anything is changed.
struct Bound {
    http: TcpListener,
    api: api::Listener,
    handshakes: TcpListener,
}

impl Bound {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            http: http::bind(config.http_address).await?,
            api: api::Listener::bind(&config.api_socket)?,
            handshakes: bind_handshakes(config.handshake_port).await?,
        })
    }
}

/// Binds the handshake port in both families, or in IPv4 alone where the host has no IPv6.
async fn bind_handshakes(port: NonZeroU16) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port.get())).await {
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.get())).await
        }
        bound => bound,
    };
    bound.with_context(|| {
        format!(
            "can't listen on port {port} for handshakes; set another --handshake-port, the same on every node"
        )
    })
}

/// Runs the node daemon until `shutdown`.
///
/// # Errors
/// What can't be bound, opened or loaded at the start; or a part that has ended by itself.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    tracing::info!(
        node = config.node_name,
        version = env!("CARGO_PKG_VERSION"),
        policy = config.policy_mode.as_str(),
        encryption = config.encryption.mode.as_str(),
        "starting"
    );
    let bound = Bound::bind(&config).await?;
    let (cluster, _watched) = cluster::watch(&config.cluster_dir, &config.site())?;
    let options = DatapathOptions { pin_dir: config.pin_dir.clone() };
    let mechanism = config.attach.map_or_else(Mechanism::detect, Ok).context("datapath")?;
    let datapath = Datapath::open_with(&options, mechanism).context("datapath")?;
    tracing::info!(mechanism = mechanism.as_str(), "programs loaded");
    let stop = shutdown.child_token();
    let mut daemon = Daemon::new(config, cluster, datapath, stop.clone())?;
    daemon.start(bound)?;
    let ended = daemon.first_end(&shutdown).await;
    stop.cancel();
    daemon.finish().await;
    tracing::info!("stopped; pinned programs and maps stay in force");
    ended
}

/// Session epoch of this node: another one than before revokes at every other node all that this one vouched
/// for. It stands with the pinned maps (as node 0), so a restarted daemon goes on with it, and a node that has
/// booted, or was detached, and knows nothing of what it once vouched for, does not.
fn session_epoch(maps: &Maps) -> anyhow::Result<u32> {
    if let Some(kept) = maps.nodes().get(&0)? {
        return Ok(kept.epoch);
    }
    let epoch = rand::random_range(1..=u32::MAX);
    let entry = NodeEntry { expires: u64::MAX, epoch, acknowledged: 0 };
    maps.nodes().insert(&0, &entry).context("can't keep this node's session epoch")?;
    tracing::info!(epoch, "a new session epoch: other nodes end what this one vouched for before");
    Ok(epoch)
}

/// The parts and the channels between them.
struct Daemon {
    config: Arc<Config>,
    clock: Arc<dyn Clock>,
    maps: Maps,
    datapath: Option<Datapath>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    cluster: watch::Receiver<Arc<Cluster>>,
    view: watch::Sender<Arc<View>>,
    names: watch::Sender<Arc<Names>>,
    stop: CancellationToken,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Daemon {
    fn new(
        config: Config,
        cluster: watch::Receiver<Arc<Cluster>>,
        datapath: Datapath,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let maps = datapath.maps().clone();
        let counted = maps.clone();
        Ok(Self {
            config: Arc::new(config),
            clock: Arc::new(BootClock),
            metrics: Arc::new(Metrics::new(Box::new(move || events::packet_counts(&counted)))),
            maps,
            datapath: Some(datapath),
            readiness: Readiness::new(),
            cluster,
            view: watch::Sender::default(),
            names: watch::Sender::default(),
            stop,
            tasks: JoinSet::new(),
        })
    }

    fn start(&mut self, bound: Bound) -> anyhow::Result<()> {
        let naming = self.config.spire.naming.clone();
        let holding = self.holding().context("can't take over the pinned authentications")?;
        let (driver, auth) = self.driver(&holding)?;
        let (directory_sender, directory) = watch::channel(Arc::new(Directory::default()));
        let svids = self.start_svids(&naming, &directory, &auth)?;
        let (own_sender, own) = watch::channel(OwnTunnel {
            wireguard_key: None,
            wireguard_port: self.config.encryption.port.get(),
            epoch: session_epoch(&self.maps)?,
        });
        let (assigned_sender, assigned) = watch::channel(Arc::default());
        let (handover_sender, handover) = mpsc::channel(HANDOVERS);
        let peers = Peers::start(
            peer::Parts {
                options: peer::Options {
                    groups: self.config.key_exchange,
                    pair_proof: self.config.pair_proof,
                    ..peer::Options::new(self.config.node_name.clone(), naming.clone())
                },
                listener: bound.handshakes,
                svids: svids.clone(),
                directory,
                own,
                assigned,
                handover: handover_sender,
                auth: auth.clone(),
                clock: Arc::clone(&self.clock),
                observer: Arc::new(HandshakeObserver(Arc::clone(&self.metrics))),
            },
            self.stop.clone(),
        )?;
        self.start_driver(driver, &peers, &holding);
        let acknowledged = holding.announced();
        // Before the datapath, which attaches to its device.
        self.start_holding(holding, &peers, auth.clone())?;
        self.start_directory(&naming, directory_sender, &auth);
        let handovers = Handovers { assigned: assigned_sender, told: handover, acknowledged };
        let flows = self.start_datapath(&peers, &auth, handovers)?;
        let found = self.start_encryption(&peers, own_sender);
        self.start_vitals(&svids, &auth);
        self.start_http(bound.http);
        let source = self.source(naming, svids, auth, flows, peers, found);
        self.start_api(bound.api, source);
        Ok(())
    }

    fn start_driver(&mut self, driver: Driver, peers: &Peers, holding: &Holding) {
        let handshakes = holding.telling(Arc::new(peers.clone()));
        let stop = self.stop.clone();
        self.spawn("authentication", driver.run(handshakes, stop).map(Ok));
    }

    fn start_directory(&mut self, naming: &Naming, directory: watch::Sender<Arc<Directory>>, auth: &Handle) {
        let task = DirectoryTask {
            node: self.config.node_name.clone(),
            naming: naming.clone(),
            handshake_port: self.config.handshake_port.get(),
            cluster: self.cluster.clone(),
            view: self.view.subscribe(),
            directory,
            auth: auth.clone(),
            stop: self.stop.clone(),
        };
        self.spawn("directory", task.run().map(Ok));
    }

    fn start_vitals(&mut self, svids: &Svids, auth: &Handle) {
        let task = VitalsTask {
            metrics: Arc::clone(&self.metrics),
            maps: self.maps.clone(),
            clock: Arc::clone(&self.clock),
            cluster: self.cluster.clone(),
            svids: svids.clone(),
            auth: auth.clone(),
            stop: self.stop.clone(),
        };
        self.spawn("vitals", task.run().map(Ok));
    }

    fn source(
        &self,
        naming: Naming,
        svids: Svids,
        auth: Handle,
        flows: Arc<Flows>,
        peers: Peers,
        found: watch::Receiver<Arc<Found>>,
    ) -> DaemonSource {
        DaemonSource {
            started: self.clock.wall(),
            config: Arc::clone(&self.config),
            naming,
            clock: Arc::clone(&self.clock),
            maps: self.maps.clone(),
            readiness: self.readiness.clone(),
            cluster: self.cluster.clone(),
            view: self.view.subscribe(),
            sessions: peers.sessions(),
            peers,
            found,
            svids,
            auth,
            flows,
        }
    }

    /// The authentication machine, with the entries of the pinned map taken over.
    fn driver(&self, holding: &Holding) -> anyhow::Result<(Driver, Handle)> {
        Driver::new(AuthSettings {
            config: crate::auth::Config {
                preauthenticate: self.config.preauthenticate,
                ..crate::auth::Config::default()
            },
            jitter: Box::new(|below| if below == 0 { 0 } else { rand::random_range(0..below) }),
            clock: Arc::clone(&self.clock),
            table: Arc::<HoldingAuth>::clone(&holding.table),
            observer: Arc::new(HandshakeObserver(Arc::clone(&self.metrics))),
        })
        .map_err(|error| anyhow::anyhow!(error))
        .context("can't take over the authentications in the pinned map")
    }

    fn start_svids(
        &mut self,
        naming: &Naming,
        directory: &watch::Receiver<Arc<Directory>>,
        auth: &Handle,
    ) -> anyhow::Result<Svids> {
        let spire = &self.config.spire;
        let node_id = naming
            .node(&self.config.node_name)
            .with_context(|| format!("node-name {:?} is no segment of a SPIFFE ID", self.config.node_name))?;
        let own = spire_adapter::workload::subscribe(spire.workload_socket.clone(), node_id);
        let svids = Svids::new(own.watch(), Arc::clone(&self.clock));
        let agent = self.start_agent(naming, &own);
        let following = svids::Following {
            svids: svids.clone(),
            source: Arc::new(agent),
            node: self.config.node_name.clone(),
            directory: directory.clone(),
            auth: auth.clone(),
        };
        let shown = pending::show(svids.pending(), self.maps.clone(), self.stop.clone());
        self.spawn("pending svids", shown.map(Ok));
        let stop = self.stop.clone();
        self.spawn("svids", async move {
            svids::follow(following, stop).await;
            // The node's own stream is open for as long as this task runs.
            drop(own);
            Ok(())
        });
        Ok(svids)
    }

    /// SPIRE's agent as `svid-source` wants it, which is told of the processes of the pods here.
    fn start_agent(&mut self, naming: &Naming, own: &Subscription) -> SpireAgent {
        let spire = &self.config.spire;
        let (cluster, names) = (self.cluster.clone(), naming.clone());
        let selectors = move |number| {
            let cluster = Arc::clone(&cluster.borrow());
            cluster.identities.get(number).map(|identity| names.selectors(identity)).unwrap_or_default()
        };
        let (seen_sender, seen) = watch::channel(Seen::default());
        let look = Arc::new(Notify::new());
        let agent = SpireAgent {
            choice: spire.source,
            broker: BrokerAgent::new(spire.broker_socket.clone(), own.watch()),
            seen,
            look: Arc::clone(&look),
            delegated: DelegatedAgent::new(spire.admin_socket.clone()),
            selectors: Arc::new(selectors),
        };
        let lookout = Lookout {
            node: self.config.node_name.clone(),
            cluster: self.cluster.clone(),
            view: self.view.subscribe(),
            broker: spire.broker_socket.clone(),
            seen: seen_sender,
            wanted: look,
        };
        tracing::info!(
            svid_source = spire.source.as_str(),
            broker_socket = %spire.broker_socket.display(),
            broker_serves = lookout.sees_broker(),
            "where SVIDs of identities come from"
        );
        if spire.source != Choice::Delegated {
            self.spawn("processes", lookout.run(self.stop.clone()).map(Ok));
        }
        agent
    }

    fn start_datapath(
        &mut self,
        peers: &Peers,
        auth: &Handle,
        handovers: Handovers,
    ) -> anyhow::Result<Arc<Flows>> {
        let mut datapath = self.datapath.take().context("the datapath is started twice")?;
        let events = datapath.events()?;
        let sweep = sweep::keep(datapath.maps().clone(), self.stop.clone());
        self.spawn("sweep", sweep.map(|ended| ended.context("the sweep of connections")));
        let sessions = self.start_node_sessions(peers);
        let parts = datapath::Parts {
            datapath,
            cluster: self.cluster.clone(),
            sessions,
            handover: handovers.told,
            assigned: handovers.assigned,
            acknowledged: handovers.acknowledged,
            clock: Arc::clone(&self.clock),
            view: self.view.clone(),
            names: self.names.clone(),
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
        };
        let task = datapath::Task::new(&self.config, parts)?;
        let stop = self.stop.clone();
        self.spawn("datapath", task.run(stop).map(Ok));
        let flows = Arc::new(Flows::new(
            self.config.node_name.clone(),
            self.cluster.clone(),
            self.names.subscribe(),
            Arc::clone(&self.clock),
        ));
        let pump = events::pump(events, auth.clone(), peers.clone(), Arc::clone(&flows), self.stop.clone());
        self.spawn("events", pump.map(|ended| ended.context("the ring buffer")));
        Ok(flows)
    }

    /// What the maps need of sessions: their ends in boot time.
    fn start_node_sessions(&mut self, peers: &Peers) -> watch::Receiver<Arc<datapath::NodeSessions>> {
        let (sender, receiver) = watch::channel(Arc::default());
        let task = directory::NodeSessionsTask {
            sessions: peers.sessions(),
            grace: self.config.encryption.svid_grace,
            metrics: Arc::clone(&self.metrics),
            sender,
            stop: self.stop.clone(),
        };
        self.spawn("node sessions", task.run().map(Ok));
        receiver
    }

    fn start_encryption(
        &mut self,
        peers: &Peers,
        own: watch::Sender<OwnTunnel>,
    ) -> watch::Receiver<Arc<Found>> {
        let (found, receiver) = watch::channel(Arc::default());
        let task = encryption::Task::new(encryption::Parts {
            config: self.config.encryption.clone(),
            handshake_port: self.config.handshake_port.get(),
            node: self.config.node_name.clone(),
            cluster: self.cluster.clone(),
            sessions: peers.sessions(),
            view: self.view.subscribe(),
            maps: self.maps.clone(),
            renew: {
                let peers = peers.clone();
                Box::new(move |node| peers.renew(node))
            },
            clock: Arc::clone(&self.clock),
            found,
            own,
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
        });
        let stop = self.stop.clone();
        self.spawn("encryption", task.run(stop).map(Ok));
        receiver
    }

    fn start_api(&mut self, listener: api::Listener, source: DaemonSource) {
        let stop = self.stop.clone();
        self.spawn("api", async move { Ok(listener.serve(Arc::new(source), stop).await?) });
    }

    fn start_http(&mut self, listener: TcpListener) {
        let metrics = Arc::clone(&self.metrics);
        let serve = http::serve(listener, metrics, self.readiness.clone(), self.stop.clone());
        self.spawn("http", serve.map(|ended| ended.context("metrics and health")));
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(task.map(move |ended| (name, ended)));
    }

    /// Waits for `shutdown`, or for a part to end that should not have.
    async fn first_end(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let ended = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            Some(ended) = self.tasks.join_next() => ended,
        };
        match ended {
            // The parts hear of the shutdown before this task does, and one may have ended already.
            Ok((_, Ok(()))) if self.stop.is_cancelled() => Ok(()),
            Ok((name, Ok(()))) => Err(anyhow::anyhow!("{name} has ended by itself")),
            Ok((name, Err(error))) => Err(error.context(name)),
            Err(error) => Err(error).context("a part has crashed"),
        }
    }

    /// Waits for the parts to end, up to the grace.
    async fn finish(mut self) {
        let ends = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Ok((name, Err(error))) = ended {
                    tracing::warn!(part = name, error = format!("{error:#}"), "ended with an error");
                }
            }
        };
        if tokio::time::timeout(GRACE, ends).await.is_err() {
            tracing::warn!(grace = ?GRACE, "some parts did not end in time and are cut off");
        }
    }
}
