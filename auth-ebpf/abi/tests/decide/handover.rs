//! Addresses that change hands: nothing leaves for a node that takes the pod for the address's last owner.

use auth_ebpf_abi::{
    AuthType, Context, Direction, DropReason, EventKind, HOLD_LIMIT, Hook, Mode, NodeEntry, Setting, Verdict,
    Workspace, come_back, decide,
};

use super::frames::{syn, syn_ack, tcp, udp};
use super::scene::*;
use super::tables::Tables;

/// A pod whose address has been assigned anew, which the other node has not acknowledged.
fn reassigned() -> Tables {
    let mut tables = cluster();
    for endpoint in tables.endpoints.values_mut() {
        endpoint.epoch = 2;
    }
    tables
}

fn acknowledge(tables: &mut Tables, epoch: u32) {
    let node = tables.nodes.get_mut(&NODE).unwrap();
    *node = NodeEntry { acknowledged: epoch, ..*node };
}

fn out() -> (Context, Vec<u8>) {
    (context(Hook::FromPod, HERE_IFINDEX), syn((HERE, 1), (THERE, 80)).ethernet())
}

/// Through the device and back to the hook; what becomes of it there.
fn round(tables: &Tables, token: u16, packet: &(Context, Vec<u8>), change: impl FnOnce()) -> (Verdict, u16) {
    let tagged = |hook, ifindex| Context { tagged: true, tag: token, ..context(hook, ifindex) };
    assert_eq!(run(tables, tagged(Hook::ToHold, HERE_IFINDEX), &packet.1), PASSES);
    change();
    assert_eq!(run(tables, tagged(Hook::FromHold, HOLD_IFINDEX), &packet.1), PASSES);
    let mut context = tagged(Hook::FromPod, HERE_IFINDEX);
    assert!(come_back(tables, &mut context));
    arrive(tables, &(context, packet.1.clone()))
}

fn arrive(tables: &Tables, (context, bytes): &(Context, Vec<u8>)) -> (Verdict, u16) {
    let mut workspace = Workspace::default();
    (decide(tables, bytes.as_slice(), context, &mut workspace), workspace.token)
}

fn asked(tables: &Tables) -> Vec<u8> {
    let kinds = tables.events.borrow().iter().map(|event| event.kind).collect();
    tables.events.borrow_mut().clear();
    kinds
}

#[test]
fn it_drops_by_name_without_somebody_to_hold_it_and_asks_for_the_announcement() {
    let tables = reassigned();
    assert_eq!(run(&tables, out().0, &out().1), drops(DropReason::AddressUnannounced));
    assert_eq!(asked(&tables), [EventKind::AnnouncementWanted as u8, EventKind::Verdict as u8]);
    assert!(connections(&tables).is_empty());
}

#[test]
fn it_passes_to_whoever_has_acknowledged_as_much_and_to_this_node_and_the_world() {
    let mut tables = reassigned();
    for destination in [NEIGHBOUR, HOST, WORLD] {
        let frame = syn((HERE, 1), (destination, 80)).ethernet();
        assert_eq!(run(&tables, out().0, &frame), PASSES, "{destination:?}");
    }
    for (epoch, expected) in
        [(1, drops(DropReason::AddressUnannounced)), (2, PASSES), (3, PASSES), (u32::MAX, PASSES)]
    {
        acknowledge(&mut tables, epoch);
        let frame = udp((HERE, 1), (THERE, 80)).ethernet();
        assert_eq!(run(&tables, out().0, &frame), expected, "{epoch}");
    }
}

#[test]
fn an_answer_waits_as_well_whatever_it_answers() {
    let mut tables = reassigned();
    let comes = |frame: Vec<u8>| run(&tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &frame);
    let answer = syn_ack((HERE, 80), (THERE, 1)).ethernet();
    let datagram = udp((HERE, 53), (THERE, 1)).ethernet();
    assert_eq!(comes(syn((THERE, 1), (HERE, 80)).ethernet()), PASSES);
    assert_eq!(comes(udp((THERE, 1), (HERE, 53)).ethernet()), PASSES);
    for frame in [&answer, &datagram] {
        assert_eq!(run(&tables, out().0, frame), drops(DropReason::AddressUnannounced));
    }
    acknowledge(&mut tables, 2);
    for frame in [answer, datagram] {
        assert_eq!(run(&tables, out().0, &frame), PASSES);
    }
}

#[test]
fn what_arrives_is_not_kept_waiting() {
    let tables = reassigned();
    let frame = syn((THERE, 1), (HERE, 80)).ethernet();
    assert_eq!(run(&tables, context(Hook::ToPod, WIREGUARD_IFINDEX), &frame), PASSES);
    // But the answer is the pod's first packet to there.
    let answer = tcp((HERE, 80), (THERE, 1), 0x12).ethernet();
    reopen_in_place(&tables);
    assert_eq!(run(&tables, out().0, &answer), drops(DropReason::AddressUnannounced));
}

/// Connections as they stand after an address has changed hands.
fn reopen_in_place(tables: &Tables) {
    for entry in tables.half_open.borrow_mut().values_mut() {
        entry.generation = entry.generation.wrapping_sub(1);
    }
}

#[test]
fn what_policy_refuses_asks_for_nothing() {
    let tables = Tables { policy: locked().policy, ..reassigned() };
    assert_eq!(run(&tables, out().0, &out().1), drops(DropReason::PolicyDenied));
    assert_eq!(asked(&tables), [EventKind::Verdict as u8]);
}

#[test]
fn a_node_without_a_session_is_not_waited_for() {
    let mut tables = reassigned();
    hold(&mut tables);
    tables.nodes.clear();
    assert_eq!(run(&tables, out().0, &out().1), drops(DropReason::NoNodeSession));
}

#[test]
fn where_policy_is_only_observed_it_passes_and_is_named() {
    let mut tables = reassigned();
    hold(&mut tables);
    tables.settings.insert(Setting::PolicyMode, Mode::Observe as u64);
    assert_eq!(run(&tables, out().0, &out().1), audits(DropReason::AddressUnannounced));
    assert_eq!(asked(&tables), [EventKind::AnnouncementWanted as u8, EventKind::Verdict as u8]);
}

#[test]
fn it_waits_for_the_announcement_and_goes_on() {
    let mut tables = reassigned();
    hold(&mut tables);
    let (verdict, token) = arrive(&tables, &out());
    assert_eq!(verdict, Verdict::Held);
    assert_eq!(asked(&tables), [EventKind::AnnouncementWanted as u8, EventKind::Verdict as u8]);
    acknowledge(&mut tables, 2);
    assert_eq!(round(&tables, token, &out(), || ()).0, Verdict::Forwarded);
    assert_eq!(connections(&tables).len(), 1);
}

#[test]
fn in_vain_it_waits_once() {
    let mut tables = reassigned();
    hold(&mut tables);
    let (_, token) = arrive(&tables, &out());
    asked(&tables);
    assert_eq!(round(&tables, token, &out(), || ()).0, Verdict::Dropped);
    assert_eq!(asked(&tables), [EventKind::Verdict as u8]);
}

#[test]
fn after_the_announcement_it_may_wait_for_its_authentication_and_then_for_nothing_more() {
    let mut tables = reassigned();
    hold(&mut tables);
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Spire);
    let (_, token) = arrive(&tables, &out());
    asked(&tables);
    acknowledge(&mut tables, 2);
    let (verdict, token) = round(&tables, token, &out(), || ());
    assert_eq!(verdict, Verdict::Held);
    assert_eq!(asked(&tables), [EventKind::AuthWanted as u8, EventKind::Verdict as u8]);
    assert_eq!(round(&tables, token, &out(), || ()).0, Verdict::Dropped, "not authenticated");

    let (_, token) = arrive(&tables, &out());
    acknowledge(&mut tables, 1);
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    assert_eq!(round(&tables, token, &out(), || ()).0, Verdict::Dropped, "reassigned meanwhile");
}

#[test]
fn both_waits_together_have_the_time_of_one() {
    let mut tables = reassigned();
    hold(&mut tables);
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::Spire);
    let (_, token) = arrive(&tables, &out());
    acknowledge(&mut tables, 2);
    let later = || tables.now.set(NOW + HOLD_LIMIT - 1);
    let (verdict, token) = round(&tables, token, &out(), later);
    assert_eq!(verdict, Verdict::Held);
    asked(&tables);
    let (verdict, _) = round(&tables, token, &out(), || tables.now.set(NOW + HOLD_LIMIT));
    assert_eq!(verdict, Verdict::Dropped);
    let events = tables.events.borrow();
    assert_eq!(events.last().map(|event| event.reason), Some(DropReason::HoldTimeout as u8));
}
