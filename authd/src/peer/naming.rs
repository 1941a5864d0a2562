//! SPIFFE IDs of nodes and identities, and the server name by which an identity is asked for.

use auth_ebpf_abi::IdentityNumber;
use rustls::pki_types::ServerName;
use spiffe::{SpiffeId, TrustDomain};

/// The part of the template that the number replaces.
const PLACEHOLDER: &str = "{id}";
/// Paths that no identity may have.
const RESERVED: [&str; 2] = ["/authd/", "/spire/"];

/// Why a template can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamingError {
    /// No or several placeholders.
    #[error("SPIFFE ID template {template:?} must have {{id}} exactly once, as a path segment of its own")]
    Placeholder {
        /// The template.
        template: String,
    },
    /// A path that means something else.
    #[error("SPIFFE ID template {template:?} is below /authd/ or /spire/, which are reserved")]
    Reserved {
        /// The template.
        template: String,
    },
    /// Not a SPIFFE ID.
    #[error("SPIFFE ID template {template:?} gives no SPIFFE ID: {reason}")]
    Invalid {
        /// The template.
        template: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Names within one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    trust_domain: TrustDomain,
    template: String,
}

impl Naming {
    /// Names by this template, such as `/identity/{id}`.
    ///
    /// # Errors
    /// When the template gives no usable SPIFFE ID.
    pub fn new(trust_domain: TrustDomain, template: &str) -> Result<Self, NamingError> {
        let template = template.to_owned();
        if template.split('/').filter(|segment| *segment == PLACEHOLDER).count() != 1
            || template.matches('{').count() != 1
        {
            return Err(NamingError::Placeholder { template });
        }
        if RESERVED.iter().any(|reserved| template.starts_with(reserved)) {
            return Err(NamingError::Reserved { template });
        }
        let naming = Self { trust_domain, template };
        let reason = match SpiffeId::new(naming.uri(&naming.template.replace(PLACEHOLDER, "0"))) {
            Ok(spiffe_id) if spiffe_id.is_member_of(&naming.trust_domain) => return Ok(naming),
            Ok(_) => "it must begin with /".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(NamingError::Invalid { template: naming.template, reason })
    }

    /// The trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// SPIFFE ID of an identity.
    #[must_use]
    pub fn identity(&self, number: IdentityNumber) -> Option<SpiffeId> {
        SpiffeId::new(self.uri(&self.template.replace(PLACEHOLDER, &number.to_string()))).ok()
    }

    /// SPIFFE ID of a node; `None` if its name is no path segment.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<SpiffeId> {
        SpiffeId::from_segments(self.trust_domain.clone(), &["authd", "node", name]).ok()
    }

    /// Server name (SNI) by which an identity is asked for.
    #[must_use]
    pub fn server_name(&self, number: IdentityNumber) -> Option<ServerName<'static>> {
        ServerName::try_from(format!("{number}.{}", self.trust_domain.as_str())).ok()
    }

    /// The identity that a server name asks for.
    #[must_use]
    pub fn asked_for(&self, server_name: &str) -> Option<IdentityNumber> {
        let (number, trust_domain) = server_name.split_once('.')?;
        let plain = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
        (plain && trust_domain.eq_ignore_ascii_case(self.trust_domain.as_str()))
            .then(|| number.parse().ok())
            .flatten()
    }

    fn uri(&self, path: &str) -> String {
        format!("spiffe://{}{path}", self.trust_domain.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(template: &str) -> Result<Naming, NamingError> {
        Naming::new(TrustDomain::new("example.test").unwrap(), template)
    }

    #[test]
    fn names_are_those_of_the_design() {
        let naming = naming("/identity/{id}").unwrap();
        assert_eq!(naming.identity(256).unwrap().to_string(), "spiffe://example.test/identity/256");
        assert_eq!(naming.node("n1").unwrap().to_string(), "spiffe://example.test/authd/node/n1");
        assert_eq!(naming.node("n/1"), None);
        assert_eq!(naming.server_name(256).unwrap().to_str(), "256.example.test");
    }

    #[test]
    fn templates_that_mean_something_else_are_refused() {
        for template in ["/identity", "/identity/{id}/{id}", "/identity/x{id}", "/{cluster}/{id}"] {
            assert!(matches!(naming(template), Err(NamingError::Placeholder { .. })), "{template}");
        }
        for template in ["/authd/{id}", "/spire/agent/{id}"] {
            assert!(matches!(naming(template), Err(NamingError::Reserved { .. })), "{template}");
        }
        for template in ["identity/{id}", "/a b/{id}", "/{id}/", "//{id}"] {
            assert!(matches!(naming(template), Err(NamingError::Invalid { .. })), "{template}");
        }
    }

    #[test]
    fn only_exact_server_names_ask_for_an_identity() {
        let naming = naming("/identity/{id}").unwrap();
        assert_eq!(naming.asked_for("256.example.test"), Some(256));
        for name in [
            "256",
            "256.other.test",
            "0256.example.test",
            "+256.example.test",
            ".example.test",
            "x.example.test",
            "99999999999.example.test",
        ] {
            assert_eq!(naming.asked_for(name), None, "{name}");
        }
    }
}
