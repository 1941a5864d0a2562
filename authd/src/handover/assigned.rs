//! What this node has assigned.

use std::collections::BTreeMap;

use auth_ebpf_abi::{Address, EndpointEntry};

use super::Owners;

/// This node's assignments at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The last epoch that an assignment has taken.
    pub epoch: u32,
    /// The pods' addresses.
    pub owners: Owners,
}

impl Assigned {
    /// Gives the endpoints their epochs: those that stand in the map for the same pod keep theirs, all others
    /// take a new one. `last` is the last that was given, as far as that is known.
    #[must_use]
    pub fn assign(
        endpoints: &mut BTreeMap<Address, EndpointEntry>,
        before: &BTreeMap<Address, EndpointEntry>,
        last: u32,
    ) -> Self {
        let last = before.values().map(|entry| entry.epoch).fold(last, u32::max);
        let mut epoch = last;
        for (address, entry) in &mut *endpoints {
            // An interface's index is not used again soon, so another pod has another one.
            let same = |old: &&EndpointEntry| old.identity == entry.identity && old.ifindex == entry.ifindex;
            entry.epoch = match before.get(address).filter(same) {
                Some(old) => old.epoch,
                None => {
                    epoch = last.saturating_add(1);
                    epoch
                }
            };
        }
        let owners = endpoints.iter().map(|(address, entry)| (address.to_ip(), entry.identity)).collect();
        Self { epoch, owners }
    }

    /// Whether somebody who was told `before` takes an address for somebody's who no longer has it. Whoever
    /// has a new address need not be told before its first packet.
    #[must_use]
    pub fn takes_back(&self, before: &Self) -> bool {
        before.owners.iter().any(|(address, identity)| self.owners.get(address) != Some(identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Address {
        Address::from_v4([10, 0, 0, last])
    }

    fn endpoints(all: &[(u8, u32, u32)]) -> BTreeMap<Address, EndpointEntry> {
        let entry = |identity, ifindex| EndpointEntry { identity, ifindex, ..EndpointEntry::default() };
        all.iter().map(|(last, identity, ifindex)| (address(*last), entry(*identity, *ifindex))).collect()
    }

    fn epochs(endpoints: &BTreeMap<Address, EndpointEntry>) -> Vec<u32> {
        endpoints.values().map(|entry| entry.epoch).collect()
    }

    #[test]
    fn who_stays_keeps_its_epoch_and_who_comes_takes_a_new_one() {
        let mut first = endpoints(&[(1, 256, 5), (2, 257, 6), (3, 258, 7)]);
        let assigned = Assigned::assign(&mut first, &BTreeMap::new(), 0);
        assert_eq!((assigned.epoch, epochs(&first)), (1, vec![1, 1, 1]));
        // Another identity, another interface, and one that stays.
        let mut second = endpoints(&[(1, 300, 5), (2, 257, 9), (3, 258, 7)]);
        let assigned = Assigned::assign(&mut second, &first, 1);
        assert_eq!((assigned.epoch, epochs(&second)), (2, vec![2, 2, 1]));
        let again = Assigned::assign(&mut second.clone(), &second, 2);
        assert_eq!(again, assigned);
    }

    #[test]
    fn an_epoch_is_never_given_twice() {
        let mut first = endpoints(&[(1, 256, 5)]);
        let gone = Assigned::assign(&mut first, &BTreeMap::new(), 7);
        assert_eq!(gone.epoch, 8);
        assert_eq!(Assigned::assign(&mut BTreeMap::new(), &first, 8).epoch, 8);
        let mut back = endpoints(&[(1, 300, 6)]);
        assert_eq!(Assigned::assign(&mut back, &BTreeMap::new(), 8).epoch, 9);
        // The count of an older daemon is behind what stands in the map.
        let mut other = endpoints(&[(1, 256, 5), (2, 256, 9)]);
        assert_eq!(Assigned::assign(&mut other, &first, 0).epoch, 9);
    }

    #[test]
    fn only_what_is_no_longer_so_is_worth_telling_before_it_is_asked_for() {
        let of = |all: &[(u8, u32, u32)]| Assigned::assign(&mut endpoints(all), &BTreeMap::new(), 0);
        let told = of(&[(1, 256, 5)]);
        assert!(!of(&[(1, 256, 5), (2, 257, 6)]).takes_back(&told));
        assert!(of(&[(1, 300, 5)]).takes_back(&told));
        assert!(of(&[]).takes_back(&told));
    }
}
