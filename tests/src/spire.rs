//! Real SPIRE: a server and agents of one trust domain as processes, each node attested by a certificate,
//! with intervals so short that tests need not wait.
//!
//! On this machine or in a [`Lab`]; either way the processes end with whoever started them.

mod config;
mod node_ca;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use spire_adapter::{SpiffeId, TrustDomain};

use self::config::Address;
use self::node_ca::NodeCa;
use crate::process::own_address;
use crate::{Lab, Process, binaries, wait};

/// How long server and agents may take to serve.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a trust domain is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Nodes that get an agent.
    pub nodes: Vec<String>,
    /// Lifetime of SVIDs whose entry says none.
    pub svid_ttl: Duration,
    /// How often agents ask the server for changes, and the server its database.
    pub sync: Duration,
    /// Whether the server keeps its keys in memory alone.
    pub forgetful: bool,
    /// Nodes whose daemon is not among its agent's brokers.
    pub no_brokers: BTreeSet<String>,
    /// Whether the server goes by `deploy/spire/authorization.rego`, for the operator of this trust domain.
    pub confined: bool,
}

impl Options {
    /// SVIDs of an hour, and changes within half a second or so.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, nodes: &[&str]) -> Self {
        Self {
            trust_domain,
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            svid_ttl: Duration::from_secs(3600),
            sync: Duration::from_millis(250),
            forgetful: false,
            no_brokers: BTreeSet::new(),
            confined: false,
        }
    }
}

/// Where the processes run, and keep their files and sockets.
#[derive(Clone, Debug)]
pub enum Place {
    /// On this machine, in a directory of its own.
    Here(PathBuf),
    /// In a lab's underlay, in a directory of the lab.
    Lab(Lab, &'static str),
}

/// A trust domain's server and agents. Dropped, they are killed.
#[derive(Debug)]
pub struct Spire {
    place: Place,
    options: Options,
    address: Address,
    agents: BTreeMap<String, Process>,
    server: Option<Process>,
}

impl Spire {
    /// Starts the server, then an agent for each node, and waits until all serve.
    ///
    /// # Errors
    /// When one does not, with the end of its log.
    pub fn start(place: Place, options: Options) -> Result<Self> {
        let address = place.address();
        let mut spire = Self { place, options, address, agents: BTreeMap::new(), server: None };
        let nodes = spire.options.nodes.clone();
        spire.write_files(&nodes)?;
        spire.start_server()?;
        for node in &nodes {
            spire.launch_agent(node)?;
        }
        nodes.iter().try_for_each(|node| spire.wait_agent(node))?;
        Ok(spire)
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.options.trust_domain
    }

    /// The server's socket with the Entry API.
    #[must_use]
    pub fn server_socket(&self) -> PathBuf {
        self.place.outside("server.sock")
    }

    /// Where the server gives its bundle to those of other trust domains.
    #[must_use]
    pub fn bundle_endpoint(&self) -> String {
        format!("https://{}:{}", self.address.host, self.address.bundle_port)
    }

    /// Where the server listens for agents and administrators: host and port.
    #[must_use]
    pub fn server_address(&self) -> String {
        format!("{}:{}", self.address.host, self.address.port)
    }

    /// A node's Workload API socket.
    #[must_use]
    pub fn workload_socket(&self, node: &str) -> PathBuf {
        self.place.outside(&format!("{node}/workload/api.sock"))
    }

    /// A node's Delegated Identity API socket.
    #[must_use]
    pub fn admin_socket(&self, node: &str) -> PathBuf {
        self.place.outside(&format!("{node}/admin/api.sock"))
    }

    /// A node's Broker API socket.
    #[must_use]
    pub fn broker_socket(&self, node: &str) -> PathBuf {
        self.place.outside(&format!("{node}/admin/broker.sock"))
    }

    /// The SPIFFE ID of a node's agent: the parent of that node's entries.
    ///
    /// # Errors
    /// When the node's name is no segment of a SPIFFE ID.
    pub fn agent_id(&self, node: &str) -> Result<SpiffeId> {
        agent_id(&self.options.trust_domain, node)
    }

    /// The server, while it runs.
    ///
    /// # Errors
    /// When it has been killed.
    pub fn server(&mut self) -> Result<&mut Process> {
        self.server.as_mut().context("the server does not run")
    }

    /// A node's agent.
    ///
    /// # Errors
    /// When it has been killed, or there is none.
    pub fn agent(&mut self, node: &str) -> Result<&mut Process> {
        self.agents.get_mut(node).with_context(|| format!("no agent runs on {node}"))
    }

    /// Kills the server at once, as a crash would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_server(&mut self) -> Result<()> {
        self.server.take().context("the server does not run")?.kill9()
    }

    /// Starts the server (again), with the keys and entries that it had, and waits until it serves.
    ///
    /// # Errors
    /// When it does not, with the end of its log.
    pub fn start_server(&mut self) -> Result<()> {
        drop(fs::remove_file(self.server_socket()));
        let mut server = self.launch("server", "spire-server", "server.conf")?;
        ensure!(serves(&mut server, &self.server_socket())?, server.failure("does not serve"));
        self.server = Some(server);
        Ok(())
    }

    /// Kills a node's agent at once, as a crash would. Its socket files stay.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_agent(&mut self, node: &str) -> Result<()> {
        self.agents.remove(node).with_context(|| format!("no agent runs on {node}"))?.kill9()
    }

    /// Starts a node's agent (again) and waits until it serves.
    ///
    /// # Errors
    /// When it does not, with the end of its log.
    pub fn start_agent(&mut self, node: &str) -> Result<()> {
        self.launch_agent(node)?;
        self.wait_agent(node)
    }

    /// Starts a node's agent anew, with its daemon among its brokers or not.
    ///
    /// # Errors
    /// When it does not run, or does not serve again.
    pub fn allow_broker(&mut self, node: &str, allowed: bool) -> Result<()> {
        if allowed {
            self.options.no_brokers.remove(node);
        } else {
            self.options.no_brokers.insert(node.to_owned());
        }
        self.write_agent(node)?;
        self.kill_agent(node)?;
        self.start_agent(node)
    }

    /// Takes from a node's agent, which must not run, what it remembers of its server.
    ///
    /// # Errors
    /// When that can't be removed.
    pub fn wipe_agent(&self, node: &str) -> Result<()> {
        let data = self.place.outside(&format!("{node}/data"));
        fs::remove_dir_all(&data)?;
        Ok(fs::create_dir(data)?)
    }

    /// Runs `spire-server` with these arguments against this server, and returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it printed.
    pub fn server_command(&self, arguments: &[&str]) -> Result<String> {
        let (words, options): (Vec<_>, Vec<_>) = (
            arguments.iter().take_while(|it| !it.starts_with('-')).collect(),
            arguments.iter().skip_while(|it| !it.starts_with('-')).collect(),
        );
        let socket = self.place.inside("server.sock");
        let mut command = Command::new(binaries::peer("spire-server")?);
        command.args(words).arg("-socketPath").arg(socket).args(options);
        self.place.run(&mut command)
    }

    /// Whether an agent says that it is well, within a second or so.
    ///
    /// # Errors
    /// When the question cannot be asked.
    pub fn is_agent_healthy(&self, node: &str) -> Result<bool> {
        let socket = self.place.inside(&format!("{node}/workload/api.sock"));
        let mut command = Command::new("timeout");
        command.arg("2").arg(binaries::peer("spire-agent")?).args(["healthcheck", "-socketPath"]).arg(socket);
        Ok(self.place.run(&mut command).is_ok())
    }

    fn write_files(&self, nodes: &[String]) -> Result<()> {
        let ca = NodeCa::new()?;
        for directory in ["server-data", "logs"] {
            fs::create_dir_all(self.place.outside(directory))?;
        }
        fs::write(self.place.outside("node-ca.pem"), ca.certificate())?;
        for (name, text) in config::authorization(&self.options.trust_domain) {
            fs::write(self.place.outside(name), text)?;
        }
        let root = self.place.inside("");
        fs::write(self.place.outside("server.conf"), config::server(&self.options, &root, &self.address))?;
        for node in nodes {
            for kind in ["data", "workload", "admin"] {
                fs::create_dir_all(self.place.outside(&format!("{node}/{kind}")))?;
            }
            let (certificate, key) = ca.issue(node, &self.options.trust_domain)?;
            fs::write(self.place.outside(&format!("{node}/node.pem")), certificate)?;
            fs::write(self.place.outside(&format!("{node}/node.key")), key)?;
            self.write_agent(node)?;
        }
        Ok(())
    }

    fn write_agent(&self, node: &str) -> Result<()> {
        let text = config::agent(&self.options, node, &self.place.inside(""), &self.address);
        Ok(fs::write(self.place.outside(&format!("{node}/agent.conf")), text)?)
    }

    fn launch_agent(&mut self, node: &str) -> Result<()> {
        for socket in [self.workload_socket(node), self.admin_socket(node), self.broker_socket(node)] {
            drop(fs::remove_file(socket));
        }
        let agent = self.launch(&format!("agent-{node}"), "spire-agent", &format!("{node}/agent.conf"))?;
        self.agents.insert(node.to_owned(), agent);
        Ok(())
    }

    fn wait_agent(&mut self, node: &str) -> Result<()> {
        for socket in [self.workload_socket(node), self.admin_socket(node), self.broker_socket(node)] {
            let agent = self.agent(node)?;
            if !serves(agent, &socket)? {
                return Err(agent.failure("does not serve"));
            }
        }
        Ok(())
    }

    fn launch(&self, name: &str, program: &str, config: &str) -> Result<Process> {
        let program = binaries::peer(program)?;
        let arguments = ["run".into(), "-config".into(), self.place.inside(config).into_os_string()];
        match &self.place {
            Place::Here(directory) => {
                let mut command = Command::new(program);
                command.args(arguments);
                Process::start_here(&directory.join("logs"), name, &command)
            }
            Place::Lab(lab, _) => {
                let mut command = lab.underlay().command(program);
                command.args(arguments);
                Process::start(lab, lab.underlay(), &format!("spire-{name}"), command)
            }
        }
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        // A stopped process would not notice anything else.
        for process in self.agents.values().chain(&self.server) {
            drop(process.signal(Signal::SIGKILL));
        }
    }
}

impl Place {
    /// A path as this process sees it.
    fn outside(&self, path: &str) -> PathBuf {
        match self {
            Self::Here(directory) => directory.join(path),
            Self::Lab(lab, directory) => lab.outside(&format!("{directory}/{path}")),
        }
    }

    /// The same file as the processes see it.
    fn inside(&self, path: &str) -> PathBuf {
        match self {
            Self::Here(directory) => directory.join(path),
            Self::Lab(lab, directory) => lab.inside(&format!("{directory}/{path}")),
        }
    }

    /// Where a server listens.
    fn address(&self) -> Address {
        match self {
            Self::Here(_) => {
                let (server, bundle) = (own_address(), own_address());
                Address { host: server.ip().to_string(), port: server.port(), bundle_port: bundle.port() }
            }
            Self::Lab(..) => Address { host: "127.0.0.1".to_owned(), port: 8081, bundle_port: 8443 },
        }
    }

    fn run(&self, command: &mut Command) -> Result<String> {
        let line = format!("{command:?}");
        let Output { status, stdout, stderr } = match self {
            Self::Here(_) => command.output()?,
            Self::Lab(lab, _) => {
                let mut inside = lab.underlay().command(command.get_program());
                inside.args(command.get_args()).stdout(std::process::Stdio::piped());
                lab.underlay().spawn(inside)?.wait_with_output()?
            }
        };
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        ensure!(status.success(), "{line}: {status}\n{stdout}{}", String::from_utf8_lossy(&stderr));
        Ok(stdout)
    }
}

/// Whether a process comes to listen on a socket before it ends.
fn serves(process: &mut Process, socket: &Path) -> Result<bool> {
    let found = wait::until(PATIENCE, || match process.status() {
        Ok(None) => UnixStream::connect(socket).is_ok().then_some(Ok(true)),
        Ok(Some(_)) => Some(Ok(false)),
        Err(error) => Some(Err(error)),
    });
    found.map_or(Ok(false), |(serves, _)| serves)
}

/// The SPIFFE ID of the agent of a node that is attested by its certificate.
///
/// # Errors
/// When the node's name is no segment of a SPIFFE ID.
pub fn agent_id(trust_domain: &TrustDomain, node: &str) -> Result<SpiffeId> {
    let text = format!("spiffe://{trust_domain}/spire/agent/x509pop/cn/{node}");
    SpiffeId::new(&text).with_context(|| text)
}
