//! Any sequence of wishes, meddling and lost replies against a plain restatement of the rules.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::Selector;

const NODES: usize = 3;
const IDENTITIES: usize = 4;
/// What somebody may make of an entry beside its name.
const CHANGES: [fn(&mut Entry); 7] = [
    |entry| entry.hint = "theirs".to_owned(),
    |entry| entry.admin = true,
    |entry| entry.downstream = true,
    |entry| entry.store_svid = true,
    |entry| entry.dns_names = ["theirs.test".to_owned()].into(),
    |entry| entry.svid_ttl = Some(SHORT),
    |entry| entry.expires_at = 1,
];
const SHORT: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
enum Step {
    /// This identity is wanted on this node, with selectors of this variant; or no more.
    Want(usize, usize, Option<u8>),
    /// Somebody changes, deletes or re-parents one of our entries, or makes one of their own.
    Meddle(usize, usize, Meddling),
    /// Time passes.
    Wait(u64),
    /// A round of which only the first so many changes arrive.
    Round(usize),
}

#[derive(Debug, Clone, Copy)]
enum Meddling {
    Delete,
    Change(usize),
    Reparent,
    Foreign,
}

fn step() -> impl Strategy<Value = Step> {
    let meddling = prop_oneof![
        Just(Meddling::Delete),
        (0..CHANGES.len()).prop_map(Meddling::Change),
        Just(Meddling::Reparent),
        Just(Meddling::Foreign)
    ];
    prop_oneof![
        4 => (0..NODES, 0..IDENTITIES, prop::option::of(0..2_u8)).prop_map(|(n, i, v)| Step::Want(n, i, v)),
        1 => (0..NODES, 0..IDENTITIES, meddling).prop_map(|(n, i, m)| Step::Meddle(n, i, m)),
        2 => (0..700_u64).prop_map(Step::Wait),
        4 => prop_oneof![Just(usize::MAX), 0..3_usize].prop_map(Step::Round),
    ]
}

/// A server as simple as can be.
#[derive(Default)]
struct Server(BTreeMap<String, Entry>);

impl Server {
    fn list(&self) -> Vec<Entry> {
        self.0.values().cloned().collect()
    }

    /// Does a plan until `budget` changes are done. Panics where SPIRE would refuse.
    fn apply(&mut self, plan: &Plan, budget: usize) {
        let mut left = budget;
        let mut may = || {
            let may = left > 0;
            left = left.saturating_sub(1);
            may
        };
        for entry in plan.delete.iter().take_while(|_| may()) {
            assert!(self.0.remove(&entry.id).is_some(), "{entry:?}");
        }
        for entry in plan.update.iter().take_while(|_| may()) {
            assert!(self.0.insert(entry.id.clone(), entry.clone()).is_some(), "{entry:?}");
        }
        for entry in plan.create.iter().take_while(|_| may()) {
            let similar = self.0.values().any(|other| registration(other) == registration(entry));
            assert!(!similar && self.0.insert(entry.id.clone(), entry.clone()).is_none(), "{entry:?}");
        }
    }
}

proptest! {
    #[test]
    fn entries_become_what_is_wanted(steps in prop::collection::vec(step(), 1..60)) {
        let mut server = Server::default();
        let mut registrar = Registrar::new(SHORT);
        let mut wanted: BTreeMap<(usize, usize), u8> = BTreeMap::new();
        // The model: since when a present entry of ours has been seen unwanted.
        let mut seen_unwanted: BTreeMap<String, Instant> = BTreeMap::new();
        let mut now = Instant::now();
        for step in steps {
            match step {
                Step::Want(node, identity, Some(variant)) => {
                    wanted.insert((node, identity), variant);
                }
                Step::Want(node, identity, None) => {
                    wanted.remove(&(node, identity));
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Meddle(node, identity, meddling) => meddle(&mut server, node, identity, meddling),
                Step::Round(budget) => {
                    let all: Wanted = wanted.iter().map(|(key, variant)| entry(*key, *variant)).collect();
                    let before = server.0.clone();
                    let plan = registrar.plan(&all, &server.list(), now);
                    server.apply(&plan, budget);
                    check_kept(&before, &server, &all, &mut seen_unwanted, now)?;
                    if budget == usize::MAX {
                        check_converged(&server, &all)?;
                        let again = registrar.plan(&all, &server.list(), now);
                        prop_assert!(again.is_empty(), "{again:?}");
                    }
                }
            }
        }
    }
}

/// Nothing of others' is touched, and nothing of ours goes before its time.
fn check_kept(
    before: &BTreeMap<String, Entry>,
    server: &Server,
    wanted: &Wanted,
    seen_unwanted: &mut BTreeMap<String, Instant>,
    now: Instant,
) -> Result<(), TestCaseError> {
    let mut still = BTreeMap::new();
    for (id, entry) in before {
        let after = server.0.get(id);
        if !id.starts_with(Owner::default().prefix()) {
            prop_assert_eq!(after, Some(entry), "a foreign entry was touched");
        } else if wanted.entries.contains_key(id) {
            prop_assert!(after.is_some(), "a wanted entry was deleted");
        } else if *id == own_id(entry) {
            let since = *seen_unwanted.get(id).unwrap_or(&now);
            if now < since + SHORT {
                prop_assert_eq!(after, Some(entry), "an unwanted entry went too early");
            }
            still.insert(id.clone(), since);
        }
    }
    *seen_unwanted = still;
    Ok(())
}

fn check_converged(server: &Server, wanted: &Wanted) -> Result<(), TestCaseError> {
    for entry in wanted.iter() {
        let there = server.0.get(&entry.id);
        let foreign = server.0.values().any(|other| registration(other) == registration(entry));
        prop_assert!(there == Some(entry) || (there.is_none() && foreign), "{entry:?} is missing");
    }
    for entry in server.0.values().filter(|entry| entry.id.starts_with(Owner::default().prefix())) {
        let fits = entry.id == own_id(entry);
        prop_assert!(fits, "one node's entry has another's parent: {entry:?}");
    }
    Ok(())
}

fn meddle(server: &mut Server, node: usize, identity: usize, meddling: Meddling) {
    let entry = entry((node, identity), 0);
    let mut foreign = entry.clone();
    foreign.id = format!("theirs-{node}-{identity}");
    match meddling {
        Meddling::Delete => drop(server.0.remove(&entry.id)),
        Meddling::Change(which) => {
            server.0.entry(entry.id).and_modify(CHANGES[which]);
        }
        Meddling::Reparent => {
            let parent = agent((node + 1) % NODES);
            server.0.entry(entry.id).and_modify(|entry| entry.parent_id = parent);
        }
        Meddling::Foreign => {
            let similar = server.0.values().any(|other| registration(other) == registration(&foreign));
            if !similar {
                server.0.insert(foreign.id.clone(), foreign);
            }
        }
    }
}

fn own_id(entry: &Entry) -> String {
    Owner::default().entry_id(&entry.parent_id, &entry.spiffe_id)
}

fn agent(node: usize) -> SpiffeId {
    SpiffeId::new(format!("spiffe://a.test/spire/agent/n{node}")).unwrap()
}

fn entry((node, identity): (usize, usize), variant: u8) -> Entry {
    let spiffe_id = SpiffeId::new(format!("spiffe://a.test/identity/{identity}")).unwrap();
    let selector = Selector::new("authd", format!("identity:{identity}:{variant}"));
    let mut entry = Entry::new(agent(node), spiffe_id, [selector]);
    entry.id = own_id(&entry);
    entry
}

#[test]
fn ids_differ_by_parent_and_identity_and_are_stable() {
    let [one, two] = [entry((0, 0), 0), entry((1, 0), 0)];
    assert_ne!(one.id, two.id);
    assert_eq!(one.id, entry((0, 0), 1).id);
    assert_eq!(one.id.len(), Owner::default().prefix().len() + 32);
}

#[test]
fn a_server_that_was_away_loses_nothing() {
    let mut registrar = Registrar::new(SHORT);
    let now = Instant::now();
    let present = [entry((0, 0), 0)];
    assert!(registrar.plan(&Wanted::default(), &present, now).is_empty());
    assert_eq!(registrar.next_deletion(), Some(now + SHORT));
    // Wanted again in time, and unwanted once more: the time begins anew.
    let wanted: Wanted = present.iter().cloned().collect();
    assert!(registrar.plan(&wanted, &present, now + SHORT / 2).is_empty());
    assert_eq!(registrar.next_deletion(), None);
    let later = now + SHORT;
    assert!(registrar.plan(&Wanted::default(), &present, later).is_empty());
    let plan = registrar.plan(&Wanted::default(), &present, later + SHORT);
    assert_eq!(plan.delete, present);
}

#[test]
fn what_is_revoked_goes_at_once_and_does_not_come_back() {
    let mut registrar = Registrar::new(SHORT);
    let all = [entry((0, 0), 0), entry((0, 1), 0), entry((1, 0), 0), entry((1, 1), 0)];
    let mut wanted: Wanted = all.iter().cloned().collect();
    wanted.revoke(all[0].spiffe_id.clone());
    wanted.revoke(agent(1));
    let plan = registrar.plan(&wanted, &all, Instant::now());
    assert_eq!(
        plan,
        Plan { delete: [all[0].clone(), all[2].clone(), all[3].clone()].into(), ..Plan::default() }
    );
    let plan = registrar.plan(&wanted, &all[1..2], Instant::now());
    assert!(plan.is_empty(), "{plan:?}");
}
