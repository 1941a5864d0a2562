//! Network namespaces without names: held by a descriptor, so nothing is left behind however a test ends.

use std::io::Write as _;
use std::{
    fs::File,
    future::Future,
    os::fd::AsRawFd as _,
    process::{Child, Command, Stdio},
    sync::{Arc, RwLock},
    thread::{self, JoinHandle},
};

use nix::sched::{CloneFlags, setns, unshare};

/// Held for reading while a process is being started: until it executes its program, it has all that is open here.
static STARTING: RwLock<()> = RwLock::new(());

/// Starts a process.
pub(crate) fn start(command: &mut Command) -> Child {
    let _starting = STARTING.read().expect("no panic while one starts");
    command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

/// Waits until what this process has closed is held open by none that another test has just started.
pub(crate) fn close() {
    drop(STARTING.write().expect("no panic while one starts"));
}

/// A network namespace with `lo` up.
#[derive(Clone)]
pub(crate) struct Namespace(Arc<File>);

impl Namespace {
    /// Makes one, or says why `test` is skipped.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|error| format!("no network namespace: {error}"))?;
            File::open("/dev/net/tun").map_err(|error| format!("/dev/net/tun: {error}"))?;
            File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())
        });
        match made.join().expect("thread that makes a namespace") {
            Ok(file) => {
                let namespace = Self(Arc::new(file));
                namespace.ip("link set lo up");
                Some(namespace)
            }
            Err(why) => {
                assert!(
                    std::env::var("CI").as_deref() != Ok("true"),
                    "{test} must not be skipped in CI: {why}"
                );
                // Past the capture of the test runner: `scripts/test` counts these lines.
                let _unread = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
                None
            }
        }
    }

    /// Runs `work` on a thread of its own in this namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = Arc::clone(&self.0);
        thread::spawn(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            work()
        })
    }

    /// Like [`Self::spawn`], and waits.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(work).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a future to its end in this namespace.
    pub(crate) fn block_on<F: Future>(&self, work: impl FnOnce() -> F + Send + 'static) -> F::Output
    where
        F::Output: Send + 'static,
    {
        self.run(|| runtime().block_on(work()))
    }

    /// Runs `ip` with these words and returns what it prints.
    pub(crate) fn ip(&self, words: &str) -> String {
        let words: Vec<String> = words.split_whitespace().map(Into::into).collect();
        self.run(move || {
            let mut command = Command::new("ip");
            command.args(&words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let output = start(&mut command).wait_with_output().expect("run ip");
            assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    /// A path by which other processes can name it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A runtime on the calling thread, so that all it makes is in that thread's namespace.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}
