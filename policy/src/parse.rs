//! From an object as users write it to a [`Policy`].
//!
//! Every field is known by name. An unknown one, or one that has the wrong form, refuses the whole object;
//! a known one that isn't supported takes the effect of its rule and leaves a condition. Nothing is skipped.

mod addresses;
mod annotations;
mod icmp;
mod label_syntax;
mod network_policy;
mod node;
mod peers;
mod policy_error;
mod ports;
mod selector;
mod spec;

pub use policy_error::{Fault, PolicyError, Problem};

use serde_json::Value;

use crate::condition::{Condition, ConditionKind};
use crate::nearest::nearest;
use crate::object::{Kind, ObjectRef};
use crate::rule::{Policy, Subject};
use crate::selector::Selector;
use node::Node;

/// Namespace of an object that doesn't say one, as in Kubernetes.
const DEFAULT_NAMESPACE: &str = "default";

impl Policy {
    /// The policy that an object describes: CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or
    /// NetworkPolicy.
    ///
    /// # Errors
    /// [`PolicyError`] if the object can't be understood; [`PolicyError::into_policy`] then denies what it is
    /// about.
    pub fn from_value(value: &Value) -> Result<Self, PolicyError> {
        let object = object_ref(value);
        match parse(value, &object) {
            Ok(policy) => Ok(policy),
            Err(fault) => Err(PolicyError::new(scope(value, &object), object, fault)),
        }
    }

    /// The policy that an object describes, or if it can't be understood one that denies everything which
    /// the object is about, with the reason as condition.
    #[must_use]
    pub fn from_value_or_deny(value: &Value) -> Self {
        Self::from_value(value).unwrap_or_else(PolicyError::into_policy)
    }
}

impl PolicyError {
    /// A policy in place of the object: it denies everything that the object is about.
    #[must_use]
    pub fn into_policy(self) -> Policy {
        let Fault { path, problem } = self.fault().clone();
        let (object, scope) = self.into_parts();
        let mut policy =
            Policy { object, specs: Vec::new(), refused: Some(scope), audit: false, conditions: Vec::new() };
        let message = format!("{problem}; {}", policy.consequence());
        policy.conditions.push(Condition { kind: ConditionKind::Refused, path, message });
        policy
    }
}

fn object_ref(value: &Value) -> ObjectRef {
    let text = |pointer| value.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").map_or(Kind::Unknown, Kind::from_name);
    let namespace = match text("/metadata/namespace").filter(|namespace| !namespace.is_empty()) {
        // An API server takes the namespace out of an object of the cluster.
        _ if kind == Kind::CiliumClusterwideNetworkPolicy => "",
        Some(namespace) => namespace,
        None if kind.is_namespaced() => DEFAULT_NAMESPACE,
        None => "",
    };
    let name = text("/metadata/name").unwrap_or_default();
    ObjectRef { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

fn parse(value: &Value, object: &ObjectRef) -> Result<Policy, Fault> {
    let root = Node::root(value);
    let version = match object.kind {
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => "cilium.io/v2",
        Kind::NetworkPolicy => "networking.k8s.io/v1",
        Kind::Unknown => {
            let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
            let known =
                [Kind::CiliumNetworkPolicy, Kind::CiliumClusterwideNetworkPolicy, Kind::NetworkPolicy];
            // A policy of somebody else's API is no misspelling.
            let group = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
            let is_ours =
                ["cilium.io", "networking.k8s.io"].contains(&group.split('/').next().unwrap_or_default());
            let meant = nearest(kind, known.map(Kind::as_str)).filter(|_| is_ours);
            let hint = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
            return Err(Fault::new("kind", Problem::UnknownKind { hint }));
        }
    };
    let mut known = vec!["apiVersion", "kind", "metadata", "spec", "status"];
    if object.kind != Kind::NetworkPolicy {
        // Cilium's examples have a description there, which an API server prunes.
        known.extend(["specs", "description"]);
    }
    let fields = root.fields(&known)?;
    let found = fields.require("apiVersion")?;
    if found.text()? != version {
        return Err(found.fault(Problem::Version { expected: version }));
    }
    if object.name.is_empty() {
        return Err(Fault::new("metadata.name", Problem::Missing));
    }
    let annotations = annotations::parse(fields.get("metadata"))?;
    let mut conditions = Vec::new();
    let mut specs = Vec::new();
    if let Some(node) = fields.get("spec") {
        specs.push(match object.kind {
            Kind::NetworkPolicy => network_policy::parse(&node, object)?,
            Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy | Kind::Unknown => {
                spec::parse(&node, None, object, &mut conditions)?
            }
        });
    }
    for (place, node) in fields.items("specs")?.unwrap_or_default().iter().enumerate() {
        specs.push(spec::parse(node, Some(place), object, &mut conditions)?);
    }
    if specs.is_empty() {
        return Err(Fault::new("spec", Problem::Missing));
    }
    let audit = annotations.audit;
    annotations.apply(&mut specs)?;
    Ok(Policy { object: object.clone(), specs, refused: None, audit, conditions })
}

/// What a refused object is about: what its selectors select if they can be understood, otherwise its
/// namespace, otherwise everything.
fn scope(value: &Value, object: &ObjectRef) -> Vec<Subject> {
    let everything = || vec![Subject::Endpoints(namespace_scope(object))];
    if object.kind == Kind::Unknown {
        let nodes = object.namespace.is_empty().then(|| Subject::Nodes(Selector::default()));
        return everything().into_iter().chain(nodes).collect();
    }
    let spec = value.get("spec").filter(|spec| !spec.is_null());
    let specs = value.get("specs").and_then(Value::as_array);
    let all = spec.into_iter().chain(specs.into_iter().flatten());
    let subjects: Option<Vec<Vec<Subject>>> = all.map(|spec| scope_of_spec(spec, object)).collect();
    let subjects = subjects.unwrap_or_default().concat();
    if subjects.is_empty() { everything() } else { subjects }
}

/// Whom a spec is for; none if that can't be understood.
fn scope_of_spec(spec: &Value, object: &ObjectRef) -> Option<Vec<Subject>> {
    let field = |name| spec.get(name).filter(|value: &&Value| !value.is_null());
    let parsed = |value| selector::parse(&Node::root(value));
    let is_clusterwide = object.kind == Kind::CiliumClusterwideNetworkPolicy;
    let nodes = field("nodeSelector").filter(|_| is_clusterwide);
    let nodes = nodes.map(|nodes| Subject::Nodes(parsed(nodes).unwrap_or_default()));
    let name = if object.kind == Kind::NetworkPolicy { "podSelector" } else { "endpointSelector" };
    let endpoints = match field(name) {
        None if nodes.is_some() => None,
        endpoints => {
            let endpoints = Node::root(endpoints?);
            Some(Subject::Endpoints(selector::parse_subject(&endpoints, object).ok()?.0))
        }
    };
    Some(endpoints.into_iter().chain(nodes).collect())
}

fn namespace_scope(object: &ObjectRef) -> Selector {
    if object.namespace.is_empty() { Selector::default() } else { selector::namespace(&object.namespace) }
}
