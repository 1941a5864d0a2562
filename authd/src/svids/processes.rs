//! The processes of the pods here, by which SPIRE's agent can be asked: those in the network namespace that has a
//! pod's addresses.
//!
//! Numbers of processes are used again. So whoever asks by one holds it by a descriptor first, and then looks again
//! at what it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use auth_ebpf_abi::IdentityNumber;
use spire_adapter::broker::Process;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chooser::{Candidate, SocketId};
use crate::cluster::Cluster;
use crate::datapath::{View, sandboxes};

/// How often processes are looked for while an identity has none.
const SOON: Duration = Duration::from_millis(250);
/// The same when all have some.
const LATER: Duration = Duration::from_secs(10);
/// How often the agent's broker socket is looked at, and namespaces are looked for that were not found.
const TICK: Duration = Duration::from_secs(1);
/// What a sandbox's own process is called. It is none of the pod's containers, and agents attest it as nobody's.
const PAUSE: &str = "pause";

/// What can be asked for, as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The agent's broker socket.
    pub broker: Option<SocketId>,
    /// The processes of each identity's pods here; `None` until they have been looked for.
    pub processes: Option<Arc<BTreeMap<IdentityNumber, BTreeSet<Candidate>>>>,
}

/// Looks for processes and for the broker socket.
pub struct Lookout {
    /// This node's name.
    pub node: String,
    /// The pods, and which of them nobody vouches for.
    pub cluster: watch::Receiver<Arc<Cluster>>,
    /// Their interfaces.
    pub view: watch::Receiver<Arc<View>>,
    /// Where the agent's broker socket would be.
    pub broker: PathBuf,
    /// Where it tells what it sees.
    pub seen: watch::Sender<Seen>,
    /// Who wants it to look now, since a process has ended.
    pub wanted: Arc<Notify>,
}

/// A pod, as far as it is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pod {
    identity: IdentityNumber,
    addresses: Vec<IpAddr>,
    /// The host end of its interface.
    interface: Option<u32>,
}

impl Lookout {
    /// Whether the agent serves the Broker API now.
    #[must_use]
    pub fn sees_broker(&self) -> bool {
        socket_id(&self.broker).is_some()
    }

    /// Looks until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pods: Option<Vec<Pod>> = None;
        let mut namespaces: BTreeMap<u64, IdentityNumber> = BTreeMap::new();
        let mut whole = Instant::now();
        loop {
            let now = self.pods();
            let changed = pods.as_ref() != Some(&now);
            let found: BTreeSet<IdentityNumber> = namespaces.values().copied().collect();
            let missing = now.iter().any(|pod| !found.contains(&pod.identity));
            if changed || whole.elapsed() >= if missing { TICK } else { LATER } {
                namespaces = namespaces_of(now.clone()).await;
                whole = Instant::now();
            }
            let found = namespaces.clone();
            let processes = tokio::task::spawn_blocking(move || processes(&found)).await.unwrap_or_default();
            let lacking = now.iter().any(|pod| !processes.contains_key(&pod.identity));
            // Before cluster state has said what runs here, nothing is known to be missing.
            let known = self.cluster.borrow().nodes.contains_key(&self.node);
            let seen =
                Seen { broker: socket_id(&self.broker), processes: known.then(|| Arc::new(processes)) };
            self.seen.send_if_modified(|last| {
                let differs = *last != seen;
                *last = seen;
                differs
            });
            pods = Some(now);
            let pause = if lacking { SOON } else { TICK };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.wanted.notified() => {}
                changed = self.view.changed() => if changed.is_err() { return },
                changed = self.cluster.changed() => if changed.is_err() { return },
            }
        }
    }

    fn pods(&mut self) -> Vec<Pod> {
        let cluster = Arc::clone(&self.cluster.borrow_and_update());
        let view = Arc::clone(&self.view.borrow_and_update());
        // Of a static pod only its node says what it is.
        let here = cluster.local_pods(&self.node).filter(|pod| !pod.mirror && !pod.host_network);
        let pod = |pod: &crate::cluster::Pod| {
            let named = |endpoint: &str| endpoint.split_once('/') == Some((&pod.namespace, &pod.name));
            let endpoint = view.endpoints.iter().find(|(endpoint, _)| named(&endpoint.pod));
            let interface = endpoint.and_then(|(endpoint, _)| Some(endpoint.interface.as_ref()?.0));
            Some(Pod { identity: pod.identity?, addresses: pod.addresses.clone(), interface })
        };
        here.filter_map(pod).collect()
    }
}

/// The identity of each network namespace that is a pod's.
async fn namespaces_of(pods: Vec<Pod>) -> BTreeMap<u64, IdentityNumber> {
    if pods.is_empty() {
        return BTreeMap::new();
    }
    // A thread of its own: it enters the namespaces and ends there.
    let (sender, receiver) = tokio::sync::oneshot::channel();
    thread::spawn(move || {
        let wanted = pods.iter().flat_map(|pod| pod.addresses.iter().copied()).collect();
        let claims = sandboxes::look(&wanted);
        drop(sender.send(pods.iter().flat_map(|pod| claimed(pod, &claims)).collect()));
    });
    receiver.await.unwrap_or_default()
}

/// The namespaces that have one of a pod's addresses. A pod may give itself another's: what is at the host end of
/// the other's interface counts before that.
fn claimed(pod: &Pod, claims: &BTreeMap<IpAddr, Vec<sandboxes::PodLink>>) -> Vec<(u64, IdentityNumber)> {
    let links = || pod.addresses.iter().filter_map(|address| claims.get(address)).flatten();
    let is_its_own = |link: &&sandboxes::PodLink| pod.interface.is_some() && link.link.peer == pod.interface;
    let own: BTreeSet<u64> = links().filter(is_its_own).map(|link| link.namespace).collect();
    let all = || links().map(|link| link.namespace).collect();
    let namespaces = if own.is_empty() { all() } else { own };
    namespaces.into_iter().map(|namespace| (namespace, pod.identity)).collect()
}

fn processes(namespaces: &BTreeMap<u64, IdentityNumber>) -> BTreeMap<IdentityNumber, BTreeSet<Candidate>> {
    let mut found: BTreeMap<IdentityNumber, BTreeSet<Candidate>> = BTreeMap::new();
    if namespaces.is_empty() {
        return found;
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number else { continue };
        let of_pod = namespace_of(pid).and_then(|namespace| namespaces.get(&namespace));
        if let Some(identity) = of_pod
            && let Some(candidate) = look(pid)
        {
            found.entry(*identity).or_default().insert(candidate);
        }
    }
    found
}

/// What the process with this number is now; `None` of one that only holds a sandbox.
pub(super) fn look(pid: i32) -> Option<Candidate> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may have any character; the start is the twentieth field after it.
    let (before, after) = stat.rsplit_once(") ")?;
    let (_, name) = before.split_once('(')?;
    let started = after.split(' ').nth(19)?.parse().ok()?;
    let namespace = namespace_of(pid)?;
    (name != PAUSE).then_some(Candidate { started, pid, namespace })
}

fn namespace_of(pid: i32) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino())
}

/// Holds a process, if it still is what was seen.
pub(super) fn hold(candidate: Candidate) -> Option<Process> {
    let process = Process::open(candidate.pid).ok()?;
    // Alive after this look, it was this process that was looked at.
    (look(candidate.pid) == Some(candidate) && process.is_alive()).then_some(process)
}

/// Which socket is there, if any.
pub(super) fn socket_id(path: &Path) -> Option<SocketId> {
    let metadata = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_socket())?;
    let made = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
    Some(SocketId { file: (metadata.dev(), metadata.ino()), made })
}
