//! `authctl policy trace`: what policy says about packets between two ends.

use crate::{
    api::v1,
    cluster,
    ctl::{
        cli::{Format, Global, TraceArgs},
        error::Error,
        output::{Output, json},
        table::printable,
    },
    trace::{self, Question},
};

/// Prints the verdict; the exit status is 0 whatever it is.
pub(super) async fn run(args: &TraceArgs, global: &Global, output: &mut Output<'_>) -> Result<u8, Error> {
    let question = Question { from: args.from.clone(), to: args.to.clone(), port: args.port.clone() };
    let trace = if args.manifests.manifests.is_empty() {
        super::daemon(global).await?.trace_policy(&question).await?
    } else {
        let cluster = cluster::load_offline(&args.manifests.manifests, &args.manifests.site.site())?;
        // What is wrong with a file as a whole may have kept a policy out.
        let counts =
            |one: &&cluster::Problem| one.severity == cluster::Severity::Error || one.object.is_none();
        for problem in cluster.problems.iter().filter(counts) {
            output.note(&printable(&problem.to_string()))?;
        }
        trace::answer(&cluster, &question)?
    };
    let text = match output.format {
        Format::Table => printable_lines(&words(&trace)),
        Format::Json => json(&trace)?,
    };
    output.text(&text)?;
    Ok(0)
}

fn words(trace: &v1::PolicyTrace) -> String {
    let end = |end: &Option<v1::TraceEnd>| end.as_ref().map(end_words).unwrap_or_default();
    let mut text = format!("{} -> {}, {}\n", end(&trace.from), end(&trace.to), trace.port);
    for (name, end) in [("egress", &trace.egress), ("ingress", &trace.ingress)] {
        let Some(end) = end else { continue };
        let reasons: Vec<&str> =
            end.rule.iter().chain(&end.default_deny).map(|rule| rule.text.as_str()).collect();
        let reasons = if reasons.is_empty() { "no policy applies".to_owned() } else { reasons.join("; ") };
        let tried = if end.audit { " (audit: passes all the same)" } else { "" };
        text.push_str(&format!("{name:<8} {:<8} {reasons}{tried}\n", end.verdict));
        text.extend(end.considered.iter().map(considered));
    }
    text.push_str(&format!("verdict  {}", trace.verdict));
    if trace.verdict == "allowed" {
        text.push_str(&format!("; authentication {}", trace.authentication));
        if trace.authentication_impossible {
            text.push_str(", which this pair can't have: its packets drop (AUTH_IMPOSSIBLE)");
        }
        text.push_str(&format!("; encryption {}", trace.encryption));
    }
    if trace.audit {
        text.push_str("; only tried, so everything passes and is reported");
    }
    text.push('\n');
    text.extend(trace.notes.iter().map(|note| format!("note     {note}\n")));
    text
}

fn end_words(end: &v1::TraceEnd) -> String {
    let identity = if end.name.is_empty() { end.identity.to_string() } else { end.name.clone() };
    match (end.pod.as_str(), end.service.as_str(), end.address.as_str()) {
        ("", "", "") if end.name.is_empty() => format!("identity {identity}"),
        ("", "", "") => identity,
        ("", "", address) => format!("{address} (identity {identity})"),
        ("", service, address) => format!("{address} (Service {service}, identity {identity})"),
        (pod, _, _) => format!("{pod} (identity {identity})"),
    }
}

/// A line for a rule that was looked at.
fn considered(rule: &v1::ConsideredRule) -> String {
    let about = match (rule.matches_peer, rule.matches_port) {
        (true, true) if rule.denies => "denies this",
        (true, true) => "allows this",
        (true, false) => "is about other ports",
        (false, true) => "is about other peers",
        (false, false) => "is about other peers and ports",
    };
    let name = rule.rule.as_ref().map(|rule| rule.text.as_str()).unwrap_or_default();
    format!("  {name} {about}\n")
}

fn printable_lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", printable(line))).collect()
}
