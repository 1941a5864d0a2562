//! Nodes that do not prove pairs over the session, or not all of them.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::{Cluster, TTL, key, listen, until};
use super::hostile::{Hostile, context, hello};
use super::proofs::{cluster, joined, refused};
use crate::auth::stats::Proving;
use crate::auth::{Method, Record};
use crate::peer::authenticator;
use crate::peer::role::Role;
use crate::peer::wire::{Announcement, ProofAnswer, SessionMessage, VERSION};
use crate::peer::{Options, PairProof};

/// A chain that no message of the session has room for: it is dialled for a handshake.
#[tokio::test]
async fn what_does_not_fit_into_the_session_is_tried_by_a_handshake() {
    let front = listen().await;
    let cluster = cluster(PairProof::Session).await;
    let port = front.local_addr().unwrap().port();
    let announced = Announcement { handshake_port: port.into(), ..hello(&[256]) };
    let mut hostile = Hostile::join(&cluster, "n2", announced).await;
    assert!(cluster.node("n2").auth.ask(key(300, 256, 1)));
    let asked = hostile.asked().await;
    let context = authenticator::context_of(Role::Client, &asked.request).unwrap().to_vec();
    let refusal = ProofAnswer { context, authenticator: Vec::new(), refused: "too_large".to_owned() };
    hostile.say(SessionMessage::ProofAnswer(refusal)).await;
    let dialled = tokio::time::timeout(Duration::from_secs(10), front.accept()).await;
    assert!(dialled.is_ok(), "never dialled");
}

#[tokio::test]
async fn a_node_that_wants_handshakes_gets_handshakes() {
    let change = |options: &mut Options| {
        let session = options.node == "n1";
        options.pair_proof = if session { PairProof::Session } else { PairProof::Handshake };
    };
    let cluster = Cluster::start_with(&[&[256, 257], &[300, 301]], TTL, change).await;
    cluster.meshed().await;
    let (n1, n2) = (cluster.node("n1"), cluster.node("n2"));
    assert_eq!((n1.session("n2").unwrap().version, n2.session("n1").unwrap().version), (1, VERSION));
    assert!(n1.auth.ask(key(256, 300, 2)) && n2.auth.ask(key(301, 257, 1)));
    until("both", || n1.entries() == 2 && n2.entries() == 2).await;
    let mut records = n1.auth.records();
    let by_handshake = |records: &Arc<Vec<Record>>| {
        records.len() == 2 && records.iter().all(|record| record.method == Method::Handshake)
    };
    records.wait_for(by_handshake).await.unwrap();
    assert_eq!(n1.stats.proofs(Proving::Made, "ok") + n2.stats.proofs(Proving::Made, "ok"), 0);
}

#[tokio::test]
async fn a_node_that_wants_handshakes_takes_nothing_else() {
    let cluster = cluster(PairProof::Handshake).await;
    let mut hostile = joined(&cluster).await;
    hostile.ask(300, &context(300, 1)).await;
    assert_eq!(hostile.proof().await.refused, "version");
    hostile.request(256, 300, &[1; 32], &[1; 32]).await;
    refused(&cluster, &hostile.pair().await, "version");
}
