//! The kernel's lookup, over a compiled map.

use auth_ebpf_abi::{
    Choice, Direction, IdentityNumber, PolicyEntry, PolicyKey, choose, identity as reserved,
};

use crate::compile::PolicyMap;
use crate::port::PortPrefix;

/// What the kernel finds for a packet: the longest prefix for the remote identity and for any identity, and
/// the choice between them. For ICMP, `port` has the type in its upper byte. None means drop.
#[must_use]
pub fn lookup(
    map: &PolicyMap,
    local: IdentityNumber,
    remote: IdentityNumber,
    direction: Direction,
    protocol: u8,
    port: u16,
) -> Option<Choice> {
    let packet = PortPrefix::port(protocol, port);
    let longest = |remote| longest_match(map, local, remote, direction, packet);
    choose(longest(remote), longest(reserved::UNKNOWN))
}

fn longest_match(
    map: &PolicyMap,
    local: IdentityNumber,
    remote: IdentityNumber,
    direction: Direction,
    packet: PortPrefix,
) -> Option<PolicyEntry> {
    packet.and_covering().find_map(|prefix| {
        let mut key = PolicyKey { local, remote, direction: direction as u8, ..PolicyKey::default() };
        let bits = prefix.put(&mut key);
        map.get(&(key, bits)).copied()
    })
}
