//! Policies in the directory: what is refused denies, and what was good stays.

use policy::{Policy, TraceVerdict, Traffic};

use super::super::loader::Loader;
use super::*;

fn named<'a>(cluster: &'a Cluster, name: &str) -> &'a Policy {
    let found = cluster.policies.iter().find(|policy| policy.object.name == name);
    found.unwrap_or_else(|| panic!("{name} not in {:?}", cluster.policies))
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.policies.iter().map(|policy| policy.object.to_string()).collect()
}

/// The names of the pods which are denied everything.
fn denied(cluster: &Cluster) -> Vec<&str> {
    let is_denied = |pod: &&Pod| {
        let identity = pod.identity.and_then(|identity| cluster.identities.get(identity)).unwrap();
        cluster.policies.iter().any(|policy| policy.refuses(identity.labels()))
    };
    cluster.pods.iter().filter(is_denied).map(|pod| pod.name.as_str()).collect()
}

#[test]
fn good_policies_are_taken() {
    let directory = Directory::galaxy();
    directory.write("policy.yaml", &policy("rule", "deathstar"));
    let cluster = directory.load();
    assert_eq!(texts(&cluster), Vec::<String>::new());
    assert_eq!(named(&cluster, "rule").specs.len(), 1);
}

#[test]
fn a_policy_that_was_never_good_denies_what_it_is_about() {
    let directory = Directory::galaxy();
    directory.write("policy.yaml", &policy("rule", "deathstar").replace("ingress:", "ingres:"));
    let cluster = directory.load();
    assert_eq!(
        texts(&cluster),
        [
            "policy.yaml:4: CiliumNetworkPolicy default/rule: spec.ingres: unknown field; did you mean `ingress`?; everything that the policy is about is denied"
        ]
    );
    assert_eq!(denied(&cluster), ["deathstar"]);
}

#[test]
fn a_policy_with_an_impossible_name_denies_what_it_is_about() {
    let directory = Directory::galaxy();
    directory.write("policy.yaml", &policy("Rule_1", "deathstar"));
    let cluster = directory.load();
    assert_eq!(denied(&cluster), ["deathstar"]);
    assert!(texts(&cluster)[0].contains("\"Rule_1\" is no Kubernetes name"), "{:?}", texts(&cluster));
}

#[test]
fn network_policies_are_in_force() {
    let directory = Directory::galaxy();
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: old}\nspec: {podSelector: {matchLabels: {class: xwing}}}\n";
    directory.write("policy.yaml", text);
    let cluster = directory.load();
    assert_eq!(texts(&cluster), Vec::<String>::new());
    let identity = |name: &str| cluster.pod("default", name).unwrap().identity.unwrap();
    let traffic = |from, to| Traffic { from: identity(from), to: identity(to), protocol: 6, port: 80 };
    let verdict = |from, to| policy::trace(cluster.policy_input(), traffic(from, to)).verdict;
    assert_eq!(verdict("deathstar", "xwing"), TraceVerdict::Denied);
    assert_eq!(verdict("xwing", "deathstar"), TraceVerdict::Allowed);
}

#[test]
fn what_was_never_readable_denies_everything() {
    let directory = Directory::galaxy();
    directory.write("policy.yaml", "kind: [\n");
    directory.write("policy2.yaml", "kind: [\n");
    let cluster = directory.load();
    assert_eq!(denied(&cluster), ["deathstar", "xwing"]);
    assert_eq!(cluster.policies.len(), 2, "{:?}", names(&cluster));
    assert!(texts(&cluster).iter().all(|text| {
        text.ends_with("; it may hold a policy, so everything that it may be about is denied")
    }));
}

#[test]
fn a_good_policy_that_breaks_stays() {
    let directory = Directory::galaxy();
    directory.write("policy.yaml", &policy("rule", "deathstar"));
    let mut loader = Loader::new(directory.path(), &Site::default());
    let good = loader.load().unwrap();
    for broken in
        [policy("rule", "deathstar").replace("ingress:", "ingres:"), "a: [".to_owned(), "\u{1}".to_owned()]
    {
        directory.write("policy.yaml", &broken);
        let cluster = loader.load().unwrap();
        assert_eq!(cluster.policies, good.policies, "{broken}");
        assert!(
            texts(&cluster)[0].ends_with("; the last good version of policy.yaml stays in force"),
            "{:?}",
            texts(&cluster)
        );
    }
}

#[test]
fn a_bad_policy_added_to_a_good_file_denies() {
    let directory = Directory::galaxy();
    directory.write("policy.yaml", &policy("rule", "deathstar"));
    let mut loader = Loader::new(directory.path(), &Site::default());
    loader.load().unwrap();
    let new = policy("new", "xwing").replace("ingress:", "ingres:");
    directory.write("policy.yaml", &documents(&[policy("rule", "other"), new]));
    let cluster = loader.load().unwrap();
    assert_eq!(denied(&cluster), ["xwing"]);
    let rule = named(&cluster, "rule");
    assert!(rule.refused.is_none() && rule.conditions.is_empty());
    assert!(format!("{:?}", rule.specs).contains("deathstar"), "nothing of the broken version is in force");
}

#[test]
fn of_two_policies_with_one_name_the_first_stays() {
    let directory = Directory::galaxy();
    directory.write("policy.yaml", &policy("rule", "deathstar"));
    let mut loader = Loader::new(directory.path(), &Site::default());
    let before = loader.load().unwrap();
    directory.write("a.yaml", &policy("rule", "xwing"));
    let cluster = loader.load().unwrap();
    assert_eq!(cluster.policies, before.policies);
    assert_eq!(
        texts(&cluster),
        [
            "a.yaml:3: CiliumNetworkPolicy default/rule: metadata.name: there twice; the one in policy.yaml:1 stays, remove one of them"
        ]
    );
    // Without a past nobody can tell which one is meant, and time doesn't tell either.
    let mut loader = Loader::new(directory.path(), &Site::default());
    let cluster = loader.load().unwrap();
    assert_eq!(loader.load().unwrap(), cluster);
    assert_eq!(denied(&cluster), ["deathstar"]);
    assert_eq!(
        names(&cluster),
        ["CiliumNetworkPolicy default/rule", "CiliumNetworkPolicy default/rule (policy.yaml:3)"]
    );
}

#[test]
fn conditions_are_listed() {
    let directory = Directory::galaxy();
    let cidr = policy("rule", "deathstar").replace("ingress: [{}]", "ingress: [{fromGroups: [{aws: {}}]}]");
    let world = policy("world", "xwing")
        .replace("ingress: [{}]", "ingress: [{fromEntities: [world], authentication: {mode: required}}]");
    directory.write("policy.yaml", &documents(&[cidr, world]));
    let cluster = directory.load();
    let texts = texts(&cluster);
    assert!(
        texts[0].starts_with("policy.yaml:4: CiliumNetworkPolicy default/rule: spec.ingress[0].fromGroups: "),
        "{texts:?}"
    );
    assert!(texts[1].starts_with("policy.yaml:9: CiliumNetworkPolicy default/world: spec.ingress[0].authentication: required of world"), "{texts:?}");
    assert_eq!(
        cluster.problems.iter().map(|problem| problem.severity).collect::<Vec<_>>(),
        [Severity::Error, Severity::Notice]
    );
}

/// The documented forms mean what the demo's comments say they mean.
#[test]
fn the_demo_lets_in_whom_it_says() {
    let cluster = allocating::demo().load();
    let identity = |name: &str| cluster.pod("default", name).unwrap().identity.unwrap();
    let traced = |from: &str, to: &str, port: u16| {
        let traffic = Traffic { from: identity(from), to: identity(to), protocol: 6, port };
        let trace = policy::trace(cluster.policy_input(), traffic);
        (trace.verdict, trace.authentication.as_str())
    };
    assert_eq!(traced("tiefighter", "deathstar", 80), (TraceVerdict::Allowed, "required"));
    assert_eq!(traced("stormtrooper", "deathstar", 80), (TraceVerdict::Allowed, "required"));
    for (from, to, port) in [
        ("xwing", "deathstar", 80),
        ("tiefighter", "deathstar", 81),
        ("deathstar", "tiefighter", 80),
        ("interceptor", "xwing", 80),
    ] {
        assert_eq!(traced(from, to, port).0, TraceVerdict::Denied, "{from} to {to}");
    }
}

#[test]
fn policies_know_which_identities_share_a_spiffe_id() {
    let directory = Directory::galaxy();
    let shared = |template: &str| {
        let mut loader = Loader::new(directory.path(), &site(template));
        loader.load().unwrap().surroundings.shared().to_vec()
    };
    assert_eq!(shared("/identity/{id}"), []);
    let identities = directory.load().pods.iter().filter_map(|pod| pod.identity).collect();
    assert_eq!(shared("/ns/{namespace}/sa/{serviceaccount}"), [identities]);
}
