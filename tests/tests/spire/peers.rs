//! Mutual TLS between two identities, in memory.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use spire_adapter::tls::{self, Options};
use spire_adapter::{ExpectedPeer, Groups, Snapshot, SpiffeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A handshake with a byte each way, each side expecting exactly the other.
pub(crate) async fn handshake(client: &Snapshot, server: &Snapshot) -> io::Result<()> {
    let (near, far) = duplex(64 << 10);
    let options = Options::from(Groups::Any);
    let (client_svid, server_svid) = (svid(client)?, svid(server)?);
    let exact = |id: &SpiffeId| ExpectedPeer::Exact(id.clone());
    let connector =
        tls::client_config(client_svid, &client.bundles, exact(server_svid.spiffe_id()), b"test", &options);
    let acceptor =
        tls::server_config(server_svid, &server.bundles, exact(client_svid.spiffe_id()), b"test", &options);
    let connector = TlsConnector::from(connector.map_err(io::Error::other)?);
    let acceptor = TlsAcceptor::from(Arc::clone(&acceptor.map_err(io::Error::other)?));
    let name = ServerName::try_from("peer.test").map_err(io::Error::other)?;
    let dial = async {
        let mut stream = connector.connect(name, near).await?;
        stream.write_all(b"x").await?;
        stream.read_u8().await
    };
    let accept = async {
        let mut stream = acceptor.accept(far).await?;
        let byte = stream.read_u8().await?;
        stream.write_all(&[byte]).await?;
        stream.flush().await
    };
    tokio::try_join!(dial, accept).map(drop)
}

fn svid(snapshot: &Snapshot) -> io::Result<&spire_adapter::Svid> {
    snapshot.svid().ok_or_else(|| io::Error::other(format!("no SVID: {}", snapshot.state.as_str())))
}
