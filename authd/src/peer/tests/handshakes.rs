//! Pairs between honest nodes, proven by handshakes and over the session.

use std::time::{Duration, Instant};

use spire_adapter::authority::CertificateAuthority;

use super::cluster::{Cluster, TTL, key, trusting, until, withdrawn};
use crate::auth::stats::Side;
use crate::auth::{Event, Method, Why};
use crate::peer::PairProof;

super::both_ways! {
    a_handshake_gives_entries_on_both_sides,
    the_node_that_did_not_dial_the_session_can_ask_as_well,
    a_request_before_the_session_is_served_when_it_is_up,
    a_pair_on_one_node_needs_no_network,
    a_withdrawn_svid_removes_both_entries_within_a_second_and_restored_they_come_back,
    a_gap_that_is_no_withdrawal_cuts_nothing,
    saying_again_that_an_svid_is_missing_puts_its_withdrawal_off_by_nothing,
    rotation_every_second_renews_without_a_gap,
    a_restart_keeps_entries_and_renews_them,
    a_raised_epoch_ends_what_the_node_vouched_for,
    an_identity_that_leaves_a_node_loses_its_entries_at_both_ends,
    an_identity_that_comes_back_and_leaves_again_loses_its_entries_again,
    policy_decides_at_the_server_as_well,
    many_requests_for_one_pair_are_one_handshake,
    a_revocation_that_the_svids_return_has_overtaken_is_not_for_ever,
    an_anchor_that_leaves_the_bundle_takes_with_it_what_rests_on_it,
}

async fn start(way: PairProof, identities: &[&[u32]]) -> Cluster {
    Cluster::start_with(identities, TTL, |options| options.pair_proof = way).await
}

async fn authenticated(way: PairProof, identities: &[&[u32]]) -> Cluster {
    let cluster = start(way, identities).await;
    cluster.meshed().await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    until("entry at n1", || cluster.node("n1").entry(key(256, 300, 2)).is_some()).await;
    cluster
}

async fn a_handshake_gives_entries_on_both_sides(way: PairProof) {
    let cluster = authenticated(way, &[&[256], &[300]]).await;
    let (n1, n2) = (cluster.node("n1"), cluster.node("n2"));
    // The server records first, so there is nothing to wait for.
    let (client, server) = (n1.entry(key(256, 300, 2)).unwrap(), n2.entry(key(300, 256, 1)).unwrap());
    assert!(client.expires.abs_diff(server.expires) < 50_000_000, "{client:?} {server:?}");
    assert_eq!((client.epoch, server.epoch), (1, 1));
    let mut records = n1.auth.records();
    records.wait_for(|records| !records.is_empty()).await.unwrap();
    let record = records.borrow().first().cloned().unwrap();
    assert_eq!(record.local_spiffe, cluster.naming.numbered(256));
    assert_eq!(record.remote_spiffe, cluster.naming.numbered(300));
    assert_eq!((record.group, record.why), ("X25519MLKEM768", Why::Requested));
    let method = match way {
        PairProof::Handshake => Method::Handshake,
        PairProof::Session => Method::Session,
    };
    assert_eq!(record.method, method);
    let mut records = n2.auth.records();
    records
        .wait_for(|records| records.first().is_some_and(|record| record.why == Why::Accepted))
        .await
        .unwrap();
    assert_eq!((n1.stats.count(Side::Client, "ok"), n2.stats.count(Side::Server, "ok")), (1, 1));
    assert_eq!((n1.entries(), n2.entries()), (1, 1));
}

async fn the_node_that_did_not_dial_the_session_can_ask_as_well(way: PairProof) {
    let cluster = start(way, &[&[256], &[300]]).await;
    cluster.meshed().await;
    assert!(cluster.node("n2").auth.ask(key(300, 256, 1)));
    until("entry at n2", || cluster.node("n2").entry(key(300, 256, 1)).is_some()).await;
    assert!(cluster.node("n1").entry(key(256, 300, 2)).is_some());
}

async fn a_request_before_the_session_is_served_when_it_is_up(way: PairProof) {
    let cluster = start(way, &[&[256], &[300]]).await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    until("entry", || cluster.node("n2").entry(key(300, 256, 1)).is_some()).await;
}

async fn a_pair_on_one_node_needs_no_network(way: PairProof) {
    let cluster = start(way, &[&[256, 257]]).await;
    let n1 = cluster.node("n1");
    assert!(n1.auth.ask(key(257, 256, 0)));
    until("both directions", || n1.entry(key(256, 257, 0)).is_some() && n1.entry(key(257, 256, 0)).is_some())
        .await;
    assert!(n1.auth.ask(key(256, 256, 0)));
    until("with itself", || n1.entry(key(256, 256, 0)).is_some()).await;
    n1.agent.give(257, withdrawn());
    until("gone", || n1.entries() == 1).await;
}

async fn a_withdrawn_svid_removes_both_entries_within_a_second_and_restored_they_come_back(way: PairProof) {
    let cluster = authenticated(way, &[&[256], &[300]]).await;
    for (node, identity) in [("n1", 256), ("n2", 300)] {
        let began = Instant::now();
        cluster.node(node).agent.give(identity, withdrawn());
        until("both gone", || cluster.nodes.values().all(|node| node.entries() == 0)).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(cluster.nodes.values().all(|node| node.entries() == 0));
        cluster.issue(node, identity, TTL);
        until("both back", || cluster.nodes.values().all(|node| node.entries() == 1)).await;
    }
}

async fn a_gap_that_is_no_withdrawal_cuts_nothing(way: PairProof) {
    let cluster = authenticated(way, &[&[256], &[300]]).await;
    let before = cluster.node("n1").entry(key(256, 300, 2));
    for _ in 0..20 {
        cluster.node("n1").agent.give(256, withdrawn());
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.issue("n1", 256, TTL);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(cluster.node("n1").entry(key(256, 300, 2)), before);
    assert!(cluster.node("n2").entry(key(300, 256, 1)).is_some());
}

#[tokio::test]
async fn an_identity_has_one_stream_for_as_long_as_it_runs_here() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    let n1 = cluster.node("n1");
    let open = |identities: [u32; 3]| identities.map(|identity| n1.agent.open(identity));
    until("its first pod is here", || open([256, 257, 300]) == [1, 0, 0]).await;
    let id = cluster.naming.numbered(257).unwrap();
    n1.redirect(|directory| {
        directory.identities.insert(257, id);
        directory.nodes.get_mut("n1").unwrap().identities.insert(257);
    })
    .await;
    until("another one's is", || open([256, 257, 300]) == [1, 1, 0]).await;
    n1.redirect(|directory| {
        directory.nodes.get_mut("n1").unwrap().identities.remove(&256);
        directory.nodes.get_mut("n2").unwrap().identities.insert(256);
    })
    .await;
    until("its last pod is gone", || open([256, 257, 300]) == [0, 1, 0]).await;
}

async fn saying_again_that_an_svid_is_missing_puts_its_withdrawal_off_by_nothing(way: PairProof) {
    let cluster = authenticated(way, &[&[256], &[300]]).await;
    let began = Instant::now();
    while cluster.nodes.values().any(|node| node.entries() != 0) {
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        cluster.node("n1").agent.give(256, withdrawn());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() > Duration::from_millis(200), "taken for a withdrawal at once");
}

async fn rotation_every_second_renews_without_a_gap(way: PairProof) {
    // Certificates end on whole seconds, so up to one less.
    let ttl = Duration::from_secs(3);
    let cluster = start(way, &[&[256], &[300]]).await;
    cluster.issue("n1", 256, ttl);
    cluster.issue("n2", 300, ttl);
    cluster.meshed().await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    until("entry", || cluster.node("n1").entry(key(256, 300, 2)).is_some()).await;
    let began = Instant::now();
    let mut rotated = began;
    while began.elapsed() < Duration::from_secs(6) {
        if rotated.elapsed() >= Duration::from_millis(700) {
            rotated = Instant::now();
            cluster.issue("n1", 256, ttl);
            cluster.issue("n2", 300, ttl);
        }
        assert!(cluster.node("n1").entry(key(256, 300, 2)).is_some(), "gap after {:?}", began.elapsed());
        assert!(cluster.node("n2").entry(key(300, 256, 1)).is_some(), "gap after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn a_restart_keeps_entries_and_renews_them(way: PairProof) {
    let mut cluster = authenticated(way, &[&[256], &[300]]).await;
    for name in ["n1", "n2"] {
        cluster.restart(name).await;
        cluster.meshed().await;
        assert!(cluster.node("n1").entry(key(256, 300, 2)).is_some(), "after the restart of {name}");
        assert!(cluster.node("n2").entry(key(300, 256, 1)).is_some(), "after the restart of {name}");
    }
    until("renewed", || {
        cluster.node("n2").stats.count(Side::Client, "ok") > 0
            || cluster.node("n2").stats.count(Side::Server, "ok") > 0
    })
    .await;
}

async fn a_raised_epoch_ends_what_the_node_vouched_for(way: PairProof) {
    let cluster = authenticated(way, &[&[256], &[300]]).await;
    cluster.node("n2").own.send_modify(|own| own.epoch = 2);
    until("authenticated under the new epoch", || {
        cluster.node("n1").entry(key(256, 300, 2)).is_some_and(|entry| entry.epoch == 2)
    })
    .await;
}

async fn an_identity_that_leaves_a_node_loses_its_entries_at_both_ends(way: PairProof) {
    let cluster = authenticated(way, &[&[256], &[300]]).await;
    cluster
        .node("n2")
        .redirect(|directory| assert!(directory.nodes.get_mut("n2").unwrap().identities.remove(&300)))
        .await;
    until("both gone", || cluster.nodes.values().all(|node| node.entries() == 0)).await;
}

/// In another system the collection of entries whose identity had left its node stopped after the first time.
async fn an_identity_that_comes_back_and_leaves_again_loses_its_entries_again(way: PairProof) {
    let cluster = start(way, &[&[256], &[300]]).await;
    cluster.meshed().await;
    for round in 0..3 {
        assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
        until("entries", || cluster.nodes.values().all(|node| node.entries() == 1)).await;
        let n2 = cluster.node("n2");
        n2.redirect(|directory| assert!(directory.nodes.get_mut("n2").unwrap().identities.remove(&300)))
            .await;
        until("both gone", || cluster.nodes.values().all(|node| node.entries() == 0)).await;
        n2.redirect(|directory| {
            assert!(directory.nodes.get_mut("n2").unwrap().identities.insert(300), "{round}")
        })
        .await;
    }
}

async fn policy_decides_at_the_server_as_well(way: PairProof) {
    let cluster = start(way, &[&[256], &[300]]).await;
    cluster.meshed().await;
    let n2 = cluster.node("n2");
    let placed = n2.directory.borrow().placed("n2");
    let nothing = crate::auth::Desired { pairs: Some(policy::AuthenticationPairs::default()), placed };
    n2.auth.tell(Event::Desired(std::sync::Arc::new(nothing))).await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    until("refused", || n2.stats.count(Side::Server, "not_desired") > 0).await;
    until("told so", || cluster.node("n1").stats.count(Side::Client, "not_desired") > 0).await;
    assert_eq!((cluster.node("n1").entries(), n2.entries()), (0, 0));
}

async fn many_requests_for_one_pair_are_one_handshake(way: PairProof) {
    let cluster = start(way, &[&[256], &[300]]).await;
    cluster.meshed().await;
    let n1 = cluster.node("n1");
    let taken = (0..10_000).filter(|_| n1.auth.ask(key(256, 300, 2))).count();
    until("entry", || n1.entry(key(256, 300, 2)).is_some()).await;
    assert_eq!(u64::try_from(10_000 - taken).unwrap(), n1.auth.dropped());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(n1.stats.count(Side::Client, "ok"), 1);
}

/// The word of the loss is said after the word of the return: what is so now has to be said last.
async fn a_revocation_that_the_svids_return_has_overtaken_is_not_for_ever(way: PairProof) {
    let cluster = authenticated(way, &[&[256], &[300]]).await;
    let n2 = cluster.node("n2");
    assert!(cluster.node("n1").peers.0.table.send(2, crate::peer::table::Outgoing::Revoke(256)));
    until("revoked", || n2.entry(key(300, 256, 1)).is_none()).await;
    assert!(n2.auth.ask(key(300, 256, 1)));
    until("back", || n2.entry(key(300, 256, 1)).is_some()).await;
}

async fn an_anchor_that_leaves_the_bundle_takes_with_it_what_rests_on_it(way: PairProof) {
    let cluster = authenticated(way, &[&[256, 257], &[300]]).await;
    let n1 = cluster.node("n1");
    assert!(n1.auth.ask(key(256, 257, 0)));
    until("on one node", || n1.entry(key(256, 257, 0)).is_some()).await;
    let other = CertificateAuthority::new(cluster.naming.trust_domain()).unwrap();
    let id = |identity| cluster.naming.numbered(identity).unwrap();
    let give = |anchors: &[&CertificateAuthority]| {
        n1.agent.give(256, trusting(&cluster.ca, anchors, &id(256)));
    };
    // One more, and away again: everything can be proven without it.
    give(&[&cluster.ca, &other]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let proofs = |node: &str, side| cluster.node(node).stats.count(side, "ok");
    let before = (proofs("n1", Side::Client), proofs("n1", Side::Local));
    give(&[&cluster.ca]);
    until("proven anew", || {
        let proofs = (proofs("n1", Side::Client), proofs("n1", Side::Local));
        assert!(n1.entry(key(256, 300, 2)).is_some() && n1.entry(key(257, 256, 0)).is_some(), "no gap");
        proofs.0 > before.0 && proofs.1 > before.1
    })
    .await;
    // The one on which the others' SVIDs rest.
    let began = Instant::now();
    give(&[&other]);
    until("gone", || n1.entries() == 0).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(
        n1.stats.count(Side::Client, "certificate") > 0 && n1.stats.count(Side::Local, "certificate") > 0
    );
}
