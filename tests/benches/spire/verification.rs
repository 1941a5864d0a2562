//! What verifying a chain costs, next to go-spiffe: the same chains and bundle, in turns, from the bytes that TLS
//! hands over to the verdict.

use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};
use authd_tests::bench::median;
use authd_tests::gospiffe::GoSpiffe;
use authd_tests::skip;
use serde_json::json;
use spire_adapter::{Bundles, ExpectedPeer, peer_svid, verify_chain};

use crate::Figure;
use crate::matrix::{Authorities, Row};

const CHAINS: [(&str, &str); 2] = [("00 good", "one"), ("70 intermediate", "two")];

/// Of each chain ours where it is met first and where it is met again, theirs, and the ratio of the first to theirs,
/// each the median of the rounds' medians. Theirs verifies in full each time.
pub(crate) fn figures(rounds: u32, times: u32) -> Result<Vec<Figure>> {
    let authorities = Authorities::new();
    let (rows, bundles) = (authorities.rows(), authorities.bundles());
    let mut peer = skip::go_spiffe_available("bench_spire verification").then(GoSpiffe::start).transpose()?;
    let mut figures = Vec::new();
    for (name, length) in CHAINS {
        let row = rows.iter().find(|row| row.name == name).context("no such chain")?;
        let [mut ours, mut again, mut theirs, mut ratios] = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            // A bundle that is made anew has met nobody.
            let our = verification(row, times, || authorities.bundles())?;
            ours.push(our);
            again.push(verification(row, times, || bundles.clone())?);
            if let Some(peer) = &mut peer {
                let their = asked(peer, row, &bundles, times)?;
                theirs.push(their);
                ratios.push(our / their);
            }
        }
        let what = format!("verification of a chain of {length}, median");
        figures.push((what.clone(), median(ours), "us"));
        figures.push((format!("{what}, met again"), median(again), "us"));
        if peer.is_some() {
            figures.push((format!("{what}, by go-spiffe"), median(theirs), "us"));
            figures.push((format!("{what}, as multiple of go-spiffe's"), median(ratios), ""));
        }
    }
    Ok(figures)
}

/// Microseconds that one verification by such bundles takes here.
fn verification(row: &Row, times: u32, bundles: impl Fn() -> Bundles) -> Result<f64> {
    let expected = ExpectedPeer::Exact(peer_svid(&row.chain)?.spiffe_id);
    let mut took = Vec::new();
    for _ in 0..times {
        let bundles = bundles();
        let began = Instant::now();
        verify_chain(&row.chain, &bundles, &expected, SystemTime::now())?;
        took.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(took))
}

/// Microseconds that one takes with go-spiffe.
fn asked(peer: &mut GoSpiffe, row: &Row, bundles: &Bundles, times: u32) -> Result<f64> {
    let mut request = GoSpiffe::request("time", &row.chain, bundles);
    if let Some(request) = request.as_object_mut() {
        request.insert("Times".to_owned(), json!(times));
    }
    let answer = peer.ask(&request)?;
    let took = answer.get("Nanoseconds").and_then(serde_json::Value::as_f64);
    Ok(took.with_context(|| answer.to_string())? / 1e3)
}
