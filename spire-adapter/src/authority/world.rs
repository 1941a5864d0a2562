//! What server and agents share: entries, CAs and foreign bundles, in one value whose changes every open stream
//! sees at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::CertificateAuthority;
use crate::{Entry, SpiffeId, TrustDomain};

/// One state of the authority. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) entries: Arc<BTreeMap<String, Entry>>,
    /// The last one issues.
    pub(crate) authorities: Arc<Vec<Arc<CertificateAuthority>>>,
    pub(crate) federated: Arc<BTreeMap<TrustDomain, Vec<u8>>>,
    /// The server is away: agents can have nothing signed.
    pub(crate) away: bool,
}

impl State {
    /// Entries of one agent, by entry ID, as SPIRE orders them.
    pub(crate) fn entries_of(&self, agent: &SpiffeId) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(move |entry| entry.parent_id == *agent)
    }

    /// The own trust domain's anchors, concatenated.
    pub(crate) fn bundle_der(&self) -> Vec<u8> {
        self.authorities.iter().flat_map(|authority| authority.certificate().to_vec()).collect()
    }
}

/// Why an entry was refused, as a gRPC status of its own within a batch.
#[derive(Debug)]
pub(crate) enum Refusal {
    Exists(Box<Entry>),
    Invalid(String),
    NotFound,
    NoFederatedBundle,
}

#[derive(Debug)]
pub(crate) struct World {
    trust_domain: TrustDomain,
    state: watch::Sender<State>,
}

impl World {
    pub(crate) fn new(trust_domain: TrustDomain, authority: CertificateAuthority) -> Arc<Self> {
        let state = State { authorities: Arc::new(vec![Arc::new(authority)]), ..State::default() };
        Arc::new(Self { trust_domain, state: watch::Sender::new(state) })
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub(crate) fn now(&self) -> State {
        self.state.borrow().clone()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(crate) fn bundle_der(&self) -> Vec<u8> {
        self.state.borrow().bundle_der()
    }

    pub(crate) fn add_authority(&self, authority: CertificateAuthority) {
        self.state.send_modify(|state| {
            Arc::make_mut(&mut state.authorities).push(Arc::new(authority));
        });
    }

    /// Takes every CA but the one that issues out of the bundle.
    pub(crate) fn revoke_old_authorities(&self) {
        self.state.send_modify(|state| {
            let authorities = Arc::make_mut(&mut state.authorities);
            authorities.drain(..authorities.len().saturating_sub(1));
        });
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.state.send_modify(|state| state.away = away);
    }

    /// Sets a foreign domain's bundle, or deletes it in SPIRE's mode `dissociate`.
    pub(crate) fn set_federated(&self, trust_domain: TrustDomain, der: Option<Vec<u8>>) {
        self.state.send_modify(|state| {
            let federated = Arc::make_mut(&mut state.federated);
            let Some(der) = der else {
                federated.remove(&trust_domain);
                for entry in Arc::make_mut(&mut state.entries).values_mut() {
                    entry.federates_with.remove(&trust_domain);
                }
                return;
            };
            federated.insert(trust_domain, der);
        });
    }

    /// Adds an entry; it gets an ID if it has none.
    pub(crate) fn create(&self, mut entry: Entry) -> Result<Entry, Refusal> {
        self.change(|state| {
            self.check(&entry, state)?;
            if let Some(same) = state.entries.values().find(|other| same_registration(other, &entry)) {
                return Err(Refusal::Exists(Box::new(same.clone())));
            }
            if entry.id.is_empty() {
                entry.id = new_id();
            } else if state.entries.contains_key(&entry.id) {
                return Err(Refusal::Invalid(format!("entry ID {} is taken", entry.id)));
            }
            Arc::make_mut(&mut state.entries).insert(entry.id.clone(), entry.clone());
            Ok(entry)
        })
    }

    /// Replaces an entry by what `update` makes of it.
    pub(crate) fn update(&self, id: &str, update: impl FnOnce(&mut Entry)) -> Result<Entry, Refusal> {
        self.change(|state| {
            let mut entry = state.entries.get(id).cloned().ok_or(Refusal::NotFound)?;
            update(&mut entry);
            self.check(&entry, state)?;
            Arc::make_mut(&mut state.entries).insert(id.to_owned(), entry.clone());
            Ok(entry)
        })
    }

    pub(crate) fn delete(&self, id: &str) -> Result<(), Refusal> {
        self.change(|state| Arc::make_mut(&mut state.entries).remove(id).map(|_| ()).ok_or(Refusal::NotFound))
    }

    /// Runs `change` under the lock and tells the streams only if it succeeded.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut result = Err(Refusal::NotFound);
        self.state.send_if_modified(|state| {
            result = change(state);
            result.is_ok()
        });
        result
    }

    fn check(&self, entry: &Entry, state: &State) -> Result<(), Refusal> {
        let invalid = |reason: &str| Err(Refusal::Invalid(reason.to_owned()));
        if !entry.spiffe_id.is_member_of(&self.trust_domain) {
            return invalid("invalid spiffe ID: not a member of the trust domain");
        }
        if entry.spiffe_id.path().is_empty() {
            return invalid("invalid spiffe ID: path is empty");
        }
        if !entry.parent_id.is_member_of(&self.trust_domain) {
            return invalid("invalid parent ID: not a member of the trust domain");
        }
        if entry.selectors.is_empty() {
            return invalid("selector list is empty");
        }
        if !entry.federates_with.iter().all(|domain| state.federated.contains_key(domain)) {
            return Err(Refusal::NoFederatedBundle);
        }
        Ok(())
    }
}

fn same_registration(one: &Entry, other: &Entry) -> bool {
    one.parent_id == other.parent_id && one.spiffe_id == other.spiffe_id && one.selectors == other.selectors
}

/// A random UUID.
fn new_id() -> String {
    let random: u128 = rand::random();
    let [time_low, time_mid, time_high, clock, node] = [
        random >> 96,
        (random >> 80) & 0xffff,
        ((random >> 64) & 0x0fff) | 0x4000,
        ((random >> 48) & 0x3fff) | 0x8000,
        random & 0xffff_ffff_ffff,
    ];
    format!("{time_low:08x}-{time_mid:04x}-{time_high:04x}-{clock:04x}-{node:012x}")
}
