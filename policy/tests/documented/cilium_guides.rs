//! The policies of Cilium's guides ("Getting Started", Kafka, Elasticsearch, gRPC, memcached, Cassandra, DNS,
//! TLS, AWS, guestbook, auditing). Rules of layer 7 allow nothing here and are named; what is beside them counts.

use crate::scene::Scene;

fn cnp(name: &str, specs: &str) -> String {
    format!("{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: {name}}}, {specs}}}")
}

const STAR_WARS: &str = "
    default/deathstar org=empire class=deathstar
    default/tiefighter org=empire class=tiefighter
    default/xwing org=alliance class=xwing
    default/mediabot org=empire class=mediabot
    kube-system/dns k8s-app=kube-dns
    openshift-dns/dns2 app=dns
    name api.github.com ip:192.0.2.1
    name support.github.com ip:192.0.2.2
    name github.com ip:192.0.2.3";

/// "Only pods with label org=empire are allowed to connect to the deathstar, on TCP port 80", and before that
/// nobody.
#[test]
fn identity_aware_policy() {
    let deny = cnp(
        "empire-default-deny",
        "spec: {description: why, endpointSelector: {matchLabels: {org: empire}}, ingress: [{}]}",
    );
    Scene::new(STAR_WARS, &deny).check(
        "tiefighter,xwing,entity:world -> deathstar,mediabot 80/TCP denied
         deathstar -> xwing,entity:world 80/TCP allowed",
    );
    let rule1 = |rules: &str| {
        cnp(
            "rule1",
            &format!(
                "spec: {{endpointSelector: {{matchLabels: {{org: empire, class: deathstar}}}}, ingress: [{{\
                 fromEndpoints: [{{matchLabels: {{org: empire}}}}], \
                 toPorts: [{{ports: [{{port: '80', protocol: TCP}}]{rules}}}]}}]}}"
            ),
        )
    };
    Scene::new(STAR_WARS, &format!("{deny}\n---\n{}", rule1(""))).check(
        "tiefighter,mediabot -> deathstar 80/TCP allowed
         tiefighter -> deathstar 443/TCP,80/UDP,8/ICMP denied
         xwing,entity:world -> deathstar 80/TCP denied
         tiefighter -> mediabot 80/TCP denied",
    );
    let http = Scene::new(STAR_WARS, &rule1(", rules: {http: [{method: POST, path: /v1/request-landing}]}"));
    http.check("tiefighter,xwing -> deathstar 80/TCP denied");
    assert_eq!(http.conditions(), ["Unsupported spec.ingress[0].toPorts[0].rules"]);
}

/// The policies of the tutorials without Kubernetes: one client, one server, one port.
#[test]
fn one_client_one_port() {
    for (server, client, port) in [("web-server", "goodclient", 8181), ("app1", "app2", 80)] {
        let policy = cnp(
            "l3-l4-rule",
            &format!(
                "spec: {{endpointSelector: {{matchLabels: {{id: {server}}}}}, ingress: [{{fromEndpoints: [\
                 {{matchLabels: {{id: {client}}}}}], toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]}}]}}"
            ),
        );
        let pods = format!(
            "default/server id={server}\n default/client id={client}\n default/bad id=badclient\n far/client2 id={client}"
        );
        Scene::new(&pods, &policy).check(&format!(
            "client -> server {port}/TCP allowed
             client -> server {}/TCP,{port}/UDP,8/ICMP denied
             bad,client2,entity:world -> server {port}/TCP denied",
            port + 1
        ));
    }
}

/// "With mutual-auth required": the rule also has HTTP in it, which can't be kept; without it the port passes
/// once both ends have authenticated.
#[test]
fn mutual_authentication() {
    let pods = "default/echo app=echo\n default/worker app=pod-worker";
    let policy = |rules: &str| {
        cnp(
            "mutual-auth-echo",
            &format!(
                "spec: {{endpointSelector: {{matchLabels: {{app: echo}}}}, ingress: [{{fromEndpoints: [\
                 {{matchLabels: {{app: pod-worker}}}}], authentication: {{mode: required}}, \
                 toPorts: [{{ports: [{{port: '8080', protocol: TCP}}]{rules}}}]}}]}}"
            ),
        )
    };
    let with_http = Scene::new(pods, &policy(", rules: {http: [{method: GET, path: /headers}]}"));
    with_http.check("worker -> echo 8080/TCP denied");
    assert_eq!(with_http.conditions(), ["Unsupported spec.ingress[0].toPorts[0].rules"]);
    Scene::new(pods, &policy("")).check("worker -> echo 8080/TCP required\n worker -> echo 80/TCP denied");
}

/// "Empire spaceships can only connect to api.github.com", by name, pattern and port.
#[test]
fn names_of_an_api() {
    let dns = "toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system, 'k8s:k8s-app': kube-dns}}], \
               toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchPattern: '*'}]}}]";
    let mediabot = |names: &str| {
        let policy = cnp(
            "fqdn",
            &format!(
                "spec: {{endpointSelector: {{matchLabels: {{org: empire, class: mediabot}}}}, egress: [{{{names}}}, {{{dns}}}]}}"
            ),
        );
        let scene = Scene::new(STAR_WARS, &policy);
        assert_eq!(scene.conditions(), ["Unsupported spec.egress[1].toPorts[0].rules"]);
        scene
    };
    mediabot("toFQDNs: [{matchName: api.github.com}]").check(
        "mediabot -> ip:192.0.2.1 443/TCP,80/TCP allowed
         mediabot -> ip:192.0.2.2,ip:192.0.2.3,entity:world 443/TCP denied
         mediabot -> dns 53/UDP denied",
    );
    mediabot("toFQDNs: [{matchPattern: '*.github.com'}]").check(
        "mediabot -> ip:192.0.2.1,ip:192.0.2.2 443/TCP allowed
         mediabot -> ip:192.0.2.3 443/TCP denied",
    );
    mediabot("toFQDNs: [{matchPattern: '*.github.com'}], toPorts: [{ports: [{port: '443', protocol: TCP}]}]")
        .check(
            "mediabot -> ip:192.0.2.1,ip:192.0.2.2 443/TCP allowed
         mediabot -> ip:192.0.2.1 80/TCP denied
         mediabot -> ip:192.0.2.3 443/TCP denied",
        );
    // The older form, with rules for DNS that only name a port.
    let older = cnp(
        "to-fqdn",
        "specs: [{endpointSelector: {matchLabels: {org: empire}}, egress: [{toFQDNs: [{matchName: api.github.com}]}]}, \
         {endpointSelector: {matchLabels: {}}, egress: [{toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system}}], \
         toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]}]",
    );
    Scene::new(STAR_WARS, &older).check(
        "mediabot,tiefighter -> ip:192.0.2.1 443/TCP allowed
         xwing -> ip:192.0.2.1 443/TCP denied
         mediabot,xwing -> dns 53/UDP allowed
         mediabot,xwing -> dns 53/TCP denied
         mediabot -> dns2 53/UDP denied",
    );
}

/// TLS that is opened up, and DNS to anywhere.
#[test]
fn inspection_of_tls() {
    let policy = cnp(
        "l7-visibility-tls",
        "spec: {endpointSelector: {matchLabels: {org: empire, class: mediabot}}, egress: [{toFQDNs: [{matchName: api.github.com}], \
         toPorts: [{ports: [{port: '443', protocol: TCP}], terminatingTLS: {secret: {namespace: kube-system, name: a}}, \
         originatingTLS: {secret: {namespace: kube-system, name: b}}, rules: {http: [{}]}}]}, \
         {toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchPattern: '*'}]}}]}]}",
    );
    let scene = Scene::new(STAR_WARS, &policy);
    scene.check("mediabot -> ip:192.0.2.1 443/TCP denied\n mediabot -> dns,entity:world 53/UDP denied");
    let mut conditions = scene.conditions();
    conditions.sort();
    assert_eq!(
        conditions,
        [
            "Unsupported spec.egress[0].toPorts[0].originatingTLS",
            "Unsupported spec.egress[0].toPorts[0].rules",
            "Unsupported spec.egress[0].toPorts[0].terminatingTLS",
            "Unsupported spec.egress[1].toPorts[0].rules",
        ]
    );
}

/// Kafka, gRPC, memcached, Cassandra and Elasticsearch: their rules are named, and those without layer 7 count.
#[test]
fn protocols_of_layer_7() {
    let pods = "
        default/server app=server
        default/hq app=empire-hq
        default/outpost app=empire-outpost
        default/other app=other";
    let rules = [
        "kafka: [{role: produce, topic: deathstar-plans}]",
        "kafka: [{apiKey: produce, topic: empire-announce}]",
        "http: [{method: POST, path: /cloudcity.DoorManager/GetName}]",
        "l7proto: memcache, l7: [{command: get, keyExact: awing-coord}]",
        "l7proto: cassandra, l7: [{}]",
        "http: [{method: ^GET$, path: '^/sidious/_search/??[^/]*$'}]",
        "HTTP: [{method: GET, path: /path1$}]",
    ];
    for rules in rules {
        let policy = cnp(
            "secure",
            &format!(
                "specs: [{{endpointSelector: {{matchLabels: {{app: server}}}}, ingress: [{{fromEndpoints: [\
                 {{matchLabels: {{app: empire-hq}}}}], toPorts: [{{ports: [{{port: '9092', protocol: TCP}}], rules: {{{rules}}}}}]}}, \
                 {{fromEndpoints: [{{matchLabels: {{app: server}}}}]}}]}}, \
                 {{endpointSelector: {{matchLabels: {{app: server}}}}, ingress: [{{fromEndpoints: [\
                 {{matchLabels: {{app: empire-outpost}}}}], toPorts: [{{ports: [{{port: '9092', protocol: TCP}}]}}]}}]}}]"
            ),
        );
        let scene = Scene::new(pods, &policy);
        scene.check(
            "hq,other,entity:world -> server 9092/TCP denied
             outpost -> server 9092/TCP allowed
             outpost -> server 9093/TCP denied
             server -> server 9092/TCP allowed",
        );
        assert_eq!(scene.conditions(), ["Unsupported specs[0].ingress[0].toPorts[0].rules"], "{rules}");
    }
}

/// "Restrict Elasticsearch Requests": its second half lets pods of every namespace be reached, and shuts the rest.
#[test]
fn pods_may_talk_to_the_cluster() {
    let policy = cnp(
        "secure-empire-es",
        "specs: [{endpointSelector: {}, ingress: [{}], egress: [{toEndpoints: [{matchExpressions: [\
         {key: 'k8s:io.kubernetes.pod.namespace', operator: Exists}]}]}, {toEntities: [cluster, host]}]}]",
    );
    Scene::new("default/vader name=vader\n default/other app=x\n far/es component=elasticsearch", &policy)
        .check(
            "vader -> es,entity:host,entity:remote-node,entity:kube-apiserver 9200/TCP allowed
         vader -> entity:world,ip:192.0.2.1 9200/TCP denied
         es,other,entity:world -> vader 9200/TCP denied
         vader -> other 9200/TCP denied
         vader,entity:world -> es 9200/TCP allowed",
        );
}

/// "Allow traffic from pod xwing to any AWS elastic network interface in the security group", and the policy that
/// is derived from it.
#[test]
fn groups_of_a_cloud() {
    let groups = cnp(
        "to-groups-sample",
        "spec: {endpointSelector: {matchLabels: {org: alliance, class: xwing}}, egress: [{toPorts: [{ports: [\
         {port: '80', protocol: TCP}]}], toGroups: [{aws: {securityGroupsIds: [sg-0f2146100a88d03c3]}}]}]}",
    );
    let scene = Scene::new(STAR_WARS, &groups);
    scene.check(
        "xwing -> ip:34.254.113.42,entity:world,deathstar 80/TCP denied
         tiefighter -> entity:world 80/TCP allowed",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[0].toGroups"]);
    let derived = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: d, namespace: default, \
                   creationTimestamp: 2018-11-30T11:13:52Z, generation: 1, labels: {io.cilium.network.policy.kind: derivative}, \
                   ownerReferences: [{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, name: to-groups-sample, uid: x, blockOwnerDeletion: true}], \
                   resourceVersion: '34853', selfLink: /apis, uid: u}, specs: [{egress: [{toCIDRSet: [{cidr: 34.254.113.42/32}, {cidr: 172.31.44.160/32}], \
                   toPorts: [{ports: [{port: '80', protocol: TCP}]}]}], endpointSelector: {matchLabels: {'any:class': xwing, 'any:org': alliance, \
                   'k8s:io.kubernetes.pod.namespace': default}}, labels: [{key: io.cilium.k8s.policy.name, source: k8s, value: to-groups-sample}]}], \
                   status: {nodes: {k8s1: {enforcing: true, localPolicyRevision: 28, ok: true}}}}";
    let both = Scene::new(STAR_WARS, &format!("{groups}\n---\n{derived}"));
    both.check(
        "xwing -> ip:34.254.113.42,ip:172.31.44.160 80/TCP allowed
         xwing -> ip:34.254.113.42 443/TCP denied
         xwing -> ip:34.254.113.43,deathstar,entity:world 80/TCP denied",
    );
}

/// The guestbook: the web from outside, its database from itself and the web.
#[test]
fn guestbook() {
    let web = cnp(
        "guestbook-web",
        "spec: {endpointSelector: {matchLabels: {k8s-app.guestbook: web}}, ingress: [{fromEndpoints: [\
         {matchLabels: {reserved.world: ''}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]}",
    );
    let redis = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "guestbook-redis"},
        "spec": {"podSelector": {"matchLabels": {"k8s-app.guestbook": "redis"}}, "ingress": [{"from": [
        {"podSelector": {"matchLabels": {"k8s-app.guestbook": "web"}}}, {"podSelector": {"matchLabels": {"k8s-app.guestbook": "redis"}}}],
        "ports": [{"protocol": "TCP", "port": 6379}]}]}}"#;
    let pods = "
        default/web k8s-app.guestbook=web
        default/leader k8s-app.guestbook=redis role=leader
        default/follower k8s-app.guestbook=redis role=follower
        default/other app=x";
    Scene::new(pods, &format!("{web}\n---\n{redis}")).check(
        "entity:world,ip:192.0.2.1,ip:2001:db8::1 -> web 80/TCP allowed
         entity:world -> web 443/TCP denied
         leader,other,entity:remote-node -> web 80/TCP denied
         web,follower -> leader 6379/TCP allowed
         web -> leader 6380/TCP,6379/UDP denied
         other,entity:world -> leader,follower 6379/TCP denied",
    );
}

/// "This policy causes all DNS traffic to be intercepted, but does not block any traffic": what is looked at
/// isn't, so the rule only does nothing.
#[test]
fn dns_that_is_only_looked_at() {
    let policy = "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: intercept-all-dns}, \
                  spec: {endpointSelector: {matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [kube-system]}, \
                  {key: k8s-app, operator: NotIn, values: [kube-dns]}]}, enableDefaultDeny: {egress: false, ingress: false}, \
                  egress: [{toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: kube-system, k8s-app: kube-dns}}], \
                  toPorts: [{ports: [{port: '53', protocol: TCP}, {port: '53', protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}}]}]}}";
    let scene = Scene::new(STAR_WARS, policy);
    scene.check(
        "mediabot,xwing -> dns,dns2,entity:world 53/UDP,53/TCP,443/TCP allowed
         dns,entity:world -> mediabot 80/TCP allowed",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[0].toPorts[0].rules"]);
}

/// An older form of "Allow HTTP GET /public from env=prod to app=service", in two rules: the first one's peers need no
/// layer 7.
#[test]
fn peers_beside_layer_7() {
    let pods = "default/service app=service\n default/prod env=prod\n default/other app=x";
    let policy = cnp(
        "rule1",
        "spec: {endpointSelector: {matchLabels: {app: service}}, ingress: [{fromEndpoints: [{matchLabels: {env: prod}}]}, \
         {toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: /public}]}}]}]}",
    );
    let scene = Scene::new(pods, &policy);
    scene.check(
        "prod -> service 80/TCP,443/TCP,8/ICMP allowed
         other,entity:world -> service 80/TCP,443/TCP denied",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.ingress[1].toPorts[0].rules"]);
}

/// Rules for a server and for its clients in one object, as written there; both are of layer 7.
#[test]
fn several_specs() {
    let pods = "default/service app=service\n default/prod env=prod";
    let policy = cnp(
        "fancyrule",
        "specs: [{endpointSelector: {matchLabels: {app: service}}, ingress: [{fromEndpoints: [{matchLabels: {env: prod}}], \
         toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: /public}]}}]}]}, \
         {endpointSelector: {matchLabels: {env: prod}}, egress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], \
         rules: {http: [{method: POST, host: '^external-service.org$'}]}}]}]}]",
    );
    let scene = Scene::new(pods, &policy);
    scene.check(
        "prod -> service,entity:world 80/TCP denied
         service -> prod,entity:world 80/TCP allowed
         entity:world -> prod 80/TCP allowed",
    );
    assert_eq!(
        scene.conditions(),
        [
            "Unsupported specs[0].ingress[0].toPorts[0].rules",
            "Unsupported specs[1].egress[0].toPorts[0].rules"
        ]
    );
}

/// "Istio": namespaces `red` and `blue` reach `httpbin`, `green` doesn't; by layer 7, which isn't kept, none does.
#[test]
fn namespaces_of_a_mesh() {
    let pods = "
        red/httpbin-red app=httpbin version=v1
        blue/httpbin app=httpbin version=v1
        red/shell app=netshoot
        blue/shell2 app=netshoot
        green/shell3 app=netshoot";
    let policy = |port: &str, rules: &str| {
        format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: default, namespace: blue}}, specs: [{{\
             endpointSelector: {{matchLabels: {{app: httpbin}}}}, ingress: [{{fromEndpoints: [{{matchExpressions: [\
             {{key: io.kubernetes.pod.namespace, operator: In, values: [red, blue]}}]}}], \
             toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]{rules}}}]}}]}}]}}"
        )
    };
    // Older forms are about the port of its tunnels.
    for port in ["80", "15008"] {
        Scene::new(pods, &policy(port, "")).check(&format!(
            "shell,shell2,httpbin-red -> httpbin {port}/TCP allowed
             shell -> httpbin 81/TCP,{port}/UDP,8/ICMP denied
             shell3,entity:world -> httpbin {port}/TCP denied
             shell3 -> httpbin-red,shell2 80/TCP allowed"
        ));
    }
    let http = Scene::new(pods, &policy("80", ", rules: {http: [{method: GET, path: /ip}]}"));
    http.check("shell,shell2,shell3 -> httpbin 80/TCP denied");
    assert_eq!(http.conditions(), ["Unsupported specs[0].ingress[0].toPorts[0].rules"]);
}

/// Of the mesh's log of authentications: the broker has its peers without layer 7, and its clients by it alone.
#[test]
fn brokers_among_themselves() {
    let pods = "
        default/kafka app=kafka
        default/kafka2 app=kafka
        default/productpage app=productpage version=v2
        default/logger app=authaudit-logger";
    let ports = |rules: &str| {
        format!("toPorts: [{{ports: [{{port: '9092', protocol: TCP}}], rules: {{kafka: [{rules}]}}}}]")
    };
    let policy = cnp(
        "kafka-authaudit",
        &format!(
            "specs: [{{endpointSelector: {{matchLabels: {{'k8s:app': kafka}}}}, ingress: [\
             {{fromEndpoints: [{{matchLabels: {{'k8s:app': productpage, 'k8s:version': v2}}}}], {}}}, \
             {{fromEndpoints: [{{matchLabels: {{app: kafka}}}}]}}, \
             {{fromEndpoints: [{{matchLabels: {{'k8s:app': authaudit-logger}}}}], {}}}]}}]",
            ports("{apiKey: produce, topic: authaudit}, {apiKey: apiversions}"),
            ports("{apiKey: fetch, topic: authaudit}, {apiKey: metadata}")
        ),
    );
    let scene = Scene::new(pods, &policy);
    scene.check(
        "kafka2 -> kafka 9092/TCP,2181/TCP allowed
         productpage,logger,entity:world -> kafka 9092/TCP denied
         kafka -> productpage,entity:world 80/TCP allowed",
    );
    assert_eq!(
        scene.conditions(),
        [0, 2].map(|rule| format!("Unsupported specs[0].ingress[{rule}].toPorts[0].rules"))
    );
}

/// The service mesh's, in two objects: a client's HTTP beside DNS, with each way to spell a namespace.
#[test]
fn client_of_a_mesh() {
    let pods = "
        default/client kind=client
        default/client2 kind=client other=client
        default/echo kind=echo
        kube-system/dns k8s-app=kube-dns
        kube-system/coredns k8s-app=coredns
        default/impostor k8s-app=kube-dns
        name one.one.one.one ip:1.1.1.1";
    let port = |port: &str, protocol: &str, rules: &str| {
        format!("toPorts: [{{ports: [{{port: '{port}', protocol: {protocol}}}], rules: {{{rules}}}}}]")
    };
    let get = "http: [{method: GET, path: /}]";
    let http = cnp(
        "client-egress-l7-http",
        &format!(
            "spec: {{description: why, endpointSelector: {{matchLabels: {{other: client}}}}, egress: [\
             {{toEndpoints: [{{matchLabels: {{'k8s:kind': echo}}}}], {}}}, {{toFQDNs: [{{matchName: one.one.one.one}}], {}}}]}}",
            port("8080", "TCP", get),
            port("80", "TCP", get)
        ),
    );
    for key in ["'k8s:io.kubernetes.pod.namespace'", "k8s.io.kubernetes.pod.namespace"] {
        let dns = |rules: &str| {
            cnp(
                "client-egress-only-dns",
                &format!(
                    "spec: {{endpointSelector: {{matchLabels: {{kind: client}}}}, egress: [{{toPorts: [{{ports: [\
                     {{port: '53', protocol: ANY}}]{rules}}}], toEndpoints: [\
                     {{matchLabels: {{{key}: kube-system, 'k8s:k8s-app': kube-dns}}}}, \
                     {{matchLabels: {{{key}: kube-system, 'k8s:k8s-app': coredns}}}}]}}]}}"
                ),
            )
        };
        let both = |rules: &str| Scene::new(pods, &format!("{http}\n---\n{}", dns(rules)));
        let looked_at = both(", rules: {dns: [{matchPattern: '*'}]}");
        looked_at.check(
            "client2 -> echo,ip:1.1.1.1 8080/TCP,80/TCP denied
             client,client2 -> dns,coredns 53/UDP,53/TCP denied
             echo -> client,dns 53/UDP allowed",
        );
        assert_eq!(
            looked_at.conditions(),
            [
                "Unsupported spec.egress[0].toPorts[0].rules",
                "Unsupported spec.egress[1].toPorts[0].rules",
                "Unsupported spec.egress[0].toPorts[0].rules"
            ]
        );
        both("").check(
            "client,client2 -> dns,coredns 53/UDP,53/TCP allowed
             client -> impostor,echo,ip:1.1.1.1 53/UDP,8080/TCP,80/TCP denied",
        );
    }
}

/// The connectivity check's: one who may reach a server and names, and those who may reach little else.
#[test]
fn connectivity_check() {
    let pods = "
        default/echo-a name=echo-a
        default/echo-b name=echo-b
        default/allowed name=pod-to-a-allowed-cnp
        default/denied name=pod-to-a-denied-cnp
        default/google name=pod-to-external-fqdn-allow-google-cnp
        default/stream name=echo-stream
        default/curl name=curl
        kube-system/dns k8s-app=kube-dns
        kube-system/local-dns k8s-app=node-local-dns
        openshift-dns/dns-default dns.operator.openshift.io/daemonset-dns=default
        name www.google.com ip:192.0.2.1
        name google.com ip:192.0.2.2";
    let dns = |kube: &str, openshift: &str| {
        format!(
            "{{toEndpoints: [{{matchLabels: {{'k8s:io.kubernetes.pod.namespace': kube-system, k8s-app: kube-dns}}}}], \
             toPorts: [{{ports: [{{port: '53', protocol: {kube}}}]}}]}}, \
             {{toEndpoints: [{{matchLabels: {{'k8s:io.kubernetes.pod.namespace': openshift-dns, \
             'k8s:dns.operator.openshift.io/daemonset-dns': default}}}}], toPorts: [{{ports: [{{port: '5353', protocol: UDP}}]{openshift}}}]}}"
        )
    };
    let of = |name: &str, egress: &str| {
        cnp(
            name,
            &format!("spec: {{endpointSelector: {{matchLabels: {{name: {name}}}}}, egress: [{egress}]}}"),
        )
    };
    let allowed = of(
        "pod-to-a-allowed-cnp",
        &format!(
            "{{toEndpoints: [{{matchLabels: {{name: echo-a}}}}], toPorts: [{{ports: [{{port: '8080', protocol: TCP}}]}}]}}, {}",
            dns("UDP", "")
        ),
    );
    let denied = of("pod-to-a-denied-cnp", &dns("UDP", ""));
    Scene::new(pods, &format!("{allowed}\n---\n{denied}")).check(
        "allowed -> echo-a 8080/TCP allowed
         allowed -> echo-a 80/TCP denied
         denied -> echo-a 8080/TCP denied
         allowed,denied -> dns 53/UDP allowed
         allowed,denied -> dns-default 5353/UDP allowed
         allowed,denied -> echo-b,local-dns,entity:world 53/UDP,8080/TCP denied
         echo-b -> echo-a,allowed 8080/TCP allowed",
    );
    let google = of(
        "pod-to-external-fqdn-allow-google-cnp",
        &format!(
            "{{toFQDNs: [{{matchPattern: '*.google.com'}}]}}, {}",
            dns("ANY", ", rules: {dns: [{matchPattern: '*'}]}")
        ),
    );
    let scene = Scene::new(pods, &google);
    scene.check(
        "google -> ip:192.0.2.1 80/TCP,443/TCP allowed
         google -> ip:192.0.2.2,echo-a,entity:world 80/TCP denied
         google -> dns 53/UDP,53/TCP allowed
         google -> dns-default 5353/UDP denied",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[2].toPorts[0].rules"]);
    let stream = cnp(
        "curl-to-echo-stream",
        "spec: {endpointSelector: {matchLabels: {name: echo-stream}}, ingress: [{fromEndpoints: [{matchLabels: {name: curl}}]}]}",
    );
    Scene::new(pods, &stream).check(
        "curl -> stream 80/TCP,8/ICMP allowed
         echo-a,entity:world -> stream 80/TCP denied",
    );
}

/// "Restrict Elasticsearch Requests" whole: the server's clients are allowed by layer 7 alone, and the second half shuts
/// everybody.
#[test]
fn elasticsearch() {
    let pods = "
        default/es component=elasticsearch
        default/hq name=empire-hq role=command
        default/outpost name=outpost role=spaceship
        far/pod app=x";
    let rule = |peer: &str, rules: &str| {
        format!(
            "{{fromEndpoints: [{{matchLabels: {{{peer}}}}}], toPorts: [{{ports: [{{port: '9200', protocol: TCP}}], \
             rules: {{http: [{rules}]}}}}]}}"
        )
    };
    let first = format!(
        "{{endpointSelector: {{matchLabels: {{component: elasticsearch}}}}, ingress: [{}, {}]}}",
        rule("name: empire-hq, role: command", "{method: '^GET$', path: '^/_search/??[^/]*$'}"),
        rule(
            "'k8s:name': outpost, 'k8s:role': spaceship",
            "{method: '^PUT$', path: '^/stats/[^/]+/??[^/]*$'}"
        )
    );
    let second = "{egress: [{toEndpoints: [{matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: Exists}]}]}, \
                  {toEntities: [cluster, host]}], endpointSelector: {}, ingress: [{}]}";
    let scene = Scene::new(pods, &cnp("secure-empire-es", &format!("specs: [{first}, {second}]")));
    scene.check(
        "hq,outpost,pod,entity:world -> es 9200/TCP denied
         es,hq -> pod,entity:host 9200/TCP allowed
         es,hq -> entity:world 443/TCP denied
         es -> hq 80/TCP denied",
    );
    assert_eq!(
        scene.conditions(),
        [0, 1].map(|rule| format!("Unsupported specs[0].ingress[{rule}].toPorts[0].rules"))
    );
}

/// The same mediabot where DNS is OpenShift's, and the demo before it asks for authentication.
#[test]
fn other_ports_of_the_guides() {
    let policy = cnp(
        "fqdn",
        "spec: {endpointSelector: {matchLabels: {org: empire, class: mediabot}}, egress: [{toFQDNs: [{matchName: api.github.com}]}, \
         {toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': openshift-dns}}], \
         toPorts: [{ports: [{port: '5353', protocol: ANY}], rules: {dns: [{matchPattern: '*'}]}}]}]}",
    );
    let scene = Scene::new(STAR_WARS, &policy);
    scene.check(
        "mediabot -> ip:192.0.2.1 443/TCP allowed
         mediabot -> ip:192.0.2.2 443/TCP denied
         mediabot -> dns2 5353/UDP denied
         mediabot -> dns 53/UDP denied",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[1].toPorts[0].rules"]);
    let echo = |rules: &str| {
        let policy = cnp(
            "no-mutual-auth-echo",
            &format!(
                "spec: {{endpointSelector: {{matchLabels: {{app: echo}}}}, ingress: [{{fromEndpoints: [\
                 {{matchLabels: {{app: pod-worker}}}}], toPorts: [{{ports: [{{port: '3000', protocol: TCP}}]{rules}}}]}}]}}"
            ),
        );
        Scene::new("default/echo app=echo\n default/worker app=pod-worker\n default/other app=x", &policy)
    };
    echo(", rules: {http: [{method: GET, path: /headers}]}").check("worker,other -> echo 3000/TCP denied");
    echo("").check(
        "worker -> echo 3000/TCP allowed
         worker -> echo 8080/TCP denied
         other -> echo 3000/TCP denied",
    );
}

/// Hubble's own policies: its relay reaches agents on every node, and only its UI the relay. An earlier form names an
/// entity that there isn't.
#[test]
fn hubble() {
    let pods = "
        kube-system/relay k8s-app=hubble-relay
        kube-system/ui k8s-app=hubble-ui
        kube-system/dns k8s-app=kube-dns
        other/stranger k8s-app=hubble-ui";
    let own =
        "matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: In, values: [kube-system]}]";
    let dns = "toPorts: [{ports: [{port: '53', protocol: UDP}, {port: '53', protocol: TCP}]}]";
    let policy = |name: &str, rules: &str| {
        format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: {name}, namespace: kube-system}}, \
             spec: {{endpointSelector: {{matchLabels: {{k8s-app: {name}}}}}, {rules}}}}}"
        )
    };
    let to_dns = format!("{{toEndpoints: [{{matchLabels: {{k8s-app: kube-dns}}}}], {dns}}}");
    let relay = policy(
        "hubble-relay",
        &format!(
            "egress: [{{toEntities: [host, remote-node], toPorts: [{{ports: [{{port: '4244', protocol: TCP}}]}}]}}, {to_dns}], \
             ingress: [{{fromEndpoints: [{{matchLabels: {{k8s-app: hubble-ui}}, {own}}}]}}]"
        ),
    );
    let ui = policy(
        "hubble-ui",
        &format!(
            "egress: [{{toEndpoints: [{{matchLabels: {{k8s-app: hubble-relay}}, {own}}}]}}, {to_dns}, {{toEntities: [kube-apiserver]}}]"
        ),
    );
    Scene::new(pods, &format!("{relay}\n---\n{ui}")).check(
        "relay -> entity:host,entity:remote-node,entity:kube-apiserver 4244/TCP allowed
         relay -> entity:host,entity:remote-node,entity:kube-apiserver 6443/TCP denied
         relay,ui -> dns 53/UDP,53/TCP allowed
         relay,ui -> dns,entity:world 443/TCP denied
         ui -> relay 4245/TCP,80/TCP allowed
         stranger,dns,entity:world -> relay 4245/TCP denied
         ui -> entity:kube-apiserver 6443/TCP allowed
         ui -> entity:remote-node,entity:host 6443/TCP denied
         entity:world,stranger -> ui 8081/TCP allowed",
    );
    let earlier = policy("hubble-relay", &format!("egress: [{{toEntities: [kube-dns], {dns}}}]"));
    let error =
        policy::Policy::from_value(&serde_saphyr::from_str(&earlier).unwrap()).unwrap_err().to_string();
    let expected = "CiliumNetworkPolicy kube-system/hubble-relay: spec.egress[0].toEntities[0]: ";
    assert!(error.starts_with(expected), "{error}");
}
