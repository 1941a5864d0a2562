//! What `authctl` and `bpftool` say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use auth_ebpf::Maps;
use serde_json::Value;

use crate::{Namespace, binaries};

/// Where links are pinned.
const LINKS: &str = "/sys/fs/bpf/authd/links";
/// Where maps are pinned.
const MAPS: &str = "/sys/fs/bpf/authd";

/// An attached program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Id of the link: what was attached once, and stays so.
    pub id: u64,
    /// Id of the program in it, which may be replaced.
    pub program: u64,
}

/// Runs `authctl` and returns what it printed.
pub(super) fn authctl(on: &Namespace, arguments: &[&str]) -> Result<String> {
    let program = binaries::path("authctl")?;
    let program = program.to_str().context("the path of authctl is no text")?;
    on.exec([program].into_iter().chain(arguments.iter().copied()))
}

/// The entries in force of `authctl auth list` between two identities.
pub(super) fn authenticated(list: &Value, local: u32, remote: u32) -> Result<Vec<Value>> {
    let entries = list.get("entries").and_then(Value::as_array).context("no entries")?;
    let number = |entry: &Value, field: &str| entry.get(field).and_then(Value::as_u64);
    let wanted = |entry: &&Value| {
        entry.get("valid") == Some(&Value::Bool(true))
            && number(entry, "localIdentity") == Some(local.into())
            && number(entry, "remoteIdentity") == Some(remote.into())
    };
    Ok(entries.iter().filter(wanted).cloned().collect())
}

/// The conditions of `authctl status`, each in one line.
pub(super) fn conditions(status: &Value) -> Result<Vec<String>> {
    let conditions = status.get("conditions").and_then(Value::as_array).context("no conditions")?;
    let text = |condition: &Value, field: &str| {
        condition.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let line = |condition: &Value| {
        format!("{} {}: {}", text(condition, "type"), text(condition, "object"), text(condition, "message"))
    };
    Ok(conditions.iter().map(line).collect())
}

/// The links pinned on a node, by the names of their pins.
pub(super) fn pinned_links(node: &Namespace) -> Result<BTreeMap<String, Link>> {
    let mut links = BTreeMap::new();
    for entry in fs::read_dir(node.outside(Path::new(LINKS))).context("list the pinned links")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let path = format!("{LINKS}/{name}");
        let shown = bpftool(node, &["link", "show", "pinned", &path])?;
        links.insert(name, link(&shown)?);
    }
    Ok(links)
}

/// Every link of this kernel with its program.
pub(super) fn kernel_links(node: &Namespace) -> Result<BTreeMap<u64, u64>> {
    let shown = bpftool(node, &["link", "show"])?;
    // Some kinds of links have no program.
    let links = shown.as_array().context("no links")?.iter().filter_map(|shown| link(shown).ok());
    Ok(links.map(|link| (link.id, link.program)).collect())
}

/// Whether the programs of a node know of a session. Its daemon has one a little before it has told them.
///
/// # Errors
/// When its maps can't be read.
pub fn is_session_known(node: &Namespace) -> Result<bool> {
    let maps = Maps::open_pinned(&node.outside(MAPS.as_ref()))?;
    let sessions = maps.nodes().entries()?;
    // Under number 0 stands what the node itself keeps there.
    Ok(sessions.iter().any(|(node, session)| *node != 0 && session.expires != 0))
}

fn bpftool(node: &Namespace, arguments: &[&str]) -> Result<Value> {
    let text = node.exec(["bpftool", "-j"].into_iter().chain(arguments.iter().copied()))?;
    serde_json::from_str(&text).with_context(|| text)
}

fn link(shown: &Value) -> Result<Link> {
    let number =
        |field| shown.get(field).and_then(Value::as_u64).with_context(|| format!("{field}: {shown}"));
    Ok(Link { id: number("id")?, program: number("prog_id")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_in_force_count() {
        let list = serde_json::json!({"entries": [
            {"localIdentity": 256, "remoteIdentity": 257, "valid": true},
            {"localIdentity": 256, "remoteIdentity": 257, "valid": false},
            {"localIdentity": 257, "remoteIdentity": 256, "valid": true},
        ]});
        assert_eq!(authenticated(&list, 256, 257).unwrap().len(), 1);
        assert!(authenticated(&Value::Null, 256, 257).is_err());
    }

    #[test]
    fn conditions_are_one_line_each() {
        let status = serde_json::json!({"conditions": [{"type": "TUNNEL", "object": "", "message": "gone"}]});
        assert_eq!(conditions(&status).unwrap(), ["TUNNEL : gone"]);
    }
}
