//! Sequences of packets, changes and waits through the programs, against the model of connections. What
//! changes is written as a daemon writes it, so generations are what re-opens connections. Each packet bears
//! a mark that somebody has set: no verdict is by that, and none is changed.

use std::path::Path;

use auth_ebpf_abi::{
    AddressEntry, AuthEntry, AuthKey, ConnectionEntry, ConnectionKey, DropReason, EndpointEntry, Hook,
    NodeEntry, Setting, Verdict,
};
use aya::programs::{TestRun as _, TestRunOptions};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use super::fill::{boot_time, fill};
use super::flow_model::{Change, Fate, Model, Step, Subject, follow, rule_entries, steps};
use super::frames::Parts;
use super::in_namespaces;
use super::scene::*;
use crate::datapath::program;
use crate::{Datapath, Maps, Metrics, Options};

const SECOND: u64 = 1_000_000_000;
const SESSION: u64 = 3600 * SECOND;
/// Sequences that a run tries.
const CASES: usize = 60;
/// Anybody who may open a raw socket sets one.
const FORGED_MARK: u32 = 0xf0f0_0e00;
/// A `__sk_buff`, and the places of its fields.
const CONTEXT: usize = 192;
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;

/// The programs, what they have counted so far, and until when their time has been told.
pub(super) struct Programs {
    pub(super) datapath: Datapath,
    counted: Metrics,
    told: u64,
}

impl Programs {
    pub(super) fn open(pin_dir: &Path) -> Self {
        let datapath = Datapath::open(&Options { pin_dir: pin_dir.to_owned() }).unwrap();
        let counted = datapath.maps().metrics().unwrap();
        Self { datapath, counted, told: boot_time() }
    }

    /// How much time has gone by since this was last asked: the clock does not wait for a slow machine.
    pub(super) fn since_told(&mut self) -> u64 {
        let now = boot_time();
        now - std::mem::replace(&mut self.told, now)
    }

    /// Nothing is known but the scene.
    fn begin(&mut self) -> Model {
        let mut tables = locked();
        let session = NodeEntry { expires: boot_time() + SESSION, epoch: 7, acknowledged: 1 };
        tables.nodes.insert(NODE, session);
        fill(self.datapath.maps(), &tables);
        self.since_told();
        Model::new(SESSION)
    }

    pub(super) fn maps(&self) -> Maps {
        self.datapath.maps().clone()
    }

    /// What has become of the packet that this hook has just met.
    pub(super) fn fate(&mut self, hook: Hook) -> Fate {
        let counted = self.datapath.maps().metrics().unwrap();
        let mut fates: Vec<(Hook, Verdict, Option<DropReason>)> = vec![];
        for (fate, count) in &counted.counters {
            let before = self.counted.counters.get(fate).copied().unwrap_or_default();
            fates.extend((before.packets < count.packets).then_some(*fate));
        }
        self.counted = counted;
        assert_eq!(fates.len(), 1, "one packet has one fate");
        let (at, verdict, reason) = fates[0];
        assert_eq!(at, hook);
        (verdict, reason)
    }

    /// The clock does not wait, so connections are made older; nobody is told.
    pub(super) fn age_connections(&self, time: u64) {
        let maps = self.maps();
        for table in [maps.connections(), maps.half_open()] {
            for (key, entry) in table.entries().unwrap() {
                let last_seen = earlier(entry.last_seen, time);
                let valid_until = earlier(entry.valid_until, time);
                table.write(&key, &ConnectionEntry { last_seen, valid_until, ..entry }).unwrap();
            }
        }
    }
}

/// So much before; of what has no end, the same.
pub(super) fn earlier(at: u64, time: u64) -> u64 {
    if at == u64::MAX { at } else { at.saturating_sub(time) }
}

impl Subject for Programs {
    fn change(&mut self, change: &Change) {
        let maps = self.maps();
        match *change {
            Change::Rule(key, rule) => {
                // No daemon removes what isn't there, which would re-open what the model takes for untouched.
                let there = maps.policy().keys().unwrap();
                let mut changes = rule_entries(key, rule);
                changes.retain(|(key, entry)| entry.is_some() || there.contains(key));
                maps.change_policy(changes.into_iter()).unwrap();
            }
            Change::Auth((remote, node), auth) => {
                let key = AuthKey { local: HERE_ID, remote, node, auth_type: 1, pad: 0 };
                match auth {
                    Some((time, epoch)) => {
                        let entry = AuthEntry { expires: boot_time() + time, epoch, flags: 0 };
                        maps.auth().insert(&key, &entry).unwrap();
                    }
                    None => drop(maps.auth().remove(&key).unwrap()),
                }
            }
            Change::Session(Some((time, epoch, acknowledged))) => {
                let entry = NodeEntry { expires: boot_time() + time, epoch, acknowledged };
                maps.nodes().insert(&NODE, &entry).unwrap();
            }
            Change::Session(None) => drop(maps.nodes().remove(&NODE).unwrap()),
            Change::Owner(owner) => {
                for address in [THERE, THERE_V6] {
                    match owner {
                        Some(identity) => {
                            let entry = AddressEntry { identity, node: NODE, flags: 0 };
                            maps.addresses().insert(&address, &entry).unwrap();
                        }
                        None => drop(maps.addresses().remove(&address).unwrap()),
                    }
                }
            }
            Change::Neighbour(true) => {
                let (identity, ifindex) = (NEIGHBOUR_ID, NEIGHBOUR_IFINDEX);
                let entry = EndpointEntry { identity, ifindex, epoch: 1, ..EndpointEntry::default() };
                maps.endpoints().insert(&NEIGHBOUR, &entry).unwrap();
            }
            Change::Neighbour(false) => drop(maps.endpoints().remove(&NEIGHBOUR).unwrap()),
            Change::Tunnel(there) => {
                let ifindex = if there { WIREGUARD_IFINDEX } else { 0 };
                maps.config().set(Setting::WireguardIfindex, ifindex.into()).unwrap();
            }
        }
    }

    fn wait(&mut self, time: u64) {
        self.age_connections(time);
        let maps = self.maps();
        let earlier = |at: u64| earlier(at, time);
        for (key, entry) in maps.fragments().entries().unwrap() {
            let expires = earlier(entry.expires);
            maps.fragments().write(&key, &auth_ebpf_abi::FragmentEntry { expires, ..entry }).unwrap();
        }
        for (key, entry) in maps.auth().entries().unwrap() {
            let expires = earlier(entry.expires);
            maps.auth().write(&key, &AuthEntry { expires, ..entry }).unwrap();
        }
        for (key, entry) in maps.nodes().entries().unwrap() {
            let expires = earlier(entry.expires).max(1);
            maps.nodes().write(&key, &NodeEntry { expires, ..entry }).unwrap();
        }
    }

    fn passed(&mut self) -> u64 {
        self.since_told()
    }

    fn run(&mut self, hook: Hook, ingress: u32, parts: &Parts) -> Fate {
        let bytes = parts.ethernet();
        let mut context = [0_u8; CONTEXT];
        for (place, value) in [(MARK, FORGED_MARK), (INGRESS_IFINDEX, ingress), (IFINDEX, HERE_IFINDEX)] {
            context[place..place + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let (mut after, mut output) = ([0_u8; CONTEXT], vec![0; bytes.len()]);
        let options = TestRunOptions {
            data_in: Some(&bytes),
            data_out: Some(&mut output),
            ctx_in: Some(&context),
            ctx_out: Some(&mut after),
            ..TestRunOptions::default()
        };
        program(&mut self.datapath.ebpf, hook).unwrap().test_run(options).unwrap();
        assert_eq!(after[MARK..MARK + 4], FORGED_MARK.to_ne_bytes(), "a mark was changed");
        assert_eq!(output, bytes, "no service, no change");
        self.fate(hook)
    }

    fn connections(&mut self) -> Vec<(ConnectionKey, ConnectionEntry)> {
        let maps = self.maps();
        let half_open = maps.half_open().entries().unwrap();
        maps.connections().entries().unwrap().into_iter().chain(half_open).collect()
    }

    fn datagrams(&mut self) -> usize {
        self.maps().fragments().entries().unwrap().len()
    }
}

/// Waits of which no sum is a timeout: the clock of the programs may be a tick behind that of this test.
pub(super) fn waits() -> Vec<u64> {
    [7_100_000, 23_010_000, 41_001_000, 97_000_100, 21_600_000_010].map(|micros| micros * 1_000).to_vec()
}

/// Whether nothing gets older by these waits than this machine, since there is no time before it was started.
pub(super) fn is_past(waits: impl Iterator<Item = u64>) -> bool {
    waits.sum::<u64>() < boot_time()
}

fn waited(step: &Step) -> Option<u64> {
    if let Step::Wait(time) = step { Some(*time) } else { None }
}

#[test]
fn sequences_of_packets_in_the_kernel_meet_the_models_fate() {
    in_namespaces("sequences_of_packets_in_the_kernel_meet_the_models_fate", |pin_dir| {
        let mut programs = Programs::open(&pin_dir);
        let mut runner = TestRunner::default();
        let steps = steps(waits());
        let sequences = std::iter::repeat_with(|| steps.new_tree(&mut runner).unwrap().current());
        for steps in sequences.filter(|steps| is_past(steps.iter().filter_map(waited))).take(CASES) {
            let mut model = programs.begin();
            if let Err(error) = follow(&mut model, &mut programs, &steps) {
                panic!("{error}\n{:?}\n{steps:#?}", programs.connections());
            }
        }
    });
}
