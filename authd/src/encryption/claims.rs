//! WireGuard keys that annotations say nodes have. Whoever may write to the cluster state can write them, so they
//! are never used; that one differs from the key that its node has proven to have is worth an alert. Pure.

use std::collections::BTreeMap;

use wg_mesh::PublicKey;

use crate::cluster::Cluster;
use crate::peer::SessionMap;

/// The claims about nodes whose keys are known that are wrong, and how.
pub(super) fn wrong(
    cluster: &Cluster,
    node: &str,
    own: Option<PublicKey>,
    sessions: &SessionMap,
) -> BTreeMap<String, String> {
    let proven = |name: &str| {
        if name == node {
            return own;
        }
        let announced = sessions.get(name).and_then(|session| session.wireguard_key);
        announced.and_then(|key| PublicKey::from_bytes(key).ok())
    };
    let judge = |(name, claimed): (&String, &String)| {
        let key = proven(name).filter(|key| claimed.parse() != Ok(*key))?;
        let claimed = claimed.escape_debug();
        Some((
            name.clone(),
            format!("its annotation says that its WireGuard key is \"{claimed}\", and it is {key}"),
        ))
    };
    cluster.claimed_keys.iter().filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_wrong_if_the_node_has_proven_to_have_another_key() {
        let key = |byte| PublicKey::from_bytes([byte; 32]).unwrap();
        let claims = |claims: &[(&str, String)], own| {
            let claimed_keys =
                claims.iter().map(|(node, claim)| ((*node).to_owned(), claim.clone())).collect();
            let cluster = Cluster { claimed_keys, ..Cluster::default() };
            wrong(&cluster, "n1", own, &SessionMap::default()).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(claims(&[("n1", key(1).to_string())], Some(key(1))), []);
        assert_eq!(claims(&[("n1", key(2).to_string())], None), [], "not known yet");
        assert_eq!(claims(&[("n2", key(2).to_string())], Some(key(1))), [], "no session yet");
        for claim in [key(2).to_string(), String::new(), "a\nb".to_owned()] {
            let found = claims(&[("n1", claim)], Some(key(1)));
            assert_eq!(found.len(), 1);
            assert!(found[0].1.contains(&key(1).to_string()) && !found[0].1.contains('\n'), "{found:?}");
        }
    }
}
