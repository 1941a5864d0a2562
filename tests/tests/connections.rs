//! Connections under a flood, and under a policy that flips: what stands stands, and no change of policy
//! goes through them one by one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use auth_ebpf::Maps;
use auth_ebpf_abi::packet::protocol;
use auth_ebpf_abi::{Address, CONNECTION_QUOTA, ConnectionEntry, ConnectionKey, capacity};
use authd_tests::http::Connection;
use authd_tests::lab::node::Family;
use authd_tests::star_wars::PATIENCE;
use authd_tests::{Namespace, StarWars, skip, wait};
use etherparse::PacketBuilder;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

/// The interceptor answers everybody, and the tiefighter talks to whoever has proven who he is.
const OPEN: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: open, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: interceptor}}
  ingress: [{fromEntities: [all]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: proven, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: tiefighter}}
  egress: [{authentication: {mode: required}, toEndpoints: [{matchLabels: {org: empire}}]}]
";

/// The tiefighter may not land any more.
const CLOSED: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: closed, namespace: default}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingressDeny:
    - fromEndpoints: [{matchLabels: {class: tiefighter}}]
      toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]
";

fn maps(scene: &StarWars, node: &str) -> Result<Maps> {
    Ok(Maps::open_pinned(&scene.node(node)?.outside("/sys/fs/bpf/authd".as_ref()))?)
}

fn v4(scene: &StarWars, pod: &str) -> Result<Ipv4Addr> {
    match scene.pod(pod)?.address(Family::V4)? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => bail!("{address} is none of IPv4"),
    }
}

fn ifindex(scene: &StarWars, node: &str, pod: &str) -> Result<u32> {
    let interface = scene.pod(pod)?.interface().to_owned();
    Ok(scene.node(node)?.run(move || nix::net::if_::if_nametoindex(interface.as_str()))??)
}

/// The answered TCP connections between two pods, as the first one's node has them.
fn between(maps: &Maps, local: Ipv4Addr, remote: Ipv4Addr) -> Result<Vec<(ConnectionKey, ConnectionEntry)>> {
    let ends = (Address::from(IpAddr::V4(local)), Address::from(IpAddr::V4(remote)));
    let mut entries = maps.connections().entries()?;
    entries.retain(|(key, _)| (key.local, key.remote) == ends && key.protocol() == protocol::TCP);
    entries.sort_by_key(|(_, entry)| entry.last_seen);
    Ok(entries)
}

/// Lands over the connection until that has settled: behind what was held, each packet is decided by itself.
fn settled(
    scene: &StarWars,
    connection: &mut Connection,
    maps: &Maps,
    (local, remote): (Ipv4Addr, Ipv4Addr),
) -> Result<(ConnectionKey, ConnectionEntry)> {
    let found = wait::until(PATIENCE, || {
        scene.land_over(connection, PATIENCE).ok()?;
        between(maps, local, remote).ok()?.pop().filter(|(_, entry)| entry.valid_until > 0)
    });
    let ((key, _), _) = found.context("it does not settle")?;
    // The last acknowledgement may take its time.
    wait::pause(Duration::from_millis(200));
    Ok((key, maps.connections().get(&key)?.context("it has gone")?))
}

/// Packets from as many ports as there are, the same packet else.
fn flood(
    from: &Namespace,
    (source, to): (Ipv4Addr, Ipv4Addr),
    ports: impl Iterator<Item = (u16, u16)> + Send,
    syn: bool,
) -> Result<()> {
    from.run(move || -> Result<()> {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let to_socket = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
        for (sent, (from, port)) in ports.enumerate() {
            let builder = PacketBuilder::ipv4(source.octets(), to.octets(), 64);
            let mut bytes = Vec::with_capacity(64);
            if syn {
                builder.tcp(from, port, 1, 1000).syn().write(&mut bytes, &[])?;
            } else {
                builder.udp(from, port).write(&mut bytes, b"x")?;
            }
            sendto(raw.as_raw_fd(), &bytes, &to_socket, MsgFlags::empty())?;
            // What a socket's buffer has no room for would be lost.
            if !syn && sent % 64 == 0 {
                wait::pause(Duration::from_millis(1));
            }
        }
        Ok(())
    })?
}

#[test]
fn a_flood_takes_no_more_than_its_quota_and_ends_nobodys_connection() {
    const PORT: u16 = 9000;
    let name = "a_flood_takes_no_more_than_its_quota_and_ends_nobodys_connection";
    if !skip::lab_available(name) {
        return;
    }
    let mut scene = StarWars::new("quota").unwrap();
    scene.write_manifest("open.yaml", OPEN).unwrap();
    scene.start_tunnels().unwrap();
    scene.start_agents(&[]).unwrap();
    scene.settle().unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    let maps = maps(&scene, "node1").unwrap();
    let [tiefighter, xwing, interceptor, deathstar] =
        ["tiefighter", "xwing", "interceptor", "deathstar"].map(|pod| v4(&scene, pod).unwrap());
    let (key, before) = settled(&scene, &mut connection, &maps, (tiefighter, deathstar)).unwrap();
    assert_eq!(before.auth_type, 1, "{before:?}");

    // Answered connections, more than an endpoint may have.
    let echo =
        scene.pod("interceptor").unwrap().udp_bind(SocketAddr::new([0, 0, 0, 0].into(), PORT)).unwrap();
    echo.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    let server = thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            if let Ok((length, from)) = echo.recv_from(&mut [0; 64]) {
                drop(echo.send_to(&[0; 64][..length], from));
            }
        }
    });
    let quota = u16::try_from(CONNECTION_QUOTA).unwrap();
    let index = ifindex(&scene, "node1", "xwing").unwrap();
    let pod = scene.pod("xwing").unwrap().clone();
    let first = 10_000;
    // A later packet is what promotes a connection that was answered beyond the quota, so all come twice.
    for _ in 0..2 {
        let ports = (first..first + quota + 4_000).map(|port| (port, PORT));
        flood(&pod, (xwing, interceptor), ports, false).unwrap();
    }
    let taken = || maps.quotas().get(&index).unwrap().map_or(0, |quota| quota.established);
    let full = wait::until(PATIENCE, || (taken() >= CONNECTION_QUOTA).then_some(()));
    assert!(full.is_some(), "{} connections are no flood", taken());
    let of_pod = |entries: Vec<(ConnectionKey, ConnectionEntry)>| {
        entries.iter().filter(|(_, entry)| entry.ifindex == index).count()
    };
    let kept = of_pod(maps.connections().entries().unwrap());
    assert!(kept <= usize::from(quota), "{kept} connections of one endpoint");
    assert!(of_pod(maps.half_open().entries().unwrap()) > 1_000, "those beyond work as well, evictable");
    scene.land_over(&mut connection, PATIENCE).unwrap();
    let mut other = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    let (new, _) = settled(&scene, &mut other, &maps, (tiefighter, deathstar)).unwrap();
    assert_ne!(new, key, "another one has its place as well");

    // Unanswered ones, more than the map has room for.
    let all = u32::try_from(capacity::HALF_OPEN).unwrap() * 2;
    let ports = (0..all).map(|number| {
        let [_, _, high, low] = number.to_be_bytes();
        (u16::from_be_bytes([high, low]).max(1), 1 + u16::try_from(number >> 16).unwrap())
    });
    flood(&pod, (xwing, deathstar), ports, true).unwrap();
    scene.land_over(&mut connection, PATIENCE).unwrap();
    let now = maps.connections().get(&key).unwrap().expect("it stands where nothing is evicted");
    assert!(now.is_answered() && now.generation == before.generation);
    over.store(true, Ordering::Relaxed);
    server.join().unwrap();
}

#[test]
fn a_policy_that_flips_reopens_a_flow_by_its_generation_alone() {
    let name = "a_policy_that_flips_reopens_a_flow_by_its_generation_alone";
    if !skip::lab_available(name) {
        return;
    }
    let mut scene = StarWars::settled("generation", &[]).unwrap();
    let mut connection = scene.land("tiefighter", Family::V4, PATIENCE).unwrap();
    let mut other = scene.land("interceptor", Family::V4, PATIENCE).unwrap();
    let maps = maps(&scene, "node2").unwrap();
    let [tiefighter, interceptor, deathstar] =
        ["tiefighter", "interceptor", "deathstar"].map(|pod| v4(&scene, pod).unwrap());
    let flow = |of| between(&maps, deathstar, of)?.pop().context("no connection");
    let (key, before) = settled(&scene, &mut connection, &maps, (deathstar, tiefighter)).unwrap();
    let (_, others) = settled(&scene, &mut other, &maps, (deathstar, interceptor)).unwrap();
    let entries = maps.policy().entries().unwrap();

    scene.write_manifest("closed.yaml", CLOSED).unwrap();
    let written = || (maps.policy().entries().ok()? != entries).then_some(());
    assert!(wait::until(PATIENCE, written).is_some(), "the policy does not come into force");
    // Nobody has been at the connection: it is there as it was, and its generation is no longer the one.
    assert_eq!(flow(tiefighter).unwrap(), (key, before));
    let dropped = scene.counted("node2", "DROPPED", "POLICY_DENY").unwrap();
    connection.send("POST", "/v1/request-landing", &scene.needle()).unwrap();
    let more = || (scene.counted("node2", "DROPPED", "POLICY_DENY").ok()? > dropped).then_some(());
    assert!(wait::until(PATIENCE, more).is_some(), "the flow goes on");
    assert_eq!(flow(tiefighter).unwrap(), (key, before), "what drops leaves nothing behind");
    scene.land_over(&mut other, PATIENCE).unwrap();
    assert_eq!(flow(interceptor).unwrap().1.generation, others.generation, "another pair is not touched");

    std::fs::remove_file(scene.lab.outside("cluster/closed.yaml")).unwrap();
    let answer = connection.receive(PATIENCE).unwrap().unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let (_, after) = flow(tiefighter).unwrap();
    assert_ne!(after.generation, before.generation, "it was decided anew, once");
    assert!(after.is_answered(), "and is the same connection");
    assert_eq!(flow(interceptor).unwrap().1.generation, others.generation);
}
