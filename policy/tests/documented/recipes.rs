//! The recipes that Kubernetes' documentation sends people to (ahmetb/kubernetes-network-policy-recipes), each
//! with what its "try it out" finds.

use crate::scene::Scene;

const PODS: &str = "
    prod: purpose=production
    dev: purpose=testing
    ops: team=operations
    default/web app=web
    default/client run=test
    default/api app=bookstore role=api
    default/frontend app=bookstore role=frontend
    default/db app=bookstore role=db
    default/search app=bookstore role=search
    default/inventory app=inventory role=web
    default/apiserver app=apiserver
    default/monitor role=monitoring
    default/foo app=foo
    kube-system/dns k8s-app=kube-dns
    kube-system/not-dns k8s-app=other
    prod/prod-client run=test
    dev/dev-client run=test
    ops/ops-monitoring type=monitoring
    ops/ops-other type=other
    dev/dev-monitoring type=monitoring";

fn recipe(spec: &str, table: &str) {
    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: recipe}}, spec: {{{spec}}}}}"
    );
    Scene::new(PODS, &policy).check(table);
}

#[test]
fn deny_all_traffic_to_an_application() {
    recipe(
        "podSelector: {matchLabels: {app: web}}, ingress: []",
        "client,entity:world,prod-client -> web 80/TCP denied
         web -> client,entity:world 80/TCP allowed
         client -> api 80/TCP allowed",
    );
}

#[test]
fn limit_traffic_to_an_application() {
    recipe(
        "podSelector: {matchLabels: {app: bookstore, role: api}}, \
         ingress: [{from: [{podSelector: {matchLabels: {app: bookstore}}}]}]",
        "frontend,db,search -> api 80/TCP,53/UDP allowed
         client,web,prod-client,entity:world -> api 80/TCP denied",
    );
}

#[test]
fn allow_all_traffic_to_an_application() {
    let deny = "podSelector: {matchLabels: {app: web}}, ingress: []";
    let allow = "podSelector: {matchLabels: {app: web}}, ingress: [{}]";
    let policy = |name: &str, spec: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
        )
    };
    let both = [policy("deny", deny), policy("allow", allow)].join("\n---\n");
    Scene::new(PODS, &both).check("client,entity:world,prod-client -> web 80/TCP,53/UDP allowed");
}

#[test]
fn deny_all_traffic_in_a_namespace() {
    recipe(
        "podSelector: {}, ingress: []",
        "client,prod-client,entity:world -> web,api 80/TCP denied
         client -> prod-client,entity:world 80/TCP allowed",
    );
}

#[test]
fn deny_traffic_from_other_namespaces() {
    recipe(
        "podSelector: {matchLabels: null}, ingress: [{from: [{podSelector: {}}]}]",
        "client,api -> web 80/TCP allowed
         prod-client,dev-client,entity:world -> web 80/TCP denied",
    );
}

#[test]
fn allow_traffic_from_all_namespaces() {
    recipe(
        "podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}]}]",
        "client,prod-client,dev-client -> web 80/TCP allowed
         entity:world -> web 80/TCP denied",
    );
}

#[test]
fn allow_traffic_from_a_namespace() {
    recipe(
        "podSelector: {matchLabels: {app: web}}, \
         ingress: [{from: [{namespaceSelector: {matchLabels: {purpose: production}}}]}]",
        "prod-client -> web 80/TCP allowed
         dev-client,client,entity:world -> web 80/TCP denied",
    );
}

#[test]
fn allow_traffic_from_some_pods_in_another_namespace() {
    recipe(
        "podSelector: {matchLabels: {app: web}}, \
         ingress: [{from: [{namespaceSelector: {matchLabels: {team: operations}}, \
         podSelector: {matchLabels: {type: monitoring}}}]}]",
        "ops-monitoring -> web 80/TCP allowed
         ops-other,dev-monitoring,client -> web 80/TCP denied",
    );
}

#[test]
fn allow_external_traffic() {
    recipe(
        "podSelector: {matchLabels: {app: web}}, ingress: [{}]",
        "entity:world,client,prod-client -> web 80/TCP,443/TCP allowed",
    );
    recipe(
        "podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}], from: []}]",
        "entity:world,client -> web 80/TCP allowed
         entity:world,client -> web 443/TCP,80/UDP denied",
    );
}

#[test]
fn allow_traffic_only_to_a_port() {
    recipe(
        "podSelector: {matchLabels: {app: apiserver}}, \
         ingress: [{ports: [{port: 5000}], from: [{podSelector: {matchLabels: {role: monitoring}}}]}]",
        "monitor -> apiserver 5000/TCP allowed
         monitor -> apiserver 8001/TCP,5000/UDP denied
         client -> apiserver 5000/TCP,8001/TCP denied",
    );
}

#[test]
fn allow_traffic_with_several_selectors() {
    recipe(
        "podSelector: {matchLabels: {app: bookstore, role: db}}, ingress: [{from: [\
         {podSelector: {matchLabels: {app: bookstore, role: search}}}, \
         {podSelector: {matchLabels: {app: bookstore, role: api}}}, \
         {podSelector: {matchLabels: {app: inventory, role: web}}}]}]",
        "search,api,inventory -> db 6379/TCP allowed
         frontend,client,web -> db 6379/TCP denied",
    );
}

#[test]
fn deny_egress_from_an_application() {
    recipe(
        "podSelector: {matchLabels: {app: foo}}, policyTypes: [Egress], egress: []",
        "foo -> web,dns,entity:world 80/TCP,53/UDP denied
         client -> foo 80/TCP allowed",
    );
    recipe(
        "podSelector: {matchLabels: {app: foo}}, policyTypes: [Egress], \
         egress: [{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]",
        "foo -> dns,web,entity:world 53/UDP,53/TCP allowed
         foo -> web,entity:world 80/TCP denied",
    );
}

#[test]
fn deny_all_traffic_from_a_namespace() {
    recipe(
        "podSelector: {}, policyTypes: [Egress], egress: []",
        "web,client -> dns,entity:world,prod-client 80/TCP denied
         prod-client -> web 80/TCP allowed",
    );
}

#[test]
fn deny_external_egress() {
    recipe(
        "podSelector: {matchLabels: {app: foo}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: \
         {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], \
         ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]",
        "foo -> dns 53/UDP,53/TCP allowed
         foo -> dns 80/TCP denied
         foo -> not-dns,web,entity:world 53/UDP,80/TCP denied",
    );
}
