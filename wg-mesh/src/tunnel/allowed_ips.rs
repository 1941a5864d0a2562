//! Cryptokey routing: which peer has an address, by the longest prefix over all peers.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

/// One family: from the longest prefix to the shortest, masked address to owner. Nodes have few lengths
/// (a pod range, an address), so this is two or three hash lookups.
#[derive(Debug, Default)]
struct Family<T> {
    by_length: BTreeMap<std::cmp::Reverse<u8>, HashMap<IpNet, T>>,
}

/// Prefixes with owners.
#[derive(Debug)]
pub(super) struct AllowedIps<T> {
    v4: Family<T>,
    v6: Family<T>,
}

impl<T: Copy> AllowedIps<T> {
    pub(super) fn new() -> Self {
        Self { v4: Family { by_length: BTreeMap::new() }, v6: Family { by_length: BTreeMap::new() } }
    }

    /// Gives a prefix to an owner, whoever had it before.
    pub(super) fn insert(&mut self, net: IpNet, owner: T) {
        let length = std::cmp::Reverse(net.prefix_len());
        self.family_mut(net.network()).by_length.entry(length).or_default().insert(net.trunc(), owner);
    }

    /// Takes a prefix from whoever has it.
    pub(super) fn remove(&mut self, net: IpNet) {
        let length = std::cmp::Reverse(net.prefix_len());
        let family = self.family_mut(net.network());
        if let Some(nets) = family.by_length.get_mut(&length) {
            nets.remove(&net.trunc());
            if nets.is_empty() {
                family.by_length.remove(&length);
            }
        }
    }

    /// The owner of the longest prefix that holds `address`.
    pub(super) fn owner(&self, address: IpAddr) -> Option<T> {
        let family = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        family.by_length.iter().find_map(|(length, nets)| {
            let net = IpNet::new(address, length.0).ok()?.trunc();
            nets.get(&net).copied()
        })
    }

    const fn family_mut(&mut self, address: IpAddr) -> &mut Family<T> {
        match address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_whatever_the_order() {
        for order in [["10.0.0.0/8", "10.1.0.0/16"], ["10.1.0.0/16", "10.0.0.0/8"]] {
            let mut table = AllowedIps::new();
            order.iter().for_each(|text| table.insert(net(text), net(text).prefix_len()));
            assert_eq!(table.owner("10.1.2.3".parse().unwrap()), Some(16));
            assert_eq!(table.owner("10.2.2.3".parse().unwrap()), Some(8));
            assert_eq!(table.owner("11.2.2.3".parse().unwrap()), None);
            table.remove(net("10.1.0.0/16"));
            assert_eq!(table.owner("10.1.2.3".parse().unwrap()), Some(8));
        }
    }

    #[test]
    fn families_do_not_mix() {
        let mut table = AllowedIps::new();
        table.insert(net("0.0.0.0/0"), 4);
        assert_eq!(table.owner("::ffff:10.0.0.1".parse().unwrap()), None);
        table.insert(net("::/0"), 6);
        assert_eq!(table.owner("::1".parse().unwrap()), Some(6));
        assert_eq!(table.owner("127.0.0.1".parse().unwrap()), Some(4));
    }

    /// Few bits vary, so that prefixes and addresses meet.
    fn address() -> impl Strategy<Value = IpAddr> {
        (any::<bool>(), 0_u8..4, 0_u8..4).prop_map(|(v6, high, low)| {
            if v6 {
                IpAddr::V6(Ipv6Addr::new(0xfd00, u16::from(high), 0, 0, 0, 0, 0, u16::from(low)))
            } else {
                IpAddr::V4(Ipv4Addr::new(10, high, 0, low))
            }
        })
    }

    fn prefix() -> impl Strategy<Value = IpNet> {
        (address(), 0_u8..=32, any::<bool>()).prop_map(|(address, length, full)| match address {
            IpAddr::V4(address) => IpNet::V4(Ipv4Net::new(address, length).unwrap()),
            IpAddr::V6(address) => IpNet::V6(Ipv6Net::new(address, if full { 128 } else { length }).unwrap()),
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search(
            nets in proptest::collection::vec((prefix(), 0_u8..4), 0..20),
            gone in proptest::collection::vec(prefix(), 0..5),
            wanted in proptest::collection::vec(address(), 1..20),
        ) {
            let mut table = AllowedIps::new();
            let mut model = BTreeMap::new();
            for (net, owner) in nets {
                table.insert(net, owner);
                model.insert(net.trunc(), owner);
            }
            for net in gone {
                table.remove(net);
                model.remove(&net.trunc());
            }
            for address in wanted {
                let best = model.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
                prop_assert_eq!(table.owner(address), best.map(|(_, owner)| *owner));
            }
        }
    }
}
