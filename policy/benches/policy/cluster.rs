//! A cluster as there are many: namespaces of a hundred identities with ten policies each.

use std::collections::BTreeSet;

use policy::{
    Identity, IdentityNumber, IdentitySet, Input, NamedPort, Pod, Policy, PolicySet, Source, Surroundings,
    protocol,
};
use serde_json::{Value, json};

/// Identities that have pods on the node.
pub(crate) const LOCALS: usize = 100;
/// Policies of each namespace.
const POLICIES: usize = 10;
const FIRST: u32 = 256;

#[derive(Clone)]
pub(crate) struct Cluster {
    policies: PolicySet,
    identities: IdentitySet,
    pub(crate) surroundings: Surroundings,
    pub(crate) locals: Vec<IdentityNumber>,
    /// Identities that have no pods on the node: some for which the same rules are as for pods that it has,
    /// and some of other namespaces or tiers.
    pub(crate) elsewhere: [Vec<IdentityNumber>; 2],
    /// Identities that the cluster doesn't have yet: some that their own namespace's rules select, and some
    /// that every namespace's do.
    pub(crate) newcomers: [Vec<Identity>; 2],
}

impl Cluster {
    pub(crate) fn new(identities: usize, policies: usize) -> Self {
        let namespaces = policies / POLICIES;
        let known: Vec<Identity> = (0..identities).map(|at| identity(at, at % namespaces)).collect();
        let mut surroundings = Surroundings::default();
        for (at, identity) in known.iter().enumerate() {
            let [high, low] = u16::try_from(at).unwrap().to_be_bytes();
            surroundings.addresses.insert(identity.number(), [[10, 1, high, low].into()].into());
            if at % 10 == 0 {
                let port = NamedPort::new("metrics", protocol::TCP);
                surroundings.named_ports.insert(identity.number(), [(port, [9100].into())].into());
            }
        }
        let step = (identities / LOCALS).max(1);
        // An odd step meets every namespace and every application.
        let numbers = |from: usize| known.iter().skip(from).step_by(step | 1).map(Identity::number);
        let locals: Vec<IdentityNumber> = numbers(0).chain(numbers(1)).take(LOCALS.min(identities)).collect();
        let kind = |one: &Identity| {
            let tier = one.labels().get(Source::K8s, "tier").map(str::to_owned);
            (one.namespace().to_owned(), tier)
        };
        let here: BTreeSet<_> = known.iter().filter(|one| locals.contains(&one.number())).map(kind).collect();
        let elsewhere = [true, false].map(|is_of_a_kind_here| {
            let others = known.iter().filter(|one| !locals.contains(&one.number()));
            let others = others.filter(|one| here.contains(&kind(one)) == is_of_a_kind_here);
            others.map(Identity::number).take(40).collect()
        });
        // One that is `back`, for which its namespace has a rule about `front`.
        let back = known.iter().enumerate().find(|(at, one)| at % 3 == 1 && locals.contains(&one.number()));
        let namespace = back.unwrap().1.namespace().to_owned();
        let first = FIRST + u32::try_from(identities).unwrap();
        let newcomers = [("a9", namespace.as_str(), first), ("a1", "ns1", first + 1_000)].map(
            |(app, namespace, first)| (0..40).map(|at| named(first + at, namespace, app, "front")).collect(),
        );
        Self {
            policies: (0..namespaces).flat_map(|namespace| of_namespace(namespace, namespaces)).collect(),
            identities: IdentitySet::from_identities(known).unwrap(),
            surroundings,
            locals,
            elsewhere,
            newcomers,
        }
    }

    pub(crate) fn input(&self) -> Input<'_> {
        Input { policies: &self.policies, identities: &self.identities, surroundings: &self.surroundings }
    }

    /// A policy with another port: of the first namespace for all its pods, or of the cluster for all pods.
    pub(crate) fn changed(&self, is_clusterwide: bool, port: u16) -> Policy {
        let monitoring = json!([{"matchLabels": {"app": "a1", "k8s:io.kubernetes.pod.namespace": "ns1"}}]);
        let ingress = json!([{"fromEndpoints": monitoring, "toPorts": ports("TCP", port, None)}]);
        let spec = json!({"endpointSelector": {}, "ingress": ingress});
        let namespace = (!is_clusterwide).then(|| "ns0".to_owned());
        policy(namespace, "monitoring", &spec)
    }
}

fn identity(at: usize, namespace: usize) -> Identity {
    let app = format!("a{}", at / 100 % 50);
    let number = FIRST + u32::try_from(at).unwrap();
    named(number, &format!("ns{namespace}"), &app, ["front", "back", "data"][at % 3])
}

fn named(number: u32, namespace: &str, app: &str, tier: &str) -> Identity {
    let version = number.to_string();
    let pod = Pod { cluster: "default", namespace, service_account: "default" };
    let own = [("app", app), ("tier", tier), ("version", version.as_str())];
    Identity::new(number, pod.labels(own, [("team", "t1")]).unwrap()).unwrap()
}

fn of_namespace(namespace: usize, namespaces: usize) -> Vec<Policy> {
    let name = format!("ns{namespace}");
    let next = format!("ns{}", (namespace + 1) % namespaces);
    let here = |labels: Value| json!([{"matchLabels": labels}]);
    let there = |mut labels: Value, namespace: &str| {
        labels["k8s:io.kubernetes.pod.namespace"] = json!(namespace);
        json!([{"matchLabels": labels}])
    };
    let for_all = |spec: Value| with(spec, json!({}));
    let tier = |tier: &str| json!({"matchLabels": {"tier": tier}});
    let cidr = json!([{"cidr": format!("192.{}.0.0/16", namespace % 200), "except": [format!("192.{}.2.0/24", namespace % 200)]}]);
    let required = json!({"mode": "required"});
    let specs = [
        for_all(json!({"ingress": [{}], "egress": [{}]})),
        with(
            json!({"ingress": [{"fromEndpoints": here(json!({"tier": "front"})), "toPorts": ports("TCP", 8080, None)}]}),
            tier("back"),
        ),
        for_all(
            json!({"egress": [{"toEndpoints": there(json!({"app": "a0"}), "ns0"), "toPorts": ports("UDP", 53, None)}]}),
        ),
        for_all(
            json!({"ingress": [{"fromEndpoints": there(json!({"app": "a1"}), "ns1"), "toPorts": ports("TCP", 9090, None)}]}),
        ),
        with(
            json!({"ingress": [{"fromEndpoints": here(json!({"tier": "back"})), "toPorts": ports("TCP", 5432, None), "authentication": required}]}),
            tier("data"),
        ),
        for_all(json!({"egress": [{"toCIDRSet": cidr, "toPorts": ports("TCP", 443, None)}]})),
        for_all(json!({"egressDeny": [{"toCIDR": ["169.254.169.254/32"]}]})),
        with(
            json!({"egress": [{"toEndpoints": there(json!({"app": "a2"}), &next), "toPorts": ports("TCP", 8000, Some(8100))}]}),
            json!({"matchLabels": {"app": "a1"}}),
        ),
        for_all(
            json!({"ingress": [{"fromEntities": ["host", "kube-apiserver"], "toPorts": ports("TCP", 8081, None)}]}),
        ),
        with(json!({"ingressDeny": [{"fromEndpoints": here(json!({"tier": "front"}))}]}), tier("data")),
    ];
    let named = specs.iter().enumerate();
    named.map(|(at, spec)| policy(Some(name.clone()), &format!("p{at}"), spec)).collect()
}

fn with(mut spec: Value, selector: Value) -> Value {
    spec["endpointSelector"] = selector;
    spec
}

fn ports(protocol: &str, port: u16, end: Option<u16>) -> Value {
    json!([{"ports": [{"port": port.to_string(), "endPort": end, "protocol": protocol}]}])
}

fn policy(namespace: Option<String>, name: &str, spec: &Value) -> Policy {
    let kind = if namespace.is_some() { "CiliumNetworkPolicy" } else { "CiliumClusterwideNetworkPolicy" };
    let metadata = json!({"name": name, "namespace": namespace});
    let value = json!({"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec});
    Policy::from_value(&value).unwrap()
}
