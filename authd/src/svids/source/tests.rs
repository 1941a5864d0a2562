use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

use spire_adapter::authority::{Authority, Config, Running};
use spire_adapter::{Entry, EntryClient, Outcome, State, workload};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A process that does nothing until it is dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "sleep", "300"]);
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn candidate(&self) -> Candidate {
        let pid = i32::try_from(self.0.id()).unwrap();
        processes::look(pid).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An authority with two entries of one identity: one for what an agent attests, one for what it is told.
struct Rig {
    authority: Running,
    entries: EntryClient,
    own: Subscription,
    id: SpiffeId,
    seen: watch::Sender<Seen>,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new("example.test".parse().unwrap(), dir.path().join("run"));
        config.nodes = vec!["n1".to_owned()];
        config.delegate_uid = Some(nix::unistd::getuid().as_raw());
        let authority = Authority::start(config).unwrap();
        let own = workload::subscribe(authority.workload_socket("n1"), authority.delegate_id("n1").unwrap());
        own.watch().wait_for(|own| own.svid().is_some()).await.unwrap();
        let id = SpiffeId::new("spiffe://example.test/identity/256").unwrap();
        let entries = EntryClient::new(authority.server_socket());
        let seen = watch::Sender::new(Seen::default());
        Self { authority, entries, own, id, seen, _dir: dir }
    }

    async fn register(&self, selector: Selector) -> String {
        let entry = Entry::new(self.authority.agent_id("n1").unwrap(), self.id.clone(), [selector]);
        let outcome = self.entries.create(&[entry]).await.unwrap().remove(0);
        let Outcome::Created(entry) = outcome else { panic!("{outcome:?}") };
        entry.id
    }

    async fn attested(&self) -> String {
        self.register(Selector::new("unix", format!("uid:{}", nix::unistd::getuid()))).await
    }

    async fn selected(&self) -> String {
        self.register(Selector::new("authd", "identity:256")).await
    }

    fn see(&self, broker: bool, all: &[Candidate]) {
        let socket = self.authority.broker_socket("n1");
        let broker = processes::socket_id(&socket).filter(|_| broker);
        let all: BTreeMap<_, _> = [(256, all.iter().copied().collect::<BTreeSet<_>>())].into();
        let all = all.into_iter().filter(|(_, all)| !all.is_empty()).collect();
        self.seen.send_replace(Seen { broker, processes: Some(Arc::new(all)) });
    }

    fn subscribe(&self, choice: Choice) -> Feed {
        let agent = SpireAgent {
            choice,
            broker: BrokerAgent::new(self.authority.broker_socket("n1"), self.own.watch()),
            seen: self.seen.subscribe(),
            look: Arc::default(),
            delegated: DelegatedAgent::new(self.authority.admin_socket("n1")),
            selectors: Arc::new(|number| vec![Selector::new("authd", format!("identity:{number}"))]),
        };
        agent.subscribe(256, &self.id)
    }
}

async fn until(feed: &mut Feed, what: &str, is: impl FnMut(&Offer) -> bool) -> Offer {
    let found = tokio::time::timeout(PATIENCE, feed.offers.wait_for(is)).await;
    let found = found.map(|found| found.unwrap().clone());
    found.unwrap_or_else(|_| panic!("not {what}: {:?}", feed.offers.borrow()))
}

async fn given(feed: &mut Feed, api: Api, unused: Option<Unused>) {
    let is = |told: &Offer| told.snapshot.svid().is_some() && told.api == Some(api) && told.unused == unused;
    until(feed, &format!("given by {api:?} for {unused:?}"), is).await;
}

async fn missing(feed: &mut Feed, unused: Option<Unused>) -> Offer {
    let is = |told: &Offer| told.snapshot.state == State::Withdrawn && told.unused == unused;
    until(feed, &format!("missing for {unused:?}"), is).await
}

#[tokio::test]
async fn each_setting_has_its_api() {
    let rig = Rig::start().await;
    let (_attested, _selected) = (rig.attested().await, rig.selected().await);
    let sleeper = Sleeper::start();
    for (choice, api) in [
        (Choice::Auto, Api::Broker),
        (Choice::Broker, Api::Broker),
        (Choice::DelegatedPid, Api::DelegatedPid),
        (Choice::Delegated, Api::Delegated),
    ] {
        rig.see(true, &[sleeper.candidate()]);
        let mut feed = rig.subscribe(choice);
        given(&mut feed, api, None).await;
    }
}

#[tokio::test]
async fn auto_falls_back_and_says_why() {
    let rig = Rig::start().await;
    let (attested, _selected) = (rig.attested().await, rig.selected().await);
    let sleeper = Sleeper::start();
    let mut feed = rig.subscribe(Choice::Auto);
    rig.see(false, &[sleeper.candidate()]);
    given(&mut feed, Api::DelegatedPid, Some(Unused::NoSocket)).await;
    // An agent that serves it comes, without a gap.
    let gap = feed.offers.clone();
    rig.see(true, &[sleeper.candidate()]);
    given(&mut feed, Api::Broker, None).await;
    assert!(gap.borrow().snapshot.svid().is_some());
    rig.see(true, &[]);
    given(&mut feed, Api::Delegated, Some(Unused::NoProcess)).await;
    rig.see(true, &[sleeper.candidate()]);
    given(&mut feed, Api::Broker, None).await;
    rig.entries.delete(&[attested]).await.unwrap();
    given(&mut feed, Api::Delegated, Some(Unused::Nothing)).await;
    rig.attested().await;
    given(&mut feed, Api::Broker, None).await;
}

#[tokio::test]
async fn a_broker_that_is_not_authorised_is_told_so() {
    let mut rig = Rig::start().await;
    let (_attested, _selected) = (rig.attested().await, rig.selected().await);
    // Who is no broker.
    rig.own = workload::subscribe(rig.authority.workload_socket("n1"), rig.id.clone());
    rig.own.watch().wait_for(|own| own.svid().is_some()).await.unwrap();
    let sleeper = Sleeper::start();
    rig.see(true, &[sleeper.candidate()]);
    given(&mut rig.subscribe(Choice::Auto), Api::DelegatedPid, Some(Unused::Refused)).await;
    let is = |told: &Offer| told.unused == Some(Unused::Refused);
    let told = until(&mut rig.subscribe(Choice::Broker), "refused", is).await;
    assert_eq!(told.snapshot.svid(), None);
    let problem = told.snapshot.problem.unwrap().to_string();
    assert!(problem.contains("brokers") && problem.contains("/identity/256"), "{problem}");
}

#[tokio::test]
async fn an_svid_lasts_as_long_as_any_process_of_the_identity() {
    for (choice, api) in [(Choice::Broker, Api::Broker), (Choice::DelegatedPid, Api::DelegatedPid)] {
        let rig = Rig::start().await;
        let _attested = rig.attested().await;
        let (first, second) = (Sleeper::start(), Sleeper::start());
        let (one, two) = (first.candidate(), second.candidate());
        rig.see(true, &[one, two]);
        let mut feed = rig.subscribe(choice);
        given(&mut feed, api, None).await;
        let mut gap = feed.offers.clone();
        drop(first);
        let fails = gap.wait_for(|told| told.snapshot.svid().is_none());
        let fails = tokio::time::timeout(Duration::from_millis(300), fails).await;
        assert!(fails.is_err(), "there is another process");
        drop(second);
        missing(&mut feed, Some(Unused::NoProcess)).await;
        // Those that have ended are still among those that were seen last.
        let third = Sleeper::start();
        rig.see(true, &[one, two, third.candidate()]);
        given(&mut feed, api, None).await;
        // It lives on, but not in this identity's pods.
        rig.see(true, &[]);
        missing(&mut feed, Some(Unused::NoProcess)).await;
    }
}

#[tokio::test]
async fn a_process_that_is_another_by_now_is_never_asked_for() {
    let sleeper = Sleeper::start();
    let candidate = sleeper.candidate();
    assert!(processes::hold(candidate).is_some());
    for other in [
        Candidate { started: candidate.started + 1, ..candidate },
        Candidate { namespace: candidate.namespace + 1, ..candidate },
        Candidate { pid: i32::MAX, ..candidate },
    ] {
        assert!(processes::hold(other).is_none(), "{other:?}");
    }
    let held = processes::hold(candidate).unwrap();
    assert!(held.is_alive());
    drop(sleeper);
    assert!(!held.is_alive());
    assert!(processes::hold(candidate).is_none());
    let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert_eq!(candidate.namespace, own);
}

#[tokio::test]
async fn a_strict_setting_tells_what_it_lacks() {
    let rig = Rig::start().await;
    let (_attested, _selected) = (rig.attested().await, rig.selected().await);
    let sleeper = Sleeper::start();
    rig.see(false, &[sleeper.candidate()]);
    let mut feed = rig.subscribe(Choice::Broker);
    let told = until(&mut feed, "told", |told| told.unused == Some(Unused::NoSocket)).await;
    assert_eq!(told.snapshot.svid(), None);
    rig.see(true, &[sleeper.candidate()]);
    given(&mut feed, Api::Broker, None).await;
}
