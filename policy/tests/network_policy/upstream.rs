//! Every end-to-end test of NetworkPolicy in Kubernetes (test/e2e/network/netpol), by its name there, as of
//! August 2026. Where a test changes something on the way, each state is a case.
//!
//! There a test asks over one protocol and some ports; here every one is asked, so the same name under TCP,
//! UDP and SCTP is one case.

use policy::protocol::{SCTP, TCP, UDP};

use crate::{Name, XA, check, cluster, cluster_with, policy};

/// A state of a test.
struct Case {
    name: &'static str,
    /// Namespace and `spec`.
    policies: &'static [(&'static str, &'static str)],
    /// Whether source reaches destination over protocol and port.
    reaches: fn(Name, Name, u8, u16) -> bool,
}

const XB: Name = ("x", "b");
const XC: Name = ("x", "c");
const YA: Name = ("y", "a");
const YB: Name = ("y", "b");
const ZB: Name = ("z", "b");

const CASES: [Case; 47] = [
    Case {
        name: "should support a 'default-deny-ingress' policy",
        policies: &[("x", "podSelector: {}, policyTypes: [Ingress], ingress: []")],
        reaches: |_, to, _, _| to.0 != "x",
    },
    Case {
        name: "should support a 'default-deny-all' policy",
        policies: &[("x", "podSelector: {}, policyTypes: [Ingress, Egress], ingress: [], egress: []")],
        reaches: |from, to, _, _| from.0 != "x" && to.0 != "x",
    },
    Case {
        name: "should enforce policy to allow traffic from pods within server namespace based on PodSelector",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], \
             ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || from == XB,
    },
    Case {
        name: "should enforce policy to allow ingress traffic for a target",
        policies: &[
            ("x", "podSelector: {}, policyTypes: [Ingress], ingress: []"),
            (
                "x",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], \
                 ingress: [{from: [{podSelector: {}, namespaceSelector: {}}]}]",
            ),
        ],
        reaches: |_, to, _, _| to.0 != "x" || to == XA,
    },
    Case {
        name: "should enforce policy to allow ingress traffic from pods in all namespaces",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], \
             ingress: [{from: [{namespaceSelector: {matchLabels: {}}}]}]",
        )],
        reaches: |_, _, _, _| true,
    },
    Case {
        name: "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], \
             ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || from.0 == "y",
    },
    Case {
        name: "should enforce policy based on PodSelector with MatchExpressions",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {podSelector: {matchExpressions: [{key: pod, operator: In, values: [b]}]}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || from == XB,
    },
    Case {
        name: "should enforce policy based on NamespaceSelector with MatchExpressions",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: ['y']}]}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || from.0 == "y",
    },
    Case {
        name: "should enforce policy based on PodSelector or NamespaceSelector",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]}}, \
             {podSelector: {matchLabels: {pod: b}}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || from.0 != "x" || from == XB,
    },
    Case {
        name: "should enforce policy based on PodSelector and NamespaceSelector",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]}, \
             podSelector: {matchLabels: {pod: b}}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || from == YB || from == ZB,
    },
    Case {
        name: "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]}, \
             podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || (from.0 != "x" && from.1 != "a"),
    },
    Case {
        name: "should enforce policy based on any PodSelectors",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || from == XB || from == XC,
    },
    Case {
        name: "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}, podSelector: {matchLabels: {pod: a}}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || from == YA,
    },
    Case {
        name: "should enforce policy based on Ports",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}], ports: [{port: 81, protocol: TCP}]}]",
        )],
        reaches: |from, to, protocol, port| to != XA || (from.0 == "y" && (protocol, port) == (TCP, 81)),
    },
    Case {
        name: "should enforce policy based on Ports (UDP)",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}], ports: [{port: 81, protocol: UDP}]}]",
        )],
        reaches: |from, to, protocol, port| to != XA || (from.0 == "y" && (protocol, port) == (UDP, 81)),
    },
    Case {
        name: "should enforce policy based on Ports (SCTP)",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}], ports: [{port: 81, protocol: SCTP}]}]",
        )],
        reaches: |from, to, protocol, port| to != XA || (from.0 == "y" && (protocol, port) == (SCTP, 81)),
    },
    Case {
        name: "should enforce multiple, stacked policies with overlapping podSelectors (first)",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}], ports: [{port: 81, protocol: TCP}]}]",
        )],
        reaches: |from, to, protocol, port| to != XA || (from.0 == "y" && (protocol, port) == (TCP, 81)),
    },
    Case {
        name: "should enforce multiple, stacked policies with overlapping podSelectors (both)",
        policies: &[
            (
                "x",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
                 {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}], ports: [{port: 81, protocol: TCP}]}]",
            ),
            (
                "x",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
                 {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}], ports: [{port: 80, protocol: TCP}]}]",
            ),
        ],
        reaches: |from, to, protocol, _| to != XA || (from.0 == "y" && protocol == TCP),
    },
    Case {
        name: "should support allow-all policy",
        policies: &[("x", "podSelector: {matchLabels: {}}, policyTypes: [Ingress], ingress: [{}]")],
        reaches: |_, _, _, _| true,
    },
    Case {
        name: "should allow ingress access on one named port",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {}}, policyTypes: [Ingress], ingress: [{ports: [{port: serve-81-tcp}]}]",
        )],
        reaches: |_, to, protocol, port| to.0 != "x" || (protocol, port) == (TCP, 81),
    },
    Case {
        name: "should allow ingress access from namespace on one named port",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
             {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}], ports: [{port: serve-80-tcp, protocol: TCP}]}]",
        )],
        reaches: |from, to, protocol, port| to != XA || (from.0 == "y" && (protocol, port) == (TCP, 80)),
    },
    Case {
        name: "should allow egress access on one named port",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {}}, policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp}]}]",
        )],
        reaches: |from, _, protocol, port| from.0 != "x" || (protocol, port) == (TCP, 80),
    },
    Case {
        name: "should enforce updated policy (before)",
        policies: &[("x", "podSelector: {matchLabels: {}}, policyTypes: [Ingress], ingress: [{}]")],
        reaches: |_, _, _, _| true,
    },
    Case {
        name: "should enforce updated policy (after)",
        policies: &[("x", "podSelector: {matchLabels: {}}, policyTypes: [Ingress], ingress: []")],
        reaches: |_, to, _, _| to.0 != "x",
    },
    Case {
        name: "should allow ingress access from updated namespace (before)",
        policies: &[("x", FROM_NS2)],
        reaches: |_, to, _, _| to != XA,
    },
    Case {
        name: "should allow ingress access from updated pod (before)",
        policies: &[("x", FROM_POD2)],
        reaches: |_, to, _, _| to != XA,
    },
    Case {
        name: "should deny ingress from pods on other namespaces",
        policies: &[(
            "x",
            "podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {}}}]}]",
        )],
        reaches: |from, to, _, _| to.0 != "x" || from.0 == "x",
    },
    Case {
        name: "should deny ingress access to updated pod (before)",
        policies: &[("x", ISOLATED)],
        reaches: |_, _, _, _| true,
    },
    Case {
        name: "should deny egress from pods based on PodSelector",
        policies: &[("x", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: []")],
        reaches: |from, _, _, _| from != XA,
    },
    Case {
        name: "should deny egress from all pods in a namespace",
        policies: &[("x", "podSelector: {}, policyTypes: [Egress], egress: []")],
        reaches: |from, _, _, _| from.0 != "x",
    },
    Case {
        name: "should work with Ingress, Egress specified together",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress, Ingress], \
             ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}], egress: [{ports: [{port: 80}]}]",
        )],
        reaches: |from, to, protocol, port| {
            (to != XA || from == XB) && (from != XA || (protocol, port) == (TCP, 80))
        },
    },
    Case {
        name: "should support denying of egress traffic on the client side (even if the server explicitly allows this traffic)",
        policies: &[
            (
                "x",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [\
                 {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}, podSelector: {matchLabels: {pod: a}}}]}]",
            ),
            (
                "y",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{from: [\
                 {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}, podSelector: {matchLabels: {pod: a}}}]}]",
            ),
            (
                "y",
                "podSelector: {matchLabels: {pod: b}}, policyTypes: [Ingress], ingress: [{from: [\
                 {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}, podSelector: {matchLabels: {pod: a}}}]}]",
            ),
        ],
        reaches: |from, to, _, _| match (from == XA, to == YA || to == YB) {
            (true, _) => to == YA,
            (false, to_server) => !to_server,
        },
    },
    Case {
        name: "should enforce egress policy allowing traffic to a server in a different namespace based on PodSelector and NamespaceSelector",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [\
             {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}, podSelector: {matchLabels: {pod: a}}}]}]",
        )],
        reaches: |from, to, _, _| from != XA || to == YA,
    },
    Case {
        name: "should enforce ingress policy allowing any port traffic to a server on a specific protocol",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{ports: [{protocol: TCP}]}]",
        )],
        reaches: |_, to, protocol, _| to != XA || protocol == TCP,
    },
    Case {
        name: "should enforce multiple ingress policies with ingress allow-all policy taking precedence (before)",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {}}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]",
        )],
        reaches: |_, to, protocol, port| to.0 != "x" || (protocol, port) == (TCP, 80),
    },
    Case {
        name: "should enforce multiple ingress policies with ingress allow-all policy taking precedence (after)",
        policies: &[
            ("x", "podSelector: {matchLabels: {}}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]"),
            ("x", "podSelector: {matchLabels: {}}, policyTypes: [Ingress], ingress: [{}]"),
        ],
        reaches: |_, _, _, _| true,
    },
    Case {
        name: "should enforce multiple egress policies with egress allow-all policy taking precedence (before)",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {}}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]",
        )],
        reaches: |from, _, protocol, port| from.0 != "x" || (protocol, port) == (TCP, 80),
    },
    Case {
        name: "should enforce multiple egress policies with egress allow-all policy taking precedence (after)",
        policies: &[
            ("x", "podSelector: {matchLabels: {}}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]"),
            ("x", "podSelector: {matchLabels: {}}, policyTypes: [Egress], egress: [{}]"),
        ],
        reaches: |_, _, _, _| true,
    },
    Case {
        name: "should stop enforcing policies after they are deleted",
        policies: &[],
        reaches: |_, _, _, _| true,
    },
    Case {
        name: "should allow egress access to server in CIDR block",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.1.2/32}}]}]",
        )],
        reaches: |from, to, _, _| from != XA || to == YB,
    },
    Case {
        name: "should enforce except clause while egress access to server in CIDR block",
        policies: &[("x", AROUND_XB)],
        reaches: |from, to, _, _| from != XA || to != XB,
    },
    Case {
        name: "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed",
        policies: &[
            ("x", AROUND_XB),
            (
                "x",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.0.2/32}}]}]",
            ),
        ],
        reaches: |_, _, _, _| true,
    },
    Case {
        name: "should enforce policies to check ingress and egress policies can be controlled independently based on PodSelector",
        policies: &[
            ("x", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{}]"),
            ("x", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: []"),
        ],
        reaches: |_, to, _, _| to != XA,
    },
    Case {
        name: "should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin doesn't support SCTP; \
               should properly isolate pods that are selected by a policy allowing SCTP, even if the plugin doesn't support SCTP",
        policies: &[
            ("x", "podSelector: {}, policyTypes: [Ingress], ingress: []"),
            (
                "x",
                "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{ports: [{port: 81, protocol: SCTP}]}]",
            ),
        ],
        reaches: |_, to, protocol, port| to.0 != "x" || (to == XA && (protocol, port) == (SCTP, 81)),
    },
    Case {
        name: "should not allow access by TCP when a policy specifies only UDP",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{ports: [{port: 81, protocol: UDP}]}]",
        )],
        reaches: |_, to, protocol, port| to != XA || (protocol, port) == (UDP, 81),
    },
    Case {
        name: "should enforce policy to allow traffic based on NamespaceSelector with MatchLabels using default ns label",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], \
             ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: 'y'}}}]}]",
        )],
        reaches: |from, to, _, _| to != XA || from.0 == "y",
    },
    Case {
        name: "should enforce policy based on NamespaceSelector with MatchExpressions using default ns label",
        policies: &[(
            "x",
            "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [\
             {namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: ['y']}]}}]}]",
        )],
        reaches: |from, to, _, _| from != XA || to.0 != "y",
    },
];

const FROM_NS2: &str = "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], \
                        ingress: [{from: [{namespaceSelector: {matchLabels: {ns2: updated}}}]}]";
const FROM_POD2: &str = "podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], \
                         ingress: [{from: [{podSelector: {matchLabels: {pod: b, pod2: updated}}}]}]";
const ISOLATED: &str = "podSelector: {matchLabels: {target: isolated}}, policyTypes: [Ingress], ingress: []";
/// All pods but `x/b`.
const AROUND_XB: &str = "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], \
                         egress: [{to: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.0.2/32]}}]}]";

fn yaml(policies: &[(&str, &str)]) -> Vec<String> {
    let named = |(at, (namespace, spec)): (usize, &(&str, &str))| {
        policy(&format!("p{at}"), namespace, &format!("{{{spec}}}"))
    };
    policies.iter().enumerate().map(named).collect()
}

#[test]
fn every_test_as_it_stands() {
    let cluster = cluster();
    for case in CASES {
        eprintln!("{}", case.name);
        check(&cluster, &yaml(case.policies), case.reaches);
    }
}

/// The three tests that change labels on the way: another set of labels is another identity.
#[test]
fn updated_labels() {
    let of_namespace = cluster_with(
        |_| vec![],
        |namespace| if namespace == "y" { vec![("ns2", "updated")] } else { vec![] },
    );
    check(&of_namespace, &yaml(&[("x", FROM_NS2)]), |from, to, _, _| to != XA || from.0 == "y");
    let of_pod = cluster_with(|pod| if pod == XB { vec![("pod2", "updated")] } else { vec![] }, |_| vec![]);
    check(&of_pod, &yaml(&[("x", FROM_POD2)]), |from, to, _, _| to != XA || from == XB);
    let isolated =
        cluster_with(|pod| if pod == XA { vec![("target", "isolated")] } else { vec![] }, |_| vec![]);
    check(&isolated, &yaml(&[("x", ISOLATED)]), |_, to, _, _| to != XA);
}
