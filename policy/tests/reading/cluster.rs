//! A small cluster as plain facts, and the same facts as the policy engine takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::{
    CidrGroup, Identity, IdentityNumber, IdentitySet, Label, LabelSet, LocalIdentities, NamedPort, Node, Pod,
    Requirement, Selector, Service, Source, Surroundings,
};

pub(crate) type Labels = &'static [(&'static str, &'static str)];

/// A pod; no two have the same labels, so each has an identity of its own.
#[derive(Debug)]
pub(crate) struct PodFacts {
    pub(crate) namespace: &'static str,
    pub(crate) labels: Labels,
    pub(crate) account: &'static str,
    pub(crate) cluster: &'static str,
    pub(crate) address: &'static str,
    /// Name, number and protocol of its ports.
    pub(crate) ports: &'static [(&'static str, u16, u8)],
}

#[derive(Debug)]
pub(crate) struct NodeFacts {
    pub(crate) name: &'static str,
    pub(crate) labels: Labels,
    pub(crate) address: &'static str,
}

#[derive(Debug)]
pub(crate) struct ServiceFacts {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    pub(crate) labels: Labels,
    /// A label of its pods, or nothing where addresses stand behind it.
    pub(crate) pods: Option<(&'static str, &'static str)>,
    pub(crate) addresses: &'static [&'static str],
}

const fn pod(
    namespace: &'static str,
    labels: Labels,
    account: &'static str,
    address: &'static str,
) -> PodFacts {
    PodFacts { namespace, labels, account, cluster: "near", address, ports: &[] }
}

pub(crate) const PODS: [PodFacts; 8] = [
    PodFacts {
        ports: &[("http", 80, 6), ("dns", 53, 17)],
        ..pod("x", &[("a", "0"), ("b", "0")], "default", "10.1.0.1")
    },
    PodFacts { ports: &[("HTTP", 81, 6)], ..pod("x", &[("a", "1"), ("app", "web")], "web", "10.1.0.2") },
    pod("x", &[("b", "1")], "default", "fd00:1::3"),
    PodFacts { ports: &[("http", 80, 17)], ..pod("y", &[("a", "0"), ("b", "0")], "default", "10.1.0.4") },
    pod("y", &[("a", "1"), ("b", "1")], "web", "10.1.0.5"),
    PodFacts { cluster: "far", ..pod("y", &[("a", "1"), ("b", "0")], "default", "10.9.0.6") },
    PodFacts { ports: &[("http", 82, 6)], ..pod("default", &[("a", "1")], "default", "10.1.0.7") },
    pod("default", &[], "web", "10.1.0.130"),
];

pub(crate) const NAMESPACES: [(&str, Labels); 3] =
    [("x", &[("team", "1"), ("kind", "0")]), ("y", &[("team", "0")]), ("default", &[])];

pub(crate) const NODES: [NodeFacts; 3] = [
    NodeFacts { name: "n1", labels: &[("a", "1"), ("zone", "0")], address: "10.1.0.250" },
    NodeFacts { name: "n2", labels: &[("a", "0")], address: "10.1.0.251" },
    NodeFacts { name: "n3", labels: &[("b", "1"), ("zone", "0")], address: "192.0.2.9" },
];

pub(crate) const SERVICES: [ServiceFacts; 3] = [
    ServiceFacts {
        namespace: "x",
        name: "web",
        labels: &[("kind", "svc")],
        pods: Some(("a", "1")),
        addresses: &[],
    },
    ServiceFacts {
        namespace: "x",
        name: "ext",
        labels: &[("kind", "ext")],
        pods: None,
        addresses: &["192.0.2.1", "2001:db8::1"],
    },
    ServiceFacts {
        namespace: "y",
        name: "web",
        labels: &[("kind", "svc")],
        pods: Some(("b", "0")),
        addresses: &[],
    },
];

/// Groups of prefixes: name, labels, prefixes.
pub(crate) const GROUPS: [(&str, Labels, &[&str]); 2] = [
    ("g", &[("kind", "group")], &["10.2.0.0/16", "198.51.100.0/24"]),
    ("h", &[("kind", "group"), ("a", "1")], &["10.2.1.0/24", "fd00:2::/32"]),
];

/// Names and their addresses.
pub(crate) const NAMES: [(&str, &[&str]); 3] = [
    ("a.example", &["192.0.2.7"]),
    ("b.a.example", &["192.0.2.1", "2001:db8::1"]),
    ("c.test", &["198.51.100.4"]),
];

/// Addresses outside the cluster.
pub(crate) const OUTSIDE: [&str; 10] = [
    "192.0.2.1",
    "192.0.2.7",
    "8.8.8.8",
    "10.2.1.5",
    "10.2.9.9",
    "10.1.0.200",
    "198.51.100.4",
    "fd00:1::1",
    "fd00:2::1",
    "2001:db8::1",
];

/// Reserved identities that are neither node nor world: their numbers and labels.
pub(crate) const RESERVED: [(IdentityNumber, &[&str]); 5] = [
    (3, &["unmanaged"]),
    (4, &["health"]),
    (5, &["init"]),
    (7, &["kube-apiserver", "remote-node"]),
    (8, &["ingress"]),
];

/// The node whose endpoints these are.
pub(crate) const OWN_NODE: &str = "n1";

/// One end of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Pod(&'static PodFacts),
    Node(&'static NodeFacts),
    Outside(&'static str),
    Reserved(&'static [&'static str]),
    /// An identity that nobody has told of.
    Stranger,
}

/// All ends that there are, but the world as such.
pub(crate) fn ends() -> impl Iterator<Item = End> {
    let pods = PODS.iter().map(End::Pod);
    let nodes = NODES.iter().map(End::Node);
    let outside = OUTSIDE.iter().map(|address| End::Outside(address));
    let reserved = RESERVED.iter().map(|(_, names)| End::Reserved(names));
    pods.chain(nodes).chain(outside).chain(reserved).chain([End::Stranger])
}

/// The ends that policies of this node are for.
pub(crate) fn locals() -> impl Iterator<Item = End> {
    ends().filter(|end| match end {
        End::Pod(_) => true,
        End::Reserved(names) => matches!(**names, ["health"] | ["init"] | ["ingress"]),
        End::Node(_) | End::Outside(_) | End::Stranger => false,
    })
}

impl End {
    /// The number of its identity, among these of prefixes and nodes.
    pub(crate) fn number(self, local: &LocalIdentities) -> IdentityNumber {
        match self {
            Self::Pod(pod) => {
                let place = PODS
                    .iter()
                    .position(|one| std::ptr::eq(one.labels, pod.labels) && one.address == pod.address);
                256 + u32::try_from(place.unwrap()).unwrap()
            }
            Self::Node(node) if node.name == OWN_NODE => 1,
            Self::Node(node) => local.identity_of_node(node.name),
            Self::Outside(address) => local.identity_of(address.parse().unwrap()),
            Self::Reserved(names) => RESERVED.iter().find(|(_, have)| *have == names).unwrap().0,
            Self::Stranger => 9999,
        }
    }
}

pub(crate) fn identities() -> IdentitySet {
    let identity = |(place, facts): (usize, &PodFacts)| {
        let pod = Pod { cluster: facts.cluster, namespace: facts.namespace, service_account: facts.account };
        let (_, of_namespace) = NAMESPACES.iter().find(|(name, _)| *name == facts.namespace).unwrap();
        let labels = pod.labels(facts.labels.iter().copied(), of_namespace.iter().copied()).unwrap();
        Identity::new(256 + u32::try_from(place).unwrap(), labels).unwrap()
    };
    IdentitySet::from_identities(PODS.iter().enumerate().map(identity)).unwrap()
}

pub(crate) fn surroundings() -> Surroundings {
    let mut made = Surroundings::default();
    made.host = Some(OWN_NODE.to_owned());
    for facts in &PODS {
        let number = End::Pod(facts).number(&LocalIdentities::default());
        made.addresses.insert(number, addresses(&[facts.address]));
        let ports = facts
            .ports
            .iter()
            .map(|(name, number, protocol)| (NamedPort::new(name, *protocol), BTreeSet::from([*number])));
        made.named_ports.insert(number, ports.collect());
    }
    // Of both the cluster state tells the addresses of all nodes.
    for node in [1, 6] {
        made.addresses.insert(node, NODES.iter().map(|node| node.address.parse().unwrap()).collect());
    }
    for facts in &SERVICES {
        let pods = facts.pods.map(|(key, value)| {
            let all = [(key, value), ("io.kubernetes.pod.namespace", facts.namespace)];
            let equals = |(key, value): (&str, &str)| {
                Requirement::equals(format!("k8s:{key}").parse().unwrap(), value)
            };
            Selector { requirements: all.map(equals).into() }
        });
        let service = Service { labels: labels(facts.labels), pods, addresses: addresses(facts.addresses) };
        made.services.insert((facts.namespace.to_owned(), facts.name.to_owned()), service);
    }
    for (name, of_group, nets) in GROUPS {
        let nets = nets.iter().map(|net| net.parse().unwrap()).collect();
        made.cidr_groups.insert(name.to_owned(), CidrGroup { labels: labels(of_group), nets });
    }
    made.names = NAMES.iter().map(|(name, of_name)| ((*name).to_owned(), addresses(of_name))).collect();
    let node = |facts: &NodeFacts| {
        (facts.name.to_owned(), Node { labels: labels(facts.labels), addresses: addresses(&[facts.address]) })
    };
    made.nodes = NODES.iter().map(node).collect::<BTreeMap<_, _>>();
    made
}

fn labels(all: Labels) -> LabelSet {
    LabelSet::from_labels(all.iter().map(|(key, value)| Label::new(Source::K8s, *key, *value).unwrap()))
        .unwrap()
}

fn addresses(all: &[&str]) -> BTreeSet<IpAddr> {
    all.iter().map(|address| address.parse().unwrap()).collect()
}
