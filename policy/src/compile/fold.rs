//! Folding: the entry for a key from all rules that cover it.
//!
//! Deny wins over allow. Among those that allow, authentication is named by the most specific rule that
//! names one: more bits of protocol and port first, then a chosen identity before any. This is what Cilium
//! documents as explicit over derived, taken from the most specific superset.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use auth_ebpf_abi::{AuthType, Direction, IdentityNumber, PolicyEntry, identity as reserved};

use crate::port::PortPrefix;

/// Precedence of every entry that allows.
const ALLOW_PRECEDENCE: u32 = 1;

/// Where what a rule says counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Force {
    /// Everywhere.
    Full,
    /// Only in what is reported: it is tried.
    Tried,
    /// Only in what is done: it is there because something else is only tried.
    Meanwhile,
}

/// What one rule says.
#[derive(Clone, Debug)]
pub(crate) struct Term<'a> {
    /// Where it counts.
    pub(crate) force: Force,
    pub(crate) deny: bool,
    /// The authentication that it names, if it names one.
    pub(crate) explicit: Option<AuthType>,
    /// Whether what it allows must travel encrypted.
    pub(crate) encryption: bool,
    pub(crate) cookie: u32,
    pub(crate) ports: Cow<'a, [PortPrefix]>,
}

impl Term<'_> {
    /// Allows everything.
    pub(crate) const fn allow_any(cookie: u32) -> Self {
        Self {
            force: Force::Full,
            deny: false,
            explicit: None,
            encryption: false,
            cookie,
            ports: Cow::Borrowed(&[PortPrefix::ANY]),
        }
    }

    /// The same without a loan.
    pub(crate) fn into_owned(self) -> Term<'static> {
        Term { ports: Cow::Owned(self.ports.into_owned()), ..self }
    }
}

/// Whom it says it about.
#[derive(Clone)]
pub(crate) enum Remotes {
    Any,
    These(Arc<BTreeSet<IdentityNumber>>),
}

impl Remotes {
    pub(crate) fn has(&self, identity: IdentityNumber) -> bool {
        match self {
            Self::Any => true,
            Self::These(identities) => identities.contains(&identity),
        }
    }
}

/// Puts the entries for all terms, by remote identity (0 for any) and prefix.
pub(super) fn fold(
    terms: &[(Term<'_>, Remotes)],
    direction: Direction,
    tried_default_deny: u32,
    mut put: impl FnMut(IdentityNumber, PortPrefix, PolicyEntry),
) {
    let of_any = terms.iter().filter(|(_, remotes)| matches!(remotes, Remotes::Any)).map(|(term, _)| term);
    let fold = Fold::new(of_any, tried_default_deny);
    for (prefix, entry) in fold.any_entries() {
        put(reserved::UNKNOWN, *prefix, *entry);
    }
    for (chosen, remotes) in by_terms(terms) {
        let (hosts, others): (Vec<_>, Vec<_>) =
            remotes.into_iter().partition(|remote| is_local_host(*remote, direction));
        for (remotes, is_local_host) in [(hosts, true), (others, false)] {
            if remotes.is_empty() {
                continue;
            }
            let terms = chosen.iter().filter_map(|index| terms.get(*index)).map(|(term, _)| term);
            let entries = fold.entries(terms, is_local_host);
            for remote in remotes {
                for (prefix, entry) in &entries {
                    put(remote, *prefix, *entry);
                }
            }
        }
    }
}

/// Whether packets of this identity reach a pod without authentication unless a rule chooses it: this host's.
pub(crate) fn is_local_host(remote: IdentityNumber, direction: Direction) -> bool {
    remote == reserved::HOST && direction == Direction::Ingress
}

/// Entries by prefix.
pub(crate) type Entries = BTreeMap<PortPrefix, PolicyEntry>;

/// The terms about any identity, beside which the entries for a chosen one are made.
pub(crate) struct Fold<'a> {
    any: Vec<Said<'a>>,
    any_entries: Entries,
    tried_default_deny: u32,
}

impl<'a> Fold<'a> {
    pub(crate) fn new(of_any: impl Iterator<Item = &'a Term<'a>>, tried_default_deny: u32) -> Self {
        let any: Vec<Said<'_>> = of_any.map(|term| Said::new(term, false)).collect();
        let any_entries = prefixes(&any)
            .filter_map(|prefix| Some((prefix, audited_entry(&any, prefix, tried_default_deny)?)))
            .collect();
        Self { any, any_entries, tried_default_deny }
    }

    /// The entries for any identity.
    pub(crate) const fn any_entries(&self) -> &Entries {
        &self.any_entries
    }

    /// The entries for an identity that these terms choose.
    pub(crate) fn entries<'t>(
        &'t self,
        chosen: impl Iterator<Item = &'t Term<'t>>,
        is_local_host: bool,
    ) -> Entries {
        let inherited =
            |said: &Said<'t>| if is_local_host { Said { explicit: None, ..*said } } else { *said };
        let chosen = chosen.map(|term| Said::new(term, true));
        let said: Vec<Said<'t>> = self.any.iter().map(inherited).chain(chosen).collect();
        entries_beside(&said, &self.any_entries, self.tried_default_deny)
    }
}

/// What a term says about the remote identity at hand.
#[derive(Clone, Copy)]
struct Said<'a> {
    force: Force,
    deny: bool,
    explicit: Option<AuthType>,
    encryption: bool,
    cookie: u32,
    ports: &'a [PortPrefix],
    /// Whether its rule chooses this identity, not any.
    chosen: bool,
}

impl<'a> Said<'a> {
    fn new(term: &'a Term<'_>, chosen: bool) -> Self {
        let Term { force, deny, explicit, encryption, cookie, .. } = *term;
        Self { force, deny, explicit, encryption, cookie, ports: &term.ports, chosen }
    }
}

/// The remote identities that rules choose, grouped by the rules which do: those in a group have the same
/// entries.
pub(crate) fn by_terms(terms: &[(Term<'_>, Remotes)]) -> BTreeMap<Vec<usize>, Vec<IdentityNumber>> {
    let mut of_remote: BTreeMap<IdentityNumber, Vec<usize>> = BTreeMap::new();
    for (index, (_, remotes)) in terms.iter().enumerate() {
        if let Remotes::These(remotes) = remotes {
            for remote in remotes.iter() {
                of_remote.entry(*remote).or_default().push(index);
            }
        }
    }
    let mut groups: BTreeMap<Vec<usize>, Vec<IdentityNumber>> = BTreeMap::new();
    for (remote, indices) in of_remote {
        groups.entry(indices).or_default().push(remote);
    }
    groups
}

fn prefixes<'a>(said: &'a [Said<'_>]) -> impl Iterator<Item = PortPrefix> + use<'a> {
    let all: BTreeSet<PortPrefix> = said.iter().flat_map(|said| said.ports.iter().copied()).collect();
    all.into_iter()
}

/// Entries for an identity, without those that the entries for any identity already imply.
fn entries_beside(said: &[Said<'_>], any_entries: &Entries, tried_default_deny: u32) -> Entries {
    let mut by_length: Vec<PortPrefix> = prefixes(said).collect();
    by_length.sort_by_key(|prefix| prefix.bits());
    let mut entries = Entries::new();
    for prefix in by_length {
        let Some(entry) = audited_entry(said, prefix, tried_default_deny) else { continue };
        let is_chosen = said.iter().any(|said| said.chosen && said.ports.contains(&prefix));
        if is_chosen || !is_implied(&entry, prefix, &entries, any_entries) {
            entries.insert(prefix, entry);
        }
    }
    entries
}

/// Whether the kernel comes to the same without this entry. The entry for any identity at the same prefix is
/// longer than what is left for the identity, so it wins, unless what is left denies.
fn is_implied(entry: &PolicyEntry, prefix: PortPrefix, entries: &Entries, any_entries: &Entries) -> bool {
    let left = prefix.and_covering().find_map(|covering| entries.get(&covering));
    any_entries.get(&prefix).is_some_and(|any| says(any) == says(entry))
        || (is_final(entry) && left.is_some_and(is_final))
}

/// Whether nothing else can win over this entry.
fn is_final(entry: &PolicyEntry) -> bool {
    entry.precedence == PolicyEntry::DENY_PRECEDENCE
}

/// What an entry does.
fn says(entry: &PolicyEntry) -> (u8, u8, u8, u8, u8) {
    (entry.deny, entry.auth_type, entry.auth_explicit, entry.encryption, entry.audit)
}

/// What is done about everything under a prefix, and what is tried.
///
/// The policies in force have the last word. Only where they let everything pass does the entry say what all
/// policies together say, to be reported and not done.
fn audited_entry(said: &[Said<'_>], prefix: PortPrefix, tried_default_deny: u32) -> Option<PolicyEntry> {
    if said.iter().all(|said| said.force == Force::Full) {
        return entry(said, prefix, None);
    }
    let in_force = entry(said, prefix, Some(Force::Tried))?;
    let all = entry(said, prefix, Some(Force::Meanwhile));
    if in_force.deny == 1 || in_force.auth_type != 0 || in_force.encryption == 1 {
        return Some(in_force);
    }
    let tried = PolicyEntry { audit: 1, auth_explicit: 1, precedence: ALLOW_PRECEDENCE, ..in_force };
    Some(match all {
        Some(all) if all.deny == 0 && all.auth_type == 0 => PolicyEntry { encryption: 0, ..all },
        Some(all) => PolicyEntry { deny: all.deny, auth_type: all.auth_type, cookie: all.cookie, ..tried },
        None => PolicyEntry { deny: 1, cookie: tried_default_deny, ..tried },
    })
}

/// What is said about everything under a prefix.
fn entry(said: &[Said<'_>], prefix: PortPrefix, without: Option<Force>) -> Option<PolicyEntry> {
    let (mut deny, mut allow, mut explicit, mut encryption) = (None, None, None, false);
    let counted = said.iter().enumerate().filter(|(_, said)| Some(said.force) != without);
    for (place, said) in counted {
        let Some(bits) =
            said.ports.iter().filter(|ports| ports.covers(prefix)).map(|ports| ports.bits()).max()
        else {
            continue;
        };
        let rank = (bits, said.chosen);
        if said.deny {
            deny = deny.max(Some((rank, Reverse(place), said.cookie)));
        } else {
            allow = allow.max(Some((rank, said.explicit, Reverse(place), said.cookie)));
            // Whoever asks for encryption gets it, however broad the rule.
            encryption |= said.encryption;
            explicit = explicit.max(said.explicit.map(|authentication| (rank, authentication)));
        }
    }
    let named = PolicyEntry { port_prefix: prefix.bits(), ..PolicyEntry::default() };
    if let Some((_, _, cookie)) = deny {
        return Some(PolicyEntry { precedence: PolicyEntry::DENY_PRECEDENCE, cookie, deny: 1, ..named });
    }
    let (_, _, _, cookie) = allow?;
    let auth_type = explicit.map_or(0, |(_, authentication)| authentication as u8);
    let encryption = u8::from(encryption);
    // All there is to derive has been: what stands beside this entry for a moment adds nothing to it.
    Some(PolicyEntry {
        precedence: ALLOW_PRECEDENCE,
        cookie,
        auth_type,
        auth_explicit: 1,
        encryption,
        ..named
    })
}
