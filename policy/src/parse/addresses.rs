//! Peers that are addresses: prefixes, groups of them, services, names.

use ipnet::IpNet;

use super::label_syntax::check_object_name;
use super::node::Node;
use super::policy_error::Fault;
use super::selector;
use crate::cidr::{self, CidrBlock};
use crate::fqdn::NameSelector;
use crate::peer::{GroupSelector, Peer, ServiceSelector};

/// An element of `fromCIDR`.
pub(super) fn cidr(node: &Node<'_>) -> Result<Peer, Fault> {
    Ok(Peer::Cidr(CidrBlock::whole(net(node)?)))
}

/// An element of `fromCIDRSet`.
pub(super) fn cidr_set(node: &Node<'_>) -> Result<Peer, Fault> {
    let fields = node.fields(&["cidr", "cidrGroupRef", "cidrGroupSelector", "except"])?;
    let text = |name| fields.text(name).map(|text| text.filter(|text| !text.is_empty()));
    let excepted = fields.items("except")?.unwrap_or_default();
    let except: Vec<IpNet> = excepted.iter().map(net).collect::<Result<_, _>>()?;
    let groups = match (text("cidr")?, text("cidrGroupRef")?, fields.get("cidrGroupSelector")) {
        (Some(_), None, None) => {
            let net = net(&fields.require("cidr")?)?;
            let outside = excepted.iter().zip(&except).find(|(_, except)| !net.contains(*except));
            return match outside {
                Some((node, _)) => Err(node.invalid(format!("must be a part of {net}"))),
                None => Ok(Peer::Cidr(CidrBlock { net, except })),
            };
        }
        (None, Some(name), None) => {
            check_object_name(name, &fields.require("cidrGroupRef")?)?;
            GroupSelector::Name(name.to_owned())
        }
        (None, None, Some(node)) => GroupSelector::Labels(selector::parse(&node)?),
        _ => return Err(node.invalid("needs one of `cidr`, `cidrGroupRef` and `cidrGroupSelector`")),
    };
    Ok(Peer::CidrGroups { groups, except })
}

/// An element of `toServices`.
pub(super) fn service(node: &Node<'_>) -> Result<Peer, Fault> {
    let fields = node.fields(&["k8sService", "k8sServiceSelector"])?;
    match (fields.get("k8sService"), fields.get("k8sServiceSelector")) {
        (Some(service), None) => {
            let fields = service.fields(&["serviceName", "namespace"])?;
            let name = fields.require("serviceName")?.text()?;
            let services = ServiceSelector::Name(name.to_owned());
            Ok(Peer::Services { namespace: namespace(fields.text("namespace")?), services })
        }
        (None, Some(services)) => {
            let fields = services.fields(&["selector", "namespace"])?;
            let services = ServiceSelector::Labels(selector::parse(&fields.require("selector")?)?);
            Ok(Peer::Services { namespace: namespace(fields.text("namespace")?), services })
        }
        _ => Err(node.invalid("needs one of `k8sService` and `k8sServiceSelector`")),
    }
}

/// An element of `toFQDNs`.
pub(super) fn name(node: &Node<'_>) -> Result<Peer, Fault> {
    let fields = node.fields(&["matchName", "matchPattern"])?;
    let given = |name| fields.get(name).filter(|node| node.text() != Ok(""));
    let (node, selector) = match (given("matchName"), given("matchPattern")) {
        (Some(node), None) => (node.text().map(NameSelector::name)?, node),
        (None, Some(node)) => (node.text().map(NameSelector::pattern)?, node),
        _ => return Err(node.invalid("needs one of `matchName` and `matchPattern`")),
    };
    let invalid = || {
        selector.invalid(
            "must be a name of DNS; `matchPattern` may have `*` in it, for any characters of a label",
        )
    };
    node.map(Peer::Name).ok_or_else(invalid)
}

fn namespace(text: Option<&str>) -> Option<String> {
    text.filter(|text| !text.is_empty()).map(str::to_owned)
}

fn net(node: &Node<'_>) -> Result<IpNet, Fault> {
    let invalid = || node.invalid("must be an address or a prefix, such as 10.0.0.0/8 or 2001:db8::/64");
    cidr::parse(node.text()?).ok_or_else(invalid)
}
