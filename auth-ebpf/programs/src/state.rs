//! The decision's view of maps and helpers.
//!
//! Values are copied out of the maps at once: an entry can be replaced by user space while a program looks
//! at it, and a decision must not see two versions.

use auth_ebpf_abi::{
    Address, AddressEntry, AuthEntry, AuthKey, ConnectionEntry, ConnectionKey, EndpointEntry, Event, Held,
    NodeEntry, NodeNumber, PolicyEntry, PolicyKey, Setting, State, Tracked, metric,
};
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;

use crate::maps::{
    ADDRESSES, AUTH, CONFIG, CONNECTIONS, CREDITS, ENDPOINTS, EVENTS, HELD, METRICS, NODES, POLICY, PREFIXES,
};

/// The maps of this object.
pub(crate) struct Maps;

/// Bits of an address.
const ADDRESS_BITS: u32 = 128;

impl State for Maps {
    #[inline(always)]
    fn setting(&self, setting: Setting) -> u64 {
        CONFIG.get(setting as u32).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        // SAFETY: copied at once, see above; the same for all below.
        unsafe { ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn prefix(&self, address: &Address) -> Option<AddressEntry> {
        PREFIXES.get(&Key::new(ADDRESS_BITS, *address)).copied()
    }

    #[inline(always)]
    fn endpoint(&self, address: &Address) -> Option<EndpointEntry> {
        // SAFETY: as above.
        unsafe { ENDPOINTS.get(address) }.copied()
    }

    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        POLICY.get(&Key::new(PolicyKey::FULL_BITS, *key)).copied()
    }

    #[inline(always)]
    fn node(&self, node: NodeNumber) -> Option<NodeEntry> {
        // SAFETY: as above.
        unsafe { NODES.get(u32::from(node)) }.copied()
    }

    #[inline(always)]
    fn auth(&self, key: &AuthKey) -> Option<AuthEntry> {
        // SAFETY: as above.
        unsafe { AUTH.get(key) }.copied()
    }

    #[inline(always)]
    fn connection(&self, key: &ConnectionKey) -> Option<ConnectionEntry> {
        // SAFETY: as above.
        unsafe { CONNECTIONS.get(key) }.copied()
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper has no preconditions.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn track(&self, key: &ConnectionKey, entry: &ConnectionEntry, create: bool) -> Tracked {
        if let Some(known) = CONNECTIONS.get_ptr_mut(key) {
            // SAFETY: the map's memory stays valid while the program runs. Another CPU may write the same
            // entry; whole words make that a lost count at worst.
            let known = unsafe { &mut *known };
            known.last_seen = entry.last_seen;
            known.local_identity = entry.local_identity;
            known.remote_identity = entry.remote_identity;
            known.node = entry.node;
            known.auth_type = entry.auth_type;
            known.flags = entry.flags;
            known.packets = known.packets.wrapping_add(entry.packets);
            known.bytes = known.bytes.wrapping_add(entry.bytes);
            return Tracked::Known;
        }
        if !create {
            return Tracked::Absent;
        }
        match CONNECTIONS.insert(key, entry, u64::from(BPF_ANY)) {
            Ok(()) => Tracked::New,
            Err(_) => Tracked::Full,
        }
    }

    #[inline(always)]
    fn replied(&self, key: &ConnectionKey) {
        if let Some(known) = CONNECTIONS.get_ptr_mut(key) {
            // SAFETY: as in `track`.
            let known = unsafe { &mut *known };
            known.reply_packets = known.reply_packets.wrapping_add(1);
        }
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
    fn credit(&self, place: u32, change: u64) -> u64 {
        let Some(place) = CREDITS.get_ptr_mut(place) else { return u64::MAX / 2 };
        // SAFETY: the map's memory stays valid while the program runs, is aligned to eight bytes, and other
        // CPUs change it by the same instruction only.
        unsafe { fetch_add(place, change) }
    }
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
