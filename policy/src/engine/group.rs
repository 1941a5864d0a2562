//! The entries of one side, and the terms that they come from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use auth_ebpf_abi::{AuthType, Direction, IdentityNumber, identity as reserved};

use super::selections::Selections;
use crate::compile::fold::{Fold, Remotes, Term, by_terms, is_local_host};
use crate::compile::terms::SelectionKey;
use crate::plan::Entries;

/// Whom a term is about.
#[derive(Clone, Debug)]
enum Whom {
    Any,
    /// Those whom a rule selects.
    Rule(SelectionKey),
    These(Arc<BTreeSet<IdentityNumber>>),
}

/// Which terms choose an identity, and whether it is this host: those alike have the same entries.
type Class = (Vec<usize>, bool);

/// One direction of one endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    terms: Vec<(Term<'static>, Whom)>,
    tried_default_deny: u32,
    /// The selections that the terms use.
    pub(super) used: BTreeSet<SelectionKey>,
    /// Whether any rule for it names ports.
    pub(super) has_named_ports: bool,
    pub(super) any: Entries,
    pub(super) of: BTreeMap<IdentityNumber, Entries>,
    classes: BTreeMap<Class, Entries>,
    /// The identities of which some entry requires authentication; 0 for any.
    pub(super) asks: Arc<BTreeSet<IdentityNumber>>,
}

impl Group {
    /// The entries that these terms come to.
    pub(super) fn new(
        terms: Vec<(Term<'_>, Remotes)>,
        direction: Direction,
        tried_default_deny: u32,
        (used, has_named_ports): (BTreeSet<SelectionKey>, bool),
        selections: &Selections,
    ) -> Self {
        let mut group = Self { tried_default_deny, used, has_named_ports, ..Self::default() };
        let of_any =
            terms.iter().filter(|(_, remotes)| matches!(remotes, Remotes::Any)).map(|(term, _)| term);
        let fold = Fold::new(of_any, tried_default_deny);
        group.set_any(fold.any_entries().iter().map(|(prefix, entry)| (*prefix, *entry)).collect());
        for (chosen, remotes) in by_terms(&terms) {
            let (hosts, others): (Vec<_>, Vec<_>) =
                remotes.into_iter().partition(|remote| is_local_host(*remote, direction));
            for (remotes, is_local_host) in [(hosts, true), (others, false)] {
                let terms = chosen.iter().filter_map(|at| terms.get(*at)).map(|(term, _)| term);
                if remotes.is_empty() {
                    continue;
                }
                let entries = shared(fold.entries(terms, is_local_host));
                group.classes.insert((chosen.clone(), is_local_host), Arc::clone(&entries));
                for remote in remotes {
                    group.set(remote, Arc::clone(&entries));
                }
            }
        }
        let whom = |remotes| match remotes {
            Remotes::Any => Whom::Any,
            Remotes::These(these) => {
                let key = group.used.iter().find(|key| selections.is(key, &these));
                key.map_or(Whom::These(these), |key| Whom::Rule(key.clone()))
            }
        };
        group.terms = terms.into_iter().map(|(term, remotes)| (term.into_owned(), whom(remotes))).collect();
        group
    }

    /// Makes the entries for one identity anew; gives those before and now.
    pub(super) fn refresh(
        &mut self,
        remote: IdentityNumber,
        direction: Direction,
        selections: &Selections,
    ) -> (Entries, Entries) {
        let before = self.entries(remote);
        let is_chosen = |whom: &Whom| match whom {
            Whom::Any => false,
            Whom::Rule(key) => selections.has(key, remote),
            Whom::These(these) => these.contains(&remote),
        };
        let chosen = self.terms.iter().enumerate().filter(|(_, (_, whom))| is_chosen(whom));
        let class = (chosen.map(|(at, _)| at).collect::<Vec<_>>(), is_local_host(remote, direction));
        let now = if class.0.is_empty() {
            Entries::default()
        } else if let Some(entries) = self.classes.get(&class) {
            Arc::clone(entries)
        } else {
            let entries = self.fold(&class);
            self.classes.insert(class, Arc::clone(&entries));
            entries
        };
        self.set(remote, Arc::clone(&now));
        (before, now)
    }

    fn fold(&self, (chosen, is_local_host): &Class) -> Entries {
        let of_any = self.terms.iter().filter(|(_, whom)| matches!(whom, Whom::Any)).map(|(term, _)| term);
        let fold = Fold::new(of_any, self.tried_default_deny);
        let terms = chosen.iter().filter_map(|at| self.terms.get(*at)).map(|(term, _)| term);
        shared(fold.entries(terms, *is_local_host))
    }

    /// The entries for a remote identity, or for any (0).
    pub(super) fn entries(&self, remote: IdentityNumber) -> Entries {
        if remote == reserved::UNKNOWN {
            return Arc::clone(&self.any);
        }
        self.of.get(&remote).cloned().unwrap_or_default()
    }

    /// All remote identities with entries, any (0) first.
    pub(super) fn all(&self) -> impl Iterator<Item = (IdentityNumber, &Entries)> {
        let any = std::iter::once((reserved::UNKNOWN, &self.any)).filter(|(_, any)| !any.is_empty());
        any.chain(self.of.iter().map(|(remote, entries)| (*remote, entries)))
    }

    fn set_any(&mut self, entries: Entries) {
        if asks_authentication(&entries) {
            Arc::make_mut(&mut self.asks).insert(reserved::UNKNOWN);
        }
        self.any = entries;
    }

    fn set(&mut self, remote: IdentityNumber, entries: Entries) {
        let asks = asks_authentication(&entries) && !reserved::is_reserved(remote);
        if asks != self.asks.contains(&remote) {
            let all = Arc::make_mut(&mut self.asks);
            if asks {
                all.insert(remote)
            } else {
                all.remove(&remote)
            };
        }
        if entries.is_empty() {
            self.of.remove(&remote);
        } else {
            self.of.insert(remote, entries);
        }
    }
}

fn shared(entries: crate::compile::fold::Entries) -> Entries {
    entries.into_iter().collect()
}

fn asks_authentication(entries: &Entries) -> bool {
    entries.iter().any(|(_, entry)| entry.deny == 0 && entry.auth_type == AuthType::Spire as u8)
}
