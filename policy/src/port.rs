//! Protocols and ports that a rule is about, as prefixes of the policy map's keys.

use auth_ebpf_abi::PolicyKey;

/// IP protocol numbers that rules name.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// GRE.
    pub const GRE: u8 = 47;
    /// ESP of IPsec.
    pub const ESP: u8 = 50;
    /// AH of IPsec.
    pub const AH: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// VRRP.
    pub const VRRP: u8 = 112;
    /// SCTP.
    pub const SCTP: u8 = 132;

    const NAMES: [(u8, &str); 12] = [
        (ICMP, "ICMP"),
        (IGMP, "IGMP"),
        (IPIP, "IPIP"),
        (TCP, "TCP"),
        (UDP, "UDP"),
        (IPV6, "IPV6"),
        (GRE, "GRE"),
        (ESP, "ESP"),
        (AH, "AH"),
        (ICMPV6, "ICMPv6"),
        (VRRP, "VRRP"),
        (SCTP, "SCTP"),
    ];

    /// The name of a protocol.
    #[must_use]
    pub fn name(number: u8) -> Option<&'static str> {
        NAMES.iter().find(|(have, _)| *have == number).map(|(_, name)| *name)
    }

    /// The protocol with this name, in whatever case.
    #[must_use]
    pub fn number(name: &str) -> Option<u8> {
        NAMES.iter().find(|(_, have)| have.eq_ignore_ascii_case(name)).map(|(number, _)| *number)
    }

    /// Whether its packets have a type instead of ports.
    #[must_use]
    pub const fn is_icmp(number: u8) -> bool {
        matches!(number, ICMP | ICMPV6)
    }

    /// Whether its packets have ports.
    #[must_use]
    pub const fn has_ports(number: u8) -> bool {
        matches!(number, TCP | UDP | SCTP)
    }
}

/// A port by its name, which pods give a number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name, in lower case.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
}

impl NamedPort {
    /// The port with this name, whatever its case.
    #[must_use]
    pub fn new(name: &str, protocol: u8) -> Self {
        Self { name: name.to_ascii_lowercase(), protocol }
    }
}

/// Bits of a protocol number.
const PROTOCOL_BITS: u8 = 8;
/// Bits of a protocol number and a whole port.
const FULL_BITS: u8 = 24;

/// Protocols and ports with a common prefix, in the form in which the kernel matches them. An ICMP type is
/// the upper byte of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortPrefix {
    /// Protocol in bits 16 to 23, port below; bits beyond the prefix are 0.
    value: u32,
    /// 0, or 8 to 24.
    bits: u8,
}

impl PortPrefix {
    /// Every protocol.
    pub const ANY: Self = Self { value: 0, bits: 0 };

    /// All ports of a protocol.
    #[must_use]
    pub const fn protocol(protocol: u8) -> Self {
        Self::with_bits(protocol, 0, PROTOCOL_BITS)
    }

    /// One port.
    #[must_use]
    pub const fn port(protocol: u8, port: u16) -> Self {
        Self::with_bits(protocol, port, FULL_BITS)
    }

    /// One type of ICMP (`protocol` says of which IP version), with all its codes.
    #[must_use]
    pub const fn icmp(protocol: u8, icmp_type: u8) -> Self {
        Self::with_bits(protocol, (icmp_type as u16) << 8, 16)
    }

    /// The fewest prefixes that make up the ports from `first` to `last`; none if there are none.
    #[must_use]
    pub fn range(protocol: u8, first: u16, last: u16) -> Vec<Self> {
        let (mut next, end) = (u32::from(first), u32::from(last) + 1);
        let mut prefixes = Vec::new();
        while next < end {
            // The largest block that starts here and doesn't reach beyond the end.
            let aligned = next.trailing_zeros().min(16);
            let fits = (end - next).ilog2();
            let free = aligned.min(fits);
            let port = u16::try_from(next).unwrap_or(u16::MAX);
            prefixes.push(Self::with_bits(protocol, port, FULL_BITS - u8::try_from(free).unwrap_or(0)));
            next += 1 << free;
        }
        prefixes
    }

    /// How many bits it has: its specificity.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// The protocol, unless it is for every one.
    #[must_use]
    pub const fn protocol_number(self) -> Option<u8> {
        if self.bits == 0 { None } else { Some((self.value >> 16) as u8) }
    }

    /// Whether everything in `other` is in this too.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.bits <= other.bits && (self.value ^ other.value) & mask(self.bits) == 0
    }

    /// This prefix and every one that covers it, the longest first: the kernel's order.
    pub fn and_covering(self) -> impl Iterator<Item = Self> {
        (0..=self.bits)
            .rev()
            .filter(|bits| *bits == 0 || *bits >= PROTOCOL_BITS)
            .map(move |bits| Self { value: self.value & mask(bits), bits })
    }

    /// Sets protocol and port of a key; gives the key's prefix length.
    pub(crate) fn put(self, key: &mut PolicyKey) -> u32 {
        let [_, protocol, high, low] = self.value.to_be_bytes();
        key.protocol = protocol;
        key.port = [high, low];
        PolicyKey::FIXED_BITS + u32::from(self.bits)
    }

    /// Protocol and port of a key with this prefix length; none for one that compiling doesn't make.
    pub(crate) fn of_key(key: &PolicyKey, prefix_len: u32) -> Option<Self> {
        let bits = u8::try_from(prefix_len.checked_sub(PolicyKey::FIXED_BITS)?).ok()?;
        let is_known = bits == 0 || (PROTOCOL_BITS..=FULL_BITS).contains(&bits);
        is_known.then(|| Self::with_bits(key.protocol, u16::from_be_bytes(key.port), bits))
    }

    const fn with_bits(protocol: u8, port: u16, bits: u8) -> Self {
        let value = ((protocol as u32) << 16) | port as u32;
        Self { value: value & mask(bits), bits }
    }
}

const fn mask(bits: u8) -> u32 {
    if bits == 0 { 0 } else { 0x00ff_ffff & !((1 << (FULL_BITS - bits)) - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_as_the_kernel_has_them() {
        let mut key = PolicyKey::default();
        assert_eq!(PortPrefix::port(protocol::TCP, 80).put(&mut key), PolicyKey::prefix_len(Some(16)));
        assert_eq!((key.protocol, key.port), (6, [0, 80]));
        assert_eq!(PortPrefix::icmp(protocol::ICMP, 8).put(&mut key), PolicyKey::prefix_len(Some(8)));
        assert_eq!((key.protocol, key.port), (1, [8, 0]));
        assert_eq!(PortPrefix::protocol(protocol::UDP).put(&mut key), PolicyKey::prefix_len(Some(0)));
        assert_eq!((key.protocol, key.port), (17, [0, 0]));
        assert_eq!(PortPrefix::ANY.put(&mut key), PolicyKey::prefix_len(None));
        assert_eq!((key.protocol, key.port), (0, [0, 0]));
    }

    #[test]
    fn whole_and_odd_ranges() {
        assert_eq!(PortPrefix::range(6, 0, u16::MAX), [PortPrefix::protocol(6)]);
        assert_eq!(PortPrefix::range(6, 80, 80), [PortPrefix::port(6, 80)]);
        assert_eq!(PortPrefix::range(6, 81, 80), []);
        assert_eq!(PortPrefix::range(6, 1, u16::MAX).len(), 16);
        assert_eq!(PortPrefix::range(6, 1, u16::MAX - 1).len(), 30);
        assert_eq!(PortPrefix::range(6, 1024, 2047).len(), 1);
    }

    #[test]
    fn covering_prefixes_are_the_longest_first() {
        let bits: Vec<u8> = PortPrefix::port(6, 80).and_covering().map(PortPrefix::bits).collect();
        assert_eq!(bits.first(), Some(&24));
        assert_eq!(bits.last(), Some(&0));
        assert_eq!(bits.len(), 18);
        assert_eq!(PortPrefix::ANY.and_covering().collect::<Vec<_>>(), [PortPrefix::ANY]);
    }

    proptest! {
        #[test]
        fn ranges_hold_exactly_their_ports(first: u16, last: u16, port: u16) {
            let covering =
                PortPrefix::range(6, first, last).into_iter().filter(|one| one.covers(PortPrefix::port(6, port)));
            prop_assert_eq!(covering.count(), usize::from((first..=last).contains(&port)));
        }

        #[test]
        fn covers_agrees_with_the_list_of_covering(a: u16, b: u16, bits in 8u8..=24, protocol in 5u8..8) {
            let one = PortPrefix::with_bits(6, a, bits);
            let other = PortPrefix::port(protocol, b);
            prop_assert_eq!(one.covers(other), other.and_covering().any(|covering| covering == one));
        }
    }
}
