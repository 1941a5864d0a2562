//! The compiled map with the kernel's lookup order, against a reading of the rules one by one.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod agreement {
    pub(crate) mod changes;
    pub(crate) mod incremental;
    pub(crate) mod naive;
    pub(crate) mod plans;
    pub(crate) mod random;
    pub(crate) mod scenery;
}
use agreement::{naive, random, scenery};

use std::collections::BTreeMap;
use std::sync::LazyLock;

use policy::{
    AuthType, Authentication, Direction, DirectionTrace, Encryption, IdentityNumber, IdentitySet, Input,
    LocalIdentities, Policy, PolicySet, PortPrefix, RuleRef, Surroundings, TraceVerdict, Traffic, compile,
    lookup,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use naive::{Question, Verdict};
use random::{PODS, STRANGER, cases, identities, packet, policy, policy_set, surroundings};
use scenery::scenery;

fn input<'a>(policies: &'a PolicySet, identities: &'a IdentitySet) -> Input<'a> {
    static SURROUNDINGS: LazyLock<Surroundings> = LazyLock::new(surroundings);
    Input { policies, identities, surroundings: &SURROUNDINGS }
}

/// Everyone whom a rule may be about, and someone of whom nothing is known.
fn remotes(places: &LocalIdentities) -> Vec<IdentityNumber> {
    let outside = places.remotes().map(|remote| remote.number);
    (1..=10).chain(PODS).chain([STRANGER]).chain(outside).collect()
}

fn auth_type(word: Authentication) -> AuthType {
    let words = [
        ("disabled", AuthType::Disabled),
        ("required", AuthType::Spire),
        ("test-always-fail", AuthType::AlwaysFail),
    ];
    words.into_iter().find(|(name, _)| *name == word.as_str()).unwrap().1
}

/// What a trace says of one end.
fn traced(end: &DirectionTrace) -> Verdict {
    let passes = (end.verdict == TraceVerdict::Allowed)
        .then(|| (auth_type(end.authentication), end.encryption == Encryption::Required));
    Verdict { passes, tried: end.audit }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_map_says_what_the_rules_say(
        policies in policy_set(), surroundings in scenery(), packets in vec(packet(), 8),
    ) {
        let identities = identities();
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        let compiled = compile(input, PODS);
        let local_identities = policies.local_identities(input.surroundings);
        for local in PODS {
            for remote in remotes(&local_identities) {
                for direction in [Direction::Ingress, Direction::Egress] {
                    for (protocol, port) in &packets {
                        let choice = lookup(&compiled.map, local, remote, direction, *protocol, *port);
                        let passes = choice.filter(|choice| choice.entry.deny == 0).map(|choice| {
                            (AuthType::from_number(choice.auth_type).unwrap(), choice.entry.encryption == 1)
                        });
                        let found = Verdict { passes, tried: choice.is_some_and(|choice| choice.entry.audit == 1) };
                        let packet = PortPrefix::port(*protocol, *port);
                        let expected = Question { input, local, remote, direction, packet, places: &local_identities }.naive();
                        prop_assert_eq!(
                            found, expected,
                            "{} {:?} {} {}/{}: {:?}", local, direction, remote, protocol, port, choice
                        );
                        let is_required = found.passes.is_some_and(|(auth, _)| auth == AuthType::Spire);
                        if is_required && !policy::reserved::is_reserved(remote) {
                            prop_assert!(compiled.asks_authentication(local, remote));
                        }
                    }
                }
            }
        }
    }

    /// Both ends of a pair: a trace says of each what its rules say, and of both what either asks for.
    #[test]
    fn a_trace_says_what_the_rules_of_both_ends_say(
        policies in policy_set(), surroundings in scenery(), from in PODS, to in PODS, packets in vec(packet(), 4),
    ) {
        let identities = identities();
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        let places = policies.local_identities(&surroundings);
        for (protocol, port) in packets {
            let trace = policy::trace(input, Traffic { from, to, protocol, port });
            let packet = PortPrefix::port(protocol, port);
            let said = |local, remote, direction| {
                Question { input, local, remote, direction, packet, places: &places }.naive()
            };
            let ends = [said(from, to, Direction::Egress), said(to, from, Direction::Ingress)];
            prop_assert_eq!([traced(&trace.egress), traced(&trace.ingress)], ends);
            let both = ends[0].passes.zip(ends[1].passes);
            prop_assert_eq!(trace.verdict == TraceVerdict::Allowed, both.is_some());
            if let Some((egress, ingress)) = both {
                prop_assert_eq!(auth_type(trace.authentication), egress.0.max(ingress.0));
                prop_assert_eq!(trace.encryption == Encryption::Required, egress.1 || ingress.1);
            }
        }
    }

    #[test]
    fn entries_are_well_formed(policies in policy_set()) {
        let identities = identities();
        let compiled = compile(input(&policies, &identities), PODS);
        for ((key, bits), entry) in &compiled.map {
            prop_assert!(PODS.contains(&key.local));
            prop_assert_eq!(u32::from(entry.port_prefix), bits - 72);
            prop_assert!(compiled.rules.contains_key(&entry.cookie), "{:?}", entry);
            let denies = matches!(&compiled.rules[&entry.cookie], RuleRef::Refused { .. } | RuleRef::DefaultDeny { .. })
                || matches!(&compiled.rules[&entry.cookie], RuleRef::Rule { list, .. } if list.is_deny());
            prop_assert_eq!(entry.deny == 1, denies);
            prop_assert_eq!(entry.precedence == u32::MAX, denies && entry.audit == 0);
        }
    }

    #[test]
    fn compiling_is_deterministic_and_local(policies in policy_set(), local in PODS) {
        let identities = identities();
        let all = compile(input(&policies, &identities), PODS);
        prop_assert_eq!(&all, &compile(input(&policies, &identities), PODS.rev()));
        let mut one = compile(input(&policies, &identities), [local]).map;
        let same: BTreeMap<_, _> =
            all.map.into_iter().filter(|((key, _), _)| key.local == local).collect();
        prop_assert_eq!(&one, &same);
        one.retain(|_, entry| entry.deny == 0 && entry.precedence == u32::MAX);
        prop_assert!(one.is_empty());
    }

    /// Whatever bytes of JSON: an answer, and never an allowance by what wasn't understood.
    #[test]
    fn parsing_never_panics(mut value in policy(), path in select(vec![
        "/spec", "/spec/ingress", "/spec/ingress/0", "/spec/egress/0/toPorts", "/spec/endpointSelector", "/metadata",
        "/kind", "/spec/ingress/0/fromEndpoints", "/spec/ingress/0/toPorts/0/ports/0",
    ]), junk in select(vec![json!(1), json!("x"), json!([]), json!([1]), json!({"x": {}}), json!(null), json!(true)])) {
        value["metadata"]["name"] = json!("p");
        if let Some(place) = value.pointer_mut(path) {
            *place = junk;
        }
        if let Err(error) = Policy::from_value(&value) {
            prop_assert!(!error.fault().path.is_empty(), "{}", error);
            prop_assert!(error.into_policy().refused.is_some_and(|scope| !scope.is_empty()));
        }
    }
}
