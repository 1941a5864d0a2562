//! Sequences of packets, changes and waits against the model of connections.

use std::collections::BTreeMap;

use auth_ebpf_abi::{
    AddressEntry, AuthEntry, AuthKey, ConnectionEntry, ConnectionKey, DropReason, EndpointEntry, Hook,
    NodeEntry, Setting,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::flow_model::{Change, Fate, Model, Subject, follow, rule_entries, steps};
use super::frames::Parts;
use super::scene::*;
use super::tables::Tables;

const SECOND: u64 = 1_000_000_000;
const SESSION: u64 = 3600 * SECOND;

impl Subject for Tables {
    fn change(&mut self, change: &Change) {
        let now = self.now.get();
        match *change {
            Change::Rule(key, rule) => {
                for (key, entry) in rule_entries(key, rule) {
                    if put(&mut self.policy, key, entry) {
                        reopen(self, HERE_ID, key.0.remote);
                    }
                }
            }
            Change::Auth((remote, node), auth) => {
                let key = AuthKey { local: HERE_ID, remote, node, auth_type: 1, pad: 0 };
                let entry = auth.map(|(time, epoch)| AuthEntry { expires: now + time, epoch, flags: 0 });
                if put(&mut self.auth, key, entry) {
                    reopen(self, HERE_ID, remote);
                }
            }
            Change::Session(session) => {
                let entry = session.map(|(time, epoch, acknowledged)| NodeEntry {
                    expires: now + time,
                    epoch,
                    acknowledged,
                });
                if put(&mut self.nodes, NODE, entry) {
                    reopen_all(self);
                }
            }
            Change::Owner(owner) => {
                let entry = owner.map(|identity| AddressEntry { identity, node: NODE, flags: 0 });
                for address in [THERE, THERE_V6] {
                    if put(&mut self.addresses, address, entry) {
                        reopen_all(self);
                    }
                }
            }
            Change::Neighbour(there) => {
                let (identity, ifindex) = (NEIGHBOUR_ID, NEIGHBOUR_IFINDEX);
                let entry = EndpointEntry { identity, ifindex, epoch: 1, ..EndpointEntry::default() };
                if put(&mut self.endpoints, NEIGHBOUR, there.then_some(entry)) {
                    reopen_all(self);
                }
            }
            Change::Tunnel(there) => {
                let ifindex = if there { WIREGUARD_IFINDEX.into() } else { 0 };
                if self.settings.insert(Setting::WireguardIfindex, ifindex) != Some(ifindex) {
                    reopen_all(self);
                }
            }
        }
    }

    fn wait(&mut self, time: u64) {
        self.now.set(self.now.get() + time);
    }

    fn run(&mut self, hook: Hook, ingress: u32, parts: &Parts) -> Fate {
        run(self, context(hook, ingress), &parts.ethernet())
    }

    fn connections(&mut self) -> Vec<(ConnectionKey, ConnectionEntry)> {
        connections(self)
    }

    fn datagrams(&mut self) -> usize {
        self.fragments.borrow().len()
    }
}

/// Puts a value, or takes away what is there; whether that touches anything.
fn put<K: Ord, V>(table: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) => {
            table.insert(key, value);
            true
        }
        None => table.remove(&key).is_some(),
    }
}

fn begin() -> (Model, Tables) {
    let mut tables = locked();
    tables.nodes.insert(NODE, NodeEntry { expires: NOW + SESSION, epoch: 7, acknowledged: 1 });
    (Model::new(SESSION), tables)
}

/// Waits by which timeouts are met to the nanosecond, and missed by one.
fn waits() -> Vec<u64> {
    let seconds = [1, 10, 30, 49, 60, 120, 6 * 3600];
    seconds.iter().flat_map(|time| [time * SECOND, time * SECOND - 1]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn sequences_of_packets_meet_the_models_fate(steps in steps(waits())) {
        let (mut model, mut tables) = begin();
        follow(&mut model, &mut tables, &steps)?;
    }
}

/// What the sequences come to: every fate that the model knows, and connections at every stage.
#[test]
fn sequences_reach_what_they_are_for() {
    let mut runner = TestRunner::deterministic();
    let mut fates = BTreeMap::new();
    let (mut answered, mut closed, mut followed) = (0, 0, 0);
    for _ in 0..200 {
        let steps = steps(waits()).new_tree(&mut runner).unwrap().current();
        let (mut model, mut tables) = begin();
        for (_, reason) in follow(&mut model, &mut tables, &steps).unwrap() {
            *fates.entry(reason.map_or("", DropReason::as_str)).or_insert(0) += 1;
        }
        let entries = connections(&tables);
        answered += entries.iter().filter(|(_, entry)| entry.is_answered()).count();
        closed += entries.iter().filter(|(_, entry)| entry.is_closed()).count();
        followed += tables.fragments.borrow().len();
    }
    let all = [
        DropReason::AddressUnannounced,
        DropReason::AuthImpossible,
        DropReason::AuthRequired,
        DropReason::Fragment,
        DropReason::NoEndpoint,
        DropReason::NoNodeSession,
        DropReason::PolicyDenied,
        DropReason::PolicyDeny,
        DropReason::Spoofed,
        DropReason::Unencrypted,
        DropReason::UnknownDestination,
        DropReason::UnknownSource,
    ];
    assert_eq!(fates.len(), all.len() + 1, "{fates:?}");
    assert!(all.iter().all(|reason| fates[reason.as_str()] >= 3), "{fates:?}");
    assert!(fates[""] > 1_000, "{fates:?}");
    assert!(answered > 100 && closed > 10 && followed > 50, "{answered} {closed} {followed}");
}
