//! The eBPF datapath: programs, loader, typed maps.
//!
//! [`Datapath`] loads the programs, pins their maps under one directory and attaches them with TCX; what an
//! earlier process has pinned there is adopted, and its links get the new programs without a gap. [`Maps`]
//! are the typed tables, which `authctl` opens without a daemon as well. Nothing here knows what the
//! entries mean: that is the decision's business (`auth-ebpf-abi`), and the daemon's, who writes them.

// What tests and benchmarks share names this crate as the benchmarks have to.
#[cfg(test)]
extern crate self as auth_ebpf;

mod attach;
mod datapath;
mod error;
mod events;
#[cfg(test)]
mod kernel_tests;
mod links;
mod maps;
mod object;
mod test_run;

pub use attach::{Attached, Attachment, Mechanism, attachments, detach_all};
pub use auth_ebpf_abi as abi;
pub use datapath::{Datapath, Options};
pub use error::Error;
pub use events::Events;
pub use maps::{Backends, Changes, Config, HoldMaps, Maps, Metrics, Swept, Table, TableKey, TableValue};
pub use test_run::{Baseline, Choices, TestPacket};
