//! What isn't understood or supported: the words, and that it never allows anything.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::LazyLock;

use policy::{
    Identity, IdentityNumber, IdentitySet, Input, Pod, Policy, PolicySet, RuleRef, Surroundings, Trace,
    TraceVerdict, Traffic, protocol, trace,
};
use serde_json::{Value, json};

const WORLD: IdentityNumber = 2;
const SERVER: IdentityNumber = 256;
const CLIENT: IdentityNumber = 257;
const ELSEWHERE: IdentityNumber = 258;

fn identities() -> IdentitySet {
    let pod = |number, namespace, app| {
        let pod = Pod { cluster: "default", namespace, service_account: "default" };
        Identity::new(number, pod.labels([("app", app)], []).unwrap()).unwrap()
    };
    IdentitySet::from_identities([
        pod(SERVER, "shop", "server"),
        pod(CLIENT, "shop", "client"),
        pod(ELSEWHERE, "bank", "server"),
    ])
    .unwrap()
}

fn input<'a>(policies: &'a PolicySet, identities: &'a IdentitySet) -> Input<'a> {
    static NOTHING: LazyLock<Surroundings> = LazyLock::new(Surroundings::default);
    Input { policies, identities, surroundings: &NOTHING }
}

fn cnp(spec: Value) -> Value {
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "shop", "labels": {"any": "thing"}},
        "spec": spec,
    })
}

fn server(list: &str, rule: Value) -> Value {
    cnp(json!({"endpointSelector": {"matchLabels": {"app": "server"}}, list: [rule]}))
}

fn ask(value: &Value, from: IdentityNumber, to: IdentityNumber, port: u16) -> Trace {
    let policies = PolicySet::from_iter([Policy::from_value_or_deny(value)]);
    trace(input(&policies, &identities()), Traffic { from, to, protocol: protocol::TCP, port })
}

fn passes(value: &Value, from: IdentityNumber, to: IdentityNumber, port: u16) -> bool {
    ask(value, from, to, port).verdict == TraceVerdict::Allowed
}

#[test]
fn errors_name_object_field_and_way_out() {
    let with_ports = |ports: Value| server("ingress", json!({"toPorts": [{"ports": [ports]}]}));
    let with_peer = |peer: Value| server("egress", json!({"toEndpoints": [peer]}));
    for (value, expected) in [
        (
            server("ingress", json!({"fromEndpoint": []})),
            "spec.ingress[0].fromEndpoint: unknown field; did you mean `fromEndpoints`?",
        ),
        (
            server("egress", json!({"toEndpoints": [{"matchLabel": {}}]})),
            "spec.egress[0].toEndpoints[0].matchLabel: unknown field; did you mean `matchLabels`?",
        ),
        (
            server("egress", json!({"fromEndpoints": []})),
            "spec.egress[0].fromEndpoints: unknown field; did you mean `toEndpoints`?",
        ),
        (
            server("ingressDeny", json!({"authentication": {"mode": "required"}})),
            "spec.ingressDeny[0].authentication: unknown field; known are fromEndpoints, fromEntities, fromCIDR, fromCIDRSet, fromNodes, fromGroups, fromRequires, toPorts, icmps",
        ),
        (
            server("ingress", json!({"authentication": {"mode": "require"}})),
            "spec.ingress[0].authentication.mode: unknown value `require`; did you mean `required`?",
        ),
        (
            server("ingress", json!({"authentication": "required"})),
            "spec.ingress[0].authentication: is a string, must be an object with `mode`",
        ),
        (server("ingress", json!({"authentication": {}})), "spec.ingress[0].authentication.mode: is missing"),
        (
            server("ingress", json!({"fromEntities": ["hosts"]})),
            "spec.ingress[0].fromEntities[0]: unknown value `hosts`; did you mean `host`?",
        ),
        (
            server("ingress", json!({"fromEndpoints": {}})),
            "spec.ingress[0].fromEndpoints: is an object, must be a list",
        ),
        (
            server("ingress", json!({"fromEndpoints": [null]})),
            "spec.ingress[0].fromEndpoints[0]: is nothing, must be an object with `matchLabels` or `matchExpressions`",
        ),
        (
            with_ports(json!({"port": "65536"})),
            "spec.ingress[0].toPorts[0].ports[0].port: must be a port number up to 65535, in decimal, or the name of a port",
        ),
        (
            with_ports(json!({"port": "010"})),
            "spec.ingress[0].toPorts[0].ports[0].port: must be a port number up to 65535, in decimal, or the name of a port",
        ),
        (
            with_ports(json!({"port": "-1"})),
            "spec.ingress[0].toPorts[0].ports[0].port: must be a port number up to 65535, in decimal, or the name of a port",
        ),
        (
            with_ports(json!({"port": "90", "endPort": 80})),
            "spec.ingress[0].toPorts[0].ports[0].endPort: must not be below `port`",
        ),
        (
            with_ports(json!({"port": "90", "endPort": 65536})),
            "spec.ingress[0].toPorts[0].ports[0].endPort: must be a port number, up to 65535",
        ),
        (
            with_ports(json!({"port": "90", "protocol": "TPC"})),
            "spec.ingress[0].toPorts[0].ports[0].protocol: unknown value `TPC`; did you mean `TCP`?",
        ),
        (with_ports(json!({"protocol": "TCP"})), "spec.ingress[0].toPorts[0].ports[0].port: is missing"),
        (
            with_peer(json!({"matchLabels": {"app": 1}})),
            "spec.egress[0].toEndpoints[0].matchLabels.app: is a number, must be a string, in quotes",
        ),
        (
            with_peer(json!({"matchLabels": {"docker:app": "x"}})),
            "spec.egress[0].toEndpoints[0].matchLabels[\"docker:app\"]: label source `docker` is not known; sources are k8s, reserved and any",
        ),
        (
            with_peer(json!({"matchLabels": {"app": "web "}})),
            "spec.egress[0].toEndpoints[0].matchLabels.app: no label can have the value `web `: at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends",
        ),
        (
            with_peer(
                json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a", "web,db"]}]}),
            ),
            "spec.egress[0].toEndpoints[0].matchExpressions[0].values[1]: no label can have the value `web,db`: at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends",
        ),
        (
            with_peer(json!({"matchLabels": {"k8s:Example.com/app": "x"}})),
            "spec.egress[0].toEndpoints[0].matchLabels[\"k8s:Example.com/app\"]: no label can have the key `Example.com/app`: at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends, and before it perhaps a name of DNS and `/`",
        ),
        (
            with_peer(json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})),
            "spec.egress[0].toEndpoints[0].matchExpressions[0].operator: unknown value `Is`; did you mean `In`?",
        ),
        (
            with_peer(json!({"matchExpressions": [{"key": "a", "operator": "In"}]})),
            "spec.egress[0].toEndpoints[0].matchExpressions[0]: operators In and NotIn need `values`",
        ),
        (
            with_peer(json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]})),
            "spec.egress[0].toEndpoints[0].matchExpressions[0]: operators Exists and DoesNotExist take no `values`",
        ),
        (
            server("ingress", json!({"icmps": [{"fields": [{"type": 256}]}]})),
            "spec.ingress[0].icmps[0].fields[0].type: must be a type of ICMP, 0 to 255",
        ),
        (
            server("ingress", json!({"icmps": [{"fields": [{"type": 8, "family": "IPv5"}]}]})),
            "spec.ingress[0].icmps[0].fields[0].family: unknown value `IPv5`; did you mean `IPv4`?",
        ),
        (cnp(json!({"ingress": []})), "spec: needs an `endpointSelector`; `{}` selects every endpoint"),
        (
            cnp(json!({"nodeSelector": {}})),
            "spec.nodeSelector: only a CiliumClusterwideNetworkPolicy can have it",
        ),
        (
            cnp(json!({"endpointSelector": {}, "enableDefaultDeny": {"ingres": true}})),
            "spec.enableDefaultDeny.ingres: unknown field; did you mean `ingress`?",
        ),
        (
            cnp(json!({"endpointSelector": {}, "enableDefaultDeny": {"ingress": "yes"}})),
            "spec.enableDefaultDeny.ingress: is a string, must be true or false",
        ),
        (cnp(json!(null)), "spec: is missing"),
        (cnp(json!([])), "spec: is a list, must be an object"),
    ] {
        let error = Policy::from_value(&value).unwrap_err();
        assert_eq!(error.to_string(), format!("CiliumNetworkPolicy shop/p: {expected}"));
    }
}

#[test]
fn objects_that_are_no_policies() {
    for (value, expected) in [
        (
            json!(42),
            "object : kind: must be CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or NetworkPolicy",
        ),
        (
            json!({"kind": "CiliumNetworkPolicy", "apiVersion": "cilium.io/v1", "metadata": {"name": "p"}}),
            "CiliumNetworkPolicy default/p: apiVersion: must be `cilium.io/v2`",
        ),
        (
            json!({"kind": "CiliumNetworkPolicy", "apiVersion": "cilium.io/v2"}),
            "CiliumNetworkPolicy default/: metadata.name: is missing",
        ),
        (
            json!({"kind": "CiliumNetworkPolicy", "apiVersion": "cilium.io/v2", "sepc": {}}),
            "CiliumNetworkPolicy default/: sepc: unknown field; did you mean `spec`?",
        ),
    ] {
        assert_eq!(Policy::from_value(&value).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_refused_policy_denies_what_its_selector_selects() {
    let value = server("ingress", json!({"fromEndpoint": [{}]}));
    assert!(!passes(&value, CLIENT, SERVER, 80));
    assert!(!passes(&value, SERVER, WORLD, 80), "in both directions");
    assert!(passes(&value, SERVER, CLIENT, 80) == passes(&value, SERVER, WORLD, 80), "the server is one end");
    assert!(passes(&value, WORLD, CLIENT, 80));
    assert!(passes(&value, WORLD, ELSEWHERE, 80), "same labels, other namespace");
    let trace = ask(&value, CLIENT, SERVER, 80);
    assert!(matches!(trace.decided_by.as_slice(), [RuleRef::Refused { .. }]), "{:?}", trace.decided_by);
}

#[test]
fn a_refused_policy_without_a_selector_denies_its_namespace_or_everything() {
    let value = cnp(json!({"endpointSelector": {"matchLabls": {}}, "ingress": [{}]}));
    assert!(!passes(&value, WORLD, CLIENT, 80));
    assert!(passes(&value, WORLD, ELSEWHERE, 80));
    assert!(!passes(&clusterwide(&[json!("x")]), WORLD, ELSEWHERE, 80));
}

fn clusterwide(specs: &[Value]) -> Value {
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "c"},
        "specs": specs,
    })
}

#[test]
fn a_policy_for_nodes_is_about_no_pod() {
    let understood = clusterwide(&[json!({"nodeSelector": {}, "ingress": [{}]})]);
    assert!(passes(&understood, WORLD, ELSEWHERE, 80));
    assert_eq!(Policy::from_value(&understood).unwrap().conditions[0].kind.as_str(), "Unsupported");
    for refused in [
        json!({"nodeSelector": {}, "ingres": []}),
        json!({"nodeSelector": {"matchLabls": {}}, "ingress": [{}]}),
        json!({"nodeSelector": {}, "endpointSelector": null, "ingres": []}),
    ] {
        let policy = clusterwide(&[refused]);
        assert!(passes(&policy, WORLD, ELSEWHERE, 80), "{policy}");
        let policy = Policy::from_value_or_deny(&policy);
        assert!(policy.refused.is_some() && policy.is_for_nodes());
        let message = &policy.conditions[0].message;
        assert!(
            message.ends_with("; it is for nodes, whose policies no hook enforces yet: nothing is denied")
        );
    }
}

/// Beside nodes it is about pods: these are denied.
#[test]
fn a_refused_policy_for_nodes_and_pods_denies_the_pods() {
    let nodes = json!({"nodeSelector": {}, "ingres": []});
    let bank = json!({"matchLabels": {"k8s:io.kubernetes.pod.namespace": "bank"}});
    for (specs, denied_to_others) in [
        (vec![nodes.clone(), json!({"endpointSelector": bank, "ingress": [{}]})], false),
        (vec![json!({"nodeSelector": {}, "endpointSelector": bank})], false),
        (vec![nodes.clone(), json!({"endpointSelector": {"x": 1}})], true),
        (vec![nodes.clone(), json!({})], true),
        (vec![nodes, json!("x")], true),
    ] {
        let policy = clusterwide(&specs);
        assert!(!passes(&policy, WORLD, ELSEWHERE, 80), "{policy}");
        assert_eq!(!passes(&policy, WORLD, SERVER, 80), denied_to_others, "{policy}");
        let message = &Policy::from_value_or_deny(&policy).conditions[0].message;
        assert!(message.ends_with("; everything that the policy is about is denied"), "{message}");
    }
}

#[test]
fn a_refused_policy_overrules_what_others_allow() {
    let mut policies = PolicySet::new();
    policies.insert(Policy::from_value_or_deny(&server("ingress", json!({"x": 1}))));
    let mut allow = server("ingress", json!({"fromEntities": ["all"]}));
    allow["metadata"]["name"] = json!("allow");
    policies.insert(Policy::from_value(&allow).unwrap());
    let traffic = Traffic { from: CLIENT, to: SERVER, protocol: protocol::TCP, port: 80 };
    assert_eq!(trace(input(&policies, &identities()), traffic).verdict, TraceVerdict::Denied);
    let conditions = policies.conditions(&identities(), &Surroundings::default());
    let [condition] = conditions.values().next().unwrap().as_slice() else { panic!("{conditions:?}") };
    assert_eq!(condition.kind.as_str(), "Refused");
    assert_eq!(condition.path, "spec.ingress[0].x");
}

/// Rules with something that is known, but not supported, and the path at which it is named.
fn unsupported(prefix: &str) -> Vec<(Value, String)> {
    let peer =
        |name: &str, value: Value| (json!({format!("{prefix}{name}"): value}), format!(".{prefix}{name}"));
    let port = |field: Value, path: &str| (json!({"toPorts": [field]}), format!(".toPorts[0]{path}"));
    let http = json!([{"port": "80", "protocol": "TCP"}]);
    vec![
        peer("Groups", json!([{"aws": {}}])),
        (
            json!({format!("{prefix}Entities"): ["all"], format!("{prefix}Endpoints"): [{}]}),
            format!(".{prefix}Entities"),
        ),
        port(json!({"ports": http, "rules": {"http": [{"method": "GET"}]}}), ".rules"),
        port(json!({"ports": http, "terminatingTLS": {"secret": {}}}), ".terminatingTLS"),
        port(json!({"ports": http, "originatingTLS": {"secret": {}}}), ".originatingTLS"),
        port(json!({"ports": http, "serverNames": ["example.org"]}), ".serverNames"),
        port(json!({"ports": http, "listener": {"name": "x"}}), ".listener"),
        (json!({"toPorts": [{"ports": http}], "icmps": [{"fields": [{"type": 8}]}]}), ".toPorts".to_owned()),
    ]
}

#[test]
fn unsupported_fields_are_named() {
    for (list, prefix) in [("ingress", "from"), ("egressDeny", "to")] {
        for (rule, path) in unsupported(prefix) {
            let policy = Policy::from_value(&server(list, rule.clone())).unwrap();
            let [condition] = policy.conditions.as_slice() else { panic!("{rule}: {:?}", policy.conditions) };
            assert_eq!(condition.kind.as_str(), "Unsupported");
            assert_eq!(condition.path, format!("spec.{list}[0]{path}"));
        }
    }
}

#[test]
fn unsupported_rules_allow_nothing_and_leave_the_others() {
    for (rule, _) in unsupported("from") {
        let mut value = server("ingress", rule.clone());
        assert!(!passes(&value, CLIENT, SERVER, 80), "{rule}");
        let understood = json!({"fromEndpoints": [{"matchLabels": {"app": "client"}}]});
        value["spec"]["ingress"].as_array_mut().unwrap().push(understood);
        assert!(passes(&value, CLIENT, SERVER, 80), "{rule}");
        assert!(!passes(&value, WORLD, SERVER, 80), "{rule}");
    }
}

/// `fromRequires` limits what other rules deny, too: here they deny as if it weren't there.
#[test]
fn requirements_of_denying_rules_are_named() {
    let rule = json!({"fromRequires": [{}], "fromEndpoints": [{"matchLabels": {"app": "client"}}]});
    let mut value = server("ingressDeny", rule);
    value["spec"]["ingress"] = json!([{"fromEntities": ["all"]}]);
    let policy = Policy::from_value(&value).unwrap();
    for condition in &policy.conditions {
        assert_eq!(
            (condition.kind.as_str(), &*condition.path),
            ("Unsupported", "spec.ingressDeny[0].fromRequires")
        );
    }
    assert!(!policy.conditions.is_empty());
    assert!(!passes(&value, CLIENT, SERVER, 80));
    assert!(!passes(&value, WORLD, SERVER, 80));
}

#[test]
fn unsupported_deny_rules_deny_all_that_they_could_mean() {
    for (rule, path) in unsupported("from") {
        let mut value = server("ingressDeny", rule.clone());
        value["spec"]["ingress"] = json!([{"fromEntities": ["all"]}]);
        let denies_tcp = !path.contains("icmps");
        assert_eq!(passes(&value, WORLD, SERVER, 80), !denies_tcp, "{rule}");
    }
    let mut value =
        server("ingressDeny", json!({"fromGroups": [{"aws": {}}], "toPorts": [{"ports": [{"port": "80"}]}]}));
    value["spec"]["ingress"] = json!([{"fromEntities": ["all"]}]);
    assert!(!passes(&value, CLIENT, SERVER, 80));
    assert!(passes(&value, CLIENT, SERVER, 81), "the ports are understood");
}

/// What looks like a default deny and isn't is named; Cilium refuses a policy without rules.
#[test]
fn policies_that_say_nothing_are_named() {
    let selects = |more: Value| {
        let mut spec = json!({"endpointSelector": {"matchLabels": {"app": "server"}}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        cnp(spec)
    };
    for (rules, paths) in [
        (json!({}), vec!["spec"]),
        (json!({"egress": null}), vec!["spec"]),
        (json!({"ingress": []}), vec!["spec.ingress"]),
        (json!({"ingress": [], "egress": []}), vec!["spec.ingress", "spec.egress"]),
        (json!({"ingress": [], "egress": [{}]}), vec!["spec.ingress"]),
        (json!({"ingressDeny": []}), vec!["spec"]),
        (json!({"ingress": [], "ingressDeny": [{}]}), vec![]),
        (json!({"ingress": [{}], "egress": [{}]}), vec![]),
        (json!({"ingress": [], "enableDefaultDeny": {"ingress": true}}), vec![]),
        (json!({"enableDefaultDeny": {"ingress": false}}), vec!["spec"]),
    ] {
        let value = selects(rules.clone());
        let policy = Policy::from_value(&value).unwrap();
        let found: Vec<&str> = policy.conditions.iter().map(|condition| condition.path.as_str()).collect();
        assert_eq!(found, paths, "{rules}");
        assert!(policy.conditions.iter().all(|condition| condition.kind.as_str() == "SelectsNothing"));
        assert_eq!(
            passes(&value, CLIENT, SERVER, 80),
            rules.get("ingress") != Some(&json!([{}]))
                && rules.get("ingressDeny") != Some(&json!([{}]))
                && rules.pointer("/enableDefaultDeny/ingress") != Some(&json!(true))
        );
    }
}

#[test]
fn empty_forms_of_unsupported_fields_are_nothing() {
    let ports = json!([{"ports": [{"port": "80"}], "rules": {}, "serverNames": [], "listener": null}]);
    let value = server("ingress", json!({"toPorts": ports}));
    assert!(Policy::from_value(&value).unwrap().conditions.is_empty());
    assert!(passes(&value, CLIENT, SERVER, 80));
    let value = server("ingress", json!({"fromCIDRSet": [], "toPorts": [{"ports": [{"port": "80"}]}]}));
    assert_eq!(Policy::from_value(&value).unwrap().conditions[0].kind.as_str(), "SelectsNothing");
    assert!(!passes(&value, WORLD, SERVER, 80));
}

#[test]
fn authentication_of_reserved_identities_is_impossible() {
    for (rule, names) in [
        (json!({"fromEntities": ["world"]}), Some("world")),
        (json!({"fromEntities": ["remote-node"]}), Some("remote-node, kube-apiserver")),
        (json!({"fromEndpoints": [{"matchLabels": {"reserved:health": ""}}]}), Some("health")),
        (
            json!({"fromEntities": ["all"]}),
            Some("host, world, unmanaged, health, init, remote-node, kube-apiserver, ingress"),
        ),
        (json!({"fromEndpoints": [{}]}), None),
    ] {
        let mut required = rule.clone();
        required["authentication"] = json!({"mode": "required"});
        let policies = PolicySet::from_iter([Policy::from_value(&server("ingress", required)).unwrap()]);
        let conditions: Vec<_> =
            policies.conditions(&identities(), &Surroundings::default()).into_values().flatten().collect();
        match names {
            None => assert!(conditions.is_empty(), "{conditions:?}"),
            Some(names) => {
                assert_eq!(conditions[0].kind.as_str(), "AuthImpossible");
                assert_eq!(conditions[0].path, "spec.ingress[0].authentication");
                assert!(
                    conditions[0].message.contains(&format!("of {names}, which")),
                    "{}",
                    conditions[0].message
                );
            }
        }
        let policies = PolicySet::from_iter([Policy::from_value(&server("ingress", rule)).unwrap()]);
        assert!(policies.conditions(&identities(), &Surroundings::default()).is_empty());
    }
    let world = server("ingress", json!({"fromEntities": ["world"], "authentication": {"mode": "required"}}));
    let trace = ask(&world, WORLD, SERVER, 80);
    assert_eq!(trace.authentication.as_str(), "required");
    assert!(trace.authentication_impossible);
}

#[test]
fn what_is_only_words_is_carried() {
    let policy = Policy::from_value(&cnp(json!({
        "endpointSelector": {}, "ingress": [{}], "description": "words", "log": {"value": "why"},
        "labels": [{"key": "a", "value": "b", "source": "k8s"}, {"key": "c"}],
    })))
    .unwrap();
    let spec = &policy.specs[0];
    assert_eq!(spec.description.as_deref(), Some("words"));
    assert_eq!(spec.log.as_deref(), Some("why"));
    assert_eq!(spec.labels, ["k8s:a=b", "unspec:c="]);
    assert!(policy.conditions.is_empty());
}

#[test]
fn limits() {
    let ports: Vec<Value> = (1..=41).map(|port| json!({"port": port})).collect();
    let error = Policy::from_value(&server("ingress", json!({"toPorts": [{"ports": ports}]}))).unwrap_err();
    assert_eq!(error.fault().to_string(), "spec.ingress[0].toPorts[0]: has 41 entries, 40 are the most");
    let log = |text: &str| cnp(json!({"endpointSelector": {}, "ingress": [{}], "log": {"value": text}}));
    assert_eq!(Policy::from_value(&log(&"é".repeat(32))).unwrap().specs[0].log, Some("é".repeat(32)));
    for text in ["x".repeat(33), "a\nb".to_owned()] {
        let error = Policy::from_value(&log(&text)).unwrap_err();
        assert_eq!(error.fault().to_string(), "spec.log.value: must be at most 32 printable characters");
    }
}
