//! Routes, rules and links by rtnetlink. Only what carries our protocol number is read back.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "netlink's enumerations are long and grow; we read a few of each"
)]

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use nix::libc::{EEXIST, ESRCH};
use rtnetlink::{
    Handle, IpVersion, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily, IpProtocol,
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
    },
};

use super::{
    Error, Flow, PROTOCOL, Transport,
    table::{Kind, Route, Rule, Verdict},
};

const OURS: RouteProtocol = RouteProtocol::Other(PROTOCOL);
const LOOPBACK: &str = "lo";

/// A netlink socket of the network namespace in which [`with`] was polled first.
pub(super) struct Netlink(Handle);

/// Runs `work` beside the socket that it uses.
pub(super) async fn with<T, W, F>(work: W) -> Result<T, Error>
where
    W: FnOnce(Netlink) -> F,
    F: Future<Output = Result<T, Error>>,
{
    let (connection, handle, _messages) = rtnetlink::new_connection()?;
    tokio::select! {
        result = work(Netlink(handle)) => result,
        () = connection => Err(Error::Socket(std::io::ErrorKind::BrokenPipe.into())),
    }
}

fn refused<O: ToString + ?Sized>(action: &'static str, object: &O, error: &rtnetlink::Error) -> Error {
    let problem = match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io().to_string(),
        other => other.to_string(),
    };
    Error::Refused { action, object: object.to_string(), problem }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(error) => Some(-error.raw_code()),
        _ => None,
    }
}

impl Netlink {
    pub(super) async fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        let (v4, v6) = (RouteMessageBuilder::<Ipv4Addr>::new(), RouteMessageBuilder::<Ipv6Addr>::new());
        for request in [v4.build(), v6.build()] {
            let dump = self.0.route().get(request).execute().try_collect::<Vec<_>>().await;
            let dump = dump.map_err(|error| refused("list", "routes", &error))?;
            routes
                .extend(dump.iter().filter(|message| message.header.protocol == OURS).filter_map(read_route));
        }
        Ok(routes)
    }

    /// Adds a route, in place of one with the same prefix and metric.
    pub(super) async fn add_route(&self, route: &Route) -> Result<(), Error> {
        let added = self.0.route().add(write_route(route)).replace().execute().await;
        added.map_err(|error| refused("add route", route, &error))
    }

    pub(super) async fn remove_route(&self, route: &Route) -> Result<(), Error> {
        match self.0.route().del(write_route(route)).execute().await {
            // The kernel has removed it together with its interface or its source address.
            Err(error) if errno(&error) == Some(ESRCH) => Ok(()),
            other => other.map_err(|error| refused("remove route", route, &error)),
        }
    }

    /// Our rules by preference, each with the message that names it to the kernel.
    pub(super) async fn rules(&self) -> Result<Vec<(Rule, RuleMessage)>, Error> {
        let mut rules = Vec::new();
        let versions = if super::has_v6() { vec![IpVersion::V4, IpVersion::V6] } else { vec![IpVersion::V4] };
        for version in versions {
            let dump = self.0.rule().get(version).execute().try_collect::<Vec<_>>().await;
            let dump = dump.map_err(|error| refused("list", "rules", &error))?;
            rules.extend(dump.into_iter().filter(is_ours).map(|message| (read_rule(&message), message)));
        }
        rules.sort_by_key(|(rule, _)| *rule);
        Ok(rules)
    }

    pub(super) async fn add_rule(&self, rule: &Rule) -> Result<(), Error> {
        let mut request = self.0.rule().add();
        *request.message_mut() = write_rule(rule);
        match request.execute().await {
            Err(error) if errno(&error) == Some(EEXIST) => Ok(()),
            other => other.map_err(|error| refused("add rule", rule, &error)),
        }
    }

    pub(super) async fn remove_rule(&self, rule: &Rule, message: &RuleMessage) -> Result<(), Error> {
        let removed = self.0.rule().del(message.clone()).execute().await;
        removed.map_err(|error| refused("remove rule", rule, &error))
    }

    /// Brings an interface up if it is down. The tunnel has no addresses of its own, and without a
    /// link-local one the kernel has nothing to say by itself that no peer could hear.
    pub(super) async fn bring_up(&self, ifindex: u32) -> Result<(), Error> {
        if self.link(ifindex).await?.header.flags.contains(LinkFlags::Up) {
            return Ok(());
        }
        let quiet =
            LinkUnspec::new_with_index(ifindex).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![
                AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]),
            ]));
        if let Err(error) = self.0.link().set(quiet.build()).execute().await {
            tracing::debug!(ifindex, %error, "interface keeps its link-local address");
        }
        let up = self.0.link().set(LinkUnspec::new_with_index(ifindex).up().build()).execute().await;
        up.map_err(|error| refused("bring up", &format!("interface {ifindex}"), &error))
    }

    pub(super) async fn mtu(&self, ifindex: u32) -> Result<u32, Error> {
        let link = self.link(ifindex).await?;
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        mtu.ok_or_else(|| Error::Refused {
            action: "read MTU of",
            object: format!("interface {ifindex}"),
            problem: "the kernel does not tell it".into(),
        })
    }

    pub(super) async fn remove_link(&self, ifindex: u32) -> Result<(), Error> {
        let removed = self.0.link().del(ifindex).execute().await;
        removed.map_err(|error| refused("remove", &format!("interface {ifindex}"), &error))
    }

    async fn link(&self, ifindex: u32) -> Result<LinkMessage, Error> {
        let found = self.0.link().get().match_index(ifindex).execute().try_next().await;
        let found = found.map_err(|error| refused("find", &format!("interface {ifindex}"), &error))?;
        found.ok_or_else(|| Error::Refused {
            action: "find",
            object: format!("interface {ifindex}"),
            problem: "there is none".into(),
        })
    }
}

fn write_route(route: &Route) -> RouteMessage {
    let length = route.net.prefix_len();
    let mut message = match route.net.network() {
        IpAddr::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net, length).build(),
        IpAddr::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net, length).build(),
    };
    message.header.protocol = OURS;
    message.header.table = 0;
    message.attributes.extend([RouteAttribute::Table(route.table), RouteAttribute::Priority(route.metric)]);
    message.header.kind = match route.kind {
        Kind::Tunnel { ifindex, source } => {
            message.attributes.push(RouteAttribute::Oif(ifindex));
            message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
            RouteType::Unicast
        }
        Kind::Unreachable => RouteType::Unreachable,
        Kind::Throw => RouteType::Throw,
    };
    message
}

/// Nothing if it is of a kind that we never make.
fn read_route(message: &RouteMessage) -> Option<Route> {
    let (mut destination, mut table, mut metric, mut ifindex, mut source) = (None, None, 0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Table(number) => table = Some(*number),
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    let destination = destination.unwrap_or(match message.header.address_family {
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    });
    let kind = match message.header.kind {
        RouteType::Unicast => Kind::Tunnel { ifindex: ifindex?, source },
        RouteType::Unreachable => Kind::Unreachable,
        RouteType::Throw => Kind::Throw,
        _ => return None,
    };
    let net = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { table: table.unwrap_or(message.header.table.into()), net, metric, kind })
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn write_rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.attributes = vec![RuleAttribute::Priority(rule.preference), RuleAttribute::Protocol(OURS)];
    message.header.action = match rule.verdict {
        Verdict::Table(table) => {
            message.attributes.push(RuleAttribute::Table(table));
            RuleAction::ToTable
        }
        Verdict::Unreachable => RuleAction::Unreachable,
    };
    if let Some(flow) = rule.flow {
        let (source, destination) = flow.ports();
        let port = |port| RulePortRange { start: port, end: port };
        // Only this host's own; a pod that uses the same port is forwarded, from another address.
        if let Some(address) = rule.from {
            message.header.src_len = if rule.is_v6 { 128 } else { 32 };
            message.attributes.push(RuleAttribute::Source(address));
        } else {
            message.attributes.push(RuleAttribute::Iifname(LOOPBACK.into()));
        }
        message.attributes.push(RuleAttribute::IpProtocol(match flow.transport {
            Transport::Tcp => IpProtocol::Tcp,
            Transport::Udp => IpProtocol::Udp,
        }));
        message.attributes.extend(source.map(|source| RuleAttribute::SourcePortRange(port(source))));
        message
            .attributes
            .extend(destination.map(|number| RuleAttribute::DestinationPortRange(port(number))));
    }
    message
}

fn is_ours(message: &RuleMessage) -> bool {
    message.attributes.contains(&RuleAttribute::Protocol(OURS))
}

fn read_rule(message: &RuleMessage) -> Rule {
    let (mut preference, mut table, mut transport, mut flow, mut from) =
        (0, u32::from(message.header.table), None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => preference = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Source(address) => from = Some(*address),
            RuleAttribute::IpProtocol(IpProtocol::Tcp) => transport = Some(Transport::Tcp),
            RuleAttribute::IpProtocol(IpProtocol::Udp) => transport = Some(Transport::Udp),
            RuleAttribute::SourcePortRange(range) => flow = Some((super::End::Local, range.start)),
            RuleAttribute::DestinationPortRange(range) => flow = Some((super::End::Remote, range.start)),
            _ => {}
        }
    }
    let flow = transport.zip(flow).map(|(transport, (end, port))| Flow { transport, end, port });
    let verdict = match message.header.action {
        RuleAction::ToTable => Verdict::Table(table),
        _ => Verdict::Unreachable,
    };
    Rule { preference, is_v6: message.header.family == AddressFamily::Inet6, verdict, flow, from }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            Kind::Tunnel { ifindex, source: Some(source) } => {
                write!(f, "{} by interface {ifindex} from {source}", self.net)?;
            }
            Kind::Tunnel { ifindex, source: None } => write!(f, "{} by interface {ifindex}", self.net)?,
            Kind::Unreachable => write!(f, "unreachable {}", self.net)?,
            Kind::Throw => write!(f, "throw {}", self.net)?,
        }
        write!(f, " in table {}", self.table)
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of preference {}", if self.is_v6 { "IPv6" } else { "IPv4" }, self.preference)
    }
}
