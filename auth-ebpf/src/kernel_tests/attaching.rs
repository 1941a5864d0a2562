//! Attaching, with real interfaces.

use std::path::Path;
use std::time::{Duration, Instant};

use auth_ebpf_abi::{Hook, map};
use aya::programs::{LinkOrder, SchedClassifier, tc::TcAttachOptions};

use super::{in_namespaces, ip};
use crate::links::links_dir;
use crate::object::attach_type;
use crate::{Attachment, Datapath, Error, Options, attachments, detach_all};

fn open(pin_dir: &Path) -> Datapath {
    Datapath::open(&Options { pin_dir: pin_dir.to_owned() }).unwrap()
}

fn veth(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}-p"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set {name}-p up"));
}

/// An interface for each pair of hooks; one with a dot, as VLAN interfaces have it.
fn interface(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod | Hook::ToPod => "pod.1",
        Hook::FromWireguard | Hook::ToWireguard => "tunnel",
        Hook::FromUplink | Hook::ToUplink => "uplink",
        Hook::FromHold | Hook::ToHold => "hold",
    }
}

/// Waits, in this test's own thread, for what the kernel does a little later.
#[expect(clippy::disallowed_methods, reason = "no runtime here whose thread it could block")]
fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within ten seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn program_at(hook: Hook, interface: &str) -> Vec<u32> {
    let (_, programs) = SchedClassifier::query_tcx(interface, attach_type(hook)).unwrap();
    programs.iter().map(aya::programs::ProgramInfo::id).collect()
}

#[test]
fn all_programs_attach_and_see_packets() {
    in_namespaces("all_programs_attach_and_see_packets", |pin_dir| {
        let mut datapath = open(&pin_dir);
        for hook in Hook::ALL {
            let interface = interface(hook);
            if nix::net::if_::if_nametoindex(interface).is_err() {
                veth(interface);
            }
            datapath.attach(hook, interface).unwrap();
        }
        let attached = datapath.attachments().unwrap();
        assert_eq!(attached.len(), Hook::ALL.len());
        assert!(attached.iter().all(|attachment| attachment.interface == interface(attachment.hook)));
        // The kernel's own neighbour discovery comes over the pairs.
        for hook in Hook::ALL {
            ip(&format!("link set {}-p down", interface(hook)));
            ip(&format!("link set {}-p up", interface(hook)));
        }
        eventually(|| {
            let counters = datapath.maps().metrics().unwrap().counters;
            Hook::ALL.iter().all(|hook| counters.keys().any(|(at, _, _)| at == hook))
        });
    });
}

#[test]
fn attaching_again_changes_nothing() {
    in_namespaces("attaching_again_changes_nothing", |pin_dir| {
        let mut datapath = open(&pin_dir);
        veth("pod");
        datapath.attach(Hook::FromPod, "pod").unwrap();
        let before = program_at(Hook::FromPod, "pod");
        datapath.attach(Hook::FromPod, "pod").unwrap();
        assert_eq!(program_at(Hook::FromPod, "pod"), before);
        assert_eq!(before.len(), 1);
    });
}

#[test]
fn programs_outlive_their_process_and_are_replaced_in_place() {
    in_namespaces("programs_outlive_their_process_and_are_replaced_in_place", |pin_dir| {
        veth("pod");
        let mut first = open(&pin_dir);
        first.attach(Hook::ToPod, "pod").unwrap();
        let old = program_at(Hook::ToPod, "pod");
        drop(first);
        assert_eq!(program_at(Hook::ToPod, "pod"), old);
        let mut second = open(&pin_dir);
        assert_eq!(second.attachments().unwrap().len(), 1);
        second.attach(Hook::ToPod, "pod").unwrap();
        let new = program_at(Hook::ToPod, "pod");
        assert_eq!(new.len(), 1);
        assert_ne!(new, old);
        drop(second);
        assert_eq!(program_at(Hook::ToPod, "pod"), new);
    });
}

#[test]
fn displaced_programs_get_ahead_again() {
    in_namespaces("displaced_programs_get_ahead_again", |pin_dir| {
        veth("pod");
        let mut datapath = open(&pin_dir);
        datapath.attach(Hook::FromPod, "pod").unwrap();
        // Somebody else, who also wants to be first.
        let mut other = aya::EbpfLoader::new();
        let other_pins = pin_dir.with_file_name("other");
        std::fs::create_dir(&other_pins).unwrap();
        for name in map::ALL {
            other.map_pin_path(name, other_pins.join(name));
        }
        let mut other = other.load(crate::object::OBJECT).unwrap();
        let program: &mut SchedClassifier = other.program_mut("from_uplink").unwrap().try_into().unwrap();
        program.load().unwrap();
        let theirs = program.info().unwrap().id();
        program
            .attach_with_options(
                "pod",
                attach_type(Hook::FromPod),
                TcAttachOptions::TcxOrder(LinkOrder::first()),
            )
            .unwrap();
        assert_eq!(program_at(Hook::FromPod, "pod")[0], theirs);
        assert!(!datapath.attachments().unwrap()[0].at_head);
        datapath.attach(Hook::FromPod, "pod").unwrap();
        assert_ne!(program_at(Hook::FromPod, "pod")[0], theirs);
        eventually(|| program_at(Hook::FromPod, "pod").len() == 2);
        assert_eq!(program_at(Hook::FromPod, "pod")[1], theirs);
        assert!(datapath.attachments().unwrap()[0].at_head);
    });
}

#[test]
fn an_interface_made_anew_gets_a_program_anew() {
    in_namespaces("an_interface_made_anew_gets_a_program_anew", |pin_dir| {
        let mut datapath = open(&pin_dir);
        for _ in 0..2 {
            veth("pod");
            datapath.attach(Hook::FromPod, "pod").unwrap();
            let attached = attachments(&pin_dir).unwrap();
            assert_eq!(attached.len(), 1);
            assert_eq!(attached[0].ifindex, nix::net::if_::if_nametoindex("pod").unwrap());
            ip("link del pod");
            assert_eq!(attachments(&pin_dir).unwrap(), []);
        }
        // The same index again: the pin is there, its link is dead.
        for _ in 0..2 {
            ip("link add pod index 77 type veth peer name pod-p");
            datapath.attach(Hook::FromPod, "pod").unwrap();
            let expected =
                Attachment { hook: Hook::FromPod, interface: "pod".into(), ifindex: 77, at_head: true };
            assert_eq!(attachments(&pin_dir).unwrap(), [expected]);
            ip("link del pod");
        }
        datapath.detach(Hook::FromPod, "pod").unwrap();
        assert_eq!(std::fs::read_dir(links_dir(&pin_dir)).unwrap().count(), 0);
    });
}

#[test]
fn detaching_takes_effect_with_the_process_alive() {
    in_namespaces("detaching_takes_effect_with_the_process_alive", |pin_dir| {
        let mut datapath = open(&pin_dir);
        veth("pod");
        for hook in [Hook::FromPod, Hook::ToPod] {
            datapath.attach(hook, "pod").unwrap();
        }
        datapath.detach(Hook::FromPod, "pod").unwrap();
        eventually(|| program_at(Hook::FromPod, "pod").is_empty());
        assert_eq!(program_at(Hook::ToPod, "pod").len(), 1);
        assert_eq!(detach_all(&pin_dir).unwrap(), 1);
        eventually(|| program_at(Hook::ToPod, "pod").is_empty());
        assert!(!pin_dir.exists());
        assert_eq!(detach_all(&pin_dir).unwrap(), 0);
    });
}

#[test]
fn attaching_right_after_detaching_works() {
    in_namespaces("attaching_right_after_detaching_works", |pin_dir| {
        let mut datapath = open(&pin_dir);
        veth("pod");
        for _ in 0..5 {
            datapath.attach(Hook::FromPod, "pod").unwrap();
            assert!(datapath.attachments().unwrap()[0].at_head);
            datapath.detach(Hook::FromPod, "pod").unwrap();
        }
        eventually(|| program_at(Hook::FromPod, "pod").is_empty());
    });
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    in_namespaces("an_interface_that_is_not_there_is_named", |pin_dir| {
        let error = open(&pin_dir).attach(Hook::FromPod, "nowhere").unwrap_err();
        assert!(matches!(&error, Error::NoInterface { interface } if interface == "nowhere"), "{error}");
    });
}
