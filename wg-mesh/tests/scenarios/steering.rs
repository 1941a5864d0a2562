//! Routes and rules as `ip` shows them, and where packets would go.

use std::process::{Command, Stdio};

use wg_mesh::steering::{self, Changed, Steering};

use crate::{
    namespace::start,
    node::{Node, pair},
};

fn count(node: &Node, words: &str) -> usize {
    node.namespace.ip(words).lines().filter(|line| !line.is_empty()).count()
}

fn route_to(node: &Node, words: &str) -> String {
    let (namespace, words) = (node.namespace.clone(), words.to_owned());
    namespace.run(move || {
        let mut command = Command::new("ip");
        command.args(["route", "get"]).args(words.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = start(&mut command).wait_with_output().expect("run ip");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    })
}

/// For IPv4 the kernel says so in an error, for IPv6 in the route.
fn is_refused(node: &Node, address: &str) -> bool {
    let route = route_to(node, address);
    route.contains("No route to host") || route.starts_with("unreachable")
}

fn interface(node: &Node) -> u32 {
    node.namespace.ip("tuntap add authd0 mode tun");
    node.namespace.run(|| nix::net::if_::if_nametoindex("authd0")).expect("authd0")
}

#[test]
fn what_is_for_peers_goes_into_the_tunnel_and_nothing_else() {
    let Some((left, right)) = pair("what_is_for_peers_goes_into_the_tunnel_and_nothing_else") else { return };
    let steering = left.steering(&right, Some(interface(&left)));
    left.namespace.ip("route add 10.244.1.77/32 dev under0");
    let changed = left.steer(&steering);
    assert_eq!(changed.removed, 0);
    assert_eq!(left.steer(&steering), Changed::default(), "the second time there is nothing to do");
    assert!(route_to(&left, "10.244.2.9").contains("dev authd0 table 4250 src 10.244.1.1"));
    assert!(route_to(&left, "192.0.2.2").contains("dev authd0"));
    assert!(route_to(&left, "fd00:2::9").contains("dev authd0"));
    // Local pods are found in the main table, other nodes' strangers nowhere.
    assert!(route_to(&left, "10.244.1.77").contains("dev under0"));
    assert!(is_refused(&left, "10.244.77.1"));
    assert!(route_to(&left, "192.0.2.3").contains("dev under0"));
    // Bootstrap flows of this host, and no one else's.
    assert!(route_to(&left, "192.0.2.2 ipproto udp sport 51871 dport 9").contains("dev under0"));
    assert!(route_to(&left, "192.0.2.2 ipproto udp sport 9 dport 51871").contains("dev authd0"));
    assert!(route_to(&left, "192.0.2.2 ipproto tcp dport 4250").contains("dev under0"));
    assert!(route_to(&left, "192.0.2.2 ipproto tcp sport 4250").contains("dev under0"));
    assert!(route_to(&left, "2001:db8::2 ipproto tcp dport 4250").contains("dev under0"));
    left.namespace.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("forward");
    let forwarded = route_to(&left, "192.0.2.2 from 10.244.1.77 iif under0 ipproto tcp dport 4250");
    assert!(forwarded.contains("dev authd0"), "{forwarded}");
}

#[test]
fn without_its_interface_the_mesh_is_unreachable() {
    let Some((left, right)) = pair("without_its_interface_the_mesh_is_unreachable") else { return };
    let steering = left.steering(&right, Some(interface(&left)));
    left.steer(&steering);
    left.namespace.ip("link del authd0");
    for address in ["10.244.2.9", "192.0.2.2", "fd00:2::9", "2001:db8::2"] {
        assert!(is_refused(&left, address), "{address}");
    }
    // It is there again under another index: only the tunnel's own routes are missing.
    let again = left.steering(&right, Some(interface(&left)));
    assert_eq!(left.steer(&again), Changed { added: 4, removed: 0 });
    assert!(route_to(&left, "10.244.2.9").contains("dev authd0"));
    let gone = Steering { ifindex: Some(9999), ..left.steering(&right, None) };
    let error =
        left.namespace.block_on(move || async move { gone.apply().await }).expect_err("no such interface");
    assert!(error.to_string().contains("interface 9999"), "{error}");
    // What was there before stays: into the old tunnel, not into the clear.
    assert!(route_to(&left, "10.244.2.9").contains("dev authd0"));
}

#[test]
fn what_is_no_longer_wanted_goes_and_what_is_not_ours_stays() {
    let Some((left, right)) = pair("what_is_no_longer_wanted_goes_and_what_is_not_ours_stays") else {
        return;
    };
    left.namespace.ip("route add 10.244.2.50/32 dev lo table 4250");
    left.namespace.ip("rule add pref 95 to 203.0.113.0/24 lookup main");
    let rules = (count(&left, "rule"), count(&left, "-6 rule"));
    let mut steering = left.steering(&right, Some(interface(&left)));
    left.steer(&steering);
    steering.routes = [("10.244.2.0/24").parse().expect("prefix")].into();
    steering.sources.v4 = Some([192, 0, 2, 1].into());
    let changed = left.steer(&steering);
    // Three prefixes with their twins go; the fourth route is replaced in its place. The three exceptions
    // by our own address have another address.
    assert_eq!(changed, Changed { added: 4, removed: 9 });
    assert!(route_to(&left, "10.244.2.9").contains("src 192.0.2.1"));
    steering.bootstrap.clear();
    // Three exceptions in two families: as what we send, its end, and by our own address.
    assert_eq!(left.steer(&steering).removed, 18);
    steering.table = 4300;
    left.steer(&steering);
    assert_eq!(count(&left, "route show table 4250"), 1);
    left.namespace.ip("link del authd0");
    let cleared = left.namespace.block_on(|| async { steering::clear().await }).expect("clear");
    assert!(cleared.removed > 0);
    assert_eq!((count(&left, "rule"), count(&left, "-6 rule")), rules);
    for family in ["-4", "-6"] {
        assert_eq!(count(&left, &format!("{family} route show table all proto 97")), 0);
    }
    assert_eq!(count(&left, "route show table 4250"), 1);
    let cleared = left.namespace.block_on(|| async { steering::clear().await }).expect("clear");
    assert_eq!(cleared, Changed::default());
}

#[test]
fn the_mtu_is_the_least_of_the_underlay_less_headers() {
    let Some((left, _right)) = pair("the_mtu_is_the_least_of_the_underlay_less_headers") else { return };
    left.namespace.ip("tuntap add jumbo mode tun");
    left.namespace.ip("link set jumbo mtu 9000");
    let mtu = |names: &'static [&'static str]| {
        left.namespace.block_on(move || async move {
            let indexes: Vec<u32> =
                names.iter().map(|name| nix::net::if_::if_nametoindex(*name).expect("interface")).collect();
            steering::tunnel_mtu(&indexes).await.expect("mtu")
        })
    };
    assert_eq!(mtu(&["under0", "jumbo"]), 1420);
    assert_eq!(mtu(&["jumbo"]), 8920);
    assert_eq!(mtu(&[]), 1420);
}
