//! Opening and adopting: pins, versions, tables.

use std::collections::BTreeMap;
use std::path::Path;

use auth_ebpf_abi::{Address, AddressEntry, EndpointEntry, Mode, SCHEMA_VERSION, Setting, capacity, map};
use aya::maps::MapData;

use super::in_namespaces;
use super::scene::{HERE, THERE, WORLD, v4};
use crate::{Changes, Datapath, Error, Maps, Options, detach_all};

fn open(pin_dir: &Path) -> Datapath {
    Datapath::open(&Options { pin_dir: pin_dir.to_owned() }).unwrap()
}

#[test]
fn a_second_process_adopts_what_the_first_has_pinned() {
    in_namespaces("a_second_process_adopts_what_the_first_has_pinned", |pin_dir| {
        let first = open(&pin_dir);
        first.maps().config().set(Setting::PolicyMode, Mode::Observe as u64).unwrap();
        first.maps().endpoints().insert(&HERE, &EndpointEntry::default()).unwrap();
        drop(first);
        let second = open(&pin_dir);
        assert_eq!(second.maps().config().get(Setting::PolicyMode).unwrap(), Mode::Observe as u64);
        assert_eq!(second.maps().config().get(Setting::Schema).unwrap(), SCHEMA_VERSION);
        assert_eq!(second.maps().endpoints().get(&HERE).unwrap(), Some(EndpointEntry::default()));
        // Without any process as well.
        drop(second);
        let maps = Maps::open_pinned(&pin_dir).unwrap();
        assert_eq!(maps.endpoints().entries().unwrap().len(), 1);
    });
}

#[test]
fn maps_of_another_version_are_refused_and_left_alone() {
    in_namespaces("maps_of_another_version_are_refused_and_left_alone", |pin_dir| {
        open(&pin_dir).maps().config().set(Setting::Schema, 99).unwrap();
        for refused in [
            Datapath::open(&Options { pin_dir: pin_dir.clone() }).map(drop),
            Maps::open_pinned(&pin_dir).map(drop),
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::Schema { found: 99, expected: SCHEMA_VERSION, .. }), "{error}");
            assert!(error.to_string().contains("authctl detach"), "{error}");
        }
        assert_eq!(detach_all(&pin_dir).unwrap(), 0);
        open(&pin_dir);
    });
}

#[test]
fn a_pinned_map_of_other_sizes_is_refused() {
    in_namespaces("a_pinned_map_of_other_sizes_is_refused", |pin_dir| {
        drop(open(&pin_dir));
        let put = |source, map| {
            std::fs::remove_file(pin_dir.join(map)).unwrap();
            MapData::from_pin(pin_dir.join(source)).unwrap().pin(pin_dir.join(map)).unwrap();
            Datapath::open(&Options { pin_dir: pin_dir.clone() }).unwrap_err()
        };
        let error = put(map::NODES, map::AUTH);
        assert!(matches!(error, Error::Layout { field: "capacity", found: 32_769, .. }), "{error}");
        let error = put(map::QUOTAS, map::ENDPOINTS);
        assert!(matches!(error, Error::Layout { field: "key size", found: 4, expected: 16, .. }), "{error}");
    });
}

#[test]
fn a_map_that_is_missing_is_made_again() {
    in_namespaces("a_map_that_is_missing_is_made_again", |pin_dir| {
        drop(open(&pin_dir));
        std::fs::remove_file(pin_dir.join(map::AUTH)).unwrap();
        assert!(matches!(Maps::open_pinned(&pin_dir), Err(Error::NotPinned { .. })));
        open(&pin_dir);
        assert!(pin_dir.join(map::AUTH).exists());
    });
}

#[test]
fn another_file_system_is_refused() {
    in_namespaces("another_file_system_is_refused", |_| {
        let directory = tempfile::tempdir().unwrap();
        let pin_dir = directory.path().join("authd");
        let error = Datapath::open(&Options { pin_dir: pin_dir.clone() }).unwrap_err();
        assert!(matches!(error, Error::NotBpffs { .. }), "{error}");
        assert!(!pin_dir.exists());
        assert!(matches!(Maps::open_pinned(&pin_dir), Err(Error::NotPinned { .. })));
    });
}

#[test]
fn tables_are_reconciled() {
    in_namespaces("tables_are_reconciled", |pin_dir| {
        let datapath = open(&pin_dir);
        let entry = |identity| AddressEntry { identity, ..AddressEntry::default() };
        let table = datapath.maps().addresses();
        let first = BTreeMap::from([(HERE, entry(1)), (THERE, entry(2))]);
        assert_eq!(table.reconcile(&first).unwrap(), Changes { added: 2, changed: 0, removed: 0 });
        let second = BTreeMap::from([(HERE, entry(3)), (WORLD, entry(4))]);
        assert_eq!(table.reconcile(&second).unwrap(), Changes { added: 1, changed: 1, removed: 1 });
        assert_eq!(table.reconcile(&second).unwrap(), Changes::default());
        assert_eq!(table.entries().unwrap(), second.into_iter().collect::<Vec<_>>());
        assert!(table.remove(&HERE).unwrap());
        assert!(!table.remove(&HERE).unwrap());
        assert_eq!(table.get(&HERE).unwrap(), None);
    });
}

#[test]
fn tries_find_the_longest_match() {
    in_namespaces("tries_find_the_longest_match", |pin_dir| {
        let datapath = open(&pin_dir);
        let entry = |identity| AddressEntry { identity, ..AddressEntry::default() };
        let table = datapath.maps().prefixes();
        let wide = (v4([10, 0, 0, 0]), Address::V4_PREFIX_BITS + 8);
        let narrow = (v4([10, 1, 0, 0]), Address::V4_PREFIX_BITS + 16);
        table.reconcile(&BTreeMap::from([(wide, entry(1)), (narrow, entry(2))])).unwrap();
        let find = |octets| table.get(&(v4(octets), 128)).unwrap().map(|entry| entry.identity);
        assert_eq!([find([10, 1, 2, 3]), find([10, 2, 2, 3]), find([11, 0, 0, 1])], [Some(2), Some(1), None]);
        assert_eq!(table.entries().unwrap().len(), 2);
        assert_eq!(table.reconcile(&BTreeMap::new()).unwrap().removed, 2);
    });
}

#[test]
fn a_full_map_says_so() {
    in_namespaces("a_full_map_says_so", |pin_dir| {
        let datapath = open(&pin_dir);
        let address = |number: usize| Address(u128::try_from(number).unwrap().to_be_bytes());
        let endpoints =
            (0..capacity::ENDPOINTS).map(|number| (address(number), EndpointEntry::default())).collect();
        datapath.maps().endpoints().reconcile(&endpoints).unwrap();
        let error = datapath
            .maps()
            .endpoints()
            .insert(&address(capacity::ENDPOINTS), &EndpointEntry::default())
            .unwrap_err();
        assert_eq!(error.to_string(), "map endpoints is full: it holds 4096 entries");

        let prefix = |number: usize| ((address(number), 128), AddressEntry::default());
        let prefixes: BTreeMap<_, _> = (0..=capacity::PREFIXES).map(prefix).collect();
        let error = datapath.maps().prefixes().reconcile(&prefixes).unwrap_err();
        assert!(matches!(error, Error::Full { map: map::PREFIXES, .. }), "{error}");
    });
}
