//! Reading tables in slots (`auth_ebpf_abi::slots`) while user space writes them.

use core::ptr::NonNull;

use auth_ebpf_abi::{Head, Multipliers, Slot, SlotKey};
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::Array;

/// An array that user space maps.
pub(crate) const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// `N` slots, the last of which is user space's own.
pub(crate) type Slots<const N: usize> = Array<Slot, N, MAPPED>;

/// The loader's numbers for this set of maps.
#[unsafe(no_mangle)]
static MULTIPLIERS: [u64; 3] = [0; 3];

/// The slot of `key`, if it is there. `search` looks for it beyond its home: where to begin, and how far
/// from there, to the number of the slot, counted from 1, or 0.
#[inline(always)]
pub(crate) fn find<const K: usize, const N: usize>(
    slots: &Slots<N>,
    key: &SlotKey<K>,
    search: impl Fn(u32, u32) -> u32,
) -> Option<Found<K>> {
    // SAFETY: a constant of this object, which the loader has set; read as it is in memory.
    let multipliers = Multipliers(unsafe { core::ptr::read_volatile(&raw const MULTIPLIERS) });
    let home = multipliers.home(key, N - 1);
    let slot = slots.get_ptr(home)?;
    if let Some(slot) = entry(slot, key) {
        return Some(Found(slot));
    }
    // SAFETY: as in `entry`.
    let reach = Head::reach(unsafe { word(slot, 0) });
    if reach == 0 {
        return None;
    }
    found(slots, search(home, reach).checked_sub(1)?)
}

/// The slot with this number, in which this program has found its key. That may have left since, and is what
/// was found all the same: looking on from there, one would meet a state that never was.
#[inline(always)]
fn found<const K: usize, const N: usize>(slots: &Slots<N>, number: u32) -> Option<Found<K>> {
    let slot = slots.get_ptr(number)?;
    // SAFETY: as in `entry`.
    let head = unsafe { word(slot, 0) };
    // By nothing, as there.
    let slot = NonNull::new(slot.wrapping_byte_add(nothing(head) as usize).cast_mut())?;
    Some(Found(slot))
}

/// Has the processor fetch the home of `key`, and doesn't wait for it.
#[inline(always)]
pub(crate) fn touch<const K: usize, const N: usize>(slots: &Slots<N>, key: &SlotKey<K>) {
    // SAFETY: as in `find`.
    let multipliers = Multipliers(unsafe { core::ptr::read_volatile(&raw const MULTIPLIERS) });
    if let Some(slot) = slots.get_ptr(multipliers.home(key, N - 1)) {
        // SAFETY: as in `entry`.
        let _there = unsafe { word(slot, 0) };
    }
}

/// A slot whose entry has a key of `K` words.
#[derive(Clone, Copy)]
pub(crate) struct Found<const K: usize>(NonNull<Slot>);

impl<const K: usize> Found<K> {
    /// The entry's value.
    #[inline(always)]
    pub(crate) fn value<const V: usize>(self) -> [u64; V] {
        let mut value = [0; V];
        for (number, part) in value.iter_mut().enumerate() {
            // SAFETY: as in `entry`; K and V words are behind the head.
            *part = unsafe { word(self.0.as_ptr(), 1 + K + number) };
        }
        value
    }
}

/// Looks for `key` in the `reach` slots after `home`: the number of its slot, counted from 1, or 0.
#[inline(always)]
pub(crate) fn search<const K: usize, const N: usize>(
    slots: &Slots<N>,
    key: &SlotKey<K>,
    home: u32,
    reach: u32,
) -> u32 {
    let mut distance = 1;
    while distance <= Head::FARTHEST && distance <= reach {
        let number = home.wrapping_add(distance) & (N as u32 - 2);
        if let Some(slot) = slots.get_ptr(number)
            && entry(slot, key).is_some()
        {
            return number + 1;
        }
        distance += 1;
    }
    0
}

/// The slot, if it holds `key`: to be read by the pointer that this returns.
#[inline(always)]
fn entry<const K: usize>(slot: *const Slot, key: &SlotKey<K>) -> Option<NonNull<Slot>> {
    // SAFETY: the map's memory stays valid while the program runs.
    let head = unsafe { word(slot, 0) };
    let difference = opaque(Head::difference(head, key.tail));
    if difference != 0 {
        return None;
    }
    // By nothing; but the processor can't read on before it has read the head.
    let slot = slot.wrapping_byte_add(difference as usize);
    for (number, expected) in key.words.iter().enumerate() {
        // SAFETY: as above.
        if unsafe { word(slot, number + 1) } != *expected {
            return None;
        }
    }
    NonNull::new(slot.cast_mut())
}

/// Reads a word that user space may be writing.
///
/// # Safety
/// `slot` is valid, and `number` one of its words.
#[inline(always)]
unsafe fn word(slot: *const Slot, number: usize) -> u64 {
    // SAFETY: the caller's.
    unsafe { core::ptr::read_volatile(slot.cast::<u64>().add(number)) }
}

/// A number of which the compiler forgets what it knows.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn opaque(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: touches nothing else.
    unsafe { core::arch::asm!("{} += 0", inout(reg) number, options(pure, nomem, nostack)) }
    number
}

#[cfg(not(target_arch = "bpf"))]
fn opaque(number: u64) -> u64 {
    core::hint::black_box(number)
}

/// Nothing, of which the processor doesn't know that it doesn't depend on `number`.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn nothing(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: touches nothing else.
    unsafe { core::arch::asm!("{} &= 0", inout(reg) number, options(pure, nomem, nostack)) }
    number
}

#[cfg(not(target_arch = "bpf"))]
fn nothing(number: u64) -> u64 {
    opaque(number) ^ number
}
