//! Who gets which SVID, when it comes and when it goes.

use std::time::{Duration, SystemTime};

use spire_adapter::{ApiError, ExpectedPeer, Selector, State, verify_chain};

use crate::recorder::Recorder;
use crate::under_test::{HOUR, Kind, UnderTest, selector, until, usable};

/// An SVID that is missing for longer counts as withdrawn where pairs are concerned.
const GRACE: Duration = Duration::from_millis(400);

pub(crate) async fn svids_come_by_both_apis(kind: Kind) {
    let spire = UnderTest::start(kind, HOUR).await;
    let node = spire.node("n1");
    let snapshot = usable(&node).await;
    let svid = snapshot.svid().unwrap();
    assert_eq!(svid.spiffe_id(), &spire.node_id("n1"));
    assert_eq!(svid.chain().len(), 1);
    assert!(svid.not_before() < SystemTime::now() - Duration::from_secs(8), "backdated by 10 s");

    spire.register("n1", 256).await;
    let agent = spire.delegated("n1");
    let more = [selector(256), Selector::new("authd", "pod:default/web"), Selector::new("k8s", "ns:default")];
    let identity = agent.subscribe(more, spire.identity(256));
    let snapshot = usable(&identity).await;
    assert_eq!(snapshot.bundles.len(), 1);
    let svid = snapshot.svid().unwrap();
    let expected = ExpectedPeer::Exact(spire.identity(256));
    let peer = verify_chain(svid.chain(), &snapshot.bundles, &expected, SystemTime::now()).unwrap();
    assert_eq!(peer.not_after, svid.not_after());
    let left = svid.not_after().duration_since(SystemTime::now()).unwrap();
    assert!(left > HOUR - Duration::from_secs(60) && left <= HOUR, "{left:?}");
}

pub(crate) async fn entries_come_and_go_on_one_stream(kind: Kind) {
    let spire = UnderTest::start(kind, HOUR).await;
    let agent = spire.delegated("n1");
    let identity = spire.subscribe(&agent, 256);
    until(&identity, |next| next.state == State::Withdrawn || next.problem.is_some()).await;
    let mut entry = spire.register("n1", 256).await;
    let first = usable(&identity).await;
    for _ in 0..2 {
        spire.delete(&entry).await;
        let withdrawn = until(&identity, |next| next.state == State::Withdrawn).await;
        assert!(withdrawn.bundles.is_empty());
        assert_eq!(withdrawn.problem, None, "an entry's end is no error");
        entry = spire.register("n1", 256).await;
        let restored = usable(&identity).await;
        assert_ne!(restored.svid(), first.svid());
    }

    // The node's own: the Workload API refuses instead.
    let node = spire.node("n2");
    usable(&node).await;
    let own = spire.entries.list(Some(&spire.agent_id("n2"))).await.unwrap();
    assert_eq!(own.len(), 1);
    spire.delete(&own[0]).await;
    let denied = until(&node, |next| next.state == State::Withdrawn).await;
    assert!(matches!(denied.problem, Some(ApiError::NotAuthorized { .. })), "{:?}", denied.problem);
    // Who is not registered is no delegate either.
    let refused = spire.subscribe(&spire.delegated("n2"), 256);
    let refused = until(&refused, |next| next.problem.is_some()).await;
    assert!(matches!(refused.problem, Some(ApiError::NotAuthorized { .. })), "{:?}", refused.problem);
    spire.entries.create(&own).await.unwrap();
    usable(&node).await;
}

pub(crate) async fn an_agent_gives_only_what_its_own_node_hosts(kind: Kind) {
    let spire = UnderTest::start(kind, HOUR).await;
    let mut entry = spire.register("n1", 256).await;
    let (n1, n2) = (spire.delegated("n1"), spire.delegated("n2"));
    let (here, there) = (spire.subscribe(&n1, 256), spire.subscribe(&n2, 256));
    usable(&here).await;
    // Whoever asks with the right selectors for another ID gets nothing either, nor one node another's own SVID.
    let other = n1.subscribe([selector(256)], spire.identity(257));
    let node = spire_adapter::workload::subscribe(spire.workload_socket("n2"), spire.node_id("n1"));
    for subscription in [&there, &other, &node] {
        until(subscription, |next| next.state == State::Withdrawn).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for subscription in [&there, &other, &node] {
        assert_eq!(subscription.current().state, State::Withdrawn);
    }
    // The pod moves: so does the SVID, with the same entry.
    entry.parent_id = spire.agent_id("n2");
    spire.update(&entry).await;
    usable(&there).await;
    until(&here, |next| next.state == State::Withdrawn).await;
}

pub(crate) async fn svids_are_chosen_by_spiffe_id_whatever_their_order(kind: Kind) {
    let spire = UnderTest::start(kind, HOUR).await;
    let agent = spire.delegated("n1");
    // SPIRE orders by entry ID.
    for (number, ids) in [(300, ["a-first", "b-second"]), (400, ["d-second", "c-first"])] {
        for (offset, id) in ids.into_iter().enumerate() {
            let mut entry = spire.entry("n1", number);
            entry.spiffe_id = spire.identity(number + u32::try_from(offset).unwrap());
            entry.id = id.to_owned();
            spire.create(entry).await;
        }
    }
    for number in [300, 301, 400, 401] {
        let identity = agent.subscribe([selector(number / 100 * 100)], spire.identity(number));
        assert_eq!(usable(&identity).await.svid().unwrap().spiffe_id(), &spire.identity(number));
    }
}

pub(crate) async fn entries_updated_in_place_leave_no_gap(kind: Kind) {
    let spire = UnderTest::start(kind, HOUR).await;
    let mut entry = spire.register("n1", 256).await;
    let agent = spire.delegated("n1");
    let identity = spire.subscribe(&agent, 256);
    let first = usable(&identity).await;
    let recorder = Recorder::start(&identity);
    entry.hint = "another hint".to_owned();
    spire.update(&entry).await;
    entry.svid_ttl = Some(HOUR / 2);
    entry.selectors.insert(Selector::new("authd", "more"));
    entry.selectors.remove(&Selector::new("authd", "more"));
    spire.update(&entry).await;
    let shorter = |next: &spire_adapter::Snapshot| {
        let before = first.svid().unwrap().not_after();
        next.svid().is_some_and(|svid| svid.not_after() < before - Duration::from_secs(60))
    };
    until(&identity, shorter).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(recorder.gaps().is_empty(), "{:?}", recorder.gaps());
    let listed = spire.entries.list(Some(&spire.agent_id("n1"))).await.unwrap();
    let listed = listed.iter().find(|listed| listed.id == entry.id).unwrap();
    assert_eq!((&listed.hint, listed.svid_ttl), (&entry.hint, entry.svid_ttl));
}

pub(crate) async fn an_identity_recreated_at_once_is_hardly_missing(kind: Kind) {
    const ROUNDS: usize = 5;
    let spire = UnderTest::start(kind, HOUR).await;
    let mut entry = spire.register("n1", 256).await;
    let agent = spire.delegated("n1");
    let identity = spire.subscribe(&agent, 256);
    let mut before = usable(&identity).await;
    let recorder = Recorder::start(&identity);
    for _ in 0..ROUNDS {
        spire.delete(&entry).await;
        entry = spire.register("n1", 256).await;
        before = until(&identity, |next| next.svid().is_some() && next.svid() != before.svid()).await;
    }
    // Where the agent asks just between the two, it is missing until the agent asks again.
    let long = recorder.gaps().iter().filter(|gap| **gap > GRACE).count();
    assert!(long <= 1, "{:?}", recorder.gaps());
}

/// On the Workload API such a gap is a refusal, and ends the stream.
pub(crate) async fn a_node_recreated_at_once_is_soon_back(kind: Kind) {
    const ROUNDS: usize = 5;
    /// The agent's next look at its server, and ours at it after a refusal.
    const BACK: Duration = Duration::from_secs(2);
    let spire = UnderTest::start(kind, HOUR).await;
    let node = spire.node("n1");
    let mut before = usable(&node).await;
    let recorder = Recorder::start(&node);
    for round in 0..ROUNDS {
        let mut own = spire.entries.list(Some(&spire.agent_id("n1"))).await.unwrap();
        own.retain(|entry| entry.spiffe_id == spire.node_id("n1"));
        spire.delete(&own[0]).await;
        own[0].id = format!("again-{round}");
        spire.create(own[0].clone()).await;
        before = until(&node, |next| next.svid().is_some() && next.svid() != before.svid()).await;
    }
    assert_eq!((before.problem, before.stale), (None, false));
    let gaps = recorder.gaps();
    assert!(gaps.iter().all(|gap| *gap < BACK), "{gaps:?}");
}
