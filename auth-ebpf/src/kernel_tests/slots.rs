//! Tables in slots in the kernel: what programs see while they are written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use auth_ebpf_abi::{
    AddressEntry, AuthEntry, AuthKey, AuthType, Direction, Hook, NodeEntry, PolicyEntry, PolicyKey, Verdict,
};

use super::fill::{at_boot_time, fill};
use super::frames;
use super::in_namespaces;
use super::scene::*;
use crate::{Datapath, Maps, Options, TestPacket};

/// Nodes that come and go: more than wait for reuse at a time.
const NODES: u16 = 6_000;
/// A kind of ICMP that belongs to no connection.
const TIMESTAMP: u8 = 13;
/// Of the others, fewer do.
const OTHERS: u32 = 500;

/// Writes all that HERE's packets to THERE do not rest on, and renews what they do.
fn write(maps: &Maps) {
    let auth = maps.auth().entries().unwrap();
    let (key, entry) = auth[0];
    for number in 0..NODES {
        let node = NODE + 1 + number;
        maps.nodes().insert(&node, &NodeEntry { expires: 1, epoch: 3, acknowledged: 0 }).unwrap();
        assert!(maps.nodes().remove(&node).unwrap());
    }
    for number in 0..OTHERS {
        let renewed = AuthEntry { expires: entry.expires + u64::from(number), ..entry };
        maps.auth().insert(&key, &renewed).unwrap();
        let other = AuthKey { remote: THERE_ID + 1 + number, ..key };
        let rule =
            PolicyKey { local: HERE_ID, remote: other.remote, direction: 1, protocol: 0, port: [0; 2] };
        let deny = PolicyEntry { deny: 1, precedence: u32::MAX, ..PolicyEntry::default() };
        let address = v4([10, 7, (number >> 8) as u8, number as u8]);
        maps.auth().insert(&other, &AuthEntry { expires: 1, epoch: 9, flags: 0 }).unwrap();
        maps.policy().insert(&(rule, PolicyKey::FIXED_BITS), &deny).unwrap();
        maps.addresses()
            .insert(&address, &AddressEntry { identity: other.remote, node: 9, flags: 0 })
            .unwrap();
        assert!(maps.auth().remove(&other).unwrap());
        assert!(maps.policy().remove(&(rule, PolicyKey::FIXED_BITS)).unwrap());
        assert!(maps.addresses().remove(&address).unwrap());
    }
}

fn counted(maps: &Maps, verdict: Verdict) -> u64 {
    let counters = maps.metrics().unwrap().counters;
    counters.iter().filter(|((_, of, _), _)| *of == verdict).map(|(_, counter)| counter.packets).sum()
}

#[test]
fn programs_find_what_stays_while_the_rest_is_written() {
    in_namespaces("programs_find_what_stays_while_the_rest_is_written", |pin_dir| {
        let mut datapath = Datapath::open(&Options { pin_dir }).unwrap();
        let mut tables = locked();
        allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Spire);
        authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
        at_boot_time(&mut tables);
        let maps = datapath.maps().clone();
        fill(&maps, &tables);
        // Of no connection, so decided anew each time.
        let bytes = frames::icmp(HERE, THERE, TIMESTAMP, 5).ethernet();
        let packet =
            TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: HERE_IFINDEX, bytes: &bytes, repeat: 1_000 };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                write(&maps);
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                assert_eq!(datapath.test_run(Hook::FromPod, &packet).unwrap().0, Verdict::Forwarded);
            }
        });
        assert!(counted(&maps, Verdict::Forwarded) >= 1_000);
        assert_eq!(counted(&maps, Verdict::Dropped), 0, "nothing was ever missing");
        assert!(maps.nodes().entries().unwrap().len() <= tables.nodes.len() + 1);
    });
}

/// So often do rules come and go.
const FLIPS: u32 = 2_000;

/// Rules of HERE for THERE over TCP: for one port, for ranges, and for all of it.
fn rules(lengths: &[u32]) -> Vec<(PolicyKey, u32)> {
    let rule = |bits: &u32| {
        let prefix_len = PolicyKey::prefix_len(Some(*bits));
        let port = 80u16.to_be_bytes();
        let key = PolicyKey { local: HERE_ID, remote: THERE_ID, direction: 1, protocol: 6, port };
        (key.masked(prefix_len), prefix_len)
    };
    lengths.iter().map(rule).collect()
}

/// Sends to HERE's port 80 while `flip` changes rules that all allow it; behind them one denies TCP.
fn no_packet_falls_through(name: &str, first: &'static [u32], flip: impl Fn(&Maps) + Send + Sync + 'static) {
    in_namespaces(name, move |pin_dir| {
        let mut datapath = Datapath::open(&Options { pin_dir }).unwrap();
        let mut tables = locked();
        authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
        tables.policy.extend(rules(first).into_iter().map(|key| (key, ALLOWED)));
        let denied = PolicyEntry { deny: 1, precedence: 1, ..PolicyEntry::default() };
        tables.policy.extend(rules(&[0]).into_iter().map(|key| (key, denied)));
        at_boot_time(&mut tables);
        let maps = datapath.maps().clone();
        fill(&maps, &tables);
        let bytes = frames::ack((HERE, 9), (THERE, 80)).ethernet();
        let packet =
            TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: HERE_IFINDEX, bytes: &bytes, repeat: 1_000 };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..FLIPS {
                    flip(&maps);
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                datapath.test_run(Hook::FromPod, &packet).unwrap();
            }
        });
        assert!(counted(&maps, Verdict::Forwarded) >= 1_000);
        assert_eq!(counted(&maps, Verdict::Dropped), 0, "no packet met what lies behind");
    });
}

const ALLOWED: PolicyEntry = PolicyEntry {
    precedence: 1,
    cookie: 0,
    port_prefix: 0,
    deny: 0,
    auth_type: 0,
    auth_explicit: 0,
    encryption: 0,
    audit: 0,
    pad: [0; 2],
};

#[test]
fn a_range_that_leaves_uncovers_the_next_wider_one() {
    let [narrow] = rules(&[15])[..] else { panic!("one rule") };
    no_packet_falls_through("a_range_that_leaves_uncovers_the_next_wider_one", &[15, 8], move |maps| {
        assert!(maps.policy().remove(&narrow).unwrap());
        maps.policy().insert(&narrow, &ALLOWED).unwrap();
    });
}

#[test]
fn packets_that_a_change_overtakes_look_again() {
    let [port, range] = rules(&[16, 12])[..] else { panic!("two rules") };
    no_packet_falls_through("packets_that_a_change_overtakes_look_again", &[16], move |maps| {
        let put = |key| (key, Some(ALLOWED));
        maps.change_policy([put(range), (port, None)].into_iter()).unwrap();
        maps.change_policy([put(port), (range, None)].into_iter()).unwrap();
    });
}
