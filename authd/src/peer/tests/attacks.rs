//! What a hostile node or stranger may try at the port, and that it leaves no entry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use spire_adapter::tls::{Groups, Options as TlsOptions, client_config, server_config};
use spire_adapter::{ExpectedPeer, Svid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::cluster::{Cluster, bundles, key, listen, naming, until};
use super::raw::{bare_client, client_hello_1_2};
use crate::auth::stats::Side;
use crate::peer::wire::{
    self, Announcement, Binding, HandshakeFrame, HandshakeMessage, MAX_FRAME, MAX_HANDSHAKE_FRAME, Reader,
    SessionFrame, SessionMessage,
};
use crate::peer::{Error, IDENTITY_ALPN, NODE_ALPN, Node};

/// Dials as a client that has `svid` and expects `identity`.
async fn dial(cluster: &Cluster, to: SocketAddr, svid: &Svid, identity: u32) -> TlsStream<TcpStream> {
    let expected = ExpectedPeer::Exact(cluster.naming.numbered(identity).unwrap());
    let options = TlsOptions::from(Groups::PostQuantum);
    let config = client_config(svid, &bundles(&cluster.ca), expected, IDENTITY_ALPN, &options).unwrap();
    let stream = TcpStream::connect(to).await.unwrap();
    TlsConnector::from(config).connect(naming().server_name(identity).unwrap(), stream).await.unwrap()
}

/// Sends one binding; the word with which it is refused.
async fn refusal(mut tls: TlsStream<TcpStream>, binding: Binding) -> String {
    let frame = HandshakeFrame { message: Some(HandshakeMessage::Binding(binding)) };
    wire::write(&mut tls, &frame, MAX_HANDSHAKE_FRAME).await.unwrap();
    match Reader::new(tls, MAX_HANDSHAKE_FRAME).next::<HandshakeFrame>().await {
        Ok(HandshakeFrame { message: Some(HandshakeMessage::Refused(refusal)) }) => refusal.reason,
        other => panic!("not refused: {other:?}"),
    }
}

/// Dials a node session as whoever has `svid`, and says this.
pub(super) async fn say_hello(
    cluster: &Cluster,
    at: &str,
    svid: &Svid,
    announcement: Announcement,
) -> TlsStream<TcpStream> {
    let expected = ExpectedPeer::Exact(cluster.naming.node(at).unwrap());
    let options = TlsOptions::from(Groups::PostQuantum);
    let config = client_config(svid, &bundles(&cluster.ca), expected, NODE_ALPN, &options).unwrap();
    let stream = TcpStream::connect(cluster.node(at).address).await.unwrap();
    let name = ServerName::try_from("example.test").unwrap();
    let mut tls = TlsConnector::from(config).connect(name, stream).await.unwrap();
    let hello = SessionFrame { message: Some(SessionMessage::Hello(announcement)) };
    wire::write(&mut tls, &hello, MAX_FRAME).await.unwrap();
    tls
}

fn session_name(cluster: &Cluster, at: &str, with: u16) -> Vec<u8> {
    cluster.node(at).peers.0.table.under(with).unwrap().1.key.name.to_vec()
}

#[tokio::test]
async fn a_handshake_without_a_session_is_refused() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let svid = cluster.svid(&cluster.naming.numbered(256).unwrap());
    let n2 = cluster.node("n2");
    for (node, session) in
        [(1, vec![0; 16]), (9, session_name(&cluster, "n2", 1)), (1, vec![]), (70_000, vec![])]
    {
        let tls = dial(&cluster, n2.address, &svid, 300).await;
        let binding = Binding { node, mac: vec![0; 32], from: 256, to: 300, session };
        let reason = refusal(tls, binding).await;
        assert!(["no_session", "unknown_node"].contains(&reason.as_str()), "{reason}");
    }
    assert_eq!(n2.entries(), 0);
}

#[tokio::test]
async fn a_binding_under_another_key_is_refused() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let svid = cluster.svid(&cluster.naming.numbered(256).unwrap());
    let n2 = cluster.node("n2");
    for mac in [vec![], vec![0; 32], vec![0; 64]] {
        let tls = dial(&cluster, n2.address, &svid, 300).await;
        let session = session_name(&cluster, "n2", 1);
        let reason = refusal(tls, Binding { node: 1, mac, from: 256, to: 300, session }).await;
        assert_eq!(reason, "not_bound");
    }
    assert_eq!((n2.entries(), n2.stats.count(Side::Server, "not_bound")), (0, 3));
}

#[tokio::test]
async fn an_identity_that_is_not_the_certificates_or_not_on_that_node_is_refused() {
    let cluster = Cluster::start(&[&[256, 257], &[300, 301]]).await;
    cluster.meshed().await;
    let n2 = cluster.node("n2");
    // An SVID for 257 claims 256; one of 301, which runs elsewhere; the node's own SVID; the wrong server.
    let node = cluster.naming.node("n1").unwrap();
    let id = |identity| cluster.naming.numbered(identity).unwrap();
    let cases = [
        (id(257), 256, 300, "wrong_identity"),
        (id(301), 301, 300, "unknown_identity"),
        (node, 256, 300, "wrong_identity"),
        (id(256), 256, 301, "wrong_identity"),
        (id(256), 2, 300, "unknown_identity"),
    ];
    for (spiffe_id, from, to, reason) in cases {
        let tls = dial(&cluster, n2.address, &cluster.svid(&spiffe_id), 300).await;
        let session = session_name(&cluster, "n2", 1);
        assert_eq!(refusal(tls, Binding { node: 1, mac: vec![0; 32], from, to, session }).await, reason);
    }
    assert_eq!(n2.entries(), 0);
}

/// A CVE-class fault of another system: the last certificate of the chain was taken for the peer.
#[tokio::test]
async fn a_victims_certificate_behind_ones_own_is_refused() {
    let cluster = Cluster::start(&[&[256, 257], &[300]]).await;
    cluster.meshed().await;
    let n2 = cluster.node("n2");
    let own = cluster.svid(&cluster.naming.numbered(257).unwrap());
    let victim = cluster.svid(&cluster.naming.numbered(256).unwrap());
    let mut config = bare_client(Groups::PostQuantum);
    let chain = [own.chain(), victim.chain()].concat();
    let certified = rustls::sign::CertifiedKey::new(chain, own.signing_key());
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    config.alpn_protocols = vec![IDENTITY_ALPN.to_vec()];
    let stream = TcpStream::connect(n2.address).await.unwrap();
    let mut tls = TlsConnector::from(Arc::new(config))
        .connect(naming().server_name(300).unwrap(), stream)
        .await
        .unwrap();
    let mut answer = Vec::new();
    assert!(tls.read_to_end(&mut answer).await.is_err());
    until("refused", || n2.stats.count(Side::Server, "certificate") == 1).await;
    assert_eq!(n2.entries(), 0);
}

/// n2 lets identity handshakes through to n3, where the identity really runs, and vouches for it itself.
#[tokio::test]
async fn a_relayed_handshake_leaves_no_entry_anywhere() {
    let front = listen().await;
    let port = front.local_addr().unwrap().port();
    let cluster = Cluster::start_with(&[&[256], &[], &[300]], super::cluster::TTL, |options| {
        options.announced_port = (options.node == "n2").then_some(port);
        options.pair_proof = crate::peer::PairProof::Handshake;
    })
    .await;
    cluster.meshed().await;
    let true_host = cluster.node("n3").address;
    tokio::spawn(async move {
        while let Ok((mut from, _)) = front.accept().await {
            let mut to = TcpStream::connect(true_host).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut from, &mut to).await });
        }
    });
    // n2 says that 300 is its own, and n1's cluster state says so, too: only the binding is left.
    cluster
        .node("n2")
        .redirect(|directory| assert!(directory.nodes.get_mut("n2").unwrap().identities.insert(300)))
        .await;
    cluster
        .node("n1")
        .redirect(|directory| {
            directory.nodes.get_mut("n2").unwrap().identities.insert(300);
        })
        .await;
    until("announced", || cluster.node("n1").session("n2").unwrap().identities.contains(&300)).await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    let n1 = cluster.node("n1");
    until("refused", || n1.stats.count(Side::Client, "no_session") > 0).await;
    assert!(cluster.nodes.values().all(|node| node.entries() == 0));
}

#[tokio::test]
async fn a_server_that_does_not_know_the_sessions_key_is_not_believed() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let under = cluster.node("n1").peers.0.table.under(2).unwrap().1;
    // What the dialling side does with a binding that somebody else made.
    let end = |identity: u32| crate::peer::binding::End {
        identity,
        spiffe_id: cluster.naming.numbered(identity).unwrap(),
        leaf_hash: [0; 32],
    };
    let transcript = crate::peer::binding::Transcript::new(|_, _| Ok(()), end(256), end(300)).unwrap();
    let (near, mut far) = tokio::io::duplex(4096);
    let answer = async {
        let forged = Binding { node: 2, mac: vec![1; 32], from: 256, to: 300, session: vec![] };
        let frame = HandshakeFrame { message: Some(HandshakeMessage::Binding(forged)) };
        wire::write(&mut far, &frame, MAX_HANDSHAKE_FRAME).await.unwrap();
        let recorded = HandshakeFrame { message: Some(HandshakeMessage::Recorded(wire::Recorded {})) };
        wire::write(&mut far, &recorded, MAX_HANDSHAKE_FRAME).await.unwrap();
    };
    let client = crate::peer::handshake::client_frames(near, &under, &transcript, key(256, 300, 2), 1);
    let (result, ()) = tokio::join!(client, answer);
    assert!(matches!(result, Err(Error::NotBound { identity: 300 })), "{result:?}");
}

#[tokio::test]
async fn tls_1_2_is_refused_for_both_protocols() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let n2 = cluster.node("n2");
    for alpn in [NODE_ALPN, IDENTITY_ALPN] {
        let mut stream = TcpStream::connect(n2.address).await.unwrap();
        stream.write_all(&client_hello_1_2(alpn, "300.example.test")).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.get(..1), Some(&[21][..]), "an alert");
        assert_eq!(answer.get(5..), Some(&[2, 70][..]), "fatal: protocol version");
    }
    until("both counted", || {
        n2.stats.count(Side::SessionServer, "tls") == 1 && n2.stats.count(Side::Server, "tls") == 1
    })
    .await;
}

#[tokio::test]
async fn a_classical_key_exchange_is_refused_unless_configured() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let mut config = bare_client(Groups::Any);
    config.alpn_protocols = vec![NODE_ALPN.to_vec()];
    let stream = TcpStream::connect(cluster.node("n2").address).await.unwrap();
    let name = ServerName::try_from("example.test").unwrap();
    assert!(TlsConnector::from(Arc::new(config)).connect(name, stream).await.is_err());
    until("counted", || cluster.node("n2").stats.count(Side::SessionServer, "tls") == 1).await;
    let classical =
        Cluster::start_with(&[&[256], &[300]], super::cluster::TTL, |options| options.groups = Groups::Any)
            .await;
    classical.meshed().await;
    assert_eq!(classical.node("n1").session("n2").unwrap().group, "X25519MLKEM768", "preferred all the same");
}

#[tokio::test]
async fn strangers_and_whoever_has_our_own_svid_get_no_session() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let id = |name: &str| cluster.naming.node(name).unwrap();
    let cases = [
        ("n2", id("n9"), "stranger"),
        ("n1", id("n1"), "own_svid"),
        ("n2", cluster.naming.numbered(256).unwrap(), "certificate"),
    ];
    for (at, spiffe_id, reason) in cases {
        let node = cluster.node(at);
        let announcement = Announcement { version: 1, node: "n1".to_owned(), ..Announcement::default() };
        let _tls = say_hello(&cluster, at, &cluster.svid(&spiffe_id), announcement).await;
        until(reason, || node.stats.count(Side::SessionServer, reason) == 1).await;
    }
    assert!(cluster.nodes.values().all(|node| node.peers.sessions().borrow().len() == 1));
}

#[tokio::test]
async fn a_node_that_announces_another_name_gets_no_session() {
    let cluster = Cluster::start(&[&[256], &[300], &[]]).await;
    cluster.meshed().await;
    let n2 = cluster.node("n2");
    until("complete", || n2.session("n1").unwrap().preshared_key.is_some()).await;
    let before = n2.session("n1").unwrap();
    let svid = cluster.svid(&cluster.naming.node("n1").unwrap());
    let honest = Announcement {
        version: 1,
        node: "n1".to_owned(),
        wireguard_port: 51871,
        handshake_port: 4250,
        ..Announcement::default()
    };
    let cases = [
        (Announcement { node: "n3".to_owned(), ..honest.clone() }, "wrong_node"),
        (Announcement { version: 0, ..honest.clone() }, "version"),
        (Announcement { wireguard_key: vec![1; 31], ..honest.clone() }, "wire"),
        (Announcement { wireguard_port: 65_536, ..honest.clone() }, "wire"),
        (Announcement { wireguard_port: 0, ..honest.clone() }, "wire"),
        (Announcement { handshake_port: 0, ..honest.clone() }, "wire"),
        (Announcement { identities: (256..4353).collect(), ..honest.clone() }, "wire"),
        (Announcement { wireguard_key: vec![3; 32], ..honest }, "key_conflict"),
    ];
    for (announcement, reason) in cases {
        let counted = n2.stats.count(Side::SessionServer, reason);
        let _tls = say_hello(&cluster, "n2", &svid, announcement).await;
        until(reason, || n2.stats.count(Side::SessionServer, reason) == counted + 1).await;
    }
    assert_eq!(n2.session("n1").unwrap(), before, "the honest session is untouched");
}

#[tokio::test]
async fn slow_and_silent_clients_are_cut_and_leave_room() {
    let cluster = Cluster::start_with(&[&[256], &[300]], super::cluster::TTL, |options| {
        options.setup_timeout = Duration::from_millis(400);
    })
    .await;
    cluster.meshed().await;
    let n2 = cluster.node("n2");
    let began = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(n2.address).await.unwrap());
    }
    until("no room", || n2.stats.count(Side::Stranger, "busy") == 36).await;
    for stream in &mut silent {
        let mut answer = [0];
        assert_eq!(stream.read(&mut answer).await.unwrap_or(0), 0);
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    until("all cut", || n2.stats.count(Side::Stranger, "timeout") == 64).await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    until("entry", || n2.entry(key(300, 256, 1)).is_some()).await;
}

#[tokio::test]
async fn garbage_at_the_port_is_refused() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let n2 = cluster.node("n2");
    let hellos = [
        client_hello_1_2(b"h2", "300.example.test"),
        client_hello_1_2(IDENTITY_ALPN, "999.example.test"),
        client_hello_1_2(IDENTITY_ALPN, "300.other.test"),
    ];
    for garbage in
        [vec![0; 100], b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![22, 3, 1, 255, 255]].into_iter().chain(hellos)
    {
        let mut stream = TcpStream::connect(n2.address).await.unwrap();
        stream.write_all(&garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{garbage:?}");
    }
    assert!(n2.session("n1").unwrap().live);
}

#[tokio::test]
async fn a_server_that_names_no_protocol_gets_no_session() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let svid = cluster.svid(&cluster.naming.node("n2").unwrap());
    let expected = ExpectedPeer::Exact(cluster.naming.node("n1").unwrap());
    let options = TlsOptions::from(Groups::PostQuantum);
    let config = server_config(&svid, &bundles(&cluster.ca), expected, NODE_ALPN, &options).unwrap();
    let mut config = rustls::ServerConfig::clone(&config);
    config.alpn_protocols.clear();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let front = listen().await;
    let address = front.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = front.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    let n1 = cluster.node("n1");
    n1.redirect(|directory| drop(directory.nodes.remove("n2"))).await;
    until("forgotten", || n1.session("n2").is_none()).await;
    let n2 = cluster.node("n2").directory.borrow().nodes["n2"].clone();
    n1.redirect(|directory| {
        directory.nodes.insert("n2".to_owned(), Node { addresses: vec![address], ..n2 });
    })
    .await;
    until("refused", || n1.stats.count(Side::SessionClient, "protocol") > 0).await;
    assert!(n1.session("n2").is_none());
}

/// Strangers connect from an address that is no node's, and say nothing.
#[tokio::test]
async fn strangers_take_no_room_from_nodes() {
    let cluster = Cluster::start_with(&[&[256], &[300]], super::cluster::TTL, |options| {
        options.setup_timeout = Duration::from_secs(30);
    })
    .await;
    cluster.meshed().await;
    let n2 = cluster.node("n2");
    let mut silent = Vec::new();
    for number in 0..100u8 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 1, number / 5], 0).into()).unwrap();
        silent.push(socket.connect(n2.address).await.unwrap());
    }
    until("most are turned away", || n2.stats.count(Side::Stranger, "busy") == 84).await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    until("entry", || n2.entry(key(300, 256, 1)).is_some()).await;
    let stats = &cluster.node("n1").stats;
    until("counted", || stats.counts().keys().any(|(side, _)| *side == Side::Client)).await;
    assert_eq!(stats.count(Side::Client, "ok"), 1, "at the first attempt");
}

/// A node with a session announces without end; each announcement goes through the machine.
#[tokio::test]
async fn a_node_that_announces_without_end_keeps_only_itself_waiting() {
    let cluster = Cluster::start(&[&[256], &[300, 301], &[310]]).await;
    cluster.meshed().await;
    let n2 = cluster.node("n2");
    let svid = cluster.svid(&cluster.naming.node("n1").unwrap());
    let hello = Announcement {
        version: 1,
        node: "n1".to_owned(),
        wireguard_port: 51871,
        handshake_port: 4250,
        ..Announcement::default()
    };
    let mut tls = say_hello(&cluster, "n2", &svid, hello.clone()).await;
    let mut sessions = n2.peers.sessions();
    let flood = tokio::spawn(async move {
        for round in 0..100_000u32 {
            let update = Announcement { identities: vec![round], ..hello.clone() };
            let frame = SessionFrame { message: Some(SessionMessage::Update(update)) };
            if wire::write(&mut tls, &frame, MAX_FRAME).await.is_err() {
                return;
            }
        }
    });
    let mut changes = 0;
    let counting = async {
        while sessions.changed().await.is_ok() {
            changes += 1;
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(800), counting).await.is_err());
    assert!(changes < 150, "{changes}");
    assert!(n2.auth.ask(key(300, 310, 3)));
    until("another pair", || n2.entry(key(300, 310, 3)).is_some()).await;
    flood.abort();
}

/// A node that announces our own key before we know it ourselves, as after a restart.
#[tokio::test]
async fn a_key_that_turns_out_to_be_ours_ends_the_session() {
    let mut cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    cluster.stop("n1").await;
    let n2 = cluster.node("n2");
    n2.own.send_modify(|own| own.wireguard_key = None);
    let svid = cluster.svid(&cluster.naming.node("n1").unwrap());
    let stolen = Announcement {
        version: 1,
        node: "n1".to_owned(),
        wireguard_key: vec![9; 32],
        wireguard_port: 51871,
        handshake_port: 4250,
        ..Announcement::default()
    };
    let _tls = say_hello(&cluster, "n2", &svid, stolen).await;
    until("believed", || n2.session("n1").is_some_and(|now| now.live && now.wireguard_key == Some([9; 32])))
        .await;
    n2.own.send_modify(|own| own.wireguard_key = Some([9; 32]));
    until("found out", || !n2.session("n1").unwrap().live).await;
}

/// A session that agrees on everything but the pre-shared key is no session.
#[tokio::test]
async fn a_forged_confirmation_of_the_preshared_key_ends_the_session() {
    let mut cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    cluster.stop("n1").await;
    let n2 = cluster.node("n2");
    let svid = cluster.svid(&cluster.naming.node("n1").unwrap());
    let hello = Announcement {
        version: 1,
        node: "n1".to_owned(),
        wireguard_key: vec![9; 32],
        wireguard_port: 51871,
        handshake_port: 4250,
        ..Announcement::default()
    };
    let mut tls = say_hello(&cluster, "n2", &svid, hello).await;
    until("up", || n2.session("n1").is_some_and(|now| now.live && now.wireguard_key == Some([9; 32]))).await;
    assert_eq!(n2.session("n1").unwrap().preshared_key, None, "another tunnel's is not its");
    let forged =
        wire::Preshared { client_key: vec![9; 32], server_key: vec![2; 32], confirmation: vec![0; 32] };
    let frame = SessionFrame { message: Some(SessionMessage::Preshared(forged)) };
    wire::write(&mut tls, &frame, MAX_FRAME).await.unwrap();
    until("ended", || !n2.session("n1").unwrap().live).await;
    assert_eq!(n2.session("n1").unwrap().preshared_key, None);
}

/// What the lower end has dialled stays, if a dial of the other one may have begun before that was known.
#[tokio::test]
async fn a_dial_that_crosses_ours_takes_nothing_from_it() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let n1 = cluster.node("n1");
    let before = n1.session("n2").unwrap();
    let hello = Announcement {
        version: 1,
        node: "n2".to_owned(),
        wireguard_port: 51871,
        handshake_port: 4250,
        ..Announcement::default()
    };
    let _tls = say_hello(&cluster, "n1", &cluster.svid(&cluster.naming.node("n2").unwrap()), hello).await;
    until("refused", || n1.stats.count(Side::SessionServer, "crossed") == 1).await;
    let after = n1.session("n2").unwrap();
    assert_eq!((after.live, after.since), (true, before.since));
}
