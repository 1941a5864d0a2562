//! How nodes and pods are joined: as a plain point-to-point CNI with host routes does it, and quiet.
//!
//! All neighbours are static and IPv6 neither probes nor reports, so that a frame on the underlay is one
//! that somebody meant to send. Without authd everything is reachable in the clear.

use std::net::IpAddr;

use anyhow::Result;

use super::node::{Cidr, Family, Node, Pod};
use super::{BRIDGE, Namespace};

/// The uplink of a node.
const UPLINK: &str = "eth0";
/// The gateways that pods have. Nobody owns them: the neighbour entry makes them the veth's host end.
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
/// The link-layer address of every veth's host end.
const HOST_END: &str = "02:ff:ff:ff:ff:ff";

/// IPv6 as quiet as it gets. Set before interfaces come, which take it over.
const QUIET: &[(&str, &str)] = &[
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    // Reports of group membership go out at once, not within the next seconds.
    ("ipv6/conf/default/mldv2_unsolicited_report_interval", "1"),
];

/// What a node's kernel is told: quiet, and forwarding.
pub(super) fn node_settings(rp_filter: u8) -> Vec<(&'static str, &'static str)> {
    let rp_filter = match rp_filter {
        0 => "0",
        1 => "1",
        _ => "2",
    };
    let mut settings = QUIET.to_vec();
    settings.extend([
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", rp_filter),
        ("ipv4/conf/default/rp_filter", rp_filter),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv6/conf/all/forwarding", "1"),
    ]);
    settings
}

/// The switch between the nodes. It has no addresses and says nothing of its own.
pub(super) fn underlay(underlay: &Namespace) -> Result<()> {
    underlay.sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
    underlay
        .ip(&format!("link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0\nlink set {BRIDGE} up\n"))
}

/// Plugs a node into the underlay.
pub(super) fn uplink(underlay: &Namespace, node: &Node) -> Result<()> {
    let name = node.name();
    let number = node.number();
    underlay.ip(&format!(
        "link add port-{number} type veth peer name {UPLINK} address {} netns {name}\n\
         link set port-{number} master {BRIDGE} up\n",
        uplink_mac(node),
    ))?;
    let mut batch = String::new();
    for address in node.addresses() {
        batch += &format!("address add {address}/{} dev {UPLINK}{}\n", link_bits(*address), nodad(*address));
    }
    batch += &format!("link set {UPLINK} up\n");
    node.ip(&batch)
}

/// Tells a node where another one and its pods are.
pub(super) fn routes(node: &Node, other: &Node) -> Result<()> {
    let mut batch = String::new();
    for address in other.addresses() {
        batch +=
            &format!("neighbour add {address} lladdr {} dev {UPLINK} nud permanent\n", uplink_mac(other));
    }
    for cidr in other.pod_cidrs() {
        let family = Family::of(cidr.address);
        if let Some(via) = other.addresses().iter().find(|address| Family::of(**address) == family) {
            batch += &format!("route add {cidr} via {via} dev {UPLINK}\n");
        }
    }
    node.ip(&batch)
}

/// Tells a pod's kernel to say nothing by itself.
pub(super) fn quiet(pod: &Pod) -> Result<()> {
    pod.sysctl(QUIET)
}

/// Wires a pod: gateways nobody owns inside, host routes outside.
pub(super) fn pod(node: &Node, pod: &Pod, number: u8) -> Result<()> {
    let interface = pod.interface();
    let mac = format!("02:00:00:01:{:02x}:{number:02x}", node.number());
    quiet(pod)?;
    let mut outside = format!(
        "link add {interface} address {HOST_END} type veth peer name eth0 address {mac} netns {}\n\
         link set {interface} up\n",
        pod.name(),
    );
    let mut inside = String::new();
    for address in pod.addresses() {
        let host = Cidr { address: *address, length: full_bits(*address) };
        inside += &format!("address add {host} dev eth0{}\n", nodad(*address));
        outside += &format!("neighbour add {address} lladdr {mac} dev {interface} nud permanent\n");
        outside += &format!("route add {host} dev {interface}\n");
    }
    inside += "link set eth0 up\n";
    for family in Family::ALL {
        if !pod.addresses().iter().any(|address| Family::of(*address) == family) {
            continue;
        }
        inside += &match family {
            Family::V4 => format!(
                "neighbour add {GATEWAY_V4} lladdr {HOST_END} dev eth0 nud permanent\n\
                 route add {GATEWAY_V4}/32 dev eth0 scope link\n\
                 route add 0.0.0.0/0 via {GATEWAY_V4} dev eth0\n"
            ),
            Family::V6 => format!(
                "neighbour add {GATEWAY_V6} lladdr {HOST_END} dev eth0 nud permanent\n\
                 route add ::/0 via {GATEWAY_V6} dev eth0\n"
            ),
        };
    }
    node.ip(&outside)?;
    pod.ip(&inside)
}

/// The name of the host end of a pod's veth pair; the kernel allows 15 characters.
pub(super) fn host_interface(pod: &str) -> String {
    format!("lxc-{pod}").chars().take(15).collect()
}

fn uplink_mac(node: &Node) -> String {
    format!("02:00:00:00:00:{:02x}", node.number())
}

/// No duplicate address detection: it would be on the wire.
const fn nodad(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "",
        IpAddr::V6(_) => " nodad",
    }
}

/// The length of the underlay's own ranges.
const fn link_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 64,
    }
}

const fn full_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_the_kernel() {
        assert_eq!(host_interface("xwing"), "lxc-xwing");
        assert_eq!(host_interface("stormtrooper-of-the-empire").len(), 15);
    }
}
