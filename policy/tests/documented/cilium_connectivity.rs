//! The policies of Cilium's connectivity tests, with what their descriptions and those tests expect. A client with
//! a service account, another one that it may be kept from, servers, DNS of several kinds, and what is outside.

use crate::scene::Scene;

const CLUSTER: &str = "
    cilium-test: kind=test
    cilium-test/client name=client kind=client sa:client
    cilium-test/client2 name=client2 kind=client other=client sa:client2
    cilium-test/echo-same name=echo-same-node kind=echo sa:echo-same-node port:http-8080=8080/TCP
    cilium-test/echo-other name=echo-other-node kind=echo sa:echo-other-node port:http-8080=8080/TCP
    elsewhere/stranger kind=client other=client
    elsewhere/echo-far kind=echo
    kube-system/dns k8s-app=kube-dns
    kube-system/local-dns k8s-app=node-local-dns
    openshift-dns/dns-default dns.operator.openshift.io/daemonset-dns=default
    group cilium-test-external-cidr destination=external net:1.0.0.0/8 net:2606:4700:4700::/96
    group cilium-test-world destination/world= net:0.0.0.0/0 net:::/0
    node n1 kubernetes.io/os=linux ip:172.18.0.2
    name one.one.one.one ip:1.1.1.1 ip:2606:4700:4700::1111";

const DNS: &str = "{key: k8s-app, operator: In, values: [kube-dns, coredns, node-local-dns, nodelocaldns]}, \
                   {key: io.kubernetes.pod.namespace, operator: In, values: [kube-system]}";
const OPENSHIFT_DNS: &str = "{key: dns.operator.openshift.io/daemonset-dns, operator: Exists}, \
                             {key: io.kubernetes.pod.namespace, operator: In, values: [openshift-dns]}";
const ANY_CLUSTER: &str = "matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: Exists}]";

fn cnp(spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p, namespace: cilium-test}}, spec: {{{spec}}}}}"
    )
}

fn ccnp(spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {{name: p}}, spec: {{{spec}}}}}"
    )
}

fn knp(spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: k, namespace: cilium-test}}, spec: {{{spec}}}}}"
    )
}

#[track_caller]
fn check(policy: &str, table: &str) {
    Scene::new(CLUSTER, policy).check(table);
}

fn tcp(port: &str) -> String {
    format!("toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]")
}

fn port_53(rules: &str) -> String {
    format!("toPorts: [{{ports: [{{port: '53', protocol: UDP}}, {{port: '53', protocol: TCP}}]{rules}}}]")
}

#[test]
fn everything_or_nothing() {
    for allow in ["egress: [{toEndpoints: [{}]}, {toEntities: [all]}]", "egress: [{toEntities: [all]}]"] {
        check(
            &cnp(&format!("endpointSelector: {{}}, {allow}")),
            "client -> echo-same,entity:world 8080/TCP allowed",
        );
    }
    for policy in [cnp("endpointSelector: {}, egress: [{}]"), knp("podSelector: {}, policyTypes: [Egress]")] {
        check(
            &policy,
            "client -> echo-same,dns,entity:world,entity:host 8080/TCP,53/UDP,8/ICMP denied
             stranger,entity:world -> client 80/TCP allowed
             stranger -> entity:world 80/TCP allowed",
        );
    }
    for policy in [
        cnp("endpointSelector: {}, ingress: [{}]"),
        knp("podSelector: {}, policyTypes: [Ingress]"),
        ccnp("endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: cilium-test}}, ingress: [{}]"),
    ] {
        check(
            &policy,
            "client,stranger,entity:world -> echo-same 8080/TCP,8/ICMP denied
             client -> entity:world,echo-far 8080/TCP allowed
             entity:host -> echo-same 8080/TCP allowed",
        );
    }
    let entities =
        "endpointSelector: {}, ingressDeny: [{fromEntities: [all]}], egressDeny: [{toEntities: [all]}]";
    check(
        &format!("{}\n---\n{}", cnp(entities), knp("podSelector: {}, ingress: [{}], egress: [{}]")),
        "client,entity:world,entity:host -> echo-same 8080/TCP denied
         client -> entity:world,entity:kube-apiserver,dns 53/UDP denied
         stranger -> echo-far,entity:world 8080/TCP allowed",
    );
}

/// "allow-all-except-world", which lets DNS to the world through, for one namespace and for all.
#[test]
fn all_except_the_world() {
    let rules = |endpoints: &str| {
        let entities = "[host, remote-node, cluster, init, health, kube-apiserver]";
        format!(
            "endpointSelector: {{}}, egress: [{{toEntities: {entities}}}, {{toEndpoints: [{endpoints}]}}, \
             {{{}, toEntities: [world]}}], ingress: [{{fromEntities: {entities}}}, {{fromEndpoints: [{endpoints}]}}]",
            port_53("")
        )
    };
    for policy in [cnp(&rules(&format!("{{{ANY_CLUSTER}}}"))), ccnp(&rules("{}"))] {
        check(
            &policy,
            "client -> echo-same,echo-far,dns,entity:host,entity:remote-node,entity:kube-apiserver 8080/TCP,8/ICMP allowed
             client -> entity:world,ip:1.1.1.1 53/UDP,53/TCP allowed
             client -> entity:world,ip:1.1.1.1 80/TCP,8/ICMP denied
             stranger,echo-far,entity:remote-node,entity:health -> client 80/TCP allowed
             entity:world,ip:2606:4700:4700::1111 -> client 80/TCP denied",
        );
    }
}

#[test]
fn entities() {
    check(
        &cnp("endpointSelector: {}, ingress: [{fromEntities: [cluster]}], egress: [{toEntities: [cluster]}]"),
        "client,stranger,entity:remote-node -> echo-same 8080/TCP allowed
         client -> dns,entity:host 53/UDP allowed
         client -> entity:world 80/TCP denied
         entity:world -> client 80/TCP denied",
    );
    for policy in [
        cnp("endpointSelector: {matchLabels: {kind: client}}, egress: [{toEntities: [host]}]"),
        ccnp("endpointSelector: {matchLabels: {kind: client}}, egress: [{toEntities: [host]}]"),
    ] {
        check(
            &policy,
            "client -> entity:host 80/TCP,8/ICMP allowed
             client -> entity:remote-node,echo-same,entity:world 80/TCP denied
             echo-same -> entity:world 80/TCP allowed",
        );
    }
    check(
        &ccnp("endpointSelector: {matchLabels: {}}, ingress: [{fromEntities: [host, remote-node]}]"),
        "entity:host,entity:remote-node,entity:kube-apiserver -> client,dns 80/TCP allowed
         client,entity:world -> echo-same 8080/TCP denied",
    );
    check(
        &cnp("endpointSelector: {}, egressDeny: [{toEntities: [ingress]}]"),
        "client -> entity:ingress 80/TCP denied
         client -> echo-same,entity:world 80/TCP denied",
    );
    check(
        &format!(
            "{}\n---\n{}",
            cnp("endpointSelector: {}, ingressDeny: [{fromEntities: [world]}]"),
            knp("podSelector: {}, ingress: [{}]")
        ),
        "entity:world,ip:1.1.1.1 -> client 80/TCP denied
         stranger,entity:remote-node,entity:ingress -> client 80/TCP allowed",
    );
}

/// Ranges of 64 to 127 and 4096 to 8191 stand beside each single port there.
#[test]
fn ranges_of_ports() {
    let range = |first: u16, last: u16| {
        format!("toPorts: [{{ports: [{{port: '{first}', endPort: {last}, protocol: TCP}}]}}]")
    };
    let world = format!(
        "endpointSelector: {{matchLabels: {{kind: client}}}}, egress: [{{toEntities: [world], {}}}, \
         {{toEndpoints: [{{matchExpressions: [{DNS}]}}], {}}}, {{{}, toEntities: [host, world]}}]",
        range(64, 127),
        port_53(""),
        port_53("")
    );
    for policy in [cnp(&world), ccnp(&world)] {
        check(
            &policy,
            "client -> entity:world 64/TCP,80/TCP,127/TCP,53/UDP allowed
             client -> entity:world 63/TCP,128/TCP,443/TCP,80/UDP denied
             client -> dns,local-dns,entity:host 53/UDP,53/TCP allowed
             client -> dns,echo-same,entity:host 80/TCP denied
             client -> dns-default 53/UDP denied",
        );
    }
    let deny = format!(
        "endpointSelector: {{matchExpressions: [{{key: name, operator: In, values: [client]}}]}}, \
         egressDeny: [{{{}, toEndpoints: [{{matchExpressions: [{{key: kind, operator: In, values: [echo]}}]}}]}}]",
        range(4096, 8191)
    );
    let rest = "podSelector: {}, policyTypes: [Egress], egress: [{}]";
    check(
        &format!("{}\n---\n{}", cnp(&deny), knp(rest)),
        "client -> echo-same,echo-other 4096/TCP,8080/TCP,8191/TCP denied
         client -> echo-same 4095/TCP,8192/TCP,8080/UDP allowed
         client -> echo-far 8080/TCP allowed
         client2 -> echo-same 8080/TCP allowed",
    );
    check(
        &format!("{}\n---\n{}", ccnp(&deny), knp(rest)),
        "client -> echo-same,echo-far 8080/TCP denied
         client -> echo-far 80/TCP allowed",
    );
    check(
        &knp("podSelector: {matchExpressions: [{key: other, operator: Exists}]}, policyTypes: [Egress], \
              egress: [{to: [{podSelector: {matchLabels: {kind: echo}}}], ports: [{protocol: TCP, port: 4096, endPort: 8191}]}]"),
        "client2 -> echo-same 4096/TCP,8080/TCP,8191/TCP allowed
         client2 -> echo-same 4095/TCP,8192/TCP denied
         client2 -> echo-far,dns 8080/TCP denied
         client -> dns 8080/TCP allowed
         stranger -> client2 80/TCP allowed",
    );
}

/// "client-egress-to-echo", by label, by expression, by service account, in the words of each API.
#[test]
fn egress_to_servers() {
    let echo = "matchLabels: {io.kubernetes.pod.namespace: cilium-test, kind: echo}";
    let of_clients = format!(
        "endpointSelector: {{matchLabels: {{kind: client}}}}, egress: [{{{}, toEndpoints: [{{{echo}, {ANY_CLUSTER}}}]}}, \
         {{{}, toEndpoints: [{{matchExpressions: [{DNS}]}}]}}, {{{}, toEntities: [world]}}]",
        tcp("8080"),
        port_53(""),
        port_53("")
    );
    check(
        &cnp(&of_clients),
        "client,client2 -> echo-same,echo-other 8080/TCP allowed
         client -> echo-same 8081/TCP,8080/UDP,8/ICMP denied
         client -> echo-far 8080/TCP denied
         client -> dns,local-dns,entity:world 53/UDP,53/TCP allowed
         client -> entity:world 8080/TCP denied
         stranger -> echo-far 8080/TCP allowed",
    );
    check(
        &ccnp(&of_clients),
        "client,stranger -> echo-same 8080/TCP allowed\n stranger -> echo-far 8080/TCP denied",
    );
    let by_account = |of: &str, list: &str, to: &str| {
        format!(
            "endpointSelector: {{matchLabels: {{{of}}}}}, {list}: [{{{}, toEndpoints: [{{matchLabels: {{{to}}}}}]}}]",
            tcp("8080")
        )
    };
    let (client, same) = (
        "io.cilium.k8s.policy.serviceaccount: client",
        "io.cilium.k8s.policy.serviceaccount: echo-same-node",
    );
    let only_same = "client -> echo-same 8080/TCP allowed
                     client -> echo-other,dns,entity:world 8080/TCP denied
                     client2 -> echo-other 8080/TCP allowed";
    check(&cnp(&by_account(client, "egress", same)), only_same);
    check(&ccnp(&by_account(client, "egress", same)), only_same);
    let allow = knp("podSelector: {}, policyTypes: [Egress], egress: [{}]");
    for deny in [cnp(&by_account(client, "egressDeny", same)), ccnp(&by_account(client, "egressDeny", same))]
    {
        check(
            &format!("{deny}\n---\n{allow}"),
            "client -> echo-same 8080/TCP denied
             client -> echo-same 8081/TCP allowed
             client -> echo-other 8080/TCP allowed
             client2 -> echo-same 8080/TCP allowed",
        );
    }
    let named = format!(
        "endpointSelector: {{matchLabels: {{kind: echo}}}}, ingressDeny: [{{toPorts: [{{ports: [{{port: http-8080, protocol: TCP}}]}}], \
         fromEndpoints: [{{matchLabels: {{io.kubernetes.pod.namespace: cilium-test, name: client}}, {ANY_CLUSTER}}}]}}]"
    );
    for deny in [cnp(&named), ccnp(&named)] {
        check(
            &format!("{deny}\n---\n{}", knp("podSelector: {}, ingress: [{}]")),
            "client -> echo-same,echo-other 8080/TCP denied
             client -> echo-same 8081/TCP allowed
             client2,entity:world -> echo-same 8080/TCP allowed",
        );
    }
}

/// "client-ingress-from-client2", "echo-ingress-from-other-client" and what denies it.
#[test]
fn ingress_from_another_client() {
    let from = |kind: &str, list: &str, more: &str| {
        format!(
            "endpointSelector: {{matchLabels: {{kind: {kind}}}}}, {list}: [{{fromEndpoints: [{{matchLabels: {{other: client}}, {ANY_CLUSTER}}}]{more}}}]"
        )
    };
    check(
        &cnp(&from("echo", "ingress", "")),
        "client2 -> echo-same 8080/TCP,8/ICMP allowed
         client,stranger,entity:world -> echo-same 8080/TCP denied
         stranger -> echo-far 8080/TCP allowed",
    );
    check(
        &ccnp(&from("echo", "ingress", "")),
        "client2,stranger -> echo-same,echo-far 8080/TCP allowed
         client -> echo-same,echo-far 8080/TCP denied",
    );
    // The key of the cluster is one of the labels of a pod there, also for NetworkPolicy.
    check(
        &knp(&format!(
            "podSelector: {{matchLabels: {{kind: echo}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{other: client}}, {ANY_CLUSTER}}}}}]}}]"
        )),
        "client2 -> echo-same 8080/TCP allowed
         client,stranger -> echo-same 8080/TCP denied",
    );
    let allow = knp("podSelector: {}, ingress: [{}]");
    check(
        &format!("{}\n---\n{allow}", cnp(&from("echo", "ingressDeny", ""))),
        "client2 -> echo-same 8080/TCP denied
         client,stranger,entity:world -> echo-same 8080/TCP allowed",
    );
    let pings = ", icmps: [{fields: [{family: IPv4, type: 8}, {family: IPv6, type: 128}]}]";
    check(
        &cnp(&from("client", "ingress", pings)),
        "client2 -> client 8/ICMP,128/ICMPv6 allowed
         client2 -> client 0/ICMP,8080/TCP denied
         echo-same,stranger -> client 8/ICMP denied",
    );
    check(
        &format!("{}\n---\n{allow}", cnp(&from("client", "ingressDeny", pings))),
        "client2 -> client 8/ICMP,128/ICMPv6 denied
         client2 -> client 0/ICMP,8080/TCP allowed
         echo-same -> client 8/ICMP allowed",
    );
    check(
        &cnp(
            "endpointSelector: {matchLabels: {kind: client}}, egress: [{icmps: [{fields: [{type: 8, family: IPv4}, {type: 128, family: IPv6}]}]}]",
        ),
        "client -> echo-same,entity:world,entity:host 8/ICMP,128/ICMPv6 allowed
         client -> echo-same,entity:world 80/TCP,0/ICMP denied",
    );
}

/// Policies between namespaces that stand in one object of the cluster.
#[test]
fn one_namespace_to_another() {
    let policy = ccnp(
        "endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: cilium-test, kind: client}}, \
         egress: [{toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: elsewhere}}]}]",
    );
    check(
        &policy,
        "client -> echo-far,stranger 8080/TCP allowed
         client -> echo-same,dns,entity:world 8080/TCP denied
         stranger -> echo-same 8080/TCP allowed",
    );
    check(
        &cnp(
            "endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: elsewhere}}]}]",
        ),
        "stranger,echo-far -> client 80/TCP allowed
         client2,dns,entity:world -> client 80/TCP denied",
    );
}

/// "allows packets towards one address, but not the other", by prefix and by group, and denied the other way round.
#[test]
fn prefixes_and_groups() {
    let client = |list: &str, sets: &str| {
        format!("endpointSelector: {{matchLabels: {{kind: client}}}}, {list}: [{{toCIDRSet: [{sets}]}}]")
    };
    let (v4, v6) = (
        "{cidr: 1.0.0.0/8, except: [1.0.0.1/32]}",
        "{cidr: '2606:4700:4700::/96', except: ['2606:4700:4700::1001/128']}",
    );
    let one_of_each = "client -> ip:1.1.1.1,ip:2606:4700:4700::1111 443/TCP,8/ICMP allowed
                       client -> ip:1.0.0.1,ip:2606:4700:4700::1001,ip:8.8.8.8,echo-same 443/TCP denied";
    for policy in [
        cnp(&client("egress", &format!("{v4}, {v6}"))),
        ccnp(&client("egress", &format!("{v4}, {v6}"))),
        cnp(&client(
            "egress",
            "{cidrGroupRef: cilium-test-external-cidr, except: [1.0.0.1/32, '2606:4700:4700::1001/128']}",
        )),
        knp("podSelector: {matchLabels: {kind: client}}, policyTypes: [Egress], egress: [{to: [\
             {ipBlock: {cidr: 1.0.0.0/8, except: [1.0.0.1/32]}}, \
             {ipBlock: {cidr: '2606:4700:4700::/96', except: ['2606:4700:4700::1001/128']}}]}]"),
    ] {
        check(&policy, one_of_each);
    }
    let allow = knp("podSelector: {}, policyTypes: [Egress], egress: [{}]");
    for set in [
        format!("{}, {}", v4.replace("1.0.0.1/", "1.1.1.1/"), v6.replace("1001", "1111")),
        "{cidrGroupRef: cilium-test-external-cidr, except: [1.1.1.1/32, '2606:4700:4700::1111/128']}".to_owned(),
        "{cidrGroupSelector: {matchLabels: {destination: external}}, except: [1.1.1.1/32, '2606:4700:4700::1111/128']}"
            .to_owned(),
    ] {
        for deny in [cnp(&client("egressDeny", &set)), ccnp(&client("egressDeny", &set))] {
            check(
                &format!("{deny}\n---\n{allow}"),
                "client -> ip:1.0.0.1,ip:1.2.3.4,ip:2606:4700:4700::1001 443/TCP denied
                 client -> ip:1.1.1.1,ip:2606:4700:4700::1111,ip:8.8.8.8,echo-same 443/TCP allowed
                 echo-same -> ip:1.0.0.1 443/TCP allowed",
            );
        }
        // "If there is no other allowed rule, the policy will be automatically denied … as well."
        check(&cnp(&client("egressDeny", &set)), "client -> ip:1.1.1.1,ip:8.8.8.8,echo-same 443/TCP denied");
    }
    check(
        &cnp(&client("egress", "{cidrGroupSelector: {matchLabels: {destination/world: ''}}}")),
        "client -> ip:1.1.1.1,ip:8.8.8.8,ip:2606:4700:4700::1111 443/TCP allowed
         client -> echo-same,entity:host,entity:remote-node 443/TCP denied",
    );
    check(
        &format!(
            "{}\n---\n{}",
            cnp("endpointSelector: {}, ingressDeny: [{fromCIDR: [172.18.0.9/32]}]"),
            knp("podSelector: {}, ingress: [{}]")
        ),
        "ip:172.18.0.9 -> client 80/TCP denied
         ip:172.18.0.8,client2 -> client 80/TCP allowed",
    );
    check(
        &cnp("endpointSelector: {matchLabels: {kind: echo}}, ingress: [{fromCIDR: [172.18.0.9/32]}]"),
        "ip:172.18.0.9 -> echo-same 8080/TCP allowed
         client,ip:172.18.0.8,entity:remote-node -> echo-same 8080/TCP denied",
    );
}

#[test]
fn dns_alone() {
    let cluster = "{key: io.cilium.k8s.policy.cluster, operator: In, values: [default]}";
    let policy = |rules: &str| {
        cnp(&format!(
            "endpointSelector: {{matchLabels: {{kind: client}}}}, egress: [{{{}, toEndpoints: [{{matchExpressions: [{DNS}, {cluster}]}}]}}, \
             {{toPorts: [{{ports: [{{port: '5353', protocol: UDP}}, {{port: '5353', protocol: TCP}}]{rules}}}], \
             toEndpoints: [{{matchExpressions: [{OPENSHIFT_DNS}, {cluster}]}}]}}, {{{}, toEntities: [world]}}]",
            port_53(rules),
            port_53(rules)
        ))
    };
    check(
        &policy(""),
        "client -> dns,local-dns,entity:world,ip:1.1.1.1 53/UDP,53/TCP allowed
         client -> dns-default 5353/UDP,5353/TCP allowed
         client -> dns-default 53/UDP denied
         client -> dns,entity:world 5353/UDP,443/TCP denied
         client -> echo-same,entity:host 53/UDP denied",
    );
    let proxied = Scene::new(CLUSTER, &policy(", rules: {dns: [{matchPattern: one.one.one.one}]}"));
    proxied.check("client -> dns,dns-default,entity:world 53/UDP,5353/UDP,443/TCP denied");
    assert_eq!(
        proxied.conditions(),
        [0, 1, 2].map(|rule| format!("Unsupported spec.egress[{rule}].toPorts[0].rules"))
    );
}

/// What is of layer 7, of TLS or goes to a listener allows nothing, and is named.
#[test]
fn what_is_in_connections() {
    let to_names = |ports: &str| format!("toFQDNs: [{{matchName: one.one.one.one}}], toPorts: [{{{ports}}}]");
    let secret = "secret: {namespace: cilium-test, name: s}";
    let header = "headerMatches: [{name: Authorization, mismatch: REPLACE, secret: {namespace: cilium-test, name: header-match}}]";
    for (rule, fields) in [
        (
            to_names(
                "ports: [{port: '64', endPort: 127, protocol: TCP}], rules: {http: [{method: GET, path: /}]}",
            ),
            vec!["rules"],
        ),
        (
            to_names(&format!(
                "ports: [{{port: '256', endPort: 511, protocol: TCP}}], terminatingTLS: {{{secret}}}, originatingTLS: {{{secret}}}, \
                 rules: {{http: [{{method: GET, path: /, headers: ['X-Very-Secret-Token: 42']}}]}}"
            )),
            vec!["rules", "terminatingTLS", "originatingTLS"],
        ),
        (
            to_names(
                "listener: {envoyConfig: {kind: CiliumClusterwideEnvoyConfig, name: c}, name: l, priority: 1}, ports: [{port: '0', protocol: TCP}]",
            ),
            vec!["listener"],
        ),
        (
            "toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: ['**.one.one']}]".to_owned(),
            vec!["serverNames"],
        ),
        (
            format!(
                "toEndpoints: [{{matchLabels: {{kind: echo}}}}], toPorts: [{{ports: [{{port: http-8080, protocol: TCP}}], \
                 rules: {{http: [{{method: POST, path: '/auth-header-required$', {header}}}]}}}}]"
            ),
            vec!["rules"],
        ),
    ] {
        let scene = Scene::new(
            CLUSTER,
            &cnp(&format!(
                "endpointSelector: {{matchLabels: {{kind: client}}}}, egress: [{{{rule}}}, {{toEntities: [host]}}]"
            )),
        );
        scene.check(
            "client -> ip:1.1.1.1,echo-same 80/TCP,443/TCP,300/TCP,8080/TCP denied
             client -> entity:host 443/TCP allowed
             echo-same -> ip:1.1.1.1 443/TCP allowed",
        );
        let expected: Vec<String> =
            fields.iter().map(|field| format!("Unsupported spec.egress[0].toPorts[0].{field}")).collect();
        assert_eq!(scene.conditions(), expected, "{rule}");
    }
    // "Only allow 'other' client to make a GET /public request", where its neighbour is allowed without layer 7.
    let rules = "rules: {http: [{method: GET, path: '/public$'}]}";
    let echo = cnp(&format!(
        "endpointSelector: {{matchLabels: {{kind: echo}}}}, ingress: [{{fromEndpoints: [{{matchLabels: {{other: client}}}}], \
         toPorts: [{{ports: [{{port: '8080', protocol: TCP}}], {rules}}}]}}, {{fromEndpoints: [{{matchLabels: {{name: client}}}}], {}}}]",
        tcp("8080")
    ));
    check(
        &echo,
        "client2 -> echo-same 8080/TCP denied
         client -> echo-same 8080/TCP allowed
         client -> echo-same 8081/TCP denied",
    );
}

/// "Allow other client to contact echo after mutual authentication", and one which always fails.
#[test]
fn authentication() {
    let policy = |mode: &str| {
        cnp(&format!(
            "endpointSelector: {{matchLabels: {{kind: echo}}}}, ingress: [{{fromEndpoints: [{{matchLabels: {{kind: client}}}}], {}, \
             authentication: {{mode: {mode}}}}}]",
            tcp("8080")
        ))
    };
    for (mode, verdict) in [("required", "required"), ("test-always-fail", "fails"), ("disabled", "allowed")]
    {
        check(
            &policy(mode),
            &format!(
                "client,client2 -> echo-same,echo-other 8080/TCP {verdict}
                 client -> echo-same 8081/TCP denied
                 stranger,entity:world -> echo-same 8080/TCP denied"
            ),
        );
    }
}

/// The host firewall's: all but one client's, and to all but one server.
#[test]
fn nodes() {
    let peers = |prefix: &str, name: &str| {
        let entities = "[health, kube-apiserver, remote-node, world]";
        format!(
            "{{{prefix}Entities: {entities}}}, {{{prefix}Endpoints: [{{matchExpressions: [{{key: name, operator: NotIn, values: [{name}]}}, \
             {{key: io.cilium.k8s.policy.cluster, operator: Exists}}]}}]}}"
        )
    };
    check(
        &ccnp(&format!("nodeSelector: {{}}, ingress: [{}]", peers("from", "client"))),
        "client2,stranger,entity:world,entity:kube-apiserver -> node:n1 80/TCP allowed
         client -> node:n1 80/TCP,8/ICMP denied
         node:n1 -> client 80/TCP allowed",
    );
    check(
        &ccnp(&format!("nodeSelector: {{}}, egress: [{}]", peers("to", "echo-other-node"))),
        "node:n1 -> echo-same,echo-far,entity:world 8080/TCP allowed
         node:n1 -> echo-other 8080/TCP denied
         client -> node:n1 80/TCP allowed",
    );
}

/// "client-egress-to-echo" in the words of Kubernetes' API: a port without a protocol is TCP's, `to` without a value is
/// anybody, pods by label alone are those of the own namespace, and without types ingress is shut as well.
#[test]
fn egress_to_servers_in_kubernetes_words() {
    let namespaced = "{key: k8s-app, operator: In, values: [kube-dns, coredns, node-local-dns, nodelocaldns]}, \
                      {key: io.kubernetes.pod.namespace, operator: In, values: [kube-system]}";
    check(
        &knp(&format!(
            "podSelector: {{matchLabels: {{kind: client}}}}, egress: [\
             {{to: [{{podSelector: {{matchLabels: {{kind: echo}}, {ANY_CLUSTER}}}}}], ports: [{{port: 8080, protocol: TCP}}]}}, \
             {{to: [{{podSelector: {{matchExpressions: [{namespaced}]}}}}], ports: [{{port: 53}}]}}, \
             {{to: null, ports: [{{port: 53, protocol: UDP}}]}}]"
        )),
        "client,client2 -> echo-same,echo-other 8080/TCP allowed
         client -> echo-same 8080/UDP,53/TCP denied
         client -> echo-far 8080/TCP denied
         client -> dns,local-dns,dns-default,echo-same,echo-far,entity:world 53/UDP allowed
         client -> dns,local-dns,entity:world 53/TCP denied
         echo-same,client2,stranger,entity:world -> client 80/TCP,8/ICMP denied
         stranger -> echo-far,echo-same 8080/TCP allowed",
    );
    check(
        &knp(&format!(
            "podSelector: {{matchLabels: {{kind: client}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{other: client}}, {ANY_CLUSTER}}}}}]}}]"
        )),
        "client2 -> client 80/TCP,8/ICMP allowed
         echo-same,stranger,entity:world -> client 80/TCP denied
         client -> echo-far,entity:world 80/TCP allowed",
    );
}

/// "client-egress-to-entities-world": port 80 of the world, and DNS at each of the ports and places that it may have.
#[test]
fn the_world_at_one_port() {
    let pair = |port: &str| format!("{{port: '{port}', protocol: UDP}}, {{port: '{port}', protocol: TCP}}");
    let rules = |subject: &str| {
        format!(
            "{subject}, egress: [{{toEntities: [world], {}}}, \
             {{toEndpoints: [{{matchExpressions: [{DNS}]}}], toPorts: [{{ports: [{}, {}]}}]}}, \
             {{toEndpoints: [{{matchExpressions: [{OPENSHIFT_DNS}]}}], toPorts: [{{ports: [{}]}}]}}, \
             {{{}, toEntities: [host, world]}}]",
            tcp("80"),
            pair("53"),
            pair("8053"),
            pair("5353"),
            port_53("")
        )
    };
    let subject = "endpointSelector: {matchLabels: {kind: client}}";
    for policy in [cnp(&rules(subject)), ccnp(&rules(subject))] {
        check(
            &policy,
            "client -> entity:world,ip:1.1.1.1 80/TCP,53/UDP,53/TCP allowed
             client -> entity:world 443/TCP,8053/UDP,8/ICMP denied
             client -> dns,local-dns 53/UDP,8053/UDP,8053/TCP allowed
             client -> dns 80/TCP,5353/UDP denied
             client -> dns-default 5353/UDP,5353/TCP allowed
             client -> dns-default 53/UDP,8053/UDP denied
             client -> entity:host 53/UDP,53/TCP allowed
             client -> entity:host,entity:remote-node,echo-same 80/TCP denied
             echo-same -> entity:world,client 443/TCP allowed",
        );
    }
}

/// "client-egress-to-cidr-lrp-deny" and "ingress-backend-deny": a policy that only denies shuts everything else as well,
/// until another one allows it.
#[test]
fn nothing_but_what_denies() {
    let allow = knp("podSelector: {}, policyTypes: [Egress], egress: [{}]");
    let address = cnp(
        "endpointSelector: {matchLabels: {kind: client}}, egressDeny: [{toCIDRSet: [{cidr: 169.254.169.255/32}]}]",
    );
    check(&address, "client -> ip:169.254.169.255,ip:169.254.169.254,echo-same,dns 80/TCP denied");
    check(
        &format!("{address}\n---\n{allow}"),
        "client -> ip:169.254.169.255 80/TCP,53/UDP denied
         client -> ip:169.254.169.254,echo-same,entity:world 80/TCP allowed
         echo-same -> ip:169.254.169.255 80/TCP allowed",
    );
    let servers = cnp(&format!(
        "endpointSelector: {{}}, egressDeny: [{{toEndpoints: [{{matchLabels: {{kind: echo}}, {ANY_CLUSTER}}}]}}]"
    ));
    check(
        &servers,
        "client,echo-same -> echo-same,echo-other,dns,entity:world 8080/TCP denied
         stranger,entity:world,entity:ingress -> echo-same,client 8080/TCP allowed",
    );
    check(
        &format!("{servers}\n---\n{allow}"),
        "client -> echo-same,echo-other 8080/TCP,8/ICMP denied
         client -> echo-far,dns,entity:world 8080/TCP allowed",
    );
}

/// One namespace's way out and the other's way in, each in its own object, of either kind.
#[test]
fn both_halves_of_a_way() {
    let pods = "
        ccnp1/to kind=ccnp
        ccnp2/from kind=ccnp
        ccnp2/other kind=other
        elsewhere/stranger kind=ccnp";
    let half = |kind: &str, namespace: &str, list: &str, to: &str| {
        let place =
            if kind == "CiliumNetworkPolicy" { format!(", namespace: {namespace}") } else { String::new() };
        format!(
            "{{apiVersion: cilium.io/v2, kind: {kind}, metadata: {{name: half{place}}}, spec: {{endpointSelector: {{matchLabels: {{\
             io.kubernetes.pod.namespace: {namespace}, kind: ccnp}}}}, {list}: [{{matchLabels: {{io.kubernetes.pod.namespace: {to}, kind: ccnp}}}}]}}]}}}}"
        )
    };
    let kinds = ["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"];
    for (out, into) in kinds.iter().flat_map(|out| kinds.iter().map(move |into| (out, into))) {
        let out = half(out, "ccnp2", "egress: [{toEndpoints", "ccnp1");
        let into = half(into, "ccnp1", "ingress: [{fromEndpoints", "ccnp2");
        Scene::new(pods, &format!("{out}\n---\n{}", into.replace("name: half", "name: other-half"))).check(
            "from -> to 80/TCP,8/ICMP allowed
             other,stranger,entity:world -> to 80/TCP denied
             from -> other,stranger,entity:world 80/TCP denied
             to -> from,stranger,entity:world 80/TCP allowed
             stranger -> from 80/TCP allowed",
        );
    }
}

/// The same between clusters: what names a cluster, or any, means its pods; what names none means the own one's, and so
/// does the entity `cluster`.
#[test]
fn servers_of_two_clusters() {
    let pods = format!(
        "{CLUSTER}
         cilium-test/echo-remote name=echo-other-node kind=echo cluster:remote
         cilium-test/client2-remote kind=client other=client cluster:remote
         kube-system/dns-remote k8s-app=kube-dns cluster:remote
         cilium-test/echo-third name=echo-other-node kind=echo cluster:third"
    );
    let scene = |policy: &str| Scene::new(&pods, policy);
    scene(&cnp(
        "endpointSelector: {}, ingress: [{fromEntities: [cluster]}], egress: [{toEntities: [cluster]}]",
    ))
    .check(
        "client -> echo-same,echo-far 8080/TCP allowed
         client -> echo-remote,dns-remote,entity:world 8080/TCP denied
         client2-remote -> echo-same 8080/TCP denied",
    );
    scene(&cnp(&format!(
        "endpointSelector: {{matchLabels: {{kind: echo}}}}, ingress: [{{fromEndpoints: [{{matchLabels: {{other: client}}, {ANY_CLUSTER}}}]}}]"
    )))
    .check(
        "client2,client2-remote -> echo-same,echo-remote 8080/TCP allowed
         client,stranger -> echo-same,echo-remote 8080/TCP denied",
    );
    let to_echo = |more: &str, rules: &str| {
        scene(&cnp(&format!(
            "endpointSelector: {{matchLabels: {{kind: client}}}}, egress: [{{toPorts: [{{ports: [{{port: '8080', protocol: TCP}}]{rules}}}], \
             toEndpoints: [{{matchLabels: {{io.kubernetes.pod.namespace: cilium-test, kind: echo}}{more}}}]}}, \
             {{{}, toEndpoints: [{{matchExpressions: [{DNS}]}}]}}]",
            port_53("")
        )))
    };
    to_echo("", "").check(
        "client -> echo-same,echo-other 8080/TCP allowed
         client -> echo-remote,echo-third 8080/TCP denied
         client -> dns 53/UDP allowed
         client -> dns-remote 53/UDP denied",
    );
    to_echo(&format!(", {ANY_CLUSTER}"), "").check(
        "client -> echo-same,echo-remote,echo-third 8080/TCP allowed
         client -> dns-remote,echo-far 53/UDP,8080/TCP denied",
    );
    let two =
        ", matchExpressions: [{key: io.cilium.k8s.policy.cluster, operator: In, values: [default, remote]}]";
    to_echo(two, "").check(
        "client -> echo-same,echo-remote 8080/TCP allowed
         client -> echo-third 8080/TCP denied",
    );
    let http = to_echo(two, ", rules: {http: [{method: GET, path: /}]}");
    http.check("client -> echo-same,echo-remote,echo-third 8080/TCP denied\n client -> dns 53/UDP allowed");
    assert_eq!(http.conditions(), ["Unsupported spec.egress[0].toPorts[0].rules"]);
}

/// The host firewall's that look into packets: what is beside that counts.
#[test]
fn nodes_and_what_is_in_connections() {
    check(
        &ccnp("nodeSelector: {}, ingress: [{fromEntities: [health, kube-apiserver, remote-node, world]}]"),
        "entity:health,entity:kube-apiserver,entity:world,ip:1.1.1.1 -> node:n1 80/TCP,8/ICMP allowed
         client,echo-same -> node:n1 80/TCP denied
         node:n1 -> client,entity:world 80/TCP allowed",
    );
    let spec = format!(
        "nodeSelector: {{}}, egress: [{{{}, toFQDNs: [{{matchName: one.one.one.one}}]}}, \
         {{{}, toEntities: [all]}}, {{toEntities: [cluster, kube-apiserver, remote-node]}}]",
        tcp("80"),
        port_53(", rules: {dns: [{matchPattern: '*'}]}")
    );
    let scene = Scene::new(CLUSTER, &ccnp(&spec));
    scene.check(
        "node:n1 -> ip:1.1.1.1 80/TCP allowed
         node:n1 -> ip:1.1.1.1,ip:8.8.8.8,entity:world 443/TCP,53/UDP denied
         node:n1 -> client,dns,entity:kube-apiserver,entity:remote-node 53/UDP,80/TCP allowed
         entity:world -> node:n1 80/TCP allowed",
    );
    let mut conditions = scene.conditions();
    conditions.sort();
    assert_eq!(conditions, ["Unsupported spec.egress[1].toPorts[0].rules", "Unsupported spec.nodeSelector"]);
}

/// "Only permits DNS resolution of the allowed external target", and answers from node-local servers, on the host as well.
#[test]
fn dns_of_one_name() {
    let policy = |rules: &str| {
        cnp(&format!(
            "endpointSelector: {{matchLabels: {{kind: client}}}}, egress: [{{{}, toEndpoints: [{{matchExpressions: [{DNS}]}}]}}, \
             {{{}, toEntities: [host, world]}}]",
            port_53(rules),
            port_53(rules)
        ))
    };
    check(
        &policy(""),
        "client -> dns,local-dns,entity:host,entity:world 53/UDP,53/TCP allowed
         client -> entity:remote-node,echo-same,dns-default 53/UDP denied",
    );
    for name in ["matchName", "matchPattern"] {
        let scene = Scene::new(CLUSTER, &policy(&format!(", rules: {{dns: [{{{name}: one.one.one.one}}]}}")));
        scene.check("client -> dns,local-dns,entity:host,entity:world 53/UDP,53/TCP denied");
        assert_eq!(
            scene.conditions(),
            [0, 1].map(|rule| format!("Unsupported spec.egress[{rule}].toPorts[0].rules"))
        );
    }
}

/// "Check that pods can access nodes when referencing them by CIDR selectors (when this feature is enabled)": it always is,
/// but of Kubernetes' kind of policy alone.
#[test]
fn nodes_by_prefix() {
    let nodes = format!("{CLUSTER}\nnode n2 kubernetes.io/os=linux ip:172.18.0.3");
    let blocks = |prefixes: &[&str]| {
        let blocks: Vec<String> =
            prefixes.iter().map(|prefix| format!("{{ipBlock: {{cidr: {prefix}}}}}")).collect();
        let peers = blocks.join(", ");
        knp(&format!(
            "podSelector: {{matchLabels: {{kind: client}}}}, policyTypes: [Egress], egress: [{{to: [{peers}]}}]"
        ))
    };
    Scene::new(&nodes, &blocks(&["172.18.0.2/32", "172.18.0.3/32"])).check(
        "client -> node:n1,node:n2 80/TCP,8/ICMP allowed
         client -> ip:172.18.0.4,echo-same,entity:world 80/TCP denied
         echo-same -> entity:world 80/TCP allowed",
    );
    Scene::new(&nodes, &blocks(&["172.18.0.3/32"])).check(
        "client -> node:n2 80/TCP allowed
         client -> node:n1,entity:remote-node,ip:172.18.0.4 80/TCP denied",
    );
    let cilium =
        "endpointSelector: {matchLabels: {kind: client}}, egress: [{toCIDR: [172.18.0.2/32, 172.18.0.3/32]}]";
    Scene::new(&nodes, &cnp(cilium)).check("client -> node:n1,node:n2,entity:remote-node 80/TCP denied");
}

/// "pod-to-ingress-service": what shuts pods and lets the proxy in, and what keeps clients from the proxy.
#[test]
fn servers_behind_a_proxy() {
    let shut = cnp("endpointSelector: {}, ingress: [{}]");
    let proxy =
        cnp("endpointSelector: {}, ingress: [{fromEntities: [ingress]}]").replace("name: p,", "name: q,");
    check(
        &format!("{shut}\n---\n{proxy}"),
        "entity:ingress -> echo-same,client 8080/TCP allowed
         client,stranger,entity:world,entity:remote-node -> echo-same 8080/TCP denied
         client -> entity:ingress 80/TCP allowed
         entity:world -> entity:ingress 80/TCP allowed",
    );
    let to_proxy =
        cnp("endpointSelector: {}, egressDeny: [{toEntities: [ingress]}]").replace("name: p,", "name: q,");
    check(
        &format!("{to_proxy}\n---\n{}", cnp("endpointSelector: {}, egress: [{toEntities: [all]}]")),
        "client,client2 -> entity:ingress 80/TCP denied
         client -> echo-same,entity:world 8080/TCP allowed
         stranger,entity:world -> entity:ingress 80/TCP allowed",
    );
}
