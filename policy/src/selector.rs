//! Selectors: requirements on labels, all of which must hold.

use std::collections::BTreeSet;
use std::fmt;

use crate::label::{LabelKey, Source};
use crate::label_set::LabelSet;

/// What is required of the label with a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// It is there with one of these values.
    In(BTreeSet<String>),
    /// It is not there, or with none of these values.
    NotIn(BTreeSet<String>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label.
    pub key: LabelKey,
    /// What is required of it.
    pub operator: Operator,
}

impl Requirement {
    /// The label is there with this value.
    #[must_use]
    pub fn equals(key: LabelKey, value: impl Into<String>) -> Self {
        Self { key, operator: Operator::In(BTreeSet::from([value.into()])) }
    }

    /// The requirement that holds where this one doesn't.
    #[must_use]
    pub fn negated(self) -> Self {
        let operator = match self.operator {
            Operator::In(values) => Operator::NotIn(values),
            Operator::NotIn(values) => Operator::In(values),
            Operator::Exists => Operator::DoesNotExist,
            Operator::DoesNotExist => Operator::Exists,
        };
        Self { operator, ..self }
    }

    /// Whether it holds for these labels.
    #[must_use]
    pub fn matches(&self, labels: &LabelSet) -> bool {
        let mut values = labels.values(&self.key);
        match &self.operator {
            Operator::In(wanted) => values.any(|value| wanted.contains(value)),
            Operator::NotIn(unwanted) => !values.any(|value| unwanted.contains(value)),
            Operator::Exists => values.next().is_some(),
            Operator::DoesNotExist => values.next().is_none(),
        }
    }
}

/// A selector; the empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// The requirements.
    pub requirements: Vec<Requirement>,
}

impl Selector {
    /// Whether all requirements hold for these labels.
    #[must_use]
    pub fn matches(&self, labels: &LabelSet) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether it says anything about this label of Kubernetes, be it with `k8s:` or without a source.
    #[must_use]
    pub fn has_k8s_key(&self, key: &str) -> bool {
        self.has_k8s(|have| have == key)
    }

    /// Whether it says anything about a label of Kubernetes whose key starts like this.
    #[must_use]
    pub fn has_k8s_prefix(&self, prefix: &str) -> bool {
        self.has_k8s(|have| have.starts_with(prefix))
    }

    /// Whether it says anything about labels of this source.
    #[must_use]
    pub fn has_source(&self, source: Source) -> bool {
        self.requirements.iter().any(|requirement| requirement.key.source() == source)
    }

    fn has_k8s(&self, test: impl Fn(&str) -> bool) -> bool {
        let sources = [Source::K8s, Source::Any];
        self.requirements.iter().any(|one| sources.contains(&one.key.source()) && test(one.key.key()))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("{}");
        }
        for (index, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match operator {
                Operator::In(values) => write!(f, "{comma}{key} in ({})", joined(values))?,
                Operator::NotIn(values) => write!(f, "{comma}{key} notin ({})", joined(values))?,
                Operator::Exists => write!(f, "{comma}{key}")?,
                Operator::DoesNotExist => write!(f, "{comma}!{key}")?,
            }
        }
        Ok(())
    }
}

fn joined(values: &BTreeSet<String>) -> String {
    values.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(key: &str, operator: Operator) -> Requirement {
        Requirement { key: key.parse().unwrap(), operator }
    }

    fn values(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn operators() {
        let labels =
            LabelSet::from_labels(["k8s:org=empire", "reserved:host"].map(|label| label.parse().unwrap()))
                .unwrap();
        for (key, operator, expected) in [
            ("k8s:org", Operator::In(values(&["empire", "alliance"])), true),
            ("org", Operator::In(values(&["empire"])), true),
            ("reserved:org", Operator::In(values(&["empire"])), false),
            ("k8s:org", Operator::In(values(&["alliance"])), false),
            ("k8s:org", Operator::NotIn(values(&["alliance"])), true),
            ("k8s:org", Operator::NotIn(values(&["empire"])), false),
            ("k8s:class", Operator::NotIn(values(&["deathstar"])), true),
            ("k8s:org", Operator::Exists, true),
            ("k8s:host", Operator::Exists, false),
            ("host", Operator::Exists, true),
            ("reserved:host", Operator::In(values(&[""])), true),
            ("k8s:org", Operator::DoesNotExist, false),
            ("k8s:class", Operator::DoesNotExist, true),
        ] {
            let requirement = requirement(key, operator.clone());
            assert_eq!(requirement.matches(&labels), expected, "{key} {operator:?}");
            assert_ne!(requirement.negated().matches(&labels), expected, "not {key} {operator:?}");
        }
    }

    #[test]
    fn all_requirements_must_hold() {
        let labels = LabelSet::from_labels(["k8s:a=1".parse().unwrap()]).unwrap();
        let mut selector = Selector::default();
        assert!(selector.matches(&labels));
        selector.requirements.push(requirement("a", Operator::Exists));
        assert!(selector.matches(&labels));
        selector.requirements.push(requirement("b", Operator::Exists));
        assert!(!selector.matches(&labels));
        assert_eq!(selector.to_string(), "any:a,any:b");
    }
}
