//! NetworkPolicy of `networking.k8s.io/v1`.
//!
//! Unlike in Cilium's objects an empty list of peers or ports selects everything, and selectors are about
//! labels of pods and namespaces alone.

use auth_ebpf_abi::Direction;
use ipnet::IpNet;

use super::node::{Fields, Node};
use super::policy_error::Fault;
use super::ports::{self, PortNumber, Ports};
use super::selector;
use crate::cidr::{self, CidrBlock};
use crate::label::{LabelKey, NAMESPACE_KEY, NAMESPACE_LABELS_PREFIX, Source};
use crate::object::{ObjectRef, RuleList};
use crate::peer::{Peer, Peers};
use crate::port::{PortPrefix, protocol};
use crate::rule::{Rule, Spec, Subject};
use crate::selector::{Operator, Requirement, Selector};

const FIELDS: [&str; 4] = ["podSelector", "policyTypes", "ingress", "egress"];

pub(super) fn parse(node: &Node<'_>, object: &ObjectRef) -> Result<Spec, Fault> {
    let fields = node.fields(&FIELDS)?;
    let selected = fields.get("podSelector").map(|node| pods(&node)).transpose()?;
    let subject = selector::within(selected.unwrap_or_default(), object);
    let ingress = fields.items("ingress")?.unwrap_or_default();
    let egress = fields.items("egress")?.unwrap_or_default();
    let types = parse_types(&fields)?;
    let (has_ingress, has_egress) = match types.as_slice() {
        [] => (true, !egress.is_empty()),
        types => (types.contains(&Direction::Ingress), types.contains(&Direction::Egress)),
    };
    let mut rules = Vec::new();
    for (list, nodes, is_in_force) in
        [(RuleList::Ingress, ingress, has_ingress), (RuleList::Egress, egress, has_egress)]
    {
        for (index, node) in nodes.iter().enumerate() {
            let rule = parse_rule(node, list, index, object)?;
            // Rules of a type that the policy isn't of say nothing.
            rules.extend(is_in_force.then_some(rule));
        }
    }
    Ok(Spec {
        place: None,
        subject: Subject::Endpoints(subject),
        default_deny_ingress: has_ingress,
        default_deny_egress: has_egress,
        rules,
        description: None,
        labels: Vec::new(),
        log: None,
    })
}

fn parse_types(fields: &Fields<'_>) -> Result<Vec<Direction>, Fault> {
    let known = [("Ingress", Direction::Ingress), ("Egress", Direction::Egress)];
    let types = fields.items("policyTypes")?.unwrap_or_default();
    types.iter().map(|node| node.one_of(&known)).collect()
}

fn parse_rule(node: &Node<'_>, list: RuleList, index: usize, object: &ObjectRef) -> Result<Rule, Fault> {
    let peers = match list.direction() {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let fields = node.fields(&[peers, "ports"])?;
    let nodes = fields.items(peers)?.unwrap_or_default();
    let peers = match nodes.as_slice() {
        [] => Peers::Any,
        nodes => {
            Peers::Selected(nodes.iter().map(|node| parse_peer(node, object)).collect::<Result<_, _>>()?)
        }
    };
    let ports = parse_ports(&fields.items("ports")?.unwrap_or_default())?;
    Ok(Rule {
        list,
        index,
        peers,
        ports: ports.prefixes,
        named_ports: ports.named,
        authentication: None,
        encryption: false,
    })
}

fn parse_peer(node: &Node<'_>, object: &ObjectRef) -> Result<Peer, Fault> {
    let fields = node.fields(&["podSelector", "namespaceSelector", "ipBlock"])?;
    let of_pods = fields.get("podSelector").map(|node| pods(&node)).transpose()?;
    let of_namespaces = fields.get("namespaceSelector").map(|node| namespaces(&node)).transpose()?;
    match (of_pods, of_namespaces, fields.get("ipBlock")) {
        (None, None, Some(block)) => parse_block(&block).map(Peer::IpBlock),
        (_, _, Some(block)) => Err(block.invalid("can't be beside `podSelector` or `namespaceSelector`")),
        (None, None, None) => {
            Err(node.invalid("needs a `podSelector`, a `namespaceSelector` or an `ipBlock`"))
        }
        (of_pods, of_namespaces, None) => {
            let mut selector = of_pods.unwrap_or_default();
            let within = of_namespaces.unwrap_or_else(|| selector::namespace(&object.namespace));
            selector.requirements.extend(within.requirements);
            Ok(selector::in_cluster(selector))
        }
    }
}

fn pods(node: &Node<'_>) -> Result<Selector, Fault> {
    selector::parse_with(node, |key| LabelKey::new(Source::K8s, key))
}

/// Pods in the namespaces with these labels: every pod has a namespace.
fn namespaces(node: &Node<'_>) -> Result<Selector, Fault> {
    let key = |key: &str| LabelKey::new(Source::K8s, format!("{NAMESPACE_LABELS_PREFIX}.{key}"));
    let mut selector = selector::parse_with(node, key)?;
    let in_any = LabelKey::new(Source::K8s, NAMESPACE_KEY).ok();
    let in_any = in_any.map(|key| Requirement { key, operator: Operator::Exists });
    selector.requirements.extend(in_any);
    Ok(selector)
}

fn parse_block(node: &Node<'_>) -> Result<CidrBlock, Fault> {
    let fields = node.fields(&["cidr", "except"])?;
    let net = parse_net(&fields.require("cidr")?)?;
    let mut except = Vec::new();
    for node in fields.items("except")?.unwrap_or_default() {
        let inner = parse_net(&node)?;
        if !net.contains(&inner) || net == inner {
            return Err(node.invalid(format!("must be a part of {net}")));
        }
        except.push(inner);
    }
    Ok(CidrBlock { net, except })
}

fn parse_net(node: &Node<'_>) -> Result<IpNet, Fault> {
    let text = node.text()?;
    let net = text.contains('/').then(|| cidr::parse(text)).flatten();
    net.ok_or_else(|| node.invalid("must be a prefix, such as 10.0.0.0/8 or 2001:db8::/64"))
}

/// No ports are all of them.
fn parse_ports(nodes: &[Node<'_>]) -> Result<Ports, Fault> {
    if nodes.is_empty() {
        return Ok(Ports { prefixes: vec![PortPrefix::ANY], named: Vec::new() });
    }
    let mut ports = Ports::default();
    for node in nodes {
        parse_port(node, &mut ports)?;
    }
    ports.sort();
    Ok(ports)
}

fn parse_port(node: &Node<'_>, ports: &mut Ports) -> Result<(), Fault> {
    const PROTOCOLS: [(&str, u8); 3] =
        [("TCP", protocol::TCP), ("UDP", protocol::UDP), ("SCTP", protocol::SCTP)];
    let fields = node.fields(&["protocol", "port", "endPort"])?;
    let protocol = fields.get("protocol").map_or(Ok(protocol::TCP), |node| node.one_of(&PROTOCOLS))?;
    let port = fields.get("port").map(|node| ports::parse_number(&node)).transpose()?;
    let end = fields.get("endPort");
    let first = match port {
        None => {
            ports.prefixes.push(PortPrefix::protocol(protocol));
            return end.map_or(Ok(()), |end| Err(end.invalid("needs a `port`")));
        }
        Some(PortNumber::Named(name)) => {
            ports.name(&name, protocol);
            return end.map_or(Ok(()), |end| Err(end.invalid("can't be beside the name of a port")));
        }
        Some(PortNumber::Given(0)) => {
            return Err(node.invalid("0 is no port; leave it out for every port"));
        }
        Some(PortNumber::Given(first)) => first,
    };
    let last = match end {
        None => first,
        Some(end) => end
            .number()
            .filter(|last| *last >= first)
            .ok_or_else(|| end.invalid("must be a port number, not below `port`"))?,
    };
    ports.prefixes.extend(PortPrefix::range(protocol, first, last));
    Ok(())
}
