//! What follows from the checks.

use super::{Facts, Policy};
use crate::api::v1::{AuthCheck, AuthOutcome, AuthPath, CheckState, TraceEnd};

/// Whether the two can talk, why, and what to do.
pub(super) struct Conclusion {
    pub(super) outcome: AuthOutcome,
    pub(super) reason: String,
    pub(super) way_out: String,
}

/// Whether policy asks for authentication, as far as is known.
pub(super) fn is_needed(policy: &Policy) -> bool {
    match policy {
        Policy::Traced(trace) => trace.authentication != "disabled",
        Policy::Asks(asks) => *asks,
        Policy::Unknown => true,
    }
}

/// A path talks if there is a tunnel and, where one is needed, an entry: what else is missing shows when that ends.
pub(super) fn of_path(checks: &[AuthCheck]) -> AuthOutcome {
    let state = |name: &str| checks.iter().find(|check| check.name == name).map(AuthCheck::state);
    let is_ok = |name: &str| state(name).is_none_or(|state| state == CheckState::Ok);
    if state("node-session") != Some(CheckState::Failed) && is_ok("preshared-key") && is_ok("entry") {
        return AuthOutcome::Talks;
    }
    match worst(checks).map(AuthCheck::state) {
        Some(CheckState::Failed) => AuthOutcome::Blocked,
        Some(CheckState::Waiting) => AuthOutcome::Waits,
        Some(CheckState::Ok | CheckState::Unspecified) | None => AuthOutcome::Unspecified,
    }
}

/// The first check that has failed, or else the first that waits: what is needed first comes first. That packets are
/// held is what follows.
fn worst(checks: &[AuthCheck]) -> Option<&AuthCheck> {
    let first = |state| checks.iter().find(move |check| check.state() == state && check.name != "held");
    first(CheckState::Failed).or_else(|| first(CheckState::Waiting))
}

pub(super) fn of(facts: &Facts, checks: &[AuthCheck], paths: &[AuthPath]) -> Conclusion {
    let blocked = |check: &AuthCheck| Conclusion {
        outcome: AuthOutcome::Blocked,
        reason: format!("They can't talk. {}: {}.", title(&check.name), check.message),
        way_out: check.way_out.clone(),
    };
    if let Some(check) = checks.iter().find(|check| check.state() == CheckState::Failed) {
        return blocked(check);
    }
    let Some(path) = paths.iter().max_by_key(|path| badness(path.outcome())) else { return elsewhere(facts) };
    let on = match paths {
        [_] => String::new(),
        _ if path.remote_node == 0 => " (on this node)".to_owned(),
        _ if path.remote_node_name.is_empty() => format!(" (with node number {})", path.remote_node),
        _ => format!(" (with node {})", path.remote_node_name),
    };
    let missing = worst(&path.checks);
    let told = |check: &AuthCheck| format!("{}: {}", title(&check.name), check.message);
    match path.outcome() {
        AuthOutcome::Talks => Conclusion {
            outcome: AuthOutcome::Talks,
            reason: match (is_needed(&facts.policy), missing) {
                (false, _) => "They can talk: no authentication is needed.".to_owned(),
                (true, None) => "They can talk: they are authenticated.".to_owned(),
                (true, Some(check)) => {
                    format!(
                        "They can talk: they are authenticated. But it may not last{on}. {}.",
                        told(check)
                    )
                }
            },
            way_out: missing.map(|check| check.way_out.clone()).unwrap_or_default(),
        },
        AuthOutcome::Waits => Conclusion {
            outcome: AuthOutcome::Waits,
            reason: missing.map_or_else(
                || "They can't talk yet.".to_owned(),
                |check| format!("They can't talk yet{on}. {}.", told(check)),
            ),
            way_out: missing.map(|check| check.way_out.clone()).unwrap_or_default(),
        },
        AuthOutcome::Blocked => Conclusion {
            reason: missing.map(|check| format!("They can't talk{on}. {}.", told(check))).unwrap_or_default(),
            ..missing.map_or_else(|| elsewhere(facts), blocked)
        },
        AuthOutcome::Unspecified => Conclusion {
            outcome: AuthOutcome::Unspecified,
            reason: format!("Not enough is known{on}."),
            way_out: "start authd, and ask again".to_owned(),
        },
    }
}

/// Nothing of it is on this node, or nothing ever authenticates.
fn elsewhere(facts: &Facts) -> Conclusion {
    let reserved = |end: &TraceEnd| auth_ebpf_abi::identity::is_reserved(end.identity);
    if reserved(&facts.from) || reserved(&facts.to) {
        return Conclusion {
            outcome: if is_needed(&facts.policy) { AuthOutcome::Unspecified } else { AuthOutcome::Talks },
            reason: "A reserved identity, such as host or world, has no SVID: only policy decides."
                .to_owned(),
            way_out: "ask with --port, or `authctl policy trace`".to_owned(),
        };
    }
    let nodes = facts.runs_on.join(", ");
    let (reason, way_out) = match nodes.as_str() {
        "" => ("Neither end runs on this node.".to_owned(), "ask on a node that runs one".to_owned()),
        nodes => {
            ("Neither end runs on this node, or one runs nowhere.".to_owned(), format!("ask on {nodes}"))
        }
    };
    Conclusion { outcome: AuthOutcome::Unspecified, reason, way_out }
}

const fn badness(outcome: AuthOutcome) -> u8 {
    match outcome {
        AuthOutcome::Talks => 0,
        AuthOutcome::Unspecified => 1,
        AuthOutcome::Waits => 2,
        AuthOutcome::Blocked => 3,
    }
}

/// A check's name as it begins a sentence.
fn title(name: &str) -> &'static str {
    match name {
        "policy" => "Policy",
        "revocation" => "Revocation",
        "local-svid" => "SVID here",
        "remote-svid" => "SVID there",
        "node-session" => "Node session",
        "preshared-key" => "Pre-shared key",
        "handshake" => "Handshake",
        "entry" => "Entry",
        _ => "Held packets",
    }
}
