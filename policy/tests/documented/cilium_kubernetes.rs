//! Cilium's documentation, "Using Kubernetes Constructs in Policy".

use crate::scene::Scene;

fn cnp(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, \
         metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{spec}}}}}"
    )
}

fn ccnp(spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, description: why, \
         metadata: {{name: c}}, spec: {{{spec}}}}}"
    )
}

const PODS: &str = "
    ns1: faction=alliance
    ns2: faction=alliance
    ns3: faction=empire
    ns1/leia name=leia sa:leia
    ns1/leia2 name=leia2 sa:luke
    ns2/luke name=luke sa:luke
    ns2/han name=han
    ns3/vader name=luke sa:luke
    kube-system/dns k8s-app=kube-dns
    kube-system/proxy k8s-app=kube-proxy
    public/web app=web
    public/dns2 k8s-app=kube-dns";

#[test]
fn namespace_boundaries() {
    let spec = "endpointSelector: {matchLabels: {}}, ingress: [{fromEndpoints: [{matchLabels: {}}]}]";
    let policies = format!("{}\n---\n{}", cnp("isolate-ns1", "ns1", spec), cnp("isolate-ns1", "ns2", spec));
    Scene::new(PODS, &policies).check(
        "leia -> leia2 80/TCP allowed
         luke -> han 80/TCP allowed
         luke,han,vader,web,entity:world -> leia 80/TCP denied
         leia,vader,web,entity:world -> luke 80/TCP denied
         leia,luke,entity:world -> vader,web 80/TCP allowed",
    );
}

#[test]
fn pods_across_namespaces() {
    let policy = cnp(
        "expose",
        "ns1",
        "endpointSelector: {matchLabels: {name: leia}}, ingress: [{fromEndpoints: [\
         {matchLabels: {k8s:io.kubernetes.pod.namespace: ns2, name: luke}}]}]",
    );
    Scene::new(PODS, &policy).check(
        "luke -> leia 80/TCP allowed
         han,vader,leia2,entity:world -> leia 80/TCP denied
         vader -> leia2 80/TCP allowed",
    );
}

#[test]
fn egress_to_kube_dns() {
    let policy = cnp(
        "dns",
        "public",
        "endpointSelector: {}, egress: [{toEndpoints: [{matchLabels: {\
         'k8s:io.kubernetes.pod.namespace': kube-system, k8s-app: kube-dns}}], \
         toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]",
    );
    Scene::new(PODS, &policy).check(
        "web -> dns 53/UDP allowed
         web -> dns 53/TCP,54/UDP denied
         web -> dns2,proxy,leia,entity:world 53/UDP denied
         leia -> dns 53/TCP allowed",
    );
}

#[test]
fn labels_of_namespaces() {
    let policy = cnp(
        "alliance-only",
        "ns1",
        "endpointSelector: {matchLabels: {name: leia}}, \
         ingress: [{fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.faction: alliance}}]}], \
         egress: [{toEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.faction: alliance}}]}]",
    );
    Scene::new(PODS, &policy).check(
        "leia2,luke,han -> leia 80/TCP allowed
         leia -> leia2,luke,han 80/TCP allowed
         vader,web,dns -> leia 80/TCP denied
         leia -> vader,web,entity:world 80/TCP denied",
    );
    let everywhere = ccnp(
        "endpointSelector: {matchLabels: {'k8s:io.cilium.k8s.namespace.labels.faction': alliance}}, \
         ingress: [{fromEndpoints: [{matchExpressions: [\
         {key: 'k8s:io.cilium.k8s.namespace.labels.faction', operator: NotIn, values: [empire]}]}]}]",
    );
    Scene::new(PODS, &everywhere).check(
        "luke,web,dns -> leia 80/TCP allowed
         vader,entity:world,entity:remote-node -> leia,luke 80/TCP denied
         leia,entity:world -> vader,web 80/TCP allowed",
    );
}

#[test]
fn service_accounts() {
    let policy = cnp(
        "svc-account",
        "ns1",
        "endpointSelector: {matchLabels: {io.cilium.k8s.policy.serviceaccount: leia}}, \
         ingress: [{fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: luke}}], \
         toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]",
    );
    Scene::new(PODS, &policy).check(
        "leia2 -> leia 80/TCP allowed
         leia2 -> leia 81/TCP denied
         luke,vader,han -> leia 80/TCP denied",
    );
}

#[test]
fn clusters() {
    // The cluster of these pods is `default`.
    let to = |cluster: &str| {
        cnp(
            "cross",
            "ns2",
            &format!(
                "endpointSelector: {{matchLabels: {{name: luke, io.cilium.k8s.policy.cluster: default}}}}, \
                 egress: [{{toEndpoints: [{{matchExpressions: [\
                 {{key: 'k8s:io.kubernetes.pod.namespace', operator: Exists}}, \
                 {{key: 'k8s:io.cilium.k8s.policy.cluster', operator: In, values: [{cluster}]}}, \
                 {{key: 'k8s:name', operator: In, values: [leia]}}]}}]}}]"
            ),
        )
    };
    Scene::new(PODS, &to("default")).check(
        "luke -> leia 80/TCP allowed
         luke -> leia2,han,entity:world 80/TCP denied",
    );
    Scene::new(PODS, &to("cluster2")).check("luke -> leia,leia2,han 80/TCP denied");
    let elsewhere = cnp(
        "cross",
        "ns2",
        "endpointSelector: {matchLabels: {name: luke, io.cilium.k8s.policy.cluster: cluster1}}, egress: [{}]",
    );
    Scene::new(PODS, &elsewhere).check("luke -> leia,entity:world 80/TCP allowed");
}

/// "Allow x-wing in cluster1 to contact rebel-base in cluster2", "regardless of the namespace in `cluster1` where `x-wing`
/// is deployed in"; "if the namespace label of policy rules is omitted it defaults to the same namespace where the policy
/// itself is applied in", or it is any namespace.
#[test]
fn from_one_cluster_to_another() {
    let pods = "
        default/x-wing name=x-wing cluster:cluster1
        fleet/x-wing1 name=x-wing cluster:cluster1
        default/x-wing2 name=x-wing cluster:cluster2
        default/near name=rebel-base cluster:cluster1
        default/far name=rebel-base cluster:cluster2
        fleet/far-in-fleet name=rebel-base cluster:cluster2
        default/further name=rebel-base cluster:cluster3
        default/other name=other cluster:cluster2";
    let policy = |namespace: &str, peers: &str| {
        let spec = format!(
            "endpointSelector: {{matchLabels: {{name: x-wing, io.cilium.k8s.policy.cluster: cluster1}}}}, \
             egress: [{{toEndpoints: [{{{peers}}}]}}]"
        );
        Scene::new(pods, &cnp("allow-cross-cluster", namespace, &spec))
    };
    let in_default = "matchLabels: {name: rebel-base, io.kubernetes.pod.namespace: default, io.cilium.k8s.policy.cluster: cluster2}";
    policy("default", in_default).check(
        "x-wing -> far 80/TCP allowed
         x-wing -> near,further,far-in-fleet,other,entity:world 80/TCP denied
         x-wing1,x-wing2 -> near,entity:world 80/TCP allowed",
    );
    policy("fleet", in_default).check(
        "x-wing1 -> far 80/TCP allowed
         x-wing1 -> far-in-fleet,near 80/TCP denied
         x-wing -> near 80/TCP allowed",
    );
    policy("fleet", "matchLabels: {name: rebel-base, io.cilium.k8s.policy.cluster: cluster2}").check(
        "x-wing1 -> far-in-fleet 80/TCP allowed
         x-wing1 -> far,near,further 80/TCP denied",
    );
    let in_any = "matchExpressions: [{key: 'k8s:io.kubernetes.pod.namespace', operator: Exists}, \
                  {key: 'k8s:io.cilium.k8s.policy.cluster', operator: In, values: [cluster2]}, \
                  {key: 'k8s:name', operator: In, values: [rebel-base]}]";
    policy("default", in_any).check(
        "x-wing -> far,far-in-fleet 80/TCP allowed
         x-wing -> near,further,other,entity:world 80/TCP denied",
    );
}

#[test]
fn clusterwide() {
    let policy = ccnp(
        "endpointSelector: {matchLabels: {name: leia}}, ingress: [{fromEndpoints: [{matchLabels: {name: luke}}]}]",
    );
    Scene::new(PODS, &policy).check(
        "luke,vader -> leia 80/TCP allowed
         han,leia2,web,entity:world -> leia 80/TCP denied
         han -> leia2 80/TCP allowed",
    );
}

/// An API server takes the namespace out of an object of the cluster.
#[test]
fn clusterwide_with_a_namespace() {
    let policy = "{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: c, namespace: ns3}, \
                  spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{}]}]}}";
    Scene::new(PODS, policy).check(
        "luke,vader -> leia,web,dns 80/TCP allowed
         entity:world -> leia,vader,web 80/TCP denied",
    );
}

#[test]
fn all_ingress_to_kube_dns() {
    // "all Cilium managed endpoints in the cluster"
    let policy = ccnp(
        "endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system, k8s-app: kube-dns}}, \
         ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]",
    );
    Scene::new(PODS, &policy).check(
        "leia,luke,vader,web,proxy -> dns 53/UDP allowed
         leia,web -> dns 53/TCP denied
         entity:world,ip:192.0.2.1,entity:remote-node -> dns 53/UDP denied
         leia,entity:world -> dns2 53/TCP allowed",
    );
}

#[test]
fn another_namespace_in_the_subject() {
    // "The endpointSelector always applies to pods in the namespace associated with the resource itself."
    let policy = cnp(
        "p",
        "ns1",
        "endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': ns2, name: leia}}, ingress: [{}]",
    );
    let scene = Scene::new(PODS, &policy);
    scene.check("han -> leia 80/TCP denied\n leia -> luke,han 80/TCP allowed");
    assert_eq!(scene.conditions(), ["ForeignNamespace spec.endpointSelector"]);
}
