//! From policies and identities to the entries of the kernel's policy map.
//!
//! The kernel matches the longest prefix once for the peer's identity and once for any, and chooses between
//! the two. So each entry is made complete here: it says what all rules together say about everything under
//! its key that has no entry of its own. A miss always means drop, so a direction that no policy restricts
//! has an entry that allows everything.

pub(crate) mod cookie;
pub(crate) mod fold;
pub(crate) mod terms;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use auth_ebpf_abi::{AuthType, Direction, IdentityNumber, PolicyEntry, PolicyKey, identity as reserved};
use ipnet::IpNet;

use crate::condition::Condition;
use crate::identity::IdentitySet;
use crate::label_set::LabelSet;
use crate::local::LocalIdentities;
use crate::object::{ObjectRef, RuleRef};
use crate::peer::Remote;
use crate::policy_set::PolicySet;
use crate::rule::Rule;
use crate::surroundings::Surroundings;
use cookie::Cookies;
use terms::{End, Resolve, SelectionKey};

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
    /// The nodes that policies choose by label, and the identities which stand for them.
    pub nodes: BTreeMap<String, IdentityNumber>,
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
    let local = input.policies.local_identities(input.surroundings);
    let mut resolver = Resolver { input, local: &local, cookies: &cookies, resolved: BTreeMap::new() };
    let mut map = PolicyMap::new();
    let locals: BTreeSet<IdentityNumber> = locals.into_iter().collect();
    for identity in locals.into_iter().filter_map(|local| input.identities.get(local)) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let end = End { endpoint: identity, direction, surroundings: input.surroundings };
            let (terms, tried) = end.terms(input.policies.iter(), &mut resolver);
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
        prefixes: local.by_net().clone(),
        nodes: local.by_node().clone(),
    }
}

fn authentication(map: &PolicyMap) -> BTreeSet<(IdentityNumber, IdentityNumber)> {
    map.iter()
        .filter(|(_, entry)| entry.deny == 0 && entry.auth_type == AuthType::Spire as u8)
        .map(|((key, _), _)| (key.local, key.remote))
        .filter(|(_, remote)| *remote == reserved::UNKNOWN || !reserved::is_reserved(*remote))
        .collect()
}

/// Looks everything up anew.
struct Resolver<'a> {
    input: Input<'a>,
    local: &'a LocalIdentities,
    cookies: &'a Cookies,
    resolved: BTreeMap<SelectionKey, Arc<BTreeSet<IdentityNumber>>>,
}

impl Resolve for Resolver<'_> {
    fn cookie(&self, rule: &RuleRef) -> u32 {
        self.cookies.of(rule)
    }

    fn select(&mut self, cookie: u32, rule: &Rule, own: &LabelSet) -> Arc<BTreeSet<IdentityNumber>> {
        let Input { identities, surroundings, .. } = self.input;
        let selected = self
            .resolved
            .entry(SelectionKey::new(cookie, own))
            .or_insert_with(|| Arc::new(selected(rule, own, identities, self.local, surroundings)));
        Arc::clone(selected)
    }
}

/// The identities that a rule's peers are, local ones among them. A rule that requires authentication of some
/// but not all who share a SPIFFE ID selects no one: authentication couldn't tell them apart.
pub(crate) fn selected(
    rule: &Rule,
    own: &LabelSet,
    identities: &IdentitySet,
    local: &LocalIdentities,
    surroundings: &Surroundings,
) -> BTreeSet<IdentityNumber> {
    let meant = meant(rule, own, identities, local, surroundings);
    if splits_shared(rule, &meant, surroundings) { BTreeSet::new() } else { meant }
}

/// The same, whoever shares a SPIFFE ID.
pub(crate) fn meant(
    rule: &Rule,
    own: &LabelSet,
    identities: &IdentitySet,
    local: &LocalIdentities,
    surroundings: &Surroundings,
) -> BTreeSet<IdentityNumber> {
    let is_deny = rule.list.is_deny();
    let remotes = identities.remotes().chain(local.remotes());
    let selected = remotes.filter(|remote| rule.peers.select(*remote, own, surroundings, is_deny));
    selected.map(|Remote { number, .. }| number).collect()
}

/// Whether the rule requires authentication of some who share a SPIFFE ID, but not of all.
pub(crate) fn splits_shared(
    rule: &Rule,
    selected: &BTreeSet<IdentityNumber>,
    surroundings: &Surroundings,
) -> bool {
    split_shared(rule, selected, surroundings).is_some()
}

/// Who share a SPIFFE ID of which the rule requires authentication of some, but not of all.
pub(crate) fn split_shared<'a>(
    rule: &Rule,
    selected: &BTreeSet<IdentityNumber>,
    surroundings: &'a Surroundings,
) -> Option<&'a BTreeSet<IdentityNumber>> {
    if rule.authentication != Some(AuthType::Spire) || rule.list.is_deny() {
        return None;
    }
    let splits =
        |sharing: &BTreeSet<IdentityNumber>| !sharing.is_disjoint(selected) && !sharing.is_subset(selected);
    surroundings.shared().iter().find(|sharing| splits(sharing))
}
