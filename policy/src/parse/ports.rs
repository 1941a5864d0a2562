//! The protocols and ports of a rule: `toPorts` and `icmps`.

use super::icmp;
use super::node::{Fields, Node};
use super::policy_error::{Fault, Problem};
use super::spec::RuleContext;
use crate::port::{NamedPort, PortPrefix, protocol};

/// Most ports in one element of `toPorts`, and types in one of `icmps`.
const MAX_ITEMS: usize = 40;
/// What `ANY` stands for.
const ANY: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];
/// Protocols by name.
const PROTOCOLS: [(&str, &[u8]); 13] = [
    ("TCP", &[protocol::TCP]),
    ("UDP", &[protocol::UDP]),
    ("SCTP", &[protocol::SCTP]),
    ("ANY", &ANY),
    ("ICMP", &[protocol::ICMP]),
    ("ICMPV6", &[protocol::ICMPV6]),
    ("VRRP", &[protocol::VRRP]),
    ("IGMP", &[protocol::IGMP]),
    ("GRE", &[protocol::GRE]),
    ("IPIP", &[protocol::IPIP]),
    ("IPV6", &[protocol::IPV6]),
    ("ESP", &[protocol::ESP]),
    ("AH", &[protocol::AH]),
];
/// Fields of an element of `toPorts` that are not supported.
const UNSUPPORTED: [&str; 5] = ["rules", "terminatingTLS", "originatingTLS", "serverNames", "listener"];

/// Protocols and ports, those with numbers and those with names.
#[derive(Default)]
pub(super) struct Ports {
    pub(super) prefixes: Vec<PortPrefix>,
    pub(super) named: Vec<NamedPort>,
}

/// The protocols and ports of a rule, by what becomes of them. Elements of `toPorts` are alternatives, so that what
/// isn't supported in one says nothing about the others.
pub(super) struct PortRules {
    /// What the rule is about as it is written; none if that is nothing.
    pub(super) kept: Option<Ports>,
    /// What it denies, as it can't be kept.
    pub(super) denied: Option<Ports>,
}

/// What an unsupported field leaves of an element of `toPorts`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keeping {
    AsWritten,
    AllowsNothing,
    Denies,
}

impl Ports {
    /// Every one.
    pub(super) fn any() -> Self {
        Self { prefixes: vec![PortPrefix::ANY], named: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.named.is_empty()
    }

    fn extend(&mut self, other: Self) {
        self.prefixes.extend(other.prefixes);
        self.named.extend(other.named);
    }

    pub(super) fn name(&mut self, name: &str, protocol: u8) {
        self.named.push(NamedPort::new(name, protocol));
    }

    pub(super) fn sort(&mut self) {
        self.prefixes.sort_unstable();
        self.prefixes.dedup();
        self.named.sort_unstable();
        self.named.dedup();
    }
}

/// The protocols and ports of a rule; none if it doesn't restrict them.
pub(super) fn parse(fields: &Fields<'_>, rule: &mut RuleContext<'_>) -> Result<Option<PortRules>, Fault> {
    let to_ports = fields.items("toPorts")?.filter(|items| !items.is_empty());
    let icmps = fields.items("icmps")?.filter(|items| !items.is_empty());
    let (Some(path), true) =
        (fields.get("toPorts").or(fields.get("icmps")), to_ports.is_some() || icmps.is_some())
    else {
        return Ok(None);
    };
    let both = to_ports.is_some() && icmps.is_some();
    let [mut kept, mut unkept, mut denied] = [const { Vec::new() }; 3];
    let to_ports = to_ports.unwrap_or_default();
    for node in &to_ports {
        let (ports, keeping) = parse_port_rule(node, to_ports.len() == 1, rule)?;
        match keeping {
            Keeping::AsWritten => kept.push(ports),
            Keeping::AllowsNothing => unkept.push(ports),
            Keeping::Denies => denied.push(ports),
        }
    }
    for node in icmps.unwrap_or_default() {
        let fields = node.fields(&["fields"])?.items("fields")?.unwrap_or_default();
        limit(&node, fields.len())?;
        let prefixes = fields.iter().map(icmp::parse).collect::<Result<_, _>>()?;
        kept.push(Ports { prefixes, named: Vec::new() });
    }
    if both {
        rule.unsupported(path.path(), "`toPorts` beside `icmps` in one rule");
    }
    if kept.iter().chain(&unkept).chain(&denied).all(Ports::is_empty) {
        rule.selects_nothing(path.path());
    }
    if kept.is_empty() && !unkept.is_empty() {
        rule.allow_nothing();
        kept = unkept;
    }
    let together = |all: Vec<Ports>| {
        let mut ports = Ports::default();
        let count = all.len();
        all.into_iter().for_each(|one| ports.extend(one));
        ports.sort();
        (count > 0).then_some(ports)
    };
    Ok(Some(PortRules { kept: together(kept), denied: together(denied) }))
}

fn parse_port_rule(
    node: &Node<'_>,
    is_alone: bool,
    rule: &mut RuleContext<'_>,
) -> Result<(Ports, Keeping), Fault> {
    let mut known = vec!["ports"];
    known.extend(UNSUPPORTED);
    let fields = node.fields(&known)?;
    let nodes = fields.items("ports")?.unwrap_or_default();
    limit(node, nodes.len())?;
    let mut ports = Ports::default();
    for port in nodes {
        parse_port(&port, &mut ports)?;
    }
    let mut keeping = Keeping::AsWritten;
    for (name, field) in UNSUPPORTED.iter().filter_map(|name| Some((*name, fields.get(name)?))) {
        let restricts = match name {
            _ if field.is_empty() => continue,
            "rules" => !admits_all(&field),
            name => name == "serverNames",
        };
        keeping = keeping.max(rule.unsupported_ports(field.path(), restricts, is_alone));
    }
    Ok((ports, keeping))
}

/// Whether rules of layer 7 let everything pass, such as those by which DNS is only looked at.
fn admits_all(rules: &Node<'_>) -> bool {
    let lists = rules.entries().unwrap_or_default();
    let is_all = |(name, list): &(&str, Node<'_>)| {
        let all_names =
            |rule: &Node<'_>| rule.child("matchPattern").is_some_and(|pattern| pattern.text() == Ok("*"));
        let rules = list.items().unwrap_or_default();
        rules.iter().any(|rule| rule.is_empty() || (*name == "dns" && all_names(rule)))
    };
    lists.iter().any(is_all)
}

fn parse_port(node: &Node<'_>, ports: &mut Ports) -> Result<(), Fault> {
    let fields = node.fields(&["port", "endPort", "protocol"])?;
    let protocols = match fields.get("protocol") {
        Some(protocol) => parse_protocol(&protocol)?,
        None => ANY.as_slice(),
    };
    let without_ports = match protocols {
        [one] if !protocol::has_ports(*one) => Some(*one),
        _ => None,
    };
    if let (Some(protocol), None) = (without_ports, fields.get("port")) {
        ports.prefixes.push(PortPrefix::protocol(protocol));
        return Ok(());
    }
    let port = fields.require("port")?;
    let end = fields.get("endPort").map(|end| {
        end.number::<u16>()
            .ok_or_else(|| end.invalid("must be a port number, up to 65535"))
            .map(|port| (end, port))
    });
    let number = parse_number(&port)?;
    if let Some(protocol) = without_ports {
        ports.prefixes.push(type_or_whole(protocol, &number, &port)?);
        return Ok(());
    }
    let (first, last) = match (number, end.transpose()?) {
        // Beside a name the end of a range is ignored, as documented.
        (PortNumber::Named(name), _) => {
            protocols.iter().for_each(|protocol| ports.name(&name, *protocol));
            return Ok(());
        }
        (PortNumber::Given(0), None | Some((_, 0))) => (0, u16::MAX),
        (PortNumber::Given(first), None | Some((_, 0))) => (first, first),
        (PortNumber::Given(first), Some((_, last))) if first <= last => (first, last),
        (PortNumber::Given(_), Some((end, _))) => return Err(end.invalid("must not be below `port`")),
    };
    ports.prefixes.extend(protocols.iter().flat_map(|protocol| PortPrefix::range(*protocol, first, last)));
    Ok(())
}

/// What is meant of a protocol whose packets have no ports: all of it, or a type of ICMP.
fn type_or_whole(protocol: u8, number: &PortNumber, node: &Node<'_>) -> Result<PortPrefix, Fault> {
    match number {
        PortNumber::Given(0) => Ok(PortPrefix::protocol(protocol)),
        PortNumber::Given(number) if protocol::is_icmp(protocol) => u8::try_from(*number)
            .map(|number| PortPrefix::icmp(protocol, number))
            .map_err(|_error| node.invalid("must be a type of ICMP, 0 to 255")),
        PortNumber::Given(_) | PortNumber::Named(_) => {
            Err(node.invalid("must be `0`: this protocol has no ports"))
        }
    }
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

/// A port as it is written.
pub(super) enum PortNumber {
    Given(u16),
    Named(String),
}

/// The number or name of a port.
pub(super) fn parse_number(node: &Node<'_>) -> Result<PortNumber, Fault> {
    let invalid = || node.invalid("must be a port number up to 65535, in decimal, or the name of a port");
    if node.is_number() {
        return node.number().map(PortNumber::Given).ok_or_else(invalid);
    }
    let text = node.text()?;
    let is_name = text.len() <= 15
        && text.contains(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !text.split('-').any(str::is_empty);
    // A leading zero would be octal to some.
    let is_decimal =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    match text.parse() {
        Ok(port) if is_decimal => Ok(PortNumber::Given(port)),
        Ok(_) | Err(_) if is_name => Ok(PortNumber::Named(text.to_owned())),
        Ok(_) | Err(_) => Err(invalid()),
    }
}

fn limit(node: &Node<'_>, count: usize) -> Result<(), Fault> {
    if count > MAX_ITEMS {
        return Err(node.fault(Problem::Invalid(format!("has {count} entries, {MAX_ITEMS} are the most"))));
    }
    Ok(())
}
