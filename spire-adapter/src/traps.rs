//! What agents are known to do wrong, played by a stand-in that sends exactly the messages it is told to.

mod ends;
mod keys;
mod limits;
mod opening;
mod stand_in;

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tonic::Status;

pub(crate) use stand_in::StandIn;
use stand_in::{Reply, svid_message};

use crate::authority::{CertificateAuthority, Issued};
use crate::proto::delegated::SvidsResponse;
use crate::proto::workload::{X509Svid, X509SvidResponse};
use crate::{ApiError, Snapshot, SpiffeId, State, Subscription, TrustDomain, workload};

const PATIENCE: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_expired_svid_handed_out_is_never_usable() {
    let (agent, ca) = rig();
    let short = ca.issue(&expected(), Duration::from_secs(2)).unwrap();
    let subscription = agent.subscribe(&expected());
    agent.send(message(&[&short]));
    until(&subscription, |next| next.svid().is_some()).await;
    until(&subscription, |next| next.state == State::Expired).await;
    assert!(SystemTime::now() > short.not_after);
    // The agent repeats it, on this stream and on a new one.
    agent.send(message(&[&short]));
    let second = agent.subscribe(&expected());
    until(&second, |next| next.state == State::Expired).await;
    assert_eq!(subscription.current().state, State::Expired);
    let fresh = ca.issue(&expected(), HOUR).unwrap();
    agent.send(message(&[&fresh]));
    until(&subscription, |next| next.svid().is_some()).await;
}

#[tokio::test]
async fn svids_are_chosen_by_spiffe_id_whatever_their_order() {
    let (agent, ca) = rig();
    let ours = ca.issue(&expected(), HOUR).unwrap();
    let other = ca.issue(&id("/identity/1"), HOUR).unwrap();
    let later = ca.issue(&expected(), 2 * HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    for order in [[&other, &ours, &later], [&later, &other, &ours]] {
        agent.send(message(&order));
        let snapshot = until(&subscription, |next| next.svid().is_some()).await;
        assert_eq!(snapshot.svid().unwrap().chain(), std::slice::from_ref(&later.certificate));
    }
    agent.send(message(&[&other]));
    let withdrawn = until(&subscription, |next| next.state == State::Withdrawn).await;
    let problem = withdrawn.problem.unwrap();
    assert!(matches!(problem, ApiError::OtherIdentity { .. }), "{problem:?}");
    assert!(problem.to_string().contains("spiffe://a.test/identity/1,"), "{problem}");
    agent.send(message(&[]));
    until(&subscription, |next| next.state == State::Withdrawn && next.problem.is_none()).await;
}

#[tokio::test]
async fn identical_messages_notify_nobody() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    agent.send(message(&[&svid]));
    until(&subscription, |next| next.svid().is_some()).await;
    let mut watch = subscription.watch();
    watch.borrow_and_update();
    for _ in 0..5 {
        agent.send(message(&[&svid]));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!watch.has_changed().unwrap());
}

#[tokio::test]
async fn a_gap_shows_at_once_and_closes_with_the_next_message() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    for _ in 0..3 {
        agent.send(message(&[]));
        until(&subscription, |next| next.state == State::Withdrawn).await;
        agent.send(message(&[&svid]));
        until(&subscription, |next| next.svid().is_some()).await;
    }
}

#[tokio::test]
async fn unusable_messages_keep_the_last_good_and_are_told() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let other = ca.issue(&id("/identity/1"), HOUR).unwrap();
    let mut garbage = message(&[&svid]);
    garbage.x509_svids[0].x509_svid.as_mut().unwrap().cert_chain = vec![vec![1, 2, 3]];
    let mut wrong_key = message(&[&svid]);
    wrong_key.x509_svids[0].x509_svid_key = other.key.to_vec();
    let mut renamed = message(&[&other]);
    renamed.x509_svids[0].x509_svid.as_mut().unwrap().id = Some((&expected()).into());
    let mut oversized = message(&[&svid]);
    oversized.federates_with = vec!["x".repeat(21 << 20)];
    let cases = [
        (garbage, "not valid DER"),
        (wrong_key, "does not belong"),
        (renamed, "is that of"),
        (oversized, "too large"),
    ];
    let subscription = agent.subscribe(&expected());
    for (bad, words) in cases {
        agent.send(message(&[&svid]));
        let good = until(&subscription, |next| next.svid().is_some() && !next.stale).await;
        agent.send(bad);
        let kept = until(&subscription, |next| next.stale).await;
        assert_eq!(kept.svid(), good.svid());
        let problem = kept.problem.unwrap();
        assert!(matches!(problem, ApiError::Message { .. }), "{problem:?}");
        assert!(problem.to_string().contains(words), "{problem}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_keep_the_last_good() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    agent.send(message(&[&svid]));
    until(&subscription, |next| next.svid().is_some()).await;
    agent.reply(Reply::Garbage);
    let kept = until(&subscription, |next| next.stale).await;
    assert!(kept.svid().is_some());
    assert!(matches!(kept.problem, Some(ApiError::Message { .. })), "{:?}", kept.problem);
}

#[tokio::test]
async fn refusal_withdraws_and_any_other_status_does_not() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    agent.send(message(&[&svid]));
    until(&subscription, |next| next.svid().is_some()).await;
    for status in [
        Status::unavailable("workload attestation failed"),
        Status::internal("x"),
        Status::resource_exhausted("x"),
    ] {
        agent.reply(Reply::Status(status));
        let kept = until(&subscription, |next| next.stale).await;
        assert!(kept.svid().is_some());
        agent.send(message(&[&svid]));
        until(&subscription, |next| !next.stale).await;
    }
    agent.reply(Reply::Status(Status::permission_denied("no identity issued")));
    let denied = until(&subscription, |next| next.state == State::Withdrawn).await;
    assert!(!denied.stale);
    agent.send(message(&[&svid]));
    until(&subscription, |next| next.svid().is_some()).await;
}

#[tokio::test]
async fn a_defederated_domain_on_the_bundle_stream_is_not_usable() {
    let (agent, ca) = rig();
    let foreign = TrustDomain::new("b.test").unwrap();
    let other = CertificateAuthority::new(&foreign).unwrap();
    agent.send_bundles(&[
        ("spiffe://a.test", ca.certificate()),
        ("spiffe://b.test", other.certificate()),
        ("spiffe://a b", other.certificate()),
        ("spiffe://c.test", &CertificateDer::from(vec![1, 2, 3])),
    ]);
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    let mut federated = message(&[&svid]);
    federated.federates_with = vec!["spiffe://b.test".to_owned(), "spiffe://c.test".to_owned()];
    agent.send(federated);
    let snapshot = until(&subscription, |next| next.bundles.get(&foreign).is_some()).await;
    assert_eq!(snapshot.bundles.len(), 2, "a bundle that cannot be read is left out");
    agent.send(message(&[&svid]));
    until(&subscription, |next| next.svid().is_some() && next.bundles.len() == 1).await;
}

#[tokio::test]
async fn without_the_own_bundle_nothing_is_usable() {
    let (agent, ca) = rig();
    agent.send_bundles(&[]);
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    agent.send(message(&[&svid]));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(subscription.current().state, State::Pending);
    agent.send_bundles(&[("spiffe://a.test", ca.certificate())]);
    until(&subscription, |next| next.svid().is_some()).await;
}

#[tokio::test]
async fn workload_bundles_come_with_the_message_and_go_with_it() {
    let (agent, ca) = rig();
    let foreign = CertificateAuthority::new(&TrustDomain::new("b.test").unwrap()).unwrap();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let mut response = X509SvidResponse {
        svids: vec![X509Svid {
            spiffe_id: expected().to_string(),
            x509_svid: svid.certificate.to_vec(),
            x509_svid_key: svid.key.to_vec(),
            bundle: ca.certificate().to_vec(),
            hint: String::new(),
        }],
        crl: Vec::new(),
        federated_bundles: [
            ("spiffe://b.test".to_owned(), foreign.certificate().to_vec()),
            // A foreign list never speaks for the own domain.
            ("spiffe://a.test".to_owned(), foreign.certificate().to_vec()),
        ]
        .into(),
    };
    agent.send_workload(response.clone());
    let subscription = workload::subscribe(&agent.path, expected());
    let snapshot = until(&subscription, |next| next.svid().is_some()).await;
    assert_eq!(snapshot.bundles.len(), 2);
    let own = snapshot.bundles.get(expected().trust_domain()).unwrap();
    assert_eq!(own.certificates().collect::<Vec<_>>(), [ca.certificate()]);
    response.federated_bundles.clear();
    agent.send_workload(response);
    until(&subscription, |next| next.bundles.len() == 1).await;
}

fn rig() -> (StandIn, CertificateAuthority) {
    let ca = CertificateAuthority::new(&TrustDomain::new("a.test").unwrap()).unwrap();
    let agent = StandIn::start();
    agent.send_bundles(&[("spiffe://a.test", ca.certificate())]);
    (agent, ca)
}

fn message(svids: &[&Issued]) -> SvidsResponse {
    SvidsResponse {
        x509_svids: svids.iter().map(|svid| svid_message(svid)).collect(),
        federates_with: vec![],
    }
}

async fn until(subscription: &Subscription, wanted: impl FnMut(&Snapshot) -> bool) -> Snapshot {
    let mut watch = subscription.watch();
    match tokio::time::timeout(PATIENCE, watch.wait_for(wanted)).await {
        Ok(found) => found.unwrap().clone(),
        Err(_elapsed) => panic!("not seen in time; last: {:?}", subscription.current()),
    }
}

fn expected() -> SpiffeId {
    id("/identity/256")
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::new(format!("spiffe://a.test{path}")).unwrap()
}
