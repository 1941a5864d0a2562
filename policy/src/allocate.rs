//! Allocation of numbers to identities and nodes.
//!
//! A number is given once and never again: new ones are above every number ever seen, whatever has gone in
//! between. The same input gives the same numbers, in whatever order it comes.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::{IdentityNumber, NodeNumber, identity as reserved};

use crate::identity::{Identity, IdentityError, IdentitySet, LAST_USER};
use crate::label_set::LabelSet;

/// What has been allocated before.
#[derive(Clone, Copy, Debug)]
pub struct Allocated<'a> {
    /// The identities there are.
    pub identities: &'a IdentitySet,
    /// The numbers of nodes, by name.
    pub nodes: &'a BTreeMap<String, NodeNumber>,
    /// The largest identity number ever seen, if larger than all in `identities`; otherwise 0.
    pub highest_identity: IdentityNumber,
    /// The largest node number ever seen, if larger than all in `nodes`; otherwise 0.
    pub highest_node: NodeNumber,
}

/// What is to be allocated: the identities and numbers that are new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// New identities, in the order of their numbers.
    pub identities: Vec<Identity>,
    /// New node numbers, by name.
    pub nodes: BTreeMap<String, NodeNumber>,
}

/// Why nothing was allocated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// The labels are not those of pods.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No identity number is left.
    #[error("no identity number is left below {LAST_USER}; numbers are never used again")]
    IdentitiesExhausted,
    /// No node number is left.
    #[error("no node number is left below {}; numbers are never used again", NodeNumber::MAX)]
    NodesExhausted,
}

/// Allocates numbers to the label sets and nodes that have none yet: identities from 256, nodes from 1.
///
/// # Errors
/// [`AllocateError`]; then nothing is allocated.
pub fn allocate(
    allocated: Allocated<'_>,
    label_sets: impl IntoIterator<Item = LabelSet>,
    nodes: impl IntoIterator<Item = String>,
) -> Result<Allocation, AllocateError> {
    Ok(Allocation {
        identities: allocate_identities(allocated, label_sets.into_iter().collect())?,
        nodes: allocate_nodes(allocated, nodes.into_iter().collect())?,
    })
}

fn allocate_identities(
    allocated: Allocated<'_>,
    wanted: BTreeSet<LabelSet>,
) -> Result<Vec<Identity>, AllocateError> {
    let known = allocated.identities.iter().map(Identity::number);
    let mut last = known.fold(allocated.highest_identity, Ord::max).max(reserved::FIRST_USER - 1);
    let mut identities = Vec::new();
    for labels in wanted {
        if allocated.identities.by_labels(&labels).is_some() {
            continue;
        }
        last = last
            .checked_add(1)
            .filter(|next| *next <= LAST_USER)
            .ok_or(AllocateError::IdentitiesExhausted)?;
        identities.push(Identity::new(last, labels)?);
    }
    Ok(identities)
}

fn allocate_nodes(
    allocated: Allocated<'_>,
    wanted: BTreeSet<String>,
) -> Result<BTreeMap<String, NodeNumber>, AllocateError> {
    let mut last = allocated.nodes.values().copied().fold(allocated.highest_node, Ord::max);
    let mut nodes = BTreeMap::new();
    for name in wanted {
        if allocated.nodes.contains_key(&name) {
            continue;
        }
        last = last.checked_add(1).ok_or(AllocateError::NodesExhausted)?;
        nodes.insert(name, last);
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pod;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    fn labels(app: u8) -> LabelSet {
        let pod = Pod { cluster: "default", namespace: "galaxy", service_account: "default" };
        pod.labels([("app", app.to_string().as_str())], []).unwrap()
    }

    fn after<'a>(identities: &'a IdentitySet, nodes: &'a BTreeMap<String, NodeNumber>) -> Allocated<'a> {
        Allocated { identities, nodes, highest_identity: 0, highest_node: 0 }
    }

    #[test]
    fn starts_at_the_first_numbers() {
        let (identities, nodes) = (IdentitySet::new(), BTreeMap::new());
        let new =
            allocate(after(&identities, &nodes), [labels(1), labels(1)], ["n2".into(), "n1".into()]).unwrap();
        assert_eq!(new.identities.iter().map(Identity::number).collect::<Vec<_>>(), [256]);
        assert_eq!(new.nodes, BTreeMap::from([("n1".into(), 1), ("n2".into(), 2)]));
    }

    #[test]
    fn goes_on_above_numbers_that_have_gone() {
        let (identities, nodes) = (IdentitySet::new(), BTreeMap::from([("n3".into(), 3)]));
        let allocated = Allocated { highest_identity: 999, highest_node: 7, ..after(&identities, &nodes) };
        let new = allocate(allocated, [labels(1)], ["n1".into()]).unwrap();
        assert_eq!(new.identities[0].number(), 1000);
        assert_eq!(new.nodes["n1"], 8);
    }

    #[test]
    fn never_wraps_round() {
        let (identities, nodes) = (IdentitySet::new(), BTreeMap::new());
        let full = Allocated { highest_identity: LAST_USER, ..after(&identities, &nodes) };
        assert_eq!(allocate(full, [labels(1)], []), Err(AllocateError::IdentitiesExhausted));
        let full = Allocated { highest_node: NodeNumber::MAX, ..after(&identities, &nodes) };
        assert_eq!(allocate(full, [], ["n".into()]), Err(AllocateError::NodesExhausted));
        assert_eq!(allocate(full, [], []), Ok(Allocation::default()));
    }

    #[test]
    fn labels_of_no_pod_get_no_number() {
        let (identities, nodes) = (IdentitySet::new(), BTreeMap::new());
        let refused = allocate(after(&identities, &nodes), [LabelSet::new()], []);
        assert!(matches!(refused, Err(AllocateError::Identity(IdentityError::Missing { .. }))));
    }

    proptest! {
        /// Rounds of pods and nodes that come and go: numbers stay unique for ever, what is known keeps its
        /// own, the order of the input doesn't matter, and a second run has nothing to do.
        #[test]
        fn numbers_are_never_used_again(rounds in vec((btree_set(0u8..20, 0..8), btree_set(0u8..8, 0..4)), 1..8)) {
            let (mut identities, mut nodes) = (IdentitySet::new(), BTreeMap::new());
            let (mut ever, mut ever_nodes) = (BTreeSet::new(), BTreeSet::new());
            for (apps, names) in rounds {
                let highest_identity = ever.last().copied().unwrap_or(0);
                let highest_node = ever_nodes.last().copied().unwrap_or(0);
                let allocated = Allocated { highest_identity, highest_node, ..after(&identities, &nodes) };
                let name = |n: &u8| format!("n{n}");
                let new = allocate(allocated, apps.iter().copied().map(labels), names.iter().map(name)).unwrap();
                let backwards =
                    allocate(allocated, apps.iter().rev().copied().map(labels), names.iter().rev().map(name));
                prop_assert_eq!(&backwards.unwrap(), &new);
                for identity in &new.identities {
                    prop_assert!(identity.number() >= reserved::FIRST_USER);
                    prop_assert!(ever.insert(identity.number()));
                }
                for number in new.nodes.values() {
                    prop_assert!(*number >= 1 && ever_nodes.insert(*number));
                }
                // Only what this round wants remains.
                let kept = identities.iter().chain(&new.identities).filter(|identity| {
                    apps.iter().any(|app| labels(*app) == *identity.labels())
                });
                identities = IdentitySet::from_identities(kept.cloned().collect::<Vec<_>>()).unwrap();
                nodes.extend(new.nodes);
                nodes.retain(|node, _| names.iter().any(|n| name(n) == *node));
                let again = allocate(after(&identities, &nodes), apps.into_iter().map(labels), names.iter().map(name));
                prop_assert_eq!(again.unwrap(), Allocation::default());
            }
        }
    }
}
