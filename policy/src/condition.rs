//! Conditions: what a policy asks for that isn't done as written, by name.
//!
//! A condition never means that more is allowed than the policy says.

use std::fmt;

use serde::{Serialize, Serializer};

/// Why a policy has a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionKind {
    /// The object couldn't be understood; everything it is about is denied.
    Refused,
    /// A field that isn't supported yet; its rule allows nothing, or denies all that it could mean.
    Unsupported,
    /// Authentication is required of a peer that can't have an SVID.
    AuthImpossible,
    /// The selector names another namespace than the policy's own; the policy's own counts.
    ForeignNamespace,
    /// The rule selects nothing: a list is there but empty, or nothing is as it says.
    SelectsNothing,
    /// Another rule already says the same, or denies all of it.
    Shadowed,
    /// Authentication is required of some identities but not of others with the same SPIFFE ID; the rule
    /// allows nothing.
    SharedSpiffeId,
    /// What the rule selects is known for a part of an identity only; such an identity isn't allowed.
    Ambiguous,
}

impl ConditionKind {
    /// The word for status, logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "Refused",
            Self::Unsupported => "Unsupported",
            Self::AuthImpossible => "AuthImpossible",
            Self::ForeignNamespace => "ForeignNamespace",
            Self::SelectsNothing => "SelectsNothing",
            Self::Shadowed => "Shadowed",
            Self::SharedSpiffeId => "SharedSpiffeId",
            Self::Ambiguous => "Ambiguous",
        }
    }
}

impl Serialize for ConditionKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Something about a policy that its author should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Condition {
    /// Why.
    pub kind: ConditionKind,
    /// The field, such as `spec.ingress[0].fromCIDR`.
    pub path: String,
    /// What it is and what follows from it.
    pub message: String,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.kind.as_str(), self.path, self.message)
    }
}
