//! Agents and servers that die, stop, hang, or say what is not so.

use std::time::{Duration, Instant, SystemTime};

use authd_tests::spire::Options;
use spire_adapter::{ApiError, Entry, Outcome, State};

use crate::recorder::Recorder;
use crate::trust::{verified_by, verify};
use crate::under_test::{HOUR, Kind, PATIENCE, UnderTest, options, until, usable};

pub(crate) async fn a_killed_agent_withdraws_nothing_and_is_found_again(kind: Kind) {
    let mut spire = UnderTest::start(kind, HOUR).await;
    spire.register("n1", 256).await;
    let agent = spire.delegated("n1");
    let (identity, node) = (spire.subscribe(&agent, 256), spire.node("n1"));
    let before = usable(&identity).await;
    usable(&node).await;
    spire.kill_agent("n1").await;
    for subscription in [&identity, &node] {
        let away = until(subscription, |next| next.stale).await;
        assert!(away.svid().is_some(), "the last good counts");
        until(subscription, |next| {
            matches!(next.problem, Some(ApiError::Missing { .. } | ApiError::Refused { .. }))
        })
        .await;
    }
    assert_eq!(identity.current().svid(), before.svid());
    let recorder = Recorder::start(&identity);
    spire.start_agent("n1");
    for subscription in [&identity, &node] {
        let back = until(subscription, |next| !next.stale).await;
        assert_eq!(back.problem, None);
    }
    let gaps = recorder.gaps();
    assert!(gaps.iter().all(|gap| *gap < Duration::from_secs(3)), "{gaps:?}");
    usable(&identity).await;
}

pub(crate) async fn a_stopped_agent_is_noticed_and_its_svids_expire(kind: Kind) {
    let mut spire = UnderTest::start(kind, Duration::from_secs(20)).await;
    spire.register("n1", 256).await;
    let agent = spire.delegated("n1");
    let identity = spire.subscribe(&agent, 256);
    usable(&identity).await;
    spire.freeze_agent("n1", true);
    let before = identity.current();
    let not_after = before.svid().unwrap().not_after();
    // The connection stands and says nothing: only the watchdog finds out.
    let silent = until(&identity, |next| next.stale).await;
    assert!(SystemTime::now() < not_after, "noticed before it hurts");
    assert_eq!(silent.svid(), before.svid());
    assert!(silent.problem.unwrap().to_string().contains("may be stuck"));
    let expired = until(&identity, |next| next.state == State::Expired).await;
    assert!(SystemTime::now() > not_after && expired.bundles.is_empty());
    spire.freeze_agent("n1", false);
    usable(&identity).await;
}

pub(crate) async fn expired_svids_of_a_live_agent_are_never_usable(kind: Kind) {
    let mut spire = UnderTest::start(kind, Duration::from_secs(10)).await;
    spire.register("n1", 256).await;
    let agent = spire.delegated("n1");
    let (identity, node) = (spire.subscribe(&agent, 256), spire.node("n1"));
    usable(&identity).await;
    usable(&node).await;
    spire.stop_server().await;
    for subscription in [&identity, &node] {
        until(subscription, |next| next.state == State::Expired).await;
    }
    // The agent is well and hands the expired SVID to whoever asks anew.
    let fresh = spire.subscribe(&spire.delegated("n1"), 256);
    let node_fresh = spire.node("n1");
    for subscription in [&fresh, &node_fresh] {
        let handed_out = until(subscription, |next| next.state != State::Pending).await;
        assert_eq!((handed_out.state, handed_out.stale), (State::Expired, false));
    }
    spire.start_server();
    for subscription in [&identity, &node, &fresh, &node_fresh] {
        usable(subscription).await;
    }
}

pub(crate) async fn streams_outlive_their_socket_file(kind: Kind) {
    let mut spire = UnderTest::start(kind, Duration::from_secs(20)).await;
    for number in [256, 257] {
        spire.register("n1", number).await;
    }
    let agent = spire.delegated("n1");
    let identity = spire.subscribe(&agent, 256);
    let first = usable(&identity).await;
    std::fs::remove_file(spire.admin_socket("n1")).unwrap();
    let recorder = Recorder::start(&identity);
    // Who comes now cannot ask, and is told why.
    let late = spire.delegated("n1");
    let late = spire.subscribe(&late, 257);
    let refused = until(&late, |next| next.problem.is_some()).await;
    assert!(matches!(refused.problem, Some(ApiError::Missing { .. })), "{:?}", refused.problem);
    // Who is there goes on, whatever the path says.
    until(&identity, |next| next.svid().is_some() && next.svid() != first.svid()).await;
    assert!(recorder.gaps().is_empty(), "{:?}", recorder.gaps());
    assert!(!identity.current().stale);
    spire.kill_agent("n1").await;
    spire.start_agent("n1");
    usable(&late).await;
    until(&identity, |next| next.svid().is_some() && !next.stale && next.problem.is_none()).await;
}

/// Such a server has another CA when it comes back, which its agents do not believe: they exit.
pub(crate) async fn a_server_that_has_lost_its_keys_takes_its_agents_with_it() {
    let options = Options { forgetful: true, ..options("a.test") };
    let mut spire = UnderTest::with(Kind::Real, options).await;
    spire.register("n1", 256).await;
    let agent = spire.delegated("n1");
    let (identity, node) = (spire.subscribe(&agent, 256), spire.node("n1"));
    let before = [usable(&identity).await, usable(&node).await];
    spire.stop_server().await;
    spire.start_server();
    let began = Instant::now();
    while !spire.agent_has_exited("n1") {
        assert!(began.elapsed() < PATIENCE, "the agent goes on");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Which is no withdrawal: what they gave is as good as before.
    for (subscription, before) in [&identity, &node].into_iter().zip(&before) {
        let away = until(subscription, |next| next.stale && next.problem.is_some()).await;
        assert_eq!((away.svid(), &away.bundles), (before.svid(), &before.bundles));
    }
    // Nor do they come back before they have forgotten the CA that they knew.
    spire.start_agent_anew("n1");
    for (subscription, before) in [&identity, &node].into_iter().zip(&before) {
        let after = until(subscription, |next| !next.stale && next.svid() != before.svid()).await;
        let bundle = after.bundles.get(&spire.trust_domain).unwrap();
        assert_eq!(bundle.certificates().len(), 2, "the server knows its old CA, and has another");
        verified_by(before, &after);
        assert!(verify(&after, before).is_err(), "signed by the other");
    }
}

pub(crate) async fn an_idle_stream_is_not_cut(kind: Kind) {
    // The agent cuts connections that ping it at ten-second intervals after half of this.
    const IDLE: Duration = Duration::from_secs(30);
    let spire = UnderTest::start(kind, HOUR).await;
    spire.register("n1", 256).await;
    let agent = spire.delegated("n1");
    let (identity, node) = (spire.subscribe(&agent, 256), spire.node("n1"));
    let before = [usable(&identity).await, usable(&node).await];
    let began = Instant::now();
    while began.elapsed() < IDLE {
        for (subscription, before) in [&identity, &node].into_iter().zip(&before) {
            assert_eq!(&subscription.current(), before, "after {:?}", began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn a_burst_of_opens_leaves_the_agent_well(kind: Kind) {
    const IDENTITIES: u32 = 1000;
    let spire = UnderTest::start(kind, HOUR).await;
    let entries: Vec<Entry> = (0..IDENTITIES).map(|number| spire.entry("n1", number + 1000)).collect();
    let outcomes = spire.entries.create(&entries).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Created(_))));
    let listed = spire.entries.list(Some(&spire.agent_id("n1"))).await.unwrap();
    assert_eq!(listed.len(), entries.len() + 1, "every page was read");
    let agent = spire.delegated("n1");
    let subscriptions: Vec<_> =
        (0..IDENTITIES).map(|number| spire.subscribe(&agent, number + 1000)).collect();
    for subscription in &subscriptions {
        assert_eq!(usable(subscription).await.svid().unwrap().spiffe_id(), subscription.spiffe_id());
    }
    usable(&spire.node("n1")).await;
    usable(&spire.subscribe(&spire.delegated("n1"), 1000)).await;
    assert!(spire.is_agent_healthy("n1"));
}
