//! What `authctl` says, as JSON.

use std::time::Duration;

use anyhow::{Context, Result};
use authd_tests::{Namespace, binaries, wait};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// Longer than a packet waits for authentication.
const HELD: Duration = Duration::from_secs(4);

/// Two identities that have authenticated, as a node sees them.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AuthEntry {
    pub(crate) local_identity: u32,
    pub(crate) remote_identity: u32,
    /// Number of the other end's node, 0 for the same one.
    pub(crate) remote_node: u32,
    /// Name of the other end's node.
    pub(crate) remote_node_name: String,
    pub(crate) established: Option<Timestamp>,
    pub(crate) handshake_microseconds: u64,
    pub(crate) valid: bool,
}

#[derive(Deserialize)]
struct AuthEntries {
    entries: Vec<AuthEntry>,
}

/// A node at a glance, as far as the demo looks.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Status {
    spire: Option<Spire>,
    tunnel: Option<Tunnel>,
    nodes: Vec<Session>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spire {
    identities_with_svid: Vec<u32>,
    identities_missing_svid: Vec<u32>,
}

#[derive(Clone, Debug, Deserialize)]
struct Tunnel {
    peers: usize,
}

#[derive(Clone, Debug, Deserialize)]
struct Session {
    live: bool,
}

impl Status {
    /// Whether it has all that it needs of authority and other nodes.
    pub(crate) fn settled(&self) -> bool {
        let svids = self.spire.as_ref().is_some_and(|spire| {
            spire.identities_missing_svid.is_empty() && !spire.identities_with_svid.is_empty()
        });
        let peers = self.tunnel.as_ref().is_some_and(|tunnel| tunnel.peers == self.nodes.len());
        svids && peers && !self.nodes.is_empty() && self.nodes.iter().all(|node| node.live)
    }
}

/// Runs `authctl` on a node and returns what it printed.
pub(crate) fn run(node: &Namespace, arguments: &[&str]) -> Result<String> {
    let program = binaries::path("authctl")?;
    let program = program.to_str().context("the path of authctl is no text")?;
    node.exec([program].into_iter().chain(arguments.iter().copied()))
}

/// A node at a glance.
pub(crate) fn status(node: &Namespace) -> Result<Status> {
    let text = run(node, &["status", "-o", "json"])?;
    serde_json::from_str(&text).with_context(|| text)
}

/// The authentications in force.
pub(crate) fn auth_list(node: &Namespace) -> Result<Vec<AuthEntry>> {
    let text = run(node, &["auth", "list", "-o", "json"])?;
    let list: AuthEntries = serde_json::from_str(&text).with_context(|| text)?;
    Ok(list.entries.into_iter().filter(|entry| entry.valid).collect())
}

/// How many packets of a pod a node has dropped for a reason since a time, by the flows it shows.
pub(crate) fn drops(node: &Namespace, reason: &str, from: &str, since: Timestamp) -> Result<usize> {
    let filter = ["--verdict", "DROPPED", "--reason", reason, "--from-pod", from];
    let text = run(node, &[&["observe", "--last", "4000", "-o", "json"], &filter[..]].concat())?;
    let recent = |line: &str| {
        let flow: Value = serde_json::from_str(line).ok()?;
        let time: Timestamp = flow.get("time")?.as_str()?.parse().ok()?;
        (time >= since).then_some(())
    };
    Ok(text.lines().filter_map(recent).count())
}

/// How many packets of a pod a node has dropped because they had waited too long for authentication, once
/// there are some.
pub(crate) fn drops_in_time(node: &Namespace, from: &str, since: Timestamp) -> Result<usize> {
    let late =
        || drops(node, "HOLD_TIMEOUT", from, since).map(|count| (count > 0).then_some(count)).transpose();
    wait::until(HELD, late).map_or(Ok(0), |(count, _)| count)
}
