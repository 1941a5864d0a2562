//! Prefixes of addresses that rules name. A rule selects a prefix if one of its own holds it whole and no
//! exception does.

use std::net::{IpAddr, Ipv4Addr};

use auth_ebpf_abi::Address;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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

/// A prefix and what must have an identity with it: in the kernel's table IPv4 is a part of IPv6, and must not
/// fall under a prefix of that.
pub(crate) fn with_v4(net: IpNet) -> impl Iterator<Item = IpNet> {
    let mapped = Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96);
    let has_v4 = net.contains(&IpNet::V6(mapped));
    std::iter::once(net).chain(has_v4.then_some(ALL_V4))
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
}
