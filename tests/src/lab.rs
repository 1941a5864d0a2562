//! A world of its own for one test: namespaces, an underlay, nodes.
//!
//! Everything hangs on one process, the holder: the lab's first process, which ends when the pipe to
//! its standard input closes. A test that returns, panics or is killed closes it; the kernel then kills
//! every process of the lab, and with the last one go its mounts, devices and eBPF pins.

pub mod cni;
mod holder;
pub mod namespace;
pub mod node;
mod wiring;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use self::cni::Plugin;
use self::holder::Holder;
use self::namespace::Namespace;
use self::node::{Cidr, Node};
use crate::capture::Capture;

/// The bridge of the underlay, on which all frames between nodes can be seen.
pub(crate) const BRIDGE: &str = "underlay";
/// Where a lab keeps sockets, manifests and logs, seen from inside.
const DIRECTORY: &str = "/run/lab";

/// One world. Cheap to clone; dies with the last clone and with this process.
#[derive(Clone, Debug)]
pub struct Lab {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The underlay's namespace, in which the bridge is.
    underlay: Namespace,
    nodes: Mutex<Vec<Node>>,
    options: Options,
    holder: Arc<Holder>,
}

/// How a lab is to be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `rp_filter` of nodes: 0 off, 1 strict, 2 loose (what Debian sets).
    pub rp_filter: u8,
    /// The CNI plugin that wires pods; `None` for the harness itself.
    pub cni: Option<Plugin>,
}

impl Default for Options {
    fn default() -> Self {
        Self { rp_filter: 2, cni: None }
    }
}

impl Lab {
    /// Makes a lab. The name serves people; any number of labs may share it.
    ///
    /// # Errors
    /// Without root, or without `unshare`, `ip` and `mount`.
    pub fn new(name: &str) -> Result<Self> {
        Self::with_options(name, Options::default())
    }

    /// Makes a lab that differs from the usual.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn with_options(name: &str, options: Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{name}-{}-{number}", std::process::id());
        let holder = Arc::new(Holder::start(&name).with_context(|| format!("make lab {name}"))?);
        let underlay = Namespace::of_holder("underlay", &holder)?;
        wiring::underlay(&underlay).context("make the underlay")?;
        let nodes = Mutex::new(Vec::new());
        Ok(Self { shared: Arc::new(Shared { underlay, nodes, options, holder }) })
    }

    /// The unique name, which every process of the lab has as `AUTHD_LAB` in its environment.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.holder.name()
    }

    /// Adds a node with its addresses and the ranges of its pods, routed from and to all others.
    ///
    /// # Errors
    /// When an address or name is taken.
    pub fn node(&self, name: &str, addresses: &[IpAddr], pod_cidrs: &[Cidr]) -> Result<Node> {
        let mut nodes = self.shared.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let number = u8::try_from(nodes.len() + 1).context("more than 255 nodes")?;
        let cni = self.shared.options.cni;
        let node = Node::new(&self.shared.underlay, name, (number, cni), addresses, pod_cidrs)
            .with_context(|| format!("add node {name}"))?;
        node.sysctl(&wiring::node_settings(self.shared.options.rp_filter))?;
        wiring::uplink(&self.shared.underlay, &node)?;
        if cni.is_some() {
            // Where neighbours are not static, a router asks for them under its link-local address.
            node.sysctl(&[("ipv6/conf/default/addr_gen_mode", "0")])?;
        }
        for other in nodes.iter() {
            wiring::routes(&node, other)?;
            wiring::routes(other, &node)?;
        }
        nodes.push(node.clone());
        Ok(node)
    }

    /// Watches every frame between the nodes from now on.
    ///
    /// # Errors
    /// When `tcpdump` does not start.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.shared.underlay, BRIDGE)
    }

    /// Runs a command in the underlay's namespace and returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it printed.
    pub fn exec<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.shared.underlay.exec(arguments)
    }

    /// The namespace that joins the nodes, where programs that belong to no node run.
    #[must_use]
    pub fn underlay(&self) -> &Namespace {
        &self.shared.underlay
    }

    /// A path under the lab's own directory, for processes of the lab.
    #[must_use]
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(DIRECTORY).join(path)
    }

    /// The same file, for this process.
    #[must_use]
    pub fn outside(&self, path: &str) -> PathBuf {
        self.shared.underlay.outside(&self.inside(path))
    }

    /// Lets the lab outlive this process and returns the process to end for ending it.
    /// The caller must leave by [`std::process::exit`], so that no destructor ends what is to stay.
    ///
    /// # Errors
    /// When that process does not start.
    pub fn keep(&self) -> Result<u32> {
        self.shared.holder.keep()
    }
}

/// Host process ids of everything that runs in the lab of this name, dead or alive.
///
/// # Errors
/// Without `/proc`.
pub fn processes_of(lab: &str) -> Result<Vec<u32>> {
    let wanted = format!("{}={lab}", namespace::VARIABLE);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// A command that carries the lab's name.
fn marked(program: impl AsRef<std::ffi::OsStr>, lab: &str) -> Command {
    let mut command = Command::new(program);
    command.env(namespace::VARIABLE, lab);
    command
}
