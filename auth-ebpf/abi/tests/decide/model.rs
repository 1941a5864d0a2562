//! The decision against a model: a list of objections in the order in which the design names them, made
//! without regard to speed or to modes. The modes then pick the first objection that is enforced.

use auth_ebpf_abi::packet::{protocol, tcp as flags};
use auth_ebpf_abi::{
    Address, AddressFlags, AuthType, Direction, DropReason, Hook, Mode, NodeEntry, PolicyEntry, PolicyKey,
    Setting, State, Verdict, identity,
};
use proptest::prelude::*;

use super::frames::{Parts, icmp, tcp, udp};
use super::scene::*;
use super::tables::Tables;

/// In this model's lists: it lacks an authentication for which it can wait.
const WAITS: DropReason = DropReason::HoldFull;
/// The other node has not heard of its address, which it can wait for too.
const WAITS_TO_BE_ANNOUNCED: DropReason = DropReason::HoldTimeout;

/// Who has an address, in the model's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Pod {
        identity: u32,
        node: u16,
    },
    ThisNode,
    OtherNode(u16),
    /// What stands for the world at this node.
    Outside,
    /// The same at another.
    OutsideOf(u16),
    Range,
    World,
}

fn owner(tables: &Tables, address: Address) -> Owner {
    let entry = tables.addresses.get(&address).copied().or_else(|| tables.prefix(&address));
    if address == OUTSIDE {
        return Owner::Outside;
    }
    match entry {
        None => Owner::World,
        Some(entry) if entry.identity == identity::WORLD && entry.node != 0 => Owner::OutsideOf(entry.node),
        Some(entry) if entry.flags == AddressFlags::CLUSTER_RANGE => Owner::Range,
        Some(entry) if entry.identity == identity::HOST => Owner::ThisNode,
        Some(entry) if entry.identity >= 256 => Owner::Pod { identity: entry.identity, node: entry.node },
        Some(entry) if entry.node != 0 => Owner::OtherNode(entry.node),
        Some(_) => Owner::World,
    }
}

fn number(owner: Owner) -> u32 {
    match owner {
        Owner::Pod { identity, .. } => identity,
        Owner::ThisNode => identity::HOST,
        Owner::OtherNode(_) => identity::REMOTE_NODE,
        Owner::Range | Owner::Outside => identity::UNKNOWN,
        Owner::World | Owner::OutsideOf(_) => identity::WORLD,
    }
}

/// Everything that speaks against a packet of this shape, in order.
fn objections(tables: &Tables, hook: Hook, ingress: u32, parts: &Parts) -> Vec<DropReason> {
    let (source, destination) = (owner(tables, parts.source), owner(tables, parts.destination));
    let here = |address| tables.endpoints.get(&address).filter(|endpoint| endpoint.ifindex == HERE_IFINDEX);
    let mut against = vec![];
    match hook {
        Hook::FromPod => {
            let Some(local) = here(parts.source) else { return vec![DropReason::Spoofed] };
            if matches!(destination, Owner::Range | Owner::Outside | Owner::OutsideOf(_)) {
                return vec![DropReason::UnknownDestination];
            }
            let node = matches!(destination, Owner::ThisNode | Owner::OtherNode(_));
            if node && is_port(parts, WIREGUARD_PORT, HANDSHAKE_PORT, false) {
                against.push(DropReason::ReservedPort);
            }
            if matches!(destination, Owner::Pod { node: 0, .. })
                && !tables.endpoints.contains_key(&parts.destination)
            {
                against.push(DropReason::NoEndpoint);
            }
            against.extend(between(tables, Direction::Egress, local.identity, destination));
        }
        Hook::ToPod => {
            let Some(local) = here(parts.destination) else { return vec![DropReason::NoEndpoint] };
            if matches!(source, Owner::Range | Owner::Outside) {
                return vec![DropReason::UnknownSource];
            }
            let mut remote = source;
            match (source, tables.endpoints.get(&parts.source)) {
                (_, Some(sender)) if sender.ifindex != ingress => against.push(DropReason::Spoofed),
                (Owner::Pod { node: 0, .. }, None) => against.push(DropReason::NoEndpoint),
                (Owner::Pod { node, .. } | Owner::OtherNode(node) | Owner::OutsideOf(node), _)
                    if node != 0 && ingress != WIREGUARD_IFINDEX =>
                {
                    against.push(DropReason::Unencrypted);
                    if !matches!(source, Owner::Pod { .. }) {
                        remote = Owner::World;
                    }
                }
                (Owner::ThisNode, _) if ingress == 0 => return against,
                (Owner::ThisNode, _) => remote = Owner::World,
                _ => {}
            }
            against.extend(between(tables, Direction::Ingress, local.identity, remote));
        }
        Hook::FromWireguard => match source {
            Owner::Pod { node: 0, .. } | Owner::ThisNode | Owner::Outside | Owner::Range | Owner::World => {
                against.push(DropReason::UnknownSource);
            }
            _ if tables.endpoints.contains_key(&parts.destination) => {}
            // There is nothing that it could answer to.
            _ if destination == Owner::Outside => against.push(DropReason::UnknownDestination),
            _ if destination == Owner::ThisNode => {}
            _ => against.push(DropReason::NoEndpoint),
        },
        Hook::ToWireguard => match (source, tables.endpoints.get(&parts.source)) {
            (_, Some(endpoint)) if endpoint.ifindex == ingress => {}
            (Owner::ThisNode, None) if ingress == 0 => {}
            (Owner::ThisNode, None)
                if ingress == UPLINK_IFINDEX
                    && matches!(destination, Owner::Pod { node: 1.., .. } | Owner::OtherNode(_)) => {}
            (Owner::ThisNode, None) => against.push(DropReason::Masqueraded),
            _ => against.push(DropReason::Spoofed),
        },
        Hook::FromUplink => {
            let bootstrap = matches!(source, Owner::OtherNode(_)) && destination == Owner::ThisNode;
            let bootstrap = bootstrap && is_port(parts, WIREGUARD_PORT, HANDSHAKE_PORT, true);
            if source == Owner::ThisNode {
                against.push(DropReason::Spoofed);
            } else if !bootstrap && source != Owner::World {
                against.push(DropReason::Unencrypted);
            }
        }
        Hook::FromHold | Hook::ToHold => against.push(DropReason::NotHeld),
        Hook::ToUplink => {
            let bootstrap =
                source == Owner::ThisNode && matches!(destination, Owner::OtherNode(_)) && ingress == 0;
            let bootstrap = bootstrap && is_port(parts, WIREGUARD_PORT, HANDSHAKE_PORT, true);
            if !bootstrap && !matches!(destination, Owner::World | Owner::ThisNode) {
                against.push(DropReason::Unencrypted);
            }
        }
    }
    against
}

fn is_port(parts: &Parts, over_udp: u16, over_tcp: u16, source_too: bool) -> bool {
    let port = |at: usize| u16::from_be_bytes([parts.payload[at], parts.payload[at + 1]]);
    let is = |wanted| port(2) == wanted || (source_too && port(0) == wanted);
    match parts.protocol {
        protocol::UDP => is(over_udp),
        protocol::TCP => is(over_tcp),
        _ => false,
    }
}

/// Policy, authentication, encryption; there are no connections in this model.
fn between(tables: &Tables, direction: Direction, local: u32, remote: Owner) -> Vec<DropReason> {
    let mut against = vec![];
    let rules: Vec<&PolicyEntry> = [number(remote), 0]
        .iter()
        .filter_map(|remote| {
            let key =
                PolicyKey { local, remote: *remote, direction: direction as u8, ..PolicyKey::default() };
            tables.policy.get(&(key, PolicyKey::prefix_len(None)))
        })
        .collect();
    // All entries here have one specificity: the larger precedence wins, then the identity.
    let best = rules.iter().rev().max_by_key(|rule| rule.precedence);
    let mut auth_type = 0;
    match best {
        None => against.push(DropReason::PolicyDenied),
        Some(rule) if rule.deny == 1 => against.push(DropReason::PolicyDeny),
        Some(rule) => {
            let equal = rules.iter().filter(|other| other.precedence == rule.precedence);
            let derived = equal.map(|other| other.auth_type).max().unwrap_or(0);
            auth_type = if rule.auth_explicit == 1 { rule.auth_type } else { derived };
        }
    }
    let node = match remote {
        Owner::Pod { node, .. } | Owner::OtherNode(node) | Owner::OutsideOf(node) => node,
        _ => 0,
    };
    let session = tables.nodes.get(&node).copied();
    let proven = tables.auth.iter().any(|(key, entry)| {
        (key.local, key.remote, key.node, key.auth_type) == (local, number(remote), node, 1)
            && entry.expires > NOW
            && (node == 0 || session.is_some_and(|session| session.epoch == entry.epoch))
    });
    let holding = tables.setting(Setting::HoldIfindex) != 0;
    let unannounced = direction == Direction::Egress
        && matches!(remote, Owner::Pod { .. })
        && session.is_some_and(|session| session.acknowledged < 1);
    match auth_type {
        _ if unannounced && holding => against.push(WAITS_TO_BE_ANNOUNCED),
        _ if unannounced => against.push(DropReason::AddressUnannounced),
        0 => {}
        _ if number(remote) < 256 => against.push(DropReason::AuthImpossible),
        1 if proven => {}
        1 if holding => against.push(WAITS),
        _ => against.push(DropReason::AuthRequired),
    }
    let live = session.is_some_and(|session| session.expires > NOW)
        && tables.setting(Setting::WireguardIfindex) != 0;
    if matches!(remote, Owner::Pod { .. }) && node != 0 && !live {
        against.push(DropReason::NoNodeSession);
    }
    against
}

fn expected(tables: &Tables, hook: Hook, against: &[DropReason]) -> (Verdict, Option<DropReason>) {
    let enforced = |reason: &DropReason| {
        let encryption = matches!(reason, DropReason::Unencrypted | DropReason::NoNodeSession)
            || matches!(hook, Hook::FromUplink | Hook::ToUplink);
        if *reason == DropReason::NotHeld {
            return true;
        }
        let mode = if encryption { Setting::EncryptionMode } else { Setting::PolicyMode };
        tables.setting(mode) != Mode::Observe as u64
    };
    match (against.iter().copied().find(|reason| enforced(reason)), against.first()) {
        (Some(WAITS | WAITS_TO_BE_ANNOUNCED), _) => HELD,
        (None, Some(&WAITS_TO_BE_ANNOUNCED)) => audits(DropReason::AddressUnannounced),
        (None, Some(&WAITS)) => audits(DropReason::AuthRequired),
        (Some(reason), _) => drops(reason),
        (None, Some(reason)) => audits(*reason),
        (None, None) => PASSES,
    }
}

fn addresses() -> impl Strategy<Value = Address> {
    prop::sample::select(vec![
        HOST,
        OTHER_NODE,
        HERE,
        HERE,
        NEIGHBOUR,
        THERE,
        THERE,
        NOBODY,
        WORLD,
        OUTSIDE,
        OUTSIDE_THERE,
    ])
}

fn ports() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![1, 80, WIREGUARD_PORT, HANDSHAKE_PORT])
}

fn packets() -> impl Strategy<Value = Parts> {
    (addresses(), ports(), addresses(), ports(), 0..3).prop_map(|(source, from, destination, to, kind)| {
        match kind {
            0 => tcp((source, from), (destination, to), flags::SYN),
            1 => udp((source, from), (destination, to)),
            _ => icmp(source, destination, 8, from),
        }
    })
}

fn rules() -> impl Strategy<Value = PolicyEntry> {
    (1..4_u32, any::<bool>(), 0..3_u8, 0..2_u8).prop_map(|(precedence, deny, auth_type, auth_explicit)| {
        let precedence = if deny { PolicyEntry::DENY_PRECEDENCE } else { precedence };
        PolicyEntry { precedence, deny: u8::from(deny), auth_type, auth_explicit, ..PolicyEntry::default() }
    })
}

prop_compose! {
    fn worlds()(
        modes in prop::array::uniform2(prop::sample::select(vec![Mode::Observe, Mode::Enforce])),
        wireguard in prop::sample::select(vec![0, WIREGUARD_IFINDEX, WIREGUARD_IFINDEX]),
        session in prop::option::of((prop::sample::select(vec![NOW - 1, NOW, NOW + 1]), 6..8_u32, prop::sample::select(vec![0, 1, 1, 2]))),
        auth in prop::collection::vec(
            (prop::sample::select(vec![NEIGHBOUR_ID, THERE_ID]), any::<bool>(), 6..8_u32, prop::sample::select(vec![NOW, NOW + 1])), 0..3),
        policy in prop::collection::vec(
            (any::<bool>(), prop::sample::select(vec![0, 1, 2, 6, NEIGHBOUR_ID, THERE_ID]), rules()), 0..8),
        lost in any::<bool>(),
        holding in any::<bool>(),
    ) -> Tables {
        let mut tables = locked();
        if holding {
            hold(&mut tables);
        }
        tables.settings.insert(Setting::PolicyMode, modes[0] as u64);
        tables.settings.insert(Setting::EncryptionMode, modes[1] as u64);
        tables.settings.insert(Setting::WireguardIfindex, u64::from(wireguard));
        tables.nodes.clear();
        if let Some((expires, epoch, acknowledged)) = session {
            tables.nodes.insert(NODE, NodeEntry { expires, epoch, acknowledged });
        }
        for (remote, elsewhere, epoch, expires) in auth {
            authenticate(&mut tables, remote, if elsewhere { NODE } else { 0 }, epoch, expires);
        }
        for (ingress, remote, entry) in policy {
            let direction = if ingress { Direction::Ingress } else { Direction::Egress };
            let key = PolicyKey { local: HERE_ID, remote, direction: direction as u8, ..PolicyKey::default() };
            tables.policy.insert((key, PolicyKey::prefix_len(None)), entry);
        }
        if lost {
            tables.endpoints.remove(&NEIGHBOUR);
        }
        tables
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_decision_is_the_models(
        tables in worlds(),
        hook in prop::sample::select(Hook::ALL.to_vec()),
        ingress in prop::sample::select(vec![0, WIREGUARD_IFINDEX, HERE_IFINDEX, NEIGHBOUR_IFINDEX, UPLINK_IFINDEX]),
        parts in packets(),
    ) {
        // With no tunnel, nothing comes by it.
        let no_tunnel = tables.setting(Setting::WireguardIfindex) == 0;
        prop_assume!(!(no_tunnel && ingress == WIREGUARD_IFINDEX));
        let bytes = match hook {
            Hook::FromWireguard | Hook::ToWireguard => parts.ip(),
            _ => parts.ethernet(),
        };
        let against = objections(&tables, hook, ingress, &parts);
        prop_assert_eq!(run(&tables, context(hook, ingress), &bytes), expected(&tables, hook, &against));
    }
}

/// Auth types that no version knows fail, rather than pass.
#[test]
fn an_unknown_authentication_type_is_never_satisfied() {
    let mut tables = locked();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::AlwaysFail);
    for entry in tables.policy.values_mut() {
        entry.auth_type = 200;
    }
    let frame = udp((HERE, 1), (THERE, 2)).ethernet();
    assert_eq!(run(&tables, context(Hook::FromPod, HERE_IFINDEX), &frame), drops(DropReason::AuthRequired));
}
