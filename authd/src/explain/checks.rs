//! What is needed, and how it stands.

use super::{Entry, Facts, Handshake, Path, Policy, Session, Svid, reason};
use crate::api::{
    Timestamp,
    v1::{AuthCheck, CheckState},
};

/// What holds for the two ends wherever they run.
pub(super) fn of_ends(facts: &Facts) -> Vec<AuthCheck> {
    vec![policy(&facts.policy), revocation(&facts.revoked)]
}

/// What holds between this node and the other. `needed`: policy asks for authentication, as far as is known.
pub(super) fn of_path(path: &Path, needed: bool) -> Vec<AuthCheck> {
    let mut checks = vec![session(path)];
    checks.extend(preshared_key(path));
    if needed {
        let identity = path.key.local;
        checks.push(svid("local-svid", identity, &path.local_svid));
        checks.push(svid("remote-svid", path.key.remote, &path.remote_svid));
        checks.push(handshake(&path.handshake));
        checks.push(entry(&path.entry, &path.handshake));
    }
    checks.extend(held(path));
    checks
}

fn check(name: &str, state: CheckState, message: impl Into<String>) -> AuthCheck {
    AuthCheck { name: name.to_owned(), state: state.into(), message: message.into(), ..AuthCheck::default() }
}

impl AuthCheck {
    fn since(self, since: Timestamp) -> Self {
        Self { since: Some(since), ..self }
    }

    fn until(self, until: Timestamp) -> Self {
        Self { until: Some(until), ..self }
    }

    fn way_out(self, way_out: impl Into<String>) -> Self {
        Self { way_out: way_out.into(), ..self }
    }
}

fn policy(policy: &Policy) -> AuthCheck {
    let trace = match policy {
        Policy::Traced(trace) => trace,
        Policy::Asks(true) => {
            return check(
                "policy",
                CheckState::Ok,
                "some rule asks this pair to authenticate; --port says more",
            );
        }
        Policy::Asks(false) => {
            return check(
                "policy",
                CheckState::Ok,
                "no rule asks this pair to authenticate; --port says more",
            );
        }
        Policy::Unknown => {
            return check("policy", CheckState::Unspecified, "not known without the daemon");
        }
    };
    let rules: Vec<&str> = trace.decided_by.iter().map(|rule| rule.text.as_str()).collect();
    let by = if rules.is_empty() { String::new() } else { format!(" by {}", rules.join("; ")) };
    let audited = if trace.audit { "; only tried, so it passes all the same" } else { "" };
    let trace_it = "`authctl policy trace` shows every rule that was looked at";
    if trace.verdict != "allowed" {
        let state = if trace.audit { CheckState::Ok } else { CheckState::Failed };
        return check("policy", state, format!("denied{by}{audited}")).way_out(trace_it);
    }
    let needs = format!("allowed{by}; authentication {}", trace.authentication);
    if trace.authentication_impossible {
        return check("policy", CheckState::Failed, format!("{needs}, which a reserved identity can't have"))
            .way_out(
                "no authentication for host, world and the like: change the rule's authentication.mode",
            );
    }
    if trace.authentication == "test-always-fail" {
        return check("policy", CheckState::Failed, needs)
            .way_out("test-always-fail is never satisfied: set authentication.mode to required");
    }
    check("policy", CheckState::Ok, format!("{needs}{audited}"))
}

fn revocation(revoked: &[String]) -> AuthCheck {
    if revoked.is_empty() {
        return check("revocation", CheckState::Ok, "neither the identities nor their nodes are revoked");
    }
    check("revocation", CheckState::Failed, format!("{} revoked", revoked.join(" and ")))
        .way_out("to take a revocation back, delete its file from the directory of manifests")
}

fn session(path: &Path) -> AuthCheck {
    let name = "node-session";
    let way_out =
        "let 4250/tcp (--handshake-port) through between the nodes; `authctl status` on both says more";
    let told = |text: String, trouble: &Option<(String, Timestamp)>| match trouble {
        Some((what, at)) => (format!("{text}; the last trouble: {what}"), Some(*at)),
        None => (text, None),
    };
    match &path.session {
        Session::Local => check(name, CheckState::Ok, "none needed: both are on this node"),
        Session::Up { since, expires, group, .. } => {
            check(name, CheckState::Ok, format!("with {}, by {group}", node(path)))
                .since(*since)
                .until(*expires)
        }
        Session::Lost { trouble, tunnel_until, over } => {
            let state = if *over { CheckState::Failed } else { CheckState::Waiting };
            let goes_on = if *over { "and its tunnel is over" } else { "its tunnel goes on for now" };
            let (text, since) = told(format!("with {} is lost, {goes_on}", node(path)), trouble);
            AuthCheck { since, ..check(name, state, text).until(*tunnel_until).way_out(way_out) }
        }
        Session::None { trouble } => {
            let (text, since) = told(format!("none with {}", node(path)), trouble);
            AuthCheck { since, ..check(name, CheckState::Failed, text).way_out(way_out) }
        }
        Session::InMap { until, over: false } => {
            check(name, CheckState::Ok, format!("with {}, by the map", node(path))).until(*until)
        }
        Session::InMap { until, over: true } => {
            check(name, CheckState::Failed, format!("with {} is over, by the map", node(path)))
                .until(*until)
                .way_out("start authd: nobody renews sessions without it")
        }
    }
}

fn preshared_key(path: &Path) -> Option<AuthCheck> {
    let Session::Up { preshared_since, .. } = &path.session else { return None };
    let name = "preshared-key";
    Some(match preshared_since {
        Some(since) => check(name, CheckState::Ok, "of the tunnel, confirmed by both nodes").since(*since),
        None => check(name, CheckState::Waiting, "none yet: without it the tunnel is not made")
            .way_out("`authctl encrypt status` on both nodes: does each tunnel process answer?"),
    })
}

fn svid(name: &str, identity: u32, svid: &Svid) -> AuthCheck {
    match svid {
        Svid::Available { spiffe_id, expires } => {
            check(name, CheckState::Ok, format!("identity {identity}: {spiffe_id}")).until(*expires)
        }
        Svid::Pending { spiffe_id, problem } => {
            let said = if problem.is_empty() { "the agent has none for it" } else { problem };
            check(
                name,
                CheckState::Waiting,
                format!("SVID_PENDING: identity {identity}, {spiffe_id}: {said}"),
            )
            .way_out(format!(
                "register {spiffe_id} with selector authd:identity:{identity} for this node's SPIRE agent, \
                     if it is not; `authctl svid list` follows it"
            ))
        }
        Svid::Withdrawn(spiffe_id) => {
            check(name, CheckState::Failed, format!("identity {identity}: {spiffe_id} was withdrawn"))
                .way_out(format!("register {spiffe_id} again for this node's SPIRE agent"))
        }
        Svid::Expired(spiffe_id) => {
            check(name, CheckState::Failed, format!("identity {identity}: {spiffe_id} has expired"))
                .way_out("see to the SPIRE agent: it no longer renews")
        }
        Svid::Announced => {
            check(name, CheckState::Ok, format!("identity {identity}: its node vouches for it"))
        }
        Svid::NotAnnounced => {
            check(name, CheckState::Failed, format!("identity {identity}: its node does not vouch for it"))
                .way_out("`authctl svid list` and `authctl identities list` on that node")
        }
        Svid::Unknown => check(name, CheckState::Unspecified, format!("identity {identity}: not known")),
    }
}

fn handshake(handshake: &Handshake) -> AuthCheck {
    let name = "handshake";
    match handshake {
        Handshake::Done(why) => check(name, CheckState::Ok, format!("done ({why})")),
        Handshake::Running(since) => check(name, CheckState::Waiting, "runs").since(*since),
        Handshake::Queued(since) => check(name, CheckState::Waiting, "waits for its turn").since(*since),
        Handshake::Failed { failures, reason, at, retry } => {
            let (what, way_out) = reason::words(reason);
            let times = if *failures > 1 { format!(" {failures} times in a row") } else { String::new() };
            let failed = check(name, CheckState::Failed, format!("failed{times}: {what} ({reason})"));
            AuthCheck { until: *retry, ..failed.since(*at).way_out(way_out) }
        }
        Handshake::Asked => {
            check(name, CheckState::Waiting, "a packet has asked; it begins when nothing else is missing")
        }
        Handshake::NotAsked => {
            check(name, CheckState::Waiting, "no packet has asked lately; the first one begins it")
        }
        Handshake::NotDesired => {
            check(name, CheckState::Failed, "neither policy nor cluster state of this node wants it").way_out(
                "`authctl policy get` and `authctl identities list`: is this node's cluster state behind?",
            )
        }
        Handshake::NoDaemon => {
            check(name, CheckState::Failed, "nobody is there to begin it").way_out("start authd")
        }
    }
}

fn entry(entry: &Entry, handshake: &Handshake) -> AuthCheck {
    let name = "entry";
    match entry {
        // Whether one comes, the handshake says.
        Entry::None if *handshake == Handshake::NoDaemon => check(name, CheckState::Failed, "none"),
        Entry::None => check(name, CheckState::Waiting, "none yet"),
        Entry::There { expires, valid: true, draining, epochs: (epoch, _) } => {
            let draining =
                if *draining { "; new packets still wait behind those that were held" } else { "" };
            check(name, CheckState::Ok, format!("stands, epoch {epoch}{draining}")).until(*expires)
        }
        Entry::There { expires, epochs: (epoch, now), .. } if epoch != now => check(
            name,
            CheckState::Waiting,
            format!("counts no longer: made in epoch {epoch}, now it is {now}"),
        )
        .until(*expires),
        Entry::There { expires, .. } => check(name, CheckState::Waiting, "has expired").until(*expires),
    }
}

fn held(path: &Path) -> Option<AuthCheck> {
    let (count, since) = path.held?;
    let name = "held";
    Some(match count {
        0 => check(name, CheckState::Ok, "no packets wait"),
        1 => AuthCheck { since, ..check(name, CheckState::Waiting, "1 packet waits") },
        count => AuthCheck { since, ..check(name, CheckState::Waiting, format!("{count} packets wait")) },
    })
}

fn node(path: &Path) -> String {
    match (path.node.as_str(), path.key.node) {
        ("", 0) => "this node".to_owned(),
        ("", number) => format!("node number {number}"),
        (name, _) => format!("node {name}"),
    }
}
