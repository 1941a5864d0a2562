//! Wall clocks that jump by hours: no deadline moves, nothing new begins by a clock that is wrong.

use std::time::{Duration, Instant};

use super::cluster::{Cluster, TTL, key, until};
use crate::auth::stats::Side;

fn set_all(cluster: &Cluster, hours: i64) {
    cluster.nodes.values().for_each(|node| node.clock.set(hours));
}

async fn authenticated(ttl: Duration) -> Cluster {
    let cluster = Cluster::start_with(&[&[256, 257], &[300]], ttl, |_| {}).await;
    cluster.meshed().await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    until("an entry", || cluster.nodes.values().all(|node| node.entries() == 1)).await;
    cluster
}

#[tokio::test]
async fn a_wall_clock_set_back_by_hours_prolongs_nothing() {
    let ttl = Duration::from_secs(4);
    let cluster = authenticated(ttl).await;
    // By now all SVIDs have been issued.
    let began = Instant::now();
    set_all(&cluster, -5);
    until("entries end with their SVIDs", || cluster.nodes.values().all(|node| node.entries() == 0)).await;
    until("sessions too", || {
        cluster.nodes.values().all(|node| node.peers.sessions().borrow().values().all(|one| !one.live))
    })
    .await;
    assert!(began.elapsed() < ttl + Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_wall_clock_set_forward_by_hours_cuts_nothing_and_begins_nothing() {
    let cluster = authenticated(TTL).await;
    let n1 = cluster.node("n1");
    let before = n1.entry(key(256, 300, 2));
    set_all(&cluster, 5);
    assert!(n1.auth.ask(key(257, 300, 2)));
    until("refused", || n1.stats.count(Side::Client, "no_svid") > 0).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(n1.entry(key(256, 300, 2)), before, "what stands stays");
    assert!(cluster.nodes.values().all(|node| node.peers.sessions().borrow().values().all(|one| one.live)));
    assert_eq!(n1.entry(key(257, 300, 2)), None);
    set_all(&cluster, 0);
    assert!(n1.auth.ask(key(257, 300, 2)));
    until("authenticated once the clock is right", || n1.entry(key(257, 300, 2)).is_some()).await;
}
