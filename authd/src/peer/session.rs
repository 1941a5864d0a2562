//! Node sessions: how one comes to be on either side, and its life.
//!
//! Whoever has none dials, the end with the lower SPIFFE ID first: `crossing` says which counts. A session ends with the earlier of
//! its two SVIDs; the dialling side replaces it at half of that time or when the tunnel's pre-shared key, which
//! comes from it, is old enough.

mod addresses;
mod announcement;
mod life;
mod output;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::CommonState;
use rustls::pki_types::CertificateDer;
use spire_adapter::tls::{client_config, server_config};
use spire_adapter::{Bundles, ExpectedPeer, PeerSvid};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::server::StartHandshake;
use tokio_util::sync::CancellationToken;

use super::NODE_ALPN;
use super::authenticator::Hash;
use super::binding::SessionKey;
use super::directory::Node;
use super::error::Error;
use super::preshared::End;
use super::service::{Shared, plain};
use super::wire::{self, MAX_FRAME, Reader, SessionFrame, SessionMessage, WireError};
use crate::auth::stats::Side;
use crate::logging::AUDIT;
use crate::svids::Credential;

use announcement::announcement;
pub(super) use life::Established;
use output::Output;

/// Pause after a session that was refused after TLS or was lost, and between renewals at least.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// Who is at the other end of a completed TLS handshake.
pub(super) struct Other {
    pub(super) name: String,
    pub(super) node: Node,
    pub(super) svid: PeerSvid,
    pub(super) address: SocketAddr,
    /// Our own end of it.
    pub(super) own: End,
    /// By which we have verified it.
    pub(super) bundles: Bundles,
    pub(super) own_not_after: SystemTime,
    pub(super) group: &'static str,
    pub(super) key: SessionKey,
}

/// Keeps a session with a node for as long as there is one, and renews those that we have dialled.
pub(super) async fn keep_dialled(shared: Arc<Shared>, name: String, stop: CancellationToken) {
    let (first, limit) = shared.options.redial;
    let mut pause = first;
    let mut renewing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = our_turn(&shared, &name, renewing) => {}
        }
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = attempt(&shared, &name) => result,
        };
        let wait = match result {
            Ok(established) => {
                pause = first;
                let half = (established.life(shared.clock.now()) / 2).min(shared.options.rotation);
                let ended = established.spawn(&shared, &stop);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(half.max(SHORTEST_LIFE)) => {
                        // Renewed while the old one still runs.
                        renewing = true;
                        Duration::ZERO
                    }
                    () = ended.cancelled() => {
                        renewing = false;
                        jittered(first)
                    }
                }
            }
            Err(Error::Crossed { .. }) => {
                renewing = false;
                Duration::ZERO
            }
            Err(error) => {
                // A node that stays away is told once, and again when the reason changes.
                if shared.table.note_trouble(&name, error.to_string(), shared.clock.wall()) {
                    let reason = error.as_str();
                    tracing::warn!(target: AUDIT, event = "session_failing", node = name, reason, %error, "no session");
                }
                let wait = jittered(pause);
                pause = pause.saturating_mul(2).min(limit);
                wait
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Waits until this node has an SVID and there is no session, or only one that is ours to renew. The end with the
/// higher SPIFFE ID leaves the other some time.
async fn our_turn(shared: &Shared, name: &str, renewing: bool) {
    node_svid(shared).await;
    if renewing {
        return;
    }
    let mut sessions = shared.table.watch();
    loop {
        sessions.mark_unchanged();
        let changed = async {
            if sessions.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        if shared.table.is_live(name) {
            changed.await;
        } else if shared.dials_first(name) {
            return;
        } else {
            tokio::select! {
                () = tokio::time::sleep(jittered(shared.options.defer)) => return,
                () = changed => {}
            }
        }
    }
}

/// Dials once, and reports how it ended.
async fn attempt(shared: &Arc<Shared>, name: &str) -> Result<Established, Error> {
    let began = shared.clock.now();
    let dialled = tokio::time::timeout(shared.options.setup_timeout, dial(shared, name)).await;
    let result = dialled.unwrap_or(Err(Error::Timeout { stage: "node session" }));
    let outcome = result.as_ref().map(|_| ()).map_err(Error::as_str);
    shared.observer.handshake(Side::SessionClient, outcome, shared.clock.now().since(began));
    result
}

/// Waits until this node has an SVID.
async fn node_svid(shared: &Shared) {
    let mut changes = shared.svids.node_changes();
    while shared.svids.node().is_none() {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Between half of `pause` and all of it.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

async fn dial(shared: &Arc<Shared>, name: &str) -> Result<Established, Error> {
    let unknown = || Error::UnknownNode { node: name.to_owned() };
    let node = shared.directory().nodes.get(name).cloned().ok_or_else(unknown)?;
    let own = shared.svids.node().ok_or_else(|| Error::NoSvid { whose: "this node".to_owned() })?;
    let expected = ExpectedPeer::Exact(node.spiffe_id.clone());
    let config = client_config(&own.svid, &own.bundles, expected, NODE_ALPN, &shared.tls())?;
    let server_name =
        rustls::pki_types::ServerName::try_from(shared.options.naming.trust_domain().as_str().to_owned())
            .map_err(|_invalid| unknown())?;
    let stream = connect(&node.addresses, shared.options.setup_timeout / 2).await?.ok_or_else(unknown)?;
    let address = plain(stream.peer_addr().map_err(Error::Tls)?);
    let tls = TlsConnector::from(config).connect(server_name, stream).await.map_err(Error::tls)?;
    let (_, connection) = tls.get_ref();
    agreed(connection, NODE_ALPN)?;
    let export =
        |output: &mut [u8], label: &[u8]| connection.export_keying_material(output, label, None).map(|_| ());
    let other = Other {
        name: name.to_owned(),
        node,
        svid: peer(connection.peer_certificates())?,
        address,
        own: own_end(&own),
        bundles: own.bundles.clone(),
        own_not_after: own.svid.not_after(),
        group: group(connection),
        key: SessionKey::new(Hash::of(connection).ok_or(Error::Protocol)?, export)?,
    };
    Box::pin(establish(shared, tls, other, Side::SessionClient)).await
}

/// The server's side, once a ClientHello has asked for a node session.
pub(super) async fn accept(
    shared: &Arc<Shared>,
    start: StartHandshake<TcpStream>,
    address: SocketAddr,
) -> Result<Established, Error> {
    let own = shared.svids.node().ok_or_else(|| Error::NoSvid { whose: "this node".to_owned() })?;
    let trust_domain = shared.options.naming.trust_domain().clone();
    let expected = ExpectedPeer::PathPrefix(trust_domain, "/authd/node/".to_owned());
    let config = server_config(&own.svid, &own.bundles, expected, NODE_ALPN, &shared.tls())?;
    let tls = start.into_stream(config).await.map_err(Error::tls)?;
    let (_, connection) = tls.get_ref();
    agreed(connection, NODE_ALPN)?;
    let export =
        |output: &mut [u8], label: &[u8]| connection.export_keying_material(output, label, None).map(|_| ());
    let svid = peer(connection.peer_certificates())?;
    let directory = shared.directory();
    let stranger = || Error::Stranger { spiffe_id: svid.spiffe_id.clone() };
    let (name, node) = directory.node_of(&svid.spiffe_id).ok_or_else(stranger)?;
    if svid.spiffe_id == *own.svid.spiffe_id() {
        return Err(Error::OwnSvid { spiffe_id: svid.spiffe_id });
    }
    let other = Other {
        name: name.to_owned(),
        node: node.clone(),
        address: plain(address),
        own: own_end(&own),
        bundles: own.bundles.clone(),
        own_not_after: own.svid.not_after(),
        group: group(connection),
        key: SessionKey::new(Hash::of(connection).ok_or(Error::Protocol)?, export)?,
        svid,
    };
    Box::pin(establish(shared, tls, other, Side::SessionServer)).await
}

/// Both Hellos, in whatever order, make a session.
async fn establish<S>(shared: &Arc<Shared>, tls: S, other: Other, side: Side) -> Result<Established, Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut announced = shared.svids.announced();
    announced.wait_for(Option::is_some).await.map_err(|_closed| WireError::Closed)?;
    let (read, mut write) = tokio::io::split(tls);
    let hello = SessionFrame { message: Some(SessionMessage::Hello(announcement(shared))) };
    wire::write(&mut write, &hello, MAX_FRAME).await?;
    let mut reader = Reader::new(read, MAX_FRAME);
    let first: SessionFrame = reader.next().await?;
    let Some(SessionMessage::Hello(hello)) = first.message else {
        return Err(WireError::Unexpected { expected: "Hello" }.into());
    };
    Established::new(shared, Output::new(Box::new(write)), reader.boxed(), other, &hello, side).await
}

fn own_end(own: &Credential) -> End {
    End { spiffe_id: own.svid.spiffe_id().clone(), leaf_hash: own.svid.leaf_hash() }
}

/// Connects to the first address that answers; `None` if there is none.
pub(super) async fn connect(addresses: &[SocketAddr], limit: Duration) -> Result<Option<TcpStream>, Error> {
    let mut last = None;
    for address in addresses.iter().copied() {
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Small messages back and forth: waiting for more to send would cost a round trip.
                stream.set_nodelay(true).map_err(|source| Error::Connect { address, source })?;
                return Ok(Some(stream));
            }
            Ok(Err(source)) => last = Some(Error::Connect { address, source }),
            Err(_) => last = Some(Error::Timeout { stage: "TCP" }),
        }
    }
    last.map_or(Ok(None), Err)
}

/// Whose certificate the other end has proven to hold.
pub(super) fn peer(certificates: Option<&[CertificateDer<'_>]>) -> Result<PeerSvid, Error> {
    spire_adapter::peer_svid(certificates.unwrap_or_default()).map_err(Error::Certificate)
}

/// Both ends have agreed on this protocol; rustls lets a peer through that names none.
pub(super) fn agreed(connection: &CommonState, alpn: &[u8]) -> Result<(), Error> {
    if connection.alpn_protocol() == Some(alpn) { Ok(()) } else { Err(Error::Protocol) }
}

/// Name of the key exchange group.
pub(super) fn group(connection: &CommonState) -> &'static str {
    match connection.negotiated_key_exchange_group().map(|group| group.name()) {
        Some(rustls::NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
        Some(rustls::NamedGroup::X25519) => "X25519",
        Some(rustls::NamedGroup::secp256r1) => "secp256r1",
        Some(rustls::NamedGroup::secp384r1) => "secp384r1",
        _ => "other",
    }
}
