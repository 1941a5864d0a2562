//! What SVIDs cost with real SPIRE: from registration to use, a thousand at once and while they rotate, and
//! verifying one; `make bench-spire`. Without `--bench` it runs once and small, as a test.

#![expect(clippy::print_stdout, reason = "a benchmark says what it finds")]

mod rotation;
mod verification;

#[expect(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "of the certificate matrix only two chains serve here"
)]
#[path = "../../../spire-adapter/tests/certificates/matrix.rs"]
mod matrix;

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use authd_tests::bench::median;
use authd_tests::skip;
use authd_tests::spire::{Options, Place, Spire};
use serde_json::{Value, json};
use spire_adapter::{
    DelegatedAgent, Entry, EntryClient, Outcome, Selector, Snapshot, SpiffeId, Subscription, TrustDomain,
    workload,
};

/// What was measured, how much, of what.
type Figure = (String, f64, &'static str);

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
    let size = if is_benchmark { Size::BENCHMARK } else { Size::TEST };
    let figures = runtime.block_on(measure(&size))?;
    for (name, value, unit) in &figures {
        println!("{name:<85} {value:>10.2} {unit}");
    }
    let lines: Vec<Value> = figures
        .iter()
        .map(|(name, value, unit)| {
            let value = (value * 100.0).round() / 100.0;
            json!({"name": name, "value": value, "unit": unit, "goal": null, "met": null})
        })
        .collect();
    if is_benchmark { authd_tests::bench::write("spire", &lines) } else { Ok(()) }
}

/// How much is measured.
struct Size {
    registrations: u32,
    identities: u32,
    /// Of these identities' SVIDs. SPIRE rotates at half of it, and ten seconds of backdating.
    ttl: Duration,
    rotating: Duration,
    /// Rounds of so many verifications.
    verifications: (u32, u32),
}

impl Size {
    const BENCHMARK: Self = Self {
        registrations: 20,
        identities: 1000,
        ttl: Duration::from_secs(60),
        rotating: Duration::from_secs(60),
        verifications: (30, 200),
    };
    const TEST: Self = Self {
        registrations: 1,
        identities: 20,
        ttl: Duration::from_secs(10),
        rotating: Duration::from_secs(6),
        verifications: (1, 10),
    };
}

async fn measure(size: &Size) -> Result<Vec<Figure>> {
    let mut rig = Rig::start().await?;
    let mut registered = Vec::new();
    for round in 0..size.registrations {
        registered.push(rig.until_usable(round).await?);
    }
    let sync = Options::new(rig.spire.trust_domain().clone(), &[]).sync.as_millis();
    let mut figures = vec![(
        format!("entry created to SVID usable, median, agent and server look every {sync} ms"),
        median(registered),
        "ms",
    )];
    let before = rotation::resident("self")?;
    let (took, subscriptions) = rig.many(size.identities, size.ttl).await?;
    let identities = size.identities;
    figures.push((format!("{identities} entries created to all SVIDs usable"), took, "ms"));
    let each = (rotation::resident("self")? - before) * 1024.0 / f64::from(identities);
    figures.push(("resident memory of client and test for each of these".to_owned(), each, "kB"));
    let agent = rig.spire.agent(NODE)?.pid();
    figures.extend(rotation::figures(&subscriptions, agent, size.rotating).await?);
    drop((subscriptions, rig));
    let (rounds, times) = size.verifications;
    figures.extend(verification::figures(rounds, times)?);
    Ok(figures)
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

    /// Milliseconds from the first request until the last of many is usable, and these.
    async fn many(&self, identities: u32, ttl: Duration) -> Result<(f64, Vec<Subscription>)> {
        let numbers = 10_000..10_000 + identities;
        let entry = |number| {
            let entry = self.entry(&format!("/identity/{number}"), selector(number))?;
            Ok(Entry { svid_ttl: Some(ttl), ..entry })
        };
        let entries = numbers.clone().map(entry).collect::<Result<Vec<_>>>()?;
        let subscriptions = numbers.map(|number| self.subscribe(number)).collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        self.create(&entries).await?;
        for subscription in &subscriptions {
            usable(subscription).await?;
        }
        Ok((milliseconds(began), subscriptions))
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
