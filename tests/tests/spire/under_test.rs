//! SPIRE under test: the embedded authority or real processes, behind one set of words.

use std::time::Duration;

use authd_tests::spire::{Options, Place, Spire};
use serde_json::Value;
use spire_adapter::authority::{Authority, Config, Running};
use spire_adapter::{
    Bundle, DelegatedAgent, Entry, EntryClient, Outcome, Selector, Snapshot, SpiffeId, Subscription,
    TrustDomain, workload,
};
use tokio::time::timeout;

/// How long anything may take that is no expectation of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Which of the two.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Embedded,
    Real,
}

enum Backend {
    Embedded(Box<Running>),
    Real(Box<Spire>),
}

/// A trust domain with nodes `n1` and `n2`, whose daemons are registered as processes of this user.
pub(crate) struct UnderTest {
    backend: Backend,
    pub(crate) entries: EntryClient,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) dir: tempfile::TempDir,
}

impl UnderTest {
    /// Trust domain `a.test`.
    pub(crate) async fn start(kind: Kind, svid_ttl: Duration) -> Self {
        Self::of("a.test", kind, svid_ttl).await
    }

    pub(crate) async fn of(trust_domain: &str, kind: Kind, svid_ttl: Duration) -> Self {
        let options = Options { svid_ttl, ..options(trust_domain) };
        Self::with(kind, options).await
    }

    pub(crate) async fn with(kind: Kind, options: Options) -> Self {
        let under_test = Self::bare(kind, options);
        for node in ["n1", "n2"] {
            let selector = Selector::new("unix", format!("uid:{}", uid()));
            let entry = Entry::new(under_test.agent_id(node), under_test.node_id(node), [selector]);
            under_test.create(entry).await;
        }
        under_test
    }

    /// Where nobody is registered.
    pub(crate) fn bare(kind: Kind, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let trust_domain = options.trust_domain.clone();
        let backend = match kind {
            Kind::Embedded => {
                let mut config = Config::new(trust_domain.clone(), dir.path().join("run"));
                config.nodes = options.nodes;
                config.svid_ttl = options.svid_ttl;
                Backend::Embedded(Box::new(Authority::start(config).unwrap()))
            }
            Kind::Real => {
                Backend::Real(Box::new(Spire::start(Place::Here(dir.path().into()), options).unwrap()))
            }
        };
        let socket = match &backend {
            Backend::Embedded(authority) => authority.server_socket(),
            Backend::Real(spire) => spire.server_socket(),
        };
        Self { backend, entries: EntryClient::new(socket), trust_domain, dir }
    }

    /// Where the server is by TCP, which only real SPIRE serves.
    pub(crate) fn server_address(&self) -> String {
        match &self.backend {
            Backend::Embedded(_) => panic!("the embedded authority serves no TCP"),
            Backend::Real(spire) => spire.server_address(),
        }
    }

    /// What the agent of `{node}` is known by.
    pub(crate) fn agent_selector(&self) -> &'static str {
        match &self.backend {
            Backend::Embedded(_) => "dev:subject:cn:{node}",
            Backend::Real(_) => "x509pop:subject:cn:{node}",
        }
    }

    pub(crate) fn id(&self, path: &str) -> SpiffeId {
        SpiffeId::new(format!("spiffe://{}{path}", self.trust_domain)).unwrap()
    }

    pub(crate) fn identity(&self, number: u32) -> SpiffeId {
        self.id(&format!("/identity/{number}"))
    }

    pub(crate) fn node_id(&self, node: &str) -> SpiffeId {
        self.id(&format!("/authd/node/{node}"))
    }

    pub(crate) fn agent_id(&self, node: &str) -> SpiffeId {
        match &self.backend {
            Backend::Embedded(authority) => authority.agent_id(node).unwrap(),
            Backend::Real(spire) => spire.agent_id(node).unwrap(),
        }
    }

    pub(crate) fn admin_socket(&self, node: &str) -> std::path::PathBuf {
        match &self.backend {
            Backend::Embedded(authority) => authority.admin_socket(node),
            Backend::Real(spire) => spire.admin_socket(node),
        }
    }

    pub(crate) fn workload_socket(&self, node: &str) -> std::path::PathBuf {
        match &self.backend {
            Backend::Embedded(authority) => authority.workload_socket(node),
            Backend::Real(spire) => spire.workload_socket(node),
        }
    }

    /// A node's Broker API socket.
    pub(crate) fn broker_socket(&self, node: &str) -> std::path::PathBuf {
        match &self.backend {
            Backend::Embedded(authority) => authority.broker_socket(node),
            Backend::Real(spire) => spire.broker_socket(node),
        }
    }

    pub(crate) fn delegated(&self, node: &str) -> DelegatedAgent {
        DelegatedAgent::new(self.admin_socket(node))
    }

    /// The SVID of a node's daemon, by the Workload API.
    pub(crate) fn node(&self, node: &str) -> Subscription {
        workload::subscribe(self.workload_socket(node), self.node_id(node))
    }

    /// The SVID of an identity, by an agent's Delegated Identity API.
    pub(crate) fn subscribe(&self, agent: &DelegatedAgent, number: u32) -> Subscription {
        agent.subscribe([selector(number)], self.identity(number))
    }

    pub(crate) fn entry(&self, node: &str, number: u32) -> Entry {
        Entry::new(self.agent_id(node), self.identity(number), [selector(number)])
    }

    pub(crate) async fn register(&self, node: &str, number: u32) -> Entry {
        self.create(self.entry(node, number)).await
    }

    pub(crate) async fn create(&self, entry: Entry) -> Entry {
        let outcomes = self.entries.create(&[entry]).await.unwrap();
        let [Outcome::Created(entry)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
        entry.clone()
    }

    pub(crate) async fn delete(&self, entry: &Entry) {
        let outcomes = self.entries.delete(std::slice::from_ref(&entry.id)).await.unwrap();
        assert_eq!(outcomes, [Outcome::Deleted(entry.id.clone())]);
    }

    pub(crate) async fn update(&self, entry: &Entry) {
        let outcomes = self.entries.update(std::slice::from_ref(entry)).await.unwrap();
        assert!(matches!(outcomes.as_slice(), [Outcome::Updated(_)]), "{outcomes:?}");
    }

    /// Ends an agent with no chance to say so.
    pub(crate) async fn kill_agent(&mut self, node: &str) {
        match &mut self.backend {
            Backend::Embedded(authority) => authority.stop_agent(node).await.unwrap(),
            Backend::Real(spire) => spire.kill_agent(node).unwrap(),
        }
    }

    /// Whether an agent's process has ended by itself.
    pub(crate) fn agent_has_exited(&mut self, node: &str) -> bool {
        match &mut self.backend {
            Backend::Embedded(_) => false,
            Backend::Real(spire) => spire.agent(node).unwrap().status().unwrap().is_some(),
        }
    }

    /// Starts a real agent as one that has never been there.
    pub(crate) fn start_agent_anew(&mut self, node: &str) {
        let Backend::Real(spire) = &mut self.backend else { panic!("only real agents have a memory") };
        spire.wipe_agent(node).unwrap();
        spire.start_agent(node).unwrap();
    }

    pub(crate) fn start_agent(&mut self, node: &str) {
        match &mut self.backend {
            Backend::Embedded(authority) => authority.start_agent(node).unwrap(),
            Backend::Real(spire) => spire.start_agent(node).unwrap(),
        }
    }

    /// Stops an agent's process, or lets it go on.
    pub(crate) fn freeze_agent(&mut self, node: &str, frozen: bool) {
        use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
        match &mut self.backend {
            Backend::Embedded(authority) => authority.freeze_agent(node, frozen).unwrap(),
            Backend::Real(spire) => {
                spire.agent(node).unwrap().signal(if frozen { SIGSTOP } else { SIGCONT }).unwrap();
            }
        }
    }

    pub(crate) async fn stop_server(&mut self) {
        match &mut self.backend {
            Backend::Embedded(authority) => authority.stop_server().await,
            Backend::Real(spire) => spire.kill_server().unwrap(),
        }
    }

    pub(crate) fn start_server(&mut self) {
        match &mut self.backend {
            Backend::Embedded(authority) => authority.start_server().unwrap(),
            Backend::Real(spire) => spire.start_server().unwrap(),
        }
    }

    /// Whether an agent says it is well.
    pub(crate) fn is_agent_healthy(&self, node: &str) -> bool {
        match &self.backend {
            Backend::Embedded(_) => true,
            Backend::Real(spire) => spire.is_agent_healthy(node).unwrap(),
        }
    }

    /// A new CA takes over, and what the old one has issued is issued anew.
    pub(crate) fn rotate_authority(&self) {
        match &self.backend {
            Backend::Embedded(authority) => authority.rotate_authority().unwrap(),
            Backend::Real(spire) => {
                let old = authority_id(spire, "active");
                local_authority(spire, &["prepare"]);
                let new = authority_id(spire, "prepared");
                local_authority(spire, &["activate", "-authorityID", &new]);
                local_authority(spire, &["taint", "-authorityID", &old]);
            }
        }
    }

    /// What the old CA has issued is worth nothing any more.
    pub(crate) fn revoke_old_authority(&self) {
        match &self.backend {
            Backend::Embedded(authority) => authority.revoke_old_authorities(),
            Backend::Real(spire) => {
                let old = authority_id(spire, "old");
                local_authority(spire, &["revoke", "-authorityID", &old]);
            }
        }
    }

    /// Lets entries federate with the trust domain of a bundle.
    pub(crate) fn federate(&self, bundle: &Bundle) {
        match &self.backend {
            Backend::Embedded(authority) => authority.federate(bundle.trust_domain().clone(), Some(bundle)),
            Backend::Real(spire) => {
                let (id, path) = (bundle.trust_domain().id_string(), self.write_bundle(bundle));
                spire
                    .server_command(&["bundle", "set", "-format", "pem", "-id", &id, "-path", &path])
                    .unwrap();
            }
        }
    }

    fn write_bundle(&self, bundle: &Bundle) -> String {
        let pems: Vec<_> =
            bundle.certificates().map(|der| pem::Pem::new("CERTIFICATE", der.to_vec())).collect();
        let path = self.dir.path().join(format!("{}.pem", bundle.trust_domain()));
        std::fs::write(&path, pem::encode_many(&pems)).unwrap();
        path.display().to_string()
    }

    /// Lets the server fetch another one's bundle, and entries federate with it.
    pub(crate) fn federate_by_endpoint(&self, other: &Self, bundle: &Bundle) {
        let (Backend::Real(here), Backend::Real(there)) = (&self.backend, &other.backend) else {
            panic!("only real servers fetch bundles");
        };
        let path = self.write_bundle(bundle);
        let domain = other.trust_domain.as_str();
        here.server_command(&[
            "federation",
            "create",
            "-trustDomain",
            domain,
            "-bundleEndpointURL",
            &there.bundle_endpoint(),
            "-bundleEndpointProfile",
            "https_spiffe",
            "-endpointSpiffeID",
            &format!("spiffe://{domain}/spire/server"),
            "-trustDomainBundleFormat",
            "pem",
            "-trustDomainBundlePath",
            &path,
        ])
        .unwrap();
    }

    /// Has a bundle fetched now.
    pub(crate) fn refresh_federation(&self, trust_domain: &TrustDomain) {
        self.federation(&["refresh", "-id", trust_domain.as_str()]);
    }

    /// Fetches a bundle no longer, and takes it back.
    pub(crate) fn end_federation(&self, trust_domain: &TrustDomain) {
        self.federation(&["delete", "-id", trust_domain.as_str()]);
        self.defederate(trust_domain);
    }

    fn federation(&self, arguments: &[&str]) {
        let Backend::Real(spire) = &self.backend else { panic!("only real servers fetch bundles") };
        spire.server_command(&[&["federation"], arguments].concat()).unwrap();
    }

    /// Takes a foreign bundle, and what federates with it, back.
    pub(crate) fn defederate(&self, trust_domain: &TrustDomain) {
        match &self.backend {
            Backend::Embedded(authority) => authority.federate(trust_domain.clone(), None),
            Backend::Real(spire) => {
                let id = trust_domain.id_string();
                spire.server_command(&["bundle", "delete", "-id", &id, "-mode", "dissociate"]).unwrap();
            }
        }
    }
}

/// Nodes `n1` and `n2`.
pub(crate) fn options(trust_domain: &str) -> Options {
    Options::new(TrustDomain::new(trust_domain).unwrap(), &["n1", "n2"])
}

/// What an agent sees of this process, and of no other program of this user.
pub(crate) fn this_program() -> [Selector; 2] {
    let path = std::env::current_exe().unwrap();
    [
        Selector::new("unix", format!("uid:{}", uid())),
        Selector::new("unix", format!("path:{}", path.display())),
    ]
}

fn local_authority(spire: &Spire, arguments: &[&str]) -> Value {
    let arguments = [&["localauthority", "x509"], arguments, &["-output", "json"]].concat();
    serde_json::from_str(&spire.server_command(&arguments).unwrap()).unwrap()
}

fn authority_id(spire: &Spire, which: &str) -> String {
    let shown = local_authority(spire, &["show"]);
    shown[which]["authority_id"].as_str().unwrap_or_else(|| panic!("no {which}: {shown}")).to_owned()
}

pub(crate) fn selector(number: u32) -> Selector {
    Selector::new("authd", format!("identity:{number}"))
}

pub(crate) fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Waits for an SVID that an agent has just confirmed.
pub(crate) async fn usable(subscription: &Subscription) -> Snapshot {
    until(subscription, |next| next.svid().is_some() && !next.stale).await
}

pub(crate) async fn until(subscription: &Subscription, wanted: impl FnMut(&Snapshot) -> bool) -> Snapshot {
    until_within(PATIENCE, subscription, wanted).await
}

pub(crate) async fn until_within(
    patience: Duration,
    subscription: &Subscription,
    wanted: impl FnMut(&Snapshot) -> bool,
) -> Snapshot {
    let mut watch = subscription.watch();
    let found = timeout(patience, watch.wait_for(wanted)).await;
    match found {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("not seen in time; last: {:?}", subscription.current()),
    }
}
