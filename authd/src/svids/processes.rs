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
        let mut found = Found::default();
        let mut wanted = true;
        loop {
            let pods = self.pods();
            found.look(pods, wanted).await;
            // Before cluster state has said what runs here, nothing is known to be missing.
            let known = self.cluster.borrow().nodes.contains_key(&self.node);
            let seen = Seen {
                broker: socket_id(&self.broker),
                processes: known.then(|| Arc::clone(&found.processes)),
            };
            self.seen.send_if_modified(|last| {
                let differs = *last != seen;
                *last = seen;
                differs
            });
            wanted = false;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(if found.lacks() { SOON } else { TICK }) => {}
                () = self.wanted.notified() => wanted = true,
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

/// What was found at the last looks.
#[derive(Default)]
struct Found {
    pods: Vec<Pod>,
    namespaces: BTreeMap<u64, IdentityNumber>,
    processes: Arc<BTreeMap<IdentityNumber, BTreeSet<Candidate>>>,
    /// When namespaces were entered, and when processes were listed.
    entered: Option<Instant>,
    listed: Option<Instant>,
}

impl Found {
    /// Looks anew at what may have changed; at processes in any case if that is `wanted`.
    async fn look(&mut self, pods: Vec<Pod>, wanted: bool) {
        let is_old = |looked: Option<Instant>, age| looked.is_none_or(|looked| looked.elapsed() >= age);
        let entered: BTreeSet<IdentityNumber> = self.namespaces.values().copied().collect();
        let is_missing = pods.iter().any(|pod| !entered.contains(&pod.identity));
        let is_new = pods != self.pods;
        self.pods = pods;
        let enters = is_new || is_old(self.entered, if is_missing { TICK } else { LATER });
        if enters {
            self.namespaces = namespaces_of(self.pods.clone()).await;
            self.entered = Some(Instant::now());
        }
        if enters || wanted || self.lacks() || is_old(self.listed, LATER) {
            let namespaces = self.namespaces.clone();
            let listed = tokio::task::spawn_blocking(move || processes(&namespaces)).await;
            self.processes = Arc::new(listed.unwrap_or_default());
            self.listed = Some(Instant::now());
        }
    }

    /// Whether an identity has no process.
    fn lacks(&self) -> bool {
        self.pods.iter().any(|pod| !self.processes.contains_key(&pod.identity))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::{Child, Command};

    use sandboxes::PodLink;

    use super::*;
    use crate::datapath::interfaces::Link;

    fn claim(namespace: u64, peer: u32) -> PodLink {
        let link = Link { kind: "veth".to_owned(), peer: Some(peer), master: None, mtu: 1500 };
        PodLink { namespace, name: "eth0".to_owned(), ifindex: 2, link }
    }

    #[test]
    fn a_pod_is_where_its_interface_leads_and_not_where_its_address_is_claimed() {
        let address: IpAddr = "10.244.1.10".parse().unwrap();
        let pod = |interface| Pod { identity: 256, addresses: vec![address], interface };
        let claims = [(address, vec![claim(70, 7), claim(80, 8)])].into();
        assert_eq!(claimed(&pod(Some(8)), &claims), [(80, 256)]);
        // With nothing to tell them apart the agent does: it gives nothing to whom it does not know.
        for unknown in [None, Some(9)] {
            assert_eq!(claimed(&pod(unknown), &claims), [(70, 256), (80, 256)]);
        }
        let other = Pod { addresses: vec!["10.244.1.11".parse().unwrap()], ..pod(Some(8)) };
        assert_eq!(claimed(&other, &claims), []);
    }

    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    #[test]
    fn sandboxes_are_held_by_processes_that_are_not_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let started = |name: &str| {
            let program = dir.path().join(name);
            // No copy: what this process has written, another test's child may hold open just when it is executed.
            symlink("/bin/sleep", &program).unwrap();
            Running(Command::new(program).arg("100").spawn().unwrap())
        };
        let pid = |running: &Running| i32::try_from(running.0.id()).unwrap();
        // Names may have what else ends them.
        let running = [started("pause"), started("a) S 1 (")];
        let [pause, odd] = running.each_ref().map(pid);
        let own = namespace_of(odd).unwrap();
        let mine = look(i32::try_from(std::process::id()).unwrap()).unwrap();
        let found = look(odd).unwrap();
        assert_eq!((found.pid, found.namespace), (odd, own));
        assert!(found.started >= mine.started, "{found:?} before {mine:?}");
        assert_eq!(look(pause), None);
        let all = processes(&[(own, 256)].into());
        let numbers: Vec<i32> = all[&256].iter().map(|candidate| candidate.pid).collect();
        assert!(numbers.contains(&odd) && !numbers.contains(&pause), "{numbers:?}");
        assert!(processes(&[(own + 1, 256)].into()).is_empty());
    }
}
