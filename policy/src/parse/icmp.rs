//! Types of ICMP, by number or by the names that Cilium's API has for them.

use super::node::Node;
use super::policy_error::Fault;
use crate::port::{PortPrefix, protocol};

const V4: [(&str, u8); 14] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

const V6: [(&str, u8); 27] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];

/// A type of ICMP, of IPv4 unless the family says otherwise.
pub(super) fn parse(node: &Node<'_>) -> Result<PortPrefix, Fault> {
    let fields = node.fields(&["family", "type"])?;
    let family = fields.get("family").filter(|family| family.text() != Ok(""));
    let protocol = family
        .map(|family| family.one_of(&[("IPv4", protocol::ICMP), ("IPv6", protocol::ICMPV6)]))
        .transpose()?
        .unwrap_or(protocol::ICMP);
    let icmp_type = fields.require("type")?;
    let number = match icmp_type.number::<u8>() {
        Some(number) => number,
        None if icmp_type.is_number() => {
            return Err(icmp_type.invalid("must be a type of ICMP, 0 to 255"));
        }
        None => named(&icmp_type, if protocol == protocol::ICMP { &V4 } else { &V6 })?,
    };
    Ok(PortPrefix::icmp(protocol, number))
}

/// A number in quotes, or a name.
fn named(node: &Node<'_>, names: &[(&str, u8)]) -> Result<u8, Fault> {
    match node.text()?.parse() {
        Ok(number) => Ok(number),
        Err(_) => node.one_of(names),
    }
}
