//! From facts to the sentence that people read.

use super::*;
use crate::api::v1::{AuthCheck, AuthOutcome, AuthPath, CheckState};

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds: 1_700_000_000 + seconds, nanos: 0 }
}

fn end(identity: u32) -> v1::TraceEnd {
    v1::TraceEnd { identity, ..v1::TraceEnd::default() }
}

fn traced(verdict: &str, authentication: &str) -> Policy {
    Policy::Traced(Box::new(v1::PolicyTrace {
        verdict: verdict.to_owned(),
        authentication: authentication.to_owned(),
        ..v1::PolicyTrace::default()
    }))
}

fn svid() -> Svid {
    Svid::Available { spiffe_id: "spiffe://e/identity/256".to_owned(), expires: at(60) }
}

fn up() -> Session {
    let preshared_since = Some(at(-10));
    Session::Up { since: at(-60), expires: at(60), group: "X25519MLKEM768".to_owned(), preshared_since }
}

fn stands() -> Entry {
    Entry::There { expires: at(60), epochs: (1, 1), valid: true, draining: false }
}

/// All is well.
fn path() -> Path {
    Path {
        key: AuthKey { local: 256, remote: 300, node: 2, auth_type: 1, pad: 0 },
        node: "n2".to_owned(),
        local_svid: svid(),
        remote_svid: Svid::Announced,
        session: up(),
        handshake: Handshake::Done("requested"),
        entry: stands(),
        held: Some((0, None)),
    }
}

fn facts(policy: Policy, path: Path) -> Facts {
    Facts {
        node: "n1".to_owned(),
        from: end(256),
        to: end(300),
        port: "80/TCP".to_owned(),
        policy,
        revoked: Vec::new(),
        runs_on: vec!["n1".to_owned(), "n2".to_owned()],
        paths: vec![path],
    }
}

fn required(path: Path) -> v1::AuthExplanation {
    explain(facts(traced("allowed", "required"), path))
}

/// Outcome, and which check it is about.
fn concluded(explanation: &v1::AuthExplanation) -> (AuthOutcome, &str) {
    let about = explanation.reason.split(". ").nth(1).and_then(|rest| rest.split(':').next());
    (explanation.outcome(), about.unwrap_or_default())
}

#[test]
fn a_pair_with_an_entry_talks() {
    let explanation = required(path());
    assert_eq!(explanation.outcome(), AuthOutcome::Talks);
    assert_eq!(
        (explanation.reason.as_str(), explanation.way_out.as_str()),
        ("They can talk: they are authenticated.", "")
    );
    assert!(explanation.paths[0].checks.iter().all(|check| check.state() == CheckState::Ok));
}

#[test]
fn what_is_missing_first_is_named_with_the_way_out() {
    use AuthOutcome::{Blocked, Waits};
    let missing = |change: fn(&mut Path)| {
        let mut path = Path { handshake: Handshake::Asked, entry: Entry::None, ..path() };
        change(&mut path);
        required(path)
    };
    let failed = |reason| Handshake::Failed { failures: 3, reason, at: at(-2), retry: Some(at(1)) };
    let pending =
        || Svid::Pending { spiffe_id: "spiffe://e/identity/256".to_owned(), problem: String::new() };
    let lost = Session::Lost { trouble: None, tunnel_until: at(-1), over: true };
    let cases: [(v1::AuthExplanation, (AuthOutcome, &str), &str); 9] = [
        (
            missing(|path| path.session = Session::None { trouble: Some(("refused".to_owned(), at(-1))) }),
            (Blocked, "Node session"),
            "4250/tcp",
        ),
        (required(Path { session: lost, ..path() }), (Blocked, "Node session"), "4250/tcp"),
        (
            missing(|path| {
                path.local_svid =
                    Svid::Pending { spiffe_id: "spiffe://e/x".to_owned(), problem: String::new() }
            }),
            (Waits, "SVID here"),
            "selector authd:identity:256",
        ),
        (
            required(Path {
                remote_svid: Svid::NotAnnounced,
                entry: Entry::None,
                handshake: Handshake::Asked,
                ..path()
            }),
            (Blocked, "SVID there"),
            "svid list",
        ),
        (
            required(Path {
                local_svid: Svid::Withdrawn("spiffe://e/x".to_owned()),
                entry: Entry::None,
                handshake: Handshake::Asked,
                ..path()
            }),
            (Blocked, "SVID here"),
            "register",
        ),
        (
            required(Path { handshake: failed("certificate"), entry: Entry::None, ..path() }),
            (Blocked, "Handshake"),
            "bundle list",
        ),
        (missing(|path| path.handshake = Handshake::NotAsked), (Waits, "Handshake"), ""),
        (missing(|path| path.handshake = Handshake::NotDesired), (Blocked, "Handshake"), "cluster state"),
        (missing(|path| path.handshake = Handshake::NoDaemon), (Blocked, "Handshake"), "start authd"),
    ];
    for (explanation, expected, way_out) in cases {
        assert_eq!(concluded(&explanation), expected, "{}", explanation.reason);
        assert!(explanation.way_out.contains(way_out), "{}: {}", explanation.reason, explanation.way_out);
    }
    let waits =
        required(Path { local_svid: pending(), handshake: Handshake::Asked, entry: Entry::None, ..path() });
    assert!(waits.reason.contains("SVID_PENDING"), "{}", waits.reason);
    // What has failed says more than what waits for it.
    let both =
        required(Path { local_svid: pending(), handshake: failed("no_svid"), entry: Entry::None, ..path() });
    assert_eq!(concluded(&both), (Blocked, "Handshake"));
}

#[test]
fn every_reason_of_a_failure_has_a_sentence_of_its_own() {
    for reason in [
        "no_svid",
        "no_session",
        "unknown_identity",
        "not_desired",
        "not_announced",
        "timeout",
        "certificate",
        "tls",
        "not_bound",
        "overtaken",
        "full",
    ] {
        let handshake = Handshake::Failed { failures: 1, reason, at: at(0), retry: None };
        let explanation = required(Path { handshake, entry: Entry::None, ..path() });
        assert!(
            !explanation.reason.contains("it failed (") && !explanation.way_out.is_empty(),
            "{}",
            explanation.reason
        );
    }
}

#[test]
fn what_stands_passes_although_the_next_would_fail() {
    let lost =
        Session::Lost { trouble: Some(("silence".to_owned(), at(-5))), tunnel_until: at(3600), over: false };
    let explanation = required(Path { session: lost, ..path() });
    assert_eq!(explanation.outcome(), AuthOutcome::Talks);
    assert!(explanation.reason.contains("may not last") && explanation.reason.contains("silence"));
}

#[test]
fn a_tunnel_without_its_key_carries_nothing() {
    let group = "X25519MLKEM768".to_owned();
    let session = Session::Up { since: at(-60), expires: at(60), group, preshared_since: None };
    assert_eq!(concluded(&required(Path { session, ..path() })), (AuthOutcome::Waits, "Pre-shared key"));
}

#[test]
fn policy_comes_first() {
    let denied = explain(facts(traced("denied", "disabled"), path()));
    assert_eq!(concluded(&denied), (AuthOutcome::Blocked, "Policy"));
    assert!(denied.way_out.contains("policy trace"));
    let always = explain(facts(traced("allowed", "test-always-fail"), path()));
    assert!(always.outcome() == AuthOutcome::Blocked && always.way_out.contains("test-always-fail"));
    let free = explain(facts(traced("allowed", "disabled"), Path { entry: Entry::None, ..path() }));
    assert_eq!(free.outcome(), AuthOutcome::Talks);
    assert!(free.paths[0].checks.iter().all(|check| check.name != "handshake"), "not needed");
    let revoked =
        Facts { revoked: vec!["identity 300 is".to_owned()], ..facts(traced("allowed", "required"), path()) };
    assert_eq!(concluded(&explain(revoked)), (AuthOutcome::Blocked, "Revocation"));
}

#[test]
fn an_entry_of_another_epoch_or_time_counts_no_longer() {
    let entry = |epochs, valid| Entry::There { expires: at(60), epochs, valid, draining: false };
    let older =
        required(Path { entry: entry((1, 2), false), handshake: Handshake::Running(at(0)), ..path() });
    let check = |explanation: &v1::AuthExplanation| -> AuthCheck {
        let AuthPath { checks, .. } = &explanation.paths[0];
        checks.iter().find(|check| check.name == "entry").unwrap().clone()
    };
    assert!(check(&older).message.contains("epoch 1, now it is 2"));
    assert_eq!(older.outcome(), AuthOutcome::Waits);
    assert!(check(&required(Path { entry: entry((1, 1), false), ..path() })).message.contains("expired"));
}

#[test]
fn of_many_nodes_the_worst_is_named() {
    let mut facts = facts(traced("allowed", "required"), path());
    let other = Path { node: "n3".to_owned(), session: Session::None { trouble: None }, ..path() };
    facts.paths.push(other);
    let explanation = explain(facts);
    assert!(explanation.reason.contains("node n3"), "{}", explanation.reason);
}

#[test]
fn a_node_that_runs_neither_end_names_those_that_do() {
    let mut facts = facts(traced("allowed", "required"), path());
    facts.paths.clear();
    let explanation = explain(facts);
    assert_eq!(explanation.outcome(), AuthOutcome::Unspecified);
    assert_eq!(explanation.way_out, "ask on n1, n2");
}

#[test]
fn pairs_are_found_from_either_end() {
    let pairs =
        |keys: Vec<AuthKey>| keys.iter().map(|key| (key.local, key.remote, key.node)).collect::<Vec<_>>();
    assert_eq!(pairs(keys((256, &[0]), (300, &[2, 3]))), [(256, 300, 2), (256, 300, 3)]);
    assert_eq!(pairs(keys((256, &[2]), (300, &[0]))), [(300, 256, 2)]);
    assert_eq!(pairs(keys((256, &[0]), (300, &[0]))), [(256, 300, 0)]);
    assert_eq!(pairs(keys((256, &[0, 1]), (256, &[0, 1]))), [(256, 256, 0), (256, 256, 1)]);
    assert_eq!(pairs(keys((256, &[2]), (300, &[3]))), []);
    assert_eq!(pairs(keys((1, &[0]), (300, &[3]))), []);
}
