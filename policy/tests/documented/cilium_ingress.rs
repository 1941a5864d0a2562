//! Cilium's documentation of its Ingress: policies for `reserved:ingress`, the proxy that stands before pods.

use crate::scene::Scene;

const CLUSTER: &str = "
    default/details app=details
    default/client app=client
    kube-system/dns k8s-app=kube-dns
    kube-system/other app=x";

fn clusterwide(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
    )
}

/// "Block all the traffic originating from outside of the cluster": the proxy is shut as well, and what comes
/// from within isn't.
fn lockdown() -> String {
    clusterwide("external-lockdown", "endpointSelector: {}, ingress: [{fromEntities: [cluster]}]")
}

#[test]
fn external_lockdown() {
    Scene::new(CLUSTER, &lockdown()).check(
        "entity:world,ip:172.18.0.1,ip:2001:db8::1 -> entity:ingress,details,dns 80/TCP,8/ICMP denied
         client,entity:ingress,entity:host,entity:remote-node,entity:health -> details 80/TCP allowed
         client,entity:remote-node -> entity:ingress 80/TCP allowed
         details -> entity:world 443/TCP allowed",
    );
}

/// "Allow all the traffic originating from a specific CIDR", beside the lockdown.
#[test]
fn allow_a_prefix() {
    for selector in [
        "matchExpressions: [{key: 'reserved:ingress', operator: Exists}]",
        "matchLabels: {'reserved:ingress': ''}",
    ] {
        let allow = clusterwide(
            "allow-cidr",
            &format!(
                "endpointSelector: {{{selector}}}, ingress: [{{fromCIDRSet: [{{cidr: 172.18.0.1/32}}]}}]"
            ),
        );
        Scene::new(CLUSTER, &format!("{}\n---\n{allow}", lockdown())).check(
            "ip:172.18.0.1 -> entity:ingress 80/TCP allowed
             ip:172.18.0.2,entity:world -> entity:ingress 80/TCP denied
             ip:172.18.0.1 -> details,client 80/TCP denied
             client -> entity:ingress,details 80/TCP allowed",
        );
    }
}

/// "With this policy applied, the request to the /details endpoint will be denied for external and in-cluster
/// traffic", since the proxy may send nowhere; then it may send into the cluster.
#[test]
fn default_deny_and_the_way_out() {
    let deny = clusterwide(
        "default-deny",
        "egress: [{toEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: kube-system, k8s-app: kube-dns}}], \
         toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}}]}], \
         endpointSelector: {matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [kube-system]}]}",
    );
    let scene = Scene::new(CLUSTER, &deny);
    scene.check(
        "entity:ingress,client -> details,entity:world 80/TCP denied
         entity:world -> entity:ingress 80/TCP allowed
         client -> entity:ingress 80/TCP denied
         other,dns -> entity:world,client 80/TCP allowed",
    );
    assert_eq!(scene.conditions(), ["Unsupported spec.egress[0].toPorts[0].rules"]);
    for key in ["ingress", "'reserved:ingress'"] {
        let allow = clusterwide(
            "allow-ingress-egress",
            &format!(
                "endpointSelector: {{matchExpressions: [{{key: {key}, operator: Exists}}]}}, egress: [{{toEntities: [cluster]}}]"
            ),
        );
        Scene::new(CLUSTER, &format!("{deny}\n---\n{allow}")).check(
            "entity:ingress -> details,client,dns 80/TCP allowed
             entity:ingress -> entity:world 80/TCP denied
             client -> details 80/TCP denied
             entity:world -> entity:ingress 80/TCP allowed",
        );
    }
}
