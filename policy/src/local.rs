//! Identities that are known on this node only: of prefixes outside the cluster, and of other nodes.
//!
//! What is outside the cluster has no labels, so each distinct prefix that a policy names gets an identity of
//! its own, and an address has that of the longest prefix which holds it. Other nodes share `remote-node`,
//! but each one that a policy chooses by its labels has an identity of its own as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use auth_ebpf_abi::{IdentityNumber, identity as reserved};
use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::cidr::{ALL_V4, with_v4};
use crate::label::{Label, Source};
use crate::label_set::LabelSet;
use crate::peer::Remote;

/// What a local identity stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A prefix outside the cluster.
    Net(IpNet),
    /// The node of this name.
    Node(String),
}

/// Prefixes and nodes that policies name, and their identities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalIdentities {
    by_net: BTreeMap<IpNet, IdentityNumber>,
    by_node: BTreeMap<String, IdentityNumber>,
    by_number: BTreeMap<IdentityNumber, (Place, LabelSet)>,
}

impl LocalIdentities {
    /// Gives each place its identity. A number follows from its place alone, so it stays the same when
    /// others come and go (unless two are alike in 32 bits, where the later one makes room).
    #[must_use]
    pub fn new(places: impl IntoIterator<Item = Place>) -> Self {
        let places: BTreeSet<Place> = places.into_iter().flat_map(complete).collect();
        let mut identities = Self::default();
        for place in places {
            identities.insert(place);
        }
        identities
    }

    /// Gives a place its identity, and gives that.
    pub(crate) fn insert(&mut self, place: Place) -> IdentityNumber {
        let number = self.free_number(&place);
        match &place {
            Place::Net(net) => self.by_net.insert(*net, number),
            Place::Node(name) => self.by_node.insert(name.clone(), number),
        };
        let labels = labels(&place);
        self.by_number.insert(number, (place, labels));
        number
    }

    /// Takes the identity of a place back.
    pub(crate) fn remove(&mut self, place: &Place) {
        let number = match place {
            Place::Net(net) => self.by_net.remove(net),
            Place::Node(name) => self.by_node.remove(name),
        };
        number.and_then(|number| self.by_number.remove(&number));
    }

    /// The identity of each prefix.
    #[must_use]
    pub const fn by_net(&self) -> &BTreeMap<IpNet, IdentityNumber> {
        &self.by_net
    }

    /// The identity of each node that has one of its own, by its name.
    #[must_use]
    pub const fn by_node(&self) -> &BTreeMap<String, IdentityNumber> {
        &self.by_node
    }

    /// The identity of a place, if it has one.
    #[must_use]
    pub fn of(&self, place: &Place) -> Option<IdentityNumber> {
        match place {
            Place::Net(net) => self.by_net.get(net),
            Place::Node(name) => self.by_node.get(name),
        }
        .copied()
    }

    /// The places that have identities.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Place> {
        self.by_number.values().map(|(place, _)| place)
    }

    /// All of them, as rules look at them.
    pub fn remotes(&self) -> impl Iterator<Item = Remote<'_>> {
        self.by_number.iter().map(|(number, (place, labels))| remote(*number, place, labels))
    }

    /// The identities of this prefix and of those within it.
    pub(crate) fn within(&self, net: IpNet) -> impl Iterator<Item = IdentityNumber> {
        // In order of address and length they follow it without a gap.
        let within = self.by_net.range(net..).take_while(move |(inner, _)| net.contains(*inner));
        within.map(|(_, number)| *number)
    }

    /// The identity with this number, as rules look at it.
    #[must_use]
    pub fn get(&self, number: IdentityNumber) -> Option<Remote<'_>> {
        self.by_number.get(&number).map(|(place, labels)| remote(number, place, labels))
    }

    /// The identity of an address outside the cluster: that of the longest prefix which holds it.
    #[must_use]
    pub fn identity_of(&self, address: IpAddr) -> IdentityNumber {
        let whole = IpNet::from(address.to_canonical());
        let lengths = (0..=whole.prefix_len()).rev();
        let mut covering = lengths.filter_map(|length| IpNet::new(whole.addr(), length).ok());
        covering.find_map(|net| self.by_net.get(&net.trunc())).copied().unwrap_or(reserved::WORLD)
    }

    /// The identity of another node.
    #[must_use]
    pub fn identity_of_node(&self, name: &str) -> IdentityNumber {
        self.by_node.get(name).copied().unwrap_or(reserved::REMOTE_NODE)
    }

    fn free_number(&self, place: &Place) -> IdentityNumber {
        let name = match place {
            Place::Net(net) if net.prefix_len() == 0 => {
                return if *net == ALL_V4 { reserved::WORLD_IPV4 } else { reserved::WORLD_IPV6 };
            }
            Place::Net(net) => net.to_string(),
            Place::Node(name) => format!("node {name}"),
        };
        let digest = Sha256::digest(name);
        let hash = digest.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        let mut number = hash % (u32::MAX - reserved::FIRST_LOCAL) + reserved::FIRST_LOCAL;
        while self.by_number.contains_key(&number) {
            number = number.checked_add(1).unwrap_or(reserved::FIRST_LOCAL);
        }
        number
    }
}

/// A place and what must have an identity with it.
pub(crate) fn complete(place: Place) -> Vec<Place> {
    match place {
        Place::Net(net) => with_v4(net).map(Place::Net).collect(),
        Place::Node(_) => vec![place],
    }
}

fn remote<'a>(number: IdentityNumber, place: &'a Place, labels: &'a LabelSet) -> Remote<'a> {
    Remote { number, labels, place: Some(place) }
}

/// Of a prefix `cidr:10.0.0.0/8` (IPv6 with `-` for `:`, which no key may have) and those of the world; of a
/// node that of all other nodes, since its own are for `fromNodes` alone.
fn labels(place: &Place) -> LabelSet {
    let label = |(source, key): (Source, &str)| Label::new(source, key, "").ok();
    let labels: Vec<Label> = match place {
        Place::Net(net) => {
            let family = if net.addr().is_ipv4() { "world-ipv4" } else { "world-ipv6" };
            let cidr = net.to_string().replace(':', "-");
            let labels = [(Source::Cidr, &*cidr), (Source::Reserved, "world"), (Source::Reserved, family)];
            labels.into_iter().filter_map(label).collect()
        }
        Place::Node(_) => label((Source::Reserved, "remote-node")).into_iter().collect(),
    };
    LabelSet::from_labels(labels).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cidr::ALL_V6;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn of_nets(nets: impl IntoIterator<Item = IpNet>) -> LocalIdentities {
        LocalIdentities::new(nets.into_iter().map(Place::Net))
    }

    #[test]
    fn an_address_has_the_identity_of_the_longest_prefix() {
        let identities = of_nets([net("10.0.0.0/8"), net("10.1.0.0/16"), net("2001:db8::/32")]);
        let of = |address: &str| identities.identity_of(address.parse().unwrap());
        assert_eq!(of("10.1.2.3"), identities.by_net()[&net("10.1.0.0/16")]);
        assert_eq!(of("10.2.2.3"), identities.by_net()[&net("10.0.0.0/8")]);
        assert_eq!(of("2001:db8::1"), identities.by_net()[&net("2001:db8::/32")]);
        assert_eq!(of("192.0.2.1"), reserved::WORLD);
        assert_eq!(
            identities.get(of("10.1.2.3")).unwrap().labels.to_string(),
            "cidr:10.1.0.0/16,reserved:world,reserved:world-ipv4"
        );
    }

    #[test]
    fn the_world_has_numbers_of_its_own_for_each_family() {
        let identities = of_nets([ALL_V6]);
        assert_eq!(
            identities.by_net().values().copied().collect::<Vec<_>>(),
            [9, 10],
            "IPv4 is kept out of ::/0"
        );
        assert_eq!(of_nets([ALL_V4]).by_net().len(), 1);
        assert_eq!(of_nets([net("::/64")]).by_net().len(), 2);
        assert_eq!(of_nets([net("::/97")]).by_net().len(), 1);
    }

    #[test]
    fn a_node_is_a_remote_node_with_a_number_of_its_own() {
        let node = |name: &str| Place::Node(name.to_owned());
        let identities = LocalIdentities::new([node("a"), node("b"), Place::Net(net("10.0.0.0/8"))]);
        let numbers = ["a", "b", "c"].map(|name| identities.identity_of_node(name));
        assert_eq!(numbers[2], reserved::REMOTE_NODE);
        assert!(numbers[0] != numbers[1] && numbers[..2].iter().all(|number| reserved::is_reserved(*number)));
        assert_eq!(identities.get(numbers[0]).unwrap().labels.to_string(), "reserved:remote-node");
        let mut without = identities.clone();
        without.remove(&node("a"));
        assert_eq!(without, LocalIdentities::new([node("b"), Place::Net(net("10.0.0.0/8"))]));
    }

    proptest! {
        #[test]
        fn within_finds_what_is_contained(
            octets in proptest::collection::vec((0u8..3, 0u8..3, 0u8..=32), 0..30), of in (0u8..3, 0u8..3, 0u8..=32),
        ) {
            let net = |(a, b, length): (u8, u8, u8)| IpNet::new([10, a, b, 0].into(), length).unwrap().trunc();
            let all = of_nets(octets.into_iter().map(net).chain([ALL_V6]));
            let of = net(of);
            let found: BTreeSet<IdentityNumber> = all.within(of).collect();
            let expected = all.by_net().iter().filter(|(inner, _)| of.contains(*inner));
            prop_assert_eq!(found, expected.map(|(_, number)| *number).collect::<BTreeSet<_>>());
        }

        #[test]
        fn numbers_are_local_unique_and_stable(octets in proptest::collection::btree_set((any::<[u8; 4]>(), 1u8..=32), 1..50)) {
            let nets: Vec<IpNet> = octets.iter().map(|(a, length)| IpNet::new((*a).into(), *length).unwrap().trunc()).collect();
            let all = of_nets(nets.iter().copied());
            prop_assert_eq!(&all, &of_nets(nets.iter().rev().copied()));
            let numbers: BTreeSet<_> = all.by_net().values().collect();
            prop_assert_eq!(numbers.len(), all.by_net().len());
            for (net, number) in all.by_net() {
                prop_assert!(*number >= reserved::FIRST_LOCAL && reserved::is_reserved(*number));
                prop_assert_eq!(of_nets([*net]).by_net()[net], *number);
            }
        }
    }
}
