//! The lines that say what becomes of sessions.

use std::collections::BTreeSet;

use super::cluster::{Cluster, key, until, withdrawn};
use crate::logging::lines::{Lines, fields};

#[tokio::test]
async fn each_change_of_a_session_is_one_line_with_the_fields_that_the_operations_guide_has() {
    let lines = Lines::default();
    let _here = tracing::subscriber::set_default(lines.subscriber());
    let of_event =
        |event: &str| lines.audit().into_iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    let mut cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    until("pre-shared keys", || of_event("preshared_key_agreed").len() == 2).await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    until("an entry", || cluster.nodes.values().all(|node| node.entries() == 1)).await;
    cluster.node("n2").agent.give(300, withdrawn());
    until("revocation", || !of_event("identity_revoked").is_empty()).await;
    cluster.stop("n2").await;
    until("failing", || !of_event("session_failing").is_empty()).await;
    let expected: [(&str, &[&str], &[&str]); 5] = [
        ("session_up", &["node", "spiffe_id", "side", "group", "epoch", "expires_in_s"], &["n1", "n2"]),
        ("preshared_key_agreed", &["node", "key"], &["n1", "n2"]),
        ("identity_revoked", &["node", "identity"], &["n2"]),
        ("session_ended", &["node", "reason"], &["n1"]),
        ("session_failing", &["node", "reason", "error"], &["n2"]),
    ];
    for (event, expected, about) in expected {
        let found = of_event(event);
        let nodes: BTreeSet<_> = found.iter().filter_map(|line| line["node"].as_str()).collect();
        assert!(about.iter().all(|node| nodes.contains(node)), "{event}: {nodes:?}");
        for line in &found {
            let mut fields: BTreeSet<&str> = fields(line, event).into_iter().collect();
            // Why it ended, where that is an error.
            let _error = event == "session_ended" && fields.remove("error");
            assert_eq!(fields, expected.iter().copied().collect(), "{event}");
        }
    }
    let up = of_event("session_up");
    assert!(up.iter().all(|line| line["group"] == "X25519MLKEM768" && line["epoch"] == 1), "{up:?}");
    assert_eq!(of_event("identity_revoked")[0]["identity"], 300);
    // A fingerprint, and the same at both ends.
    let agreed = of_event("preshared_key_agreed");
    let keys = |node: &str| {
        agreed
            .iter()
            .filter(|line| line["node"] == node)
            .map(|line| line["key"].to_string())
            .collect::<BTreeSet<_>>()
    };
    assert!(!keys("n1").is_disjoint(&keys("n2")), "{agreed:?}");
}
