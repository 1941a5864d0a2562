//! Labels: what identities consist of and selectors look at.
//!
//! A label is `source:key=value`. Text that comes from outside is validated here, so that the canonical
//! form of a [`LabelSet`](crate::LabelSet) is unambiguous: two different sets never print alike.

use std::fmt;
use std::str::FromStr;

/// Namespace of the pod, with source [`Source::K8s`].
pub const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
/// Prefix of the namespace's own labels, with source [`Source::K8s`]; a dot and the label's key follow.
pub const NAMESPACE_LABELS_PREFIX: &str = "io.cilium.k8s.namespace.labels";
/// Service account of the pod, with source [`Source::K8s`].
pub const SERVICE_ACCOUNT_KEY: &str = "io.cilium.k8s.policy.serviceaccount";
/// Cluster of the pod, with source [`Source::K8s`].
pub const CLUSTER_KEY: &str = "io.cilium.k8s.policy.cluster";
/// Keys that start like this belong to this system; a pod that has them is not believed.
pub(crate) const OWN_PREFIX: &str = "io.cilium.k8s.";

/// Who vouches for a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// In a selector: whoever.
    Any,
    /// Kubernetes: labels of the pod and of its namespace, and what is derived from the pod.
    K8s,
    /// This system: hosts, the world and other peers that aren't pods.
    Reserved,
    /// A prefix of addresses outside the cluster.
    Cidr,
}

impl Source {
    /// The word before the colon.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::K8s => "k8s",
            Self::Reserved => "reserved",
            Self::Cidr => "cidr",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Source {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        match text {
            "any" => Ok(Self::Any),
            "k8s" => Ok(Self::K8s),
            "reserved" => Ok(Self::Reserved),
            "cidr" => Ok(Self::Cidr),
            _ => Err(LabelError::Source(text.to_owned())),
        }
    }
}

/// Why a text isn't a label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The word before the colon is unknown.
    #[error("label source `{0}` is not known; sources are k8s, reserved and any")]
    Source(String),
    /// The key is empty, or has characters that no key may have.
    #[error("label key `{}` is empty or has `=`, `:`, white space or control characters", .0.escape_debug())]
    Key(String),
    /// The value has characters that no value may have.
    #[error("value `{}` of label `{key}` has control characters", .value.escape_debug())]
    Value {
        /// The label's key.
        key: String,
        /// The value refused.
        value: String,
    },
    /// An identity's labels name their sources.
    #[error("label `{0}` of an identity has no source; write `k8s:{0}`")]
    AnySource(String),
    /// The same source and key twice.
    #[error("label `{0}` is there twice, with different values")]
    Duplicate(String),
}

/// Source and key of a label: what a selector asks for. Prints and parses as `source:key`; without a
/// source it means any.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelKey {
    key: String,
    source: Source,
}

impl LabelKey {
    /// The key with this source.
    ///
    /// # Errors
    /// [`LabelError::Key`] if no key may look like this.
    pub fn new(source: Source, key: impl Into<String>) -> Result<Self, LabelError> {
        let key = key.into();
        let bad = |c: char| c == '=' || c == ':' || c.is_whitespace() || c.is_control();
        if key.is_empty() || key.contains(bad) {
            return Err(LabelError::Key(key));
        }
        Ok(Self { key, source })
    }

    /// Who vouches for it.
    #[must_use]
    pub const fn source(&self) -> Source {
        self.source
    }

    /// The key without its source.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for LabelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.key)
    }
}

impl FromStr for LabelKey {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        match text.split_once(':') {
            Some((source, key)) => Self::new(source.parse()?, key),
            None => Self::new(Source::Any, text),
        }
    }
}

/// A label. Prints and parses as `source:key=value`, or `source:key` when the value is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    key: LabelKey,
    value: String,
}

impl Label {
    /// The label with these parts.
    ///
    /// # Errors
    /// [`LabelError::Key`] or [`LabelError::Value`] if no label may look like this.
    pub fn new(source: Source, key: impl Into<String>, value: impl Into<String>) -> Result<Self, LabelError> {
        Self::with_key(LabelKey::new(source, key)?, value)
    }

    /// The label with this key.
    ///
    /// # Errors
    /// [`LabelError::Value`] if no value may look like this.
    pub fn with_key(key: LabelKey, value: impl Into<String>) -> Result<Self, LabelError> {
        let value = value.into();
        if value.contains(char::is_control) {
            return Err(LabelError::Value { key: key.to_string(), value });
        }
        Ok(Self { key, value })
    }

    /// Source and key.
    #[must_use]
    pub const fn label_key(&self) -> &LabelKey {
        &self.key
    }

    /// Who vouches for it.
    #[must_use]
    pub const fn source(&self) -> Source {
        self.key.source
    }

    /// The key without its source.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key.key
    }

    /// The value; often empty.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.value.is_empty() {
            write!(f, "{}", self.key)
        } else {
            write!(f, "{}={}", self.key, self.value)
        }
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        Self::with_key(key.parse()?, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_and_prints() {
        for (text, source, key, value) in [
            ("k8s:org=empire", Source::K8s, "org", "empire"),
            ("reserved:host", Source::Reserved, "host", ""),
            ("any:app.kubernetes.io/name=a=b:c", Source::Any, "app.kubernetes.io/name", "a=b:c"),
        ] {
            let label: Label = text.parse().unwrap();
            assert_eq!((label.source(), label.key(), label.value()), (source, key, value));
            assert_eq!(label.to_string(), text);
        }
    }

    #[test]
    fn a_bare_key_means_any_source() {
        assert_eq!("org=empire".parse::<Label>().unwrap().to_string(), "any:org=empire");
        assert_eq!("url=http://x".parse::<Label>().unwrap().value(), "http://x");
    }

    #[test]
    fn refuses_what_would_be_ambiguous() {
        assert_eq!("docker:a=b".parse::<Label>(), Err(LabelError::Source("docker".into())));
        assert_eq!(LabelKey::new(Source::K8s, ""), Err(LabelError::Key(String::new())));
        assert!(Label::new(Source::K8s, "a=b", "c").is_err());
        assert!(Label::new(Source::K8s, "a", "b\nk8s:c=d").is_err());
        assert!("k8s:a:b".parse::<LabelKey>().is_err());
    }

    proptest! {
        #[test]
        fn printing_is_undone_by_parsing(key in "[a-z0-9./_-]{1,20}", value in "[a-zA-Z0-9=:._ -]{0,20}") {
            let label = Label::new(Source::K8s, key, value).unwrap();
            prop_assert_eq!(label.to_string().parse::<Label>().unwrap(), label);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            if let Ok(label) = text.parse::<Label>() {
                prop_assert_eq!(label.to_string().parse::<Label>().unwrap(), label);
            }
        }
    }
}
