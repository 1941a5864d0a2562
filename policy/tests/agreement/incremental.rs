//! An engine that is changed step by step, against one compilation of what there is then.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::PolicyClasses;
use policy::{
    AuthType, AuthenticationPairs, Engine, Identity, IdentityNumber, IdentitySet, Input, NamedPort,
    NamedPorts, ObjectRef, Peers, Policy, PolicyMap, PolicySet, Rule, Step, Surroundings, compile, protocol,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::Value;

use crate::random::{self, PODS, any_policy, cases, identities, named, namespace, surroundings};
use crate::scenery::{Tweak, tweak};

/// One change.
#[derive(Clone, Debug)]
enum Change {
    Policy(usize, Value),
    PolicyGone(usize),
    Identity(IdentityNumber),
    IdentityGone(IdentityNumber),
    Local(IdentityNumber),
    LocalGone(IdentityNumber),
    NamedPorts(IdentityNumber, Vec<u16>),
    Addresses(IdentityNumber, BTreeSet<u8>),
    /// A namespace gets another label, or its first one back: its identities have others then.
    NamespaceLabels(&'static str),
    /// Services and their endpoints, nodes, groups of prefixes, names, audited namespaces, shared SPIFFE IDs.
    Surroundings(Tweak),
    /// Everything is given whole, perhaps with places held as the daemon does; namespaces may have changed
    /// their labels meanwhile.
    Follow(bool, Vec<&'static str>),
    /// What the map holds is read anew, some of it lost.
    Adopt(usize),
    /// A plan is made and its steps.
    Plan(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (0usize..4, any_policy()).prop_map(|(index, policy)| Change::Policy(index, policy)),
        2 => (0usize..4).prop_map(Change::PolicyGone),
        4 => PODS.prop_map(Change::Identity),
        3 => PODS.prop_map(Change::IdentityGone),
        4 => PODS.prop_map(Change::Local),
        2 => PODS.prop_map(Change::LocalGone),
        2 => (PODS, subsequence(vec![80, 81, 443], 0..=2)).prop_map(|(n, ports)| Change::NamedPorts(n, ports)),
        2 => (PODS, btree_set(1u8..9, 0..3)).prop_map(|(n, addresses)| Change::Addresses(n, addresses)),
        1 => select(vec!["x", "y"]).prop_map(Change::NamespaceLabels),
        6 => tweak().prop_map(Change::Surroundings),
        2 => (any::<bool>(), subsequence(vec!["x", "y"], 0..=1))
            .prop_map(|(holds, namespaces)| Change::Follow(holds, namespaces)),
        1 => (0usize..20).prop_map(Change::Adopt),
        4 => select(vec![usize::MAX, usize::MAX, 150, 40]).prop_map(Change::Plan),
    ]
}

/// What there is, held plainly.
#[derive(Default)]
struct Model {
    policies: PolicySet,
    identities: BTreeSet<IdentityNumber>,
    /// Namespaces that have another label than at first.
    relabelled: BTreeSet<&'static str>,
    surroundings: Surroundings,
    locals: BTreeSet<IdentityNumber>,
    /// What the kernel's map holds.
    map: PolicyMap,
}

impl Model {
    fn identities(&self) -> IdentitySet {
        let known = self.identities.iter().map(|number| self.identity(*number));
        IdentitySet::from_identities(known).unwrap()
    }

    fn identity(&self, number: IdentityNumber) -> Identity {
        random::identity(number, self.relabelled.get(namespace(number)).map(|_| "other"))
    }

    fn relabel(&mut self, namespace: &'static str) {
        if !self.relabelled.remove(namespace) {
            self.relabelled.insert(namespace);
        }
    }

    fn do_change(&mut self, engine: &mut Engine, change: &Change) {
        match change {
            Change::Policy(index, value) => {
                let policy = named(value.clone(), *index);
                self.policies.remove(&object(&self.policies, *index));
                engine_forgets(engine, &self.policies, *index);
                self.policies.insert(policy.clone());
                engine.insert_policy(policy);
            }
            Change::PolicyGone(index) => {
                let object = object(&self.policies, *index);
                self.policies.remove(&object);
                engine.remove_policy(&object);
            }
            Change::Identity(number) => {
                self.identities.insert(*number);
                engine.insert_identity(self.identity(*number)).unwrap();
            }
            Change::IdentityGone(number) => {
                self.identities.remove(number);
                engine.remove_identity(*number);
            }
            Change::Local(number) => {
                self.locals.insert(*number);
                engine.add_local(*number);
            }
            Change::LocalGone(number) => {
                self.locals.remove(number);
                engine.remove_local(*number);
            }
            Change::NamedPorts(number, ports) => {
                let name = NamedPort::new("http", protocol::TCP);
                let ports: BTreeSet<u16> = ports.iter().copied().collect();
                let ports =
                    if ports.is_empty() { NamedPorts::new() } else { BTreeMap::from([(name, ports)]) };
                self.surroundings.named_ports.insert(*number, ports.clone());
                engine.set_named_ports(*number, ports);
            }
            Change::Addresses(number, addresses) => {
                let addresses: BTreeSet<_> = addresses.iter().map(|last| [10, 1, 0, *last].into()).collect();
                self.surroundings.addresses.insert(*number, addresses.clone());
                engine.set_addresses(*number, addresses);
            }
            Change::NamespaceLabels(name) => {
                self.relabel(name);
                for number in self.identities.iter().filter(|number| namespace(**number) == *name) {
                    engine.remove_identity(*number);
                    engine.insert_identity(self.identity(*number)).unwrap();
                }
            }
            Change::Surroundings(tweak) => {
                tweak.apply(&mut self.surroundings);
                engine.set_surroundings(&self.surroundings);
            }
            Change::Follow(holds, namespaces) => {
                namespaces.iter().for_each(|name| self.relabel(name));
                let identities = self.identities();
                let mut fresh = Engine::new();
                assert_eq!(
                    fresh.hold_places(self.input(&identities)),
                    !self.compiled().prefixes.is_empty() || !self.compiled().nodes.is_empty()
                );
                fresh.follow(self.input(&identities), &self.locals);
                assert!(!fresh.release_places());
                if *holds {
                    engine.hold_places(self.input(&identities));
                }
                engine.follow(self.input(&identities), &self.locals);
                engine.release_places();
                assert_eq!(fresh.compiled(), engine.compiled());
                assert_eq!(fresh.authentication(), engine.authentication());
            }
            Change::Adopt(lost) => {
                self.map = std::mem::take(&mut self.map).into_iter().skip(*lost).collect();
                engine.adopt(self.map.clone());
            }
            Change::Plan(capacity) => self.plan(engine, *capacity),
        }
    }

    fn input<'a>(&'a self, identities: &'a IdentitySet) -> Input<'a> {
        Input { policies: &self.policies, identities, surroundings: &self.surroundings }
    }

    fn authentication(&self) -> AuthenticationPairs {
        let mut fresh = Engine::new();
        fresh.follow(self.input(&self.identities()), &self.locals);
        fresh.authentication()
    }

    fn compiled(&self) -> policy::Compiled {
        compile(self.input(&self.identities()), self.locals.iter().copied())
    }

    fn plan(&mut self, engine: &mut Engine, capacity: usize) {
        let wanted = self.compiled().map;
        let result = engine.plan(capacity);
        let fits = result.is_ok();
        let plan = result.unwrap_or_else(|overflow| overflow.instead);
        let before = self.map.len();
        for step in &plan.steps {
            match step {
                Step::Put(key, entry) => drop(self.map.insert(*key, *entry)),
                Step::Remove(key) => assert!(self.map.remove(key).is_some(), "only what is there is removed"),
            }
            assert!(self.map.len() <= capacity.max(before), "{} of {capacity}", self.map.len());
        }
        engine.applied(&plan);
        assert_eq!(engine.len(), self.map.len());
        let mut classes: BTreeMap<IdentityNumber, PolicyClasses> = BTreeMap::new();
        for (key, bits) in self.map.keys() {
            classes.entry(key.local).or_default().add(key, *bits);
        }
        for local in PODS {
            assert_eq!(engine.classes(local), classes.get(&local).copied().unwrap_or_default());
        }
        if fits {
            assert_eq!(self.map, wanted);
            assert!(engine.plan(capacity).unwrap().steps.is_empty());
        }
    }
}

/// The policy at this place, which may be of any kind.
fn object(policies: &PolicySet, index: usize) -> ObjectRef {
    let name = format!("p{index}");
    let found = policies.iter().map(|policy| &policy.object).find(|object| object.name == name);
    found.cloned().unwrap_or(ObjectRef { kind: policy::Kind::Unknown, namespace: String::new(), name })
}

/// Another object takes the place of one with another kind or namespace.
fn engine_forgets(engine: &mut Engine, policies: &PolicySet, index: usize) {
    let name = format!("p{index}");
    let known: Vec<ObjectRef> = engine
        .policies()
        .map(|policy: &Policy| policy.object.clone())
        .filter(|object| object.name == name && policies.get(object).is_none())
        .collect();
    known.iter().for_each(|object| engine.remove_policy(object));
}

/// Whether a policy for one identity has a rule that requires authentication and may be about the other.
fn may_ask(input: Input<'_>, subject: IdentityNumber, other: IdentityNumber) -> bool {
    let remote = |number| input.identities.remotes().find(|remote| remote.number == number).unwrap();
    let (own, other) = (remote(subject).labels, remote(other));
    let is_about = |rule: &Rule| {
        !rule.list.is_deny()
            && rule.authentication == Some(AuthType::Spire)
            && (rule.peers == Peers::Any || rule.peers.select(other, other.labels, input.surroundings, false))
    };
    let mut specs = input.policies.iter().flat_map(|policy| &policy.specs);
    specs.any(|spec| spec.subject.matches(own) && spec.rules.iter().any(is_about))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases().div_ceil(2), ..ProptestConfig::default() })]

    /// Whatever changes in whatever order: the same as from scratch, and the map follows.
    #[test]
    fn incremental_is_from_scratch(changes in vec(change(), 1..40), every in 1usize..6) {
        let (mut engine, mut model) = (Engine::new(), Model::default());
        for number in [256, 258, 259, 261] {
            model.do_change(&mut engine, &Change::Identity(number));
        }
        model.do_change(&mut engine, &Change::Local(256));
        for (at, change) in changes.iter().enumerate() {
            model.do_change(&mut engine, change);
            if at % every == 0 {
                prop_assert_eq!(engine.compiled(), model.compiled(), "after {} of {:?}", at, changes);
                prop_assert_eq!(engine.authentication(), model.authentication(), "after {} of {:?}", at, changes);
            }
        }
        let compiled = model.compiled();
        prop_assert_eq!(&engine.compiled(), &compiled);
        model.plan(&mut engine, usize::MAX);
        prop_assert_eq!(&model.map, &compiled.map);
    }

    /// The pairs that may be asked to authenticate are those which an entry here asks for, and those which a
    /// rule for the other end may be about.
    #[test]
    fn pairs_that_are_asked(policies in random::policy_set(), locals in subsequence(PODS.collect::<Vec<_>>(), 1..4)) {
        let identities = identities();
        let surroundings = surroundings();
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        let all = compile(input, PODS);
        let mut engine = Engine::new();
        engine.follow(input, &locals.iter().copied().collect());
        let pairs = engine.authentication();
        for local in &locals {
            for remote in PODS {
                let is_asked = all.asks_authentication(*local, remote) || may_ask(input, remote, *local);
                prop_assert_eq!(pairs.contains(*local, remote), is_asked, "{} {}", local, remote);
                prop_assert!(is_asked || !all.asks_authentication(remote, *local));
                let is_listed = pairs.remotes(*local).any(|one| [0, remote].contains(&one));
                prop_assert_eq!(is_listed, is_asked, "{} {}", local, remote);
            }
            prop_assert!(!pairs.contains(*local, 1));
        }
        let mut rules = policies.iter().flat_map(|policy| &policy.specs).flat_map(|spec| &spec.rules);
        if rules.all(|rule| rule.authentication != Some(AuthType::Spire)) {
            prop_assert!(locals.iter().all(|local| PODS.into_iter().all(|remote| !pairs.contains(*local, remote))));
        }
    }
}
