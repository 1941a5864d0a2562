//! The handshake port: takes a connection, reads its ClientHello, and hands it to whom it asks for.
//!
//! Until a connection has become what it asked to be, it holds one of the permits of `admission` and has a few
//! seconds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;

use super::admission::Permit;
use super::error::Error;
use super::service::{Shared, plain};
use super::{IDENTITY_ALPN, NODE_ALPN, handshake, session};
use crate::auth::stats::Side;
use crate::clock::BootTime;

/// Pause after the listener itself fails, as it does when there are no file descriptors left.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);

pub(super) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let from = plain(address).ip();
                match shared.admission.admit(from, shared.is_node(from), shared.clock.now()) {
                    Some(permit) => {
                        shared.tasks.spawn(serve(Arc::clone(&shared), stream, address, permit));
                    }
                    None => {
                        shared.observer.handshake(Side::Stranger, Err(Error::Busy.as_str()), Duration::ZERO)
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "handshake port");
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, address: SocketAddr, permit: Permit) {
    let began = shared.clock.now();
    let mut side = Side::Stranger;
    let setup = tokio::time::timeout(
        shared.options.setup_timeout,
        set_up(&shared, stream, address, began, &mut side),
    );
    let outcome = tokio::select! {
        () = shared.stop.cancelled() => return,
        outcome = setup => outcome.unwrap_or(Err(Error::Timeout { stage: "setting up a connection" })),
    };
    drop(permit);
    let latency = shared.clock.now().since(began);
    match outcome {
        // The driver has reported it.
        Ok(None) | Err(Error::NotRecorded(_)) => {}
        Ok(Some(established)) => {
            shared.observer.handshake(side, Ok(()), latency);
            established.spawn(&shared, &shared.stop);
        }
        Err(error) => {
            let peer = plain(address);
            if shared.may_tell_of_refusal() {
                tracing::warn!(%peer, side = side.as_str(), reason = error.as_str(), %error, "connection refused");
            }
            shared.observer.handshake(side, Err(error.as_str()), latency);
        }
    }
}

async fn set_up(
    shared: &Arc<Shared>,
    stream: TcpStream,
    address: SocketAddr,
    began: BootTime,
    side: &mut Side,
) -> Result<Option<session::Established>, Error> {
    stream.set_nodelay(true).map_err(Error::Tls)?;
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(Error::tls)?;
    let hello = start.client_hello();
    let offers = |alpn: &[u8]| hello.alpn().is_some_and(|mut offered| offered.any(|offer| offer == alpn));
    if offers(NODE_ALPN) {
        *side = Side::SessionServer;
        return session::accept(shared, start, address).await.map(Some);
    }
    if !offers(IDENTITY_ALPN) {
        return Err(Error::NotHere);
    }
    let asked = hello.server_name().and_then(|name| shared.options.naming.asked_for(name));
    let asked = asked.ok_or(Error::NotHere)?;
    *side = Side::Server;
    handshake::accept(shared, start, asked, began).await.map(|()| None)
}
