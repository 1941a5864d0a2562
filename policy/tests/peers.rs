//! Peers that aren't pods, ports with names, and the fields of our own: examples of Cilium's documentation
//! with the verdicts that the words there give.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};

use policy::{
    CidrGroup, Identity, IdentityNumber, IdentitySet, Input, Label, LabelSet, NamedPort, Node, Pod, Policy,
    PolicySet, Requirement, Selector, Service, Source, Surroundings, Trace, TraceVerdict, Traffic, compile,
    protocol, reserved, trace,
};

const APP: IdentityNumber = 256;
const DB: IdentityNumber = 257;
const TEST: IdentityNumber = 258;

fn identities() -> IdentitySet {
    let pod = |number, namespace, app, service_account| {
        let pod = Pod { cluster: "default", namespace, service_account };
        Identity::new(number, pod.labels([("app", app)], []).unwrap()).unwrap()
    };
    IdentitySet::from_identities([
        pod(APP, "shop", "myService", "web"),
        pod(DB, "shop", "db", "data"),
        pod(TEST, "test", "db", "data"),
    ])
    .unwrap()
}

fn labels(labels: &[(&str, &str)]) -> LabelSet {
    let labels = labels.iter().map(|(key, value)| Label::new(Source::K8s, *key, *value).unwrap());
    LabelSet::from_labels(labels).unwrap()
}

fn node(address: &str, of_node: &[(&str, &str)]) -> Node {
    Node { labels: labels(of_node), addresses: BTreeSet::from([address.parse().unwrap()]) }
}

fn selects(key: &str, value: &str) -> Selector {
    let label = Label::new(Source::K8s, key, value).unwrap();
    Selector { requirements: vec![Requirement::equals(label.label_key().clone(), value)] }
}

fn surroundings() -> Surroundings {
    let mut surroundings = Surroundings::default();
    let address = |text: &str| text.parse().unwrap();
    let service = |labels: LabelSet, pods| Service { labels, pods, addresses: BTreeSet::new() };
    let external = Service { addresses: BTreeSet::from([address("192.0.2.53")]), ..Service::default() };
    surroundings.services = BTreeMap::from([
        (("shop".into(), "db".into()), service(labels(&[("tier", "data")]), Some(selects("app", "db")))),
        (("shop".into(), "legacy".into()), external),
    ]);
    surroundings.names = BTreeMap::from([
        ("my-remote-service.com".into(), BTreeSet::from([address("198.51.100.1")])),
        ("api.cilium.io".into(), BTreeSet::from([address("198.51.100.2"), address("2001:db8::2")])),
    ]);
    surroundings.nodes = BTreeMap::from([
        ("n1".into(), node("10.0.0.1", &[("zone", "a"), ("os", "linux")])),
        ("n2".into(), node("10.0.0.2", &[("zone", "b"), ("os", "linux")])),
        ("n3".into(), node("10.0.0.3", &[("os", "plan9")])),
    ]);
    let nets = BTreeSet::from(["203.0.113.0/24".parse().unwrap()]);
    let group = CidrGroup { labels: labels(&[("role", "vpn")]), nets };
    surroundings.cidr_groups = BTreeMap::from([("vpn".into(), group)]);
    for (identity, number) in [(APP, 8080), (DB, 5432)] {
        let name = NamedPort::new("main", protocol::TCP);
        let ports = BTreeMap::from([(name, BTreeSet::from([number]))]);
        surroundings.named_ports.insert(identity, ports);
    }
    surroundings
}

struct Case {
    policies: PolicySet,
    identities: IdentitySet,
    surroundings: Surroundings,
}

/// A CiliumNetworkPolicy for `app: myService` with this as the rest of its spec, in flow style.
fn case(rest: &str) -> Case {
    annotated("{}", rest)
}

fn annotated(annotations: &str, rest: &str) -> Case {
    let yaml = format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p, namespace: shop, annotations: {annotations}}}, \
         spec: {{endpointSelector: {{matchLabels: {{app: myService}}}}, {rest}}}}}"
    );
    of_policy(&yaml)
}

fn of_policy(yaml: &str) -> Case {
    let policy = Policy::from_value(&serde_saphyr::from_str(yaml).unwrap()).unwrap();
    Case { policies: PolicySet::from_iter([policy]), identities: identities(), surroundings: surroundings() }
}

impl Case {
    fn input(&self) -> Input<'_> {
        Input { policies: &self.policies, identities: &self.identities, surroundings: &self.surroundings }
    }

    fn of(&self, address: &str) -> IdentityNumber {
        self.policies.local_identities(&self.surroundings).identity_of(address.parse().unwrap())
    }

    fn ask(&self, from: IdentityNumber, to: IdentityNumber, protocol: u8, port: u16) -> Trace {
        trace(self.input(), Traffic { from, to, protocol, port })
    }

    /// Whether the app reaches these over TCP.
    fn reaches(&self, to: IdentityNumber, port: u16) -> bool {
        self.ask(APP, to, protocol::TCP, port).verdict == TraceVerdict::Allowed
    }

    fn conditions(&self) -> Vec<String> {
        let conditions = self.policies.conditions(&self.identities, &self.surroundings);
        conditions.into_values().flatten().map(|condition| condition.kind.as_str().to_owned()).collect()
    }
}

/// Which addresses the app reaches.
#[track_caller]
fn check(rest: &str, expected: &[(&str, bool)]) {
    let case = case(rest);
    for (address, reached) in expected {
        assert_eq!(case.reaches(case.of(address), 443), *reached, "{rest}: {address}");
    }
}

#[test]
fn cidr_rules_as_documented() {
    // "Allow to external CIDR block"
    check(
        "egress: [{toCIDR: [20.1.1.1/32]}, {toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]}]",
        &[
            ("20.1.1.1", true),
            ("20.1.1.2", false),
            ("10.1.2.3", true),
            ("10.96.0.1", false),
            ("10.111.255.255", false),
            ("10.112.0.1", true),
            ("2001:db8::1", false),
        ],
    );
    // Another rule may allow what one excepts.
    check(
        "egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]}, {toCIDR: [10.96.0.10]}]",
        &[("10.96.0.10", true), ("10.96.0.11", false)],
    );
    check("egress: [{toCIDR: [0.0.0.0/0]}]", &[("192.0.2.1", true), ("2001:db8::1", false)]);
    check("egress: [{toCIDR: ['::/0']}]", &[("192.0.2.1", false), ("2001:db8::1", true)]);
    check("egress: [{toCIDR: ['2001:db8::/32']}]", &[("2001:db8:1::1", true), ("2001:db9::1", false)]);
    check(
        "egress: [{toEntities: [world]}], egressDeny: [{toCIDR: [192.0.2.0/24]}]",
        &[("192.0.2.1", false), ("192.0.3.1", true), ("2001:db8::1", true)],
    );
}

#[test]
fn cidr_rules_are_not_about_the_cluster() {
    let all = case("egress: [{toCIDR: [0.0.0.0/0, '::/0']}]");
    for inside in [DB, TEST, reserved::HOST, reserved::REMOTE_NODE] {
        assert!(!all.reaches(inside, 443), "{inside}");
    }
    assert!(!all.reaches(reserved::WORLD, 443), "every address outside has an identity of its own here");
    assert!(case("egress: [{toEntities: [world]}]").reaches(reserved::WORLD, 443));
}

#[test]
fn empty_lists_of_prefixes_select_nothing() {
    // CVE-2025-64715
    for rest in [
        "egress: [{toCIDRSet: []}]",
        "egress: [{toCIDR: []}]",
        "egress: [{toCIDRSet: [], toPorts: [{ports: [{port: '443'}]}]}]",
    ] {
        check(rest, &[("192.0.2.1", false)]);
        assert_eq!(case(rest).conditions(), ["SelectsNothing"], "{rest}");
    }
}

#[test]
fn groups_of_prefixes() {
    let expected = [("203.0.113.9", true), ("203.0.114.9", false), ("203.0.113.200", true)];
    check("egress: [{toCIDRSet: [{cidrGroupRef: vpn}]}]", &expected);
    check("egress: [{toCIDRSet: [{cidrGroupSelector: {matchLabels: {role: vpn}}}]}]", &expected);
    check(
        "egress: [{toCIDRSet: [{cidrGroupRef: vpn, except: [203.0.113.128/25]}]}]",
        &[("203.0.113.9", true), ("203.0.113.200", false)],
    );
    // What isn't meant has parts with identities of their own, by other rules.
    let parts = case(
        "egress: [{toCIDRSet: [{cidrGroupRef: vpn, except: [203.0.113.128/25]}]}, \
         {toCIDR: [203.0.113.200/32, 203.0.113.9/32], toPorts: [{ports: [{port: '80'}]}]}]",
    );
    let reaches = |address: &str, port| parts.reaches(parts.of(address), port);
    assert!(reaches("203.0.113.9", 443) && reaches("203.0.113.200", 80));
    assert!(!reaches("203.0.113.200", 443));
    check("egress: [{toCIDRSet: [{cidrGroupRef: other}]}]", &[("203.0.113.9", false)]);
    assert_eq!(case("egress: [{toCIDRSet: [{cidrGroupRef: other}]}]").conditions(), ["SelectsNothing"]);
}

#[test]
fn families_of_the_world() {
    check("egress: [{toEntities: [world-ipv4]}]", &[("192.0.2.1", true), ("2001:db8::1", false)]);
    check("egress: [{toEntities: [world-ipv6]}]", &[("192.0.2.1", false), ("2001:db8::1", true)]);
    check("egress: [{toEntities: [world]}]", &[("192.0.2.1", true), ("2001:db8::1", true)]);
    // The whole world includes what has an identity of its own.
    check(
        "egress: [{toEntities: [world]}, {toCIDR: [192.0.2.0/24], authentication: {mode: disabled}}]",
        &[("192.0.2.1", true), ("198.51.100.1", true)],
    );
}

#[test]
fn services() {
    let to = |service: &str| case(&format!("egress: [{{toServices: [{service}]}}]"));
    let pods = to("{k8sService: {serviceName: db, namespace: shop}}");
    assert!(pods.reaches(DB, 443) && !pods.reaches(reserved::WORLD, 443));
    let by_label = to("{k8sServiceSelector: {selector: {matchLabels: {tier: data}}, namespace: shop}}");
    assert!(by_label.reaches(DB, 443));
    let external = to("{k8sService: {serviceName: legacy}}");
    assert!(
        external.reaches(external.of("192.0.2.53"), 443) && !external.reaches(external.of("192.0.2.54"), 443)
    );
    let missing = to("{k8sService: {serviceName: nothing, namespace: shop}}");
    assert!(!missing.reaches(DB, 443));
    assert_eq!(missing.conditions(), ["SelectsNothing"]);
}

#[test]
fn names_of_dns() {
    // "DNS based": matchName and matchPattern
    check(
        "egress: [{toFQDNs: [{matchName: my-remote-service.com}]}]",
        &[("198.51.100.1", true), ("198.51.100.2", false)],
    );
    check(
        "egress: [{toFQDNs: [{matchPattern: '*.cilium.io'}]}]",
        &[("198.51.100.1", false), ("198.51.100.2", true), ("2001:db8::2", true)],
    );
    check("egress: [{toFQDNs: [{matchPattern: '*'}]}]", &[("198.51.100.1", true), ("192.0.2.1", false)]);
    check("egress: [{toFQDNs: [{matchName: never.seen}]}]", &[("198.51.100.1", false)]);
    for (name, conditions) in
        [("matchName: never.seen", vec!["SelectsNothing"]), ("matchPattern: '*'", vec![])]
    {
        assert_eq!(case(&format!("egress: [{{toFQDNs: [{{{name}}}]}}]")).conditions(), conditions, "{name}");
    }
}

#[test]
fn nodes() {
    let passing = |case: &Case| {
        let local = case.policies.local_identities(&case.surroundings);
        let passes = |node: &&str| {
            let from = local.identity_of_node(node);
            case.ask(from, APP, 6, 80).verdict == TraceVerdict::Allowed
        };
        ["n1", "n2", "n3", "unknown"].into_iter().filter(passes).collect::<Vec<_>>()
    };
    let from = |selector: &str| passing(&case(&format!("ingress: [{{fromNodes: [{selector}]}}]")));
    assert_eq!(from("{}"), ["n1", "n2", "n3", "unknown"]);
    assert_eq!(from("{matchLabels: {os: linux}}"), ["n1", "n2"]);
    assert_eq!(from("{matchLabels: {zone: a}}"), ["n1"]);
    assert_eq!(from("{matchExpressions: [{key: zone, operator: DoesNotExist}]}"), ["n3"]);
    assert_eq!(from("{matchLabels: {zone: a}}, {matchLabels: {zone: b}}"), ["n1", "n2"]);
    let all_but =
        case("ingress: [{fromEntities: [all]}], ingressDeny: [{fromNodes: [{matchLabels: {zone: a}}]}]");
    assert_eq!(passing(&all_but), ["n2", "n3", "unknown"]);
    // Which node the API server's is isn't known: it is denied what any may be, and allowed what all are.
    let apiserver = |case: &Case| case.ask(reserved::KUBE_APISERVER, APP, 6, 80).verdict;
    assert_eq!(apiserver(&all_but), TraceVerdict::Denied);
    assert_eq!(
        apiserver(&case("ingress: [{fromNodes: [{matchLabels: {os: linux}}]}]")),
        TraceVerdict::Denied
    );
    assert_eq!(apiserver(&case("ingress: [{fromNodes: [{}]}]")), TraceVerdict::Allowed);
    // The entity means every node, whether it has an identity of its own or not.
    let entity =
        case("ingress: [{fromEntities: [remote-node]}], egress: [{toNodes: [{matchLabels: {zone: a}}]}]");
    assert_eq!(passing(&entity), ["n1", "n2", "n3", "unknown"]);
    let none = case("ingress: [{fromNodes: [{matchLabels: {zone: c}}]}]");
    assert_eq!((passing(&none), none.conditions()), (vec![], vec!["SelectsNothing".to_owned()]));
    let required =
        case("ingress: [{fromNodes: [{matchLabels: {zone: a}}], authentication: {mode: required}}]");
    assert_eq!(required.conditions(), ["AuthImpossible"]);
}

/// The host of an endpoint is a node too: the one that the endpoint is on.
#[test]
fn the_own_node() {
    let to = |labels: &str, host: Option<&str>| {
        let mut case = case(&format!("egress: [{{toNodes: [{{matchLabels: {{{labels}}}}}]}}]"));
        case.surroundings.host = host.map(str::to_owned);
        case.reaches(reserved::HOST, 80)
    };
    assert!(to("zone: a", Some("n1")) && !to("zone: b", Some("n1")) && !to("zone: a", None));
}

/// Kubernetes: an `ipBlock` is about any address, a node's too.
#[test]
fn nodes_in_an_ip_block() {
    let passing = |blocks: &str| {
        let policy = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}}, \
             spec: {{podSelector: {{}}, ingress: [{{from: [{blocks}]}}]}}}}"
        );
        let case = of_policy(&policy);
        let local = case.policies.local_identities(&case.surroundings);
        let passes =
            |node: &&str| case.ask(local.identity_of_node(node), APP, 6, 80).verdict == TraceVerdict::Allowed;
        let own = local.by_node().len();
        (["n1", "n2", "n3"].into_iter().filter(passes).collect::<Vec<_>>(), own)
    };
    assert_eq!(passing("{ipBlock: {cidr: 10.0.0.2/32}}"), (vec!["n2"], 1));
    assert_eq!(passing("{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.2/32]}}"), (vec!["n1", "n3"], 2));
    assert_eq!(passing("{ipBlock: {cidr: 192.0.2.0/24}}"), (vec![], 0));
    assert_eq!(passing("{ipBlock: {cidr: 0.0.0.0/0}}").1, 0, "all of them are `remote-node`");
}

#[test]
fn ports_with_names() {
    let into = case("ingress: [{toPorts: [{ports: [{port: main, protocol: TCP}]}]}]");
    let port = |port| into.ask(DB, APP, protocol::TCP, port).verdict == TraceVerdict::Allowed;
    assert!(port(8080) && !port(5432));
    let out = case("egress: [{toEndpoints: [{}], toPorts: [{ports: [{port: MAIN, protocol: TCP}]}]}]");
    assert!(out.reaches(DB, 5432) && !out.reaches(DB, 8080));
    let any = case("egress: [{toPorts: [{ports: [{port: main}]}]}]");
    assert!(any.reaches(DB, 5432) && !any.reaches(TEST, 5432), "of a pod without the name nothing is known");
}

#[test]
fn ports_with_names_that_disagree() {
    let rest = "egress: [{toEntities: [cluster]}], egressDeny: [{toPorts: [{ports: [{port: main, protocol: TCP}]}]}]";
    let mut deny = case(rest);
    let mut allow = case("egress: [{toPorts: [{ports: [{port: main, protocol: TCP}]}]}]");
    for case in [&mut deny, &mut allow] {
        let ports = case.surroundings.named_ports.get_mut(&DB).unwrap();
        ports.values_mut().next().unwrap().insert(5433);
        assert_eq!(case.conditions(), ["Ambiguous"]);
    }
    assert!(!allow.reaches(DB, 5432) && !allow.reaches(DB, 5433));
    assert!(!deny.reaches(DB, 5432) && !deny.reaches(DB, 5433) && deny.reaches(DB, 80));
}

#[test]
fn protocols_and_types_of_icmp() {
    for (ports, protocol, port, allowed) in [
        ("toPorts: [{ports: [{port: '0', protocol: GRE}]}]", protocol::GRE, 0, true),
        ("toPorts: [{ports: [{port: '0', protocol: GRE}]}]", protocol::ESP, 0, false),
        ("toPorts: [{ports: [{port: '0', protocol: VRRP}]}]", protocol::VRRP, 77, true),
        ("toPorts: [{ports: [{port: '0', protocol: ICMP}]}]", protocol::ICMP, 8 << 8, true),
        ("toPorts: [{ports: [{port: '8', protocol: ICMP}]}]", protocol::ICMP, 0, false),
        ("icmps: [{fields: [{type: EchoRequest}]}]", protocol::ICMP, 8 << 8, true),
        ("icmps: [{fields: [{type: EchoRequest, family: IPv6}]}]", protocol::ICMPV6, 128 << 8, true),
        ("icmps: [{fields: [{type: EchoRequest, family: IPv6}]}]", protocol::ICMP, 8 << 8, false),
        ("icmps: [{fields: [{type: '8', family: IPv4}]}]", protocol::ICMP, 8 << 8, true),
    ] {
        let case = case(&format!("ingress: [{{fromEndpoints: [{{}}], {ports}}}]"));
        let verdict = case.ask(DB, APP, protocol, port).verdict;
        assert_eq!(verdict == TraceVerdict::Allowed, allowed, "{ports} {protocol} {port}");
    }
}

#[test]
fn encryption_as_a_field_and_as_an_annotation() {
    let field = case("ingress: [{fromEndpoints: [{}], encryption: {mode: required}}]");
    let all = annotated(
        "{policy.authd.io/encryption: required}",
        "ingress: [{fromEndpoints: [{}]}, {fromEntities: [world]}]",
    );
    let one = annotated(
        "{policy.authd.io/encryption: 'ingress[0]'}",
        "ingress: [{fromEndpoints: [{}]}, {fromEntities: [world]}]",
    );
    let of = |case: &Case, from| case.ask(from, APP, protocol::TCP, 80).encryption.as_str();
    assert_eq!(of(&field, DB), "required");
    assert_eq!((of(&all, DB), of(&all, reserved::WORLD)), ("required", "required"));
    assert_eq!((of(&one, DB), of(&one, reserved::WORLD)), ("required", "default"));
    let broad = case(
        "ingress: [{fromEndpoints: [{}], encryption: {mode: required}}, {fromEntities: [all], toPorts: [{ports: [{port: '80'}]}]}]",
    );
    assert_eq!(of(&broad, DB), "required", "a more specific rule takes nothing away");
    assert_eq!(of(&broad, reserved::WORLD), "default");
    let in_full = annotated(
        "{policy.authd.io/encryption: 'spec.ingress[1]'}",
        "ingress: [{fromEndpoints: [{}]}, {fromEntities: [world]}]",
    );
    assert_eq!((of(&in_full, DB), of(&in_full, reserved::WORLD)), ("default", "required"));
    let of_one_spec = of_policy(
        "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p, namespace: shop, annotations: {policy.authd.io/encryption: 'specs[1].ingress[0]'}}, \
         specs: [{endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}, {endpointSelector: {}, ingress: [{fromEntities: [world]}]}]}",
    );
    assert_eq!((of(&of_one_spec, DB), of(&of_one_spec, reserved::WORLD)), ("default", "required"));
    // A rule that can't be kept, and so denies, can be named all the same.
    let unkept = annotated(
        "{policy.authd.io/encryption: 'ingress[0],ingress[1]'}",
        "enableDefaultDeny: {ingress: false}, ingress: [{toPorts: [{ports: [{port: '81', protocol: TCP}], rules: {http: [{path: /}]}}]}, \
         {fromEndpoints: [{}]}]",
    );
    assert_eq!((of(&unkept, DB), of(&unkept, reserved::WORLD)), ("required", "default"));
    assert_eq!(unkept.ask(DB, APP, protocol::TCP, 81).verdict, TraceVerdict::Denied);
}

#[test]
fn mistakes_in_annotations_refuse_the_policy() {
    for (annotations, expected) in [
        (
            "policy.authd.io/encrypt: required",
            "metadata.annotations[\"policy.authd.io/encrypt\"]: unknown field; did you mean `policy.authd.io/encryption`?",
        ),
        (
            "policy.authd.io/encryption: 'ingress[1]'",
            "metadata.annotations[\"policy.authd.io/encryption\"]: must be `required`, or rules of this object with commas between, such as `ingress[0],specs[1].egress[2]`",
        ),
        (
            "policy.authd.io/audit: maybe",
            "metadata.annotations[\"policy.authd.io/audit\"]: unknown value `maybe`; known are enabled, true, disabled, false",
        ),
    ] {
        let yaml = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop, annotations: {{{annotations}}}}}, spec: {{podSelector: {{}}, ingress: [{{}}]}}}}"
        );
        let error = Policy::from_value(&serde_saphyr::from_str(&yaml).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("NetworkPolicy shop/p: {expected}"));
    }
}

#[test]
fn a_policy_on_trial_drops_nothing() {
    let rest = "ingress: [{fromEndpoints: [{matchLabels: {app: db}}], authentication: {mode: required}}]";
    let tried = annotated("{policy.authd.io/audit: enabled}", rest);
    let denied = tried.ask(reserved::WORLD, APP, protocol::TCP, 80);
    assert_eq!((denied.verdict, denied.audit), (TraceVerdict::Denied, true));
    assert_eq!(denied.decided_by[0].object().unwrap().name, "p");
    let wanted = tried.ask(DB, APP, protocol::TCP, 80);
    assert_eq!(
        (wanted.verdict, wanted.authentication.as_str(), wanted.audit),
        (TraceVerdict::Allowed, "required", true)
    );
    assert!(compile(tried.input(), [APP]).asks_authentication(APP, DB), "handshakes are run");
    let mut namespace = case(rest);
    namespace.surroundings.audited_namespaces.insert("shop".into());
    assert!(namespace.ask(reserved::WORLD, APP, protocol::TCP, 80).audit);
    let in_force = case(rest).ask(reserved::WORLD, APP, protocol::TCP, 80);
    assert_eq!((in_force.verdict, in_force.audit), (TraceVerdict::Denied, false));
}

#[test]
fn what_authentication_cannot_tell_apart_is_refused() {
    let by_service_account =
        |identity: &Identity| Some(format!("/ns/{}/sa/{}", identity.namespace(), identity.service_account()));
    let mut identities = identities();
    let pod = Pod { cluster: "default", namespace: "shop", service_account: "data" };
    let cache = Identity::new(300, pod.labels([("app", "cache")], []).unwrap()).unwrap();
    identities.insert(cache).unwrap();
    let with_template = |rest: &str| {
        let mut case = Case { identities: identities.clone(), ..case(rest) };
        case.surroundings.share_spiffe_ids(&identities, by_service_account);
        case
    };
    let one = with_template(
        "ingress: [{fromEndpoints: [{matchLabels: {app: db}}], authentication: {mode: required}}]",
    );
    assert_eq!(one.conditions(), ["SharedSpiffeId"]);
    assert_eq!(one.ask(DB, APP, protocol::TCP, 80).verdict, TraceVerdict::Denied);
    let both = with_template(
        "ingress: [{fromEndpoints: [{matchExpressions: [{key: app, operator: In, values: [db, cache]}]}], authentication: {mode: required}}]",
    );
    assert!(both.conditions().is_empty());
    assert_eq!(both.ask(DB, APP, protocol::TCP, 80).verdict, TraceVerdict::Allowed);
    // The same in two clusters, of which a selector means the own one.
    let pod = Pod { cluster: "other", ..pod };
    let far = Identity::new(301, pod.labels([("app", "cache")], []).unwrap()).unwrap();
    identities.insert(far).unwrap();
    let of_clusters = |expression: &str| {
        let data = "key: app, operator: In, values: [db, cache]";
        let mut case = Case {
            identities: identities.clone(),
            ..case(&format!(
                "ingress: [{{fromEndpoints: [{{matchExpressions: [{{{data}}}{expression}]}}], authentication: {{mode: required}}}}]"
            ))
        };
        case.surroundings.share_spiffe_ids(&identities, by_service_account);
        case
    };
    let own = of_clusters("");
    assert_eq!(own.conditions(), ["SharedSpiffeId"]);
    assert_eq!(own.ask(DB, APP, protocol::TCP, 80).verdict, TraceVerdict::Denied);
    let all = of_clusters(", {key: io.cilium.k8s.policy.cluster, operator: Exists}");
    assert!(all.conditions().is_empty());
    assert_eq!(all.ask(DB, APP, protocol::TCP, 80).verdict, TraceVerdict::Allowed);
}

#[test]
fn without_authentication_nobody_has_to_be_told_apart() {
    let mut identities = identities();
    let pod = Pod { cluster: "default", namespace: "shop", service_account: "data" };
    let cache = Identity::new(300, pod.labels([("app", "cache")], []).unwrap()).unwrap();
    identities.insert(cache).unwrap();
    let mut without = Case {
        identities: identities.clone(),
        ..case("ingress: [{fromEndpoints: [{matchLabels: {app: db}}]}]")
    };
    let by_service_account = |identity: &Identity| Some(identity.service_account().to_owned());
    without.surroundings.share_spiffe_ids(&identities, by_service_account);
    assert!(without.conditions().is_empty());
    assert_eq!(without.ask(DB, APP, protocol::TCP, 80).verdict, TraceVerdict::Allowed);
}

#[test]
fn authentication_of_addresses_is_impossible() {
    let case = case("egress: [{toCIDR: [192.0.2.0/24], authentication: {mode: required}}]");
    assert_eq!(case.conditions(), ["AuthImpossible"]);
    let trace = case.ask(APP, case.of("192.0.2.1"), protocol::TCP, 443);
    assert!(trace.authentication_impossible);
    assert!(!compile(case.input(), [APP]).asks_authentication(APP, case.of("192.0.2.1")));
}

#[test]
fn mistakes_about_addresses_are_named() {
    for (rule, expected) in [
        (
            "toCIDR: [10.0.0.0/33]",
            "toCIDR[0]: must be an address or a prefix, such as 10.0.0.0/8 or 2001:db8::/64",
        ),
        ("toCIDRSet: [{}]", "toCIDRSet[0]: needs one of `cidr`, `cidrGroupRef` and `cidrGroupSelector`"),
        (
            "toCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}]",
            "toCIDRSet[0].except[0]: must be a part of 10.0.0.0/8",
        ),
        (
            "toCIDRSet: [{cidr: 10.0.0.0/8, exept: []}]",
            "toCIDRSet[0].exept: unknown field; did you mean `except`?",
        ),
        (
            "toCIDRSet: [{cidrGroupRef: VPN}]",
            "toCIDRSet[0].cidrGroupRef: no object can have the name `VPN`: at most 253 lower-case letters, digits, `-` and `.`, with a letter or digit around each `.` and at both ends",
        ),
        ("toServices: [{}]", "toServices[0]: needs one of `k8sService` and `k8sServiceSelector`"),
        (
            "toFQDNs: [{matchName: '*.x'}]",
            "toFQDNs[0].matchName: must be a name of DNS; `matchPattern` may have `*` in it, for any characters of a label",
        ),
        (
            "toFQDNs: [{matchPattern: '*..example'}]",
            "toFQDNs[0].matchPattern: must be a name of DNS; `matchPattern` may have `*` in it, for any characters of a label",
        ),
        (
            "toPorts: [{ports: [{port: 'a--b'}]}]",
            "toPorts[0].ports[0].port: must be a port number up to 65535, in decimal, or the name of a port",
        ),
        ("toFQDNs: [{matchNames: x}]", "toFQDNs[0].matchNames: unknown field; did you mean `matchName`?"),
        (
            "toPorts: [{ports: [{port: '1', protocol: GRE}]}]",
            "toPorts[0].ports[0].port: must be `0`: this protocol has no ports",
        ),
        (
            "icmps: [{fields: [{type: EchoRequset}]}]",
            "icmps[0].fields[0].type: unknown value `EchoRequset`; did you mean `EchoRequest`?",
        ),
        ("encryption: {mode: requird}", "encryption.mode: unknown value `requird`; did you mean `required`?"),
    ] {
        let yaml = format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p, namespace: shop}}, spec: {{endpointSelector: {{}}, egress: [{{{rule}}}]}}}}"
        );
        let error = Policy::from_value(&serde_saphyr::from_str(&yaml).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), format!("CiliumNetworkPolicy shop/p: spec.egress[0].{expected}"));
    }
}

#[test]
fn names_decide_no_denial() {
    let yaml = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p}, spec: {endpointSelector: {}, egressDeny: [{toFQDNs: [{matchName: x.y}]}]}}";
    let error = Policy::from_value(&serde_saphyr::from_str(yaml).unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("spec.egressDeny[0].toFQDNs: a rule that denies can't be about names"),
        "{error}"
    );
}
