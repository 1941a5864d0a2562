//! The daemon's gRPC interface, `authd.v1.Authd`, on a unix socket.
//!
//! The messages, documented in `proto/authd/v1/authd.proto`, are also what `authctl -o json` prints. The
//! server knows nothing of the daemon but [`Source`], which the composition root implements.

mod abi;
#[cfg(test)]
pub(crate) mod fake;
mod filter;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod timestamp;
pub mod word;

pub use filter::matches;
pub use server::{Caller, Flows, Source, SourceError};
pub use socket::{ListenError, Listener, ServeError, serve};
pub use timestamp::Timestamp;

/// The generated messages, client and server.
#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::clone_on_ref_ptr,
    clippy::large_enum_variant,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("authd.v1");
}
