//! What the policies say about one direction of one endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use auth_ebpf_abi::{AuthType, Direction, IdentityNumber, identity as reserved};

use super::fold::{Force, Remotes, Term};
use crate::identity::Identity;
use crate::label_set::LabelSet;
use crate::object::RuleRef;
use crate::peer::Peers;
use crate::port::{NamedPort, PortPrefix};
use crate::rule::{Policy, Rule};
use crate::surroundings::Surroundings;

/// Cookie of a rule, and the cluster of the endpoint that looks at it: of the endpoint's labels only that
/// matters for whom the rule selects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SelectionKey {
    pub(crate) cookie: u32,
    pub(crate) cluster: Option<Box<str>>,
}

impl SelectionKey {
    pub(crate) fn new(cookie: u32, own: &LabelSet) -> Self {
        Self { cookie, cluster: own.cluster().map(Box::from) }
    }
}

/// Where numbers and selections of rules are known.
pub(crate) trait Resolve {
    /// The number of a rule.
    fn cookie(&self, rule: &RuleRef) -> u32;

    /// The identities that the peers of the rule with this cookie are, seen from an endpoint with the `own`
    /// labels.
    fn select(&mut self, cookie: u32, rule: &Rule, own: &LabelSet) -> Arc<BTreeSet<IdentityNumber>>;
}

/// One direction of one endpoint.
#[derive(Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) endpoint: &'a Identity,
    pub(crate) direction: Direction,
    pub(crate) surroundings: &'a Surroundings,
}

impl End<'_> {
    /// All that the policies say, in the order of their names, and the cookie of a default deny that is only
    /// tried.
    pub(crate) fn terms<'p>(
        &self,
        policies: impl Iterator<Item = &'p Policy>,
        resolver: &mut impl Resolve,
    ) -> (Vec<(Term<'p>, Remotes)>, u32) {
        let Self { endpoint, direction, surroundings } = *self;
        let mut terms = Vec::new();
        let (mut default_deny, mut tried_default_deny) = (false, None);
        let in_trial = surroundings.audited_namespaces.contains(endpoint.namespace());
        for policy in policies {
            let is_tried = in_trial || policy.audit;
            let force = if is_tried { Force::Tried } else { Force::Full };
            let mut denies = policy.refuses(endpoint.labels());
            if denies {
                let cookie = resolver.cookie(&RuleRef::Refused { object: policy.object.clone() });
                terms.push((Term { deny: true, force, ..Term::allow_any(cookie) }, Remotes::Any));
            }
            for spec in policy.specs.iter().filter(|spec| spec.subject.matches(endpoint.labels())) {
                denies |= spec.default_deny(direction);
                for rule in spec.rules.iter().filter(|rule| rule.list.direction() == direction) {
                    let (object, list) = (policy.object.clone(), rule.list);
                    let name = RuleRef::Rule { object, spec: spec.place, list, rule: rule.index };
                    self.add_rule(resolver.cookie(&name), rule, force, resolver, &mut terms);
                }
            }
            if denies && is_tried {
                let (object, direction) = (policy.object.clone(), direction.as_str());
                let rule = RuleRef::DefaultDeny { object, direction };
                tried_default_deny.get_or_insert_with(|| resolver.cookie(&rule));
            } else {
                default_deny |= denies;
            }
        }
        if !default_deny {
            let force = if tried_default_deny.is_some() { Force::Meanwhile } else { Force::Full };
            let rule = RuleRef::NoDefaultDeny { direction: direction.as_str() };
            terms.push((Term { force, ..Term::allow_any(resolver.cookie(&rule)) }, Remotes::Any));
        }
        if direction == Direction::Ingress {
            let cookie = resolver.cookie(&RuleRef::LocalHost);
            let term = Term { explicit: Some(AuthType::Disabled), ..Term::allow_any(cookie) };
            terms.push((term, Remotes::These(Arc::new(BTreeSet::from([reserved::HOST])))));
        }
        (terms, tried_default_deny.unwrap_or_default())
    }

    fn add_rule<'p>(
        &self,
        cookie: u32,
        rule: &'p Rule,
        force: Force,
        resolver: &mut impl Resolve,
        terms: &mut Vec<(Term<'p>, Remotes)>,
    ) {
        let remotes = match &rule.peers {
            Peers::Any => Remotes::Any,
            Peers::Selected(_) => Remotes::These(resolver.select(cookie, rule, self.endpoint.labels())),
        };
        let term = Term {
            force,
            deny: rule.list.is_deny(),
            explicit: rule.authentication,
            encryption: rule.encryption,
            ports: rule.ports.as_slice().into(),
            ..Term::allow_any(cookie)
        };
        for (ports, remotes) in self.named_ports(rule, &remotes) {
            terms.push((Term { ports: ports.into(), ..term.clone() }, remotes));
        }
        terms.push((term, remotes));
    }

    /// What named ports come to: of the endpoint for packets into it, of each other end for those out of it.
    fn named_ports(&self, rule: &Rule, remotes: &Remotes) -> Vec<(Vec<PortPrefix>, Remotes)> {
        let is_deny = rule.list.is_deny();
        let numbers = |identity| {
            let prefixes = |port: &NamedPort| {
                let numbers = self.surroundings.numbers_of(port, identity, is_deny);
                let protocol = port.protocol;
                numbers.into_iter().map(move |number| PortPrefix::port(protocol, number))
            };
            rule.named_ports.iter().flat_map(prefixes).collect::<Vec<_>>()
        };
        if rule.named_ports.is_empty() {
            return Vec::new();
        }
        if rule.list.direction() == Direction::Ingress {
            let ports = numbers(self.endpoint.number());
            return if ports.is_empty() { Vec::new() } else { vec![(ports, remotes.clone())] };
        }
        let mut by_ports: BTreeMap<Vec<PortPrefix>, BTreeSet<IdentityNumber>> = BTreeMap::new();
        for remote in self.surroundings.named_ports.keys().filter(|remote| remotes.has(**remote)) {
            by_ports.entry(numbers(*remote)).or_default().insert(*remote);
        }
        by_ports.remove(&Vec::new());
        by_ports.into_iter().map(|(ports, remotes)| (ports, Remotes::These(Arc::new(remotes)))).collect()
    }
}
