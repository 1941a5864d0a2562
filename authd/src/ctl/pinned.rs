//! What the kernel's pinned maps say when no daemon does: they hold numbers, no names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use auth_ebpf::{Attachment, Maps};
use auth_ebpf_abi::{self as abi, Address, AuthKey, EndpointEntry, Hook, NodeEntry, NodeNumber, Setting};

use super::{cli::Global, error::Error, output::Output, time::Clock};
use crate::api::v1;

/// The part of the maps that authctl shows, read once.
#[derive(Clone, Debug, Default)]
pub(super) struct Pinned {
    pub(super) settings: BTreeMap<Setting, u64>,
    pub(super) endpoints: Vec<(Address, EndpointEntry)>,
    pub(super) nodes: BTreeMap<NodeNumber, NodeEntry>,
    pub(super) auth: BTreeMap<AuthKey, abi::AuthEntry>,
    /// Interfaces to which both programs of a pod are attached.
    pub(super) attached: BTreeSet<u32>,
}

/// The settings that the status shows.
const SHOWN: [Setting; 6] = [
    Setting::PolicyMode,
    Setting::EncryptionMode,
    Setting::PolicyOffUntil,
    Setting::EncryptionOffUntil,
    Setting::WireguardIfindex,
    Setting::WireguardPort,
];

/// Opens the maps that the daemon has pinned.
pub(super) fn open(pin_dir: &Path) -> Result<Maps, Error> {
    Maps::open_pinned(pin_dir).map_err(Error::from)
}

/// The maps in place of a daemon that does not answer with `error`, which is said ahead of a table. Any
/// other error stays.
pub(super) fn instead_of(error: Error, global: &Global, output: &mut Output<'_>) -> Result<Pinned, Error> {
    if !error.is_daemon_dead() {
        return Err(error);
    }
    match Pinned::read(&global.pin_dir) {
        Ok(pinned) => {
            output.header(&format!("{error}"))?;
            output.header(&format!(
                "what follows is read from the maps pinned in {}",
                global.pin_dir.display()
            ))?;
            Ok(pinned)
        }
        Err(maps) => Err(Error::NothingThere { daemon: Box::new(error), maps: Box::new(maps) }),
    }
}

impl Pinned {
    /// Reads the maps pinned under `pin_dir`.
    pub(super) fn read(pin_dir: &Path) -> Result<Self, Error> {
        let maps = open(pin_dir)?;
        let mut settings = BTreeMap::new();
        for setting in SHOWN {
            settings.insert(setting, maps.config().get(setting)?);
        }
        Ok(Self {
            settings,
            endpoints: maps.endpoints().entries()?,
            nodes: maps.nodes().entries()?.into_iter().filter(|(number, _)| *number != 0).collect(),
            auth: maps.auth().entries()?.into_iter().collect(),
            attached: attached(&auth_ebpf::attachments(pin_dir)?),
        })
    }

    /// The node's status, as far as the maps know it.
    pub(super) fn status(&self, clock: &Clock, interface: impl Fn(u32) -> Option<String>) -> v1::Status {
        v1::Status {
            policy: Some(self.guard(Setting::PolicyMode, Setting::PolicyOffUntil, clock)),
            encryption: Some(self.guard(Setting::EncryptionMode, Setting::EncryptionOffUntil, clock)),
            tunnel: self.tunnel(&interface),
            endpoints: self.endpoints(&interface),
            nodes: self.nodes.iter().map(|(number, entry)| node(*number, *entry, clock)).collect(),
            auth_entries: u32::try_from(self.auth.len()).unwrap_or(u32::MAX),
            ..v1::Status::default()
        }
    }

    /// The authentications, as far as the maps know them.
    pub(super) fn auth_entries(&self, clock: &Clock) -> Vec<v1::AuthEntry> {
        self.auth.iter().map(|(key, entry)| self.auth_entry(key, *entry, clock)).collect()
    }

    /// Removes the authentications from the maps; how many there were.
    pub(super) fn flush_auth(&self, pin_dir: &Path) -> Result<u32, Error> {
        let maps = open(pin_dir)?;
        let mut flushed = 0;
        for key in self.auth.keys() {
            flushed += u32::from(maps.auth().remove(key)?);
        }
        Ok(flushed)
    }

    fn auth_entry(&self, key: &AuthKey, entry: abi::AuthEntry, clock: &Clock) -> v1::AuthEntry {
        // As the programs decide it: a node vouches under its present session epoch only.
        let vouched =
            key.node == 0 || self.nodes.get(&key.node).is_some_and(|node| node.epoch == entry.epoch);
        v1::AuthEntry {
            local_identity: key.local,
            remote_identity: key.remote,
            remote_node: key.node.into(),
            auth_type: key.auth_type.into(),
            expires: clock.wall_time(entry.expires).map(Into::into),
            valid: vouched && clock.boot_nanos < entry.expires,
            epoch: entry.epoch,
            draining: entry.flags & abi::AuthFlags::DRAINING != 0,
            ..v1::AuthEntry::default()
        }
    }

    fn setting(&self, setting: Setting) -> u64 {
        self.settings.get(&setting).copied().unwrap_or(0)
    }

    fn guard(&self, mode: Setting, off_until: Setting, clock: &Clock) -> v1::GuardState {
        guard(self.setting(mode), self.setting(off_until), clock)
    }

    fn tunnel(&self, interface: &impl Fn(u32) -> Option<String>) -> Option<v1::Tunnel> {
        let index =
            u32::try_from(self.setting(Setting::WireguardIfindex)).ok().filter(|index| *index != 0)?;
        let name = interface(index);
        Some(v1::Tunnel {
            reachable: name.is_some(),
            interface: name.unwrap_or_else(|| format!("interface {index}")),
            listen_port: u32::try_from(self.setting(Setting::WireguardPort)).unwrap_or(0),
            ..v1::Tunnel::default()
        })
    }

    fn endpoints(&self, interface: &impl Fn(u32) -> Option<String>) -> Vec<v1::Endpoint> {
        let mut by_interface: BTreeMap<(u32, u32), (Vec<String>, bool)> = BTreeMap::new();
        for (address, entry) in &self.endpoints {
            let (addresses, direct) = by_interface.entry((entry.identity, entry.ifindex)).or_default();
            addresses.push(address.to_ip().to_string());
            *direct |= entry.direct_mtu != 0;
        }
        by_interface
            .into_iter()
            .map(|((identity, ifindex), (mut addresses, direct))| {
                addresses.sort();
                v1::Endpoint {
                    addresses,
                    identity,
                    attached: self.attached.contains(&ifindex),
                    direct,
                    interface: interface(ifindex).unwrap_or_default(),
                    ..v1::Endpoint::default()
                }
            })
            .collect()
    }
}

/// A guard's state by the two numbers in the `config` map.
pub(super) fn guard(mode: u64, off_until: u64, clock: &Clock) -> v1::GuardState {
    let off = off_until > clock.boot_nanos;
    v1::GuardState {
        mode: v1::Mode::from(abi::Mode::from_number(mode)).into(),
        off_until: off.then(|| clock.wall_time(off_until)).flatten().map(Into::into),
    }
}

fn attached(attachments: &[Attachment]) -> BTreeSet<u32> {
    let at = |hook| attachments.iter().filter(move |it| it.hook == hook).map(|it| it.ifindex);
    let to_pod: BTreeSet<u32> = at(Hook::ToPod).collect();
    at(Hook::FromPod).filter(|ifindex| to_pod.contains(ifindex)).collect()
}

/// The name of an interface of this network namespace.
pub(super) fn interface_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

fn node(number: NodeNumber, entry: NodeEntry, clock: &Clock) -> v1::Node {
    v1::Node {
        number: number.into(),
        live: clock.boot_nanos < entry.expires,
        expires: clock.wall_time(entry.expires).map(Into::into),
        ..v1::Node::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::{
        fixture::{NOW, golden},
        output::{Origin, Sourced, json},
    };

    const SECOND: u64 = 1_000_000_000;
    const CLOCK: Clock = Clock { wall: NOW, boot_nanos: 10_000 * SECOND };

    fn pinned() -> Pinned {
        let endpoint = |identity, ifindex| EndpointEntry { identity, ifindex, ..EndpointEntry::default() };
        let auth = |local, remote, node| AuthKey { local, remote, node, auth_type: 1, pad: 0 };
        let entry = |seconds, epoch| abi::AuthEntry { expires: seconds * SECOND, epoch, flags: 0 };
        Pinned {
            settings: BTreeMap::from([
                (Setting::PolicyMode, abi::Mode::Enforce as u64),
                (Setting::EncryptionMode, abi::Mode::Observe as u64),
                (Setting::PolicyOffUntil, 10_600 * SECOND),
                (Setting::EncryptionOffUntil, 9_000 * SECOND),
                (Setting::WireguardIfindex, 7),
                (Setting::WireguardPort, 51871),
            ]),
            endpoints: vec![
                (Address::from_v4([10, 1, 1, 10]), endpoint(256, 3)),
                (Address([0xfd, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]), endpoint(256, 3)),
                (Address::from_v4([10, 1, 1, 11]), endpoint(258, 99)),
            ],
            nodes: BTreeMap::from([
                (2, NodeEntry { expires: 12_400 * SECOND, epoch: 4, acknowledged: 0 }),
                (3, NodeEntry { expires: 9_990 * SECOND, epoch: 1, acknowledged: 0 }),
            ]),
            auth: BTreeMap::from([
                (auth(256, 257, 2), entry(11_000, 4)),
                (auth(256, 258, 2), entry(11_000, 3)),
                (auth(256, 259, 0), entry(11_000, 0)),
                (auth(256, 260, 2), entry(9_999, 4)),
                (auth(256, 261, 8), entry(11_000, 0)),
            ]),
            attached: BTreeSet::from([3]),
        }
    }

    fn interface(index: u32) -> Option<String> {
        (index < 10).then(|| format!("if{index}"))
    }

    #[test]
    fn the_status_reads_like_this() {
        let status = pinned().status(&CLOCK, interface);
        golden("status-pinned.txt", &crate::ctl::status::table(&status, NOW));
        golden("status-pinned.json", &json(&Sourced { source: Origin::PinnedMaps, body: status }).unwrap());
    }

    #[test]
    fn authentications_count_as_the_programs_count_them() {
        let entries = pinned().auth_entries(&CLOCK);
        let valid = |remote| entries.iter().find(|entry| entry.remote_identity == remote).unwrap().valid;
        assert!(valid(257), "the node's epoch");
        assert!(!valid(258), "an older epoch");
        assert!(valid(259), "this node needs no session");
        assert!(!valid(260), "expired");
        assert!(!valid(261), "a node that has no session");
    }

    #[test]
    fn a_pod_is_attached_in_both_directions() {
        let at = |hook, ifindex| Attachment { hook, interface: String::new(), ifindex, at_head: true };
        let attachments =
            [at(Hook::FromPod, 3), at(Hook::ToPod, 3), at(Hook::FromPod, 4), at(Hook::ToPod, 5)];
        assert_eq!(attached(&attachments), BTreeSet::from([3]));
    }

    #[test]
    fn a_mode_that_is_no_mode_enforces() {
        let state = guard(77, 0, &CLOCK);
        assert_eq!(state.mode(), v1::Mode::Enforce);
        assert_eq!(state.off_until, None);
    }

    #[test]
    fn an_override_ends_when_its_time_has_come() {
        assert!(guard(2, CLOCK.boot_nanos + 1, &CLOCK).off_until.is_some());
        assert!(guard(2, CLOCK.boot_nanos, &CLOCK).off_until.is_none());
    }

    #[test]
    fn empty_maps_are_a_status_too() {
        let status = Pinned::default().status(&CLOCK, interface);
        assert_eq!(status.tunnel, None);
        assert_eq!(status.policy.unwrap().mode(), v1::Mode::Enforce);
    }
}
