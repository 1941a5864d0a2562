//! What policy says about packets between two ends of a cluster, for `authctl policy trace` with and without
//! a daemon.

mod end;
mod message;
mod node;
mod port;
mod service;

#[cfg(test)]
mod tests;

use policy::{
    Condition, ConditionKind, Input, NamedPort, Nodes, ObjectRef, RuleRef, Trace, TraceVerdict, Traffic,
    reserved,
};

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

/// What the policies of this cluster say. Where it isn't said which node is an end, the strictest of what they
/// say of each counts.
///
/// # Errors
/// [`Error`] in words for people, if an end or a port's name isn't in the cluster.
pub fn answer(cluster: &Cluster, question: &Question) -> Result<v1::PolicyTrace, Error> {
    let Question { from, to, port } = question;
    let sources = from.resolve(cluster, to)?;
    let (destinations, port) = match to.service(cluster) {
        None => (to.resolve(cluster, from)?, port.clone()),
        Some(service) => {
            let (destination, port) = service.resolve(cluster, from, port)?;
            (vec![destination], port)
        }
    };
    let is_one = sources.len() == 1 && destinations.len() == 1;
    let pairs =
        sources.iter().flat_map(|source| destinations.iter().map(move |destination| (source, destination)));
    let mut strictest: Option<(&Resolved, &Resolved, Trace)> = None;
    for (source, destination) in pairs {
        let trace = between(cluster, source, destination, &port)?;
        if strictest.as_ref().is_none_or(|(.., before)| strictness(&trace) > strictness(before)) {
            strictest = Some((source, destination, trace));
        }
    }
    let (source, destination, trace) = strictest.ok_or_else(nobody)?;
    let mut notes = notes(cluster, [source, destination], is_one);
    notes.extend(unkept(cluster, &trace));
    Ok(message::trace(source.clone(), destination.clone(), &port, &trace, notes))
}

fn strictness(trace: &Trace) -> impl Ord + use<> {
    (trace.verdict == TraceVerdict::Denied, trace.authentication, trace.encryption)
}

/// Traces packets between two ends. A policy for nodes counts at an end that is one, and `host` is the one that
/// has the other end on it.
fn between(cluster: &Cluster, from: &Resolved, to: &Resolved, port: &Port) -> Result<Trace, Error> {
    if from.pod.is_some() && from.pod == to.pod {
        return Ok(Trace::within_a_pod());
    }
    let number = match &port.number {
        Number::None => port.of_none(),
        Number::Given(number) => *number,
        Number::Named(name) => named(cluster, to, &NamedPort::new(name, port.protocol))?,
    };
    let traffic =
        Traffic { from: from.identity, to: to.identity, protocol: port.protocol, port: port.in_key(number) };
    let host = [from, to].into_iter().find(|end| end.identity == reserved::HOST);
    let mut surroundings = cluster.surroundings.clone();
    surroundings.host = host.and_then(|host| host.node.clone());
    let labels = |end: &Resolved| {
        let node = cluster.surroundings.nodes.get(end.node.as_ref()?);
        node.map(|node| &node.labels)
    };
    let nodes = Nodes { from: labels(from), to: labels(to) };
    let input = Input { surroundings: &surroundings, ..cluster.policy_input() };
    Ok(policy::trace_with_nodes(input, traffic, nodes))
}

/// Who two ends are in this cluster; where it isn't said which node is meant, one of them.
///
/// # Errors
/// As [`answer`].
pub fn ends(cluster: &Cluster, from: &End, to: &End) -> Result<(v1::TraceEnd, v1::TraceEnd), Error> {
    let one = |ends: Vec<Resolved>| ends.into_iter().next().map(message::end).ok_or_else(nobody);
    Ok((one(from.resolve(cluster, to)?)?, one(to.resolve(cluster, from)?)?))
}

fn nobody() -> Error {
    Error("there is nobody like this in the cluster".to_owned())
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

/// What is to be said of ends that are nodes: no hook enforces the policies for them, and whether it is known
/// which node is meant.
fn notes(cluster: &Cluster, ends: [&Resolved; 2], is_one: bool) -> Vec<String> {
    let is_node = |end: &&Resolved| {
        end.node.is_some()
            || [reserved::HOST, reserved::REMOTE_NODE, reserved::KUBE_APISERVER].contains(&end.identity)
    };
    let mut notes = Vec::new();
    let for_nodes = cluster.policies.iter().filter(|policy| policy.is_for_nodes());
    for policy in for_nodes.filter(|_| ends.iter().any(is_node)) {
        let is_told = |path: &str| policy.refused.is_some() || path.ends_with("nodeSelector");
        let conditions = policy.conditions.iter().filter(|condition| is_told(&condition.path));
        notes.extend(conditions.map(|condition| in_words(&policy.object, condition)));
    }
    if !is_one {
        let names: Vec<&str> = ends.iter().filter_map(|end| end.node.as_deref()).collect();
        let nodes = names.join(" and ");
        notes.push(format!(
            "policies tell nodes apart, and it isn't said which one is meant: this is the strictest, of \
             {nodes}; name a node by ip:ADDRESS"
        ));
    }
    notes
}

fn in_words(object: &ObjectRef, condition: &Condition) -> String {
    format!("{object}: {}: {}", condition.path, condition.message)
}

/// What isn't supported of the rules that were considered where it is denied.
fn unkept(cluster: &Cluster, trace: &Trace) -> Vec<String> {
    let denied =
        [&trace.egress, &trace.ingress].into_iter().filter(|end| end.verdict == TraceVerdict::Denied);
    let mut notes = Vec::new();
    for considered in denied.flat_map(|end| &end.considered) {
        let RuleRef::Rule { object, spec, list, rule } = &considered.rule else { continue };
        let spec = spec.map_or_else(|| "spec".to_owned(), |place| format!("specs[{place}]"));
        let path = format!("{spec}.{}[{rule}]", list.as_str());
        let is_of_rule = |condition: &&Condition| {
            let rest = condition.path.strip_prefix(&path);
            condition.kind == ConditionKind::Unsupported
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let policy = cluster.policies.iter().find(|policy| policy.object == *object);
        let conditions = policy.into_iter().flat_map(|policy| policy.conditions.iter().filter(is_of_rule));
        notes.extend(conditions.map(|condition| in_words(object, condition)));
    }
    notes
}
