//! Cilium's documentation, "Host Policies" and "Host Firewall": what policies for nodes say. Nothing enforces
//! them here, which is named.

use crate::scene::Scene;

const CLUSTER: &str = "
    kube-system/dns k8s-app=kube-dns
    kube-system/metrics k8s-app=metrics-server
    kube-system/heapster k8s-app=heapster
    kube-system/glbc k8s-app=glbc
    kube-system/konnectivity k8s-app=konnectivity-agent
    default/nodeport name=pod-to-b-multi-node-nodeport
    default/nodeport2 name=pod-to-b-intra-node-nodeport
    default/echo name=echo-b
    default/app app=x
    node n1 type=worker ip:192.168.60.11
    node n2 type=egress-worker ip:192.168.60.12
    node n3 type=ingress-worker ip:192.168.60.13";

fn nodes(spec: &str) -> Scene {
    let policy = format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {{name: h}}, spec: {{{spec}}}}}"
    );
    let scene = Scene::new(CLUSTER, &policy);
    assert_eq!(scene.conditions(), ["Unsupported spec.nodeSelector"]);
    scene
}

fn ports(ports: &[&str]) -> String {
    let port = |port: &&str| {
        let (number, protocol) = port.split_once('/').unwrap_or_default();
        format!("{{port: '{number}', protocol: {protocol}}}")
    };
    let ports: Vec<String> = ports.iter().map(port).collect();
    format!("toPorts: [{{ports: [{}]}}]", ports.join(", "))
}

/// "Allows ingress traffic for any node with the label on TCP ports 22, 6443, 2379 and 4240, as well as UDP port
/// 8472"; a newer form lets in other nodes and health checks wholly.
#[test]
fn lock_down_ingress() {
    let open = ports(&["6443/TCP", "22/TCP", "2379/TCP", "4240/TCP", "8472/UDP"]);
    nodes(&format!("nodeSelector: {{matchLabels: {{type: worker}}}}, ingress: [{{{open}}}]")).check(
        "app,entity:world,node:n2,entity:health -> node:n1 22/TCP,6443/TCP,2379/TCP,4240/TCP,8472/UDP allowed
         app,entity:world,node:n2 -> node:n1 80/TCP,22/UDP,8472/TCP,8/ICMP denied
         entity:world -> node:n2 80/TCP allowed
         node:n1 -> entity:world,app 80/TCP allowed
         entity:world,app -> dns 80/TCP allowed",
    );
    nodes(&format!(
        "nodeSelector: {{matchLabels: {{type: ingress-worker}}}}, ingress: [{{fromEntities: [remote-node, health]}}, {{{open}}}]"
    ))
    .check(
        "node:n2,entity:health,entity:kube-apiserver -> node:n3 80/TCP,22/UDP,8/ICMP allowed
         app,entity:world -> node:n3 22/TCP,6443/TCP,2379/TCP,4240/TCP,8472/UDP allowed
         app,entity:world -> node:n3 80/TCP,22/UDP,8472/TCP,8/ICMP denied
         entity:world -> node:n1,node:n2 80/TCP allowed",
    );
}

/// "Allows egress traffic ... and traffic with VRRP protocol."
#[test]
fn extended_protocols() {
    let numbers = ["6443/TCP", "443/TCP", "2379/TCP", "4240/TCP", "8472/UDP"];
    let out = ports(&numbers).replace("}]}]", "}, {protocol: VRRP}]}]");
    nodes(&format!("nodeSelector: {{matchLabels: {{type: egress-worker}}}}, egress: [{{{out}}}]")).check(
        "node:n2 -> entity:world,app,node:n1 6443/TCP,443/TCP,2379/TCP,4240/TCP,8472/UDP,0/VRRP allowed
         node:n2 -> entity:world,app 80/TCP,443/UDP,0/IGMP,0/GRE,8/ICMP denied
         node:n1 -> entity:world 80/TCP,0/GRE allowed
         entity:world -> node:n2 80/TCP allowed",
    );
}

/// "Allow ports for kube-dns, kube-api, Cilium, and SSH, as well as queries to Google's DNS on UDP/53 only."
#[test]
fn queries_to_one_server_only() {
    let spec = format!(
        "nodeSelector: {{matchLabels: {{}}}}, ingress: [{{{}}}], egress: [{{{}}}, {{toCIDR: [8.8.0.0/16], {}}}]",
        ports(&["6443/TCP", "22/TCP"]),
        ports(&["4240/TCP", "8080/TCP"]),
        ports(&["53/UDP"]),
    );
    nodes(&spec).check(
        "app,entity:world -> node:n1 6443/TCP,22/TCP allowed
         app,entity:world -> node:n1,node:n2 80/TCP,53/UDP denied
         node:n1 -> ip:8.8.8.8,ip:8.8.4.4 53/UDP allowed
         node:n1 -> ip:8.8.8.8 53/TCP denied
         node:n1 -> ip:9.9.9.9,dns 53/UDP denied
         node:n1,node:n2 -> app,entity:world 4240/TCP,8080/TCP allowed",
    );
}

/// The lock-down of the development VMs, by the comments in it. Other nodes are meant by their entity, by a prefix, or by
/// both: "for when remote-node identities are disabled", which they never are here.
fn development_machines(nodes_by_entity: bool, net: Option<&str>, port_of_a_service: &str) -> Scene {
    let direction = |prefix: &str| {
        let with_nodes = |others: &str, ports: &str| {
            let entity = if nodes_by_entity { "remote-node" } else { "" };
            let names: Vec<&str> = [entity, others].into_iter().filter(|name| !name.is_empty()).collect();
            let mut rules = Vec::new();
            if !names.is_empty() {
                rules.push(format!("{{{prefix}Entities: [{}]{ports}}}", names.join(", ")));
            }
            rules.extend(net.map(|net| format!("{{{prefix}CIDR: [{net}]{ports}}}")));
            rules.join(", ")
        };
        let of_nodes = ports(&["8472/UDP", "2379/TCP", "2380/TCP", "6443/TCP"]);
        [
            with_nodes("health", ""),
            with_nodes("", &format!(", {of_nodes}")),
            with_nodes("health", &format!(", {}", ports(&["4240/TCP"]))),
        ]
        .join(", ")
    };
    let pods = |prefix: &str, selector: &str, numbers: &[&str]| {
        format!("{{{prefix}Endpoints: [{{matchLabels: {{{selector}}}}}], {}}}", ports(numbers))
    };
    let dns = "'k8s:io.kubernetes.pod.namespace': kube-system, k8s-app: kube-dns";
    let services = ["name: pod-to-b-intra-node-nodeport", "name: pod-to-b-multi-node-nodeport"]
        .map(|selector| pods("from", selector, &[port_of_a_service]))
        .join(", ");
    nodes(&format!(
        "nodeSelector: {{}}, ingress: [{}, {{fromEntities: [world], {}}}, {}, {services}], \
         egress: [{}, {}, {{toEntities: [world], {}}}, {{toCIDR: [8.8.8.8/32, 8.8.4.4/32], {}}}, {}]",
        direction("from"),
        ports(&["22/TCP"]),
        pods("from", dns, &["6443/TCP"]),
        direction("to"),
        pods("to", dns, &["8080/TCP", "8181/TCP", "53/UDP"]),
        ports(&["123/UDP"]),
        ports(&["53/UDP"]),
        pods("to", "name: echo-b", &["8080/TCP"]),
    ))
}

#[test]
fn lock_down_development_machines() {
    for (by_entity, net) in [(true, None), (true, Some("192.168.33.0/24")), (false, Some("192.168.60.0/24"))]
    {
        let scene = development_machines(by_entity, net, "31414/TCP");
        scene.check(
            "entity:health -> node:n1 4240/TCP,80/TCP,8/ICMP allowed
             entity:world -> node:n1,node:n2 22/TCP allowed
             entity:world -> node:n1 6443/TCP,80/TCP,4240/TCP,8/ICMP denied
             dns -> node:n1 6443/TCP allowed
             dns,app,metrics -> node:n1 22/TCP denied
             app,metrics -> node:n1 6443/TCP,4240/TCP denied
             nodeport,nodeport2 -> node:n1 31414/TCP allowed
             app -> node:n1 31414/TCP denied
             node:n1 -> entity:health 80/TCP,4240/TCP allowed
             node:n1 -> dns 53/UDP,8080/TCP,8181/TCP allowed
             node:n1 -> dns 53/TCP denied
             node:n1 -> entity:world 123/UDP allowed
             node:n1 -> entity:world 443/TCP,123/TCP,53/UDP denied
             node:n1 -> ip:8.8.8.8,ip:8.8.4.4 53/UDP allowed
             node:n1 -> ip:8.8.8.8 53/TCP denied
             node:n1 -> echo 8080/TCP allowed
             node:n1 -> app,nodeport 8080/TCP denied
             app -> dns,echo,entity:world 80/TCP allowed",
        );
        // A prefix never means nodes, even if it has their addresses.
        let verdict = if by_entity { "allowed" } else { "denied" };
        scene.check(&format!(
            "node:n2 -> node:n1 8472/UDP,2379/TCP,6443/TCP,4240/TCP,8/ICMP,80/TCP {verdict}
             entity:kube-apiserver -> node:n1 6443/TCP {verdict}
             node:n1 -> node:n2 80/TCP,8472/UDP {verdict}"
        ));
        if let Some(net) = net {
            let address = net.replace("0/24", "7");
            scene.check(&format!(
                "ip:{address} -> node:n1 6443/TCP,80/TCP,8/ICMP allowed
                 node:n1 -> ip:{address} 80/TCP allowed"
            ));
        }
        scene.check("ip:192.168.61.7 -> node:n1 6443/TCP denied\n node:n1 -> ip:192.168.61.7 80/TCP denied");
    }
    development_machines(true, None, "31313/TCP").check("nodeport,nodeport2 -> node:n1 31313/TCP allowed");
}

/// The lock-down of nodes in GKE: other nodes, monitoring by pods, the metadata server and Google's API.
#[test]
fn lock_down_a_cloud() {
    let pods = |prefix: &str, app: &str, numbers: &[&str]| {
        format!(
            "{{{prefix}Endpoints: [{{matchLabels: {{'k8s:io.kubernetes.pod.namespace': kube-system, k8s-app: {app}}}}}], {}}}",
            ports(numbers)
        )
    };
    let named = |prefix: &str, name: &str, number: &str| {
        format!("{{{prefix}Endpoints: [{{matchLabels: {{name: {name}}}}}], {}}}", ports(&[number]))
    };
    let entities = |prefix: &str, names: &str, numbers: &[&str]| {
        format!("{{{prefix}Entities: [{names}], {}}}", ports(numbers))
    };
    let ingress = [
        "{fromEntities: [remote-node, health]}".to_owned(),
        entities("from", "world", &["22/TCP", "3389/TCP"]),
        entities("from", "remote-node", &["8472/UDP", "2379/TCP", "2380/TCP", "10250/TCP"]),
        pods("from", "metrics-server", &["10255/TCP"]),
        entities("from", "remote-node, health", &["4240/TCP"]),
        pods("from", "heapster", &["10255/TCP"]),
        named("from", "pod-to-b-intra-node-nodeport", "31313/TCP"),
        named("from", "pod-to-b-multi-node-nodeport", "31313/TCP"),
    ];
    let egress = [
        "{toEntities: [remote-node, health]}".to_owned(),
        entities("to", "world", &["443/TCP"]),
        format!("{{toCIDR: [169.254.169.254/32], {}}}", ports(&["53/UDP", "80/TCP", "123/UDP", "67/UDP"])),
        pods("to", "glbc", &["8080/TCP"]),
        pods("to", "konnectivity-agent", &["8093/TCP"]),
        pods("to", "kube-dns", &["8080/TCP", "53/UDP", "10054/TCP", "10055/TCP", "8081/TCP"]),
        pods("to", "metrics-server", &["443/TCP"]),
        pods("to", "heapster", &["8082/TCP"]),
        entities("to", "remote-node", &["8472/UDP", "2379/TCP", "2380/TCP", "6443/TCP", "10250/TCP"]),
        entities("to", "remote-node, health", &["4240/TCP"]),
        named("to", "echo-b", "8080/TCP"),
    ];
    nodes(&format!(
        "nodeSelector: {{matchLabels: {{type: worker}}}}, ingress: [{}], egress: [{}]",
        ingress.join(", "),
        egress.join(", ")
    ))
    .check(
        "node:n2,entity:health -> node:n1 10250/TCP,4240/TCP,80/TCP,8/ICMP allowed
         metrics,heapster -> node:n1 10255/TCP allowed
         dns,app,entity:world -> node:n1 10255/TCP,10250/TCP denied
         entity:world -> node:n1 22/TCP,3389/TCP allowed
         metrics -> node:n1 22/TCP denied
         nodeport,nodeport2 -> node:n1 31313/TCP allowed
         nodeport -> node:n1 31414/TCP denied
         node:n1 -> node:n2,entity:health,entity:kube-apiserver 6443/TCP,80/TCP allowed
         node:n1 -> entity:world,ip:192.0.2.1 443/TCP allowed
         node:n1 -> entity:world 80/TCP denied
         node:n1 -> ip:169.254.169.254 80/TCP,53/UDP,67/UDP,123/UDP,443/TCP allowed
         node:n1 -> ip:169.254.169.254 81/TCP denied
         node:n1 -> ip:169.254.169.253 80/TCP denied
         node:n1 -> glbc 8080/TCP allowed
         node:n1 -> konnectivity 8093/TCP allowed
         node:n1 -> konnectivity 8080/TCP denied
         node:n1 -> dns 8080/TCP,53/UDP,10054/TCP,10055/TCP,8081/TCP allowed
         node:n1 -> dns 53/TCP denied
         node:n1 -> metrics 443/TCP allowed
         node:n1 -> heapster 8082/TCP allowed
         node:n1 -> metrics,app 8082/TCP denied
         node:n1 -> echo 8080/TCP allowed
         app -> node:n2 10255/TCP allowed",
    );
}
