//! An end of a trace: a pod, an identity, an address or an entity.

use std::{fmt, net::IpAddr, str::FromStr};

use policy::{Identity, IdentityNumber, LocalIdentities, RESERVED};

use super::{Error, node, service::Service};
use crate::cluster::{Cluster, Node, Pod};

/// An end as it is written. Prints and parses as `NAMESPACE/POD`, `identity:NUMBER`, `ip:ADDRESS` or
/// `entity:NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An identity.
    Identity(IdentityNumber),
    /// Whoever has this address.
    Address(IpAddr),
    /// An entity that is one identity.
    Entity(IdentityNumber),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Identity(number) => write!(f, "identity:{number}"),
            Self::Address(address) => write!(f, "ip:{address}"),
            Self::Entity(number) => {
                write!(f, "entity:{}", policy::reserved_name(*number).unwrap_or_default())
            }
        }
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no end; write NAMESPACE/POD, identity:NUMBER, ip:ADDRESS or entity:NAME");
        match text.split_once(':') {
            Some(("identity", number)) => number.parse().map(Self::Identity).map_err(|_error| {
                format!("`{number}` is no number of an identity, as `authctl identities list` has them")
            }),
            Some(("ip", address)) => {
                let wrong = |_error| format!("`{address}` is no address; write one, such as ip:192.0.2.7");
                address.parse().map(|ip: IpAddr| Self::Address(ip.to_canonical())).map_err(wrong)
            }
            Some(("entity", name)) => entity(name).map(Self::Entity),
            Some(_) => Err(wrong()),
            None => {
                let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
                if namespace.is_empty() || name.is_empty() || name.contains('/') {
                    return Err(wrong());
                }
                Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
            }
        }
    }
}

/// The identity of an entity that is one; `cluster` and `all` are many.
fn entity(name: &str) -> Result<IdentityNumber, String> {
    match name {
        "world-ipv4" => return Ok(policy::reserved::WORLD_IPV4),
        "world-ipv6" => return Ok(policy::reserved::WORLD_IPV6),
        _ => {}
    }
    let found = RESERVED.iter().find(|(_, names)| names.first() == Some(&name));
    found.map(|(number, _)| *number).ok_or_else(|| {
        let names: Vec<&str> = RESERVED.iter().filter_map(|(_, names)| names.first().copied()).collect();
        format!("`{name}` is not one identity; entities to trace are {}", names.join(", "))
    })
}

/// An end with its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Its number; 0 for an address inside the cluster that nobody has.
    pub(super) identity: IdentityNumber,
    /// Its labels.
    pub(super) labels: Vec<String>,
    /// Namespace and name of the pod, if it is one.
    pub(super) pod: Option<String>,
    /// Namespace and name of the service, if its address was given.
    pub(super) service: Option<String>,
    /// The address, if one was given.
    pub(super) address: Option<IpAddr>,
    /// The name of the node, if it is one and known which.
    pub(super) node: Option<String>,
}

impl End {
    /// Whoever is meant in this cluster: one, or, where it isn't said which node is, one of each kind that
    /// policies tell apart. Of a node's own address the other end decides whether it is its host.
    pub(super) fn resolve(&self, cluster: &Cluster, other: &Self) -> Result<Vec<Resolved>, Error> {
        let one = match self {
            Self::Identity(number @ (policy::reserved::HOST | policy::reserved::REMOTE_NODE))
            | Self::Entity(number @ (policy::reserved::HOST | policy::reserved::REMOTE_NODE)) => {
                return Ok(node::kinds(cluster, other.node(cluster), *number == policy::reserved::HOST));
            }
            Self::Pod { namespace, name } => {
                let pod = cluster.pod(namespace, name).ok_or_else(|| no_pod(cluster, namespace, name))?;
                of_pod(cluster, pod, other)?
            }
            Self::Entity(
                number @ (policy::reserved::WORLD
                | policy::reserved::WORLD_IPV4
                | policy::reserved::WORLD_IPV6),
            ) => of_world(cluster, *number),
            Self::Identity(number) | Self::Entity(number) => {
                let local = cluster.policies.local_identities(&cluster.surroundings);
                if cluster.identities.get(*number).is_none() && local.get(*number).is_none() {
                    return Err(Error(format!("there is no identity {number}")));
                }
                of_local(cluster, &local, *number)
            }
            Self::Address(address) => {
                let resolved = of_address(cluster, *address, other)?;
                Resolved { address: Some(*address), ..resolved }
            }
        };
        Ok(vec![one])
    }

    /// The service with this address, if pods stand behind it.
    pub(super) fn service<'a>(&self, cluster: &'a Cluster) -> Option<Service<'a>> {
        let Self::Address(address) = self else { return None };
        let mut services = cluster.services.iter();
        let (name, front) = services.find(|(_, front)| front.addresses.contains(address))?;
        Some(Service { name, front, address: *address })
    }

    /// The node that it is on, if that is known.
    fn node<'a>(&self, cluster: &'a Cluster) -> Option<&'a str> {
        match self {
            Self::Pod { namespace, name } => cluster.pod(namespace, name)?.node.as_deref(),
            Self::Address(address) => match node_with(cluster, *address) {
                Some(node) => Some(&node.name),
                None => pod_with(cluster, *address)?.node.as_deref(),
            },
            Self::Identity(_) | Self::Entity(_) => None,
        }
    }
}

fn of_identity(cluster: &Cluster, number: IdentityNumber) -> Resolved {
    let labels = cluster.identities.get(number).map(Identity::labels);
    Resolved {
        identity: number,
        labels: labels.into_iter().flatten().map(ToString::to_string).collect(),
        pod: None,
        service: None,
        address: None,
        node: None,
    }
}

/// A pod; of one on its node's network the other end decides whether it is its host.
pub(super) fn of_pod(cluster: &Cluster, pod: &Pod, other: &End) -> Result<Resolved, Error> {
    let full_name = format!("{}/{}", pod.namespace, pod.name);
    let end = match pod.identity {
        Some(number) => of_identity(cluster, number),
        None if pod.host_network => node::of_node(cluster, pod.node.as_deref(), other.node(cluster)),
        None => {
            return Err(Error(format!("Pod {full_name} has no identity; `authctl policy check` says why")));
        }
    };
    Ok(Resolved { pod: Some(full_name), ..end })
}

pub(super) fn of_address(cluster: &Cluster, address: IpAddr, other: &End) -> Result<Resolved, Error> {
    if let Some(Service { name: (namespace, name), .. }) = End::Address(address).service(cluster) {
        return Err(Error(format!("{address} is Service {namespace}/{name}: no packets come from it")));
    }
    if let Some(pod) = pod_with(cluster, address) {
        return of_pod(cluster, pod, other);
    }
    if let Some(node) = node_with(cluster, address) {
        return Ok(node::of_node(cluster, Some(&node.name), other.node(cluster)));
    }
    let in_cluster =
        cluster.nodes.values().flat_map(|node| &node.pod_cidrs).any(|range| range.contains(&address));
    if in_cluster {
        // Nobody's address in the cluster's ranges can't be decided about, so it is denied.
        return Ok(of_identity(cluster, policy::reserved::UNKNOWN));
    }
    let local = cluster.policies.local_identities(&cluster.surroundings);
    Ok(of_local(cluster, &local, local.identity_of(address)))
}

/// An address outside the cluster that no policy names; of IPv4, unless it is said.
fn of_world(cluster: &Cluster, family: IdentityNumber) -> Resolved {
    let local = cluster.policies.local_identities(&cluster.surroundings);
    let all = if family == policy::reserved::WORLD_IPV6 { policy::ALL_V6 } else { policy::ALL_V4 };
    let number = local.by_net().get(&all).copied().unwrap_or(policy::reserved::WORLD);
    of_local(cluster, &local, number)
}

/// An identity that may be known on one node only.
pub(super) fn of_local(cluster: &Cluster, local: &LocalIdentities, number: IdentityNumber) -> Resolved {
    let Some(remote) = local.get(number) else { return of_identity(cluster, number) };
    let labels = remote.labels.iter().map(ToString::to_string).collect();
    Resolved { labels, ..of_identity(cluster, number) }
}

fn pod_with(cluster: &Cluster, address: IpAddr) -> Option<&Pod> {
    cluster.pods.iter().find(|pod| pod.addresses.contains(&address))
}

fn node_with(cluster: &Cluster, address: IpAddr) -> Option<&Node> {
    cluster.nodes.values().find(|node| node.addresses.contains(&address))
}

fn no_pod(cluster: &Cluster, namespace: &str, name: &str) -> Error {
    if cluster.ended.contains(&(namespace.to_owned(), name.to_owned())) {
        return Error(format!("Pod {namespace}/{name} has ended: nothing comes from it or reaches it"));
    }
    let mut others = cluster.pods.iter().filter(|pod| pod.name == name);
    let elsewhere = others.next().map(|pod| format!("; there is one in namespace {}", pod.namespace));
    let beside = || {
        let names = cluster.pods.iter().filter(|pod| pod.namespace == namespace).map(|pod| pod.name.as_str());
        policy::nearest(name, names).map(|meant| format!("; did you mean `{namespace}/{meant}`?"))
    };
    Error(format!("there is no Pod {namespace}/{name}{}", elsewhere.or_else(beside).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_parsed() {
        let pod = |namespace: &str, name: &str| End::Pod { namespace: namespace.into(), name: name.into() };
        for (text, end) in [
            ("galaxy/xwing", pod("galaxy", "xwing")),
            ("xwing", pod("default", "xwing")),
            ("identity:256", End::Identity(256)),
            ("ip:192.0.2.1", End::Address([192, 0, 2, 1].into())),
            ("ip:::ffff:192.0.2.1", End::Address([192, 0, 2, 1].into())),
            ("entity:world", End::Entity(2)),
            ("entity:kube-apiserver", End::Entity(7)),
        ] {
            assert_eq!(text.parse::<End>().unwrap(), end, "{text}");
            assert_eq!(end.to_string().parse::<End>().unwrap(), end, "{text}");
        }
    }

    #[test]
    fn what_is_no_end_is_refused_in_words() {
        for text in ["", "/x", "x/", "a/b/c", "pod:x"] {
            let expected = format!(
                "`{text}` is no end; write NAMESPACE/POD, identity:NUMBER, ip:ADDRESS or entity:NAME"
            );
            assert_eq!(text.parse::<End>().unwrap_err(), expected);
        }
        for (text, expected) in [
            ("identity:x", "`x` is no number of an identity, as `authctl identities list` has them"),
            ("ip:10.0.0.0/8", "`10.0.0.0/8` is no address; write one, such as ip:192.0.2.7"),
            (
                "entity:all",
                "`all` is not one identity; entities to trace are host, world, unmanaged, health, init, remote-node, kube-apiserver, ingress",
            ),
        ] {
            assert_eq!(text.parse::<End>().unwrap_err(), expected);
        }
    }
}
