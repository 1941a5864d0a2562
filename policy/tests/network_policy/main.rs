//! NetworkPolicy on the cluster of Kubernetes' end-to-end tests: three namespaces with three pods each, ports
//! 80 and 81 over TCP, UDP and SCTP, and for each policy who reaches whom.
//!
//! The expected tables are written from what the tests and the API reference say, as a function of source,
//! destination, protocol and port; every combination is asked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rules;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use policy::{
    Identity, IdentityNumber, IdentitySet, Input, NamedPort, Pod, Policy, PolicySet, Surroundings,
    TraceVerdict, Traffic, protocol, trace,
};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 2] = [80, 81];
const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

/// A pod: namespace and name.
type Name = (&'static str, &'static str);

struct Cluster {
    identities: IdentitySet,
    surroundings: Surroundings,
    numbers: BTreeMap<Name, IdentityNumber>,
}

/// As the tests' model makes it: pods have label `pod`, namespaces label `ns`, ports names like
/// `serve-80-tcp`, every pod an address.
fn cluster() -> Cluster {
    cluster_with(|_| vec![], |_| vec![])
}

/// The same, where some pods or namespaces have more labels.
fn cluster_with(
    more: impl Fn(Name) -> Vec<(&'static str, &'static str)>,
    more_of_namespace: impl Fn(&'static str) -> Vec<(&'static str, &'static str)>,
) -> Cluster {
    let mut cluster = Cluster {
        identities: IdentitySet::new(),
        surroundings: Surroundings::default(),
        numbers: BTreeMap::new(),
    };
    for (at, namespace) in NAMESPACES.into_iter().enumerate() {
        for (index, name) in PODS.into_iter().enumerate() {
            let number = 256 + u32::try_from(at * 3 + index).unwrap();
            let mut labels = vec![("pod", name)];
            labels.extend(more((namespace, name)));
            let pod = Pod { cluster: "default", namespace, service_account: "default" };
            let mut of_namespace = vec![("ns", namespace), ("kubernetes.io/metadata.name", namespace)];
            of_namespace.extend(more_of_namespace(namespace));
            let labels = pod.labels(labels, of_namespace).unwrap();
            cluster.identities.insert(Identity::new(number, labels).unwrap()).unwrap();
            cluster.numbers.insert((namespace, name), number);
            cluster.surroundings.addresses.insert(number, BTreeSet::from([address((namespace, name))]));
            let ports = cluster.surroundings.named_ports.entry(number).or_default();
            for (protocol, word) in PROTOCOLS.into_iter().zip(["tcp", "udp", "sctp"]) {
                for port in PORTS {
                    let name = NamedPort::new(&format!("serve-{port}-{word}"), protocol);
                    ports.insert(name, BTreeSet::from([port]));
                }
            }
        }
    }
    cluster
}

fn address((namespace, name): Name) -> IpAddr {
    let place = |list: [&str; 3], one| list.iter().position(|have| *have == one).unwrap();
    let (a, b) = (place(NAMESPACES, namespace), place(PODS, name));
    IpAddr::from([10, 244, u8::try_from(a).unwrap(), u8::try_from(b + 1).unwrap()])
}

fn policies(yaml: &[&str]) -> PolicySet {
    yaml.iter().map(|yaml| Policy::from_value(&serde_saphyr::from_str(yaml).unwrap()).unwrap()).collect()
}

/// `spec` of a NetworkPolicy in this namespace.
fn policy(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: '{namespace}'}}, spec: {spec}}}"
    )
}

fn is_allowed(
    cluster: &Cluster,
    policies: &PolicySet,
    from: IdentityNumber,
    to: IdentityNumber,
    protocol: u8,
    port: u16,
) -> bool {
    let input = Input { policies, identities: &cluster.identities, surroundings: &cluster.surroundings };
    trace(input, Traffic { from, to, protocol, port }).verdict == TraceVerdict::Allowed
}

/// Asks for every pair of pods, protocol and port.
#[track_caller]
fn check(cluster: &Cluster, yaml: &[String], expected: impl Fn(Name, Name, u8, u16) -> bool) {
    let yaml: Vec<&str> = yaml.iter().map(String::as_str).collect();
    let policies = policies(&yaml);
    for (from, from_number) in &cluster.numbers {
        // A pod always reaches itself; that traffic never leaves it.
        for (to, to_number) in cluster.numbers.iter().filter(|(to, _)| *to != from) {
            for protocol in PROTOCOLS {
                for port in PORTS {
                    assert_eq!(
                        is_allowed(cluster, &policies, *from_number, *to_number, protocol, port),
                        expected(*from, *to, protocol, port),
                        "{from:?} -> {to:?} {port}/{protocol} under {yaml:?}"
                    );
                }
            }
        }
    }
}

const XA: Name = ("x", "a");
