//! The `generations` map, and the generation of everything in `config`.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use auth_ebpf_abi::{IdentityNumber, Setting, generation_slot, generation_slots, map};
use aya::maps::{Array, Map, MapData, MapError};

use crate::error::Error;
use crate::maps::{Config, open_map};

/// Re-opens connections: whatever is written to another map, the counters of what it touches are raised
/// afterwards, so that no connection goes on by what no longer is.
pub(crate) struct Generations {
    config: Arc<Config>,
    map: Mutex<Array<MapData, u32>>,
}

/// Which connections a change of an entry re-opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touch {
    /// None.
    Nothing,
    /// Those of these two.
    Pair(IdentityNumber, IdentityNumber),
    /// Those of this local identity.
    Local(IdentityNumber),
    /// All of them.
    Everything,
}

impl Touch {
    /// What a change re-opens that is about a local identity and a remote one, or any if that is 0.
    pub(crate) const fn of(local: IdentityNumber, remote: IdentityNumber) -> Self {
        if remote == 0 { Self::Local(local) } else { Self::Pair(local, remote) }
    }

    /// The counters to be raised, if it is not that of everything.
    fn slots(self) -> Range<u32> {
        match self {
            Self::Pair(local, remote) => {
                let slot = generation_slot(local, remote);
                slot..slot.saturating_add(1)
            }
            Self::Local(local) => generation_slots(local),
            Self::Nothing | Self::Everything => 0..0,
        }
    }
}

impl Generations {
    pub(crate) fn open(pin_dir: &Path, config: Arc<Config>) -> Result<Self, Error> {
        let data = open_map(pin_dir, map::GENERATIONS)?;
        let map = Array::try_from(Map::Array(data)).map_err(|error| failed("open it", error))?;
        Ok(Self { config, map: Mutex::new(map) })
    }

    /// Raises the counters of all that was touched, each once.
    pub(crate) fn raise(&self, touched: &BTreeSet<Touch>) -> Result<(), Error> {
        if touched.contains(&Touch::Everything) {
            return self.raise_everything();
        }
        let slots: BTreeSet<u32> = touched.iter().flat_map(|touch| touch.slots()).collect();
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in slots {
            let generation = map.get(&slot, 0).map_err(|error| failed("read a generation", error))?;
            map.set(slot, generation.wrapping_add(1), 0)
                .map_err(|error| failed("write a generation", error))?;
        }
        Ok(())
    }

    /// Re-opens all connections.
    pub(crate) fn raise_everything(&self) -> Result<(), Error> {
        let generation = self.config.get(Setting::Generation)?;
        self.config.set(Setting::Generation, generation.wrapping_add(1))
    }
}

impl std::fmt::Debug for Generations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generations").finish_non_exhaustive()
    }
}

fn failed(action: &'static str, error: MapError) -> Error {
    Error::Map { map: map::GENERATIONS, action, source: error.into() }
}
