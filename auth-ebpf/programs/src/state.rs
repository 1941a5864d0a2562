//! The decision's view of maps and helpers.
//!
//! Values are copied out of the maps at once: an entry can be replaced by user space while a program looks
//! at it, and a decision must not see two versions.
//!
//! Keys with small fields are made of whole words: the kernel hashes them by words, and the processor waits
//! where it reads as a whole what was just written in pieces.

use auth_ebpf_abi::{
    Address, AddressEntry, AffinityEntry, AffinityKey, AsSlotKey as _, AsSlotValue as _, AuthEntry, AuthKey,
    BackendEntry, BackendKey, CONNECTION_QUOTA, ConnectionEntry, ConnectionKey, EndpointEntry, Event,
    FragmentEntry, FragmentKey, Held, NodeEntry, NodeNumber, OutsideEntry, OutsideKey, PolicyEntry,
    PolicyKey, QuotaEntry, Ruling, ServiceEntry, ServiceKey, Setting, SlotKey, State, longest, metric,
};
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns};

use crate::maps::{
    ADDRESSES, AFFINITIES, AUTH, BACKENDS, CLOCK, CONFIG, CONNECTIONS, CREDITS, ENDPOINTS, EVENTS, FRAGMENTS,
    GENERATIONS, HALF_OPEN, HELD, METRICS, NODES, OUTSIDE, POLICY, PREFIXES, QUOTAS, SERVICES, SVID_PENDING,
    UPLINKS,
};
use crate::slots::{Found, find, search, touch};

/// The maps of this object.
pub(crate) struct Maps;

/// Bits of an address.
const ADDRESS_BITS: u32 = 128;

impl State for Maps {
    type Entry<'a> = &'a mut ConnectionEntry;

    #[inline(always)]
    fn setting(&self, setting: Setting) -> u64 {
        CONFIG.get(setting as u32).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        let key = address.to_slot();
        let [first, last] = key.words;
        find(&ADDRESSES, &key, |home, reach| search_addresses(first, last, home, reach))
            .map(|found| AddressEntry::from_slot(found.value()))
    }

    #[inline(always)]
    fn prefix(&self, address: &Address) -> Option<AddressEntry> {
        PREFIXES.get(&Key::new(ADDRESS_BITS, *address)).copied()
    }

    #[inline(always)]
    fn endpoint(&self, address: &Address) -> Option<EndpointEntry> {
        // SAFETY: copied at once, see above; the same for all below.
        unsafe { ENDPOINTS.get(address) }.copied()
    }

    #[inline(always)]
    fn ruling(&self, key: &PolicyKey, [certain, any]: [u32; 2]) -> Ruling {
        let key = (*key, PolicyKey::FULL_BITS).to_slot();
        Ruling::from_word(rule(key.tail, key.words[0], certain, any))
    }

    #[inline(always)]
    fn policy(&self, key: &PolicyKey, classes: u32) -> Option<PolicyEntry> {
        longest(&(*key, PolicyKey::FULL_BITS).to_slot(), classes, find_policy)
            .map(|found| PolicyEntry::from_slot(found.value()))
    }

    #[inline(always)]
    fn node(&self, node: NodeNumber) -> Option<NodeEntry> {
        let key = node.to_slot();
        find(&NODES, &key, |home, reach| search_nodes(key.tail, home, reach))
            .map(|found| NodeEntry::from_slot(found.value()))
    }

    #[inline(always)]
    fn foresee(&self, key: &AuthKey) {
        touch(&AUTH, &key.to_slot());
    }

    #[inline(always)]
    fn auth(&self, key: &AuthKey) -> Option<AuthEntry> {
        let key = key.to_slot();
        find(&AUTH, &key, |home, reach| search_auth(key.tail, key.words[0], home, reach))
            .map(|found| AuthEntry::from_slot(found.value()))
    }

    #[inline(always)]
    fn generation(&self, slot: u32) -> u32 {
        GENERATIONS.get(slot).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn established(&self, key: &ConnectionKey) -> Option<&mut ConnectionEntry> {
        // SAFETY: the map's memory stays valid while the program runs. Another CPU may write the same entry;
        // whole words make that a lost count at worst.
        CONNECTIONS.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
    }

    #[inline(always)]
    fn half_open(&self, key: &ConnectionKey) -> Option<&mut ConnectionEntry> {
        // SAFETY: as above. An entry that is evicted meanwhile is written to in vain.
        HALF_OPEN.get_ptr_mut(key).map(|entry| unsafe { &mut *entry })
    }

    #[inline(always)]
    fn open(&self, key: &ConnectionKey, entry: &ConnectionEntry) -> bool {
        HALF_OPEN.insert(key, entry, u64::from(BPF_ANY)).is_ok()
    }

    #[inline(always)]
    fn establish(&self, key: &ConnectionKey, entry: &ConnectionEntry) {
        if QUOTAS.get_ptr_mut(entry.ifindex).is_none() {
            // Another CPU may have been faster.
            let _there = QUOTAS.insert(entry.ifindex, QuotaEntry::default(), u64::from(BPF_NOEXIST));
        }
        let Some(quota) = QUOTAS.get_ptr_mut(entry.ifindex) else { return };
        // SAFETY: as above. A count that two CPUs lose, user space finds again.
        let quota = unsafe { &mut *quota };
        if quota.established >= CONNECTION_QUOTA {
            return;
        }
        if CONNECTIONS.insert(key, entry, u64::from(BPF_ANY)).is_ok() {
            quota.established = quota.established.wrapping_add(1);
            // It may have been evicted already.
            let _gone = HALF_OPEN.remove(key);
        }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry> {
        // SAFETY: copied at once.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn lead(&self, key: &FragmentKey, entry: &FragmentEntry) {
        // Without it, those that follow drop.
        let _room = FRAGMENTS.insert(key, entry, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry> {
        // SAFETY: copied at once; the same for those below.
        unsafe { SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn backend(&self, key: &BackendKey) -> Option<BackendEntry> {
        // SAFETY: as above.
        unsafe { BACKENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        // SAFETY: as above.
        unsafe { AFFINITIES.get(key) }.copied()
    }

    #[inline(always)]
    fn stick(&self, key: &AffinityKey, entry: &AffinityEntry) {
        // Without it, the client's next connection chooses again, and mostly the same.
        let _room = AFFINITIES.insert(key, entry, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn is_uplink(&self, ifindex: u32) -> bool {
        // SAFETY: whether it is there is all that is looked at.
        unsafe { UPLINKS.get(ifindex) }.is_some()
    }

    #[inline(always)]
    fn outside(&self, key: &OutsideKey) -> Option<OutsideEntry> {
        // SAFETY: copied at once.
        unsafe { OUTSIDE.get(key) }.copied()
    }

    #[inline(always)]
    fn forward_outside(&self, key: &OutsideKey, entry: &OutsideEntry) -> bool {
        OUTSIDE.insert(key, entry, u64::from(BPF_ANY)).is_ok()
    }

    /// Jiffies cost next to nothing and the clock as much as a lookup, but jiffies stop in suspend: so the
    /// clock is read once a tick.
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper has no preconditions.
        let jiffies = unsafe { bpf_jiffies64() };
        // An array has all its entries; without, everything would have expired.
        let Some(clock) = CLOCK.get_ptr_mut(0) else { return u64::MAX };
        // SAFETY: this CPU's own, and no other program of this object runs on it before this one has ended.
        let clock = unsafe { &mut *clock };
        if clock.jiffies != jiffies {
            // SAFETY: as above.
            clock.boot_time = unsafe { bpf_ktime_get_boot_ns() };
            clock.jiffies = jiffies;
        }
        clock.boot_time
    }

    #[inline(always)]
    fn report(&self, event: &Event) {
        if EVENTS.output(event, 0).is_err() {
            self.count(metric::LOST_EVENTS, 0);
        }
    }

    #[inline(always)]
    fn count(&self, index: u32, length: u32) {
        if let Some(counter) = METRICS.get_ptr_mut(index) {
            // SAFETY: this CPU's own counter; a program on it isn't interrupted by another one here that
            // counts at the same place, save for a lost increment.
            let counter = unsafe { &mut *counter };
            counter.packets = counter.packets.wrapping_add(1);
            counter.bytes = counter.bytes.wrapping_add(u64::from(length));
        }
    }

    #[inline(always)]
    fn held(&self, token: u16) -> Option<Held> {
        HELD.get(u32::from(token)).copied()
    }

    #[inline(always)]
    fn hold(&self, token: u16, held: &Held) {
        if let Some(place) = HELD.get_ptr_mut(u32::from(token)) {
            // SAFETY: the map's memory stays valid while the program runs; a token is one packet's, which is
            // in one place at a time.
            unsafe { *place = *held };
        }
    }

    #[inline(always)]
    fn is_svid_pending(&self, identity: u32) -> bool {
        // SAFETY: whether it is there is all that is looked at.
        unsafe { SVID_PENDING.get(identity) }.is_some()
    }

    #[inline(always)]
    fn credit(&self, place: u32, change: u64) -> u64 {
        let Some(place) = CREDITS.get_ptr_mut(place) else { return u64::MAX / 2 };
        // SAFETY: the map's memory stays valid while the program runs, is aligned to eight bytes, and other
        // CPUs change it by the same instruction only.
        unsafe { fetch_add(place, change) }
    }
}

/// What policy says about packets under a key ([`Ruling`]): a function of its own, and global, since packets
/// come to it in many ways, and may have to ask again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rule(tail: u64, word: u64, certain: u32, any: u32) -> u64 {
    let whole = SlotKey { tail, words: [word] };
    let with_identity = longest(&whole, certain, find_policy);
    let any_identity = longest(&whole.for_any_identity(), any, find_policy);
    // Not before: it would be much to keep on the stack meanwhile. The verifier wants words where there are none.
    let words = [with_identity, any_identity].map(|found| found.map_or([0; 2], Found::value));
    let [with, any] = words.map(PolicyEntry::from_slot);
    Ruling::between(with_identity.map(|_| with), any_identity.map(|_| any)).word()
}

#[inline(always)]
fn find_policy(whole: &SlotKey<1>, length: u32) -> Option<Found<1>> {
    let key = whole.shortened(length);
    find(&POLICY, &key, |home, reach| search_policy(key.tail, key.words[0], home, reach))
}

// Searches beyond a key's home, which few lookups need: functions of their own, and global, so that the
// verifier looks at each once.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_addresses(first: u64, last: u64, home: u32, reach: u32) -> u32 {
    search(&ADDRESSES, &SlotKey { tail: 0, words: [first, last] }, home, reach)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_policy(tail: u64, word: u64, home: u32, reach: u32) -> u32 {
    search(&POLICY, &SlotKey { tail, words: [word] }, home, reach)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_nodes(tail: u64, home: u32, reach: u32) -> u32 {
    search(&NODES, &SlotKey { tail, words: [0] }, home, reach)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_auth(tail: u64, word: u64, home: u32, reach: u32) -> u32 {
    search(&AUTH, &SlotKey { tail, words: [word] }, home, reach)
}

/// The target has no compare-and-swap in the library's eyes, so no atomic type has this. Needs Linux 5.12.
///
/// # Safety
/// `place` is valid and aligned, and everybody who writes there meanwhile does it atomically.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn fetch_add(place: *mut u64, change: u64) -> u64 {
    let mut value = change;
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!(
            "{value} = atomic_fetch_add((u64 *)({place} + 0), {value})",
            value = inout(reg) value,
            place = in(reg) place,
        );
    }
    value
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn fetch_add(place: *mut u64, change: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: the caller's.
    unsafe { AtomicU64::from_ptr(place) }.fetch_add(change, Ordering::Relaxed)
}
