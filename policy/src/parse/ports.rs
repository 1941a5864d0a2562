//! The protocols and ports of a rule: `toPorts` and `icmps`.

use super::node::{Fields, Node};
use super::policy_error::{Fault, Problem};
use super::spec::RuleContext;
use crate::port::{PortPrefix, protocol};

/// Most ports in one element of `toPorts`, and types in one of `icmps`.
const MAX_ITEMS: usize = 40;
/// What `ANY` stands for.
const ANY: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];
/// Protocols by name; those without numbers are known, but not supported.
const PROTOCOLS: [(&str, &[u8]); 13] = [
    ("TCP", &[protocol::TCP]),
    ("UDP", &[protocol::UDP]),
    ("SCTP", &[protocol::SCTP]),
    ("ANY", &ANY),
    ("ICMP", &[]),
    ("ICMPV6", &[]),
    ("VRRP", &[]),
    ("IGMP", &[]),
    ("GRE", &[]),
    ("IPIP", &[]),
    ("IPV6", &[]),
    ("ESP", &[]),
    ("AH", &[]),
];
/// Fields of an element of `toPorts` that are not supported.
const UNSUPPORTED: [&str; 5] = ["rules", "terminatingTLS", "originatingTLS", "serverNames", "listener"];

/// The protocols and ports of a rule; none if it doesn't restrict them.
pub(super) fn parse(
    fields: &Fields<'_>,
    rule: &mut RuleContext<'_>,
) -> Result<Option<Vec<PortPrefix>>, Fault> {
    let to_ports = fields.items("toPorts")?.filter(|items| !items.is_empty());
    let icmps = fields.items("icmps")?.filter(|items| !items.is_empty());
    let (Some(path), true) =
        (fields.get("toPorts").or(fields.get("icmps")), to_ports.is_some() || icmps.is_some())
    else {
        return Ok(None);
    };
    let both = to_ports.is_some() && icmps.is_some();
    let mut prefixes = Vec::new();
    for node in to_ports.unwrap_or_default() {
        parse_port_rule(&node, rule, &mut prefixes)?;
    }
    for node in icmps.unwrap_or_default() {
        parse_icmp(&node, rule, &mut prefixes)?;
    }
    if both {
        rule.unsupported(path.path(), "`toPorts` beside `icmps` in one rule");
    }
    if prefixes.is_empty() {
        rule.selects_nothing(path.path());
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    Ok(Some(prefixes))
}

fn parse_port_rule(
    node: &Node<'_>,
    rule: &mut RuleContext<'_>,
    prefixes: &mut Vec<PortPrefix>,
) -> Result<(), Fault> {
    let mut known = vec!["ports"];
    known.extend(UNSUPPORTED);
    let fields = node.fields(&known)?;
    let ports = fields.items("ports")?.unwrap_or_default();
    limit(node, ports.len())?;
    for port in ports {
        parse_port(&port, rule, prefixes)?;
    }
    for field in UNSUPPORTED.iter().filter_map(|name| fields.get(name)).filter(|field| !field.is_empty()) {
        rule.unsupported(field.path(), "this field");
    }
    Ok(())
}

fn parse_port(
    node: &Node<'_>,
    rule: &mut RuleContext<'_>,
    prefixes: &mut Vec<PortPrefix>,
) -> Result<(), Fault> {
    let fields = node.fields(&["port", "endPort", "protocol"])?;
    let protocols = match fields.get("protocol") {
        Some(protocol) => parse_protocol(&protocol)?,
        None => ANY.as_slice(),
    };
    let port = fields.require("port")?;
    let end = fields.get("endPort").map(|end| {
        end.number::<u16>()
            .ok_or_else(|| end.invalid("must be a port number, up to 65535"))
            .map(|port| (end, port))
    });
    if protocols.is_empty() {
        rule.unsupported(node.path(), "this protocol");
        prefixes.push(PortPrefix::ANY);
        return Ok(());
    }
    let (first, last) = match (parse_port_number(&port)?, end.transpose()?) {
        // A port that has a name could be any.
        (None, _) => {
            rule.unsupported(port.path(), "a port by its name");
            (0, u16::MAX)
        }
        (Some(0), None) => (0, u16::MAX),
        (Some(first), None | Some((_, 0))) => (first, first),
        (Some(first), Some((_, last))) if first != 0 && first <= last => (first, last),
        (Some(_), Some((end, _))) => return Err(end.invalid("must not be below `port`, which must not be 0")),
    };
    prefixes.extend(protocols.iter().flat_map(|protocol| PortPrefix::range(*protocol, first, last)));
    Ok(())
}

fn parse_protocol(node: &Node<'_>) -> Result<&'static [u8], Fault> {
    let text = node.text()?;
    let upper = text.to_ascii_uppercase();
    match PROTOCOLS.iter().find(|(name, _)| upper == *name) {
        Some((_, numbers)) => Ok(*numbers),
        None if text.is_empty() => Ok(&ANY),
        None => node.one_of(&PROTOCOLS),
    }
}

/// The number, or none for a name.
fn parse_port_number(node: &Node<'_>) -> Result<Option<u16>, Fault> {
    let invalid = || node.invalid("must be a port number up to 65535, in decimal, or the name of a port");
    if node.is_number() {
        return node.number().map(Some).ok_or_else(invalid);
    }
    let text = node.text()?;
    let is_name = text.len() <= 15
        && text.contains(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    // A leading zero would be octal to some.
    let is_decimal =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    match text.parse() {
        Ok(port) if is_decimal => Ok(Some(port)),
        Ok(_) | Err(_) if is_name => Ok(None),
        Ok(_) | Err(_) => Err(invalid()),
    }
}

fn parse_icmp(
    node: &Node<'_>,
    rule: &mut RuleContext<'_>,
    prefixes: &mut Vec<PortPrefix>,
) -> Result<(), Fault> {
    let fields = node.fields(&["fields"])?.items("fields")?.unwrap_or_default();
    limit(node, fields.len())?;
    for node in fields {
        let fields = node.fields(&["family", "type"])?;
        let family = fields.get("family").filter(|family| family.text() != Ok(""));
        let protocol = family
            .map(|family| family.one_of(&[("IPv4", protocol::ICMP), ("IPv6", protocol::ICMPV6)]))
            .transpose()?
            .unwrap_or(protocol::ICMP);
        let icmp_type = fields.require("type")?;
        match icmp_type.number() {
            Some(number) => prefixes.push(PortPrefix::icmp(protocol, number)),
            None if icmp_type.is_number() => {
                return Err(icmp_type.invalid("must be a type of ICMP, 0 to 255"));
            }
            None => {
                icmp_type.text()?;
                rule.unsupported(icmp_type.path(), "a type of ICMP by its name");
                prefixes.push(PortPrefix::protocol(protocol));
            }
        }
    }
    Ok(())
}

fn limit(node: &Node<'_>, count: usize) -> Result<(), Fault> {
    if count > MAX_ITEMS {
        return Err(node.fault(Problem::Invalid(format!("has {count} entries, {MAX_ITEMS} are the most"))));
    }
    Ok(())
}
