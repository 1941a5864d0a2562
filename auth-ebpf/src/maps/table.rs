//! A map of entries, typed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use auth_ebpf_abi::{
    Address, AffinityKey, AuthKey, BackendKey, ConnectionKey, FragmentKey, Layout, NodeNumber, OutsideKey,
    PolicyKey, ServiceKey,
};

use crate::error::Error;
use crate::maps::generations::{Generations, Touch};
use crate::maps::hash::Hash;

/// A type that can be the key of a [`Table`].
pub trait TableKey: sealed::Key + Ord + Copy {}
impl<K: sealed::Key + Ord + Copy> TableKey for K {}

/// A type that can be the value of a [`Table`].
pub trait TableValue: sealed::Value + PartialEq + Copy {}
impl<V: sealed::Value + PartialEq + Copy> TableValue for V {}

/// A map of the datapath. Calls of one table exclude each other; nothing excludes the programs.
pub struct Table<K: TableKey, V: TableValue> {
    name: &'static str,
    store: Mutex<Box<dyn Store<K, V> + Send>>,
    /// What a change re-opens: of this key, from nothing (`added`) or from something.
    touches: Option<(Arc<Generations>, Touches<K>)>,
}

/// What a table's entries are kept in.
pub(crate) trait Store<K, V> {
    fn get(&self, key: &K) -> Result<Option<V>, Error>;
    /// Puts a value in place of what is there.
    fn put(&mut self, key: &K, value: &V) -> Result<(), Error>;
    /// Removes a key; whether it was there.
    fn erase(&mut self, key: &K) -> Result<bool, Error>;
    /// All keys, in no order. Those that come or go meanwhile may be among them or not.
    fn keys(&self) -> Result<Vec<K>, Error>;
    /// All entries; the same.
    fn entries(&self) -> Result<Vec<(K, V)>, Error>;
}

/// What the change of an entry re-opens; whether it was not there before is told as well.
pub(crate) type Touches<K> = fn(key: &K, added: bool) -> Touch;

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
    /// A table that is a hash or a trie of the kernel's.
    pub(crate) fn open(pin_dir: &Path, name: &'static str) -> Result<Self, Error>
    where
        K: TableKey<Bytes: Send> + 'static,
        V: TableValue<Bytes: Send> + 'static,
    {
        Ok(Self::new(name, Hash::open(pin_dir, name)?))
    }

    pub(crate) fn new(name: &'static str, store: impl Store<K, V> + Send + 'static) -> Self {
        Self { name, store: Mutex::new(Box::new(store)), touches: None }
    }

    /// The same table, with connections re-opened by what is written to it.
    pub(crate) fn touching(self, generations: &Arc<Generations>, touches: Touches<K>) -> Self {
        Self { touches: Some((Arc::clone(generations), touches)), ..self }
    }

    /// The value under `key`; in a trie ([`Maps::prefixes`](crate::Maps::prefixes)), that of its longest match.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        self.lock().get(key)
    }

    /// Puts `value` under `key`, in place of what is there.
    ///
    /// # Errors
    /// [`Error::Full`] if there is no room, or if the kernel refuses.
    pub fn insert(&self, key: &K, value: &V) -> Result<(), Error> {
        self.write(key, value)?;
        self.raise([(*key, false)])
    }

    /// Removes `key`; whether it was there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self, key: &K) -> Result<bool, Error> {
        let removed = self.erase(key)?;
        if removed {
            self.raise([(*key, false)])?;
        }
        Ok(removed)
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
        let mut changed = Vec::new();
        let outcome = self.replace(desired, &mut changed);
        // After a failure as well: what has been written counts.
        self.raise(changed)?;
        outcome
    }

    /// Makes these changes, one after the other: a value is put, or, without one, the key removed. A program
    /// that looks for several of these keys notices what is written meanwhile.
    pub(crate) fn change(&self, changes: impl Iterator<Item = (K, Option<V>)>) -> Result<(), Error> {
        let mut changed = Vec::new();
        let outcome = self.follow(changes, &mut changed);
        // After a failure as well, as above.
        self.raise(changed)?;
        outcome
    }

    fn follow(
        &self,
        changes: impl Iterator<Item = (K, Option<V>)>,
        changed: &mut Vec<(K, bool)>,
    ) -> Result<(), Error> {
        for (key, value) in changes {
            self.raise([(key, false)])?;
            match value {
                Some(value) => self.write(&key, &value)?,
                None => drop(self.erase(&key)?),
            }
            changed.push((key, false));
        }
        Ok(())
    }

    fn replace(&self, desired: &BTreeMap<K, V>, changed: &mut Vec<(K, bool)>) -> Result<Changes, Error> {
        let current = self.read()?;
        let mut changes = Changes::default();
        for (key, value) in desired {
            let old = current.get(key);
            if old == Some(value) {
                continue;
            }
            self.write(key, value)?;
            changed.push((*key, old.is_none()));
            match old {
                Some(_) => changes.changed += 1,
                None => changes.added += 1,
            }
        }
        for key in current.keys().filter(|key| !desired.contains_key(key)) {
            if self.erase(key)? {
                changed.push((*key, false));
                changes.removed += 1;
            }
        }
        Ok(changes)
    }

    /// Puts `value` under `key`, and re-opens nothing.
    pub(crate) fn write(&self, key: &K, value: &V) -> Result<(), Error> {
        self.lock().put(key, value)
    }

    fn erase(&self, key: &K) -> Result<bool, Error> {
        self.lock().erase(key)
    }

    /// Re-opens what the changes touch.
    fn raise(&self, changed: impl IntoIterator<Item = (K, bool)>) -> Result<(), Error> {
        let Some((generations, touches)) = &self.touches else { return Ok(()) };
        let touched: BTreeSet<Touch> = changed.into_iter().map(|(key, added)| touches(&key, added)).collect();
        generations.raise(&touched)
    }

    /// The keys in the map, in no order. Those that come or go meanwhile may be among them or not.
    pub(crate) fn keys(&self) -> Result<Vec<K>, Error> {
        self.lock().keys()
    }

    fn read(&self) -> Result<BTreeMap<K, V>, Error> {
        Ok(self.lock().entries()?.into_iter().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Store<K, V> + Send>> {
        // A panic leaves nothing half done behind it that the next call would not put right.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: TableKey, V: TableValue> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("name", &self.name).finish_non_exhaustive()
    }
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
plain_key!(AffinityKey, AuthKey, BackendKey, ConnectionKey, FragmentKey, OutsideKey, ServiceKey);

/// Index of an interface.
impl sealed::Key for u32 {
    type Bytes = [u8; 4];
    fn encode(&self) -> [u8; 4] {
        self.to_ne_bytes()
    }
    fn decode(bytes: &[u8; 4]) -> Option<Self> {
        Some(Self::from_ne_bytes(*bytes))
    }
}

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

/// Keys with a prefix: its length in bits, then the data.
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
