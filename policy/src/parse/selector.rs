//! Selectors as they are written, and what their place in a policy adds to them.

use super::label_syntax::{check_key, check_value};
use super::node::Node;
use super::policy_error::{Fault, Problem};
use crate::condition::ConditionKind;
use crate::label::{
    CLUSTER_KEY, LabelError, LabelKey, NAMESPACE_KEY, NAMESPACE_LABELS_PREFIX, OWN_PREFIX, Source,
};
use crate::object::{Kind, ObjectRef};
use crate::peer::Peer;
use crate::selector::{Operator, Requirement, Selector};

/// The operators of `matchExpressions`.
#[derive(Clone, Copy)]
enum Word {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

const WORDS: [(&str, Word); 4] = [
    ("In", Word::In),
    ("NotIn", Word::NotIn),
    ("Exists", Word::Exists),
    ("DoesNotExist", Word::DoesNotExist),
];

/// A selector whose keys may have a source.
pub(super) fn parse(node: &Node<'_>) -> Result<Selector, Fault> {
    parse_with(node, read_key)
}

/// A key as Cilium reads it: `source:key`, the older `reserved.key` and `$key` of reserved labels, and
/// `k8s.` before the keys that Kubernetes' objects derive, as its documentation writes them too.
fn read_key(text: &str) -> Result<LabelKey, LabelError> {
    if let Some(key) = text.strip_prefix("reserved.").or(text.strip_prefix('$')) {
        return LabelKey::new(Source::Reserved, key);
    }
    match text.strip_prefix("k8s.") {
        Some(key) if key == NAMESPACE_KEY || key.starts_with(OWN_PREFIX) => LabelKey::new(Source::K8s, key),
        Some(_) | None => text.parse(),
    }
}

/// A selector whose keys are read like this.
pub(super) fn parse_with(
    node: &Node<'_>,
    read: impl Fn(&str) -> Result<LabelKey, LabelError>,
) -> Result<Selector, Fault> {
    let label_key = |text: &str, node: &Node<'_>| {
        let key = read(text).map_err(|error| node.fault(Problem::Label(error)))?;
        check_key(&key, node).map(|()| key)
    };
    let fields = node.fields(&["matchLabels", "matchExpressions"])?;
    let mut requirements = Vec::new();
    if let Some(labels) = fields.get("matchLabels") {
        for (key, value) in labels.entries()? {
            let key = label_key(key, &value)?;
            check_value(value.text()?, &value)?;
            requirements.push(Requirement::equals(key, value.text()?));
        }
    }
    for expression in fields.items("matchExpressions")?.unwrap_or_default() {
        requirements.push(parse_expression(&expression, label_key)?);
    }
    Ok(Selector { requirements })
}

fn parse_expression(
    node: &Node<'_>,
    label_key: impl Fn(&str, &Node<'_>) -> Result<LabelKey, Fault>,
) -> Result<Requirement, Fault> {
    let fields = node.fields(&["key", "operator", "values"])?;
    let key = fields.require("key")?;
    let key = label_key(key.text()?, &key)?;
    // Cilium's own examples write them in lower case as well.
    let operator = fields.require("operator")?.one_of_any_case(&WORDS)?;
    let mut values = std::collections::BTreeSet::new();
    for value in fields.items("values")?.unwrap_or_default() {
        check_value(value.text()?, &value)?;
        values.insert(value.text()?.to_owned());
    }
    let wants_values = matches!(operator, Word::In | Word::NotIn);
    if wants_values && values.is_empty() {
        return Err(node.invalid("operators In and NotIn need `values`"));
    }
    if !wants_values && !values.is_empty() {
        return Err(node.invalid("operators Exists and DoesNotExist take no `values`"));
    }
    let operator = match operator {
        Word::In => Operator::In(values),
        Word::NotIn => Operator::NotIn(values),
        Word::Exists => Operator::Exists,
        Word::DoesNotExist => Operator::DoesNotExist,
    };
    Ok(Requirement { key, operator })
}

/// Everything in this namespace.
pub(super) fn namespace(name: &str) -> Selector {
    let requirements = key(NAMESPACE_KEY).map(|key| Requirement::equals(key, name));
    Selector { requirements: requirements.into_iter().collect() }
}

/// What is wrong with a selector, and in words.
type Wrong = (ConditionKind, String);

/// The subject that a policy's selector means: in its own namespace only. Also gives what is wrong if the
/// selector names another one, or none: what has a reserved label is in no namespace.
///
/// As in Cilium, `k8s:io.kubernetes.pod.namespace` in `matchLabels` is replaced; whatever else excludes the
/// policy's own namespace leaves no one.
pub(super) fn parse_subject(node: &Node<'_>, object: &ObjectRef) -> Result<(Selector, Option<Wrong>), Fault> {
    let mut selector = parse(node)?;
    if object.kind != Kind::CiliumNetworkPolicy {
        return Ok((within(selector, object), None));
    }
    let own = &object.namespace;
    let excludes = |requirement: &Requirement| {
        let has_own = match &requirement.operator {
            Operator::In(values) => values.contains(own),
            Operator::NotIn(values) => !values.contains(own),
            Operator::Exists => true,
            Operator::DoesNotExist => false,
        };
        requirement.key.key() == NAMESPACE_KEY && requirement.key.source() != Source::Reserved && !has_own
    };
    let labels = node.child("matchLabels").map(|labels| labels.entries()).transpose()?.unwrap_or_default();
    let mut place = 0;
    let before = selector.requirements.len();
    selector.requirements.retain(|requirement| {
        place += 1;
        place > labels.len() || requirement.key.source() != Source::K8s || !excludes(requirement)
    });
    let wants_reserved = |requirement: &Requirement| {
        requirement.key.source() == Source::Reserved
            && matches!(requirement.operator, Operator::In(_) | Operator::Exists)
    };
    let wrong = if selector.requirements.iter().any(excludes) {
        let words =
            format!("a policy is for its own namespace, `{own}`, which this excludes: it selects nothing");
        Some((ConditionKind::ForeignNamespace, words))
    } else if selector.requirements.iter().any(wants_reserved) {
        let words = "what has reserved labels is in no namespace: this selects nothing; a \
                     CiliumClusterwideNetworkPolicy can select it";
        Some((ConditionKind::SelectsNothing, words.to_owned()))
    } else {
        let words = || format!("a policy is for its own namespace; `{own}` counts");
        let is_replaced = selector.requirements.len() != before;
        is_replaced.then(|| (ConditionKind::ForeignNamespace, words()))
    };
    Ok((within(selector, object), wrong))
}

/// The same selector, within the namespace of an object that has one.
pub(super) fn within(mut selector: Selector, object: &ObjectRef) -> Selector {
    if !object.namespace.is_empty() {
        selector.requirements.extend(namespace(&object.namespace).requirements);
    }
    selector
}

/// The peers that a selector in a rule means: in the policy's namespace unless it says otherwise; for the
/// cluster's policies, pods of any namespace. One about reserved labels is taken as it is.
pub(super) fn of_peers(mut selector: Selector, object: &ObjectRef, subject_is_init: bool) -> Selector {
    if selector.has_source(Source::Reserved) || selector.has_k8s_key(NAMESPACE_KEY) {
        return selector;
    }
    if object.namespace.is_empty() {
        if !subject_is_init {
            let requirement = key(NAMESPACE_KEY).map(|key| Requirement { key, operator: Operator::Exists });
            selector.requirements.extend(requirement);
        }
    } else if !selector.has_k8s_prefix(NAMESPACE_LABELS_PREFIX) {
        selector.requirements.extend(namespace(&object.namespace).requirements);
    }
    selector
}

/// The pods that a selector in a rule means: of the endpoint's own cluster unless it says otherwise, as Cilium has it
/// since 1.19.
pub(super) fn in_cluster(selector: Selector) -> Peer {
    let is_told = selector.has_source(Source::Reserved) || selector.has_k8s_key(CLUSTER_KEY);
    if is_told { Peer::Selector(selector) } else { Peer::OwnCluster(selector) }
}

fn key(name: &str) -> Option<LabelKey> {
    LabelKey::new(Source::K8s, name).ok()
}
