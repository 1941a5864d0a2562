//! Authentication of pairs of identities.
//!
//! [`Machine`] decides: events and boot time go in, actions come out; it knows no clock, no socket and no
//! task, so that its rules can be tested under simulated time. [`driver`] is the shell which feeds it, runs
//! the handshakes and writes the pinned map. An entry stands in the map only while both SVIDs of its last
//! handshake are valid, the peer's node vouches for it, and policy asks for it.

mod change;
mod event;
mod fate;
mod losses;
mod machine;
mod outlook;
mod pair;
mod queue;
mod record;

pub mod driver;
pub mod stats;

#[cfg(test)]
mod tests;

pub use change::{Cause, Change};
pub use driver::{Driver, Handle, Settings};
pub use event::{Accepted, Action, Desired, Event, Failure, Proof, Refused, Success};
pub use machine::{Config, Counters, Jitter, Machine};
pub use outlook::Outlook;
pub use record::{Method, Record, Why};
