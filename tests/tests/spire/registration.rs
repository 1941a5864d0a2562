//! Registration entries as somebody wants them, at a server that goes and comes back.

use std::time::{Duration, Instant};

use spire_adapter::attested::agent_of;
use spire_adapter::registration::{Options, Owner, Registered, Report, Wanted, converge};
use spire_adapter::{AgentClient, Entry, EntryClient, Selector, State};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::under_test::{HOUR, Kind, PATIENCE, UnderTest, until, usable};

/// How long unwanted entries stay, in these tests.
const GRACE: Duration = Duration::from_secs(2);

struct Registration {
    wanted: watch::Sender<Wanted>,
    report: watch::Receiver<Report>,
    task: JoinHandle<()>,
}

impl Registration {
    fn start(spire: &UnderTest) -> Self {
        let options = Options { interval: Duration::from_millis(500), grace: GRACE };
        let (wanted, receiver) = watch::channel(Wanted::default());
        let (sender, report) = watch::channel(Report::default());
        let client = EntryClient::new(spire.entries.path());
        let task = tokio::spawn(converge(client, options, receiver, sender));
        Self { wanted, report, task }
    }

    fn want(&self, entries: impl IntoIterator<Item = Entry>) {
        self.wanted.send_replace(entries.into_iter().collect());
    }

    async fn reports(&mut self, wanted: impl FnMut(&Report) -> bool) -> Report {
        let found = timeout(PATIENCE, self.report.wait_for(wanted)).await.map(|found| found.unwrap().clone());
        found.unwrap_or_else(|_elapsed| panic!("not reported; last: {:?}", self.report.borrow()))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn own_id(entry: &Entry) -> String {
    Owner::default().entry_id(&entry.parent_id, &entry.spiffe_id)
}

fn all_there(count: usize) -> impl FnMut(&Report) -> bool {
    move |report| {
        report.problem.is_none()
            && report.entries.len() == count
            && report.entries.values().all(|state| *state == Registered::Yes)
    }
}

pub(crate) async fn a_thousand_entries_are_made_kept_and_mended(kind: Kind) {
    const IDENTITIES: u32 = 1000;
    let spire = UnderTest::start(kind, HOUR).await;
    let mut registration = Registration::start(&spire);
    let entry = |number| spire.entry(if number % 2 == 0 { "n1" } else { "n2" }, 1000 + number);
    registration.want((0..IDENTITIES).map(entry));
    registration.reports(all_there(1000)).await;
    let agents = [spire.delegated("n1"), spire.delegated("n2")];
    let there = spire.subscribe(&agents[0], 1998);
    usable(&there).await;
    // The agent of one node does not get what belongs to another.
    let elsewhere = spire.subscribe(&agents[1], 1998);
    until(&elsewhere, |next| next.state == State::Withdrawn).await;

    // Somebody deletes one, hands another to the other node, and makes one of their own.
    let id = |number| own_id(&entry(number));
    spire.entries.delete(&[id(3)]).await.unwrap();
    let mut stolen = entry(998);
    (stolen.id, stolen.parent_id) = (id(998), spire.agent_id("n2"));
    spire.update(&stolen).await;
    let theirs = spire.create(spire.entry("n1", 7)).await;
    let mended = async || {
        let listed = spire.entries.list(None).await.unwrap();
        let find = |id: &str| listed.iter().find(|entry| entry.id == id);
        let parents = [3, 998].map(|number| find(&id(number)).map(|entry| entry.parent_id.clone()));
        // Beside ours: two nodes and theirs.
        listed.len() == 1003
            && find(&theirs.id).is_some()
            && parents == [3, 998].map(|it| Some(entry(it).parent_id))
    };
    let began = Instant::now();
    while !mended().await {
        assert!(began.elapsed() < PATIENCE, "drift is not mended");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    usable(&there).await;
    // Which its agent had while somebody's entry said so.
    until(&elsewhere, |next| next.state == State::Withdrawn).await;
}

/// Whatever somebody makes of one of our entries beside its name.
pub(crate) async fn every_field_of_an_entry_is_mended(kind: Kind) {
    let changes: [fn(&mut Entry); 7] = [
        |entry| entry.hint = "theirs".to_owned(),
        |entry| entry.admin = true,
        |entry| entry.downstream = true,
        |entry| entry.store_svid = true,
        |entry| entry.dns_names = ["theirs.test".to_owned()].into(),
        |entry| entry.svid_ttl = Some(HOUR / 2),
        // In the year 2100.
        |entry| entry.expires_at = 4_102_444_800,
    ];
    let spire = UnderTest::start(kind, HOUR).await;
    let mut registration = Registration::start(&spire);
    let entries: Vec<Entry> =
        (0..changes.len()).map(|at| spire.entry("n1", 256 + u32::try_from(at).unwrap())).collect();
    registration.want(entries.clone());
    registration.reports(all_there(entries.len())).await;
    let now = async || {
        let listed = spire.entries.list(Some(&spire.agent_id("n1"))).await.unwrap();
        entries
            .iter()
            .map(|entry| listed.iter().find(|it| it.id == own_id(entry)).cloned().unwrap())
            .collect()
    };
    let made: Vec<Entry> = now().await;
    let updated = registration.report.borrow().changes.updated;
    for (entry, change) in made.iter().zip(changes) {
        let mut changed = entry.clone();
        change(&mut changed);
        spire.update(&changed).await;
    }
    let all = u64::try_from(changes.len()).unwrap();
    registration.reports(|report| report.changes.updated >= updated + all).await;
    let mended: Vec<Entry> = now().await;
    assert_eq!(mended, made);
}

pub(crate) async fn unwanted_entries_go_after_their_grace_and_a_server_away_loses_nothing(kind: Kind) {
    let mut spire = UnderTest::start(kind, HOUR).await;
    let mut registration = Registration::start(&spire);
    let agent = spire.delegated("n1");
    let (stays, goes) = (spire.subscribe(&agent, 256), spire.subscribe(&agent, 257));
    registration.want([spire.entry("n1", 256), spire.entry("n1", 257)]);
    usable(&stays).await;
    usable(&goes).await;
    registration.reports(all_there(2)).await;

    spire.stop_server().await;
    registration.want([spire.entry("n1", 256), spire.entry("n1", 258)]);
    let report = registration.reports(|report| report.problem.is_some()).await;
    assert!(report.problem.unwrap().to_string().contains("server.sock"));
    tokio::time::sleep(GRACE).await;
    assert!(stays.current().svid().is_some() && goes.current().svid().is_some());
    let began = Instant::now();
    spire.start_server();
    registration.reports(all_there(2)).await;
    let added = spire.subscribe(&agent, 258);
    usable(&added).await;
    until(&goes, |next| next.state == State::Withdrawn).await;
    // The grace counts from when the server was first seen to have it though it was unwanted.
    assert!(began.elapsed() >= GRACE, "{:?}", began.elapsed());
    assert!(stays.current().svid().is_some());
}

pub(crate) async fn what_the_server_refuses_is_told_and_what_others_have_made_is_left(kind: Kind) {
    let spire = UnderTest::start(kind, HOUR).await;
    let mut registration = Registration::start(&spire);
    let mut federated = spire.entry("n1", 256);
    federated.federates_with.insert("nowhere.test".try_into().unwrap());
    let theirs = spire.create(spire.entry("n1", 257)).await;
    registration.want([federated.clone(), spire.entry("n1", 257), spire.entry("n1", 258)]);
    let report = registration.reports(|report| report.entries.len() == 3).await;
    let Registered::Refused { reason } = &report.entries[&own_id(&federated)] else { panic!("{report:?}") };
    assert!(reason.contains("unable to find federated bundle"), "{reason}");
    assert_eq!(report.entries[&own_id(&theirs)], Registered::Foreign);
    assert_eq!(report.entries[&own_id(&spire.entry("n1", 258))], Registered::Yes);
    let listed = spire.entries.list(Some(&spire.agent_id("n1"))).await.unwrap();
    assert_eq!(listed.iter().filter(|entry| entry.spiffe_id == theirs.spiffe_id).count(), 1);
}

pub(crate) async fn the_server_says_which_agents_it_has_attested(kind: Kind) {
    let spire = UnderTest::start(kind, HOUR).await;
    let agents = AgentClient::new(spire.entries.path()).list().await.unwrap();
    assert_eq!(agents.len(), 2, "{agents:?}");
    for node in ["n1", "n2"] {
        let kind = &agents[0].attestation_type;
        let found = agent_of(&agents, &Selector::new(kind, format!("subject:cn:{node}"))).unwrap();
        assert_eq!(found.spiffe_id, spire.agent_id(node));
        assert!(found.expires > std::time::SystemTime::now());
    }
    assert_eq!(agent_of(&agents, &Selector::new("x509pop", "subject:cn:n3")), None);
}
