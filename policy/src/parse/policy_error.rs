//! Why an object can't be understood: which object, which field, and the way out.

use crate::label::LabelError;
use crate::object::ObjectRef;
use crate::rule::Policy;
use crate::selector::Selector;

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
        expected: &'static str,
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
    scope: Vec<Selector>,
    fault: Fault,
}

impl PolicyError {
    pub(super) fn new(scope: Vec<Selector>, object: ObjectRef, fault: Fault) -> Self {
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

    pub(super) fn into_parts(self) -> (ObjectRef, Vec<Selector>) {
        (self.0.object, self.0.scope)
    }
}

impl From<PolicyError> for Policy {
    fn from(error: PolicyError) -> Self {
        error.into_policy()
    }
}

/// What may be meant by `found`: the nearest of `known`, or all of them if none is near.
pub(super) fn hint(found: &str, known: &[&str]) -> String {
    match nearest(found, known) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known are {}", known.join(", ")),
    }
}

/// The nearest of `known`, if at most every third character differs.
pub(super) fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let lower = found.to_lowercase();
    let distances = known.iter().map(|name| (distance(&lower, &name.to_lowercase()), *name));
    let (distance, name) = distances.min()?;
    (distance <= (found.len().max(name.len()) / 3).max(1)).then_some(name)
}

/// How many characters to insert, delete, replace or swap with their neighbour to get from one to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX - 1);
            let replaced = cell(&above, j) + usize::from(a != b);
            let edited = replaced.min(cell(&above, j + 1) + 1).min(cell(&row, j) + 1);
            let is_swap = i > 0 && j > 0 && from.get(i - 1) == Some(b) && to.get(j - 1) == Some(a);
            row.push(if is_swap { edited.min(cell(&before, j - 1) + 1) } else { edited });
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance() {
        for (from, to, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 1),
            ("tpc", "tcp", 1),
            ("a", "a", 0),
        ] {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn hints() {
        let known = ["fromEndpoints", "fromEntities", "toPorts"];
        assert_eq!(hint("fromEndpoint", &known), "did you mean `fromEndpoints`?");
        assert_eq!(hint("FROMENTITIES", &known), "did you mean `fromEntities`?");
        assert_eq!(hint("x", &known), "known are fromEndpoints, fromEntities, toPorts");
        assert_eq!(hint("http", &["tcp", "sctp"]), "known are tcp, sctp");
    }
}
