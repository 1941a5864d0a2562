//! A network namespace of a lab, with the mounts and processes that belong to it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};

use super::holder::Holder;
use super::marked;
use crate::wait;

/// The variable that tells a lab's processes from all others.
pub(crate) const VARIABLE: &str = "AUTHD_LAB";
/// Seconds that a command of [`Namespace::exec`] may take.
const LIMIT: &str = "30";
/// How long an address that is in use may take to be released.
const RELEASE: Duration = Duration::from_secs(5);

/// A node has its own BPF file system and its own /run/authd, as a machine has.
const NODE_SCRIPT: &str = "
    mountpoint -q /sys/fs/bpf && umount /sys/fs/bpf
    mount -t bpf bpf /sys/fs/bpf
    mount -t tmpfs -o mode=755 authd /run/authd
    ip link set lo up
    echo ready
    exec sleep infinity";
const POD_SCRIPT: &str = "
    ip link set lo up
    echo ready
    exec sleep infinity";

/// A place in which commands run and sockets open.
#[derive(Clone, Debug)]
pub struct Namespace {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    root: PathBuf,
    /// The sleeping process in it, unless it is the holder's.
    sleeper: Option<Mutex<Child>>,
    net: File,
    mounts: File,
    processes: File,
    holder: Arc<Holder>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(sleeper) = &mut self.sleeper {
            let sleeper = sleeper.get_mut().unwrap_or_else(PoisonError::into_inner);
            drop(sleeper.kill());
            drop(sleeper.wait());
        }
    }
}

impl Namespace {
    /// The namespace in which the holder itself is.
    pub(super) fn of_holder(name: &str, holder: &Arc<Holder>) -> Result<Self> {
        let open = |kind| File::open(holder.namespace(kind)).context("open a namespace of the holder");
        Ok(Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                root: holder.root(),
                sleeper: None,
                net: open("net")?,
                mounts: open("mnt")?,
                processes: open("pid_for_children")?,
                holder: Arc::clone(holder),
            }),
        })
    }

    /// A new one for a node, beside this one in the same lab.
    pub(super) fn new_node(&self, name: &str) -> Result<Self> {
        self.beside(name, NODE_SCRIPT)
    }

    /// A new one for a pod.
    pub(super) fn new_pod(&self, name: &str) -> Result<Self> {
        self.beside(name, POD_SCRIPT)
    }

    /// What keeps it is a sleeping process in it, as a pod has its pause container; that also gives
    /// `nsenter` something to enter.
    fn beside(&self, name: &str, script: &str) -> Result<Self> {
        self.exec(["ip", "netns", "add", name])?;
        let mut command = self.command("ip");
        command.args(["netns", "exec", name, "sh", "-ceu", script]).stdout(Stdio::piped());
        let mut child = self.spawn(command).context("start the process that keeps the namespace")?;
        let stdout = child.stdout.take().context("no pipe from it")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("namespace {name} did not get ready");
        }
        let pid = child.id();
        let open = |kind| File::open(format!("/proc/{pid}/ns/{kind}")).context("open its namespaces");
        Ok(Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                root: PathBuf::from(format!("/proc/{pid}/root")),
                sleeper: Some(Mutex::new(child)),
                net: open("net")?,
                mounts: open("mnt")?,
                processes: open("pid")?,
                holder: Arc::clone(&self.shared.holder),
            }),
        })
    }

    /// The name, by which `ip netns` in the lab knows it too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The options with which `nsenter` gets here.
    #[must_use]
    pub fn nsenter_options(&self) -> String {
        let (member, processes) = match &self.shared.sleeper {
            Some(sleeper) => (sleeper.lock().unwrap_or_else(PoisonError::into_inner).id(), "pid"),
            None => (self.shared.holder.pid(), "pid_for_children"),
        };
        let namespaces = format!("/proc/{member}/ns");
        format!("--mount={namespaces}/mnt --net={namespaces}/net --pid={namespaces}/{processes}")
    }

    /// A path of this namespace's file system, as this process sees it.
    #[must_use]
    pub fn outside(&self, path: &Path) -> PathBuf {
        self.shared.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A command to be given to [`Namespace::spawn`]: no input, and the lab's name in its environment.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = marked(program, self.shared.holder.name());
        command.stdin(Stdio::null());
        command
    }

    /// Starts a command here: network, mounts and processes are the namespace's.
    ///
    /// # Errors
    /// When it does not start.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = thread::scope(|scope| {
            // A thread for each: one that has entered a process namespace can start no threads.
            scope.spawn(|| self.enter().and_then(|()| Ok(command.spawn()?))).join()
        });
        child
            .map_err(|_panic| anyhow!("the thread panicked"))?
            .with_context(|| format!("start {program} in {}", self.name()))
    }

    /// Moves the calling thread here for good.
    fn enter(&self) -> Result<()> {
        // Only a thread whose root and working directory are its own may change its mounts.
        unshare(CloneFlags::CLONE_FS).context("unshare the working directory")?;
        setns(&self.shared.mounts, CloneFlags::CLONE_NEWNS).context("enter the mount namespace")?;
        setns(&self.shared.net, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
        setns(&self.shared.processes, CloneFlags::CLONE_NEWPID).context("enter the process namespace")
    }

    /// Runs a command to its end and returns what it printed.
    ///
    /// # Errors
    /// When it fails or takes longer than 30 seconds; with what it printed.
    pub fn exec<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.exec_with_input(arguments, "")
    }

    /// As [`Namespace::exec`], with something to read.
    ///
    /// # Errors
    /// As [`Namespace::exec`].
    pub fn exec_with_input<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
        input: &str,
    ) -> Result<String> {
        let mut command = self.command("timeout");
        command.args(["--kill-after=1", LIMIT]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let line = format!("{command:?}");
        let mut child = self.spawn(command)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that does not read to the end says why by its status.
            drop(stdin.write_all(input.as_bytes()));
        }
        let output = child.wait_with_output()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(stdout);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("in {}: {line}: {}\n{input}{stdout}{stderr}", self.name(), output.status)
    }

    /// Runs `work` on a thread whose sockets are opened here. Files and processes stay this process's;
    /// the sockets may be used anywhere afterwards.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let result = thread::scope(|scope| scope.spawn(|| self.enter_network().map(|()| work())).join());
        result.map_err(|_panic| anyhow!("the work in {} panicked", self.name()))?
    }

    /// As [`Namespace::run`], beside the caller.
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let namespace = self.clone();
        thread::spawn(move || namespace.enter_network().map(|()| work()))
    }

    fn enter_network(&self) -> Result<()> {
        setns(&self.shared.net, CloneFlags::CLONE_NEWNET).context("enter the network namespace")
    }

    /// Connects from here.
    ///
    /// # Errors
    /// As [`TcpStream::connect_timeout`].
    pub fn tcp_connect(&self, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&to, limit))?
            .with_context(|| format!("connect from {} to {to}", self.name()))
    }

    /// Listens here.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn tcp_listen(&self, at: SocketAddr) -> Result<TcpListener> {
        self.bind(|| TcpListener::bind(at)).with_context(|| format!("listen in {} at {at}", self.name()))
    }

    /// Opens a datagram socket here, with room for what comes while nobody reads.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn udp_bind(&self, at: SocketAddr) -> Result<UdpSocket> {
        /// A machine that is busy with other tests gives a reader no processor for half a second and more, and by
        /// default the kernel keeps less than 300 datagrams, however small.
        const ROOM: usize = 8 << 20;
        let socket =
            self.bind(|| UdpSocket::bind(at)).with_context(|| format!("bind in {} at {at}", self.name()))?;
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM).context("make room for datagrams")?;
        Ok(socket)
    }

    /// Waits for an address that is in use: a child that another test's thread has forked keeps a
    /// socket which is closed here until it executes its program.
    fn bind<T: Send>(&self, socket: impl Fn() -> io::Result<T> + Sync) -> Result<T> {
        let bound = wait::until(RELEASE, || match self.run(&socket) {
            Ok(Err(err)) if err.kind() == io::ErrorKind::AddrInUse => None,
            bound => Some(bound),
        });
        let (bound, _) = bound.context("still in use")?;
        Ok(bound??)
    }

    /// Sets kernel parameters of this network namespace, named by their path under /proc/sys/net.
    ///
    /// # Errors
    /// When one does not exist.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                std::fs::write(format!("/proc/sys/net/{key}"), value)
                    .with_context(|| format!("set net/{key} to {value}"))
            })
        })?
    }

    /// Runs a batch of `ip` commands here, one a line.
    ///
    /// # Errors
    /// When one fails, which ends the batch.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.exec_with_input(["ip", "-batch", "-"], batch).map(drop)
    }
}
