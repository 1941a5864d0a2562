//! Tables in slots against plain maps, and under the eyes of readers.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};
use std::thread;

use auth_ebpf_abi::{Address, AddressEntry, AuthEntry, AuthKey, capacity, slots};
use proptest::prelude::*;

use super::*;

type Memory = Arc<Vec<AtomicU64>>;

/// The same for all who use the table, as a mapped array is.
struct Shared(Memory);

impl Deref for Shared {
    type Target = [AtomicU64];
    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}

type Auth = Table<Shared, AuthKey, AuthEntry, 1, 2>;
type Addresses = Table<Shared, Address, AddressEntry, 2, 1>;

fn memory(capacity: usize) -> Memory {
    Arc::new((0..slots(capacity) * 4).map(|_| AtomicU64::new(0)).collect())
}

fn table<K: AsSlotKey<N>, V: AsSlotValue<M>, const N: usize, const M: usize>(
    memory: &Memory,
    seed: u64,
    wait: fn(),
) -> Table<Shared, K, V, N, M> {
    Table::new(Shared(Arc::clone(memory)), Multipliers::from_seed(seed), wait)
}

const fn key(number: u32) -> AuthKey {
    AuthKey { local: 7, remote: number, node: number as u16, auth_type: 1, pad: 0 }
}

const fn value(number: u64) -> AuthEntry {
    AuthEntry { expires: number, epoch: number as u32, flags: (number >> 3) as u32 }
}

/// What is done to a table.
#[derive(Clone, Debug)]
enum Step {
    Put(u32, u64),
    Erase(u32),
    /// Another process opens it.
    Adopt,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..24_u32, 0..4_u64).prop_map(|(key, value)| Step::Put(key, value)),
        2 => (0..24_u32).prop_map(Step::Erase),
        1 => Just(Step::Adopt),
    ]
}

/// A table of eight entries does what a plain map of eight does.
fn does_as_a_map<K, V, const N: usize, const M: usize>(
    steps: Vec<Step>,
    seed: u64,
    make: impl Fn(u32, u64) -> (K, V),
) where
    K: AsSlotKey<N> + Ord + Copy + std::fmt::Debug,
    V: AsSlotValue<M> + PartialEq + Copy + std::fmt::Debug,
{
    const FEW: usize = 8;
    let memory = memory(FEW);
    let open = || table::<K, V, N, M>(&memory, seed, || {});
    let (mut table, mut map) = (open(), BTreeMap::new());
    for step in steps {
        match step {
            Step::Put(number, what) => {
                let (key, value) = make(number, what);
                let room = map.len() < FEW || map.contains_key(&key);
                assert_eq!(table.put(&key, &value).is_some(), room, "{key:?}");
                if room {
                    map.insert(key, value);
                }
            }
            Step::Erase(number) => {
                let (key, _) = make(number, 0);
                assert_eq!(table.erase(&key), map.remove(&key).is_some(), "{key:?}");
            }
            Step::Adopt => table = open(),
        }
        for number in 0..24 {
            let (key, _) = make(number, 0);
            assert_eq!(table.get(&key), map.get(&key).copied(), "{key:?}");
        }
        assert_eq!(table.entries().collect::<BTreeMap<_, _>>(), map);
        assert_eq!((table.entries().count(), table.live()), (map.len(), map.len()));
    }
}

proptest! {
    #[test]
    fn a_table_does_as_a_map(
        steps in prop::collection::vec(step(), 1..80),
        seed in any::<u64>(),
    ) {
        does_as_a_map(steps.clone(), seed, |number, what| (key(number), value(what)));
        does_as_a_map(steps, seed, |number, what| {
            let address = Address(u128::from(number).to_be_bytes());
            (address, AddressEntry { identity: what as u32, node: 3, flags: 1 })
        });
    }
}

#[test]
fn it_holds_what_it_promises_and_no_more() {
    let memory = memory(capacity::AUTH);
    let mut table: Auth = table(&memory, 5, || {});
    let all = u32::try_from(capacity::AUTH).unwrap();
    for number in 0..all {
        table.put(&key(number), &value(1)).unwrap();
    }
    assert_eq!(table.put(&key(all), &value(1)), None);
    assert_eq!(table.put(&key(3), &value(2)), Some(()), "what is there has its place");
    assert!(table.erase(&key(9)));
    assert_eq!(table.put(&key(all), &value(1)), Some(()));
    assert_eq!(table.get(&key(all)), Some(value(1)));
    assert_eq!(table.entries().count(), capacity::AUTH);
}

#[test]
fn what_comes_and_goes_leaves_no_room_behind() {
    let memory = memory(64);
    let mut table: Addresses = table(&memory, 9, || {});
    let address = |number: u32| Address(u128::from(number).to_be_bytes());
    let entry = AddressEntry { identity: 1, node: 0, flags: 0 };
    table.put(&address(0), &entry).unwrap();
    for number in 1..10_000 {
        table.put(&address(number), &entry).unwrap();
        assert!(table.erase(&address(number)));
        assert_eq!(table.get(&address(0)), Some(entry));
    }
    assert!(table.left() <= 128 / RECLAIM, "{}", table.left());
}

#[test]
fn a_wrong_count_is_put_right() {
    let memory = memory(8);
    let mut table: Auth = table(&memory, 1, || {});
    table.put(&key(1), &value(1)).unwrap();
    table.add(0, 100);
    table.put(&key(2), &value(1)).unwrap();
    assert_eq!(table.live(), 2);
}

/// Stands for the kernel's grace period: readers hold it while they look.
static LOOKING: RwLock<()> = RwLock::new(());

/// Each entry's value belongs to its key, at every moment. Some stay, and are always there; the others come
/// and go in their slots.
#[test]
fn readers_see_whole_entries_and_all_that_stay() {
    const STAYING: u32 = 6;
    const OTHERS: u32 = 20;
    // Each write changes both words. The end of one with the flags of an earlier one was never written.
    let belongs =
        |number: u32, found: AuthEntry| found.epoch == number && u64::from(found.flags) >= found.expires;
    let entry = |number: u32, expires: u64| AuthEntry { expires, epoch: number, flags: expires as u32 };
    let memory = memory(16);
    let wait = || drop(LOOKING.write().unwrap());
    let mut writer: Auth = table(&memory, 4, wait);
    for number in 0..STAYING {
        writer.put(&key(number), &entry(number, 1)).unwrap();
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let reader: Auth = table(&memory, 4, || {});
                while !done.load(Ordering::Relaxed) {
                    for number in 0..STAYING + OTHERS {
                        let looking = LOOKING.read().unwrap();
                        // As programs do: without a second look at the head.
                        let found = reader.find(&key(number).to_slot()).map(|place| reader.value(place.slot));
                        drop(looking);
                        assert!(found.is_some() || number >= STAYING, "{number} is missing");
                        assert!(found.is_none_or(|found| belongs(number, found)), "{number}: {found:?}");
                    }
                }
            });
        }
        let mut random = 1_u32;
        for round in 0..200_000_u64 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = (random >> 8) % (STAYING + OTHERS);
            if number >= STAYING && round % 2 == 0 {
                writer.erase(&key(number));
            } else {
                // What stays lasts longer with each write; the others now longer, now shorter.
                let expires = if number < STAYING { round } else { u64::from(random >> 12) };
                let _room = writer.put(&key(number), &entry(number, expires));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(writer.left() < writer.slots(), "slots were used again");
}
