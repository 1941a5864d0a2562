//! From a pod to the labels of its identity.
//!
//! A pod's labels are its own, so what they could forge (namespace, service account, cluster, labels of the
//! namespace) is taken out of them and set from the objects that vouch for it. Which of the rest are
//! security-relevant follows the default filter that Cilium documents ("Limiting Identity-Relevant Labels").

use crate::label::{
    CLUSTER_KEY, Label, LabelError, NAMESPACE_KEY, NAMESPACE_LABELS_PREFIX, OWN_PREFIX, SERVICE_ACCOUNT_KEY,
    Source,
};
use crate::label_set::LabelSet;

/// What the default filter keeps: keys that start like this, unless a longer prefix below drops them.
const KEPT: [&str; 4] = [NAMESPACE_KEY, NAMESPACE_LABELS_PREFIX, "app.kubernetes.io", CLUSTER_KEY];

/// What it drops: keys that start like this.
const DROPPED: [&str; 13] = [
    "io.kubernetes",
    "kubernetes.io",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/controller-uid",
    "k8s.io",
    "pod-template-generation",
    "pod-template-hash",
    "controller-revision-hash",
    "annotation",
    "controller-uid",
    "etcd_node",
];

/// It also drops keys that have this anywhere.
const DROPPED_INFIX: &str = "beta.kubernetes.io";

/// What the labels of a pod's identity are made from.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    /// Name of the cluster; `default` unless configured.
    pub cluster: &'a str,
    /// Name of the pod's namespace.
    pub namespace: &'a str,
    /// Name of its service account.
    pub service_account: &'a str,
}

impl Pod<'_> {
    /// The labels of its identity, from its own labels and those of its namespace.
    ///
    /// # Errors
    /// [`LabelError`] for a name or label that Kubernetes would not have let in.
    pub fn labels<'l>(
        &self,
        own: impl IntoIterator<Item = (&'l str, &'l str)>,
        of_namespace: impl IntoIterator<Item = (&'l str, &'l str)>,
    ) -> Result<LabelSet, LabelError> {
        let mut set = LabelSet::new();
        for (key, value) in own {
            if !key.starts_with(OWN_PREFIX) && key != NAMESPACE_KEY && is_relevant(key) {
                set.insert(Label::new(Source::K8s, key, value)?)?;
            }
        }
        for (key, value) in of_namespace {
            let key = format!("{NAMESPACE_LABELS_PREFIX}.{key}");
            if is_relevant(&key) {
                set.insert(Label::new(Source::K8s, key, value)?)?;
            }
        }
        set.insert(Label::new(Source::K8s, NAMESPACE_KEY, self.namespace)?)?;
        set.insert(Label::new(Source::K8s, SERVICE_ACCOUNT_KEY, self.service_account)?)?;
        set.insert(Label::new(Source::K8s, CLUSTER_KEY, self.cluster)?)?;
        Ok(set)
    }
}

/// Whether a label with this key is security-relevant: not dropped, or kept by a longer match.
#[must_use]
pub fn is_relevant(key: &str) -> bool {
    let prefix_of = |prefix: &&&str| key.starts_with(**prefix);
    let kept = KEPT.iter().filter(prefix_of).map(|prefix| prefix.len()).max().unwrap_or(0);
    let infix = key.rfind(DROPPED_INFIX).map(|at| at + DROPPED_INFIX.len());
    match DROPPED.iter().filter(prefix_of).map(|prefix| prefix.len()).chain(infix).min() {
        None => true,
        Some(dropped) => kept > dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Pod<'static> = Pod { cluster: "default", namespace: "galaxy", service_account: "vader" };

    #[test]
    fn labels_of_a_pod() {
        let labels = POD
            .labels(
                [("org", "empire"), ("pod-template-hash", "abc")],
                [("kubernetes.io/metadata.name", "galaxy")],
            )
            .unwrap();
        assert_eq!(
            labels.canonical(),
            "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=galaxy\n\
             k8s:io.cilium.k8s.policy.cluster=default\n\
             k8s:io.cilium.k8s.policy.serviceaccount=vader\n\
             k8s:io.kubernetes.pod.namespace=galaxy\n\
             k8s:org=empire\n"
        );
    }

    #[test]
    fn a_pod_cannot_forge_what_others_vouch_for() {
        let forged = [
            (NAMESPACE_KEY, "kube-system"),
            (SERVICE_ACCOUNT_KEY, "admin"),
            (CLUSTER_KEY, "other"),
            ("io.cilium.k8s.namespace.labels.trusted", "yes"),
            ("io.cilium.k8s.something", "x"),
        ];
        assert_eq!(POD.labels(forged, []).unwrap(), POD.labels([], []).unwrap());
    }

    #[test]
    fn default_filter_as_documented() {
        for (key, relevant) in [
            ("org", true),
            ("app.kubernetes.io/name", true),
            ("app.kubernetes.io/version", true),
            ("k8s-app", true),
            ("topology.kubernetes.io/zone", true),
            ("io.kubernetes.pod.namespace", true),
            ("io.kubernetes.pod.name", false),
            ("kubernetes.io/metadata.name", false),
            ("statefulset.kubernetes.io/pod-name", false),
            ("apps.kubernetes.io/pod-index", false),
            ("batch.kubernetes.io/job-completion-index", false),
            ("batch.kubernetes.io/controller-uid", false),
            ("batch.kubernetes.io/job-name", true),
            ("beta.kubernetes.io/arch", false),
            ("node.beta.kubernetes.io/x", false),
            ("k8s.io/x", false),
            ("k8sXio/x", true),
            ("pod-template-generation", false),
            ("pod-template-hash", false),
            ("controller-revision-hash", false),
            ("annotation.foo", false),
            ("etcd_node", false),
            ("controller-uid", false),
        ] {
            assert_eq!(is_relevant(key), relevant, "{key}");
        }
    }

    #[test]
    fn impossible_names_are_refused() {
        let pod = Pod { namespace: "a\nk8s:org=empire", ..POD };
        assert!(pod.labels([], []).is_err());
    }
}
