//! How rules of several kinds go together, by the comments on the fields of Cilium's API: exceptions beside
//! inclusions, what denies by address, service or node, and policies of both APIs for one pod.

use crate::scene::Scene;

const CLUSTER: &str = "
    prod: env=prod
    dev: env=dev
    prod/web app=web port:http=8080/TCP ip:10.1.0.1
    prod/db app=db port:sql=5432/TCP ip:10.1.0.2
    dev/client app=client ip:10.1.0.3
    service prod/dbsvc kind=int selects:app=db
    service prod/ext kind=ext ip:203.0.113.7
    group partners who=partner net:198.51.100.0/24
    node n1 zone=a ip:192.168.1.1
    node n2 zone=b ip:192.168.1.2";

/// A policy for `prod/web`, and more.
#[track_caller]
fn web(rules: &str, more: &str, table: &str) {
    let policy = format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p, namespace: prod}}, \
         spec: {{endpointSelector: {{matchLabels: {{app: web}}}}, {rules}}}}}{more}"
    );
    Scene::new(CLUSTER, &policy).check(table);
}

/// "These exceptions are only applied to the Cidr in this CIDRRule, and do not apply to any other CIDR prefixes in
/// any other CIDRRules."
#[test]
fn exceptions_are_of_their_own_prefix() {
    web(
        "egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}, {cidr: 10.96.5.0/24}]}]",
        "",
        "web -> ip:10.96.5.9,ip:10.200.0.1 443/TCP allowed
         web -> ip:10.97.0.1,ip:10.96.4.255 443/TCP denied",
    );
    web(
        "egress: [{toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.96.0.0/12]}]}, \
         {toCIDR: [10.97.0.0/16], toPorts: [{ports: [{port: '443'}]}]}]",
        "",
        "web -> ip:10.97.0.1 443/TCP allowed
         web -> ip:10.97.0.1,ip:10.98.0.1 80/TCP denied
         web -> ip:10.2.0.1 80/TCP allowed",
    );
    web(
        "egress: [{toEntities: [all]}], egressDeny: [{toCIDRSet: [{cidr: 8.0.0.0/8, except: [8.8.8.8/32]}]}]",
        "",
        "web -> ip:8.8.8.8,ip:9.9.9.9,db,client 53/UDP allowed
         web -> ip:8.8.4.4 53/UDP denied",
    );
}

/// "Only connections destined for outside of the cluster and not targeting the host will be subject to CIDR rules."
#[test]
fn prefixes_are_outside_of_the_cluster() {
    web(
        "egress: [{toEntities: [all]}], egressDeny: [{toCIDR: [0.0.0.0/0]}]",
        "",
        "web -> ip:8.8.8.8,entity:world 53/UDP denied
         web -> db,client,entity:host,entity:remote-node,ip:2001:db8::1 53/UDP allowed",
    );
    web(
        "egress: [{toCIDR: [10.0.0.0/8, 192.168.0.0/16]}]",
        "",
        "web -> ip:10.9.9.9 80/TCP allowed
         web -> db,client,entity:remote-node,entity:host 80/TCP denied",
    );
}

#[test]
fn what_denies_by_service_node_or_group() {
    web(
        "egress: [{toEntities: [all]}], egressDeny: [{toServices: [{k8sServiceSelector: {selector: {matchExpressions: [\
         {key: kind, operator: Exists}]}, namespace: prod}}]}]",
        "",
        "web -> db,ip:203.0.113.7 5432/TCP denied
         web -> client,ip:203.0.113.8 5432/TCP allowed",
    );
    web(
        "ingress: [{fromEntities: [all]}], ingressDeny: [{fromNodes: [{matchLabels: {zone: b}}]}, \
         {fromCIDRSet: [{cidrGroupRef: partners, except: [198.51.100.128/25]}]}]",
        "",
        "node:n2,ip:198.51.100.1 -> web 80/TCP denied
         node:n1,db,client,ip:198.51.100.200,entity:world -> web 80/TCP allowed",
    );
    web(
        "ingress: [{fromEntities: [all]}], ingressDeny: [{toPorts: [{ports: [{port: http}]}]}]",
        "",
        "db -> web 8080/TCP denied
         db -> web 8081/TCP,8080/UDP allowed",
    );
}

/// "The effects of policies are combined": allowed by any, whichever API it is of, and as authenticated as the
/// most specific says.
#[test]
fn policies_of_both_apis() {
    let np = "\n---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np, namespace: prod}, \
              spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}}";
    web(
        "ingress: [{fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': dev}}]}]",
        np,
        "db,client -> web 80/TCP allowed\n entity:world -> web 80/TCP denied",
    );
    web(
        "ingress: [{fromEndpoints: [{matchLabels: {app: db}}], authentication: {mode: required}}]",
        np,
        "db -> web 80/TCP required\n client -> web 80/TCP denied",
    );
    let clusterwide = "\n---\n{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: c}, \
                       spec: {endpointSelector: {}, ingress: [{fromEntities: [cluster], authentication: {mode: required}}]}}";
    web(
        "ingress: [{fromEndpoints: [{}]}]",
        clusterwide,
        "db,client -> web 80/TCP required
         client -> db 80/TCP required
         entity:world -> web,db 80/TCP denied",
    );
    web(
        "ingressDeny: [{fromEndpoints: [{matchLabels: {app: db}}]}]",
        &format!("{np}{clusterwide}"),
        "db -> web 80/TCP denied
         client -> web 80/TCP required",
    );
}

/// "If multiple policies apply to an endpoint, that endpoint's default deny will be enabled if any policy requests
/// it", and one may without a rule.
#[test]
fn default_deny_by_request() {
    web(
        "enableDefaultDeny: {ingress: true, egress: true}",
        "",
        "db,client,entity:world -> web 80/TCP denied
         entity:host -> web 80/TCP allowed
         web -> db,entity:world 80/TCP denied",
    );
    web(
        "enableDefaultDeny: {egress: true}, ingress: [{fromEntities: [all]}]",
        "",
        "db,entity:world -> web 80/TCP allowed\n web -> db,entity:world 80/TCP denied",
    );
    web(
        "enableDefaultDeny: {ingress: false}, ingressDeny: [{toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]",
        "",
        "db,entity:world -> web 53/UDP denied\n db,entity:world -> web 53/TCP,80/TCP allowed",
    );
}
