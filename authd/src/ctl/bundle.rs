//! `authctl bundle list`.

use jiff::Timestamp;
use serde::Serialize;

use super::{
    cli::Global,
    client::Daemon,
    error::Error,
    output::{Origin, Output},
    svid::identity,
    table::Table,
    time::relative,
};
use crate::api::v1::Bundle;

#[derive(Debug, Serialize)]
struct Bundles {
    bundles: Vec<Bundle>,
}

pub(super) async fn list(global: &Global, output: &mut Output<'_>) -> Result<(), Error> {
    let bundles = Daemon::connect(global).await?.bundles().await?;
    let now = Timestamp::now();
    output.print(Origin::Daemon, Bundles { bundles }, |body| table(&body.bundles, now))
}

/// A row for each anchor; the first of a bundle says who uses it.
fn table(bundles: &[Bundle], now: Timestamp) -> String {
    let mut table = Table::new(["TRUST DOMAIN", "ANCHOR (SHA-256)", "EXPIRES", "USED BY"]);
    for bundle in bundles {
        let users: Vec<_> = bundle.identities.iter().copied().map(identity).collect();
        for (index, anchor) in bundle.anchors.iter().enumerate() {
            table.row([
                bundle.trust_domain.clone(),
                anchor.sha256.clone(),
                relative(anchor.expires, now),
                if index == 0 { users.join(",") } else { String::new() },
            ]);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fixture::{self, NOW, golden, golden_json};

    #[test]
    fn bundles_read_like_this() {
        golden("bundle-list.txt", &table(&fixture::bundles(), NOW));
        golden_json("bundle-list.json", Bundles { bundles: fixture::bundles() });
    }
}
