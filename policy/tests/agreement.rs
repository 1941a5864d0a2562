//! The compiled map with the kernel's lookup order, against a reading of the rules one by one.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod agreement {
    pub(crate) mod incremental;
    pub(crate) mod naive;
    pub(crate) mod plans;
    pub(crate) mod random;
}
use agreement::{naive, random};

use std::collections::BTreeMap;
use std::sync::LazyLock;

use policy::{
    AuthType, Direction, IdentityNumber, IdentitySet, Input, Policy, PolicySet, PortPrefix, RuleRef,
    Surroundings, compile, lookup,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::json;

use naive::{Question, Verdict};
use random::{PODS, STRANGER, cases, identities, packet, policy, policy_set, surroundings};

fn input<'a>(policies: &'a PolicySet, identities: &'a IdentitySet) -> Input<'a> {
    static SURROUNDINGS: LazyLock<Surroundings> = LazyLock::new(surroundings);
    Input { policies, identities, surroundings: &SURROUNDINGS }
}

fn remotes(policies: &PolicySet) -> Vec<IdentityNumber> {
    let local = policies.local_identities(&surroundings());
    let outside = local.remotes().map(|remote| remote.number);
    (1..=10).chain(PODS).chain([STRANGER]).chain(outside).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_map_says_what_the_rules_say(policies in policy_set(), packets in vec(packet(), 8)) {
        let identities = identities();
        let input = input(&policies, &identities);
        let compiled = compile(input, PODS);
        let local_identities = policies.local_identities(input.surroundings);
        for local in PODS {
            for remote in remotes(&policies) {
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
