//! Changes the policy map so that programs look for what is in it.

use std::collections::BTreeMap;

use auth_ebpf_abi::{EndpointEntry, IdentityNumber, PolicyClasses, PolicyEntry, PolicyKey};
use auth_ebpf_memory::wait_for_programs;

use crate::error::Error;
use crate::maps::Maps;

impl Maps {
    /// Makes these changes of the policy map, one after the other: an entry is put, or, without one, what is
    /// under the key removed. Each packet is judged by a state that there is between two of them.
    ///
    /// Endpoints look for what is put before it is there; that they no longer look for what has gone, whoever
    /// writes them sees to afterwards. Connections that a change can touch are decided anew with their next
    /// packet.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room, or if the kernel refuses. What has been written until then stays.
    pub fn change_policy(
        &self,
        changes: impl Iterator<Item = ((PolicyKey, u32), Option<PolicyEntry>)> + Clone,
    ) -> Result<(), Error> {
        let mut wanted: BTreeMap<IdentityNumber, PolicyClasses> = BTreeMap::new();
        for ((key, prefix_len), _) in changes.clone().filter(|(_, entry)| entry.is_some()) {
            wanted.entry(key.local).or_default().add(&key, prefix_len);
        }
        self.look_for(&wanted)?;
        self.policy().change(changes)
    }

    /// Has the endpoints of these identities look for these prefix lengths too.
    fn look_for(&self, wanted: &BTreeMap<IdentityNumber, PolicyClasses>) -> Result<(), Error> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut looked_for_less = false;
        for (address, entry) in self.endpoints().entries()? {
            let Some(wanted) = wanted.get(&entry.identity) else { continue };
            let classes = entry.classes.union(*wanted);
            if classes != entry.classes {
                // It finds nothing yet, so it re-opens nothing.
                self.endpoints().write(&address, &EndpointEntry { classes, ..entry })?;
                looked_for_less = true;
            }
        }
        if looked_for_less {
            // Who goes by the old classes would miss what is put, and see that the rest has gone.
            wait_for_programs();
        }
        Ok(())
    }
}
