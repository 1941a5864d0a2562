//! `authctl policy trace`: what policy says about packets between two ends.

use policy::{Considered, IdentityNumber, NamedPort, Trace, TraceVerdict, Traffic};
use serde::Serialize;

use super::{
    end::{End, Resolved},
    port::{Number, Port},
};
use crate::{
    cluster::{self, Cluster},
    ctl::{
        cli::{Format, TraceArgs},
        error::Error,
        output::{Output, json},
        table::printable,
    },
};

/// What is printed as JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    from: Resolved,
    to: Resolved,
    port: String,
    #[serde(flatten)]
    trace: Trace,
}

/// Prints the verdict; the exit status is 0 whatever it is.
pub(super) fn run(args: &TraceArgs, output: &mut Output<'_>) -> Result<u8, Error> {
    let cluster = cluster::load_offline(&args.manifests.manifests)?;
    let answer = answer(&cluster, &args.from, &args.to, &args.port)?;
    for problem in cluster.problems.iter().filter(|problem| problem.severity == cluster::Severity::Error) {
        output.note(&printable(&problem.to_string()))?;
    }
    let text = match output.format {
        Format::Table => words(&answer),
        Format::Json => json(&answer)?,
    };
    output.text(&text)?;
    Ok(0)
}

fn answer(cluster: &Cluster, from: &End, to: &End, port: &Port) -> Result<Answer, Error> {
    let resolved = (from.resolve(cluster, to)?, to.resolve(cluster, from)?);
    let number = match &port.number {
        Number::None => 0,
        Number::Given(number) => *number,
        Number::Named(name) => named(cluster, to, resolved.1.identity, &NamedPort::new(name, port.protocol))?,
    };
    let traffic = Traffic {
        from: resolved.0.identity,
        to: resolved.1.identity,
        protocol: port.protocol,
        port: port.in_key(number),
    };
    let is_same_pod = resolved.0.pod.is_some() && resolved.0.pod == resolved.1.pod;
    let trace =
        if is_same_pod { Trace::within_a_pod() } else { policy::trace(cluster.policy_input(), traffic) };
    Ok(Answer { from: resolved.0, to: resolved.1, port: port.to_string(), trace })
}

/// The number that the destination gives a port's name.
fn named(cluster: &Cluster, to: &End, identity: IdentityNumber, port: &NamedPort) -> Result<u16, Error> {
    let of_pod = match to {
        End::Pod { namespace, name } => cluster
            .pod(namespace, name)
            .and_then(|pod| pod.named_ports.iter().find(|(name, _)| name == port).map(|(_, number)| *number)),
        End::Identity(_) | End::Address(_) | End::Entity(_) => {
            cluster.surroundings.numbers_of(port, identity, false).first().copied()
        }
    };
    of_pod.ok_or_else(|| Error::NoEnd(format!("the destination has no port with the name `{}`", port.name)))
}

fn words(answer: &Answer) -> String {
    let Answer { from, to, port, trace } = answer;
    let word = |verdict| match verdict {
        TraceVerdict::Allowed => "allowed",
        TraceVerdict::Denied => "denied",
    };
    let mut text = format!("{} -> {}, {port}\n", from.words(), to.words());
    for (name, end) in [("egress", &trace.egress), ("ingress", &trace.ingress)] {
        let reasons: Vec<String> =
            end.rule.iter().chain(&end.default_deny).map(ToString::to_string).collect();
        let reasons = if reasons.is_empty() { "no policy applies".to_owned() } else { reasons.join("; ") };
        let tried = if end.audit { " (audit: passes all the same)" } else { "" };
        text.push_str(&format!("{name:<8} {:<8} {reasons}{tried}\n", word(end.verdict)));
        text.extend(end.considered.iter().map(considered));
    }
    text.push_str(&format!("verdict  {}", word(trace.verdict)));
    if trace.verdict == TraceVerdict::Allowed {
        text.push_str(&format!("; authentication {}", trace.authentication.as_str()));
        if trace.authentication_impossible {
            text.push_str(", which this pair can't have: its packets drop (AUTH_IMPOSSIBLE)");
        }
        text.push_str(&format!("; encryption {}", trace.encryption.as_str()));
    }
    if trace.audit {
        text.push_str("; only tried, so everything passes and is reported");
    }
    text.push('\n');
    text
}

/// A line for a rule that was looked at.
fn considered(rule: &Considered) -> String {
    let about = match (rule.matches_peer, rule.matches_port) {
        (true, true) if rule.denies => "denies this",
        (true, true) => "allows this",
        (true, false) => "is about other ports",
        (false, true) => "is about other peers",
        (false, false) => "is about other peers and ports",
    };
    format!("  {} {about}\n", rule.rule)
}
