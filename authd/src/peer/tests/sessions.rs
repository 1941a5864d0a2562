//! Node sessions.

use std::sync::Arc;
use std::time::Duration;

use spiffe::TrustDomain;
use spire_adapter::authority::CertificateAuthority;

use super::cluster::{Agent, Cluster, MemoryTable, listen, naming, trusting, until, usable};
use crate::auth::driver::{Driver, Settings};
use crate::auth::stats::{Side, Stats};
use crate::clock::BootClock;
use crate::peer::{Directory, Node, OwnTunnel};
use crate::svids::{Following, Svids, follow};

#[tokio::test]
async fn a_session_carries_keys_and_what_a_node_vouches_for() {
    let cluster = Cluster::start(&[&[256], &[300, 301]]).await;
    cluster.meshed().await;
    let (n1, n2) = (cluster.node("n1"), cluster.node("n2"));
    let at_n1 = n1.session("n2").unwrap();
    assert_eq!(at_n1.wireguard_key, Some([2; 32]));
    assert_eq!(at_n1.wireguard_endpoint, "127.0.0.1:51871".parse().unwrap());
    assert_eq!(at_n1.handshake_endpoint, n2.address);
    assert_eq!((at_n1.number, at_n1.epoch, at_n1.group), (2, 1, "X25519MLKEM768"));
    assert_eq!(*at_n1.identities, [300, 301].into());
    let at_n2 = n2.session("n1").unwrap();
    assert_eq!(at_n2.wireguard_key, Some([1; 32]));
    assert_eq!(at_n2.handshake_endpoint, n1.address);
    assert_eq!(at_n2.expires, at_n1.expires);
    assert_eq!(
        (n1.stats.count(Side::SessionClient, "ok"), n2.stats.count(Side::SessionServer, "ok")),
        (1, 1)
    );
    assert_eq!(
        (n1.stats.count(Side::SessionServer, "ok"), n2.stats.count(Side::SessionClient, "ok")),
        (0, 0)
    );
}

#[tokio::test]
async fn a_new_key_epoch_or_identity_is_announced_on_the_live_session() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let since = cluster.node("n1").session("n2").unwrap().since;
    let tunnel = OwnTunnel { wireguard_key: Some([7; 32]), wireguard_port: 7, epoch: 2 };
    cluster.node("n2").own.send_replace(tunnel);
    let seen = || cluster.node("n1").session("n2").unwrap();
    until("new key", || seen().wireguard_key == Some([7; 32]) && seen().epoch == 2).await;
    assert_eq!(seen().since, since, "the same session");
}

#[tokio::test]
async fn a_key_of_ours_or_of_another_node_is_refused() {
    let cluster = Cluster::start(&[&[], &[], &[]]).await;
    cluster.meshed().await;
    for stolen in [[1; 32], [2; 32]] {
        let tunnel = OwnTunnel { wireguard_key: Some(stolen), wireguard_port: 51871, epoch: 1 };
        cluster.node("n3").own.send_replace(tunnel);
        until("session lost", || !cluster.node("n1").session("n3").unwrap().live).await;
        assert_eq!(
            cluster.node("n1").session("n3").unwrap().wireguard_key,
            Some([3; 32]),
            "the last good one stays"
        );
        let tunnel = OwnTunnel { wireguard_key: Some([3; 32]), wireguard_port: 51871, epoch: 1 };
        cluster.node("n3").own.send_replace(tunnel);
        cluster.meshed().await;
    }
}

#[tokio::test]
async fn a_restarted_node_has_its_session_again() {
    let mut cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    for name in ["n2", "n1"] {
        cluster.stop(name).await;
        let other = if name == "n1" { "n2" } else { "n1" };
        until("loss noticed", || !cluster.node(other).session(name).unwrap().live).await;
        assert!(cluster.node(other).session(name).unwrap().wireguard_key.is_some(), "tunnels go on");
        cluster.start_again(name).await;
        cluster.meshed().await;
    }
}

#[tokio::test]
async fn a_silent_node_is_lost_after_a_while() {
    let cluster = Cluster::start_with(&[&[], &[]], super::cluster::TTL, |options| {
        options.silence = Duration::from_millis(1200);
        // Neither end pings, so both are silent.
        options.ping = Duration::from_secs(60);
    })
    .await;
    cluster.meshed().await;
    until("silence noticed", || cluster.node("n1").stats.count(Side::SessionClient, "ok") >= 2).await;
}

#[tokio::test]
async fn a_session_is_renewed_before_its_svids_end() {
    let cluster = Cluster::start_with(&[&[], &[]], Duration::from_secs(4), |_| {}).await;
    cluster.meshed().await;
    let first = cluster.node("n1").session("n2").unwrap();
    for (name, node) in &cluster.nodes {
        node.node_svid.send_replace(usable(
            &cluster.ca,
            &cluster.naming.node(name).unwrap(),
            super::cluster::TTL,
        ));
    }
    let watch = async {
        while cluster.node("n2").session("n1").unwrap().expires == first.expires {
            assert!(
                cluster.nodes.values().all(|node| node
                    .peers
                    .sessions()
                    .borrow()
                    .values()
                    .all(|session| session.live))
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_millis(3500), watch).await.unwrap();
}

#[tokio::test]
async fn a_session_ends_with_its_svids() {
    let cluster = Cluster::start_with(&[&[], &[]], Duration::from_secs(2), |_| {}).await;
    cluster.meshed().await;
    until("both have ended", || {
        cluster
            .nodes
            .values()
            .all(|node| node.peers.sessions().borrow().values().all(|session| !session.live))
    })
    .await;
    let node = cluster.node("n1");
    assert!(node.session("n2").unwrap().wireguard_key.is_some());
}

#[tokio::test]
async fn a_node_that_cluster_state_loses_is_forgotten() {
    let cluster = Cluster::start(&[&[], &[]]).await;
    cluster.meshed().await;
    for (name, other) in [("n1", "n2"), ("n2", "n1")] {
        cluster.node(name).redirect(|directory| drop(directory.nodes.remove(other))).await;
        until("forgotten", || cluster.node(name).session(other).is_none()).await;
    }
}

#[tokio::test]
async fn whoever_answers_must_be_the_node_that_was_dialled() {
    let cluster = Cluster::start(&[&[], &[], &[]]).await;
    cluster.meshed().await;
    let elsewhere = cluster.node("n3").address;
    let n1 = cluster.node("n1");
    n1.redirect(|directory| drop(directory.nodes.remove("n2"))).await;
    until("forgotten", || n1.session("n2").is_none()).await;
    n1.redirect(|directory| {
        let mut node = directory.nodes.get("n3").unwrap().clone();
        node.spiffe_id = cluster.naming.node("n2").unwrap();
        node.number = 2;
        node.addresses = vec![elsewhere];
        directory.nodes.insert("n2".to_owned(), node);
    })
    .await;
    until("refused", || n1.stats.count(Side::SessionClient, "certificate") > 0).await;
    assert!(n1.session("n2").is_none());
}

#[tokio::test]
async fn a_node_of_another_authority_is_refused_at_both_ends() {
    let cluster = Cluster::start(&[&[], &[]]).await;
    cluster.meshed().await;
    let other = CertificateAuthority::new(&TrustDomain::new("example.test").unwrap()).unwrap();
    let mut foreign = usable(&other, &cluster.naming.node("n1").unwrap(), super::cluster::TTL);
    foreign.bundles = super::cluster::bundles(&cluster.ca);
    cluster.node("n1").node_svid.send_replace(foreign);
    let directory = Arc::clone(&cluster.node("n2").directory.borrow());
    cluster.node("n2").redirect(|directory| drop(directory.nodes.remove("n1"))).await;
    until("cut", || !cluster.node("n1").session("n2").unwrap().live).await;
    cluster.node("n2").directory.send_replace(directory);
    until("refused", || cluster.node("n2").stats.count(Side::SessionServer, "certificate") > 0).await;
    assert!(cluster.node("n2").session("n1").is_none());
}

/// A restarted daemon that announced nothing, or one identity after the other, would end at other nodes what
/// stands there.
#[tokio::test]
async fn what_runs_here_is_announced_at_once_and_in_full() {
    let clock = Arc::new(BootClock);
    let (_node, node_svids) = tokio::sync::watch::channel(spire_adapter::Snapshot::default());
    let svids = Svids::new(node_svids, Arc::<BootClock>::clone(&clock));
    let settings = Settings {
        config: crate::auth::Config::default(),
        jitter: Box::new(|_| 0),
        clock,
        table: Arc::new(MemoryTable::default()),
        observer: Arc::new(Stats::default()),
    };
    let (driver, auth) = Driver::new(settings).unwrap();
    let (sender, directory) = tokio::sync::watch::channel(Arc::new(Directory::default()));
    let mut announced = svids.announced();
    let following =
        Following { svids, source: Arc::new(Agent::default()), node: "n1".to_owned(), directory, auth };
    let stop = tokio_util::sync::CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(follow(following, stop));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(announced.borrow().is_none(), "nothing is known yet");
    let naming = naming();
    let identities: std::collections::BTreeSet<u32> = (256..456).collect();
    let node = Node {
        number: 1,
        spiffe_id: naming.node("n1").unwrap(),
        addresses: Vec::new(),
        identities: identities.clone(),
    };
    sender.send_replace(Arc::new(Directory {
        nodes: [("n1".to_owned(), node)].into(),
        identities: identities.iter().map(|one| (*one, naming.numbered(*one).unwrap())).collect(),
    }));
    announced.changed().await.unwrap();
    assert_eq!(announced.borrow().as_deref(), Some(&identities));
    drop(driver);
}

fn preshared(cluster: &Cluster) -> Option<(wg_mesh::PresharedKey, wg_mesh::PresharedKey)> {
    let of = |name: &str, other: &str| cluster.node(name).session(other)?.preshared_key;
    Some((of("n1", "n2")?, of("n2", "n1")?))
}

async fn both_agree(
    cluster: &Cluster,
    what: &str,
    other_than: Option<&wg_mesh::PresharedKey>,
) -> wg_mesh::PresharedKey {
    until(what, || preshared(cluster).is_some_and(|(one, two)| one == two && Some(&one) != other_than)).await;
    preshared(cluster).unwrap().0
}

#[tokio::test]
async fn each_session_and_tunnel_gets_a_preshared_key_of_its_own_and_keeps_the_last_until_then() {
    let mut cluster = Cluster::start(&[&[], &[]]).await;
    let first = both_agree(&cluster, "a key", None).await;
    // Another tunnel on the same session.
    cluster.node("n2").own.send_modify(|own| own.wireguard_key = Some([22; 32]));
    let second = both_agree(&cluster, "a key of the new tunnel", Some(&first)).await;
    // Another session with the same tunnels: the key goes on until the next is there.
    let n1 = cluster.node("n1");
    let mut sessions = n1.peers.sessions();
    n1.peers.renew("n2");
    let third = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            sessions.changed().await.unwrap();
            let key = sessions.borrow()["n2"].preshared_key.clone().expect("never without");
            if key != second {
                return key;
            }
        }
    });
    let third = third.await.unwrap();
    assert_eq!(both_agree(&cluster, "the same at the other end", Some(&second)).await, third);
    // A node that is away: the last key stays.
    cluster.stop("n2").await;
    until("lost", || !cluster.node("n1").session("n2").unwrap().live).await;
    assert_eq!(cluster.node("n1").session("n2").unwrap().preshared_key, Some(third));
}

#[tokio::test]
async fn the_preshared_key_rotates_with_its_session() {
    let cluster = Cluster::start_with(&[&[], &[]], super::cluster::TTL, |options| {
        options.rotation = Duration::from_secs(1);
    })
    .await;
    let first = both_agree(&cluster, "a key", None).await;
    both_agree(&cluster, "the next", Some(&first)).await;
}

/// The name of the session that a node has with the other.
fn session_name(cluster: &Cluster, at: &str, with: u16) -> Option<[u8; 16]> {
    Some(cluster.node(at).peers.0.table.under(with)?.1.key.name)
}

#[tokio::test]
async fn of_two_dials_that_cross_both_ends_keep_the_one_of_the_lower_id() {
    for _ in 0..10 {
        let cluster = Cluster::start_with(&[&[256], &[300]], super::cluster::TTL, |options| {
            options.defer = Duration::ZERO;
        })
        .await;
        cluster.meshed().await;
        let same = || {
            session_name(&cluster, "n1", 2).is_some_and(|one| session_name(&cluster, "n2", 1) == Some(one))
        };
        until("the same session", same).await;
        let (n1, n2) = (cluster.node("n1"), cluster.node("n2"));
        assert!(n2.auth.ask(super::cluster::key(300, 256, 1)));
        until("an entry", || n1.entries() == 1 && n2.entries() == 1).await;
        // Whatever has crossed is over by now, and what stands stays.
        let settled = session_name(&cluster, "n1", 2);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(same() && session_name(&cluster, "n1", 2) == settled);
    }
}

#[tokio::test]
async fn one_end_that_can_reach_the_other_suffices() {
    let cluster = Cluster::start_with(&[&[256], &[300]], super::cluster::TTL, |options| {
        options.defer = Duration::from_millis(50);
    })
    .await;
    // n1 would be first to dial, and knows no way to n2.
    let nowhere = listen().await.local_addr().unwrap();
    let n1 = cluster.node("n1");
    n1.redirect(|directory| directory.nodes.get_mut("n2").unwrap().addresses = vec![nowhere]).await;
    n1.peers.renew("n2");
    until("by the other", || n1.stats.count(Side::SessionServer, "ok") > 0).await;
    cluster.meshed().await;
    assert!(n1.auth.ask(super::cluster::key(256, 300, 2)));
    until("an entry", || n1.entries() == 1).await;
    n1.peers.renew("n2");
    until("noted", || n1.peers.trouble("n2").is_some() || n1.stats.count(Side::SessionServer, "ok") > 1)
        .await;
}

#[tokio::test]
async fn a_node_whose_certificate_may_rest_on_a_lost_anchor_proves_itself_anew() {
    let cluster = Cluster::start(&[&[], &[]]).await;
    cluster.meshed().await;
    let n1 = cluster.node("n1");
    let id = cluster.naming.node("n1").unwrap();
    let other = CertificateAuthority::new(&TrustDomain::new("example.test").unwrap()).unwrap();
    n1.node_svid.send_replace(trusting(&cluster.ca, &[&cluster.ca, &other], &id));
    n1.peers.renew("n2");
    until("renewed", || n1.stats.count(Side::SessionClient, "ok") == 2).await;
    n1.node_svid.send_replace(trusting(&cluster.ca, &[&cluster.ca], &id));
    until("proven anew", || n1.stats.count(Side::SessionClient, "ok") == 3).await;
    cluster.meshed().await;
    n1.node_svid.send_replace(trusting(&cluster.ca, &[&other], &id));
    until("no longer trusted", || !n1.session("n2").unwrap().live).await;
    until("refused", || n1.stats.count(Side::SessionClient, "certificate") > 0).await;
    assert!(n1.peers.trouble("n2").unwrap().what.contains("certificate"));
}
