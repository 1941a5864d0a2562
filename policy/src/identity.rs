//! Identities: a number for a set of labels, the same in the whole cluster.
//!
//! Identities are immutable. One that comes from an object is checked here: its labels' hash is computed
//! again, and namespace and service account are those in its labels, so that no object can claim another's.

use std::collections::BTreeMap;
use std::sync::Arc;

use auth_ebpf_abi::{IdentityNumber, NodeNumber, identity as reserved};
use serde::{Deserialize, Serialize};

use crate::label::{Label, LabelError, NAMESPACE_KEY, SERVICE_ACCOUNT_KEY, Source};
use crate::label_set::LabelSet;
use crate::peer::Remote;

/// The largest number of an identity; what is above is for numbers that only one node knows.
pub const LAST_USER: IdentityNumber = reserved::FIRST_LOCAL - 1;

/// Why an identity is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The number is reserved, or above [`LAST_USER`].
    #[error("identity {number}: numbers of identities are {} to {LAST_USER}", reserved::FIRST_USER)]
    Number {
        /// The number refused.
        number: IdentityNumber,
    },
    /// The labels don't name one namespace and one service account.
    #[error("identity {number}: label `k8s:{key}` is missing or empty")]
    Missing {
        /// The identity.
        number: IdentityNumber,
        /// Key of the label missing.
        key: &'static str,
    },
    /// Only pods have identities of their own.
    #[error("identity {number}: label `{label}` is not one of a pod")]
    Foreign {
        /// The identity.
        number: IdentityNumber,
        /// The label refused.
        label: String,
    },
    /// Field and labels of the object disagree.
    #[error("identity {number}: spec.{field} is `{field_value}`, its labels say `{label_value}`")]
    Field {
        /// The identity.
        number: IdentityNumber,
        /// The field.
        field: &'static str,
        /// What it says.
        field_value: String,
        /// What the labels say.
        label_value: String,
    },
    /// The object's hash isn't that of its labels: one of them was edited.
    #[error(
        "identity {number}: spec.hash is `{found}`, that of its labels is `{computed}`; identities can't be edited"
    )]
    Hash {
        /// The identity.
        number: IdentityNumber,
        /// What the object says.
        found: String,
        /// What it should say.
        computed: String,
    },
    /// Two identities with one number.
    #[error("identity {number}: the number is there twice, with different labels")]
    DuplicateNumber {
        /// The number.
        number: IdentityNumber,
    },
    /// Two identities with the same labels.
    #[error("identity {number}: identity {other} has the same labels")]
    DuplicateLabels {
        /// The one refused.
        number: IdentityNumber,
        /// The one that is there.
        other: IdentityNumber,
    },
    /// A label is invalid.
    #[error(transparent)]
    Label(#[from] LabelError),
}

/// `spec` of an `Identity` object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentitySpec {
    /// Namespace of its pods.
    pub namespace: String,
    /// Service account of its pods.
    pub service_account: String,
    /// The labels.
    pub labels: LabelSet,
    /// [`LabelSet::hash`] of the labels.
    pub hash: String,
}

/// `spec` of a `NodeNumber` object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeNumberSpec {
    /// The node's number, from 1.
    pub number: NodeNumber,
}

/// An identity: of pods, or a reserved one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    number: IdentityNumber,
    /// Shared by all copies, which are told to be the same by that.
    labels: Arc<LabelSet>,
}

impl Identity {
    /// The identity of pods with these labels.
    ///
    /// # Errors
    /// [`IdentityError`] if the number is not for pods or the labels are not those of one namespace and one
    /// service account.
    pub fn new(number: IdentityNumber, labels: LabelSet) -> Result<Self, IdentityError> {
        if !(reserved::FIRST_USER..=LAST_USER).contains(&number) {
            return Err(IdentityError::Number { number });
        }
        if let Some(label) = labels.iter().find(|label| label.source() != Source::K8s) {
            return Err(IdentityError::Foreign { number, label: label.to_string() });
        }
        for key in [NAMESPACE_KEY, SERVICE_ACCOUNT_KEY] {
            if labels.get(Source::K8s, key).is_none_or(str::is_empty) {
                return Err(IdentityError::Missing { number, key });
            }
        }
        Ok(Self { number, labels: Arc::new(labels) })
    }

    /// The identity that an object describes.
    ///
    /// # Errors
    /// As [`Identity::new`]; also if namespace, service account or hash aren't those of the labels.
    pub fn from_spec(number: IdentityNumber, spec: IdentitySpec) -> Result<Self, IdentityError> {
        let computed = spec.labels.hash();
        if spec.hash != computed {
            return Err(IdentityError::Hash { number, found: spec.hash, computed });
        }
        let identity = Self::new(number, spec.labels)?;
        for (field, field_value, label_value) in [
            ("namespace", spec.namespace, identity.namespace()),
            ("serviceAccount", spec.service_account, identity.service_account()),
        ] {
            if field_value != label_value {
                let label_value = label_value.to_owned();
                return Err(IdentityError::Field { number, field, field_value, label_value });
            }
        }
        Ok(identity)
    }

    /// The object's `spec`.
    #[must_use]
    pub fn to_spec(&self) -> IdentitySpec {
        IdentitySpec {
            namespace: self.namespace().to_owned(),
            service_account: self.service_account().to_owned(),
            labels: LabelSet::clone(&self.labels),
            hash: self.labels.hash(),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> IdentityNumber {
        self.number
    }

    /// Its labels.
    #[must_use]
    pub fn labels(&self) -> &LabelSet {
        &self.labels
    }

    /// Namespace of its pods; empty for a reserved identity.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.labels.get(Source::K8s, NAMESPACE_KEY).unwrap_or_default()
    }

    /// Service account of its pods; empty for a reserved identity.
    #[must_use]
    pub fn service_account(&self) -> &str {
        self.labels.get(Source::K8s, SERVICE_ACCOUNT_KEY).unwrap_or_default()
    }

    /// Whether it is one of the reserved ones, for which no SVID exists.
    #[must_use]
    pub const fn is_reserved(&self) -> bool {
        reserved::is_reserved(self.number)
    }
}

/// The reserved identities and the names in their `reserved:` labels. The API server is a remote node too.
pub const RESERVED: [(IdentityNumber, &[&str]); 8] = [
    (reserved::HOST, &["host"]),
    (reserved::WORLD, &["world"]),
    (reserved::UNMANAGED, &["unmanaged"]),
    (reserved::HEALTH, &["health"]),
    (reserved::INIT, &["init"]),
    (reserved::REMOTE_NODE, &["remote-node"]),
    (reserved::KUBE_APISERVER, &["kube-apiserver", "remote-node"]),
    (reserved::INGRESS, &["ingress"]),
];

/// The name of a reserved identity (`host`, `world`, …).
#[must_use]
pub fn reserved_name(number: IdentityNumber) -> Option<&'static str> {
    match number {
        // These two are there only if policies name all of a family.
        reserved::WORLD_IPV4 => return Some("world-ipv4"),
        reserved::WORLD_IPV6 => return Some("world-ipv6"),
        _ => {}
    }
    RESERVED.iter().find(|(have, _)| *have == number).and_then(|(_, names)| names.first().copied())
}

/// All identities that are known, by number and by labels; the reserved ones are always in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySet {
    by_number: BTreeMap<IdentityNumber, Identity>,
    by_labels: BTreeMap<Arc<LabelSet>, IdentityNumber>,
}

impl Default for IdentitySet {
    fn default() -> Self {
        Self::new()
    }
}

impl IdentitySet {
    /// The reserved identities alone.
    #[must_use]
    pub fn new() -> Self {
        let mut set = Self { by_number: BTreeMap::new(), by_labels: BTreeMap::new() };
        for (number, names) in RESERVED {
            let labels = names.iter().filter_map(|name| Label::new(Source::Reserved, *name, "").ok());
            set.put(Identity { number, labels: Arc::new(LabelSet::from_labels(labels).unwrap_or_default()) });
        }
        set
    }

    /// The reserved identities and these.
    ///
    /// # Errors
    /// As [`IdentitySet::insert`], for the first one refused.
    pub fn from_identities(identities: impl IntoIterator<Item = Identity>) -> Result<Self, IdentityError> {
        let mut set = Self::new();
        for identity in identities {
            set.insert(identity)?;
        }
        Ok(set)
    }

    /// Adds an identity. The same one again changes nothing.
    ///
    /// # Errors
    /// [`IdentityError::DuplicateNumber`] or [`IdentityError::DuplicateLabels`]; the set is then as it was.
    pub fn insert(&mut self, identity: Identity) -> Result<(), IdentityError> {
        let number = identity.number;
        if let Some(have) = self.by_number.get(&number) {
            return if *have == identity { Ok(()) } else { Err(IdentityError::DuplicateNumber { number }) };
        }
        if let Some(&other) = self.by_labels.get(&*identity.labels) {
            return Err(IdentityError::DuplicateLabels { number, other });
        }
        self.put(identity);
        Ok(())
    }

    /// Takes an identity out; reserved ones stay.
    pub fn remove(&mut self, number: IdentityNumber) -> Option<Identity> {
        if reserved::is_reserved(number) {
            return None;
        }
        let identity = self.by_number.remove(&number)?;
        self.by_labels.remove(&*identity.labels);
        Some(identity)
    }

    /// The identity with this number.
    #[must_use]
    pub fn get(&self, number: IdentityNumber) -> Option<&Identity> {
        self.by_number.get(&number)
    }

    /// The identity with exactly these labels.
    #[must_use]
    pub fn by_labels(&self, labels: &LabelSet) -> Option<&Identity> {
        self.by_labels.get(labels).and_then(|number| self.by_number.get(number))
    }

    /// All of them in the order of their numbers, reserved ones first.
    pub fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.by_number.values()
    }

    /// All of them, as rules look at them.
    pub fn remotes(&self) -> impl Iterator<Item = Remote<'_>> {
        self.iter().map(|identity| Remote { number: identity.number, labels: &identity.labels, place: None })
    }

    /// The same, in which the host has the labels of its node as well.
    pub(crate) fn with_host(&self, node: &LabelSet) -> Self {
        let mut set = self.clone();
        if let Some(mut host) = set.by_number.remove(&reserved::HOST) {
            let of_node = node.iter().filter(|label| label.source() != Source::Reserved);
            let labels = LabelSet::from_labels(host.labels.iter().chain(of_node).cloned());
            host.labels = labels.map(Arc::new).unwrap_or(host.labels);
            set.put(host);
        }
        set
    }

    fn put(&mut self, identity: Identity) {
        self.by_labels.insert(Arc::clone(&identity.labels), identity.number);
        self.by_number.insert(identity.number, identity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pod;

    fn labels(org: &str) -> LabelSet {
        let pod = Pod { cluster: "default", namespace: "galaxy", service_account: "default" };
        pod.labels([("org", org)], []).unwrap()
    }

    #[test]
    fn spec_round_trip() {
        let identity = Identity::new(256, labels("empire")).unwrap();
        let json = serde_json::to_value(identity.to_spec()).unwrap();
        assert_eq!(json["serviceAccount"], "default");
        let spec = serde_json::from_value(json).unwrap();
        assert_eq!(Identity::from_spec(256, spec).unwrap(), identity);
    }

    #[test]
    fn an_edited_object_is_refused() {
        let spec = Identity::new(256, labels("empire")).unwrap().to_spec();
        let edited = IdentitySpec { labels: labels("alliance"), ..spec.clone() };
        assert!(matches!(Identity::from_spec(256, edited), Err(IdentityError::Hash { number: 256, .. })));
        let moved = IdentitySpec { namespace: "kube-system".into(), ..spec.clone() };
        let error = Identity::from_spec(256, moved).unwrap_err();
        assert_eq!(
            error.to_string(),
            "identity 256: spec.namespace is `kube-system`, its labels say `galaxy`"
        );
        let other = IdentitySpec { service_account: "admin".into(), ..spec };
        assert!(matches!(Identity::from_spec(256, other), Err(IdentityError::Field { .. })));
    }

    #[test]
    fn unknown_fields_of_an_object_are_refused() {
        let mut json = serde_json::to_value(Identity::new(256, labels("empire")).unwrap().to_spec()).unwrap();
        json["extra"] = serde_json::json!(1);
        assert!(serde_json::from_value::<IdentitySpec>(json).is_err());
        assert!(serde_json::from_str::<NodeNumberSpec>("{\"number\": 65536}").is_err());
    }

    #[test]
    fn numbers_and_labels_that_no_pod_has_are_refused() {
        for number in [0, 1, 255, LAST_USER + 1, u32::MAX] {
            assert_eq!(Identity::new(number, labels("empire")), Err(IdentityError::Number { number }));
        }
        let host = LabelSet::from_labels(["reserved:host".parse().unwrap()]).unwrap();
        assert!(matches!(Identity::new(256, host), Err(IdentityError::Foreign { .. })));
        let bare = LabelSet::from_labels(["k8s:org=empire".parse().unwrap()]).unwrap();
        assert!(matches!(Identity::new(256, bare), Err(IdentityError::Missing { key: NAMESPACE_KEY, .. })));
    }

    #[test]
    fn reserved_identities_are_always_there() {
        let set = IdentitySet::new();
        for (number, names) in RESERVED {
            let identity = set.get(number).unwrap();
            assert!(identity.is_reserved());
            for name in names {
                assert_eq!(identity.labels().get(Source::Reserved, name), Some(""));
            }
        }
        assert_eq!(set.iter().count(), RESERVED.len());
        assert_eq!(reserved_name(reserved::KUBE_APISERVER), Some("kube-apiserver"));
        assert_eq!(reserved_name(256), None);
    }

    #[test]
    fn a_set_has_no_duplicates() {
        let empire = Identity::new(256, labels("empire")).unwrap();
        let mut set = IdentitySet::from_identities([empire.clone()]).unwrap();
        assert_eq!(set.insert(empire), Ok(()));
        let same_number = Identity::new(256, labels("alliance")).unwrap();
        assert_eq!(set.insert(same_number), Err(IdentityError::DuplicateNumber { number: 256 }));
        let same_labels = Identity::new(300, labels("empire")).unwrap();
        assert_eq!(set.insert(same_labels), Err(IdentityError::DuplicateLabels { number: 300, other: 256 }));
        assert_eq!(set.by_labels(&labels("empire")).unwrap().number(), 256);
        assert_eq!(set.by_labels(&labels("alliance")), None);
    }
}
