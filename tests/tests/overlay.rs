//! Overlays beside the tunnel: what they would carry for the cluster never leaves in the clear, neither before
//! it is wrapped nor after.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use authd_tests::lab::node::{Family, Node};
use authd_tests::star_wars::PATIENCE;
use authd_tests::{StarWars, skip, wait};
use etherparse::PacketBuilder;
use serde_json::Value;

const VXLAN: u16 = 4789;
/// Of its header, that there is a network identifier.
const WITH_IDENTIFIER: [u8; 8] = [8, 0, 0, 0, 0, 0, 7, 0];
const WORLD: [u8; 4] = [203, 0, 113, 5];
const LIMIT: Duration = Duration::from_millis(300);

/// A datagram between these, as a VXLAN device would wrap it.
fn wrapped(source: [u8; 4], destination: [u8; 4]) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder = builder.ipv4(source, destination, 64).udp(80, 80);
    let mut bytes = WITH_IDENTIFIER.to_vec();
    builder.write(&mut bytes, b"It's a trap!")?;
    Ok(bytes)
}

fn v4(scene: &StarWars, pod: &str) -> Result<[u8; 4]> {
    match scene.pod(pod)?.address(Family::V4)? {
        IpAddr::V4(address) => Ok(address.octets()),
        IpAddr::V6(address) => anyhow::bail!("{address} is none of IPv4"),
    }
}

fn bound(node: &Node) -> Result<UdpSocket> {
    node.udp_bind(SocketAddr::from(([0, 0, 0, 0], VXLAN)))
}

/// Whether something comes in time: neighbours may have to be found first, so what shall come has long.
fn hears(socket: &UdpSocket, within: Duration) -> bool {
    socket.set_read_timeout(Some(within)).is_ok() && socket.recv(&mut [0; 256]).is_ok()
}

fn unencrypted(scene: &mut StarWars, hook: &str) -> Result<f64> {
    let labels = [("verdict", "DROPPED"), ("reason", "UNENCRYPTED"), ("hook", hook)];
    Ok(scene.agent("node1")?.metrics()?.sum("authd_packets_total", &labels))
}

/// Does something after which another packet has dropped at the hook.
fn drops(scene: &mut StarWars, hook: &str, does: impl FnOnce(&StarWars) -> Result<()>) -> Result<()> {
    let before = unencrypted(scene, hook)?;
    does(scene)?;
    let more = || (unencrypted(scene, hook).ok()? > before).then_some(());
    wait::until(PATIENCE, more).map(drop).with_context(|| format!("nothing drops at {hook}"))
}

#[test]
fn an_uplink_carries_nothing_of_the_cluster_within_other_packets() {
    if !skip::lab_available("an_uplink_carries_nothing_of_the_cluster_within_other_packets") {
        return;
    }
    let mut scene = StarWars::settled("wrapped", &[]).unwrap();
    let rogue = scene
        .lab
        .node("rogue", &["10.0.0.66".parse().unwrap(), "fd00:10::66".parse().unwrap()], &[])
        .unwrap();
    let node = scene.node("node1").unwrap().clone();
    let (here, there) = (v4(&scene, "tiefighter").unwrap(), v4(&scene, "deathstar").unwrap());
    let (ours, theirs) = (bound(&node).unwrap(), bound(&rogue).unwrap());
    let far = SocketAddr::from(([10, 0, 0, 66], VXLAN));
    let near = SocketAddr::from(([10, 0, 0, 1], VXLAN));

    ours.send_to(&wrapped(here, WORLD).unwrap(), far).unwrap();
    assert!(hears(&theirs, PATIENCE), "what is not for the cluster may leave");
    drops(&mut scene, "to_uplink", |_| Ok(ours.send_to(&wrapped(here, there)?, far).map(drop)?)).unwrap();
    assert!(!hears(&theirs, LIMIT), "it has left in the clear");

    theirs.send_to(&wrapped(WORLD, here).unwrap(), near).unwrap();
    assert!(hears(&ours, PATIENCE), "what is not from the cluster may come");
    drops(&mut scene, "from_uplink", |_| Ok(theirs.send_to(&wrapped(there, here)?, near).map(drop)?))
        .unwrap();
    assert!(!hears(&ours, LIMIT), "it has come in the clear");
}

#[test]
fn an_overlays_device_is_guarded_like_an_uplink() {
    if !skip::lab_available("an_overlays_device_is_guarded_like_an_uplink") {
        return;
    }
    let mut scene = StarWars::settled("overlay", &[]).unwrap();
    let node = scene.node("node1").unwrap().clone();
    let device = "link add flannel.7 type vxlan id 7 dstport 8472 local 10.0.0.1 remote 10.0.0.66 dev eth0\n\
                  address add 10.9.9.1/24 dev flannel.7\n\
                  link set flannel.7 up\n";
    if let Err(error) = node.ip(device) {
        ensure_unknown(&error).unwrap();
        return skip::kernel_lacks("an_overlays_device_is_guarded_like_an_uplink", "VXLAN devices");
    }
    let attached = wait::until(PATIENCE, || {
        let links = scene.links("node1").ok()?;
        let at = |hook: &str| links.keys().any(|name| name.starts_with(&format!("{hook}@flannel:7:")));
        (at("to_uplink") && at("from_uplink")).then_some(())
    });
    assert!(attached.is_some(), "{:?}", scene.links("node1"));
    // Whatever the routing table says: the host itself sends by the device.
    let capture = scene.lab.capture().unwrap();
    let there = scene.target(Family::V4).unwrap();
    drops(&mut scene, "to_uplink", |scene| {
        let neighbour =
            format!("neighbour add {} lladdr 02:00:00:00:00:66 dev flannel.7 nud permanent\n", there.ip());
        node.ip(&format!("{neighbour}route add {}/32 dev flannel.7\n", there.ip()))?;
        let socket = node.udp_bind("10.9.9.1:0".parse()?)?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &"flannel.7".into())?;
        drop(socket.send_to(scene.needle().as_bytes(), there));
        Ok(())
    })
    .unwrap();
    let by_device = |flows: &[Value]| flows.iter().any(|flow| flow["interface"] == "flannel.7");
    scene.wait_flows("node1", &["--verdict", "DROPPED", "--reason", "UNENCRYPTED"], by_device).unwrap();
    assert_eq!(capture.stop().unwrap().containing(scene.needle().as_bytes()), 0);
}

fn ensure_unknown(error: &anyhow::Error) -> Result<()> {
    let text = format!("{error:#}");
    ensure!(text.contains("Unknown device type"), "{text}");
    Ok(())
}

#[test]
fn cilium_beside_authd_is_refused_in_words() {
    if !skip::lab_available("cilium_beside_authd_is_refused_in_words") {
        return;
    }
    let mut scene = StarWars::settled("beside", &[]).unwrap();
    let node = scene.node("node1").unwrap().clone();
    let is_ready = |scene: &mut StarWars, expected: bool| {
        let reached = || (scene.agent("node1").ok()?.is_ready() == expected).then_some(());
        wait::until(PATIENCE, reached).is_some()
    };
    node.ip("link add cilium_host type veth peer name cilium_net\n").unwrap();
    scene.wait_condition("node1", &["DATAPATH_INCOMPLETE", "Cilium", "the device cilium_"]).unwrap();
    assert!(is_ready(&mut scene, false));
    node.ip("link del cilium_host\n").unwrap();
    assert!(is_ready(&mut scene, true));
    let pin = "/sys/fs/bpf/tc/globals/cilium_lxc";
    let make = format!(
        "mkdir -p /sys/fs/bpf/tc/globals && \
         bpftool map create {pin} type hash key 4 value 4 entries 1 name cilium_lxc"
    );
    node.exec(["sh", "-c", &make]).unwrap();
    scene.wait_condition("node1", &["DATAPATH_INCOMPLETE", "Cilium", "the pinned map cilium_lxc"]).unwrap();
    node.exec(["rm", pin]).unwrap();
    assert!(is_ready(&mut scene, true));
    // What is in force stays so meanwhile, as far as packets come by.
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    assert!(scene.is_refused("xwing", Family::V4));
}
