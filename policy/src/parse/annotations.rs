//! Annotations of our own: fields that no schema of others prunes.

use super::node::Node;
use super::policy_error::{Fault, Problem, hint};
use crate::object::RuleList;
use crate::rule::{Rule, Spec};

const PREFIX: &str = "policy.authd.io/";
const ENCRYPTION: &str = "policy.authd.io/encryption";
const AUDIT: &str = "policy.authd.io/audit";

/// What the annotations of a policy say.
#[derive(Default)]
pub(super) struct Annotations<'a> {
    pub(super) audit: bool,
    encryption: Option<(&'a str, Fault)>,
}

/// Reads them. An unknown one with our prefix is a mistake: somebody relies on it.
pub(super) fn parse<'a>(metadata: Option<Node<'a>>) -> Result<Annotations<'a>, Fault> {
    let mut annotations = Annotations::default();
    let Some(node) = metadata.as_ref().and_then(|metadata| metadata.child("annotations")) else {
        return Ok(annotations);
    };
    for (key, value) in node.entries()?.into_iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        match key {
            AUDIT => annotations.audit = parse_audit(&value)?,
            ENCRYPTION => {
                let unknown = value.invalid(
                    "must be `required`, or rules of this object with commas between, such as `ingress[0],specs[1].egress[2]`",
                );
                annotations.encryption = Some((value.text()?, unknown));
            }
            _ => {
                let hint = hint(key, &[ENCRYPTION, AUDIT]);
                return Err(value.fault(Problem::UnknownField { hint }));
            }
        }
    }
    Ok(annotations)
}

/// Whether the annotation says that a policy or namespace is audited.
fn parse_audit(node: &Node<'_>) -> Result<bool, Fault> {
    node.one_of(&[("enabled", true), ("true", true), ("disabled", false), ("false", false)])
}

impl Annotations<'_> {
    /// Requires encryption of the rules that are meant.
    pub(super) fn apply(self, specs: &mut [Spec]) -> Result<(), Fault> {
        let Some((text, unknown)) = self.encryption else { return Ok(()) };
        if text == "required" {
            for rule in specs.iter_mut().flat_map(|spec| &mut spec.rules) {
                rule.encryption = !rule.list.is_deny();
            }
            return Ok(());
        }
        for place in text.split(',').map(str::trim) {
            let mut found = false;
            for spec in specs.iter_mut() {
                let before = spec.place.map(|place| format!("specs[{place}]."));
                let is_allowing =
                    |rule: &&mut Rule| !matches!(rule.list, RuleList::IngressDeny | RuleList::EgressDeny);
                for rule in spec.rules.iter_mut().filter(is_allowing) {
                    let name = format!("{}[{}]", rule.list.as_str(), rule.index);
                    let full_name = format!("{}{name}", before.as_deref().unwrap_or_default());
                    if full_name == place || (before.is_none() && place == format!("spec.{name}")) {
                        rule.encryption = !rule.list.is_deny();
                        found = true;
                    }
                }
            }
            if !found {
                return Err(unknown);
            }
        }
        Ok(())
    }
}
