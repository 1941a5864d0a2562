//! Services in the kernel: that what it makes of each packet is what the other end would have sent, to the
//! last bit of the checksums, and that it remembers what the host's decision remembers.

use std::path::PathBuf;
use std::thread;

use auth_ebpf_abi::packet::{icmp as types, tcp as flags};
use auth_ebpf_abi::{
    Address, AddressFlags, AuthType, BackendKey, Direction, DropReason, Hook, ServiceKey, Setting, Verdict,
    loopback,
};

use super::checksum::sealed;
use super::fill::{at_boot_time, fill};
use super::frames::{Parts, ack, error, syn, syn_ack, tcp, udp};
use super::in_namespaces;
use super::scene::*;
use super::tables::Tables;
use super::verdicts::{arrival, compare};
use crate::{Backends, Changes, Datapath, Maps, Options, TestPacket};

const FAMILIES: [(Address, Address, Address, Address, u8); 2] = [
    (SERVICE, HERE, THERE, HOST, types::UNREACHABLE),
    (SERVICE_V6, HERE_V6, THERE_V6, HOST_V6, types::V6_ERROR_FIRST),
];

/// THERE's port 8080 behind the service's port 80, for whoever has authenticated.
fn service() -> Tables {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Spire);
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    serve(&mut tables, SERVICE, 80, 1, 0, &[(THERE, 8080)]);
    serve(&mut tables, SERVICE_V6, 80, 2, 0, &[(THERE_V6, 8080)]);
    serve(&mut tables, SERVICE, 82, 3, 0, &[(THERE, 82)]);
    serve(&mut tables, SERVICE_V6, 82, 4, 0, &[(THERE_V6, 82)]);
    tables
}

fn open(pin_dir: PathBuf, mut tables: Tables) -> Datapath {
    let datapath = Datapath::open(&Options { pin_dir }).unwrap();
    at_boot_time(&mut tables);
    fill(datapath.maps(), &tables);
    datapath
}

/// What the kernel makes of a frame.
fn run(datapath: &mut Datapath, hook: Hook, ingress: u32, bytes: &[u8]) -> (Verdict, Vec<u8>) {
    let packet = TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: ingress, bytes, repeat: 1 };
    datapath.test_run_output(hook, &packet).unwrap()
}

fn becomes(datapath: &mut Datapath, hook: Hook, ingress: u32, parts: &Parts, expected: &Parts) {
    let (verdict, bytes) = run(datapath, hook, ingress, &sealed(&parts.ethernet()));
    assert_eq!(verdict, Verdict::Forwarded, "{parts:?}");
    assert_eq!(bytes, sealed(&expected.ethernet()), "{parts:?}");
}

fn goes(datapath: &mut Datapath, parts: &Parts, expected: &Parts) {
    becomes(datapath, Hook::FromPod, HERE_IFINDEX, parts, expected);
}

fn comes(datapath: &mut Datapath, parts: &Parts, expected: &Parts) {
    becomes(datapath, Hook::ToPod, WIREGUARD_IFINDEX, parts, expected);
}

#[test]
fn packets_bear_the_addresses_that_each_end_expects() {
    in_namespaces("packets_bear_the_addresses_that_each_end_expects", |pin_dir| {
        let mut datapath = open(pin_dir, service());
        let d = &mut datapath;
        for (service, here, there, host, unreachable) in FAMILIES {
            let (client, service, backend) = ((here, 1), (service, 80), (there, 8080));
            goes(d, &syn(client, service), &syn(client, backend));
            comes(d, &syn_ack(backend, client), &syn_ack(service, client));
            for size in [0, 1, 7, 1400] {
                let filled =
                    |parts: Parts| Parts { payload: [parts.payload, vec![0xa5; size]].concat(), ..parts };
                goes(d, &filled(ack(client, service)), &filled(ack(client, backend)));
                comes(d, &filled(ack(backend, client)), &filled(ack(service, client)));
            }
            goes(d, &udp(client, service), &udp(client, backend));
            comes(d, &udp(backend, client), &udp(service, client));
            let with_options = |parts: Parts| Parts { options: vec![1; 8], ..parts };
            goes(d, &with_options(udp(client, service)), &with_options(udp(client, backend)));
            // Errors, from the backend and from this host, about what the pod has sent, and its own.
            let about = |from, to| {
                let mut about = udp(from, to);
                about.payload[6..8].fill(0);
                about
            };
            for (source, ingress, as_seen) in [(there, WIREGUARD_IFINDEX, service.0), (host, 0, host)] {
                let sent = error(unreachable, source, here, &about(client, backend));
                let seen = error(unreachable, as_seen, here, &about(client, service));
                becomes(d, Hook::ToPod, ingress, &sent, &seen);
            }
            let sent = error(unreachable, here, service.0, &about(service, client));
            let seen = error(unreachable, here, there, &about(backend, client));
            goes(d, &sent, &seen);
            // Of SCTP, which has no backend with another port, the addresses.
            let sctp = |from: Address, to: Address| Parts { protocol: 132, ..udp((from, 1), (to, 82)) };
            goes(d, &sctp(here, service.0), &sctp(here, there));
            goes(d, &tcp(client, service, flags::RST), &tcp(client, backend, flags::RST));
        }
    });
}

#[test]
fn a_datagram_without_checksum_and_fragments_reach_the_backend() {
    in_namespaces("a_datagram_without_checksum_and_fragments_reach_the_backend", |pin_dir| {
        let mut datapath = open(pin_dir, service());
        let (client, service, backend) = ((HERE, 1), (SERVICE, 80), (THERE, 8080));
        let bare = |to| {
            let mut frame = sealed(&udp(client, to).ethernet());
            frame[14 + 20 + 6..][..2].fill(0);
            frame
        };
        let (_, bytes) = run(&mut datapath, Hook::FromPod, HERE_IFINDEX, &bare(service));
        assert_eq!(bytes, bare(backend));
        let first = |to| {
            let datagram = udp(client, to);
            Parts { fragment: 0x2000, payload: [datagram.payload.clone(), vec![0; 4]].concat(), ..datagram }
        };
        let later = |to| Parts { fragment: 2, payload: vec![9; 8], ..first(to) };
        // The checksum of a fragment is its datagram's, which no fragment shows: it must change by the same.
        let difference = |to: (Address, u16)| {
            let whole = sealed(&udp(client, to).ethernet());
            u16::from_be_bytes([whole[14 + 20 + 6], whole[14 + 20 + 7]])
        };
        let mut frame = sealed(&first(service).ethernet());
        frame[14 + 20 + 6..][..2].copy_from_slice(&difference(service).to_be_bytes());
        let mut expected = sealed(&first(backend).ethernet());
        expected[14 + 20 + 6..][..2].copy_from_slice(&difference(backend).to_be_bytes());
        let (verdict, bytes) = run(&mut datapath, Hook::FromPod, HERE_IFINDEX, &frame);
        assert_eq!((verdict, bytes), (Verdict::Forwarded, expected));
        goes(&mut datapath, &later(service), &later(backend));
    });
}

#[test]
fn a_pod_gets_back_what_it_sends_to_itself() {
    in_namespaces("a_pod_gets_back_what_it_sends_to_itself", |pin_dir| {
        let mut tables = locked();
        serve(&mut tables, SERVICE, 80, 1, 0, &[(HERE, 8080)]);
        serve(&mut tables, SERVICE_V6, 80, 2, 0, &[(HERE_V6, 8080)]);
        let mut datapath = open(pin_dir, tables);
        for (service, here, ..) in FAMILIES {
            let (client, service, backend, meets) =
                ((here, 1), (service, 80), (here, 8080), (loopback(&here), 1));
            for (sent, seen) in [
                (syn(client, service), syn(meets, backend)),
                (syn_ack(backend, meets), syn_ack(service, client)),
                (ack(client, service), ack(meets, backend)),
                (ack(backend, meets), ack(service, client)),
            ] {
                let (verdict, bytes) =
                    run(&mut datapath, Hook::FromPod, HERE_IFINDEX, &sealed(&sent.ethernet()));
                assert_eq!(verdict, Verdict::Held, "redirected: {sent:?}");
                let mut expected = sealed(&seen.ethernet());
                expected[..12].rotate_left(6);
                assert_eq!(bytes, expected, "{sent:?}");
                let (verdict, bytes) = run(&mut datapath, Hook::ToPod, HERE_IFINDEX, &expected);
                assert_eq!((verdict, bytes), (Verdict::Forwarded, expected));
            }
        }
    });
}

/// What is held goes as it came, and what is dropped is not looked at.
#[test]
fn held_packets_keep_the_services_address() {
    in_namespaces("held_packets_keep_the_services_address", |pin_dir| {
        let mut tables = service();
        tables.auth.clear();
        hold(&mut tables);
        let mut datapath = open(pin_dir, tables);
        let frame = sealed(&syn((HERE, 1), (SERVICE, 80)).ethernet());
        let (verdict, bytes) = run(&mut datapath, Hook::FromPod, HERE_IFINDEX, &frame);
        assert_eq!(verdict, Verdict::Held);
        let untagged = [&bytes[..12], &bytes[bytes.len() - (frame.len() - 12)..]].concat();
        assert_eq!(untagged, frame);
        assert!(datapath.maps().half_open().entries().unwrap().is_empty());
    });
}

#[test]
fn the_kernel_remembers_what_the_hosts_decision_remembers() {
    in_namespaces("the_kernel_remembers_what_the_hosts_decision_remembers", |pin_dir| {
        let mut datapath = Datapath::open(&Options { pin_dir }).unwrap();
        let mut tables = service();
        allow(&mut tables, HERE_ID, Direction::Egress, NEIGHBOUR_ID, AuthType::Disabled);
        let many: Vec<(Address, u16)> = (1..=9).map(|port| (NEIGHBOUR, port)).collect();
        serve(&mut tables, SERVICE, 81, 5, 60, &many);
        serve(&mut tables, SERVICE, 82, 6, 0, &many);
        serve(&mut tables, SERVICE, 83, 7, 0, &[]);
        serve(&mut tables, service_key(HOST, 1, 6).of_any_node().address, 30080, 6, 0, &many);
        tables.addresses.get_mut(&OTHER_NODE).unwrap().flags = AddressFlags::SERVICE;
        let mut arrivals = vec![];
        for port in 1..40 {
            for to in [
                (SERVICE, 80),
                (SERVICE, 81),
                (SERVICE, 82),
                (SERVICE, 83),
                (SERVICE, 84),
                (OTHER_NODE, 30080),
            ] {
                for parts in [syn((HERE, port), to), udp((HERE, port), to), ack((HERE, port), to)] {
                    arrivals.push(arrival(Hook::FromPod, HERE_IFINDEX, &parts));
                }
            }
            for from in [(THERE, 8080), (NEIGHBOUR, 3), (NEIGHBOUR, 7), (SERVICE, 80)] {
                let ingress = if from.0 == NEIGHBOUR { NEIGHBOUR_IFINDEX } else { WIREGUARD_IFINDEX };
                for parts in [syn_ack(from, (HERE, port)), udp(from, (HERE, port))] {
                    arrivals.push(arrival(Hook::ToPod, ingress, &parts));
                }
            }
            let end = tcp((HERE, port), (SERVICE, 80), flags::FIN | flags::ACK);
            arrivals.push(arrival(Hook::FromPod, HERE_IFINDEX, &end));
        }
        compare(&mut datapath, &mut tables, &arrivals);
        let counters = datapath.maps().metrics().unwrap().counters;
        for reason in [DropReason::NoServiceBackend, DropReason::PolicyDenied] {
            assert!(counters[&(Hook::FromPod, Verdict::Dropped, Some(reason))].packets > 0);
        }
    });
}

fn group(ports: &[ServiceKey], affinity: u32, backends: &[(Address, u16)]) -> Backends {
    Backends {
        ports: ports.iter().copied().collect(),
        affinity,
        backends: backends.iter().copied().collect(),
    }
}

/// The backends under a service's port, by the maps.
fn behind(maps: &Maps, port: &ServiceKey) -> Option<Vec<(Address, u16)>> {
    let entry = maps.services().get(port).unwrap()?;
    let slot = |slot| {
        let backend = maps.backends().get(&BackendKey { set: entry.set, slot }).unwrap().unwrap();
        (backend.address, u16::from_be_bytes(backend.port))
    };
    Some((0..entry.backends).map(slot).collect())
}

#[test]
fn services_change_without_a_trace_of_what_was() {
    in_namespaces("services_change_without_a_trace_of_what_was", |pin_dir| {
        let datapath = Datapath::open(&Options { pin_dir }).unwrap();
        let maps = datapath.maps();
        let (a, b) = (service_key(SERVICE, 80, 6), service_key(SERVICE, 81, 6));
        let (x, y, z) = ((HERE, 1), (NEIGHBOUR, 2), (THERE, 3));
        maps.change_services(&[group(&[a], 0, &[x, y, z]), group(&[b], 5, &[y])]).unwrap();
        assert_eq!(behind(maps, &a), Some(vec![x, y, z]));
        assert_eq!(behind(maps, &b), Some(vec![y]));
        let set = |key: &ServiceKey| maps.services().get(key).unwrap().unwrap().set;
        let before = (set(&a), set(&b));
        assert_ne!(before.0, before.1);
        // Fewer, others, in another order: each keeps its number.
        maps.change_services(&[group(&[b], 5, &[z]), group(&[a], 0, &[x, z])]).unwrap();
        assert_eq!((behind(maps, &a), behind(maps, &b)), (Some(vec![x, z]), Some(vec![z])));
        assert_eq!((set(&a), set(&b)), before);
        assert_eq!(maps.backends().entries().unwrap().len(), 3, "nothing is left over");
        // Two become one, and one is no more.
        maps.change_services(&[group(&[a, b], 0, &[y])]).unwrap();
        assert_eq!((set(&a), behind(maps, &b)), (set(&b), Some(vec![y])));
        let generation = maps.config().get(Setting::Generation).unwrap();
        assert_eq!(maps.change_services(&[group(&[a, b], 0, &[y])]).unwrap(), Changes::default());
        maps.change_services(&[]).unwrap();
        assert!(
            maps.services().entries().unwrap().is_empty() && maps.backends().entries().unwrap().is_empty()
        );
        assert_eq!(maps.config().get(Setting::Generation).unwrap(), generation);
        maps.change_services(&[group(&[a], 0, &[])]).unwrap();
        assert!(maps.config().get(Setting::Generation).unwrap() > generation, "an address that had none");
    });
}

#[test]
fn a_backend_that_has_gone_keeps_connections_and_loses_datagrams_and_clients() {
    in_namespaces("a_backend_that_has_gone_keeps_connections_and_loses_datagrams_and_clients", |pin_dir| {
        let mut tables = cluster();
        serve(&mut tables, SERVICE, 80, 1, 0, &[]);
        tables.services.clear();
        let mut datapath = open(pin_dir, tables);
        let d = &mut datapath;
        let maps = d.maps().clone();
        let (tcp_port, udp_port) = (service_key(SERVICE, 80, 6), service_key(SERVICE, 80, 17));
        let serve = |backend: (Address, u16)| {
            let groups = [group(&[tcp_port], 100, &[backend]), group(&[udp_port], 0, &[backend])];
            maps.change_services(&groups).unwrap();
        };
        let (client, service) = ((HERE, 1), (SERVICE, 80));
        let (first, second) = ((THERE, 8080), (THERE, 9090));
        serve(first);
        for (out, back) in [(syn as Make, syn_ack as Make), (udp, udp)] {
            goes(d, &out(client, service), &out(client, first));
            comes(d, &back(first, client), &back(service, client));
        }
        serve(second);
        goes(d, &ack(client, service), &ack(client, first));
        comes(d, &ack(first, client), &ack(service, client));
        goes(d, &udp(client, service), &udp(client, second));
        // What the old one still has to say comes from the service.
        comes(d, &udp(first, client), &udp(service, client));
        goes(d, &syn((HERE, 2), service), &syn((HERE, 2), second));
        assert!(maps.affinities().entries().unwrap().iter().all(|(_, kept)| kept.port == [35, 130]));
    });
}

type Make = fn((Address, u16), (Address, u16)) -> Parts;

/// A connection's entry moves from one table to another with the packet after its first answer, which may be just
/// when the daemon goes through the tables.
#[test]
fn no_datagram_keeps_to_a_backend_that_has_gone() {
    in_namespaces("no_datagram_keeps_to_a_backend_that_has_gone", |pin_dir| {
        let mut datapath = open(pin_dir, service());
        let maps = datapath.maps().clone();
        let serve = |backend| {
            let group = group(&[service_key(SERVICE, 80, 17)], 0, &[backend]);
            maps.change_services(&[group]).unwrap();
        };
        let (service, old, new) = ((SERVICE, 80), (THERE, 8080), (THERE, 8081));
        for round in 0..10 {
            let clients = (1..=100).map(|port| (HERE, round * 100 + port));
            serve(old);
            for client in clients.clone() {
                goes(&mut datapath, &udp(client, service), &udp(client, old));
                comes(&mut datapath, &udp(old, client), &udp(service, client));
            }
            thread::scope(|scope| {
                let change = scope.spawn(|| serve(new));
                for client in clients.clone() {
                    let frame = sealed(&udp(client, service).ethernet());
                    assert_eq!(run(&mut datapath, Hook::FromPod, HERE_IFINDEX, &frame).0, Verdict::Forwarded);
                }
                change.join().unwrap();
            });
            for client in clients {
                goes(&mut datapath, &udp(client, service), &udp(client, new));
            }
        }
    });
}
