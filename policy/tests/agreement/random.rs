//! Random policies, and the small cluster that they are about.

use std::collections::{BTreeMap, BTreeSet};

use policy::{
    CidrGroup, Identity, IdentityNumber, IdentitySet, LabelSet, NamedPort, Node, Pod, Policy, PolicySet,
    Requirement, Selector, Service, Surroundings, protocol,
};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

pub(crate) const HOST: IdentityNumber = 1;
pub(crate) const PODS: std::ops::Range<IdentityNumber> = 256..264;
/// An identity that is in no set: a peer of whom nothing is known.
pub(crate) const STRANGER: IdentityNumber = 9999;

pub(crate) fn identities() -> IdentitySet {
    IdentitySet::from_identities(PODS.map(|number| identity(number, None))).unwrap()
}

/// The identity with this number; its namespace may have another label than at first.
pub(crate) fn identity(number: IdentityNumber, team: Option<&str>) -> Identity {
    let bit = |shift: u32| if number >> shift & 1 == 0 { "0" } else { "1" };
    let cluster = if number == 263 { "far" } else { "near" };
    let pod = Pod { cluster, namespace: namespace(number), service_account: "default" };
    let of_namespace = [("team", team.unwrap_or(bit(0)))];
    Identity::new(number, pod.labels([("a", bit(1)), ("b", bit(2))], of_namespace).unwrap()).unwrap()
}

pub(crate) const fn namespace(number: IdentityNumber) -> &'static str {
    if number & 1 == 0 { "x" } else { "y" }
}

/// Ports with names (of one identity two numbers, of some none), addresses, services, groups and names.
pub(crate) fn surroundings() -> Surroundings {
    let label = |text: &str| LabelSet::from_labels([text.parse().unwrap()]).unwrap();
    let net = |text: &str| text.parse().unwrap();
    let mut surroundings = Surroundings::default();
    for number in [256u32, 257, 258] {
        let address = format!("10.1.0.{}", number - 250).parse().unwrap();
        surroundings.addresses.insert(number, BTreeSet::from([address]));
    }
    let pods = Selector { requirements: vec![Requirement::equals("k8s:a".parse().unwrap(), "1")] };
    let by_hand = BTreeSet::from(["192.0.2.1".parse().unwrap()]);
    let services = [("web", Some(pods), BTreeSet::new()), ("ext", None, by_hand)];
    for (name, pods, addresses) in services {
        let service = Service { labels: label("k8s:kind=svc"), pods, addresses };
        surroundings.services.insert(("x".to_owned(), name.to_owned()), service);
    }
    let nets = BTreeSet::from([net("10.2.0.0/16"), net("198.51.100.0/24")]);
    surroundings.cidr_groups.insert("g".to_owned(), CidrGroup { labels: label("k8s:kind=group"), nets });
    surroundings.names.insert("a.example".to_owned(), BTreeSet::from(["192.0.2.7".parse().unwrap()]));
    for (name, labels, last) in [("n1", "k8s:a=1", 1), ("n2", "k8s:a=0", 2), ("n3", "k8s:b=1", 6)] {
        let addresses = BTreeSet::from([[10, 1, 0, last].into()]);
        surroundings.nodes.insert(name.to_owned(), Node { labels: label(labels), addresses });
    }
    for (number, ports) in [(256, vec![80]), (257, vec![81]), (258, vec![80, 443]), (261, vec![80])] {
        let name = NamedPort::new("http", protocol::TCP);
        surroundings.named_ports.insert(number, BTreeMap::from([(name, ports.into_iter().collect())]));
    }
    surroundings
}

fn label() -> impl Strategy<Value = (String, Value)> {
    const KEYS: [&str; 4] = ["a", "k8s:a", "any:b", "k8s:b"];
    let plain = (select(KEYS.as_slice()), select(["0", "1"].as_slice()));
    let other = select(
        [
            ("io.kubernetes.pod.namespace", "x"),
            ("k8s:io.kubernetes.pod.namespace", "y"),
            ("io.cilium.k8s.namespace.labels.team", "1"),
            ("reserved:world", ""),
            ("reserved:host", ""),
            ("io.cilium.k8s.policy.cluster", "far"),
        ]
        .as_slice(),
    );
    prop_oneof![4 => plain, 1 => other].prop_map(|(key, value)| (key.to_owned(), json!(value)))
}

fn expression() -> impl Strategy<Value = Value> {
    let key = select(["a", "k8s:b", "io.kubernetes.pod.namespace", "none"].as_slice());
    prop_oneof![
        (key.clone(), select(["In", "NotIn"].as_slice()), subsequence(vec!["0", "1", "x"], 1..=2))
            .prop_map(|(key, operator, values)| json!({"key": key, "operator": operator, "values": values})),
        (key, select(["Exists", "DoesNotExist"].as_slice()))
            .prop_map(|(key, operator)| json!({"key": key, "operator": operator})),
    ]
}

fn selector() -> impl Strategy<Value = Value> {
    (vec(label(), 0..2), vec(expression(), 0..2)).prop_map(|(labels, expressions)| {
        json!({"matchLabels": labels.into_iter().collect::<Map<_, _>>(), "matchExpressions": expressions})
    })
}

fn peers(prefix: &'static str) -> BoxedStrategy<(&'static str, Value)> {
    const ENTITIES: [&str; 14] = [
        "all",
        "world",
        "cluster",
        "cluster",
        "host",
        "remote-node",
        "none",
        "kube-apiserver",
        "world-ipv4",
        "world-ipv6",
        "init",
        "ingress",
        "health",
        "unmanaged",
    ];
    const NETS: [&str; 8] = [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.0.6/32",
        "192.0.2.0/29",
        "192.0.2.7/32",
        "0.0.0.0/0",
        "::/0",
        "fd00::/8",
    ];
    let excepting = select(vec![
        ("10.0.0.0/8", vec!["10.1.0.0/16", "10.1.0.4/30", "10.2.0.0/16"]),
        ("0.0.0.0/0", vec!["10.0.0.0/8", "192.0.2.4/30"]),
        ("fd00::/8", vec!["fd00:2::/32"]),
    ])
    .prop_flat_map(|(cidr, inside)| {
        let len = inside.len();
        subsequence(inside, 0..=len).prop_map(move |except| json!({"cidr": cidr, "except": except}))
    });
    let both = prop_oneof![
        4 => vec(selector(), 0..3).prop_map(|selectors| ("Endpoints", json!(selectors))),
        3 => vec(select(ENTITIES.as_slice()), 0..3).prop_map(|entities| ("Entities", json!(entities))),
        2 => vec(select(NETS.as_slice()), 0..3).prop_map(|nets| ("CIDR", json!(nets))),
        2 => vec(excepting, 0..3).prop_map(|sets| ("CIDRSet", json!(sets))),
        1 => Just(("Groups", json!([{"aws": {}}]))),
        1 => Just(("CIDRSet", json!([{"cidrGroupRef": "g", "except": ["10.2.1.0/24"]}]))),
        1 => Just(("CIDRSet", json!([{"cidrGroupSelector": {"matchLabels": {"kind": "group"}}}]))),
        1 => selector().prop_map(|selector| ("Nodes", json!([selector]))),
    ];
    let services = prop_oneof![
        Just(("Services", json!([{"k8sService": {"serviceName": "web", "namespace": "x"}}]))),
        Just(("Services", json!([{"k8sServiceSelector": {"selector": {"matchLabels": {"kind": "svc"}}}}]))),
        Just(("FQDNs", json!([{"matchPattern": "*.example"}]))),
    ];
    if prefix == "to" { prop_oneof![8 => both, 1 => services].boxed() } else { both.boxed() }
}

/// Ports near each other, so that prefixes overlap.
fn port() -> impl Strategy<Value = Value> {
    let protocol = of(select(["TCP", "UDP", "ANY", "SCTP", "GRE"].as_slice()));
    let port = prop_oneof![1 => Just(0u16), 6 => 76u16..86, 1 => Just(u16::MAX)];
    (port, weighted(0.4, 0u16..12), protocol, weighted(0.2, Just("http"))).prop_map(
        |(port, more, protocol, name)| {
            let numbered = name.is_none() && protocol != Some("GRE");
            let port = if protocol == Some("GRE") { 0 } else { port };
            let end = more.filter(|_| port != 0 && numbered).map(|more| port.saturating_add(more));
            let port = name.filter(|_| protocol != Some("GRE")).map_or(port.to_string(), str::to_owned);
            json!({"port": port, "endPort": end, "protocol": protocol})
        },
    )
}

fn ports() -> impl Strategy<Value = (&'static str, Value)> {
    let icmp = (select(["IPv4", "IPv6"].as_slice()), select([0, 8, 128].as_slice()))
        .prop_map(|(family, number)| json!({"family": family, "type": number}));
    let block = || vec(port(), 0..3).prop_map(|ports| json!({"ports": ports}));
    // Layer 7 isn't enforced: such a rule allows nothing, or denies what it is about.
    let content =
        vec(port(), 1..3).prop_map(|ports| json!({"ports": ports, "rules": {"http": [{"path": "/"}]}}));
    prop_oneof![
        10 => vec(block(), 0..3).prop_map(|blocks| ("toPorts", json!(blocks))),
        1 => content.prop_map(|block| ("toPorts", json!([block]))),
        2 => vec(icmp, 0..3).prop_map(|fields| ("icmps", json!([{"fields": fields}]))),
    ]
}

fn rule(prefix: &'static str, is_deny: bool) -> impl Strategy<Value = Value> {
    let mode = weighted(0.5, select(["disabled", "required", "test-always-fail"].as_slice()));
    let whom = (weighted(0.8, peers(prefix)), weighted(0.1, vec(selector(), 0..3)));
    (whom, weighted(0.6, ports()), mode, weighted(0.2, Just("required"))).prop_map(
        move |((peers, required), ports, mode, encryption)| {
            let mut rule = Map::new();
            rule.extend(peers.map(|(name, value)| (format!("{prefix}{name}"), value)));
            rule.extend(required.map(|selectors| (format!("{prefix}Requires"), json!(selectors))));
            rule.extend(ports.map(|(name, value)| (name.to_owned(), value)));
            if let (Some(mode), false) = (mode, is_deny) {
                rule.insert("authentication".to_owned(), json!({"mode": mode}));
            }
            if let (Some(encryption), false) = (encryption, is_deny) {
                rule.insert("encryption".to_owned(), json!({"mode": encryption}));
            }
            Value::Object(rule)
        },
    )
}

/// A NetworkPolicy of a few peers.
fn network_policy() -> impl Strategy<Value = Value> {
    let plain = || (select(["a", "b"].as_slice()), select(["0", "1"].as_slice()));
    let peer = prop_oneof![
        plain().prop_map(|(key, value)| json!({"podSelector": {"matchLabels": {key: value}}})),
        (select(["0", "1"].as_slice()), of(plain())).prop_map(|(team, pods)| {
            let pods = pods.map(|(key, value)| json!({"matchLabels": {key: value}}));
            let mut peer = json!({"namespaceSelector": {"matchLabels": {"team": team}}});
            peer.as_object_mut().unwrap().extend(pods.map(|pods| ("podSelector".to_owned(), pods)));
            peer
        }),
        select(["10.1.0.0/24", "10.1.0.6/32", "10.0.0.0/8"].as_slice())
            .prop_map(|cidr| json!({"ipBlock": {"cidr": cidr}})),
        subsequence(vec!["10.1.0.6/32", "10.1.0.0/28", "10.1.0.128/25"], 0..=3)
            .prop_map(|except| json!({"ipBlock": {"cidr": "10.1.0.0/24", "except": except}})),
    ];
    let numbered = (select(["TCP", "UDP"].as_slice()), 78u16..84, weighted(0.3, 0u16..5)).prop_map(
        |(protocol, port, more)| {
            json!({"protocol": protocol, "port": port, "endPort": more.map(|more| port + more)})
        },
    );
    let port = prop_oneof![4 => numbered, 1 => Just(json!({"port": "http"})), 1 => Just(json!({"protocol": "SCTP"}))];
    let rule = |field: &'static str| {
        (vec(peer.clone(), 0..3), vec(port.clone(), 0..2))
            .prop_map(move |(peers, ports)| json!({field: peers, "ports": ports}))
    };
    let rules = (of(vec(rule("from"), 0..3)), of(vec(rule("to"), 0..3)));
    (select(["x", "y"].as_slice()), of(plain()), rules).prop_map(|(namespace, pods, (ingress, egress))| {
        let labels: Map<String, Value> = pods.into_iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
        let mut spec = json!({"podSelector": {"matchLabels": labels}, "policyTypes": []});
        for (name, field, rules) in [("Ingress", "ingress", ingress), ("Egress", "egress", egress)] {
            if let Some(rules) = rules {
                spec["policyTypes"].as_array_mut().unwrap().push(json!(name));
                spec[field] = json!(rules);
            }
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace}, "spec": spec,
        })
    })
}

/// A policy of any kind.
pub(crate) fn any_policy() -> impl Strategy<Value = Value> {
    prop_oneof![4 => policy(), 1 => network_policy()]
}

/// A `spec` of a policy for pods, or now and then for nodes.
fn spec(is_namespaced: bool) -> impl Strategy<Value = Value> {
    let rules = (
        of(vec(rule("from", false), 0..4)),
        of(vec(rule("from", true), 0..2)),
        of(vec(rule("to", false), 0..3)),
        weighted(0.3, vec(rule("to", true), 0..2)),
    );
    let default_deny = (weighted(0.2, any::<bool>()), weighted(0.2, any::<bool>()));
    let extra = (weighted(0.05, Just("unknown")), weighted(0.2, Just(())));
    (selector(), rules, default_deny, extra).prop_map(
        move |(selector, (ingress, ingress_deny, egress, egress_deny), (into, out), (extra, nodes))| {
            let subject = if nodes.is_some() && !is_namespaced { "nodeSelector" } else { "endpointSelector" };
            let mut spec = json!({
                subject: selector,
                "ingress": ingress, "ingressDeny": ingress_deny, "egress": egress, "egressDeny": egress_deny,
                "enableDefaultDeny": {"ingress": into, "egress": out},
            });
            if let Some(extra) = extra {
                spec[extra] = json!(1);
            }
            spec
        },
    )
}

pub(crate) fn policy() -> impl Strategy<Value = Value> {
    let namespace = select([Some("x"), Some("y"), None].as_slice());
    let annotations = (weighted(0.2, Just("enabled")), weighted(0.05, Just("required")));
    namespace.prop_flat_map(move |namespace| {
        let specs = prop_oneof![
            6 => spec(namespace.is_some()).prop_map(|spec| ("spec", spec)),
            1 => vec(spec(namespace.is_some()), 1..3).prop_map(|specs| ("specs", json!(specs))),
        ];
        (specs, annotations.clone()).prop_map(move |((field, specs), (audit, encryption))| {
            let kind =
                if namespace.is_some() { "CiliumNetworkPolicy" } else { "CiliumClusterwideNetworkPolicy" };
            let metadata = json!({"namespace": namespace, "annotations": {}});
            let mut value =
                json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, field: specs});
            for (name, word) in [("audit", audit), ("encryption", encryption)] {
                if let Some(word) = word {
                    value["metadata"]["annotations"][format!("policy.authd.io/{name}")] = json!(word);
                }
            }
            value
        })
    })
}

pub(crate) fn policy_set() -> impl Strategy<Value = PolicySet> {
    vec(any_policy(), 0..5)
        .prop_map(|values| values.into_iter().enumerate().map(|(index, value)| named(value, index)).collect())
}

/// Rules for one pod about few peers and ports, so that they get in each other's way.
pub(crate) fn close_quarters() -> impl Strategy<Value = PolicySet> {
    let peers = of(Just(json!([{"matchLabels": {"b": "1"}}])));
    let port = select(vec![
        json!([]),
        json!({"port": "80"}),
        json!({"port": "80", "endPort": 81}),
        json!({"port": "0"}),
    ]);
    let mode = of(select(["disabled", "required"].as_slice()));
    let rule = (peers, port, mode, weighted(0.2, Just("required")), weighted(0.3, Just(())));
    let rules = vec(rule, 0..5).prop_map(|rules| {
        let mut spec = json!({"endpointSelector": {}, "ingress": [], "ingressDeny": []});
        for (peers, port, mode, encryption, deny) in rules {
            let mut rule = Map::new();
            rule.extend(peers.map(|peers| ("fromEndpoints".to_owned(), peers)));
            if let Some(port) = port.as_object() {
                let mut port = port.clone();
                port.insert("protocol".to_owned(), json!("TCP"));
                rule.insert("toPorts".to_owned(), json!([{"ports": [port]}]));
            }
            let list = if deny.is_some() { "ingressDeny" } else { "ingress" };
            if deny.is_none() {
                rule.extend(mode.map(|mode| ("authentication".to_owned(), json!({"mode": mode}))));
                rule.extend(encryption.map(|mode| ("encryption".to_owned(), json!({"mode": mode}))));
            }
            spec[list].as_array_mut().unwrap().push(Value::Object(rule));
        }
        let kind = "CiliumClusterwideNetworkPolicy";
        json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": {}, "spec": spec})
    });
    of(rules).prop_map(|value| value.into_iter().map(|value| named(value, 0)).collect())
}

/// The policy with this name.
pub(crate) fn named(mut value: Value, index: usize) -> Policy {
    value["metadata"]["name"] = json!(format!("p{index}"));
    Policy::from_value_or_deny(&value)
}

pub(crate) fn packet() -> impl Strategy<Value = (u8, u16)> {
    let ports = prop_oneof![5 => 74u16..100, 1 => any::<u16>()];
    prop_oneof![
        4 => (Just(protocol::TCP), ports.clone()),
        2 => (select([protocol::UDP, protocol::SCTP, 47].as_slice()), ports),
        2 => (select([protocol::ICMP, protocol::ICMPV6].as_slice()), select([0u16, 8 << 8, 8 << 8 | 3, 128 << 8].as_slice())),
    ]
}

/// Tens of thousands of packets each time; more with `PROPTEST_CASES`.
pub(crate) fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}
