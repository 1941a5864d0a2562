//! From policies and identities to the entries of the kernel's policy map.
//!
//! The kernel matches the longest prefix once for the peer's identity and once for any, and chooses between
//! the two. So each entry is made complete here: it says what all rules together say about everything under
//! its key that has no entry of its own. A miss always means drop, so a direction that no policy restricts
//! has an entry that allows everything.

mod cookie;
mod fold;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use auth_ebpf_abi::{AuthType, Direction, IdentityNumber, PolicyEntry, PolicyKey, identity as reserved};
use ipnet::IpNet;

use crate::cidr::Prefixes;
use crate::condition::Condition;
use crate::identity::{Identity, IdentitySet};
use crate::label::{CLUSTER_KEY, Source};
use crate::label_set::LabelSet;
use crate::object::{ObjectRef, RuleRef};
use crate::peer::{Peers, Remote};
use crate::policy_set::PolicySet;
use crate::port::{NamedPort, PortPrefix};
use crate::rule::{Policy, Rule};
use crate::surroundings::Surroundings;
use cookie::Cookies;
use fold::{Force, Remotes, Term};

/// Entries of the kernel's policy map, by key and prefix length.
pub type PolicyMap = BTreeMap<(PolicyKey, u32), PolicyEntry>;

/// What policies are compiled from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The policies.
    pub policies: &'a PolicySet,
    /// The identities that there are in the cluster.
    pub identities: &'a IdentitySet,
    /// What else the policies refer to.
    pub surroundings: &'a Surroundings,
}

/// What the policies come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The entries.
    pub map: PolicyMap,
    /// What the cookies in the entries stand for.
    pub rules: BTreeMap<u32, RuleRef>,
    /// What isn't done as written, by policy.
    pub conditions: BTreeMap<ObjectRef, Vec<Condition>>,
    /// Pairs of local and remote identity of which some entry requires authentication. A remote identity of
    /// 0 stands for any; ask [`Compiled::asks_authentication`].
    pub authentication: BTreeSet<(IdentityNumber, IdentityNumber)>,
    /// The prefixes outside the cluster that policies name, and the identities which stand for them.
    pub prefixes: BTreeMap<IpNet, IdentityNumber>,
}

impl Compiled {
    /// Whether some entry requires authentication of this pair. Reserved identities can't authenticate.
    #[must_use]
    pub fn asks_authentication(&self, local: IdentityNumber, remote: IdentityNumber) -> bool {
        !reserved::is_reserved(remote)
            && [remote, reserved::UNKNOWN]
                .iter()
                .any(|remote| self.authentication.contains(&(local, *remote)))
    }
}

/// Compiles the policies for these local identities. A local identity that isn't known gets no entry, so its
/// packets are dropped.
#[must_use]
pub fn compile(input: Input<'_>, locals: impl IntoIterator<Item = IdentityNumber>) -> Compiled {
    let cookies = Cookies::new(input.policies);
    let prefixes = input.policies.prefixes(input.surroundings);
    let mut compiler = Compiler { input, prefixes: &prefixes, cookies: &cookies, resolved: BTreeMap::new() };
    let mut map = PolicyMap::new();
    let locals: BTreeSet<IdentityNumber> = locals.into_iter().collect();
    for identity in locals.into_iter().filter_map(|local| input.identities.get(local)) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let (terms, tried) = compiler.terms(identity, direction);
            fold::fold(&terms, direction, tried, |remote, prefix, entry| {
                let mut key = PolicyKey { local: identity.number(), remote, ..PolicyKey::default() };
                key.direction = direction as u8;
                let bits = prefix.put(&mut key);
                map.insert((key, bits), entry);
            });
        }
    }
    Compiled {
        authentication: authentication(&map),
        conditions: input.policies.conditions(input.identities, input.surroundings),
        map,
        rules: cookies.into_rules(),
        prefixes: prefixes.by_net().clone(),
    }
}

fn authentication(map: &PolicyMap) -> BTreeSet<(IdentityNumber, IdentityNumber)> {
    map.iter()
        .filter(|(_, entry)| entry.deny == 0 && entry.auth_type == AuthType::Spire as u8)
        .map(|((key, _), _)| (key.local, key.remote))
        .filter(|(_, remote)| *remote == reserved::UNKNOWN || !reserved::is_reserved(*remote))
        .collect()
}

/// Cookie of a rule, and the cluster of the endpoint that looks at it.
type ResolvedKey = (u32, Option<String>);

struct Compiler<'a> {
    input: Input<'a>,
    prefixes: &'a Prefixes,
    cookies: &'a Cookies,
    /// The identities that a rule's peers are; of the endpoint's labels only the cluster matters for that.
    resolved: BTreeMap<ResolvedKey, Arc<BTreeSet<IdentityNumber>>>,
}

impl<'a> Compiler<'a> {
    /// All that the policies say about one direction of one endpoint, and the cookie of a default deny that
    /// is only tried.
    fn terms(&mut self, endpoint: &Identity, direction: Direction) -> (Vec<Term<'a>>, u32) {
        let mut terms = Vec::new();
        let (mut default_deny, mut tried_default_deny) = (false, None);
        let in_trial = self.input.surroundings.audited_namespaces.contains(endpoint.namespace());
        for policy in self.input.policies.iter() {
            let is_tried = in_trial || policy.audit;
            let force = if is_tried { Force::Tried } else { Force::Full };
            let mut denies = policy.refuses(endpoint.labels());
            if denies {
                let cookie = self.cookies.of(&RuleRef::Refused { object: policy.object.clone() });
                terms.push(Term { deny: true, force, ..Term::allow_any(cookie) });
            }
            for spec in policy.specs.iter().filter(|spec| spec.subject.matches(endpoint.labels())) {
                denies |= spec.default_deny(direction);
                for rule in spec.rules.iter().filter(|rule| rule.list.direction() == direction) {
                    self.add_rule(policy, spec.place, rule, (endpoint, force), &mut terms);
                }
            }
            if denies && is_tried {
                let (object, direction) = (policy.object.clone(), direction.as_str());
                let rule = RuleRef::DefaultDeny { object, direction };
                tried_default_deny.get_or_insert_with(|| self.cookies.of(&rule));
            } else {
                default_deny |= denies;
            }
        }
        if !default_deny {
            let force = if tried_default_deny.is_some() { Force::Meanwhile } else { Force::Full };
            let rule = RuleRef::NoDefaultDeny { direction: direction.as_str() };
            terms.push(Term { force, ..Term::allow_any(self.cookies.of(&rule)) });
        }
        if direction == Direction::Ingress {
            let cookie = self.cookies.of(&RuleRef::LocalHost);
            let remotes = Remotes::These(Arc::new(BTreeSet::from([reserved::HOST])));
            terms.push(Term { explicit: Some(AuthType::Disabled), remotes, ..Term::allow_any(cookie) });
        }
        (terms, tried_default_deny.unwrap_or_default())
    }

    fn add_rule(
        &mut self,
        policy: &Policy,
        spec: Option<usize>,
        rule: &'a Rule,
        (endpoint, force): (&Identity, Force),
        terms: &mut Vec<Term<'a>>,
    ) {
        let object = policy.object.clone();
        let cookie = self.cookies.of(&RuleRef::Rule { object, spec, list: rule.list, rule: rule.index });
        let remotes = match &rule.peers {
            Peers::Any => Remotes::Any,
            Peers::Selected(_) => Remotes::These(self.resolve(cookie, rule, endpoint.labels())),
        };
        let term = Term {
            force,
            deny: rule.list.is_deny(),
            explicit: rule.authentication,
            encryption: rule.encryption,
            ports: rule.ports.as_slice().into(),
            remotes,
            ..Term::allow_any(cookie)
        };
        for (ports, remotes) in self.named_ports(rule, endpoint, &term.remotes) {
            terms.push(Term { ports: ports.into(), remotes, ..term.clone() });
        }
        terms.push(term);
    }

    /// What named ports come to: of the endpoint for packets into it, of each other end for those out of it.
    fn named_ports(
        &self,
        rule: &Rule,
        endpoint: &Identity,
        remotes: &Remotes,
    ) -> Vec<(Vec<PortPrefix>, Remotes)> {
        let is_deny = rule.list.is_deny();
        let numbers = |identity| {
            let prefixes = |port: &NamedPort| {
                let numbers = self.input.surroundings.numbers_of(port, identity, is_deny);
                let protocol = port.protocol;
                numbers.into_iter().map(move |number| PortPrefix::port(protocol, number))
            };
            rule.named_ports.iter().flat_map(prefixes).collect::<Vec<_>>()
        };
        if rule.named_ports.is_empty() {
            return Vec::new();
        }
        if rule.list.direction() == Direction::Ingress {
            let ports = numbers(endpoint.number());
            return if ports.is_empty() { Vec::new() } else { vec![(ports, remotes.clone())] };
        }
        let mut by_ports: BTreeMap<Vec<PortPrefix>, BTreeSet<IdentityNumber>> = BTreeMap::new();
        for remote in self.input.surroundings.named_ports.keys().filter(|remote| remotes.has(**remote)) {
            by_ports.entry(numbers(*remote)).or_default().insert(*remote);
        }
        by_ports.remove(&Vec::new());
        by_ports.into_iter().map(|(ports, remotes)| (ports, Remotes::These(Arc::new(remotes)))).collect()
    }

    fn resolve(&mut self, cookie: u32, rule: &Rule, own: &LabelSet) -> Arc<BTreeSet<IdentityNumber>> {
        let (input, prefixes) = (self.input, self.prefixes);
        let cluster = own.get(Source::K8s, CLUSTER_KEY).map(str::to_owned);
        let selected = self
            .resolved
            .entry((cookie, cluster))
            .or_insert_with(|| Arc::new(selected(rule, own, input.identities, prefixes, input.surroundings)));
        Arc::clone(selected)
    }
}

/// The identities that a rule's peers are, prefixes among them. A rule that requires authentication of some
/// but not all who share a SPIFFE ID selects no one: authentication couldn't tell them apart.
pub(crate) fn selected(
    rule: &Rule,
    own: &LabelSet,
    identities: &IdentitySet,
    prefixes: &Prefixes,
    surroundings: &Surroundings,
) -> BTreeSet<IdentityNumber> {
    let is_deny = rule.list.is_deny();
    let remotes = identities.remotes().chain(prefixes.remotes());
    let selected: BTreeSet<IdentityNumber> = remotes
        .filter(|remote| rule.peers.select(*remote, own, surroundings, is_deny))
        .map(|Remote { number, .. }| number)
        .collect();
    if splits_shared(rule, &selected, surroundings) { BTreeSet::new() } else { selected }
}

/// Whether the rule requires authentication of some who share a SPIFFE ID, but not of all.
pub(crate) fn splits_shared(
    rule: &Rule,
    selected: &BTreeSet<IdentityNumber>,
    surroundings: &Surroundings,
) -> bool {
    let splits =
        |sharing: &BTreeSet<IdentityNumber>| !sharing.is_disjoint(selected) && !sharing.is_subset(selected);
    rule.authentication == Some(AuthType::Spire)
        && !rule.list.is_deny()
        && surroundings.shared().iter().any(splits)
}

impl Term<'_> {
    /// Allows everything.
    const fn allow_any(cookie: u32) -> Self {
        Self {
            force: Force::Full,
            deny: false,
            explicit: None,
            encryption: false,
            cookie,
            ports: std::borrow::Cow::Borrowed(&[PortPrefix::ANY]),
            remotes: Remotes::Any,
        }
    }
}
