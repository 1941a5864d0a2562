//! The `generations` map, and the generation of everything in `config`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use auth_ebpf_abi::{Setting, map};
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
    /// Those of the counter at this place.
    Slot(u32),
    /// All of them.
    Everything,
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
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        for touch in touched {
            if let Touch::Slot(slot) = touch {
                let generation = map.get(slot, 0).map_err(|error| failed("read a generation", error))?;
                map.set(*slot, generation.wrapping_add(1), 0)
                    .map_err(|error| failed("write a generation", error))?;
            }
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
