//! SPIFFE IDs of nodes and identities, and the server name by which an identity is asked for.

use auth_ebpf_abi::IdentityNumber;
use policy::Identity;
use rustls::pki_types::ServerName;
use spiffe::{SpiffeId, TrustDomain};
use spire_adapter::{Selector, Template, TemplateError};

/// The placeholders of a template.
const PLACEHOLDERS: [&str; 4] = ["cluster", "id", "namespace", "serviceaccount"];

/// Why a template can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamingError {
    /// It is no template at all.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// It doesn't say whose the SPIFFE ID is.
    #[error("SPIFFE ID template {template:?} must have {{id}}, or {{namespace}} and {{serviceaccount}}")]
    Ambiguous {
        /// The template.
        template: String,
    },
    /// Something beside a placeholder in its segment: two values could run together into one name.
    #[error("SPIFFE ID template {template:?}: a placeholder must be a path segment of its own")]
    Segment {
        /// The template.
        template: String,
    },
}

/// Names within one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    trust_domain: TrustDomain,
    template: Template,
    cluster: String,
    by_number: bool,
}

impl Naming {
    /// Names by this template, such as `/identity/{id}` or `/ns/{namespace}/sa/{serviceaccount}`, in the cluster
    /// of this name.
    ///
    /// # Errors
    /// When the template gives no usable SPIFFE ID, or not one for each service account.
    pub fn new(trust_domain: TrustDomain, template: &str, cluster: &str) -> Result<Self, NamingError> {
        let parsed = Template::new(trust_domain.clone(), template, &PLACEHOLDERS)?;
        let has = |name: &str| template.split('/').any(|segment| segment == format!("{{{name}}}"));
        if template.split('/').any(|segment| segment.contains('{') && !is_placeholder(segment)) {
            return Err(NamingError::Segment { template: template.to_owned() });
        }
        let by_number = has("id");
        let by_account = has("namespace") && has("serviceaccount");
        if !by_number && !by_account {
            return Err(NamingError::Ambiguous { template: template.to_owned() });
        }
        Ok(Self { trust_domain, template: parsed, cluster: cluster.to_owned(), by_number })
    }

    /// The trust domain.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// SPIFFE ID of an identity; `None` for a reserved one, or where its namespace would lead to a reserved path.
    #[must_use]
    pub fn identity(&self, identity: &Identity) -> Option<SpiffeId> {
        if identity.is_reserved() {
            return None;
        }
        let number = identity.number().to_string();
        let value = |name: &str| match name {
            "cluster" => Some(self.cluster.as_str()),
            "id" => Some(number.as_str()),
            "namespace" => Some(identity.namespace()),
            "serviceaccount" => Some(identity.service_account()),
            _ => None,
        };
        self.template.spiffe_id(value).ok()
    }

    /// What selects the registration entry of an identity. Where identities have no SPIFFE ID of their own, the
    /// entry is not ours, and selects as SPIRE's Kubernetes attestor does.
    #[must_use]
    pub fn selectors(&self, identity: &Identity) -> Vec<Selector> {
        if self.by_number {
            return vec![Selector::new("authd", format!("identity:{}", identity.number()))];
        }
        let of = |kind: &str, value: &str| Selector::new("k8s", format!("{kind}:{value}"));
        vec![of("ns", identity.namespace()), of("sa", identity.service_account())]
    }

    /// Whether each identity has a SPIFFE ID of its own. Otherwise those of a service account share one, and
    /// their registration entries are not authd's.
    #[must_use]
    pub const fn is_by_number(&self) -> bool {
        self.by_number
    }

    /// SPIFFE ID of a node; `None` if its name is no path segment.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<SpiffeId> {
        SpiffeId::from_segments(self.trust_domain.clone(), &["authd", "node", name]).ok()
    }

    /// SPIFFE ID of the operator; `None` never, but for what a library might refuse.
    #[must_use]
    pub fn operator(&self) -> Option<SpiffeId> {
        SpiffeId::from_segments(self.trust_domain.clone(), &["authd", "operator"]).ok()
    }

    /// These names, where several identities may share one.
    #[must_use]
    pub fn sharing(&self) -> Option<Self> {
        (!self.by_number).then(|| self.clone())
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
}

fn is_placeholder(segment: &str) -> bool {
    let name = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    name.is_some_and(|name| !name.contains(['{', '}']))
}

#[cfg(test)]
impl Naming {
    /// SPIFFE ID of the identity with this number, whatever its labels.
    pub(super) fn numbered(&self, number: IdentityNumber) -> Option<SpiffeId> {
        self.identity(&tests::identity(number, "galaxy", "default"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn identity(number: IdentityNumber, namespace: &str, service_account: &str) -> Identity {
        let pod = policy::Pod { cluster: "default", namespace, service_account };
        Identity::new(number, pod.labels([], []).unwrap()).unwrap()
    }

    fn naming(template: &str) -> Result<Naming, NamingError> {
        Naming::new(TrustDomain::new("example.test").unwrap(), template, "west")
    }

    #[test]
    fn names_are_those_of_the_design() {
        let naming = naming("/identity/{id}").unwrap();
        assert_eq!(naming.numbered(256).unwrap().to_string(), "spiffe://example.test/identity/256");
        assert_eq!(naming.node("n1").unwrap().to_string(), "spiffe://example.test/authd/node/n1");
        assert_eq!(naming.node("n/1"), None);
        assert_eq!(naming.server_name(256).unwrap().to_str(), "256.example.test");
        assert!(naming.is_by_number());
        let selectors = naming.selectors(&identity(256, "shop", "web"));
        assert_eq!(selectors, [Selector::new("authd", "identity:256")]);
    }

    #[test]
    fn a_cluster_has_a_part_of_the_trust_domain() {
        let naming = naming("/{cluster}/identity/{id}").unwrap();
        assert_eq!(naming.numbered(256).unwrap().to_string(), "spiffe://example.test/west/identity/256");
    }

    #[test]
    fn service_accounts_have_the_names_that_users_registered() {
        let naming = naming("/ns/{namespace}/sa/{serviceaccount}").unwrap();
        let [one, two] = [256, 300].map(|number| identity(number, "shop", "web"));
        assert_eq!(naming.identity(&one).unwrap().to_string(), "spiffe://example.test/ns/shop/sa/web");
        assert_eq!(naming.identity(&one), naming.identity(&two));
        assert!(!naming.is_by_number());
        let selectors = [Selector::new("k8s", "ns:shop"), Selector::new("k8s", "sa:web")];
        assert_eq!(naming.selectors(&one), selectors);
    }

    #[test]
    fn templates_that_mean_something_else_are_refused() {
        for (template, words) in [
            ("/identity", "no placeholder"),
            ("/identity/x{id}", "segment of its own"),
            ("/ns/{namespace}-{serviceaccount}", "segment of its own"),
            ("/ns/{namespace}", "must have {id}"),
            ("/{cluster}/{serviceaccount}", "must have {id}"),
            ("/identity/{number}", "one of"),
            ("/authd/{id}", "reserved"),
            ("/spire/agent/{id}", "reserved"),
            ("identity/{id}", "begins with /"),
            ("/a b/{id}", "path"),
            ("/{id}/", "slash"),
            ("//{id}", "empty"),
        ] {
            let error = naming(template).unwrap_err().to_string();
            assert!(error.contains(words), "{template}: {error}");
        }
    }

    #[test]
    fn no_namespace_leads_to_a_reserved_path() {
        let naming = naming("/{namespace}/{serviceaccount}").unwrap();
        for namespace in ["authd", "spire"] {
            assert_eq!(naming.identity(&identity(256, namespace, "node")), None);
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
