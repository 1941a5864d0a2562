//! Which of several rules has the last word: cases that random policies meet too seldom.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use policy::{
    Encryption, Identity, IdentityNumber, IdentitySet, Input, Pod, Policy, PolicySet, RuleRef, Surroundings,
    Trace, TraceVerdict, Traffic, compile, protocol, reserved, trace,
};
use serde_json::{Value, json};

const SERVER: IdentityNumber = 256;
const CLIENT: IdentityNumber = 257;

fn identities() -> IdentitySet {
    let pod = |number, app| {
        let pod = Pod { cluster: "default", namespace: "shop", service_account: "default" };
        Identity::new(number, pod.labels([("app", app)], []).unwrap()).unwrap()
    };
    IdentitySet::from_identities([pod(SERVER, "server"), pod(CLIENT, "client")]).unwrap()
}

/// Policies for the server with these rules, and with whether each is only tried.
fn of_server(policies: &[(Value, bool)]) -> PolicySet {
    let policy = |(at, (rules, is_tried)): (usize, &(Value, bool))| {
        let audit = if *is_tried { json!({"policy.authd.io/audit": "enabled"}) } else { json!({}) };
        let mut spec = json!({"endpointSelector": {"matchLabels": {"app": "server"}}});
        spec.as_object_mut().unwrap().extend(rules.as_object().unwrap().clone());
        let metadata = json!({"name": format!("p{at}"), "namespace": "shop", "annotations": audit});
        let kind = "CiliumNetworkPolicy";
        let value = json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec});
        Policy::from_value(&value).unwrap()
    };
    policies.iter().enumerate().map(policy).collect()
}

/// What they say of TCP packets.
fn ask(policies: &[(Value, bool)], from: IdentityNumber, to: IdentityNumber, port: u16) -> Trace {
    let (policies, identities, surroundings) = (of_server(policies), identities(), Surroundings::default());
    let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
    trace(input, Traffic { from, to, protocol: protocol::TCP, port })
}

fn ports(port: &str) -> Value {
    json!([{"ports": [{"port": port, "protocol": "TCP"}]}])
}

fn client() -> Value {
    json!([{"matchLabels": {"app": "client"}}])
}

/// What a policy in force asks for is asked for, whatever others try.
#[test]
fn what_is_tried_takes_nothing_from_what_is_in_force() {
    let denies = json!({"ingressDeny": [{"fromEndpoints": client()}]});
    let allows = |more: Value| {
        let mut rule = json!({"fromEndpoints": client()});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"ingress": [rule]})
    };
    let required = json!({"mode": "required"});
    let trial = |in_force: Value| ask(&[(in_force, false), (denies.clone(), true)], CLIENT, SERVER, 80);
    let open = trial(allows(json!({})));
    assert_eq!((open.verdict, open.ingress.audit), (TraceVerdict::Denied, true));
    let authenticated = trial(allows(json!({"authentication": required})));
    assert_eq!((authenticated.verdict, authenticated.ingress.audit), (TraceVerdict::Allowed, false));
    assert_eq!(authenticated.authentication.as_str(), "required");
    let encrypted = trial(allows(json!({"encryption": required})));
    assert_eq!((encrypted.verdict, encrypted.ingress.audit), (TraceVerdict::Allowed, false));
    assert_eq!(encrypted.encryption, Encryption::Required);
    for denying in [json!({"ingress": [{}]}), json!({"ingressDeny": [{"fromEndpoints": client()}]})] {
        let denied = trial(denying);
        assert_eq!((denied.verdict, denied.ingress.audit), (TraceVerdict::Denied, false));
    }
    // Encryption that is only tried isn't done.
    let encrypts = json!({"enableDefaultDeny": {"ingress": false}, "ingress": [{"fromEndpoints": client(), "encryption": required}]});
    let tried = ask(&[(encrypts, true)], CLIENT, SERVER, 80);
    assert_eq!((tried.verdict, tried.ingress.audit), (TraceVerdict::Allowed, false));
    assert_eq!(tried.encryption, Encryption::Default);
}

/// For anybody authentication on this port is only tried; for the client another rule has it in force.
#[test]
fn authentication_in_force_is_not_the_one_that_is_tried() {
    let required = json!({"mode": "required"});
    let in_force = json!({"ingress": [
        {"toPorts": ports("80")},
        {"fromEndpoints": client(), "authentication": required},
    ]});
    let tried = json!({"ingress": [{"toPorts": ports("80"), "authentication": required}]});
    let policies = [(in_force, false), (tried, true)];
    let anybody = ask(&policies, reserved::WORLD, SERVER, 80);
    assert_eq!((anybody.authentication.as_str(), anybody.ingress.audit), ("required", true));
    let client = ask(&policies, CLIENT, SERVER, 80);
    assert_eq!((client.authentication.as_str(), client.ingress.audit), ("required", false));
}

/// The host reaches its pods without authentication unless a rule chooses it; pods don't reach the host so.
#[test]
fn what_anybody_must_do_holds_towards_the_host() {
    let required = json!({"mode": "required"});
    let chosen = |direction: &str, entities: &str| json!({direction: [{"toPorts": ports("80"), "authentication": required}, {entities: ["host"]}]});
    let egress = ask(&[(chosen("egress", "toEntities"), false)], SERVER, reserved::HOST, 80);
    assert_eq!((egress.verdict, egress.authentication.as_str()), (TraceVerdict::Allowed, "required"));
    let ingress = ask(&[(chosen("ingress", "fromEntities"), false)], reserved::HOST, SERVER, 80);
    assert_eq!((ingress.verdict, ingress.authentication.as_str()), (TraceVerdict::Allowed, "disabled"));
}

/// Of two that say the same, the rule that is closer to the packet is the one that is named: by its port, then by
/// its peer.
#[test]
fn the_closest_rule_is_named() {
    for list in ["ingress", "ingressDeny"] {
        let of_any = (json!({list: [{"toPorts": ports("80")}]}), false);
        let of_client = (json!({list: [{"fromEndpoints": client(), "toPorts": ports("80")}]}), false);
        for (policies, expected) in [([of_any.clone(), of_client.clone()], "p1"), ([of_client, of_any], "p0")]
        {
            let named = ask(&policies, CLIENT, SERVER, 80).ingress.rule.unwrap();
            assert!(matches!(&named, RuleRef::Rule { object, .. } if object.name == expected), "{named}");
        }
    }
}

/// What is said of anybody is written once, and again for somebody only where he gets something else.
#[test]
fn nothing_is_written_twice() {
    let required = json!({"mode": "required"});
    let ports_of_the_client = |rule: Value, list: &str| {
        let mut rules = json!({"ingress": [{"toPorts": ports("80")}, {"toPorts": ports("443"), "authentication": required}]});
        let of_list = rules.as_object_mut().unwrap().entry(list).or_insert(json!([]));
        of_list.as_array_mut().unwrap().push(rule);
        let (policies, identities, surroundings) =
            (of_server(&[(rules, false)]), identities(), Surroundings::default());
        let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
        let map = compile(input, [SERVER]).map;
        let of_client = map.keys().filter(|(key, _)| key.remote == CLIENT);
        of_client.map(|(key, _)| u16::from_be_bytes(key.port)).collect::<Vec<_>>()
    };
    let on_a_port = json!({"fromEndpoints": client(), "toPorts": ports("8080")});
    assert_eq!(ports_of_the_client(on_a_port.clone(), "ingress"), [8080]);
    assert_eq!(ports_of_the_client(on_a_port, "ingressDeny"), [8080]);
    let everywhere = |more: Value| {
        let mut rule = json!({"fromEndpoints": client()});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        rule
    };
    assert_eq!(ports_of_the_client(everywhere(json!({})), "ingress"), [0]);
    assert_eq!(ports_of_the_client(everywhere(json!({})), "ingressDeny"), [0]);
    assert_eq!(ports_of_the_client(everywhere(json!({"authentication": required})), "ingress"), [0, 80]);
    assert_eq!(ports_of_the_client(everywhere(json!({"encryption": required})), "ingress"), [0, 80, 443]);
}
