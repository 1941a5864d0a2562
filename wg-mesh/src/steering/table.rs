//! What routes and rules a [`Steering`] means: pure, and comparable with what the kernel has.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{BOOTSTRAP_PREFERENCE, End, Flow, PREFERENCE, Sources, Steering};

/// Local ranges win over everything of the same prefix.
const METRIC_LOCAL: u32 = 50;
const METRIC_TUNNEL: u32 = 100;
/// Behind every other.
const METRIC_GUARD: u32 = 65_535;
const MAIN: u32 = 254;

/// A route of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) table: u32,
    pub(super) net: IpNet,
    pub(super) metric: u32,
    pub(super) kind: Kind,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Into the tunnel.
    Tunnel { ifindex: u32, source: Option<IpAddr> },
    /// Refused.
    Unreachable,
    /// On to the next rule.
    Throw,
}

/// A rule of ours, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    pub(super) preference: u32,
    pub(super) is_v6: bool,
    pub(super) verdict: Verdict,
    /// The exception that it is for; always of this host's own sockets.
    pub(super) flow: Option<Flow>,
    /// How the exception knows this host's own: by this address of its, or as what it sends itself.
    pub(super) from: Option<IpAddr>,
}

/// Where a rule leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Table(u32),
    Unreachable,
}

impl Route {
    pub(super) const fn is_tunnel(&self) -> bool {
        matches!(self.kind, Kind::Tunnel { .. })
    }

    /// Whether the kernel would put this one in the other's place.
    pub(super) fn replaces(&self, other: &Self) -> bool {
        (self.table, self.net, self.metric) == (other.table, other.net, other.metric)
    }
}

/// All routes, guards first.
pub(super) fn routes(steering: &Steering) -> Vec<Route> {
    let table = steering.table;
    let guarded = steering.guarded.union(&steering.routes);
    let guards = guarded.map(|net| Route { table, net: *net, metric: METRIC_GUARD, kind: Kind::Unreachable });
    let local =
        steering.local.iter().map(|net| Route { table, net: *net, metric: METRIC_LOCAL, kind: Kind::Throw });
    let tunnel = steering.ifindex.into_iter().flat_map(|ifindex| {
        steering.routes.iter().map(move |net| {
            let kind = Kind::Tunnel { ifindex, source: steering.source(net) };
            Route { table, net: *net, metric: METRIC_TUNNEL, kind }
        })
    });
    guards.chain(local).chain(tunnel).collect()
}

/// All rules, in the order of their preferences. An exception that finds no way in the main table ends
/// there: going on, our own encrypted packets would be routed into the tunnel that they come from.
///
/// Each exception stands once more by our own address: for the reverse-path filter the kernel asks where
/// an answer to a packet would go, and only a rule that is not bound to an interface has it look at the
/// packet's ports for that.
pub(super) fn rules(steering: &Steering) -> Vec<Rule> {
    let mut rules = Vec::new();
    for is_v6 in [false, true] {
        for (flow, preference) in steering.bootstrap.iter().zip((BOOTSTRAP_PREFERENCE..).step_by(2)) {
            let rule =
                Rule { preference, is_v6, verdict: Verdict::Table(MAIN), flow: Some(*flow), from: None };
            rules.push(Rule { from: steering.sources.of(is_v6), ..rule });
            rules.push(rule);
            rules.push(Rule { preference: preference + 1, verdict: Verdict::Unreachable, ..rule });
        }
        let verdict = Verdict::Table(steering.table);
        rules.push(Rule { preference: PREFERENCE, is_v6, verdict, flow: None, from: None });
    }
    rules.sort();
    rules.dedup();
    rules
}

impl Sources {
    fn of(self, is_v6: bool) -> Option<IpAddr> {
        if is_v6 { self.v6.map(IpAddr::V6) } else { self.v4.map(IpAddr::V4) }
    }
}

impl Flow {
    /// Source and destination port, as a rule matches them.
    pub(super) const fn ports(self) -> (Option<u16>, Option<u16>) {
        match self.end {
            End::Local => (Some(self.port), None),
            End::Remote => (None, Some(self.port)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steering::DEFAULT_TABLE;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn steering() -> Steering {
        Steering {
            table: DEFAULT_TABLE,
            ifindex: Some(7),
            routes: [net("10.244.2.0/24"), net("fd00:2::/64")].into(),
            sources: Sources { v4: Some([192, 0, 2, 1].into()), v6: None },
            local: [net("10.244.1.0/24")].into(),
            guarded: [net("10.244.0.0/16")].into(),
            bootstrap: Flow::wireguard(51_871).into_iter().chain(Flow::tcp(4250)).collect(),
        }
    }

    #[test]
    fn every_tunnel_route_has_an_unreachable_twin_behind_it() {
        let routes = routes(&steering());
        let tunnels: Vec<_> = routes.iter().filter(|route| route.is_tunnel()).collect();
        assert_eq!(tunnels.len(), 2);
        for tunnel in tunnels {
            assert!(routes.iter().any(|route| {
                route.net == tunnel.net && route.kind == Kind::Unreachable && route.metric > tunnel.metric
            }));
        }
    }

    #[test]
    fn without_an_interface_nothing_is_routed_but_all_is_guarded() {
        let routes = routes(&Steering { ifindex: None, ..steering() });
        assert!(routes.iter().all(|route| !route.is_tunnel()));
        assert!(routes.iter().any(|route| route.net == net("10.244.2.0/24")));
    }

    #[test]
    fn local_ranges_go_on_to_the_main_table_even_where_guarded() {
        let mut steering = steering();
        steering.guarded = steering.local.clone();
        let routes = routes(&steering);
        let same: Vec<_> = routes.iter().filter(|route| route.net == net("10.244.1.0/24")).collect();
        assert_eq!(same.iter().min_by_key(|route| route.metric).unwrap().kind, Kind::Throw);
    }

    #[test]
    fn sources_are_of_the_family_of_the_route() {
        let sources: Vec<_> = routes(&steering())
            .iter()
            .filter_map(|route| match route.kind {
                Kind::Tunnel { source, .. } => Some((route.net.addr().is_ipv4(), source)),
                Kind::Unreachable | Kind::Throw => None,
            })
            .collect();
        assert_eq!(sources, [(true, Some(IpAddr::from([192, 0, 2, 1]))), (false, None)]);
    }

    #[test]
    fn an_exception_never_falls_through_into_the_tunnel() {
        let rules = rules(&steering());
        for family in [false, true] {
            let mine: Vec<_> =
                rules.iter().filter(|rule| rule.is_v6 == family && rule.from.is_none()).collect();
            assert_eq!(mine.len(), 3 * 2 + 1);
            for pair in mine.chunks(2).take(3) {
                assert_eq!(pair[0].verdict, Verdict::Table(MAIN));
                assert_eq!(pair[1].verdict, Verdict::Unreachable);
                assert_eq!(pair[0].flow, pair[1].flow);
            }
            assert_eq!(mine.last().unwrap().verdict, Verdict::Table(DEFAULT_TABLE));
        }
    }

    #[test]
    fn the_reverse_path_filter_finds_each_exception_by_our_own_address() {
        let by_address: Vec<_> = rules(&steering()).into_iter().filter(|rule| rule.from.is_some()).collect();
        assert_eq!(by_address.len(), 3);
        for rule in by_address {
            assert_eq!((rule.is_v6, rule.verdict), (false, Verdict::Table(MAIN)));
            assert_eq!(rule.from, Some(IpAddr::from([192, 0, 2, 1])));
        }
    }
}
