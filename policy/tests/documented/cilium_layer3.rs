//! Cilium's documentation, "Layer 3 Policies".

use crate::scene::Scene;

/// A CiliumNetworkPolicy in `default`.
fn cnp(spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p}}, spec: {{{spec}}}}}"
    )
}

const ROLES: &str = "
    default/front role=frontend
    default/back role=backend
    default/other role=other
    elsewhere/front2 role=frontend
    elsewhere/back2 role=backend";

#[test]
fn simple_ingress_allow() {
    let policy = cnp("endpointSelector: {matchLabels: {role: backend}}, \
                      ingress: [{fromEndpoints: [{matchLabels: {role: frontend}}]}]");
    Scene::new(ROLES, &policy).check(
        "front -> back 80/TCP,53/UDP,8/ICMP allowed
         other,front2,back2,entity:world,entity:remote-node -> back 80/TCP denied
         entity:host -> back 80/TCP allowed
         back -> front,other,entity:world 80/TCP allowed
         front -> other,back2 80/TCP allowed",
    );
}

#[test]
fn ingress_allow_all_endpoints() {
    // "An empty EndpointSelector will select all endpoints": those of the policy's namespace.
    let policy = cnp("endpointSelector: {matchLabels: {role: backend}}, ingress: [{fromEndpoints: [{}]}]");
    Scene::new(ROLES, &policy).check(
        "front,other -> back 80/TCP,7/UDP allowed
         front2,entity:world,entity:remote-node,ip:192.0.2.1 -> back 80/TCP denied",
    );
}

#[test]
fn both_sides_must_allow() {
    let into = cnp("endpointSelector: {matchLabels: {role: backend}}, ingress: [{fromEndpoints: [{}]}]");
    let out = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: out}, \
               spec: {endpointSelector: {matchLabels: {role: frontend}}, egress: [{}]}}";
    Scene::new(ROLES, &format!("{into}\n---\n{out}")).check(
        "front -> back 80/TCP denied
         other -> back 80/TCP allowed",
    );
}

#[test]
fn simple_egress_allow() {
    let policy = cnp("endpointSelector: {matchLabels: {role: frontend}}, \
                      egress: [{toEndpoints: [{matchLabels: {role: backend}}]}]");
    Scene::new(ROLES, &policy).check(
        "front -> back 80/TCP,8/ICMP allowed
         front -> other,back2,entity:world,entity:host,entity:kube-apiserver 80/TCP denied
         back,entity:world -> front 80/TCP allowed
         front2 -> back,back2 80/TCP allowed",
    );
}

#[test]
fn egress_allow_all_endpoints() {
    let policy = cnp("endpointSelector: {matchLabels: {role: frontend}}, egress: [{toEndpoints: [{}]}]");
    Scene::new(ROLES, &policy).check(
        "front -> back,other 80/TCP allowed
         front -> back2,front2,entity:world,entity:host 80/TCP denied",
    );
}

#[test]
fn simple_egress_deny() {
    let policy = cnp("endpointSelector: {matchLabels: {role: frontend}}, egress: [{toEntities: [all]}], \
                      egressDeny: [{toEndpoints: [{matchLabels: {role: backend}}]}]");
    Scene::new(ROLES, &policy).check(
        "front -> back 80/TCP,8/ICMP denied
         front -> other,back2,entity:world,entity:host,ip:2001:db8::1 80/TCP allowed",
    );
}

#[test]
fn default_deny() {
    let egress = cnp("endpointSelector: {matchLabels: {role: restricted}}, egress: [{}]");
    let pods = format!("{ROLES}\n default/shut role=restricted");
    Scene::new(&pods, &egress).check(
        "shut -> front,entity:world,entity:host,ip:192.0.2.1 80/TCP denied
         front,entity:world -> shut 80/TCP allowed",
    );
    let ingress = cnp("endpointSelector: {matchLabels: {role: restricted}}, ingress: [{}]");
    Scene::new(&pods, &ingress).check(
        "shut -> front,entity:world 80/TCP allowed
         front,entity:world,entity:remote-node -> shut 80/TCP denied
         entity:host -> shut 80/TCP allowed",
    );
}

#[test]
fn match_expressions() {
    // Several expressions of one selector must all hold, several selectors are alternatives. The operator is
    // in lower case there, and one of the keys has a dot where the other has a colon.
    let pods = "
        default/mine role=x
        default/strict cilium.example.com/policy=strict
        production/loose role=x
        production/strict2 cilium.example.com/policy=strict
        staging/strict3 cilium.example.com/policy=strict";
    let and = cnp("endpointSelector: {}, ingress: [{fromEndpoints: [{matchExpressions: [\
                   {key: 'k8s:io.kubernetes.pod.namespace', operator: in, values: [production]}, \
                   {key: 'k8s:cilium.example.com/policy', operator: in, values: [strict]}]}]}]");
    Scene::new(pods, &and).check(
        "strict2 -> mine 80/TCP allowed
         strict,loose,strict3 -> mine 80/TCP denied",
    );
    let or = cnp("endpointSelector: {}, ingress: [{fromEndpoints: [\
                  {matchExpressions: [{key: k8s.io.kubernetes.pod.namespace, operator: in, values: [production]}]}, \
                  {matchExpressions: [{key: 'k8s:cilium.example.com/policy', operator: in, values: [strict]}]}]}]");
    Scene::new(pods, &or).check(
        "strict,loose,strict2 -> mine 80/TCP allowed
         strict3 -> mine 80/TCP denied",
    );
}

/// "The endpoint with label env=prod will become accessible from endpoints that have both labels env=prod and
/// role=frontend", and "the requirements stay in effect no matter what would otherwise be allowed".
#[test]
fn additional_label_requirements() {
    let pods = "
        default/mine env=prod
        default/both env=prod role=frontend
        default/front role=frontend
        default/prod2 env=prod
        elsewhere/far env=prod role=frontend";
    let requires = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, description: why, metadata: {name: requires-rule}, \
                    specs: [{endpointSelector: {matchLabels: {env: prod}}, ingress: [{fromRequires: [{matchLabels: {env: prod}}]}]}]}";
    let alone = Scene::new(pods, requires);
    alone.check(
        "both,front,prod2,far,entity:world,entity:remote-node -> mine 80/TCP denied
         entity:host -> mine 80/TCP allowed
         mine -> front,entity:world 80/TCP allowed
         both,entity:world -> front 80/TCP allowed",
    );
    assert!(alone.conditions().is_empty());
    let endpoints = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: l3-rule}, \
                     specs: [{description: why, endpointSelector: {matchLabels: {env: prod}}, \
                     ingress: [{fromEndpoints: [{matchLabels: {role: frontend}}]}]}]}";
    Scene::new(pods, &format!("{requires}\n---\n{endpoints}")).check(
        "both -> mine 80/TCP,53/UDP,8/ICMP allowed
         front,prod2,far,entity:world -> mine 80/TCP denied",
    );
    let everybody = cnp("endpointSelector: {}, ingress: [{fromEntities: [all]}]");
    Scene::new(pods, &format!("{requires}\n---\n{everybody}")).check(
        "both,prod2 -> mine 80/TCP allowed
         front,far,entity:world,ip:192.0.2.1 -> mine 80/TCP denied",
    );
    let out = cnp("endpointSelector: {matchLabels: {env: prod}}, egress: [\
                   {toRequires: [{matchExpressions: [{key: role, operator: In, values: [frontend]}]}], toEndpoints: [{}]}]");
    Scene::new(pods, &out).check(
        "mine -> both,front 80/TCP allowed
         mine -> prod2,far,entity:world,entity:host 80/TCP denied",
    );
    // A node reaches its pods whatever is required; that says nothing of what these send to it.
    let anywhere = out.replace("toEndpoints: [{}]}]", "toEntities: [all]}]");
    Scene::new(pods, &anywhere).check(
        "mine -> both,front 80/TCP allowed
         mine -> prod2,far,entity:world,entity:host 80/TCP denied
         entity:host -> mine 80/TCP allowed",
    );
    // Several requirements must all be met, also where nothing is denied by default.
    let open =
        cnp("endpointSelector: {matchLabels: {env: prod}}, enableDefaultDeny: {ingress: false}, ingress: [\
                    {fromRequires: [{matchLabels: {env: prod}}, {matchLabels: {role: frontend}}]}]");
    Scene::new(pods, &open).check(
        "both -> mine 80/TCP allowed
         front,prod2,far,entity:world -> mine 80/TCP denied",
    );
}

/// The older form, with both in one object.
#[test]
fn requirements_beside_another_spec() {
    let pods = "
        default/front role=frontend
        default/both env=prod role=frontend
        default/prod2 env=prod
        default/back role=backend
        default/prodback env=prod role=backend";
    let policy = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: requires-rule}, specs: [\
                  {endpointSelector: {matchLabels: {env: prod}}, ingress: [{fromRequires: [{matchLabels: {env: prod}}]}]}, \
                  {endpointSelector: {matchLabels: {role: backend}}, ingress: [{fromEndpoints: [{matchLabels: {role: frontend}}]}]}]}";
    Scene::new(pods, policy).check(
        "front,both -> back 80/TCP allowed
         prod2,entity:world -> back 80/TCP denied
         both -> prodback 80/TCP allowed
         front,prod2,back,entity:world -> prodback 80/TCP denied
         both,front -> prod2 80/TCP denied",
    );
}

/// Where a field is there without a value, as in older forms of "Ingress Allow All Endpoints" and "Default Deny", it is
/// as if left out: an API server drops it.
#[test]
fn fields_without_a_value() {
    let pods = "default/victim role=victim\n default/other role=other";
    let victim = |rules: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata:\n  name: p\nspec:\n  \
             endpointSelector:\n    matchLabels:\n      role: victim\n{rules}"
        )
    };
    Scene::new(pods, &victim("  ingress:\n  - fromEndpoints:\n")).check(
        "other,entity:world -> victim 80/TCP denied
         victim -> other 80/TCP allowed",
    );
    let scene = Scene::new(pods, &victim("  egress:\n"));
    scene.check("victim -> other,entity:world 80/TCP allowed");
    assert_eq!(scene.conditions(), ["SelectsNothing spec"]);
}

#[test]
fn services() {
    let cluster = "
        default/app2 id=app2
        default/one run=one
        another-namespace/two run=two
        another-namespace/three run=three
        default/three2 run=three
        service default/myservice selects:run=one
        service another-namespace/staging env=staging selects:run=two
        service another-namespace/other env=prod selects:run=three
        service default/outside env=staging ip:192.0.2.10
        service default/external external=yes ip:192.0.2.20 ip:2001:db8::20";
    let both = cnp("endpointSelector: {matchLabels: {id: app2}}, egress: [{toServices: [\
                    {k8sService: {serviceName: myservice, namespace: default}}, \
                    {k8sServiceSelector: {selector: {matchLabels: {env: staging}}, namespace: another-namespace}}]}]");
    Scene::new(cluster, &both).check(
        "app2 -> one,two 80/TCP,5/UDP allowed
         app2 -> three,three2,ip:192.0.2.10,entity:world 80/TCP denied",
    );
    // Services without a selector: the addresses of their endpoints.
    let external = cnp("endpointSelector: {matchLabels: {id: app2}}, egress: [{toServices: [\
                        {k8sServiceSelector: {selector: {matchLabels: {external: 'yes'}}}}]}]");
    Scene::new(cluster, &external).check(
        "app2 -> ip:192.0.2.20,ip:2001:db8::20 443/TCP allowed
         app2 -> ip:192.0.2.21,ip:192.0.2.10,one,two 443/TCP denied",
    );
    let ports = cnp("endpointSelector: {matchLabels: {id: app2}}, egress: [{toServices: [\
                     {k8sService: {serviceName: myservice}}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]");
    Scene::new(cluster, &ports).check(
        "app2 -> one 80/TCP allowed
         app2 -> one 81/TCP,80/UDP denied
         app2 -> two 80/TCP denied",
    );
    // "By name and, optionally, namespace": without one they are those of any.
    for service in
        ["k8sService: {serviceName: staging}", "k8sServiceSelector: {selector: {matchLabels: {head: none}}}"]
    {
        let anywhere = format!(
            "endpointSelector: {{matchLabels: {{id: app2}}}}, egress: [{{toServices: [{{{service}}}]}}]"
        );
        Scene::new(&cluster.replace("env=staging selects", "head=none selects"), &cnp(&anywhere)).check(
            "app2 -> two 80/TCP allowed
             app2 -> one,three,ip:192.0.2.10 80/TCP denied",
        );
    }
    let none = cnp("endpointSelector: {matchLabels: {id: app2}}, egress: [{toServices: []}]");
    Scene::new(cluster, &none).check("app2 -> one,two,ip:192.0.2.20 80/TCP denied");
    let one_without_a_name = none.replace("[]", "[{}]");
    let error =
        policy::Policy::from_value(&serde_saphyr::from_str(&one_without_a_name).unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CiliumNetworkPolicy default/p: spec.egress[0].toServices[0]: needs one of `k8sService` and `k8sServiceSelector`"
    );
}

const DEV: &str = "
    default/dev env=dev
    default/prod env=prod
    default/public role=public
    other/pod env=dev";

#[test]
fn entity_kube_apiserver() {
    let policy = cnp("endpointSelector: {matchLabels: {env: dev}}, egress: [{toEntities: [kube-apiserver]}]");
    Scene::new(DEV, &policy).check(
        "dev -> entity:kube-apiserver 6443/TCP allowed
         dev -> entity:remote-node,entity:host,entity:world,prod 6443/TCP denied
         prod -> entity:world 6443/TCP allowed",
    );
}

#[test]
fn entity_host() {
    let policy = cnp("endpointSelector: {matchLabels: {env: dev}}, egress: [{toEntities: [host]}]");
    Scene::new(DEV, &policy).check(
        "dev -> entity:host 80/TCP allowed
         dev -> entity:remote-node,entity:world,prod 80/TCP denied",
    );
}

#[test]
fn entities_of_all_nodes() {
    let policy =
        cnp("endpointSelector: {matchLabels: {env: dev}}, ingress: [{fromEntities: [host, remote-node]}]");
    Scene::new(DEV, &policy).check(
        "entity:host,entity:remote-node,entity:kube-apiserver -> dev 80/TCP allowed
         entity:world,prod,entity:health -> dev 80/TCP denied",
    );
}

#[test]
fn entity_world() {
    let policy = cnp("endpointSelector: {matchLabels: {role: public}}, ingress: [{fromEntities: [world]}]");
    Scene::new(DEV, &policy).check(
        "entity:world,ip:192.0.2.1,ip:2001:db8::1 -> public 80/TCP allowed
         dev,pod,entity:remote-node,entity:kube-apiserver,entity:unmanaged -> public 80/TCP denied",
    );
}

#[test]
fn what_the_entities_are() {
    let cluster = "entity:host,entity:remote-node,entity:kube-apiserver,entity:init,entity:health,\
                   entity:unmanaged,entity:ingress,prod,pod";
    let from = |entity: &str| {
        let rules = format!(
            "endpointSelector: {{matchLabels: {{role: public}}}}, ingress: [{{fromEntities: [{entity}]}}]"
        );
        Scene::new(DEV, &cnp(&rules))
    };
    from("cluster")
        .check(&format!("{cluster} -> public 80/TCP allowed\n entity:world -> public 80/TCP denied"));
    from("all").check(&format!("{cluster},entity:world,ip:2001:db8::1 -> public 80/TCP allowed"));
    from("none").check("entity:world,prod,entity:health,entity:remote-node -> public 80/TCP denied");
    for entity in ["init", "health", "unmanaged", "ingress"] {
        from(entity).check(&format!(
            "entity:{entity} -> public 80/TCP allowed
             prod,entity:world,entity:remote-node -> public 80/TCP denied"
        ));
    }
    from("world-ipv4")
        .check("ip:192.0.2.1 -> public 80/TCP allowed\n ip:2001:db8::1,prod -> public 80/TCP denied");
    from("world-ipv6")
        .check("ip:2001:db8::1 -> public 80/TCP allowed\n ip:192.0.2.1,prod -> public 80/TCP denied");
}

#[test]
fn nodes_by_label() {
    let policy = cnp("endpointSelector: {matchLabels: {env: prod}}, ingress: [{fromNodes: [\
                      {matchLabels: {node-role.kubernetes.io/control-plane: ''}}]}]");
    let nodes = format!("{DEV}\n node n1 node-role.kubernetes.io/control-plane=\n node n2 role=worker");
    let scene = Scene::new(&nodes, &policy);
    scene.check(
        "node:n1,entity:host -> prod 80/TCP allowed
         node:n2,entity:remote-node,entity:kube-apiserver,dev,entity:world -> prod 80/TCP denied",
    );
    assert!(scene.conditions().is_empty());
    let workers = cnp(
        "endpointSelector: {matchLabels: {env: dev}}, ingress: [{fromNodes: [{matchLabels: {role: worker}}]}]",
    );
    Scene::new(&nodes, &workers).check(
        "node:n2,entity:host -> dev 80/TCP allowed
         node:n1,entity:remote-node,prod,entity:world -> dev 80/TCP denied",
    );
}

#[test]
fn external_cidr_block() {
    let policy = cnp("endpointSelector: {matchLabels: {app: myService}}, egress: [{toCIDR: [20.1.1.1/32]}, \
                      {toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]}]");
    Scene::new("default/app app=myService ip:10.1.1.1\n default/db app=db ip:10.1.1.2", &policy).check(
        "app -> ip:20.1.1.1,ip:10.0.0.1,ip:10.95.255.255,ip:10.112.0.0 443/TCP,7/UDP,8/ICMP allowed
         app -> ip:20.1.1.2,ip:10.96.0.0,ip:10.111.255.255,ip:11.0.0.1,ip:2001:db8::1 443/TCP denied
         app -> db,entity:host,entity:remote-node 443/TCP denied",
    );
}

#[test]
fn group_of_cidrs() {
    let cluster = "default/app app=x\n group vpn-example-1 role=vpn net:10.48.0.0/24 net:10.16.0.0/24";
    for set in ["cidrGroupRef: vpn-example-1", "cidrGroupSelector: {matchLabels: {role: vpn}}"] {
        let policy = cnp(&format!("endpointSelector: {{}}, ingress: [{{fromCIDRSet: [{{{set}}}]}}]"));
        Scene::new(cluster, &policy).check(
            "ip:10.48.0.1,ip:10.16.0.255 -> app 80/TCP allowed
             ip:10.49.0.1,ip:192.0.2.1,entity:remote-node -> app 80/TCP denied",
        );
    }
}

#[test]
fn names() {
    let cluster = "
        default/app app=test-app
        name my-remote-service.com ip:192.0.2.1
        name sub.cilium.io ip:192.0.2.2
        name sub.sub.cilium.io ip:192.0.2.3
        name cilium.io ip:192.0.2.4
        name part-extra-ial.com ip:192.0.2.5
        name partial.com ip:192.0.2.6";
    let to = |names: &str| {
        let spec =
            format!("endpointSelector: {{matchLabels: {{app: test-app}}}}, egress: [{{toFQDNs: [{names}]}}]");
        Scene::new(cluster, &cnp(&spec))
    };
    to("{matchName: my-remote-service.com}")
        .check("app -> ip:192.0.2.1 443/TCP allowed\n app -> ip:192.0.2.2,entity:world 443/TCP denied");
    to("{matchPattern: '*.cilium.io'}")
        .check("app -> ip:192.0.2.2 443/TCP allowed\n app -> ip:192.0.2.3,ip:192.0.2.4 443/TCP denied");
    to("{matchPattern: '**.cilium.io'}")
        .check("app -> ip:192.0.2.2,ip:192.0.2.3 443/TCP allowed\n app -> ip:192.0.2.4 443/TCP denied");
    to("{matchPattern: 'part*ial.com'}")
        .check("app -> ip:192.0.2.5,ip:192.0.2.6 443/TCP allowed\n app -> ip:192.0.2.4 443/TCP denied");
    to("{matchPattern: '*'}")
        .check("app -> ip:192.0.2.1,ip:192.0.2.6 443/TCP allowed\n app -> ip:192.0.2.77 443/TCP denied");
    to("{matchName: cilium.io}, {matchName: sub.cilium.io}")
        .check("app -> ip:192.0.2.2,ip:192.0.2.4 443/TCP allowed\n app -> ip:192.0.2.3 443/TCP denied");
}

/// Every level of a domain by a pattern of its own, and all at once; names among patterns, and with a port.
#[test]
fn names_of_every_level() {
    let cluster = "
        default/app app=test-app org=alliance
        kube-system/dns k8s-app=kube-dns
        name cilium.io ip:192.0.2.1
        name a.cilium.io ip:192.0.2.2
        name a.b.cilium.io ip:192.0.2.3
        name a.b.c.d.e.f.g.h.cilium.io ip:192.0.2.4
        name a.b.c.d.e.f.g.h.i.cilium.io ip:192.0.2.5
        name service1.api.cilium.io ip:192.0.2.6
        name special-service.api.cilium.io ip:192.0.2.7
        name cilium.io.example ip:192.0.2.8";
    let to = |subject: &str, names: &str, more: &str| {
        let dns = "toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system, 'k8s:k8s-app': kube-dns}}], \
                   toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchPattern: '**.cluster.local'}]}}]";
        let spec = format!(
            "endpointSelector: {{matchLabels: {{{subject}}}}}, egress: [{{{dns}}}, {{toFQDNs: [{names}]{more}}}]"
        );
        let scene = Scene::new(cluster, &cnp(&spec));
        assert!(scene.conditions().contains(&"Unsupported spec.egress[0].toPorts[0].rules".to_owned()));
        scene
    };
    let cascade: Vec<String> =
        (1..=8).map(|levels| format!("{{matchPattern: '{}cilium.io'}}", "*.".repeat(levels))).collect();
    to("app: test-app", &cascade.join(", "), "").check(
        "app -> ip:192.0.2.2,ip:192.0.2.3,ip:192.0.2.4,ip:192.0.2.6,ip:192.0.2.7 443/TCP,53/UDP allowed
         app -> ip:192.0.2.1,ip:192.0.2.5,ip:192.0.2.8 443/TCP denied
         app -> dns 53/UDP denied",
    );
    to("app: test-app", "{matchPattern: '**.cilium.io'}", "").check(
        "app -> ip:192.0.2.2,ip:192.0.2.3,ip:192.0.2.4,ip:192.0.2.5,ip:192.0.2.6 443/TCP allowed
         app -> ip:192.0.2.1,ip:192.0.2.8,entity:world 443/TCP denied",
    );
    to(
        "'any:org': alliance",
        "{matchName: cilium.io}, {matchName: service1.api.cilium.io}, {matchPattern: 'special*service.api.cilium.io'}",
        ", toPorts: [{ports: [{port: '80', protocol: TCP}]}]",
    )
    .check(
        "app -> ip:192.0.2.1,ip:192.0.2.6,ip:192.0.2.7 80/TCP allowed
         app -> ip:192.0.2.1,ip:192.0.2.7 443/TCP,80/UDP denied
         app -> ip:192.0.2.2,ip:192.0.2.8 80/TCP denied",
    );
}
