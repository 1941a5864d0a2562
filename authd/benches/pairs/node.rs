//! A node as the daemon puts it together, without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use auth_ebpf_abi::{AuthEntry, AuthKey, AuthType};
use authd::auth::driver::{AuthTable, Driver, Settings, TableError};
use authd::auth::stats::{Observer, Proving, Side, Stats};
use authd::auth::{Config, Desired, Event, Handle};
use authd::clock::{BootClock, Clock};
use authd::peer::{Directory, Naming, Options, OwnTunnel, PairProof, Parts, Peers};
use authd::svids::{Feed, Following, Offer, SvidSource, Svids, follow};
use spiffe::{SpiffeId, TrustDomain};
use spire_adapter::authority::CertificateAuthority;
use spire_adapter::{Snapshot, State};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Longer than any run.
const TTL: Duration = Duration::from_secs(24 * 3600);
/// Number of the first identity of each node.
const FIRST: [u32; 2] = [1000, 2000];

/// The map.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<AuthKey, AuthEntry>>);

impl Memory {
    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<AuthKey, AuthEntry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuthTable for Memory {
    fn insert(&self, key: AuthKey, entry: AuthEntry) -> Result<(), TableError> {
        self.entries().insert(key, entry);
        Ok(())
    }

    fn remove(&self, key: &AuthKey) -> Result<(), TableError> {
        self.entries().remove(key);
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(AuthKey, AuthEntry)>, TableError> {
        Ok(Vec::new())
    }
}

/// An SVID for each identity, from the beginning.
struct Agent {
    authority: Arc<CertificateAuthority>,
    issued: Mutex<Vec<watch::Sender<Offer>>>,
}

impl SvidSource for Agent {
    fn subscribe(&self, _: u32, spiffe_id: &SpiffeId) -> Feed {
        let snapshot = usable(&self.authority, spiffe_id);
        let (sender, offers) = watch::channel(Offer { snapshot, ..Offer::default() });
        self.issued.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        Feed { offers, keep: Box::new(()) }
    }
}

fn usable(authority: &CertificateAuthority, spiffe_id: &SpiffeId) -> Snapshot {
    let svid = authority.issue(spiffe_id, TTL).unwrap().to_svid().unwrap();
    let bundles = std::iter::once(authority.bundle().unwrap()).collect();
    Snapshot { state: State::Usable(svid), bundles, stale: false, problem: None }
}

pub(crate) struct Node {
    table: Arc<Memory>,
    stats: Arc<Stats>,
    auth: Handle,
    peers: Peers,
    svids: Svids,
    stop: CancellationToken,
    _kept: Kept,
}

/// What ends when nobody holds it.
type Kept = (watch::Sender<Arc<Directory>>, watch::Sender<OwnTunnel>, watch::Sender<Snapshot>);

/// Two nodes with so many identities each and a session, ready.
pub(crate) async fn two(size: u32, way: PairProof) -> (Node, Node) {
    let trust_domain = TrustDomain::new("example.test").unwrap();
    let authority = Arc::new(CertificateAuthority::new(&trust_domain).unwrap());
    let naming = Naming::new(trust_domain.clone(), "/identity/{id}", "default").unwrap();
    let mut directory = Directory::default();
    let mut listeners = Vec::new();
    for ((number, name), first) in [(1, "n1"), (2, "n2")].into_iter().zip(FIRST) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addresses: Vec<SocketAddr> = vec![listener.local_addr().unwrap()];
        let identities: BTreeSet<u32> = (first..first + size).collect();
        let id = |number: &u32| SpiffeId::new(format!("spiffe://example.test/identity/{number}")).unwrap();
        directory.identities.extend(identities.iter().map(|number| (*number, id(number))));
        let spiffe_id = naming.node(name).unwrap();
        let node = authd::peer::Node { number, spiffe_id, addresses, identities };
        directory.nodes.insert(name.to_owned(), node);
        listeners.push((name, listener));
    }
    let directory = Arc::new(directory);
    let mut nodes = Vec::new();
    for (name, listener) in listeners {
        let mut options = Options::new(name.to_owned(), naming.clone());
        options.pair_proof = way;
        nodes.push(Node::start(options, listener, &directory, &authority).await);
    }
    let (server, client) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    for node in [&client, &server] {
        node.ready(size).await;
    }
    (client, server)
}

impl Node {
    async fn start(
        options: Options,
        listener: TcpListener,
        directory: &Arc<Directory>,
        authority: &Arc<CertificateAuthority>,
    ) -> Self {
        let (name, way) = (options.node.clone(), directory.placed(&options.node));
        let own = directory.nodes.get(&name).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(BootClock);
        let (stats, table) = (Arc::new(Stats::default()), Arc::new(Memory::default()));
        let observer: Arc<dyn Observer> = Arc::<Stats>::clone(&stats);
        let (node_svid, node_svids) = watch::channel(usable(authority, &own.spiffe_id));
        let svids = Svids::new(node_svids, Arc::clone(&clock));
        let settings = Settings {
            config: Config::default(),
            jitter: Box::new(|below| below / 2),
            clock: Arc::clone(&clock),
            table: Arc::<Memory>::clone(&table),
            observer: Arc::clone(&observer),
        };
        let (driver, auth) = Driver::new(settings).unwrap();
        let key = Some([u8::try_from(own.number).unwrap(); 32]);
        let (own, own_tunnel) =
            watch::channel(OwnTunnel { wireguard_key: key, wireguard_port: 51871, epoch: 1 });
        let (sender, directory) = watch::channel(Arc::clone(directory));
        let (handover, mut told) = mpsc::channel(8);
        tokio::spawn(async move { while told.recv().await.is_some() {} });
        let (_, assigned) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let parts = Parts {
            options,
            listener,
            svids: svids.clone(),
            directory: directory.clone(),
            own: own_tunnel,
            assigned,
            handover,
            auth: auth.clone(),
            clock,
            observer,
        };
        let peers = Peers::start(parts, stop.clone()).unwrap();
        tokio::spawn(driver.run(Arc::new(peers.clone()), stop.clone()));
        let source = Arc::new(Agent { authority: Arc::clone(authority), issued: Mutex::default() });
        let following = Following { svids: svids.clone(), source, node: name, directory, auth: auth.clone() };
        tokio::spawn(follow(following, stop.clone()));
        auth.tell(Event::Desired(Arc::new(Desired { pairs: None, placed: way }))).await;
        Self { table, stats, auth, peers, svids, stop, _kept: (sender, own, node_svid) }
    }

    /// Waits for the session, and for the SVIDs at both ends.
    async fn ready(&self, size: u32) {
        let size = usize::try_from(size).unwrap();
        let mut sessions = self.peers.sessions();
        let complete = |sessions: &authd::peer::SessionMap| {
            sessions.values().any(|session| session.live && session.identities.len() == size)
        };
        sessions.wait_for(complete).await.unwrap();
        while self.svids.all().values().filter(|svid| svid.credential.is_some()).count() < size {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// All pairs, seen from the first node: in turns, so that no identity comes only when another is done.
    pub(crate) fn pairs(size: u32) -> impl Iterator<Item = AuthKey> {
        (0..size)
            .flat_map(move |turn| (0..size).map(move |number| Self::pair(number, (number + turn) % size)))
    }

    /// Of an identity of the first node and one of the second, both counted from 0; seen from the first node.
    pub(crate) const fn pair(local: u32, remote: u32) -> AuthKey {
        let [first, second] = FIRST;
        AuthKey {
            local: first + local,
            remote: second + remote,
            node: 2,
            auth_type: AuthType::Spire as u8,
            pad: 0,
        }
    }

    pub(crate) fn ask(&self, key: AuthKey) -> bool {
        self.auth.ask(key)
    }

    pub(crate) fn has(&self, key: AuthKey) -> bool {
        self.table.entries().contains_key(&key)
    }

    pub(crate) fn entries(&self) -> usize {
        self.table.entries().len()
    }

    /// Proofs that were made here.
    pub(crate) fn proofs(&self) -> u64 {
        self.stats.proofs(Proving::Made, "ok")
    }

    /// Attempts that failed here.
    pub(crate) fn failures(&self) -> u64 {
        let counts = self.stats.counts();
        counts
            .iter()
            .filter(|((side, word), _)| *side == Side::Client && *word != "ok")
            .map(|(_, count)| count)
            .sum()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.peers.ended().await;
    }
}
