//! What it takes to authenticate pairs of identities that neither node has met, as the daemon does by default: over
//! the session, each identity by one proof. Beside it, by turns, handshakes of Go's `crypto/tls` with go-spiffe's
//! verifier, one for each pair: as many signatures and verifications of the same kinds. Both on one core, both ends
//! in one process; ours with the driver and its machine, which Go has no match for.

#[path = "../../../spire-adapter/tests/certificates/matrix.rs"]
#[expect(dead_code, clippy::indexing_slicing, reason = "the certificate tests use the rest, and are tests")]
mod matrix;

use std::time::{Duration, Instant};

use authd::peer::PairProof;
use authd_tests::bench::median;
use authd_tests::gospiffe::Handshakes;
use authd_tests::skip;
use matrix::Authorities;
use serde_json::{Value, json};
use tokio::runtime::Builder;

use super::node::{Node, two};
use super::{PATIENCE, processor_time};

/// How many times as many pairs we authenticate on one core.
const GOAL: f64 = 2.0;

/// The figures; none without Go.
pub(crate) fn compare(is_benchmark: bool) -> Vec<Value> {
    if !skip::go_spiffe_available("bench_pairs_of_strangers") {
        return Vec::new();
    }
    let (rounds, pairs) = if is_benchmark { (15, 200) } else { (1, 3) };
    let mut go = go(pairs);
    let turns: Vec<[f64; 2]> =
        (0..rounds).map(|_| [over_session(pairs), go.microseconds().unwrap()]).collect();
    let ours = median(turns.iter().map(|[ours, _]| *ours));
    let theirs = median(turns.iter().map(|[_, theirs]| *theirs));
    let ratio = median(turns.iter().map(|[ours, theirs]| theirs / ours));
    let met = ratio >= GOAL;
    println!(
        "a pair of strangers over the session {ours:.0} us, a handshake in Go {theirs:.0} us: {ratio:.2} {}",
        if met { "met" } else { "NOT MET" }
    );
    let line = |name: &str, value: f64, unit: &str, goal: Option<(String, bool)>| {
        let (goal, met) = goal.unzip();
        json!({ "name": name, "value": value, "unit": unit, "goal": goal, "met": met })
    };
    vec![
        line("processor time of a pair of strangers over the session, both ends", ours, "us", None),
        line("a handshake in Go, in turns with it", theirs, "us", None),
        line(
            "pairs of strangers a core over handshakes in Go",
            ratio,
            "ratio",
            Some((format!(">= {GOAL}"), met)),
        ),
    ]
}

/// Processor time of a pair, in microseconds.
fn over_session(pairs: u32) -> f64 {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, server) = two(pairs, PairProof::Session).await;
        let before = processor_time();
        for number in 0..pairs {
            assert!(client.ask(Node::pair(number, number)), "no room to ask for a pair");
        }
        let all = usize::try_from(pairs).unwrap();
        let patience = Instant::now() + PATIENCE;
        while client.entries() < all || server.entries() < all {
            assert!(Instant::now() < patience, "pairs that never authenticate");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let spent = processor_time() - before;
        assert_eq!(client.failures(), 0);
        assert_eq!(client.proofs() + server.proofs(), u64::from(2 * pairs), "each identity once");
        client.stop().await;
        server.stop().await;
        spent.as_secs_f64() * 1e6 / f64::from(pairs)
    })
}

/// Go's handshakes, so many at a time.
fn go(times: u32) -> Handshakes {
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let good = rows.first().expect("the matrix has a good row");
    let times = usize::try_from(times).unwrap();
    Handshakes::start(&good.chain, good.key.serialized_der(), &authorities.bundles(), times).unwrap()
}
