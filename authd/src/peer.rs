//! What nodes prove to each other, on one TCP port, told apart by ALPN.
//!
//! A *node session* (`authd-node/1`) is long-lived, between two node SVIDs; it carries WireGuard keys and what
//! a node vouches for. An *identity handshake* (`authd-identity/1`) proves a pair of identities and is bound to
//! the node session, so that one relayed by another node leaves no entry anywhere. Cluster state says where to
//! dial and who runs where; it is never believed about keys.

mod admission;
#[cfg_attr(not(test), expect(dead_code, reason = "the messages that carry it come next"))]
mod authenticator;
mod binding;
mod crossing;
mod directory;
mod error;
mod handshake;
mod listener;
mod naming;
mod pace;
mod preshared;
mod service;
mod session;
mod table;
pub mod wire;

#[cfg(test)]
mod tests;

pub use directory::{Directory, Node};
pub use error::Error;
pub use naming::{Naming, NamingError};
pub use service::{Options, OwnTunnel, Parts, Peers};
pub use table::{Session, SessionMap, Trouble};

/// ALPN of node sessions.
pub const NODE_ALPN: &[u8] = b"authd-node/1";
/// ALPN of identity handshakes.
pub const IDENTITY_ALPN: &[u8] = b"authd-identity/1";
