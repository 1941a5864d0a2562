//! The choice between two policy entries that match one packet, and the numbers that others rely on.

use auth_ebpf_abi::{
    Address, AuthType, Choice, Direction, DropReason, EventKind, Hook, Mode, PolicyEntry, Verdict, choose,
    map, metric,
};
use proptest::prelude::*;

fn entry(precedence: u32, port_prefix: u8, auth_type: AuthType, explicit: bool) -> PolicyEntry {
    PolicyEntry {
        precedence,
        port_prefix,
        auth_type: auth_type as u8,
        auth_explicit: u8::from(explicit),
        ..PolicyEntry::default()
    }
}

#[test]
fn one_entry_is_chosen_alone() {
    let only = entry(1, 0, AuthType::Spire, false);
    assert_eq!(choose(None, None), None);
    for (with, any) in [(Some(only), None), (None, Some(only))] {
        assert_eq!(choose(with, any), Some(Choice { entry: only, auth_type: AuthType::Spire as u8 }));
    }
}

#[test]
fn precedence_then_port_then_identity_decides() {
    for (identity, any, any_wins) in
        [((1, 0), (2, 0), true), ((2, 0), (1, 24), false), ((1, 8), (1, 24), true), ((1, 8), (1, 8), false)]
    {
        let with = PolicyEntry { cookie: 1, ..entry(identity.0, identity.1, AuthType::Disabled, false) };
        let other = PolicyEntry { cookie: 2, ..entry(any.0, any.1, AuthType::Disabled, false) };
        let chosen = choose(Some(with), Some(other)).map(|choice| choice.entry.cookie);
        assert_eq!(chosen, Some(if any_wins { 2 } else { 1 }));
    }
}

#[test]
fn authentication_is_derived_unless_it_is_named() {
    let disabled = |precedence, explicit| entry(precedence, 24, AuthType::Disabled, explicit);
    let required = |precedence| entry(precedence, 0, AuthType::Spire, true);
    let auth = |with, any| choose(Some(with), Some(any)).map(|choice| choice.auth_type);
    assert_eq!(auth(disabled(1, false), required(1)), Some(AuthType::Spire as u8));
    assert_eq!(auth(disabled(1, true), required(1)), Some(AuthType::Disabled as u8));
    assert_eq!(auth(disabled(2, false), required(1)), Some(AuthType::Disabled as u8));
}

#[test]
fn numbers_and_names_are_unique_and_read_back() {
    for reason in DropReason::ALL {
        assert_eq!(DropReason::from_number(*reason as u8), Some(*reason));
        assert!(reason.description().ends_with('.'), "{}", reason.as_str());
        assert_eq!(DropReason::ALL.iter().filter(|other| other.as_str() == reason.as_str()).count(), 1);
    }
    for hook in Hook::ALL {
        assert_eq!(Hook::from_number(hook as u8), Some(hook));
    }
    for verdict in [Verdict::Forwarded, Verdict::Dropped, Verdict::Audit] {
        assert_eq!(Verdict::from_number(verdict as u8), Some(verdict));
    }
    for auth_type in [AuthType::Disabled, AuthType::Spire, AuthType::AlwaysFail] {
        assert_eq!(AuthType::from_number(auth_type as u8), Some(auth_type));
    }
    assert_eq!(EventKind::from_number(EventKind::AuthWanted as u8), Some(EventKind::AuthWanted));
    assert_eq!(Direction::from_number(2), None);
    assert_eq!(Mode::from_number(Mode::Observe as u64), Mode::Observe);
    assert_eq!(Mode::from_number(0), Mode::Enforce);
}

#[test]
fn counters_have_places_of_their_own() {
    let mut places = vec![metric::LOST_EVENTS];
    for hook in Hook::ALL {
        places.push(metric::index(hook, Verdict::Forwarded, None));
        for reason in DropReason::ALL {
            places.push(metric::index(hook, Verdict::Dropped, Some(*reason)));
            places.push(metric::index(hook, Verdict::Audit, Some(*reason)));
        }
    }
    assert!(places.iter().all(|place| *place < metric::COUNT));
    let count = places.len();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), count);
}

#[test]
fn maps_have_names_of_their_own() {
    let mut names = map::ALL.to_vec();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), map::ALL.len());
}

fn entries() -> impl Strategy<Value = PolicyEntry> {
    (0..3_u32, prop::sample::select(vec![0_u8, 8, 24]), 0..3_u8, 0..2_u8, any::<bool>()).prop_map(
        |(precedence, port_prefix, auth_type, auth_explicit, deny)| PolicyEntry {
            precedence: if deny { PolicyEntry::DENY_PRECEDENCE } else { precedence },
            port_prefix,
            deny: u8::from(deny),
            auth_type,
            auth_explicit,
            ..PolicyEntry::default()
        },
    )
}

proptest! {
    #[test]
    fn a_deny_always_wins(with in entries(), any in entries()) {
        let choice = choose(Some(with), Some(any)).expect("one of two");
        prop_assert_eq!(choice.entry.deny == 1, with.deny == 1 || any.deny == 1);
        prop_assert!(choice.entry == with || choice.entry == any);
        prop_assert!(choice.entry.precedence >= with.precedence.max(any.precedence));
    }

    #[test]
    fn authentication_is_never_weakened_by_derivation(with in entries(), any in entries()) {
        let choice = choose(Some(with), Some(any)).expect("one of two");
        prop_assert!(choice.auth_type >= choice.entry.auth_type);
    }

    #[test]
    fn addresses_convert_both_ways(bytes: [u8; 16], octets: [u8; 4]) {
        let address = Address::from_v4(octets);
        prop_assert!(address.is_v4() && Address::from(address.to_ip()) == address);
        prop_assert_eq!(Address::from(Address(bytes).to_ip()), Address(bytes));
        prop_assert_eq!(Address(bytes).is_v4(), Address(bytes).to_ip().is_ipv4());
    }

    #[test]
    fn address_classes_are_the_standard_librarys(bytes: [u8; 16], first in prop::sample::select(vec![0_u8, 0xfe, 0xff])) {
        let mut bytes = bytes;
        bytes[0] = first;
        let ip = std::net::Ipv6Addr::from(bytes);
        prop_assert_eq!(Address(bytes).is_multicast(), ip.is_multicast());
        prop_assert_eq!(Address(bytes).is_link_local(), ip.is_unicast_link_local());
        prop_assert_eq!(Address(bytes).is_unspecified(), ip.is_unspecified());
    }
}
