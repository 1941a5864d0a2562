//! Test harness: clusters of network namespaces that need no cleaning up.
//!
//! A [`Lab`] is a world of its own: mount, network and process namespaces that die with the process
//! that made them, however that ends. In it are [`Node`]s joined by an underlay, and pods behind veth
//! pairs, wired as a plain CNI wires them, so that without authd everything flows, in the clear.
//! Scenarios look at it from outside only: packets on the underlay ([`Capture`]), metrics ([`scrape`]),
//! log lines ([`log`]), bytes that arrive or don't.
//!
//! ```no_run
//! # use std::{net::SocketAddr, time::Duration};
//! # use authd_tests::{Lab, http, lab::node::Family};
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("reach")?;
//! let node1 = lab.node("node1", &["10.0.0.1".parse()?], &["10.244.1.0/24".parse()?])?;
//! let node2 = lab.node("node2", &["10.0.0.2".parse()?], &["10.244.2.0/24".parse()?])?;
//! let client = node1.pod("client", &["10.244.1.10".parse()?])?;
//! let server = node2.pod("server", &["10.244.2.10".parse()?])?;
//! let capture = lab.capture()?;
//! let to = SocketAddr::new(server.address(Family::V4)?, 80);
//! let answer = http::get(&client, to, "/", Duration::from_secs(1));
//! assert_eq!(capture.stop()?.containing(b"secret"), 0);
//! # drop(answer);
//! # Ok(())
//! # }
//! ```

pub mod bench;
pub mod binaries;
pub mod capture;
pub mod daemon;
pub mod gospiffe;
pub mod http;
pub mod issuer;
pub mod lab;
pub mod log;
pub mod manifests;
pub mod netstat;
pub mod probe;
pub mod process;
pub mod registry;
pub mod scrape;
pub mod skip;
pub mod spire;
pub mod star_wars;
pub mod wait;
pub mod wall_clock;

pub use capture::Capture;
pub use lab::Lab;
pub use lab::namespace::Namespace;
pub use lab::node::{Node, Pod};
pub use process::Process;
pub use star_wars::StarWars;
