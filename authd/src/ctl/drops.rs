//! `authctl drops`: the programs' own counters, read from the pinned `metrics` map.

use auth_ebpf::Metrics;
use auth_ebpf_abi::Verdict;
use serde::Serialize;

use super::{
    cli::Global,
    error::Error,
    output::{Origin, Output},
    pinned,
    table::{Table, count},
};
use crate::api::{v1, word::Word};

/// What was dropped, or would have been, since the maps were made.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Drops {
    drops: Vec<Count>,
    /// Events which the daemon was too slow for.
    lost_events: u64,
}

/// One reason at one hook.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Count {
    hook: &'static str,
    verdict: &'static str,
    reason: &'static str,
    packets: u64,
    bytes: u64,
    meaning: &'static str,
}

pub(super) fn run(global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let metrics = pinned::open(&global.pin_dir)?.metrics()?;
    output.print(Origin::PinnedMaps, drops(&metrics), table)
}

fn drops(metrics: &Metrics) -> Drops {
    let counts = metrics.counters.iter().filter_map(|((hook, verdict, reason), counter)| {
        let reason = (*reason)?;
        (*verdict != Verdict::Forwarded).then(|| Count {
            hook: v1::Hook::from(*hook).word(),
            verdict: verdict.as_str(),
            reason: reason.as_str(),
            packets: counter.packets,
            bytes: counter.bytes,
            meaning: reason.description(),
        })
    });
    Drops { drops: counts.collect(), lost_events: metrics.lost_events }
}

fn table(drops: &Drops) -> String {
    let mut table = Table::new(["HOOK", "VERDICT", "REASON", "PACKETS", "BYTES", "MEANING"]);
    for count in &drops.drops {
        table.row([
            count.hook.to_ascii_lowercase(),
            count.verdict.to_owned(),
            count.reason.to_owned(),
            count.packets.to_string(),
            count.bytes.to_string(),
            count.meaning.to_owned(),
        ]);
    }
    let mut text = table.render();
    if let Ok(lost @ 1..) = usize::try_from(drops.lost_events) {
        let events = count(lost, "event", "events");
        text.push_str(&format!("\n{events} lost: counted above, but in no flow\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use auth_ebpf_abi::{Counter, DropReason, Hook};

    use super::*;
    use crate::ctl::{
        fixture::golden,
        output::{Sourced, json},
    };

    fn metrics() -> Metrics {
        let counter = |packets, bytes| Counter { packets, bytes };
        let counters = BTreeMap::from([
            ((Hook::FromPod, Verdict::Forwarded, None), counter(1_000, 90_000)),
            ((Hook::ToPod, Verdict::Dropped, Some(DropReason::PolicyDenied)), counter(3, 180)),
            ((Hook::ToPod, Verdict::Audit, Some(DropReason::AuthRequired)), counter(1, 60)),
            ((Hook::FromUplink, Verdict::Dropped, Some(DropReason::Unencrypted)), counter(12, 1_008)),
        ]);
        Metrics { counters, lost_events: 5 }
    }

    #[test]
    fn drops_read_like_this() {
        golden("drops.txt", &table(&drops(&metrics())));
        let body = drops(&metrics());
        golden("drops.json", &json(&Sourced { source: Origin::PinnedMaps, body }).unwrap());
    }

    #[test]
    fn what_passed_is_no_drop() {
        assert!(drops(&metrics()).drops.iter().all(|count| count.verdict != "FORWARDED"));
    }
}
