//! `authctl status`.

use jiff::Timestamp;
use serde::Serialize;

use super::{
    cli::{Global, StatusArgs},
    client::Daemon,
    error::Error,
    output::{Origin, Output},
    pinned,
    table::{Table, count, printable},
    time::{Clock, compact, relative},
};
use crate::api::{
    v1::{self, GuardState, Mode, Severity, Status},
    word,
};

pub(super) async fn run(args: &StatusArgs, global: &Global, output: &mut Output<'_>) -> Result<u8, Error> {
    let asked = async { Daemon::connect(global).await?.status().await };
    match asked.await {
        Ok(status) if args.brief => print_brief(Origin::Daemon, status, output),
        Ok(status) => print(Origin::Daemon, status, output),
        Err(error) => {
            let pinned = pinned::instead_of(error, global, output)?;
            let status = pinned.status(&Clock::read()?, pinned::interface_name);
            if args.brief {
                return print_brief(Origin::PinnedMaps, status, output);
            }
            print(Origin::PinnedMaps, status, output)
        }
    }
}

fn print(origin: Origin, status: Status, output: &mut Output<'_>) -> Result<u8, Error> {
    let now = Timestamp::now();
    output.print(origin, status, |status| table(status, now))?;
    Ok(0)
}

/// What `--brief` says.
#[derive(Debug, Serialize)]
struct Brief {
    ok: bool,
    problems: Vec<String>,
}

fn print_brief(origin: Origin, status: Status, output: &mut Output<'_>) -> Result<u8, Error> {
    let mut problems = problems(&status, Timestamp::now());
    if origin == Origin::PinnedMaps {
        problems.insert(0, "authd does not answer".to_owned());
    }
    let failed = !problems.is_empty();
    output.print(origin, Brief { ok: !failed, problems }, |body| brief(&body.problems))?;
    Ok(u8::from(failed))
}

/// One line: `ok`, or all that is wrong.
fn brief(problems: &[String]) -> String {
    if problems.is_empty() {
        return "ok\n".to_owned();
    }
    format!("degraded: {}\n", printable(&problems.join("; ")))
}

/// What keeps a node from keeping its promises, or will.
fn problems(status: &Status, now: Timestamp) -> Vec<String> {
    let mut problems = Vec::new();
    if !status.pending.is_empty() {
        problems.push(format!("waiting for {}", status.pending.join(", ")));
    }
    for (name, guard) in [("policy", &status.policy), ("encryption", &status.encryption)] {
        if is_off(guard.as_ref(), now) {
            problems.push(format!("{name} is off"));
        }
    }
    problems.extend(status.spire.as_ref().and_then(|spire| spire_problem(spire, now)));
    if status.tunnel.as_ref().is_some_and(|tunnel| !tunnel.reachable) {
        problems.push("the tunnel does not answer".to_owned());
    }
    problems.extend(incomplete("nodes have a live session", &status.nodes, |node| node.live));
    problems.extend(incomplete("pods are attached", &status.endpoints, |endpoint| endpoint.attached));
    let bad = status.conditions.iter().filter(|condition| condition.severity() >= Severity::Warning);
    problems.extend(bad.map(condition_line));
    problems
}

fn spire_problem(spire: &v1::Spire, now: Timestamp) -> Option<String> {
    let expires = spire.node_svid_expires.and_then(|time| time.to_jiff());
    let missing = &spire.identities_missing_svid;
    match expires {
        None => Some("no node SVID".to_owned()),
        Some(expires) if expires <= now => Some("the node SVID has expired".to_owned()),
        Some(_) if !spire.connected => Some("the SPIRE agent is away".to_owned()),
        Some(_) if !missing.is_empty() => Some(format!("no SVID for {}", numbers(missing))),
        Some(_) => None,
    }
}

fn incomplete<T>(what: &str, all: &[T], well: impl Fn(&T) -> bool) -> Option<String> {
    let count = all.iter().filter(|item| well(item)).count();
    (count < all.len()).then(|| format!("{count} of {} {what}", all.len()))
}

fn condition_line(condition: &v1::Condition) -> String {
    let object = &condition.object;
    if object.is_empty() { condition.message.clone() } else { format!("{object}: {}", condition.message) }
}

/// The sections that people read.
pub(super) fn table(status: &Status, now: Timestamp) -> String {
    let mut text = head(status, now);
    section(&mut text, "Conditions", &status.conditions, |rows| conditions(rows, now));
    section(&mut text, "Endpoints", &status.endpoints, endpoints);
    section(&mut text, "Nodes", &status.nodes, |rows| nodes(rows, now));
    text
}

fn head(status: &Status, now: Timestamp) -> String {
    let mut lines = Vec::new();
    if !status.version.is_empty() {
        lines.push(("authd", daemon(status, now)));
    }
    lines.push(("Policy", policy(status, now)));
    lines.push(("Encryption", guard(status.encryption.as_ref(), now)));
    lines.extend(status.spire.as_ref().map(|state| ("SPIRE", spire(state, now))));
    lines.extend(status.tunnel.as_ref().map(|state| ("Tunnel", tunnel(state))));
    let attached = status.endpoints.iter().filter(|endpoint| endpoint.attached).count();
    let by =
        if status.attached_by.is_empty() { String::new() } else { format!(" by {}", status.attached_by) };
    let direct = match status.endpoints.iter().filter(|endpoint| endpoint.direct).count() {
        0 => String::new(),
        count => format!(", {count} reached directly by their neighbours"),
    };
    lines.push(("Endpoints", format!("{attached} of {} attached{by}{direct}", status.endpoints.len())));
    let live = status.nodes.iter().filter(|node| node.live).count();
    lines.push(("Nodes", format!("{live} of {} with a live session", status.nodes.len())));
    lines.push(("Authentications", status.auth_entries.to_string()));
    lines.extend(status.hold.as_ref().map(|state| ("First packets", hold(*state).to_owned())));
    if !status.version.is_empty() {
        lines.push(("Ready", ready(&status.pending)));
    }
    fields(&lines)
}

/// Lines of `Name:  value`, values in one column.
pub(super) fn fields(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    lines
        .iter()
        .map(|(name, value)| format!("{:width$}  {}\n", format!("{name}:"), printable(value)))
        .collect()
}

fn daemon(status: &Status, now: Timestamp) -> String {
    let mut text = format!("{} on {}", status.version, status.node);
    if status.node_number != 0 {
        text.push_str(&format!(" (node {})", status.node_number));
    }
    if !status.trust_domain.is_empty() {
        text.push_str(&format!(" in {}", status.trust_domain));
    }
    if let Some(started) = status.started.and_then(|time| time.to_jiff()) {
        text.push_str(&format!(", up {}", compact(now.duration_since(started).unsigned_abs())));
    }
    text
}

const fn hold(hold: v1::Hold) -> &'static str {
    match (hold.active, hold.configured) {
        (true, _) => "wait for authentication",
        (false, true) => "drop: they can't wait",
        (false, false) => "drop",
    }
}

fn policy(status: &Status, now: Timestamp) -> String {
    let mode = guard(status.policy.as_ref(), now);
    let Some(policies) = &status.policies else { return mode };
    let accepted = count(policies.accepted as usize, "policy", "policies");
    let mut text = format!(
        "{mode}, {accepted} ({} in the map)",
        count(policies.map_entries as usize, "entry", "entries")
    );
    if policies.rejected > 0 {
        text.push_str(&format!(", {} REFUSED", policies.rejected));
    }
    text
}

/// A guard's mode, or until when it is off.
pub(super) fn guard(guard: Option<&GuardState>, now: Timestamp) -> String {
    let Some(state) = guard else { return "unknown".to_owned() };
    let mode = match state.mode() {
        Mode::Unspecified => "unknown".to_owned(),
        Mode::Observe | Mode::Enforce => word::of::<Mode>(state.mode).to_ascii_lowercase(),
    };
    if is_off(guard, now) {
        let ends = relative(state.off_until, now);
        return format!("OFF by `authctl off`, ends {ends} ({mode} then)");
    }
    mode
}

fn is_off(guard: Option<&GuardState>, now: Timestamp) -> bool {
    let until = guard.and_then(|guard| guard.off_until).and_then(|time| time.to_jiff());
    until.is_some_and(|until| until > now)
}

fn spire(state: &v1::Spire, now: Timestamp) -> String {
    let connection = if state.connected { "connected" } else { "DISCONNECTED" };
    let node = match state.node_svid_expires {
        None => "NO NODE SVID".to_owned(),
        expires => format!("node SVID ends {}", relative(expires, now)),
    };
    let present = count(state.identities_with_svid.len(), "identity", "identities");
    let mut text = format!("{connection}, {node}, {present} with SVID");
    if !state.svid_apis.is_empty() {
        text.push_str(&format!(" by {}", state.svid_apis.join(", ")));
    }
    if !state.identities_missing_svid.is_empty() {
        text.push_str(&format!(", MISSING for {}", numbers(&state.identities_missing_svid)));
    }
    text
}

fn numbers(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn tunnel(state: &v1::Tunnel) -> String {
    if !state.reachable {
        return format!("{}: DOES NOT ANSWER", state.interface);
    }
    let v1::Tunnel { interface, listen_port, peers, public_key, .. } = state;
    if public_key.is_empty() {
        return format!("{interface}, port {listen_port}");
    }
    let peers = count(*peers as usize, "peer", "peers");
    format!("{interface}, port {listen_port}, {peers}, key {public_key}")
}

fn ready(pending: &[String]) -> String {
    if pending.is_empty() { "yes".to_owned() } else { format!("NO, waiting for {}", pending.join(", ")) }
}

fn section<T>(text: &mut String, title: &str, rows: &[T], render: impl FnOnce(&[T]) -> Table) {
    if !rows.is_empty() {
        text.push_str(&format!("\n{title}\n{}", render(rows).render()));
    }
}

fn conditions(conditions: &[v1::Condition], now: Timestamp) -> Table {
    let mut table = Table::new(["SEVERITY", "TYPE", "SINCE", "OBJECT", "MESSAGE"]);
    for condition in conditions {
        table.row([
            word::of::<Severity>(condition.severity),
            condition.r#type.clone(),
            relative(condition.since, now),
            condition.object.clone(),
            condition.message.clone(),
        ]);
    }
    table
}

fn endpoints(endpoints: &[v1::Endpoint]) -> Table {
    let mut table = Table::new(["POD", "IDENTITY", "INTERFACE", "ATTACHED", "ADDRESSES"]);
    for endpoint in endpoints {
        table.row([
            endpoint.pod.clone(),
            number(endpoint.identity),
            endpoint.interface.clone(),
            if endpoint.attached { "yes" } else { "NO" }.to_owned(),
            endpoint.addresses.join(","),
        ]);
    }
    table
}

fn nodes(nodes: &[v1::Node], now: Timestamp) -> Table {
    let mut table =
        Table::new(["NODE", "NUMBER", "SESSION", "SINCE", "EXPIRES", "GROUP", "ADDRESSES", "PROBLEM"]);
    for node in nodes {
        table.row([
            node.name.clone(),
            number(node.number),
            if node.live { "live" } else { "DOWN" }.to_owned(),
            relative(node.since, now),
            relative(node.expires, now),
            node.tls_group.clone(),
            node.addresses.join(","),
            node.problem.clone(),
        ]);
    }
    table
}

fn number(number: u32) -> String {
    if number == 0 { String::new() } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fixture::{self, NOW, golden, golden_json};

    #[test]
    fn a_well_node_reads_like_this() {
        golden("status.txt", &table(&fixture::status(), NOW));
        golden_json("status.json", fixture::status());
    }

    #[test]
    fn a_node_in_trouble_reads_like_this() {
        let status = fixture::troubled_status();
        golden("status-troubled.txt", &table(&status, NOW));
        golden_json("status-troubled.json", status.clone());
        golden("status-troubled-brief.txt", &brief(&problems(&status, NOW)));
    }

    #[test]
    fn a_well_node_is_ok() {
        assert_eq!(brief(&problems(&fixture::status(), NOW)), "ok\n");
    }

    #[test]
    fn an_override_that_has_ended_is_none() {
        let off_until = Some(NOW.into());
        let state = GuardState { mode: Mode::Enforce.into(), off_until };
        assert_eq!(guard(Some(&state), NOW), "enforce");
    }

    #[test]
    fn a_missing_or_expired_node_svid_is_a_problem() {
        let mut spire = v1::Spire { connected: true, ..v1::Spire::default() };
        assert_eq!(spire_problem(&spire, NOW).as_deref(), Some("no node SVID"));
        spire.node_svid_expires = Some(NOW.into());
        assert_eq!(spire_problem(&spire, NOW).as_deref(), Some("the node SVID has expired"));
    }
}
