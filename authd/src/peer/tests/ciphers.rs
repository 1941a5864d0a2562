//! Which cipher suites two nodes agree on, read off the wire.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::CipherSuite;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::cluster::{Cluster, TTL, key, listen, until};
use crate::peer::{IDENTITY_ALPN, NODE_ALPN, PairProof};

/// What each connection was for, by the protocol that its ClientHello offers, and the suite of its ServerHello.
type Seen = Arc<Mutex<BTreeSet<(&'static [u8], u16)>>>;

/// Passes connections on to `node` and takes down what they say first.
async fn tap(front: TcpListener, node: SocketAddr, seen: Seen) {
    while let Ok((mut from, _)) = front.accept().await {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut to = TcpStream::connect(node).await?;
            let client_hello = pass_record(&mut from, &mut to).await?;
            let server_hello = pass_record(&mut to, &mut from).await?;
            let offers = |alpn: &&[u8]| client_hello.windows(alpn.len()).any(|part| part == *alpn);
            let alpn = [NODE_ALPN, IDENTITY_ALPN].into_iter().find(offers).unwrap();
            seen.lock().unwrap().insert((alpn, suite(&server_hello)));
            copy_bidirectional(&mut from, &mut to).await
        });
    }
}

/// One record of TLS; what is in it.
async fn pass_record(from: &mut TcpStream, to: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut header = [0; 5];
    from.read_exact(&mut header).await?;
    let mut content = vec![0; u16::from_be_bytes([header[3], header[4]]).into()];
    from.read_exact(&mut content).await?;
    to.write_all(&[&header, &*content].concat()).await?;
    Ok(content)
}

/// The suite behind type and length, version, random, and the session's ID (RFC 8446, 4.1.3).
fn suite(server_hello: &[u8]) -> u16 {
    assert_eq!(server_hello[0], 2, "a ServerHello");
    let behind_id = 4 + 2 + 32 + 1 + usize::from(server_hello[4 + 2 + 32]);
    u16::from_be_bytes([server_hello[behind_id], server_hello[behind_id + 1]])
}

#[tokio::test]
async fn sessions_are_as_strong_as_their_key_exchange_and_proofs_are_quick() {
    let front = listen().await;
    let tapped = front.local_addr().unwrap();
    let mut cluster = Cluster::start_with(&[&[256], &[300]], TTL, |options| {
        options.pair_proof = PairProof::Handshake;
        options.announced_port = (options.node == "n2").then_some(tapped.port());
    })
    .await;
    let seen = Seen::default();
    tokio::spawn(tap(front, cluster.node("n2").address, Arc::clone(&seen)));
    let by_the_tap = |directory: &mut crate::peer::Directory| {
        directory.nodes.get_mut("n2").unwrap().addresses = vec![tapped];
    };
    cluster.node("n1").redirect(by_the_tap).await;
    // It is n1 that dials, now by the tap.
    cluster.restart("n1").await;
    cluster.meshed().await;
    assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
    until("both seen", || seen.lock().unwrap().len() > 1).await;
    let expected = [
        (NODE_ALPN, u16::from(CipherSuite::TLS13_AES_256_GCM_SHA384)),
        (IDENTITY_ALPN, u16::from(CipherSuite::TLS13_AES_128_GCM_SHA256)),
    ];
    until("proven", || cluster.node("n1").entry(key(256, 300, 2)).is_some()).await;
    assert_eq!(*seen.lock().unwrap(), BTreeSet::from(expected));
}
