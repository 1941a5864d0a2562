//! The `config` map.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use auth_ebpf_abi::{Address, Setting, map};
use aya::maps::{Array, Map, MapData, MapError};

use crate::error::Error;
use crate::maps::open_map;

/// Modes, deadlines and ports, one word each. A slot never written is 0, which enforces.
pub struct Config {
    map: Mutex<Array<MapData, u64>>,
}

impl Config {
    pub(crate) fn open(pin_dir: &Path) -> Result<Self, Error> {
        let data = open_map(pin_dir, map::CONFIG)?;
        let map = Array::try_from(Map::Array(data)).map_err(|error| failed("open it", error))?;
        Ok(Self { map: Mutex::new(map) })
    }

    /// The value of a slot.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn get(&self, setting: Setting) -> Result<u64, Error> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(&(setting as u32), 0).map_err(|error| failed("read a setting", error))
    }

    /// Tells this node's outside addresses, of each family one at most.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_outside(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let of = |v4| addresses.iter().find(|address| address.is_ipv4() == v4).copied().map(Address::from);
        let [off, slots @ ..] = Setting::outside(of(true), of(false));
        let mut differ = false;
        for (setting, value) in slots {
            differ |= self.get(setting)? != value;
        }
        // Not off for a moment, unless it is to change.
        for (setting, value) in std::iter::once(off).chain(slots).filter(|_| differ) {
            self.set(setting, value)?;
        }
        Ok(())
    }

    /// Writes a slot. Connections are decided anew if they rest on it and it changes.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set(&self, setting: Setting, value: u64) -> Result<(), Error> {
        let unchanged = self.get(setting)? == value;
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.set(setting as u32, value, 0).map_err(|error| failed("write a setting", error))?;
        if unchanged || !setting.decides_on_connections() {
            return Ok(());
        }
        let slot = Setting::Generation as u32;
        let generation = map.get(&slot, 0).map_err(|error| failed("read a setting", error))?;
        map.set(slot, generation.wrapping_add(1), 0).map_err(|error| failed("write a setting", error))
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").finish_non_exhaustive()
    }
}

fn failed(action: &'static str, error: MapError) -> Error {
    Error::Map { map: map::CONFIG, action, source: error.into() }
}
