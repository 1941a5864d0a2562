//! Routes and rules that send traffic for the mesh into the tunnel, by destination and without marks.
//!
//! A rule ahead of the main table leads to a table of our own, which holds what belongs to peers, each
//! route with an `unreachable` twin behind it, so that a tunnel which is missing never means the main
//! table and the clear. Flows without which no tunnel comes about are excepted, for this host's own sockets
//! only. What is ours carries [`PROTOCOL`], and nothing else is ever changed or removed.

mod netlink;
mod table;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use self::netlink::Netlink;

/// The table where nothing else is asked for; also the number of the handshake port, to be recognised.
pub const DEFAULT_TABLE: u32 = 4250;
/// The routing protocol number by which our routes and rules are known (`ip route show proto 97`).
pub const PROTOCOL: u8 = 97;
/// Preference of the rule that leads into the table.
pub const PREFERENCE: u32 = 100;
/// Preference of the first exception; each takes two.
pub const BOOTSTRAP_PREFERENCE: u32 = 80;
/// As many exceptions as there is room for below [`PREFERENCE`].
pub const MAX_BOOTSTRAP: usize = ((PREFERENCE - BOOTSTRAP_PREFERENCE) / 2) as usize;
/// Bytes that WireGuard, UDP and IPv6 put round a packet.
const ENCAPSULATION: u32 = 80;

/// What is to go into the tunnel, and what never.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steering {
    /// Number of the table.
    pub table: u32,
    /// The tunnel's interface. Without one everything for peers is unreachable.
    pub ifindex: Option<u32>,
    /// What belongs to peers: their pod ranges and their addresses.
    pub routes: BTreeSet<IpNet>,
    /// Source addresses that this host uses towards them.
    pub sources: Sources,
    /// What is on this node although a wider range says otherwise: its own pod ranges.
    pub local: BTreeSet<IpNet>,
    /// Ranges in which nothing may ever leave in the clear: the cluster's.
    pub guarded: BTreeSet<IpNet>,
    /// Flows that stay in the main table.
    pub bootstrap: Vec<Flow>,
}

/// Preferred source addresses. They must be this host's; an IPv6 one that still looks for duplicates of
/// itself is refused until it is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sources {
    /// For IPv4.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// Transport of a [`Flow`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Whose port is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The port is bound here.
    Local,
    /// The port is the other side's.
    Remote,
}

/// Traffic of this host's own sockets, named by one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The transport.
    pub transport: Transport,
    /// At which end the port is.
    pub end: End,
    /// The port.
    pub port: u16,
}

impl Flow {
    /// Encrypted packets themselves: whatever leaves from WireGuard's port.
    #[must_use]
    pub const fn wireguard(listen_port: u16) -> [Self; 1] {
        [Self { transport: Transport::Udp, end: End::Local, port: listen_port }]
    }

    /// A TCP service that every node both offers and uses, as the handshakes are.
    #[must_use]
    pub const fn tcp(port: u16) -> [Self; 2] {
        let transport = Transport::Tcp;
        [Self { transport, end: End::Remote, port }, Self { transport, end: End::Local, port }]
    }
}

/// What an `apply` or `clear` had to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    /// Routes and rules added or replaced.
    pub added: usize,
    /// Routes and rules removed.
    pub removed: usize,
}

/// Why traffic cannot be steered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused.
    #[error("{action} {object}: {problem}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// With what.
        object: String,
        /// What the kernel says.
        problem: String,
    },
    /// More exceptions than preferences are kept for.
    #[error("{0} bootstrap flows, but there is room for {MAX_BOOTSTRAP}")]
    TooManyFlows(usize),
    /// A table that other parts of the system use.
    #[error("table {0} is one of the system's; choose another")]
    Table(u32),
}

impl Steering {
    /// Makes routes and rules of both families what this says, in the network namespace of the thread that
    /// first polls it. Adds before it removes; idempotent. An interface that is down is brought up.
    ///
    /// When only the tunnel's own routes fail, everything else is in place before the error is returned:
    /// then what is meant for peers is unreachable rather than in the clear.
    ///
    /// # Errors
    /// Names the object that the kernel refused.
    pub async fn apply(&self) -> Result<Changed, Error> {
        if self.bootstrap.len() > MAX_BOOTSTRAP {
            return Err(Error::TooManyFlows(self.bootstrap.len()));
        }
        if self.table == 0 || (253..=255).contains(&self.table) {
            return Err(Error::Table(self.table));
        }
        netlink::with(|netlink| async move { self.apply_with(&netlink).await }).await
    }

    async fn apply_with(&self, netlink: &Netlink) -> Result<Changed, Error> {
        let routes = table::routes(self);
        let rules: Vec<_> = table::rules(self).into_iter().filter(|rule| has_v6() || !rule.is_v6).collect();
        let (present_routes, present_rules) = (netlink.routes().await?, netlink.rules().await?);
        let mut changed = Changed::default();
        let missing = routes.iter().filter(|route| !present_routes.contains(route));
        let (tunnel, guards): (Vec<_>, Vec<_>) = missing.partition(|route| route.is_tunnel());
        for route in guards {
            netlink.add_route(route).await?;
            changed.added += 1;
        }
        let tunnelled = self.add_tunnel_routes(netlink, &tunnel).await;
        for rule in rules.iter().filter(|rule| !present_rules.iter().any(|(present, _)| present == *rule)) {
            netlink.add_rule(rule).await?;
            changed.added += 1;
        }
        // The way into the table goes before the exceptions from it.
        for (rule, message) in present_rules.iter().rev().filter(|(rule, _)| !rules.contains(rule)) {
            netlink.remove_rule(rule, message).await?;
            changed.removed += 1;
        }
        for route in
            present_routes.iter().filter(|present| !routes.iter().any(|route| route.replaces(present)))
        {
            netlink.remove_route(route).await?;
            changed.removed += 1;
        }
        changed.added += tunnelled?;
        if changed != Changed::default() {
            tracing::info!(
                added = changed.added,
                removed = changed.removed,
                table = self.table,
                "steering changed"
            );
        }
        Ok(changed)
    }

    async fn add_tunnel_routes(&self, netlink: &Netlink, routes: &[&table::Route]) -> Result<usize, Error> {
        if let Some(ifindex) = self.ifindex {
            netlink.bring_up(ifindex).await?;
        }
        for route in routes {
            netlink.add_route(route).await?;
        }
        Ok(routes.len())
    }

    const fn source(&self, net: &IpNet) -> Option<IpAddr> {
        match (net, self.sources) {
            (IpNet::V4(_), Sources { v4: Some(v4), .. }) => Some(IpAddr::V4(v4)),
            (IpNet::V6(_), Sources { v6: Some(v6), .. }) => Some(IpAddr::V6(v6)),
            _ => None,
        }
    }
}

/// Removes every route and rule of ours, whatever table they are in: the way out.
///
/// # Errors
/// Names the object that the kernel would not remove.
pub async fn clear() -> Result<Changed, Error> {
    netlink::with(|netlink| async move {
        let mut changed = Changed::default();
        for (rule, message) in netlink.rules().await?.iter().rev() {
            netlink.remove_rule(rule, message).await?;
            changed.removed += 1;
        }
        for route in netlink.routes().await? {
            netlink.remove_route(&route).await?;
            changed.removed += 1;
        }
        Ok(changed)
    })
    .await
}

/// The MTU for a tunnel over these interfaces: the least of theirs less what encapsulation takes, but not
/// less than IPv6 needs.
///
/// # Errors
/// When an interface is not there.
pub async fn tunnel_mtu(underlay: &[u32]) -> Result<u16, Error> {
    netlink::with(|netlink| async move {
        let mut least = u32::from(crate::DEFAULT_MTU) + ENCAPSULATION;
        for (position, ifindex) in underlay.iter().enumerate() {
            let mtu = netlink.mtu(*ifindex).await?;
            least = if position == 0 { mtu } else { least.min(mtu) };
        }
        Ok(u16::try_from(least.saturating_sub(ENCAPSULATION)).unwrap_or(u16::MAX).clamp(1280, 65_424))
    })
    .await
}

/// A kernel without IPv6 has no rules for it, and nothing that they could miss.
fn has_v6() -> bool {
    std::fs::exists("/proc/thread-self/net/if_inet6").unwrap_or(true)
}

/// Removes an interface.
pub(crate) async fn remove_link(ifindex: u32) -> Result<(), Error> {
    netlink::with(|netlink| async move { netlink.remove_link(ifindex).await }).await
}
