//! What the kernel says of this node's interfaces, read by netlink in the daemon's network namespace.
#![expect(clippy::wildcard_enum_match_arm, reason = "netlink's enumerations grow; we read a few of each")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        address::AddressAttribute,
        link::{LinkAttribute, LinkInfo},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
    },
};

/// What a device is, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its kind: `veth`, `bridge`, `macvlan`, …; empty for hardware.
    pub kind: String,
    /// The other end of a pair, or what it is stacked upon, maybe in another network namespace.
    pub peer: Option<u32>,
    /// What it is a port of.
    pub master: Option<u32>,
    /// Its MTU.
    pub mtu: u32,
}

/// Interfaces, addresses and host routes at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Name by index.
    pub names: BTreeMap<u32, String>,
    /// What each is, by index.
    pub links: BTreeMap<u32, Link>,
    /// This node's own addresses, with the index of the interface that carries each.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// Routes of the main table to one address, with the index of the interface that they lead to: with
    /// routed CNIs, the host end of the pod's veth pair.
    pub host_routes: BTreeMap<IpAddr, u32>,
    /// Interfaces in other network namespaces by the addresses that they carry, as far as pods here are not
    /// found by a host route.
    pub sandboxes: BTreeMap<IpAddr, Vec<PodLink>>,
}

/// An interface in another network namespace of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodLink {
    /// The network namespace, by its inode.
    pub namespace: u64,
    /// Its name there.
    pub name: String,
    /// Its index there.
    pub ifindex: u32,
    /// What it is.
    pub link: Link,
}

/// Why the kernel's state could not be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read this node's {what} by netlink: {source}")]
pub struct InterfacesError {
    what: &'static str,
    source: rtnetlink::Error,
}

impl Interfaces {
    /// Reads the present state.
    ///
    /// # Errors
    /// A netlink request fails.
    pub async fn read(handle: &Handle) -> Result<Self, InterfacesError> {
        let failed = |what| move |source| InterfacesError { what, source };
        let mut found = Self::default();
        found.read_links(handle).await.map_err(failed("links"))?;
        found.read_addresses(handle).await.map_err(failed("addresses"))?;
        found.read_routes(handle).await.map_err(failed("routes"))?;
        Ok(found)
    }

    /// The index of the interface with this name.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<u32> {
        self.names.iter().find_map(|(index, known)| (known == name).then_some(*index))
    }

    /// The bridge that an interface is a port of.
    #[must_use]
    pub fn bridge_of(&self, index: u32) -> Option<u32> {
        let master = self.links.get(&index)?.master?;
        (self.links.get(&master)?.kind == "bridge").then_some(master)
    }

    /// The MTU of a pod's interface that the host itself would send out by what is for this address, and that is no
    /// port of anything.
    #[must_use]
    pub fn direct_mtu(&self, index: u32, address: IpAddr) -> Option<u32> {
        let link = self.links.get(&index)?;
        let routed = self.host_routes.get(&address) == Some(&index) && link.master.is_none();
        (routed && link.kind == "veth").then_some(link.mtu)
    }

    /// The ports of a bridge, with their names.
    pub fn ports(&self, bridge: u32) -> impl Iterator<Item = (u32, &String)> {
        let ports = self.links.iter().filter(move |(_, link)| link.master == Some(bridge));
        ports.filter_map(|(index, _)| Some((*index, self.names.get(index)?)))
    }

    /// Names of the interfaces that carry one of `addresses`.
    #[must_use]
    pub fn carrying(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<String> {
        let indices = self.addresses.iter().filter(|(address, _)| addresses.contains(address));
        indices.filter_map(|(_, index)| self.names.get(index).cloned()).collect()
    }

    pub(super) async fn read_links(&mut self, handle: &Handle) -> Result<(), rtnetlink::Error> {
        let mut links = handle.link().get().execute();
        while let Some(message) = links.try_next().await? {
            let index = message.header.index;
            let mut link = Link::default();
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => {
                        self.names.insert(index, name);
                    }
                    LinkAttribute::Link(peer) => link.peer = Some(peer),
                    LinkAttribute::Controller(master) => link.master = Some(master),
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                    LinkAttribute::LinkInfo(infos) => link.kind = kind(&infos),
                    _ => {}
                }
            }
            self.links.insert(index, link);
        }
        Ok(())
    }

    pub(super) async fn read_addresses(&mut self, handle: &Handle) -> Result<(), rtnetlink::Error> {
        let mut addresses = handle.address().get().execute();
        while let Some(message) = addresses.try_next().await? {
            // IFA_LOCAL is this end; where there is a peer, IFA_ADDRESS is the other.
            let (mut local, mut address) = (None, None);
            for attribute in message.attributes {
                if let AddressAttribute::Local(ip) = attribute {
                    local = Some(ip);
                } else if let AddressAttribute::Address(ip) = attribute {
                    address = Some(ip);
                }
            }
            if let Some(ip) = local.or(address) {
                self.addresses.insert(ip, message.header.index);
            }
        }
        Ok(())
    }

    async fn read_routes(&mut self, handle: &Handle) -> Result<(), rtnetlink::Error> {
        for request in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let mut routes = handle.route().get(request).execute();
            while let Some(route) = routes.try_next().await? {
                if let Some((address, index)) = host_route(&route) {
                    self.host_routes.insert(address, index);
                }
            }
        }
        Ok(())
    }
}

fn kind(infos: &[LinkInfo]) -> String {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    });
    kind.unwrap_or_default()
}

/// The address and interface of a route of the main table to one address.
fn host_route(route: &RouteMessage) -> Option<(IpAddr, u32)> {
    let mut destination = None;
    let mut interface = None;
    let mut table = u32::from(route.header.table);
    for attribute in &route.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            destination = to_ip(address);
        } else if let RouteAttribute::Oif(index) = attribute {
            interface = Some(*index);
        } else if let RouteAttribute::Table(number) = attribute {
            table = *number;
        }
    }
    let (destination, interface) = (destination?, interface?);
    let whole = if destination.is_ipv4() { 32 } else { 128 };
    let main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    (main && route.header.destination_prefix_length == whole).then_some((destination, interface))
}

fn to_ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some((*v4).into())
    } else if let RouteAddress::Inet6(v6) = address {
        Some((*v6).into())
    } else {
        None
    }
}
