//! Real packets between two network namespaces, through the attached programs: no moment without one.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use auth_ebpf_abi::{
    AddressEntry, AuthType, Direction, EndpointEntry, Hook, Mode, PolicyEntry, PolicyKey, Setting, identity,
};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::scene::{HERE, HERE_ID, HOST};
use super::{Stranger, ip, open, with_each_mechanism};
use crate::{Datapath, Mechanism, detach_all};

const POD: &str = "10.0.1.10:7";
const NODE: &str = "192.168.0.1:7";
const LIMIT: Duration = Duration::from_millis(300);
/// Packets.
const BURST: u64 = 50;

/// A pod behind the interface `pod` of this thread's namespace; both have a socket.
struct Wire {
    pod: UdpSocket,
    node: UdpSocket,
}

impl Wire {
    fn new() -> Self {
        let pod =
            within("pod", &["address add 192.168.0.1/32 dev pod", "route add 10.0.1.10/32 dev pod"], || {
                ip("address add 10.0.1.10/32 dev eth0");
                ip("link set eth0 up");
                ip("route add default dev eth0");
                UdpSocket::bind(POD).unwrap()
            });
        let wire = Self { pod, node: UdpSocket::bind(NODE).unwrap() };
        wire.pod.set_read_timeout(Some(LIMIT)).unwrap();
        wire.node.set_read_timeout(Some(LIMIT)).unwrap();
        wire.settle();
        wire
    }

    /// Waits until the kernel has taken both ends into use and resolved them, which it may put off.
    fn settle(&self) {
        let both = || self.to_node() && self.to_pod();
        assert!((0..20).any(|_| both()), "without programs everything passes");
        // What came too late for an earlier attempt.
        for socket in [&self.pod, &self.node] {
            while socket.recv(&mut [0; 8]).is_ok() {}
        }
    }

    fn to_node(&self) -> bool {
        passes(&self.pod, &self.node, NODE)
    }

    fn to_pod(&self) -> bool {
        passes(&self.node, &self.pod, POD)
    }
}

/// Does `work` in a network namespace at the other end, `eth0`, of this interface, which these commands set up.
pub(super) fn within<T: Send + 'static>(
    interface: &str,
    commands: &[&str],
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    ip(&format!("link add {interface} type veth peer name eth0"));
    let (ready, wait) = mpsc::channel();
    let (go, gone) = mpsc::channel();
    let inside = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ready.send(gettid()).unwrap();
        gone.recv().unwrap();
        work()
    });
    let thread = wait.recv().unwrap();
    ip(&format!("link set eth0 netns {thread}"));
    ip(&format!("link set {interface} up"));
    commands.iter().copied().for_each(ip);
    go.send(()).unwrap();
    inside.join().unwrap()
}

fn passes(from: &UdpSocket, to: &UdpSocket, address: &str) -> bool {
    from.send_to(b"x", address.parse::<SocketAddr>().unwrap()).unwrap();
    to.recv(&mut [0; 8]).is_ok()
}

/// A node with one pod, to which policy allows nothing.
fn fill(datapath: &Datapath) {
    let maps = datapath.maps();
    for setting in [Setting::PolicyMode, Setting::EncryptionMode] {
        maps.config().set(setting, Mode::Enforce as u64).unwrap();
    }
    let ifindex = nix::net::if_::if_nametoindex("pod").unwrap();
    let endpoint = EndpointEntry { identity: HERE_ID, ifindex, epoch: 1, ..EndpointEntry::default() };
    maps.endpoints().insert(&HERE, &endpoint).unwrap();
    for (address, identity) in [(HERE, HERE_ID), (HOST, identity::HOST)] {
        let entry = AddressEntry { identity, ..AddressEntry::default() };
        maps.addresses().insert(&address, &entry).unwrap();
    }
}

fn allow(datapath: &Datapath) {
    let key = PolicyKey {
        local: HERE_ID,
        remote: identity::HOST,
        direction: Direction::Egress as u8,
        ..PolicyKey::default()
    };
    let entry = PolicyEntry {
        precedence: 1,
        cookie: 1,
        auth_type: AuthType::Disabled as u8,
        ..PolicyEntry::default()
    };
    let rule = (key, PolicyKey::prefix_len(None));
    datapath.maps().change_policy(std::iter::once((rule, Some(entry)))).unwrap();
}

fn attach(pin_dir: &Path, mechanism: Mechanism) -> Datapath {
    let mut datapath = open(pin_dir, mechanism);
    for hook in [Hook::FromPod, Hook::ToPod] {
        datapath.attach(hook, "pod").unwrap();
    }
    datapath
}

#[test]
fn packets_pass_and_drop_between_namespaces() {
    with_each_mechanism("packets_pass_and_drop_between_namespaces", |pin_dir, mechanism| {
        let wire = Wire::new();
        let datapath = attach(&pin_dir, mechanism);
        assert!(!wire.to_node(), "nobody knows the pod");
        fill(&datapath);
        assert!(!wire.to_node(), "no policy allows it");
        // From another port, so that nothing answers a packet of before.
        let other = UdpSocket::bind("192.168.0.1:8").unwrap();
        assert!(passes(&other, &wire.pod, POD), "the node reaches its pods");
        assert!(passes(&wire.pod, &other, "192.168.0.1:8"), "and they answer");
        allow(&datapath);
        assert!(wire.to_node());
        drop(datapath);
        assert!(wire.to_node(), "without a process too");
        assert_eq!(detach_all(&pin_dir).unwrap(), 2);
        super::eventually(|| wire.to_pod() && wire.to_node());
    });
}

#[test]
fn nothing_passes_while_programs_are_replaced_or_overtaken() {
    with_each_mechanism("nothing_passes_while_programs_are_replaced_or_overtaken", |pin_dir, mechanism| {
        let wire = Wire::new();
        let datapath = attach(&pin_dir, mechanism);
        fill(&datapath);
        drop(datapath);
        let (stop, stopped) = mpsc::channel::<()>();
        let sender = wire.pod.try_clone().unwrap();
        let flood = thread::spawn(move || {
            let mut sent = 0_u32;
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                sender.send_to(b"x", NODE).unwrap();
                sent += 1;
            }
            sent
        });
        for round in 0..3 {
            // An upgraded daemon, which then finds somebody ahead of it.
            let mut datapath = attach(&pin_dir, mechanism);
            let pins = pin_dir.with_file_name(format!("other-{round}"));
            let stranger = Stranger::attach(&pins, Hook::FromPod, "pod", mechanism, true);
            datapath.attach(Hook::FromPod, "pod").unwrap();
            drop(stranger);
        }
        stop.send(()).unwrap();
        assert!(flood.join().unwrap() > 100);
        assert!(wire.node.recv(&mut [0; 8]).is_err(), "a packet got through");
    });
}

#[test]
fn programs_behind_ours_see_what_passes_and_nothing_else() {
    with_each_mechanism("programs_behind_ours_see_what_passes_and_nothing_else", |pin_dir, mechanism| {
        let wire = Wire::new();
        let datapath = attach(&pin_dir, mechanism);
        fill(&datapath);
        let behind = pin_dir.with_file_name("behind");
        let stranger = Stranger::attach(&behind, Hook::FromPod, "pod", mechanism, false);
        // Neighbour discovery passes too, so it takes more packets than there can be of that.
        let seen_of_burst = || {
            let before = stranger.seen();
            for _ in 0..BURST {
                wire.pod.send_to(b"x", NODE).unwrap();
            }
            stranger.seen() - before
        };
        assert!(seen_of_burst() < BURST);
        allow(&datapath);
        assert!(seen_of_burst() >= BURST);
    });
}
