//! Two nodes on one wire, each with a tunnel, an address of its own and one "pod" address.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use wg_mesh::{
    Applied, Backend as _, DEFAULT_LISTEN_PORT, Desired, Peer, PublicKey, Status, Userspace,
    steering::{Changed, DEFAULT_TABLE, Flow, Sources, Steering},
    tunnel,
};

use crate::namespace::{Namespace, close, runtime, start};

pub(crate) const INTERFACE: &str = "authd0";
/// Tells a process of this test binary to be a tunnel: socket, then interface.
const BE_TUNNEL: &str = "WG_MESH_TEST_TUNNEL";

/// A node; `number` is in all its addresses.
pub(crate) struct Node {
    pub(crate) namespace: Namespace,
    pub(crate) number: u8,
    pub(crate) socket: PathBuf,
    tunnel: Option<Tunnel>,
    _directory: TempDir,
}

/// A tunnel as a thread of this process, or as a process that can be killed.
enum Tunnel {
    Thread { shutdown: CancellationToken, thread: JoinHandle<Result<(), tunnel::Error>> },
    Process(Child),
}

/// Two nodes, joined by a veth pair `under0`.
pub(crate) fn pair(test: &str) -> Option<(Node, Node)> {
    let (left, right) = (Node::new(test, 1)?, Node::new(test, 2)?);
    let peer = right.namespace.path();
    left.namespace.ip(&format!("link add under0 type veth peer name under0 netns {peer}"));
    for node in [&left, &right] {
        for address in [format!("192.0.2.{}/24", node.number), format!("2001:db8::{}/64 nodad", node.number)]
        {
            node.namespace.ip(&format!("address add {address} dev under0"));
        }
        node.namespace.ip("link set under0 up");
    }
    Some((left, right))
}

impl Node {
    pub(crate) fn new(test: &str, number: u8) -> Option<Self> {
        let namespace = Namespace::new(test)?;
        let directory = TempDir::new().expect("directory for sockets");
        for address in [format!("10.244.{number}.1/32"), format!("fd00:{number}::1/128 nodad")] {
            namespace.ip(&format!("address add {address} dev lo"));
        }
        let socket = directory.path().join("tunnel.sock");
        Some(Self { namespace, number, socket, tunnel: None, _directory: directory })
    }

    /// Starts a tunnel on a thread.
    pub(crate) fn start(&mut self) {
        let shutdown = CancellationToken::new();
        let config = tunnel::Config { socket: self.socket.clone(), interface: INTERFACE.into() };
        let token = shutdown.clone();
        let thread = self.namespace.spawn(move || runtime().block_on(tunnel::run(config, token)));
        self.tunnel = Some(Tunnel::Thread { shutdown, thread });
        self.wait_for_socket();
    }

    /// Starts a tunnel as a process.
    pub(crate) fn start_process(&mut self) {
        let variable = format!("{} {INTERFACE}", self.socket.display());
        let child = self.namespace.run(move || {
            let test = std::env::current_exe().expect("path of the test");
            let mut command = Command::new(test);
            command.args(["--exact", "node::tunnel_process"]).env(BE_TUNNEL, variable);
            start(command.stdin(Stdio::null()).stdout(Stdio::null()))
        });
        self.tunnel = Some(Tunnel::Process(child));
        self.wait_for_socket();
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let Some(Tunnel::Process(mut child)) = self.tunnel.take() else { panic!("no process to kill") };
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Stops the tunnel and returns how it ended.
    pub(crate) fn stop(&mut self) -> Result<(), tunnel::Error> {
        match self.tunnel.take() {
            Some(Tunnel::Thread { shutdown, thread }) => {
                shutdown.cancel();
                let ended = thread.join().expect("tunnel thread");
                close();
                ended
            }
            Some(Tunnel::Process(mut child)) => {
                child.kill().expect("kill");
                child.wait().expect("wait");
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(crate) fn status(&self) -> Status {
        let client = Userspace::new(&self.socket);
        self.namespace.block_on(move || async move { client.status().await }).expect("status")
    }

    pub(crate) fn apply(&self, desired: &Desired) -> Applied {
        let (client, desired) = (Userspace::new(&self.socket), desired.clone());
        self.namespace.block_on(move || async move { client.apply(&desired).await }).expect("apply")
    }

    /// As a peer of others.
    pub(crate) fn peer(&self, public_key: PublicKey) -> Peer {
        Peer {
            public_key,
            endpoint: (self.address(), DEFAULT_LISTEN_PORT).into(),
            allowed_ips: self.ranges().iter().map(|range| range.parse().expect("prefix")).collect(),
            persistent_keepalive: None,
            preshared_key: None,
        }
    }

    fn ranges(&self) -> [String; 4] {
        let number = self.number;
        [
            format!("10.244.{number}.0/24"),
            format!("fd00:{number}::/64"),
            format!("192.0.2.{number}/32"),
            format!("2001:db8::{number}/128"),
        ]
    }

    pub(crate) fn address(&self) -> IpAddr {
        [192, 0, 2, self.number].into()
    }

    pub(crate) fn pods(&self) -> [IpAddr; 2] {
        let v6 = format!("fd00:{}::1", self.number);
        [[10, 244, self.number, 1].into(), v6.parse().expect("address")]
    }

    /// Sends what is for `other` into the tunnel.
    pub(crate) fn steering(&self, other: &Self, ifindex: Option<u32>) -> Steering {
        let parse = |text: &String| text.parse().expect("prefix");
        Steering {
            table: DEFAULT_TABLE,
            ifindex,
            routes: other.ranges().iter().map(parse).collect(),
            sources: Sources {
                v4: Some([10, 244, self.number, 1].into()),
                v6: match self.pods()[1] {
                    IpAddr::V6(address) => Some(address),
                    IpAddr::V4(_) => None,
                },
            },
            local: self.ranges()[..2].iter().map(parse).collect(),
            guarded: ["10.244.0.0/16", "fd00::/16"]
                .iter()
                .map(|text| text.parse().expect("prefix"))
                .collect(),
            bootstrap: Flow::wireguard(DEFAULT_LISTEN_PORT).into_iter().chain(Flow::tcp(4250)).collect(),
        }
    }

    pub(crate) fn steer(&self, steering: &Steering) -> Changed {
        let steering = steering.clone();
        self.namespace.block_on(move || async move { steering.apply().await }).expect("steer")
    }

    /// Echoes TCP and UDP at `port` of every address until the test ends.
    pub(crate) fn echo(&self, port: u16) {
        let address = SocketAddr::from(([0_u16; 8], port));
        self.namespace.run(move || {
            let (tcp, udp) =
                (TcpListener::bind(address).expect("bind"), UdpSocket::bind(address).expect("bind"));
            std::thread::spawn(move || {
                for mut stream in tcp.incoming().flatten() {
                    std::thread::spawn(move || std::io::copy(&mut stream.try_clone()?, &mut stream));
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    udp.send_to(&buffer[..length], from).ok();
                }
            });
        });
    }

    /// Sends `payload` over a new TCP connection and returns whether it came back in time.
    pub(crate) fn tcp(&self, to: SocketAddr, payload: &[u8], limit: Duration) -> bool {
        let payload = payload.to_vec();
        self.namespace.run(move || {
            let Ok(mut stream) = TcpStream::connect_timeout(&to, limit) else { return false };
            exchange(&mut stream, &payload, limit)
        })
    }

    /// The same over UDP, again and again until `limit`, from an address of ours if one is given.
    pub(crate) fn udp(&self, from: Option<IpAddr>, to: SocketAddr, limit: Duration) -> bool {
        self.namespace.run(move || {
            let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
            let socket = UdpSocket::bind((from.unwrap_or(any), 0)).expect("bind");
            socket.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
            let start = Instant::now();
            while start.elapsed() < limit {
                socket.send_to(b"are you there?", to).ok();
                if socket.recv_from(&mut [0; 64]).is_ok() {
                    return true;
                }
            }
            false
        })
    }

    fn wait_for_socket(&self) {
        let client = Userspace::new(&self.socket);
        let up = self.namespace.block_on(move || async move {
            for _ in 0..1000 {
                if client.status().await.is_ok() {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            false
        });
        assert!(up, "the tunnel did not come up");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            println!("tunnel of node {}: {error}", self.number);
        }
    }
}

/// Makes each the other's peer and steers traffic between them into the tunnel.
pub(crate) fn join(left: &Node, right: &Node) {
    for (node, other) in [(left, right), (right, left)] {
        let peer = other.peer(other.status().public_key);
        let applied = node.apply(&Desired { peers: [(peer.public_key, peer)].into(), ..Desired::default() });
        node.steer(&node.steering(other, Some(applied.ifindex)));
    }
}

/// Writes `payload` and reads as much again.
pub(crate) fn exchange(stream: &mut TcpStream, payload: &[u8], limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).expect("timeout");
    let mut writer = stream.try_clone().expect("clone");
    let sent = payload.to_vec();
    let writing = std::thread::spawn(move || writer.write_all(&sent));
    let mut received = vec![0; payload.len()];
    let read = stream.read_exact(&mut received);
    let arrived = read.is_ok() && received == payload;
    if !arrived {
        stream.shutdown(std::net::Shutdown::Both).ok();
    }
    writing.join().expect("writer").is_ok() && arrived
}

/// Not a test: what [`Node::start_process`] runs.
#[test]
fn tunnel_process() {
    let Ok(words) = std::env::var(BE_TUNNEL) else { return };
    let (socket, interface) = words.split_once(' ').expect("socket and interface");
    let config = tunnel::Config { socket: socket.into(), interface: interface.into() };
    runtime().block_on(tunnel::run(config, CancellationToken::new())).expect("tunnel");
}
