//! Kubernetes' end-to-end tests of NetworkPolicy as data: three namespaces with three pods each, ports 80 and
//! 81 over TCP, UDP and SCTP, and for each policy who reaches whom.
//!
//! The expected tables are written from what the tests and the API reference say, as a function of source,
//! destination, port and protocol; every combination is asked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::{
    Identity, IdentityNumber, IdentitySet, Input, NamedPort, Pod, Policy, PolicySet, Surroundings,
    TraceVerdict, Traffic, protocol, reserved, trace,
};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 2] = [80, 81];
const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

/// A pod: namespace and name.
type Name = (&'static str, &'static str);

struct Cluster {
    identities: IdentitySet,
    surroundings: Surroundings,
    numbers: BTreeMap<Name, IdentityNumber>,
}

/// As the tests' model makes it: pods have label `pod`, namespaces label `ns`, ports names like
/// `serve-80-tcp`, every pod an address.
fn cluster() -> Cluster {
    cluster_with(|_| vec![])
}

/// The same, where some pods have more labels.
fn cluster_with(more: impl Fn(Name) -> Vec<(&'static str, &'static str)>) -> Cluster {
    let mut cluster = Cluster {
        identities: IdentitySet::new(),
        surroundings: Surroundings::default(),
        numbers: BTreeMap::new(),
    };
    for (at, namespace) in NAMESPACES.into_iter().enumerate() {
        for (index, name) in PODS.into_iter().enumerate() {
            let number = 256 + u32::try_from(at * 3 + index).unwrap();
            let mut labels = vec![("pod", name)];
            labels.extend(more((namespace, name)));
            let pod = Pod { cluster: "default", namespace, service_account: "default" };
            let of_namespace = [("ns", namespace), ("kubernetes.io/metadata.name", namespace)];
            let labels = pod.labels(labels, of_namespace).unwrap();
            cluster.identities.insert(Identity::new(number, labels).unwrap()).unwrap();
            cluster.numbers.insert((namespace, name), number);
            cluster.surroundings.addresses.insert(number, BTreeSet::from([address((namespace, name))]));
            let ports = cluster.surroundings.named_ports.entry(number).or_default();
            for (protocol, word) in PROTOCOLS.into_iter().zip(["tcp", "udp", "sctp"]) {
                for port in PORTS {
                    let name = NamedPort::new(&format!("serve-{port}-{word}"), protocol);
                    ports.insert(name, BTreeSet::from([port]));
                }
            }
        }
    }
    cluster
}

fn address((namespace, name): Name) -> IpAddr {
    let place = |list: [&str; 3], one| list.iter().position(|have| *have == one).unwrap();
    let (a, b) = (place(NAMESPACES, namespace), place(PODS, name));
    IpAddr::from([10, 244, u8::try_from(a).unwrap(), u8::try_from(b + 1).unwrap()])
}

fn policies(yaml: &[&str]) -> PolicySet {
    yaml.iter().map(|yaml| Policy::from_value(&serde_saphyr::from_str(yaml).unwrap()).unwrap()).collect()
}

/// `spec` of a NetworkPolicy in this namespace.
fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: '{namespace}'}}, spec: {spec}}}"
    )
}

fn is_allowed(
    cluster: &Cluster,
    policies: &PolicySet,
    from: IdentityNumber,
    to: IdentityNumber,
    protocol: u8,
    port: u16,
) -> bool {
    let input = Input { policies, identities: &cluster.identities, surroundings: &cluster.surroundings };
    trace(input, Traffic { from, to, protocol, port }).verdict == TraceVerdict::Allowed
}

/// Asks for every pair of pods, protocol and port.
#[track_caller]
fn check(cluster: &Cluster, yaml: &[String], expected: impl Fn(Name, Name, u8, u16) -> bool) {
    let yaml: Vec<&str> = yaml.iter().map(String::as_str).collect();
    let policies = policies(&yaml);
    for (from, from_number) in &cluster.numbers {
        // A pod always reaches itself; that traffic never leaves it.
        for (to, to_number) in cluster.numbers.iter().filter(|(to, _)| *to != from) {
            for protocol in PROTOCOLS {
                for port in PORTS {
                    assert_eq!(
                        is_allowed(cluster, &policies, *from_number, *to_number, protocol, port),
                        expected(*from, *to, protocol, port),
                        "{from:?} -> {to:?} {port}/{protocol} under {yaml:?}"
                    );
                }
            }
        }
    }
}

/// A policy for `x/a`.
#[track_caller]
fn check_xa(rest: &str, expected: impl Fn(Name, Name, u8, u16) -> bool) {
    check(
        &cluster(),
        &[policy("p", "x", &format!("{{podSelector: {{matchLabels: {{pod: a}}}}, {rest}}}"))],
        expected,
    );
}

const XA: Name = ("x", "a");

#[test]
fn deny_all_ingress() {
    // "should support a 'default-deny-ingress' policy"
    for spec in
        ["{podSelector: {}, policyTypes: [Ingress]}", "{podSelector: {}}", "{podSelector: {}, ingress: []}"]
    {
        check(&cluster(), &[policy("deny", "x", spec)], |_, to, _, _| to.0 != "x");
    }
}

#[test]
fn deny_all() {
    // "should support a 'default-deny-all' policy"
    let spec = "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [], egress: []}";
    check(&cluster(), &[policy("deny", "x", spec)], |from, to, _, _| from.0 != "x" && to.0 != "x");
}

#[test]
fn policy_types_default_as_documented() {
    // An empty egress list doesn't make it an egress policy; one rule does.
    check_xa("egress: []", |_, to, _, _| to != XA);
    check_xa("egress: [{}]", |_, to, _, _| to != XA);
    check_xa("egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]", |from, to, _, _| {
        to != XA && (from != XA || to == ("x", "b"))
    });
    check_xa("policyTypes: [Egress]", |from, _, _, _| from != XA);
    check_xa("policyTypes: [Egress], egress: [{}]", |_, _, _, _| true);
    // Rules of a direction that the policy isn't about say nothing.
    check_xa("policyTypes: [Egress], ingress: []", |from, _, _, _| from != XA);
    check_xa("policyTypes: [Ingress], egress: [], ingress: [{}]", |_, _, _, _| true);
    check_xa("policyTypes: []", |_, to, _, _| to != XA);
}

#[test]
fn empty_lists_select_everything() {
    // "should support allow-all policy"
    check_xa("ingress: [{}]", |_, _, _, _| true);
    check_xa("ingress: [{from: []}]", |_, _, _, _| true);
    check_xa("ingress: [{from: [], ports: []}]", |_, _, _, _| true);
    check_xa("ingress: [{ports: [{port: 80}]}]", |_, to, protocol, port| {
        to != XA || (protocol == protocol::TCP && port == 80)
    });
}

#[test]
fn pods_of_the_same_namespace() {
    // "should enforce policy to allow traffic from pods within server namespace based on PodSelector"
    check_xa("ingress: [{from: [{podSelector: {}}]}]", |from, to, _, _| to != XA || from.0 == "x");
    check_xa("ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]", |from, to, _, _| {
        to != XA || from == ("x", "b")
    });
    // "should enforce policy based on PodSelector with MatchExpressions"
    let expression = "{key: pod, operator: In, values: [b]}";
    check_xa(
        &format!("ingress: [{{from: [{{podSelector: {{matchExpressions: [{expression}]}}}}]}}]"),
        |from, to, _, _| to != XA || from == ("x", "b"),
    );
}

#[test]
fn pods_of_other_namespaces() {
    // "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector"
    check_xa("ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]", |from, to, _, _| {
        to != XA || from.0 == "y"
    });
    check_xa("ingress: [{from: [{namespaceSelector: {}}]}]", |_, _, _, _| true);
    // "... based on NamespaceSelector with MatchExpressions"
    check_xa(
        "ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}]}]",
        |from, to, _, _| to != XA || from.0 != "x",
    );
    // "should enforce policies to check ingress/egress based on namespaces by label existence"
    check_xa(
        "ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: DoesNotExist}]}}]}]",
        |_, to, _, _| to != XA,
    );
    // "should enforce ingress policy allowing any port traffic to a server on a specific namespace by name"
    check_xa(
        "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]",
        |from, to, _, _| to != XA || from.0 == "z",
    );
}

#[test]
fn either_or_both_selectors() {
    // "should enforce policy based on PodSelector or NamespaceSelector"
    check_xa(
        "ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}, {namespaceSelector: {matchLabels: {ns: 'y'}}}]}]",
        |from, to, _, _| to != XA || from == ("x", "b") || from.0 == "y",
    );
    // "should enforce policy based on PodSelector and NamespaceSelector"
    check_xa(
        "ingress: [{from: [{podSelector: {matchLabels: {pod: b}}, namespaceSelector: {matchLabels: {ns: 'y'}}}]}]",
        |from, to, _, _| to != XA || from == ("y", "b"),
    );
    // "should enforce policy based on Multiple PodSelectors and NamespaceSelectors"
    let peer = "{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, \
                podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}";
    check_xa(&format!("ingress: [{{from: [{peer}]}}]"), |from, to, _, _| {
        to != XA || (from.0 != "x" && from.1 != "a")
    });
    // "should enforce policy based on any PodSelectors"
    let or = "[{podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}]";
    check_xa(&format!("ingress: [{{from: {or}}}]"), |from, to, _, _| {
        to != XA || from == ("x", "b") || from == ("x", "c")
    });
}

#[test]
fn ports_by_number_name_and_range() {
    // "should enforce policy based on Ports"
    check_xa(
        "ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 81, protocol: TCP}]}]",
        |from, to, protocol, port| to != XA || (from.0 == "y" && port == 81 && protocol == protocol::TCP),
    );
    // "should support multiple ingress rules on multiple ports"
    check_xa(
        "ingress: [{ports: [{port: 80}]}, {ports: [{port: 81, protocol: UDP}]}]",
        |_, to, protocol, port| {
            to != XA || (port == 80 && protocol == protocol::TCP) || (port == 81 && protocol == protocol::UDP)
        },
    );
    // "should allow ingress access on one named port"
    check_xa("ingress: [{ports: [{port: serve-81-tcp, protocol: TCP}]}]", |_, to, protocol, port| {
        to != XA || (protocol == protocol::TCP && port == 81)
    });
    // The name belongs to a protocol.
    check_xa("ingress: [{ports: [{port: serve-81-tcp, protocol: UDP}]}]", |_, to, _, _| to != XA);
    // "should allow egress access on one named port"
    check_xa(
        "policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp, protocol: TCP}]}]",
        |from, _, protocol, port| from != XA || (protocol == protocol::TCP && port == 80),
    );
    // "should enforce policies on a range of ports" (endPort)
    check_xa("ingress: [{ports: [{port: 81, endPort: 90}]}]", |_, to, protocol, port| {
        to != XA || (protocol == protocol::TCP && port == 81)
    });
    check_xa("ingress: [{ports: [{port: 1, endPort: 80}]}]", |_, to, protocol, port| {
        to != XA || (protocol == protocol::TCP && port == 80)
    });
    // A protocol without a port.
    check_xa("ingress: [{ports: [{protocol: SCTP}]}]", |_, to, protocol, _| {
        to != XA || protocol == protocol::SCTP
    });
}

#[test]
fn egress() {
    // "should enforce egress policy allowing traffic to a server in a different namespace based on PodSelector and NamespaceSelector"
    let peer = "{namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: a}}}";
    check_xa(&format!("policyTypes: [Egress], egress: [{{to: [{peer}]}}]"), |from, to, _, _| {
        from != XA || to == ("y", "a")
    });
    // "should support denying of egress traffic on the client side (even if the server explicitly allows this traffic)"
    let allow = policy("allow", "y", "{podSelector: {}, ingress: [{}]}");
    let deny = policy(
        "deny",
        "x",
        "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: 80}]}]}",
    );
    check(&cluster(), &[allow, deny], |from, to, protocol, port| {
        from != XA || (to.0 == "z" && protocol == protocol::TCP && port == 80)
    });
}

#[test]
fn policies_stack() {
    // "should enforce multiple, stacked policies with overlapping podSelectors"
    let first = policy(
        "first",
        "x",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 80}]}]}",
    );
    let second = policy(
        "second",
        "x",
        "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}], ports: [{port: 81}]}]}",
    );
    check(&cluster(), &[first, second], |from, to, protocol, _| {
        to != XA || (from.0 == "y" && protocol == protocol::TCP)
    });
    // "should work with Ingress, Egress specified together"
    let both = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress], \
                ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}], egress: [{ports: [{port: 80}]}]}";
    check(&cluster(), &[policy("p", "x", both)], |from, to, protocol, port| {
        (to != XA || from == ("x", "b")) && (from != XA || (protocol == protocol::TCP && port == 80))
    });
}

#[test]
fn protocols_are_told_apart() {
    // "should not allow access by TCP when a policy specifies only UDP", and the same for SCTP
    check_xa("ingress: [{ports: [{port: 80, protocol: UDP}]}]", |_, to, protocol, port| {
        to != XA || (protocol == protocol::UDP && port == 80)
    });
    check_xa("ingress: [{ports: [{port: 80, protocol: SCTP}]}]", |_, to, protocol, port| {
        to != XA || (protocol == protocol::SCTP && port == 80)
    });
}

#[test]
fn blocks_of_addresses() {
    // "should allow egress access to server in CIDR block"
    let yb = address(("y", "b"));
    check_xa(
        &format!("policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: {yb}/32}}}}]}}]"),
        |from, to, _, _| from != XA || to == ("y", "b"),
    );
    // "should enforce except clause while egress access to server in CIDR block"
    check_xa(
        &format!(
            "policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: 10.244.1.0/24, except: [{yb}/32]}}}}]}}]"
        ),
        |from, to, _, _| from != XA || (to.0 == "y" && to.1 != "b"),
    );
    // "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed"
    check_xa(
        &format!(
            "policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: 10.244.1.0/24, except: [{yb}/32]}}}}]}}, {{to: [{{ipBlock: {{cidr: {yb}/32}}}}]}}]"
        ),
        |from, to, _, _| from != XA || to.0 == "y",
    );
    check_xa("ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]", |_, _, _, _| true);
    check_xa("ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]", |_, to, _, _| to != XA);
}

#[test]
fn labels_change() {
    // "should allow ingress access from updated pod" and "… from updated namespace": other labels, other identity
    let spec = "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {role: client}}}]}]}";
    let yaml = [policy("p", "x", spec)];
    check(&cluster(), &yaml, |_, to, _, _| to != XA);
    let updated = cluster_with(|pod| if pod == ("x", "b") { vec![("role", "client")] } else { vec![] });
    check(&updated, &yaml, |from, to, _, _| to != XA || from == ("x", "b"));
}

#[test]
fn hosts_and_the_world() {
    let cluster = cluster();
    let xa = cluster.numbers.get(&XA).copied().unwrap();
    let asks = |yaml: &str, from, to| is_allowed(&cluster, &policies(&[yaml]), from, to, protocol::TCP, 80);
    let deny = policy("p", "x", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    assert!(asks(&deny, reserved::HOST, xa), "a node always reaches its pods");
    assert!(!asks(&deny, reserved::WORLD, xa));
    assert!(!asks(&deny, reserved::REMOTE_NODE, xa));
    let pods = policy("p", "x", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}");
    assert!(!asks(&pods, reserved::WORLD, xa), "namespaces hold pods");
    assert!(!asks(&pods, reserved::REMOTE_NODE, xa));
    let all = policy("p", "x", "{podSelector: {}, ingress: [{}]}");
    assert!(asks(&all, reserved::WORLD, xa) && asks(&all, reserved::REMOTE_NODE, xa));
}

#[test]
fn addresses_outside_the_cluster() {
    let cluster = cluster();
    let xa = cluster.numbers.get(&XA).copied().unwrap();
    let yaml = policy(
        "p",
        "x",
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.168.0.0/16]}}]}]}",
    );
    let policies = policies(&[&yaml]);
    let prefixes = policies.prefixes(&cluster.surroundings);
    let reaches = |to: &str| {
        let to = prefixes.identity_of(to.parse().unwrap());
        is_allowed(&cluster, &policies, xa, to, protocol::TCP, 443)
    };
    assert!(reaches("192.0.2.1"));
    assert!(reaches("11.0.0.1"));
    assert!(!reaches("10.0.0.1"));
    assert!(!reaches("192.168.7.7"));
    assert!(!reaches("2001:db8::1"), "another family");
}

#[test]
fn pods_that_share_an_identity_are_not_told_apart() {
    let mut cluster = cluster();
    let yb = cluster.numbers.get(&("y", "b")).copied().unwrap();
    let second = "10.244.9.9".parse().unwrap();
    cluster.surroundings.addresses.get_mut(&yb).unwrap().insert(second);
    let block = format!("{{ipBlock: {{cidr: {}/32}}}}", address(("y", "b")));
    let spec =
        |blocks: &str| format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{blocks}]}}]}}");
    let yaml = policy("p", "x", &spec(&block));
    let one = policies(&[&yaml]);
    let xa = cluster.numbers.get(&XA).copied().unwrap();
    assert!(!is_allowed(&cluster, &one, xa, yb, protocol::TCP, 80));
    let conditions = one.conditions(&cluster.identities, &cluster.surroundings);
    assert_eq!(conditions.values().flatten().next().unwrap().kind.as_str(), "Ambiguous");
    let yaml = policy("p", "x", &spec(&format!("{block}, {{ipBlock: {{cidr: {second}/32}}}}")));
    let both = policies(&[&yaml]);
    assert!(is_allowed(&cluster, &both, xa, yb, protocol::TCP, 80));
    assert!(both.conditions(&cluster.identities, &cluster.surroundings).is_empty());
}

#[test]
fn mistakes_are_named() {
    for (spec, expected) in [
        ("{podSelectors: {}}", "spec.podSelectors: unknown field; did you mean `podSelector`?"),
        ("{ingress: [{form: []}]}", "spec.ingress[0].form: unknown field; did you mean `from`?"),
        (
            "{ingress: [{from: [{}]}]}",
            "spec.ingress[0].from[0]: needs a `podSelector`, a `namespaceSelector` or an `ipBlock`",
        ),
        (
            "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
            "spec.ingress[0].from[0].ipBlock: can't be beside `podSelector` or `namespaceSelector`",
        ),
        (
            "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}",
            "spec.ingress[0].from[0].ipBlock.cidr: must be a prefix, such as 10.0.0.0/8 or 2001:db8::/64",
        ),
        (
            "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
            "spec.ingress[0].from[0].ipBlock.except[0]: must be a part of 10.0.0.0/8",
        ),
        ("{policyTypes: [Ingres]}", "spec.policyTypes[0]: unknown value `Ingres`; did you mean `Ingress`?"),
        (
            "{ingress: [{ports: [{port: http, endPort: 90}]}]}",
            "spec.ingress[0].ports[0].endPort: can't be beside the name of a port",
        ),
        ("{ingress: [{ports: [{endPort: 90}]}]}", "spec.ingress[0].ports[0].endPort: needs a `port`"),
        (
            "{ingress: [{ports: [{port: 90, endPort: 80}]}]}",
            "spec.ingress[0].ports[0].endPort: must be a port number, not below `port`",
        ),
        (
            "{ingress: [{ports: [{port: 80, protocol: ICMP}]}]}",
            "spec.ingress[0].ports[0].protocol: unknown value `ICMP`; did you mean `SCTP`?",
        ),
    ] {
        let value = serde_saphyr::from_str(&policy("p", "x", spec)).unwrap();
        let error = Policy::from_value(&value).unwrap_err();
        assert_eq!(error.to_string(), format!("NetworkPolicy x/p: {expected}"));
        let refused = error.into_policy().refused.unwrap();
        assert!(!refused.is_empty());
    }
}
