//! SPIFFE IDs of workloads by a path template with placeholders, such as `/identity/{id}`.

use crate::{SpiffeId, TrustDomain};

/// Paths that no workload may have: authd's own identities and SPIRE's.
const RESERVED: [&str; 2] = ["authd", "spire"];

/// Why a template cannot be used, or not with these values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// Braces that belong to no placeholder.
    #[error("SPIFFE ID template {template:?}: braces must enclose one of {known:?}")]
    Placeholder {
        /// The template.
        template: String,
        /// The placeholders that there are.
        known: Vec<String>,
    },
    /// Not enough to tell workloads apart.
    #[error("SPIFFE ID template {template:?} has no placeholder, so that all workloads would share one ID")]
    Constant {
        /// The template.
        template: String,
    },
    /// A path that means something else.
    #[error("SPIFFE ID {path:?} is below /authd/ or /spire/, which are reserved")]
    Reserved {
        /// The template, or what it yielded.
        path: String,
    },
    /// Not a SPIFFE ID.
    #[error("SPIFFE ID {path:?}: {reason}")]
    Invalid {
        /// The template, or what it yielded.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A path template within a trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    trust_domain: TrustDomain,
    parts: Vec<Part>,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Placeholder(String),
}

impl Template {
    /// Reads a template whose placeholders are among `known`, such as `id`, `namespace`, `serviceaccount`.
    pub fn new(trust_domain: TrustDomain, text: &str, known: &[&str]) -> Result<Self, TemplateError> {
        let placeholder = || TemplateError::Placeholder {
            template: text.to_owned(),
            known: known.iter().map(|name| format!("{{{name}}}")).collect(),
        };
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, behind) = after.split_once('}').ok_or_else(placeholder)?;
            if before.contains('}') || !known.contains(&name) {
                return Err(placeholder());
            }
            parts.extend([Part::Text(before.to_owned()), Part::Placeholder(name.to_owned())]);
            rest = behind;
        }
        if rest.contains('}') {
            return Err(placeholder());
        }
        if parts.is_empty() {
            return Err(TemplateError::Constant { template: text.to_owned() });
        }
        parts.push(Part::Text(rest.to_owned()));
        let template = Self { trust_domain, parts, text: text.to_owned() };
        // What it yields for a harmless value shows whether it is a path at all.
        template.spiffe_id(|_| Some("x"))?;
        Ok(template)
    }

    /// The SPIFFE ID for the values that `value` has for the placeholders. A value can neither add a segment nor
    /// lead to a reserved path.
    pub fn spiffe_id<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> Result<SpiffeId, TemplateError> {
        let invalid = |reason: String| TemplateError::Invalid { path: self.text.clone(), reason };
        let mut path = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Placeholder(name) => {
                    let value = value(name).filter(|value| !value.is_empty());
                    let value = value.ok_or_else(|| invalid(format!("there is no value for {{{name}}}")))?;
                    if value.contains('/') {
                        return Err(invalid(format!("the value {value:?} of {{{name}}} has a slash")));
                    }
                    path.push_str(value);
                }
            }
        }
        let Some(first) = path.strip_prefix('/').and_then(|path| path.split('/').next()) else {
            return Err(invalid("a path begins with /".to_owned()));
        };
        if RESERVED.contains(&first) {
            return Err(TemplateError::Reserved { path });
        }
        SpiffeId::new(format!("{}{path}", self.trust_domain.id_string()))
            .map_err(|error| TemplateError::Invalid { path, reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: [&str; 3] = ["id", "namespace", "serviceaccount"];

    fn template(text: &str) -> Result<Template, TemplateError> {
        Template::new(TrustDomain::new("a.test").unwrap(), text, &KNOWN)
    }

    #[test]
    fn both_usual_templates_name_workloads() {
        let id = template("/identity/{id}").unwrap().spiffe_id(|_| Some("256")).unwrap();
        assert_eq!(id.to_string(), "spiffe://a.test/identity/256");
        let values = |name: &str| match name {
            "namespace" => Some("shop"),
            "serviceaccount" => Some("web"),
            _ => None,
        };
        let id = template("/ns/{namespace}/sa/{serviceaccount}").unwrap().spiffe_id(values).unwrap();
        assert_eq!(id.to_string(), "spiffe://a.test/ns/shop/sa/web");
        let missing = template("/identity/{id}").unwrap().spiffe_id(values).unwrap_err();
        assert!(missing.to_string().contains("no value for {id}"), "{missing}");
    }

    #[test]
    fn what_is_no_template_is_refused_in_words() {
        for (text, words) in [
            ("/identity", "no placeholder"),
            ("/identity/{number}", "one of"),
            ("/identity/{id", "one of"),
            ("/identity/id}/{id}", "one of"),
            ("/identity/{id}}", "one of"),
            ("identity/{id}", "begins with /"),
            ("/identity/{id}/", "slash"),
            ("/a b/{id}", "path"),
            ("//{id}", "empty"),
            ("/authd/{id}", "reserved"),
            ("/spire/agent/{id}", "reserved"),
        ] {
            let error = template(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn values_lead_nowhere_else() {
        let template = template("/{namespace}/{serviceaccount}").unwrap();
        for value in ["authd", "spire"] {
            let refused = template.spiffe_id(|name| Some(if name == "namespace" { value } else { "x" }));
            assert!(matches!(refused, Err(TemplateError::Reserved { .. })), "{refused:?}");
        }
        for value in ["", ".", "..", "a/b", "a b", "\u{e4}", "a%2fb"] {
            template.spiffe_id(|_| Some(value)).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn no_values_yield_a_reserved_path(text in "/(authd|spire|\\{id\\}|ns){1,2}(/\\{namespace\\})?", id in ".{0,8}", namespace in "authd|spire|/|.{0,4}") {
            let Ok(template) = template(&text) else { return Ok(()) };
            let values = |name: &str| Some(if name == "id" { id.as_str() } else { namespace.as_str() });
            if let Ok(spiffe_id) = template.spiffe_id(values) {
                let path = spiffe_id.path().to_owned() + "/";
                prop_assert!(!path.starts_with("/authd/") && !path.starts_with("/spire/"), "{path}");
            }
        }
    }
}
