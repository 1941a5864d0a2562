//! Connections in the kernel: what re-opens them, what sweeps them away, and what a flood can't do.

use auth_ebpf_abi::packet::{protocol, tcp as flags};
use auth_ebpf_abi::{
    AuthEntry, AuthKey, AuthType, CONNECTION_TIMEOUT, Direction, DropReason, Hook, PolicyClasses,
    PolicyEntry, PolicyKey, QuotaEntry, Setting, TCP_CLOSED_TIMEOUT, Verdict, capacity,
};

use super::fill::{MINUTE, at_boot_time, boot_time, fill};
use super::frames::{Parts, ack, syn, syn_ack, tcp, udp};
use super::in_namespaces;
use super::scene::*;
use crate::{Datapath, Maps, Options, TestPacket};

fn run(datapath: &mut Datapath, hook: Hook, ingress: u32, parts: &Parts) -> Verdict {
    let bytes = parts.ethernet();
    let packet = TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: ingress, bytes: &bytes, repeat: 1 };
    datapath.test_run(hook, &packet).unwrap().0
}

fn sends(datapath: &mut Datapath, parts: &Parts) -> Verdict {
    run(datapath, Hook::FromPod, HERE_IFINDEX, parts)
}

fn receives(datapath: &mut Datapath, parts: &Parts) -> Verdict {
    run(datapath, Hook::ToPod, WIREGUARD_IFINDEX, parts)
}

/// A datapath in which HERE may talk to THERE, once authenticated, and has been.
fn open(pin_dir: std::path::PathBuf) -> Datapath {
    let datapath = Datapath::open(&Options { pin_dir }).unwrap();
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Spire);
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    at_boot_time(&mut tables);
    fill(datapath.maps(), &tables);
    datapath
}

fn establish(datapath: &mut Datapath, port: u16) {
    assert_eq!(sends(datapath, &syn((HERE, port), (THERE, 80))), Verdict::Forwarded);
    assert_eq!(receives(datapath, &syn_ack((THERE, 80), (HERE, port))), Verdict::Forwarded);
}

fn counts(maps: &Maps) -> (usize, usize, Option<QuotaEntry>) {
    let connections = maps.connections().entries().unwrap().len();
    let half_open = maps.half_open().entries().unwrap().len();
    (connections, half_open, maps.quotas().get(&HERE_IFINDEX).unwrap())
}

/// Every write that can take from a connection what it rests on, and that the kernel hears of it.
#[test]
fn a_write_reopens_what_it_touches() {
    in_namespaces("a_write_reopens_what_it_touches", |pin_dir| {
        let mut datapath = open(pin_dir);
        let maps = datapath.maps().clone();
        let policy = maps.policy().entries().unwrap();
        let auth = maps.auth().entries().unwrap();
        let nodes = maps.nodes().entries().unwrap();
        let addresses = maps.addresses().entries().unwrap();
        let endpoints = maps.endpoints().entries().unwrap();
        let take: [(&str, &dyn Fn()); 6] = [
            ("policy", &|| assert!(maps.policy().remove(&policy[0].0).unwrap())),
            ("auth", &|| assert!(maps.auth().remove(&auth[0].0).unwrap())),
            ("auth, ended", &|| {
                let entry = AuthEntry { expires: 1, ..auth[0].1 };
                maps.auth().insert(&auth[0].0, &entry).unwrap();
            }),
            ("nodes", &|| assert!(maps.nodes().remove(&nodes[0].0).unwrap())),
            ("addresses", &|| assert!(maps.addresses().remove(&THERE).unwrap())),
            ("device", &|| maps.config().set(Setting::WireguardIfindex, 0).unwrap()),
        ];
        for (port, (what, take)) in (1..).zip(take) {
            establish(&mut datapath, port);
            assert_eq!(sends(&mut datapath, &ack((HERE, port), (THERE, 80))), Verdict::Forwarded);
            take();
            assert_eq!(sends(&mut datapath, &ack((HERE, port), (THERE, 80))), Verdict::Dropped, "{what}");
            assert_eq!(receives(&mut datapath, &ack((THERE, 80), (HERE, port))), Verdict::Dropped, "{what}");
            // Given back, the connection goes on.
            maps.policy().insert(&policy[0].0, &policy[0].1).unwrap();
            maps.auth().insert(&auth[0].0, &auth[0].1).unwrap();
            maps.nodes().insert(&nodes[0].0, &nodes[0].1).unwrap();
            maps.config().set(Setting::WireguardIfindex, u64::from(WIREGUARD_IFINDEX)).unwrap();
            for (address, entry) in &addresses {
                maps.addresses().insert(address, entry).unwrap();
            }
            for (address, entry) in &endpoints {
                maps.endpoints().insert(address, entry).unwrap();
            }
            assert_eq!(
                receives(&mut datapath, &ack((THERE, 80), (HERE, port))),
                Verdict::Forwarded,
                "{what}"
            );
        }
    });
}

#[test]
fn others_authentications_and_rules_reopen_nothing() {
    in_namespaces("others_authentications_and_rules_reopen_nothing", |pin_dir| {
        let mut datapath = open(pin_dir);
        let maps = datapath.maps().clone();
        establish(&mut datapath, 1);
        let before = maps.connections().entries().unwrap()[0].1;
        let other = AuthKey { local: NEIGHBOUR_ID, remote: THERE_ID, node: NODE, auth_type: 1, pad: 0 };
        maps.auth().insert(&other, &AuthEntry::default()).unwrap();
        maps.auth().remove(&other).unwrap();
        let key = PolicyKey { local: HERE_ID, remote: NEIGHBOUR_ID, ..PolicyKey::default() };
        maps.policy().insert(&(key, PolicyKey::prefix_len(None)), &Default::default()).unwrap();
        assert_eq!(sends(&mut datapath, &ack((HERE, 1), (THERE, 80))), Verdict::Forwarded);
        assert_eq!(maps.connections().entries().unwrap()[0].1.generation, before.generation);
    });
}

/// A port range, where the endpoint has looked for single ports only: it is found from its first moment on,
/// and re-opens what it touches.
#[test]
fn endpoints_look_for_what_a_change_of_policy_puts() {
    in_namespaces("endpoints_look_for_what_a_change_of_policy_puts", |pin_dir| {
        let mut datapath = open(pin_dir);
        let maps = datapath.maps().clone();
        establish(&mut datapath, 1);
        let (rule, allowed) = maps.policy().entries().unwrap()[0];
        let key = PolicyKey { protocol: protocol::TCP, port: 64_u16.to_be_bytes(), ..rule.0 };
        let range = (key, PolicyKey::prefix_len(Some(10)));
        let denied = PolicyEntry { deny: 1, precedence: PolicyEntry::DENY_PRECEDENCE, ..allowed };
        maps.change_policy([(range, Some(denied))].into_iter()).unwrap();
        assert_eq!(sends(&mut datapath, &ack((HERE, 1), (THERE, 80))), Verdict::Dropped);
        assert_eq!(sends(&mut datapath, &syn((HERE, 2), (THERE, 63))), Verdict::Forwarded, "of another port");
        let looked_for = || maps.endpoints().get(&HERE).unwrap().unwrap().classes;
        let mut both = PolicyClasses::default();
        both.add(&rule.0, rule.1);
        both.add(&range.0, range.1);
        assert_eq!(looked_for(), both);
        maps.change_policy([(range, None), (rule, Some(allowed))].into_iter()).unwrap();
        assert_eq!(sends(&mut datapath, &ack((HERE, 1), (THERE, 80))), Verdict::Forwarded);
        assert_eq!(looked_for(), both, "too many do no harm");
    });
}

#[test]
fn a_process_that_comes_has_every_connection_decided_anew() {
    in_namespaces("a_process_that_comes_has_every_connection_decided_anew", |pin_dir| {
        let mut datapath = open(pin_dir.clone());
        establish(&mut datapath, 1);
        let before = datapath.maps().config().get(Setting::Generation).unwrap();
        let mut next = Datapath::open(&Options { pin_dir }).unwrap();
        assert!(next.maps().config().get(Setting::Generation).unwrap() > before);
        assert_eq!(sends(&mut next, &ack((HERE, 1), (THERE, 80))), Verdict::Forwarded);
    });
}

#[test]
fn dead_connections_are_swept_away_and_the_rest_counted() {
    in_namespaces("dead_connections_are_swept_away_and_the_rest_counted", |pin_dir| {
        let mut datapath = open(pin_dir);
        let maps = datapath.maps().clone();
        for port in 1..=5 {
            establish(&mut datapath, port);
        }
        sends(&mut datapath, &tcp((HERE, 5), (THERE, 80), flags::RST));
        sends(&mut datapath, &udp((HERE, 1), (THERE, 53)));
        receives(&mut datapath, &udp((THERE, 53), (HERE, 1)));
        assert_eq!(counts(&maps), (6, 0, Some(QuotaEntry { established: 6 })));
        // Lost counts are found again.
        maps.quotas().insert(&HERE_IFINDEX, &QuotaEntry { established: 40 }).unwrap();
        let at = |later: u64| move || boot_time() + later;
        let swept = maps.sweep(at(0), || true).unwrap();
        assert_eq!((swept.alive, swept.removed), (6, 0));
        assert_eq!(counts(&maps), (6, 0, Some(QuotaEntry { established: 6 })));
        let swept = maps.sweep(at(TCP_CLOSED_TIMEOUT + MINUTE / 10), || true).unwrap();
        assert_eq!((swept.alive, swept.removed), (5, 1));
        let swept = maps.sweep(at(CONNECTION_TIMEOUT + MINUTE), || true).unwrap();
        assert_eq!((swept.alive, swept.removed), (4, 1));
        assert_eq!(counts(&maps), (4, 0, Some(QuotaEntry { established: 4 })));
    });
}

/// More openings than `half_open` holds: what was answered before is still there.
#[test]
fn a_flood_evicts_no_established_connection() {
    in_namespaces("a_flood_evicts_no_established_connection", |pin_dir| {
        let mut datapath = open(pin_dir);
        let maps = datapath.maps().clone();
        establish(&mut datapath, 1);
        let mut tables = locked();
        allow(&mut tables, HERE_ID, Direction::Egress, auth_ebpf_abi::identity::UNKNOWN, AuthType::Disabled);
        at_boot_time(&mut tables);
        maps.policy().reconcile(&tables.policy).unwrap();
        maps.endpoints().reconcile(&endpoints(&tables)).unwrap();
        let opened = u32::try_from(capacity::HALF_OPEN).unwrap() + 4_096;
        let frame = syn((HERE, 9), (v4([11, 0, 0, 0]), 1)).ethernet();
        let packet = TestPacket {
            ifindex: HERE_IFINDEX,
            ingress_ifindex: HERE_IFINDEX,
            bytes: &frame,
            repeat: 3 * opened,
        };
        let choices = crate::Choices { addresses: 1 << 19, ports: 1 };
        datapath.test_run_varied(Some(Hook::FromPod), &packet, choices).unwrap();
        assert!(maps.half_open().keys().unwrap().len() > capacity::HALF_OPEN / 2, "it is a flood");
        assert_eq!(maps.connections().entries().unwrap().len(), 1);
        assert_eq!(receives(&mut datapath, &ack((THERE, 80), (HERE, 1))), Verdict::Forwarded);
        let dropped = datapath.maps().metrics().unwrap().counters;
        assert!(!dropped.contains_key(&(Hook::FromPod, Verdict::Dropped, Some(DropReason::MapError))));
    });
}

/// The scene's endpoints, with what has to be looked for in the scene's policy.
fn endpoints(
    tables: &super::tables::Tables,
) -> std::collections::BTreeMap<auth_ebpf_abi::Address, auth_ebpf_abi::EndpointEntry> {
    use auth_ebpf_abi::State as _;
    tables.endpoints.keys().filter_map(|address| Some((*address, tables.endpoint(address)?))).collect()
}
