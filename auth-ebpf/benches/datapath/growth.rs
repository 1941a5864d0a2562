//! Decisions over tables that grow, with keys at random: about one packet again and again, as the other cases
//! have it, and about another one with each run, so that nothing is hot but what fits the caches.

use std::collections::BTreeMap;

use auth_ebpf::abi::{
    Address, AddressEntry, AuthEntry, AuthKey, AuthType, Direction, Hook, NodeEntry, PolicyEntry, PolicyKey,
    Verdict,
};
use auth_ebpf::{Choices, Datapath, TestPacket};

use crate::fill::{at_boot_time, fill};
use crate::frames::ack;
use crate::report::{Report, median};
use crate::scene::*;
use crate::tables::Tables;

/// The sizes take turns, each with so many measurements of so many packets.
const ROUNDS: usize = 3;
const RUNS: usize = 5;
const REPEAT: u32 = 100_000;
const FLAT: f64 = 1.15;

/// Peers' addresses, the same at every size.
const PEERS: u32 = 100_000;
const FIRST_PEER: u32 = 1_000;

fn peer(number: u32) -> Address {
    let [_, a, b, c] = number.to_be_bytes();
    v4([11, a, b, c])
}

/// A cluster of [`PEERS`] pods elsewhere, which have `identities` between them.
fn crowd(identities: u32) -> Tables {
    let mut tables = locked();
    tables.prefixes.clear();
    tables.nodes.insert(NODE, NodeEntry { expires: NOW + 1, epoch: 7, acknowledged: 1 });
    for number in 0..PEERS {
        let entry = AddressEntry { identity: FIRST_PEER + number % identities, node: NODE, flags: 0 };
        tables.addresses.insert(peer(number), entry);
    }
    tables
}

fn rule(remote: u32, port: u16, auth_type: AuthType) -> ((PolicyKey, u32), PolicyEntry) {
    let key = PolicyKey {
        local: HERE_ID,
        remote,
        direction: Direction::Egress as u8,
        protocol: 6,
        port: port.to_be_bytes(),
    };
    let entry = PolicyEntry {
        precedence: 1,
        port_prefix: 24,
        auth_type: auth_type as u8,
        auth_explicit: 1,
        ..PolicyEntry::default()
    };
    ((key, PolicyKey::FULL_BITS), entry)
}

/// `identities` × `ports` rules without authentication.
fn policies(identities: u32, ports: u16) -> Tables {
    let mut tables = crowd(identities);
    tables.policy = (0..identities)
        .flat_map(|number| {
            (0..ports).map(move |port| rule(FIRST_PEER + number, 1 + port, AuthType::Disabled))
        })
        .collect();
    tables
}

/// `identities` authenticated pairs, each allowed by a rule for any identity.
fn authentications(identities: u32) -> Tables {
    let mut tables = crowd(identities);
    tables.policy = BTreeMap::from([rule(0, 1, AuthType::Spire)]);
    tables.auth = (0..identities)
        .map(|number| {
            let key = AuthKey {
                local: HERE_ID,
                remote: FIRST_PEER + number,
                node: NODE,
                auth_type: AuthType::Spire as u8,
                pad: 0,
            };
            (key, AuthEntry { expires: NOW + 1, epoch: 7, flags: 0 })
        })
        .collect();
    tables
}

/// Which packets are decided on.
#[derive(Clone, Copy)]
enum Packets {
    Same,
    /// To peers and ports at random.
    Varied,
}

/// What a decision costs.
fn cost(datapath: &mut Datapath, packets: Packets, ports: u16) -> f64 {
    let bytes = ack((HERE, 9), (peer(0), 1)).ethernet();
    let packet =
        TestPacket { ifindex: HERE_IFINDEX, ingress_ifindex: HERE_IFINDEX, bytes: &bytes, repeat: REPEAT };
    let choices = match packets {
        Packets::Same => Choices { addresses: 1, ports: 1 },
        Packets::Varied => Choices { addresses: PEERS, ports: u32::from(ports) },
    };
    let baseline = datapath.test_run_varied(None, &packet, choices).unwrap();
    let cost = datapath.test_run_varied(Some(Hook::FromPod), &packet, choices).unwrap();
    cost.as_nanos() as f64 - baseline.as_nanos() as f64
}

fn dropped(datapath: &Datapath) -> u64 {
    let counters = datapath.maps().metrics().unwrap().counters;
    counters
        .iter()
        .filter(|((_, verdict, _), _)| *verdict == Verdict::Dropped)
        .map(|(_, of)| of.packets)
        .sum()
}

/// One size of a table.
struct Size {
    entries: &'static str,
    tables: Tables,
    ports: u16,
}

/// Measures two sizes in turns.
fn grow(datapath: &mut Datapath, report: &mut Report, what: &str, sizes: [Size; 2]) {
    let dropped_before = dropped(datapath);
    let kinds = [(Packets::Same, "the same packet"), (Packets::Varied, "another packet each time")];
    let mut costs = kinds.map(|_| [vec![], vec![]]);
    for _ in 0..ROUNDS {
        for (nth, size) in sizes.iter().enumerate() {
            let mut tables = size.tables.clone();
            at_boot_time(&mut tables);
            fill(datapath.maps(), &tables);
            for ((packets, _), costs) in kinds.iter().zip(&mut costs) {
                // The first packets bring programs and tables into the caches.
                cost(datapath, *packets, size.ports);
                costs[nth].extend((0..RUNS).map(|_| cost(datapath, *packets, size.ports)));
            }
        }
    }
    assert_eq!(dropped(datapath), dropped_before, "every packet is allowed and authenticated");
    for ((_, packets), costs) in kinds.iter().zip(costs) {
        let [few, many] = costs.map(median);
        for (size, cost) in sizes.iter().zip([few, many]) {
            report.cost(&format!("decision over {} {what}, {packets}", size.entries), cost, None);
        }
        report.ratio(&format!("decision over {what}, {packets}, growth"), many / few, FLAT);
    }
}

pub(crate) fn measure(datapath: &mut Datapath, report: &mut Report) {
    let policies = [
        Size { entries: "100", tables: policies(100, 1), ports: 1 },
        Size { entries: "100,000", tables: policies(1_000, 100), ports: 100 },
    ];
    grow(datapath, report, "policy entries", policies);
    let authentications = [
        Size { entries: "10", tables: authentications(10), ports: 1 },
        Size { entries: "100,000", tables: authentications(PEERS), ports: 1 },
    ];
    grow(datapath, report, "authentications", authentications);
}
