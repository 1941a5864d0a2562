//! What nodes prove to each other, on one TCP port, told apart by ALPN.
//!
//! A *node session* (`authd-node/1`) is long-lived, between two node SVIDs; it carries WireGuard keys and what
//! a node vouches for, and its two ends prove their identities to each other over it, each once: pairs of them are
//! words then. An *identity handshake* (`authd-identity/1`) proves one pair, where a node wants it so or knows
//! nothing else, and is bound to the node session. What is relayed by another node leaves no entry anywhere, either
//! way. Cluster state says where to dial and who runs where; it is never believed about keys.

mod admission;
mod authenticator;
mod binding;
mod budget;
mod crossing;
mod directory;
mod error;
mod exchange;
mod handshake;
mod listener;
mod naming;
mod pace;
mod pairs;
mod preshared;
mod role;
mod service;
mod session;
mod table;
pub mod wire;

#[cfg(test)]
mod tests;

pub use directory::{Directory, Node};
pub use error::Error;
pub use naming::{Naming, NamingError};
pub use service::{Options, OwnTunnel, PairProof, Parts, Peers};
pub use table::{Session, SessionMap, Trouble};

/// ALPN of node sessions.
pub const NODE_ALPN: &[u8] = b"authd-node/1";
/// ALPN of identity handshakes.
pub const IDENTITY_ALPN: &[u8] = b"authd-identity/1";
