//! What SVIDs cost with real SPIRE: from registration to use, a thousand at once, and verifying one;
//! `make bench-spire`. Without `--bench` it runs once and small, as a test.

#![expect(clippy::print_stdout, reason = "a benchmark says what it finds")]

use std::time::{Duration, Instant, SystemTime};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use authd_tests::bench::median;
use authd_tests::skip;
use authd_tests::spire::{Options, Place, Spire};
use serde_json::{Value, json};
use spire_adapter::{
    DelegatedAgent, Entry, EntryClient, ExpectedPeer, Outcome, Selector, Snapshot, SpiffeId, Subscription,
    TrustDomain, verify_chain, workload,
};

const PATIENCE: Duration = Duration::from_secs(60);
const NODE: &str = "n1";

struct Rig {
    spire: Spire,
    entries: EntryClient,
    agent: DelegatedAgent,
    _directory: tempfile::TempDir,
}

fn main() -> Result<()> {
    if !skip::spire_available("bench_spire") {
        return Ok(());
    }
    let is_benchmark = env::args().any(|argument| argument == "--bench");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (rounds, identities, verifications) = if is_benchmark { (20, 1000, 2000) } else { (1, 20, 10) };
    runtime.block_on(measure(rounds, identities, verifications, is_benchmark))
}

async fn measure(rounds: u32, identities: u32, verifications: u32, counts: bool) -> Result<()> {
    let rig = Rig::start().await?;
    let mut registered = Vec::new();
    for round in 0..rounds {
        registered.push(rig.until_usable(round).await?);
    }
    let (all, resident) = rig.many(identities).await?;
    let verify = rig.verification(verifications).await?;
    let sync = Options::new(rig.spire.trust_domain().clone(), &[]).sync.as_millis();
    let figures = [
        (
            format!("entry created to SVID usable, median, agent and server look every {sync} ms"),
            median(registered),
            "ms",
        ),
        (format!("{identities} entries created to all SVIDs usable"), all, "ms"),
        (format!("resident memory of client and test with {identities} SVIDs"), resident, "MB"),
        ("verification of a chain of one, median".to_owned(), verify, "us"),
    ];
    let lines: Vec<Value> = figures
        .iter()
        .map(|(name, value, unit)| {
            println!("{name:<85} {value:>10.2} {unit}");
            let value = (value * 100.0).round() / 100.0;
            json!({"name": name, "value": value, "unit": unit, "goal": null, "met": null})
        })
        .collect();
    if counts {
        authd_tests::bench::write("spire", &lines)?;
    }
    Ok(())
}

impl Rig {
    async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let options = Options::new(TrustDomain::new("a.test")?, &[NODE]);
        let spire = Spire::start(Place::Here(directory.path().into()), options)?;
        let (entries, agent) =
            (EntryClient::new(spire.server_socket()), DelegatedAgent::new(spire.admin_socket(NODE)));
        let rig = Self { spire, entries, agent, _directory: directory };
        let uid = nix::unistd::geteuid().as_raw();
        rig.create(&[rig.entry("/authd/node/n1", Selector::new("unix", format!("uid:{uid}")))?]).await?;
        usable(&rig.node()?).await?;
        Ok(rig)
    }

    fn id(&self, path: &str) -> Result<SpiffeId> {
        Ok(SpiffeId::new(format!("spiffe://{}{path}", self.spire.trust_domain()))?)
    }

    fn entry(&self, path: &str, selector: Selector) -> Result<Entry> {
        Ok(Entry::new(self.spire.agent_id(NODE)?, self.id(path)?, [selector]))
    }

    fn node(&self) -> Result<Subscription> {
        Ok(workload::subscribe(self.spire.workload_socket(NODE), self.id("/authd/node/n1")?))
    }

    fn subscribe(&self, number: u32) -> Result<Subscription> {
        Ok(self.agent.subscribe([selector(number)], self.id(&format!("/identity/{number}"))?))
    }

    async fn create(&self, entries: &[Entry]) -> Result<()> {
        let outcomes = self.entries.create(entries).await?;
        ensure!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Created(_))), "{outcomes:?}");
        Ok(())
    }

    /// Milliseconds from the server's word until the SVID of a waiting identity is usable.
    async fn until_usable(&self, number: u32) -> Result<f64> {
        let waiting = self.subscribe(number)?;
        // At any phase of the agent's and the server's intervals.
        tokio::time::sleep(Duration::from_millis(u64::from(number) * 37 % 500)).await;
        self.create(&[self.entry(&format!("/identity/{number}"), selector(number))?]).await?;
        let created = Instant::now();
        usable(&waiting).await?;
        Ok(milliseconds(created))
    }

    /// Milliseconds from the first request until the last of many is usable, and megabytes resident then.
    async fn many(&self, identities: u32) -> Result<(f64, f64)> {
        let numbers = 10_000..10_000 + identities;
        let entries = numbers
            .clone()
            .map(|number| self.entry(&format!("/identity/{number}"), selector(number)))
            .collect::<Result<Vec<_>>>()?;
        let subscriptions = numbers.map(|number| self.subscribe(number)).collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        self.create(&entries).await?;
        for subscription in &subscriptions {
            usable(subscription).await?;
        }
        let took = milliseconds(began);
        let status = fs::read_to_string("/proc/self/status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kilobytes: f64 = resident.trim().trim_end_matches(" kB").parse()?;
        Ok((took, kilobytes / 1024.0))
    }

    /// Microseconds that one verification takes.
    async fn verification(&self, times: u32) -> Result<f64> {
        let snapshot = usable(&self.node()?).await?;
        let svid = snapshot.svid().context("no SVID")?;
        let expected = ExpectedPeer::Exact(svid.spiffe_id().clone());
        let mut took = Vec::new();
        for _ in 0..times {
            let began = Instant::now();
            verify_chain(svid.chain(), &snapshot.bundles, &expected, SystemTime::now())?;
            took.push(began.elapsed().as_secs_f64() * 1e6);
        }
        Ok(median(took))
    }
}

fn selector(number: u32) -> Selector {
    Selector::new("authd", format!("identity:{number}"))
}

async fn usable(subscription: &Subscription) -> Result<Snapshot> {
    let mut watch = subscription.watch();
    let found = tokio::time::timeout(PATIENCE, watch.wait_for(|next| next.svid().is_some())).await;
    Ok(found.with_context(|| format!("no SVID of {}", subscription.spiffe_id()))??.clone())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
