//! What compiling policies costs: from scratch, and for each kind of change; `make bench-policy`.
//!
//! Ten times the cluster with the same node shows what a change's cost depends on. Without `--bench` it runs
//! once and small, as a test.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark that cannot go on fails, and says what it finds"
)]

mod policy {
    pub(crate) mod cluster;
    pub(crate) mod report;
}

use std::time::{Duration, Instant};

use ::policy::{Engine, Plan};
use policy::cluster::{Cluster, LOCALS};
use policy::report::{Report, median};

/// Entries that the kernel's map has room for.
const CAPACITY: usize = auth_ebpf_abi::capacity::POLICY;

/// What one size costs, in microseconds.
#[derive(Debug)]
struct Costs {
    entries: usize,
    /// Memory, in bytes: of policies and identities, and of what is compiled from them.
    state: f64,
    bytes: f64,
    full: f64,
    known_here: f64,
    known: f64,
    first_known: f64,
    identity: f64,
    wide_identity: f64,
    policy: f64,
    clusterwide: f64,
    follow: f64,
}

fn main() {
    let is_benchmark = std::env::args().any(|argument| argument == "--bench");
    let (sizes, rounds) =
        if is_benchmark { ([(1_000, 100), (10_000, 1_000)], 31) } else { ([(200, 20), (400, 40)], 3) };
    let [small, large] = sizes.map(|(identities, policies)| measure(identities, policies, rounds));
    let mut report = Report::new(is_benchmark);
    let (identities, policies) = sizes[1];
    let at = |what: &str| format!("{what}, {identities} identities x {policies} policies");
    report.add(&at("full compilation"), large.full / 1_000.0, "ms", None);
    report.add(&at("pod of an identity that runs here"), large.known_here, "us", Some(50.0));
    report.add(&at("first pod here of a known identity"), large.known, "us", Some(50.0));
    report.add(&at("first pod here that new rules are for"), large.first_known, "us", None);
    report.add(&at("new identity"), large.identity / 1_000.0, "ms", Some(5.0));
    report.add(
        &at("new identity that all namespaces select"),
        large.wide_identity / 1_000.0,
        "ms",
        Some(5.0),
    );
    report.add(&at("policy of a namespace changed"), large.policy / 1_000.0, "ms", Some(20.0));
    report.add(&at("policy of the cluster changed"), large.clusterwide / 1_000.0, "ms", Some(20.0));
    report.add(&at("whole state given, one address changed"), large.follow / 1_000.0, "ms", None);
    report.add(&at("entries"), large.entries as f64, "entries", None);
    report.add(&at("memory per entry"), large.bytes / large.entries as f64, "bytes", None);
    report.add(&at("memory of policies and identities"), large.state / 1e6, "MB", None);
    let mut growth = |what: &str, small: f64, large: f64, goal: Option<f64>| {
        report.add(&format!("growth over 10x cluster: {what}"), large / small, "ratio", goal);
    };
    // A full compilation may grow as the cluster does, a change only with what it changes.
    growth("full compilation", small.full, large.full, Some(10.0));
    growth("first pod here of a known identity", small.known, large.known, Some(2.0));
    growth("new identity", small.identity, large.identity, Some(2.0));
    growth("policy of a namespace changed", small.policy, large.policy, Some(2.0));
    report.write();
}

fn measure(identities: usize, policies: usize, rounds: usize) -> Costs {
    let cluster = Cluster::new(identities, policies);
    let mut engine = Engine::new();
    let before = resident();
    engine.follow(cluster.input(), &std::collections::BTreeSet::new());
    settle(&mut engine);
    let state = resident();
    cluster.locals.iter().for_each(|local| engine.add_local(*local));
    settle(&mut engine);
    let (state, bytes) = (state - before, resident() - state);
    let entries = engine.len();
    let full = time(rounds.min(9), || drop(std::hint::black_box(compiled(&cluster))));

    let here = cluster.locals[0];
    let mut last = 0;
    let known_here = time(rounds, || {
        last += 1;
        engine.add_local(here);
        engine.set_addresses(here, [[10, 99, 0, last].into()].into());
        assert!(settle(&mut engine).steps.is_empty());
    });
    let [known, first_known] = cluster.elsewhere.each_ref().map(|numbers| {
        let mut come = numbers.iter().copied();
        let cost = time(rounds.min(numbers.len()), || {
            engine.add_local(come.next().unwrap());
            assert!(!settle(&mut engine).steps.is_empty());
        });
        numbers.iter().for_each(|number| engine.remove_local(*number));
        settle(&mut engine);
        cost
    });
    let [identity, wide_identity] = cluster.newcomers.each_ref().map(|newcomers| {
        let mut new = newcomers.iter();
        let mut steps = 0;
        let cost = time(rounds, || {
            engine.insert_identity(new.next().unwrap().clone()).unwrap();
            steps += settle(&mut engine).steps.len();
        });
        assert!(steps > 0, "nobody selects these");
        newcomers.iter().for_each(|identity| engine.remove_identity(identity.number()));
        settle(&mut engine);
        cost
    });
    let mut port = 1_000;
    let mut changed = |is_clusterwide| {
        time(rounds, || {
            port += 1;
            engine.insert_policy(cluster.changed(is_clusterwide, port));
            assert!(!settle(&mut engine).steps.is_empty());
        })
    };
    let (policy, clusterwide) = (changed(false), changed(true));
    let mut whole = cluster.clone();
    let follow = time(rounds.min(5), || {
        last += 1;
        whole.surroundings.addresses.insert(here, [[10, 98, 0, last].into()].into());
        engine.follow(whole.input(), &whole.locals.iter().copied().collect());
        settle(&mut engine);
    });
    assert_eq!(cluster.locals.len(), LOCALS.min(identities));
    Costs {
        entries,
        state,
        bytes,
        full,
        known_here,
        known,
        first_known,
        identity,
        wide_identity,
        policy,
        clusterwide,
        follow,
    }
}

fn compiled(cluster: &Cluster) -> Engine {
    let mut engine = Engine::new();
    engine.follow(cluster.input(), &cluster.locals.iter().copied().collect());
    settle(&mut engine);
    engine
}

/// Plans what has changed, as if each step were made at once.
fn settle(engine: &mut Engine) -> Plan {
    let plan = engine.plan(CAPACITY).unwrap();
    engine.applied(&plan);
    plan
}

/// The middle of several runs, in microseconds.
fn time(rounds: usize, mut run: impl FnMut()) -> f64 {
    if rounds == 0 {
        return 0.0;
    }
    let mut once = || -> Duration {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    median((0..rounds).map(|_| once().as_secs_f64() * 1e6).collect())
}

/// Bytes of memory that this process occupies.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}
