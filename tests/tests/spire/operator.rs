//! `authd operator` as a process, against a server where nobody is registered: who gets which SVID from then on.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use authd_tests::process::own_address;
use authd_tests::scrape::Samples;
use authd_tests::{Process, binaries, wait};
use spire_adapter::registration::Owner;
use spire_adapter::{DelegatedAgent, SpiffeId, State, Subscription};

use crate::authorization::confined;
use crate::recorder::Recorder;
use crate::under_test::{HOUR, Kind, PATIENCE, UnderTest, options, selector, this_program, until, usable};

/// How long an entry stays that nobody needs, in these tests.
const GRACE: Duration = Duration::from_secs(4);

const NODES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
";

/// An operator with its directory of manifests.
struct Operator {
    directory: PathBuf,
    arguments: Vec<String>,
    http: SocketAddr,
    process: Process,
}

impl Operator {
    /// Starts it with pods on these nodes.
    fn start(spire: &UnderTest, server: &[&str], pods: &[(&str, &str)]) -> Self {
        let directory = spire.dir.path().join("cluster");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("nodes.yaml"), NODES).unwrap();
        place(&directory, pods);
        allocate(&directory);
        let http = own_address();
        let selectors: Vec<_> = this_program().iter().map(ToString::to_string).collect();
        let flags = [
            ("--cluster-dir", directory.display().to_string()),
            ("--trust-domain", spire.trust_domain.to_string()),
            ("--agent-selector", spire.agent_selector().to_owned()),
            ("--node-selectors", selectors.join(",")),
            ("--registration-interval", "1s".to_owned()),
            ("--registration-grace", format!("{}s", GRACE.as_secs())),
            ("--http-address", http.to_string()),
        ];
        let flags = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let arguments: Vec<String> = flags.chain(server.iter().map(|it| (*it).to_owned())).collect();
        Self::run(spire, "operator", directory, arguments, http)
    }

    /// Another one with all the same.
    fn beside(&self, spire: &UnderTest) -> Self {
        let http = own_address();
        let ours = self.http.to_string();
        let theirs = |it: &String| if *it == ours { http.to_string() } else { it.clone() };
        let arguments = self.arguments.iter().map(theirs).collect();
        Self::run(spire, "operator-2", self.directory.clone(), arguments, http)
    }

    fn run(
        spire: &UnderTest,
        name: &str,
        directory: PathBuf,
        arguments: Vec<String>,
        http: SocketAddr,
    ) -> Self {
        let mut command = Command::new(binaries::path("authd").unwrap());
        command.arg("operator").args(&arguments);
        let process = Process::start_here(spire.dir.path(), name, &command).unwrap();
        Self { directory, arguments, http, process }
    }

    /// Runs `authd operator` with the same arguments, and these instead.
    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binaries::path("authd").unwrap());
        command.arg("operator");
        for pair in self.arguments.chunks(2).filter(|pair| !arguments.contains(&pair[0].as_str())) {
            command.args(pair);
        }
        command.args(arguments).output().unwrap()
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (_, text) = self.get("/metrics");
        Samples::parse(&text).sum(&format!("authd_operator_{name}"), labels)
    }

    /// Waits until it has registered all that is wanted.
    fn registers(&self, entries: f64) {
        let there = || {
            let of = |state| self.metric("entries", &[("state", state)]);
            TcpStream::connect(self.http).is_ok() && of("wanted") == entries && of("present") == entries
        };
        let found = wait::until(PATIENCE, || there().then_some(()));
        assert!(found.is_some(), "{}", self.process.failure("registers not what it should"));
    }
}

fn place(directory: &Path, pods: &[(&str, &str)]) {
    let pod = |(name, node): &(&str, &str)| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: {node}}}\n"
        )
    };
    let new = directory.join(".pods.new");
    fs::write(&new, pods.iter().map(pod).collect::<String>()).unwrap();
    fs::rename(new, directory.join("pods.yaml")).unwrap();
}

fn allocate(directory: &Path) {
    let mut command = Command::new(binaries::path("authctl").unwrap());
    let output = command.args(["identities", "allocate"]).arg(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a daemon would have: its own SVID, and those of what it asks for.
struct Node {
    own: Subscription,
    agent: DelegatedAgent,
}

impl Node {
    fn new(spire: &UnderTest, name: &str) -> Self {
        Self { own: spire.node(name), agent: spire.delegated(name) }
    }

    fn ask(&self, id: &SpiffeId) -> Subscription {
        let number: u32 = id.path().rsplit('/').next().unwrap().parse().unwrap();
        self.agent.subscribe([selector(number)], id.clone())
    }
}

async fn withdrawn(subscription: &Subscription) {
    until(subscription, |next| next.state == State::Withdrawn).await;
}

pub(crate) async fn entries_follow_the_cluster_state_and_nothing_else(kind: Kind) {
    let mut spire = UnderTest::bare(kind, options("a.test"));
    let socket = spire.entries.path().display().to_string();
    let mut operator = Operator::start(&spire, &["--server-socket", &socket], &[("web", "n1"), ("db", "n2")]);
    let nodes = [Node::new(&spire, "n1"), Node::new(&spire, "n2")];
    for node in &nodes {
        usable(&node.own).await;
    }
    operator.registers(4.0);
    assert_eq!(operator.get("/readyz").0, 200);
    // Numbers go by name: db is the first.
    let (db, web) = (spire.identity(256), spire.identity(257));
    let [web_on_1, db_on_2] = [nodes[0].ask(&web), nodes[1].ask(&db)];
    usable(&web_on_1).await;
    usable(&db_on_2).await;
    // Least privilege: neither node gets what the other hosts, its SVID least of all.
    let node_1_on_2 = spire_adapter::workload::subscribe(spire.workload_socket("n2"), spire.node_id("n1"));
    let [db_on_1, web_on_2] = [nodes[0].ask(&db), nodes[1].ask(&web)];
    for elsewhere in [&db_on_1, &web_on_2, &node_1_on_2] {
        withdrawn(elsewhere).await;
    }

    // A pod moves: its new node gets the SVID at once, the old one keeps it for the grace.
    place(&operator.directory, &[("web", "n2"), ("db", "n2")]);
    let moved = Instant::now();
    usable(&web_on_2).await;
    assert!(moved.elapsed() < GRACE, "{:?}", moved.elapsed());
    assert!(web_on_1.current().svid().is_some());
    withdrawn(&web_on_1).await;
    assert!(moved.elapsed() >= GRACE - Duration::from_secs(1), "{:?}", moved.elapsed());
    assert!(db_on_1.current().svid().is_none());

    // Somebody deletes an entry of ours.
    let parent = spire.agent_id("n2");
    let id = Owner::default().entry_id(&parent, &web);
    spire.entries.delete(std::slice::from_ref(&id)).await.unwrap();
    let mended = async || spire.entries.list(Some(&parent)).await.unwrap().iter().any(|entry| entry.id == id);
    let began = Instant::now();
    while !mended().await {
        assert!(began.elapsed() < PATIENCE, "drift is not mended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    usable(&web_on_2).await;

    // The server goes; the operator lives on, says so, and changes nothing.
    spire.stop_server().await;
    place(&operator.directory, &[("web", "n1"), ("web-2", "n1"), ("db", "n2")]);
    let away = || operator.metric("server_up", &[]) == 0.0 && operator.get("/readyz").0 == 503;
    assert!(wait::until(PATIENCE, || away().then_some(())).is_some(), "{}", operator.get("/readyz").1);
    let (_, reason) = operator.get("/readyz");
    assert!(reason.starts_with("registration: ") && reason.contains("server.sock"), "{reason}");
    assert_eq!(operator.get("/healthz").0, 200);
    assert!(operator.metric("last_convergence_timestamp_seconds", &[]) > 0.0);
    spire.start_server();
    usable(&web_on_1).await;
    let ready = wait::until(PATIENCE, || (operator.get("/readyz").0 == 200).then_some(()));
    assert!(ready.is_some());

    // A revocation does not wait for the grace.
    let revocation =
        ["revoke", operator.directory.to_str().unwrap(), "--identity", "256", "--reason", "lost"];
    let output = Command::new(binaries::path("authctl").unwrap()).args(revocation).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let revoked = Instant::now();
    withdrawn(&db_on_2).await;
    assert!(revoked.elapsed() < GRACE, "{:?}", revoked.elapsed());

    let status = operator.process.terminate(PATIENCE).unwrap();
    assert!(status.success(), "{}", operator.process.failure("does not end well"));
    assert!(web_on_1.current().svid().is_some() && nodes[0].own.current().svid().is_some());
    let log = operator.process.log().unwrap();
    assert!(log.contains("spiffe://a.test/identity/257") && log.contains("\"what\":\"deleted\""), "{log}");
}

/// There is no leader: two that run at once must neither double nor undo what the other does.
pub(crate) async fn two_operators_do_no_harm(kind: Kind) {
    const MOVES: u32 = 4;
    let spire = UnderTest::bare(kind, options("a.test"));
    let socket = spire.entries.path().display().to_string();
    let mut one =
        Operator::start(&spire, &["--server-socket", &socket], &[("web", "n1"), ("db", "n2"), ("api", "n2")]);
    let other = one.beside(&spire);
    let count = |change: &str| {
        [&one, &other].map(|it| it.metric("changes_total", &[("change", change)])).iter().sum::<f64>()
    };
    let both = |entries| [&one, &other].iter().for_each(|operator| operator.registers(entries));
    both(5.0);
    // Numbers go by name.
    let (node, web) = (Node::new(&spire, "n2"), spire.identity(258));
    usable(&node.own).await;
    let steady = node.ask(&spire.identity(257));
    usable(&steady).await;
    let recorder = Recorder::start(&steady);
    let moving = node.ask(&web);
    for round in 0..MOVES {
        let place_of_web = if round % 2 == 0 { "n2" } else { "n1" };
        place(&one.directory, &[("web", place_of_web), ("db", "n2"), ("api", "n2")]);
        if place_of_web == "n2" {
            usable(&moving).await;
        } else {
            withdrawn(&moving).await;
        }
        both(5.0);
        let listed = ids(&spire).await;
        assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len(), "{listed:?}");
    }
    // What one has made is there for the other.
    assert!(count("created") <= 5.0 + f64::from(MOVES), "{} made by both", count("created"));
    assert_eq!((count("updated"), count("refused")), (0.0, 0.0), "they undo each other's work");
    // Nothing to do for either any more, though both keep looking.
    let quiet = ["created", "updated", "refused"].map(&count);
    tokio::time::sleep(GRACE + Duration::from_secs(3)).await;
    assert_eq!(["created", "updated", "refused"].map(&count), quiet);
    let settled = ids(&spire).await;
    assert_eq!(settled.len(), 5, "{settled:?}");
    assert!(recorder.gaps().is_empty(), "{:?}", recorder.gaps());

    // Either is enough.
    assert!(one.process.terminate(PATIENCE).unwrap().success());
    place(&other.directory, &[("web", "n2"), ("db", "n2"), ("api", "n2")]);
    usable(&moving).await;
    assert!(recorder.gaps().is_empty(), "{:?}", recorder.gaps());
}

/// Who may have what: parents with SPIFFE IDs.
async fn ids(spire: &UnderTest) -> Vec<String> {
    let listed = spire.entries.list(None).await.unwrap();
    listed.iter().map(|entry| format!("{} {}", entry.parent_id, entry.spiffe_id)).collect()
}

pub(crate) async fn what_is_wrong_is_told(kind: Kind) {
    let spire = UnderTest::bare(kind, options("a.test"));
    let socket = spire.entries.path().display().to_string();
    let operator = Operator::start(&spire, &["--server-socket", &socket], &[("web", "n1")]);
    operator.registers(3.0);
    let text = |output: &Output| {
        String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
    };
    let dry = operator.command(&["--dry-run"]);
    assert!(dry.status.success() && text(&dry).contains("nothing to do: 3 entries"), "{}", text(&dry));
    let once = operator.command(&["--once"]);
    assert!(once.status.success(), "{}", text(&once));

    // A node for which SPIRE has no agent.
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n3}\n";
    fs::write(operator.directory.join("n3.yaml"), node).unwrap();
    let lacking =
        wait::until(PATIENCE, || (operator.metric("nodes_without_agent", &[]) == 1.0).then_some(()));
    assert!(lacking.is_some());
    let once = operator.command(&["--once"]);
    assert!(!once.status.success());
    assert!(text(&once).contains("node n3: SPIRE has attested no agent with"), "{}", text(&once));

    // What nobody would want.
    let bad = operator.command(&["--node-selectors", "unix:uid:0"]);
    assert_eq!(bad.status.code(), Some(78), "{}", text(&bad));
    let away = operator.command(&["--dry-run", "--server-socket", "/nonexistent/server.sock"]);
    assert!(!away.status.success() && text(&away).contains("no socket at /nonexistent"), "{}", text(&away));

    // A directory that has been emptied is no order to delete.
    for file in ["n3.yaml", "nodes.yaml", "pods.yaml"] {
        fs::remove_file(operator.directory.join(file)).unwrap();
    }
    let refused = wait::until(PATIENCE, || operator.get("/readyz").1.contains("no node").then_some(()));
    assert!(refused.is_some(), "{}", operator.get("/readyz").1);
    tokio::time::sleep(GRACE + Duration::from_secs(2)).await;
    assert_eq!(spire.entries.list(None).await.unwrap().len(), 3);
}

pub(crate) async fn a_confined_operator_registers_by_tcp() {
    let (spire, own) = confined(HOUR).await;
    drop(own);
    // It is another program than this one.
    let program = binaries::path("authd").unwrap().canonicalize().unwrap();
    let selectors = [
        this_program()[0].clone(),
        spire_adapter::Selector::new("unix", format!("path:{}", program.display())),
    ];
    let id = spire.id("/authd/operator");
    spire.create(spire_adapter::Entry::new(spire.agent_id("n1"), id, selectors)).await;
    let address = spire.server_address();
    let socket = spire.workload_socket("n1").display().to_string();
    let server = ["--server-address", &address, "--workload-socket", &socket];
    let operator = Operator::start(&spire, &server, &[("web", "n2")]);
    let node = Node::new(&spire, "n2");
    usable(&node.own).await;
    usable(&node.ask(&spire.identity(256))).await;
    operator.registers(3.0);
    let dry = operator.command(&["--dry-run"]);
    assert!(dry.status.success(), "{dry:?}");
}
