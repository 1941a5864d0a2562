//! Manifests with damage: whatever a file holds, it is read, and nothing in it that may be a policy gets lost.

use proptest::prelude::*;

use super::*;

const WHOLE: &str = "apiVersion: v1
kind: Pod
metadata: {name: xwing, namespace: rebels, labels: {org: alliance}}
spec: {nodeName: node1, containers: [{ports: [{name: http, containerPort: 80}]}]}
status: {podIPs: [{ip: 10.244.1.11}, {ip: 'fd00::11'}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {template: {metadata: {labels: {app: web}}, spec: {serviceAccountName: web}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, clusterIPs: [10.96.0.1], ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: List
items:
- apiVersion: cilium.io/v2
  kind: CiliumNetworkPolicy
  metadata: {name: rule}
  spec:
    endpointSelector: {matchLabels: {org: empire}}
    ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]
";

/// Pieces that mean something to YAML or to manifests.
fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "\n---\n",
        "\n",
        "  ",
        "\t",
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "&a ",
        "*a",
        "'",
        "\"",
        "#",
        "null",
        "~",
        "1e99",
        "-1",
        "kind: ",
        "spec: ",
        "items: ",
        "NetworkPolicy",
        "\u{feff}",
        "\u{0}",
        "é",
        "|",
        ">",
        "!!binary ",
        "? ",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn is_read_with_the_place_of_every_mistake(
        wounds in prop::collection::vec((0.0..1.0_f64, 0usize..12, piece()), 1..6),
    ) {
        let mut text: Vec<char> = WHOLE.chars().collect();
        for (place, length, piece) in wounds {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place in a short text")]
            let at = (place * text.len() as f64) as usize;
            let end = (at + length).min(text.len());
            text.splice(at..end, piece.chars());
        }
        let text: String = text.into_iter().collect();
        let manifest = read("f.yaml", &text);
        // A document that ends too early ends on the line after its last.
        let last = u32::try_from(text.lines().count()).unwrap() + 1;
        let refused = manifest.refused.iter().map(|refused| &refused.problem);
        for problem in manifest.problems.iter().chain(refused) {
            let line = problem.line.unwrap();
            prop_assert!((1..=last).contains(&line), "{problem} in {text}");
            prop_assert!(!problem.message.is_empty());
        }
        // Reading is a function of the text.
        let again = read("f.yaml", &text);
        prop_assert_eq!(again.objects.len(), manifest.objects.len());
        prop_assert_eq!(again.problems, manifest.problems);
    }
}
