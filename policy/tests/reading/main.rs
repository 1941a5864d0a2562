//! The compiled map with the kernel's lookup order, against a reading of the documents themselves: an error of
//! the parser can't hide in both.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test that cannot go on fails"
)]

mod cluster;
mod document;
mod evaluator;

use policy::{
    Direction, DirectionTrace, Encryption, Input, Nodes, Policy, PolicySet, TraceVerdict, Traffic, compile,
    lookup, trace_with_nodes,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use cluster::{End, NODES, ends, identities, locals, surroundings};
use document::{Document, documents};
use evaluator::{Question, Verdict};

fn packet() -> impl Strategy<Value = (u8, u16)> {
    let port = select(vec![80u16, 81, 82, 53, 79, 83, 84, 76, 443, 65535, 1]);
    let icmp = select(vec![8u16 << 8, 0, 8 << 8 | 3, 3 << 8, 11 << 8, 128 << 8, 135 << 8]);
    prop_oneof![
        6 => (select(vec![6, 6, 17, 132]), port),
        2 => (select(vec![1, 58]), icmp),
        1 => (select(vec![47, 112, 99]), Just(0)),
    ]
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100)
}

/// The policies of documents, as a file has them.
fn policies(documents: &[Document]) -> PolicySet {
    let policies = documents.iter().map(|document| {
        let read = serde_saphyr::from_str(&document.value.to_string()).unwrap();
        assert_eq!(document.value, read, "YAML");
        let policy = Policy::from_value(&read);
        assert_eq!(policy.is_err(), document.is_spoilt, "{policy:?}: {}", document.value);
        policy.unwrap_or_else(Policy::from)
    });
    policies.collect()
}

fn shown(documents: &[Document]) -> String {
    documents.iter().map(|document| document.value.to_string()).collect::<Vec<_>>().join("\n---\n")
}

/// What a trace says of one end.
fn traced(end: &DirectionTrace) -> Verdict {
    let mode = match end.authentication.as_str() {
        "disabled" => 0,
        "required" => 1,
        _ => 2,
    };
    let passes =
        (end.verdict == TraceVerdict::Allowed).then_some((mode, end.encryption == Encryption::Required));
    Verdict { passes, tried: end.audit }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_map_says_what_the_documents_say(bytes in vec(any::<u8>(), 0..500), packets in vec(packet(), 1..4)) {
        let documents = documents(&bytes, 4);
        let (policies, identities, surroundings) = (policies(&documents), identities(), surroundings());
        let places = policies.local_identities(&surroundings);
        let own = locals().map(|local| local.number(&places));
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        let compiled = compile(input, own);
        let pairs = locals().flat_map(|local| ends().map(move |remote| (local, remote)));
        for ((local, remote), (protocol, port)) in pairs.zip(packets.iter().copied().cycle()) {
            for direction in [Direction::Ingress, Direction::Egress] {
                let ingress = direction == Direction::Ingress;
                let question = Question { local, remote, ingress, protocol, port };
                let (from, to) = (local.number(&places), remote.number(&places));
                let choice = lookup(&compiled.map, from, to, direction, protocol, port);
                let passes = choice.filter(|choice| choice.entry.deny == 0);
                let found = Verdict {
                    passes: passes.map(|choice| (choice.auth_type, choice.entry.encryption == 1)),
                    tried: choice.is_some_and(|choice| choice.entry.audit == 1),
                };
                prop_assert_eq!(found, question.verdict(&documents), "{:?}\n{}", question, shown(&documents));
            }
        }
    }

    /// Policies for nodes, which traces look at alone.
    #[test]
    fn a_trace_of_a_node_says_what_the_documents_say(
        bytes in vec(any::<u8>(), 0..500), (protocol, port) in packet(), own in select(NODES.iter().collect::<Vec<_>>()),
        remote in select(ends().collect::<Vec<_>>()),
    ) {
        let documents = documents(&bytes, 4);
        let (policies, identities, surroundings) = (policies(&documents), identities(), surroundings());
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        let labels = &surroundings.nodes[own.name].labels;
        let places = policies.local_identities(&surroundings);
        let local = End::Node(own);
        let (here, there) = (local.number(&places), remote.number(&places));
        let traffic = Traffic { from: here, to: there, protocol, port };
        let egress = trace_with_nodes(input, traffic, Nodes { from: Some(labels), to: None }).egress;
        let traffic = Traffic { from: there, to: here, protocol, port };
        let ingress = trace_with_nodes(input, traffic, Nodes { from: None, to: Some(labels) }).ingress;
        for (ingress, found) in [(true, ingress), (false, egress)] {
            let question = Question { local, remote, ingress, protocol, port };
            prop_assert_eq!(traced(&found), question.verdict(&documents), "{:?}\n{}", question, shown(&documents));
        }
    }
}
