//! One end of a TLS connection on loopback as the daemon makes it: its identity, and everybody of the peer's own
//! trust domain expected below `/ns`.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use authd_tests::wait;
use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, HandshakeKind, ServerConfig, ServerConnection,
    StreamOwned,
};
use spire_adapter::tls::{self, Options};
use spire_adapter::{Bundles, ExpectedPeer, Groups, Svid, TrustDomain, peer_svid};

use crate::matrix::{Authorities, Row};

pub(crate) const ALPN: &[u8] = b"test/1";
pub(crate) const LABEL: &str = "EXPORTER-authd-test";
pub(crate) const NAME: &str = "256.a.test";
const PATIENCE: Duration = Duration::from_secs(20);

/// What was agreed on with a peer that was accepted.
#[derive(Debug)]
pub(crate) struct Met {
    pub(crate) group: String,
    /// In hex.
    pub(crate) exporter: String,
    pub(crate) peer: String,
    /// Whether everything was proven anew.
    pub(crate) full: bool,
}

pub(crate) struct Endpoint {
    svid: Svid,
    pub(crate) bundles: Bundles,
}

impl Endpoint {
    /// Presents the good row.
    pub(crate) fn new(authorities: &Authorities, rows: &[Row]) -> Self {
        Self::presenting(&rows[0], authorities)
    }

    pub(crate) fn presenting(row: &Row, authorities: &Authorities) -> Self {
        let svid = Svid::from_chain(row.chain.clone(), row.key.serialized_der()).unwrap();
        Self { svid, bundles: authorities.bundles() }
    }

    /// `None` where no configuration can be made, since there is no bundle for such a peer.
    pub(crate) fn client(&self, row: &Row, groups: Groups) -> Option<Arc<ClientConfig>> {
        tls::client_config(&self.svid, &self.bundles, expected(row), ALPN, &Options::from(groups)).ok()
    }

    pub(crate) fn server(&self, row: &Row, groups: Groups) -> Option<Arc<ServerConfig>> {
        tls::server_config(&self.svid, &self.bundles, expected(row), ALPN, &Options::from(groups)).ok()
    }
}

fn expected(row: &Row) -> ExpectedPeer {
    let trust_domain = peer_svid(&row.chain).map_or_else(
        |_unreadable| TrustDomain::new("a.test").unwrap(),
        |peer| peer.spiffe_id.trust_domain().clone(),
    );
    ExpectedPeer::PathPrefix(trust_domain, "/ns".to_owned())
}

/// Meets whoever connects; `None` if that never happens, because `ended` says so first.
pub(crate) fn accept(
    listener: &TcpListener,
    config: Arc<ServerConfig>,
    mut ended: impl FnMut() -> bool,
) -> Option<io::Result<Met>> {
    listener.set_nonblocking(true).unwrap();
    let found = wait::until(PATIENCE, || match listener.accept() {
        Ok((stream, _)) => Some(Some(stream)),
        Err(_) if ended() => Some(None),
        Err(_) => None,
    });
    let (stream, _waited) = found.expect("somebody connects");
    let stream = stream?;
    stream.set_nonblocking(false).unwrap();
    Some(meet(ServerConnection::new(config).unwrap(), stream))
}

pub(crate) fn dial(address: &str, config: Arc<ClientConfig>) -> io::Result<Met> {
    let name = ServerName::try_from(NAME).unwrap();
    meet(ClientConnection::new(config, name).unwrap(), TcpStream::connect(address).unwrap())
}

/// A handshake, and a byte each way.
fn meet<C, S>(connection: C, stream: TcpStream) -> io::Result<Met>
where
    C: std::ops::DerefMut<Target = ConnectionCommon<S>>,
    S: rustls::SideData,
{
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(b"x")?;
    stream.flush()?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    assert_eq!(byte, *b"x", "said before anything was proven");
    let exporter = stream.conn.export_keying_material([0; 32], LABEL.as_bytes(), None).unwrap();
    let met = Met {
        group: format!("{:?}", stream.conn.negotiated_key_exchange_group().unwrap().name()),
        exporter: exporter.iter().map(|byte| format!("{byte:02x}")).collect(),
        peer: peer_svid(stream.conn.peer_certificates().unwrap()).unwrap().spiffe_id.to_string(),
        full: stream.conn.handshake_kind() == Some(HandshakeKind::Full),
    };
    assert_eq!(stream.conn.alpn_protocol(), Some(ALPN));
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(met)
}

/// What our verifier said, or TLS in its place.
pub(crate) fn reason(error: &io::Error) -> String {
    tls::violation_of_io(error).map_or_else(|| format!("{error}"), |violation| violation.as_str().to_owned())
}
