//! The pinned `auth` map, whose new entries let what was held go first.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use auth_ebpf::Maps;
use auth_ebpf_abi::{AuthEntry, AuthFlags, AuthKey};

use super::{
    outcomes::{Outcome, Outcomes},
    queue::is_announcement,
};
use crate::{
    auth::driver::{AuthTable, TableError},
    clock::Clock,
};

/// The map, and whom to tell of what is written to it.
pub struct HoldingAuth {
    maps: Maps,
    clock: Arc<dyn Clock>,
    /// Who hears of new entries; nobody if nothing is held.
    outcomes: Option<Arc<Outcomes>>,
    /// Entries that are draining. Locked while the map is written, so that none is settled after its end.
    draining: Mutex<BTreeSet<AuthKey>>,
}

impl HoldingAuth {
    /// The map, in which nothing is draining any more: what was held has gone with the daemon before.
    ///
    /// # Errors
    /// When the map can't be read or written.
    pub fn new(
        maps: Maps,
        clock: Arc<dyn Clock>,
        outcomes: Option<Arc<Outcomes>>,
    ) -> Result<Self, auth_ebpf::Error> {
        for (key, entry) in maps.auth().entries()? {
            if entry.flags != 0 {
                maps.auth().insert(&key, &AuthEntry { flags: 0, ..entry })?;
            }
        }
        Ok(Self { maps, clock, outcomes, draining: Mutex::default() })
    }

    /// The pair's held packets have gone: new ones pass at once. An entry that is no more stays so.
    ///
    /// # Errors
    /// When the map can't be read or written.
    pub fn settle(&self, key: &AuthKey) -> Result<(), auth_ebpf::Error> {
        let mut draining = self.draining();
        if draining.remove(key)
            && let Some(entry) = self.maps.auth().get(key)?
        {
            self.maps.auth().insert(key, &AuthEntry { flags: 0, ..entry })?;
        }
        Ok(())
    }

    /// Whether what a packet under this key waits for has come: the pair's authentication or, if the key has
    /// none, the acknowledgement of the node.
    ///
    /// # Errors
    /// When the maps can't be read.
    pub fn is_there(&self, key: &AuthKey) -> Result<bool, auth_ebpf::Error> {
        if !is_announcement(key) {
            return self.is_authenticated(key);
        }
        let nodes = self.maps.nodes();
        let (given, acknowledged) = (nodes.get(&0)?, nodes.get(&key.node)?);
        Ok(given.zip(acknowledged).is_some_and(|(given, known)| known.acknowledged >= given.acknowledged))
    }

    /// Whether the programs would let the pair pass now.
    ///
    /// # Errors
    /// When the maps can't be read.
    pub fn is_authenticated(&self, key: &AuthKey) -> Result<bool, auth_ebpf::Error> {
        let Some(entry) = self.maps.auth().get(key)? else { return Ok(false) };
        let vouched =
            key.node == 0 || self.maps.nodes().get(&key.node)?.is_some_and(|node| node.epoch == entry.epoch);
        Ok(vouched && self.clock.now().0 < entry.expires)
    }

    fn draining(&self) -> MutexGuard<'_, BTreeSet<AuthKey>> {
        self.draining.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuthTable for HoldingAuth {
    fn insert(&self, key: AuthKey, entry: AuthEntry) -> Result<(), TableError> {
        let mut draining = self.draining();
        let renewed = self.is_authenticated(&key)? && !draining.contains(&key);
        let Some(outcomes) = self.outcomes.as_ref().filter(|_| !renewed) else {
            return Ok(self.maps.auth().insert(&key, &entry)?);
        };
        self.maps.auth().insert(&key, &AuthEntry { flags: AuthFlags::DRAINING, ..entry })?;
        draining.insert(key);
        outcomes.tell(key, Outcome::Authenticated);
        Ok(())
    }

    fn remove(&self, key: &AuthKey) -> Result<(), TableError> {
        let mut draining = self.draining();
        draining.remove(key);
        self.maps.auth().remove(key)?;
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(AuthKey, AuthEntry)>, TableError> {
        Ok(self.maps.auth().entries()?)
    }
}
