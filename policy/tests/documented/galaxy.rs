//! Policies as Cilium's documentation and our demo have them, with the verdicts that the words there give.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::LazyLock;

use policy::{
    AuthType, Authentication, Identity, IdentityNumber, IdentitySet, Input, Kind, ObjectRef, Pod, Policy,
    PolicySet, RuleRef, Surroundings, Trace, TraceVerdict, Traffic, compile, protocol, trace,
};

const HOST: IdentityNumber = 1;
const WORLD: IdentityNumber = 2;
const REMOTE_NODE: IdentityNumber = 6;
const APISERVER: IdentityNumber = 7;
const DEATHSTAR: IdentityNumber = 256;
const TIEFIGHTER: IdentityNumber = 257;
const XWING: IdentityNumber = 258;
/// An empire pod in another namespace, which has label `trusted=yes`.
const SHUTTLE: IdentityNumber = 259;

fn pod(number: IdentityNumber, namespace: &str, labels: &[(&str, &str)], of_ns: &[(&str, &str)]) -> Identity {
    let pod = Pod { cluster: "default", namespace, service_account: "default" };
    Identity::new(number, pod.labels(labels.iter().copied(), of_ns.iter().copied()).unwrap()).unwrap()
}

fn galaxy() -> IdentitySet {
    IdentitySet::from_identities([
        pod(DEATHSTAR, "galaxy", &[("org", "empire"), ("class", "deathstar")], &[]),
        pod(TIEFIGHTER, "galaxy", &[("org", "empire"), ("class", "tiefighter")], &[]),
        pod(XWING, "galaxy", &[("org", "alliance"), ("class", "xwing")], &[]),
        pod(SHUTTLE, "outpost", &[("org", "empire"), ("class", "shuttle")], &[("trusted", "yes")]),
    ])
    .unwrap()
}

fn input<'a>(policies: &'a PolicySet, identities: &'a IdentitySet) -> Input<'a> {
    static NOTHING: LazyLock<Surroundings> = LazyLock::new(Surroundings::default);
    Input { policies, identities, surroundings: &NOTHING }
}

/// A CiliumNetworkPolicy in `galaxy` for the deathstar, with these lines as the rest of its spec.
fn for_deathstar(rest: &str) -> PolicySet {
    let rest: String = rest.lines().map(|line| format!("  {line}\n")).collect();
    policies(&[&format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: galaxy}}\nspec:\n  \
         endpointSelector: {{matchLabels: {{org: empire, class: deathstar}}}}\n{rest}"
    )])
}

fn policies(documents: &[&str]) -> PolicySet {
    documents.iter().map(|yaml| Policy::from_value_or_deny(&serde_saphyr::from_str(yaml).unwrap())).collect()
}

fn ask(policies: &PolicySet, from: IdentityNumber, to: IdentityNumber, protocol: u8, port: u16) -> Trace {
    trace(input(policies, &galaxy()), Traffic { from, to, protocol, port })
}

/// Word for what TCP packets from `from` to `to` get.
fn tcp(policies: &PolicySet, from: IdentityNumber, to: IdentityNumber, port: u16) -> &'static str {
    word(&ask(policies, from, to, protocol::TCP, port))
}

fn word(trace: &Trace) -> &'static str {
    match (trace.verdict, trace.authentication.0) {
        (TraceVerdict::Denied, _) => "denied",
        (TraceVerdict::Allowed, AuthType::Disabled) => "allowed",
        (TraceVerdict::Allowed, AuthType::Spire) => "required",
        (TraceVerdict::Allowed, AuthType::AlwaysFail) => "fails",
    }
}

/// Checks who reaches the deathstar on TCP port 80: tiefighter, xwing, shuttle, host, world.
#[track_caller]
fn check(rest: &str, expected: [&str; 5]) {
    let policies = for_deathstar(rest);
    let found = [TIEFIGHTER, XWING, SHUTTLE, HOST, WORLD].map(|from| tcp(&policies, from, DEATHSTAR, 80));
    assert_eq!(found, expected, "{rest}");
}

const DEMO: &str = "ingress:
- authentication: {mode: required}
  fromEndpoints: [{matchLabels: {org: empire}}]
  toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]";

#[test]
fn the_demo() {
    check(DEMO, ["required", "denied", "denied", "allowed", "denied"]);
    let policies = for_deathstar(DEMO);
    assert_eq!(tcp(&policies, TIEFIGHTER, DEATHSTAR, 81), "denied");
    assert_eq!(word(&ask(&policies, TIEFIGHTER, DEATHSTAR, protocol::UDP, 80)), "denied");
    assert_eq!(tcp(&policies, DEATHSTAR, TIEFIGHTER, 80), "allowed");
    assert_eq!(tcp(&policies, TIEFIGHTER, XWING, 80), "allowed");
}

#[test]
fn the_demo_asks_for_its_pairs_only() {
    let compiled = compile(input(&for_deathstar(DEMO), &galaxy()), [DEATHSTAR, TIEFIGHTER]);
    assert!(compiled.asks_authentication(DEATHSTAR, TIEFIGHTER));
    assert!(compiled.asks_authentication(DEATHSTAR, DEATHSTAR));
    assert!(!compiled.asks_authentication(DEATHSTAR, XWING));
    assert!(!compiled.asks_authentication(TIEFIGHTER, DEATHSTAR));
    assert!(compiled.conditions.is_empty());
}

#[test]
fn a_trace_names_the_rule_that_decides() {
    let trace = ask(&for_deathstar(DEMO), TIEFIGHTER, DEATHSTAR, protocol::TCP, 80);
    let json = serde_json::to_value(&trace).unwrap();
    assert_eq!(json["verdict"], "allowed");
    assert_eq!(json["authentication"], "required");
    assert_eq!(json["ingress"]["rule"]["object"]["name"], "p");
    assert_eq!(json["egress"]["rule"], serde_json::json!({"origin": "noDefaultDeny", "direction": "egress"}));
    assert_eq!(json["decidedBy"][1]["rule"], 0);
    assert_eq!(trace.authentication, Authentication(AuthType::Spire));
    let denied = ask(&for_deathstar(DEMO), XWING, DEATHSTAR, protocol::TCP, 80);
    assert_eq!((denied.verdict, denied.ingress.rule), (TraceVerdict::Denied, None));
}

/// What a rule allows and what it denies, since it can't be kept, is one rule of the file.
#[test]
fn a_trace_has_a_rule_once() {
    let ports =
        "toPorts: [{ports: [{port: \"443\"}]}, {ports: [{port: \"80\"}], rules: {http: [{method: GET}]}}]";
    let set = for_deathstar(&format!("enableDefaultDeny: {{ingress: false}}\ningress: [{{{ports}}}]"));
    for (port, denies, matches) in [(443, false, true), (80, true, true), (81, false, false)] {
        let considered = ask(&set, TIEFIGHTER, DEATHSTAR, protocol::TCP, port).ingress.considered;
        let found: Vec<_> = considered.iter().map(|rule| (rule.denies, rule.matches_port)).collect();
        assert_eq!(found, [(denies, matches)], "{port}");
    }
}

#[test]
fn without_policies_everything_passes() {
    let none = PolicySet::new();
    for from in [TIEFIGHTER, XWING, SHUTTLE, HOST, WORLD] {
        assert_eq!(tcp(&none, from, DEATHSTAR, 80), "allowed");
        assert_eq!(tcp(&none, DEATHSTAR, from, 80), "allowed");
    }
    assert_eq!(tcp(&none, WORLD, 4711, 80), "denied", "an endpoint that nobody knows");
}

#[test]
fn empty_and_absent_lists() {
    let closed = ["denied", "denied", "denied", "allowed", "denied"];
    let open = ["allowed"; 5];
    let namespace = ["allowed", "allowed", "denied", "allowed", "denied"];
    check("ingress: []", open);
    check("ingress: [{}]", closed);
    check("ingress: [{authentication: {mode: required}}]", closed);
    check("ingress: [{fromEndpoints: []}]", closed);
    check("ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: \"80\"}]}]}]", closed);
    check("ingress: [{fromEntities: []}]", closed);
    check("ingress: [{fromEndpoints: [], fromEntities: [all]}]", closed);
    check("ingress: [{fromEntities: [all], fromCIDRSet: []}]", closed);
    check(
        "ingress: [{fromEntities: [all]}]\ningressDeny: [{fromCIDR: [], fromEntities: [all]}]",
        ["denied"; 5],
    );
    check("ingress: [{fromCIDRSet: []}]", closed);
    check("ingress: [{fromEndpoints: [{}]}]", namespace);
    check("ingress: [{fromEndpoints: [{}], toPorts: []}]", namespace);
    check("ingress: [{fromEndpoints: null, toPorts: [{ports: [{port: \"80\"}]}]}]", open);
    check("ingress: [{toPorts: [{ports: []}]}]", closed);
    check("ingress: [{fromEndpoints: [{}], icmps: [{fields: []}]}]", closed);
    check("ingressDeny: [{}]", closed);
    check("ingressDeny: [{fromEndpoints: []}]\nenableDefaultDeny: {ingress: false}", open);
}

#[test]
fn namespaces() {
    let from = |selector: &str| format!("ingress: [{{fromEndpoints: [{{{selector}}}]}}]");
    let shuttle = ["denied", "denied", "allowed", "allowed", "denied"];
    check(&from("matchLabels: {org: empire}"), ["allowed", "denied", "denied", "allowed", "denied"]);
    check(&from("matchLabels: {k8s:io.kubernetes.pod.namespace: outpost}"), shuttle);
    check(&from("matchLabels: {io.kubernetes.pod.namespace: outpost, org: empire}"), shuttle);
    check(&from("matchLabels: {io.cilium.k8s.namespace.labels.trusted: \"yes\"}"), shuttle);
    check(
        &from("matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]"),
        ["allowed", "allowed", "allowed", "allowed", "denied"],
    );
    check(
        &from("matchLabels: {io.cilium.k8s.policy.serviceaccount: default}"),
        ["allowed", "allowed", "denied", "allowed", "denied"],
    );
}

#[test]
fn match_expressions() {
    let from = |expression: &str| {
        format!("ingress: [{{fromEndpoints: [{{matchExpressions: [{{{expression}}}]}}]}}]")
    };
    let only = |tiefighter, xwing| [tiefighter, xwing, "denied", "allowed", "denied"];
    check(&from("key: org, operator: In, values: [empire, rebels]"), only("allowed", "denied"));
    check(&from("key: org, operator: NotIn, values: [empire]"), only("denied", "allowed"));
    check(&from("key: k8s:class, operator: Exists"), only("allowed", "allowed"));
    check(
        &from("key: reserved:class, operator: Exists"),
        ["denied", "denied", "denied", "allowed", "denied"],
    );
    check(&from("key: class, operator: DoesNotExist"), only("denied", "denied"));
    // The world has no namespace, which is not one of these either, but no cluster: "policies automatically select
    // endpoints from the local cluster only".
    check(
        &from("key: io.kubernetes.pod.namespace, operator: NotIn, values: [outpost]"),
        ["allowed", "allowed", "denied", "allowed", "denied"],
    );
}

#[test]
fn entities() {
    let from = |entity: &str| format!("ingress: [{{fromEntities: [{entity}]}}]");
    check(&from("all"), ["allowed"; 5]);
    check(&from("world"), ["denied", "denied", "denied", "allowed", "allowed"]);
    check(&from("none"), ["denied", "denied", "denied", "allowed", "denied"]);
    check(&from("cluster"), ["allowed", "allowed", "allowed", "allowed", "denied"]);
    check(&from("cluster-mesh"), ["allowed", "allowed", "allowed", "allowed", "denied"]);
    for (entity, number, allowed) in [
        ("host", HOST, true),
        ("remote-node", REMOTE_NODE, true),
        ("remote-node", APISERVER, true),
        ("kube-apiserver", APISERVER, true),
        ("kube-apiserver", REMOTE_NODE, false),
        ("unmanaged", 3, true),
        ("health", 4, true),
        ("init", 5, true),
        ("ingress", 8, true),
        ("cluster", APISERVER, true),
        ("world", XWING, false),
    ] {
        let policies = for_deathstar(&format!("egress: [{{toEntities: [{entity}]}}]"));
        assert_eq!(tcp(&policies, DEATHSTAR, number, 443) == "allowed", allowed, "{entity} {number}");
    }
}

#[test]
fn the_host_reaches_its_pods_without_authentication() {
    check(
        "ingress: [{authentication: {mode: required}, fromEntities: [all]}]",
        ["required", "required", "required", "allowed", "required"],
    );
    let ports = "ingress: [{authentication: {mode: required}, toPorts: [{ports: [{port: \"80\"}]}]}]";
    check(ports, ["required", "required", "required", "allowed", "required"]);
    check(
        "ingress: [{authentication: {mode: required}, fromEntities: [host]}]",
        ["denied", "denied", "denied", "required", "denied"],
    );
    check("ingressDeny: [{fromEntities: [host]}]", ["denied"; 5]);
    assert_eq!(tcp(&for_deathstar("egress: [{}]"), DEATHSTAR, HOST, 80), "denied", "not the way out");
}

#[test]
fn deny_wins_whatever_is_more_specific() {
    let allow = "ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]}]\n";
    let empire = "{fromEndpoints: [{matchLabels: {org: empire}}]";
    check(&format!("{allow}ingressDeny: [{empire}}}]"), ["denied", "allowed", "denied", "allowed", "denied"]);
    check(&format!("{allow}ingressDeny: [{{fromEntities: [all]}}]"), ["denied"; 5]);
    check(
        &format!("{allow}ingressDeny: [{{toPorts: [{{ports: [{{port: \"0\", protocol: TCP}}]}}]}}]"),
        ["denied"; 5],
    );
    let other = format!("{allow}ingressDeny: [{{toPorts: [{{ports: [{{port: \"81\"}}]}}]}}]");
    check(&other, ["allowed", "allowed", "denied", "allowed", "denied"]);
    let wide = "ingress: [{fromEntities: [all]}]\n";
    let narrow =
        format!("{wide}ingressDeny: [{empire}, toPorts: [{{ports: [{{port: \"70\", endPort: 90}}]}}]}}]");
    check(&narrow, ["denied", "allowed", "allowed", "allowed", "allowed"]);
    assert_eq!(tcp(&for_deathstar(&narrow), TIEFIGHTER, DEATHSTAR, 91), "allowed");
}

#[test]
fn default_deny_can_be_switched_off_and_on() {
    check("enableDefaultDeny: {ingress: false}\ningress: [{fromEndpoints: [{}]}]", ["allowed"; 5]);
    let deny_one = "enableDefaultDeny: {ingress: false}\ningressDeny: [{fromEntities: [world]}]";
    check(deny_one, ["allowed", "allowed", "allowed", "allowed", "denied"]);
    let auth = "enableDefaultDeny: {ingress: false}\n\
                ingress: [{authentication: {mode: required}, fromEndpoints: [{matchLabels: {org: empire}}]}]";
    check(auth, ["required", "allowed", "allowed", "allowed", "allowed"]);
    check("enableDefaultDeny: {ingress: true}", ["denied", "denied", "denied", "allowed", "denied"]);
}

#[test]
fn egress_is_for_the_other_direction() {
    let policies = for_deathstar("egress: [{toEndpoints: [{matchLabels: {org: empire}}]}]");
    assert_eq!(tcp(&policies, DEATHSTAR, TIEFIGHTER, 80), "allowed");
    assert_eq!(tcp(&policies, DEATHSTAR, XWING, 80), "denied");
    assert_eq!(tcp(&policies, XWING, DEATHSTAR, 80), "allowed");
}

#[test]
fn protocols_and_ports() {
    let to = |ports: &str| for_deathstar(&format!("ingress: [{{toPorts: [{{ports: [{ports}]}}]}}]"));
    for (ports, protocol, port, expected) in [
        ("{port: \"80\"}", protocol::TCP, 80, "allowed"),
        ("{port: \"80\"}", protocol::SCTP, 80, "allowed"),
        ("{port: \"80\", protocol: ANY}", protocol::UDP, 80, "allowed"),
        ("{port: \"80\", protocol: ANY}", protocol::ICMP, 80, "denied"),
        ("{port: \"80\", protocol: tcp}", protocol::TCP, 80, "allowed"),
        ("{port: 80, protocol: TCP}", protocol::UDP, 80, "denied"),
        ("{port: \"0\", protocol: UDP}", protocol::UDP, 65535, "allowed"),
        ("{port: \"0\", protocol: UDP}", protocol::TCP, 65535, "denied"),
        ("{port: \"0\", endPort: 0, protocol: UDP}", protocol::UDP, 65535, "allowed"),
        ("{port: \"0\", endPort: 65535, protocol: UDP}", protocol::UDP, 65535, "allowed"),
        ("{port: \"0\", endPort: 1023, protocol: TCP}", protocol::TCP, 1023, "allowed"),
        ("{port: \"0\", endPort: 1023, protocol: TCP}", protocol::TCP, 1024, "denied"),
        ("{port: \"80\", endPort: 0, protocol: TCP}", protocol::TCP, 81, "denied"),
        ("{port: \"1024\", endPort: 65535, protocol: TCP}", protocol::TCP, 1023, "denied"),
        ("{port: \"1024\", endPort: 65535, protocol: TCP}", protocol::TCP, 1024, "allowed"),
        ("{port: \"1000\", endPort: 1003, protocol: TCP}", protocol::TCP, 1003, "allowed"),
        ("{port: \"1000\", endPort: 1003, protocol: TCP}", protocol::TCP, 1004, "denied"),
    ] {
        assert_eq!(
            word(&ask(&to(ports), WORLD, DEATHSTAR, protocol, port)),
            expected,
            "{ports} {protocol}/{port}"
        );
    }
}

#[test]
fn icmp_types() {
    let policies = for_deathstar("ingress: [{icmps: [{fields: [{type: 8}, {family: IPv6, type: 128}]}]}]");
    for (protocol, icmp_type, expected) in [
        (protocol::ICMP, 8, "allowed"),
        (protocol::ICMP, 128, "denied"),
        (protocol::ICMPV6, 128, "allowed"),
        (protocol::ICMPV6, 8, "denied"),
        (protocol::TCP, 8, "denied"),
    ] {
        let code = 3;
        let port = icmp_type << 8 | code;
        assert_eq!(
            word(&ask(&policies, WORLD, DEATHSTAR, protocol, port)),
            expected,
            "{protocol} {icmp_type}"
        );
    }
}

#[test]
fn explicit_authentication_over_derived() {
    let rule = |peers: &str, ports: &str, mode: &str| {
        let ports =
            if ports.is_empty() { String::new() } else { format!(", toPorts: [{{ports: [{ports}]}}]") };
        let mode =
            if mode.is_empty() { String::new() } else { format!(", authentication: {{mode: {mode}}}") };
        format!("- {{{peers}{ports}{mode}}}\n")
    };
    let tie = "fromEndpoints: [{matchLabels: {class: tiefighter}}]";
    let all = "fromEntities: [all]";
    let (http, tcp_all) = ("{port: \"80\", protocol: TCP}", "{port: \"0\", protocol: TCP}");
    for (rules, expected) in [
        // Cilium's tests 5a and 5b: from the most specific superset.
        (
            vec![rule(tie, "", "test-always-fail"), rule(all, tcp_all, "required"), rule(tie, http, "")],
            "required",
        ),
        (
            vec![rule(tie, http, ""), rule(all, tcp_all, "required"), rule(tie, "", "test-always-fail")],
            "required",
        ),
        // L4 only without a mode, L3 only with one: for that pair the one with.
        (vec![rule(all, http, ""), rule(tie, "", "required")], "required"),
        // The more specific rule names it.
        (vec![rule(tie, http, "disabled"), rule(tie, "", "required")], "allowed"),
        (vec![rule(tie, http, "required"), rule(tie, "", "disabled")], "required"),
        (vec![rule(all, http, "disabled"), rule(tie, "", "required")], "allowed"),
        (vec![rule(tie, "", "disabled"), rule(all, "", "required")], "allowed"),
        // Equally specific: the larger type.
        (vec![rule(tie, http, "disabled"), rule(tie, http, "required")], "required"),
        (vec![rule(tie, http, "test-always-fail"), rule(tie, http, "required")], "fails"),
        (vec![rule(tie, http, ""), rule(tie, http, "required")], "required"),
    ] {
        let rules: String = rules.concat();
        assert_eq!(
            tcp(&for_deathstar(&format!("ingress:\n{rules}")), TIEFIGHTER, DEATHSTAR, 80),
            expected,
            "{rules}"
        );
    }
}

#[test]
fn both_ends_must_allow_and_the_stronger_requirement_counts() {
    let egress = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: out, namespace: galaxy}\n\
                  spec:\n  endpointSelector: {matchLabels: {class: tiefighter}}\n  egress:\n  - toEntities: [cluster]\n    \
                  authentication: {mode: test-always-fail}\n";
    let mut policies = for_deathstar("ingress: [{fromEndpoints: [{}]}]");
    policies.insert(Policy::from_value(&serde_saphyr::from_str(egress).unwrap()).unwrap());
    assert_eq!(tcp(&policies, TIEFIGHTER, DEATHSTAR, 80), "fails");
    assert_eq!(tcp(&policies, TIEFIGHTER, WORLD, 80), "denied");
}

#[test]
fn clusterwide_policies() {
    let yaml = |spec: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: c}}\n{spec}"
        )
    };
    let all_pods = policies(&[&yaml("spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}")]);
    assert_eq!(tcp(&all_pods, SHUTTLE, DEATHSTAR, 80), "allowed");
    assert_eq!(tcp(&all_pods, WORLD, DEATHSTAR, 80), "denied", "`{{}}` means pods");
    assert_eq!(tcp(&all_pods, WORLD, SHUTTLE, 80), "denied");
    let reserved = yaml(
        "specs:\n- {endpointSelector: {matchLabels: {org: alliance}}, ingress: [{}]}\n\
         - endpointSelector: {matchLabels: {org: empire}}\n  \
           ingress: [{fromEndpoints: [{matchLabels: {\"reserved:world\": \"\"}}]}]",
    );
    let reserved = policies(&[&reserved]);
    assert_eq!(tcp(&reserved, WORLD, SHUTTLE, 80), "allowed");
    assert_eq!(tcp(&reserved, XWING, SHUTTLE, 80), "denied");
    assert_eq!(tcp(&reserved, SHUTTLE, XWING, 80), "denied");
    let place = ask(&reserved, WORLD, SHUTTLE, protocol::TCP, 80).ingress.rule.unwrap();
    assert!(matches!(place, RuleRef::Rule { spec: Some(1), rule: 0, .. }), "{place}");
}

#[test]
fn a_policy_is_for_its_own_namespace() {
    let yaml = |selector: &str| {
        policies(&[&format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: galaxy}}\n\
             spec: {{endpointSelector: {selector}, ingress: [{{}}]}}"
        )])
    };
    let condition = |selector: &str| {
        let object =
            ObjectRef { kind: Kind::CiliumNetworkPolicy, namespace: "galaxy".into(), name: "p".into() };
        let conditions = yaml(selector).get(&object).unwrap().conditions.clone();
        conditions
            .into_iter()
            .map(|condition| (condition.kind.as_str(), condition.message))
            .collect::<Vec<_>>()
    };
    for (selector, warned) in [
        ("{}", None),
        ("{matchLabels: {io.kubernetes.pod.namespace: galaxy}}", None),
        (
            "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [outpost]}]}",
            None,
        ),
        ("{matchLabels: {'k8s:io.kubernetes.pod.namespace': outpost}}", Some("`galaxy` counts")),
    ] {
        let policies = yaml(selector);
        assert_eq!(tcp(&policies, WORLD, SHUTTLE, 80), "allowed", "{selector}");
        assert_eq!(tcp(&policies, WORLD, XWING, 80), "denied", "{selector}");
        let found = condition(selector);
        assert_eq!(found.len(), usize::from(warned.is_some()), "{selector}");
        assert!(
            found
                .iter()
                .all(|(kind, message)| *kind == "ForeignNamespace" && message.contains(warned.unwrap()))
        );
    }
    // Cilium replaces `k8s:` in `matchLabels` alone: with anything else the own namespace is asked for as well.
    for selector in [
        "{matchLabels: {io.kubernetes.pod.namespace: outpost}}",
        "{matchLabels: {'any:io.kubernetes.pod.namespace': outpost}}",
        "{matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: In, values: [outpost]}]}",
        "{matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: NotIn, values: [galaxy]}]}",
        "{matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: DoesNotExist}]}",
    ] {
        let policies = yaml(selector);
        assert_eq!(tcp(&policies, WORLD, SHUTTLE, 80), "allowed", "{selector}");
        assert_eq!(tcp(&policies, WORLD, XWING, 80), "allowed", "{selector}");
        let found = condition(selector);
        assert!(found[0].1.contains("selects nothing"), "{found:?}");
    }
}
