//! Takes dead connections out of `connections`, and counts what each interface still has.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf_abi::QuotaEntry;

use crate::error::Error;
use crate::maps::Maps;

/// What a sweep has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Connections that live.
    pub alive: usize,
    /// Connections that were dead, and are gone.
    pub removed: usize,
}

/// Connections between two pauses.
const STRIDE: usize = 1_024;
/// How long a connection must have been dead, so that no packet on another CPU is just about to revive it.
const GRACE: u64 = 2_000_000_000;

impl Maps {
    /// Goes through all connections once, and calls `pause` every so often, so that it can take its time;
    /// where that says to stop, it does. `now` is the boot time in nanoseconds.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn sweep(&self, now: impl Fn() -> u64, mut pause: impl FnMut() -> bool) -> Result<Swept, Error> {
        let before: BTreeMap<u32, QuotaEntry> = self.quotas().entries()?.into_iter().collect();
        let mut alive: BTreeMap<u32, u64> = BTreeMap::new();
        let mut swept = Swept::default();
        let mut dead = Vec::new();
        let keys = self.connections().keys()?;
        for chunk in keys.chunks(STRIDE) {
            for key in chunk {
                let Some(entry) = self.connections().get(key)? else { continue };
                if entry.is_alive(key.protocol(), now().saturating_sub(GRACE)) {
                    *alive.entry(entry.ifindex).or_default() += 1;
                    swept.alive += 1;
                } else {
                    dead.push(*key);
                }
            }
            for key in dead.drain(..) {
                swept.removed += usize::from(self.connections().remove(&key)?);
            }
            if !pause() {
                return Ok(swept);
            }
        }
        self.count_anew(&before, &alive)?;
        Ok(swept)
    }

    /// What was established since the sweep began may have been counted twice: that errs on the safe side,
    /// until the next one.
    fn count_anew(
        &self,
        before: &BTreeMap<u32, QuotaEntry>,
        alive: &BTreeMap<u32, u64>,
    ) -> Result<(), Error> {
        for (ifindex, quota) in self.quotas().entries()? {
            let since =
                quota.established.saturating_sub(before.get(&ifindex).map_or(0, |quota| quota.established));
            let established = alive.get(&ifindex).copied().unwrap_or(0).saturating_add(since);
            if established == 0 {
                self.quotas().remove(&ifindex)?;
            } else if established != quota.established {
                self.quotas().insert(&ifindex, &QuotaEntry { established })?;
            }
        }
        let counted: BTreeSet<u32> = before.keys().copied().collect();
        // An interface whose count was lost, with the map that held it, has one again.
        for (ifindex, established) in alive.iter().filter(|(ifindex, _)| !counted.contains(ifindex)) {
            if self.quotas().get(ifindex)?.is_none() {
                self.quotas().insert(ifindex, &QuotaEntry { established: *established })?;
            }
        }
        Ok(())
    }
}
