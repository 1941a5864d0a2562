//! What a kernel counts of its TCP connections in one network namespace.

use anyhow::{Context, Result};

use crate::lab::namespace::Namespace;

/// How many SYNs have been sent again so far.
///
/// # Errors
/// When the kernel does not say.
pub fn syns_sent_again(namespace: &Namespace) -> Result<u64> {
    let text = namespace.exec(["cat", "/proc/net/netstat"])?;
    // Two lines for each protocol: names and values.
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().context("no counters")?, lines.next().context("no values")?);
    let mut counters = names.split(' ').zip(values.split(' '));
    let (_, value) = counters.find(|(name, _)| *name == "TCPSynRetrans").context("no counter of SYNs")?;
    Ok(value.parse()?)
}
