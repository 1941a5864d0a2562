//! `authctl svid list`, and `authctl svid check`, which explains each clause that a certificate violates.

mod check;

use jiff::Timestamp;
use serde::Serialize;

pub(super) use self::check::run as check;
use super::{
    cli::Global,
    client::Daemon,
    error::Error,
    output::{Origin, Output},
    table::Table,
    time::relative,
};
use crate::api::v1::{Svid, SvidState};

/// How much of a fingerprint tells two SVIDs apart for people.
const SHORT: usize = 16;

#[derive(Debug, Serialize)]
struct Svids {
    svids: Vec<Svid>,
}

pub(super) async fn list(global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let svids = Daemon::connect(global).await?.svids().await?;
    let now = Timestamp::now();
    output.print(Origin::Daemon, Svids { svids }, |body| table(&body.svids, now))
}

fn table(svids: &[Svid], now: Timestamp) -> String {
    let mut table =
        Table::new(["IDENTITY", "SPIFFE ID", "SVID", "LEAF (SHA-256)", "VERIFIES", "FROM", "PROBLEM"]);
    for svid in svids {
        table.row([
            identity(svid.identity),
            svid.spiffe_id.clone(),
            state(svid, now),
            svid.leaf_sha256.chars().take(SHORT).collect(),
            svid.trust_domains.join(","),
            svid.source.clone(),
            svid.problem.clone(),
        ]);
    }
    table.render()
}

/// The number of an identity; the node itself has none.
pub(super) fn identity(number: u32) -> String {
    if number == 0 { "node".to_owned() } else { number.to_string() }
}

fn state(svid: &Svid, now: Timestamp) -> String {
    match svid.state() {
        SvidState::NotNeeded => String::new(),
        SvidState::Pending => "PENDING".to_owned(),
        SvidState::Expired => "EXPIRED".to_owned(),
        SvidState::Withdrawn => "WITHDRAWN".to_owned(),
        SvidState::Available => format!("ends {}", relative(svid.expires, now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fixture::{self, NOW, golden, golden_json};

    #[test]
    fn svids_read_like_this() {
        golden("svid-list.txt", &table(&fixture::svids(), NOW));
        golden_json("svid-list.json", Svids { svids: fixture::svids() });
    }
}
