//! A small cluster: this node with two pods, another node with one, the world.

use auth_ebpf_abi::{
    Address, AddressEntry, AddressFlags, AuthEntry, AuthKey, AuthType, BackendEntry, BackendKey,
    ConnectionEntry, ConnectionKey, Context, Direction, DropReason, EndpointEntry, Hook, Mode, NodeEntry,
    PolicyEntry, PolicyKey, ServiceEntry, ServiceKey, Setting, Verdict, Workspace, decide, generation_slot,
    generation_slots, identity,
};

use auth_ebpf_abi::packet::{Fragment, protocol};

use super::tables::Tables;

pub(crate) const NOW: u64 = 1 << 50;

pub(crate) const HOST: Address = v4([192, 168, 0, 1]);
pub(crate) const OTHER_NODE: Address = v4([192, 168, 0, 2]);
pub(crate) const HERE: Address = v4([10, 0, 1, 10]);
pub(crate) const NEIGHBOUR: Address = v4([10, 0, 1, 11]);
pub(crate) const THERE: Address = v4([10, 0, 2, 20]);
pub(crate) const NOBODY: Address = v4([10, 0, 9, 9]);
pub(crate) const WORLD: Address = v4([203, 0, 113, 5]);
pub(crate) const HERE_V6: Address = v6(1, 0x10);
pub(crate) const THERE_V6: Address = v6(2, 0x20);
pub(crate) const HOST_V6: Address = v6(0, 1);
/// Under which this node and the other forward what comes from outside, and nobody's address among theirs.
pub(crate) const OUTSIDE: Address = v4([198, 18, 0, 1]);
pub(crate) const OUTSIDE_V6: Address = v6(0x18, 1);
pub(crate) const OUTSIDE_THERE: Address = v4([198, 18, 0, 2]);
pub(crate) const OUTSIDE_THERE_V6: Address = v6(0x18, 2);
pub(crate) const OUTSIDE_NOBODY: Address = v4([198, 18, 9, 9]);
pub(crate) const SERVICE: Address = v4([10, 96, 0, 1]);
pub(crate) const SERVICE_V6: Address = v6(0x96, 1);
pub(crate) const LINK_LOCAL: Address = Address([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
pub(crate) const ALL_NODES: Address = Address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

pub(crate) const HERE_ID: u32 = 300;
pub(crate) const NEIGHBOUR_ID: u32 = 301;
pub(crate) const THERE_ID: u32 = 400;
pub(crate) const NODE: u16 = 2;

/// `BPF_PROG_TEST_RUN` knows only the loopback device.
pub(crate) const HERE_IFINDEX: u32 = 1;
pub(crate) const NEIGHBOUR_IFINDEX: u32 = 12;
pub(crate) const WIREGUARD_IFINDEX: u32 = 5;
pub(crate) const UPLINK_IFINDEX: u32 = 3;
pub(crate) const HOLD_IFINDEX: u32 = 9;
pub(crate) const WIREGUARD_PORT: u16 = 51871;
pub(crate) const HANDSHAKE_PORT: u16 = 4250;

pub(crate) const fn v4(octets: [u8; 4]) -> Address {
    Address::from_v4(octets)
}

pub(crate) const fn v6(subnet: u8, host: u8) -> Address {
    Address([0xfd, 0, 0, 0, 0, 0, 0, subnet, 0, 0, 0, 0, 0, 0, 0, host])
}

/// The cluster, everybody allowed to talk with everybody.
pub(crate) fn cluster() -> Tables {
    let mut tables = Tables::default();
    tables.now.set(NOW);
    tables.settings.extend([
        (Setting::PolicyMode, Mode::Enforce as u64),
        (Setting::EncryptionMode, Mode::Enforce as u64),
        (Setting::WireguardIfindex, u64::from(WIREGUARD_IFINDEX)),
        (Setting::WireguardPort, u64::from(WIREGUARD_PORT)),
        (Setting::HandshakePort, u64::from(HANDSHAKE_PORT)),
    ]);
    for (address, identity, node) in [
        (HOST, identity::HOST, 0),
        (HOST_V6, identity::HOST, 0),
        (OTHER_NODE, identity::REMOTE_NODE, NODE),
        (HERE, HERE_ID, 0),
        (HERE_V6, HERE_ID, 0),
        (NEIGHBOUR, NEIGHBOUR_ID, 0),
        (THERE, THERE_ID, NODE),
        (THERE_V6, THERE_ID, NODE),
        (OUTSIDE_THERE, identity::WORLD, NODE),
        (OUTSIDE_THERE_V6, identity::WORLD, NODE),
    ] {
        tables.addresses.insert(address, AddressEntry { identity, node, flags: 0 });
    }
    let range = AddressEntry { identity: identity::UNKNOWN, node: 0, flags: AddressFlags::CLUSTER_RANGE };
    tables.prefixes.insert((v4([10, 0, 0, 0]), Address::V4_PREFIX_BITS + 16), range);
    tables.prefixes.insert((v6(0, 0), 32), range);
    tables.prefixes.insert((v4([198, 18, 0, 0]), Address::V4_PREFIX_BITS + 16), range);
    tables.settings.extend(Setting::outside(Some(OUTSIDE), Some(OUTSIDE_V6)));
    tables.uplinks.insert(UPLINK_IFINDEX);
    for (address, identity, ifindex) in [
        (HERE, HERE_ID, HERE_IFINDEX),
        (HERE_V6, HERE_ID, HERE_IFINDEX),
        (NEIGHBOUR, NEIGHBOUR_ID, NEIGHBOUR_IFINDEX),
    ] {
        tables
            .endpoints
            .insert(address, EndpointEntry { identity, ifindex, epoch: 1, ..EndpointEntry::default() });
    }
    tables.nodes.insert(NODE, NodeEntry { expires: NOW + (1 << 49), epoch: 7, acknowledged: 1 });
    for direction in [Direction::Ingress, Direction::Egress] {
        allow(&mut tables, HERE_ID, direction, identity::UNKNOWN, AuthType::Disabled);
        allow(&mut tables, NEIGHBOUR_ID, direction, identity::UNKNOWN, AuthType::Disabled);
    }
    tables
}

/// The same, but nobody is allowed anything.
pub(crate) fn locked() -> Tables {
    Tables { policy: Default::default(), ..cluster() }
}

/// Allows every protocol and port.
pub(crate) fn allow(tables: &mut Tables, local: u32, direction: Direction, remote: u32, auth_type: AuthType) {
    let key = PolicyKey { local, remote, direction: direction as u8, ..PolicyKey::default() };
    let entry =
        PolicyEntry { precedence: 1, cookie: 9, auth_type: auth_type as u8, ..PolicyEntry::default() };
    tables.policy.insert((key, PolicyKey::prefix_len(None)), entry);
}

pub(crate) fn service_key(address: Address, port: u16, protocol: u8) -> ServiceKey {
    ServiceKey { address, port: port.to_be_bytes(), protocol, pad: [0; 5] }
}

/// Gives a service's port these backends, over TCP, UDP and SCTP.
pub(crate) fn serve(
    tables: &mut Tables,
    address: Address,
    port: u16,
    set: u32,
    affinity: u32,
    backends: &[(Address, u16)],
) {
    let flagged = tables.addresses.entry(address).or_default();
    flagged.flags |= AddressFlags::SERVICE;
    set_backends(tables, set, backends);
    let count = u32::try_from(backends.len()).unwrap();
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        let entry = ServiceEntry { set, backends: count, affinity, pad: 0 };
        tables.services.insert(service_key(address, port, protocol), entry);
    }
}

fn set_backends(tables: &mut Tables, set: u32, backends: &[(Address, u16)]) {
    tables.backends.retain(|key, _| key.set != set);
    for (slot, (address, port)) in (0..).zip(backends) {
        let entry = BackendEntry { address: *address, port: port.to_be_bytes(), pad: [0; 6] };
        tables.backends.insert(BackendKey { set, slot }, entry);
    }
}

/// Has a daemon hold packets.
pub(crate) fn hold(tables: &mut Tables) {
    tables.settings.insert(Setting::HoldIfindex, u64::from(HOLD_IFINDEX));
    tables.settings.insert(Setting::HoldUntil, u64::MAX);
}

pub(crate) fn authenticate(tables: &mut Tables, remote: u32, node: u16, epoch: u32, expires: u64) {
    let key = AuthKey { local: HERE_ID, remote, node, auth_type: AuthType::Spire as u8, pad: 0 };
    tables.auth.insert(key, AuthEntry { expires, epoch, flags: 0 });
}

pub(crate) fn context(hook: Hook, ingress_ifindex: u32) -> Context {
    let ifindex = match hook {
        Hook::FromPod | Hook::ToPod => HERE_IFINDEX,
        Hook::FromWireguard | Hook::ToWireguard => WIREGUARD_IFINDEX,
        Hook::FromUplink | Hook::ToUplink => UPLINK_IFINDEX,
        Hook::FromHold | Hook::ToHold => HOLD_IFINDEX,
    };
    Context {
        hook,
        ifindex,
        ingress_ifindex,
        length: 0,
        tagged: false,
        tag: 0,
        segment: 0,
        held_since: 0,
        held_for: 0,
    }
}

/// What the decision says, with the reason that it counted.
pub(crate) fn run(tables: &Tables, context: Context, bytes: &[u8]) -> (Verdict, Option<DropReason>) {
    let context = Context { length: u32::try_from(bytes.len()).unwrap(), ..context };
    let before = tables.counters.borrow().clone();
    // Whatever the packet before has left there must not matter.
    let mut workspace = Workspace::default();
    workspace.packet.fragment = Fragment::Later;
    workspace.event.reply = 1;
    let verdict = decide(tables, bytes, &context, &mut workspace);
    let counters = tables.counters.borrow();
    let grown: Vec<u32> = counters
        .iter()
        .filter(|(index, counter)| before.get(index).copied().unwrap_or_default().packets != counter.packets)
        .map(|(index, _)| *index)
        .collect();
    let reason = [None]
        .into_iter()
        .chain(DropReason::ALL.iter().map(|reason| Some(*reason)))
        .find(|reason| grown == [auth_ebpf_abi::metric::index(context.hook, verdict, *reason)]);
    (verdict, reason.expect("exactly one counter grows, that of the verdict and its reason"))
}

pub(crate) const HELD: (Verdict, Option<DropReason>) = (Verdict::Held, None);
pub(crate) const PASSES: (Verdict, Option<DropReason>) = (Verdict::Forwarded, None);

pub(crate) const fn drops(reason: DropReason) -> (Verdict, Option<DropReason>) {
    (Verdict::Dropped, Some(reason))
}

pub(crate) const fn audits(reason: DropReason) -> (Verdict, Option<DropReason>) {
    (Verdict::Audit, Some(reason))
}

/// Every connection, wherever it stands.
pub(crate) fn connections(tables: &Tables) -> Vec<(ConnectionKey, ConnectionEntry)> {
    let half_open = tables.half_open.borrow();
    let established = tables.connections.borrow();
    established.iter().chain(half_open.iter()).map(|(key, entry)| (*key, *entry)).collect()
}

/// What user space does after a change that can touch connections of this pair; of a local identity and any, if the
/// remote one is 0.
pub(crate) fn reopen(tables: &mut Tables, local: u32, remote: u32) {
    let pair = generation_slot(local, remote);
    for slot in generation_slots(local).filter(|slot| remote == 0 || *slot == pair) {
        *tables.generations.entry(slot).or_default() += 1;
    }
}

/// The same after a change that can touch any.
pub(crate) fn reopen_all(tables: &mut Tables) {
    *tables.settings.entry(Setting::Generation).or_default() += 1;
}
