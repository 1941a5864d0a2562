//! The pinned `auth` map as the authentication driver wants it.

use auth_ebpf::Maps;
use auth_ebpf_abi::{AuthEntry, AuthKey};

use crate::auth::driver::{AuthTable, TableError};

/// The pinned map.
pub(super) struct PinnedAuth(pub(super) Maps);

impl AuthTable for PinnedAuth {
    fn insert(&self, key: AuthKey, entry: AuthEntry) -> Result<(), TableError> {
        Ok(self.0.auth().insert(&key, &entry)?)
    }

    fn remove(&self, key: &AuthKey) -> Result<(), TableError> {
        self.0.auth().remove(key)?;
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(AuthKey, AuthEntry)>, TableError> {
        Ok(self.0.auth().entries()?)
    }
}
