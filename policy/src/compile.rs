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

use crate::condition::Condition;
use crate::identity::{Identity, IdentitySet};
use crate::label::{CLUSTER_KEY, Source};
use crate::label_set::LabelSet;
use crate::object::{ObjectRef, RuleRef};
use crate::policy_set::PolicySet;
use crate::port::PortPrefix;
use crate::rule::{Peers, Rule};
use cookie::Cookies;
use fold::{Remotes, Term};

/// Entries of the kernel's policy map, by key and prefix length.
pub type PolicyMap = BTreeMap<(PolicyKey, u32), PolicyEntry>;

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

/// Compiles the policies for these local identities. A local identity that isn't in `identities` gets no
/// entry, so its packets are dropped.
#[must_use]
pub fn compile(
    policies: &PolicySet,
    identities: &IdentitySet,
    locals: impl IntoIterator<Item = IdentityNumber>,
) -> Compiled {
    let cookies = Cookies::new(policies);
    let mut compiler = Compiler { policies, identities, cookies: &cookies, resolved: BTreeMap::new() };
    let mut map = PolicyMap::new();
    let locals: BTreeSet<IdentityNumber> = locals.into_iter().collect();
    for identity in locals.into_iter().filter_map(|local| identities.get(local)) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let terms = compiler.terms(identity, direction);
            fold::fold(&terms, direction, |remote, prefix, entry| {
                let mut key = PolicyKey { local: identity.number(), remote, ..PolicyKey::default() };
                key.direction = direction as u8;
                let bits = prefix.put(&mut key);
                map.insert((key, bits), entry);
            });
        }
    }
    Compiled {
        authentication: authentication(&map),
        conditions: policies.conditions(identities),
        rules: cookies.into_rules(),
        map,
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
    policies: &'a PolicySet,
    identities: &'a IdentitySet,
    cookies: &'a Cookies,
    /// The identities that a rule's peers are; of the endpoint's labels only the cluster matters for that.
    resolved: BTreeMap<ResolvedKey, Arc<BTreeSet<IdentityNumber>>>,
}

impl<'a> Compiler<'a> {
    /// All that the policies say about one direction of one endpoint.
    fn terms(&mut self, endpoint: &Identity, direction: Direction) -> Vec<Term<'a>> {
        let mut terms = Vec::new();
        let mut default_deny = false;
        for policy in self.policies.iter() {
            if policy.refuses(endpoint.labels()) {
                default_deny = true;
                let cookie = self.cookies.of(&RuleRef::Refused { object: policy.object.clone() });
                terms.push(Term { deny: true, ..Term::allow_any(cookie) });
            }
            for spec in policy.specs.iter().filter(|spec| spec.subject.matches(endpoint.labels())) {
                default_deny |= match direction {
                    Direction::Ingress => spec.default_deny_ingress,
                    Direction::Egress => spec.default_deny_egress,
                };
                for rule in spec.rules.iter().filter(|rule| rule.list.direction() == direction) {
                    terms.push(self.term(&policy.object, spec.place, rule, endpoint.labels()));
                }
            }
        }
        if !default_deny {
            let rule = RuleRef::NoDefaultDeny { direction: direction.as_str() };
            terms.push(Term::allow_any(self.cookies.of(&rule)));
        }
        if direction == Direction::Ingress {
            let cookie = self.cookies.of(&RuleRef::LocalHost);
            let remotes = Remotes::These(Arc::new(BTreeSet::from([reserved::HOST])));
            terms.push(Term { explicit: Some(AuthType::Disabled), remotes, ..Term::allow_any(cookie) });
        }
        terms
    }

    fn term(&mut self, object: &ObjectRef, spec: Option<usize>, rule: &'a Rule, own: &LabelSet) -> Term<'a> {
        let reference = RuleRef::Rule { object: object.clone(), spec, list: rule.list, rule: rule.index };
        let cookie = self.cookies.of(&reference);
        let remotes = match &rule.peers {
            Peers::Any => Remotes::Any,
            Peers::Selected(_) => Remotes::These(self.resolve(cookie, &rule.peers, own)),
        };
        Term { deny: rule.list.is_deny(), explicit: rule.authentication, cookie, ports: &rule.ports, remotes }
    }

    fn resolve(&mut self, cookie: u32, peers: &Peers, own: &LabelSet) -> Arc<BTreeSet<IdentityNumber>> {
        let identities = self.identities;
        let cluster = own.get(Source::K8s, CLUSTER_KEY).map(str::to_owned);
        let selected = self.resolved.entry((cookie, cluster)).or_insert_with(|| {
            let selected = identities.iter().filter(|identity| peers.matches(identity.labels(), own));
            Arc::new(selected.map(Identity::number).collect())
        });
        Arc::clone(selected)
    }
}

impl Term<'_> {
    /// Allows everything.
    const fn allow_any(cookie: u32) -> Self {
        Self { deny: false, explicit: None, cookie, ports: &[PortPrefix::ANY], remotes: Remotes::Any }
    }
}
