//! Every state that a plan goes through.

use std::collections::BTreeSet;

use policy::{
    Direction, IdentityNumber, IdentitySet, Input, MapKey, Plan, PolicyMap, PolicySet, Step, compile, lookup,
};
use proptest::prelude::*;

use crate::random::{PODS, STRANGER, cases, close_quarters, identities, policy_set, surroundings};

/// What a packet needs to pass: authentication, encryption; none if it is dropped.
type Needs = Option<(u8, u8)>;

/// What the kernel says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    needs: Needs,
    reported: Option<(u8, u8)>,
}

type Packet = (IdentityNumber, IdentityNumber, Direction, u8, u16);

fn said(map: &PolicyMap, (local, remote, direction, protocol, port): Packet) -> Said {
    let choice = lookup(map, local, remote, direction, protocol, port);
    let passes = choice.filter(|choice| choice.entry.deny == 0 || choice.entry.audit == 1);
    let needs = passes.map(|choice| {
        let auth = if choice.entry.audit == 1 { 0 } else { choice.auth_type };
        (auth, choice.entry.encryption)
    });
    let audited = choice.filter(|choice| choice.entry.audit == 1);
    Said { needs, reported: audited.map(|choice| (choice.entry.deny, choice.auth_type)) }
}

/// Whether `this` asks for all that `other` asks for.
fn is_at_least(this: Needs, other: Needs) -> bool {
    match (this, other) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(this), Some(other)) => this.0 >= other.0 && this.1 >= other.1,
    }
}

/// Protocols and ports at the edges of every prefix in the maps.
fn edges(maps: &[&PolicyMap]) -> BTreeSet<(u8, u16)> {
    let mut edges = BTreeSet::from([(6, 0), (17, 80), (47, 0), (1, 8 << 8)]);
    for (key, bits) in maps.iter().flat_map(|map| map.keys()) {
        let port = u16::from_be_bytes(key.port);
        let protocol = if *bits == 72 { 6 } else { key.protocol };
        let size = 1u32 << (96 - (*bits).max(80));
        let last = u16::try_from(u32::from(port) + size - 1).unwrap();
        edges.extend(
            [port, port.saturating_sub(1), last, last.saturating_add(1)].map(|port| (protocol, port)),
        );
    }
    edges
}

/// Every remote identity in the maps, those of prefixes too, and some that are in none.
fn remotes(maps: &[&PolicyMap]) -> BTreeSet<IdentityNumber> {
    let known = maps.iter().flat_map(|map| map.keys()).map(|(key, _)| key.remote);
    known.chain(1..=10).chain(PODS).chain([STRANGER]).filter(|remote| *remote != 0).collect()
}

fn is_under((key, bits): &MapKey, (protocol, port): (u8, u16)) -> bool {
    let value = |protocol: u8, port: [u8; 2]| u32::from_be_bytes([0, protocol, port[0], port[1]]);
    let shift = 96 - *bits;
    value(key.protocol, key.port) >> shift == value(protocol, port.to_be_bytes()) >> shift
}

fn do_step(map: &mut PolicyMap, step: &Step) {
    match step {
        Step::Put(key, entry) => {
            map.insert(*key, *entry);
        }
        Step::Remove(key) => {
            assert!(map.remove(key).is_some(), "only what is there is removed");
        }
    }
}

/// Makes all steps; after each, `check` gets every packet that the step can touch: what was said of it at the
/// beginning, is said now, and will be at the end.
fn walk(
    old: &PolicyMap,
    new: &PolicyMap,
    plan: &Plan,
    check: impl Fn(Said, Said, Said) -> bool,
) -> PolicyMap {
    let packets = edges(&[old, new]);
    let remotes = remotes(&[old, new]);
    let mut now = old.clone();
    let mut peak = now.len();
    for (at, step) in plan.steps.iter().enumerate() {
        do_step(&mut now, step);
        peak = peak.max(now.len());
        let (key, _) = step.key();
        let direction = Direction::from_number(key.direction).unwrap();
        let touched = remotes.iter().filter(|remote| key.remote == 0 || key.remote == **remote);
        for remote in touched {
            for (protocol, port) in packets.iter().filter(|packet| is_under(step.key(), **packet)) {
                let packet = (key.local, *remote, direction, *protocol, *port);
                let (before, meanwhile, after) = (said(old, packet), said(&now, packet), said(new, packet));
                assert!(
                    check(before, meanwhile, after),
                    "step {at} of {:?}: {packet:?} {before:?} {meanwhile:?} {after:?}",
                    plan.steps
                );
            }
        }
    }
    assert_eq!((peak, now.len()), (plan.peak, plan.after));
    now
}

fn compiled(policies: &PolicySet, identities: &IdentitySet) -> PolicyMap {
    compiled_for(policies, identities, PODS)
}

fn compiled_for(
    policies: &PolicySet,
    identities: &IdentitySet,
    locals: impl IntoIterator<Item = IdentityNumber>,
) -> PolicyMap {
    let surroundings = surroundings();
    compile(Input { policies, identities, surroundings: &surroundings }, locals).map
}

fn no_limit(old: &PolicyMap, new: &PolicyMap) -> Plan {
    Plan::between(old, new, usize::MAX).unwrap()
}

/// What no state may be: laxer than both ends, or dropping what both let pass.
fn is_between(before: Said, meanwhile: Said, after: Said) -> bool {
    let most = before.needs.zip(after.needs).map(|(a, b)| (a.0.max(b.0), a.1.max(b.1)));
    (is_at_least(meanwhile.needs, before.needs) || is_at_least(meanwhile.needs, after.needs))
        && most.is_none_or(|most| is_at_least(Some(most), meanwhile.needs))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases().div_ceil(4), ..ProptestConfig::default() })]

    /// Each packet has the old verdict or the new one at every step, which is more than `is_between`.
    #[test]
    fn every_state_is_old_or_new(old in policy_set(), new in policy_set(), kept in 0usize..4) {
        let identities = identities();
        let mixed: PolicySet = new.iter().skip(kept).chain(old.iter().take(kept)).cloned().collect();
        let (old, new) = (compiled(&old, &identities), compiled(&mixed, &identities));
        let plan = no_limit(&old, &new);
        let end = walk(&old, &new, &plan, |before, now, after| {
            is_between(before, now, after) && (now == before || now == after)
        });
        prop_assert_eq!(end, new);
    }

    /// The same where rules are so alike that each entry matters.
    #[test]
    fn every_state_in_close_quarters(
        steps in proptest::collection::vec((close_quarters(), close_quarters()), 10),
    ) {
        let identities = identities();
        for (old, new) in steps {
            let (old, new) = (compiled_for(&old, &identities, [256]), compiled_for(&new, &identities, [256]));
            let plan = no_limit(&old, &new);
            let end = walk(&old, &new, &plan, |before, now, after| {
                is_between(before, now, after) && (now == before || now == after)
            });
            prop_assert_eq!(end, new);
        }
    }

    /// The same from whatever a daemon has left that died between two steps, and from any entries at all:
    /// never laxer than both ends.
    #[test]
    fn what_was_left_half_done_is_taken_over(
        first in policy_set(), second in policy_set(), third in policy_set(), done in 0.0..1.0f64,
    ) {
        let identities = identities();
        let [first, second, third] = [first, second, third].map(|policies| compiled(&policies, &identities));
        let plan = no_limit(&first, &second);
        let mut left = first;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a part of a length")]
        let done = (plan.steps.len() as f64 * done) as usize;
        plan.steps.iter().take(done).for_each(|step| do_step(&mut left, step));
        let plan = no_limit(&left, &third);
        let end = walk(&left, &third, &plan, |before, now, after| {
            is_at_least(now.needs, before.needs) || is_at_least(now.needs, after.needs)
        });
        prop_assert_eq!(end, third);
    }

    /// Where there is no room, each packet gets the new verdict, or one at least as strict as both.
    #[test]
    fn what_does_not_fit_restricts(old in policy_set(), new in policy_set(), room in 0usize..300) {
        let identities = identities();
        let (old, new) = (compiled(&old, &identities), compiled(&new, &identities));
        let capacity = old.len() + room;
        match Plan::between(&old, &new, capacity) {
            Ok(plan) => prop_assert!(plan.peak <= capacity),
            Err(overflow) => {
                prop_assert!(overflow.needed > capacity && !overflow.held.is_empty());
                prop_assert!(overflow.instead.peak <= capacity);
                let end = walk(&old, &new, &overflow.instead, |before, now, after| {
                    is_at_least(now.needs, before.needs) || is_at_least(now.needs, after.needs)
                });
                let remotes = remotes(&[&old, &new]);
                for (protocol, port) in edges(&[&old, &new]) {
                    for (local, remote) in PODS.flat_map(|local| remotes.iter().map(move |remote| (local, *remote))) {
                        for direction in [Direction::Ingress, Direction::Egress] {
                            let packet = (local, remote, direction, protocol, port);
                            let [before, at_end, after] = [&old, &end, &new].map(|map| said(map, packet).needs);
                            prop_assert!(
                                at_end == after || (is_at_least(at_end, before) && is_at_least(at_end, after)),
                                "{:?} {:?} {:?} {:?}", packet, before, at_end, after
                            );
                        }
                    }
                }
            }
        }
    }
}
