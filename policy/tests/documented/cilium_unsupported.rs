//! Examples of Cilium's documentation whose rules can't be enforced here: they allow nothing and are named,
//! and what stands beside them in the policy counts.

use crate::scene::Scene;

const PODS: &str = "
    default/app app=myService org=alliance
    default/other app=other
    kube-system/dns k8s-app=kube-dns
    name cilium.io ip:192.0.2.4
    node n1 node-access=ssh
    node n2 role=worker";

fn app(rules: &str) -> Scene {
    let policy = format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p}}, \
         spec: {{endpointSelector: {{matchLabels: {{'any:org': alliance}}}}, {rules}}}}}"
    );
    Scene::new(PODS, &policy)
}

#[test]
fn rules_of_layer_7() {
    let http = "rules: {http: [{method: GET, path: '/public'}]}";
    let scene = app(&format!("ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], {http}}}]}}]"));
    scene.check("other,entity:world -> app 80/TCP,81/TCP denied");
    assert_eq!(scene.conditions(), ["Unsupported spec.ingress[0].toPorts[0].rules"]);
}

/// "Adding a layer-7 rule that does not include a layer-7 allow-all will cause drops, even when default-deny is
/// explicitly disabled", and an allow-all doesn't block anything.
#[test]
fn rules_of_layer_7_without_default_deny() {
    let ports = |rules: &str| format!("toPorts: [{{ports: [{{port: '80', protocol: TCP}}], {rules}}}]");
    for rules in [
        "rules: {http: [{method: GET}]}",
        "rules: {dns: [{matchName: cilium.io}]}",
        "rules: {http: [{matchPattern: '*'}]}",
        "serverNames: [cilium.io]",
    ] {
        let scene = app(&format!(
            "enableDefaultDeny: {{ingress: false, egress: false}}, ingress: [{{fromEndpoints: [{{}}], {ports}}}], egress: [{{{ports}}}]",
            ports = ports(rules)
        ));
        scene.check(
            "other -> app 80/TCP denied
             other -> app 81/TCP allowed
             entity:world -> app 80/TCP allowed
             app -> other,entity:world 80/TCP denied
             app -> other,entity:world 81/TCP,53/UDP allowed",
        );
        assert_eq!(scene.conditions().len(), 2);
    }
    for rules in ["rules: {dns: [{matchPattern: '*'}]}", "rules: {http: [{}]}"] {
        let scene = app(&format!("enableDefaultDeny: {{egress: false}}, egress: [{{{}}}]", ports(rules)));
        scene.check("app -> other,entity:world 80/TCP,81/TCP allowed");
        assert_eq!(scene.conditions(), ["Unsupported spec.egress[0].toPorts[0].rules"]);
    }
}

/// Elements of `toPorts` are alternatives: "restrict access to services only on ports 443", and 80 by rules of layer 7 in
/// the same rule. Where nothing is denied by default, these deny their ports alone.
#[test]
fn ports_beside_those_of_layer_7() {
    let ports = "toPorts: [{ports: [{port: '443', protocol: TCP}]}, \
                 {ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET}]}}]";
    let scene = app(&format!("egress: [{{toFQDNs: [{{matchPattern: '*.io'}}], {ports}}}]"));
    scene.check(
        "app -> ip:192.0.2.4 443/TCP allowed
         app -> ip:192.0.2.4 80/TCP,81/TCP,443/UDP denied
         app -> other,entity:world 443/TCP,80/TCP denied",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[0].toPorts[1].rules"]);
    let open = app(&format!(
        "enableDefaultDeny: {{egress: false}}, egress: [{{toFQDNs: [{{matchPattern: '*.io'}}], {ports}}}]"
    ));
    open.check(
        "app -> ip:192.0.2.4 443/TCP,81/TCP allowed
         app -> ip:192.0.2.4 80/TCP denied
         app -> other,entity:world 443/TCP,80/TCP allowed",
    );
    let listener = "listener: {envoyConfig: {name: c}, name: l}";
    let beside_a_listener = ports.replace("rules: {http: [{method: GET}]}", listener);
    let scene = app(&format!("enableDefaultDeny: {{egress: false}}, egress: [{{{beside_a_listener}}}]"));
    scene.check("app -> other,entity:world 443/TCP,80/TCP allowed");
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[0].toPorts[1].listener"]);
}

/// "In case the user writes a policy that does not conform to the schema, Kubernetes will return an error": so do we, and
/// for what has been another version's.
#[test]
fn policies_that_no_api_server_has() {
    let cilium = "apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy";
    let endpoints =
        "endpointSelector: {matchLabels: {id: app1}}, ingress: [{fromEndpoints: [{matchLabels: {id: app2}}]";
    for (policy, expected) in [
        (
            format!("{{{cilium}, metadata: {{name: my-new-cilium-object}}, spec: {{{endpoints}, \
                     toPorts: [{{ports: [{{port: '65536', protocol: TCP}}]}}]}}]}}}}"),
            "CiliumNetworkPolicy default/my-new-cilium-object: spec.ingress[0].toPorts[0].ports[0].port: must be a port number",
        ),
        (
            format!("{{{cilium}, metadata: {{name: cnp-update}}, spec: {{{endpoints}}}], labels: [custom=true]}}}}"),
            "CiliumNetworkPolicy default/cnp-update: spec.labels[0]: is a string, must be an object",
        ),
        (
            format!("{{{cilium}, description: 'A rule that will break your policy watcher', metadata: {{name: badrule}}, \
                     spec: {{podSelector: {{matchLabels: {{id: app3}}}}, egress: {{toCIDR: {{podSelector: {{ip: 8.8.8.8/32}}}}}}}}}}"),
            "CiliumNetworkPolicy default/badrule: spec.podSelector: unknown field; did you mean `endpointSelector`?",
        ),
        (
            format!("{{{cilium}, metadata: {{name: l4-rule}}, spec: {{endpointSelector: {{}}, ingress: [{{fromEndpoints: [\
                     {{matchLabels: , role: frontend}}]}}]}}}}"),
            "CiliumNetworkPolicy default/l4-rule: spec.ingress[0].fromEndpoints[0].role: unknown field",
        ),
        (
            format!("{{apiversion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: n}}, spec: {{{endpoints}}}]}}}}"),
            "CiliumNetworkPolicy default/: apiversion: unknown field; did you mean `apiVersion`?",
        ),
        (
            format!("{{apiVersion: cilium.io/v1, kind: CiliumNetworkPolicy, metadata: {{name: rule1}}, spec: {{{endpoints}}}]}}}}"),
            "CiliumNetworkPolicy default/rule1: apiVersion: must be `cilium.io/v2`",
        ),
        (
            "{kind: NetworkPolicy, apiVersion: extensions/v1beta1, metadata: {name: access-backend-deprecated}, \
              spec: {podSelector: {matchLabels: {id: app1}}}}"
                .to_owned(),
            "NetworkPolicy default/access-backend-deprecated: apiVersion: must be `networking.k8s.io/v1`",
        ),
        (
            "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: lock-down-ingress-worker-node}, \
              spec: {nodeSelector: {matchLabels: {type: ingress-worker}}, ingress: [{toPorts: [{ports: [{port: '22', protocol: TCP}, \
              {port: REMOVE_ME_AFTER_DOUBLE_CHECKING_PORTS, protocol: TCP}]}]}]}}"
                .to_owned(),
            "CiliumClusterwideNetworkPolicy lock-down-ingress-worker-node: spec.ingress[0].toPorts[0].ports[1].port: must be a port",
        ),
    ] {
        let value = serde_saphyr::from_str(&policy).unwrap();
        let error = policy::Policy::from_value(&value).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    // With its labels in the right form it is understood.
    let labels = format!("{endpoints}}}], labels: [{{key: custom, value: 'true'}}]");
    let pods = "default/app1 id=app1\n default/app2 id=app2\n default/app3 id=app3";
    Scene::new(pods, &format!("{{{cilium}, metadata: {{name: cnp-update}}, spec: {{{labels}}}}}"))
        .check("app2 -> app1 80/TCP allowed\n app3 -> app1 80/TCP denied");
}

#[test]
fn dns_visibility() {
    let scene = app("egress: [{toEndpoints: [{matchLabels: {k8s.io.kubernetes.pod.namespace: kube-system, \
                     'k8s:k8s-app': kube-dns}}], toPorts: [{ports: [{port: '53', protocol: ANY}], \
                     rules: {dns: [{matchPattern: '*'}]}}]}, {toFQDNs: [{matchName: cilium.io}]}]");
    scene.check(
        "app -> dns 53/UDP denied
         app -> ip:192.0.2.4 443/TCP allowed
         app -> other,entity:world 443/TCP denied",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[0].toPorts[0].rules"]);
}

#[test]
fn server_names_and_listeners() {
    for (field, path) in [
        ("serverNames: [one.one.one.one]", "serverNames"),
        ("listener: {envoyConfig: {kind: CiliumClusterwideEnvoyConfig, name: c}, name: l}", "listener"),
        ("terminatingTLS: {secret: {namespace: kube-system, name: s}}", "terminatingTLS"),
        ("originatingTLS: {secret: {namespace: kube-system, name: s}}", "originatingTLS"),
    ] {
        let ports = format!("toPorts: [{{ports: [{{port: '0', protocol: TCP}}], {field}}}]");
        let scene = app(&format!(
            "egress: [{{toCIDRSet: [{{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}], {ports}}}, {{toEndpoints: [{{}}]}}]"
        ));
        scene.check(
            "app -> ip:192.0.2.1 80/TCP denied
             app -> other 80/TCP allowed",
        );
        assert_eq!(scene.conditions(), [format!("Unsupported spec.egress[0].toPorts[0].{path}")]);
    }
}

#[test]
fn groups() {
    let scene = app("egress: [{toGroups: [{aws: {securityGroupsIds: [sg-1]}}]}]");
    scene.check("app -> entity:world,other 443/TCP denied");
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[0].toGroups"]);
}

/// Policies for nodes touch no pod, and no hook enforces them at nodes; traces show what they say there.
#[test]
fn host_policies() {
    let policy = "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: demo-host-policy}, \
                  spec: {description: '', nodeSelector: {matchLabels: {node-access: ssh}}, ingress: [{fromEntities: [cluster]}, \
                  {toPorts: [{ports: [{port: '22', protocol: TCP}]}]}, {icmps: [{fields: [{type: EchoRequest, family: IPv4}]}]}]}}";
    let scene = Scene::new(PODS, policy);
    scene.check(
        "other,entity:world -> app 80/TCP allowed
         app -> other 80/TCP allowed
         app,node:n2 -> node:n1 80/TCP,22/TCP,8/ICMP allowed
         entity:world -> node:n1 22/TCP,8/ICMP allowed
         entity:world -> node:n1 80/TCP,0/ICMP denied
         entity:world -> node:n2 80/TCP allowed
         node:n1 -> entity:world,app 80/TCP allowed",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.nodeSelector"]);
}

/// Forms of old versions of the examples: prefixes of two kinds in one rule, which was never to be combined, and
/// the authentication that was tried before `authentication`.
#[test]
fn forms_of_old() {
    let scene = app(
        "egress: [{toCIDR: [20.1.1.1/32], toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]}, {toEndpoints: [{}]}]",
    );
    scene.check(
        "app -> ip:20.1.1.1,ip:10.1.1.1 80/TCP denied
         app -> other 80/TCP allowed",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[0].toCIDRSet"]);
    let auth = "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: l3-egress-rule}, spec: {endpointSelector: \
                {matchLabels: {run: ssh-client}}, egress: [{toEndpoints: [{matchLabels: {run: sshd}}], auth: {type: 'null'}}]}}";
    let error = policy::Policy::from_value(&serde_saphyr::from_str(auth).unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CiliumNetworkPolicy default/l3-egress-rule: spec.egress[0].auth: unknown field; did you mean `authentication`?"
    );
}
