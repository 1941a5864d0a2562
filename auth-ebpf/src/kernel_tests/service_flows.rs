//! Sequences of calls to a service, of answers, and of changes behind it through the programs, against the
//! model of whom each call goes to. What changes is written as a daemon writes it.

use std::collections::BTreeSet;

use auth_ebpf_abi::packet::protocol;
use auth_ebpf_abi::{
    Address, AddressFlags, AffinityEntry, Direction, Hook, NodeEntry, PolicyEntry, PolicyKey, Verdict,
};
use proptest::arbitrary::any;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use super::checksum::sealed;
use super::fill::fill;
use super::flows::{Programs, earlier, is_past, waits};
use super::frames::Parts;
use super::in_namespaces;
use super::scene::*;
use super::service_model::{BACKENDS, BEHIND, Outcome, PORT, Step, Subject, follow, steps};
use crate::{Backends, TestPacket};

/// Sequences that a run tries.
const CASES: usize = 60;
/// Places in a frame of IPv4 without options.
const SOURCE: usize = 14 + 12;
const DESTINATION: usize = 14 + 16;
const SOURCE_PORT: usize = 14 + 20;
const DESTINATION_PORT: usize = 14 + 22;

impl Subject for Programs {
    fn serve(&mut self, ends: &BTreeSet<usize>, affinity: u32) {
        let ports = [protocol::TCP, protocol::UDP].map(|protocol| service_key(SERVICE, PORT, protocol));
        let backends = ends.iter().map(|it| (BACKENDS[*it].0, BEHIND)).collect();
        let group = Backends { ports: ports.into(), affinity, backends };
        self.maps().change_services(&[group]).unwrap();
    }

    fn allow(&mut self, ends: &BTreeSet<usize>) {
        let entries = BACKENDS.iter().enumerate().map(|(at, (_, remote, _))| {
            let key = PolicyKey {
                local: HERE_ID,
                remote: *remote,
                direction: Direction::Egress as u8,
                ..PolicyKey::default()
            };
            let entry = PolicyEntry { precedence: 1, ..PolicyEntry::default() };
            ((key, PolicyKey::prefix_len(None)), ends.contains(&at).then_some(entry))
        });
        self.maps().change_policy(entries).unwrap();
    }

    fn wait(&mut self, time: u64) {
        self.age_connections(time);
        let maps = self.maps();
        for (key, entry) in maps.affinities().entries().unwrap() {
            let until = earlier(entry.until, time);
            maps.affinities().write(&key, &AffinityEntry { until, ..entry }).unwrap();
        }
    }

    fn passed(&mut self) -> u64 {
        self.since_told()
    }

    fn run(&mut self, hook: Hook, ingress: u32, parts: &Parts) -> Outcome {
        let sent = sealed(&parts.ethernet());
        let packet = TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: ingress, bytes: &sent, repeat: 1 };
        let (_, bytes) = self.datapath.test_run_output(hook, &packet).unwrap();
        let (place, port_place, port) = match hook.direction() {
            Direction::Egress => (DESTINATION, DESTINATION_PORT, BEHIND),
            Direction::Ingress => (SOURCE, SOURCE_PORT, PORT),
        };
        let mut expected = sent;
        match self.fate(hook) {
            (Verdict::Forwarded, None) => {
                expected[place..place + 4].copy_from_slice(&bytes[place..place + 4]);
                expected[port_place..port_place + 2].copy_from_slice(&port.to_be_bytes());
                assert_eq!(bytes, sealed(&expected), "nothing else changes");
                Ok(Address::from_v4(*bytes[place..].first_chunk().unwrap()))
            }
            (verdict, reason) => {
                assert_eq!((verdict, bytes), (Verdict::Dropped, expected));
                Err(reason.unwrap())
            }
        }
    }
}

impl Programs {
    /// Nothing is known but the scene, and that there is an address of services.
    fn begin_without_services(&mut self) {
        let mut tables = locked();
        let session = NodeEntry { expires: u64::MAX, epoch: 7, acknowledged: 1 };
        tables.nodes.insert(NODE, session);
        tables.addresses.entry(SERVICE).or_default().flags |= AddressFlags::SERVICE;
        fill(&self.maps(), &tables);
        self.since_told();
    }
}

fn waited(step: &Step) -> Option<u64> {
    if let Step::Wait(time) = step { Some(*time) } else { None }
}

#[test]
fn calls_to_a_service_in_the_kernel_go_to_the_models_backend() {
    in_namespaces("calls_to_a_service_in_the_kernel_go_to_the_models_backend", |pin_dir| {
        let mut programs = Programs::open(&pin_dir);
        let mut runner = TestRunner::default();
        let cases = (steps(waits()), any::<bool>());
        let sequences = std::iter::repeat_with(|| cases.new_tree(&mut runner).unwrap().current());
        for (steps, affinity) in
            sequences.filter(|(steps, _)| is_past(steps.iter().filter_map(waited))).take(CASES)
        {
            programs.begin_without_services();
            if let Err(error) = follow(&mut programs, &steps, affinity, true) {
                panic!("{error}\naffinity {affinity}, {steps:#?}");
            }
        }
    });
}
