//! A cluster of nodes in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use auth_ebpf_abi::{AuthEntry, AuthKey, AuthType};
use spiffe::{SpiffeId, TrustDomain};
use spire_adapter::authority::CertificateAuthority;
use spire_adapter::{Bundle, Bundles, Snapshot, State, Svid};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::auth::driver::{AuthTable, Driver, Settings, TableError};
use crate::auth::stats::{Observer, Stats};
use crate::auth::{Config, Desired, Event, Handle};
use crate::clock::{BootClock, BootTime, Clock};
use crate::handover::{Assigned, Owners, Told};
use crate::peer::{Directory, Naming, Node, Options, OwnTunnel, Parts, Peers, Session};
use crate::svids::{Feed, Following, Offer, SvidSource, Svids, follow};

pub(super) const TTL: Duration = Duration::from_secs(60);

/// The `auth` map in memory.
#[derive(Default)]
pub(super) struct MemoryTable(Mutex<BTreeMap<AuthKey, AuthEntry>>);

impl AuthTable for MemoryTable {
    fn insert(&self, key: AuthKey, entry: AuthEntry) -> Result<(), TableError> {
        self.0.lock().unwrap().insert(key, entry);
        Ok(())
    }

    fn remove(&self, key: &AuthKey) -> Result<(), TableError> {
        self.0.lock().unwrap().remove(key);
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(AuthKey, AuthEntry)>, TableError> {
        Ok(self.0.lock().unwrap().iter().map(|(key, entry)| (*key, *entry)).collect())
    }
}

/// The system's boot time, and a wall clock that can be set.
#[derive(Default)]
pub(super) struct WallClock(AtomicI64);

impl WallClock {
    /// Sets the wall clock to so many hours from the system's.
    pub(super) fn set(&self, hours: i64) {
        self.0.store(hours, Ordering::Relaxed);
    }
}

impl Clock for WallClock {
    fn now(&self) -> BootTime {
        BootClock.now()
    }

    fn wall(&self) -> SystemTime {
        let hours = self.0.load(Ordering::Relaxed);
        let by = Duration::from_secs(hours.unsigned_abs() * 3600);
        if hours < 0 { BootClock.wall() - by } else { BootClock.wall() + by }
    }
}

/// An agent whose snapshots the test writes.
#[derive(Default)]
pub(super) struct Agent(Mutex<BTreeMap<u32, watch::Sender<Offer>>>);

impl Agent {
    fn of(&self, identity: u32) -> watch::Sender<Offer> {
        self.0.lock().unwrap().entry(identity).or_insert_with(|| watch::channel(Offer::default()).0).clone()
    }

    pub(super) fn give(&self, identity: u32, snapshot: Snapshot) {
        self.of(identity).send_replace(Offer { snapshot, ..Offer::default() });
    }

    /// How many streams are open for it.
    pub(super) fn open(&self, identity: u32) -> usize {
        self.of(identity).receiver_count()
    }
}

impl SvidSource for Agent {
    fn subscribe(&self, identity: u32, _: &SpiffeId) -> Feed {
        Feed { offers: self.of(identity).subscribe(), keep: Box::new(()) }
    }
}

pub(super) struct Cluster {
    pub(super) ca: CertificateAuthority,
    pub(super) naming: Naming,
    pub(super) nodes: BTreeMap<String, TestNode>,
    /// Bound to the nodes' addresses and never listening: the ports of nodes that have stopped go to nobody else.
    _reserved: Vec<TcpSocket>,
}

pub(super) struct TestNode {
    pub(super) address: SocketAddr,
    pub(super) directory: watch::Sender<Arc<Directory>>,
    pub(super) own: watch::Sender<OwnTunnel>,
    pub(super) assigned: watch::Sender<Arc<Assigned>>,
    pub(super) handovers: Arc<Mutex<Handovers>>,
    pub(super) node_svid: watch::Sender<Snapshot>,
    pub(super) agent: Arc<Agent>,
    pub(super) table: Arc<MemoryTable>,
    pub(super) stats: Arc<Stats>,
    pub(super) auth: Handle,
    pub(super) peers: Peers,
    pub(super) options: Options,
    pub(super) clock: Arc<WallClock>,
    stop: Stop,
    tasks: Vec<JoinHandle<()>>,
}

pub(super) fn naming() -> Naming {
    Naming::new(TrustDomain::new("example.test").unwrap(), "/identity/{id}", "default").unwrap()
}

pub(super) const fn key(local: u32, remote: u32, node: u16) -> AuthKey {
    AuthKey { local, remote, node, auth_type: AuthType::Spire as u8, pad: 0 }
}

pub(super) fn usable(ca: &CertificateAuthority, spiffe_id: &SpiffeId, ttl: Duration) -> Snapshot {
    let svid = ca.issue(spiffe_id, ttl).unwrap().to_svid().unwrap();
    let bundles = bundles(ca);
    Snapshot { state: State::Usable(svid), bundles, stale: false, problem: None }
}

pub(super) fn bundles(ca: &CertificateAuthority) -> Bundles {
    std::iter::once(ca.bundle().unwrap()).collect()
}

/// An SVID of `ca` whose holder trusts these.
pub(super) fn trusting(
    ca: &CertificateAuthority,
    anchors: &[&CertificateAuthority],
    spiffe_id: &SpiffeId,
) -> Snapshot {
    let bundles: Vec<Bundle> = anchors.iter().map(|anchor| anchor.bundle().unwrap()).collect();
    let der = bundles.iter().flat_map(Bundle::certificates).flat_map(|one| one.to_vec()).collect::<Vec<u8>>();
    let bundle = Bundle::from_der(spiffe_id.trust_domain().clone(), &der).unwrap();
    Snapshot { bundles: [bundle].into_iter().collect(), ..usable(ca, spiffe_id, TTL) }
}

pub(super) fn withdrawn() -> Snapshot {
    Snapshot { state: State::Withdrawn, ..Snapshot::default() }
}

/// A node as the daemon puts it together.
pub(super) async fn assemble(
    options: Options,
    listener: TcpListener,
    directory: &Arc<Directory>,
    table: Arc<MemoryTable>,
    node_svids: watch::Receiver<Snapshot>,
    source: Arc<dyn SvidSource>,
) -> TestNode {
    let name = options.node.clone();
    let number = directory.nodes.get(&name).unwrap().number;
    let (directory_sender, directory_receiver) = watch::channel(Arc::clone(directory));
    let wireguard_key = Some([u8::try_from(number).unwrap(); 32]);
    let (own, own_receiver) = watch::channel(OwnTunnel { wireguard_key, wireguard_port: 51871, epoch: 1 });
    let stats = Arc::new(Stats::default());
    let observer: Arc<dyn Observer> = Arc::<Stats>::clone(&stats);
    let wall = Arc::new(WallClock::default());
    let clock: Arc<dyn Clock> = Arc::<WallClock>::clone(&wall);
    let svids = Svids::new(node_svids, Arc::clone(&clock));
    let settings = Settings {
        config: Config::default(),
        jitter: Box::new(|below| below / 2),
        clock: Arc::clone(&clock),
        table: Arc::<MemoryTable>::clone(&table),
        observer: Arc::clone(&observer),
    };
    let (driver, auth) = Driver::new(settings).unwrap();
    let stop = CancellationToken::new();
    let address = listener.local_addr().unwrap();
    let directory = directory_receiver.clone();
    let (assigned, assigned_receiver) = watch::channel(Arc::default());
    let (handover, told) = mpsc::channel(8);
    let parts = Parts {
        options: options.clone(),
        listener,
        svids: svids.clone(),
        directory,
        own: own_receiver,
        assigned: assigned_receiver,
        handover,
        auth: auth.clone(),
        clock,
        observer,
    };
    let peers = Peers::start(parts, stop.clone()).unwrap();
    let handovers = Arc::new(Mutex::new(Handovers::default()));
    tokio::spawn(take_down(told, Arc::clone(&handovers)));
    let placed = directory_receiver.borrow().placed(&name);
    let following =
        Following { svids, source, node: name, directory: directory_receiver, auth: auth.clone() };
    let tasks = vec![
        tokio::spawn(driver.run(Arc::new(peers.clone()), stop.clone())),
        tokio::spawn(follow(following, stop.clone())),
    ];
    auth.tell(Event::Desired(Arc::new(Desired { pairs: None, placed }))).await;
    TestNode {
        address,
        directory: directory_sender,
        own,
        assigned,
        handovers,
        node_svid: watch::channel(Snapshot::default()).0,
        agent: Arc::default(),
        table,
        stats,
        auth,
        peers,
        options,
        clock: wall,
        stop: Stop(stop),
        tasks,
    }
}

/// What a node was told of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Handovers {
    pub(super) owners: BTreeMap<u16, Owners>,
    pub(super) acknowledged: BTreeMap<u16, u32>,
    /// Nothing can be written, so nothing is acknowledged.
    pub(super) full: bool,
}

async fn take_down(mut told: mpsc::Receiver<Told>, handovers: Arc<Mutex<Handovers>>) {
    while let Some(told) = told.recv().await {
        let mut handovers = handovers.lock().unwrap();
        match told {
            Told::Announced { node, owners, applied } if !handovers.full => {
                handovers.owners.insert(node, owners);
                assert!(applied.send(()).is_ok());
            }
            Told::Announced { .. } => {}
            Told::Acknowledged { node, epoch, .. } => drop(handovers.acknowledged.insert(node, epoch)),
        }
    }
}

/// Waits until it holds, for at most ten seconds.
pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), waiting).await.is_ok(), "never: {what}");
}

/// A listener on a loopback address, v4.
pub(super) async fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

/// A socket that never listens, and a listener at the same address.
async fn reserved() -> (TcpSocket, TcpListener) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listener = listen_again(socket.local_addr().unwrap()).await;
    (socket, listener)
}

/// Listens where somebody has listened before: a child that another test has just forked may hold that listener until
/// it executes its program.
async fn listen_again(address: SocketAddr) -> TcpListener {
    let listening = async {
        loop {
            match TcpListener::bind(address).await {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                bound => return bound.unwrap(),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), listening).await.expect("the address stays in use")
}

impl Cluster {
    /// Nodes `n1`, `n2`, … with these identities, all of them well.
    pub(super) async fn start(identities: &[&[u32]]) -> Self {
        Self::start_with(identities, TTL, |_| {}).await
    }

    pub(super) async fn start_with(
        identities: &[&[u32]],
        ttl: Duration,
        change: impl Fn(&mut Options),
    ) -> Self {
        let naming = naming();
        let ca = CertificateAuthority::new(naming.trust_domain()).unwrap();
        let mut directory = Directory::default();
        let (mut listeners, mut reserving) = (Vec::new(), Vec::new());
        for (number, identities) in (1u16..).zip(identities) {
            let name = format!("n{number}");
            let (reserved, listener) = reserved().await;
            reserving.push(reserved);
            let node = Node {
                number,
                spiffe_id: naming.node(&name).unwrap(),
                addresses: vec![listener.local_addr().unwrap()],
                identities: identities.iter().copied().collect(),
            };
            directory.identities.extend(identities.iter().map(|one| (*one, naming.numbered(*one).unwrap())));
            directory.nodes.insert(name, node);
            listeners.push(listener);
        }
        let directory = Arc::new(directory);
        let mut cluster = Self { ca, naming, nodes: BTreeMap::new(), _reserved: reserving };
        for (name, listener) in directory.nodes.keys().zip(listeners) {
            let mut options = Options::new(name.clone(), cluster.naming.clone());
            options.redial = (Duration::from_millis(20), Duration::from_millis(200));
            change(&mut options);
            let node = cluster.start_node(options, listener, &directory, ttl, Arc::default()).await;
            cluster.nodes.insert(name.clone(), node);
        }
        cluster
    }

    async fn start_node(
        &self,
        options: Options,
        listener: TcpListener,
        directory: &Arc<Directory>,
        ttl: Duration,
        table: Arc<MemoryTable>,
    ) -> TestNode {
        let node = directory.nodes.get(&options.node).unwrap();
        let (node_svid, svids) = watch::channel(usable(&self.ca, &node.spiffe_id, ttl));
        let agent = Arc::new(Agent::default());
        for identity in &node.identities {
            agent.give(*identity, usable(&self.ca, &self.naming.numbered(*identity).unwrap(), ttl));
        }
        let source = Arc::<Agent>::clone(&agent);
        TestNode { node_svid, agent, ..assemble(options, listener, directory, table, svids, source).await }
    }

    pub(super) fn node(&self, name: &str) -> &TestNode {
        self.nodes.get(name).unwrap()
    }

    pub(super) fn svid(&self, spiffe_id: &SpiffeId) -> Svid {
        self.ca.issue(spiffe_id, TTL).unwrap().to_svid().unwrap()
    }

    /// Gives an identity an SVID, a new one if it has one.
    pub(super) fn issue(&self, node: &str, identity: u32, ttl: Duration) {
        let spiffe_id = self.naming.numbered(identity).unwrap();
        self.node(node).agent.give(identity, usable(&self.ca, &spiffe_id, ttl));
    }

    /// The whole daemon part of a node ends, and begins anew on the same port with the same map.
    pub(super) async fn restart(&mut self, name: &str) {
        self.stop(name).await;
        self.start_again(name).await;
    }

    pub(super) async fn stop(&mut self, name: &str) {
        let node = self.nodes.get_mut(name).unwrap();
        node.stop.0.cancel();
        for task in node.tasks.drain(..) {
            task.await.unwrap();
        }
        node.peers.ended().await;
    }

    pub(super) async fn start_again(&mut self, name: &str) {
        let old = self.nodes.remove(name).unwrap();
        let directory = Arc::clone(&old.directory.borrow());
        let listener = listen_again(old.address).await;
        let node =
            self.start_node(old.options.clone(), listener, &directory, TTL, Arc::clone(&old.table)).await;
        self.nodes.insert(name.to_owned(), node);
    }

    /// Every node has a live session with every other one.
    pub(super) async fn meshed(&self) {
        for (name, node) in &self.nodes {
            let others: BTreeSet<&String> = self.nodes.keys().filter(|other| *other != name).collect();
            until("all sessions up", || {
                others.iter().all(|other| node.session(other).is_some_and(|session| session.live))
            })
            .await;
        }
    }
}

impl TestNode {
    pub(super) fn session(&self, node: &str) -> Option<Session> {
        self.peers.sessions().borrow().get(node).cloned()
    }

    pub(super) fn entry(&self, key: AuthKey) -> Option<AuthEntry> {
        self.table.0.lock().unwrap().get(&key).copied()
    }

    pub(super) fn entries(&self) -> usize {
        self.table.0.lock().unwrap().len()
    }

    /// Changes what this node sees of the cluster.
    pub(super) async fn redirect(&self, change: impl FnOnce(&mut Directory)) {
        let mut directory = Directory::clone(&self.directory.borrow());
        change(&mut directory);
        let placed = directory.placed(&self.options.node);
        self.directory.send_replace(Arc::new(directory));
        self.auth.tell(Event::Desired(Arc::new(Desired { pairs: None, placed }))).await;
    }
}

/// Ends a node's tasks with the test.
struct Stop(CancellationToken);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
