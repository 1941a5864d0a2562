//! What nodes say whose their addresses are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use auth_ebpf_abi::{Address, AddressEntry, AddressFlags, IdentityNumber, NodeNumber, identity};

use super::Owners;
use crate::clock::BootTime;

/// How long two nodes may claim one address before that is an alarm: a pod that moves is gone from its old
/// node a little after it has come to the new one.
const PATIENCE: Duration = Duration::from_secs(3);

/// Claims by node; those of node 0 are this node's own.
#[derive(Debug, Default)]
pub struct Claims {
    of: BTreeMap<NodeNumber, Owners>,
    /// Addresses that several nodes claim, and since when.
    contested: BTreeMap<IpAddr, BootTime>,
    /// How many nodes claim each address.
    claimants: BTreeMap<IpAddr, BTreeSet<NodeNumber>>,
}

/// An address that several nodes claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contested {
    /// The address.
    pub address: IpAddr,
    /// The nodes.
    pub nodes: BTreeSet<NodeNumber>,
}

impl Claims {
    /// Takes over what stands in the map: what other nodes have claimed before this daemon came outlives it,
    /// until they say so anew. Cluster state may be older.
    pub fn adopt(&mut self, entries: &[(Address, AddressEntry)]) {
        for (address, entry) in entries {
            let is_claim = entry.node != 0 && (is_withheld(entry) || !identity::is_reserved(entry.identity));
            if is_claim {
                let address = address.to_ip();
                self.of.entry(entry.node).or_default().insert(address, entry.identity);
                self.claimants.entry(address).or_default().insert(entry.node);
            }
        }
    }

    /// All that a node claims from now on; the addresses whose owner there differs from before.
    pub fn take(&mut self, node: NodeNumber, owners: Owners, now: BootTime) -> BTreeSet<IpAddr> {
        let before = self.of.remove(&node).unwrap_or_default();
        let gone = before.keys().filter(|address| !owners.contains_key(*address));
        let changed: BTreeSet<IpAddr> = owners
            .iter()
            .filter(|(address, identity)| before.get(*address) != Some(*identity))
            .map(|(address, _)| address)
            .chain(gone)
            .copied()
            .collect();
        for address in &changed {
            let claimants = self.claimants.entry(*address).or_default();
            if owners.contains_key(address) {
                claimants.insert(node);
            } else {
                claimants.remove(&node);
            }
            match claimants.len() {
                0 => drop(self.claimants.remove(address)),
                1 => drop(self.contested.remove(address)),
                _ => drop(self.contested.entry(*address).or_insert(now)),
            }
        }
        if !owners.is_empty() {
            self.of.insert(node, owners);
        }
        changed
    }

    /// Forgets nodes that are no more.
    pub fn retain(&mut self, known: impl Fn(NodeNumber) -> bool, now: BootTime) {
        let gone: Vec<NodeNumber> =
            self.of.keys().copied().filter(|node| *node != 0 && !known(*node)).collect();
        for node in gone {
            self.take(node, Owners::new(), now);
        }
    }

    /// Whether the node says that this address of its is not this identity's.
    #[must_use]
    pub fn contradicts(&self, node: NodeNumber, address: &IpAddr, identity: IdentityNumber) -> bool {
        self.of.get(&node).and_then(|owners| owners.get(address)).is_some_and(|owner| *owner != identity)
    }

    /// What several nodes have claimed for too long. Nobody gains by it: cluster state says on which node an
    /// address is, and WireGuard takes it from no other.
    #[must_use]
    pub fn contested(&self, now: BootTime) -> Vec<Contested> {
        let lasting = self.contested.iter().filter(|(_, since)| now.since(**since) >= PATIENCE);
        lasting
            .filter_map(|(address, _)| {
                Some(Contested { address: *address, nodes: self.claimants.get(address)?.clone() })
            })
            .collect()
    }
}

/// What stands in the map for an address about whose owner cluster state and its node differ: nobody's.
#[must_use]
pub const fn withheld(node: NodeNumber) -> AddressEntry {
    AddressEntry { identity: identity::UNKNOWN, node, flags: AddressFlags::CLUSTER_RANGE }
}

/// Whether it is such an entry.
#[must_use]
pub fn is_withheld(entry: &AddressEntry) -> bool {
    entry.node != 0 && *entry == withheld(entry.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: BootTime = BootTime(1_000_000_000_000);

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn owners(all: &[(u8, u32)]) -> Owners {
        all.iter().map(|(last, identity)| (ip(*last), *identity)).collect()
    }

    #[test]
    fn a_claim_takes_an_address_from_others_and_gives_it_to_nobody() {
        let mut claims = Claims::default();
        assert!(!claims.contradicts(2, &ip(1), 256), "nothing has been said");
        assert_eq!(claims.take(2, owners(&[(1, 256), (2, 257)]), NOW).len(), 2);
        assert!(!claims.contradicts(2, &ip(1), 256));
        assert!(claims.contradicts(2, &ip(1), 300));
        assert!(!claims.contradicts(3, &ip(1), 300), "it is no word about the addresses of another node");
        assert_eq!(claims.take(2, owners(&[(1, 300), (2, 257)]), NOW), BTreeSet::from([ip(1)]));
        assert!(claims.contradicts(2, &ip(1), 256));
        assert_eq!(claims.take(2, owners(&[(1, 300)]), NOW), BTreeSet::from([ip(2)]));
        assert!(!claims.contradicts(2, &ip(2), 257), "withdrawn, it may be anybody's");
    }

    #[test]
    fn two_claims_of_one_address_are_an_alarm_if_they_stay() {
        let mut claims = Claims::default();
        claims.take(0, owners(&[(1, 256)]), NOW);
        claims.take(3, owners(&[(1, 256), (2, 300)]), NOW);
        assert_eq!(claims.contested(NOW), []);
        let later = NOW.saturating_add(PATIENCE);
        let nodes = BTreeSet::from([0, 3]);
        assert_eq!(claims.contested(later), [Contested { address: ip(1), nodes }]);
        // The same said again starts no new time.
        claims.take(3, owners(&[(1, 256)]), later);
        assert_eq!(claims.contested(later).len(), 1);
        claims.take(3, owners(&[(2, 300)]), later);
        assert_eq!(claims.contested(later), []);
        assert!(claims.contested.is_empty());
    }

    #[test]
    fn a_node_that_is_gone_claims_nothing() {
        let mut claims = Claims::default();
        claims.take(0, owners(&[(1, 256)]), NOW);
        claims.take(3, owners(&[(1, 256)]), NOW);
        claims.retain(|node| node == 2, NOW);
        assert!(claims.contested.is_empty() && !claims.contradicts(3, &ip(1), 300));
        assert!(claims.contradicts(0, &ip(1), 300), "this node is not among the others");
    }

    #[test]
    fn what_stands_in_the_map_is_claimed_until_the_node_says_otherwise() {
        let mut claims = Claims::default();
        let entry = |identity, node| AddressEntry { identity, node, flags: 0 };
        claims.adopt(&[
            (ip(1).into(), entry(256, 2)),
            (ip(2).into(), withheld(2)),
            (ip(3).into(), entry(257, 0)),
            (ip(4).into(), entry(identity::REMOTE_NODE, 2)),
        ]);
        assert!(claims.contradicts(2, &ip(1), 300), "an older cluster state");
        assert!(claims.contradicts(2, &ip(2), 256) && claims.contradicts(2, &ip(2), 300));
        assert!(!claims.contradicts(0, &ip(3), 300) && !claims.contradicts(2, &ip(4), 300));
        claims.take(2, owners(&[(1, 300), (2, 300)]), NOW);
        assert!(!claims.contradicts(2, &ip(1), 300) && !claims.contradicts(2, &ip(2), 300));
    }
}
