//! The compiled map with the kernel's lookup order, against a reading of the rules one by one.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use std::sync::LazyLock;

use policy::{
    AuthType, Direction, Identity, IdentityNumber, IdentitySet, Input, Pod, Policy, PolicySet, PortPrefix,
    Remote, RuleRef, Surroundings, compile, lookup, protocol,
};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

const HOST: IdentityNumber = 1;
const PODS: std::ops::Range<IdentityNumber> = 256..264;
/// An identity that is in no set: a peer of whom nothing is known.
const STRANGER: IdentityNumber = 9999;

fn identities() -> IdentitySet {
    let identity = |number: IdentityNumber| {
        let bit = |shift: u32| if number >> shift & 1 == 0 { "0" } else { "1" };
        let namespace = if bit(0) == "0" { "x" } else { "y" };
        let cluster = if number == 263 { "far" } else { "near" };
        let pod = Pod { cluster, namespace, service_account: "default" };
        Identity::new(number, pod.labels([("a", bit(1)), ("b", bit(2))], [("team", bit(0))]).unwrap())
            .unwrap()
    };
    IdentitySet::from_identities(PODS.map(identity)).unwrap()
}

fn input<'a>(policies: &'a PolicySet, identities: &'a IdentitySet) -> Input<'a> {
    static NOTHING: LazyLock<Surroundings> = LazyLock::new(Surroundings::default);
    Input { policies, identities, surroundings: &NOTHING }
}

/// What a packet gets: nothing, or the authentication that it needs.
type Verdict = Option<AuthType>;

/// The semantics in the words of the documentation: default deny per direction, deny over allow, explicit
/// authentication from the most specific rule that names one.
fn naive(
    policies: &PolicySet,
    identities: &IdentitySet,
    (local, remote): (IdentityNumber, IdentityNumber),
    direction: Direction,
    packet: PortPrefix,
) -> Verdict {
    let own = identities.get(local)?.labels();
    let is_host = remote == HOST && direction == Direction::Ingress;
    let (mut allowed, mut default_deny) = (is_host, false);
    let mut named = Vec::new();
    if is_host {
        named.push(((0, true), AuthType::Disabled));
    }
    for policy in policies.iter() {
        if policy.refuses(own) {
            return None;
        }
        for spec in policy.specs.iter().filter(|spec| spec.subject.matches(own)) {
            default_deny |= match direction {
                Direction::Ingress => spec.default_deny_ingress,
                Direction::Egress => spec.default_deny_egress,
            };
            for rule in spec.rules.iter().filter(|rule| rule.list.direction() == direction) {
                let is_any = rule.peers == policy::Peers::Any;
                let is_peer = is_any
                    || identities.get(remote).is_some_and(|remote| {
                        let remote = Remote { number: remote.number(), labels: remote.labels(), net: None };
                        rule.peers.select(remote, own, &Surroundings::default(), rule.list.is_deny())
                    });
                let ports = rule.ports.iter().filter(|ports| ports.covers(packet)).map(|ports| ports.bits());
                let (true, Some(bits)) = (is_peer, ports.max()) else { continue };
                if rule.list.is_deny() {
                    return None;
                }
                allowed = true;
                if !(is_any && is_host) {
                    named.extend(rule.authentication.map(|authentication| ((bits, !is_any), authentication)));
                }
            }
        }
    }
    let authentication =
        named.into_iter().max().map_or(AuthType::Disabled, |(_, authentication)| authentication);
    (allowed || !default_deny).then_some(authentication)
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

fn peers() -> impl Strategy<Value = (&'static str, Value)> {
    const ENTITIES: [&str; 7] = ["all", "world", "cluster", "host", "remote-node", "none", "kube-apiserver"];
    prop_oneof![
        4 => vec(selector(), 0..3).prop_map(|selectors| ("Endpoints", json!(selectors))),
        3 => vec(select(ENTITIES.as_slice()), 0..3).prop_map(|entities| ("Entities", json!(entities))),
        1 => Just(("CIDR", json!(["10.0.0.0/8"]))),
    ]
}

/// Ports near each other, so that prefixes overlap.
fn port() -> impl Strategy<Value = Value> {
    let protocol = of(select(["TCP", "UDP", "ANY", "SCTP", "GRE"].as_slice()));
    let port = prop_oneof![1 => Just(0u16), 6 => 76u16..86, 1 => Just(u16::MAX)];
    (port, weighted(0.4, 0u16..12), protocol).prop_map(|(port, more, protocol)| {
        let end = if port == 0 { None } else { more.map(|more| port.saturating_add(more)) };
        json!({"port": port.to_string(), "endPort": end, "protocol": protocol})
    })
}

fn ports() -> impl Strategy<Value = (&'static str, Value)> {
    let icmp = (select(["IPv4", "IPv6"].as_slice()), select([0, 8, 128].as_slice()))
        .prop_map(|(family, number)| json!({"family": family, "type": number}));
    prop_oneof![
        5 => vec(port(), 0..3).prop_map(|ports| ("toPorts", json!([{"ports": ports}]))),
        1 => vec(icmp, 0..3).prop_map(|fields| ("icmps", json!([{"fields": fields}]))),
    ]
}

fn rule(prefix: &'static str, is_deny: bool) -> impl Strategy<Value = Value> {
    let mode = weighted(0.5, select(["disabled", "required", "test-always-fail"].as_slice()));
    (weighted(0.8, peers()), weighted(0.6, ports()), mode).prop_map(move |(peers, ports, mode)| {
        let mut rule = Map::new();
        rule.extend(peers.map(|(name, value)| (format!("{prefix}{name}"), value)));
        rule.extend(ports.map(|(name, value)| (name.to_owned(), value)));
        if let (Some(mode), false) = (mode, is_deny) {
            rule.insert("authentication".to_owned(), json!({"mode": mode}));
        }
        Value::Object(rule)
    })
}

fn policy() -> impl Strategy<Value = Value> {
    let rules = (
        of(vec(rule("from", false), 0..4)),
        of(vec(rule("from", true), 0..2)),
        of(vec(rule("to", false), 0..3)),
        weighted(0.3, vec(rule("to", true), 0..2)),
    );
    let default_deny = (weighted(0.2, any::<bool>()), weighted(0.2, any::<bool>()));
    let namespace = select([Some("x"), Some("y"), None].as_slice());
    (namespace, selector(), rules, default_deny, weighted(0.05, Just("unknown"))).prop_map(
        |(namespace, selector, (ingress, ingress_deny, egress, egress_deny), (into, out), extra)| {
            let kind = if namespace.is_some() { "CiliumNetworkPolicy" } else { "CiliumClusterwideNetworkPolicy" };
            let mut value = json!({
                "apiVersion": "cilium.io/v2", "kind": kind,
                "metadata": {"namespace": namespace},
                "spec": {
                    "endpointSelector": selector,
                    "ingress": ingress, "ingressDeny": ingress_deny, "egress": egress, "egressDeny": egress_deny,
                    "enableDefaultDeny": {"ingress": into, "egress": out},
                },
            });
            if let Some(extra) = extra {
                value["spec"][extra] = json!(1);
            }
            value
        },
    )
}

fn policy_set() -> impl Strategy<Value = PolicySet> {
    vec(policy(), 0..5).prop_map(|values| {
        let named = values.into_iter().enumerate().map(|(index, mut value)| {
            value["metadata"]["name"] = json!(format!("p{index}"));
            Policy::from_value_or_deny(&value)
        });
        named.collect()
    })
}

fn packet() -> impl Strategy<Value = (u8, u16)> {
    let ports = prop_oneof![5 => 74u16..100, 1 => any::<u16>()];
    prop_oneof![
        4 => (Just(protocol::TCP), ports.clone()),
        2 => (select([protocol::UDP, protocol::SCTP, 47].as_slice()), ports),
        2 => (select([protocol::ICMP, protocol::ICMPV6].as_slice()), select([0u16, 8 << 8, 8 << 8 | 3, 128 << 8].as_slice())),
    ]
}

fn remotes() -> Vec<IdentityNumber> {
    (1..=8).chain(PODS).chain([STRANGER]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_map_says_what_the_rules_say(policies in policy_set(), packets in vec(packet(), 8)) {
        let identities = identities();
        let compiled = compile(input(&policies, &identities), PODS);
        for local in PODS {
            for remote in remotes() {
                for direction in [Direction::Ingress, Direction::Egress] {
                    for (protocol, port) in &packets {
                        let choice = lookup(&compiled.map, local, remote, direction, *protocol, *port);
                        let found: Verdict = choice
                            .filter(|choice| choice.entry.deny == 0)
                            .map(|choice| AuthType::from_number(choice.auth_type).unwrap());
                        let packet = PortPrefix::port(*protocol, *port);
                        let expected = naive(&policies, &identities, (local, remote), direction, packet);
                        prop_assert_eq!(
                            found, expected,
                            "{} {:?} {} {}/{}: {:?}", local, direction, remote, protocol, port, choice
                        );
                        let is_reserved = remote < 256;
                        if found == Some(AuthType::Spire) && !is_reserved {
                            prop_assert!(compiled.asks_authentication(local, remote));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn entries_are_well_formed(policies in policy_set()) {
        let identities = identities();
        let compiled = compile(input(&policies, &identities), PODS);
        for ((key, bits), entry) in &compiled.map {
            prop_assert!(PODS.contains(&key.local));
            prop_assert_eq!(u32::from(entry.port_prefix), bits - 72);
            prop_assert!(compiled.rules.contains_key(&entry.cookie), "{:?}", entry);
            let denies = matches!(&compiled.rules[&entry.cookie], RuleRef::Refused { .. })
                || matches!(&compiled.rules[&entry.cookie], RuleRef::Rule { list, .. } if list.is_deny());
            prop_assert_eq!(entry.deny == 1, denies);
            prop_assert_eq!(entry.precedence == u32::MAX, denies);
        }
    }

    #[test]
    fn compiling_is_deterministic_and_local(policies in policy_set(), local in PODS) {
        let identities = identities();
        let all = compile(input(&policies, &identities), PODS);
        prop_assert_eq!(&all, &compile(input(&policies, &identities), PODS.rev()));
        let mut one = compile(input(&policies, &identities), [local]).map;
        let same: std::collections::BTreeMap<_, _> =
            all.map.into_iter().filter(|((key, _), _)| key.local == local).collect();
        prop_assert_eq!(&one, &same);
        one.retain(|_, entry| entry.deny == 0 && entry.precedence == u32::MAX);
        prop_assert!(one.is_empty());
    }

    /// Whatever bytes of JSON: an answer, and never an allowance by what wasn't understood.
    #[test]
    fn parsing_never_panics(mut value in policy(), path in select(vec![
        "/spec", "/spec/ingress", "/spec/ingress/0", "/spec/egress/0/toPorts", "/spec/endpointSelector", "/metadata",
        "/kind", "/spec/ingress/0/fromEndpoints", "/spec/ingress/0/toPorts/0/ports/0",
    ]), junk in select(vec![json!(1), json!("x"), json!([]), json!([1]), json!({"x": {}}), json!(null), json!(true)])) {
        value["metadata"]["name"] = json!("p");
        if let Some(place) = value.pointer_mut(path) {
            *place = junk;
        }
        if let Err(error) = Policy::from_value(&value) {
            prop_assert!(!error.fault().path.is_empty(), "{}", error);
            prop_assert!(error.into_policy().refused.is_some_and(|scope| !scope.is_empty()));
        }
    }
}

/// Tens of thousands of packets each time; more with `PROPTEST_CASES`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}
