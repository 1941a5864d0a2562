//! SVIDs and trust bundles from SPIRE, mutual TLS that verifies them clause by clause, and an embedded
//! development authority that speaks SPIRE's own protocols.
//!
//! Nothing here knows of Kubernetes, WireGuard or identity numbers: an identity is a [`SpiffeId`], its
//! registration a set of selectors.

// The certificate matrix, of the integration tests, calls the crate by its name.
#[cfg(test)]
extern crate self as spire_adapter;

pub mod attested;
pub mod authority;
pub mod broker;
pub mod bundle;
pub mod delegated;
mod der;
pub mod entry;
mod error;
mod opening;
#[cfg(test)]
mod oracle;
mod process;
mod proto;
pub mod registration;
mod server;
mod snapshot;
mod socket;
mod stream;
mod subscription;
pub mod svid;
pub mod template;
pub mod tls;
#[cfg(test)]
mod traps;
pub mod verify;
pub mod workload;

pub use attested::{AgentClient, AttestedAgent};
pub use broker::BrokerAgent;
pub use bundle::{Bundle, Bundles};
pub use delegated::DelegatedAgent;
pub use entry::{Entry, EntryClient, Outcome, Selector};
pub use error::Error;
pub use server::ServerAddress;
pub use snapshot::{Snapshot, State};
pub use socket::ApiError;
pub use spiffe::{SpiffeId, TrustDomain};
pub use subscription::Subscription;
pub use svid::Svid;
pub use template::{Template, TemplateError};
pub use tls::Groups;
pub use verify::{ExpectedPeer, PeerSvid, Rules, Violation, peer_svid, verify_chain};
