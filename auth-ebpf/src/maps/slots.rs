//! Tables in slots: how user space writes what programs read meanwhile. The rules are those of
//! `auth_ebpf_abi::slots`; one process writes at a time, by a lock on the pin directory.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use auth_ebpf_abi::{AsSlotKey, AsSlotValue, Head, Multipliers, Setting, Slot, SlotKey};
use auth_ebpf_memory::{Words, wait_for_programs};

use crate::error::Error;
use crate::maps::table::Store;
use crate::maps::{Config, open_map};

/// How many of so many slots may wait for reuse before all that do are made free.
const RECLAIM: usize = 8;

/// A table in the slots of a map.
pub(crate) struct Slots<K, V, const N: usize, const M: usize> {
    name: &'static str,
    /// The pin directory, whose lock keeps other processes from writing.
    directory: File,
    table: Table<Words, K, V, N, M>,
}

impl<K: AsSlotKey<N>, V: AsSlotValue<M>, const N: usize, const M: usize> Slots<K, V, N, M> {
    pub(crate) fn open(pin_dir: &Path, name: &'static str, config: &Config) -> Result<Self, Error> {
        let data = open_map(pin_dir, name)?;
        let failed =
            |source: crate::error::Source| Error::Map { map: name, action: "map its memory", source };
        let slots = data.info().map_err(|error| failed(error.into()))?.max_entries();
        let words = usize::try_from(slots).unwrap_or(usize::MAX).saturating_mul(size_of::<Slot>() / 8);
        let words = Words::map(data.fd(), words).map_err(|error| failed(error.into()))?;
        let multipliers = Multipliers::from_seed(config.get(Setting::Seed)?);
        let directory = File::open(pin_dir).map_err(|error| failed(error.into()))?;
        Ok(Self { name, directory, table: Table::new(words, multipliers, wait_for_programs) })
    }

    /// Keeps other processes from writing meanwhile.
    fn locked<T>(&mut self, write: impl FnOnce(&mut Table<Words, K, V, N, M>) -> T) -> Result<T, Error> {
        let name = self.name;
        let failed = |action| move |error: io::Error| Error::Map { map: name, action, source: error.into() };
        self.directory.lock().map_err(failed("lock it for writing"))?;
        let outcome = write(&mut self.table);
        self.directory.unlock().map_err(failed("unlock it"))?;
        Ok(outcome)
    }
}

impl<K, V, const N: usize, const M: usize> Store<K, V> for Slots<K, V, N, M>
where
    K: AsSlotKey<N> + Send + Sync,
    V: AsSlotValue<M> + Send + Sync,
{
    fn get(&self, key: &K) -> Result<Option<V>, Error> {
        Ok(self.table.get(key))
    }

    fn put(&mut self, key: &K, value: &V) -> Result<(), Error> {
        let capacity = u32::try_from(self.table.capacity()).unwrap_or(u32::MAX);
        self.locked(|table| table.put(key, value))?.ok_or(Error::Full { map: self.name, capacity })
    }

    fn erase(&mut self, key: &K) -> Result<bool, Error> {
        self.locked(|table| table.erase(key))
    }

    fn keys(&self) -> Result<Vec<K>, Error> {
        Ok(self.table.entries().map(|(key, _)| key).collect())
    }

    fn entries(&self) -> Result<Vec<(K, V)>, Error> {
        Ok(self.table.entries().collect())
    }
}

/// A table in memory, wherever that is.
struct Table<W, K, V, const N: usize, const M: usize> {
    words: W,
    multipliers: Multipliers,
    /// Returns when nobody can be reading any more what was there before.
    wait: fn(),
    entry: PhantomData<fn() -> (K, V)>,
}

/// Where an entry is, or could be.
#[derive(Clone, Copy)]
struct Place {
    home: usize,
    distance: u32,
    slot: usize,
}

impl<W, K, V, const N: usize, const M: usize> Table<W, K, V, N, M>
where
    W: Deref<Target = [AtomicU64]>,
    K: AsSlotKey<N>,
    V: AsSlotValue<M>,
{
    const WORDS: usize = size_of::<Slot>() / 8;

    const fn new(words: W, multipliers: Multipliers, wait: fn()) -> Self {
        const { assert!(1 + N + M == Self::WORDS, "a key and a value fill a slot") };
        Self { words, multipliers, wait, entry: PhantomData }
    }

    /// Slots for entries; the one after them holds the counts.
    fn slots(&self) -> usize {
        self.words.len() / Self::WORDS - 1
    }

    fn capacity(&self) -> usize {
        self.slots() / 2
    }

    fn get(&self, key: &K) -> Option<V> {
        let key = key.to_slot();
        loop {
            let place = self.find(&key)?;
            let value = self.value(place.slot);
            if Head::difference(self.load(place.slot, 0), key.tail) == 0 {
                return Some(value);
            }
        }
    }

    /// Puts `value` under `key`; `None` if there is no room.
    fn put(&mut self, key: &K, value: &V) -> Option<()> {
        let (key, value) = (key.to_slot(), value.to_slot());
        if let Some(place) = self.find(&key) {
            let old: [u64; M] = std::array::from_fn(|word| self.load(place.slot, 1 + N + word));
            let differing = old.iter().zip(&value).filter(|(old, new)| old != new);
            if differing.count() <= 1 || V::may_mix(&old, &value) {
                self.write_value(place.slot, &value);
                return Some(());
            }
            let free = self.free(place.home)?;
            self.leave(place.slot);
            self.publish(free, &key, &value);
            return Some(());
        }
        if self.live() >= self.capacity() {
            self.count();
        }
        if self.live() >= self.capacity() {
            return None;
        }
        let home = self.multipliers.home(&key, self.slots()) as usize;
        let free = self.free(home)?;
        self.publish(free, &key, &value);
        Some(())
    }

    /// Removes `key`; whether it was there.
    fn erase(&mut self, key: &K) -> bool {
        let place = self.find(&key.to_slot());
        if let Some(place) = place {
            self.leave(place.slot);
        }
        place.is_some()
    }

    fn entries(&self) -> impl Iterator<Item = (K, V)> {
        (0..self.slots()).filter_map(|slot| {
            let head = self.load(slot, 0);
            if head & Head::LIVE == 0 {
                return None;
            }
            let entry = (K::from_slot(&self.key(slot, head)), self.value(slot));
            // Another process may have removed it meanwhile.
            (Head::difference(self.load(slot, 0), Head::tail(head)) == 0).then_some(entry)
        })
    }

    fn places(&self, home: usize, reach: u32) -> impl Iterator<Item = Place> {
        let last = self.slots() - 1;
        (0..=reach).map(move |distance| Place { home, distance, slot: (home + distance as usize) & last })
    }

    fn find(&self, key: &SlotKey<N>) -> Option<Place> {
        let home = self.multipliers.home(key, self.slots()) as usize;
        let reach = Head::reach(self.load(home, 0));
        self.places(home, reach).find(|place| {
            let head = self.load(place.slot, 0);
            Head::difference(head, key.tail) == 0 && self.key(place.slot, head).words == key.words
        })
    }

    /// The free slot that is nearest to `home`.
    fn free(&mut self, home: usize) -> Option<Place> {
        let free = |table: &Self| {
            let is_free = |place: &Place| table.load(place.slot, 0) & (Head::LIVE | Head::LEFT) == 0;
            table.places(home, Head::FARTHEST).find(is_free)
        };
        if self.left() * RECLAIM >= self.slots() {
            self.reclaim();
        }
        if let Some(place) = free(self) {
            return Some(place);
        }
        self.reclaim();
        free(self)
    }

    /// Makes free the slots of what has left, once nobody is looking at them any more.
    fn reclaim(&mut self) {
        (self.wait)();
        let mut reaches = vec![0; self.slots()];
        for slot in 0..self.slots() {
            let head = self.load(slot, 0);
            if head & Head::LIVE != 0 {
                let home = self.multipliers.home(&self.key(slot, head), self.slots()) as usize;
                let distance = (slot + self.slots() - home) & (self.slots() - 1);
                if let Some(reach) = reaches.get_mut(home) {
                    *reach = u32::try_from(distance).unwrap_or(u32::MAX).min(Head::FARTHEST).max(*reach);
                }
            }
        }
        for (slot, reach) in reaches.into_iter().enumerate() {
            let head = self.load(slot, 0);
            let entry = if head & Head::LEFT != 0 { 0 } else { head };
            self.store(slot, 0, Head::with_reach(entry, reach));
        }
        self.count();
    }

    /// Writes an entry into a free slot, so that it is there at once.
    fn publish(&mut self, place: Place, key: &SlotKey<N>, value: &[u64; M]) {
        let Place { home, distance, slot } = place;
        for (word, part) in (1..).zip(key.words) {
            self.store(slot, word, part);
        }
        self.write_value(slot, value);
        let head = self.load(home, 0);
        if Head::reach(head) < distance {
            self.store(home, 0, Head::with_reach(head, distance));
        }
        let reach = self.load(slot, 0) & !Head::ENTRY;
        self.store(slot, 0, reach | Head::LIVE | key.tail);
        self.add(0, 1);
    }

    /// Removes the entry of a slot, where those who have found it go on reading it.
    fn leave(&mut self, slot: usize) {
        let reach = self.load(slot, 0) & !Head::ENTRY;
        self.store(slot, 0, reach | Head::LEFT);
        self.add(0, -1);
        self.add(1, 1);
    }

    fn key(&self, slot: usize, head: u64) -> SlotKey<N> {
        let words = std::array::from_fn(|word| self.load(slot, 1 + word));
        SlotKey { tail: Head::tail(head), words }
    }

    fn value(&self, slot: usize) -> V {
        V::from_slot(std::array::from_fn(|word| self.load(slot, 1 + N + word)))
    }

    /// The first word last, since it is read first.
    fn write_value(&mut self, slot: usize, value: &[u64; M]) {
        for (word, part) in (1 + N..1 + N + M).zip(value).rev() {
            self.store(slot, word, *part);
        }
    }

    /// How many entries there are, by the count that all processes keep together.
    fn live(&self) -> usize {
        self.load(self.slots(), 0) as usize
    }

    /// How many slots wait for reuse.
    fn left(&self) -> usize {
        self.load(self.slots(), 1) as usize
    }

    fn add(&mut self, count: usize, change: i64) {
        let counts = self.slots();
        self.store(counts, count, self.load(counts, count).saturating_add_signed(change));
    }

    /// Counts anew: a process may have ended between an entry and its count.
    fn count(&mut self) {
        let slots = self.slots();
        for (count, flag) in [(0, Head::LIVE), (1, Head::LEFT)] {
            let counted = (0..slots).filter(|slot| self.load(*slot, 0) & flag != 0).count();
            self.store(slots, count, counted as u64);
        }
    }

    fn load(&self, slot: usize, word: usize) -> u64 {
        self.words.get(slot * Self::WORDS + word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&mut self, slot: usize, word: usize, value: u64) {
        if let Some(word) = self.words.get(slot * Self::WORDS + word) {
            word.store(value, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests;
