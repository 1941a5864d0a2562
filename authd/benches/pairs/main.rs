//! What it takes to authenticate all pairs of the identities of two nodes, by handshakes and over the session. Part of
//! `make bench-auth`; without `--bench` it runs once with few of them, as a test.
//!
//! Before that, pairs of strangers beside handshakes of Go's. Both nodes are in this process, with all of the daemon that has to do with it but the kernel's map: SVIDs of a CA,
//! their session, the driver and its machine. Time and processor time are those of both.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark says what it finds, and ends when it can't go on"
)]

mod node;
mod strangers;

use std::env;
use std::path::Path;
use std::time::{Duration, Instant};

use authd::peer::PairProof;
use nix::time::{ClockId, clock_gettime};
use node::{Node, two};
use serde_json::{Value, json};
use tokio::runtime::Builder;

/// Requests that are under way at a time: as many as a daemon takes.
const WINDOW: usize = 1000;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(3600);

fn main() {
    let is_benchmark = env::args().any(|argument| argument == "--bench");
    let ways = [("session", PairProof::Session), ("handshake", PairProof::Handshake)];
    let sizes: &[u32] = if is_benchmark { &[10, 30, 100, 300] } else { &[3] };
    let mut figures = strangers::compare(is_benchmark);
    for size in sizes {
        for (word, way) in ways {
            // The small ones are over too soon to say much once.
            let rounds = if is_benchmark { (100 / size).max(1) } else { 1 };
            let mut found: Vec<Found> = (0..rounds).map(|_| measure(*size, way)).collect();
            found.sort_by_key(|found| found.processor);
            figures.extend(found.get(found.len() / 2).into_iter().flat_map(|found| found.say(word, *size)));
        }
    }
    if is_benchmark {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("pairs.json"), serde_json::to_vec_pretty(&figures).unwrap()).unwrap();
    }
}

/// What one run found.
struct Found {
    elapsed: Duration,
    processor: Duration,
    proofs: u64,
    failures: u64,
    /// Bytes a pair and node, of which the map that stands in for the kernel's has some.
    memory: f64,
}

impl Found {
    fn say(&self, way: &str, size: u32) -> [Value; 5] {
        let pairs = size * size;
        let each = self.processor.as_secs_f64() * 1e6 / f64::from(pairs);
        println!(
            "{way:<10} {size:>4} x {size:<4} {:>8.2} s {:>8.2} s of a core {each:>8.1} us and {:>6.0} bytes a pair {:>6} proofs {:>6} failures",
            self.elapsed.as_secs_f64(),
            self.processor.as_secs_f64(),
            self.memory,
            self.proofs,
            self.failures,
        );
        let named = |what: &str, value: f64, unit: &str| {
            let name = format!("{what}, {size} + {size} identities, by {way}");
            json!({ "name": name, "value": value, "unit": unit, "goal": null, "met": null })
        };
        [
            named("all pairs", self.elapsed.as_secs_f64(), "s"),
            named("processor time of all pairs", self.processor.as_secs_f64(), "s"),
            named("processor time of a pair", each, "us"),
            named("memory of a pair on a node", self.memory, "bytes"),
            named("proofs", self.proofs as f64, ""),
        ]
    }
}

/// Authenticates each of `size` identities of one node with each of as many of the other.
fn measure(size: u32, way: PairProof) -> Found {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, server) = two(size, way).await;
        let resident_before = resident();
        let (began, before) = (Instant::now(), processor_time());
        let all = tokio::time::timeout(PATIENCE, authenticate(&client, &server, size)).await;
        all.expect("all pairs in time");
        let (elapsed, processor) = (began.elapsed(), processor_time() - before);
        let (proofs, failures) = (client.proofs() + server.proofs(), client.failures());
        let memory = (resident() - resident_before) / f64::from(2 * size * size);
        client.stop().await;
        server.stop().await;
        Found { elapsed, processor, proofs, failures, memory }
    })
}

/// Asks for all pairs, again for those that have not come, until both nodes have them all.
async fn authenticate(client: &Node, server: &Node, size: u32) {
    let all: Vec<_> = Node::pairs(size).collect();
    loop {
        let missing: Vec<_> = all.iter().filter(|key| !client.has(**key)).collect();
        if missing.is_empty() && server.entries() == all.len() {
            return;
        }
        let standing = client.entries();
        for (asked, key) in missing.iter().enumerate() {
            let patience = Instant::now() + Duration::from_secs(5);
            let open = || asked.saturating_sub(client.entries().saturating_sub(standing));
            while (open() > WINDOW || !client.ask(**key)) && Instant::now() < patience {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        // Looking costs as well: seldom, for what has failed.
        let patience = Instant::now() + Duration::from_secs(1);
        while client.entries() + server.entries() < 2 * all.len() && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Bytes of this process that are in memory.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
}

fn processor_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap())
}
