//! Policies that are tried, by themselves or in a whole namespace, on nodes that enforce: identities authenticate as
//! they would have to, and who could not passes and is reported.

use anyhow::Result;
use authd_tests::lab::node::Family;
use authd_tests::star_wars::{NODES, PATIENCE};
use authd_tests::{StarWars, skip, wait};

use super::{explained, state};

const NAMESPACE: &str = "apiVersion: v1
kind: Namespace
metadata: {name: default, annotations: {policy.authd.io/audit: enabled}}
";

fn policy(annotations: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: tried, namespace: default{annotations}}}
spec:
  endpointSelector: {{matchLabels: {{class: deathstar}}}}
  ingress:
    - authentication: {{mode: required}}
      fromEndpoints: [{{matchLabels: {{org: empire}}}}]
      toPorts: [{{ports: [{{port: \"80\", protocol: TCP}}]}}]
"
    )
}

fn authenticates_and_reports(name: &str, policy: &str, namespace: Option<&str>) -> Result<()> {
    let mut scene = StarWars::new(name)?;
    scene.write_manifest("policy.yaml", policy)?;
    if let Some(namespace) = namespace {
        scene.write_manifest("namespaces.yaml", namespace)?;
    }
    scene.start_tunnels()?;
    scene.start_agents(&[])?;
    scene.settle()?;
    let (audited, dropped) = (("AUDIT", "AUTH_REQUIRED"), ("DROPPED", "AUTH_REQUIRED"));
    let counted = |scene: &mut StarWars, (verdict, reason)| scene.counted("node2", verdict, reason);

    // Without an SVID it can't authenticate: it passes, and that it would not have is said.
    let identity = scene.manifests.identity_of("tiefighter")?;
    scene.registry.withdraw(identity)?;
    let withdrawn = || {
        let explained = explained(&scene, "node1", &["--port", "80/TCP"]).ok()?;
        (state(&explained, "local-svid") == "FAILED").then_some(())
    };
    assert!(wait::until(PATIENCE, withdrawn).is_some(), "{:#}", explained(&scene, "node1", &[])?);
    for family in Family::ALL {
        drop(scene.land("tiefighter", family, PATIENCE)?);
    }
    let options = ["--verdict", "AUDIT", "--reason", "AUTH_REQUIRED", "--from-pod", "default/tiefighter"];
    scene.wait_flows("node2", &options, |flows| !flows.is_empty())?;
    assert!(counted(&mut scene, audited)? >= 2.0);
    let verdict = explained(&scene, "node2", &["--port", "80/TCP"])?;
    assert_eq!(state(&verdict, "remote-svid"), "FAILED", "it was tried: {verdict:#}");

    // With one it does, and from then on nothing is to be said of it.
    scene.registry.add_identity(identity, "node1")?;
    for (node, here, there) in [(NODES[0], "tiefighter", "deathstar"), (NODES[1], "deathstar", "tiefighter")]
    {
        let entry = wait::until(PATIENCE, || {
            drop(scene.land("tiefighter", Family::V4, PATIENCE).ok()?);
            scene.authenticated(node, here, there).ok()?.pop()
        });
        assert!(entry.is_some(), "no entry on {node}");
    }
    let before = counted(&mut scene, audited)?;
    drop(scene.land("tiefighter", Family::V6, PATIENCE)?);
    let after = counted(&mut scene, audited)?;
    assert!((after - before).abs() < f64::EPSILON, "{before} {after}");

    // Whom it denies passes as well.
    drop(scene.land("xwing", Family::V4, PATIENCE)?);
    assert!(counted(&mut scene, ("AUDIT", "POLICY_DENY"))? >= 1.0);
    for verdict in [dropped, ("DROPPED", "POLICY_DENY"), ("DROPPED", "POLICY_DENIED")] {
        let dropped = counted(&mut scene, verdict)?;
        assert!(dropped.abs() < f64::EPSILON, "{verdict:?}: {dropped}");
    }
    Ok(())
}

#[test]
fn a_policy_on_trial_has_pairs_authenticate_and_reports_who_could_not() {
    if skip::lab_available("a_policy_on_trial_has_pairs_authenticate_and_reports_who_could_not") {
        let policy = policy(", annotations: {policy.authd.io/audit: enabled}");
        authenticates_and_reports("tried-policy", &policy, None).unwrap();
    }
}

#[test]
fn a_namespace_on_trial_has_pairs_authenticate_and_reports_who_could_not() {
    if skip::lab_available("a_namespace_on_trial_has_pairs_authenticate_and_reports_who_could_not") {
        authenticates_and_reports("tried-namespace", &policy(""), Some(NAMESPACE)).unwrap();
    }
}
