//! Identity handshakes: each end proves its identity's SVID by TLS, and by the MAC that the other end is the
//! node of the session. The server records and says so; only then the client records.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use auth_ebpf_abi::{AuthKey, AuthType, IdentityNumber, NodeNumber};
use spiffe::SpiffeId;
use spire_adapter::tls::{Flights, client_config, server_config};
use spire_adapter::{ExpectedPeer, PeerSvid};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::server::StartHandshake;

use super::IDENTITY_ALPN;
use super::binding::{End, Transcript};
use super::error::{Error, known_reason};
use super::role::Role;
use super::service::Shared;
use super::session::{agreed, connect, group, peer};
use super::table::Under;
use super::wire::{
    self, Binding, HandshakeFrame, HandshakeMessage, MAX_HANDSHAKE_FRAME, Reader, Recorded, Refusal,
    WireError,
};
use crate::auth::{Accepted, Method, Proof, Success};
use crate::clock::BootTime;
use crate::svids::Credential;

/// How long a server waits for the session to be complete on its side, too.
const SESSION_WAIT: Duration = Duration::from_millis(500);

/// Dials the node of `key` and proves the pair, under this session.
pub(super) async fn dial(shared: &Shared, key: AuthKey, name: &str, under: &Under) -> Result<Proof, Error> {
    let directory = shared.directory();
    let remote = identity_on(shared, key.remote, name)?;
    let own = credential(shared, key.local)?;
    let expected = ExpectedPeer::Exact(remote);
    let config = client_config(&own.svid, &own.bundles, expected, IDENTITY_ALPN, &shared.tls_of_proofs())?;
    let not_here = || Error::UnknownIdentity { identity: key.remote, node: name.to_owned() };
    let server_name = shared.options.naming.server_name(key.remote).ok_or_else(not_here)?;
    let hints = directory.nodes.get(name).map(|node| node.addresses.clone()).unwrap_or_default();
    let addresses: Vec<SocketAddr> = std::iter::once(under.session.handshake_endpoint).chain(hints).collect();
    let stream = connect(&addresses, shared.options.setup_timeout / 4).await?.ok_or_else(not_here)?;
    let tls =
        TlsConnector::from(config).connect(server_name, Flights::new(stream)).await.map_err(Error::tls)?;
    let (_, connection) = tls.get_ref();
    agreed(connection, IDENTITY_ALPN)?;
    let svid = peer(connection.peer_certificates())?;
    let transcript = Transcript::new(
        |output, label| connection.export_keying_material(output, label, None).map(|_| ()),
        own_end(&own, key.local),
        other_end(&svid, key.remote),
    )?;
    let group = group(connection);
    let own_node =
        shared.own_number().ok_or_else(|| Error::UnknownNode { node: shared.options.node.clone() })?;
    client_frames(tls, under, &transcript, key, own_node).await?;
    Ok(shared.proof(&own, svid, group, under.session.epoch, Method::Handshake))
}

pub(super) async fn client_frames<S: AsyncRead + AsyncWrite + Unpin>(
    mut tls: S,
    under: &Under,
    transcript: &Transcript,
    key: AuthKey,
    own_node: NodeNumber,
) -> Result<(), Error> {
    let binding = binding(under, transcript, Role::Client, own_node, key.local, key.remote);
    send(&mut tls, HandshakeMessage::Binding(binding)).await?;
    let mut reader = Reader::new(&mut tls, MAX_HANDSHAKE_FRAME);
    match expect(&mut reader, "the server's binding").await? {
        HandshakeMessage::Binding(theirs) if transcript.verify(&under.key, Role::Server, &theirs.mac) => {}
        HandshakeMessage::Refused(refusal) => return Err(refused(&refusal)),
        HandshakeMessage::Binding(_) => return Err(Error::NotBound { identity: key.remote }),
        HandshakeMessage::Recorded(_) => return Err(WireError::Unexpected { expected: "Binding" }.into()),
    }
    match expect(&mut reader, "the server's record").await? {
        HandshakeMessage::Recorded(_) => Ok(()),
        HandshakeMessage::Refused(refusal) => Err(refused(&refusal)),
        HandshakeMessage::Binding(_) => Err(WireError::Unexpected { expected: "Recorded" }.into()),
    }
}

/// The server's side, once a ClientHello has asked for identity `asked`.
pub(super) async fn accept(
    shared: &Arc<Shared>,
    start: StartHandshake<TcpStream>,
    asked: IdentityNumber,
    began: BootTime,
) -> Result<(), Error> {
    identity_on(shared, asked, &shared.options.node)?;
    let own = credential(shared, asked)?;
    // Who the client claims to be stands in its first frame; here it is anybody of the trust domain.
    let expected = ExpectedPeer::PathPrefix(shared.options.naming.trust_domain().clone(), String::new());
    let config = server_config(&own.svid, &own.bundles, expected, IDENTITY_ALPN, &shared.tls_of_proofs())?;
    let start = StartHandshake::from_parts(start.accepted, Flights::new(start.io));
    let mut tls = start.into_stream(config).await.map_err(Error::tls)?;
    let outcome = server_frames(shared, &mut tls, &own, asked, began).await;
    if let Err(error) = &outcome {
        let refusal = Refusal { reason: error.as_str().to_owned() };
        send(&mut tls, HandshakeMessage::Refused(refusal)).await?;
    }
    tls.get_ref().0.conclude().map_err(Error::Tls)?;
    // The client has what it needs; whether it hears our farewell is all the same.
    tls.shutdown().await.or_else(|_| Ok::<(), Error>(()))?;
    outcome
}

async fn server_frames(
    shared: &Arc<Shared>,
    tls: &mut tokio_rustls::server::TlsStream<Flights<TcpStream>>,
    own: &Credential,
    asked: IdentityNumber,
    began: BootTime,
) -> Result<(), Error> {
    let theirs = client_binding(&mut *tls).await?;
    let node = NodeNumber::try_from(theirs.node)
        .map_err(|_too_large| Error::UnknownNode { node: theirs.node.to_string() })?;
    let (name, under) = session_with(shared, node, |under| under.key.name == *theirs.session).await?;
    let (_, connection) = tls.get_ref();
    agreed(connection, IDENTITY_ALPN)?;
    let svid = peer(connection.peer_certificates())?;
    if theirs.to != asked || identity_on(shared, theirs.from, &name)? != svid.spiffe_id {
        return Err(Error::WrongIdentity { spiffe_id: svid.spiffe_id, claimed: theirs.from });
    }
    let transcript = Transcript::new(
        |output, label| connection.export_keying_material(output, label, None).map(|_| ()),
        other_end(&svid, theirs.from),
        own_end(own, asked),
    )?;
    if !transcript.verify(&under.key, Role::Client, &theirs.mac) {
        return Err(Error::NotBound { identity: theirs.from });
    }
    let own_node =
        shared.own_number().ok_or_else(|| Error::UnknownNode { node: shared.options.node.clone() })?;
    let ours = binding(&under, &transcript, Role::Server, own_node, theirs.from, asked);
    let group = group(connection);
    send(tls, HandshakeMessage::Binding(ours)).await?;
    let key = AuthKey { local: asked, remote: theirs.from, node, auth_type: AuthType::Spire as u8, pad: 0 };
    let latency = shared.clock.now().since(began);
    let proof = shared.proof(own, svid, group, under.session.epoch, Method::Handshake);
    let success = Success { proof, latency };
    shared.auth.accept(Accepted { key, began, success }).await?;
    send(tls, HandshakeMessage::Recorded(Recorded {})).await
}

async fn client_binding<R: AsyncRead + Unpin>(from: R) -> Result<Binding, Error> {
    match expect(&mut Reader::new(from, MAX_HANDSHAKE_FRAME), "the client's binding").await? {
        HandshakeMessage::Binding(binding) => Ok(binding),
        HandshakeMessage::Recorded(_) | HandshakeMessage::Refused(_) => {
            Err(WireError::Unexpected { expected: "Binding" }.into())
        }
    }
}

/// Verifies both SVIDs of a pair on this node as a peer would.
pub(super) fn verify_local(shared: &Shared, key: AuthKey) -> Result<Proof, Error> {
    let [local, remote] = [key.local, key.remote].map(|identity| {
        let spiffe_id = identity_on(shared, identity, &shared.options.node)?;
        Ok::<_, Error>((credential(shared, identity)?, ExpectedPeer::Exact(spiffe_id)))
    });
    let ((local, local_id), (remote, remote_id)) = (local?, remote?);
    let now = shared.clock.wall();
    let verify = |of: &Credential, by: &Credential, expected: &ExpectedPeer| {
        spire_adapter::verify_chain(of.svid.chain(), &by.bundles, expected, now).map_err(Error::Certificate)
    };
    verify(&local, &remote, &local_id)?;
    let svid = verify(&remote, &local, &remote_id)?;
    Ok(shared.proof(&local, svid, "", 0, Method::Local))
}

/// The live session with that node, if it is the one that is `meant`. It may be complete at the client's end a
/// moment before it is at ours, and the machine hears of it a moment before the table has it.
pub(super) async fn session_with(
    shared: &Shared,
    node: NodeNumber,
    meant: impl Fn(&Under) -> bool,
) -> Result<(String, Under), Error> {
    let mut sessions = shared.table.watch();
    let found = async {
        loop {
            sessions.mark_unchanged();
            if let Some(found) = shared.table.under(node).filter(|(_, under)| meant(under)) {
                return Some(found);
            }
            sessions.changed().await.ok()?;
        }
    };
    tokio::time::timeout(SESSION_WAIT, found).await.ok().flatten().ok_or_else(|| no_session(node))
}

/// SPIFFE ID of an identity that runs on that node by cluster state.
pub(super) fn identity_on(shared: &Shared, identity: IdentityNumber, node: &str) -> Result<SpiffeId, Error> {
    let directory = shared.directory();
    let spiffe_id = directory.identities.get(&identity).filter(|_| directory.runs_on(identity, node));
    spiffe_id.cloned().ok_or_else(|| Error::UnknownIdentity { identity, node: node.to_owned() })
}

pub(super) fn credential(shared: &Shared, identity: IdentityNumber) -> Result<Credential, Error> {
    shared.svids.identity(identity).ok_or_else(|| Error::NoSvid { whose: format!("identity {identity}") })
}

fn own_end(own: &Credential, identity: IdentityNumber) -> End {
    End { identity, spiffe_id: own.svid.spiffe_id().clone(), leaf_hash: own.svid.leaf_hash() }
}

fn other_end(svid: &PeerSvid, identity: IdentityNumber) -> End {
    End { identity, spiffe_id: svid.spiffe_id.clone(), leaf_hash: svid.leaf_hash }
}

fn binding(
    under: &Under,
    transcript: &Transcript,
    role: Role,
    node: NodeNumber,
    from: IdentityNumber,
    to: IdentityNumber,
) -> Binding {
    let mac = transcript.mac(&under.key, role);
    Binding { node: node.into(), mac, from, to, session: under.key.name.to_vec() }
}

async fn send<W: AsyncWrite + Unpin>(to: &mut W, message: HandshakeMessage) -> Result<(), Error> {
    Ok(wire::write(to, &HandshakeFrame { message: Some(message) }, MAX_HANDSHAKE_FRAME).await?)
}

/// The next message of those that are known here.
async fn expect<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    expected: &'static str,
) -> Result<HandshakeMessage, Error> {
    // One newer message is skipped, not an endless row of them.
    for _ in 0..4 {
        let frame: HandshakeFrame = reader.next().await?;
        if let Some(message) = frame.message {
            return Ok(message);
        }
    }
    Err(WireError::Unexpected { expected }.into())
}

fn refused(refusal: &Refusal) -> Error {
    Error::RefusedByPeer { reason: known_reason(&refusal.reason) }
}

fn no_session(node: NodeNumber) -> Error {
    Error::NoSession { node: node.to_string() }
}
