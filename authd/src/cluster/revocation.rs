//! What people have revoked: an identity or a node that counts for nothing until the object goes.
//!
//! A node that lies, or can't be reached, ends nothing that it vouched for; SVIDs only end with time. A
//! `Revocation` in the cluster state acts on every other node at once.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use policy::IdentityNumber;
use serde_json::json;

use super::manifest::API_VERSION;

/// Whom a revocation is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// An identity, wherever it runs.
    Identity(IdentityNumber),
    /// A node, with all that it vouches for.
    Node(String),
}

/// Everything that is revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// The identities.
    pub identities: BTreeSet<IdentityNumber>,
    /// The nodes, by name.
    pub nodes: BTreeSet<String>,
}

impl Revocations {
    pub(super) fn add(&mut self, revoked: &Revoked) {
        match revoked {
            Revoked::Identity(number) => drop(self.identities.replace(*number)),
            Revoked::Node(name) => drop(self.nodes.replace(name.clone())),
        }
    }
}

/// Writes a revocation into a directory of manifests, in a file of its own; to delete that takes it back.
///
/// # Errors
/// The file can't be written, or the subject is revoked already.
pub fn revoke(directory: &Path, revoked: &Revoked, reason: &str) -> io::Result<PathBuf> {
    let (kind, subject, spec) = match revoked {
        Revoked::Identity(number) => ("identity", number.to_string(), json!({ "identity": number })),
        Revoked::Node(name) => ("node", name.clone(), json!({ "node": name })),
    };
    if subject.contains('/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name has no slashes"));
    }
    let name = format!("{kind}-{subject}");
    let mut object = json!({
        "apiVersion": API_VERSION,
        "kind": "Revocation",
        "metadata": { "name": name },
        "spec": spec,
    });
    if let Some(spec) = object.get_mut("spec").and_then(serde_json::Value::as_object_mut) {
        spec.insert("reason".to_owned(), json!(reason));
    }
    let path = directory.join(format!("authd-revocation-{name}.json"));
    // Under a name that nobody reads first, so that it is never seen half written.
    let hidden = directory.join(format!(".authd-revocation-{name}"));
    if path.try_exists()? {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut file = std::fs::File::create(&hidden)?;
    file.write_all(format!("{object:#}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&hidden, &path)?;
    Ok(path)
}
