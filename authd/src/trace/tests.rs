//! Ends of every form, in a cluster of one text.

use super::*;
use crate::cluster;

const CLUSTER: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.0.1.0/24, 'fd00:1::/64']}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, spec: {podCIDRs: [10.0.2.0/24]}, status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop, labels: {app: web}}, spec: {nodeName: n1, containers: [{ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.0.1.5}, {ip: 'fd00:1::5'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web}}, spec: {nodeName: n2, containers: [{ports: [{name: http, containerPort: 8080}]}]}, status: {podIP: 10.0.2.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {nodeName: n2}, status: {podIP: 10.0.2.6}}
---
{apiVersion: v1, kind: Pod, metadata: {name: agent, namespace: shop}, spec: {nodeName: n1, hostNetwork: true}}
---
{apiVersion: v1, kind: Pod, metadata: {name: migrate, namespace: shop, labels: {app: db}}, spec: {nodeName: n2}, status: {phase: Succeeded, podIP: 10.0.2.7}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {selector: {app: web}, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::10'], ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 9000}, {port: 82}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: all, namespace: shop}, spec: {selector: {}, clusterIP: 10.96.0.11}}
---
{apiVersion: v1, kind: Service, metadata: {name: legacy, namespace: shop}, spec: {clusterIP: 10.96.0.12, ports: [{port: 5432}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: legacy-1, namespace: shop, labels: {kubernetes.io/service-name: legacy}}, endpoints: [{addresses: [192.0.2.53]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: mixed, namespace: shop}, spec: {selector: {tier: x}, clusterIP: 10.96.0.13, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: m0, namespace: shop, labels: {tier: x, app: m0}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: m1, namespace: shop, labels: {tier: x, app: m1}}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: web, namespace: shop}, spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{matchLabels: {app: db}}], toPorts: [{ports: [{port: '8080', protocol: TCP}]}]}, {icmps: [{fields: [{type: EchoReply}, {family: IPv6, type: EchoRequest}]}]}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: out, namespace: shop}, spec: {endpointSelector: {matchLabels: {app: m0}}, egress: [{toServices: [{k8sService: {serviceName: legacy}}]}, {toPorts: [{ports: [{port: '0', protocol: UDP}]}]}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: nodes}, spec: {nodeSelector: {}, ingress: [{}]}}
";

fn cluster() -> Cluster {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cluster.yaml");
    std::fs::write(&file, CLUSTER).unwrap();
    cluster::load_offline(&[file], &cluster::Site::default()).unwrap()
}

fn ask(from: &str, to: &str, port: &str) -> Result<v1::PolicyTrace, Error> {
    let question =
        Question { from: from.parse().unwrap(), to: to.parse().unwrap(), port: port.parse().unwrap() };
    answer(&cluster(), &question)
}

#[test]
fn verdicts_by_end_and_port() {
    for (from, to, port, verdict) in [
        ("shop/db", "shop/web-0", "8080/TCP", "allowed"),
        ("shop/db", "shop/web-0", "http/TCP", "allowed"),
        ("ip:10.0.2.6", "ip:fd00:1::5", "8080/TCP", "allowed"),
        ("shop/db", "shop/web-0", "TCP", "denied"),
        // The address of a service: what its pods see counts.
        ("shop/db", "ip:10.96.0.10", "80/TCP", "allowed"),
        ("shop/db", "ip:fd00:96::10", "80/TCP", "allowed"),
        ("shop/db", "ip:10.96.0.10", "81/TCP", "denied"),
        ("shop/m0", "ip:10.96.0.12", "5432/TCP", "allowed"),
        ("shop/m0", "ip:192.0.2.53", "5432/TCP", "allowed"),
        ("shop/m0", "ip:192.0.2.54", "5432/TCP", "denied"),
        // A pod on its node's network is the host for that node's pods, and another node for others.
        ("shop/agent", "shop/web-0", "8080/TCP", "allowed"),
        ("shop/agent", "shop/web-1", "8080/TCP", "denied"),
        ("ip:192.168.0.1", "shop/web-0", "22/TCP", "allowed"),
        ("ip:192.168.0.2", "shop/web-0", "22/TCP", "denied"),
        ("entity:remote-node", "shop/web-0", "22/TCP", "denied"),
        // Types of ICMP, and a protocol alone.
        ("entity:world", "shop/web-0", "0/ICMP", "allowed"),
        ("entity:world", "shop/web-0", "8/ICMP", "denied"),
        ("entity:world", "shop/web-0", "128/ICMPv6", "allowed"),
        ("entity:world", "shop/web-0", "ICMP", "denied"),
        ("shop/m0", "entity:world", "UDP", "allowed"),
        ("shop/m0", "entity:world", "53/UDP", "allowed"),
        ("shop/m0", "entity:world", "GRE", "denied"),
        ("shop/web-0", "ip:2001:db8::1", "443/TCP", "allowed"),
        // Nobody's address in the ranges of pods.
        ("shop/web-0", "ip:10.0.2.99", "443/TCP", "denied"),
        ("shop/web-0", "shop/web-0", "1/TCP", "allowed"),
        ("shop/web-0", "shop/web-1", "1/TCP", "denied"),
    ] {
        assert_eq!(ask(from, to, port).unwrap().verdict, verdict, "{from} -> {to} {port}");
    }
}

#[test]
fn what_makes_pods_stands_for_one_of_them() {
    let text = "
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {template: {metadata: {labels: {app: web}}, spec: {serviceAccountName: web, containers: [{ports: [{name: http, containerPort: 8080}]}]}}}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db, namespace: shop}, spec: {template: {metadata: {labels: {app: db}}}}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: job, namespace: shop}, spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: job}}}}}}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: web, namespace: shop}, spec: {endpointSelector: {matchLabels: {io.cilium.k8s.policy.serviceaccount: web}}, ingress: [{fromEndpoints: [{matchLabels: {app: db}}], toPorts: [{ports: [{port: http}]}]}]}}
";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shop.yaml");
    std::fs::write(&file, text).unwrap();
    let cluster = cluster::load_offline(std::slice::from_ref(&file), &cluster::Site::default()).unwrap();
    assert!(cluster.problems.is_empty(), "{:?}", cluster.problems);
    for (from, port, verdict) in [
        ("shop/db", "8080/TCP", "allowed"),
        ("shop/db", "80/TCP", "denied"),
        ("shop/job", "8080/TCP", "denied"),
    ] {
        let question = Question {
            from: from.parse().unwrap(),
            to: "shop/web".parse().unwrap(),
            port: port.parse().unwrap(),
        };
        assert_eq!(answer(&cluster, &question).unwrap().verdict, verdict, "{from} {port}");
    }
    std::fs::write(&file, text.replace("{labels: {app: db}}", "{labels: {app: 1}}")).unwrap();
    let problem = cluster::load_offline(&[file], &cluster::Site::default()).unwrap().problems.remove(0);
    assert_eq!(problem.field.as_deref(), Some("spec.template.metadata.labels.app"), "{problem}");
}

/// What `kubectl get -o yaml` gives of a cluster that Cilium runs in stands for pods, nodes and identities.
#[test]
fn what_cilium_keeps_stands_for_what_it_is_about() {
    let text = "
{apiVersion: cilium.io/v2, kind: CiliumIdentity, metadata: {name: '12345'}, security-labels: {'k8s:app': web, 'k8s:io.cilium.k8s.policy.cluster': default, 'k8s:io.cilium.k8s.policy.serviceaccount': default, 'k8s:io.kubernetes.pod.namespace': shop}}
---
{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {name: web-1, namespace: shop}, status: {identity: {id: 12345, labels: ['k8s:app=web', 'k8s:io.cilium.k8s.policy.cluster=default', 'k8s:io.cilium.k8s.policy.serviceaccount=default', 'k8s:io.kubernetes.pod.namespace=shop']}, networking: {addressing: [{ipv4: 10.0.0.5}], node: 192.168.0.1}, named-ports: [{name: http, port: 8080, protocol: TCP}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumEndpoint, metadata: {name: far, namespace: shop}, status: {identity: {id: 1, labels: ['k8s:app=client', 'k8s:io.cilium.k8s.policy.cluster=other', 'k8s:io.cilium.k8s.policy.serviceaccount=default', 'k8s:io.kubernetes.pod.namespace=shop']}}}
---
{apiVersion: cilium.io/v2, kind: CiliumNode, metadata: {name: n1, labels: {zone: a}}, spec: {addresses: [{ip: 192.168.0.9, type: InternalIP}, {ip: 192.0.2.1, type: ExternalIP}], ipam: {podCIDRs: [10.0.0.0/24]}}}
---
{apiVersion: v1, kind: ReplicationController, metadata: {name: client, namespace: shop}, spec: {template: {metadata: {labels: {app: client}}}}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: web, namespace: shop}, spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{matchLabels: {app: client, io.cilium.k8s.policy.cluster: default}}], toPorts: [{ports: [{port: http}]}]}, {fromNodes: [{matchLabels: {zone: a}}]}]}}
";
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cilium.yaml");
    std::fs::write(&file, text).unwrap();
    let cluster = cluster::load_offline(std::slice::from_ref(&file), &cluster::Site::default()).unwrap();
    assert!(cluster.problems.is_empty(), "{:?}", cluster.problems);
    for (from, to, port, verdict) in [
        ("shop/client", "shop/web-1", "8080/TCP", "allowed"),
        ("shop/client", "identity:12345", "8080/TCP", "allowed"),
        ("shop/client", "ip:10.0.0.5", "http/TCP", "allowed"),
        ("shop/client", "shop/web-1", "80/TCP", "denied"),
        ("shop/far", "shop/web-1", "8080/TCP", "denied"),
        ("ip:192.168.0.9", "shop/web-1", "80/TCP", "allowed"),
        ("ip:192.0.2.1", "shop/web-1", "80/TCP", "denied"),
    ] {
        let port = port.parse().unwrap();
        let question = Question { from: from.parse().unwrap(), to: to.parse().unwrap(), port };
        assert_eq!(answer(&cluster, &question).unwrap().verdict, verdict, "{from} -> {to}");
    }
    assert_eq!(cluster.pod("shop", "web-1").unwrap().identity, Some(12345));
    // What Kubernetes says itself counts.
    let pod =
        "\n---\n{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: other}}}";
    std::fs::write(&file, format!("{text}{pod}")).unwrap();
    let cluster = cluster::load_offline(&[file], &cluster::Site::default()).unwrap();
    assert_ne!(cluster.pod("shop", "web-1").unwrap().identity, Some(12345));
}

#[test]
fn what_cannot_be_answered_says_why() {
    for (from, to, port, expected) in [
        ("shop/dv", "shop/web-0", "80", "there is no Pod shop/dv; did you mean `shop/db`?"),
        ("shop/nothing", "shop/web-0", "80", "there is no Pod shop/nothing"),
        (
            "shop/web-0",
            "shop/migrate",
            "80",
            "Pod shop/migrate has ended: nothing comes from it or reaches it",
        ),
        ("db", "shop/web-0", "80", "there is no Pod default/db; there is one in namespace shop"),
        ("identity:999", "shop/web-0", "80", "there is no identity 999"),
        ("ip:10.96.0.10", "shop/db", "80", "10.96.0.10 is Service shop/web: no packets come from it"),
        (
            "shop/db",
            "ip:10.96.0.10",
            "443/TCP",
            "Service shop/web has no port 443/TCP, so nothing comes through it; it has 80/TCP, 81/TCP, 82/TCP",
        ),
        (
            "shop/db",
            "ip:10.96.0.13",
            "80/TCP",
            "what is behind Service shop/mixed differs in identity; trace to one of shop/m0, shop/m1",
        ),
        ("shop/db", "ip:10.96.0.11", "80/TCP", "nothing with an identity is behind Service shop/all"),
        ("shop/web-0", "shop/db", "http/TCP", "the destination has no port with the name `http`"),
    ] {
        assert_eq!(ask(from, to, port).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_service_is_named_with_the_port_of_its_pods() {
    let trace = ask("shop/db", "ip:10.96.0.10", "80/TCP").unwrap();
    let to = trace.to.unwrap();
    assert_eq!((to.service.as_str(), to.address.as_str(), to.pod.as_str()), ("shop/web", "10.96.0.10", ""));
    assert_eq!(trace.port, "http/TCP");
    assert_eq!(ask("shop/db", "ip:10.96.0.10", "82/TCP").unwrap().port, "82/TCP");
}

const NODES: &str = "
{apiVersion: v1, kind: Node, metadata: {name: cp, labels: {role: control-plane}}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: w1, labels: {role: worker}}, status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: w2, labels: {role: worker}}, status: {addresses: [{type: InternalIP, address: 192.168.0.3}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: prod, labels: {env: prod}}, spec: {nodeName: w1}, status: {podIP: 10.0.2.5}}
---
{apiVersion: v1, kind: Pod, metadata: {name: agent}, spec: {nodeName: cp, hostNetwork: true}}
---
{apiVersion: v1, kind: Pod, metadata: {name: free}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: prod}, spec: {endpointSelector: {matchLabels: {env: prod}}, ingress: [{fromNodes: [{matchLabels: {role: control-plane}}]}], egress: [{toNodes: [{matchLabels: {role: worker}}]}]}}
---
{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {name: workers}, spec: {nodeSelector: {matchLabels: {role: worker}}, ingress: [{fromEntities: [remote-node]}, {toPorts: [{ports: [{port: '22', protocol: TCP}]}]}]}}
";

#[test]
fn nodes_by_their_labels_as_peers_and_as_subjects() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nodes.yaml");
    std::fs::write(&file, NODES).unwrap();
    let cluster = cluster::load_offline(&[file], &cluster::Site::default()).unwrap();
    let ask = |from: &str, to: &str, port: &str| {
        let port = port.parse().unwrap();
        answer(&cluster, &Question { from: from.parse().unwrap(), to: to.parse().unwrap(), port }).unwrap()
    };
    for (from, to, port, verdict) in [
        ("ip:192.168.0.1", "prod", "80/TCP", "allowed"),
        ("agent", "prod", "80/TCP", "allowed"),
        ("ip:192.168.0.3", "prod", "80/TCP", "denied"),
        ("ip:192.168.0.2", "prod", "80/TCP", "allowed"),
        ("entity:host", "prod", "80/TCP", "allowed"),
        ("entity:remote-node", "prod", "80/TCP", "denied"),
        ("prod", "ip:192.168.0.3", "22/TCP", "allowed"),
        ("prod", "ip:192.168.0.1", "22/TCP", "denied"),
        // What the pod may send, its own node doesn't take.
        ("prod", "ip:192.168.0.2", "22/TCP", "allowed"),
        ("prod", "entity:host", "80/TCP", "denied"),
        ("free", "ip:192.168.0.2", "80/TCP", "denied"),
        ("free", "ip:192.168.0.1", "80/TCP", "allowed"),
        ("ip:192.168.0.3", "ip:192.168.0.2", "80/TCP", "allowed"),
        ("entity:world", "ip:192.168.0.3", "22/TCP", "allowed"),
        // Some node, of which one kind denies.
        ("entity:world", "entity:host", "80/TCP", "denied"),
        ("entity:world", "entity:host", "22/TCP", "allowed"),
    ] {
        assert_eq!(ask(from, to, port).verdict, verdict, "{from} -> {to} {port}");
    }
    let note = "CiliumClusterwideNetworkPolicy workers: spec.nodeSelector: no hook enforces policies for nodes yet: \
                whatever this one denies passes; a trace to or from a node shows what it says";
    let trace = ask("entity:world", "ip:192.168.0.2", "80/TCP");
    assert_eq!(trace.notes, [note]);
    assert_eq!(trace.decided_by[0].text, "CiliumClusterwideNetworkPolicy workers allows no such ingress");
    assert!(ask("prod", "free", "22/TCP").notes.is_empty());
    assert!(
        cluster.problems.iter().any(|problem| problem.to_string().contains(note)),
        "{:?}",
        cluster.problems
    );
    let notes = ask("entity:world", "entity:host", "80/TCP").notes;
    assert!(notes[1].contains("this is the strictest, of w1"), "{notes:?}");
    let from = ask("ip:192.168.0.1", "prod", "80/TCP").from.unwrap();
    assert_eq!((from.name.as_str(), from.labels.join(",").as_str()), ("remote-node", "reserved:remote-node"));
    let again = ask(&format!("identity:{}", from.identity), "prod", "80/TCP");
    assert_eq!(again.verdict, "allowed", "a number that a trace gave can be asked for");
}

#[test]
fn what_is_not_supported_of_a_rule_is_said_where_it_makes_a_difference() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web.yaml");
    let policy = "
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: default, labels: {app: web}}}
---
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p, namespace: default}, specs: [{endpointSelector: {}, egress: [{}]}, {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEntities: [world]}, {fromEntities: [world], toPorts: [{ports: [{port: '443'}]}, {ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET}]}}]}], ingressDeny: [{fromGroups: [{aws: {region: r}}]}]}]}
";
    let notes = |policy: &str, port: &str| {
        std::fs::write(&file, policy).unwrap();
        let cluster = cluster::load_offline(std::slice::from_ref(&file), &cluster::Site::default()).unwrap();
        let (from, to) = ("entity:world".parse().unwrap(), "default/web".parse().unwrap());
        answer(&cluster, &Question { from, to, port: port.parse().unwrap() }).unwrap().notes
    };
    let groups = "CiliumNetworkPolicy default/p: specs[1].ingressDeny[0].fromGroups: this field is not supported \
                  yet: the rule denies all that it could mean";
    let layer_7 = "CiliumNetworkPolicy default/p: specs[1].ingress[1].toPorts[1].rules: this field is not supported \
                   yet: the rule allows nothing at these ports";
    assert_eq!(notes(policy, "80/TCP"), [layer_7, groups]);
    let without_groups = policy.replace(", ingressDeny: [{fromGroups: [{aws: {region: r}}]}]", "");
    let closed = without_groups.replace("{fromEntities: [world]}, ", "");
    assert_eq!(notes(&closed, "80/TCP"), [layer_7.replace("ingress[1]", "ingress[0]")]);
    assert!(notes(&closed, "443/TCP").is_empty());
    assert!(notes(&without_groups, "80/TCP").is_empty());
}

/// One that is refused denies nodes what it is about, and no pod; all that nobody enforces.
#[test]
fn a_refused_policy_for_nodes_is_about_them_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("nodes.yaml");
    std::fs::write(&file, NODES.replace("fromEntities: [remote-node]", "fromEntity: [remote-node]")).unwrap();
    let cluster = cluster::load_offline(&[file], &cluster::Site::default()).unwrap();
    let ask = |from: &str, to: &str| {
        let port = "22/TCP".parse().unwrap();
        answer(&cluster, &Question { from: from.parse().unwrap(), to: to.parse().unwrap(), port }).unwrap()
    };
    let trace = ask("entity:world", "ip:192.168.0.3");
    assert_eq!(trace.verdict, "denied");
    assert_eq!(trace.decided_by[0].text, "CiliumClusterwideNetworkPolicy workers refused");
    let consequence = "it is for nodes, whose policies no hook enforces yet: nothing is denied";
    assert!(trace.notes[0].ends_with(consequence), "{:?}", trace.notes);
    for (from, to) in [("entity:world", "ip:192.168.0.1"), ("entity:world", "free"), ("free", "entity:world")]
    {
        assert_eq!(ask(from, to).verdict, "allowed", "{from} -> {to}");
    }
    let problems: Vec<String> = cluster.problems.iter().map(ToString::to_string).collect();
    assert!(problems.iter().any(|problem| problem.ends_with(consequence)), "{problems:?}");
    let listed = policies(&cluster);
    let workers = listed.iter().find(|policy| policy.name == "workers").unwrap();
    assert_eq!(
        (workers.refused, workers.selectors.join(",").as_str()),
        (true, "nodes: any:role in (worker)")
    );
}

#[test]
fn policies_are_listed_with_their_conditions() {
    let policies = policies(&cluster());
    let names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["out", "web", "nodes"]);
    let [.., nodes] = policies.as_slice() else { panic!() };
    assert_eq!((nodes.rules, nodes.selectors.join(",").as_str()), (1, "nodes: {}"));
    assert_eq!(nodes.conditions.first().unwrap().kind, "Unsupported");
}
