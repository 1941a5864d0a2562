//! Why an object can't be understood: which object, which field, and the way out.

use crate::label::LabelError;
use crate::nearest::nearest;
use crate::object::ObjectRef;
use crate::rule::{Policy, Subject};

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No such field.
    #[error("unknown field; {hint}")]
    UnknownField {
        /// The field that may be meant, or those there are.
        hint: String,
    },
    /// No such value.
    #[error("unknown value `{}`; {hint}", .value.escape_debug())]
    UnknownValue {
        /// The value found.
        value: String,
        /// The value that may be meant, or those there are.
        hint: String,
    },
    /// Needed, but not there.
    #[error("is missing")]
    Missing,
    /// Of the wrong type.
    #[error("is {found}, must be {expected}")]
    Type {
        /// What is needed.
        expected: String,
        /// What is there.
        found: &'static str,
    },
    /// Not a label.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// Something else, in words.
    #[error("{0}")]
    Invalid(String),
    /// Of another API version.
    #[error("must be `{expected}`")]
    Version {
        /// The version that is understood.
        expected: &'static str,
    },
    /// Not a policy.
    #[error("must be CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or NetworkPolicy{hint}")]
    UnknownKind {
        /// The kind that may be meant.
        hint: String,
    },
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct Fault {
    /// The field, such as `spec.ingress[0].fromEndpoint`.
    pub path: String,
    /// What is wrong with it.
    pub problem: Problem,
}

impl Fault {
    pub(super) fn new(path: impl Into<String>, problem: Problem) -> Self {
        Self { path: path.into(), problem }
    }
}

/// An object that can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", .0.object, .0.fault)]
pub struct PolicyError(Box<Refusal>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    object: ObjectRef,
    scope: Vec<Subject>,
    fault: Fault,
}

impl PolicyError {
    pub(super) fn new(scope: Vec<Subject>, object: ObjectRef, fault: Fault) -> Self {
        Self(Box::new(Refusal { object, scope, fault }))
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> &ObjectRef {
        &self.0.object
    }

    /// What is wrong with it.
    #[must_use]
    pub fn fault(&self) -> &Fault {
        &self.0.fault
    }

    pub(super) fn into_parts(self) -> (ObjectRef, Vec<Subject>) {
        (self.0.object, self.0.scope)
    }
}

impl From<PolicyError> for Policy {
    fn from(error: PolicyError) -> Self {
        error.into_policy()
    }
}

/// What the two kinds of policies call the same.
const SAME: [(&str, &str); 2] = [("podSelector", "endpointSelector"), ("endpointSelector", "podSelector")];

/// What may be meant by `found`: what it is called there, the nearest of `known`, the one that begins with it, or all
/// of them if there is none such.
pub(super) fn hint(found: &str, known: &[&str]) -> String {
    let mut same = SAME.iter().filter(|(other, name)| *other == found && known.contains(name));
    let meant = same.next().map(|(_, name)| *name);
    match meant.or_else(|| nearest(found, known.iter().copied())).or_else(|| begun(found, known)) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known are {}", known.join(", ")),
    }
}

/// The one that begins with what was found.
fn begun<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let mut beginning = known.iter().filter(|name| name.starts_with(found));
    let name = beginning.next().filter(|_| found.len() > 2)?;
    beginning.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints() {
        let known = ["fromEndpoints", "fromEntities", "toPorts"];
        assert_eq!(hint("fromEndpoint", &known), "did you mean `fromEndpoints`?");
        assert_eq!(hint("FROMENTITIES", &known), "did you mean `fromEntities`?");
        assert_eq!(hint("x", &known), "known are fromEndpoints, fromEntities, toPorts");
        assert_eq!(hint("http", &["tcp", "sctp"]), "known are tcp, sctp");
        assert_eq!(hint("auth", &["authentication", "icmps"]), "did you mean `authentication`?");
        let subjects = ["nodeSelector", "endpointSelector"];
        assert_eq!(hint("podSelector", &subjects), "did you mean `endpointSelector`?");
        assert_eq!(hint("from", &known), "known are fromEndpoints, fromEntities, toPorts");
    }
}
