//! What is wrong from outside: each a clear error or a state that says so, and enforcement never off.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use authd_tests::daemon::HTTP;
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{NODES, PATIENCE, TRUST_DOMAIN};
use authd_tests::{Lab, Node, StarWars, binaries, http, log, skip, wait};

const REFUSED: u8 = 78;
const FAILED: u8 = 1;

/// A node without a cluster, with a directory of manifests that has nothing in it.
fn lone_node(name: &str) -> Result<(Lab, Node)> {
    let lab = Lab::new(name)?;
    let node = lab.node("node1", &["10.0.0.1".parse()?], &["10.244.1.0/24".parse()?])?;
    fs::create_dir(lab.outside("cluster"))?;
    Ok((lab, node))
}

/// Runs `authd` on a node, which has to end by itself with this status and say all this on its last line.
fn fails(node: &Node, before: &[&str], flags: &[&str], status: u8, parts: &[&str]) -> Result<()> {
    let authd = binaries::path("authd")?;
    let authd = authd.to_str().context("a path that is no text")?;
    let arguments = [before, &[authd, "--node-name", "node1", "--http-address", "[::]:9470"], flags].concat();
    let said =
        node.exec(arguments).map_or_else(|error| error.to_string(), |said| format!("it succeeds: {said}"));
    anyhow::ensure!(said.contains(&format!("exit status: {status}\n")), "{flags:?}: no {status}: {said}");
    let last = said.lines().rfind(|line| line.starts_with("authd: ") || line.starts_with("error: "));
    let last = last.with_context(|| format!("no line for people: {said}"))?;
    for part in parts {
        anyhow::ensure!(last.contains(part), "{flags:?}: {part:?} is not in {last:?}");
    }
    Ok(())
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    if !skip::lab_available("a_configuration_that_makes_no_sense_is_refused") {
        return;
    }
    let (lab, node) = lone_node("config").unwrap();
    fs::write(lab.outside("authd.yaml"), "trust-domain: a\npolcy-mode: observe\n").unwrap();
    let refused = |flags: &[&str], parts: &[&str]| fails(&node, &[], flags, REFUSED, parts).unwrap();
    refused(&[], &["trust-domain is missing", "--trust-domain", "AUTHD_TRUST_DOMAIN"]);
    refused(&["--config", "/run/lab/authd.yaml"], &["/run/lab/authd.yaml", "polcy-mode", "policy-mode"]);
    refused(&["--config", "/nowhere.yaml"], &["/nowhere.yaml", "--config"]);
    refused(&["--trust-domain", "a", "--policy-mode", "off"], &["policy-mode", "\"off\"", "observe"]);
    refused(&["--trust-domain", "a", "--cluster-cidrs", "10.0.0.1/8"], &["cluster-cidrs", "10.0.0.0/8"]);
    refused(
        &["--trust-domain", "a", "--outside-ranges", "198.18.0.0/17"],
        &["outside-ranges", "198.18.0.0/16"],
    );
    assert!(!node.outside(Path::new("/sys/fs/bpf/authd")).exists(), "nothing has been touched");
}

#[test]
fn a_machine_that_lacks_something_is_told_what() {
    if !skip::lab_available("a_machine_that_lacks_something_is_told_what") {
        return;
    }
    let (lab, node) = lone_node("lacks").unwrap();
    let good = ["--trust-domain", "empire.example", "--cluster-dir", "/run/lab/cluster"];
    let failed = |before: &[&str], flags: &[&str], parts: &[&str]| {
        fails(&node, before, &[&good, flags].concat(), FAILED, parts).unwrap();
    };
    let nowhere = ["--trust-domain", "a", "--cluster-dir", "/nowhere"];
    fails(&node, &[], &nowhere, FAILED, &["cluster directory /nowhere", "--cluster-dir"]).unwrap();
    failed(&[], &["--pin-dir", "/run/lab/pins"], &["/run/lab/pins", "not on a BPF file system", "mount"]);

    let taken = node.tcp_listen("[::]:9466".parse().unwrap()).unwrap();
    failed(&[], &["--handshake-port", "9466"], &["port 9466", "--handshake-port"]);
    drop(taken);

    let without = ["setpriv", "--inh-caps", "-all", "--bounding-set", "-bpf,-sys_admin"];
    failed(&without, &[], &["permission denied", "CAP_BPF", "CAP_NET_ADMIN"]);
    let without = ["setpriv", "--inh-caps", "-all", "--bounding-set", "-net_admin,-sys_admin"];
    failed(&without, &[], &["permission denied", "CAP_BPF", "CAP_NET_ADMIN"]);
    drop(lab);
}

#[test]
fn a_second_daemon_does_not_disturb_the_first() {
    if !skip::lab_available("a_second_daemon_does_not_disturb_the_first") {
        return;
    }
    let mut scene = StarWars::settled("second", &[]).unwrap();
    let node = scene.node("node1").unwrap().clone();
    let good = ["--trust-domain", TRUST_DOMAIN, "--cluster-dir", "/run/lab/cluster"];
    let same_http = [&good[..], &["--api-socket", "/run/authd/other.sock"]].concat();
    fails(&node, &[], &good, FAILED, &["another authd", "/run/authd/authd.sock", "--api-socket"]).unwrap();
    fails(&node, &[], &same_http, FAILED, &["port 4250", "--handshake-port"]).unwrap();
    let authd = binaries::path("authd").unwrap();
    let taken = [&[authd.to_str().unwrap(), "--node-name", "node1"], &good[..]].concat();
    let said = node.exec(taken).unwrap_err().to_string();
    assert!(said.contains("[::]:9465") && said.contains("--http-address"), "{said}");

    for socket in ["/run/authd/authd.sock", "/run/authd/tunnel.sock"] {
        let mode = fs::metadata(node.outside(Path::new(socket))).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{socket}");
    }
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    assert!(scene.agent("node1").unwrap().is_ready());
}

/// `demo/manifests/policy.yaml` with another word in it.
fn policy(scene: &StarWars, from: &str, to: &str) -> Result<String> {
    let text = fs::read_to_string(scene.lab.outside("cluster/policy.yaml"))?;
    anyhow::ensure!(text.contains(from), "there is no {from}");
    Ok(text.replace(from, to))
}

#[test]
fn a_manifest_that_breaks_at_the_start_opens_nothing() {
    if !skip::lab_available("a_manifest_that_breaks_at_the_start_opens_nothing") {
        return;
    }
    let mut scene = StarWars::new("broken").unwrap();
    let broken = policy(&scene, "ingress:\n    - fromEndpoints", "ingress:\n  : - [fromEndpoints").unwrap();
    scene.write_manifest("policy.yaml", &broken).unwrap();
    fs::write(scene.lab.outside("cluster/binary.yaml"), [0xff, 0xfe, b'\n']).unwrap();
    scene.start_tunnels().unwrap();
    scene.start_agents(&[]).unwrap();
    scene.settle().unwrap();
    for node in NODES {
        let line = scene.wait_condition(node, &["CLUSTER_STATE", "policy.yaml:"]).unwrap();
        let place = line.split_once("policy.yaml:").and_then(|(_, rest)| rest.split_once(':')).unwrap().0;
        assert!(place.parse::<u32>().is_ok(), "no line number: {line}");
        scene.wait_condition(node, &["CLUSTER_STATE", "binary.yaml"]).unwrap();
        assert!(scene.agent(node).unwrap().metrics().unwrap().sum("authd_cluster_problems", &[]) >= 2.0);
    }
    for pod in ["xwing", "tiefighter", "stormtrooper"] {
        assert!(scene.is_refused(pod, Family::V4), "{pod} lands, though nobody knows what is allowed");
    }
}

#[test]
fn a_policy_that_breaks_while_running_opens_nothing_and_says_why() {
    if !skip::lab_available("a_policy_that_breaks_while_running_opens_nothing_and_says_why") {
        return;
    }
    let scene = StarWars::settled("breaks", &[]).unwrap();
    let good = policy(&scene, "kind", "kind").unwrap();
    let lands = |pod| scene.land(pod, Family::V4, PATIENCE).map(drop);
    lands("tiefighter").unwrap();

    // No YAML: the last that was stays in force.
    scene.write_manifest("policy.yaml", &format!("{good}\n: - [\n")).unwrap();
    scene
        .wait_condition("node2", &["CLUSTER_STATE", "policy.yaml", "null into string; the last good"])
        .unwrap();
    lands("tiefighter").unwrap();
    assert!(scene.is_refused("xwing", Family::V4));

    // YAML, but not a policy: likewise.
    let unknown = good.replace("fromEndpoints", "fromEndpoint");
    let parts = ["rule1", "spec.ingress[0].fromEndpoint", "unknown field", "`fromEndpoints`"];
    scene.write_manifest("policy.yaml", &unknown).unwrap();
    scene.wait_condition("node2", &[&parts[..], &["policy.yaml:14", "last good version"]].concat()).unwrap();
    lands("tiefighter").unwrap();
    assert!(scene.is_refused("xwing", Family::V4));

    // One that never was good: what it is about can't be reached until it is mended.
    scene.write_manifest("policy.yaml", &good).unwrap();
    scene
        .write_manifest("more.yaml", &unknown.replace("rule1", "rule2").replace("default-deny", "more"))
        .unwrap();
    scene
        .wait_condition("node2", &["rule2", "more.yaml:14", "everything that the policy is about is denied"])
        .unwrap();
    for pod in ["xwing", "tiefighter", "stormtrooper"] {
        assert!(scene.is_refused(pod, Family::V4), "{pod}");
    }

    fs::remove_file(scene.lab.outside("cluster/more.yaml")).unwrap();
    let mended = || scene.conditions("node2").is_ok_and(|all| all.is_empty()).then_some(());
    wait::until(PATIENCE, mended).with_context(|| format!("{:?}", scene.conditions("node2"))).unwrap();
    lands("tiefighter").unwrap();
    assert!(scene.is_refused("xwing", Family::V4));
}

/// Moves a socket out of the daemon's sight, as if its path were wrong, or back.
fn mislay(scene: &StarWars, socket: &str, back: bool) -> Result<()> {
    let right = scene.lab.outside(&format!("authority/{socket}"));
    let wrong = right.with_extension("elsewhere");
    let (from, to) = if back { (wrong, right) } else { (right, wrong) };
    Ok(fs::rename(from, to)?)
}

fn readyz(node: &Node) -> Result<http::Response> {
    http::get(node, HTTP, "/readyz", Duration::from_secs(1))
}

#[test]
fn wrong_sockets_of_the_agent_are_named_and_nothing_passes() {
    if !skip::lab_available("wrong_sockets_of_the_agent_are_named_and_nothing_passes") {
        return;
    }
    let mut scene = StarWars::new("sockets").unwrap();
    mislay(&scene, "node2/workload/api.sock", false).unwrap();
    mislay(&scene, "node1/admin/api.sock", false).unwrap();
    scene.start_tunnels().unwrap();
    scene.start_agents(&[]).unwrap();
    for agent in scene.agents.values_mut() {
        // SPIRE is waited for by nothing: what is authenticated goes on without it.
        agent.wait_ready(PATIENCE).unwrap();
    }
    scene.wait_condition("node2", &["NODE_SVID_MISSING", "authority/node2/workload/api.sock"]).unwrap();
    scene.wait_condition("node1", &["SVID_MISSING", "authority/node1/admin/api.sock"]).unwrap();
    assert!(scene.is_refused("tiefighter", Family::V4));
    assert!(scene.counted("node1", "DROPPED", "NO_NODE_SESSION").unwrap() >= 1.0);

    mislay(&scene, "node2/workload/api.sock", true).unwrap();
    let session = || {
        let metrics = scene.agents["node1"].metrics().ok()?;
        (metrics.sum("authd_node_sessions", &[("state", "live")]) >= 1.0).then_some(())
    };
    wait::until(PATIENCE, session).context("no session").unwrap();
    wait::until(PATIENCE, || {
        drop(scene.connect("tiefighter", Family::V4, Duration::from_millis(400)));
        (scene.counted("node2", "DROPPED", "HOLD_TIMEOUT").ok()? >= 1.0).then_some(())
    })
    .context("it is not asked to authenticate")
    .unwrap();
    assert!(scene.is_refused("tiefighter", Family::V4), "nobody vouches for it");

    mislay(&scene, "node1/admin/api.sock", true).unwrap();
    scene.settle().unwrap();
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
}

#[test]
fn who_has_no_svid_yet_is_told_so_until_it_comes() {
    if !skip::lab_available("who_has_no_svid_yet_is_told_so_until_it_comes") {
        return;
    }
    let mut scene = StarWars::new("pending").unwrap();
    let identity = scene.manifests.identity_of("deathstar").unwrap();
    assert!(scene.registry.withdraw(identity).unwrap() > 0);
    scene.start_tunnels().unwrap();
    scene.start_agents(&[]).unwrap();
    for agent in scene.agents.values_mut() {
        agent.wait_ready(PATIENCE).unwrap();
    }
    wait::until(PATIENCE, || {
        drop(scene.connect("tiefighter", Family::V4, Duration::from_millis(400)));
        (scene.counted("node2", "DROPPED", "SVID_PENDING").ok()? >= 1.0).then_some(())
    })
    .context("drops do not say that the SVID is missing")
    .unwrap();
    let svids = scene.authctl_json("node2", &["svid", "list"]).unwrap().to_string();
    assert!(svids.contains("PENDING"), "{svids}");
    scene.wait_condition("node2", &["SVID_MISSING", &format!("Identity {identity}")]).unwrap();

    scene.registry.add_identity(identity, "node2").unwrap();
    scene.settle().unwrap();
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    let before = scene.counted("node2", "DROPPED", "SVID_PENDING").unwrap();
    // Whoever had one and lost it is not waiting for it.
    scene.registry.withdraw(identity).unwrap();
    wait::until(PATIENCE, || {
        drop(scene.connect("tiefighter", Family::V4, Duration::from_millis(400)));
        let lacking = ["AUTH_REQUIRED", "HOLD_TIMEOUT"];
        lacking.iter().any(|reason| scene.counted("node2", "DROPPED", reason).unwrap() >= 1.0).then_some(())
    })
    .context("what was withdrawn goes on")
    .unwrap();
    assert_eq!(scene.counted("node2", "DROPPED", "SVID_PENDING").unwrap(), before);
}

#[test]
fn a_missing_tunnel_is_named_until_it_comes() {
    if !skip::lab_available("a_missing_tunnel_is_named_until_it_comes") {
        return;
    }
    let mut scene = StarWars::new("tunnel").unwrap();
    scene.start_agents(&[]).unwrap();
    let node = scene.node("node1").unwrap().clone();
    let named =
        || readyz(&node).ok().filter(|it| it.status == 503 && it.body.contains("/run/authd/tunnel.sock"));
    let (response, _) = wait::until(PATIENCE, named).unwrap_or_else(|| panic!("{:?}", readyz(&node)));
    assert!(response.body.contains("authd tunnel"), "it says what to run: {response:?}");
    assert_eq!(http::get(&node, HTTP, "/healthz", PATIENCE).unwrap().status, 200);

    // Somebody has WireGuard's port.
    let port: SocketAddr = "[::]:51871".parse().unwrap();
    let taken = node.udp_bind(port).unwrap();
    scene.start_tunnels().unwrap();
    scene.wait_condition("node1", &["TUNNEL", "51871", "--wireguard-port"]).unwrap();
    assert_eq!(readyz(&node).unwrap().status, 503);
    drop(taken);
    scene.settle().unwrap();
    drop(scene.land("tiefighter", Family::V4, PATIENCE).unwrap());
    assert_eq!(readyz(&node).unwrap().status, 200);
}

/// Whoever may write to the cluster state may say what he likes of a node's key.
#[test]
fn a_wrong_key_in_the_cluster_state_is_never_used_and_raises_an_alert() {
    if !skip::lab_available("a_wrong_key_in_the_cluster_state_is_never_used_and_raises_an_alert") {
        return;
    }
    let mut scene = StarWars::settled("wrong-key", &[]).unwrap();
    let key = |scene: &StarWars| {
        let status = scene.authctl_json("node2", &["status"]).unwrap();
        status["tunnel"]["publicKey"].as_str().unwrap().to_owned()
    };
    let proven = key(&scene);
    let nodes = fs::read_to_string(scene.lab.outside("cluster/nodes.yaml")).unwrap();
    let claiming = |claimed: &str| {
        let said = format!("  name: node2\n  annotations: {{authd.io/wireguard-key: \"{claimed}\"}}\nspec:");
        nodes.replace("  name: node2\nspec:", &said)
    };
    let alerted = |scene: &mut StarWars, expected: f64| {
        for node in ["node1", "node2"] {
            let agent = scene.agent(node).unwrap();
            let found = wait::until(PATIENCE, || {
                let claims = agent.metrics().ok()?.sum("authd_wrong_key_claims", &[]);
                ((claims - expected).abs() < f64::EPSILON).then_some(())
            });
            assert!(found.is_some(), "{node}: not {expected}");
        }
    };
    assert_ne!(claiming("x"), nodes);
    alerted(&mut scene, 0.0);
    let stolen = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    scene.write_manifest("nodes.yaml", &claiming(stolen)).unwrap();
    alerted(&mut scene, 1.0);
    for node in ["node1", "node2"] {
        let condition = scene.wait_condition(node, &["WRONG_KEY_CLAIMED", "node2"]).unwrap();
        assert!(condition.contains(stolen) && condition.contains(&proven), "{condition}");
        let log = scene.agent(node).unwrap().process().log().unwrap();
        let line = [("target", "authd::audit"), ("event", "wrong_key_claimed"), ("node", "node2")];
        assert!(log::contains(&log, &line), "{node}");
    }
    // The tunnel has the proven key, and goes on.
    for family in Family::ALL {
        drop(scene.land("tiefighter", family, PATIENCE).unwrap());
    }
    assert_eq!(key(&scene), proven);
    scene.write_manifest("nodes.yaml", &claiming(&proven)).unwrap();
    alerted(&mut scene, 0.0);
}
