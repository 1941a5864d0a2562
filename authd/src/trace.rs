//! What policy says about packets between two ends of a cluster, for `authctl policy trace` with and without
//! a daemon.

mod end;
mod message;
mod port;
mod service;

#[cfg(test)]
mod tests;

use policy::{IdentityNumber, NamedPort, Trace, Traffic, reserved};

use crate::{api::v1, cluster::Cluster};
pub use end::End;
use end::Resolved;
pub use port::{Number, Port};

/// Packets that are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Where they come from.
    pub from: End,
    /// Where they go.
    pub to: End,
    /// Their protocol and port.
    pub port: Port,
}

impl TryFrom<&v1::TracePolicyRequest> for Question {
    /// Which part of it isn't understood, in words.
    type Error = String;

    fn try_from(request: &v1::TracePolicyRequest) -> Result<Self, String> {
        Ok(Self { from: request.from.parse()?, to: request.to.parse()?, port: request.port.parse()? })
    }
}

/// Why nothing can be said: an end that isn't there, or isn't one identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// What the policies of this cluster say.
///
/// # Errors
/// [`Error`] in words for people, if an end or a port's name isn't in the cluster.
pub fn answer(cluster: &Cluster, question: &Question) -> Result<v1::PolicyTrace, Error> {
    let Question { from, to, port } = question;
    let (source, (destination, port)) = match to.service(cluster) {
        None => (from.resolve(cluster, to)?, (to.resolve(cluster, from)?, port.clone())),
        Some(service) => (from.resolve(cluster, to)?, service.resolve(cluster, from, port)?),
    };
    let number = match &port.number {
        Number::None => port.of_none(),
        Number::Given(number) => *number,
        Number::Named(name) => named(cluster, &destination, &NamedPort::new(name, port.protocol))?,
    };
    let traffic = Traffic {
        from: source.identity,
        to: destination.identity,
        protocol: port.protocol,
        port: port.in_key(number),
    };
    let is_same_pod = source.pod.is_some() && source.pod == destination.pod;
    let trace =
        if is_same_pod { Trace::within_a_pod() } else { policy::trace(cluster.policy_input(), traffic) };
    let notes = notes(cluster, [source.identity, destination.identity]);
    Ok(message::trace(source, destination, &port, &trace, notes))
}

/// Who two ends are in this cluster.
///
/// # Errors
/// As [`answer`].
pub fn ends(cluster: &Cluster, from: &End, to: &End) -> Result<(v1::TraceEnd, v1::TraceEnd), Error> {
    let (source, destination) = (from.resolve(cluster, to)?, to.resolve(cluster, from)?);
    Ok((message::end(source), message::end(destination)))
}

/// The policies of this cluster.
#[must_use]
pub fn policies(cluster: &Cluster) -> Vec<v1::Policy> {
    let conditions = cluster.policies.conditions(&cluster.identities, &cluster.surroundings);
    let of = |policy: &policy::Policy| {
        let conditions = conditions.get(&policy.object).map(Vec::as_slice).unwrap_or_default();
        message::policy(policy, conditions)
    };
    cluster.policies.iter().map(of).collect()
}

/// The number that the destination gives a port's name.
fn named(cluster: &Cluster, to: &Resolved, port: &NamedPort) -> Result<u16, Error> {
    let pod = to.pod.as_ref().and_then(|pod| pod.split_once('/'));
    let of_pod = match pod.and_then(|(namespace, name)| cluster.pod(namespace, name)) {
        Some(pod) => pod.named_ports.iter().find(|(name, _)| name == port).map(|(_, number)| *number),
        None => cluster.surroundings.numbers_of(port, to.identity, false).first().copied(),
    };
    of_pod.ok_or_else(|| Error(format!("the destination has no port with the name `{}`", port.name)))
}

/// What isn't in the verdict: policies for nodes, where an end is one.
fn notes(cluster: &Cluster, ends: [IdentityNumber; 2]) -> Vec<String> {
    let is_node = |end: &IdentityNumber| {
        [reserved::HOST, reserved::REMOTE_NODE, reserved::KUBE_APISERVER].contains(end)
    };
    if !ends.iter().any(is_node) {
        return Vec::new();
    }
    let of_nodes = cluster.policies.iter().flat_map(|policy| {
        let conditions =
            policy.conditions.iter().filter(|condition| condition.path.ends_with("nodeSelector"));
        conditions.map(|condition| format!("{}: {}: {}", policy.object, condition.path, condition.message))
    });
    of_nodes.collect()
}
