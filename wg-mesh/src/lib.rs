//! Node-to-node WireGuard as desired state.
//!
//! [`Desired`] says what the mesh shall be, [`plan()`] turns the difference to what is into [`Change`]s, a
//! [`Backend`] makes them so, and [`steering`] routes traffic into the tunnel by destination. The userspace
//! backend talks to the tunnel process of [`tunnel`], which outlives its client.
//!
//! This crate knows WireGuard, routes and rules. It knows nothing of SPIFFE, Kubernetes or policy.

pub mod backend;
mod desired;
mod error;
mod key;
mod mesh;
mod plan;
mod preshared;
mod protocol;
mod status;
pub mod steering;
pub mod tunnel;

pub use backend::{Applied, Backend, memory::Memory, userspace::Userspace};
pub use desired::{DEFAULT_LISTEN_PORT, DEFAULT_MTU, Desired, Invalid, Peer, PeerField};
pub use error::Error;
pub use key::{KeyError, PrivateKey, PublicKey};
pub use mesh::Mesh;
pub use plan::{Change, apply, plan};
pub use preshared::PresharedKey;
pub use protocol::VERSION as PROTOCOL_VERSION;
pub use status::{BackendKind, Counters, PeerStatus, Status};
