//! The authd daemon: joins cluster state, SPIRE, the datapath and WireGuard into one node agent.
//!
//! The library crates know nothing of each other; what connects them is here. `main.rs` and
//! `bin/authctl.rs` only call into this library, and so do the tests.

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod ctl;
pub mod datapath;
pub mod encryption;
pub mod explain;
pub mod flows;
pub mod handover;
pub mod hold;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod operator;
pub mod outside;
pub mod peer;
pub mod readiness;
pub mod run;
pub mod svids;
pub mod trace;
