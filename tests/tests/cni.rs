//! Pods that the CNI project's own plugins have wired: on bridges, by pairs with host routes, and past the
//! host, which is refused.

#[path = "cni/frames.rs"]
mod frames;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use authd_tests::lab::Options;
use authd_tests::lab::cni::Plugin;
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{StarWars, skip, wait};

use self::frames::{Mac, advertise, datagram, mac, poison};

/// How often a frame is sent: each time it must drop.
const TIMES: usize = 5;

fn settled(name: &str, plugin: Plugin) -> Result<StarWars> {
    StarWars::settled_with(name, Options { rp_filter: 1, cni: Some(plugin) })
}

/// Whoever may land lands, from the server's own node and from the other; whoever may not does not.
fn lands_as_policy_says(scene: &StarWars) -> Result<()> {
    for family in Family::ALL {
        for pod in ["stormtrooper", "tiefighter"] {
            drop(scene.land(pod, family, PATIENCE).with_context(|| format!("{pod} by {family}"))?);
        }
        ensure!(scene.is_refused("xwing", family), "xwing lands by {family}");
    }
    for pod in ["stormtrooper", "tiefighter"] {
        let entries = scene.authenticated("node2", "deathstar", pod)?;
        ensure!(entries.len() == 1, "{pod}: {entries:?}");
    }
    Ok(())
}

/// The pod goes as the runtime takes it away, and comes back under the same name and addresses.
fn pod_goes_and_comes(scene: &mut StarWars) -> Result<()> {
    let old = scene.pod("stormtrooper")?.clone();
    let addresses = old.addresses().to_owned();
    let node = scene.node("node2")?.clone();
    node.remove_pod(&old)?;
    scene.world.pods.remove("stormtrooper");
    scene.lab.exec(["ip", "netns", "delete", "stormtrooper"])?;
    drop(old);
    let attached = |scene: &mut StarWars| {
        let metrics = scene.agent("node2").ok()?.metrics().ok()?;
        Some(metrics.sum("authd_endpoints", &[]))
    };
    wait::until(PATIENCE, || (attached(scene)? < 2.0).then_some(())).context("it stays attached")?;
    let pod = node.pod("stormtrooper", &addresses)?;
    scene.world.pods.insert("stormtrooper".to_owned(), pod);
    wait::until(PATIENCE, || (attached(scene)? >= 2.0).then_some(())).context("it is not found")?;
    // Its name and address say nothing new, so for some seconds it could be another pod already.
    let believed = || scene.land("stormtrooper", Family::V4, Duration::from_secs(1)).ok();
    wait::until(PATIENCE, believed).context("it is not believed")?;
    Ok(())
}

fn v4(scene: &StarWars, pod: &str) -> Result<Ipv4Addr> {
    match scene.pod(pod)?.address(Family::V4)? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => anyhow::bail!("{address} is none of IPv4"),
    }
}

fn mac_of(scene: &StarWars, pod: &str) -> Result<Mac> {
    scene.pod(pod)?.run(mac)?
}

/// Lets a pod send frames, and waits until as many have dropped for a reason.
fn drops(scene: &mut StarWars, pod: &str, reason: &str, send: impl Fn() -> Result<()> + Sync) -> Result<()> {
    let before = scene.counted("node1", "DROPPED", reason)?;
    let from = scene.pod(pod)?.clone();
    from.run(|| (0..TIMES).try_for_each(|_| send()))??;
    let wanted = before + f64::from(u32::try_from(TIMES)?);
    let counted = || scene.counted("node1", "DROPPED", reason).is_ok_and(|it| it >= wanted).then_some(());
    wait::until(PATIENCE, counted).with_context(|| format!("{reason} is not counted"))?;
    Ok(())
}

#[test]
fn pods_on_a_bridge_talk_as_policy_says() {
    if !skip::cni_available("pods_on_a_bridge_talk_as_policy_says") {
        return;
    }
    let mut scene = settled("bridge", Plugin::Bridge).unwrap();
    lands_as_policy_says(&scene).unwrap();
    pod_goes_and_comes(&mut scene).unwrap();
    lands_as_policy_says(&scene).unwrap();
}

#[test]
fn pods_with_host_routes_talk_as_policy_says() {
    if !skip::cni_available("pods_with_host_routes_talk_as_policy_says") {
        return;
    }
    let mut scene = settled("ptp", Plugin::Ptp).unwrap();
    lands_as_policy_says(&scene).unwrap();
    pod_goes_and_comes(&mut scene).unwrap();
    lands_as_policy_says(&scene).unwrap();
}

/// Where packets between pods of a node shall go straight, they do so between pairs with host routes, by whatever
/// interface the pod has now; those of a bridge's ports stay with the bridge.
#[test]
fn pods_talk_as_policy_says_where_packets_go_straight() {
    if !skip::cni_available("pods_talk_as_policy_says_where_packets_go_straight") {
        return;
    }
    for (name, plugin) in [("direct-ptp", Plugin::Ptp), ("direct-bridge", Plugin::Bridge)] {
        let mut scene = StarWars::with_options(name, Options { rp_filter: 1, cni: Some(plugin) }).unwrap();
        scene.start_tunnels().unwrap();
        scene.start_agents(&["--same-node-forwarding", "direct"]).unwrap();
        scene.settle().unwrap();
        if name == "direct-ptp" {
            // The host forwards nothing but between pods and the tunnel.
            let rules = "add table inet wall; add chain inet wall f { type filter hook forward priority 0; };
                 add rule inet wall f iifname != authd0 oifname != authd0 drop";
            scene.node("node2").unwrap().exec(["nft", rules]).unwrap();
        }
        lands_as_policy_says(&scene).unwrap();
        pod_goes_and_comes(&mut scene).unwrap();
        lands_as_policy_says(&scene).unwrap();
    }
}

#[test]
fn nobody_speaks_for_a_neighbour_on_the_bridge() {
    if !skip::cni_available("nobody_speaks_for_a_neighbour_on_the_bridge") {
        return;
    }
    let mut scene = settled("impostor", Plugin::Bridge).unwrap();
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    let (victim, own, target) =
        (v4(&scene, "tiefighter").unwrap(), v4(&scene, "xwing").unwrap(), v4(&scene, "interceptor").unwrap());
    let [victim_mac, own_mac, target_mac] =
        ["tiefighter", "xwing", "interceptor"].map(|pod| mac_of(&scene, pod).unwrap());
    let hears = scene.pod("interceptor").unwrap().udp_bind("0.0.0.0:80".parse().unwrap()).unwrap();
    hears.set_read_timeout(Some(Duration::from_millis(300))).unwrap();

    for named in [own_mac, victim_mac] {
        let from = (named, victim);
        drops(&mut scene, "xwing", "SPOOFED", || datagram(from, (target_mac, target))).unwrap();
        drops(&mut scene, "xwing", "SPOOFED", || poison(named, victim)).unwrap();
    }
    assert!(hears.recv(&mut [0; 64]).is_err());
    let known = scene.pod("interceptor").unwrap().exec(["ip", "neighbour", "show"]).unwrap();
    let poisoned = known.lines().any(|line| line.contains(&victim.to_string()) && !line.contains("FAILED"));
    assert!(!poisoned, "{known}");

    // Under its own address it may name any link-layer address, so the bridge may look for the victim in
    // the wrong place. What goes there drops, and the victim is found again as soon as it speaks.
    let from = scene.pod("xwing").unwrap().clone();
    from.run(|| (0..TIMES).try_for_each(|_| datagram((victim_mac, own), (target_mac, target))))
        .unwrap()
        .unwrap();
    assert!(hears.recv(&mut [0; 64]).is_err(), "policy denies it");
    for family in Family::ALL {
        drop(scene.land("tiefighter", family, PATIENCE).unwrap());
    }

    // Another's address on its own interface changes nothing about who has it.
    scene.pod("xwing").unwrap().ip(&format!("address add {victim}/32 dev eth0\n")).unwrap();
    scene.node("node1").unwrap().ip("link add stir type veth peer name stir-p\n").unwrap();
    wait::pause(Duration::from_secs(2));
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    let to = SocketAddr::new(scene.pod("deathstar").unwrap().address(Family::V4).unwrap(), 80);
    assert!(from.tcp_connect(to, Duration::from_millis(1500)).is_err());
}

#[test]
fn nobody_advertises_a_neighbour_on_the_bridge() {
    if !skip::cni_available("nobody_advertises_a_neighbour_on_the_bridge") {
        return;
    }
    let mut scene = settled("advertise", Plugin::Bridge).unwrap();
    let v6 = |pod: &str| match scene.pod(pod).unwrap().address(Family::V6).unwrap() {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => panic!("{address} is none of IPv6"),
    };
    let (victim, own, listener) = (v6("tiefighter"), v6("xwing"), scene.pod("interceptor").unwrap().clone());
    let mac = mac_of(&scene, "xwing").unwrap();
    // Whom nobody has asked for, an advertisement does not make known; so somebody asks, in vain or not.
    listener.exec(["ping", "-6", "-c", "1", "-W", "1", &victim.to_string()]).ok();
    let poisoned = || {
        let known = listener.exec(["ip", "-6", "neighbour", "show", &victim.to_string()]).unwrap();
        let octets: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
        known.contains(&octets.join(":"))
    };
    assert!(!poisoned());
    drops(&mut scene, "xwing", "SPOOFED", || advertise(mac, own, victim)).unwrap();
    assert!(!poisoned(), "the neighbour counts as the attacker");
    let before = scene.counted("node1", "DROPPED", "SPOOFED").unwrap();
    let from = scene.pod("xwing").unwrap().clone();
    from.run(|| advertise(mac, own, own)).unwrap().unwrap();
    drop(scene.land("tiefighter", Family::V6, PATIENCE).unwrap());
    assert_eq!(scene.counted("node1", "DROPPED", "SPOOFED").unwrap(), before, "it may speak for itself");
}

#[test]
fn a_plugin_that_goes_round_the_host_is_refused_in_words() {
    if !skip::cni_available("a_plugin_that_goes_round_the_host_is_refused_in_words") {
        return;
    }
    let mut scene =
        StarWars::with_options("macvlan", Options { rp_filter: 1, cni: Some(Plugin::Macvlan) }).unwrap();
    scene.start_agents(&[]).unwrap();
    for (node, pod) in NODES.into_iter().zip(["default/tiefighter", "default/deathstar"]) {
        scene.wait_condition(node, &["DATAPATH_INCOMPLETE", pod, "macvlan", "round the host"]).unwrap();
        assert!(!scene.agent(node).unwrap().is_ready());
    }
}
