//! Under which addresses nodes forward what comes from outside to other nodes and their pods. Pure.
//!
//! kube-proxy gives such packets its own node's address, and their sender's is gone. So that they don't pass for
//! the node, they bear an address of these ranges in the tunnel: one for each node, by its number, and to
//! everybody else the world's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use auth_ebpf_abi::{Address, NodeNumber};
use ipnet::IpNet;

use crate::{cluster::Cluster, datapath::interfaces::Interfaces};

/// One range for each family at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideRanges(Vec<IpNet>);

/// Why ranges can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is no room for the number of every node.
    #[error("has no room for every node's number; use a prefix of {0} bits or fewer, such as {1}")]
    TooSmall(u8, &'static str),
    /// A family has two.
    #[error("is the second range of its family; name one for IPv4 and one for IPv6")]
    Twice,
    /// No host has such addresses.
    #[error("holds addresses that no host can have")]
    Nobodys,
    /// This node has addresses there.
    #[error(
        "{0}, which this node has, overlaps {1}; set --outside-ranges, the same on every node, to what nobody uses, or to none"
    )]
    Taken(IpNet, IpNet),
}

const V4: &str = "198.18.0.0/16";
const V6: &str = "fd41:7574:6864:6f75::/112";

impl Default for OutsideRanges {
    /// Benchmarking's range (RFC 2544), which no network routes, and a unique local one.
    fn default() -> Self {
        Self([V4, V6].into_iter().filter_map(|range| range.parse().ok()).collect())
    }
}

impl OutsideRanges {
    /// No ranges: what is masqueraded from outside drops on its way to another node.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Adds a range.
    ///
    /// # Errors
    /// Why it can't be used.
    pub fn add(&mut self, range: IpNet) -> Result<(), Unusable> {
        let (longest, example) = if range.addr().is_ipv4() { (16, V4) } else { (112, V6) };
        if range.prefix_len() > longest {
            return Err(Unusable::TooSmall(longest, example));
        }
        if self.0.iter().any(|other| other.addr().is_ipv4() == range.addr().is_ipv4()) {
            return Err(Unusable::Twice);
        }
        // One of IPv6 that holds IPv4 is of no family.
        let is_nobodys = |end: IpAddr| Address::from(end).is_nobodys() || end.to_canonical() != end;
        if range.prefix_len() == 0 || [range.network(), range.broadcast()].into_iter().any(is_nobodys) {
            return Err(Unusable::Nobodys);
        }
        self.0.push(range);
        Ok(())
    }

    /// The ranges.
    #[must_use]
    pub fn nets(&self) -> &[IpNet] {
        &self.0
    }

    /// The addresses of the node with this number.
    pub fn of(&self, node: NodeNumber) -> impl Iterator<Item = IpAddr> {
        self.0.iter().map(move |range| match range {
            IpNet::V4(range) => Ipv4Addr::from(u32::from(range.network()) | u32::from(node)).into(),
            IpNet::V6(range) => Ipv6Addr::from(u128::from(range.network()) | u128::from(node)).into(),
        })
    }

    /// Whether what is sent to an address of this family can bear one of these.
    #[must_use]
    pub fn has_family_of(&self, address: &IpAddr) -> bool {
        self.0.iter().any(|range| range.addr().is_ipv4() == address.is_ipv4())
    }

    /// The range that a network overlaps.
    #[must_use]
    pub fn over(&self, net: &IpNet) -> Option<&IpNet> {
        self.0.iter().find(|range| range.contains(net) || net.contains(*range))
    }

    /// What is in use on this node: [`beside`](Self::beside), or none.
    #[must_use]
    pub fn in_use(&self, cluster: &Cluster, node: &str, interfaces: &Interfaces) -> Self {
        self.beside(cluster, node, interfaces).unwrap_or_else(|_taken| Self::none())
    }

    /// These, unless this node, its interfaces or its pods have addresses there: where a cluster does, it does
    /// everywhere. What others claim costs them alone.
    ///
    /// # Errors
    /// Names what is there.
    pub fn beside(&self, cluster: &Cluster, node: &str, interfaces: &Interfaces) -> Result<Self, Unusable> {
        let ranges = cluster.nodes.get(node).into_iter().flat_map(|node| node.pod_cidrs.iter().copied());
        let addresses = cluster.nodes.get(node).into_iter().flat_map(|node| &node.addresses);
        let pods = cluster.local_pods(node).filter(|pod| !pod.host_network).flat_map(|pod| &pod.addresses);
        let addresses = addresses.chain(pods).chain(interfaces.addresses.keys());
        for net in ranges.chain(addresses.map(|address| IpNet::from(*address))) {
            if let Some(range) = self.over(&net) {
                return Err(Unusable::Taken(net, *range));
            }
        }
        Ok(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Node;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ranges(nets: &[&str]) -> OutsideRanges {
        let mut ranges = OutsideRanges::none();
        nets.iter().for_each(|range| ranges.add(net(range)).unwrap());
        ranges
    }

    #[test]
    fn every_node_has_an_address_of_its_own_in_each_family() {
        let of = |ranges: &OutsideRanges, node| ranges.of(node).map(|it| it.to_string()).collect::<Vec<_>>();
        let default = OutsideRanges::default();
        assert_eq!(of(&default, 1), ["198.18.0.1", "fd41:7574:6864:6f75::1"]);
        assert_eq!(of(&default, u16::MAX), ["198.18.255.255", "fd41:7574:6864:6f75::ffff"]);
        assert_eq!(of(&ranges(&["198.18.0.0/15"]), 258), ["198.18.1.2"]);
        assert!(of(&OutsideRanges::none(), 1).is_empty());
        for node in [1, 255, 256, u16::MAX] {
            assert!(default.of(node).zip(default.nets()).all(|(address, range)| range.contains(&address)));
        }
    }

    #[test]
    fn a_range_has_room_for_every_node_and_its_family_for_itself() {
        assert_eq!(OutsideRanges::none().add(net("198.18.0.0/17")), Err(Unusable::TooSmall(16, V4)));
        assert_eq!(OutsideRanges::none().add(net("fd00::/113")), Err(Unusable::TooSmall(112, V6)));
        assert_eq!(ranges(&["198.18.0.0/16"]).add(net("198.19.0.0/16")), Err(Unusable::Twice));
        for nobodys in [
            "127.0.0.0/8",
            "224.0.0.0/8",
            "0.0.0.0/8",
            "0.0.0.0/0",
            "::/0",
            "ff00::/8",
            "::/112",
            "::ffff:198.18.0.0/112",
        ] {
            assert_eq!(OutsideRanges::none().add(net(nobodys)), Err(Unusable::Nobodys), "{nobodys}");
        }
        assert_eq!(ranges(&["198.18.0.0/16", "fd00::/64"]).nets(), [net("198.18.0.0/16"), net("fd00::/64")]);
    }

    #[test]
    fn what_this_node_has_there_itself_takes_them_and_what_others_claim_does_not() {
        let node = |name: &str, address: &str, range: &str| Node {
            name: name.into(),
            number: None,
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: vec![net(range)],
        };
        let own = OutsideRanges::default();
        let beside = |mine: Node, interface: &str| {
            let addresses = [(interface.parse().unwrap(), 7)].into();
            let interfaces = Interfaces { addresses, ..Interfaces::default() };
            let mut cluster = Cluster::default();
            let other = node("other", "198.18.0.1", "198.18.0.0/15");
            cluster.nodes = [mine, other].map(|it| (it.name.clone(), it)).into();
            own.beside(&cluster, "mine", &interfaces)
        };
        assert_eq!(beside(node("mine", "10.0.0.1", "10.1.0.0/16"), "10.0.0.1"), Ok(own.clone()));
        for (address, range, interface, taken) in [
            ("198.18.7.7", "10.1.0.0/16", "10.0.0.1", "198.18.7.7/32"),
            ("10.0.0.1", "198.18.3.0/24", "10.0.0.1", "198.18.3.0/24"),
            ("10.0.0.1", "198.0.0.0/8", "10.0.0.1", "198.0.0.0/8"),
            ("10.0.0.1", "10.1.0.0/16", "198.18.0.9", "198.18.0.9/32"),
        ] {
            let expected = Err(Unusable::Taken(net(taken), net(V4)));
            assert_eq!(beside(node("mine", address, range), interface), expected, "{taken}");
        }
    }
}
