//! Authentication between two nodes from its beginning to its end, with real packets: revoked, rotated, cut off,
//! refused, and explained.

#[path = "auth/clock.rs"]
mod clock;
#[path = "auth/crowd.rs"]
mod crowd;
#[path = "auth/stream.rs"]
mod stream;
#[path = "auth/tried.rs"]
mod tried;

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use authd_tests::issuer::Kind;
use authd_tests::lab::Options;
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{StarWars, log, skip, wait};
use serde_json::Value;
use stream::{POLICY, Stream};

const PAIR: [(&str, &str, &str); 2] =
    [("node1", "tiefighter", "deathstar"), ("node2", "deathstar", "tiefighter")];
/// How soon what is revoked has to be cut.
const CUT: Duration = Duration::from_secs(1);
/// How soon traffic flows again when what was missing is back: the agent's word, a session, a handshake.
const BACK: Duration = Duration::from_secs(15);

/// The cluster in which tiefighter and deathstar have to authenticate at both ends.
fn cluster(name: &str, kind: Kind, svid_ttl: Duration) -> Result<StarWars> {
    let mut scene = StarWars::issued_by(name, Options { rp_filter: 1, cni: None }, kind, svid_ttl)?;
    scene.write_manifest("both-ends.yaml", POLICY)?;
    scene.start_tunnels()?;
    scene.start_agents(&[])?;
    scene.settle()?;
    Ok(scene)
}

fn settled(name: &str) -> Result<StarWars> {
    cluster(name, Kind::Embedded, authd_tests::issuer::SVID_TTL)
}

/// What `authctl auth explain` says on a node.
fn explained(scene: &StarWars, node: &str, more: &[&str]) -> Result<Value> {
    let ends = ["auth", "explain", "default/tiefighter", "default/deathstar"];
    scene.authctl_json(node, &[&ends, more].concat())
}

fn state<'a>(explained: &'a Value, check: &str) -> &'a str {
    let checks = explained.pointer("/paths/0/checks").and_then(Value::as_array).into_iter().flatten();
    let ends = explained.get("checks").and_then(Value::as_array).into_iter().flatten();
    let mut found = ends.chain(checks).filter(|one| one.get("name").is_some_and(|name| name == check));
    found.next().and_then(|one| one.get("state")?.as_str()).unwrap_or("none")
}

/// The pair's entries on both nodes.
fn entries(scene: &StarWars) -> Result<usize> {
    PAIR.iter().map(|(node, here, there)| Ok(scene.authenticated(node, here, there)?.len())).sum()
}

/// Whether a node's log says by now that an entry has ended for one of these causes.
fn ended(scene: &mut StarWars, node: &str, causes: &[&str]) -> Result<bool> {
    let log = scene.agent(node)?.process().log()?;
    let line = [("target", "authd::audit"), ("event", "pair_ended")];
    Ok(causes.iter().any(|cause| log::contains(&log, &[&line[..], &[("cause", cause)]].concat())))
}

/// Does something that revokes the pair, sees both ends cut, takes it back, and sees traffic flow again.
fn cuts_and_comes_back(
    scene: &mut StarWars,
    causes: [&[&str]; 2],
    revoke: impl FnOnce(&StarWars) -> Result<()>,
    restore: impl FnOnce(&StarWars) -> Result<()>,
) -> Result<()> {
    let (stream, (revoked, restored)) = Stream::during(scene, Family::V6, |scene| {
        wait::pause(Duration::from_millis(300));
        let begun = Instant::now();
        revoke(scene)?;
        let revoked = Instant::now();
        let gone = wait::until(CUT, || (entries(scene).ok()? == 0).then_some(()));
        ensure!(gone.is_some(), "entries are left: {:?}", entries(scene));
        for (node, causes) in NODES.into_iter().zip(causes) {
            let line = wait::until(PATIENCE, || ended(scene, node, causes).ok()?.then_some(()));
            ensure!(line.is_some(), "{node} has no line of its end for {causes:?}");
            ensure!(explained(scene, node, &[])?.get("outcome").is_none_or(|outcome| outcome != "TALKS"));
        }
        wait::pause(CUT);
        let restored = Instant::now();
        restore(scene)?;
        wait::until(BACK, || (entries(scene).ok()? == 2).then_some(())).context("no entries come back")?;
        // A datagram that asks, and its handshake.
        wait::pause(Duration::from_secs(1));
        Ok(((begun, revoked), restored))
    })?;
    let (begun, done) = revoked;
    let last = stream.last_before(restored).context("nothing came before")?;
    ensure!(last > begun, "it stopped before it was revoked");
    ensure!(last < done + CUT, "it goes on for {:?}", last - done);
    ensure!(stream.first_after(restored).is_some(), "it does not come back");
    writeln!(std::io::stdout(), "cut {:?} after the word of it", last.saturating_duration_since(done))?;
    Ok(())
}

#[test]
fn a_revoked_identity_is_cut_at_both_ends_within_a_second() {
    if !skip::lab_available("a_revoked_identity_is_cut_at_both_ends_within_a_second") {
        return;
    }
    let mut scene = settled("revoke").unwrap();
    let identity = scene.manifests.identity_of("tiefighter").unwrap().to_string();
    let directory = scene.lab.inside("cluster").to_str().unwrap().to_owned();
    let file = format!("cluster/authd-revocation-identity-{identity}.json");
    let revoke = ["revoke", &directory, "--identity", &identity, "--reason", "stolen"];
    cuts_and_comes_back(
        &mut scene,
        // Both read the revocation; the first to act on it tells the other, and its node vouches for it no more.
        [&["not_desired", "peer_revoked"], &["not_desired", "peer_revoked", "not_announced"]],
        |scene| {
            scene.authctl("node1", &revoke)?;
            let seen =
                || (state(&explained(scene, "node2", &[]).ok()?, "revocation") == "FAILED").then_some(());
            wait::until(CUT, seen).context("node2 does not explain it").map(drop)
        },
        |scene| Ok(fs::remove_file(scene.lab.outside(&file))?),
    )
    .unwrap();
}

#[test]
fn a_withdrawn_svid_is_cut_at_both_ends_within_a_second() {
    if !skip::lab_available("a_withdrawn_svid_is_cut_at_both_ends_within_a_second") {
        return;
    }
    let mut scene = settled("withdraw").unwrap();
    let identity = scene.manifests.identity_of("tiefighter").unwrap();
    cuts_and_comes_back(
        &mut scene,
        // Whichever word of it comes first.
        [&["withdrawn"], &["not_announced", "peer_revoked"]],
        |scene| scene.registry.withdraw(identity).map(drop),
        |scene| scene.registry.add_identity(identity, "node1"),
    )
    .unwrap();
}

#[test]
fn a_gap_that_is_no_revocation_costs_no_packet() {
    if !skip::lab_available("a_gap_that_is_no_revocation_costs_no_packet") {
        return;
    }
    let mut scene = settled("gap").unwrap();
    let identity = scene.manifests.identity_of("tiefighter").unwrap();
    let (stream, ()) = Stream::during(&mut scene, Family::V4, |scene| {
        for _ in 0..10 {
            scene.registry.withdraw(identity)?;
            scene.registry.add_identity(identity, "node1")?;
            wait::pause(Duration::from_millis(200));
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(stream.lost().len(), 0, "of {}", stream.sent());
    assert!(!ended(&mut scene, "node1", &["withdrawn"]).unwrap());
}

/// How long SVIDs rotate under traffic; minutes by hand.
fn rotation() -> Duration {
    let seconds = std::env::var("AUTHD_ROTATION_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(20))
}

/// SVIDs of six seconds, renewed every three: entries and sessions with them.
fn rotates_without_loss(name: &str, kind: Kind) -> Result<()> {
    let mut scene = cluster(name, kind, Duration::from_secs(6))?;
    let mut connection = scene.land("tiefighter", Family::V6, PATIENCE)?;
    let (stream, ()) = Stream::during(&mut scene, Family::V4, |scene| {
        let begun = Instant::now();
        while begun.elapsed() < rotation() {
            scene.land_over(&mut connection, PATIENCE)?;
            drop(scene.land("tiefighter", Family::V4, PATIENCE)?);
            wait::pause(Duration::from_millis(100));
        }
        Ok(())
    })?;
    if !stream.lost().is_empty() {
        let dropped: Result<Vec<String>> =
            NODES.into_iter().map(|node| scene.authctl(node, &["drops"])).collect();
        bail!("{}; dropped by the nodes:\n{}", stream.gaps(), dropped?.join("\n"));
    }
    let renewed = |log: &str| {
        let of_event = |line: &Value| line.get("event").is_some_and(|event| event == "pair_renewed");
        log::lines(log).filter(of_event).count()
    };
    for node in NODES {
        let log = scene.agent(node)?.process().log()?;
        let times = rotation().as_secs() / 6;
        ensure!(u64::try_from(renewed(&log))? >= times, "{node}: renewed {} times", renewed(&log));
        ensure!(!log::contains(&log, &[("event", "pair_ended")]), "{node}: an entry has ended");
        writeln!(
            std::io::stdout(),
            "{node}: renewed {} times, {} datagrams, none lost",
            renewed(&log),
            stream.sent()
        )?;
    }
    Ok(())
}

#[test]
fn svids_that_rotate_every_few_seconds_cost_no_packet() {
    if skip::lab_available("svids_that_rotate_every_few_seconds_cost_no_packet") {
        rotates_without_loss("rotate", Kind::Embedded).unwrap();
    }
}

#[test]
fn svids_of_real_spire_that_rotate_every_few_seconds_cost_no_packet() {
    let name = "svids_of_real_spire_that_rotate_every_few_seconds_cost_no_packet";
    if skip::lab_available(name) && skip::spire_available(name) {
        rotates_without_loss("rotate-spire", Kind::Real).unwrap();
    }
}

#[test]
fn a_partition_ends_nothing_and_heals() {
    if !skip::lab_available("a_partition_ends_nothing_and_heals") {
        return;
    }
    let mut scene = settled("partition").unwrap();
    let port = |scene: &StarWars, state: &str| {
        scene.lab.exec(["bridge", "link", "set", "dev", "port-2", "state", state]).map(drop)
    };
    let (stream, healed) = Stream::during(&mut scene, Family::V4, |scene| {
        port(scene, "0")?;
        for node in NODES {
            let lost = || {
                let live = scene.agent(node).ok()?.metrics().ok()?;
                (live.sum("authd_node_sessions", &[("state", "live")]) < 1.0).then_some(())
            };
            wait::until(PATIENCE, lost).with_context(|| format!("{node} does not notice"))?;
        }
        ensure!(entries(scene)? == 2, "a lost session proves nothing against an SVID");
        let explained = explained(scene, "node1", &["--port", "9000/UDP"])?;
        ensure!(state(&explained, "node-session") == "WAITING", "{explained:#}");
        let healed = Instant::now();
        port(scene, "3")?;
        scene.settle()?;
        wait::pause(Duration::from_millis(500));
        Ok(healed)
    })
    .unwrap();
    let back = stream.first_after(healed).expect("nothing flows when it has healed");
    assert!(back < healed + Duration::from_secs(2), "{:?}", back - healed);
    for node in NODES {
        let log = scene.agent(node).unwrap().process().log().unwrap();
        assert!(!log::contains(&log, &[("event", "pair_ended")]), "{node}");
        assert!(log::contains(&log, &[("event", "session_ended")]), "{node}");
    }
}

const ALWAYS_FAIL: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: always-fail, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
    - authentication: {mode: test-always-fail}
      fromEndpoints: [{matchLabels: {org: empire}}]
      toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]
";

#[test]
fn what_is_to_fail_always_fails_and_says_why() {
    if !skip::lab_available("what_is_to_fail_always_fails_and_says_why") {
        return;
    }
    let mut scene = StarWars::new("always-fail").unwrap();
    scene.write_manifest("policy.yaml", ALWAYS_FAIL).unwrap();
    scene.start_tunnels().unwrap();
    scene.start_agents(&[]).unwrap();
    scene.settle().unwrap();
    for pod in ["tiefighter", "stormtrooper"] {
        assert!(scene.is_refused(pod, Family::V4), "{pod}");
    }
    assert!(scene.counted("node2", "DROPPED", "AUTH_REQUIRED").unwrap() >= 2.0);
    assert_eq!(scene.counted("node2", "HELD", "").unwrap(), 0.0, "nothing is worth waiting for");
    let metrics = scene.agent("node2").unwrap().metrics().unwrap();
    let pairs = ["client", "server", "local"];
    let handshakes = pairs.map(|side| metrics.sum("authd_handshakes_total", &[("side", side)]));
    assert_eq!(handshakes, [0.0; 3], "nobody tries");
    for node in NODES {
        let explained = explained(&scene, node, &["--port", "80/TCP"]).unwrap();
        assert_eq!((&explained["outcome"], state(&explained, "policy")), (&"BLOCKED".into(), "FAILED"));
        assert!(explained["wayOut"].as_str().unwrap().contains("authentication.mode"), "{explained:#}");
    }
}

#[test]
fn what_is_missing_is_explained_with_and_without_a_daemon() {
    if !skip::lab_available("what_is_missing_is_explained_with_and_without_a_daemon") {
        return;
    }
    let mut scene = settled("explain").unwrap();
    let before = explained(&scene, "node1", &["--port", "80/TCP"]).unwrap();
    assert_eq!((&before["outcome"], state(&before, "entry")), (&"WAITS".into(), "WAITING"), "{before:#}");
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    for node in NODES {
        let talks = explained(&scene, node, &["--port", "80/TCP"]).unwrap();
        assert_eq!((&talks["outcome"], &talks["node"]), (&"TALKS".into(), &node.into()), "{talks:#}");
        for check in
            ["policy", "revocation", "node-session", "preshared-key", "local-svid", "remote-svid", "entry"]
        {
            assert_eq!(state(&talks, check), "OK", "{check}: {talks:#}");
        }
    }
    let metrics = scene.agent("node2").unwrap().metrics().unwrap();
    let well = [("side", "server"), ("result", "success")];
    assert!(metrics.sum("authd_handshakes_total", &well) >= 1.0);
    for name in [
        "authd_handshake_latency_seconds_bucket",
        "authd_handshakes_running",
        "authd_handshakes_waiting",
        "authd_auth_entries",
        "authd_auth_requests_dropped_total",
        "authd_svid_expiry_seconds",
        "authd_node_svid_expiry_seconds",
        "authd_held_packets",
        "authd_hold_time_seconds_bucket",
    ] {
        assert!(metrics.has(name, &[]), "{name}");
    }
    let denied =
        scene.authctl("node2", &["auth", "explain", "xwing", "deathstar", "--port", "80/TCP"]).unwrap();
    assert!(denied.contains("They can't talk. Policy: denied"), "{denied}");
    let local = scene.authctl("node2", &["auth", "explain", "stormtrooper", "deathstar"]).unwrap();
    assert!(local.contains("both here") && local.contains("They can't talk yet. Handshake"), "{local}");
    let elsewhere = scene.authctl("node1", &["auth", "explain", "stormtrooper", "deathstar"]).unwrap();
    assert!(elsewhere.contains("Way out: ask on node2"), "{elsewhere}");

    let identity = scene.manifests.identity_of("tiefighter").unwrap();
    scene.registry.withdraw(identity).unwrap();
    let withdrawn = || {
        let explained = explained(&scene, "node1", &[]).ok()?;
        (state(&explained, "local-svid") == "FAILED" && state(&explained, "entry") != "OK")
            .then_some(explained)
    };
    let (withdrawn, _) = wait::until(PATIENCE, withdrawn).unwrap();
    assert!(withdrawn["wayOut"].as_str().unwrap().contains("register"), "{withdrawn:#}");
    scene.registry.add_identity(identity, "node1").unwrap();
    drop(scene.land("tiefighter", Family::V6, PATIENCE).unwrap());

    scene.agent("node1").unwrap().kill9().unwrap();
    let (from, to) = (format!("identity:{identity}"), scene.target(Family::V4).unwrap().ip());
    let dead = scene.authctl_json("node1", &["auth", "explain", &from, &format!("ip:{to}")]).unwrap();
    assert_eq!((&dead["source"], &dead["outcome"]), (&"pinned maps".into(), &"TALKS".into()), "{dead:#}");
    assert_eq!((state(&dead, "entry"), state(&dead, "node-session")), ("OK", "OK"), "{dead:#}");
    let text = scene.authctl("node1", &["auth", "explain", "identity:2", &from]).unwrap();
    assert!(text.contains("has no SVID"), "{text}");
}

#[test]
fn what_would_fail_is_tried_and_reported_while_policy_is_observed() {
    if !skip::lab_available("what_would_fail_is_tried_and_reported_while_policy_is_observed") {
        return;
    }
    let mut scene = StarWars::settled("would-fail", &["--policy-mode", "observe"]).unwrap();
    let identity = scene.manifests.identity_of("tiefighter").unwrap();
    scene.registry.withdraw(identity).unwrap();
    let withdrawn = || {
        let explained = explained(&scene, "node1", &["--port", "80/TCP"]).ok()?;
        (state(&explained, "local-svid") == "FAILED").then_some(explained)
    };
    assert!(wait::until(PATIENCE, withdrawn).is_some());
    for family in Family::ALL {
        drop(scene.land("tiefighter", family, PATIENCE).unwrap());
    }
    let options = ["--verdict", "AUDIT", "--reason", "AUTH_REQUIRED", "--from-pod", "default/tiefighter"];
    scene.wait_flows("node2", &options, |flows| !flows.is_empty()).unwrap();
    let asked = || {
        let explained = explained(&scene, "node2", &["--port", "80/TCP"]).ok()?;
        (state(&explained, "remote-svid") == "FAILED" && state(&explained, "entry") == "WAITING")
            .then_some(())
    };
    assert!(wait::until(PATIENCE, asked).is_some(), "{:#}", explained(&scene, "node2", &[]).unwrap());
    assert!(scene.counted("node2", "AUDIT", "AUTH_REQUIRED").unwrap() >= 2.0);
}
