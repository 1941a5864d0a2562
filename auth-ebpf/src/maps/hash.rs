//! Tables that are hashes or tries of the kernel's.

use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};

use crate::error::Error;
use crate::maps::table::{Store, TableKey, TableValue};
use crate::maps::{io_error, open_map};

/// A hash, or a trie.
pub(crate) struct Hash<K: TableKey, V: TableValue> {
    name: &'static str,
    capacity: u32,
    map: HashMap<MapData, K::Bytes, V::Bytes>,
}

impl<K: TableKey, V: TableValue> Hash<K, V> {
    pub(crate) fn open(pin_dir: &Path, name: &'static str) -> Result<Self, Error> {
        let data = open_map(pin_dir, name)?;
        let error = |source: MapError| Error::Map { map: name, action: "open it", source: source.into() };
        let capacity = data.info().map_err(error)?.max_entries();
        // Tries have the same calls as hashes, and keys of plain bytes.
        let map = HashMap::try_from(Map::HashMap(data)).map_err(error)?;
        Ok(Self { name, capacity, map })
    }

    /// How many steps of a walk to take: an entry that is removed under it sends it back to the start.
    fn most(&self) -> usize {
        usize::try_from(self.capacity).unwrap_or(usize::MAX).saturating_mul(2)
    }

    fn error(&self, action: &'static str, error: MapError) -> Error {
        match io_error(&error).and_then(std::io::Error::raw_os_error) {
            // Hashes say E2BIG, tries ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => Error::Full { map: self.name, capacity: self.capacity },
            _ => Error::Map { map: self.name, action, source: error.into() },
        }
    }
}

impl<K: TableKey, V: TableValue> Store<K, V> for Hash<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>, Error> {
        match self.map.get(&key.encode(), 0) {
            Ok(bytes) => Ok(V::decode(&bytes)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.error("look up an entry", error)),
        }
    }

    fn put(&mut self, key: &K, value: &V) -> Result<(), Error> {
        self.map.insert(key.encode(), value.encode(), 0).map_err(|error| self.error("write an entry", error))
    }

    fn erase(&mut self, key: &K) -> Result<bool, Error> {
        match self.map.remove(&key.encode()) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(self.error("remove an entry", error)),
        }
    }

    fn keys(&self) -> Result<Vec<K>, Error> {
        let mut keys = Vec::new();
        for key in self.map.keys().take(self.most()) {
            keys.extend(K::decode(&key.map_err(|error| self.error("list its keys", error))?));
        }
        Ok(keys)
    }

    fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        let mut entries = Vec::new();
        for entry in self.map.iter().take(self.most()) {
            let (key, value) = entry.map_err(|error| self.error("list its entries", error))?;
            entries.extend(K::decode(&key).zip(V::decode(&value)));
        }
        Ok(entries)
    }
}

fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound | MapError::ElementNotFound)
        || io_error(error).is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
