//! `authctl observe`: a line a flow, in the manner of `hubble observe`.

use jiff::tz::TimeZone;

use super::{
    cli::{Format, Global, ObserveArgs},
    client::Daemon,
    error::Error,
    output::Output,
    table::printable,
};
use crate::api::{
    v1::{
        AuthType, DropReason, Flow, FlowEnd, FlowFilter, Hook, ObserveRequest, Verdict,
        observe_response::Item,
    },
    word,
};

/// How many past flows are shown when nobody says.
const DEFAULT_LAST: u32 = 20;

pub(super) async fn run(args: &ObserveArgs, global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let mut observed = Daemon::connect(global).await?.observe(request(args)).await?;
    let zone = TimeZone::system();
    while let Some(item) = observed.next().await? {
        let text = match output.format {
            Format::Table => line(&item, &zone),
            Format::Json => json_line(&item)?,
        };
        output.text(&text)?;
    }
    if args.follow { Err(Error::Ended) } else { Ok(()) }
}

fn request(args: &ObserveArgs) -> ObserveRequest {
    let filter = FlowFilter {
        verdicts: args.verdict.iter().map(|verdict| i32::from(*verdict)).collect(),
        reasons: args.reason.iter().map(|reason| i32::from(*reason)).collect(),
        from_pods: args.from_pod.clone(),
        to_pods: args.to_pod.clone(),
        from_identities: args.from_identity.clone(),
        to_identities: args.to_identity.clone(),
    };
    let last = args.last.unwrap_or(if args.follow { 0 } else { DEFAULT_LAST });
    ObserveRequest { follow: args.follow, last, filter: Some(filter) }
}

/// A flow's fields, or `{"lostFlows": N}`; one line.
fn json_line(item: &Item) -> Result<String, Error> {
    let text = match item {
        Item::Flow(flow) => serde_json::to_string(flow),
        Item::Lost(lost) => serde_json::to_string(&serde_json::json!({ "lostFlows": lost.count })),
    };
    Ok(format!("{}\n", text.map_err(std::io::Error::from)?))
}

fn line(item: &Item, zone: &TimeZone) -> String {
    let text = match item {
        Item::Flow(flow) => flow_line(flow, zone),
        Item::Lost(lost) => format!("({} flows lost: authctl was too slow for them)", lost.count),
    };
    format!("{}\n", printable(&text))
}

/// `TIME: SOURCE (ID:n) -> DESTINATION (ID:n) HOOK REASON VERDICT (DETAILS)`. A reply has its arrow turned
/// round, so that the line reads like its connection's others.
fn flow_line(flow: &Flow, zone: &TimeZone) -> String {
    let time = flow.time.and_then(|time| time.to_jiff()).map_or_else(
        || "-".to_owned(),
        |time| time.to_zoned(zone.clone()).strftime("%b %e %H:%M:%S%.3f").to_string(),
    );
    let (source, destination) = (end(flow.source.as_ref()), end(flow.destination.as_ref()));
    let ends =
        if flow.reply { format!("{destination} <- {source}") } else { format!("{source} -> {destination}") };
    let hook = word::of::<Hook>(flow.hook).to_ascii_lowercase();
    let reason = if flow.reason == i32::from(DropReason::Unspecified) {
        String::new()
    } else {
        format!("{} ", word::of::<DropReason>(flow.reason))
    };
    let verdict = word::of::<Verdict>(flow.verdict);
    format!("{time}: {ends} {hook} {reason}{verdict} ({})", details(flow))
}

fn end(end: Option<&FlowEnd>) -> String {
    let Some(end) = end else { return "-".to_owned() };
    let name = match (end.pod.as_str(), end.address.contains(':')) {
        ("", true) if end.port != 0 => format!("[{}]", end.address),
        ("", _) => end.address.clone(),
        (pod, _) => pod.to_owned(),
    };
    let port = if end.port == 0 { String::new() } else { format!(":{}", end.port) };
    let identity = match end.labels.first() {
        // A reserved identity's name says more than its number.
        Some(label) if label.starts_with("reserved:") => label.clone(),
        _ => format!("ID:{}", end.identity),
    };
    format!("{name}{port} ({identity})")
}

fn details(flow: &Flow) -> String {
    let mut details = vec![protocol(flow.protocol), format!("{} bytes", flow.length)];
    if flow.auth_type != i32::from(AuthType::Disabled) {
        let kind = word::of::<AuthType>(flow.auth_type).to_ascii_lowercase().replace('_', "-");
        details.push(format!("auth {kind}"));
    }
    if flow.encrypted {
        details.push("encrypted".to_owned());
    }
    if !flow.remote_node.is_empty() {
        details.push(format!("node {}", flow.remote_node));
    }
    if !flow.service.is_empty() {
        details.push(format!("service {}", flow.service));
    }
    if !flow.rule.is_empty() {
        details.push(format!("by {}", flow.rule));
    }
    if !flow.log.is_empty() {
        details.push(format!("log {:?}", flow.log));
    }
    details.join(", ")
}

fn protocol(number: u32) -> String {
    match number {
        1 => "ICMPv4".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => format!("protocol {other}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        api::v1::LostFlows,
        ctl::{
            cli::{Cli, Command},
            fixture::{self, golden},
        },
    };

    fn items() -> Vec<Item> {
        let lost = Item::Lost(LostFlows { count: 42 });
        fixture::flows().into_iter().map(Item::Flow).chain([lost]).collect()
    }

    #[test]
    fn flows_read_like_this() {
        let text: String = items().iter().map(|item| line(item, &TimeZone::UTC)).collect();
        golden("observe.txt", &text);
    }

    #[test]
    fn flows_are_an_object_a_line() {
        let text: String = items().iter().map(|item| json_line(item).unwrap()).collect();
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(value.is_object());
        }
        golden("observe.jsonl", &text);
    }

    #[test]
    fn a_flow_of_a_newer_daemon_is_shown_by_numbers() {
        let flow = Flow { reason: 99, hook: 77, verdict: 55, ..Flow::default() };
        assert!(flow_line(&flow, &TimeZone::UTC).contains(" 77 99 55 "));
    }

    #[test]
    fn the_last_ones_are_shown_unless_following() {
        let last = |arguments: &[&str]| {
            let cli = Cli::try_parse_from(["authctl", "observe"].iter().chain(arguments)).unwrap();
            let Command::Observe(args) = cli.command else { panic!("{cli:?}") };
            request(&args).last
        };
        assert_eq!(last(&[]), 20);
        assert_eq!(last(&["-f"]), 0);
        assert_eq!(last(&["-f", "--last", "5"]), 5);
    }
}
