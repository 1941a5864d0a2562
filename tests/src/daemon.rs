//! authd's processes in a lab: started, awaited, killed, started again.

use std::ffi::OsString;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::node::{Cidr, Node};
use crate::lab::{Lab, namespace::Namespace};
use crate::process::Process;
use crate::scrape::Samples;
use crate::wall_clock::WallClock;
use crate::{binaries, http, wait};

/// Where the daemon of each node answers HTTP.
pub const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 9465);

/// How long an answer may take on a machine that has much else to do.
const ANSWER: Duration = Duration::from_secs(10);

/// What is the same for all daemons of a cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The SPIFFE trust domain.
    pub trust_domain: String,
    /// The directory of manifests, as the lab's processes see it.
    pub directory: PathBuf,
    /// The pod ranges.
    pub cidrs: Vec<Cidr>,
    /// Further flags.
    pub flags: Vec<String>,
}

/// How to see that a process serves.
#[derive(Clone, Debug)]
enum Ready {
    /// By HTTP, at `/readyz`.
    Http,
    /// By a unix socket that accepts; as this process sees it.
    Sockets(Vec<PathBuf>),
}

/// One of authd's processes.
#[derive(Debug)]
pub struct Daemon {
    lab: Lab,
    namespace: Namespace,
    name: String,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    ready: Ready,
    process: Process,
}

impl Daemon {
    /// Starts `authd run` on a node. Sockets, pins and ports are the defaults: each node has its own.
    ///
    /// # Errors
    /// When it does not start; whether it gets ready is [`Daemon::wait_ready`]'s to say.
    pub fn agent(lab: &Lab, node: &Node, cluster: &Cluster) -> Result<Self> {
        let name = node.name();
        let socket = |kind: &str| lab.inside(&format!("authority/{name}/{kind}/api.sock")).into_os_string();
        let cidrs: Vec<_> = cluster.cidrs.iter().map(Cidr::to_string).collect();
        let mut arguments: Vec<OsString> = vec!["run".into()];
        let flags = [
            ("--node-name", name.into()),
            ("--cluster-dir", cluster.directory.clone().into_os_string()),
            ("--trust-domain", cluster.trust_domain.clone().into()),
            ("--workload-socket", socket("workload")),
            ("--admin-socket", socket("admin")),
            ("--cluster-cidrs", cidrs.join(",").into()),
            ("--log-format", "json".into()),
        ];
        for (flag, value) in flags {
            arguments.extend([flag.into(), value]);
        }
        arguments.extend(cluster.flags.iter().map(OsString::from));
        let environment = WallClock::environment(lab);
        Self::start_in(lab, node, format!("authd-{name}"), arguments, environment, Ready::Http)
    }

    /// Starts `authd tunnel` on a node.
    ///
    /// # Errors
    /// When it does not start.
    pub fn tunnel(lab: &Lab, node: &Node) -> Result<Self> {
        let socket = PathBuf::from("/run/authd/tunnel.sock");
        let ready = Ready::Sockets(vec![node.outside(&socket)]);
        let arguments =
            vec!["tunnel".into(), "--socket".into(), socket.into(), "--interface".into(), "authd0".into()];
        Self::start(lab, node, format!("tunnel-{}", node.name()), arguments, ready)
    }

    /// Starts `authd authority` with an agent for each node; its SVIDs live so long.
    ///
    /// # Errors
    /// When it does not start.
    pub fn authority(lab: &Lab, trust_domain: &str, nodes: &[&str], svid_ttl: Duration) -> Result<Self> {
        let mut sockets = vec![lab.outside("authority/server.sock")];
        let mut arguments: Vec<OsString> = vec!["authority".into(), "--trust-domain".into()];
        arguments.extend([trust_domain.into(), "--dir".into(), lab.inside("authority").into()]);
        arguments.extend(["--svid-ttl".into(), format!("{}s", svid_ttl.as_secs()).into()]);
        for node in nodes {
            arguments.extend(["--node".into(), node.into()]);
            for kind in ["workload", "admin"] {
                sockets.push(lab.outside(&format!("authority/{node}/{kind}/api.sock")));
            }
        }
        Self::start(lab, lab.underlay(), "authority".to_owned(), arguments, Ready::Sockets(sockets))
    }

    /// Starts `authd operator` beside the authority, to register what the directory of manifests has below the
    /// agents that `agent_selector` tells.
    ///
    /// # Errors
    /// When it does not start.
    pub fn operator(lab: &Lab, cluster: &Cluster, agent_selector: &str) -> Result<Self> {
        let program = binaries::path("authd")?.canonicalize()?;
        let node_selectors = format!("unix:uid:0,unix:path:{}", program.display());
        let mut arguments: Vec<OsString> = vec!["operator".into()];
        let flags = [
            ("--cluster-dir", cluster.directory.clone().into_os_string()),
            ("--trust-domain", cluster.trust_domain.clone().into()),
            ("--server-socket", lab.inside("authority/server.sock").into_os_string()),
            ("--agent-selector", agent_selector.into()),
            ("--node-selectors", node_selectors.into()),
            ("--http-address", HTTP.to_string().into()),
            ("--log-format", "json".into()),
        ];
        for (flag, value) in flags {
            arguments.extend([flag.into(), value]);
        }
        arguments.extend(cluster.flags.iter().map(OsString::from));
        Self::start(lab, lab.underlay(), "operator".to_owned(), arguments, Ready::Http)
    }

    fn start(
        lab: &Lab,
        namespace: &Namespace,
        name: String,
        arguments: Vec<OsString>,
        ready: Ready,
    ) -> Result<Self> {
        Self::start_in(lab, namespace, name, arguments, Vec::new(), ready)
    }

    fn start_in(
        lab: &Lab,
        namespace: &Namespace,
        name: String,
        arguments: Vec<OsString>,
        environment: Vec<(&'static str, OsString)>,
        ready: Ready,
    ) -> Result<Self> {
        let process = launch(lab, namespace, &name, &arguments, &environment)?;
        let (lab, namespace) = (lab.clone(), namespace.clone());
        Ok(Self { lab, namespace, name, arguments, environment, ready, process })
    }

    /// Waits until it serves; how long that took from now.
    ///
    /// # Errors
    /// When it ends or the limit passes; with the end of its log.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            if self.is_ready() {
                return Ok(start.elapsed());
            }
            if let Some(status) = self.process.status()? {
                return Err(self.process.failure(&format!("ended with {status} before it was ready")));
            }
            if start.elapsed() > limit {
                return Err(self.process.failure(&format!("is not ready after {limit:?}")));
            }
            wait::pause(Duration::from_millis(10));
        }
    }

    /// Whether it serves at this moment.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.ready {
            Ready::Http => http::get(&self.namespace, HTTP, "/readyz", ANSWER)
                .is_ok_and(|response| response.status == 200),
            Ready::Sockets(paths) => paths.iter().all(|path| UnixStream::connect(path).is_ok()),
        }
    }

    /// Kills it at once, as a crash would end it.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.kill9()
    }

    /// Starts it anew, with the same arguments, after it has ended or been killed.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.status()?.is_none() {
            self.process.kill9()?;
        }
        self.process = launch(&self.lab, &self.namespace, &self.name, &self.arguments, &self.environment)?;
        Ok(())
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<Samples> {
        let response = http::get(&self.namespace, HTTP, "/metrics", ANSWER)
            .with_context(|| format!("metrics of {}", self.name))?;
        Ok(Samples::parse(&response.body))
    }
}

fn launch(
    lab: &Lab,
    namespace: &Namespace,
    name: &str,
    arguments: &[OsString],
    environment: &[(&'static str, OsString)],
) -> Result<Process> {
    let mut command = namespace.command(binaries::path("authd")?);
    command
        .args(arguments)
        .env("RUST_BACKTRACE", "1")
        .envs(environment.iter().map(|(key, value)| (key, value)));
    Process::start(lab, namespace, name, command)
}
