//! Puts a scene into the kernel's maps.

use auth_ebpf::Maps;
use auth_ebpf_abi::{Setting, State, UplinkEntry};
use nix::time::{ClockId, clock_gettime};

use super::scene::NOW;
use super::tables::Tables;

pub(crate) const MINUTE: u64 = 60_000_000_000;

pub(crate) fn boot_time() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
    u64::try_from(time.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap()
}

/// Makes the scene's times true for this machine.
pub(crate) fn at_boot_time(tables: &mut Tables) {
    let now = boot_time();
    tables.now.set(now);
    for node in tables.nodes.values_mut() {
        node.expires = if node.expires > NOW { now + 60 * MINUTE } else { now.saturating_sub(1) };
    }
    for auth in tables.auth.values_mut() {
        auth.expires = if auth.expires > NOW { now + 60 * MINUTE } else { now.saturating_sub(1) };
    }
}

/// Puts the scene into the kernel.
pub(crate) fn fill(maps: &Maps, tables: &Tables) {
    for setting in [
        Setting::PolicyMode,
        Setting::EncryptionMode,
        Setting::PolicyOffUntil,
        Setting::EncryptionOffUntil,
        Setting::WireguardIfindex,
        Setting::WireguardPort,
        Setting::HandshakePort,
        Setting::HoldIfindex,
        Setting::HoldUntil,
        Setting::SameNodeEncryption,
        Setting::OutsideV4,
        Setting::OutsideV6First,
        Setting::OutsideV6Last,
    ] {
        maps.config().set(setting, tables.setting(setting)).unwrap();
    }
    // With the prefix lengths of their policies, as they look there.
    let endpoints =
        tables.endpoints.keys().filter_map(|address| Some((*address, tables.endpoint(address)?))).collect();
    maps.policy().reconcile(&tables.policy).unwrap();
    maps.endpoints().reconcile(&endpoints).unwrap();
    maps.addresses().reconcile(&tables.addresses).unwrap();
    maps.prefixes().reconcile(&tables.prefixes).unwrap();
    maps.nodes().reconcile(&tables.nodes).unwrap();
    maps.auth().reconcile(&tables.auth).unwrap();
    maps.svid_pending().reconcile(&tables.svid_pending).unwrap();
    maps.services().reconcile(&tables.services).unwrap();
    maps.backends().reconcile(&tables.backends).unwrap();
    maps.affinities().reconcile(&tables.affinities.borrow()).unwrap();
    maps.connections().reconcile(&tables.connections.borrow()).unwrap();
    maps.half_open().reconcile(&tables.half_open.borrow()).unwrap();
    maps.fragments().reconcile(&tables.fragments.borrow()).unwrap();
    let uplinks = tables.uplinks.iter().map(|index| (*index, UplinkEntry { uplink: 1 })).collect();
    maps.uplinks().reconcile(&uplinks).unwrap();
    maps.outside().reconcile(&tables.outside.borrow()).unwrap();
    maps.hold().give_back_all().unwrap();
}
