//! What the notes of Cilium's releases say of changed meanings ("Upgrade Guide"): ours is the newest one.

use crate::scene::Scene;

const PODS: &str = "
    default/bar name=bar
    default/foo name=foo
    default/other name=other
    fleet/bar-in-fleet name=bar
    default/bar2 name=bar cluster:cluster2
    default/bar3 name=bar cluster:cluster3
    default/foo2 name=foo cluster:cluster2
    group known net:192.0.2.0/24
    group empty";

fn foo(rules: &str) -> Scene {
    let policy = format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: allow-from-bar, namespace: default}}, \
         spec: {{endpointSelector: {{matchLabels: {{name: foo}}}}, {rules}}}}}"
    );
    Scene::new(PODS, &policy)
}

/// 1.14: rules that deny a prefix win over those that allow a part of it, and the other way round.
#[test]
fn deny_before_allow_of_overlapping_prefixes() {
    for (allow, deny) in [("192.0.2.1/32", "192.0.2.0/24"), ("192.0.2.0/24", "192.0.2.1/32")] {
        foo(&format!("egress: [{{toCIDR: [{allow}]}}], egressDeny: [{{toCIDR: [{deny}]}}]"))
            .check("foo -> ip:192.0.2.1,ip:198.51.100.1 80/TCP denied");
    }
    foo("egress: [{toCIDR: [192.0.2.1/32], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}, {toEntities: [world]}], \
         egressDeny: [{toCIDR: [192.0.2.0/24]}]")
    .check(
        "foo -> ip:192.0.2.1,ip:192.0.2.2 80/TCP denied
         foo -> ip:198.51.100.1 80/TCP allowed",
    );
}

/// 1.16: a list that is there and empty selects nobody, in every field; some meant everybody before.
#[test]
fn empty_lists_select_nobody() {
    for field in ["Endpoints", "CIDR", "CIDRSet", "Entities"] {
        foo(&format!("ingress: [{{from{field}: []}}]")).check(
            "bar,other,bar2,entity:world,ip:192.0.2.1 -> foo 80/TCP denied
             foo -> bar,entity:world 80/TCP allowed",
        );
        foo(&format!("egress: [{{to{field}: []}}]")).check(
            "foo -> bar,other,bar2,entity:world,ip:192.0.2.1 80/TCP denied
             bar,entity:world -> foo 80/TCP allowed",
        );
    }
    for field in ["FQDNs", "Services"] {
        foo(&format!("egress: [{{to{field}: []}}]")).check("foo -> bar,entity:world 80/TCP denied");
    }
    // Nobody else is left out by it.
    foo("ingress: [{fromCIDR: []}, {fromEndpoints: [{matchLabels: {name: bar}}]}]").check(
        "bar -> foo 80/TCP allowed
         other,entity:world -> foo 80/TCP denied",
    );
}

/// 1.16: a rule of nothing but references to groups that don't exist allows nobody.
#[test]
fn groups_that_do_not_exist() {
    for group in ["unknown", "empty"] {
        foo(&format!("ingress: [{{fromCIDRSet: [{{cidrGroupRef: {group}}}]}}]")).check(
            "ip:192.0.2.1,entity:world,bar -> foo 80/TCP denied
             foo -> entity:world 80/TCP allowed",
        );
    }
    foo("ingress: [{fromCIDRSet: [{cidrGroupRef: unknown}, {cidrGroupRef: known}]}]").check(
        "ip:192.0.2.1 -> foo 80/TCP allowed
         ip:198.51.100.1,bar -> foo 80/TCP denied",
    );
}

/// At most 40 ports in an element of `toPorts`, and as many types of ICMP.
#[test]
fn forty_ports() {
    let list = |count: usize, one: fn(usize) -> String| (1..=count).map(one).collect::<Vec<_>>().join(", ");
    let port: fn(usize) -> String = |port| format!("{{port: '{port}', protocol: TCP}}");
    let icmp: fn(usize) -> String = |kind| format!("{{type: {kind}}}");
    foo(&format!("egress: [{{toPorts: [{{ports: [{}]}}]}}]", list(40, port)))
        .check("foo -> bar 1/TCP,40/TCP allowed\n foo -> bar 41/TCP denied");
    foo(&format!("egress: [{{icmps: [{{fields: [{}]}}]}}]", list(40, icmp)))
        .check("foo -> bar 1/ICMP,40/ICMP allowed\n foo -> bar 41/ICMP denied");
    for (rule, field) in [
        (format!("toPorts: [{{ports: [{}]}}]", list(41, port)), "toPorts[0]"),
        (format!("icmps: [{{fields: [{}]}}]", list(41, icmp)), "icmps[0]"),
    ] {
        let policy = format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p}}, \
             spec: {{endpointSelector: {{}}, egress: [{{{rule}}}]}}}}"
        );
        let value = serde_saphyr::from_str(&policy).unwrap();
        let error = policy::Policy::from_value(&value).unwrap_err().to_string();
        let expected =
            format!("CiliumNetworkPolicy default/p: spec.egress[0].{field}: has 41 entries, 40 are the most");
        assert_eq!(error, expected);
    }
}

/// "This network policy does not explicitly select a cluster": since 1.19 it "allows traffic from `bar` from only the local
/// cluster". The guide's other forms are of one cluster, of some, and of "every cluster".
#[test]
fn own_cluster_by_default() {
    let from =
        |more: &str| foo(&format!("ingress: [{{fromEndpoints: [{{matchLabels: {{name: bar}}{more}}}]}}]"));
    from("").check(
        "bar -> foo 80/TCP allowed
         bar2,bar3,other,bar-in-fleet,entity:world -> foo 80/TCP denied",
    );
    let one = foo(
        "ingress: [{fromEndpoints: [{matchLabels: {name: bar, io.cilium.k8s.policy.cluster: cluster2}}]}]",
    );
    one.check(
        "bar2 -> foo 80/TCP allowed
         bar,bar3,other -> foo 80/TCP denied",
    );
    let expression =
        |rest: &str| format!(", matchExpressions: [{{key: io.cilium.k8s.policy.cluster, {rest}}}]");
    from(&expression("operator: In, values: [default, cluster2]")).check(
        "bar,bar2 -> foo 80/TCP allowed
         bar3,other,bar-in-fleet -> foo 80/TCP denied",
    );
    from(&expression("operator: Exists")).check(
        "bar,bar2,bar3 -> foo 80/TCP allowed
         other,bar-in-fleet,entity:world -> foo 80/TCP denied",
    );
    // The same of what is kept out, and of the entity `cluster`.
    foo("ingress: [{fromEndpoints: [{matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: Exists}]}]}], \
         ingressDeny: [{fromEndpoints: [{matchLabels: {name: bar}}]}]")
    .check("bar -> foo 80/TCP denied\n bar2,bar3,other -> foo 80/TCP allowed");
    foo("egress: [{toEntities: [cluster]}]").check(
        "foo -> bar,other,bar-in-fleet 80/TCP allowed
         foo -> bar2,bar3,entity:world 80/TCP denied",
    );
    // Kubernetes' own kind knows of no clusters.
    let standard = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: allow-from-bar}, \
                    spec: {podSelector: {matchLabels: {name: foo}}, ingress: [{from: [{podSelector: {matchLabels: {name: bar}}}]}]}}";
    Scene::new(PODS, standard).check(
        "bar -> foo 80/TCP allowed
         bar2,bar3,other,bar-in-fleet -> foo 80/TCP denied",
    );
}
