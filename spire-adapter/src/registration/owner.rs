//! The mark by which an operator knows its own entries.

use sha2::{Digest, Sha256};

use crate::{Entry, SpiffeId};

/// Longest name of a cluster.
const NAME_MAX: usize = 32;

/// Who owns entries: the operator of one cluster. Those of several clusters may share a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    prefix: String,
}

impl Owner {
    /// The operator of `cluster`; `None` if the name is not 1 to 32 lower-case letters, digits and dashes.
    pub fn new(cluster: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        // Without dots, lest one cluster's mark begin another's.
        let valid = (1..=NAME_MAX).contains(&cluster.len()) && cluster.bytes().all(plain);
        valid.then(|| Self { prefix: format!("authd.{cluster}.") })
    }

    /// What the IDs of its entries begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether it has made this entry.
    pub fn owns(&self, entry: &Entry) -> bool {
        entry.id.starts_with(&self.prefix)
    }

    /// The ID of its entry by which the agent `parent_id` may obtain `spiffe_id`.
    pub fn entry_id(&self, parent_id: &SpiffeId, spiffe_id: &SpiffeId) -> String {
        // No SPIFFE ID has a space in it.
        let hash = Sha256::digest(format!("{parent_id} {spiffe_id}"));
        let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{}{hash}", self.prefix)
    }
}

/// The operator of the cluster `default`.
impl Default for Owner {
    fn default() -> Self {
        Self { prefix: "authd.default.".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cluster_does_not_own_what_another_does() {
        let id = |text: &str| SpiffeId::new(format!("spiffe://a.test/{text}")).unwrap();
        let (parent, identity) = (id("spire/agent/n1"), id("identity/1"));
        let owners = ["default", "default-2", "def"].map(|name| Owner::new(name).unwrap());
        for (index, owner) in owners.iter().enumerate() {
            let mut entry = Entry::new(parent.clone(), identity.clone(), []);
            entry.id = owner.entry_id(&parent, &identity);
            for (other, another) in owners.iter().enumerate() {
                assert_eq!(another.owns(&entry), index == other, "{owner:?} {another:?}");
            }
        }
        for name in ["", "a.b", "a/b", "A", "a b", &"a".repeat(33)] {
            assert_eq!(Owner::new(name), None, "{name}");
        }
        assert_eq!(Owner::new("default"), Some(Owner::default()));
    }
}
