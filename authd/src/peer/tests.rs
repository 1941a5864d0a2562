//! Nodes in one process, over loopback, with real TLS and SVIDs of a real CA.

mod addresses;
mod attacks;
mod clocks;
mod cluster;
mod handshakes;
mod raw;
mod replay;
mod sessions;
mod spire;
