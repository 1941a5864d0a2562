//! What a mutual handshake costs, beside Go's `crypto/tls` with go-spiffe's verifier: the same SVIDs, the same
//! key exchange, both ends in one process on one core, by turns. Go verifies each chain in full each time; ours is
//! given both between ends that meet for the first time, and between such as have met before. Part of `make bench-auth`; without `--bench`
//! it runs once and briefly, as a test.

#![expect(clippy::print_stdout, reason = "a benchmark says what it finds")]

#[path = "../../../spire-adapter/tests/certificates/matrix.rs"]
#[expect(
    dead_code,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "the certificate tests use the rest, and are tests"
)]
mod matrix;
mod ours;

use std::env;

use anyhow::{Context, Result};
use authd_tests::bench::{self, median};
use authd_tests::gospiffe::Handshakes;
use authd_tests::skip;
use matrix::Authorities;
use ours::Ours;
use serde_json::{Value, json};

/// How many times as many handshakes we do on one core.
const GOAL: f64 = 2.0;

fn main() -> Result<()> {
    if !skip::go_spiffe_available("bench_handshakes") {
        return Ok(());
    }
    let is_benchmark = env::args().any(|argument| argument == "--bench");
    let (rounds, times) = if is_benchmark { (15, 200) } else { (1, 5) };
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let good = rows.first().context("the matrix has a good row")?;
    let bundles = authorities.bundles();
    let mut go = Handshakes::start(&good.chain, good.key.serialized_der(), &bundles, times)?;
    let ours = Ours::new(good.chain.clone(), good.key.serialized_der(), bundles)?;
    let (mut first, mut again, mut them) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        first.push(ours.meeting_first(times)?);
        again.push(ours.meeting_again(times)?);
        them.push(go.microseconds()?);
    }
    let ratio = |us: &[f64]| median(us.iter().zip(&them).map(|(us, them)| them / us));
    let (to_first, to_again) = (ratio(&first), ratio(&again));
    let lines = [
        line("processor time of a handshake, both ends, first meeting", median(first), "us", None),
        line("the same when they meet again", median(again), "us", None),
        line("the same in Go", median(them.iter().copied()), "us", None),
        line("handshakes a core over those of Go, first meeting", to_first, "ratio", Some(GOAL)),
        line("the same when they meet again", to_again, "ratio", Some(GOAL)),
    ];
    if is_benchmark {
        bench::write("handshakes", &lines)?;
    }
    Ok(())
}

fn line(name: &str, value: f64, unit: &str, at_least: Option<f64>) -> Value {
    let met = at_least.map(|goal| value >= goal);
    println!(
        "{name:<55} {value:>8.2} {unit:<6} {}",
        met.map_or("", |met| if met { "met" } else { "NOT MET" })
    );
    let value = (value * 100.0).round() / 100.0;
    json!({"name": name, "value": value, "unit": unit, "goal": at_least.map(|goal| format!(">= {goal}")), "met": met})
}
