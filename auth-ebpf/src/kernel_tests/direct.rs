//! What goes straight from pod to pod: which packets the kernel redirects, and that they arrive where the host
//! forwards nothing.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use auth_ebpf_abi::{Address, Hook, Verdict};

use super::checksum::sealed;
use super::fill::{at_boot_time, fill};
use super::forwarding::within;
use super::frames::{Parts, ack, syn, udp};
use super::scene::*;
use super::tables::Tables;
use super::{in_namespaces, ip, with_each_mechanism};
use crate::{Datapath, Options, TestPacket};

pub(super) const NEIGHBOUR_V6: Address = v6(1, 0x11);
const LIMIT: Duration = Duration::from_millis(300);
const PORT: u16 = 7;

/// Two pods of this node, behind these interfaces, of which packets go straight if `mtu` is not 0.
pub(super) fn two_pods(here: u32, neighbour: u32, mtu: u32) -> Tables {
    let mut tables = cluster();
    tables.addresses.insert(NEIGHBOUR_V6, tables.addresses[&NEIGHBOUR]);
    tables.endpoints.insert(NEIGHBOUR_V6, tables.endpoints[&NEIGHBOUR]);
    for (pod, ifindex) in [(HERE, here), (HERE_V6, here), (NEIGHBOUR, neighbour), (NEIGHBOUR_V6, neighbour)] {
        let endpoint = tables.endpoints.get_mut(&pod).unwrap();
        endpoint.ifindex = ifindex;
        endpoint.direct_mtu = mtu;
    }
    at_boot_time(&mut tables);
    tables
}

#[test]
fn the_kernel_redirects_what_the_host_says_goes_straight() {
    in_namespaces("the_kernel_redirects_what_the_host_says_goes_straight", |pin_dir: PathBuf| {
        let mut datapath = Datapath::open(&Options { pin_dir }).unwrap();
        let mut tables = two_pods(HERE_IFINDEX, NEIGHBOUR_IFINDEX, 1500);
        serve(&mut tables, SERVICE, 80, 1, 0, &[(NEIGHBOUR, 8080)]);
        serve(&mut tables, SERVICE_V6, 80, 2, 0, &[(NEIGHBOUR_V6, 8080)]);
        fill(datapath.maps(), &tables);
        let mut becomes = |sent: &Parts, expected: (Verdict, &Parts)| {
            let bytes = sealed(&sent.ethernet());
            let packet =
                TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: HERE_IFINDEX, bytes: &bytes, repeat: 1 };
            let (verdict, bytes) = datapath.test_run_output(Hook::FromPod, &packet).unwrap();
            assert_eq!((verdict, bytes), (expected.0, sealed(&expected.1.ethernet())), "{sent:?}");
        };
        // A test run tells only that there was a redirect, which nothing but this and holding makes.
        const STRAIGHT: Verdict = Verdict::Held;
        for (here, there, service) in [(HERE, NEIGHBOUR, SERVICE), (HERE_V6, NEIGHBOUR_V6, SERVICE_V6)] {
            let client = (here, 1);
            for to in [(there, 8081), (service, 80)] {
                let backend = if to == (service, 80) { (there, 8080) } else { to };
                becomes(&syn(client, to), (STRAIGHT, &syn(client, backend)));
                becomes(&ack(client, to), (STRAIGHT, &ack(client, backend)));
                becomes(&udp(client, to), (STRAIGHT, &udp(client, backend)));
            }
            becomes(&ack((here, 2), (there, 80)), (Verdict::Forwarded, &ack((here, 2), (there, 80))));
        }
        let elsewhere = syn((HERE, 1), (THERE, 80));
        becomes(&elsewhere, (Verdict::Forwarded, &elsewhere));
    });
}

/// Does `work` in a pod behind `interface`.
pub(super) fn in_pod<T: Send + 'static>(
    interface: &str,
    [v4, v6]: [&'static str; 2],
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let of_host = [
        format!("address add 192.168.0.1/32 dev {interface}"),
        format!("address add fe80::1/64 dev {interface} nodad"),
        format!("route add {v4} dev {interface}"),
        format!("route add {v6} dev {interface}"),
    ];
    within(interface, &of_host.each_ref().map(String::as_str), move || {
        ip(&format!("address add {v4}/32 dev eth0"));
        ip(&format!("address add {v6}/128 dev eth0 nodad"));
        ip("link set eth0 up");
        ip("route add default via 192.168.0.1 dev eth0 onlink");
        ip("route add default via fe80::1 dev eth0");
        work()
    })
}

/// A pod behind `interface`, with a socket of each family.
fn pod(interface: &str, addresses: [&'static str; 2]) -> [UdpSocket; 2] {
    in_pod(interface, addresses, move || {
        addresses.map(|address| {
            let at = SocketAddr::new(address.parse().unwrap(), PORT);
            let socket = UdpSocket::bind(at).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket
        })
    })
}

#[test]
fn packets_go_straight_between_namespaces() {
    with_each_mechanism("packets_go_straight_between_namespaces", |pin_dir, mechanism| {
        let here = pod("here", ["10.0.1.10", "fd00:0:0:1::10"]);
        let neighbour = pod("neighbour", ["10.0.1.11", "fd00:0:0:1::11"]);
        let mut datapath = super::open(&pin_dir, mechanism);
        let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
        let tables = |mtu| two_pods(index("here"), index("neighbour"), mtu);
        fill(datapath.maps(), &tables(0));
        for interface in ["here", "neighbour"] {
            for hook in [Hook::FromPod, Hook::ToPod] {
                datapath.attach(hook, interface).unwrap();
            }
        }
        let arrives = |from: &UdpSocket, to: &UdpSocket| {
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
            to.recv(&mut [0; 8]).is_ok()
        };
        for (here, neighbour) in here.iter().zip(&neighbour) {
            assert!(!arrives(here, neighbour), "this host forwards nothing");
        }
        // What has begun by way of the host goes on by it.
        datapath.maps().half_open().reconcile(&Default::default()).unwrap();
        fill(datapath.maps(), &tables(1500));
        for (here, neighbour) in here.iter().zip(&neighbour) {
            // The kernel may put off that an interface is in use.
            super::eventually(|| arrives(here, neighbour));
            super::eventually(|| arrives(neighbour, here));
        }
        let mut locked = tables(1500);
        locked.policy.clear();
        fill(datapath.maps(), &locked);
        datapath.maps().config().set(auth_ebpf_abi::Setting::Generation, 1).unwrap();
        for (here, neighbour) in here.iter().zip(&neighbour) {
            while neighbour.recv(&mut [0; 8]).is_ok() {}
            assert!(!arrives(here, neighbour), "policy decides");
        }
    });
}
