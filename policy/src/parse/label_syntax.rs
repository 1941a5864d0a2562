//! What Kubernetes lets a label look like. A selector that asks for anything else is a mistake, and not a
//! harmless one: nobody has the value `web `, so that `NotIn` selects everybody.

use super::node::Node;
use super::policy_error::Fault;
use crate::label::{LabelKey, NAMESPACE_LABELS_PREFIX, Source};

/// Longest value, and longest key without its prefix.
const MAX_NAME: usize = 63;
/// Longest prefix of a key: a name of DNS.
const MAX_PREFIX: usize = 253;

pub(super) fn check_value(value: &str, node: &Node<'_>) -> Result<(), Fault> {
    if value.is_empty() || is_name(value) {
        return Ok(());
    }
    Err(node.invalid(format!(
        "no label can have the value `{}`: at most {MAX_NAME} letters, digits, `-`, `_` and `.`, with a letter or digit at both ends",
        value.escape_debug()
    )))
}

pub(super) fn check_key(key: &LabelKey, node: &Node<'_>) -> Result<(), Fault> {
    let text = key.key();
    // A label of a namespace is a whole key after this.
    let own =
        text.strip_prefix(NAMESPACE_LABELS_PREFIX).and_then(|rest| rest.strip_prefix('.')).unwrap_or(text);
    let is_good = match own.split_once('/') {
        Some((prefix, name)) => is_prefix(prefix) && is_name(name),
        None => is_name(own),
    };
    if is_good || key.source() == Source::Cidr {
        return Ok(());
    }
    Err(node.invalid(format!(
        "no label can have the key `{}`: at most {MAX_NAME} letters, digits, `-`, `_` and `.`, with a letter or digit at both ends, and before it perhaps a name of DNS and `/`",
        text.escape_debug()
    )))
}

/// The name of an object of Kubernetes: nothing can have any other, and a rule that denies would deny nothing.
pub(super) fn check_object_name(name: &str, node: &Node<'_>) -> Result<(), Fault> {
    if name.split('.').all(is_prefix) && name.len() <= MAX_PREFIX {
        return Ok(());
    }
    Err(node.invalid(format!(
        "no object can have the name `{}`: at most {MAX_PREFIX} lower-case letters, digits, `-` and `.`, with a letter or digit around each `.` and at both ends",
        name.escape_debug()
    )))
}

fn is_name(text: &str) -> bool {
    is_made_of(text, MAX_NAME, |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_prefix(text: &str) -> bool {
    is_made_of(text, MAX_PREFIX, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
}

fn is_made_of(text: &str, longest: usize, allowed: impl Fn(char) -> bool) -> bool {
    let is_end = |c: char| c.is_ascii_alphanumeric();
    (1..=longest).contains(&text.len())
        && text.starts_with(is_end)
        && text.ends_with(is_end)
        && text.chars().all(allowed)
}
