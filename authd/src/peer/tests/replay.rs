//! What was said in one handshake counts nowhere else.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::HandshakeKind;
use rustls::client::Resumption;
use spire_adapter::tls::{Groups, Options as TlsOptions, client_config};
use spire_adapter::{ExpectedPeer, Svid};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::cluster::{Cluster, bundles, key, naming};
use super::raw::bare_client;
use crate::peer::binding::{End, Transcript};
use crate::peer::role::Role;
use crate::peer::wire::{self, Binding, HandshakeFrame, HandshakeMessage, MAX_HANDSHAKE_FRAME, Reader};
use crate::peer::{Error, IDENTITY_ALPN};

async fn dial(cluster: &Cluster, to: SocketAddr, svid: &Svid, identity: u32) -> TlsStream<TcpStream> {
    let expected = ExpectedPeer::Exact(cluster.naming.numbered(identity).unwrap());
    let options = TlsOptions::from(Groups::PostQuantum);
    let config = client_config(svid, &bundles(&cluster.ca), expected, IDENTITY_ALPN, &options).unwrap();
    let stream = TcpStream::connect(to).await.unwrap();
    TlsConnector::from(config).connect(naming().server_name(identity).unwrap(), stream).await.unwrap()
}

/// What 256 on n1 says to 300 on n2 over this connection, as an honest node does.
fn binding(cluster: &Cluster, tls: &TlsStream<TcpStream>, own: &Svid) -> Binding {
    let under = cluster.node("n1").peers.0.table.under(2).unwrap().1;
    let (_, connection) = tls.get_ref();
    let theirs = spire_adapter::peer_svid(connection.peer_certificates().unwrap()).unwrap();
    let transcript = Transcript::new(
        |output, label| connection.export_keying_material(output, label, None).map(|_| ()),
        End { identity: 256, spiffe_id: own.spiffe_id().clone(), leaf_hash: own.leaf_hash() },
        End { identity: 300, spiffe_id: theirs.spiffe_id, leaf_hash: theirs.leaf_hash },
    )
    .unwrap();
    let mac = transcript.mac(&under.key, Role::Client);
    Binding { node: 1, mac, from: 256, to: 300, session: under.key.name.to_vec() }
}

/// The server's first word to it: `bound`, or that with which it refuses.
async fn answer(mut tls: TlsStream<TcpStream>, binding: Binding) -> String {
    let frame = HandshakeFrame { message: Some(HandshakeMessage::Binding(binding)) };
    wire::write(&mut tls, &frame, MAX_HANDSHAKE_FRAME).await.unwrap();
    match Reader::new(tls, MAX_HANDSHAKE_FRAME).next::<HandshakeFrame>().await.unwrap().message.unwrap() {
        HandshakeMessage::Refused(refusal) => refusal.reason,
        HandshakeMessage::Binding(_) => "bound".to_owned(),
        HandshakeMessage::Recorded(_) => "recorded".to_owned(),
    }
}

#[tokio::test]
async fn a_binding_counts_on_its_own_connection_to_its_own_node_only() {
    let cluster = Cluster::start(&[&[256], &[300], &[300]]).await;
    cluster.meshed().await;
    let svid = cluster.svid(&cluster.naming.numbered(256).unwrap());
    let (n2, n3) = (cluster.node("n2"), cluster.node("n3"));
    let first = dial(&cluster, n2.address, &svid, 300).await;
    let said = binding(&cluster, &first, &svid);
    let again = dial(&cluster, n2.address, &svid, 300).await;
    assert_eq!(answer(again, said.clone()).await, "not_bound", "on another connection");
    let elsewhere = dial(&cluster, n3.address, &svid, 300).await;
    assert_eq!(answer(elsewhere, said.clone()).await, "no_session", "to another node");
    assert!(cluster.nodes.values().all(|node| node.entries() == 0));
    assert_eq!(answer(first, said).await, "bound", "where it belongs");
}

#[tokio::test]
async fn a_server_that_reflects_what_the_client_said_is_not_believed() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let under = cluster.node("n1").peers.0.table.under(2).unwrap().1;
    let end = |identity: u32| End {
        identity,
        spiffe_id: cluster.naming.numbered(identity).unwrap(),
        leaf_hash: [0; 32],
    };
    let transcript = Transcript::new(|_, _| Ok(()), end(256), end(300)).unwrap();
    let (near, far) = tokio::io::duplex(4096);
    let (mut read, mut write) = tokio::io::split(far);
    let reflecting = tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
    let result = crate::peer::handshake::client_frames(near, &under, &transcript, key(256, 300, 2), 1).await;
    assert!(matches!(result, Err(Error::NotBound { identity: 300 })), "{result:?}");
    reflecting.abort();
}

/// Neither shows up again without proving everything anew.
#[tokio::test]
async fn no_session_is_resumed_and_no_early_data_taken() {
    let cluster = Cluster::start(&[&[256], &[300]]).await;
    cluster.meshed().await;
    let svid = cluster.svid(&cluster.naming.numbered(256).unwrap());
    let mut config = bare_client(Groups::PostQuantum);
    let certified = rustls::sign::CertifiedKey::new(svid.chain().to_vec(), svid.signing_key());
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    config.alpn_protocols = vec![IDENTITY_ALPN.to_vec()];
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for _ in 0..3 {
        let stream = TcpStream::connect(cluster.node("n2").address).await.unwrap();
        let connector = TlsConnector::from(Arc::clone(&config));
        let mut tls = connector.connect(naming().server_name(300).unwrap(), stream).await.unwrap();
        // The server's refusal comes behind any ticket.
        let frame = HandshakeFrame { message: Some(HandshakeMessage::Binding(Binding::default())) };
        wire::write(&mut tls, &frame, MAX_HANDSHAKE_FRAME).await.unwrap();
        let mut reader = Reader::new(&mut tls, MAX_HANDSHAKE_FRAME);
        assert!(reader.next::<HandshakeFrame>().await.is_ok());
        let (_, connection) = tls.get_ref();
        assert_eq!(
            (connection.handshake_kind(), connection.tls13_tickets_received()),
            (Some(HandshakeKind::Full), 0)
        );
        assert!(!connection.is_early_data_accepted());
    }
}
