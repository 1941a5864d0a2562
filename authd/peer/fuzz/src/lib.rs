//! The files of the daemon that read what other nodes send, without the daemon.

#![expect(dead_code, reason = "the daemon uses the rest")]

#[path = "../../../src/peer/authenticator.rs"]
mod authenticator;
mod entries;
#[path = "../../../src/peer/role.rs"]
mod role;
#[path = "../../../src/peer/wire.rs"]
mod wire;

pub use entries::{authenticator, frames};
