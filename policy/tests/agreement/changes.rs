//! Changes that once went wrong, or are easily done wrong, one by one.

use std::collections::{BTreeMap, BTreeSet};

use policy::{
    Direction, Engine, IdentityNumber, IdentitySet, Input, LabelSet, NamedPort, PolicySet, Surroundings,
    compile, lookup, protocol,
};
use serde_json::{Value, json};

use crate::random::{PODS, identities, named, surroundings};

fn identity(number: IdentityNumber) -> policy::Identity {
    crate::random::identity(number, None)
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
    let any_cluster = json!([{"key": "io.cilium.k8s.policy.cluster", "operator": "Exists"}]);
    let namespace = json!({"k8s:io.kubernetes.pod.namespace": "y"});
    let peers = json!([{"matchLabels": namespace, "matchExpressions": any_cluster}]);
    let rule = json!({"fromEndpoints": peers, "authentication": {"mode": "required"}});
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

/// Also where nothing was planned in between.
#[test]
fn a_pod_that_has_come_and_gone_is_asked_by_nobody() {
    let rule = json!({"toEndpoints": [{}], "authentication": {"mode": "required"}});
    let mut engine = engine(&[json!({"endpointSelector": {}, "egress": [rule]})], &Surroundings::default());
    let alone = engine.authentication();
    engine.insert_identity(identity(262)).unwrap();
    engine.add_local(262);
    engine.remove_local(262);
    engine.remove_identity(262);
    assert_eq!(engine.authentication(), alone);
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
