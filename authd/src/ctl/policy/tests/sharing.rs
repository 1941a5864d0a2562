//! Rules that tell apart identities which share a SPIFFE ID under the daemons' template.

use super::*;

const BY_SERVICE_ACCOUNT: &str = "/ns/{namespace}/sa/{serviceaccount}";
const PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {serviceAccountName: db}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: job, namespace: shop, labels: {app: job}}}
";
const RULES: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: '5432', protocol: TCP}]}]
    authentication: {mode: required}
  - fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: default}}]
    toPorts: [{ports: [{port: '9100', protocol: TCP}]}]
    authentication: {mode: required}
";
const REFUSED: &str = "CiliumNetworkPolicy shop/db: spec.ingress[0].authentication: tells apart identities that have \
                       the same SPIFFE ID, which authentication can't (of service account shop/default, ";

fn shop() -> tempfile::TempDir {
    directory(&[("pods.yaml", PODS), ("rules.yaml", RULES)])
}

fn traced(shop: &Path, from: &str, port: &str, template: &[&str]) -> (String, String) {
    let question = ["trace", "--manifests", shop.to_str().unwrap(), "--from", from, "--to", "shop/db"];
    let (status, stdout, stderr) =
        authctl(&[&question[..], &["--port", port, "-o", "json"], template].concat());
    assert_eq!(status, 0, "{stderr}");
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    (answer["verdict"].as_str().unwrap().to_owned(), stderr)
}

#[test]
fn check_refuses_by_name_what_the_template_makes_the_same() {
    let shop = shop();
    let path = shop.path().to_str().unwrap();
    let (status, stdout, _) = authctl(&["check", path]);
    assert_eq!((status, stdout.as_str()), (0, "1 policy: 0 errors, 0 warnings\n"));
    for template in [BY_SERVICE_ACCOUNT, "/{cluster}/{namespace}/{serviceaccount}"] {
        let (status, stdout, stderr) = authctl(&["check", path, "--spiffe-id-template", template]);
        assert_eq!((status, stderr.as_str()), (1, ""), "{template}");
        let place = format!("error: {}:10: {REFUSED}", shop.path().join("rules.yaml").display());
        assert!(stdout.starts_with(&place), "{stdout}");
        assert!(stdout.ends_with("1 policy: 1 error, 0 warnings\n"), "{stdout}");
    }
    let (status, _, _) = authctl(&["check", path, "--spiffe-id-template", "/ns/{namespace}/{id}"]);
    assert_eq!(status, 0, "each identity has an ID of its own");
}

#[test]
fn trace_denies_what_the_template_makes_the_same() {
    let shop = shop();
    let template = ["--spiffe-id-template", BY_SERVICE_ACCOUNT];
    for (from, port, verdict, with_template) in [
        ("shop/web", "5432/TCP", "allowed", "denied"),
        ("shop/job", "5432/TCP", "denied", "denied"),
        ("shop/web", "9100/TCP", "allowed", "allowed"),
        ("shop/job", "9100/TCP", "allowed", "allowed"),
    ] {
        assert_eq!(
            traced(shop.path(), from, port, &[]),
            (verdict.to_owned(), String::new()),
            "{from} {port}"
        );
        let (found, stderr) = traced(shop.path(), from, port, &template);
        assert_eq!(found, with_template, "{from} {port}");
        assert!(stderr.contains(REFUSED), "{stderr}");
    }
}

#[test]
fn get_lists_it_as_a_condition() {
    let shop = shop();
    let path = shop.path().to_str().unwrap();
    let conditions = |template: &[&str]| {
        let (_, stdout, _) = authctl(&[&["get", "--manifests", path, "-o", "json"][..], template].concat());
        let policies: Value = serde_json::from_str(&stdout).unwrap();
        policies["policies"][0]["conditions"].as_array().unwrap().clone()
    };
    assert_eq!(conditions(&[]), Vec::<Value>::new());
    let [one] = &conditions(&["--spiffe-id-template", BY_SERVICE_ACCOUNT])[..] else { panic!() };
    assert_eq!(
        (&one["kind"], &one["path"]),
        (&"SharedSpiffeId".into(), &"spec.ingress[0].authentication".into())
    );
}

#[test]
fn a_template_that_daemons_refuse_is_refused() {
    let shop = shop();
    let (status, _, stderr) =
        authctl(&["check", shop.path().to_str().unwrap(), "--spiffe-id-template", "/ns/{namespace}"]);
    assert_eq!(status, 2);
    assert!(stderr.contains("must have {id}, or {namespace} and {serviceaccount}"), "{stderr}");
}

/// A live trace is by the daemon's template, whatever is said here, and says what manifests do by the same.
#[tokio::test]
async fn a_daemon_traces_by_its_own_template() {
    let shop = shop();
    let naming = crate::config::parse_spiffe_id_template(BY_SERVICE_ACCOUNT).unwrap();
    let site = cluster::Site { sharing: naming.sharing(), ..cluster::Site::default() };
    let cluster = cluster::load_offline(&[shop.path().to_owned()], &site).unwrap();
    let question =
        ["policy", "trace", "--from", "shop/web", "--to", "shop/db", "--port", "5432/TCP", "-o", "json"];
    let other = [&question[..], &["--spiffe-id-template", "/identity/{id}"]].concat();
    let live = with_daemon(Fake { cluster, ..Fake::default() }, &other).await;
    assert_eq!(live.status, 0, "{}", live.stderr);
    let path = shop.path().to_str().unwrap();
    let offline =
        [&question[1..], &["--manifests", path, "--spiffe-id-template", BY_SERVICE_ACCOUNT]].concat();
    let (_, stdout, _) = std::thread::scope(|scope| scope.spawn(|| authctl(&offline)).join().unwrap());
    assert_eq!(live.stdout, stdout);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["verdict"], "denied");
}
