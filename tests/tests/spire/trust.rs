//! Rotation of SVIDs and CAs, federation, and bundles of any size.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use spire_adapter::{Bundle, Entry, ExpectedPeer, Snapshot, TrustDomain, verify_chain};

use crate::peers::handshake;
use crate::recorder::Recorder;
use crate::under_test::{HOUR, Kind, PATIENCE, UnderTest, until, until_within, usable};

/// What a re-signing of many SVIDs may take any of them away for: established pairs live through it.
const RESIGNING: Duration = Duration::from_secs(2);
/// Until the last of a thousand has been signed anew.
const RESIGNING_ALL: Duration = Duration::from_secs(120);

pub(crate) async fn rotation_under_load_fails_no_handshake(kind: Kind) {
    const IDENTITIES: u32 = 20;
    let time = match kind {
        Kind::Embedded => Duration::from_secs(25),
        Kind::Real => Duration::from_secs(60),
    };
    let spire = UnderTest::start(kind, Duration::from_secs(20)).await;
    let entries: Vec<Entry> = (0..IDENTITIES)
        .map(|number| spire.entry(if number % 2 == 0 { "n1" } else { "n2" }, 256 + number))
        .collect();
    spire.entries.create(&entries).await.unwrap();
    let agents = [spire.delegated("n1"), spire.delegated("n2")];
    let identities: Vec<_> = (0..IDENTITIES)
        .map(|number| spire.subscribe(&agents[usize::try_from(number % 2).unwrap()], 256 + number))
        .collect();
    for identity in &identities {
        usable(identity).await;
    }
    let recorders: Vec<_> = identities.iter().map(Recorder::start).collect();
    let (done, handshakes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = |offset: usize| {
        let (identities, done, handshakes) = (&identities, &done, &handshakes);
        async move {
            let pairs = identities.iter().zip(identities.iter().cycle().skip(offset));
            for (client, server) in pairs.cycle() {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                handshake(&client.current(), &server.current()).await.unwrap();
                handshakes.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    };
    let timer = async {
        tokio::time::sleep(time).await;
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(load(1), load(3), timer);
    assert!(handshakes.load(Ordering::Relaxed) > 100);
    for recorder in &recorders {
        assert!(recorder.gaps().is_empty(), "{:?}", recorder.gaps());
        // At half of a life of thirty seconds, or when twenty are left.
        let least = usize::try_from(time.as_secs() / 12).unwrap();
        assert!(recorder.svids() >= least, "{} new SVIDs in {time:?}", recorder.svids());
    }
}

/// More than an agent signs at once: SPIRE re-signs a hundred every five seconds after a taint.
pub(crate) async fn a_new_authority_cuts_nothing(kind: Kind) {
    const IDENTITIES: u32 = 1000;
    let spire = UnderTest::start(kind, HOUR).await;
    let entries: Vec<Entry> = (0..IDENTITIES).map(|number| spire.entry("n1", 1000 + number)).collect();
    spire.entries.create(&entries).await.unwrap();
    let agent = spire.delegated("n1");
    let identities: Vec<_> = (0..IDENTITIES).map(|number| spire.subscribe(&agent, 1000 + number)).collect();
    let mut before = Vec::new();
    for identity in &identities {
        before.push(usable(identity).await);
    }
    let recorders: Vec<_> = identities.iter().map(Recorder::start).collect();
    spire.rotate_authority();
    for (identity, before) in identities.iter().zip(&before) {
        let signed_anew = |next: &Snapshot| next.svid().is_some() && next.svid() != before.svid();
        let after = until_within(RESIGNING_ALL, identity, signed_anew).await;
        verified_by(before, &after);
    }
    spire.revoke_old_authority();
    let one_anchor = |next: &Snapshot| {
        next.bundles.get(&spire.trust_domain).is_some_and(|bundle| bundle.certificates().len() == 1)
    };
    for identity in &identities {
        let after = until(identity, one_anchor).await;
        verified_by(&after, &after);
        let refused = verify(&before[0], &after);
        assert!(refused.is_err(), "what the old authority has issued is worth nothing");
    }
    for recorder in &recorders {
        let gaps = recorder.gaps();
        assert!(gaps.iter().all(|gap| *gap < RESIGNING), "{gaps:?}");
    }
}

pub(crate) async fn a_defederated_domain_is_not_trusted(kind: Kind) {
    let a = UnderTest::of("a.test", kind, HOUR).await;
    let b = UnderTest::of("b.test", kind, HOUR).await;
    let bundle_of = async |spire: &UnderTest| {
        let snapshot = usable(&spire.node("n1")).await;
        snapshot.bundles.get(&spire.trust_domain).unwrap().clone()
    };
    a.federate(&bundle_of(&b).await);
    b.federate(&bundle_of(&a).await);
    let entry = |spire: &UnderTest, other: &UnderTest| {
        let mut entry = spire.entry("n1", 256);
        entry.federates_with.insert(other.trust_domain.clone());
        entry
    };
    a.create(entry(&a, &b)).await;
    b.create(entry(&b, &a)).await;
    a.register("n1", 257).await;
    let (agent_a, agent_b) = (a.delegated("n1"), b.delegated("n1"));
    let (at_a, at_b) = (a.subscribe(&agent_a, 256), b.subscribe(&agent_b, 256));
    let aloof = a.subscribe(&agent_a, 257);
    let federated = |subscription, foreign: TrustDomain| async move {
        until(subscription, |next: &Snapshot| next.bundles.get(&foreign).is_some()).await
    };
    let snapshot_a = federated(&at_a, b.trust_domain.clone()).await;
    let snapshot_b = federated(&at_b, a.trust_domain.clone()).await;
    handshake(&snapshot_a, &snapshot_b).await.unwrap();
    handshake(&snapshot_b, &snapshot_a).await.unwrap();
    // The agent has the bundle, but this identity does not federate.
    let aloof = usable(&aloof).await;
    assert_eq!(aloof.bundles.len(), 1);
    handshake(&snapshot_b, &aloof).await.unwrap_err();

    a.defederate(&b.trust_domain);
    let alone = |next: &Snapshot| next.svid().is_some() && next.bundles.len() == 1;
    until(&at_a, alone).await;
    // The agent's bundle stream is sent anew, still with the foreign bundle in it.
    a.rotate_authority();
    let after = until(&at_a, |next| next.svid().is_some() && next.svid() != snapshot_a.svid()).await;
    assert!(after.bundles.get(&b.trust_domain).is_none());
    // It is really there to be mistaken: on this stream for good, on a new one no more.
    let both_anchors =
        || agent_a.announced().get(&a.trust_domain).is_some_and(|it| it.certificates().len() == 2);
    wait_for(both_anchors).await;
    assert!(agent_a.announced().get(&b.trust_domain).is_some());
    let again = a.delegated("n1");
    wait_for(|| !again.announced().is_empty()).await;
    assert!(again.announced().get(&b.trust_domain).is_none());
    handshake(&after, &snapshot_b).await.unwrap_err();
    handshake(&snapshot_b, &after).await.unwrap_err();
    // What was taken back can be given again.
    a.federate(&bundle_of(&b).await);
    let entries = a.entries.list(Some(&a.agent_id("n1"))).await.unwrap();
    let mut again = entries.into_iter().find(|entry| entry.spiffe_id == a.identity(256)).unwrap();
    again.federates_with.insert(b.trust_domain.clone());
    a.update(&again).await;
    let again = federated(&at_a, b.trust_domain.clone()).await;
    b.federate(&bundle_of(&a).await);
    let both = |next: &Snapshot| {
        next.bundles.get(&a.trust_domain).is_some_and(|bundle| bundle.certificates().len() == 2)
    };
    let at_b = until(&at_b, both).await;
    handshake(&again, &at_b).await.unwrap();
}

/// Real servers fetch each other's bundles themselves, each authenticated by the one that it had before.
pub(crate) async fn a_federated_server_is_followed_and_dropped() {
    let a = UnderTest::of("a.test", Kind::Real, HOUR).await;
    let b = UnderTest::of("b.test", Kind::Real, HOUR).await;
    for (here, there) in [(&a, &b), (&b, &a)] {
        let trusted = usable(&there.node("n1")).await.bundles.get(&there.trust_domain).unwrap().clone();
        here.federate_by_endpoint(there, &trusted);
        let mut entry = here.entry("n1", 256);
        entry.federates_with.insert(there.trust_domain.clone());
        here.create(entry).await;
    }
    let (agent_a, agent_b) = (a.delegated("n1"), b.delegated("n1"));
    let (at_a, at_b) = (a.subscribe(&agent_a, 256), b.subscribe(&agent_b, 256));
    let both = |next: &Snapshot| next.svid().is_some() && next.bundles.len() == 2;
    let (before_a, before_b) = (until(&at_a, both).await, until(&at_b, both).await);
    handshake(&before_a, &before_b).await.unwrap();

    b.rotate_authority();
    let signed_anew = |next: &Snapshot| both(next) && next.svid() != before_b.svid();
    let after_b = until(&at_b, signed_anew).await;
    // As long as it has not heard of the new authority.
    handshake(&before_a, &after_b).await.unwrap_err();
    a.refresh_federation(&b.trust_domain);
    let of_b = |next: &Snapshot| next.bundles.get(&b.trust_domain).cloned();
    let after_a = until(&at_a, |next| of_b(next) == after_b.bundles.get(&b.trust_domain).cloned()).await;
    handshake(&after_a, &after_b).await.unwrap();
    handshake(&after_b, &after_a).await.unwrap();

    // What is revoked over there is worth nothing here, once it has been heard of.
    b.revoke_old_authority();
    let revoked =
        until(&at_b, |next| of_b(next).is_some_and(|bundle| bundle.certificates().len() == 1)).await;
    a.refresh_federation(&b.trust_domain);
    let informed = until(&at_a, |next| of_b(next) == of_b(&revoked)).await;
    handshake(&informed, &before_b).await.unwrap_err();
    handshake(&informed, &revoked).await.unwrap();

    a.end_federation(&b.trust_domain);
    let alone = until(&at_a, |next| next.svid().is_some() && next.bundles.len() == 1).await;
    handshake(&alone, &revoked).await.unwrap_err();
}

async fn wait_for(mut wanted: impl FnMut() -> bool) {
    let began = Instant::now();
    while !wanted() {
        assert!(began.elapsed() < PATIENCE, "not seen in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// More than the 4 MiB that gRPC takes by default.
pub(crate) async fn a_message_of_five_megabytes_is_taken(kind: Kind) {
    const DOMAINS: u32 = 25;
    const ANCHORS: usize = 500;
    let spire = UnderTest::start(kind, HOUR).await;
    let mut entry = spire.entry("n1", 256);
    for number in 0..DOMAINS {
        let foreign = TrustDomain::new(format!("domain{number}.test")).unwrap();
        spire.federate(&large_bundle(&foreign, ANCHORS));
        entry.federates_with.insert(foreign);
    }
    spire.create(entry).await;
    let agent = spire.delegated("n1");
    let identity = spire.subscribe(&agent, 256);
    let all = |next: &Snapshot| next.svid().is_some() && next.bundles.len() == 26;
    let snapshot = until(&identity, all).await;
    let bytes: usize =
        snapshot.bundles.iter().flat_map(Bundle::certificates).map(|certificate| certificate.len()).sum();
    assert!(bytes > 5_000_000, "{bytes}");
}

fn large_bundle(trust_domain: &TrustDomain, anchors: usize) -> Bundle {
    let key = KeyPair::generate().unwrap();
    let mut der = Vec::new();
    for number in 0..anchors {
        let mut params = CertificateParams::default();
        let name = format!("{number} {}", "x".repeat(60));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        der.extend_from_slice(params.self_signed(&key).unwrap().der());
    }
    Bundle::from_der(trust_domain.clone(), &der).unwrap()
}

pub(crate) fn verify(
    peer: &Snapshot,
    by: &Snapshot,
) -> Result<spire_adapter::PeerSvid, spire_adapter::Violation> {
    let svid = peer.svid().unwrap();
    let expected = ExpectedPeer::Exact(svid.spiffe_id().clone());
    verify_chain(svid.chain(), &by.bundles, &expected, SystemTime::now())
}

pub(crate) fn verified_by(peer: &Snapshot, by: &Snapshot) {
    verify(peer, by).unwrap();
}
