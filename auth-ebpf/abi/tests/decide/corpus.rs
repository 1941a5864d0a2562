//! The fuzz target's corpus, replayed; and packets that are put together at random.

use std::path::{Path, PathBuf};

use auth_ebpf_abi::Hook;
use proptest::prelude::*;

use super::frames::{Parts, ack, arp, error, icmp, neighbour, syn, syn_ack, udp};
use super::hostile::decide_all;
use super::scene::*;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/decide")
}

#[test]
fn the_corpus_upsets_nothing() {
    let mut replayed = 0;
    for entry in std::fs::read_dir(directory()).unwrap() {
        decide_all(&std::fs::read(entry.unwrap().path()).unwrap());
        replayed += 1;
    }
    assert!(replayed >= seeds().len(), "{replayed} inputs in {}", directory().display());
}

/// The same file for each seed, so that the corpus shows when a seed has changed.
#[test]
fn the_corpus_holds_the_seeds() {
    for (name, seed) in seeds() {
        let path = directory().join(name);
        if std::env::var_os("WRITE_CORPUS").is_some() {
            std::fs::write(&path, &seed).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == seed, "{name}: write it anew with WRITE_CORPUS=1");
    }
}

/// A packet as the fuzz target takes it.
fn framed(hook: Hook, interface: u8, bytes: &[u8]) -> Vec<u8> {
    let place = interface * 6 + (hook as u8 - 1);
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[place], length.as_slice(), bytes].concat()
}

fn out(parts: &Parts) -> Vec<u8> {
    framed(Hook::FromPod, 1, &parts.ethernet())
}

fn back(parts: &Parts) -> Vec<u8> {
    framed(Hook::ToPod, 3, &parts.ethernet())
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let first = Parts { fragment: 0x2000, payload: vec![0; 32], ..udp((HERE, 1), (THERE, 2)) };
    let later = Parts { fragment: 4, payload: vec![0; 8], ..first.clone() };
    let v6 = udp((HERE_V6, 1), (THERE_V6, 2));
    vec![
        (
            "tcp",
            [
                out(&syn((HERE, 1), (THERE, 80))),
                back(&syn_ack((THERE, 80), (HERE, 1))),
                out(&ack((HERE, 1), (THERE, 80))),
            ]
            .concat(),
        ),
        ("udp6", [out(&v6), back(&udp((THERE_V6, 2), (HERE_V6, 1)))].concat()),
        ("echo", [out(&icmp(HERE, THERE, 8, 5)), back(&icmp(THERE, HERE, 0, 5))].concat()),
        (
            "error",
            [out(&syn((HERE, 1), (THERE, 80))), back(&error(3, THERE, HERE, &ack((HERE, 1), (THERE, 80))))]
                .concat(),
        ),
        ("fragments", [out(&first), out(&later)].concat()),
        ("fragments6", out(&Parts { extensions: vec![(44, vec![0, 0, 1, 0, 0, 0, 9])], ..v6.clone() })),
        (
            "extensions",
            out(&Parts {
                extensions: vec![(0, vec![0; 7]), (43, vec![0, 4, 0, 0, 0, 0, 0]), (60, vec![0; 7])],
                ..v6
            }),
        ),
        ("neighbour", out(&neighbour(136, LINK_LOCAL, ALL_NODES, HERE_V6, 255))),
        ("arp", framed(Hook::FromPod, 1, &arp([10, 0, 1, 10], [10, 0, 1, 1]))),
        ("uplink", framed(Hook::FromUplink, 4, &udp((THERE, 1), (HOST, 2)).ethernet())),
        ("tunnel", framed(Hook::FromWireguard, 3, &udp((THERE, 1), (HERE, 2)).ip())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Seeds after one another, with some bytes changed.
    #[test]
    fn no_sequence_of_broken_packets_upsets_it(
        chosen in prop::collection::vec(0..11_usize, 1..5),
        damage in prop::collection::vec((0..400_usize, any::<u8>()), 0..6),
    ) {
        let seeds = seeds();
        let mut data: Vec<u8> = chosen.iter().flat_map(|place| seeds[*place].1.clone()).collect();
        for (at, value) in damage {
            if let Some(byte) = data.get_mut(at) {
                *byte = value;
            }
        }
        decide_all(&data);
    }
}
