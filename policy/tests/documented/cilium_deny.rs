//! Cilium's documentation, "Deny Policies" and "Policy Enforcement Modes".

use crate::scene::Scene;

const PODS: &str = "default/server app=server\n default/client app=client\n other/pod app=other";

fn server(rules: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p}}, \
         spec: {{endpointSelector: {{matchLabels: {{app: server}}}}, {rules}}}}}"
    )
}

/// The table of "Deny Policies", column by column: what is allowed and denied, and what 81/TCP, 80/TCP and
/// ping get.
#[test]
fn the_table() {
    let client = "fromEndpoints: [{matchLabels: {app: client}}]";
    let port = |port: u16| format!("{{toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]}}");
    let allow = format!("ingress: [{}, {}, {{{client}}}]", port(80), port(81));
    for (allows, denies, expected) in [
        (true, vec![], ["allowed", "allowed", "allowed"]),
        (true, vec![port(80)], ["allowed", "denied", "allowed"]),
        (true, vec![format!("{{{client}}}")], ["denied", "denied", "denied"]),
        (true, vec![port(80), format!("{{{client}}}")], ["denied", "denied", "denied"]),
        (false, vec![port(80)], ["denied", "denied", "denied"]),
    ] {
        let deny = format!("ingressDeny: [{}]", denies.join(", "));
        let rules = if allows { format!("{allow}, {deny}") } else { deny };
        let [on_81, on_80, ping] = expected;
        Scene::new(PODS, &server(&rules)).check(&format!(
            "client -> server 81/TCP {on_81}
             client -> server 80/TCP {on_80}
             client -> server 8/ICMP {ping}"
        ));
    }
}

#[test]
fn all_but_the_world() {
    let policy = "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: external-lockdown}, \
                  spec: {endpointSelector: {}, ingressDeny: [{fromEntities: [world]}], ingress: [{fromEntities: [all]}]}}";
    Scene::new(PODS, policy).check(
        "entity:world,ip:192.0.2.1,ip:2001:db8::1 -> server,pod 80/TCP,8/ICMP denied
         client,pod,entity:remote-node,entity:host,entity:kube-apiserver -> server 80/TCP allowed
         server -> entity:world 80/TCP allowed",
    );
}

/// "regardless of whether they are a Cilium Network Policy, a Clusterwide Cilium Network Policy or even a
/// Kubernetes Network Policy"
#[test]
fn deny_over_allow_of_every_kind() {
    let allow = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np}, \
                 spec: {podSelector: {}, ingress: [{}]}}";
    let allow_too = server("ingress: [{fromEntities: [all]}]");
    let deny = "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: c}, spec: {\
                endpointSelector: {matchLabels: {app: server}}, ingressDeny: [{fromEndpoints: [{matchLabels: {app: other}}]}]}}";
    Scene::new(PODS, &format!("{allow}\n---\n{allow_too}\n---\n{deny}")).check(
        "pod -> server 80/TCP,8/ICMP denied
         client,entity:world -> server 80/TCP allowed
         pod -> client 80/TCP allowed",
    );
}

#[test]
fn endpoints_without_policies_are_open() {
    Scene::new(PODS, &server("egress: [{toEntities: [all]}]")).check(
        "client,pod,entity:world -> server,client,pod 80/TCP allowed
         server -> client,entity:world 80/TCP allowed",
    );
    // "If both ingress and egress are omitted, the rule has no effect."
    Scene::new(PODS, &server("description: nothing")).check("client -> server 80/TCP allowed");
    // "If omitted or empty, this rule does not apply at ingress."
    Scene::new(PODS, &server("ingress: [], egress: [{}]")).check(
        "client -> server 80/TCP allowed
         server -> client 80/TCP denied",
    );
}

#[test]
fn broader_rules_and_unions() {
    let broad = server(
        "ingress: [{fromEntities: [cluster]}, {fromEndpoints: [{matchLabels: {app: client}}], \
         toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]",
    );
    Scene::new(PODS, &broad).check(
        "client,pod -> server 80/TCP,81/TCP allowed
         entity:world -> server 80/TCP denied",
    );
}

#[test]
fn without_default_deny() {
    // "Rules with EnableDefaultDeny disabled are ignored when determining the default mode."
    let policy = server(
        "enableDefaultDeny: {ingress: false, egress: false}, ingressDeny: [{fromEntities: [world]}], egress: [{toEntities: [host]}]",
    );
    Scene::new(PODS, &policy).check(
        "client,pod,entity:remote-node -> server 80/TCP allowed
         entity:world,ip:192.0.2.1 -> server 80/TCP denied
         server -> entity:world,client 80/TCP allowed",
    );
    // Another policy with it switches it on.
    let both = format!(
        "{}\n---\n{}",
        server(
            "enableDefaultDeny: {ingress: false}, ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]"
        ),
        "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: q}, spec: {endpointSelector: {}, ingress: [{}]}}"
    );
    Scene::new(PODS, &both).check(
        "client -> server 80/TCP allowed
         pod,entity:world -> server 80/TCP denied",
    );
}
