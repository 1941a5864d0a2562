//! Whom the rules in use select, kept up to date identity by identity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use auth_ebpf_abi::IdentityNumber;

use super::by_label::{Asking, Place};
use super::world::{World, is_indirect, names_places};
use crate::compile::cookie::Cookies;
use crate::compile::splits_shared;
use crate::compile::terms::{Resolve, SelectionKey};
use crate::label::CLUSTER_KEY;
use crate::label_set::LabelSet;
use crate::object::RuleRef;
use crate::peer::{Peer, Remote};
use crate::plan::Side;
use crate::rule::Rule;

/// Whom one rule selects.
#[derive(Clone, Debug)]
struct Selection {
    rule: Rule,
    /// Labels of an endpoint that looks at it.
    own: LabelSet,
    members: Arc<BTreeSet<IdentityNumber>>,
    /// It requires authentication of some who share a SPIFFE ID but not of all, so it selects no one.
    splits: bool,
    users: BTreeSet<Side>,
}

/// The selections in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Selections {
    by_key: BTreeMap<SelectionKey, Selection>,
    asking: Asking<SelectionKey>,
    /// Those that select local identities by the places that they stand for.
    of_places: BTreeSet<SelectionKey>,
}

/// What a change of a selection makes of the sides that use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// One identity has come or gone.
    Remote(IdentityNumber),
    /// Anything may be different.
    All,
}

impl Selections {
    /// Whether the rule selects this identity.
    pub(super) fn has(&self, key: &SelectionKey, number: IdentityNumber) -> bool {
        self.by_key.get(key).is_some_and(|selection| !selection.splits && selection.members.contains(&number))
    }

    /// Whether these are exactly the identities that the rule selects.
    pub(super) fn is(&self, key: &SelectionKey, these: &Arc<BTreeSet<IdentityNumber>>) -> bool {
        self.by_key.get(key).is_some_and(|selection| Arc::ptr_eq(&selection.members, these))
    }

    /// A side no longer uses these.
    pub(super) fn release(&mut self, side: Side, keys: &BTreeSet<SelectionKey>) {
        for key in keys {
            let Some(selection) = self.by_key.get_mut(key) else { continue };
            selection.users.remove(&side);
            if selection.users.is_empty() {
                self.forget(key);
            }
        }
    }

    /// The rules with these cookies are no more. Their users are to be made anew.
    pub(super) fn forget_rules(&mut self, cookies: &[u32]) {
        for cookie in cookies {
            let from = SelectionKey { cookie: *cookie, cluster: None };
            let keys = self.by_key.range(from..).take_while(|(key, _)| key.cookie == *cookie);
            let keys: Vec<SelectionKey> = keys.map(|(key, _)| key.clone()).collect();
            keys.iter().for_each(|key| self.forget(key));
        }
    }

    fn forget(&mut self, key: &SelectionKey) {
        self.by_key.remove(key);
        self.asking.remove(key);
        self.of_places.remove(key);
    }

    /// Those that may select this identity.
    pub(super) fn candidates(&self, remote: Remote<'_>) -> Vec<SelectionKey> {
        let mut keys = self.asking.candidates(remote.labels);
        if remote.place.is_some() {
            keys.extend(&self.of_places);
        }
        keys.into_iter().cloned().collect()
    }

    /// Those with an `ipBlock`, which may select an identity by its addresses.
    pub(super) fn of_blocks(&self) -> Vec<SelectionKey> {
        let has_block = |key: &&SelectionKey| {
            let peers = self.by_key.get(*key).map(|selection| selection.rule.peers.list());
            peers.into_iter().flatten().any(|peer| matches!(peer, Peer::IpBlock(_)))
        };
        self.of_places.iter().filter(has_block).cloned().collect()
    }

    /// Looks again whether these select the identity with this number, which may be gone.
    pub(super) fn look_again(
        &mut self,
        world: &World,
        keys: &[SelectionKey],
        number: IdentityNumber,
        mut effect: impl FnMut(Side, Effect),
    ) {
        let remote = world.remote(number);
        for key in keys {
            let Some(selection) = self.by_key.get_mut(key) else { continue };
            let is_selected =
                remote.is_some_and(|remote| world.selects(&selection.rule, &selection.own, remote));
            if is_selected != selection.members.contains(&number) {
                let members = Arc::make_mut(&mut selection.members);
                if is_selected {
                    members.insert(number)
                } else {
                    members.remove(&number)
                };
                selection.users.iter().for_each(|side| effect(*side, Effect::Remote(number)));
            }
            selection.split(world, &mut effect);
        }
    }

    /// Selects anew for rules with peers that are more than identities.
    pub(super) fn select_indirect(&mut self, world: &World, mut effect: impl FnMut(Side, Effect)) {
        for selection in self.by_key.values_mut() {
            if !selection.rule.peers.list().iter().any(is_indirect) {
                continue;
            }
            let members = world.selected(&selection.rule, &selection.own);
            if members != *selection.members {
                selection.members = Arc::new(members);
                selection.users.iter().for_each(|side| effect(*side, Effect::All));
                selection.split(world, &mut effect);
            }
        }
    }

    /// Looks again which rules tell apart identities with one SPIFFE ID.
    pub(super) fn split(&mut self, world: &World, mut effect: impl FnMut(Side, Effect)) {
        for selection in self.by_key.values_mut() {
            selection.split(world, &mut effect);
        }
    }

    fn add(&mut self, world: &World, key: SelectionKey, rule: &Rule, own: &LabelSet) {
        let members = Arc::new(world.selected(rule, own));
        let peers = rule.peers.list();
        self.asking.insert(key.clone(), self.places(peers, own));
        if peers.iter().any(names_places) {
            self.of_places.insert(key.clone());
        }
        let splits = splits_shared(rule, &members, &world.surroundings);
        let (rule, own) = (rule.clone(), own.clone());
        self.by_key.insert(key, Selection { rule, own, members, splits, users: BTreeSet::new() });
    }

    /// The labels of which everyone whom the peers select by label has one; none if they may have none.
    fn places(&self, peers: &[Peer], own: &LabelSet) -> Option<Vec<Place>> {
        let mut places = Vec::new();
        for peer in peers {
            match peer {
                Peer::Selector(selector) => places.extend(self.asking.place(selector)?),
                Peer::OwnCluster(selector) => {
                    let cluster = || own.cluster().map(Into::into);
                    let selected = self.asking.place(selector);
                    places.extend(selected.unwrap_or_else(|| vec![(CLUSTER_KEY.into(), cluster())]));
                }
                // These select pods by what else is known of them.
                Peer::Services { .. } | Peer::IpBlock(_) => return None,
                Peer::Cidr(_) | Peer::CidrGroups { .. } | Peer::Nodes(_) | Peer::Name(_) => {}
            }
        }
        Some(places)
    }
}

impl Selection {
    fn split(&mut self, world: &World, effect: &mut impl FnMut(Side, Effect)) {
        let splits = splits_shared(&self.rule, &self.members, &world.surroundings);
        if splits != self.splits {
            self.splits = splits;
            self.users.iter().for_each(|side| effect(*side, Effect::All));
        }
    }
}

/// Resolves rules for one side, which uses the selections from then on.
pub(super) struct SideResolver<'a> {
    pub(super) world: &'a World,
    pub(super) cookies: &'a Cookies,
    pub(super) selections: &'a mut Selections,
    pub(super) side: Side,
    pub(super) used: BTreeSet<SelectionKey>,
}

impl Resolve for SideResolver<'_> {
    fn cookie(&self, rule: &RuleRef) -> u32 {
        self.cookies.of(rule)
    }

    fn select(&mut self, cookie: u32, rule: &Rule, own: &LabelSet) -> Arc<BTreeSet<IdentityNumber>> {
        let key = SelectionKey::new(cookie, own);
        if !self.selections.by_key.contains_key(&key) {
            self.selections.add(self.world, key.clone(), rule, own);
        }
        let Some(selection) = self.selections.by_key.get_mut(&key) else { return Arc::default() };
        selection.users.insert(self.side);
        self.used.insert(key);
        if selection.splits { Arc::default() } else { Arc::clone(&selection.members) }
    }
}
