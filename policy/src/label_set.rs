//! Sets of labels, their canonical form and its hash.
//!
//! A set has one value for each source and key. The canonical form is the sorted `source:key=value` lines,
//! each ended by a line feed; it is what identities are compared by, everywhere and in every version.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::label::{CLUSTER_KEY, Label, LabelError, LabelKey, Source};

/// A set of labels, each with a source of its own (never [`Source::Any`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSet {
    /// Sorted by key, then source.
    labels: Vec<Label>,
    /// Where among them that of the cluster is, for which every selector asks.
    cluster: Option<usize>,
}

impl LabelSet {
    /// A set without labels.
    #[must_use]
    pub const fn new() -> Self {
        Self { labels: Vec::new(), cluster: None }
    }

    /// The set of these labels.
    ///
    /// # Errors
    /// [`LabelError::AnySource`] for a label without a source, [`LabelError::Duplicate`] for two values of
    /// one key.
    pub fn from_labels(labels: impl IntoIterator<Item = Label>) -> Result<Self, LabelError> {
        let mut set = Self::new();
        for label in labels {
            set.insert(label)?;
        }
        Ok(set)
    }

    /// Adds a label.
    ///
    /// # Errors
    /// As [`LabelSet::from_labels`]; the set is then as it was.
    pub fn insert(&mut self, label: Label) -> Result<(), LabelError> {
        if label.source() == Source::Any {
            return Err(LabelError::AnySource(label.key().to_owned()));
        }
        match self.labels.binary_search_by(|have| have.label_key().cmp(label.label_key())) {
            Ok(at) if self.labels.get(at) == Some(&label) => Ok(()),
            Ok(_) => Err(LabelError::Duplicate(label.label_key().to_string())),
            Err(at) => {
                self.labels.insert(at, label);
                self.find_cluster();
                Ok(())
            }
        }
    }

    /// The same without the labels of this source and key.
    #[must_use]
    pub fn without(mut self, source: Source, key: &str) -> Self {
        self.labels.retain(|label| label.source() != source || label.key() != key);
        self.find_cluster();
        self
    }

    fn find_cluster(&mut self) {
        let place = |have: &Label| (have.key(), have.source()).cmp(&(CLUSTER_KEY, Source::K8s));
        self.cluster = self.labels.binary_search_by(place).ok();
    }

    /// The cluster, if they name one ([`CLUSTER_KEY`]).
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        self.labels.get(self.cluster?).map(Label::value)
    }

    /// The labels, sorted by key, then source.
    pub fn iter(&self) -> std::slice::Iter<'_, Label> {
        self.labels.iter()
    }

    /// How many labels there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The value of the label with this source and key.
    #[must_use]
    pub fn get(&self, source: Source, key: &str) -> Option<&str> {
        self.with_key(key).find(|label| label.source() == source).map(Label::value)
    }

    /// The values of every label that `key` means: one at most, unless its source is [`Source::Any`].
    pub fn values<'a>(&'a self, key: &LabelKey) -> impl Iterator<Item = &'a str> + use<'a> {
        let source = key.source();
        self.with_key(key.key())
            .filter(move |label| source == Source::Any || label.source() == source)
            .map(Label::value)
    }

    /// The canonical form.
    #[must_use]
    pub fn canonical(&self) -> String {
        let mut lines: Vec<String> =
            self.labels.iter().map(|label| format!("{}={}\n", label.label_key(), label.value())).collect();
        lines.sort_unstable();
        lines.concat()
    }

    /// SHA-256 of the canonical form, in lower-case hexadecimal.
    #[must_use]
    pub fn hash(&self) -> String {
        Sha256::digest(self.canonical()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn with_key<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a Label> + use<'a> {
        let from = self.labels.partition_point(|label| label.key() < key);
        let to = self.labels.partition_point(|label| label.key() <= key);
        self.labels.get(from..to).unwrap_or_default().iter()
    }
}

impl<'a> IntoIterator for &'a LabelSet {
    type Item = &'a Label;
    type IntoIter = std::slice::Iter<'a, Label>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, label) in self.labels.iter().enumerate() {
            write!(f, "{}{label}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// As a map from `source:key` to value.
impl Serialize for LabelSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.labels.iter().map(|label| (label.label_key().to_string(), label.value())))
    }
}

impl<'de> Deserialize<'de> for LabelSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Labels;
        impl<'de> Visitor<'de> for Labels {
            type Value = LabelSet;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from `source:key` to value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LabelSet, A::Error> {
                let mut set = LabelSet::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    let key = key.parse().map_err(de::Error::custom)?;
                    let label = Label::with_key(key, value).map_err(de::Error::custom)?;
                    set.insert(label).map_err(de::Error::custom)?;
                }
                Ok(set)
            }
        }
        deserializer.deserialize_map(Labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(labels: &[&str]) -> LabelSet {
        LabelSet::from_labels(labels.iter().map(|label| label.parse().unwrap())).unwrap()
    }

    #[test]
    fn the_cluster_is_known_wherever_it_stands() {
        let mut labels = LabelSet::new();
        assert_eq!(labels.cluster(), None);
        for label in
            ["k8s:z=1", "any:io.cilium.k8s.policy.cluster=no", "unspec:io.cilium.k8s.policy.cluster=no"]
        {
            let _refused = label.parse().map(|label| labels.insert(label));
            assert_eq!(labels.cluster(), None, "{label}");
        }
        for label in ["k8s:io.cilium.k8s.policy.cluster=near", "k8s:a=1", "reserved:io.cilium=x", "k8s:y=1"] {
            labels.insert(label.parse().unwrap()).unwrap();
            assert_eq!(labels.cluster(), Some("near"), "{label}");
        }
        let labels = labels.without(Source::K8s, "a");
        assert_eq!(labels.cluster(), labels.get(Source::K8s, CLUSTER_KEY));
        assert_eq!(labels.without(Source::K8s, CLUSTER_KEY).cluster(), None);
    }

    #[test]
    fn canonical_form_is_sorted_lines() {
        let labels = set(&["reserved:host", "k8s:org=empire", "k8s:class=deathstar"]);
        assert_eq!(labels.canonical(), "k8s:class=deathstar\nk8s:org=empire\nreserved:host=\n");
        assert_eq!(labels.hash(), set(&["k8s:class=deathstar", "reserved:host", "k8s:org=empire"]).hash());
        assert_eq!(labels.hash().len(), 64);
    }

    #[test]
    fn hash_is_that_of_sha256sum() {
        // printf 'k8s:org=empire\n' | sha256sum
        let expected = "f0cc49082c20ac5c1ffa9c71901fa6b83cdc27cb444503999c6cdfc9a82edba1";
        assert_eq!(set(&["k8s:org=empire"]).hash(), expected);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(LabelSet::new().hash(), empty);
    }

    #[test]
    fn looks_up_by_source() {
        let labels = set(&["k8s:a=1", "reserved:a=2"]);
        assert_eq!(labels.get(Source::K8s, "a"), Some("1"));
        assert_eq!(labels.get(Source::K8s, "b"), None);
        assert_eq!(labels.values(&"a".parse().unwrap()).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(labels.values(&"reserved:a".parse().unwrap()).collect::<Vec<_>>(), ["2"]);
    }

    #[test]
    fn refuses_any_source_and_second_values() {
        let mut labels = set(&["k8s:a=1"]);
        assert_eq!(labels.insert("b=1".parse().unwrap()), Err(LabelError::AnySource("b".into())));
        assert_eq!(labels.insert("k8s:a=2".parse().unwrap()), Err(LabelError::Duplicate("k8s:a".into())));
        assert_eq!(labels.insert("k8s:a=1".parse().unwrap()), Ok(()));
        assert_eq!(labels, set(&["k8s:a=1"]));
    }

    #[test]
    fn serialises_as_a_map() {
        let labels = set(&["k8s:org=empire", "reserved:host"]);
        let json = serde_json::to_value(&labels).unwrap();
        assert_eq!(json, serde_json::json!({"k8s:org": "empire", "reserved:host": ""}));
        assert_eq!(serde_json::from_value::<LabelSet>(json).unwrap(), labels);
        assert!(serde_json::from_value::<LabelSet>(serde_json::json!({"org": "empire"})).is_err());
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_values_do(
            labels in proptest::collection::btree_map("[a-c]{1,2}", "[a-c=]{0,2}", 0..5).prop_shuffle_pairs(),
            others in proptest::collection::btree_map("[a-c]{1,2}", "[a-c=]{0,2}", 0..5).prop_shuffle_pairs(),
        ) {
            let one = LabelSet::from_labels(labels).unwrap();
            let two = LabelSet::from_labels(others).unwrap();
            prop_assert_eq!(one == two, one.hash() == two.hash());
            prop_assert_eq!(one == two, one.canonical() == two.canonical());
        }
    }

    /// A map's entries as labels in any order.
    trait ShufflePairs {
        fn prop_shuffle_pairs(self) -> BoxedStrategy<Vec<Label>>;
    }

    impl<S: Strategy<Value = std::collections::BTreeMap<String, String>> + 'static> ShufflePairs for S {
        fn prop_shuffle_pairs(self) -> BoxedStrategy<Vec<Label>> {
            self.prop_map(|map| {
                map.into_iter()
                    .map(|(key, value)| Label::new(Source::K8s, key, value).unwrap())
                    .collect::<Vec<_>>()
            })
            .prop_shuffle()
            .boxed()
        }
    }
}
