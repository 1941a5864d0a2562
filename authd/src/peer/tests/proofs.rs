//! What a hostile node may try over its session, and that it leaves no entry.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spire_adapter::Svid;
use spire_adapter::authority::CertificateAuthority;

use super::cluster::{Cluster, TTL, key, until, usable};
use super::hostile::{Hostile, context, hello};
use crate::auth::stats::{Proving, Side};
use crate::handover::Assigned;
use crate::peer::PairProof;
use crate::peer::authenticator;
use crate::peer::role::Role;
use crate::peer::wire::{PairAnswer, ProofAnswer, ProofRequest, Revoke, SessionMessage};

const SHORT: Duration = Duration::from_millis(400);

/// `n1` is hostile, and is said to run 256 and 257; 300 and 301 run on `n2`, 310 on `n3`.
pub(super) async fn cluster(way: PairProof) -> Cluster {
    let change = |options: &mut crate::peer::Options| options.pair_proof = way;
    let mut cluster = Cluster::start_with(&[&[256, 257], &[300, 301], &[310]], TTL, change).await;
    cluster.meshed().await;
    cluster.stop("n1").await;
    cluster
}

fn svid(cluster: &Cluster, identity: u32) -> Svid {
    cluster.svid(&cluster.naming.numbered(identity).unwrap())
}

pub(super) async fn joined(cluster: &Cluster) -> Hostile {
    Hostile::join(cluster, "n2", hello(&[256, 257])).await
}

/// An honest request; the hostile node has its identity's SVID.
async fn request(hostile: &mut Hostile, cluster: &Cluster) -> (Svid, Vec<u8>) {
    let own = svid(cluster, 256);
    let leaf = hostile.leaf_of(300).await;
    hostile.request(256, 300, &own.leaf_hash(), &leaf).await;
    (own, leaf)
}

/// The same, answered and recorded.
async fn recorded(cluster: &Cluster) -> (Hostile, Svid, Vec<u8>) {
    let mut hostile = joined(cluster).await;
    let (own, leaf) = request(&mut hostile, cluster).await;
    hostile.prove_when_asked(&own).await;
    assert!(hostile.pair().await.recorded);
    (hostile, own, leaf)
}

pub(super) fn refused(cluster: &Cluster, answer: &PairAnswer, reason: &str) {
    assert_eq!((answer.recorded, answer.refused.as_str()), (false, reason));
    assert_eq!(cluster.node("n2").entries(), 0);
}

#[tokio::test]
async fn what_is_proven_in_order_is_recorded_and_asked_for_once() {
    let cluster = cluster(PairProof::Session).await;
    let mut hostile = joined(&cluster).await;
    let (own, leaf) = request(&mut hostile, &cluster).await;
    let asked = hostile.asked().await;
    assert_eq!(asked.identity, 256);
    hostile.prove(&asked, &own).await;
    let answer = hostile.pair().await;
    assert_eq!((answer.number, answer.recorded, &answer.to_leaf), (7, true, &leaf));
    assert!(cluster.node("n2").entry(key(300, 256, 1)).is_some());
    // Another pair of the same identity is a word.
    let other = hostile.leaf_of(301).await;
    hostile.request(256, 301, &own.leaf_hash(), &other).await;
    assert!(hostile.pair().await.recorded);
    assert_eq!(cluster.node("n2").stats.proofs(Proving::Verified, "ok"), 1);
}

#[tokio::test]
async fn without_a_proof_there_is_no_pair() {
    let cluster = cluster(PairProof::Session).await;
    let mut hostile = joined(&cluster).await;
    request(&mut hostile, &cluster).await;
    let asked = hostile.asked().await;
    let context = authenticator::context_of(Role::Client, &asked.request).unwrap().to_vec();
    let refusal = ProofAnswer { context, authenticator: Vec::new(), refused: "no_svid".to_owned() };
    hostile.say(SessionMessage::ProofAnswer(refusal)).await;
    refused(&cluster, &hostile.pair().await, "no_svid");
}

#[tokio::test]
async fn an_svid_that_is_not_the_identitys_proves_nothing() {
    let cluster = cluster(PairProof::Session).await;
    let stranger = CertificateAuthority::new(cluster.naming.trust_domain()).unwrap();
    let id = cluster.naming.numbered(256).unwrap();
    let forged = usable(&stranger, &id, TTL).svid().unwrap().clone();
    let node = cluster.svid(&cluster.naming.node("n1").unwrap());
    let cases = [(svid(&cluster, 257), "wrong_identity"), (node, "wrong_identity"), (forged, "certificate")];
    for (shown, reason) in cases {
        // A session of its own each: what was proven with the right key is held.
        let mut hostile = joined(&cluster).await;
        let leaf = hostile.leaf_of(300).await;
        hostile.request(256, 300, &shown.leaf_hash(), &leaf).await;
        hostile.prove_when_asked(&shown).await;
        refused(&cluster, &hostile.pair().await, reason);
    }
}

/// The other's certificate alone, before one's own, and behind it; and by its true key, but more of them than are taken.
#[tokio::test]
async fn a_victims_certificate_without_its_key_proves_nothing() {
    let cluster = cluster(PairProof::Session).await;
    let (victim, own) = (svid(&cluster, 256), svid(&cluster, 257));
    let with = |first: &Svid, more: &Svid| [first.chain(), more.chain()].concat();
    let many = vec![victim.chain()[0].clone(); 9];
    let cases = [
        (victim.chain().to_vec(), &own, "not_proven"),
        (with(&victim, &own), &own, "not_proven"),
        (with(&own, &victim), &own, "wrong_identity"),
        (many, &victim, "certificate"),
    ];
    for (chain, signer, reason) in cases {
        let mut hostile = joined(&cluster).await;
        let leaf = hostile.leaf_of(300).await;
        let shown = spire_adapter::peer_svid(&chain).unwrap().leaf_hash;
        hostile.request(256, 300, &shown, &leaf).await;
        let asked = hostile.asked().await;
        let authenticator = hostile.authenticator(&asked.request, &chain, signer);
        hostile.answer(&asked, authenticator).await;
        refused(&cluster, &hostile.pair().await, reason);
    }
}

#[tokio::test]
async fn an_identity_that_does_not_run_there_is_not_even_asked_for() {
    let cluster = cluster(PairProof::Session).await;
    let mut hostile = Hostile::join(&cluster, "n2", hello(&[256, 310])).await;
    let own = svid(&cluster, 310);
    let leaf = hostile.leaf_of(300).await;
    for (from, to) in [(310, 300), (2, 300), (256, 310), (256, 2)] {
        hostile.request(from, to, &own.leaf_hash(), &leaf).await;
        refused(&cluster, &hostile.pair().await, "unknown_identity");
    }
    // Nor is one of ours proven that runs elsewhere.
    hostile.ask(310, &context(310, 1)).await;
    assert_eq!(hostile.proof().await.refused, "unknown_identity");
}

/// A request that says another identity than its context, is meant for the other end, or is none, gets no answer.
#[tokio::test]
async fn requests_that_are_none_get_no_signature() {
    let cluster = cluster(PairProof::Session).await;
    let mut hostile = joined(&cluster).await;
    hostile.ask(300, &context(301, 1)).await;
    hostile.ask(300, &[1; 32]).await;
    let reflected = authenticator::request(Role::Client, &context(300, 1)).unwrap();
    for request in [reflected, vec![], vec![17; 60_000]] {
        hostile.say(SessionMessage::ProofRequest(ProofRequest { identity: 300, request })).await;
    }
    let stats = &cluster.node("n2").stats;
    until("all refused", || stats.proofs(Proving::Made, "wire") == 5).await;
    assert_eq!(hostile.heard(SHORT).await, None);
    assert_eq!(stats.proofs(Proving::Made, "ok"), 0);
    assert!(cluster.node("n2").session("n1").unwrap().live);
}

/// What the true host says to the liar counts in their session alone. It is asked with the very same context.
#[tokio::test]
async fn a_proof_that_is_relayed_from_the_true_host_counts_for_nothing() {
    let cluster = cluster(PairProof::Session).await;
    for node in ["n2", "n3"] {
        cluster
            .node(node)
            .redirect(|directory| assert!(directory.nodes.get_mut("n1").unwrap().identities.insert(310)))
            .await;
    }
    let mut to_victim = Hostile::join(&cluster, "n2", hello(&[310])).await;
    let mut to_true_host = Hostile::join(&cluster, "n3", hello(&[310])).await;
    let true_leaf = to_true_host.leaf_of(310).await;
    let leaf = to_victim.leaf_of(300).await;
    to_victim.request(310, 300, &true_leaf, &leaf).await;
    let asked = to_victim.asked().await;
    let context = authenticator::context_of(Role::Client, &asked.request).unwrap();
    to_true_host.ask(310, context).await;
    let relayed = to_true_host.proof().await.authenticator;
    assert!(!relayed.is_empty());
    to_victim.answer(&asked, relayed).await;
    refused(&cluster, &to_victim.pair().await, "not_proven");
    assert!(cluster.nodes.values().all(|node| node.entries() == 0));
}

/// An identity that runs at both ends: what we say of ours is said back to us as the other's.
#[tokio::test]
async fn our_own_proof_is_not_theirs() {
    let cluster = cluster(PairProof::Session).await;
    let n2 = cluster.node("n2");
    n2.redirect(|directory| assert!(directory.nodes.get_mut("n1").unwrap().identities.insert(300))).await;
    let mut hostile = Hostile::join(&cluster, "n2", hello(&[300])).await;
    let leaf = hostile.leaf_of(300).await;
    hostile.request(300, 301, &leaf, &[0; 32]).await;
    assert_eq!(hostile.pair().await.refused, "svid_changed", "a leaf that it has no proof of");
    let other = hostile.leaf_of(301).await;
    hostile.request(300, 301, &leaf, &other).await;
    let asked = hostile.asked().await;
    let context = authenticator::context_of(Role::Client, &asked.request).unwrap();
    hostile.ask(300, context).await;
    let ours = hostile.proof().await.authenticator;
    hostile.answer(&asked, ours).await;
    refused(&cluster, &hostile.pair().await, "not_proven");
}

#[tokio::test]
async fn an_old_proof_is_not_a_new_one() {
    let cluster = cluster(PairProof::Session).await;
    let mut hostile = joined(&cluster).await;
    let own = svid(&cluster, 256);
    let leaf = hostile.leaf_of(300).await;
    // A lie about its certificate has it asked again and again.
    hostile.request(256, 300, &[1; 32], &leaf).await;
    let first = hostile.asked().await;
    let old = hostile.authenticator(&first.request, own.chain(), &own);
    hostile.answer(&first, old.clone()).await;
    refused(&cluster, &hostile.pair().await, "svid_changed");
    hostile.request(256, 300, &[1; 32], &leaf).await;
    let second = hostile.asked().await;
    assert_ne!(first.request, second.request);
    // To the first request, which has been answered: nobody waits. Then to the second.
    hostile.answer(&first, old.clone()).await;
    hostile.answer(&second, old).await;
    refused(&cluster, &hostile.pair().await, "not_proven");
}

#[tokio::test]
async fn a_lie_about_a_certificate_is_recorded_nowhere() {
    let cluster = cluster(PairProof::Session).await;
    let mut hostile = joined(&cluster).await;
    let (own, next) = (svid(&cluster, 256), svid(&cluster, 256));
    let leaf = hostile.leaf_of(300).await;
    for (from_leaf, to_leaf) in [(&own.leaf_hash()[..], &[1; 32][..]), (&own.leaf_hash(), &[]), (&[], &leaf)]
    {
        hostile.request(256, 300, from_leaf, to_leaf).await;
        if to_leaf == leaf {
            hostile.prove_when_asked(&own).await;
        }
        let answer = hostile.pair().await;
        refused(&cluster, &answer, "svid_changed");
        assert_eq!(answer.to_leaf, leaf, "it is told the right one");
    }
    // Another certificate of the same identity has to be proven by itself.
    hostile.request(256, 300, &next.leaf_hash(), &leaf).await;
    hostile.prove_when_asked(&next).await;
    assert!(hostile.pair().await.recorded);
}

#[tokio::test]
async fn what_is_taken_back_has_to_be_proven_anew() {
    let cluster = cluster(PairProof::Session).await;
    let n2 = cluster.node("n2");
    let (mut hostile, own, leaf) = recorded(&cluster).await;
    let withdrawals =
        [SessionMessage::Revoke(Revoke { identity: 256 }), SessionMessage::Update(hello(&[257]))];
    for withdrawal in withdrawals {
        hostile.say(withdrawal).await;
        until("gone", || n2.entries() == 0).await;
        hostile.request(256, 300, &own.leaf_hash(), &leaf).await;
        hostile.prove_when_asked(&own).await;
        let answer = hostile.pair().await;
        // The machine hears of it after us, but before it hears of the pair.
        assert!(["overtaken", "not_announced"].contains(&answer.refused.as_str()), "{answer:?}");
        refused(&cluster, &answer, &answer.refused);
        hostile.say(SessionMessage::Update(hello(&[256, 257]))).await;
    }
}

#[tokio::test]
async fn a_raised_epoch_and_a_flush_have_identities_prove_themselves_anew() {
    let cluster = cluster(PairProof::Session).await;
    let n2 = cluster.node("n2");
    let (mut hostile, own, leaf) = recorded(&cluster).await;
    for epoch in [1, 2] {
        if epoch == 1 {
            n2.peers.forget_proofs();
        } else {
            let raised = crate::peer::wire::Announcement { epoch, ..hello(&[256, 257]) };
            hostile.say(SessionMessage::Update(raised)).await;
            until("raised", || n2.session("n1").is_some_and(|session| session.epoch == epoch)).await;
        }
        hostile.request(256, 300, &own.leaf_hash(), &leaf).await;
        hostile.prove_when_asked(&own).await;
        hostile.pair().await;
    }
    assert_eq!(n2.stats.proofs(Proving::Verified, "ok"), 3);
}

#[tokio::test]
async fn a_proof_that_comes_after_the_identity_was_taken_back_counts_for_nothing() {
    let cluster = cluster(PairProof::Session).await;
    let mut hostile = joined(&cluster).await;
    let (own, _) = request(&mut hostile, &cluster).await;
    let asked = hostile.asked().await;
    hostile.say(SessionMessage::Revoke(Revoke { identity: 256 })).await;
    hostile.prove(&asked, &own).await;
    let answer = hostile.pair().await;
    assert!(["overtaken", "no_session"].contains(&answer.refused.as_str()), "{answer:?}");
    refused(&cluster, &answer, &answer.refused);
}

#[tokio::test]
async fn proofs_and_requests_die_with_their_session() {
    let cluster = cluster(PairProof::Session).await;
    let n2 = cluster.node("n2");
    let mut first = joined(&cluster).await;
    let own = svid(&cluster, 257);
    let leaf = first.leaf_of(301).await;
    first.request(257, 301, &own.leaf_hash(), &leaf).await;
    let asked = first.asked().await;
    first.prove(&asked, &own).await;
    assert!(first.pair().await.recorded);
    let (other, _) = request(&mut first, &cluster).await;
    let pending = first.asked().await;
    let mut second = joined(&cluster).await;
    let late = first.authenticator(&pending.request, other.chain(), &other);
    let context = authenticator::context_of(Role::Client, &pending.request).unwrap().to_vec();
    let late =
        SessionMessage::ProofAnswer(ProofAnswer { context, authenticator: late, refused: String::new() });
    // The old session may be closed already; in the new one nobody has asked.
    first.try_say(late.clone()).await.unwrap_or_default();
    second.say(late).await;
    assert_eq!(second.heard(SHORT).await, None);
    assert_eq!(n2.entry(key(300, 256, 1)), None);
    second.request(257, 301, &own.leaf_hash(), &leaf).await;
    assert_eq!(second.asked().await.identity, 257, "asked for anew");
}

#[tokio::test]
async fn answers_that_nobody_waits_for_change_nothing() {
    let cluster = cluster(PairProof::Session).await;
    let n2 = cluster.node("n2");
    let mut hostile = joined(&cluster).await;
    for number in 0..50 {
        let pair = PairAnswer { number, recorded: true, refused: String::new(), to_leaf: vec![0; 32] };
        hostile.say(SessionMessage::PairAnswer(pair)).await;
        let context = context(256, u8::try_from(number).unwrap());
        let proof = ProofAnswer { context, authenticator: vec![11; 5000], refused: String::new() };
        hostile.say(SessionMessage::ProofAnswer(proof)).await;
    }
    hostile.leaf_of(300).await;
    assert_eq!((n2.entries(), n2.session("n1").unwrap().live), (0, true));
}

/// It pays with its own time: others are served, and its budget is the same in the next session.
#[tokio::test]
async fn a_flood_of_requests_is_bounded_by_nodes_not_by_sessions() {
    let cluster = cluster(PairProof::Session).await;
    let n2 = cluster.node("n2");
    let began = Instant::now();
    for _ in 0..2 {
        let mut hostile = joined(&cluster).await;
        for round in 0..1500u32 {
            let context = [300u32.to_be_bytes().to_vec(), round.to_be_bytes().repeat(8)].concat();
            hostile.ask(300, &context).await;
            hostile.heard(Duration::from_secs(10)).await.expect("an answer, one way or the other");
        }
    }
    let (made, busy) = (n2.stats.proofs(Proving::Made, "ok"), n2.stats.proofs(Proving::Made, "busy"));
    assert_eq!(made + busy, 3000);
    // What it may at once, and one each 5 ms since.
    let since = u64::try_from(began.elapsed().as_millis()).unwrap() / 5;
    assert!((1024..=1024 + since + 1).contains(&made), "{made} {busy} {since}");
    assert!(n2.auth.ask(key(300, 310, 3)));
    until("another node's pair", || n2.entry(key(300, 310, 3)).is_some()).await;
}

/// As server it says what it likes: no entry before it has said that it has recorded the very same.
#[tokio::test]
async fn the_client_records_nothing_that_the_server_has_not() {
    let cluster = cluster(PairProof::Session).await;
    let n2 = cluster.node("n2");
    let mut hostile = joined(&cluster).await;
    let own = svid(&cluster, 256);
    assert!(n2.auth.ask(key(300, 256, 1)));
    hostile.prove_when_asked(&own).await;
    let refusals = [
        (PairAnswer { refused: "not_desired".to_owned(), ..PairAnswer::default() }, "not_desired"),
        (PairAnswer { recorded: true, to_leaf: vec![1; 32], ..PairAnswer::default() }, "not_proven"),
        (PairAnswer { refused: "no word of ours".to_owned(), ..PairAnswer::default() }, "refused"),
    ];
    for (answer, reason) in refusals {
        let pair = loop {
            let heard = hostile.hear().await;
            if let SessionMessage::PairRequest(pair) = heard {
                break pair;
            }
            let SessionMessage::ProofRequest(asked) = heard else { panic!("{heard:?}") };
            hostile.prove(&asked, &own).await;
        };
        assert_eq!((pair.from, pair.to, &*pair.to_leaf), (300, 256, &own.leaf_hash()[..]));
        assert_eq!(n2.entries(), 0, "not before the answer");
        hostile.say(SessionMessage::PairAnswer(PairAnswer { number: pair.number, ..answer })).await;
        until(reason, || n2.stats.count(Side::Client, reason) > 0).await;
        assert_eq!(n2.entries(), 0);
        // At once, whatever failed before.
        hostile.say(SessionMessage::Update(hello(&[256]))).await;
        hostile.say(SessionMessage::Update(hello(&[256, 257]))).await;
    }
}

/// It is told of 20 MB of addresses, and reads none of it.
#[tokio::test]
async fn a_node_that_does_not_read_is_heard_all_the_same() {
    let cluster = cluster(PairProof::Session).await;
    let n2 = cluster.node("n2");
    let mut hostile = joined(&cluster).await;
    let address = |last: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]);
    for epoch in 1..=200 {
        let owners = (0..4096).map(|last| (address(last), 300 + epoch % 2)).collect();
        n2.assigned.send_replace(Arc::new(Assigned { epoch, owners }));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    hostile.say(SessionMessage::Update(hello(&[257]))).await;
    let identities =
        || n2.session("n1").map(|session| session.identities.iter().copied().collect::<Vec<_>>());
    until("heard", || identities() == Some(vec![257])).await;
    assert!(n2.session("n1").unwrap().live, "it has lost nothing by that");
    // What it reads in the end begins where it has stopped reading, and is whole.
    assert_eq!(hostile.leaf_of(300).await.len(), 32);
}
