//! Packets that only lack authentication are held, and go on when their pair has authenticated; and so are
//! those of a pod whose node has not told the other one yet that the address is its.
//!
//! The programs send them to a TAP device, under a token that names their pair. [`Queue`] decides: frames,
//! outcomes and boot time go in, actions come out. [`Task`] reads the device, does what the queue says, and
//! tells the programs by a lease that somebody reads. What is written back, the programs decide on anew, so
//! nothing passes because of what happens here; and how much there can be is bounded by their credits.

mod device;
mod outcomes;
mod queue;
mod table;
mod task;

#[cfg(test)]
mod tests;

pub use device::INTERFACE;
pub use outcomes::{Outcome, Outcomes, Pending, Telling};
pub use queue::{Action, Event, Frame, Queue};
pub use table::HoldingAuth;
pub(crate) use task::switch_off;
pub use task::{Parts, Task};
