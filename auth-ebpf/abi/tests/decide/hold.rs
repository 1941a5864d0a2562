//! Packets that wait for authentication: from their hook to the device and back, and how many may.

use auth_ebpf_abi::packet::protocol;
use auth_ebpf_abi::{
    Address, AuthFlags, AuthType, Context, Credits, Direction, DropReason, ENDPOINT_UNITS, EndpointEntry,
    EventKind, HOLD_LIMIT, HOLD_UNITS, HoldStage, Hook, Mode, PendingEntry, Setting, TOKEN_LIMIT, Verdict,
    Workspace, capacity, come_back, decide, has_room, hook_of, units,
};
use proptest::prelude::*;

use super::frames::{Parts, syn, udp};
use super::scene::*;
use super::tables::Tables;

const PENDING: PendingEntry = PendingEntry { pending: 1 };

type Fate = (Verdict, Option<DropReason>);

/// Both directions between here and there need authentication, and packets may wait for it.
fn waiting() -> Tables {
    let mut tables = locked();
    hold(&mut tables);
    for direction in [Direction::Ingress, Direction::Egress] {
        allow(&mut tables, HERE_ID, direction, THERE_ID, AuthType::Spire);
        allow(&mut tables, HERE_ID, direction, NEIGHBOUR_ID, AuthType::Spire);
    }
    tables
}

fn out() -> (Context, Vec<u8>) {
    (context(Hook::FromPod, HERE_IFINDEX), syn((HERE, 1), (THERE, 80)).ethernet())
}

fn into() -> (Context, Vec<u8>) {
    (context(Hook::ToPod, WIREGUARD_IFINDEX), syn((THERE, 1), (HERE, 80)).ethernet())
}

fn tagged(context: Context, tag: u16) -> Context {
    Context { tagged: true, tag, ..context }
}

/// Decides on a packet, and returns its token too.
fn arrive(tables: &Tables, (context, bytes): &(Context, Vec<u8>)) -> (Verdict, u16) {
    let mut workspace = Workspace::default();
    let context = Context { length: u32::try_from(bytes.len()).unwrap(), ..*context };
    (decide(tables, bytes.as_slice(), &context, &mut workspace), workspace.token)
}

/// Sends a packet to the device, which must take it.
fn held(tables: &Tables, packet: &(Context, Vec<u8>)) -> u16 {
    let (verdict, token) = arrive(tables, packet);
    assert_eq!(verdict, Verdict::Held);
    let entering = tagged(context(Hook::ToHold, packet.0.ingress_ifindex), token);
    assert_eq!(run(tables, entering, &packet.1), PASSES);
    token
}

/// Writes a packet back into the device; where it goes.
fn released(tables: &Tables, token: u16) -> Option<(Hook, u32)> {
    let leaving = tagged(context(Hook::FromHold, HOLD_IFINDEX), token);
    (run(tables, leaving, &[0; 60]) == PASSES).then(|| hook_of(tables, token).unwrap())
}

/// The packet at its hook again; `None` if that does not know it.
fn back(tables: &Tables, packet: &(Context, Vec<u8>), token: u16) -> Option<(Context, Fate)> {
    let ingress = if packet.0.hook == Hook::ToPod { HOLD_IFINDEX } else { packet.0.ifindex };
    let mut context = tagged(Context { ingress_ifindex: ingress, ..packet.0 }, token);
    come_back(tables, &mut context).then(|| (context, run(tables, context, &packet.1)))
}

fn credits(tables: &Tables) -> u64 {
    let credits = tables.credits.borrow();
    credits.iter().filter(|(place, _)| **place != Credits::LAST_TOKEN).map(|(_, units)| units).sum()
}

#[test]
fn a_packet_that_only_lacks_authentication_is_held_and_asks_for_it() {
    let tables = waiting();
    assert_eq!(run(&tables, out().0, &out().1), HELD);
    let events = tables.events.borrow();
    assert_eq!(events[0].kind, EventKind::AuthWanted as u8);
    assert_eq!((events[0].local, events[0].remote, events[0].node), (HERE_ID, THERE_ID, NODE));
    assert_eq!((events[1].kind, events[1].verdict), (EventKind::Verdict as u8, Verdict::Held as u8));
    assert!(tables.half_open.borrow().is_empty(), "nothing has passed");
}

#[test]
fn it_comes_back_with_its_provenance_and_passes_once_authenticated() {
    for packet in [out(), into()] {
        let mut tables = waiting();
        let token = held(&tables, &packet);
        assert_ne!(credits(&tables), 0);
        authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
        assert_eq!(released(&tables, token), Some((packet.0.hook, HERE_IFINDEX)));
        let (context, fate) = back(&tables, &packet, token).unwrap();
        assert_eq!(context, Context { held_since: NOW, held_for: AuthType::Spire as u8, ..packet.0 });
        assert_eq!(fate, PASSES);
        assert_eq!(credits(&tables), 0);
        assert_eq!(tables.half_open.borrow().len(), 1);
    }
}

#[test]
fn whoever_has_no_svid_yet_is_told_so_when_it_drops() {
    for packet in [out(), into()] {
        let mut tables = waiting();
        tables.svid_pending.insert(HERE_ID, PENDING);
        // It waits as everything does, since the SVID may come.
        for now in [NOW, NOW + HOLD_LIMIT] {
            tables.now.set(NOW);
            let token = held(&tables, &packet);
            tables.now.set(now);
            released(&tables, token).unwrap();
            assert_eq!(back(&tables, &packet, token).unwrap().1, drops(DropReason::SvidPending));
            assert_eq!(credits(&tables), 0);
        }
        // The other end's is the other node's to tell.
        tables.svid_pending = [(THERE_ID, PENDING)].into();
        tables.settings.remove(&Setting::HoldIfindex);
        assert_eq!(run(&tables, packet.0, &packet.1), drops(DropReason::AuthRequired));
        tables.svid_pending = [(HERE_ID, PENDING)].into();
        tables.events.borrow_mut().clear();
        assert_eq!(run(&tables, packet.0, &packet.1), drops(DropReason::SvidPending));
        let asks = |event: &auth_ebpf_abi::Event| event.kind == EventKind::AuthWanted as u8;
        assert!(tables.events.borrow().iter().any(asks), "it still asks to be authenticated");
    }
}

#[test]
fn it_is_not_held_twice() {
    for packet in [out(), into()] {
        let tables = waiting();
        let token = held(&tables, &packet);
        released(&tables, token).unwrap();
        tables.events.borrow_mut().clear();
        assert_eq!(back(&tables, &packet, token).unwrap().1, drops(DropReason::AuthRequired));
        assert!(tables.events.borrow().iter().all(|event| event.kind != EventKind::AuthWanted as u8));
        let token = held(&tables, &packet);
        tables.now.set(NOW + HOLD_LIMIT);
        released(&tables, token).unwrap();
        assert_eq!(back(&tables, &packet, token).unwrap().1, drops(DropReason::HoldTimeout));
        assert_eq!(credits(&tables), 0);
    }
}

#[test]
fn whatever_has_changed_meanwhile_counts() {
    let mut tables = waiting();
    let token = held(&tables, &into());
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    tables.policy.clear();
    released(&tables, token).unwrap();
    assert_eq!(back(&tables, &into(), token).unwrap().1, drops(DropReason::PolicyDenied));
}

#[test]
fn without_a_device_or_a_daemon_it_drops() {
    for (setting, value) in [(Setting::HoldIfindex, 0), (Setting::HoldUntil, NOW), (Setting::HoldUntil, 0)] {
        let mut tables = waiting();
        tables.settings.insert(setting, value);
        assert_eq!(run(&tables, out().0, &out().1), drops(DropReason::AuthRequired));
        assert_eq!(credits(&tables), 0);
    }
}

#[test]
fn what_cannot_be_satisfied_or_is_only_observed_is_not_held() {
    let mut tables = waiting();
    tables.settings.insert(Setting::PolicyMode, Mode::Observe as u64);
    assert_eq!(run(&tables, out().0, &out().1), audits(DropReason::AuthRequired));
    let mut tables = waiting();
    allow(&mut tables, HERE_ID, Direction::Egress, THERE_ID, AuthType::AlwaysFail);
    assert_eq!(run(&tables, out().0, &out().1), drops(DropReason::AuthRequired));
    let mut tables = waiting();
    tables.policy.clear();
    assert_eq!(run(&tables, out().0, &out().1), drops(DropReason::PolicyDenied));
}

/// What becomes of a packet of `length` bytes that stands for segments.
fn in_one(tables: &Tables, (length, segment): (u32, u32), bytes: &[u8]) -> Verdict {
    let context = Context { length, segment, ..out().0 };
    decide(tables, bytes, &context, &mut Workspace::default())
}

#[test]
fn what_the_device_might_take_apart_is_not_held() {
    let mut tables = waiting();
    let segments = out().1;
    assert_eq!(in_one(&tables, (65_535, 100), &segments), Verdict::Held);
    assert_eq!(in_one(&tables, (65_536, 1_000), &segments), Verdict::Dropped, "larger than the device takes");
    let mut datagrams = udp((HERE, 1), (THERE, 80)).ethernet();
    assert_eq!(in_one(&tables, (1_042, 0), &datagrams), Verdict::Held);
    assert_eq!(in_one(&tables, (5_042, 1_000), &datagrams), Verdict::Dropped, "it doesn't take them");
    tables.settings.insert(Setting::HoldDatagrams, 1);
    assert_eq!(in_one(&tables, (5_042, 1_000), &datagrams), Verdict::Held);
    assert_eq!(in_one(&tables, (65_536, 1_000), &datagrams), Verdict::Dropped);
    assert_eq!(
        in_one(&tables, (128 * 50 + 62, 50), &datagrams),
        Verdict::Held,
        "as many as a socket sends in one"
    );
    assert_eq!(in_one(&tables, (60_000, 8), &datagrams), Verdict::Dropped, "more");
    datagrams[14 + 9] = protocol::SCTP;
    assert_eq!(in_one(&tables, (5_042, 1_000), &datagrams), Verdict::Dropped);
}

/// The kernel might make a frame of each after all.
#[test]
fn datagrams_in_one_take_a_credit_each() {
    let mut tables = waiting();
    tables.settings.insert(Setting::HoldDatagrams, 1);
    in_one(&tables, (5_042, 500), &udp((HERE, 1), (THERE, 80)).ethernet());
    assert_eq!(credits(&tables), 3 * 11);
    in_one(&tables, (5_042, 500), &out().1);
    assert_eq!(credits(&tables), 3 * 12, "a segment of TCP is one frame");
}

#[test]
fn others_get_nothing_through_the_device() {
    let tables = waiting();
    let (_, token) = arrive(&tables, &out());
    let enter = |ingress, tag| run(&tables, tagged(context(Hook::ToHold, ingress), tag), &out().1);
    let leave = |tag| run(&tables, tagged(context(Hook::FromHold, HOLD_IFINDEX), tag), &out().1);
    let nobodys = drops(DropReason::NotHeld);
    assert_eq!(run(&tables, context(Hook::ToHold, 0), &out().1), nobodys, "without a tag");
    assert_eq!(enter(0, token), nobodys, "made by the host itself");
    assert_eq!(enter(UPLINK_IFINDEX, token), nobodys, "from elsewhere");
    assert_eq!(enter(HERE_IFINDEX, token + 1), nobodys, "a token not in use");
    assert_eq!(enter(HERE_IFINDEX, u16::MAX), nobodys, "no token at all");
    assert_eq!(leave(token), nobodys, "not there yet");
    assert_eq!(enter(HERE_IFINDEX, token), PASSES);
    assert_eq!(enter(HERE_IFINDEX, token), nobodys, "a second time");
    assert_eq!(run(&tables, context(Hook::FromHold, HOLD_IFINDEX), &out().1), nobodys, "without a tag");
    assert_eq!(leave(token), PASSES);
    assert_eq!(leave(token), nobodys, "a second time");
}

/// What bears a remote pod's address and was made here waits where encryption is only observed. The device
/// does not take it: anybody on the host could send the like under its token.
#[test]
fn what_the_host_makes_does_not_enter_even_if_it_was_held() {
    let mut tables = waiting();
    tables.settings.insert(Setting::EncryptionMode, Mode::Observe as u64);
    let made_here = (context(Hook::ToPod, 0), into().1);
    let (verdict, token) = arrive(&tables, &made_here);
    assert_eq!(verdict, Verdict::Held);
    let entering = tagged(context(Hook::ToHold, 0), token);
    assert_eq!(run(&tables, entering, &made_here.1), drops(DropReason::NotHeld));
}

#[test]
fn what_stays_longer_than_its_token_stays_for_good() {
    let tables = waiting();
    let tokens = [held(&tables, &out()), held(&tables, &out())];
    tables.now.set(NOW + TOKEN_LIMIT - 1);
    assert!(released(&tables, tokens[0]).is_some());
    tables.now.set(NOW + TOKEN_LIMIT);
    assert_eq!(released(&tables, tokens[1]), None, "another packet may have its token by now");
}

#[test]
fn a_forged_tag_makes_nothing_of_a_packet() {
    let tables = waiting();
    let token = held(&tables, &out());
    assert_eq!(back(&tables, &out(), token), None, "it is still held");
    released(&tables, token).unwrap();
    let elsewhere = (Context { ifindex: NEIGHBOUR_IFINDEX, ..out().0 }, out().1);
    assert_eq!(back(&tables, &elsewhere, token), None, "another pod's");
    assert_eq!(back(&tables, &into(), token), None, "another hook's");
    assert_eq!(
        run(&tables, tagged(into().0, token), &into().1),
        drops(DropReason::UnsupportedL3),
        "a tag as any other"
    );
    assert!(back(&tables, &out(), token).is_some());
    assert_eq!(back(&tables, &out(), token), None, "a second time");
    let token = held(&tables, &into());
    released(&tables, token).unwrap();
    let mut bridged = tagged(Context { ingress_ifindex: NEIGHBOUR_IFINDEX, ..into().0 }, token);
    assert!(!come_back(&tables, &mut bridged), "it has not come by the device");
}

#[test]
fn a_new_packet_waits_behind_those_that_are_held() {
    let mut tables = waiting();
    let first = held(&tables, &out());
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    for entry in tables.auth.values_mut() {
        entry.flags = AuthFlags::DRAINING;
    }
    tables.events.borrow_mut().clear();
    let second = held(&tables, &out());
    assert!(tables.events.borrow().is_empty(), "it asks for nothing");
    assert_eq!(run(&tables, into().0, &into().1), PASSES, "nothing is held in the other direction");
    for token in [first, second] {
        assert_eq!(run(&tables, out().0, &out().1).0, Verdict::Held, "still behind {token}");
        released(&tables, token).unwrap();
        assert_eq!(back(&tables, &out(), token).unwrap().1, PASSES);
    }
    // The two that were held in the loop are left: without a daemon, nothing waits for them.
    assert_eq!(run(&tables, out().0, &out().1), HELD);
    tables.settings.insert(Setting::HoldUntil, NOW);
    assert_eq!(run(&tables, out().0, &out().1), PASSES);
    hold(&mut tables);
    while run(&tables, out().0, &out().1) == HELD {}
    assert_eq!(run(&tables, out().0, &out().1), PASSES, "it has authenticated: beyond the bound it passes");
}

/// An established connection whose authentication has run out: what it sends until there is a new one stays
/// ahead of what it sends afterwards.
#[test]
fn an_established_connection_overtakes_nothing_that_is_held() {
    let datagram = || (out().0, udp((HERE, 1), (THERE, 2)).ethernet());
    let arrives = |tables: &Tables| run(tables, datagram().0, &datagram().1);
    let set_flags = |tables: &mut Tables, flags| {
        for entry in tables.auth.values_mut() {
            entry.flags = flags;
        }
        reopen_all(tables);
    };
    let mut tables = waiting();
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    assert_eq!(arrives(&tables), PASSES);
    let answer = udp((THERE, 2), (HERE, 1)).ethernet();
    assert_eq!(run(&tables, into().0, &answer), PASSES);
    assert_eq!(tables.connections.borrow().len(), 1);
    tables.now.set(NOW + 1);
    let first = held(&tables, &datagram());
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 100);
    set_flags(&mut tables, AuthFlags::DRAINING);
    let second = held(&tables, &datagram());
    // The answer, and the first to come back, are decided, and settle nothing for those behind.
    assert_eq!(run(&tables, into().0, &answer), PASSES);
    released(&tables, first).unwrap();
    assert_eq!(back(&tables, &datagram(), first).unwrap().1, PASSES);
    let third = held(&tables, &datagram());
    for token in [second, third] {
        released(&tables, token).unwrap();
        assert_eq!(back(&tables, &datagram(), token).unwrap().1, PASSES);
    }
    assert_eq!(arrives(&tables), PASSES, "nothing is left to wait for");
    let settled = |tables: &Tables| tables.connections.borrow().values().all(|entry| entry.valid_until != 0);
    assert!(!settled(&tables), "others may still come");
    set_flags(&mut tables, 0);
    assert_eq!(arrives(&tables), PASSES);
    assert!(settled(&tables));
}

/// It was held for want of what its connection rests on; that this is there again is looked up.
#[test]
fn what_comes_back_is_decided_as_a_whole() {
    let mut tables = waiting();
    authenticate(&mut tables, THERE_ID, NODE, 7, NOW + 1);
    let datagram = (out().0, udp((HERE, 1), (THERE, 2)).ethernet());
    assert_eq!(run(&tables, datagram.0, &datagram.1), PASSES);
    tables.policy.clear();
    assert_eq!(run(&tables, datagram.0, &datagram.1), PASSES, "settled, and nobody has said that it changed");
    let returned = Context { held_since: NOW, held_for: AuthType::Spire as u8, ..datagram.0 };
    assert_eq!(run(&tables, returned, &datagram.1), drops(DropReason::PolicyDenied));
}

#[test]
fn a_token_whose_packet_never_came_back_is_free_again_in_time() {
    let tables = waiting();
    let (_, lost) = arrive(&tables, &out());
    tables.now.set(NOW + TOKEN_LIMIT - 1);
    tables.credits.borrow_mut().insert(Credits::LAST_TOKEN, u64::from(lost));
    assert_eq!(run(&tables, out().0, &out().1), drops(DropReason::HoldFull));
    tables.now.set(NOW + TOKEN_LIMIT);
    tables.credits.borrow_mut().insert(Credits::LAST_TOKEN, u64::from(lost));
    let (verdict, token) = arrive(&tables, &into());
    assert_eq!((verdict, token), (Verdict::Held, lost));
    assert_eq!(tables.credits.borrow()[&Credits::ALL], 1, "the lost one's are given back");
    assert_eq!(
        run(&tables, tagged(context(Hook::FromHold, HOLD_IFINDEX), lost), &[0; 60]).1,
        Some(DropReason::NotHeld)
    );
}

#[test]
fn a_flood_leaves_room_for_others() {
    let tables = waiting();
    let flood = |parts: Parts| {
        let bytes = parts.ethernet();
        let at = context(Hook::FromPod, HERE_IFINDEX);
        (0..).take_while(|_| run(&tables, at, &bytes) == HELD).count()
    };
    let first = flood(udp((HERE, 1), (THERE, 2)));
    assert_eq!(first as u64, ENDPOINT_UNITS / 4);
    let second = flood(udp((HERE, 1), (NEIGHBOUR, 2)));
    assert!(second > 100, "another pair of this endpoint: {second}");
    assert_eq!(run(&tables, into().0, &into().1), HELD, "the other direction");
    assert_eq!(run(&tables, out().0, &udp((HERE, 1), (THERE, 2)).ethernet()), drops(DropReason::HoldFull));
}

/// Each keeps to his bounds, and all together would take several times what there is.
#[test]
fn pods_that_flood_together_share_what_there_is() {
    let mut tables = waiting();
    let pods: Vec<_> = (1..=40_u8).map(|pod| (v4([10, 0, 1, 100 + pod]), 100 + u32::from(pod))).collect();
    for (address, ifindex) in &pods {
        let endpoint = tables.endpoints[&HERE];
        tables.addresses.insert(*address, tables.addresses[&HERE]);
        tables.endpoints.insert(*address, EndpointEntry { ifindex: *ifindex, ..endpoint });
    }
    let floods = |(address, ifindex): &(Address, u32), others: &[Address]| {
        let at = Context { ifindex: *ifindex, ..context(Hook::FromPod, *ifindex) };
        let to = |other: &Address| udp((*address, 1), (*other, 2)).ethernet();
        others
            .iter()
            .map(|other| (0..).take_while(|_| run(&tables, at, &to(other)) == HELD).count())
            .sum::<usize>()
    };
    let taken: usize = pods.iter().map(|pod| floods(pod, &[THERE, NEIGHBOUR])).sum();
    assert!((HOLD_UNITS / 2..HOLD_UNITS).contains(&(taken as u64)), "{taken}");
    assert!(floods(&(HERE, HERE_IFINDEX), &[THERE]) > 0, "whoever comes next finds room");
}

/// A restarted daemon gives all credits back. What comes back from before gives its own back once more.
#[test]
fn credits_given_back_twice_do_no_harm() {
    let tables = waiting();
    let before = held(&tables, &out());
    tables.credits.borrow_mut().retain(|place, _| *place == Credits::LAST_TOKEN);
    released(&tables, before).unwrap();
    back(&tables, &out(), before).unwrap();
    assert!(tables.credits.borrow()[&Credits::ALL] > u64::MAX / 2);
    assert_eq!(run(&tables, out().0, &out().1), HELD);
}

/// However many take as much as they can, whoever comes next finds room, and the whole is bounded.
#[test]
fn newcomers_find_room_and_the_whole_is_bounded() {
    for floods in [1_u64, 2, 10, 100, 250] {
        let mut taken = vec![0; usize::try_from(floods).unwrap()];
        while let Some(next) = taken.iter().position(|own| has_room(*own, taken.iter().sum(), HOLD_UNITS)) {
            taken[next] += 1;
        }
        let all: u64 = taken.iter().sum();
        assert!(taken.iter().all(|own| *own >= 4), "{floods}: {taken:?}");
        assert!(has_room(0, all, HOLD_UNITS), "{floods}: {all}");
        assert!(all <= HOLD_UNITS && taken[0] <= HOLD_UNITS / 4, "{floods}: {all}");
    }
    let everybody = (0..).find(|all| !has_room(0, *all, HOLD_UNITS));
    assert_eq!(everybody, Some(HOLD_UNITS));
    assert_eq!((units(0), units(65_535)), (1, 8));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes in whatever order, credits are those of the tokens in use, and a packet comes back
    /// once at most, to where it was.
    #[test]
    fn credits_and_tokens_agree(steps in prop::collection::vec((0..6_u8, any::<prop::sample::Index>(), 0..70_000_u32), 1..200)) {
        let tables = waiting();
        let packets = [out(), into(), (out().0, udp((HERE, 1), (NEIGHBOUR, 2)).ethernet())];
        let mut taken: Vec<(u16, usize)> = vec![];
        let mut inside: Vec<(u16, usize)> = vec![];
        let mut returning: Vec<(u16, usize)> = vec![];
        for (step, index, length) in steps {
            match step {
                0..=2 => {
                    let kind = usize::from(step);
                    let (context, bytes) = &packets[kind];
                    let mut workspace = Workspace::default();
                    let verdict = decide(&tables, bytes.as_slice(), &Context { length, ..*context }, &mut workspace);
                    if verdict == Verdict::Held {
                        taken.push((workspace.token, kind));
                    }
                }
                3 if !taken.is_empty() => {
                    let (token, kind) = taken.remove(index.index(taken.len()));
                    let ingress = packets[kind].0.ingress_ifindex;
                    prop_assert_eq!(run(&tables, tagged(context(Hook::ToHold, ingress), token), &[0; 60]), PASSES);
                    inside.push((token, kind));
                }
                4 if !inside.is_empty() => {
                    let (token, kind) = inside.remove(index.index(inside.len()));
                    prop_assert_eq!(released(&tables, token), Some((packets[kind].0.hook, HERE_IFINDEX)));
                    prop_assert_eq!(released(&tables, token), None);
                    returning.push((token, kind));
                }
                5 if !returning.is_empty() => {
                    let (token, kind) = returning.remove(index.index(returning.len()));
                    prop_assert!(back(&tables, &packets[kind], token).is_some());
                    prop_assert!(back(&tables, &packets[kind], token).is_none());
                }
                _ => {}
            }
            let in_use = tables.held.borrow();
            let units: u64 = in_use
                .values()
                .filter(|held| held.stage != HoldStage::FREE)
                .map(|held| u64::from(held.units))
                .sum();
            prop_assert_eq!(tables.credits.borrow().get(&Credits::ALL).copied().unwrap_or_default(), units);
            prop_assert_eq!(credits(&tables), 3 * units);
            prop_assert!(units <= HOLD_UNITS && in_use.len() <= capacity::HELD);
        }
    }
}
