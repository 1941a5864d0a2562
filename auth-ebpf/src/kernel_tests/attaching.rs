//! Attaching, with real interfaces.

use auth_ebpf_abi::Hook;

use super::{Stranger, eventually, in_namespaces, ip, open, programs_at, veth, with_each_mechanism};
use crate::links::links_dir;
use crate::{Attached, Attachment, Error, Mechanism, attachments, detach_all};

/// An interface for each pair of hooks; one with a dot, as VLAN interfaces have it.
fn interface(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod | Hook::ToPod => "pod.1",
        Hook::FromWireguard | Hook::ToWireguard => "tunnel",
        Hook::FromUplink | Hook::ToUplink => "uplink",
        Hook::FromHold | Hook::ToHold => "hold",
    }
}

#[test]
fn all_programs_attach_and_see_packets() {
    with_each_mechanism("all_programs_attach_and_see_packets", |pin_dir, mechanism| {
        let mut datapath = open(&pin_dir, mechanism);
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
    with_each_mechanism("attaching_again_changes_nothing", |pin_dir, mechanism| {
        let mut datapath = open(&pin_dir, mechanism);
        veth("pod");
        datapath.attach(Hook::FromPod, "pod").unwrap();
        let before = programs_at(Hook::FromPod, "pod", mechanism);
        datapath.attach(Hook::FromPod, "pod").unwrap();
        assert_eq!(programs_at(Hook::FromPod, "pod", mechanism), before);
        assert_eq!(before.len(), 1);
    });
}

#[test]
fn programs_outlive_their_process_and_are_replaced_in_place() {
    with_each_mechanism("programs_outlive_their_process_and_are_replaced_in_place", |pin_dir, mechanism| {
        veth("pod");
        let mut first = open(&pin_dir, mechanism);
        first.attach(Hook::ToPod, "pod").unwrap();
        let old = programs_at(Hook::ToPod, "pod", mechanism);
        drop(first);
        assert_eq!(programs_at(Hook::ToPod, "pod", mechanism), old);
        let mut second = open(&pin_dir, mechanism);
        assert_eq!(second.attachments().unwrap().len(), 1);
        second.attach(Hook::ToPod, "pod").unwrap();
        let new = programs_at(Hook::ToPod, "pod", mechanism);
        assert_eq!(new.len(), 1);
        assert_ne!(new, old);
        drop(second);
        assert_eq!(programs_at(Hook::ToPod, "pod", mechanism), new);
    });
}

#[test]
fn displaced_programs_get_ahead_again() {
    with_each_mechanism("displaced_programs_get_ahead_again", |pin_dir, mechanism| {
        veth("pod");
        let mut datapath = open(&pin_dir, mechanism);
        for hook in [Hook::FromPod, Hook::ToPod] {
            datapath.attach(hook, "pod").unwrap();
        }
        let ours = programs_at(Hook::FromPod, "pod", mechanism);
        // Somebody else, who also wants to be first.
        let mut other =
            Stranger::attach(&pin_dir.with_file_name("other"), Hook::FromPod, "pod", mechanism, true);
        let theirs = other.id();
        assert_eq!(programs_at(Hook::FromPod, "pod", mechanism), [theirs, ours[0]]);
        assert!(!datapath.attachments().unwrap()[0].at_head);
        for found in [Attached::Displaced, Attached::Kept] {
            assert_eq!(datapath.attach(Hook::FromPod, "pod").unwrap(), found);
            assert_ne!(programs_at(Hook::FromPod, "pod", mechanism)[0], theirs);
        }
        eventually(|| programs_at(Hook::FromPod, "pod", mechanism).len() == 2);
        assert_eq!(programs_at(Hook::FromPod, "pod", mechanism)[1], theirs);
        assert!(datapath.attachments().unwrap()[0].at_head);
        // What that took here is nothing that others have done there.
        assert_ne!(datapath.attach(Hook::ToPod, "pod").unwrap(), Attached::Removed);
        assert_eq!(datapath.attach(Hook::ToPod, "pod").unwrap(), Attached::Kept);
    });
}

#[test]
fn a_program_that_somebody_put_in_our_place_goes() {
    with_each_mechanism("a_program_that_somebody_put_in_our_place_goes", |pin_dir, mechanism| {
        veth("pod");
        let mut ours = open(&pin_dir, mechanism);
        let mut theirs = open(&pin_dir, mechanism);
        assert_eq!(ours.attach(Hook::ToPod, "pod").unwrap(), Attached::Anew);
        let before = programs_at(Hook::ToPod, "pod", mechanism);
        assert_eq!(theirs.attach(Hook::ToPod, "pod").unwrap(), Attached::Replaced);
        assert_ne!(programs_at(Hook::ToPod, "pod", mechanism), before);
        for found in [Attached::Removed, Attached::Kept] {
            assert_eq!(ours.attach(Hook::ToPod, "pod").unwrap(), found);
            assert_eq!(programs_at(Hook::ToPod, "pod", mechanism), before);
        }
    });
}

#[test]
fn programs_that_somebody_took_off_come_back() {
    with_each_mechanism("programs_that_somebody_took_off_come_back", |pin_dir, mechanism| {
        veth("pod");
        let mut datapath = open(&pin_dir, mechanism);
        assert_eq!(datapath.attach(Hook::FromPod, "pod").unwrap(), Attached::Anew);
        match mechanism {
            Mechanism::Tcx => {
                std::fs::remove_dir_all(links_dir(&pin_dir)).unwrap();
                std::fs::create_dir(links_dir(&pin_dir)).unwrap();
                eventually(|| programs_at(Hook::FromPod, "pod", mechanism).is_empty());
            }
            Mechanism::Clsact => tc("filter del dev pod ingress"),
        }
        assert_eq!(datapath.attachments().unwrap(), []);
        for found in [Attached::Removed, Attached::Kept] {
            assert_eq!(datapath.attach(Hook::FromPod, "pod").unwrap(), found);
        }
        assert_eq!(programs_at(Hook::FromPod, "pod", mechanism).len(), 1);
    });
}

/// With TCX nothing of clsact can be ahead.
#[test]
fn a_filter_of_another_kind_stays_ahead_and_is_reported() {
    in_namespaces("a_filter_of_another_kind_stays_ahead_and_is_reported", |pin_dir| {
        let mechanism = Mechanism::Clsact;
        veth("pod");
        tc("qdisc add dev pod clsact");
        tc("filter add dev pod ingress prio 1 u32 match u32 1 0xffffffff flowid 1:1");
        let mut datapath = open(&pin_dir, mechanism);
        for _ in 0..2 {
            assert_eq!(datapath.attach(Hook::FromPod, "pod").unwrap(), Attached::Behind);
            assert_eq!(programs_at(Hook::FromPod, "pod", mechanism).len(), 1);
            assert!(!datapath.attachments().unwrap()[0].at_head);
        }
        tc("filter del dev pod ingress prio 1");
        assert!(datapath.attachments().unwrap()[0].at_head);
        assert_eq!(datapath.attach(Hook::FromPod, "pod").unwrap(), Attached::Displaced);
        assert_eq!(datapath.attach(Hook::FromPod, "pod").unwrap(), Attached::Kept);
    });
}

#[test]
fn the_other_mechanism_takes_over() {
    if Mechanism::detect().is_ok_and(|mechanism| mechanism == Mechanism::Clsact) {
        return;
    }
    with_each_mechanism("the_other_mechanism_takes_over", |pin_dir, mechanism| {
        let before = match mechanism {
            Mechanism::Tcx => Mechanism::Clsact,
            Mechanism::Clsact => Mechanism::Tcx,
        };
        veth("pod");
        open(&pin_dir, before).attach(Hook::FromPod, "pod").unwrap();
        assert_eq!(open(&pin_dir, mechanism).attach(Hook::FromPod, "pod").unwrap(), Attached::Anew);
        eventually(|| programs_at(Hook::FromPod, "pod", before).is_empty());
        assert_eq!(programs_at(Hook::FromPod, "pod", mechanism).len(), 1);
        assert_eq!(attachments(&pin_dir).unwrap().len(), 1);
        assert_eq!(detach_all(&pin_dir).unwrap(), 1);
    });
}

#[test]
fn an_interface_made_anew_gets_a_program_anew() {
    with_each_mechanism("an_interface_made_anew_gets_a_program_anew", |pin_dir, mechanism| {
        let mut datapath = open(&pin_dir, mechanism);
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
    with_each_mechanism("detaching_takes_effect_with_the_process_alive", |pin_dir, mechanism| {
        let mut datapath = open(&pin_dir, mechanism);
        veth("pod");
        for hook in [Hook::FromPod, Hook::ToPod] {
            datapath.attach(hook, "pod").unwrap();
        }
        datapath.detach(Hook::FromPod, "pod").unwrap();
        eventually(|| programs_at(Hook::FromPod, "pod", mechanism).is_empty());
        assert_eq!(programs_at(Hook::ToPod, "pod", mechanism).len(), 1);
        assert_eq!(detach_all(&pin_dir).unwrap(), 1);
        eventually(|| programs_at(Hook::ToPod, "pod", mechanism).is_empty());
        assert!(!pin_dir.exists());
        assert_eq!(detach_all(&pin_dir).unwrap(), 0);
    });
}

#[test]
fn attaching_right_after_detaching_works() {
    with_each_mechanism("attaching_right_after_detaching_works", |pin_dir, mechanism| {
        let mut datapath = open(&pin_dir, mechanism);
        veth("pod");
        for _ in 0..5 {
            datapath.attach(Hook::FromPod, "pod").unwrap();
            assert!(datapath.attachments().unwrap()[0].at_head);
            datapath.detach(Hook::FromPod, "pod").unwrap();
        }
        eventually(|| programs_at(Hook::FromPod, "pod", mechanism).is_empty());
    });
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    with_each_mechanism("an_interface_that_is_not_there_is_named", |pin_dir, mechanism| {
        let error = open(&pin_dir, mechanism).attach(Hook::FromPod, "nowhere").unwrap_err();
        assert!(matches!(&error, Error::NoInterface { interface } if interface == "nowhere"), "{error}");
    });
}

fn tc(arguments: &str) {
    let output = std::process::Command::new("tc").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
