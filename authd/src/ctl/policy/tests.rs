//! The commands as people call them, on directories of manifests.

use std::{fs, path::Path};

use serde_json::Value;

use crate::ctl::run;

const CLUSTER: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: deathstar, namespace: galaxy, labels: {org: empire, class: deathstar}}, spec: {nodeName: n1}, status: {podIPs: [{ip: 10.244.1.5}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: tiefighter, namespace: galaxy, labels: {org: empire, class: tiefighter}}, spec: {nodeName: n2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: xwing, namespace: galaxy, labels: {org: alliance}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: agent, namespace: galaxy}, spec: {nodeName: n1, hostNetwork: true}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24]}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
";
const RULE1: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: rule1, namespace: galaxy}
spec:
  endpointSelector: {matchLabels: {org: empire, class: deathstar}}
  ingress:
    - authentication: {mode: required}
      fromEndpoints: [{matchLabels: {org: empire}}]
      toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]
";

/// Exit status, stdout and stderr.
fn authctl(arguments: &[&str]) -> (u8, String, String) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = run(["authctl", "policy"].iter().chain(arguments), &mut stdout, &mut stderr);
    (status, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn galaxy() -> tempfile::TempDir {
    directory(&[("cluster.yaml", CLUSTER), ("rule1.yaml", RULE1)])
}

fn trace(manifests: &Path, from: &str, to: &str, port: &str) -> Value {
    let path = manifests.to_str().unwrap();
    let (status, stdout, stderr) =
        authctl(&["trace", "--manifests", path, "--from", from, "--to", to, "--port", port, "-o", "json"]);
    assert_eq!((status, stderr.as_str()), (0, ""));
    serde_json::from_str(&stdout).unwrap()
}

#[test]
fn a_trace_has_the_promised_keys() {
    let galaxy = galaxy();
    let answer = trace(galaxy.path(), "galaxy/tiefighter", "galaxy/deathstar", "80/TCP");
    assert_eq!(answer["verdict"], "allowed");
    assert_eq!(answer["authentication"], "required");
    assert_eq!(answer["encryption"], "default");
    assert_eq!(answer["ingress"]["verdict"], "allowed");
    assert_eq!(answer["egress"]["verdict"], "allowed");
    let decided = answer["decidedBy"].as_array().unwrap().last().unwrap();
    assert_eq!(decided["object"]["name"], "rule1");
    assert_eq!(decided["rule"], 0);
}

#[test]
fn ends_of_every_form() {
    let galaxy = galaxy();
    for (from, to, port, verdict) in [
        ("galaxy/tiefighter", "galaxy/deathstar", "81/TCP", "denied"),
        ("galaxy/tiefighter", "galaxy/deathstar", "TCP", "denied"),
        ("galaxy/xwing", "galaxy/deathstar", "80/TCP", "denied"),
        ("galaxy/xwing", "ip:10.244.1.5", "80/TCP", "denied"),
        ("entity:world", "galaxy/deathstar", "80/TCP", "denied"),
        ("entity:host", "galaxy/deathstar", "8/ICMP", "allowed"),
        ("ip:192.168.0.1", "galaxy/deathstar", "80/TCP", "allowed"),
        ("ip:192.168.0.1", "galaxy/tiefighter", "80/TCP", "allowed"),
        ("galaxy/agent", "galaxy/deathstar", "80/TCP", "allowed"),
        ("galaxy/deathstar", "ip:192.0.2.1", "443/TCP", "allowed"),
        ("identity:256", "galaxy/xwing", "80/UDP", "allowed"),
        ("galaxy/xwing", "ip:10.244.1.99", "80/TCP", "denied"),
    ] {
        assert_eq!(trace(galaxy.path(), from, to, port)["verdict"], verdict, "{from} {to} {port}");
    }
}

#[test]
fn a_trace_reads_like_this() {
    let galaxy = galaxy();
    let path = galaxy.path().to_str().unwrap();
    let (status, stdout, _) = authctl(&[
        "trace",
        "--manifests",
        path,
        "--from",
        "galaxy/tiefighter",
        "--to",
        "galaxy/deathstar",
        "--port",
        "80/TCP",
    ]);
    assert_eq!(status, 0);
    assert!(stdout.starts_with("galaxy/tiefighter (identity "), "{stdout}");
    assert!(stdout.contains("ingress  allowed  CiliumNetworkPolicy galaxy/rule1 ingress[0]\n"), "{stdout}");
    assert!(stdout.ends_with("verdict  allowed; authentication required; encryption default\n"), "{stdout}");
}

#[test]
fn an_end_that_is_not_there_fails_with_a_hint() {
    let galaxy = galaxy();
    let path = galaxy.path().to_str().unwrap();
    let (status, _, stderr) = authctl(&[
        "trace",
        "--manifests",
        path,
        "--from",
        "default/xwing",
        "--to",
        "galaxy/deathstar",
        "--port",
        "80",
    ]);
    assert_eq!(status, 1);
    assert_eq!(stderr, "authctl: there is no Pod default/xwing; there is one in namespace galaxy\n");
}

#[test]
fn check_names_file_line_object_and_field() {
    let broken = RULE1.replace("fromEndpoints", "fromEndpoint");
    let directory = directory(&[("broken.yaml", &broken)]);
    let path = directory.path().join("broken.yaml");
    let (status, stdout, _) = authctl(&["check", path.to_str().unwrap()]);
    assert_eq!(status, 1);
    let expected = format!(
        "error: {}:9: CiliumNetworkPolicy galaxy/rule1: spec.ingress[0].fromEndpoint: unknown field; did you mean `fromEndpoints`?",
        path.display()
    );
    assert!(stdout.starts_with(&expected), "{stdout}");
    assert!(stdout.ends_with("1 policy: 1 error, 0 warnings\n"), "{stdout}");
}

#[test]
fn check_of_what_is_well_says_so() {
    let galaxy = galaxy();
    let (status, stdout, stderr) = authctl(&["check", galaxy.path().to_str().unwrap()]);
    assert_eq!((status, stdout.as_str(), stderr.as_str()), (0, "1 policy: 0 errors, 0 warnings\n", ""));
    let (status, stdout, _) = authctl(&["check", galaxy.path().to_str().unwrap(), "-o", "json"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, report["errors"].as_u64(), report["policies"].as_u64()), (0, Some(0), Some(1)));
}

#[test]
fn check_of_nothing_is_an_error() {
    let (status, _, stderr) = authctl(&["check", "/nonexistent/policy.yaml"]);
    assert_eq!(status, 1);
    assert!(stderr.starts_with("authctl: /nonexistent/policy.yaml: No such file"), "{stderr}");
}

#[test]
fn policies_are_listed() {
    let galaxy = galaxy();
    let path = galaxy.path().to_str().unwrap();
    let (status, stdout, _) = authctl(&["get", "--manifests", path]);
    assert_eq!(status, 0);
    assert!(stdout.contains("CiliumNetworkPolicy  galaxy     rule1  1"), "{stdout}");
    let (_, stdout, _) = authctl(&["get", "--manifests", path, "galaxy/other", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["policies"], serde_json::json!([]));
}
