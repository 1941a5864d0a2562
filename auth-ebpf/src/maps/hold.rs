//! The maps of packets that are held.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use auth_ebpf_abi::{AuthKey, Credits, Held, HoldStage, Layout, capacity, map};
use aya::maps::{Array, Map, MapData, MapError};

use crate::error::Error;
use crate::maps::open_map;

type HeldBytes = <Held as Layout>::Bytes;

/// What the programs know of the packets that they have sent to the hold device.
pub struct HoldMaps {
    held: Mutex<Array<MapData, HeldBytes>>,
    credits: Mutex<Array<MapData, u64>>,
}

impl HoldMaps {
    pub(crate) fn open(pin_dir: &Path) -> Result<Self, Error> {
        let open = |name| Ok::<_, Error>(Map::Array(open_map(pin_dir, name)?));
        let held = Array::try_from(open(map::HELD)?).map_err(|error| failed(map::HELD, "open it", error))?;
        let credits =
            Array::try_from(open(map::CREDITS)?).map_err(|error| failed(map::CREDITS, "open it", error))?;
        Ok(Self { held: Mutex::new(held), credits: Mutex::new(credits) })
    }

    /// The packet with this token.
    ///
    /// # Errors
    /// If there is no such token, or the kernel refuses.
    pub fn held(&self, token: u16) -> Result<Held, Error> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes =
            held.get(&u32::from(token), 0).map_err(|error| failed(map::HELD, "look up a token", error))?;
        Ok(Held::from_bytes(&bytes).unwrap_or_default())
    }

    /// Units of credit taken by all that is held.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn taken(&self) -> Result<u64, Error> {
        self.credits()
            .get(&Credits::ALL, 0)
            .map_err(|error| failed(map::CREDITS, "read the units taken", error))
    }

    /// How many packets wait for this authentication, and since when the oldest does, in boot time.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn held_for(&self, key: &AuthKey) -> Result<(usize, Option<u64>), Error> {
        let waits =
            |held: &Held| held.key() == *key && matches!(held.stage, HoldStage::TAKEN | HoldStage::HELD);
        let (mut count, mut oldest) = (0, None);
        let tokens = u16::try_from(capacity::HELD).unwrap_or(u16::MAX);
        for token in 0..tokens {
            let held = self.held(token)?;
            if waits(&held) {
                count += 1;
                oldest = Some(oldest.map_or(held.since, |before: u64| before.min(held.since)));
            }
        }
        Ok((count, oldest))
    }

    /// Forgets everything that was held. Nothing may be held meanwhile.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn forget_all(&self) -> Result<(), Error> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let free = Held::default().to_bytes();
        for token in 0..u32::try_from(capacity::HELD).unwrap_or(u32::MAX) {
            held.set(token, free, 0).map_err(|error| failed(map::HELD, "free a token", error))?;
        }
        drop(held);
        self.give_back_all()
    }

    /// Gives all credits back: for packets that went with an interface. What comes back later gives its own
    /// back once more, which does no harm.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn give_back_all(&self) -> Result<(), Error> {
        let mut credits = self.credits();
        for place in Credits::ALL..u32::try_from(capacity::CREDITS).unwrap_or(u32::MAX) {
            credits.set(place, 0, 0).map_err(|error| failed(map::CREDITS, "give credits back", error))?;
        }
        Ok(())
    }

    fn credits(&self) -> MutexGuard<'_, Array<MapData, u64>> {
        self.credits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for HoldMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HoldMaps").finish_non_exhaustive()
    }
}

fn failed(map: &'static str, action: &'static str, error: MapError) -> Error {
    Error::Map { map, action, source: error.into() }
}
