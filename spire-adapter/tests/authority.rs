//! The clients against the embedded authority: what `tests/tests/spire.rs`, which holds it and real SPIRE to the
//! same, does not ask.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::time::{Duration, SystemTime};

use spire_adapter::authority::{Authority, AuthorityError, Config, Running};
use spire_adapter::{
    ApiError, DelegatedAgent, Entry, EntryClient, Outcome, Selector, Snapshot, SpiffeId, State, Subscription,
    TrustDomain, workload,
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(15);

struct Rig {
    authority: Running,
    entries: EntryClient,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn start(svid_ttl: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(trust_domain(), dir.path().join("run"));
        config.nodes = vec!["n1".to_owned(), "n2".to_owned()];
        config.svid_ttl = svid_ttl;
        config.delegate_uid = Some(uid());
        let authority = Authority::start(config).unwrap();
        let entries = EntryClient::new(authority.server_socket());
        Self { authority, entries, _dir: dir }
    }

    fn agent(&self, node: &str) -> DelegatedAgent {
        DelegatedAgent::new(self.authority.admin_socket(node))
    }

    async fn register(&self, node: &str, number: u32) -> String {
        let entry = Entry::new(self.authority.agent_id(node).unwrap(), identity(number), [selector(number)]);
        let outcomes = self.entries.create(&[entry]).await.unwrap();
        let [Outcome::Created(entry)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
        entry.id.clone()
    }

    async fn withdraw(&self, id: &str) {
        let outcomes = self.entries.delete(&[id.to_owned()]).await.unwrap();
        assert_eq!(outcomes, [Outcome::Deleted(id.to_owned())]);
    }
}

#[tokio::test]
async fn node_svid_comes_by_the_workload_api_and_rotates() {
    let rig = Rig::start(Duration::from_secs(2));
    let node = rig.authority.delegate_id("n1").unwrap();
    let subscription = workload::subscribe(rig.authority.workload_socket("n1"), node.clone());
    let first = usable(&subscription).await;
    let svid = first.svid().unwrap().clone();
    assert_eq!(svid.spiffe_id(), &node);
    assert_eq!(svid.chain().len(), 1);
    assert!(svid.not_before() < SystemTime::now() - Duration::from_secs(8), "backdated by 10 s");
    assert_eq!(first.bundles.len(), 1);
    let second = until(&subscription, |next| next.svid().is_some_and(|next| *next != svid)).await;
    assert_ne!(second.svid().unwrap().leaf_hash(), svid.leaf_hash());
    assert!(second.svid().unwrap().not_after() >= svid.not_after());
}

#[tokio::test]
async fn delegated_svid_is_issued_withdrawn_and_restored_on_one_stream() {
    let rig = Rig::start(Duration::from_secs(3600));
    let agent = rig.agent("n1");
    let subscription = agent.subscribe([selector(256), Selector::new("authd", "extra")], identity(256));
    until(&subscription, |next| next.state == State::Withdrawn).await;

    let id = rig.register("n1", 256).await;
    let issued = usable(&subscription).await;
    assert!(issued.bundles.get(&trust_domain()).is_some());
    assert!(!issued.stale);

    let started = std::time::Instant::now();
    rig.withdraw(&id).await;
    let withdrawn = until(&subscription, |next| next.state == State::Withdrawn).await;
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert!(withdrawn.bundles.is_empty());
    assert_eq!(withdrawn.problem, None, "an entry's end is no error");

    rig.register("n1", 256).await;
    let restored = usable(&subscription).await;
    assert_ne!(restored.svid(), issued.svid());
}

#[tokio::test]
async fn delegated_svid_rotates() {
    let rig = Rig::start(Duration::from_secs(2));
    rig.register("n1", 256).await;
    let subscription = rig.agent("n1").subscribe([selector(256)], identity(256));
    let first = usable(&subscription).await;
    let second = until(&subscription, |next| next.svid().is_some() && next.svid() != first.svid()).await;
    assert_eq!(second.svid().unwrap().spiffe_id(), &identity(256));
}

#[tokio::test]
async fn a_caller_without_entry_is_refused_and_admitted_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(trust_domain(), dir.path());
    config.nodes = vec!["n1".to_owned()];
    let authority = Authority::start(config).unwrap();
    let entries = EntryClient::new(authority.server_socket());
    let node = authority.delegate_id("n1").unwrap();
    let workload = workload::subscribe(authority.workload_socket("n1"), node.clone());
    let delegated = DelegatedAgent::new(authority.admin_socket("n1")).subscribe([selector(1)], identity(1));
    for subscription in [&workload, &delegated] {
        let refused = until(subscription, |next| next.state == State::Withdrawn).await;
        let problem = refused.problem.unwrap();
        assert!(matches!(problem, ApiError::NotAuthorized { .. }), "{problem}");
        assert!(problem.to_string().contains("api.sock: no identity issued"), "{problem}");
    }

    // An identity that is not the delegate's opens the Workload API but not the other.
    let selector = Selector::new("unix", format!("uid:{}", uid()));
    let agent = authority.agent_id("n1").unwrap();
    let other = Entry::new(agent.clone(), identity(77), [selector.clone()]);
    entries.create(&[other]).await.unwrap();
    let refused = until(&delegated, |next| {
        next.problem.as_ref().is_some_and(|problem| problem.to_string().contains("not configured"))
    })
    .await;
    assert_eq!(refused.state, State::Withdrawn);

    entries.create(&[Entry::new(agent, node, [selector])]).await.unwrap();
    usable(&workload).await;
    until(&delegated, |next| next.problem.is_none()).await;
}

#[tokio::test]
async fn entries_report_what_exists_what_is_missing_and_what_is_refused() {
    let rig = Rig::start(Duration::from_secs(3600));
    let agent = rig.authority.agent_id("n1").unwrap();
    let entry = Entry::new(agent.clone(), identity(256), [selector(256)]);
    let foreign = Entry::new(agent.clone(), SpiffeId::new("spiffe://b.test/x").unwrap(), [selector(1)]);
    let bare = Entry::new(agent.clone(), identity(3), []);
    let outcomes = rig.entries.create(&[entry.clone(), entry.clone(), foreign, bare]).await.unwrap();
    let Outcome::Created(created) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(outcomes[1], Outcome::Exists(created.clone()));
    assert!(matches!(&outcomes[2], Outcome::Failed { code: 3, message } if message.contains("trust domain")));
    assert!(matches!(&outcomes[3], Outcome::Failed { code: 3, .. }));
    let outcomes = rig.entries.delete(&["none".to_owned()]).await.unwrap();
    assert_eq!(outcomes, [Outcome::NotFound("none".to_owned())]);

    let many: Vec<_> =
        (1000..2205).map(|number| Entry::new(agent.clone(), identity(number), [selector(number)])).collect();
    let outcomes = rig.entries.create(&many).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Created(_))));
    let listed = rig.entries.list(Some(&agent)).await.unwrap();
    assert_eq!(listed.len(), many.len() + 2, "every page was read");
    assert_eq!(rig.entries.list(None).await.unwrap().len(), many.len() + 3);
}

#[tokio::test]
async fn wrong_socket_paths_are_named() {
    let rig = Rig::start(Duration::from_secs(3600));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let cases = [
        (dir.path().join("none.sock"), "no socket at"),
        (file, "is not a socket"),
        (dead, "nobody listens on"),
        (rig.authority.admin_socket("n1"), "does not serve SpiffeWorkloadAPI: is it the right socket?"),
    ];
    for (path, words) in cases {
        let subscription = workload::subscribe(&path, identity(1));
        let snapshot = until(&subscription, |next| next.problem.is_some()).await;
        assert_eq!(snapshot.state, State::Pending);
        let problem = snapshot.problem.unwrap().to_string();
        assert!(problem.contains(words) && problem.contains(&path.display().to_string()), "{problem}");
        let listed = EntryClient::new(&path).list(None).await.unwrap_err().to_string();
        assert!(listed.contains(&path.display().to_string()), "{listed}");
    }
}

#[tokio::test]
async fn dropping_a_subscription_ends_its_stream() {
    let rig = Rig::start(Duration::from_secs(3600));
    let agent = rig.agent("n1");
    let subscription = agent.subscribe([selector(256)], identity(256));
    let mut watch = subscription.watch();
    drop(subscription);
    drop(agent);
    timeout(PATIENCE, async { while watch.changed().await.is_ok() {} }).await.unwrap();
}

#[tokio::test]
async fn sockets_are_private_exclusive_and_removed() {
    use std::os::unix::fs::PermissionsExt;
    let rig = Rig::start(Duration::from_secs(3600));
    let path = rig.authority.server_socket();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    let second = Authority::start(Config::new(trust_domain(), path.parent().unwrap()));
    assert!(matches!(second.unwrap_err(), AuthorityError::InUse { .. }));
    assert!(path.exists(), "the running one keeps its socket");
    let admin = rig.authority.admin_socket("n2");
    rig.authority.shutdown().await;
    assert!(!path.exists() && !admin.exists());
}

#[tokio::test]
async fn stale_sockets_are_replaced_and_bad_node_names_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("server.sock")).unwrap());
    let running = Authority::start(Config::new(trust_domain(), dir.path())).unwrap();
    running.shutdown().await;
    for node in ["", "..", "a/b", "a b"] {
        let mut config = Config::new(trust_domain(), dir.path());
        config.nodes = vec![node.to_owned()];
        let error = Authority::start(config).unwrap_err();
        assert!(matches!(error, AuthorityError::Node { .. }), "{node:?}: {error}");
    }
}

#[tokio::test]
async fn shutdown_is_prompt_with_open_streams() {
    let rig = Rig::start(Duration::from_secs(3600));
    let subscription = rig.agent("n1").subscribe([selector(256)], identity(256));
    until(&subscription, |next| next.state == State::Withdrawn).await;
    let started = std::time::Instant::now();
    rig.authority.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

async fn usable(subscription: &Subscription) -> Snapshot {
    until(subscription, |next| next.svid().is_some() && !next.stale).await
}

async fn until(subscription: &Subscription, wanted: impl FnMut(&Snapshot) -> bool) -> Snapshot {
    let mut watch = subscription.watch();
    let found = timeout(PATIENCE, watch.wait_for(wanted)).await;
    match found {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("not seen in time; last: {:?}", subscription.current()),
    }
}

fn trust_domain() -> TrustDomain {
    TrustDomain::new("a.test").unwrap()
}

fn identity(number: u32) -> SpiffeId {
    SpiffeId::new(format!("spiffe://a.test/identity/{number}")).unwrap()
}

fn selector(number: u32) -> Selector {
    Selector::new("authd", format!("identity:{number}"))
}

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}
