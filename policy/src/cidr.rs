//! Prefixes of addresses that rules name, and the local identities that stand for them.
//!
//! What is outside the cluster has no labels, so each distinct prefix that a policy names gets an identity of
//! its own, known on this node only. An address has the identity of the longest prefix that holds it; a rule
//! selects a prefix if one of its own holds it whole and no exception does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use auth_ebpf_abi::{Address, IdentityNumber, identity as reserved};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

use crate::label::{Label, Source};
use crate::label_set::LabelSet;
use crate::peer::Remote;

/// A prefix without some parts of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrBlock {
    /// The prefix.
    pub net: IpNet,
    /// What is not meant, all inside `net`.
    pub except: Vec<IpNet>,
}

impl CidrBlock {
    /// The whole prefix.
    #[must_use]
    pub const fn whole(net: IpNet) -> Self {
        Self { net, except: Vec::new() }
    }

    /// Whether everything under this prefix is meant.
    #[must_use]
    pub fn covers(&self, net: &IpNet) -> bool {
        self.net.contains(net) && !self.except.iter().any(|except| except.contains(net))
    }

    /// Whether this address is meant.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.covers(&IpNet::from(address))
    }

    /// The prefix and its exceptions: what needs identities.
    pub(crate) fn nets(&self) -> impl Iterator<Item = IpNet> + use<'_> {
        std::iter::once(self.net).chain(self.except.iter().copied())
    }
}

/// Reads an address or a prefix, without host bits and with IPv4 as IPv4.
#[must_use]
pub(crate) fn parse(text: &str) -> Option<IpNet> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => net.trunc(),
        Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?),
    };
    Some(canonical(net))
}

/// An IPv4 prefix that is written as part of IPv6 is the IPv4 one: the kernel sees no difference.
fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(net, IpNet::V4)
}

/// All of IPv4.
pub const ALL_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
/// All of IPv6.
pub const ALL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0));

/// The prefixes that policies name, and their identities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    by_net: BTreeMap<IpNet, IdentityNumber>,
    by_number: BTreeMap<IdentityNumber, (IpNet, LabelSet)>,
}

impl Prefixes {
    /// Gives each prefix its identity. A number follows from its prefix alone, so it stays the same when
    /// others come and go (unless two are alike in 32 bits, where the later one makes room).
    #[must_use]
    pub fn new(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let nets: BTreeSet<IpNet> = nets.into_iter().flat_map(with_v4).collect();
        let mut prefixes = Self::default();
        for net in nets {
            prefixes.insert(net);
        }
        prefixes
    }

    /// Gives a prefix its identity, and gives that.
    pub(crate) fn insert(&mut self, net: IpNet) -> IdentityNumber {
        let number = self.free_number(net);
        self.by_net.insert(net, number);
        self.by_number.insert(number, (net, labels(net)));
        number
    }

    /// Takes the identity of a prefix back, and gives it.
    pub(crate) fn remove(&mut self, net: &IpNet) -> Option<IdentityNumber> {
        let number = self.by_net.remove(net)?;
        self.by_number.remove(&number);
        Some(number)
    }

    /// The identity of each prefix.
    #[must_use]
    pub const fn by_net(&self) -> &BTreeMap<IpNet, IdentityNumber> {
        &self.by_net
    }

    /// All of them: number, prefix and labels.
    pub fn iter(&self) -> impl Iterator<Item = (IdentityNumber, IpNet, &LabelSet)> {
        self.by_number.iter().map(|(number, (net, labels))| (*number, *net, labels))
    }

    /// All of them, as rules look at them.
    pub fn remotes(&self) -> impl Iterator<Item = Remote<'_>> {
        self.iter().map(|(number, net, labels)| Remote { number, labels, net: Some(net) })
    }

    /// The identities of this prefix and of those within it.
    pub(crate) fn within(&self, net: IpNet) -> impl Iterator<Item = IdentityNumber> {
        // In order of address and length they follow it without a gap.
        let within = self.by_net.range(net..).take_while(move |(inner, _)| net.contains(*inner));
        within.map(|(_, number)| *number)
    }

    /// Prefix and labels of the identity with this number.
    #[must_use]
    pub fn get(&self, number: IdentityNumber) -> Option<(IpNet, &LabelSet)> {
        self.by_number.get(&number).map(|(net, labels)| (*net, labels))
    }

    /// The identity of an address outside the cluster: that of the longest prefix which holds it.
    #[must_use]
    pub fn identity_of(&self, address: IpAddr) -> IdentityNumber {
        let whole = IpNet::from(address.to_canonical());
        let lengths = (0..=whole.prefix_len()).rev();
        let mut covering = lengths.filter_map(|length| IpNet::new(whole.addr(), length).ok());
        covering.find_map(|net| self.by_net.get(&net.trunc())).copied().unwrap_or(reserved::WORLD)
    }

    fn free_number(&self, net: IpNet) -> IdentityNumber {
        if net.prefix_len() == 0 {
            return if net == ALL_V4 { reserved::WORLD_IPV4 } else { reserved::WORLD_IPV6 };
        }
        let digest = Sha256::digest(net.to_string());
        let hash = digest.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let mut number = hash % (u32::MAX - reserved::FIRST_LOCAL) + reserved::FIRST_LOCAL;
        while self.by_number.contains_key(&number) {
            number = number.checked_add(1).unwrap_or(reserved::FIRST_LOCAL);
        }
        number
    }
}

/// A prefix and what must have an identity with it: in the kernel's table IPv4 is a part of IPv6, and must not
/// fall under a prefix of that.
pub(crate) fn with_v4(net: IpNet) -> impl Iterator<Item = IpNet> {
    let mapped = Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96);
    let has_v4 = net.contains(&IpNet::V6(mapped));
    std::iter::once(net).chain(has_v4.then_some(ALL_V4))
}

/// `cidr:10.0.0.0/8` (IPv6 with `-` for `:`, which no key may have), and those of the world.
fn labels(net: IpNet) -> LabelSet {
    let family = if net.addr().is_ipv4() { "world-ipv4" } else { "world-ipv6" };
    let cidr = net.to_string().replace(':', "-");
    let labels = [(Source::Cidr, cidr.as_str()), (Source::Reserved, "world"), (Source::Reserved, family)];
    let labels = labels.into_iter().filter_map(|(source, key)| Label::new(source, key, "").ok());
    LabelSet::from_labels(labels).unwrap_or_default()
}

/// The prefix as a key of the kernel's table.
#[must_use]
pub fn prefix_key(net: IpNet) -> (Address, u32) {
    let bits = u32::from(net.prefix_len());
    let mapped = if net.addr().is_ipv4() { bits + Address::V4_PREFIX_BITS } else { bits };
    (Address::from(net.network()), mapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        parse(text).unwrap()
    }

    #[test]
    fn addresses_and_prefixes_are_read() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(net(text).to_string(), expected, "{text}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0/8", "x", "10.0.0.0/", "2001:db8::/129"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn exceptions_are_not_meant() {
        let block = CidrBlock { net: net("10.0.0.0/8"), except: vec![net("10.96.0.0/12")] };
        for (inside, covered) in [
            ("10.0.0.0/8", true),
            ("10.0.0.0/9", true),
            ("10.96.0.0/12", false),
            ("10.96.1.1", false),
            ("10.112.0.0/12", true),
            ("11.0.0.0/8", false),
            ("0.0.0.0/0", false),
        ] {
            assert_eq!(block.covers(&net(inside)), covered, "{inside}");
        }
    }

    #[test]
    fn an_address_has_the_identity_of_the_longest_prefix() {
        let prefixes = Prefixes::new([net("10.0.0.0/8"), net("10.1.0.0/16"), net("2001:db8::/32")]);
        let of = |address: &str| prefixes.identity_of(address.parse().unwrap());
        assert_eq!(of("10.1.2.3"), prefixes.by_net()[&net("10.1.0.0/16")]);
        assert_eq!(of("10.2.2.3"), prefixes.by_net()[&net("10.0.0.0/8")]);
        assert_eq!(of("2001:db8::1"), prefixes.by_net()[&net("2001:db8::/32")]);
        assert_eq!(of("192.0.2.1"), reserved::WORLD);
        assert_eq!(
            prefixes.get(of("10.1.2.3")).unwrap().1.to_string(),
            "cidr:10.1.0.0/16,reserved:world,reserved:world-ipv4"
        );
    }

    #[test]
    fn the_world_has_numbers_of_its_own_for_each_family() {
        let prefixes = Prefixes::new([ALL_V6]);
        assert_eq!(
            prefixes.by_net().values().copied().collect::<Vec<_>>(),
            [9, 10],
            "IPv4 is kept out of ::/0"
        );
        assert_eq!(Prefixes::new([ALL_V4]).by_net().len(), 1);
        assert_eq!(Prefixes::new([net("::/64")]).by_net().len(), 2);
        assert_eq!(Prefixes::new([net("::/97")]).by_net().len(), 1);
    }

    proptest! {
        #[test]
        fn within_finds_what_is_contained(
            octets in proptest::collection::vec((0u8..3, 0u8..3, 0u8..=32), 0..30), of in (0u8..3, 0u8..3, 0u8..=32),
        ) {
            let net = |(a, b, length): (u8, u8, u8)| IpNet::new([10, a, b, 0].into(), length).unwrap().trunc();
            let all = Prefixes::new(octets.into_iter().map(net).chain([ALL_V6]));
            let of = net(of);
            let found: BTreeSet<IdentityNumber> = all.within(of).collect();
            let expected = all.by_net().iter().filter(|(inner, _)| of.contains(*inner));
            prop_assert_eq!(found, expected.map(|(_, number)| *number).collect::<BTreeSet<_>>());
        }

        #[test]
        fn numbers_are_local_unique_and_stable(octets in proptest::collection::btree_set((any::<[u8; 4]>(), 1u8..=32), 1..50)) {
            let nets: Vec<IpNet> = octets.iter().map(|(a, length)| IpNet::new((*a).into(), *length).unwrap().trunc()).collect();
            let all = Prefixes::new(nets.iter().copied());
            prop_assert_eq!(&all, &Prefixes::new(nets.iter().rev().copied()));
            let numbers: BTreeSet<_> = all.by_net().values().collect();
            prop_assert_eq!(numbers.len(), all.by_net().len());
            for (net, number) in all.by_net() {
                prop_assert!(*number >= reserved::FIRST_LOCAL && reserved::is_reserved(*number));
                prop_assert_eq!(Prefixes::new([*net]).by_net()[net], *number);
            }
        }
    }
}
