//! `authctl identities list` and `authctl identities allocate`.

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use super::{
    cli::{Format, Global},
    client::Daemon,
    error::Error,
    output::{Origin, Output, json},
    table::Table,
    time::relative,
};
use crate::{
    api::v1::{Identity, SvidState},
    cluster::{self, Site},
};

#[derive(Debug, Serialize)]
struct Identities {
    identities: Vec<Identity>,
}

pub(super) async fn list(global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let identities = Daemon::connect(global).await?.identities().await?;
    let now = Timestamp::now();
    output.print(Origin::Daemon, Identities { identities }, |body| table(&body.identities, now))
}

/// Numbers what has no number in `directory`; needs no daemon.
pub(super) fn allocate(directory: &Path, site: &Site, output: &mut Output<'_>) -> Result<(), Error> {
    let summary = cluster::allocate(directory, site)?;
    let text = match output.format {
        Format::Table => format!("{summary}\n"),
        Format::Json => json(&summary)?,
    };
    output.text(&text)
}

fn table(identities: &[Identity], now: Timestamp) -> String {
    let mut table =
        Table::new(["IDENTITY", "NAMESPACE", "SERVICE ACCOUNT", "SVID", "SPIFFE ID", "LOCAL PODS", "LABELS"]);
    for identity in identities {
        let labels = if identity.name.is_empty() {
            identity.labels.join(",")
        } else {
            format!("reserved:{}", identity.name)
        };
        table.row([
            identity.number.to_string(),
            identity.namespace.clone(),
            identity.service_account.clone(),
            svid(identity, now),
            identity.spiffe_id.clone(),
            identity.pods.join(","),
            labels,
        ]);
    }
    table.render()
}

fn svid(identity: &Identity, now: Timestamp) -> String {
    match identity.svid() {
        SvidState::NotNeeded => String::new(),
        SvidState::Pending => "PENDING".to_owned(),
        SvidState::Expired => "EXPIRED".to_owned(),
        SvidState::Withdrawn => "WITHDRAWN".to_owned(),
        SvidState::Available => format!("ends {}", relative(identity.svid_expires, now)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fixture::{self, NOW, golden, golden_json};

    #[test]
    fn identities_read_like_this() {
        golden("identities-list.txt", &table(&fixture::identities(), NOW));
        golden_json("identities-list.json", Identities { identities: fixture::identities() });
    }
}
