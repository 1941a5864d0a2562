//! Watches the directory of manifests and publishes a new snapshot when something changed.
//!
//! A thread of its own reads everything again after each burst of changes, and every ten seconds in any
//! case, since inotify may lose events. It never ends by itself: whatever happens to the directory, the
//! last snapshot stays, with a problem in it that says so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;

use super::files::directory_id;
use super::loader::Loader;
use super::problem::Problem;
use super::{Cluster, Error, Site};

/// How long nothing must happen before the directory is read.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How long a busy writer can put that off.
const DEBOUNCE_LIMIT: Duration = Duration::from_secs(1);
/// How often reading is put off because a file was written to just now.
const MAX_PUT_OFF: u32 = 20;
/// How often the directory is read without any event.
const RESCAN: Duration = Duration::from_secs(10);
/// How often it is looked for while it is gone.
const RESCAN_ABSENT: Duration = Duration::from_millis(500);

/// Keeps the directory watched until it is dropped.
#[derive(Debug)]
pub struct Watch {
    wake: Sender<Wake>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // If the receiver is gone, the thread has ended already.
        drop(self.wake.send(Wake::Stop));
    }
}

#[derive(Debug)]
enum Wake {
    /// Something in the directory.
    Changed,
    /// The directory itself: the inotify watch may be on something that has gone.
    Moved,
    Stop,
}

/// Reads the directory once.
///
/// # Errors
/// [`Error::Directory`] if it can't be listed; whatever is wrong inside it is among the snapshot's problems.
pub fn load(directory: &Path, site: &Site) -> Result<Cluster, Error> {
    Loader::new(directory, site).load()
}

/// Reads the directory and goes on watching it: the receiver has the present snapshot at once, and sees
/// another only when something is different. It blocks for as long as the first reading takes. Identities that
/// share a SPIFFE ID are known as such to policies.
///
/// # Errors
/// [`Error`] if the directory can't be listed or watched.
pub fn watch(directory: &Path, site: &Site) -> Result<(watch::Receiver<Arc<Cluster>>, Watch), Error> {
    let (wake, woken) = channel();
    // Watched before it is read, so that no change falls between the two.
    let mut watcher = Watcher { directory: directory.to_owned(), wake: wake.clone(), watched: None };
    watcher.renew()?;
    let mut loader = Loader::new(directory, site);
    let cluster = loader.load()?;
    report(&Cluster::default(), &cluster);
    let (sender, receiver) = watch::channel(Arc::new(cluster));
    let thread = Thread { watcher, loader, woken, sender, put_off: 0 };
    std::thread::Builder::new().name("cluster".to_owned()).spawn(|| thread.run()).map_err(Error::Thread)?;
    Ok((receiver, Watch { wake }))
}

struct Watcher {
    directory: PathBuf,
    wake: Sender<Wake>,
    /// The inotify watch, and the directory that it is on.
    watched: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Watcher {
    /// Watches the directory that stands under the name now, if it isn't that one already.
    fn renew(&mut self) -> Result<(), Error> {
        let id = match directory_id(&self.directory) {
            Ok(id) => id,
            Err(source) => {
                self.watched = None;
                return Err(Error::Directory { directory: self.directory.clone(), source });
            }
        };
        if self.watched.as_ref().is_some_and(|(_, watched)| *watched == id) {
            return Ok(());
        }
        let unwatched = |source| Error::Watch { directory: self.directory.clone(), source };
        let wake = self.wake.clone();
        let directory = self.directory.clone();
        let notice = move |event: notify::Result<Event>| {
            let wake_up = match event {
                Ok(event) if !matters(&event) => return,
                Ok(event) if event.paths.contains(&directory) => Wake::Moved,
                Ok(_) | Err(_) => Wake::Changed,
            };
            // If the receiver is gone, nobody wants to know any more.
            drop(wake.send(wake_up));
        };
        let mut watcher = notify::recommended_watcher(notice).map_err(unwatched)?;
        watcher.watch(&self.directory, RecursiveMode::NonRecursive).map_err(unwatched)?;
        self.watched = Some((watcher, id));
        Ok(())
    }
}

/// Reading makes events too, and a write is complete only when the file is closed.
fn matters(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(notify::event::ModifyKind::Data(_)) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

struct Thread {
    watcher: Watcher,
    loader: Loader,
    woken: Receiver<Wake>,
    sender: watch::Sender<Arc<Cluster>>,
    /// How often in a row reading was put off for a writer.
    put_off: u32,
}

impl Thread {
    fn run(mut self) {
        let mut pause = RESCAN;
        while self.wait(pause) && !self.sender.is_closed() {
            pause = self.read();
        }
    }

    /// Waits for changes to settle, or for the time to be up; false if it is time to stop.
    fn wait(&mut self, pause: Duration) -> bool {
        let mut deadline: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let pause =
                deadline.map_or(pause, |deadline| DEBOUNCE.min(deadline.saturating_duration_since(now)));
            match self.woken.recv_timeout(pause) {
                Ok(Wake::Changed) => {}
                Ok(Wake::Moved) => self.watcher.watched = None,
                Err(RecvTimeoutError::Timeout) => return true,
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            }
            deadline.get_or_insert(now + DEBOUNCE_LIMIT);
        }
    }

    /// Reads and publishes; says when to read again at the latest.
    fn read(&mut self) -> Duration {
        let renewed = self.watcher.renew();
        // A file that is just being written is left to its writer, who will close it; but not for ever.
        let read = if self.put_off < MAX_PUT_OFF {
            renewed.and_then(|()| self.loader.load_settled())
        } else {
            renewed.and_then(|()| self.loader.load().map(Some))
        };
        let (cluster, pause) = match read {
            Ok(None) => {
                self.put_off += 1;
                return DEBOUNCE;
            }
            Ok(Some(cluster)) => (cluster, RESCAN),
            Err(error) => (self.keep_last(&error), RESCAN_ABSENT),
        };
        self.put_off = 0;
        self.sender.send_if_modified(|last| {
            let is_new = **last != cluster;
            if is_new {
                report(last, &cluster);
                *last = Arc::new(cluster);
            }
            is_new
        });
        pause
    }

    fn keep_last(&self, error: &Error) -> Cluster {
        let mut cluster = Cluster::clone(&self.sender.borrow());
        cluster.problems.retain(|problem| problem.file.is_some() || problem.object.is_some());
        cluster.problems.insert(0, Problem::error(format!("{error}; the last state stays in force")));
        cluster
    }
}

/// Logs what is wrong now and wasn't before.
fn report(before: &Cluster, now: &Cluster) {
    for problem in now.problems.iter().filter(|problem| !before.problems.contains(problem)) {
        match problem.severity {
            super::Severity::Error => tracing::error!(%problem, "the cluster directory has a problem"),
            super::Severity::Notice => tracing::warn!(%problem, "the cluster directory is incomplete"),
        }
    }
    let mended = before.problems.iter().filter(|problem| !now.problems.contains(problem)).count();
    tracing::info!(
        nodes = now.nodes.len(),
        pods = now.pods.len(),
        problems = now.problems.len(),
        mended,
        "read the cluster directory"
    );
}
