//! An engine that is changed step by step, against one compilation of what there is then.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::PolicyClasses;
use policy::{
    Direction, Engine, Identity, IdentityNumber, IdentitySet, Input, LabelSet, NamedPort, NamedPorts,
    ObjectRef, Policy, PolicyMap, PolicySet, Step, Surroundings, compile, lookup, protocol,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use crate::random::{PODS, any_policy, cases, identities, named, surroundings};

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
    /// What else there is, or nothing; audited namespaces; sharing of SPIFFE IDs by namespace or not.
    Surroundings(bool, Vec<&'static str>, bool),
    /// Everything is given whole.
    Follow,
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
        2 => (any::<bool>(), subsequence(vec!["x", "y"], 0..=1), any::<bool>())
            .prop_map(|(full, audited, shared)| Change::Surroundings(full, audited, shared)),
        1 => Just(Change::Follow),
        1 => (0usize..20).prop_map(Change::Adopt),
        4 => select(vec![usize::MAX, usize::MAX, 150, 40]).prop_map(Change::Plan),
    ]
}

/// What there is, held plainly.
#[derive(Default)]
struct Model {
    policies: PolicySet,
    identities: BTreeSet<IdentityNumber>,
    surroundings: Surroundings,
    locals: BTreeSet<IdentityNumber>,
    /// What the kernel's map holds.
    map: PolicyMap,
}

impl Model {
    fn identities(&self) -> IdentitySet {
        let known = self.identities.iter().map(|number| identity(*number));
        IdentitySet::from_identities(known).unwrap()
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
                engine.insert_identity(identity(*number)).unwrap();
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
            Change::Surroundings(full, audited, shared) => {
                self.surroundings = if *full { surroundings() } else { Surroundings::default() };
                self.surroundings.audited_namespaces =
                    audited.iter().map(|name| (*name).to_owned()).collect();
                let by_namespace = |identity: &Identity| Some(format!("/ns/{}", identity.namespace()));
                if *shared {
                    self.surroundings.share_spiffe_ids(&identities(), by_namespace);
                }
                engine.set_surroundings(&self.surroundings);
            }
            Change::Follow => {
                let identities = self.identities();
                let mut fresh = Engine::new();
                assert_eq!(
                    fresh.hold_places(self.input(&identities)),
                    !self.compiled().prefixes.is_empty() || !self.compiled().nodes.is_empty()
                );
                fresh.follow(self.input(&identities), &self.locals);
                assert!(!fresh.release_places());
                engine.follow(self.input(&identities), &self.locals);
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

fn identity(number: IdentityNumber) -> Identity {
    identities().get(number).unwrap().clone()
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
            }
        }
        let compiled = model.compiled();
        prop_assert_eq!(&engine.compiled(), &compiled);
        model.plan(&mut engine, usize::MAX);
        prop_assert_eq!(&model.map, &compiled.map);
    }

    /// Every pair that an entry asks to authenticate is among those which may be asked, from both ends.
    #[test]
    fn pairs_that_are_asked(policies in crate::random::policy_set(), locals in subsequence(PODS.collect::<Vec<_>>(), 1..4)) {
        let identities = identities();
        let surroundings = surroundings();
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        let all = compile(input, PODS);
        let mut engine = Engine::new();
        engine.follow(input, &locals.iter().copied().collect());
        let pairs = engine.authentication();
        for local in &locals {
            for remote in PODS {
                let is_asked = all.asks_authentication(*local, remote) || all.asks_authentication(remote, *local);
                prop_assert!(!is_asked || pairs.contains(*local, remote), "{} {}", local, remote);
            }
            prop_assert!(!pairs.contains(*local, 1));
        }
        let mut rules = policies.iter().flat_map(|policy| &policy.specs).flat_map(|spec| &spec.rules);
        if rules.all(|rule| rule.authentication != Some(policy::AuthType::Spire)) {
            prop_assert!(locals.iter().all(|local| PODS.into_iter().all(|remote| !pairs.contains(*local, remote))));
        }
    }
}

/// An engine for these policies, with the one pod 256.
fn engine(specs: &[Value], surroundings: &Surroundings) -> Engine {
    let mut engine = Engine::new();
    for (at, spec) in specs.iter().enumerate() {
        let kind = "CiliumClusterwideNetworkPolicy";
        let value = json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {}, "spec": spec});
        engine.insert_policy(named(value, at));
    }
    engine.set_surroundings(surroundings);
    engine.insert_identity(identity(256)).unwrap();
    engine.add_local(256);
    engine
}

fn allows(engine: &mut Engine, remote: IdentityNumber, direction: Direction, port: u16) -> bool {
    let choice = lookup(&engine.compiled().map, 256, remote, direction, protocol::TCP, port);
    choice.is_some_and(|choice| choice.entry.deny == 0)
}

#[test]
fn a_rule_for_all_who_share_a_spiffe_id_holds_once_all_of_them_are_known() {
    let namespace = json!([{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "y"}}]);
    let rule = json!({"fromEndpoints": namespace, "authentication": {"mode": "required"}});
    let mut surroundings = Surroundings::default();
    surroundings.share_spiffe_ids(&identities(), |identity| Some(identity.namespace().to_owned()));
    let mut engine = engine(&[json!({"endpointSelector": {}, "ingress": [rule]})], &surroundings);
    let known: Vec<IdentityNumber> = PODS.filter(|number| number % 2 == 1).collect();
    for number in &known {
        engine.insert_identity(identity(*number)).unwrap();
        let all = *number == *known.last().unwrap();
        assert_eq!(allows(&mut engine, known[0], Direction::Ingress, 80), all, "{number}");
    }
    engine.remove_identity(known[1]);
    assert!(!allows(&mut engine, known[0], Direction::Ingress, 80));
}

/// Whom a service is of comes later than the rule, and only some of those who share a SPIFFE ID.
#[test]
fn a_service_that_tells_apart_who_share_a_spiffe_id_lets_nobody_pass() {
    let service = json!([{"k8sService": {"namespace": "x", "serviceName": "web"}}]);
    let rule = json!({"toServices": service, "authentication": {"mode": "required"}});
    let by_namespace = |mut surroundings: Surroundings| {
        surroundings.share_spiffe_ids(&identities(), |identity| Some(identity.namespace().to_owned()));
        surroundings
    };
    let none = by_namespace(Surroundings::default());
    let mut engine = engine(&[json!({"endpointSelector": {}, "egress": [rule]})], &none);
    engine.insert_identity(identity(258)).unwrap();
    engine.compiled();
    engine.set_surroundings(&surroundings());
    assert!(allows(&mut engine, 258, Direction::Egress, 80), "nobody shares a SPIFFE ID");
    engine.set_surroundings(&none);
    engine.compiled();
    engine.set_surroundings(&by_namespace(surroundings()));
    assert!(!allows(&mut engine, 258, Direction::Egress, 80));
}

#[test]
fn an_identity_may_come_before_or_after_its_named_ports() {
    let ports = json!([{"ports": [{"port": "http", "protocol": "TCP"}]}]);
    let rule = json!({"toEndpoints": [{"matchLabels": {"b": "1"}}], "toPorts": ports});
    let spec = json!({"endpointSelector": {}, "egress": [rule]});
    let http = |port: u16| BTreeMap::from([(NamedPort::new("http", protocol::TCP), BTreeSet::from([port]))]);
    let mut engine = engine(&[spec], &Surroundings::default());
    let remote = 260;
    engine.compiled();
    engine.set_named_ports(remote, http(81));
    assert!(!allows(&mut engine, remote, Direction::Egress, 81));
    engine.insert_identity(identity(remote)).unwrap();
    assert!(allows(&mut engine, remote, Direction::Egress, 81));
    engine.set_named_ports(remote, http(82));
    assert!(allows(&mut engine, remote, Direction::Egress, 82));
    assert!(!allows(&mut engine, remote, Direction::Egress, 81));
    engine.remove_identity(remote);
    assert!(!allows(&mut engine, remote, Direction::Egress, 82));
}

/// New prefixes have the verdicts of the old policies until the new ones come, and those that go keep theirs
/// until nothing names them.
#[test]
fn held_prefixes_say_what_their_addresses_had() {
    let to = |cidr: Value| json!({"endpointSelector": {}, "egress": [{"toCIDRSet": [cidr]}]});
    let whole = to(json!({"cidr": "10.0.0.0/8"}));
    let part = to(json!({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}));
    let mut engine = engine(std::slice::from_ref(&whole), &Surroundings::default());
    let verdict = |engine: &mut Engine| {
        let prefix = engine.prefixes().iter().find(|(net, _)| net.to_string() == "10.1.0.0/16");
        let number = prefix.map(|(_, number)| *number);
        number.map(|number| allows(engine, number, Direction::Egress, 80))
    };
    let policy = |spec: &Value| {
        let kind = "CiliumClusterwideNetworkPolicy";
        named(json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {}, "spec": spec}), 0)
    };
    let identities = IdentitySet::from_identities([identity(256)]).unwrap();
    let surroundings = Surroundings::default();
    assert_eq!(verdict(&mut engine), None);
    for (spec, is_new, before, after, at_end) in
        [(&part, true, Some(true), Some(false), Some(false)), (&whole, false, Some(false), Some(true), None)]
    {
        let policies = PolicySet::from_iter([policy(spec)]);
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        assert_eq!(engine.hold_places(input), is_new);
        assert_eq!(verdict(&mut engine), before);
        engine.follow(input, &BTreeSet::from([256]));
        assert_eq!(verdict(&mut engine), after);
        assert_eq!(engine.release_places(), at_end.is_none());
        assert_eq!(verdict(&mut engine), at_end);
    }
}

/// The same of nodes, which are `remote-node` where no policy chooses them; also where a node gets a label.
#[test]
fn held_nodes_say_what_their_addresses_had() {
    let from = |peers: Value| json!({"endpointSelector": {}, "ingress": [peers]});
    let all = from(json!({"fromEntities": ["remote-node"]}));
    let some = from(json!({"fromNodes": [{"matchLabels": {"a": "1"}}]}));
    let mut surroundings = surroundings();
    let mut engine = engine(std::slice::from_ref(&all), &surroundings);
    let verdicts = |engine: &mut Engine| {
        let numbers: Vec<IdentityNumber> = ["n1", "n2"]
            .map(|name| engine.nodes().get(name).copied().unwrap_or(policy::reserved::REMOTE_NODE))
            .into();
        numbers.into_iter().map(|number| allows(engine, number, Direction::Ingress, 80)).collect::<Vec<_>>()
    };
    let policy = |spec: &Value| {
        let kind = "CiliumClusterwideNetworkPolicy";
        named(json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {}, "spec": spec}), 0)
    };
    let identities = IdentitySet::from_identities([identity(256)]).unwrap();
    assert_eq!((verdicts(&mut engine), engine.nodes().len()), (vec![true, true], 0));
    for (spec, label, held, after, own) in [
        (&some, "k8s:a=0", [true, true], [true, false], 1),
        (&some, "k8s:a=1", [true, false], [true, true], 2),
        (&all, "k8s:a=1", [true, true], [true, true], 0),
    ] {
        let labels = LabelSet::from_labels([label.parse().unwrap()]).unwrap();
        surroundings.nodes.get_mut("n2").unwrap().labels = labels;
        let policies = PolicySet::from_iter([policy(spec)]);
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        engine.hold_places(input);
        assert_eq!(verdicts(&mut engine), held, "{label}");
        engine.follow(input, &BTreeSet::from([256]));
        assert_eq!(verdicts(&mut engine), after, "{label}");
        engine.release_places();
        assert_eq!((verdicts(&mut engine), engine.nodes().len()), (after.to_vec(), own), "{label}");
    }
}

/// An `ipBlock` selects nodes by their addresses, those with identities of their own too, and this node.
#[test]
fn blocks_select_nodes_as_from_scratch() {
    let identities = IdentitySet::from_identities([identity(256)]).unwrap();
    let mut surroundings = surroundings();
    surroundings.host = Some("n2".to_owned());
    for cidr in ["10.1.0.1/32", "10.1.0.2/32", "10.1.0.0/24"] {
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "x"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]},
        });
        let policies = PolicySet::from_iter([named(policy, 0)]);
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        let mut engine = Engine::new();
        engine.follow(input, &BTreeSet::from([256]));
        assert_eq!(engine.compiled(), compile(input, [256]), "{cidr}");
    }
}

#[test]
fn what_does_not_fit_is_named_and_tried_again() {
    let rule = json!({"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "1", "endPort": 1022}]}]});
    let mut engine = engine(&[json!({"endpointSelector": {}, "ingress": [rule]})], &Surroundings::default());
    let overflow = engine.plan(10).unwrap_err();
    assert_eq!((overflow.capacity, overflow.present, overflow.held.len()), (10, 0, 1));
    let text = overflow.to_string();
    for part in ["room for 10 entries", "CiliumClusterwideNetworkPolicy p0 (+", "select fewer identities"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    engine.applied(&overflow.instead);
    assert!(engine.len() <= 10);
    let needed = overflow.needed;
    assert!(engine.plan(needed - 1).is_err());
    let plan = engine.plan(needed).unwrap();
    assert_eq!(plan.after, engine.compiled().map.len());
    engine.applied(&plan);
    engine.add_local(257);
    engine.insert_identity(identity(257)).unwrap();
    assert!(engine.plan(needed).is_err());
    assert_eq!(engine.len(), plan.after, "what is in force stays");
}
