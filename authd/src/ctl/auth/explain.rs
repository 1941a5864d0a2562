//! `authctl auth explain`: what is missing for two ends to talk.

use std::collections::BTreeSet;

use auth_ebpf::Maps;
use auth_ebpf_abi::{Address, AuthFlags, AuthKey, AuthType, NodeNumber};
use jiff::Timestamp;

use crate::{
    api::{
        v1::{self, AuthCheck, AuthExplanation, AuthPath, CheckState},
        word,
    },
    ctl::{
        cli::{ExplainArgs, Global},
        client::Daemon,
        error::Error,
        output::{Origin, Output},
        pinned,
        table::{Table, printable},
        time::{Clock, relative},
    },
    explain::{self, Entry, Facts, Handshake, Path, Policy, Question, Session, Svid},
    trace::End,
};

pub(in crate::ctl) async fn explain(
    args: &ExplainArgs,
    global: &Global,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    let question = Question { from: args.from.clone(), to: args.to.clone(), port: args.port.clone() };
    let asked = async { Daemon::connect(global).await?.explain_auth(&question).await };
    let (origin, explanation) = match asked.await {
        Ok(explanation) => (Origin::Daemon, explanation),
        Err(error) if error.is_daemon_dead() => {
            (Origin::PinnedMaps, by_maps(error, &question, global, output)?)
        }
        Err(error) => return Err(error),
    };
    let now = Timestamp::now();
    output.print(origin, explanation, |explanation| text(explanation, now))
}

/// What the maps know in place of a daemon that does not answer.
fn by_maps(
    daemon: Error,
    question: &Question,
    global: &Global,
    output: &mut Output<'_>,
) -> Result<AuthExplanation, Error> {
    if let Some(end) = [&question.from, &question.to].into_iter().find(|end| matches!(end, End::Pod { .. })) {
        return Err(Error::Nameless { daemon: Box::new(daemon), end: end.to_string() });
    }
    // Also says, ahead of a table, that this is from the maps.
    pinned::instead_of(daemon, global, output)?;
    let maps = pinned::open(&global.pin_dir)?;
    let clock = Clock::read()?;
    let ends = Ends::read(&maps)?;
    let (from, to) = (ends.resolve(&question.from), ends.resolve(&question.to));
    let keys = explain::keys((from.identity, &from.nodes), (to.identity, &to.nodes));
    let paths = keys.into_iter().map(|key| path(&maps, key, &clock)).collect::<Result<_, Error>>()?;
    let end = |end: &ResolvedEnd| v1::TraceEnd {
        identity: end.identity,
        address: end.address.clone(),
        name: policy::reserved_name(end.identity).unwrap_or_default().to_owned(),
        ..v1::TraceEnd::default()
    };
    Ok(explain::explain(Facts {
        node: String::new(),
        from: end(&from),
        to: end(&to),
        port: question.port.as_ref().map(ToString::to_string).unwrap_or_default(),
        policy: Policy::Unknown,
        revoked: Vec::new(),
        runs_on: Vec::new(),
        paths,
    }))
}

/// Who has which address, where: all that the maps know of ends.
struct Ends(Vec<(Address, u32, NodeNumber)>);

struct ResolvedEnd {
    identity: u32,
    address: String,
    nodes: Vec<NodeNumber>,
}

impl Ends {
    fn read(maps: &Maps) -> Result<Self, Error> {
        let here =
            maps.endpoints().entries()?.into_iter().map(|(address, entry)| (address, entry.identity, 0));
        let others = maps.addresses().entries()?.into_iter();
        let others = others.map(|(address, entry)| (address, entry.identity, entry.node));
        Ok(Self(here.chain(others).collect()))
    }

    fn resolve(&self, end: &End) -> ResolvedEnd {
        let (identity, address) = match end {
            End::Identity(number) | End::Entity(number) => (*number, None),
            End::Address(ip) => {
                let address = Address::from(*ip);
                let found = self.0.iter().find(|(known, ..)| *known == address);
                (found.map_or(0, |(_, identity, _)| *identity), Some(address))
            }
            // Refused before.
            End::Pod { .. } => (0, None),
        };
        let is_end = |(known, of, _): &&(Address, u32, NodeNumber)| match &address {
            Some(address) => known == address,
            None => *of == identity,
        };
        let nodes: BTreeSet<NodeNumber> = self.0.iter().filter(is_end).map(|(_, _, node)| *node).collect();
        let address = address.map(|address| address.to_ip().to_string()).unwrap_or_default();
        ResolvedEnd { identity, address, nodes: nodes.into_iter().collect() }
    }
}

fn path(maps: &Maps, key: AuthKey, clock: &Clock) -> Result<Path, Error> {
    let never = Timestamp::MAX;
    let wall = |boot| clock.wall_time(boot).unwrap_or(never).into();
    let node = if key.node == 0 { None } else { maps.nodes().get(&key.node)? };
    let entry = maps.auth().get(&AuthKey { auth_type: AuthType::Spire as u8, ..key })?;
    let (held, oldest) = maps.hold().held_for(&key)?;
    let epoch =
        |made: u32| if key.node == 0 { made } else { node.map(|node| node.epoch).unwrap_or_default() };
    Ok(Path {
        key,
        node: String::new(),
        local_svid: Svid::Unknown,
        remote_svid: Svid::Unknown,
        session: match (key.node, node) {
            (0, _) => Session::Local,
            (_, None) => Session::None { trouble: None },
            (_, Some(node)) => {
                Session::InMap { until: wall(node.expires), over: node.expires <= clock.boot_nanos }
            }
        },
        handshake: Handshake::NoDaemon,
        entry: entry.map_or(Entry::None, |entry| Entry::There {
            expires: wall(entry.expires),
            epochs: (entry.epoch, epoch(entry.epoch)),
            valid: entry.epoch == epoch(entry.epoch) && clock.boot_nanos < entry.expires,
            draining: entry.flags & AuthFlags::DRAINING != 0,
        }),
        held: Some((held, oldest.map(wall))),
    })
}

fn text(explanation: &AuthExplanation, now: Timestamp) -> String {
    let end = |end: &Option<v1::TraceEnd>| end.as_ref().map(end_words).unwrap_or_default();
    let port = if explanation.port.is_empty() { String::new() } else { format!(", {}", explanation.port) };
    let mut text =
        printable(&format!("{} -> {}{port}", end(&explanation.from), end(&explanation.to))).into_owned();
    text.push('\n');
    text.push_str(&table(&explanation.checks, now));
    for path in &explanation.paths {
        text.push_str(&format!("\n{}\n", printable(&heading(path))));
        text.push_str(&table(&path.checks, now));
    }
    text.push_str(&format!("\n{}\n", printable(&explanation.reason)));
    if !explanation.way_out.is_empty() {
        text.push_str(&format!("Way out: {}\n", printable(&explanation.way_out)));
    }
    text
}

fn heading(path: &AuthPath) -> String {
    let AuthPath { local_identity: local, remote_identity: remote, .. } = path;
    match (path.remote_node, path.remote_node_name.as_str()) {
        (0, _) => format!("identities {local} and {remote}, both here"),
        (number, "") => format!("identity {local} here, {remote} on node number {number}"),
        (_, name) => format!("identity {local} here, {remote} on {name}"),
    }
}

fn table(checks: &[AuthCheck], now: Timestamp) -> String {
    let mut table = Table::new(["CHECK", "STATE", "SINCE", "UNTIL", "WHAT IS KNOWN"]);
    for check in checks {
        let state = match check.state() {
            CheckState::Unspecified => "unknown".to_owned(),
            CheckState::Ok | CheckState::Waiting | CheckState::Failed => {
                word::of::<CheckState>(check.state).to_ascii_lowercase()
            }
        };
        let (since, until) = (relative(check.since, now), relative(check.until, now));
        table.row([check.name.clone(), state, since, until, check.message.clone()]);
    }
    table.render()
}

fn end_words(end: &v1::TraceEnd) -> String {
    let identity = if end.name.is_empty() { format!("identity {}", end.identity) } else { end.name.clone() };
    match (end.pod.as_str(), end.address.as_str()) {
        ("", "") => identity,
        ("", address) => format!("{address} ({identity})"),
        (pod, _) => format!("{pod} ({identity})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fixture::{self, NOW, golden, golden_json};

    #[test]
    fn an_explanation_reads_like_this() {
        golden("auth-explain.txt", &text(&fixture::explanation(), NOW));
        golden_json("auth-explain.json", fixture::explanation());
    }
}
