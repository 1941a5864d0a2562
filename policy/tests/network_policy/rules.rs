//! What single rules mean: variations that the end-to-end tests don't have.

use policy::{Policy, protocol, reserved};

use crate::{Name, XA, address, check, cluster, is_allowed, policies, policy};

/// A policy for `x/a`.
#[track_caller]
fn check_xa(rest: &str, expected: impl Fn(Name, Name, u8, u16) -> bool) {
    check(
        &cluster(),
        &[policy("p", "x", &format!("{{podSelector: {{matchLabels: {{pod: a}}}}, {rest}}}"))],
        expected,
    );
}

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
    let prefixes = policies.local_identities(&cluster.surroundings);
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
            "spec.ingress[0].ports[0].protocol: unknown value `ICMP`; known are TCP, UDP, SCTP",
        ),
    ] {
        let value = serde_saphyr::from_str(&policy("p", "x", spec)).unwrap();
        let error = Policy::from_value(&value).unwrap_err();
        assert_eq!(error.to_string(), format!("NetworkPolicy x/p: {expected}"));
        let refused = error.into_policy().refused.unwrap();
        assert!(!refused.is_empty());
    }
}
