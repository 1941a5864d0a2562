//! The control socket: who may use it, and what it makes of nonsense.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
};

use tokio_util::sync::CancellationToken;
use wg_mesh::{Backend as _, Desired, Error, Mesh, Peer, Userspace, tunnel};

use crate::{
    namespace::{close, runtime, start},
    node::{INTERFACE, Node},
};

/// Tells a process of this test binary to ask at this socket.
const BE_STRANGER: &str = "WG_MESH_TEST_STRANGER";

/// Sends lines as they are and returns the answer to the last.
fn ask(socket: &Path, frame: &[u8]) -> serde_json::Value {
    let mut stream = UnixStream::connect(socket).expect("connect");
    stream.write_all(frame).ok();
    stream.write_all(b"\n").ok();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("answer");
    serde_json::from_str(&answer).expect("JSON")
}

fn field(answer: &serde_json::Value) -> &str {
    answer["error"]["field"].as_str().unwrap_or_else(|| panic!("no field in {answer}"))
}

fn peer(node: &Node, number: u8) -> Peer {
    let key = wg_mesh::PublicKey::from_bytes([number; 32]).expect("key");
    node.peer(key)
}

#[test]
fn nonsense_is_refused_by_field_and_changes_nothing() {
    let Some(mut node) = Node::new("nonsense_is_refused_by_field_and_changes_nothing", 1) else { return };
    node.start();
    let good = Desired { peers: [(peer(&node, 5).public_key, peer(&node, 5))].into(), ..Desired::default() };
    node.apply(&good);
    let before = node.status();
    assert!(ask(&node.socket, b"hello?")["error"]["message"].is_string());
    assert_eq!(field(&ask(&node.socket, br#"{"version":7,"request":"status"}"#)), "version");
    assert_eq!(field(&ask(&node.socket, br#"{"version":1,"request":"dance"}"#)), "request");
    let (mut bad, overlap) = (good.clone(), peer(&node, 6));
    bad.mtu = 1300;
    bad.peers.insert(overlap.public_key, overlap);
    let frame = serde_json::json!({"version": 1, "request": "apply", "desired": bad}).to_string();
    assert!(field(&ask(&node.socket, frame.as_bytes())).ends_with("allowed_ips"));
    let mut own = good.clone();
    own.mtu = 1300;
    own.peers.insert(before.public_key, Peer { allowed_ips: [].into(), ..node.peer(before.public_key) });
    let frame = serde_json::json!({"version": 1, "request": "apply", "desired": own}).to_string();
    assert!(field(&ask(&node.socket, frame.as_bytes())).ends_with("public_key"));
    let zero = frame.replace(&before.public_key.to_string(), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    assert!(field(&ask(&node.socket, zero.as_bytes())).ends_with("public_key"));
    let long = ask(&node.socket, &vec![b' '; (1 << 20) + 1]);
    assert!(long["error"]["message"].as_str().is_some_and(|message| message.contains("1048576")), "{long}");
    // Half a request is none.
    drop(
        UnixStream::connect(&node.socket)
            .expect("connect")
            .write_all(br#"{"version":1,"request":"shutdown"}"#),
    );
    assert_eq!(node.status(), before);
}

#[test]
fn a_taken_port_leaves_the_old_state() {
    let Some(mut node) = Node::new("a_taken_port_leaves_the_old_state", 1) else { return };
    node.start();
    node.apply(&Desired::default());
    let taken = node.namespace.run(|| std::net::UdpSocket::bind("0.0.0.0:4444")).expect("bind");
    let client = Userspace::new(&node.socket);
    let desired = Desired { listen_port: 4444, mtu: 1300, ..Desired::default() };
    let error =
        node.namespace.block_on(move || async move { client.apply(&desired).await }).expect_err("port");
    let Error::Refused { field, message } = error else { panic!("{error}") };
    assert_eq!(field.as_deref(), Some("desired.listen_port"));
    assert!(message.contains("4444"), "{message}");
    assert_eq!(node.status().observed(), Some(Desired::default()));
    drop(taken);
    close();
    assert_eq!(node.apply(&Desired { listen_port: 4444, ..Desired::default() }).changes.len(), 1);
}

#[test]
fn later_versions_are_understood_as_far_as_we_know_them() {
    let Some(mut node) = Node::new("later_versions_are_understood_as_far_as_we_know_them", 1) else { return };
    node.start();
    let answer = ask(&node.socket, br#"{"version":2,"request":"hello","colour":"green"}"#);
    assert_eq!(answer["version"], 1);
    assert_eq!(answer["hello"]["interface"], INTERFACE);
}

#[test]
fn the_mesh_changes_nothing_that_is_so_already() {
    let Some(mut node) = Node::new("the_mesh_changes_nothing_that_is_so_already", 1) else { return };
    node.start();
    let mesh = Mesh::new(Userspace::new(&node.socket));
    let desired =
        Desired { peers: [(peer(&node, 5).public_key, peer(&node, 5))].into(), ..Desired::default() };
    let (first, second) = node.namespace.block_on(move || async move {
        (mesh.reconcile(&desired).await.expect("first"), mesh.reconcile(&desired).await.expect("second"))
    });
    assert_eq!(first.changes.len(), 2);
    assert!(second.changes.is_empty());
    assert_eq!(first.public_key, second.public_key);
}

#[test]
fn only_the_owner_may_speak() {
    let Some(mut node) = Node::new("only_the_owner_may_speak", 1) else { return };
    node.start();
    let permissions = std::fs::metadata(&node.socket).expect("socket").permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);
    // Even if somebody opens it up, strangers are refused by who they are.
    let directory = node.socket.parent().expect("directory").to_owned();
    for (path, mode) in [(node.socket.clone(), 0o666), (directory.clone(), 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let program = directory.join("stranger");
    // By another process: a descriptor that is open for writing here would be inherited by other tests' children,
    // and the program be busy.
    let this = std::env::current_exe().expect("path of the test");
    let mut copying = start(Command::new("cp").args([&this, &program]));
    assert!(copying.wait().expect("run cp").success());
    let mut command = Command::new(program);
    command.args(["--exact", "control::stranger", "--nocapture"]).env(BE_STRANGER, &node.socket);
    command.uid(65_534).gid(65_534).current_dir("/").stdout(Stdio::piped());
    let output = start(&mut command).wait_with_output().expect("run as nobody");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("uid 65534 may not control this tunnel"), "{said}");
}

/// Not a test: what [`only_the_owner_may_speak`] runs as somebody else.
#[test]
fn stranger() {
    let Ok(socket) = std::env::var(BE_STRANGER) else { return };
    println!("{}", ask(Path::new(&socket), br#"{"version":1,"request":"status"}"#));
}

#[test]
fn a_second_tunnel_is_told_who_is_first() {
    let Some(mut node) = Node::new("a_second_tunnel_is_told_who_is_first", 1) else { return };
    node.start();
    let me = format!("process {}", std::process::id());
    let second = |socket: std::path::PathBuf, interface: &str| {
        let config = tunnel::Config { socket, interface: interface.into() };
        let run = move || runtime().block_on(tunnel::run(config, CancellationToken::new()));
        node.namespace.run(run).expect_err("a second tunnel").to_string()
    };
    let same_socket = second(node.socket.clone(), "other0");
    assert!(same_socket.contains(&me) && same_socket.contains("tunnel.sock"), "{same_socket}");
    let same_interface = second(node.socket.with_file_name("other.sock"), INTERFACE);
    assert!(same_interface.contains("held by") && same_interface.contains(INTERFACE), "{same_interface}");
    node.status();
}

#[test]
fn a_missing_tunnel_is_said_with_the_way_out() {
    let client = Userspace::new("/nonexistent/tunnel.sock");
    let error = runtime().block_on(client.status()).expect_err("nobody there").to_string();
    assert!(error.contains("/nonexistent/tunnel.sock") && error.contains("`authd tunnel"), "{error}");
}

#[test]
fn an_interface_that_is_no_tun_device_is_refused_with_the_way_out() {
    let Some(node) = Node::new("an_interface_that_is_no_tun_device_is_refused_with_the_way_out", 1) else {
        return;
    };
    node.namespace.ip("link add authd0 type veth peer name other0");
    let config = tunnel::Config { socket: node.socket.clone(), interface: INTERFACE.into() };
    let run = move || runtime().block_on(tunnel::run(config, CancellationToken::new()));
    let error = node.namespace.run(run).expect_err("a veth").to_string();
    assert!(error.contains("authd0") && error.contains("no TUN device"), "{error}");
}
