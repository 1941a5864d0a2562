//! The commands as people call them, on directories of manifests.

mod sharing;

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    api::fake::Fake,
    cluster,
    ctl::{
        run,
        tests::{self as daemon, with_daemon},
    },
};

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
fn a_default_deny_names_its_policy() {
    let galaxy = galaxy();
    let answer = trace(galaxy.path(), "galaxy/xwing", "galaxy/deathstar", "80/TCP");
    assert_eq!(answer["decidedBy"][0]["origin"], "defaultDeny");
    assert_eq!(answer["decidedBy"][0]["object"]["name"], "rule1");
    let considered = &answer["ingress"]["considered"][0];
    assert_eq!((&considered["matchesPeer"], &considered["matchesPort"]), (&false.into(), &true.into()));
}

#[test]
fn a_pod_always_reaches_itself() {
    let galaxy = galaxy();
    let answer = trace(galaxy.path(), "galaxy/deathstar", "galaxy/deathstar", "81/TCP");
    assert_eq!(
        (&answer["verdict"], &answer["decidedBy"][0]["origin"]),
        (&"allowed".into(), &"samePod".into())
    );
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

/// A policy that wasn't read makes another verdict.
#[test]
fn a_trace_says_what_it_has_not_read() {
    let galaxy = galaxy();
    fs::create_dir(galaxy.path().join("more")).unwrap();
    let path = galaxy.path().to_str().unwrap();
    let question = ["--from", "galaxy/xwing", "--to", "galaxy/deathstar", "--port", "80"];
    let (status, _, stderr) = authctl(&[&["trace", "--manifests", path][..], &question].concat());
    assert_eq!(status, 0);
    assert_eq!(
        stderr,
        format!(
            "authctl: {path}/more: subdirectories are not read; put the manifests into the directory itself\n"
        )
    );
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

/// Mistakes that people make, and what they are told: line and words.
#[test]
fn check_says_what_one_would_want_to_hear() {
    let head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  endpointSelector: {}\n";
    let rule = |rest: &str| format!("{head}  ingress:\n  - {rest}\n");
    for (text, line, expected) in [
        (
            rule("fromEndpoints: [{matchLabel: {app: db}}]"),
            7,
            "spec.ingress[0].fromEndpoints[0].matchLabel: unknown field; did you mean `matchLabels`?",
        ),
        (
            rule("toPorts: [{ports: [{port: '80', protocol: HTTP}]}]"),
            7,
            "spec.ingress[0].toPorts[0].ports[0].protocol: unknown value `HTTP`; known are TCP, UDP, SCTP, ",
        ),
        (
            rule("toPorts: [{ports: [{port: '80', protocol: TPC}]}]"),
            7,
            "spec.ingress[0].toPorts[0].ports[0].protocol: unknown value `TPC`; did you mean `TCP`?",
        ),
        (
            rule("from: [{podSelector: {}}]"),
            7,
            "spec.ingress[0].from: unknown field; known are fromEndpoints, fromEntities, ",
        ),
        (
            head.replace("CiliumNetworkPolicy", "CiliumNetworkPolcy"),
            2,
            "kind: must be CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy or NetworkPolicy; did you mean `CiliumNetworkPolicy`?",
        ),
        (
            format!("{head}  egressDeny: [{{toFQDNs: [{{matchName: a.b}}]}}]\n"),
            6,
            "spec.egressDeny[0].toFQDNs: a rule that denies can't be about names of DNS; deny addresses (`toCIDRSet`)",
        ),
        (format!("{head}  ingress: []\n  ingress: []\n"), 7, "duplicate mapping key: ingress; it may hold a policy"),
        (format!("{head}  ingress:\n\t- {{}}\n"), 7, "tabs disallowed within this context"),
        (head.replace("name: p", "name: {{ .Values.name }}"), 3, "; render templates first (`helm template`)"),
        ("hello\n".to_owned(), 1, "is no object with `apiVersion`, `kind` and `metadata`"),
        (
            "{\"apiVersion\": \"cilium.io/v2\", \"kind\": \"CiliumNetworkPolicy\",\n \"metadata\": {\"name\": \"p\"},\n \"spec\": {\"endpointSelector\": {},\n \"egress\": [{\"toEndpoint\": []}]}}".to_owned(),
            4,
            "spec.egress[0].toEndpoint: unknown field; did you mean `toEndpoints`?",
        ),
    ] {
        let directory = directory(&[("p.yaml", &text)]);
        let path = directory.path().join("p.yaml");
        let (status, stdout, _) = authctl(&["check", path.to_str().unwrap()]);
        assert_eq!(status, 1, "{text}");
        let place = format!("error: {}:{line}: ", path.display());
        assert!(stdout.starts_with(&place) && stdout.contains(expected), "{stdout}{expected}");
    }
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
fn check_warns_of_rules_that_do_nothing() {
    let policy = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: galaxy}
spec:
  endpointSelector: {matchLabels: {class: deathstar}}
  ingress:
  - fromEndpoints: [{matchLabels: {class: ywing}}]
  - fromEndpoints: [{matchLabels: {org: alliance}}]
  ingressDeny:
  - fromEndpoints: [{}]
";
    let directory = directory(&[("cluster.yaml", CLUSTER), ("p.yaml", policy)]);
    let (status, stdout, _) = authctl(&["check", directory.path().to_str().unwrap()]);
    let path = directory.path().join("p.yaml");
    let expected = format!(
        "warning: {path}:8: CiliumNetworkPolicy galaxy/p: spec.ingress[0]: selects no one there is\n\
         warning: {path}:9: CiliumNetworkPolicy galaxy/p: spec.ingress[1]: spec.ingressDeny[0] denies all of it\n\
         1 policy: 0 errors, 2 warnings\n",
        path = path.display()
    );
    assert_eq!((status, stdout), (0, expected));
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

/// A namespace with a policy of each kind and what they refer to.
const SHOP: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: y, labels: {ns: y}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {containers: [{ports: [{name: http, containerPort: 8080}]}]}, status: {podIP: 10.0.0.7}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: y}}
---
{apiVersion: v1, kind: Service, metadata: {name: legacy, namespace: shop}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: legacy-1, namespace: shop, labels: {kubernetes.io/service-name: legacy}}, endpoints: [{addresses: [192.0.2.53]}]}
---
{apiVersion: cilium.io/v2alpha1, kind: CiliumCIDRGroup, metadata: {name: vpn}, spec: {externalCIDRs: [203.0.113.0/24]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np, namespace: shop}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: http}]}]}}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: shop, annotations: {policy.authd.io/encryption: 'egress[0]'}}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toCIDRSet: [{cidr: 198.51.100.0/24, except: [198.51.100.128/25]}]
  - toCIDRSet: [{cidrGroupRef: vpn}]
  - toServices: [{k8sService: {serviceName: legacy, namespace: shop}}]
";

#[test]
fn what_policies_refer_to_is_read_from_the_manifests() {
    let directory = directory(&[("shop.yaml", SHOP)]);
    for (from, to, port, verdict, encryption) in [
        ("y/client", "shop/web", "8080/TCP", "allowed", "default"),
        ("y/client", "shop/web", "http/TCP", "allowed", "default"),
        ("y/client", "shop/web", "80/TCP", "denied", "default"),
        ("shop/web", "ip:198.51.100.1", "443/TCP", "allowed", "required"),
        ("shop/web", "ip:198.51.100.129", "443/TCP", "denied", "default"),
        ("shop/web", "ip:203.0.113.1", "443/TCP", "allowed", "default"),
        ("shop/web", "ip:192.0.2.53", "53/UDP", "allowed", "default"),
        ("shop/web", "entity:world", "443/TCP", "denied", "default"),
        ("ip:10.0.0.7", "y/client", "443/TCP", "denied", "default"),
    ] {
        let answer = trace(directory.path(), from, to, port);
        assert_eq!(
            (&answer["verdict"], &answer["encryption"]),
            (&verdict.into(), &encryption.into()),
            "{from} {to} {port}"
        );
    }
}

#[test]
fn the_world_is_that_of_ipv4_unless_it_is_said() {
    let policy = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: np, namespace: shop}, spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}}
";
    let directory = directory(&[("shop.yaml", policy)]);
    for (from, verdict) in [
        ("entity:world", "allowed"),
        ("entity:world-ipv4", "allowed"),
        ("entity:world-ipv6", "denied"),
        ("ip:192.0.2.1", "allowed"),
        ("ip:2001:db8::1", "denied"),
    ] {
        assert_eq!(trace(directory.path(), from, "shop/web", "80/TCP")["verdict"], verdict, "{from}");
    }
}

#[tokio::test]
async fn a_daemon_says_the_same_as_its_manifests() {
    let directory = galaxy();
    let path = directory.path().to_str().unwrap();
    let cluster =
        || cluster::load_offline(&[directory.path().to_owned()], &cluster::Site::default()).unwrap();
    let ends = ["--from", "galaxy/tiefighter", "--to", "galaxy/deathstar", "--port"];
    for question in [
        [&["trace"][..], &ends, &["80/TCP"]].concat(),
        [&["trace"][..], &ends, &["81/TCP"]].concat(),
        [&["trace"][..], &ends, &["80/TCP", "-o", "json"]].concat(),
        vec!["get"],
        vec!["get", "rule1", "-o", "json"],
    ] {
        let arguments = [&["policy"][..], &question].concat();
        let live = with_daemon(Fake { cluster: cluster(), ..Fake::default() }, &arguments).await;
        let offline = [&question[..], &["--manifests", path]].concat();
        // authctl has a runtime of its own.
        let (status, stdout, stderr) =
            std::thread::scope(|scope| scope.spawn(|| authctl(&offline)).join().unwrap());
        assert_eq!((live.status, live.stderr.as_str()), (0, ""), "{question:?}");
        assert_eq!((status, stderr.as_str()), (0, ""), "{question:?}");
        assert_eq!(live.stdout, stdout, "{question:?}");
    }
}

#[tokio::test]
async fn a_daemon_names_the_end_that_is_not_there() {
    let directory = galaxy();
    let cluster = cluster::load_offline(&[directory.path().to_owned()], &cluster::Site::default()).unwrap();
    let question =
        ["policy", "trace", "--from", "galaxy/ywing", "--to", "galaxy/deathstar", "--port", "80/TCP"];
    let done = with_daemon(Fake { cluster, ..Fake::default() }, &question).await;
    assert_eq!((done.status, done.stdout.as_str()), (1, ""));
    assert_eq!(done.stderr, "authctl: authd: there is no Pod galaxy/ywing; did you mean `galaxy/xwing`?\n");
}

#[test]
fn without_manifests_and_daemon_the_way_out_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let done = daemon::authctl(
        &directory.path().join("authd.sock"),
        &["policy", "trace", "--from", "a/b", "--to", "c/d", "--port", "80"],
    );
    assert_eq!(done.status, 1);
    assert!(done.stderr.starts_with("authctl: authd is not running: "), "{}", done.stderr);
    assert!(done.stderr.contains("--manifests"), "{}", done.stderr);
}
