//! The compiled map with the kernel's lookup order, against a reading of the rules one by one.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use policy::{
    AuthType, Direction, Identity, IdentityNumber, IdentitySet, Input, LabelSet, NamedPort, Peers, Pod,
    Policy, PolicySet, PortPrefix, Prefixes, Rule, RuleRef, Surroundings, compile, lookup, protocol,
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

/// Ports with names: of one identity two numbers, of some none.
fn surroundings() -> Surroundings {
    let mut surroundings = Surroundings::default();
    for (number, ports) in [(256, vec![80]), (257, vec![81]), (258, vec![80, 443]), (261, vec![80])] {
        let name = NamedPort::new("http", protocol::TCP);
        surroundings.named_ports.insert(number, BTreeMap::from([(name, ports.into_iter().collect())]));
    }
    surroundings
}

fn input<'a>(policies: &'a PolicySet, identities: &'a IdentitySet) -> Input<'a> {
    static SURROUNDINGS: LazyLock<Surroundings> = LazyLock::new(surroundings);
    Input { policies, identities, surroundings: &SURROUNDINGS }
}

/// What a packet gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    /// The authentication that it needs, and whether it must be encrypted; none if it is dropped.
    passes: Option<(AuthType, bool)>,
    /// Only reported; it passes.
    tried: bool,
}

/// One end and the packet.
#[derive(Clone, Copy)]
struct Question<'a> {
    input: Input<'a>,
    local: IdentityNumber,
    remote: IdentityNumber,
    direction: Direction,
    packet: PortPrefix,
    prefixes: &'a Prefixes,
}

impl Question<'_> {
    /// The policies in force have the last word; those which are tried are heard where they pass everything.
    fn naive(&self) -> Verdict {
        let in_force = self.world(|policy| !policy.audit);
        let all = self.world(|_| true);
        let tried = in_force == Some((AuthType::Disabled, false))
            && all.map(|(auth, _)| auth) != Some(AuthType::Disabled);
        let encryption = in_force.is_some_and(|(_, encryption)| encryption);
        let passes = if tried { all.map(|(auth, _)| (auth, encryption)) } else { in_force };
        Verdict { passes, tried }
    }

    /// The semantics in the words of the documentation: default deny per direction, deny over allow, explicit
    /// authentication from the most specific rule that names one, encryption if any rule wants it.
    fn world(&self, counts: impl Fn(&Policy) -> bool) -> Option<(AuthType, bool)> {
        let Self { input, local, remote, direction, .. } = *self;
        let own = input.identities.get(local)?.labels();
        let is_host = remote == HOST && direction == Direction::Ingress;
        let (mut allowed, mut default_deny, mut encryption) = (is_host, false, false);
        let mut named = Vec::new();
        if is_host {
            named.push(((0, true), AuthType::Disabled));
        }
        for policy in input.policies.iter().filter(|policy| counts(policy)) {
            if policy.refuses(own) {
                return None;
            }
            for spec in policy.specs.iter().filter(|spec| spec.subject.matches(own)) {
                default_deny |= spec.default_deny(direction);
                for rule in spec.rules.iter().filter(|rule| rule.list.direction() == direction) {
                    let Some((bits, chosen)) = self.covers(rule, own) else { continue };
                    if rule.list.is_deny() {
                        return None;
                    }
                    allowed = true;
                    encryption |= rule.encryption;
                    if chosen || !is_host {
                        named.extend(
                            rule.authentication.map(|authentication| ((bits, chosen), authentication)),
                        );
                    }
                }
            }
        }
        let authentication =
            named.into_iter().max().map_or(AuthType::Disabled, |(_, authentication)| authentication);
        (allowed || !default_deny).then_some((authentication, encryption))
    }

    /// How closely a rule is about the packet: bits of its ports, and whether it chooses the other end.
    fn covers(&self, rule: &Rule, own: &LabelSet) -> Option<(u8, bool)> {
        let Input { identities, surroundings, .. } = self.input;
        let is_any = rule.peers == Peers::Any;
        let mut remotes = identities.remotes().chain(self.prefixes.remotes());
        let remote = remotes.find(|remote| remote.number == self.remote);
        let is_deny = rule.list.is_deny();
        if !is_any && !remote.is_some_and(|remote| rule.peers.select(remote, own, surroundings, is_deny)) {
            return None;
        }
        let numbered =
            rule.ports.iter().filter(|ports| ports.covers(self.packet)).map(|ports| (ports.bits(), !is_any));
        let egress = self.direction == Direction::Egress;
        let at = if egress { self.remote } else { self.local };
        let by_name = rule.named_ports.iter().filter_map(|port| {
            let numbers = surroundings.named_ports.get(&at)?.get(port)?;
            let known = is_deny || numbers.len() == 1;
            let mut prefixes = numbers.iter().map(|number| PortPrefix::port(port.protocol, *number));
            (known && prefixes.any(|prefix| prefix == self.packet)).then_some((24, egress || !is_any))
        });
        numbered.chain(by_name).max()
    }
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
    const ENTITIES: [&str; 8] =
        ["all", "world", "cluster", "host", "remote-node", "none", "kube-apiserver", "world-ipv4"];
    prop_oneof![
        4 => vec(selector(), 0..3).prop_map(|selectors| ("Endpoints", json!(selectors))),
        3 => vec(select(ENTITIES.as_slice()), 0..3).prop_map(|entities| ("Entities", json!(entities))),
        2 => vec(select(["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "::/0"].as_slice()), 0..3).prop_map(|nets| ("CIDR", json!(nets))),
        1 => Just(("CIDRSet", json!([{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.0.0/16"]}]))),
        1 => Just(("Groups", json!([{"aws": {}}]))),
        1 => selector().prop_map(|selector| ("Nodes", json!([selector]))),
    ]
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
    prop_oneof![
        5 => vec(port(), 0..3).prop_map(|ports| ("toPorts", json!([{"ports": ports}]))),
        1 => vec(icmp, 0..3).prop_map(|fields| ("icmps", json!([{"fields": fields}]))),
    ]
}

fn rule(prefix: &'static str, is_deny: bool) -> impl Strategy<Value = Value> {
    let mode = weighted(0.5, select(["disabled", "required", "test-always-fail"].as_slice()));
    (weighted(0.8, peers()), weighted(0.6, ports()), mode, weighted(0.2, Just("required"))).prop_map(
        move |(peers, ports, mode, encryption)| {
            let mut rule = Map::new();
            rule.extend(peers.map(|(name, value)| (format!("{prefix}{name}"), value)));
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

fn policy() -> impl Strategy<Value = Value> {
    let rules = (
        of(vec(rule("from", false), 0..4)),
        of(vec(rule("from", true), 0..2)),
        of(vec(rule("to", false), 0..3)),
        weighted(0.3, vec(rule("to", true), 0..2)),
    );
    let default_deny = (weighted(0.2, any::<bool>()), weighted(0.2, any::<bool>()));
    let namespace = select([Some("x"), Some("y"), None].as_slice());
    let extra = (weighted(0.05, Just("unknown")), weighted(0.2, Just("enabled")));
    (namespace, selector(), rules, default_deny, extra).prop_map(
        |(namespace, selector, (ingress, ingress_deny, egress, egress_deny), (into, out), (extra, audit))| {
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
            if let Some(audit) = audit {
                value["metadata"]["annotations"] = json!({"policy.authd.io/audit": audit});
            }
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

fn remotes(policies: &PolicySet) -> Vec<IdentityNumber> {
    let prefixes = policies.prefixes(&Surroundings::default());
    let outside = prefixes.iter().map(|(number, ..)| number);
    (1..=10).chain(PODS).chain([STRANGER]).chain(outside).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_map_says_what_the_rules_say(policies in policy_set(), packets in vec(packet(), 8)) {
        let identities = identities();
        let input = input(&policies, &identities);
        let compiled = compile(input, PODS);
        let prefixes = policies.prefixes(input.surroundings);
        for local in PODS {
            for remote in remotes(&policies) {
                for direction in [Direction::Ingress, Direction::Egress] {
                    for (protocol, port) in &packets {
                        let choice = lookup(&compiled.map, local, remote, direction, *protocol, *port);
                        let passes = choice.filter(|choice| choice.entry.deny == 0).map(|choice| {
                            (AuthType::from_number(choice.auth_type).unwrap(), choice.entry.encryption == 1)
                        });
                        let found = Verdict { passes, tried: choice.is_some_and(|choice| choice.entry.audit == 1) };
                        let packet = PortPrefix::port(*protocol, *port);
                        let expected = Question { input, local, remote, direction, packet, prefixes: &prefixes }.naive();
                        prop_assert_eq!(
                            found, expected,
                            "{} {:?} {} {}/{}: {:?}", local, direction, remote, protocol, port, choice
                        );
                        let is_required = found.passes.is_some_and(|(auth, _)| auth == AuthType::Spire);
                        if is_required && !policy::reserved::is_reserved(remote) {
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
            let denies = matches!(&compiled.rules[&entry.cookie], RuleRef::Refused { .. } | RuleRef::DefaultDeny { .. })
                || matches!(&compiled.rules[&entry.cookie], RuleRef::Rule { list, .. } if list.is_deny());
            prop_assert_eq!(entry.deny == 1, denies);
            prop_assert_eq!(entry.precedence == u32::MAX, denies && entry.audit == 0);
        }
    }

    #[test]
    fn compiling_is_deterministic_and_local(policies in policy_set(), local in PODS) {
        let identities = identities();
        let all = compile(input(&policies, &identities), PODS);
        prop_assert_eq!(&all, &compile(input(&policies, &identities), PODS.rev()));
        let mut one = compile(input(&policies, &identities), [local]).map;
        let same: BTreeMap<_, _> =
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
