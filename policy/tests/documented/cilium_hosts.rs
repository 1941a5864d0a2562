//! Cilium's documentation, "Host Policies" and "Host Firewall": what policies for nodes say. Nothing enforces
//! them here, which is named.

use crate::scene::Scene;

const CLUSTER: &str = "
    kube-system/dns k8s-app=kube-dns
    kube-system/metrics k8s-app=metrics-server
    kube-system/heapster k8s-app=heapster
    kube-system/glbc k8s-app=glbc
    default/nodeport name=pod-to-b-multi-node-nodeport
    default/echo name=echo-b
    default/app app=x
    node n1 type=worker
    node n2 type=egress-worker";

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
/// 8472."
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
}

/// "Allows egress traffic ... and traffic with VRRP protocol."
#[test]
fn extended_protocols() {
    let out = "toPorts: [{ports: [{port: '6443', protocol: TCP}, {port: '8472', protocol: UDP}, {protocol: VRRP}]}]";
    nodes(&format!("nodeSelector: {{matchLabels: {{type: egress-worker}}}}, egress: [{{{out}}}]")).check(
        "node:n2 -> entity:world,app,node:n1 6443/TCP,8472/UDP,0/VRRP allowed
         node:n2 -> entity:world,app 443/TCP,0/IGMP,0/GRE,8/ICMP denied
         node:n1 -> entity:world 443/TCP,0/GRE allowed
         entity:world -> node:n2 443/TCP allowed",
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

/// The lock-down of the development VMs, by the comments in it.
#[test]
fn lock_down_development_machines() {
    let ingress = [
        "fromEntities: [remote-node, health]".to_owned(),
        format!("fromEntities: [world], {}", ports(&["22/TCP"])),
        format!("fromEntities: [remote-node], {}", ports(&["8472/UDP", "2379/TCP", "2380/TCP", "6443/TCP"])),
        format!(
            "fromEndpoints: [{{matchLabels: {{'k8s:io.kubernetes.pod.namespace': kube-system, k8s-app: kube-dns}}}}], {}",
            ports(&["6443/TCP"])
        ),
        format!(
            "fromEndpoints: [{{matchLabels: {{name: pod-to-b-multi-node-nodeport}}}}], {}",
            ports(&["31414/TCP"])
        ),
    ];
    let egress = [
        "toEntities: [remote-node, health]".to_owned(),
        format!(
            "toEndpoints: [{{matchLabels: {{'k8s:io.kubernetes.pod.namespace': kube-system, k8s-app: kube-dns}}}}], {}",
            ports(&["8080/TCP", "8181/TCP", "53/UDP"])
        ),
        format!("toEntities: [world], {}", ports(&["123/UDP"])),
        format!("toCIDR: [8.8.8.8/32, 8.8.4.4/32], {}", ports(&["53/UDP"])),
        format!("toEndpoints: [{{matchLabels: {{name: echo-b}}}}], {}", ports(&["8080/TCP"])),
    ];
    let list =
        |rules: &[String]| rules.iter().map(|rule| format!("{{{rule}}}")).collect::<Vec<_>>().join(", ");
    nodes(&format!("nodeSelector: {{}}, ingress: [{}], egress: [{}]", list(&ingress), list(&egress))).check(
        "node:n2,entity:health,entity:kube-apiserver -> node:n1 8472/UDP,2379/TCP,6443/TCP,4240/TCP,8/ICMP,80/TCP allowed
         entity:world -> node:n1,node:n2 22/TCP allowed
         entity:world -> node:n1 6443/TCP,80/TCP,8/ICMP denied
         dns -> node:n1 6443/TCP allowed
         dns,app,metrics -> node:n1 22/TCP denied
         app,metrics -> node:n1 6443/TCP denied
         nodeport -> node:n1 31414/TCP allowed
         app -> node:n1 31414/TCP denied
         node:n1 -> node:n2,entity:health 80/TCP,8472/UDP allowed
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
}

/// Some of the lock-down of nodes in GKE: monitoring by pods, the metadata server and Google's API.
#[test]
fn lock_down_a_cloud() {
    let of = |app: &str| {
        format!("[{{matchLabels: {{'k8s:io.kubernetes.pod.namespace': kube-system, k8s-app: {app}}}}}]")
    };
    let spec = format!(
        "nodeSelector: {{matchLabels: {{type: worker}}}}, \
         ingress: [{{fromEntities: [world], {}}}, {{fromEndpoints: {}, {}}}, {{fromEndpoints: {}, {}}}], \
         egress: [{{toEntities: [world], {}}}, {{toCIDR: [169.254.169.254/32], {}}}, {{toEndpoints: {}, {}}}]",
        ports(&["22/TCP", "3389/TCP"]),
        of("metrics-server"),
        ports(&["10255/TCP"]),
        of("heapster"),
        ports(&["10255/TCP"]),
        ports(&["443/TCP"]),
        ports(&["53/UDP", "80/TCP", "123/UDP", "67/UDP"]),
        of("glbc"),
        ports(&["8080/TCP"]),
    );
    nodes(&spec).check(
        "metrics,heapster -> node:n1 10255/TCP allowed
         dns,app,entity:world,node:n2 -> node:n1 10255/TCP denied
         entity:world -> node:n1 22/TCP,3389/TCP allowed
         metrics -> node:n1 22/TCP denied
         node:n1 -> entity:world,ip:192.0.2.1 443/TCP allowed
         node:n1 -> ip:169.254.169.254 80/TCP,53/UDP,67/UDP allowed
         node:n1 -> ip:169.254.169.253 80/TCP denied
         node:n1 -> glbc 8080/TCP allowed
         node:n1 -> dns 8080/TCP denied
         app -> node:n2 10255/TCP allowed",
    );
}

/// The same lock-down for nodes by their addresses: a prefix never means nodes, so that it says nothing of them.
#[test]
fn lock_down_by_prefix() {
    let rules = |prefix: &str| {
        format!(
            "{{{prefix}Entities: [health]}}, {{{prefix}CIDR: [192.168.60.0/24]}}, {{{prefix}CIDR: [192.168.60.0/24], {}}}",
            ports(&["8472/UDP", "2379/TCP", "6443/TCP"])
        )
    };
    nodes(&format!(
        "nodeSelector: {{}}, ingress: [{}, {{fromEntities: [world], {}}}], egress: [{}, {{toCIDR: [8.8.8.8/32], {}}}]",
        rules("from"),
        ports(&["22/TCP"]),
        rules("to"),
        ports(&["53/UDP"])
    ))
    .check(
        "ip:192.168.60.7,entity:health -> node:n1 6443/TCP,80/TCP,8/ICMP allowed
         node:n2 -> node:n1 6443/TCP denied
         entity:world,ip:192.168.61.7 -> node:n1 22/TCP allowed
         entity:world,ip:192.168.61.7 -> node:n1 6443/TCP denied
         node:n1 -> ip:192.168.60.7 80/TCP allowed
         node:n1 -> ip:8.8.8.8 53/UDP allowed
         node:n1 -> ip:8.8.8.8 53/TCP denied
         node:n1 -> entity:world,dns 53/UDP denied",
    );
}
