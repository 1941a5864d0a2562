use serde_json::json;

use super::class::NOT_POLICIES;
use super::*;

fn problems(text: &str) -> Vec<String> {
    let manifest = read("f.yaml", text);
    let refused = manifest.refused.iter().map(|refused| refused.problem.to_string());
    manifest.problems.iter().map(ToString::to_string).chain(refused).collect()
}

fn one_object(text: &str) -> Object {
    assert_eq!(problems(text), Vec::<String>::new());
    let mut objects = read("f.yaml", text).objects;
    assert_eq!(objects.len(), 1, "{objects:?}");
    objects.remove(0)
}

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: xwing, namespace: rebels, labels: {org: alliance}}
spec: {nodeName: node1, serviceAccountName: luke, containers: [{name: x}]}
status: {podIPs: [{ip: 10.244.1.11}, {ip: 'fd00::11'}]}
";

#[test]
fn reads_a_pod() {
    let object = one_object(POD);
    assert_eq!(object.key.to_string(), "Pod rebels/xwing");
    let Body::Pod(pod) = object.body else { panic!("{:?}", object.body) };
    assert_eq!(pod.labels["org"], "alliance");
    assert_eq!(pod.node.as_deref(), Some("node1"));
    assert_eq!(pod.service_account, "luke");
    assert!(!pod.host_network && !pod.has_ended);
    let addresses: Vec<_> = pod.addresses.iter().map(|(_, address)| address.to_string()).collect();
    assert_eq!(addresses, ["10.244.1.11", "fd00::11"]);
}

#[test]
fn fills_in_what_the_api_server_would() {
    let object = one_object(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: null}\nspec: {nodeName: ''}\nstatus: {podIP: '::ffff:10.0.0.1'}\n",
    );
    assert_eq!(object.key.to_string(), "Pod default/a");
    let Body::Pod(pod) = object.body else { panic!("{:?}", object.body) };
    assert_eq!((pod.node, pod.service_account.as_str()), (None, "default"));
    assert_eq!(pod.addresses, [("status.podIP".to_owned(), "10.0.0.1".parse().unwrap())]);
}

/// `serviceAccount` is what `serviceAccountName` was called, and counts where that isn't there.
#[test]
fn service_accounts_by_either_name() {
    for (given, expected) in [
        ("serviceAccount: leia", "leia"),
        ("serviceAccount: leia, serviceAccountName: luke", "luke"),
        ("serviceAccount: leia, serviceAccountName: ''", "leia"),
        ("serviceAccount: ''", "default"),
    ] {
        let object = one_object(&POD.replace("serviceAccountName: luke", given));
        assert!(matches!(object.body, Body::Pod(pod) if pod.service_account == expected), "{given}");
    }
}

#[test]
fn ended_pods_are_marked() {
    for (phase, ended) in [("Running", false), ("Pending", false), ("Succeeded", true), ("Failed", true)] {
        let object = one_object(&POD.replace("status: {", &format!("status: {{phase: {phase}, ")));
        assert!(matches!(object.body, Body::Pod(PodBody { has_ended, .. }) if has_ended == ended), "{phase}");
    }
}

#[test]
fn reads_a_node_with_internal_addresses_only() {
    let object = one_object(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.1.0.0/24}\nstatus: {addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: 10.0.0.1}, {type: ExternalIP, address: 1.2.3.4}]}\n",
    );
    let Body::Node { addresses, pod_cidrs, .. } = object.body else { panic!("{:?}", object.body) };
    assert_eq!(addresses, [("status.addresses[1].address".to_owned(), "10.0.0.1".parse().unwrap())]);
    assert_eq!(pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
}

#[test]
fn ignores_kinds_without_use() {
    for (version, kind) in [
        ("apps/v1", "ControllerRevision"),
        ("v1", "ConfigMap"),
        ("cilium.io/v2", "CiliumNodeConfig"),
        ("kyverno.io/v1", "ClusterPolicy"),
        ("policy/v1", "PodDisruptionBudget"),
    ] {
        let manifest =
            read("f.yaml", &format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n"));
        assert!(manifest.is_good() && manifest.objects.is_empty(), "{kind}: {manifest:?}");
    }
}

#[test]
fn mistakes_in_workloads_do_not_touch_their_file() {
    for rest in [
        "metadata: {name: x}\n",
        "metadata: {generateName: x-}\n",
        "metadata: {name: x}\nspec: {template: 1}\n",
    ] {
        let manifest = read("f.yaml", &format!("apiVersion: batch/v1\nkind: Job\n{rest}"));
        assert!(manifest.is_good(), "{rest}: {manifest:?}");
    }
}

#[test]
fn whatever_may_be_a_policy_is_never_ignored() {
    for (version, kind) in [
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        ("crd.projectcalico.org/v1", "GlobalNetworkPolicy"),
        ("cilium.io/v2", "CiliumNetworkPolcy"),
        ("cilium.io/v2", "CiliumSomethingNewPolicy"),
        ("example.com/v1", "ciliumnetworkpolicy"),
    ] {
        let manifest = read(
            "f.yaml",
            &format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{bad: 1}}\n"),
        );
        assert_eq!(manifest.refused.len(), 1, "{kind}: {manifest:?}");
        let key = manifest.refused[0].key.as_ref().unwrap();
        assert_eq!((key.kind.as_str(), key.name.as_str()), (kind, "x"));
    }
}

/// Where packets go is no policy, whatever the kind is called.
#[test]
fn kinds_that_allow_and_deny_nothing_are_ignored() {
    for kind in NOT_POLICIES {
        let manifest =
            read("f.yaml", &format!("apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{name: x}}\n"));
        assert!(manifest.is_good() && manifest.refused.is_empty(), "{kind}: {manifest:?}");
    }
}

#[test]
fn words_are_not_taken_for_booleans() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: y, labels: {ns: y, switch: on}}\n";
    let Body::Namespace { labels, audit } = one_object(text).body else { panic!() };
    assert_eq!((labels["ns"].as_str(), labels["switch"].as_str(), audit), ("y", "on", false));
}

#[test]
fn reads_what_policies_refer_to() {
    let service = one_object(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: {a: b}}\nspec: {selector: {app: web}, ports: []}\n",
    );
    let Body::Service { labels, selector, .. } = service.body else { panic!() };
    assert_eq!((labels["a"].as_str(), selector.unwrap()["app"].as_str()), ("b", "web"));
    for (text, service) in [
        (
            "apiVersion: v1\nkind: Endpoints\nmetadata: {name: db}\nsubsets: [{addresses: [{ip: 192.0.2.1}]}]\n",
            "db",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: db-x, labels: {kubernetes.io/service-name: db}}\nendpoints: [{addresses: [192.0.2.1, host.example]}]\n",
            "db",
        ),
    ] {
        let Body::Endpoints { service: found, addresses, .. } = one_object(text).body else { panic!() };
        assert_eq!((found.as_str(), addresses), (service, vec!["192.0.2.1".parse().unwrap()]));
    }
    let group = "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: g}\nspec: {externalCIDRs: [10.0.0.0/8]}\n";
    let Body::CidrGroup { nets, .. } = one_object(group).body else { panic!() };
    assert_eq!(nets, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(problems(&group.replace("externalCIDRs", "externalCIDR")).len(), 1);
}

fn service(spec: &str) -> Service {
    let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\n{spec}");
    let Body::Service { service, .. } = one_object(&text).body else { panic!() };
    *service
}

#[test]
fn services_say_how_they_are_reached() {
    let spec = "spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd96::1']
  externalIPs: [192.0.2.1]
  ports: [{name: web, port: 80, targetPort: http, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]
  sessionAffinity: ClientIP
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
status: {loadBalancer: {ingress: [{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: Proxy}, {hostname: x}]}}
";
    let found = service(spec);
    let texts = |addresses: &mut dyn Iterator<Item = &IpAddr>| {
        addresses.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(texts(&mut found.addresses.iter()), "10.96.0.1 192.0.2.1 198.51.100.1 fd96::1");
    assert_eq!(texts(&mut found.external.iter()), "192.0.2.1 198.51.100.1");
    assert_eq!((found.affinity, found.internal_local, found.external_local), (10_800, true, true));
    let ports: Vec<_> = found
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.protocol, port.port, port.node_port))
        .collect();
    assert_eq!(ports, [("web", 6, 80, 30080), ("dns", 17, 53, 0)]);
    assert!(!found.is_left_alone);
    // Whose clients kube-proxy looks at, it serves.
    let restricted =
        spec.replace("  sessionAffinity", "  loadBalancerSourceRanges: [10.0.0.0/8]\n  sessionAffinity");
    assert_eq!(texts(&mut service(&restricted).external.iter()), "192.0.2.1");
    let timed = spec.replace(
        "  sessionAffinity: ClientIP",
        "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}",
    );
    assert_eq!(service(&timed).affinity, 7);
    for left in ["spec: {clusterIP: None}\n", "spec: {type: ExternalName, externalName: example.com}\n"] {
        assert!(service(left).is_left_alone, "{left}");
    }
}

#[test]
fn services_with_mistakes_name_the_field() {
    for (spec, field) in [
        ("{sessionAffinity: Cookie}", "spec.sessionAffinity"),
        ("{internalTrafficPolicy: local}", "spec.internalTrafficPolicy"),
        ("{externalTrafficPolicy: Node}", "spec.externalTrafficPolicy"),
        (
            "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
    ] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n");
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{spec}");
        assert!(found[0].to_string().contains(field), "{}", found[0]);
    }
}

#[test]
fn slices_say_who_takes_connections() {
    let text = "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
ports: [{name: web, port: 8080}, {name: dns, port: 53, protocol: UDP}, {name: any}]
endpoints:
  - {addresses: [10.1.1.1], nodeName: n1}
  - {addresses: [10.1.1.2], conditions: {ready: false, serving: true, terminating: true}}
  - {addresses: [10.1.1.3], conditions: {ready: false, serving: false, terminating: true}}
  - {addresses: [10.1.1.4], hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: n1}]}}
";
    let Body::Endpoints { slice: Some(slice), .. } = one_object(text).body else { panic!() };
    let ports: Vec<_> =
        slice.ports.iter().map(|port| (port.name.as_str(), port.protocol, port.port)).collect();
    assert_eq!(ports, [("web", 6, 8080), ("dns", 17, 53)]);
    let [first, ending, gone, hinted] = slice.endpoints.as_slice() else { panic!() };
    assert_eq!((first.is_ready, first.node.as_deref()), (true, Some("n1")));
    assert_eq!((ending.is_ready, ending.is_last_resort), (false, true));
    assert_eq!((gone.is_ready, gone.is_last_resort), (false, false));
    assert_eq!((hinted.for_zones.join(" "), hinted.for_nodes.join(" ")), ("a b".into(), "n1".into()));
}

#[test]
fn ports_of_containers_have_names() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{ports: [{name: HTTP, containerPort: 8080}, {containerPort: 1}]}], initContainers: [{ports: [{name: dns, containerPort: 53, protocol: UDP}]}]}\n";
    let Body::Pod(pod) = one_object(text).body else { panic!() };
    assert_eq!(pod.named_ports, [(NamedPort::new("http", 6), 8080), (NamedPort::new("dns", 17), 53)]);
}

#[test]
fn a_policy_that_calls_itself_a_pod_is_no_pod() {
    let manifest = read("f.yaml", &POD.replace("apiVersion: v1", "apiVersion: cilium.io/v2"));
    assert!(!manifest.objects.iter().any(|object| matches!(object.body, Body::Pod(_))), "{manifest:?}");
}

#[test]
fn names_near_misses_of_kinds() {
    assert_eq!(
        problems("apiVersion: v1\nkind: pods\nmetadata: {name: x}\n"),
        ["f.yaml:2: kind: unknown kind pods; did you mean Pod?"]
    );
    assert_eq!(
        problems("apiVersion: authd.io/v1alpha1\nkind: NodeNumbr\nmetadata: {name: x}\n"),
        ["f.yaml:2: kind: unknown kind NodeNumbr; did you mean NodeNumber?"]
    );
    assert_eq!(
        problems("apiVersion: authd.io/v1\nkind: Identity\nmetadata: {name: '256'}\n"),
        ["f.yaml:1: apiVersion: unknown version authd.io/v1; use authd.io/v1alpha1"]
    );
}

#[test]
fn type_errors_name_object_and_field() {
    for (from, to, expected) in [
        (
            "nodeName: node1",
            "nodeName: 7",
            "f.yaml:4: Pod rebels/xwing: spec.nodeName: invalid type: integer `7`, expected a string",
        ),
        (
            "org: alliance",
            "org: true",
            "f.yaml:3: metadata.labels.org: invalid type: boolean `true`, expected a string",
        ),
        (
            "10.244.1.11",
            "10.244.1",
            "f.yaml:5: Pod rebels/xwing: status.podIPs[0].ip: \"10.244.1\": invalid IP address syntax",
        ),
        (
            "spec: {",
            "spec: {hostNetwork: 'no', ",
            "f.yaml:4: Pod rebels/xwing: spec.hostNetwork: invalid type: string \"no\", expected a boolean",
        ),
        (
            "name: xwing",
            "name: X_Wing",
            "f.yaml:3: metadata.name: \"X_Wing\" is no Kubernetes name (a-z, 0-9, '-' and '.', at most 253)",
        ),
        (
            "namespace: rebels",
            "namespace: ''",
            "f.yaml:3: metadata.namespace: \"\" is no Kubernetes name (a-z, 0-9, '-' and '.', at most 253)",
        ),
        (
            "serviceAccountName: luke",
            "serviceAccountName: a/b",
            "f.yaml:4: Pod rebels/xwing: spec.serviceAccountName: \"a/b\" is no Kubernetes name (a-z, 0-9, '-' and '.', at most 253)",
        ),
    ] {
        assert_eq!(problems(&POD.replace(from, to)), [expected]);
    }
}

#[test]
fn ranges_have_no_host_bits() {
    let node =
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec:\n  podCIDRs:\n  - 10.1.0.0/24\n  - RANGE\n";
    assert_eq!(
        problems(&node.replace("RANGE", "10.2.0.1/24")),
        ["f.yaml:7: Node n1: spec.podCIDRs[1]: \"10.2.0.1/24\" has host bits; \"10.2.0.0/24\" is meant?"]
    );
    assert_eq!(
        problems(&node.replace("RANGE", "10.2.0.0/33")),
        ["f.yaml:7: Node n1: spec.podCIDRs[1]: \"10.2.0.0/33\": invalid IP address syntax"]
    );
}

#[test]
fn documents_without_type_may_be_policies() {
    for (text, expected) in [
        ("kind: Pod\nmetadata: {name: x}\n", "f.yaml:1: missing field `apiVersion`"),
        ("apiVersion: v1\n", "f.yaml:1: missing field `kind`"),
        ("apiversion: v1\nkind: Pod\n", "f.yaml:1: apiversion: unknown field; did you mean `apiVersion`?"),
        ("apiVersion: v1\nKind: Pod\n", "f.yaml:2: Kind: unknown field; did you mean `kind`?"),
        (
            "[{endpointSelector: {}, ingress: [{}]}]\n",
            "f.yaml:1: is a list, not an object with `apiVersion`, `kind` and `metadata`; rules such as `cilium policy \
             import` takes are for `specs` of a CiliumClusterwideNetworkPolicy, objects for `items` of a List",
        ),
        ("just text\n", "f.yaml:1: is no object with `apiVersion`, `kind` and `metadata`"),
        ("apiVersion: v1\nkind: List\n", "f.yaml:1: items: a list needs a list of items"),
    ] {
        let manifest = read("f.yaml", text);
        assert_eq!(manifest.refused.len(), 1, "{text}");
        assert_eq!(problems(text), [expected]);
    }
}

#[test]
fn expands_lists() {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {}});
    let bare = json!({"metadata": {"name": "b"}, "spec": {}});
    for (kind, item) in [("List", &pod), ("PodList", &pod), ("PodList", &bare)] {
        let list = json!({"apiVersion": "v1", "kind": kind, "items": [item, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}]});
        assert_eq!(one_object(&list.to_string()).key.kind, "Pod");
    }
    let broken = problems(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spec:\n    nodeName: 1\n",
    );
    assert_eq!(
        broken,
        ["f.yaml:8: Pod default/a: spec.nodeName: invalid type: integer `1`, expected a string"]
    );
}

#[test]
fn our_own_kinds_have_no_unknown_fields() {
    let number =
        "apiVersion: authd.io/v1alpha1\nkind: NodeNumber\nmetadata: {name: node1}\nspec: {number: 1}\n";
    assert!(matches!(one_object(number).body, Body::NodeNumber(1)));
    assert_eq!(
        problems(&number.replace("number: 1", "number: 1, nunber: 2")),
        ["f.yaml:4: NodeNumber node1: spec.nunber: unknown field; did you mean \"number\"?"]
    );
    assert_eq!(
        problems(&number.replace("name: node1", "name: node1, namespace: x")),
        [
            "f.yaml:3: NodeNumber node1: metadata.namespace: unknown field; known here: name, labels, annotations, creationTimestamp, finalizers, generation, managedFields, ownerReferences, resourceVersion, uid"
        ]
    );
    assert_eq!(
        problems(&number.replace("number: 1", "number: 0")),
        ["f.yaml:4: NodeNumber node1: spec.number: 0 stands for \"this node\"; numbers start at 1"]
    );
    assert_eq!(
        problems(&number.replace("number: 1", "number: 65536")),
        ["f.yaml:4: NodeNumber node1: spec.number: invalid value: integer `65536`, expected u16"]
    );
}

#[test]
fn identities_are_checked() {
    let labels =
        "{'k8s:io.kubernetes.pod.namespace': a, 'k8s:io.cilium.k8s.policy.serviceaccount': b, 'k8s:org': x}";
    let text = |name: &str, hash: &str| {
        format!(
            "apiVersion: authd.io/v1alpha1\nkind: Identity\nmetadata: {{name: '{name}'}}\nspec:\n  namespace: a\n  serviceAccount: b\n  labels: {labels}\n  hash: '{hash}'\n"
        )
    };
    let wrong = problems(&text("256", "00"));
    let computed = wrong[0].split('`').nth(3).unwrap().to_owned();
    assert_eq!(
        wrong,
        [format!(
            "f.yaml:1: Identity 256: identity 256: spec.hash is `00`, that of its labels is `{computed}`; identities can't be edited"
        )]
    );
    let Body::Identity(identity) = one_object(&text("256", &computed)).body else { panic!() };
    assert_eq!((identity.number(), identity.namespace(), identity.service_account()), (256, "a", "b"));
    for name in ["0256", "x", "-1", "4294967296"] {
        assert!(problems(&text(name, &computed))[0].contains("metadata.name"), "{name}");
    }
    assert!(problems(&text("255", &computed))[0].contains("numbers of identities are 256 to"));
    assert_eq!(
        problems(&text("256", &computed).replace("serviceAccount: b\n", "serviceAcount: b\n")),
        ["f.yaml:6: Identity 256: spec.serviceAcount: unknown field; did you mean \"serviceAccount\"?"]
    );
}

#[test]
fn unparsable_yaml_may_be_a_policy() {
    let manifest = read("f.yaml", &format!("{POD}---\nkind: [CiliumNetworkPolicy\nx: y\n---\n{POD}"));
    assert_eq!((manifest.objects.len(), manifest.refused.len()), (2, 1));
    assert_eq!(manifest.refused[0].key, None);
    assert!(!manifest.is_good());
}
