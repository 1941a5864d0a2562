//! Wall clocks of daemons that jump by hours, under traffic: NotAfter is wall time, and what has been reckoned from
//! it stays.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use authd_tests::issuer::{Kind, SVID_TTL};
use authd_tests::lab::Options;
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::wall_clock::WallClock;
use authd_tests::{StarWars, log, skip, wait};
use nix::sys::signal::Signal;

use super::stream::{POLICY, Stream};
use super::{BACK, entries, explained, state};

fn cluster(name: &str, svid_ttl: Duration) -> Result<(StarWars, WallClock)> {
    let mut scene = StarWars::issued_by(name, Options { rp_filter: 1, cni: None }, Kind::Embedded, svid_ttl)?;
    let clock = WallClock::new(&scene.lab)?;
    scene.write_manifest("both-ends.yaml", POLICY)?;
    scene.start_tunnels()?;
    scene.start_agents(&[])?;
    scene.settle()?;
    Ok((scene, clock))
}

#[test]
fn daemons_whose_clocks_jump_ahead_by_hours_cut_nothing_and_begin_nothing() {
    if !skip::lab_available("daemons_whose_clocks_jump_ahead_by_hours_cut_nothing_and_begin_nothing") {
        return;
    }
    let (mut scene, clock) = cluster("clock-ahead", SVID_TTL).unwrap();
    let (stream, ()) = Stream::during(&mut scene, Family::V4, |scene| {
        wait::pause(Duration::from_millis(500));
        clock.set(5)?;
        wait::pause(Duration::from_secs(5));
        ensure!(entries(scene)? == 2, "an entry has ended");
        for node in NODES {
            let metrics = scene.agent(node)?.metrics()?;
            ensure!(metrics.sum("authd_node_sessions", &[("state", "live")]) >= 1.0, "{node}: no session");
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(stream.lost().len(), 0, "of {}", stream.sent());
    for node in NODES {
        let log = scene.agent(node).unwrap().process().log().unwrap();
        assert!(!log::contains(&log, &[("event", "pair_ended")]), "{node}");
    }
    // What is to be proven anew has no SVID that is valid by that clock.
    scene.authctl("node1", &["auth", "flush"]).unwrap();
    assert!(scene.is_refused("tiefighter", Family::V4), "something has begun");
    assert!(scene.authenticated("node1", "tiefighter", "deathstar").unwrap().is_empty());
    let why = explained(&scene, "node1", &[]).unwrap();
    assert_ne!(state(&why, "local-svid"), "OK", "{why:#}");
    clock.set(0).unwrap();
    let lands = || scene.land("tiefighter", Family::V4, PATIENCE).ok();
    assert!(wait::until(BACK, lands).is_some(), "nothing flows with a clock that is right");
}

#[test]
fn daemons_whose_clocks_are_set_back_by_hours_prolong_nothing() {
    if !skip::lab_available("daemons_whose_clocks_are_set_back_by_hours_prolong_nothing") {
        return;
    }
    let ttl = Duration::from_secs(12);
    let (mut scene, clock) = cluster("clock-back", ttl).unwrap();
    let (stream, (set, gone)) = Stream::during(&mut scene, Family::V6, |scene| {
        wait::until(BACK, || (entries(scene).ok()? == 2).then_some(())).context("no entries")?;
        // From now on nothing is renewed.
        scene.issuer.signal_agent("node1", Signal::SIGSTOP)?;
        clock.set(-5)?;
        let set = Instant::now();
        let gone = wait::until(ttl + Duration::from_secs(1), || (entries(scene).ok()? == 0).then_some(()));
        gone.context("entries outlive their SVIDs")?;
        let gone = Instant::now();
        wait::pause(Duration::from_secs(1));
        scene.issuer.signal_agent("node1", Signal::SIGCONT)?;
        Ok((set, gone))
    })
    .unwrap();
    let last = stream.last_before(gone + Duration::from_secs(1)).expect("nothing came before");
    assert!(last > set, "the step itself has cut it");
    assert!(last < gone + Duration::from_millis(500), "it goes on for {:?}", last - gone);
    for node in NODES {
        let log = scene.agent(node).unwrap().process().log().unwrap();
        assert!(log::contains(&log, &[("event", "pair_ended"), ("cause", "expired")]), "{node}");
    }
}
