//! What each kind of object says, out of the fields in use.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use policy::{Identity, NamedPort, Policy};
use serde_json::Value;

use super::super::revocation::Revoked;
use super::spec::{self, Header};
use super::{Body, Mistake, ObjectKey, PodBody, Scope, check_name, cilium, service, strict, typed};

/// What a kubelet writes on the image of a pod that stands in its own files.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Where a node's WireGuard key may be said.
const WIREGUARD_KEY: &str = "authd.io/wireguard-key";

/// Reads an object's body.
pub(super) fn read(key: &ObjectKey, header: Header, value: &Value, scope: Scope) -> Result<Body, Mistake> {
    if scope == Scope::Policy {
        return policy_body(value);
    }
    let labels = header.metadata.labels.unwrap_or_default();
    match key.kind.as_str() {
        "Namespace" => {
            let audit = audit(header.metadata.annotations.as_ref())?;
            Ok(Body::Namespace { labels, audit })
        }
        "Node" => {
            let claimed_key = header.metadata.annotations.and_then(|mut all| all.remove(WIREGUARD_KEY));
            node_body(labels, claimed_key, typed(value)?)
        }
        "Service" => service::service(labels, typed(value)?),
        "EndpointSlice" => Ok(service::slice(&labels, typed(value)?)),
        "Endpoints" => {
            let spec::Endpoints { subsets } = typed(value)?;
            let addresses = subsets.into_iter().flatten().filter_map(|subset| subset.addresses).flatten();
            let addresses = addresses.filter_map(|one| address(&one.ip)).collect();
            Ok(Body::Endpoints { service: key.name.clone(), addresses, slice: None })
        }
        "CiliumCIDRGroup" => {
            let spec::CidrGroup { spec } = typed(value)?;
            let nets = spec.external_cidrs.into_iter().map(|spec::Parsed(net)| net.trunc()).collect();
            Ok(Body::CidrGroup { labels, nets })
        }
        "Pod" => {
            let mirrors = |annotations: BTreeMap<String, String>| annotations.contains_key(MIRROR);
            let mirror = header.metadata.annotations.is_some_and(mirrors);
            Ok(Body::Pod(PodBody { mirror, ..pod_body(labels, typed(value)?)? }))
        }
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Ok(workload_body(&["spec", "template"], value))
        }
        "CronJob" => Ok(workload_body(&["spec", "jobTemplate", "spec", "template"], value)),
        kind if cilium::KINDS.contains(&kind) => {
            let read = cilium::read(kind, &key.name, labels, value);
            Ok(Body::StandIn(read.map(Box::new).map_err(|mistake| (mistake.field, mistake.message))))
        }
        "Identity" => {
            known(value, &spec::IDENTITY)?;
            identity_body(&key.name, typed(value)?)
        }
        "Revocation" => {
            known(value, &spec::REVOCATION)?;
            revocation_body(typed(value)?)
        }
        _ => {
            known(value, &spec::NODE_NUMBER)?;
            let spec::NodeNumber { spec } = typed(value)?;
            match spec.number {
                0 => Err(Mistake::new("spec.number", "0 stands for \"this node\"; numbers start at 1")),
                number => Ok(Body::NodeNumber(number)),
            }
        }
    }
}

fn policy_body(value: &Value) -> Result<Body, Mistake> {
    match Policy::from_value(value) {
        Ok(policy) => Ok(Body::Policy(Arc::new(policy))),
        Err(error) => {
            let fault = error.fault();
            Err(Mistake::new(&fault.path, fault.problem.to_string()))
        }
    }
}

/// Whether a namespace's annotation says that policies are only tried on its endpoints.
fn audit(annotations: Option<&BTreeMap<String, String>>) -> Result<bool, Mistake> {
    const AUDIT: &str = "policy.authd.io/audit";
    match annotations.and_then(|annotations| annotations.get(AUDIT)).map(String::as_str) {
        None | Some("disabled" | "false") => Ok(false),
        Some("enabled" | "true") => Ok(true),
        Some(_) => {
            Err(Mistake::new(format!("metadata.annotations[{AUDIT:?}]"), "must be `enabled` or `disabled`"))
        }
    }
}

/// An address of an endpoint; names of hosts, which EndpointSlices may hold too, are none.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// The ports with names, of init containers that stay too.
fn named_ports(spec: &spec::PodSpec) -> Vec<(NamedPort, u16)> {
    let containers = spec.containers.iter().chain(&spec.init_containers).flatten();
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        let protocol = policy::protocol::number(port.protocol.as_deref().unwrap_or("TCP"))?;
        Some((NamedPort::new(port.name.as_deref()?, protocol), port.container_port))
    });
    named.collect()
}

fn node_body(
    labels: BTreeMap<String, String>,
    claimed_key: Option<String>,
    node: spec::Node,
) -> Result<Body, Mistake> {
    let spec = node.spec.unwrap_or_default();
    let one = spec.pod_cidr.map(|cidr| vec![cidr]);
    let mut pod_cidrs = Vec::new();
    for (index, spec::Parsed(cidr)) in spec.pod_cidrs.or(one).unwrap_or_default().into_iter().enumerate() {
        if cidr != cidr.trunc() {
            let message = format!("\"{cidr}\" has host bits; \"{}\" is meant?", cidr.trunc());
            return Err(Mistake::new(format!("spec.podCIDRs[{index}]"), message));
        }
        pod_cidrs.push(cidr);
    }
    let mut addresses = Vec::new();
    let declared = node.status.unwrap_or_default().addresses.unwrap_or_default();
    for (index, address) in
        declared.into_iter().enumerate().filter(|(_, address)| address.kind == "InternalIP")
    {
        let field = format!("status.addresses[{index}].address");
        match address.address.parse::<IpAddr>() {
            Ok(ip) => addresses.push((field, ip.to_canonical())),
            Err(error) => return Err(Mistake::new(field, format!("\"{}\": {error}", address.address))),
        }
    }
    Ok(Body::Node { labels, addresses, pod_cidrs, claimed_key })
}

fn pod_body(labels: BTreeMap<String, String>, pod: spec::Pod) -> Result<PodBody, Mistake> {
    let status = pod.status.unwrap_or_default();
    let has_ended = status.phase.is_some_and(|phase| phase == "Succeeded" || phase == "Failed");
    let listed = status.pod_ips.map(|ips| {
        let ips = ips.into_iter().enumerate();
        ips.map(|(index, ip)| (format!("status.podIPs[{index}].ip"), ip.ip.0.to_canonical())).collect()
    });
    let one =
        || status.pod_ip.map(|ip| ("status.podIP".to_owned(), ip.0.to_canonical())).into_iter().collect();
    let addresses: Vec<_> = listed.unwrap_or_else(one);
    let spec = pod.spec.unwrap_or_default();
    let named_ports = named_ports(&spec);
    let given = |name: Option<String>| name.filter(|name| !name.is_empty());
    let service_account = given(spec.service_account_name).or_else(|| given(spec.service_account));
    // What the API server fills in when it is left out.
    let service_account = service_account.unwrap_or_else(|| "default".to_owned());
    check_name("spec.serviceAccountName", &service_account)?;
    Ok(PodBody {
        labels,
        named_ports,
        node: spec.node_name.filter(|name| !name.is_empty()),
        service_account,
        host_network: spec.host_network.unwrap_or_default(),
        has_ended,
        mirror: false,
        addresses,
        identity: None,
    })
}

/// A pod as the template at `path` has it.
fn workload_body(path: &[&str], value: &Value) -> Body {
    let read = || {
        let template = path.iter().try_fold(value, |value, name| value.get(name));
        let template = template.ok_or_else(|| Mistake::new("", "missing"))?;
        let spec::Template { metadata, spec } = typed(template)?;
        pod_body(metadata.labels.unwrap_or_default(), spec::Pod { spec, status: None })
    };
    let within = |mistake: Mistake| {
        let field = [path.join("."), mistake.field].join(".");
        (field.trim_end_matches('.').to_owned(), mistake.message)
    };
    Body::StandIn(read().map(|pod| Box::new(Body::Pod(pod))).map_err(within))
}

fn identity_body(name: &str, identity: spec::Identity) -> Result<Body, Mistake> {
    // Leading zeros would give one number two names.
    let number = name.parse::<u32>().ok().filter(|number| number.to_string() == name);
    let number = number.ok_or_else(|| {
        Mistake::new("metadata.name", format!("\"{name}\" is no identity number; the name is the number"))
    })?;
    let identity = Identity::from_spec(number, identity.spec);
    identity
        .map(|identity| Body::Identity(Box::new(identity)))
        .map_err(|error| Mistake::new("", error.to_string()))
}

fn revocation_body(revocation: spec::Revocation) -> Result<Body, Mistake> {
    let spec::RevocationSpec { identity, node } = revocation.spec;
    match (identity, node) {
        (Some(number), None) => Ok(Body::Revocation(Revoked::Identity(number))),
        (None, Some(name)) => Ok(Body::Revocation(Revoked::Node(name))),
        _ => Err(Mistake::new("spec", "one of `identity` and `node` must be there, and not both")),
    }
}

fn known(value: &Value, shape: &strict::Shape) -> Result<(), Mistake> {
    match strict::unknown_field(value, shape) {
        Some(unknown) => Err(Mistake::new(unknown.field, unknown.message)),
        None => Ok(()),
    }
}
