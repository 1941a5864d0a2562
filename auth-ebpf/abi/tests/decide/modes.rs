//! `observe`, and `off` for a while.

use auth_ebpf_abi::{
    AuthType, ConnectionEntry, Direction, DropReason, EventKind, Hook, Mode, Setting, Verdict,
};

use super::frames::{ack, syn, udp};
use super::scene::*;
use super::tables::Tables;

fn observe(mut tables: Tables, mode: Setting) -> Tables {
    tables.settings.insert(mode, Mode::Observe as u64);
    tables
}

fn sends(tables: &Tables, frame: &[u8]) -> (Verdict, Option<DropReason>) {
    run(tables, context(Hook::FromPod, HERE_IFINDEX), frame)
}

#[test]
fn an_empty_configuration_enforces() {
    let mut tables = locked();
    tables.settings.clear();
    let frame = syn((HERE, 1), (WORLD, 80)).ethernet();
    assert_eq!(sends(&tables, &frame), drops(DropReason::PolicyDenied));
    tables.settings.insert(Setting::PolicyMode, 77);
    assert_eq!(sends(&tables, &frame), drops(DropReason::PolicyDenied));
}

#[test]
fn observed_policy_passes_and_is_counted() {
    let tables = observe(locked(), Setting::PolicyMode);
    assert_eq!(sends(&tables, &syn((HERE, 1), (WORLD, 80)).ethernet()), audits(DropReason::PolicyDenied));
    assert_eq!(sends(&tables, &syn((WORLD, 1), (WORLD, 80)).ethernet()), audits(DropReason::Spoofed));
    assert_eq!(
        sends(&tables, &syn((HERE, 1), (NOBODY, 80)).ethernet()),
        audits(DropReason::UnknownDestination)
    );
    assert_eq!(sends(&tables, &[0; 60]), audits(DropReason::UnsupportedL3));
    assert_eq!(tables.events.borrow().len(), 4);
}

#[test]
fn authentication_is_wanted_in_observe_too() {
    let mut tables = observe(locked(), Setting::PolicyMode);
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Spire);
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80)).ethernet()), audits(DropReason::AuthRequired));
    assert_eq!(tables.events.borrow()[0].kind, EventKind::AuthWanted as u8);
}

#[test]
fn observed_policy_leaves_encryption_enforced() {
    let mut tables = observe(locked(), Setting::PolicyMode);
    tables.nodes.clear();
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80)).ethernet()), drops(DropReason::NoNodeSession));
    let clear = udp((HERE, 1), (THERE, 80)).ethernet();
    assert_eq!(run(&tables, context(Hook::ToUplink, HERE_IFINDEX), &clear), drops(DropReason::Unencrypted));
}

#[test]
fn observed_encryption_leaves_policy_enforced() {
    let mut tables = observe(locked(), Setting::EncryptionMode);
    tables.nodes.clear();
    let frame = syn((HERE, 1), (THERE, 80)).ethernet();
    assert_eq!(sends(&tables, &frame), drops(DropReason::PolicyDenied));
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Disabled);
    assert_eq!(sends(&tables, &frame), audits(DropReason::NoNodeSession));
    let incoming = syn((THERE, 1), (HERE, 80)).ethernet();
    let by_uplink = context(Hook::ToPod, UPLINK_IFINDEX);
    assert_eq!(run(&tables, by_uplink, &incoming), drops(DropReason::PolicyDenied));
    assert_eq!(
        run(&tables, context(Hook::FromUplink, UPLINK_IFINDEX), &incoming),
        audits(DropReason::Unencrypted)
    );
}

#[test]
fn a_node_in_the_clear_is_the_world() {
    let mut tables = observe(locked(), Setting::EncryptionMode);
    allow(&mut tables, HERE_ID, Direction::Ingress, auth_ebpf_abi::identity::REMOTE_NODE, AuthType::Disabled);
    let frame = syn((OTHER_NODE, 1), (HERE, 80)).ethernet();
    assert_eq!(run(&tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &frame), PASSES);
    assert_eq!(run(&tables, context(Hook::ToPod, UPLINK_IFINDEX), &frame), drops(DropReason::PolicyDenied));
}

#[test]
fn off_lasts_until_its_deadline() {
    let mut tables = locked();
    let frame = syn((HERE, 1), (WORLD, 80)).ethernet();
    tables.settings.insert(Setting::PolicyOffUntil, NOW + 10);
    assert_eq!(sends(&tables, &frame), audits(DropReason::PolicyDenied));
    tables.now.set(NOW + 10);
    assert_eq!(sends(&tables, &frame), drops(DropReason::PolicyDenied));
    tables.settings.insert(Setting::EncryptionOffUntil, NOW + 20);
    let clear = udp((THERE, 1), (HOST, 80)).ethernet();
    let uplink = context(Hook::FromUplink, UPLINK_IFINDEX);
    assert_eq!(run(&tables, uplink, &clear), audits(DropReason::Unencrypted));
    tables.now.set(NOW + 20);
    assert_eq!(run(&tables, uplink, &clear), drops(DropReason::Unencrypted));
}

#[test]
fn a_connection_that_policy_only_observed_ends_with_observing() {
    let mut tables = observe(locked(), Setting::PolicyMode);
    assert_eq!(sends(&tables, &syn((HERE, 1), (THERE, 80)).ethernet()), audits(DropReason::PolicyDenied));
    let flags: Vec<u8> = connections(&tables).iter().map(|(_, connection)| connection.flags).collect();
    assert_eq!(flags, [ConnectionEntry::AUDITED]);
    // Its replies are no findings of their own.
    let reply = ack((THERE, 80), (HERE, 1)).ethernet();
    assert_eq!(run(&tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &reply), PASSES);
    tables.settings.insert(Setting::PolicyMode, Mode::Enforce as u64);
    assert_eq!(
        run(&tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &reply),
        drops(DropReason::PolicyDenied)
    );
}
