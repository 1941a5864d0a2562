//! Kubernetes' documentation, "Network Policies" and "Declare Network Policy".

use crate::scene::Scene;

fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
         metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{spec}}}}}"
    )
}

const PODS: &str = "
    default: kubernetes.io/x=y
    mine: project=myproject
    others: project=other
    default/db role=db ip:10.1.0.1
    default/front role=frontend ip:10.1.0.2
    default/back role=backend ip:10.1.0.3
    mine/client role=client ip:10.2.0.1
    others/front2 role=frontend ip:10.3.0.1
    others/inside role=x ip:10.0.0.9";

#[test]
fn the_resource() {
    let spec = "podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress, Egress], ingress: [{from: [\
                {ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}}, \
                {namespaceSelector: {matchLabels: {project: myproject}}}, \
                {podSelector: {matchLabels: {role: frontend}}}], ports: [{protocol: TCP, port: 6379}]}], \
                egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{protocol: TCP, port: 5978}]}]";
    Scene::new(PODS, &policy("test-network-policy", "default", spec)).check(
        "front,client -> db 6379/TCP allowed
         ip:172.17.0.0,ip:172.17.0.255,ip:172.17.2.0,ip:172.17.255.255 -> db 6379/TCP allowed
         ip:172.17.1.0,ip:172.17.1.255,ip:172.18.0.1,entity:world -> db 6379/TCP denied
         back,front2 -> db 6379/TCP denied
         front,client,ip:172.17.0.1 -> db 80/TCP,6379/UDP denied
         db -> ip:10.0.0.1,inside 5978/TCP allowed
         db -> ip:10.0.0.1 5979/TCP,5978/UDP denied
         db -> ip:10.0.1.1,front,client,entity:world 5978/TCP denied
         front,entity:world -> back 80/TCP allowed",
    );
}

#[test]
fn one_element_or_two() {
    let pods = "
        alice: user=alice
        bob: user=bob
        default/server app=server
        default/client role=client
        default/other role=other
        alice/client2 role=client
        alice/other2 role=other
        bob/client3 role=client";
    let both = "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {user: alice}}, \
                podSelector: {matchLabels: {role: client}}}]}]";
    Scene::new(pods, &policy("p", "default", both)).check(
        "client2 -> server 80/TCP allowed
         client,other,other2,client3,entity:world -> server 80/TCP denied",
    );
    let either = "podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {user: alice}}}, \
                  {podSelector: {matchLabels: {role: client}}}]}]";
    Scene::new(pods, &policy("p", "default", either)).check(
        "client,client2,other2 -> server 80/TCP allowed
         other,client3,entity:world -> server 80/TCP denied",
    );
}

#[test]
fn default_policies() {
    let check = |spec: &str, table: &str| Scene::new(PODS, &policy("p", "default", spec)).check(table);
    let closed = "front,client,entity:world,ip:192.0.2.1 -> db 80/TCP,53/UDP,80/SCTP denied";
    let open = "front,client,entity:world,ip:192.0.2.1 -> db 80/TCP,53/UDP,80/SCTP allowed";
    let shut_in = "db -> front,client,entity:world,ip:192.0.2.1 80/TCP,53/UDP denied";
    let free = "db -> client,entity:world,ip:192.0.2.1 80/TCP,53/UDP allowed";
    // Deny all ingress.
    check("podSelector: {}, policyTypes: [Ingress]", &format!("{closed}\n{free}"));
    // Allow all ingress.
    check("podSelector: {}, ingress: [{}], policyTypes: [Ingress]", &format!("{open}\n{free}"));
    // Deny all egress.
    check(
        "podSelector: {}, policyTypes: [Egress]",
        &format!("client,entity:world -> db 80/TCP allowed\n{shut_in}"),
    );
    // Allow all egress.
    check("podSelector: {}, egress: [{}], policyTypes: [Egress]", &format!("{open}\n{free}"));
    // Deny all of both.
    check("podSelector: {}, policyTypes: [Ingress, Egress]", &format!("{closed}\n{shut_in}"));
    // Allow all egress, deny all ingress.
    check("podSelector: {}, egress: [{}], policyTypes: [Ingress, Egress]", &format!("{closed}\n{free}"));
}

#[test]
fn policies_add_up() {
    let deny = policy("deny", "default", "podSelector: {}, policyTypes: [Ingress]");
    let one = policy(
        "one",
        "default",
        "podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}]}]",
    );
    let two = policy(
        "two",
        "default",
        "podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: backend}}}]}]",
    );
    Scene::new(PODS, &format!("{deny}\n---\n{one}\n---\n{two}")).check(
        "front,back -> db 80/TCP allowed
         client,entity:world -> db 80/TCP denied
         front,db -> back 80/TCP denied",
    );
}

#[test]
fn range_of_ports() {
    let spec = "podSelector: {matchLabels: {role: db}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], \
                ports: [{protocol: TCP, port: 32000, endPort: 32768}]}]";
    Scene::new(PODS, &policy("multi-port-egress", "default", spec)).check(
        "db -> ip:10.0.0.1,inside 32000/TCP,32500/TCP,32768/TCP allowed
         db -> ip:10.0.0.1 31999/TCP,32769/TCP,32500/UDP denied
         db -> ip:10.0.1.1,front 32500/TCP denied",
    );
}

#[test]
fn several_namespaces_by_label_or_name() {
    let spec = "podSelector: {matchLabels: {role: db}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: \
                {matchExpressions: [{key: KEY, operator: In, values: [VALUES]}]}}]}]";
    let of = |key: &str, values: &str| {
        Scene::new(PODS, &policy("p", "default", &spec.replace("KEY", key).replace("VALUES", values)))
    };
    of("project", "myproject, other").check(
        "db -> client,front2,inside 80/TCP allowed
         db -> front,entity:world 80/TCP denied",
    );
    of("kubernetes.io/metadata.name", "mine").check(
        "db -> client 80/TCP allowed
         db -> front2,inside,front 80/TCP denied",
    );
}

#[test]
fn sctp() {
    let spec = "podSelector: {}, ingress: [{ports: [{protocol: SCTP, port: 7777}]}]";
    Scene::new(PODS, &policy("p", "default", spec)).check(
        "front,entity:world -> db 7777/SCTP allowed
         front,entity:world -> db 7777/TCP,7777/UDP,7778/SCTP denied",
    );
}

/// "Declare Network Policy": access to nginx for pods with a label.
#[test]
fn access_to_nginx() {
    let pods = "default/nginx app=nginx\n default/busybox run=busybox\n default/friend access=true\n other/stranger access=true";
    let spec = "podSelector: {matchLabels: {app: nginx}}, ingress: [{from: [{podSelector: {matchLabels: {access: 'true'}}}]}]";
    let expected = "friend -> nginx 80/TCP allowed
                    busybox,stranger,entity:world -> nginx 80/TCP denied";
    Scene::new(pods, &policy("access-nginx", "default", spec)).check(expected);
    // The same by a recommended label, which stays among those of an identity.
    let recommended = |text: &str| text.replace("app: nginx", "app.kubernetes.io/name: nginx");
    let pods = pods.replace("app=nginx", "app.kubernetes.io/name=nginx");
    Scene::new(&pods, &policy("access-nginx", "default", &recommended(spec))).check(expected);
}

/// "If no `policyTypes` are specified on a NetworkPolicy then by default `Ingress` will always be set and `Egress` will be
/// set if the NetworkPolicy has any egress rules."
#[test]
fn types_by_default() {
    let of = |rules: &str| {
        Scene::new(
            PODS,
            &policy("p", "default", &format!("podSelector: {{matchLabels: {{role: db}}}}{rules}")),
        )
    };
    of("").check("front -> db 80/TCP denied\n db -> front,entity:world 80/TCP allowed");
    of(", egress: [{to: [{podSelector: {matchLabels: {role: backend}}}]}]").check(
        "front,back -> db 80/TCP denied
         db -> back 80/TCP allowed
         db -> front,entity:world 80/TCP denied",
    );
}

/// "With this policy in place, no additional policy or policies can cause any incoming connection to those pods to be
/// denied", of this API's.
#[test]
fn what_is_open_stays_open() {
    let open = policy("open", "default", "podSelector: {}, ingress: [{}], policyTypes: [Ingress]");
    let shut = policy("shut", "default", "podSelector: {}, policyTypes: [Ingress, Egress]");
    Scene::new(PODS, &format!("{open}\n---\n{shut}"))
        .check("client,entity:world -> db 80/TCP allowed\n db -> client,entity:world 80/TCP denied");
}

/// "Since `hostNetwork` pods have the same IP addresses as the nodes they reside on, their connections will be treated as
/// node connections. For example, you can allow traffic from a `hostNetwork` Pod using an `ipBlock` rule."
#[test]
fn pods_on_the_network_of_their_node() {
    let cluster = "
        default/db role=db ip:10.1.0.1
        default/front role=frontend ip:10.1.0.2
        node n1 role=client ip:192.0.2.1
        node n2 role=client ip:192.0.2.2";
    let from = |peer: &str| {
        let spec = format!("podSelector: {{matchLabels: {{role: db}}}}, ingress: [{{from: [{{{peer}}}]}}]");
        Scene::new(cluster, &policy("p", "default", &spec))
    };
    from("ipBlock: {cidr: 192.0.2.1/32}").check(
        "node:n1 -> db 80/TCP allowed
         node:n2,front,ip:192.0.2.3 -> db 80/TCP denied",
    );
    from("podSelector: {matchLabels: {role: client}}").check("node:n1,node:n2,front -> db 80/TCP denied");
}
