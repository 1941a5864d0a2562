//! Nodes in one process, over loopback, with real TLS and SVIDs of a real CA.

mod attacks;
mod cluster;
mod handshakes;
mod raw;
mod sessions;
mod spire;
