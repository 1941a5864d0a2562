//! Policies as understood: what remains of an object once every field has a meaning.

use auth_ebpf_abi::{AuthType, Direction};

use crate::condition::Condition;
use crate::label::Source;
use crate::label_set::LabelSet;
use crate::object::{ObjectRef, RuleList};
use crate::peer::Peers;
use crate::port::{NamedPort, PortPrefix};
use crate::selector::Selector;

/// A policy object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub object: ObjectRef,
    /// Its `spec`, or its `specs`.
    pub specs: Vec<Spec>,
    /// Set if it was refused: everything of these is denied, whatever any policy says.
    pub refused: Option<Vec<Subject>>,
    /// Whether it is only tried: what it would drop passes, and is reported.
    pub audit: bool,
    /// What isn't done as written.
    pub conditions: Vec<Condition>,
}

impl Policy {
    /// Whether an endpoint with these labels is denied everything by this policy, because it was refused.
    #[must_use]
    pub fn refuses(&self, labels: &LabelSet) -> bool {
        self.refused.as_ref().is_some_and(|scope| scope.iter().any(|subject| subject.matches(labels)))
    }

    /// Whether it may be for nodes, whose policies no hook enforces.
    #[must_use]
    pub fn is_for_nodes(&self) -> bool {
        self.subjects().any(|subject| matches!(subject, Subject::Nodes(_)))
    }

    /// What a refusal of this policy comes to, in words.
    #[must_use]
    pub fn consequence(&self) -> &'static str {
        let is_for_pods = self.subjects().any(|subject| matches!(subject, Subject::Endpoints(_)));
        match (is_for_pods, self.is_for_nodes()) {
            (false, true) => "it is for nodes, whose policies no hook enforces yet: nothing is denied",
            (true, _) | (false, false) => "everything that the policy is about is denied",
        }
    }

    fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.specs.iter().map(|spec| &spec.subject).chain(self.refused.iter().flatten())
    }
}

/// One `spec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its place in `specs`; none if it is `spec`.
    pub place: Option<usize>,
    /// Whom it is for.
    pub subject: Subject,
    /// Whether what no rule allows is denied, into the subject.
    pub default_deny_ingress: bool,
    /// The same, out of it.
    pub default_deny_egress: bool,
    /// Its rules, in the order of their lists.
    pub rules: Vec<Rule>,
    /// Its author's words.
    pub description: Option<String>,
    /// Labels that name it in flows.
    pub labels: Vec<String>,
    /// A text for flows that it decides.
    pub log: Option<String>,
}

impl Spec {
    /// Whether what no rule allows is denied in this direction.
    #[must_use]
    pub const fn default_deny(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.default_deny_ingress,
            Direction::Egress => self.default_deny_egress,
        }
    }
}

/// Whom a spec is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The endpoints selected.
    Endpoints(Selector),
    /// The nodes selected, each as its own host. No hook enforces that yet; traces look at it.
    Nodes(Selector),
}

impl Subject {
    /// Whether an endpoint with these labels is meant, or a host with those of its node.
    #[must_use]
    pub fn matches(&self, labels: &LabelSet) -> bool {
        let is_host = labels.get(Source::Reserved, "host").is_some();
        match self {
            Self::Endpoints(selector) => !is_host && selector.matches(labels),
            Self::Nodes(selector) => is_host && selector.matches(labels),
        }
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The list it stands in, which says whether it denies, and in which direction.
    pub list: RuleList,
    /// Its place in the list.
    pub index: usize,
    /// The other ends that it is about.
    pub peers: Peers,
    /// The protocols and ports that it is about, none twice.
    pub ports: Vec<PortPrefix>,
    /// The ports that it names, whose numbers depend on the pods at the destination.
    pub named_ports: Vec<NamedPort>,
    /// The authentication that it names, if it names one.
    pub authentication: Option<AuthType>,
    /// Whether what it allows must travel encrypted.
    pub encryption: bool,
}
