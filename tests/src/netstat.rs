//! What a kernel counts of its TCP connections in one network namespace.

use anyhow::{Context, Result};

use crate::lab::namespace::Namespace;

/// How many SYNs have been sent again so far.
///
/// # Errors
/// When the kernel does not say.
pub fn syns_sent_again(namespace: &Namespace) -> Result<u64> {
    counter(namespace, "/proc/net/netstat", "TcpExt: ", "TCPSynRetrans")
}

/// How many segments have been sent again so far, SYNs too.
///
/// # Errors
/// When the kernel does not say.
pub fn segments_sent_again(namespace: &Namespace) -> Result<u64> {
    counter(namespace, "/proc/net/snmp", "Tcp: ", "RetransSegs")
}

/// Such a file has two lines for each protocol: names and values.
fn counter(namespace: &Namespace, file: &str, protocol: &str, name: &str) -> Result<u64> {
    let text = namespace.exec(["cat", file])?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
    let (names, values) = (lines.next().context("no counters")?, lines.next().context("no values")?);
    let mut counters = names.split(' ').zip(values.split(' '));
    let (_, value) = counters.find(|(counter, _)| *counter == name).with_context(|| format!("no {name}"))?;
    Ok(value.parse()?)
}
