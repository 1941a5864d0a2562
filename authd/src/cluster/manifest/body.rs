//! What each kind of object says, out of the fields in use.

use std::collections::BTreeMap;
use std::net::IpAddr;

use policy::{Identity, Policy};
use serde_json::Value;

use super::spec::{self, Header};
use super::{Body, Mistake, ObjectKey, PodBody, Scope, check_name, strict, typed};

/// Reads an object's body.
pub(super) fn read(key: &ObjectKey, header: Header, value: &Value, scope: Scope) -> Result<Body, Mistake> {
    if scope == Scope::Policy {
        return policy_body(value);
    }
    let labels = header.metadata.labels.unwrap_or_default();
    match key.kind.as_str() {
        "Namespace" => Ok(Body::Namespace { labels }),
        "Node" => node_body(typed(value)?),
        "Pod" => Ok(Body::Pod(pod_body(labels, typed(value)?)?)),
        "Identity" => {
            known(value, &spec::IDENTITY)?;
            identity_body(&key.name, typed(value)?)
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
        Ok(policy) => Ok(Body::Policy(Box::new(policy))),
        Err(error) => {
            let fault = error.fault();
            Err(Mistake::new(&fault.path, fault.problem.to_string()))
        }
    }
}

fn node_body(node: spec::Node) -> Result<Body, Mistake> {
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
    Ok(Body::Node { addresses, pod_cidrs })
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
    let service_account = spec.service_account_name.filter(|name| !name.is_empty());
    // What the API server fills in when it is left out.
    let service_account = service_account.unwrap_or_else(|| "default".to_owned());
    check_name("spec.serviceAccountName", &service_account)?;
    Ok(PodBody {
        labels,
        node: spec.node_name.filter(|name| !name.is_empty()),
        service_account,
        host_network: spec.host_network.unwrap_or_default(),
        has_ended,
        addresses,
    })
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

fn known(value: &Value, shape: &strict::Shape) -> Result<(), Mistake> {
    match strict::unknown_field(value, shape) {
        Some(unknown) => Err(Mistake::new(unknown.field, unknown.message)),
        None => Ok(()),
    }
}
