//! Pods' own ends of their interfaces, read inside their network namespaces.
//!
//! Needed only where no host route tells where a pod is: on bridges, and with devices that bypass the host.
//! Namespaces are found as `ip netns` and CNI plugins name them, and by the processes in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

pub(crate) use super::interfaces::PodLink;
use super::interfaces::{Interfaces, Link};

/// Waits between looks for a pod that is not found: first, and at most.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What was found at the last look, and when to look again.
#[derive(Debug, Default)]
pub(super) struct Sandboxes {
    found: BTreeMap<IpAddr, Vec<PodLink>>,
    wanted: BTreeSet<IpAddr>,
    links: BTreeMap<u32, Link>,
    wait: Duration,
    again: Option<Instant>,
}

impl Sandboxes {
    /// Returns when it is time to look again; never while nothing is missing. Nobody tells of an address that
    /// comes into another namespace.
    pub(super) async fn due(&self) {
        match self.again {
            Some(again) => tokio::time::sleep_until(again.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Where the `wanted` addresses are. Looks when they or the links of the host have changed, and now and
    /// then while one is missing.
    pub(super) async fn find(
        &mut self,
        wanted: BTreeSet<IpAddr>,
        interfaces: &Interfaces,
    ) -> BTreeMap<IpAddr, Vec<PodLink>> {
        let changed = wanted != self.wanted || interfaces.links != self.links;
        if wanted.is_empty() {
            *self = Self::default();
        }
        if wanted.is_empty() || !(changed || self.again.is_some_and(|again| again <= Instant::now())) {
            return self.found.clone();
        }
        if changed {
            self.wait = FIRST_WAIT;
        }
        // A thread of its own: it enters the namespaces and ends there.
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let addresses = wanted.clone();
        thread::spawn(move || drop(sender.send(look(&addresses))));
        self.found = receiver.await.unwrap_or_default();
        let missing = wanted.iter().any(|address| !self.found.contains_key(address));
        self.again = missing.then(|| Instant::now() + self.wait);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        self.wanted = wanted;
        self.links.clone_from(&interfaces.links);
        self.found.clone()
    }
}

/// Looks into every network namespace but this one, by a thread that must end then. One that has just gone is no
/// error.
pub(crate) fn look(wanted: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, Vec<PodLink>> {
    let mut found: BTreeMap<IpAddr, Vec<PodLink>> = BTreeMap::new();
    for (inode, file) in namespaces() {
        match look_into(&file) {
            Ok(inside) => {
                for (address, index) in inside.addresses.iter().filter(|(it, _)| wanted.contains(it)) {
                    let link = inside.links.get(index).cloned().unwrap_or_default();
                    let name = inside.names.get(index).cloned().unwrap_or_default();
                    let link = PodLink { namespace: inode, name, ifindex: *index, link };
                    found.entry(*address).or_default().push(link);
                }
            }
            Err(error) => tracing::debug!(inode, %error, "can't look into a network namespace"),
        }
    }
    found
}

fn look_into(namespace: &File) -> io::Result<Interfaces> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _messages) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let mut inside = Interfaces::default();
        inside.read_links(&handle).await.map_err(io::Error::other)?;
        inside.read_addresses(&handle).await.map_err(io::Error::other)?;
        connection.abort();
        Ok(inside)
    })
}

/// Every other network namespace that has a name or a process, by inode.
fn namespaces() -> BTreeMap<u64, File> {
    let own = fs::metadata("/proc/self/ns/net").map(|own| own.ino()).unwrap_or_default();
    let list = |directory| fs::read_dir(directory).into_iter().flatten().flatten().map(|it| it.path());
    let is_process = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    let processes = list("/proc").filter(is_process).map(|path| path.join("ns/net"));
    let mut namespaces = BTreeMap::new();
    for path in list("/run/netns").chain(processes) {
        let Ok(inode) = fs::metadata(&path).map(|namespace| namespace.ino()) else { continue };
        if inode != own
            && !namespaces.contains_key(&inode)
            && let Ok(file) = File::open(&path)
        {
            namespaces.insert(inode, file);
        }
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// From the range of documentation: in no sandbox.
    const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    #[tokio::test]
    async fn what_is_missing_is_looked_for_again_at_once_and_then_less_often() {
        let (mut sandboxes, interfaces) = (Sandboxes::default(), Interfaces::default());
        for wait in [FIRST_WAIT, FIRST_WAIT * 2, FIRST_WAIT * 4] {
            assert!(sandboxes.find([NOWHERE].into(), &interfaces).await.is_empty());
            let found = Instant::now();
            sandboxes.due().await;
            let late = found.elapsed().saturating_sub(wait);
            // Less by the moment that `find` needs to return.
            assert!(found.elapsed() > wait / 2 && late < Duration::from_secs(5), "{wait:?}, {late:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_due_while_nothing_is_missing() {
        let (mut sandboxes, interfaces) = (Sandboxes::default(), Interfaces::default());
        sandboxes.find([NOWHERE].into(), &interfaces).await;
        sandboxes.find(BTreeSet::new(), &interfaces).await;
        assert!(tokio::time::timeout(FIRST_WAIT * 2, sandboxes.due()).await.is_err());
    }
}
