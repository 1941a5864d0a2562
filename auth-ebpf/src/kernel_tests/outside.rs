//! What comes from outside for pods of other nodes, in the kernel: that it leaves and comes back as the other end
//! would have sent it, to the last bit of the checksums.

use std::path::PathBuf;

use auth_ebpf_abi::packet::icmp as types;
use auth_ebpf_abi::{Address, Hook, Setting, Verdict};

use super::checksum::sealed;
use super::fill::{at_boot_time, fill};
use super::frames::{Parts, ack, error, icmp, packet, syn, syn_ack, udp};
use super::in_namespaces;
use super::scene::*;
use super::verdicts::{Arrival, arrival, compare};
use crate::{Datapath, Options, TestPacket};

/// This node, its outside address, the other node's pod; an echo, its reply, an error.
const FAMILIES: [(Address, Address, Address, u8, u8, u8); 2] = [
    (HOST, OUTSIDE, THERE, types::ECHO, types::ECHO_REPLY, types::UNREACHABLE),
    (HOST_V6, OUTSIDE_V6, THERE_V6, types::V6_ECHO, types::V6_ECHO_REPLY, types::V6_ERROR_FIRST),
];

fn open(pin_dir: PathBuf) -> Datapath {
    let datapath = Datapath::open(&Options { pin_dir }).unwrap();
    let mut tables = cluster();
    at_boot_time(&mut tables);
    fill(datapath.maps(), &tables);
    datapath
}

/// An IP packet with its checksums, as the WireGuard device has it.
fn bare(parts: &Parts) -> Vec<u8> {
    sealed(&parts.ethernet())[14..].to_vec()
}

fn becomes(datapath: &mut Datapath, hook: Hook, ingress: u32, bytes: &[u8], expected: &[u8]) {
    let packet = TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: ingress, bytes, repeat: 1 };
    let (verdict, found) = datapath.test_run_output(hook, &packet).unwrap();
    assert_eq!((verdict, found.as_slice()), (Verdict::Forwarded, expected), "{} {bytes:02x?}", hook.as_str());
}

fn goes(datapath: &mut Datapath, parts: &Parts, expected: &Parts) {
    becomes(datapath, Hook::ToWireguard, UPLINK_IFINDEX, &bare(parts), &bare(expected));
}

fn comes(datapath: &mut Datapath, parts: &Parts, expected: &Parts) {
    becomes(datapath, Hook::FromWireguard, WIREGUARD_IFINDEX, &bare(parts), &bare(expected));
}

#[test]
fn the_tunnel_carries_the_outside_address_and_the_node_knows_its_own() {
    in_namespaces("the_tunnel_carries_the_outside_address_and_the_node_knows_its_own", |pin_dir| {
        let mut datapath = open(pin_dir);
        let d = &mut datapath;
        for (host, own, there, echo, reply, unreachable) in FAMILIES {
            let (here, outside, pod) = ((host, 40000), (own, 40000), (there, 8080));
            goes(d, &syn(here, pod), &syn(outside, pod));
            comes(d, &syn_ack(pod, outside), &syn_ack(pod, here));
            for size in [0, 1, 7, 1400] {
                let filled =
                    |parts: Parts| Parts { payload: [parts.payload, vec![0xa5; size]].concat(), ..parts };
                goes(d, &filled(ack(here, pod)), &filled(ack(outside, pod)));
                comes(d, &filled(ack(pod, outside)), &filled(ack(pod, here)));
            }
            goes(d, &udp(here, pod), &udp(outside, pod));
            comes(d, &udp(pod, outside), &udp(pod, here));
            let with_options = |parts: Parts| Parts { options: vec![1; 8], ..parts };
            goes(d, &with_options(udp(here, pod)), &with_options(udp(outside, pod)));
            goes(d, &icmp(host, there, echo, 5), &icmp(own, there, echo, 5));
            comes(d, &icmp(there, own, reply, 5), &icmp(there, host, reply, 5));
            let sctp = |from: Address, to: Address| packet(from, to, 132, udp((from, 1), (to, 82)).payload);
            goes(d, &sctp(host, there), &sctp(own, there));
            // Of a datagram within an error nobody looks at the checksum.
            let about = |from, to| {
                let mut about = udp(from, to);
                about.payload[6..8].fill(0);
                about
            };
            let told = error(unreachable, host, there, &about(pod, here));
            goes(d, &told, &error(unreachable, own, there, &about(pod, outside)));
            let seen = bare(&error(unreachable, host, there, &about(pod, outside)));
            becomes(d, Hook::ToWireguard, 0, &bare(&told), &seen);
            comes(
                d,
                &error(unreachable, there, own, &about(outside, pod)),
                &error(unreachable, there, host, &about(here, pod)),
            );
            // The host's own stays as it is.
            let unchanged = bare(&udp((host, 1), pod));
            becomes(d, Hook::ToWireguard, 0, &unchanged, &unchanged);
        }
    });
}

#[test]
fn fragments_from_outside_and_datagrams_without_checksum_change_as_they_must() {
    in_namespaces("fragments_from_outside_and_datagrams_without_checksum_change_as_they_must", |pin_dir| {
        let mut datapath = open(pin_dir);
        let d = &mut datapath;
        let (host, own, pod) = ((HOST, 1), (OUTSIDE, 1), (THERE, 53));
        let unsummed = |from, to| {
            let mut bytes = bare(&udp(from, to));
            bytes[20 + 6..][..2].fill(0);
            bytes
        };
        becomes(d, Hook::ToWireguard, UPLINK_IFINDEX, &unsummed(host, pod), &unsummed(own, pod));
        becomes(d, Hook::FromWireguard, WIREGUARD_IFINDEX, &unsummed(pod, own), &unsummed(pod, host));
        // The checksum of a fragment is its datagram's, which no fragment shows: it must change by the same.
        let first = |from, to| {
            let whole = bare(&udp(from, to));
            let payload = [udp(from, to).payload, vec![0; 4]].concat();
            let mut bytes = bare(&Parts { fragment: 0x2000, payload, ..udp(from, to) });
            bytes[20 + 6..][..2].copy_from_slice(&whole[20 + 6..][..2]);
            bytes
        };
        let later = |from, to| bare(&Parts { fragment: 2, payload: vec![9; 8], ..udp(from, to) });
        for part in [first as fn(_, _) -> _, later] {
            becomes(d, Hook::ToWireguard, UPLINK_IFINDEX, &part(host, pod), &part(own, pod));
            becomes(d, Hook::FromWireguard, WIREGUARD_IFINDEX, &part(pod, own), &part(pod, host));
        }
    });
}

#[test]
fn the_kernel_forwards_from_outside_as_the_host_does() {
    in_namespaces("the_kernel_forwards_from_outside_as_the_host_does", |pin_dir| {
        let mut datapath = Datapath::open(&Options { pin_dir }).unwrap();
        let mut arrivals: Vec<Arrival> = vec![];
        for (host, own, there, echo, reply, unreachable) in FAMILIES {
            for ingress in [0, HERE_IFINDEX, UPLINK_IFINDEX, WIREGUARD_IFINDEX] {
                for to in [there, OTHER_NODE, NOBODY, own] {
                    for parts in [
                        udp((host, 1), (to, 2)),
                        syn((host, 1), (to, 2)),
                        icmp(host, to, echo, 3),
                        icmp(host, to, reply, 4),
                        error(unreachable, host, to, &udp((to, 2), (host, 1))),
                        error(unreachable, host, to, &udp((to, 2), (host, 9))),
                        packet(host, to, 47, vec![0; 12]),
                    ] {
                        arrivals.push(arrival(Hook::ToWireguard, ingress, &parts));
                    }
                }
            }
            for from in [there, OTHER_NODE, OUTSIDE_THERE, HOST] {
                for parts in [
                    udp((from, 2), (own, 1)),
                    udp((from, 2), (own, 7)),
                    syn_ack((from, 2), (own, 1)),
                    icmp(from, own, reply, 3),
                    icmp(from, own, echo, 3),
                    error(unreachable, from, own, &udp((own, 1), (there, 2))),
                    error(unreachable, from, own, &udp((own, 7), (there, 2))),
                ] {
                    arrivals.push(arrival(Hook::FromWireguard, WIREGUARD_IFINDEX, &parts));
                }
            }
        }
        let (outside, here) = (OUTSIDE_THERE, HERE);
        for parts in [udp((here, 80), (outside, 1)), syn((here, 80), (outside, 1))] {
            arrivals.push(arrival(Hook::FromPod, HERE_IFINDEX, &parts));
        }
        for ingress in [WIREGUARD_IFINDEX, UPLINK_IFINDEX] {
            arrivals.push(arrival(Hook::ToPod, ingress, &udp((outside, 1), (here, 80))));
            arrivals.push(arrival(Hook::FromPod, HERE_IFINDEX, &udp((here, 80), (outside, 1))));
        }
        compare(&mut datapath, &mut cluster(), &arrivals);
        assert!(!datapath.maps().outside().entries().unwrap().is_empty());
    });
}

#[test]
fn outside_addresses_are_told_whole_or_not_at_all() {
    in_namespaces("outside_addresses_are_told_whole_or_not_at_all", |pin_dir| {
        let mut datapath = open(pin_dir);
        let config = datapath.maps().clone();
        let config = config.config();
        let told = |setting| config.get(setting).unwrap();
        let other_v6 = v6(0x19, 7);
        let (v4, v6) = (OUTSIDE_NOBODY.to_ip(), other_v6.to_ip());
        config.set_outside(&[v4, v6]).unwrap();
        let pod = (THERE, 53);
        goes(&mut datapath, &udp((HOST, 1), pod), &udp((OUTSIDE_NOBODY, 1), pod));
        let pod = (THERE_V6, 53);
        goes(&mut datapath, &udp((HOST_V6, 1), pod), &udp((other_v6, 1), pod));
        config.set_outside(&[v6]).unwrap();
        assert_eq!(told(Setting::OutsideV4), 0);
        assert_ne!(told(Setting::OutsideV6Last), 0);
        config.set_outside(&[]).unwrap();
        assert_eq!((told(Setting::OutsideV6First), told(Setting::OutsideV6Last)), (0, 0));
    });
}
