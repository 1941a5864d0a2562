//! Whose addresses are whose: told by sessions, acknowledged once written.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::cluster::{Cluster, TestNode, until};
use crate::handover::{Assigned, Owners};

fn owners(all: &[(u8, u32)]) -> Owners {
    all.iter().map(|(last, identity)| (IpAddr::from([10, 0, 1, *last]), *identity)).collect()
}

impl TestNode {
    fn assign(&self, epoch: u32, all: &[(u8, u32)]) {
        self.assigned.send_replace(Arc::new(Assigned { epoch, owners: owners(all) }));
    }

    /// As packets do that wait for it.
    async fn until_known_by(&self, node: u16, epoch: u32) {
        until("acknowledged", || {
            self.peers.announce(node);
            self.acknowledged_by(node) == Some(epoch)
        })
        .await;
    }

    fn heard_of(&self, node: u16) -> Option<Owners> {
        self.handovers.lock().unwrap().owners.get(&node).cloned()
    }

    fn acknowledged_by(&self, node: u16) -> Option<u32> {
        self.handovers.lock().unwrap().acknowledged.get(&node).copied()
    }
}

#[tokio::test]
async fn a_new_session_tells_all_there_is() {
    let mut cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.node("n1").assign(4, &[(1, 256), (2, 257)]);
    cluster.meshed().await;
    // The session may be older than the assignments.
    cluster.node("n1").until_known_by(2, 4).await;
    until("n2 acknowledged", || cluster.node("n2").acknowledged_by(1).is_some()).await;
    assert_eq!(cluster.node("n2").heard_of(1), Some(owners(&[(1, 256), (2, 257)])));
    cluster.restart("n2").await;
    until("told again", || cluster.node("n2").heard_of(1) == Some(owners(&[(1, 256), (2, 257)]))).await;
}

#[tokio::test]
async fn one_more_is_told_when_a_packet_asks_and_what_changes_hands_at_once() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    let (teller, listener) = (cluster.node("n1"), cluster.node("n2"));
    teller.assign(1, &[(1, 256)]);
    cluster.meshed().await;
    teller.until_known_by(2, 1).await;
    // What was asked too often is over by then.
    tokio::time::sleep(Duration::from_millis(100)).await;

    teller.assign(2, &[(1, 256), (2, 257)]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(listener.heard_of(1), Some(owners(&[(1, 256)])), "nobody has asked");
    teller.peers.announce(2);
    until("the second", || teller.acknowledged_by(2) == Some(2)).await;
    assert_eq!(listener.heard_of(1), Some(owners(&[(1, 256), (2, 257)])));

    teller.assign(3, &[(1, 300), (2, 257)]);
    until("another owner", || teller.acknowledged_by(2) == Some(3)).await;
    teller.assign(3, &[(2, 257)]);
    until("nobody", || listener.heard_of(1) == Some(owners(&[(2, 257)]))).await;
}

#[tokio::test]
async fn what_cannot_be_written_is_not_acknowledged_until_it_can() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    let (teller, listener) = (cluster.node("n1"), cluster.node("n2"));
    listener.handovers.lock().unwrap().full = true;
    teller.assign(1, &[(1, 256)]);
    cluster.meshed().await;
    // The other way nothing is in its way, and it comes over the same connection.
    until("the other way", || listener.acknowledged_by(1).is_some()).await;
    assert_eq!(teller.acknowledged_by(2), None);
    listener.handovers.lock().unwrap().full = false;
    teller.until_known_by(2, 1).await;
    teller.peers.announce(77);
}
