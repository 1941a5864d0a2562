//! Cilium's documentation, "Layer 4 Policies", and what goes with it.

use crate::scene::Scene;

fn cnp(spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p}}, spec: {{{spec}}}}}"
    )
}

/// For `app=myService`.
fn my_service(rules: &str) -> Scene {
    let pods = "default/app app=myService\n default/other app=other\n far/pod app=x";
    Scene::new(pods, &cnp(&format!("endpointSelector: {{matchLabels: {{app: myService}}}}, {rules}")))
}

#[test]
fn ports() {
    let scene = my_service("egress: [{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]");
    scene.check(
        "app -> other,pod,entity:world,entity:host,ip:2001:db8::1 80/TCP allowed
         app -> other,pod,entity:world 81/TCP,80/UDP,80/SCTP,8/ICMP denied
         other -> app 81/TCP allowed",
    );
}

#[test]
fn port_ranges() {
    let scene = my_service("egress: [{toPorts: [{ports: [{port: '80', endPort: 444, protocol: TCP}]}]}]");
    scene.check(
        "app -> other,entity:world 80/TCP,100/TCP,443/TCP,444/TCP allowed
         app -> other,entity:world 79/TCP,445/TCP,443/UDP,8/ICMP denied",
    );
}

/// "Setting `port: "0"` acts as a wildcard, matching all ports for the given protocol", to "every destination except the
/// private (RFC 1918) ranges".
#[test]
fn every_port_of_a_protocol() {
    let internet = "toCIDRSet: [{cidr: 0.0.0.0/0, except: [10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16]}]";
    let scene = my_service(&format!(
        "egress: [{{{internet}, toPorts: [{{ports: [{{port: '0', protocol: TCP}}]}}]}}]"
    ));
    scene.check(
        "app -> ip:192.0.2.1,ip:172.32.0.1,ip:9.255.255.255 1/TCP,80/TCP,65535/TCP allowed
         app -> ip:192.0.2.1 53/UDP,80/SCTP,8/ICMP denied
         app -> ip:10.0.0.1,ip:172.31.255.255,ip:192.168.1.1,other,entity:host,ip:2001:db8::1 80/TCP denied",
    );
}

#[test]
fn protocol_of_a_port() {
    // "If omitted or empty, any protocol matches."
    for protocol in ["", ", protocol: ''", ", protocol: ANY"] {
        let scene = my_service(&format!("egress: [{{toPorts: [{{ports: [{{port: '53'{protocol}}}]}}]}}]"));
        scene.check(
            "app -> other 53/TCP,53/UDP,53/SCTP allowed
             app -> other 54/UDP,8/ICMP denied",
        );
    }
}

#[test]
fn names_of_ports() {
    // "EndPort is ignored if Port is a named port."
    let pods = "default/web app=web port:http=8080/TCP port:dns=53/UDP\n default/client app=client";
    for end in ["", ", endPort: 9000"] {
        let spec = format!(
            "endpointSelector: {{matchLabels: {{app: web}}}}, \
             ingress: [{{toPorts: [{{ports: [{{port: http, protocol: TCP{end}}}, {{port: DNS}}]}}]}}]"
        );
        Scene::new(pods, &cnp(&spec)).check(
            "client -> web 8080/TCP,53/UDP allowed
             client -> web 80/TCP,8081/TCP,9000/TCP,8080/UDP,53/TCP denied",
        );
    }
}

#[test]
fn labels_and_port() {
    let pods = "default/front role=frontend\n default/back role=backend\n default/other role=other";
    let policy = cnp("endpointSelector: {matchLabels: {role: backend}}, ingress: [{fromEndpoints: [\
                      {matchLabels: {role: frontend}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]");
    Scene::new(pods, &policy).check(
        "front -> back 80/TCP allowed
         front -> back 81/TCP,80/UDP,8/ICMP denied
         other,entity:world -> back 80/TCP,81/TCP denied",
    );
}

#[test]
fn labels_or_port() {
    // Two rules: all from the frontends, and port 80 from anybody.
    let pods = "default/front role=frontend\n default/back role=backend\n default/other role=other";
    let policy = cnp("endpointSelector: {matchLabels: {role: backend}}, ingress: [{fromEndpoints: [\
                      {matchLabels: {role: frontend}}]}, {toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]");
    Scene::new(pods, &policy).check(
        "front -> back 80/TCP,81/TCP,80/UDP,8/ICMP allowed
         other,entity:world,ip:192.0.2.1 -> back 80/TCP allowed
         other,entity:world,ip:192.0.2.1 -> back 81/TCP,80/UDP denied",
    );
}

#[test]
fn cidr_and_port() {
    let pods = "default/crawler role=crawler\n default/other role=other";
    let policy = cnp("endpointSelector: {matchLabels: {role: crawler}}, egress: [{toCIDR: [192.0.2.0/24], \
                      toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]");
    Scene::new(pods, &policy).check(
        "crawler -> ip:192.0.2.1 80/TCP allowed
         crawler -> ip:192.0.2.1 443/TCP,80/UDP denied
         crawler -> ip:192.0.3.1,other,entity:world 80/TCP denied",
    );
}

#[test]
fn types_of_icmp() {
    let by_number = my_service(
        "egress: [{icmps: [{fields: [{type: 8, family: IPv4}, {type: EchoRequest, family: IPv6}]}]}]",
    );
    by_number.check(
        "app -> other,entity:world,ip:2001:db8::1 8/ICMP,128/ICMPv6 allowed
         app -> other,entity:world 0/ICMP,128/ICMP,8/ICMPv6,129/ICMPv6,80/TCP,53/UDP denied",
    );
    // IPv4 "is set as default".
    let by_name = my_service("ingress: [{icmps: [{fields: [{type: TimeExceeded}, {type: '3'}]}]}]");
    by_name.check(
        "other,entity:world -> app 11/ICMP,3/ICMP allowed
         other,entity:world -> app 8/ICMP,3/ICMPv6,80/TCP denied",
    );
}

#[test]
fn protocols_without_ports() {
    let scene = my_service(
        "egress: [{toPorts: [{ports: [{port: '6443', protocol: TCP}, {port: '8472', protocol: UDP}, \
                            {protocol: VRRP}, {protocol: IGMP}]}]}]",
    );
    scene.check(
        "app -> entity:remote-node,entity:world 6443/TCP,8472/UDP,0/VRRP,0/IGMP allowed
         app -> entity:world 22/TCP,6443/UDP,0/GRE,0/ESP,0/AH denied",
    );
}

#[test]
fn initialising_endpoints() {
    let init = "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: init}, specs: [{\
                endpointSelector: {matchLabels: {reserved.init: ''}}, ingress: [{fromEntities: [host]}], \
                egress: [{toEntities: [all], toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]}]}";
    Scene::new("default/app app=x", init).check(
        "entity:host -> entity:init 80/TCP allowed
         app,entity:world -> entity:init 80/TCP denied
         entity:init -> app,entity:world 53/UDP allowed
         entity:init -> app,entity:world 53/TCP,80/TCP denied
         app -> entity:world 80/TCP allowed",
    );
    // "Policies applying on initializing pods are a special case": an empty selector of such a policy asks for no
    // namespace, as that of others does, but for the own cluster, which no more than pods have.
    let from_all = |subject: &str| {
        format!(
            "{{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {{name: a}}, \
             spec: {{endpointSelector: {{matchLabels: {{{subject}}}}}, ingress: [{{fromEndpoints: [{{}}]}}]}}}}"
        )
    };
    Scene::new("default/app app=x", &from_all("'reserved:init': ''")).check(
        "app -> entity:init 80/TCP allowed
                entity:world,entity:remote-node,entity:init -> entity:init 80/TCP denied",
    );
    Scene::new("default/app app=x", &from_all("app: x")).check(
        "app -> app 80/TCP allowed
         entity:world,entity:remote-node,entity:init -> app 80/TCP denied",
    );
    // Since 1.15 a policy of a namespace "cannot match `reserved:init` labels any more".
    for label in ["'reserved:init'", "reserved.init", "'reserved:ingress'", "'reserved:health'"] {
        let policy = cnp(&format!("endpointSelector: {{matchLabels: {{{label}: ''}}}}, ingress: [{{}}]"));
        let scene = Scene::new("default/app app=x", &policy);
        scene.check("app,entity:world -> entity:init,entity:ingress,entity:health,app 80/TCP allowed");
        assert_eq!(scene.conditions(), ["SelectsNothing spec.endpointSelector"], "{label}");
    }
    let from_init =
        my_service("ingress: [{fromEntities: [init]}, {toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]");
    from_init.check(
        "entity:init -> app 80/TCP,53/UDP allowed
         other,entity:world -> app 53/UDP allowed
         other,entity:world -> app 80/TCP,53/TCP denied",
    );
}

#[test]
fn endpoints_of_health_checks() {
    let health = "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: h}, spec: {\
                  endpointSelector: {matchLabels: {'reserved:health': ''}}, \
                  ingress: [{fromEntities: [remote-node]}], egress: [{toEntities: [remote-node]}]}}";
    Scene::new("default/app app=x", health).check(
        "entity:remote-node -> entity:health 4240/TCP allowed
         app,entity:world -> entity:health 4240/TCP denied
         entity:health -> entity:remote-node 4240/TCP allowed
         entity:health -> app,entity:world 4240/TCP denied
         app -> entity:world 4240/TCP allowed",
    );
}

#[test]
fn mutual_authentication() {
    // "Mutual Authentication": the rule's traffic passes once both ends have authenticated; a more specific
    // rule may switch it off.
    let pods = "default/echo app=echo\n default/worker app=pod-worker\n default/other app=other";
    let policy = cnp("endpointSelector: {matchLabels: {app: echo}}, ingress: [{fromEndpoints: [\
                      {matchLabels: {app: pod-worker}}], authentication: {mode: required}, \
                      toPorts: [{ports: [{port: '3000', protocol: TCP}]}]}]");
    Scene::new(pods, &policy).check(
        "worker -> echo 3000/TCP required
         worker -> echo 3001/TCP denied
         other,entity:world -> echo 3000/TCP denied",
    );
    for (mode, word) in [("disabled", "allowed"), ("required", "required"), ("test-always-fail", "fails")] {
        let policy = cnp(&format!(
            "endpointSelector: {{matchLabels: {{app: echo}}}}, \
             ingress: [{{fromEndpoints: [{{}}], authentication: {{mode: {mode}}}}}]"
        ));
        Scene::new(pods, &policy).check(&format!("worker,other -> echo 3000/TCP {word}"));
    }
}
