//! What the kernel says of this node's interfaces, read by netlink in the daemon's network namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        address::AddressAttribute,
        link::LinkAttribute,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage},
    },
};

/// Interfaces, addresses and host routes at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Name by index.
    pub names: BTreeMap<u32, String>,
    /// This node's own addresses, with the index of the interface that carries each.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// Routes of the main table to one address, with the index of the interface that they lead to: with
    /// routed CNIs, the host end of the pod's veth pair.
    pub host_routes: BTreeMap<IpAddr, u32>,
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

    /// Names of the interfaces that carry one of `addresses`.
    #[must_use]
    pub fn carrying(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<String> {
        let indices = self.addresses.iter().filter(|(address, _)| addresses.contains(address));
        indices.filter_map(|(_, index)| self.names.get(index).cloned()).collect()
    }

    async fn read_links(&mut self, handle: &Handle) -> Result<(), rtnetlink::Error> {
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            for attribute in link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    self.names.insert(link.header.index, name);
                }
            }
        }
        Ok(())
    }

    async fn read_addresses(&mut self, handle: &Handle) -> Result<(), rtnetlink::Error> {
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
