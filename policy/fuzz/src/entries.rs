//! What is done with fuzzed input, and what must hold of it whatever it is. The tests of `policy` replay the
//! corpus through the same functions.

use std::collections::BTreeSet;

use policy::{
    Identity, IdentityNumber, IdentitySet, IdentitySpec, Input, Label, LabelSet, NodeNumberSpec, Pod, Policy,
    PolicySet, Source, Subject, Surroundings, TraceVerdict, Traffic, lint, protocol, reserved, trace,
};
use serde_json::{Value, json};

/// Two identities in one namespace, one in another.
fn identities() -> Vec<Identity> {
    let pod = |number, namespace, labels: [(&'static str, &'static str); 2]| {
        let pod = Pod { cluster: "default", namespace, service_account: "default" };
        let labels = pod.labels(labels, [("team", namespace)]).expect("these are labels");
        Identity::new(number, labels).expect("these are a pod's")
    };
    vec![
        pod(256, "default", [("app", "a"), ("role", "x")]),
        pod(257, "default", [("app", "b"), ("role", "x")]),
        pod(258, "other", [("app", "a"), ("tier", "")]),
    ]
}

/// A policy as YAML or JSON.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(value) = serde_saphyr::from_str::<Value>(text) else { return };
    let parsed = Policy::from_value(&value);
    // JSON is YAML: the same object means the same.
    let as_json = value.to_string();
    if let Ok(again) = serde_saphyr::from_str::<Value>(&as_json)
        && again == value
    {
        assert_eq!(Policy::from_value(&again), parsed);
    }
    let policy = match parsed {
        Ok(policy) => {
            assert!(!policy.specs.is_empty() && policy.refused.is_none());
            policy
        }
        Err(error) => {
            let fault = error.fault();
            assert!(!fault.problem.to_string().is_empty() && !error.to_string().is_empty());
            let policy = error.into_policy();
            assert!(policy.refused.is_some() && policy.specs.is_empty() && policy.conditions.len() == 1);
            policy
        }
    };
    ask(policy);
}

/// Compiles the policy, and asks it for some pairs.
fn ask(policy: Policy) {
    let identities = IdentitySet::from_identities(identities()).expect("they differ");
    let surroundings = Surroundings::default();
    let policies = PolicySet::from_iter([policy]);
    let input = Input { policies: &policies, identities: &identities, surroundings: &surroundings };
    let _conditions = policies.conditions(&identities, &surroundings);
    let _warnings = lint(input);
    let pairs: [(IdentityNumber, IdentityNumber); 4] =
        [(256, 257), (257, 258), (reserved::WORLD, 256), (258, reserved::REMOTE_NODE)];
    for (from, to) in pairs {
        let traffic = Traffic { from, to, protocol: protocol::TCP, port: 80 };
        let trace = trace(input, traffic);
        let refused = |number| {
            let labels = identities.get(number).map(Identity::labels);
            labels.is_some_and(|labels| policies.iter().any(|policy| policy.refuses(labels)))
        };
        if [from, to].into_iter().any(|end| end >= reserved::FIRST_USER && refused(end)) {
            assert_eq!(trace.verdict, TraceVerdict::Denied, "a refused policy denies what it is about");
        }
        serde_json::to_string(&trace).expect("a trace is JSON");
    }
}

/// A selector as YAML: matches as a naive reading of it says.
pub fn selector(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(selector) = serde_saphyr::from_str::<Value>(text) else { return };
    let value = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "p"},
        "spec": {"endpointSelector": selector, "ingress": [{}]},
    });
    let Ok(policy) = Policy::from_value(&value) else { return };
    let [spec] = policy.specs.as_slice() else { panic!("one spec is one spec") };
    let Subject::Endpoints(_) = &spec.subject else { panic!("it selects endpoints") };
    for identity in identities() {
        let expected = naive_match(&selector, identity.labels());
        assert_eq!(spec.subject.matches(identity.labels()), expected, "{selector} {}", identity.labels());
    }
}

/// Whether a selector that was accepted matches: every label, every expression, by the words of the API.
fn naive_match(selector: &Value, labels: &LabelSet) -> bool {
    let values = |key: &str| -> BTreeSet<&str> {
        let derived = ["k8s.io.kubernetes.pod.namespace", "k8s.io.cilium.k8s."];
        let (source, key) = if let Some(key) = key.strip_prefix('$').or(key.strip_prefix("reserved.")) {
            ("reserved", key)
        } else if key == derived[0] || key.starts_with(derived[1]) {
            key.split_once('.').expect("it has one")
        } else {
            key.split_once(':').unwrap_or(("any", key))
        };
        let is_meant =
            |label: &&Label| label.key() == key && (source == "any" || label.source().as_str() == source);
        labels.iter().filter(is_meant).map(Label::value).collect()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let equal = selector["matchLabels"]
        .as_object()
        .is_none_or(|wanted| wanted.iter().all(|(key, value)| values(key).contains(text(value).as_str())));
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    equal
        && expressions.into_iter().all(|expression| {
            let found = values(&text(&expression["key"]));
            let wanted: BTreeSet<String> =
                expression["values"].as_array().into_iter().flatten().map(text).collect();
            let is_in = found.iter().any(|value| wanted.contains(*value));
            match text(&expression["operator"]).to_lowercase().as_str() {
                "in" => is_in,
                "notin" => !is_in,
                "exists" => !found.is_empty(),
                "doesnotexist" => found.is_empty(),
                other => panic!("{other} was accepted"),
            }
        })
}

/// Labels, a line each, and identities as JSON.
pub fn label(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let labels: Vec<Label> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for label in &labels {
        assert_eq!(label.to_string().parse().as_ref(), Ok(label), "printing is undone by parsing");
    }
    let sourced = labels.into_iter().filter(|label| label.source() != Source::Any);
    if let Ok(set) = LabelSet::from_labels(sourced) {
        let lines = set.canonical();
        let again =
            LabelSet::from_labels(lines.lines().map(|line| line.parse().expect("canonical is labels")));
        assert_eq!(again.as_ref(), Ok(&set), "the canonical form is unambiguous");
        assert_eq!(again.map(|set| set.hash()), Ok(set.hash()));
        let value = serde_json::to_value(&set).expect("a set is JSON");
        assert_eq!(serde_json::from_value::<LabelSet>(value).ok(), Some(set));
    }
    if let Ok(spec) = serde_json::from_str::<IdentitySpec>(text)
        && let Ok(identity) = Identity::from_spec(300, spec.clone())
    {
        assert_eq!(identity.to_spec(), spec);
    }
    let _number = serde_json::from_str::<NodeNumberSpec>(text);
}
