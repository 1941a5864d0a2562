//! A hash or trie, typed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use auth_ebpf_abi::{Address, AuthKey, ConnectionKey, Layout, NodeNumber, PolicyKey};
use aya::maps::{HashMap, Map, MapData, MapError};

use crate::error::Error;
use crate::maps::{io_error, open_map};

/// A type that can be the key of a [`Table`].
pub trait TableKey: sealed::Key + Ord + Copy {}
impl<K: sealed::Key + Ord + Copy> TableKey for K {}

/// A type that can be the value of a [`Table`].
pub trait TableValue: sealed::Value + PartialEq + Copy {}
impl<V: sealed::Value + PartialEq + Copy> TableValue for V {}

/// A map of the datapath. Calls of one table exclude each other; nothing excludes the programs.
pub struct Table<K: TableKey, V: TableValue> {
    name: &'static str,
    capacity: u32,
    map: Mutex<HashMap<MapData, K::Bytes, V::Bytes>>,
}

/// How many entries [`Table::reconcile`] has written and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Entries that were not there.
    pub added: usize,
    /// Entries that had another value.
    pub changed: usize,
    /// Entries that are no more.
    pub removed: usize,
}

impl<K: TableKey, V: TableValue> Table<K, V> {
    pub(crate) fn open(pin_dir: &Path, name: &'static str) -> Result<Self, Error> {
        let data = open_map(pin_dir, name)?;
        let error = |source: MapError| Error::Map { map: name, action: "open it", source: source.into() };
        let capacity = data.info().map_err(error)?.max_entries();
        // Tries have the same calls as hashes, and keys of plain bytes.
        let map = HashMap::try_from(Map::HashMap(data)).map_err(error)?;
        Ok(Self { name, capacity, map: Mutex::new(map) })
    }

    /// The value under `key`; in a trie, that of its longest match.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        match self.lock().get(&key.encode(), 0) {
            Ok(bytes) => Ok(V::decode(&bytes)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.error("look up an entry", error)),
        }
    }

    /// Puts `value` under `key`, in place of what is there.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room, or if the kernel refuses.
    pub fn insert(&self, key: &K, value: &V) -> Result<(), Error> {
        self.lock()
            .insert(key.encode(), value.encode(), 0)
            .map_err(|error| self.error("write an entry", error))
    }

    /// Removes `key`; whether it was there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self, key: &K) -> Result<bool, Error> {
        match self.lock().remove(&key.encode()) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(self.error("remove an entry", error)),
        }
    }

    /// Everything in the map, by key. Entries that come or go meanwhile may be in it or not.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        Ok(self.read()?.into_iter().collect())
    }

    /// Makes the map equal to `desired`. Additions and changes come before removals, so that an address or
    /// a rule which only moves is never missing in between.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room, or if the kernel refuses. What has been written until then stays.
    pub fn reconcile(&self, desired: &BTreeMap<K, V>) -> Result<Changes, Error> {
        let current = self.read()?;
        let mut changes = Changes::default();
        for (key, value) in desired {
            match current.get(key) {
                Some(old) if old == value => continue,
                Some(_) => changes.changed += 1,
                None => changes.added += 1,
            }
            self.insert(key, value)?;
        }
        for key in current.keys().filter(|key| !desired.contains_key(key)) {
            if self.remove(key)? {
                changes.removed += 1;
            }
        }
        Ok(changes)
    }

    fn read(&self) -> Result<BTreeMap<K, V>, Error> {
        let map = self.lock();
        // An entry that is removed under the walk sends it back to the start: bound it.
        let most = usize::try_from(self.capacity).unwrap_or(usize::MAX).saturating_mul(2);
        let mut entries = BTreeMap::new();
        for entry in map.iter().take(most) {
            let (key, value) = entry.map_err(|error| self.error("list its entries", error))?;
            entries.extend(K::decode(&key).zip(V::decode(&value)));
        }
        Ok(entries)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MapData, K::Bytes, V::Bytes>> {
        // The lock only keeps `&mut` apart: a panic leaves nothing half done behind it.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, action: &'static str, error: MapError) -> Error {
        match io_error(&error).and_then(std::io::Error::raw_os_error) {
            // Hashes say E2BIG, tries ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => Error::Full { map: self.name, capacity: self.capacity },
            _ => Error::Map { map: self.name, action, source: error.into() },
        }
    }
}

impl<K: TableKey, V: TableValue> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("name", &self.name)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound | MapError::ElementNotFound)
        || io_error(error).is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

mod sealed {
    use super::Layout;

    /// Conversion to the bytes in the map.
    pub trait Key: Sized {
        type Bytes: aya::Pod;
        fn encode(&self) -> Self::Bytes;
        fn decode(bytes: &Self::Bytes) -> Option<Self>;
    }

    /// The same for values.
    pub trait Value: Sized {
        type Bytes: aya::Pod;
        fn encode(&self) -> Self::Bytes;
        fn decode(bytes: &Self::Bytes) -> Option<Self>;
    }

    impl<T: Layout<Bytes: aya::Pod>> Value for T {
        type Bytes = T::Bytes;
        fn encode(&self) -> T::Bytes {
            self.to_bytes()
        }
        fn decode(bytes: &T::Bytes) -> Option<Self> {
            Self::from_bytes(bytes.as_ref())
        }
    }
}

macro_rules! plain_key {
    ($($type:ty),*) => {$(
        impl sealed::Key for $type {
            type Bytes = <$type as Layout>::Bytes;
            fn encode(&self) -> Self::Bytes {
                self.to_bytes()
            }
            fn decode(bytes: &Self::Bytes) -> Option<Self> {
                Self::from_bytes(bytes.as_ref())
            }
        }
    )*};
}
plain_key!(AuthKey, ConnectionKey);

impl sealed::Key for Address {
    type Bytes = [u8; 16];
    fn encode(&self) -> [u8; 16] {
        self.0
    }
    fn decode(bytes: &[u8; 16]) -> Option<Self> {
        Some(Self(*bytes))
    }
}

/// The kernel aligns keys to four bytes.
impl sealed::Key for NodeNumber {
    type Bytes = [u8; 4];
    fn encode(&self) -> [u8; 4] {
        u32::from(*self).to_ne_bytes()
    }
    fn decode(bytes: &[u8; 4]) -> Option<Self> {
        Self::try_from(u32::from_ne_bytes(*bytes)).ok()
    }
}

/// Keys of tries: length of the prefix in bits, then the data.
macro_rules! prefix_key {
    ($($type:ty: $size:literal, $encode:expr, $decode:expr;)*) => {$(
        impl sealed::Key for ($type, u32) {
            type Bytes = [u8; $size];
            fn encode(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                if let Some((prefix_len, data)) = bytes.split_first_chunk_mut::<4>() {
                    *prefix_len = self.1.to_ne_bytes();
                    let encode: fn(&$type) -> [u8; $size - 4] = $encode;
                    data.copy_from_slice(&encode(&self.0));
                }
                bytes
            }
            fn decode(bytes: &[u8; $size]) -> Option<Self> {
                let (prefix_len, data) = bytes.split_first_chunk::<4>()?;
                let decode: fn(&[u8]) -> Option<$type> = $decode;
                Some((decode(data)?, u32::from_ne_bytes(*prefix_len)))
            }
        }
    )*};
}
prefix_key! {
    Address: 20, |address| address.0, |data| data.try_into().ok().map(Address);
    PolicyKey: 16, Layout::to_bytes, Layout::from_bytes;
}
