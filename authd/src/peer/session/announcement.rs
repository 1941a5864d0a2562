//! What nodes say of themselves, and what is made of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::peer::error::Error;
use crate::peer::service::Shared;
use crate::peer::table::Session;
use crate::peer::wire::{Announcement, WireError};

/// Identities that a node may vouch for. A node has a few hundred pods.
const MAX_IDENTITIES: usize = 4096;

/// What we say of ourselves.
pub(super) fn announcement(shared: &Shared) -> Announcement {
    let own = *shared.own.borrow();
    Announcement {
        version: shared.options.pair_proof.version(),
        node: shared.options.node.clone(),
        wireguard_key: own.wireguard_key.map(Vec::from).unwrap_or_default(),
        wireguard_port: own.wireguard_port.into(),
        epoch: own.epoch,
        identities: shared.svids.announced().borrow().iter().flat_map(|all| all.iter().copied()).collect(),
        handshake_port: shared.port.into(),
    }
}

/// The session with what the node announces, which is validated here.
pub(super) fn announced(name: &str, session: Session, announcement: &Announcement) -> Result<Session, Error> {
    if announcement.version == 0 {
        return Err(Error::Version { version: announcement.version });
    }
    if announcement.node != name {
        // At most so much of what a peer says goes to a log.
        let announced = announcement.node.chars().take(64).collect();
        return Err(Error::WrongNode { spiffe_id: session.spiffe_id, announced });
    }
    let wireguard_key = match announcement.wireguard_key.as_slice() {
        [] => None,
        key => Some(key.try_into().map_err(|_length| unexpected("a WireGuard key of 32 bytes"))?),
    };
    let port = |number: u32| {
        u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| unexpected("a port"))
    };
    if announcement.identities.len() > MAX_IDENTITIES {
        return Err(unexpected("at most 4096 identities"));
    }
    let address = session.handshake_endpoint.ip();
    // The pre-shared key is of the tunnel between two certain keys.
    let same_tunnel = wireguard_key == session.wireguard_key;
    let preshared_key = session.preshared_key.filter(|_| same_tunnel);
    let preshared_since = session.preshared_since.filter(|_| same_tunnel);
    Ok(Session {
        wireguard_key,
        preshared_key,
        preshared_since,
        wireguard_endpoint: SocketAddr::new(address, port(announcement.wireguard_port)?),
        handshake_endpoint: SocketAddr::new(address, port(announcement.handshake_port)?),
        identities: Arc::new(announcement.identities.iter().copied().collect::<BTreeSet<_>>()),
        epoch: announcement.epoch,
        version: announcement.version,
        ..session
    })
}

const fn unexpected(expected: &'static str) -> Error {
    Error::Wire(WireError::Unexpected { expected })
}
