//! Whole nodes that have their SVIDs from SPIRE, with real packets: whose registration is authd's or somebody
//! else's, pods that move, agents that are stopped, peers that would resume.

#[path = "spire_nodes/sources.rs"]
mod sources;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use authd_tests::issuer::{Kind, SVID_TTL};
use authd_tests::lab::Options;
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{PATIENCE, TRUST_DOMAIN};
use authd_tests::{StarWars, binaries, skip, wait};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use serde_json::Value;

fn cluster(name: &str, kind: Kind, svid_ttl: Duration) -> Result<StarWars> {
    StarWars::issued_by(name, Options { rp_filter: 1, cni: None }, kind, svid_ttl)
}

/// Tunnels and daemons with these flags, until they have found each other.
fn settle(scene: &mut StarWars, flags: &[&str]) -> Result<()> {
    scene.start_tunnels()?;
    scene.start_agents(flags)?;
    scene.settle()
}

/// The SPIFFE IDs whose SVIDs a node has, its own left out.
fn held(scene: &StarWars, node: &str) -> Result<BTreeSet<String>> {
    let list = scene.authctl_json(node, &["svid", "list"])?;
    let svids = list.get("svids").and_then(Value::as_array).context("no SVIDs")?;
    let of = |svid: &Value| {
        let here = svid.get("identity")?.as_u64()? != 0 && svid.get("state")? == "AVAILABLE";
        here.then_some(svid.get("spiffeId")?.as_str()?.to_owned())
    };
    Ok(svids.iter().filter_map(of).collect())
}

/// On real SPIRE and on the embedded authority.
fn on_both(name: &str, scenario: fn(&str, Kind) -> Result<()>) -> Result<()> {
    for (kind, lab) in [(Kind::Embedded, name.to_owned()), (Kind::Real, format!("{name}-spire"))] {
        if skip::lab_available(name) && (kind == Kind::Embedded || skip::spire_available(name)) {
            scenario(&lab, kind).with_context(|| lab.clone())?;
        }
    }
    Ok(())
}

const BY_ACCOUNT: &str = "--spiffe-id-template=/ns/{namespace}/sa/{serviceaccount}";

/// Who runs as which service account; two of them as the same.
const ACCOUNTS: [(&str, &str, &str); 5] = [
    ("tiefighter", "ace", "node1"),
    ("xwing", "rebels", "node1"),
    ("interceptor", "pilots", "node1"),
    ("stormtrooper", "pilots", "node2"),
    ("deathstar", "station", "node2"),
];

/// Gives each pod of the cluster its service account.
fn with_accounts(scene: &mut StarWars) -> Result<()> {
    let text = fs::read_to_string(scene.lab.outside("cluster/pods.yaml"))?;
    let mut pods: Vec<String> = text.split("---\n").map(str::to_owned).collect();
    for (pod, account, _) in ACCOUNTS {
        let text = pods.iter_mut().find(|text| text.contains(&format!("\n  name: {pod}\n")));
        let text = text.with_context(|| format!("no pod {pod}"))?;
        *text = text.replace("\nspec:\n", &format!("\nspec:\n  serviceAccountName: {account}\n"));
    }
    scene.write_manifest("pods.yaml", &pods.join("---\n"))?;
    // Whom nobody is any more would still share a SPIFFE ID.
    fs::remove_file(scene.lab.outside("cluster/authd-identities.yaml"))?;
    scene.allocate()
}

/// Who may land is told by class alone.
fn only(classes: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: rule1, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{class: deathstar}}}}
  ingress:
    - authentication: {{mode: required}}
      fromEndpoints: [{{matchExpressions: [{{key: class, operator: In, values: {classes}}}]}}]
      toPorts: [{{ports: [{{port: \"80\", protocol: TCP}}]}}]
"
    )
}

/// Registrations that are there already: authd adds the nodes, and tells apart what a service account can.
fn service_accounts_authenticate(name: &str, kind: Kind) -> Result<()> {
    let mut scene = cluster(name, kind, SVID_TTL)?;
    with_accounts(&mut scene)?;
    let mut operator = scene.start_operator(&[BY_ACCOUNT])?;
    for (_, account, node) in ACCOUNTS {
        scene.registry.add_account("default", account, node)?;
    }
    operator.wait_ready(PATIENCE)?;
    settle(&mut scene, &[BY_ACCOUNT])?;
    for (node, accounts) in [("node1", &["ace", "pilots", "rebels"][..]), ("node2", &["pilots", "station"])] {
        let ids = accounts.iter().map(|account| format!("spiffe://{TRUST_DOMAIN}/ns/default/sa/{account}"));
        ensure!(held(&scene, node)? == ids.collect(), "{node}: {:?}", held(&scene, node));
        scene.wait_condition(node, &["SHARED_SPIFFE_IDS", "service account"])?;
    }
    ensure!(scene.registry.entries()? == 7, "five of others and two nodes: {:?}", scene.registry.entries());

    // All of a service account may land, or none.
    for pod in ["tiefighter", "interceptor", "stormtrooper"] {
        for family in Family::ALL {
            drop(scene.land(pod, family, PATIENCE).with_context(|| pod)?);
        }
    }
    ensure!(scene.is_refused("xwing", Family::V4), "xwing lands");
    let entries = scene.authenticated("node2", "deathstar", "tiefighter")?;
    let ids = format!("{entries:?}");
    ensure!(ids.contains("/ns/default/sa/ace") && ids.contains("/ns/default/sa/station"), "{ids}");

    // Two identities that have the same SPIFFE ID can't be told apart by it, so nobody pretends to.
    scene.write_manifest("policy.yaml", &only("[tiefighter, interceptor]"))?;
    scene.wait_condition("node2", &["rule1", "have the same SPIFFE ID", "all pods of a service account"])?;
    for pod in ["interceptor", "stormtrooper", "tiefighter", "xwing"] {
        let refused = || scene.is_refused(pod, Family::V4).then_some(());
        wait::until(PATIENCE, refused).with_context(|| format!("{pod} lands"))?;
    }
    scene.write_manifest("policy.yaml", &only("[tiefighter, interceptor, stormtrooper]"))?;
    for pod in ["interceptor", "stormtrooper", "tiefighter"] {
        drop(scene.land(pod, Family::V6, PATIENCE).with_context(|| pod)?);
    }
    ensure!(scene.is_refused("xwing", Family::V6), "xwing lands");
    ensure!(operator.process().terminate(PATIENCE)?.success(), "the operator does not end well");
    Ok(())
}

#[test]
fn service_accounts_that_others_have_registered_authenticate() {
    on_both("accounts", service_accounts_authenticate).unwrap();
}

/// How long an entry stays that nobody needs; ten minutes where nothing is said.
const GRACE: Duration = Duration::from_secs(6);

/// Stormtrooper on another node, or back on its own.
fn placed(scene: &StarWars, node: &str, addresses: [&str; 2]) -> Result<String> {
    let text = fs::read_to_string(scene.lab.outside("cluster/pods.yaml"))?;
    let mut pods: Vec<_> = text.split("---\n").filter(|text| !text.contains("name: stormtrooper")).collect();
    let [v4, v6] = addresses;
    let moved = format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: stormtrooper
  namespace: default
  labels: {{org: empire, class: stormtrooper, app.kubernetes.io/name: stormtrooper}}
spec: {{nodeName: {node}, containers: [{{name: stormtrooper, image: none}}]}}
status: {{phase: Running, podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}
"
    );
    pods.push(&moved);
    Ok(pods.join("---\n"))
}

/// A pod moves: its SVID comes to its new node, and its old node loses the right to it after the grace.
fn a_pod_takes_its_svid_along(name: &str, kind: Kind) -> Result<()> {
    let mut scene = cluster(name, kind, SVID_TTL)?;
    let grace = format!("{}s", GRACE.as_secs());
    let mut operator =
        scene.start_operator(&["--registration-grace", &grace, "--registration-interval", "1s"])?;
    operator.wait_ready(PATIENCE)?;
    settle(&mut scene, &[])?;
    let identity = scene.manifests.identity_of("stormtrooper")?;
    let id = format!("spiffe://{TRUST_DOMAIN}/identity/{identity}");
    drop(scene.land("stormtrooper", Family::V4, PATIENCE)?);
    let mut there = scene.land("tiefighter", Family::V4, PATIENCE)?;

    let places =
        [("node1", ["10.244.1.30", "fd00:10:244:1::30"]), ("node2", ["10.244.2.30", "fd00:10:244:2::30"])];
    for ((node, addresses), old) in places.into_iter().zip(["node2", "node1"]) {
        let parsed = [addresses[0].parse()?, addresses[1].parse()?];
        let pod = scene.node(node)?.pod(&format!("trooper-{node}"), &parsed)?;
        scene.world.pods.insert("stormtrooper".to_owned(), pod);
        scene.write_manifest("pods.yaml", &placed(&scene, node, addresses)?)?;
        let moved = Instant::now();
        let arrived = || (held(&scene, node).ok()?.contains(&id)).then_some(());
        wait::until(PATIENCE, arrived).with_context(|| format!("{id} does not come to {node}"))?;
        for family in Family::ALL {
            drop(scene.land("stormtrooper", family, PATIENCE).with_context(|| format!("from {node}"))?);
        }
        ensure!(!held(&scene, old)?.contains(&id), "{old} keeps the SVID of what it does not run");
        // Nor can it have it again, once the grace is over.
        let only_here = || (scene.registry.nodes_of(identity).ok()? == [node]).then_some(());
        wait::until(PATIENCE, only_here).with_context(|| format!("{old} is left its entry"))?;
        ensure!(moved.elapsed() >= GRACE - Duration::from_secs(1), "its entry went at once");
        drop(scene.land("stormtrooper", Family::V6, PATIENCE)?);
    }
    // Nobody else has noticed.
    scene.land_over(&mut there, PATIENCE)?;
    ensure!(operator.process().terminate(PATIENCE)?.success(), "the operator does not end well");
    Ok(())
}

#[test]
fn a_pod_that_moves_takes_its_svid_along() {
    on_both("moves", a_pod_takes_its_svid_along).unwrap();
}

/// An agent's process is stopped: that is an alarm of its own while everything still flows, until NotAfter.
fn a_stopped_agent_raises_its_alarm(name: &str, kind: Kind) -> Result<()> {
    const STUCK: &str = "authd_spire_agent_stuck";
    /// From one rotation to NotAfter, at most.
    const LIFE: Duration = Duration::from_secs(45);
    let mut scene = cluster(name, kind, Duration::from_secs(20))?;
    settle(&mut scene, &[])?;
    drop(scene.land("tiefighter", Family::V4, PATIENCE)?);
    let stuck = |scene: &mut StarWars| -> Result<f64> {
        let metrics = scene.agent("node1")?.metrics()?;
        ensure!(metrics.has(STUCK, &[]), "no {STUCK}");
        Ok(metrics.sum(STUCK, &[]))
    };
    ensure!(stuck(&mut scene)? == 0.0, "stuck though it answers");
    scene.issuer.signal_agent("node1", SIGSTOP)?;
    let told = wait::until(LIFE, || (stuck(&mut scene).ok()? == 1.0).then_some(()));
    told.context("nobody is told")?;
    scene.wait_condition("node1", &["SPIRE_AGENT_STUCK", "restart it"])?;
    let text = scene.authctl("node1", &["svid", "list"])?;
    ensure!(text.contains("may be stuck"), "{text}");
    // What was there counts until it ends, and nothing beyond.
    let ended = || held(&scene, "node1").ok()?.is_empty().then_some(());
    wait::until(LIFE, ended).context("its SVIDs do not end")?;
    let refused = || scene.is_refused("tiefighter", Family::V4).then_some(());
    wait::until(PATIENCE, refused).context("what has no SVID any more lands")?;
    ensure!(stuck(&mut scene)? == 1.0, "the alarm is over while the agent is stopped");

    scene.issuer.signal_agent("node1", SIGCONT)?;
    let over = wait::until(LIFE, || (stuck(&mut scene).ok()? == 0.0).then_some(()));
    over.context("the alarm is not over")?;
    let quiet = || scene.conditions("node1").ok()?.iter().all(|it| !it.contains("STUCK")).then_some(());
    wait::until(PATIENCE, quiet).context("the condition stays")?;
    drop(scene.land("tiefighter", Family::V4, 2 * PATIENCE)?);
    Ok(())
}

#[test]
fn a_stopped_agent_is_an_alarm_until_it_goes_on() {
    on_both("stuck", a_stopped_agent_raises_its_alarm).unwrap();
}

/// A session that OpenSSL gives itself, with leave for early data, for what the handshake port speaks.
const SESSION: &str = r#"
cd "$1"; printf early > early; rm -f session.pem
mkfifo words; sleep 60 > words & holder=$!
openssl s_server -accept 4999 -naccept 1 -cert svid.0.pem -key svid.0.key -alpn "$2" -early_data -quiet < words > /dev/null 2>&1 & server=$!
for _ in $(seq 100); do
    [ -s session.pem ] && break
    (sleep 1 | openssl s_client -connect [::1]:4999 -servername "$3" -alpn "$2" -cert svid.0.pem -key svid.0.key -sess_out session.pem) > /dev/null 2>&1
done
kill $holder $server; rm words; grep -q 'END SSL SESSION' session.pem
"#;

/// Shows it at a handshake port, speaks early, and keeps what it is given there.
const RESUME: &str = r#"
cd "$1"; rm -f given.pem
(sleep 1 | openssl s_client -connect "$4" -servername "$3" -alpn "$2" -cert svid.0.pem -key svid.0.key \
    -sess_in session.pem -early_data early -sess_out given.pem -CAfile bundle.0.pem) 2>&1
[ ! -e given.pem ] && echo 'no ticket'
"#;

/// Somebody with a node's own SVID, and a session that he has made up, at the port of the other node's daemon.
fn nobody_resumes(name: &str) -> Result<()> {
    let mut scene = cluster(name, Kind::Real, SVID_TTL)?;
    settle(&mut scene, &["--key-exchange", "any"])?;
    drop(scene.land("tiefighter", Family::V4, PATIENCE)?);
    let node = scene.node("node1")?.clone();
    let directory = scene.lab.inside("x509");
    let directory = directory.to_str().context("a path that is no text")?;
    fs::create_dir(scene.lab.outside("x509"))?;
    let socket = scene.lab.inside("authority/node1/workload/api.sock");
    let agent = binaries::peer("spire-agent")?;
    let fetch = ["api", "fetch", "x509", "-write", directory, "-socketPath"];
    let program = agent.to_str().context("a path that is no text")?;
    node.exec([program].into_iter().chain(fetch).chain(socket.to_str()))?;

    let address = scene.node("node2")?.addresses().first().context("an address")?;
    let port = format!("{address}:4250");
    let identity = scene.manifests.identity_of("deathstar")?;
    for (alpn, name) in [
        ("authd-node/1", format!("node2.{TRUST_DOMAIN}")),
        ("authd-identity/1", format!("{identity}.{TRUST_DOMAIN}")),
    ] {
        let run = |script: &str| node.exec(["sh", "-c", script, "sh", directory, alpn, &name, &port]);
        run(SESSION)?;
        let said = run(RESUME)?;
        // It is let in as who it is, and by all that it takes.
        for words in [alpn, "Verification: OK", "New, TLSv1.3", "Early data was rejected", "no ticket"] {
            ensure!(said.contains(words), "{alpn}: not {words:?}: {said}");
        }
    }
    // The real ones are none the worse for it.
    drop(scene.land("tiefighter", Family::V6, PATIENCE)?);
    scene.settle()
}

#[test]
fn nobody_resumes_at_the_handshake_port() {
    let name = "nobody_resumes_at_the_handshake_port";
    if skip::lab_available(name) && skip::spire_available(name) && skip::openssl_available(name) {
        nobody_resumes("resumes").unwrap();
    }
}
