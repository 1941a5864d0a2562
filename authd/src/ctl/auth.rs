//! `authctl auth list`, `authctl auth explain` and `authctl auth flush`.

mod explain;

use jiff::Timestamp;
use serde::Serialize;

pub(super) use explain::explain;

use super::{
    cli::Global,
    client::Daemon,
    error::Error,
    output::{Origin, Output},
    pinned,
    table::{Table, count},
    time::{Clock, relative},
};
use crate::api::{
    v1::{AuthEntry, AuthType},
    word,
};

#[derive(Debug, Serialize)]
struct Entries {
    entries: Vec<AuthEntry>,
}

pub(super) async fn list(global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let asked = async { Daemon::connect(global).await?.auth_entries().await };
    let (origin, entries) = match asked.await {
        Ok(entries) => (Origin::Daemon, entries),
        Err(error) => {
            let pinned = pinned::instead_of(error, global, output)?;
            (Origin::PinnedMaps, pinned.auth_entries(&Clock::read()?))
        }
    };
    let now = Timestamp::now();
    output.print(origin, Entries { entries }, |body| table(&body.entries, now))
}

#[derive(Debug, Serialize)]
struct Flushed {
    flushed: u32,
}

pub(super) async fn flush(global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let asked = async { Daemon::connect(global).await?.flush_auth().await };
    let (origin, flushed) = match asked.await {
        Ok(flushed) => (Origin::Daemon, flushed),
        // To take authentications away needs no daemon; to get them again does.
        Err(error) => {
            let pinned = pinned::instead_of(error, global, output)?;
            (Origin::PinnedMaps, pinned.flush_auth(&global.pin_dir)?)
        }
    };
    output.print(origin, Flushed { flushed }, |body| {
        let ended = count(body.flushed as usize, "authentication", "authentications");
        format!("{ended} ended; pairs that need one authenticate anew\n")
    })
}

fn table(entries: &[AuthEntry], now: Timestamp) -> String {
    let mut table = Table::new([
        "LOCAL IDENTITY",
        "REMOTE IDENTITY",
        "REMOTE NODE",
        "AUTH TYPE",
        "EXPIRES",
        "LOCAL SPIFFE ID",
        "REMOTE SPIFFE ID",
        "PROVEN BY",
        "GROUP",
        "WHY",
    ]);
    for entry in entries {
        table.row([
            entry.local_identity.to_string(),
            entry.remote_identity.to_string(),
            node(entry),
            word::of::<AuthType>(entry.auth_type).to_ascii_lowercase().replace('_', "-"),
            expires(entry, now),
            entry.local_spiffe_id.clone(),
            entry.remote_spiffe_id.clone(),
            entry.method.clone(),
            entry.tls_group.clone(),
            entry.why.clone(),
        ]);
    }
    table.render()
}

fn node(entry: &AuthEntry) -> String {
    match (entry.remote_node, entry.remote_node_name.as_str()) {
        (0, _) => "this node".to_owned(),
        (number, "") => format!("({number})"),
        (number, name) => format!("{name} ({number})"),
    }
}

fn expires(entry: &AuthEntry, now: Timestamp) -> String {
    let over = entry.expires.and_then(|time| time.to_jiff()).is_some_and(|time| time <= now);
    match (entry.valid, over) {
        (_, true) => "expired".to_owned(),
        (false, false) => "revoked".to_owned(),
        (true, false) => relative(entry.expires, now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fixture::{self, NOW, golden, golden_json};

    #[test]
    fn entries_read_like_this() {
        golden("auth-list.txt", &table(&fixture::entries(), NOW));
        golden_json("auth-list.json", Entries { entries: fixture::entries() });
    }

    #[test]
    fn no_entries_are_a_header_or_an_empty_list() {
        assert_eq!(table(&[], NOW).lines().count(), 1);
        golden_json("auth-list-empty.json", Entries { entries: Vec::new() });
    }

    #[test]
    fn a_flush_says_how_many() {
        golden_json("auth-flush.json", Flushed { flushed: 2 });
    }
}
