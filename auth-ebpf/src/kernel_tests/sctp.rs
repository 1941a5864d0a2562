//! Associations of SCTP between sockets of two pods, through the attached programs: with what packets that a test
//! writes down don't have, checksums and segments that the kernel leaves for later, and addresses within chunks.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use auth_ebpf_abi::packet::{Ports, protocol};
use auth_ebpf_abi::{
    Address, AuthEntry, AuthKey, AuthType, ConnectionKey, Counter, Direction, DropReason, Hook, PolicyEntry,
    PolicyKey, Setting, Verdict, loopback,
};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, listen,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::direct::{NEIGHBOUR_V6, in_pod, two_pods};
use super::fill::{MINUTE, boot_time, fill};
use super::scene::*;
use super::{eventually, ip, with_each_mechanism};
use crate::{Datapath, Maps, Mechanism};

const PORT: u16 = 36412;
const OTHER_PORT: u16 = PORT + 1;
/// Whole seconds after which nothing is expected any more.
const LIMIT: i64 = 4;
/// Of messages: in one chunk, in some, in so many that the kernel makes one packet of several at first.
const LENGTHS: [usize; 3] = [1, 4_000, 60_000];
/// Client, service and server.
const FAMILIES: [(Address, Address, Address); 2] =
    [(HERE, SERVICE, NEIGHBOUR), (HERE_V6, SERVICE_V6, NEIGHBOUR_V6)];

/// A pod's network namespace, for as long as this lives.
struct Pod(File);

impl Pod {
    /// Its associations notice losses sooner than by default, and stand more of them.
    fn new(interface: &str, addresses: [&'static str; 2]) -> Self {
        Self(in_pod(interface, addresses, || {
            for (setting, value) in [
                ("rto_min", "100"),
                ("rto_initial", "200"),
                ("rto_max", "400"),
                ("association_max_retrans", "100"),
            ] {
                fs::write(format!("/proc/sys/net/sctp/{setting}"), value).unwrap();
            }
            File::open("/proc/thread-self/ns/net").unwrap()
        }))
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    /// A socket that waits for nothing longer than [`LIMIT`].
    fn socket(&self, at: SocketAddr) -> TcpStream {
        let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = self.inside(|| {
            socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp)
                .expect("a kernel with SCTP")
        });
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(LIMIT)).unwrap();
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(LIMIT)).unwrap();
        socket.into()
    }

    /// A socket with this address, which one whose association has just ended may still have.
    fn bound(&self, at: SocketAddr) -> TcpStream {
        let socket = self.socket(at);
        let bind = || bind(socket.as_raw_fd(), &SockaddrStorage::from(at));
        eventually(|| bind() != Err(Errno::EADDRINUSE));
        socket
    }

    fn listen(&self, at: SocketAddr) -> TcpListener {
        let socket = self.bound(at);
        listen(&socket, Backlog::new(8).unwrap()).unwrap();
        OwnedFd::from(socket).into()
    }

    fn connect(&self, to: SocketAddr) -> nix::Result<TcpStream> {
        associate(self.socket(to), to)
    }

    fn connect_from(&self, at: SocketAddr, to: SocketAddr) -> nix::Result<TcpStream> {
        associate(self.bound(at), to)
    }

    /// What SCTP of this pod has counted under this name.
    fn counted(&self, name: &str) -> u64 {
        let counters = self.inside(|| fs::read_to_string("/proc/net/sctp/snmp").unwrap());
        let line = counters.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// How packets go from pod to pod.
#[derive(Clone, Copy, Debug)]
enum Way {
    Host,
    /// Where the host forwards nothing.
    Straight,
}

/// Two pods of a node, HERE and NEIGHBOUR, of which the first may open associations with the second's PORT and nothing
/// else may be. That port of the services is the second's.
struct Node {
    here: Pod,
    neighbour: Pod,
    datapath: Datapath,
}

impl Node {
    fn new(pin_dir: &Path, mechanism: Mechanism) -> Self {
        let here = Pod::new("here", ["10.0.1.10", "fd00:0:0:1::10"]);
        let neighbour = Pod::new("neighbour", ["10.0.1.11", "fd00:0:0:1::11"]);
        let mut node = Self { here, neighbour, datapath: super::open(pin_dir, mechanism) };
        node.forward(Way::Host);
        for interface in ["here", "neighbour"] {
            for hook in [Hook::FromPod, Hook::ToPod] {
                node.datapath.attach(hook, interface).unwrap();
            }
        }
        node
    }

    /// Has what is associated from here on go this way.
    fn forward(&self, way: Way) {
        let (mtu, forwards) = match way {
            Way::Host => (0, "1"),
            Way::Straight => (1500, "0"),
        };
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{setting}"), forwards).unwrap();
        }
        let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
        let mut tables = two_pods(index("here"), index("neighbour"), mtu);
        tables.policy.clear();
        for (local, remote, direction) in
            [(HERE_ID, NEIGHBOUR_ID, Direction::Egress), (NEIGHBOUR_ID, HERE_ID, Direction::Ingress)]
        {
            let (key, entry) = rule(local, remote, direction, AuthType::Disabled);
            tables.policy.insert(key, entry);
        }
        for (number, (_, service, server)) in (1..).zip(FAMILIES) {
            serve(&mut tables, service, PORT, number, 0, &[(server, PORT)]);
        }
        fill(self.datapath.maps(), &tables);
    }

    fn dropped(&self, hook: Hook, reason: DropReason) -> u64 {
        let counters = self.datapath.maps().metrics().unwrap().counters;
        counters.get(&(hook, Verdict::Dropped, Some(reason))).map_or(0, |counter: &Counter| counter.packets)
    }

    /// What is remembered of an association that HERE has opened.
    fn remembers(&self, client: Address, port: u16, server: Address) -> bool {
        let key = ConnectionKey {
            local: client,
            remote: server,
            ports: Ports::new(port.to_be_bytes(), PORT.to_be_bytes()),
            kind: ConnectionKey::kind(protocol::SCTP, 0),
        };
        let maps = self.datapath.maps();
        let of_client = maps.connections().get(&key).unwrap().is_some();
        of_client && maps.connections().get(&key.of_other_end()).unwrap().is_some()
    }

    /// An association with this address, and the server's end of it.
    fn associate(&self, listener: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
        let client = self.here.connect(to).unwrap();
        let (server, from) = listener.accept().unwrap();
        assert_eq!(from.port(), client.local_addr().unwrap().port());
        (client, server)
    }
}

fn rule(local: u32, remote: u32, direction: Direction, auth: AuthType) -> ((PolicyKey, u32), PolicyEntry) {
    let key = PolicyKey {
        local,
        remote,
        direction: direction as u8,
        protocol: protocol::SCTP,
        port: PORT.to_be_bytes(),
    };
    let entry = PolicyEntry {
        precedence: 1,
        cookie: 9,
        port_prefix: 24,
        auth_type: auth as u8,
        ..PolicyEntry::default()
    };
    ((key, PolicyKey::FULL_BITS), entry)
}

fn associate(socket: TcpStream, to: SocketAddr) -> nix::Result<TcpStream> {
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).map(|()| socket)
}

fn at(address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_ip(), port)
}

/// Has messages go both ways.
fn talk(client: &mut TcpStream, server: &mut TcpStream) {
    for length in LENGTHS {
        tell(client, server, length);
        tell(server, client, length);
    }
}

fn tell(from: &mut TcpStream, to: &mut TcpStream, length: usize) {
    let message: Vec<u8> = (0..length).map(|place| u8::try_from(place % 251).unwrap()).collect();
    assert_eq!(from.write(&message).unwrap(), length);
    let mut received = vec![0; length];
    to.read_exact(&mut received).unwrap_or_else(|error| panic!("{error} of {length} bytes"));
    assert!(received == message, "{length} bytes came as others");
}

fn silent(stream: &mut TcpStream) -> bool {
    let outcome = stream.read(&mut [0; 8]);
    outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Ends an association by its handshake.
fn end(client: TcpStream, mut server: TcpStream) {
    drop(client);
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0, "it says that it ends");
}

#[test]
fn an_association_is_established_where_policy_allows_its_port() {
    with_each_mechanism(
        "an_association_is_established_where_policy_allows_its_port",
        |pin_dir, mechanism| {
            let node = Node::new(&pin_dir, mechanism);
            for (client, _, server) in FAMILIES {
                let listener = node.neighbour.listen(at(server, PORT));
                let other = node.neighbour.listen(at(server, OTHER_PORT));
                let (mut here, mut there) = node.associate(&listener, at(server, PORT));
                talk(&mut here, &mut there);
                assert!(node.remembers(client, here.local_addr().unwrap().port(), server));

                let before = node.dropped(Hook::FromPod, DropReason::PolicyDenied);
                assert!(node.here.connect(at(server, OTHER_PORT)).is_err());
                assert!(other.accept().is_err(), "nothing reaches a port that policy does not name");
                assert!(node.dropped(Hook::FromPod, DropReason::PolicyDenied) > before);

                let port = here.local_addr().unwrap().port();
                end(here, there);
                drop(listener);
                let back = node.here.listen(at(client, port));
                assert!(node.remembers(client, port, server));
                assert!(node.neighbour.connect_from(at(server, PORT), at(client, port)).is_err());
                assert!(back.accept().is_err(), "who has been asked may not ask, on the same ports either");

                assert_eq!(
                    node.here.connect(at(server, PORT)).err(),
                    Some(Errno::ECONNREFUSED),
                    "by an ABORT"
                );
            }
        },
    );
}

#[test]
fn what_takes_leave_or_proof_away_stops_an_association() {
    with_each_mechanism("what_takes_leave_or_proof_away_stops_an_association", |pin_dir, mechanism| {
        let node = Node::new(&pin_dir, mechanism);
        let maps = node.datapath.maps();
        let (key, entry) = rule(NEIGHBOUR_ID, HERE_ID, Direction::Ingress, AuthType::Spire);
        maps.policy().insert(&key, &entry).unwrap();
        let pair = AuthKey {
            local: NEIGHBOUR_ID,
            remote: HERE_ID,
            node: 0,
            auth_type: AuthType::Spire as u8,
            pad: 0,
        };
        let proof = AuthEntry { expires: boot_time() + 60 * MINUTE, epoch: 0, flags: 0 };
        for (.., server) in FAMILIES {
            let listener = node.neighbour.listen(at(server, PORT));
            assert!(node.here.connect(at(server, PORT)).is_err(), "not authenticated");
            maps.auth().insert(&pair, &proof).unwrap();
            let (mut here, mut there) = node.associate(&listener, at(server, PORT));
            talk(&mut here, &mut there);
            let mut stops = |reason, take: &dyn Fn(), give_back: &dyn Fn()| {
                let before = node.dropped(Hook::ToPod, reason);
                take();
                here.write_all(b"x").unwrap();
                assert!(silent(&mut there), "{reason:?}");
                assert!(node.dropped(Hook::ToPod, reason) > before, "{reason:?}");
                give_back();
                // What is sent again arrives.
                assert_eq!(there.read(&mut [0; 8]).unwrap(), 1, "{reason:?}");
                talk(&mut here, &mut there);
            };
            let policy = maps.policy();
            stops(DropReason::PolicyDenied, &|| assert!(policy.remove(&key).unwrap()), &|| {
                policy.insert(&key, &entry).unwrap();
            });
            stops(DropReason::AuthRequired, &|| assert!(maps.auth().remove(&pair).unwrap()), &|| {
                maps.auth().insert(&pair, &proof).unwrap();
            });
            maps.auth().remove(&pair).unwrap();
        }
    });
}

/// What the daemon does: whoever has sent what is held has authenticated when it comes back. Until `done`.
fn authenticate_held(device: &SyncDevice, maps: &Maps, proof: &AuthEntry, done: &AtomicBool) {
    /// Behind a header of the device and the link-layer addresses.
    const TAG: usize = 10 + 12;
    eventually(|| {
        let mut frame = [0; 2048];
        while let Ok(length) = device.recv(&mut frame) {
            let token = u16::from_be_bytes([frame[TAG + 2], frame[TAG + 3]]);
            maps.auth().insert(&maps.hold().held(token).unwrap().key(), proof).unwrap();
            device.send(&frame[..length]).unwrap();
        }
        done.load(Ordering::Relaxed)
    });
}

#[test]
fn an_association_waits_for_the_proof_of_both_ends() {
    with_each_mechanism("an_association_waits_for_the_proof_of_both_ends", |pin_dir, mechanism| {
        let mut node = Node::new(&pin_dir, mechanism);
        let device = DeviceBuilder::new().name("hold").layer(Layer::L2).offload(true);
        let device = device.inherit_enable_state().build_sync().unwrap();
        device.set_nonblocking(true).unwrap();
        for hook in [Hook::FromHold, Hook::ToHold] {
            node.datapath.attach(hook, "hold").unwrap();
        }
        // Now nothing gets there but what is held.
        ip("link set hold up");
        let maps = node.datapath.maps();
        for (local, remote, direction) in
            [(HERE_ID, NEIGHBOUR_ID, Direction::Egress), (NEIGHBOUR_ID, HERE_ID, Direction::Ingress)]
        {
            let (key, entry) = rule(local, remote, direction, AuthType::Spire);
            maps.policy().insert(&key, &entry).unwrap();
        }
        maps.config().set(Setting::HoldIfindex, device.if_index().unwrap().into()).unwrap();
        maps.config().set(Setting::HoldUntil, u64::MAX).unwrap();
        let proof = AuthEntry { expires: boot_time() + 60 * MINUTE, epoch: 0, flags: 0 };
        for (_, service, server) in FAMILIES {
            let listener = node.neighbour.listen(at(server, PORT));
            for to in [server, service] {
                let done = AtomicBool::new(false);
                let (mut here, mut there) = thread::scope(|scope| {
                    scope.spawn(|| authenticate_held(&device, maps, &proof, &done));
                    let both = node.associate(&listener, at(to, PORT));
                    done.store(true, Ordering::Relaxed);
                    both
                });
                talk(&mut here, &mut there);
                let proven = maps.auth().entries().unwrap();
                assert_eq!(proven.len(), 2, "each end has asked for its own");
                for (pair, _) in proven {
                    maps.auth().remove(&pair).unwrap();
                }
            }
        }
        assert_eq!(node.neighbour.counted("SctpChecksumErrors"), 0);
    });
}

/// Has these interfaces leave checksums and segments to the next device, or not.
fn leave_to_next(interfaces: &[&str], leave: &str) {
    for interface in interfaces {
        let features = ["tx-checksum-sctp", leave, "tx-sctp-segmentation", leave];
        let output = Command::new("ethtool").args(["-K", interface]).args(features).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Between two veth pairs nobody adds a checksum or looks at one. So the sender does, before the programs have
/// changed a packet, or the host, after that.
#[test]
fn a_services_address_leads_to_its_backend() {
    with_each_mechanism("a_services_address_leads_to_its_backend", |pin_dir, mechanism| {
        let node = Node::new(&pin_dir, mechanism);
        let pods = [&node.here, &node.neighbour];
        for [by_sender, by_host] in [["on", "on"], ["off", "on"], ["on", "off"]] {
            for pod in pods {
                pod.inside(|| leave_to_next(&["eth0"], by_sender));
            }
            leave_to_next(&["here", "neighbour"], by_host);
            for way in [Way::Host, Way::Straight] {
                node.forward(way);
                for (client, service, server) in FAMILIES {
                    let listener = node.neighbour.listen(at(server, PORT));
                    let (mut here, mut there) = node.associate(&listener, at(service, PORT));
                    assert_eq!(here.peer_addr().unwrap(), at(service, PORT));
                    assert_eq!(there.peer_addr().unwrap().ip(), client.to_ip());
                    talk(&mut here, &mut there);
                    let port = here.local_addr().unwrap().port();
                    assert!(node.remembers(client, port, server), "{way:?}");
                    end(here, there);
                }
            }
        }
        for pod in pods {
            assert_eq!(pod.counted("SctpChecksumErrors"), 0);
        }
    });
}

/// The host says what fits, and until the association has heard of it what it has sent comes in fragments.
#[test]
fn a_way_that_takes_less_is_found_behind_a_service() {
    with_each_mechanism("a_way_that_takes_less_is_found_behind_a_service", |pin_dir, mechanism| {
        let node = Node::new(&pin_dir, mechanism);
        ip("link set neighbour mtu 1300");
        node.neighbour.inside(|| ip("link set eth0 mtu 1300"));
        for (_, service, server) in FAMILIES {
            let listener = node.neighbour.listen(at(server, PORT));
            let (mut here, mut there) = node.associate(&listener, at(service, PORT));
            talk(&mut here, &mut there);
            let fragments = node.datapath.maps().fragments().entries().unwrap();
            assert!(fragments.iter().any(|(key, _)| key.destination == server), "by way of {service:?}");
        }
        assert_eq!(node.neighbour.counted("SctpChecksumErrors"), 0);
    });
}

#[test]
fn a_pod_associates_with_itself_behind_a_service() {
    with_each_mechanism("a_pod_associates_with_itself_behind_a_service", |pin_dir, mechanism| {
        let node = Node::new(&pin_dir, mechanism);
        for (_, service, server) in FAMILIES {
            let listener = node.neighbour.listen(at(server, PORT));
            let mut client = node.neighbour.connect(at(service, PORT)).unwrap();
            let (mut itself, from) = listener.accept().unwrap();
            assert_eq!(from.ip(), loopback(&server).to_ip());
            talk(&mut client, &mut itself);
            end(client, itself);
        }
    });
}

/// Both ends name all their addresses to each other, by which they test ways and send when one fails.
#[test]
fn an_association_of_several_addresses_goes_by_those_that_policy_allows() {
    let name = "an_association_of_several_addresses_goes_by_those_that_policy_allows";
    with_each_mechanism(name, |pin_dir, mechanism| {
        let node = Node::new(&pin_dir, mechanism);
        let listener = node.neighbour.listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT));
        for to in [NEIGHBOUR, SERVICE] {
            ip("route replace 10.0.1.11/32 dev neighbour");
            // Mapped into IPv6, so that the sockets are of both families.
            let mapped = SocketAddr::new(Ipv6Addr::from(to.0).into(), PORT);
            let (mut here, mut there) = node.associate(&listener, mapped);
            talk(&mut here, &mut there);
            let port = here.local_addr().unwrap().port();
            assert!(node.remembers(HERE, port, NEIGHBOUR));
            eventually(|| node.remembers(HERE_V6, port, NEIGHBOUR_V6));
            ip("route replace blackhole 10.0.1.11/32");
            talk(&mut here, &mut there);
        }
        // The backend has named its own address too, and what that answers would be the service's.
        eventually(|| node.dropped(Hook::FromPod, DropReason::ServiceConflict) > 0);
    });
}
