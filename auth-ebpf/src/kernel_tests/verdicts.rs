//! The programs in the kernel against the same decision on the host: one set of packets, run in sequence
//! over the same tables, must leave the same verdicts, counters, events and connections.

use std::path::Path;

use auth_ebpf_abi::packet::{icmp as types, tcp as flags};
use auth_ebpf_abi::{
    AuthType, ConnectionEntry, ConnectionKey, Context, Credits, Direction, DropReason, Event, FragmentEntry,
    FragmentKey, HoldStage, Hook, Mode, NodeEntry, PendingEntry, Setting, Verdict, capacity, metric,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::fill::{MINUTE, at_boot_time, boot_time, fill};
use super::frames::{
    Parts, arp, encapsulations, error, ethernet, icmp, packet, syn, syn_ack, tagged, tcp, udp,
};
use super::in_namespaces;
use super::scene::*;
use super::tables::Tables;
use crate::datapath::program;
use crate::{Datapath, Options, TestPacket};

fn open(pin_dir: &Path) -> Datapath {
    Datapath::open(&Options { pin_dir: pin_dir.to_owned() }).unwrap()
}

/// Runs a packet through the program of a hook.
fn run_in_kernel(datapath: &mut Datapath, hook: Hook, ingress: u32, bytes: &[u8]) -> Verdict {
    let packet = TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: ingress, bytes, repeat: 1 };
    datapath.test_run(hook, &packet).unwrap().0
}

/// `BPF_PROG_TEST_RUN` takes the bytes for an Ethernet frame, and refuses one whose IP header isn't whole.
fn is_testable(bytes: &[u8]) -> bool {
    let shortest = match bytes.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 15,
    };
    bytes.len() >= shortest
}

/// One packet at one hook.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    hook: Hook,
    ingress: u32,
    bytes: Vec<u8>,
}

pub(super) fn arrival(hook: Hook, ingress: u32, parts: &Parts) -> Arrival {
    let bytes = match hook {
        Hook::FromWireguard | Hook::ToWireguard => parts.ip(),
        Hook::FromPod | Hook::ToPod | Hook::FromUplink | Hook::ToUplink | Hook::FromHold | Hook::ToHold => {
            parts.ethernet()
        }
    };
    Arrival { hook, ingress, bytes }
}

/// Runs all packets on both sides and compares everything that they leave behind.
pub(super) fn compare(datapath: &mut Datapath, tables: &mut Tables, arrivals: &[Arrival]) {
    at_boot_time(tables);
    fill(datapath.maps(), tables);
    let mut ring = datapath.events().unwrap();
    while ring.next().is_some() {}
    let before = datapath.maps().metrics().unwrap();
    for Arrival { hook, ingress, bytes } in arrivals.iter().filter(|arrival| is_testable(&arrival.bytes)) {
        let kernel = run_in_kernel(datapath, *hook, *ingress, bytes);
        let context = Context { ifindex: HERE_IFINDEX, ..context(*hook, *ingress) };
        let (host, reason) = run(tables, context, bytes);
        let expected = if host == Verdict::Audit { Verdict::Forwarded } else { host };
        assert_eq!(kernel, expected, "{} by {ingress}: {host:?} {reason:?} {bytes:02x?}", hook.as_str());
        let timeless = |event: Event| Event { time: 0, ..event };
        let expected: Vec<Event> = tables.events.borrow_mut().drain(..).map(timeless).collect();
        let found: Vec<Event> = std::iter::from_fn(|| ring.next()).map(timeless).collect();
        assert_eq!(found, expected, "{bytes:02x?}");
    }
    let after = datapath.maps().metrics().unwrap();
    for hook in Hook::ALL {
        let fates = [(Verdict::Forwarded, None), (Verdict::Held, None)].into_iter().chain(
            DropReason::ALL
                .iter()
                .flat_map(|reason| [(Verdict::Dropped, Some(*reason)), (Verdict::Audit, Some(*reason))]),
        );
        for (verdict, reason) in fates {
            let counted = |metrics: &crate::Metrics| {
                metrics.counters.get(&(hook, verdict, reason)).copied().unwrap_or_default()
            };
            let expected = tables
                .counters
                .borrow()
                .get(&metric::index(hook, verdict, reason))
                .copied()
                .unwrap_or_default();
            assert_eq!(counted(&after).packets - counted(&before).packets, expected.packets);
            assert_eq!(counted(&after).bytes - counted(&before).bytes, expected.bytes);
        }
    }
    assert_eq!(after.lost_events, 0);
    let taken = tables.credits.borrow().get(&Credits::ALL).copied().unwrap_or_default();
    assert_eq!(datapath.maps().hold().taken().unwrap(), taken);
    let timeless = |(key, entry): (ConnectionKey, ConnectionEntry)| {
        (key, ConnectionEntry { last_seen: 0, generation: 0, ..entry })
    };
    for (kernel, host) in [
        (datapath.maps().connections(), &tables.connections),
        (datapath.maps().half_open(), &tables.half_open),
    ] {
        let kernel: Vec<_> = kernel.entries().unwrap().into_iter().map(timeless).collect();
        let host: Vec<_> = host.borrow().iter().map(|(key, entry)| timeless((*key, *entry))).collect();
        assert_eq!(kernel, host);
    }
    let timeless = |(key, entry): (FragmentKey, FragmentEntry)| (key, FragmentEntry { expires: 0, ..entry });
    let kernel: Vec<_> = datapath.maps().fragments().entries().unwrap().into_iter().map(timeless).collect();
    let host: Vec<_> =
        tables.fragments.borrow().iter().map(|(key, entry)| timeless((*key, *entry))).collect();
    assert_eq!(kernel, host);
    let host: Vec<_> = tables.outside.borrow().iter().map(|(key, entry)| (*key, *entry)).collect();
    assert_eq!(datapath.maps().outside().entries().unwrap(), host);
}

/// Every way in which two of the scene's addresses can meet.
fn everybody_with_everybody() -> Vec<Arrival> {
    let addresses = [HOST, OTHER_NODE, HERE, NEIGHBOUR, THERE, NOBODY, WORLD, OUTSIDE, OUTSIDE_THERE];
    let mut arrivals = vec![];
    for hook in Hook::ALL {
        for ingress in [0, HERE_IFINDEX, NEIGHBOUR_IFINDEX, WIREGUARD_IFINDEX, UPLINK_IFINDEX] {
            for source in addresses {
                for destination in addresses {
                    arrivals.push(arrival(hook, ingress, &syn((source, 1000), (destination, 80))));
                }
            }
        }
    }
    arrivals
}

#[test]
fn the_kernel_decides_as_the_host_does() {
    in_namespaces("the_kernel_decides_as_the_host_does", |pin_dir| {
        let mut datapath = open(&pin_dir);
        compare(&mut datapath, &mut cluster(), &everybody_with_everybody());
        compare(&mut datapath, &mut locked(), &everybody_with_everybody());
    });
}

#[test]
fn the_kernel_holds_as_the_host_does() {
    in_namespaces("the_kernel_holds_as_the_host_does", |pin_dir| {
        let mut datapath = open(&pin_dir);
        let mut tables = locked();
        hold(&mut tables);
        for direction in [Direction::Ingress, Direction::Egress] {
            allow(&mut tables, HERE_ID, direction, THERE_ID, AuthType::Spire);
            allow(&mut tables, HERE_ID, direction, NEIGHBOUR_ID, AuthType::Spire);
        }
        compare(&mut datapath, &mut tables, &everybody_with_everybody());
        let fresh = |tables: Tables| Tables {
            credits: Default::default(),
            held: Default::default(),
            counters: Default::default(),
            ..tables
        };
        let mut pending = fresh(tables.clone());
        pending.svid_pending = [(HERE_ID, PendingEntry { pending: 1 })].into();
        pending.settings.remove(&Setting::HoldIfindex);
        compare(&mut datapath, &mut pending, &everybody_with_everybody());
        let told = metric::index(Hook::ToPod, Verdict::Dropped, Some(DropReason::SvidPending));
        assert!(pending.counters.borrow()[&told].packets > 0);
        let one = arrival(Hook::ToPod, WIREGUARD_IFINDEX, &udp((THERE, 1), (HERE, 2)));
        let mut tables = fresh(tables);
        compare(&mut datapath, &mut tables, &vec![one; 600]);
        let held = tables.counters.borrow()[&metric::index(Hook::ToPod, Verdict::Held, None)].packets;
        assert_eq!(held, 256, "a pair alone gets a quarter of an endpoint's units");
        let maps = datapath.maps().hold();
        let in_use = || {
            let tokens = 0..u16::try_from(capacity::HELD).unwrap();
            tokens.filter(|token| maps.held(*token).unwrap().stage != HoldStage::FREE).count()
        };
        assert!(in_use() > 256 && maps.taken().unwrap() == 256);
        maps.forget_all().unwrap();
        assert_eq!((in_use(), maps.taken().unwrap()), (0, 0));
    });
}

#[test]
fn the_kernel_observes_as_the_host_does() {
    in_namespaces("the_kernel_observes_as_the_host_does", |pin_dir| {
        let mut datapath = open(&pin_dir);
        for (policy, encryption) in
            [(Mode::Observe, Mode::Observe), (Mode::Observe, Mode::Enforce), (Mode::Enforce, Mode::Observe)]
        {
            let mut tables = locked();
            tables.settings.insert(Setting::PolicyMode, policy as u64);
            tables.settings.insert(Setting::EncryptionMode, encryption as u64);
            compare(&mut datapath, &mut tables, &everybody_with_everybody());
        }
    });
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the kernel takes its time, and no runtime waits")]
fn the_kernel_reads_deadlines_by_the_boot_clock() {
    in_namespaces("the_kernel_reads_deadlines_by_the_boot_clock", |pin_dir| {
        let mut datapath = open(&pin_dir);
        let frame = udp((HERE, 1), (WORLD, 2));
        for (offset, expected) in [(MINUTE, Verdict::Forwarded), (0, Verdict::Dropped)] {
            let mut tables = locked();
            at_boot_time(&mut tables);
            tables.settings.insert(Setting::PolicyOffUntil, boot_time() + offset);
            fill(datapath.maps(), &tables);
            // The programs' clock moves by ticks.
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(
                run_in_kernel(&mut datapath, Hook::FromPod, HERE_IFINDEX, &frame.ethernet()),
                expected
            );
        }
    });
}

#[test]
fn connections_in_the_kernel_are_the_hosts() {
    in_namespaces("connections_in_the_kernel_are_the_hosts", |pin_dir| {
        let mut datapath = open(&pin_dir);
        let mut tables = locked();
        allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Disabled);
        allow(&mut tables, HERE_ID, Direction::Ingress, THERE_ID, AuthType::Spire);
        authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
        let out = |parts| arrival(Hook::FromPod, HERE_IFINDEX, &parts);
        let back = |parts| arrival(Hook::ToPod, WIREGUARD_IFINDEX, &parts);
        let arrivals = [
            back(syn_ack((THERE, 80), (HERE, 1))),
            out(syn((HERE, 1), (THERE, 80))),
            out(tcp((HERE, 1), (THERE, 80), flags::ACK)),
            back(syn_ack((THERE, 80), (HERE, 1))),
            out(tcp((HERE, 2), (THERE, 80), flags::ACK)),
            back(syn((THERE, 7), (HERE, 8))),
            out(syn_ack((HERE, 8), (THERE, 7))),
            back(tcp((THERE, 7), (HERE, 8), flags::ACK)),
            back(tcp((THERE, 7), (HERE, 8), flags::ACK | flags::FIN)),
            out(tcp((HERE, 8), (THERE, 7), flags::RST)),
            out(udp((HERE, 5), (THERE, 53))),
            back(udp((THERE, 53), (HERE, 5))),
            out(icmp(HERE, THERE, types::ECHO, 9)),
            back(icmp(THERE, HERE, types::ECHO_REPLY, 9)),
            back(icmp(THERE, HERE, types::ECHO_REPLY, 10)),
            out(udp((HERE_V6, 5), (THERE_V6, 53))),
            back(udp((THERE_V6, 53), (HERE_V6, 5))),
        ];
        compare(&mut datapath, &mut tables, &arrivals);
        assert!(tables.connections.borrow().len() >= 4, "answered");
    });
}

#[test]
fn the_kernel_parses_as_the_host_does() {
    in_namespaces("the_kernel_parses_as_the_host_does", |pin_dir| {
        let mut datapath = open(&pin_dir);
        let plain = udp((HERE, 1), (THERE, 2));
        let v6 = udp((HERE_V6, 1), (THERE_V6, 2));
        let mut frames = vec![
            arp([10, 0, 1, 10], [10, 0, 1, 1]),
            arp([10, 0, 1, 11], [10, 0, 1, 1]),
            ethernet(0x88cc, &[0; 46]),
            ethernet(0x8847, &[0; 46]),
            tagged(&plain.ethernet()),
            tagged(&tagged(&plain.ethernet())),
            Parts { options: vec![1; 40], ..plain.clone() }.ethernet(),
            Parts { fragment: 0x2000, ..plain.clone() }.ethernet(),
            packet(HERE, THERE, 47, vec![0; 8]).ethernet(),
            packet(HERE, THERE, 132, vec![0; 12]).ethernet(),
            Parts { extensions: vec![(44, vec![0; 7])], ..v6.clone() }.ethernet(),
            Parts { extensions: vec![(43, vec![0, 4, 1, 0, 0, 0, 0])], ..v6.clone() }.ethernet(),
            Parts { hop_limit: 255, ..icmp(LINK_LOCAL, ALL_NODES, 135, 0) }.ethernet(),
            Parts { hop_limit: 1, extensions: vec![(0, vec![0; 7])], ..icmp(LINK_LOCAL, ALL_NODES, 143, 0) }
                .ethernet(),
        ];
        frames.extend(
            (0..8).map(|count| Parts { extensions: vec![(60, vec![0; 7]); count], ..v6.clone() }.ethernet()),
        );
        frames.extend(
            (34..60).map(|length| plain.ethernet().into_iter().chain([0; 60]).take(length).collect()),
        );
        let arrivals: Vec<Arrival> = Hook::ALL
            .into_iter()
            .flat_map(|hook| {
                frames.iter().map(move |bytes| Arrival { hook, ingress: HERE_IFINDEX, bytes: bytes.clone() })
            })
            .collect();
        compare(&mut datapath, &mut cluster(), &arrivals);
    });
}

#[test]
fn the_kernel_looks_into_encapsulations_as_the_host_does() {
    in_namespaces("the_kernel_looks_into_encapsulations_as_the_host_does", |pin_dir| {
        let mut datapath = open(&pin_dir);
        let mut arrivals = vec![];
        for inner in [(HERE, THERE), (THERE, HERE), (WORLD, WORLD), (HERE_V6, THERE_V6)] {
            for (_, number, payload) in encapsulations(&udp((inner.0, 1), (inner.1, 2))) {
                for (outer, length) in [(HOST, payload.len()), (HOST_V6, payload.len()), (HOST, 24)] {
                    let payload = payload[..length.min(payload.len())].to_vec();
                    let remote = if outer == HOST { WORLD } else { v6(0xaa, 7) };
                    let out = packet(outer, remote, number, payload.clone());
                    arrivals.push(arrival(Hook::ToUplink, 0, &out));
                    arrivals.push(arrival(
                        Hook::FromUplink,
                        UPLINK_IFINDEX,
                        &packet(remote, outer, number, payload),
                    ));
                }
            }
        }
        let mut tables = cluster();
        tables.prefixes.retain(|(address, _), _| address.is_v4());
        compare(&mut datapath, &mut tables, &arrivals);
        let counters = tables.counters.borrow();
        for hook in [Hook::FromUplink, Hook::ToUplink] {
            let dropped = metric::index(hook, Verdict::Dropped, Some(DropReason::Unencrypted));
            assert!(counters[&dropped].packets >= 27, "{counters:?}");
            assert!(counters[&metric::index(hook, Verdict::Forwarded, None)].packets >= 27, "{counters:?}");
        }
    });
}

#[test]
fn fragments_and_errors_in_the_kernel_follow_as_on_the_host() {
    in_namespaces("fragments_and_errors_in_the_kernel_follow_as_on_the_host", |pin_dir| {
        let mut datapath = open(&pin_dir);
        let out = |parts: &Parts| arrival(Hook::FromPod, HERE_IFINDEX, parts);
        let back = |parts: &Parts| arrival(Hook::ToPod, WIREGUARD_IFINDEX, parts);
        let mut arrivals = vec![];
        for (source, destination, unreachable) in
            [(HERE, THERE, types::UNREACHABLE), (HERE_V6, THERE_V6, types::V6_ERROR_FIRST)]
        {
            let opens = udp((source, 5), (destination, 53));
            let (first, later) = in_fragments(udp((source, 7), (destination, 53)));
            let (answer_first, answer_later) = in_fragments(udp((destination, 53), (source, 7)));
            let about = |from, parts| error(unreachable, from, source, parts);
            arrivals.extend([
                back(&about(destination, &opens)),
                out(&opens),
                back(&about(destination, &opens)),
                back(&about(if source.is_v4() { OTHER_NODE } else { destination }, &opens)),
                back(&about(destination, &udp((source, 6), (destination, 53)))),
                out(&later),
                out(&first),
                out(&later),
                back(&answer_later),
                back(&answer_first),
                back(&answer_later),
            ]);
        }
        let mut tables = locked();
        allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Disabled);
        compare(&mut datapath, &mut tables, &arrivals);
        let counters = tables.counters.borrow();
        let passed = |hook| counters[&metric::index(hook, Verdict::Forwarded, None)].packets;
        assert_eq!((passed(Hook::FromPod), passed(Hook::ToPod)), (6, 8), "{counters:?}");
        assert_eq!(tables.fragments.borrow().len(), 4);
    });
}

/// The first and a later fragment of a datagram.
fn in_fragments(parts: Parts) -> (Parts, Parts) {
    let mut first = parts.clone();
    first.payload.resize(32, 0);
    let mut later = Parts { payload: vec![0; 20], ..parts };
    if first.source.is_v4() {
        (first.fragment, later.fragment) = (0x2000, 4);
    } else {
        first.extensions = vec![(44, vec![0, 0, 1, 0, 0, 0, 9])];
        later.extensions = vec![(44, vec![0, 0, 32, 0, 0, 0, 9])];
    }
    (first, later)
}

/// Random worlds and random packets, some of them broken.
#[test]
fn the_kernel_decides_as_the_host_does_on_anything() {
    in_namespaces("the_kernel_decides_as_the_host_does_on_anything", |pin_dir| {
        let mut datapath = open(&pin_dir);
        let mut runner = TestRunner::default();
        for _ in 0..40 {
            let mut tables = worlds().new_tree(&mut runner).unwrap().current();
            let arrivals = prop::collection::vec(arrivals(), 150).new_tree(&mut runner).unwrap().current();
            compare(&mut datapath, &mut tables, &arrivals);
        }
    });
}

fn arrivals() -> impl Strategy<Value = Arrival> {
    let address = || {
        prop::sample::select(vec![
            HOST, OTHER_NODE, HERE, HERE, NEIGHBOUR, THERE, THERE, NOBODY, WORLD, HERE_V6, THERE_V6, HOST_V6,
            LINK_LOCAL, ALL_NODES,
        ])
    };
    let port = || prop::sample::select(vec![1, 80, WIREGUARD_PORT, HANDSHAKE_PORT]);
    let ingress =
        prop::sample::select(vec![0, WIREGUARD_IFINDEX, HERE_IFINDEX, NEIGHBOUR_IFINDEX, UPLINK_IFINDEX]);
    let hop_limit = prop::sample::select(vec![1_u8, 64, 255]);
    let damage = prop::option::weighted(0.2, (0..80_usize, any::<u8>()));
    let cut = prop::option::weighted(0.1, 14..60_usize);
    (
        (address(), port(), address(), port()),
        0..6,
        ingress,
        prop::sample::select(Hook::ALL.to_vec()),
        hop_limit,
        damage,
        cut,
    )
        .prop_map(|((source, from, destination, to), kind, ingress, hook, hop_limit, damage, cut)| {
            let parts = match kind {
                0 => syn((source, from), (destination, to)),
                1 => syn_ack((source, from), (destination, to)),
                2 => udp((source, from), (destination, to)),
                3 => icmp(source, destination, if source.is_v4() { 8 } else { 128 }, from),
                4 => icmp(source, destination, if source.is_v4() { 0 } else { 129 }, from),
                _ => icmp(source, destination, 135, from),
            };
            let mut arrival = arrival(hook, ingress, &Parts { hop_limit, ..parts });
            if let Some((at, value)) = damage
                && let Some(byte) = arrival.bytes.get_mut(at)
            {
                *byte = value;
            }
            arrival.bytes.truncate(cut.unwrap_or(usize::MAX));
            arrival
        })
}

prop_compose! {
    fn worlds()(
        modes in prop::array::uniform2(prop::sample::select(vec![Mode::Observe, Mode::Enforce])),
        session in prop::option::of((any::<bool>(), 6..8_u32, 0..2_u32)),
        auth in prop::collection::vec((prop::sample::select(vec![NEIGHBOUR_ID, THERE_ID]), any::<bool>(), 6..8_u32), 0..3),
        policy in prop::collection::vec((any::<bool>(), prop::sample::select(vec![0, 1, 2, 6, NEIGHBOUR_ID, THERE_ID]), 0..3_u8), 0..8),
        holding in any::<bool>(),
    ) -> Tables {
        let mut tables = locked();
        if holding {
            hold(&mut tables);
        }
        tables.settings.insert(Setting::PolicyMode, modes[0] as u64);
        tables.settings.insert(Setting::EncryptionMode, modes[1] as u64);
        tables.nodes.clear();
        if let Some((live, epoch, acknowledged)) = session {
            let expires = if live { NOW + 1 } else { NOW };
            tables.nodes.insert(NODE, NodeEntry { expires, epoch, acknowledged });
        }
        for (remote, elsewhere, epoch) in auth {
            authenticate(&mut tables, remote, if elsewhere { NODE } else { 0 }, epoch, NOW + 1);
        }
        for (ingress, remote, auth_type) in policy {
            let direction = if ingress { Direction::Ingress } else { Direction::Egress };
            let auth_type = AuthType::from_number(auth_type).unwrap();
            allow(&mut tables, HERE_ID, direction, remote, auth_type);
        }
        tables
    }
}

#[test]
fn events_that_find_no_room_are_counted_and_decide_nothing() {
    in_namespaces("events_that_find_no_room_are_counted_and_decide_nothing", |pin_dir| {
        let mut datapath = open(&pin_dir);
        let mut tables = locked();
        hold(&mut tables);
        allow(&mut tables, HERE_ID, Direction::Egress, NEIGHBOUR_ID, AuthType::Disabled);
        allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Spire);
        at_boot_time(&mut tables);
        fill(datapath.maps(), &tables);
        let frame = udp((HERE, 1), (WORLD, 2)).ethernet();
        let packet = TestPacket {
            ifindex: HERE_IFINDEX,
            ingress_ifindex: HERE_IFINDEX,
            bytes: &frame,
            repeat: 20_000,
        };
        datapath.test_run(Hook::FromPod, &packet).unwrap();
        let metrics = datapath.maps().metrics().unwrap();
        let dropped =
            metrics.counters[&(Hook::FromPod, Verdict::Dropped, Some(DropReason::PolicyDenied))].packets;
        assert_eq!(dropped, 20_000);
        assert!(metrics.lost_events > 0);
        // What has nobody to tell is decided all the same. Of what waits, two events would tell.
        for (to, verdict, events) in
            [(NEIGHBOUR, Verdict::Forwarded, 1), (THERE, Verdict::Held, 2), (WORLD, Verdict::Dropped, 1)]
        {
            let before = datapath.maps().metrics().unwrap().lost_events;
            let bytes = syn((HERE, 1), (to, 2)).ethernet();
            let packet = TestPacket { bytes: &bytes, repeat: 1, ..packet };
            assert_eq!(datapath.test_run(Hook::FromPod, &packet).unwrap().0, verdict, "{to:?}");
            assert_eq!(datapath.maps().metrics().unwrap().lost_events, before + events, "{to:?}");
        }
        let mut ring = datapath.events().unwrap();
        let taken = std::iter::from_fn(|| ring.next()).count();
        assert_eq!(u64::try_from(taken).unwrap() + metrics.lost_events, dropped);
    });
}

/// The kernel gives up after a million. Other kernels follow more paths than this one.
#[test]
fn the_verifiers_effort_is_bounded() {
    in_namespaces("the_verifiers_effort_is_bounded", |pin_dir| {
        let mut datapath = open(&pin_dir);
        for hook in Hook::ALL {
            let program = program(&mut datapath.ebpf, hook).unwrap();
            let verified = program.info().unwrap().verified_instruction_count().unwrap();
            println!("{}: {verified} instructions verified", hook.as_str());
            assert!(verified < 400_000, "{}: {verified}", hook.as_str());
        }
    });
}
