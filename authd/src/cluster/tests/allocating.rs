//! `identities allocate`: once, twice, at once, and with things that are wrong.

use proptest::prelude::*;

use super::*;

#[test]
fn allocates_and_says_what() {
    let directory = Directory::new();
    directory.write("base.yaml", &documents(&[namespace("default"), node(1), node(2)]));
    directory.write("pods.yaml", &documents(&[pod("xwing", 1, 11), pod("deathstar", 2, 10)]));
    let summary = allocate(directory.path(), &Site::default()).unwrap();
    assert_eq!(summary.nodes, BTreeMap::from([("node1".to_owned(), 1), ("node2".to_owned(), 2)]));
    assert_eq!(summary.identities.keys().copied().collect::<Vec<_>>(), [256, 257]);
    let text = summary.to_string();
    assert!(
        text.starts_with(&format!(
            "{}: 2 new identities (0 before), 2 new node numbers (0 before)\nidentity 256: ",
            directory.file(IDENTITIES_FILE).display()
        )),
        "{text}"
    );
    assert!(text.ends_with("\nnode 1: node1\nnode 2: node2"), "{text}");
    assert_eq!(serde_json::to_value(&summary).unwrap()["identities"]["256"]["namespace"], "default");
    assert_eq!(texts(&directory.load()), Vec::<String>::new());
}

#[test]
fn doing_it_again_changes_nothing() {
    let directory = Directory::galaxy();
    let before = std::fs::read(directory.file(IDENTITIES_FILE)).unwrap();
    let summary = allocate(directory.path(), &Site::default()).unwrap();
    assert_eq!(summary.to_string(), "nothing to allocate: 2 identities and 2 node numbers are there");
    assert_eq!(std::fs::read(directory.file(IDENTITIES_FILE)).unwrap(), before);
}

#[test]
fn the_same_directory_gives_the_same_file() {
    let read = |directory: &Directory| std::fs::read_to_string(directory.file(IDENTITIES_FILE)).unwrap();
    let other = Directory::new();
    other.write(
        "all.yaml",
        &documents(&[pod("deathstar", 2, 10), node(2), pod("xwing", 1, 11), node(1), namespace("default")]),
    );
    allocate(other.path(), &Site::default()).unwrap();
    assert_eq!(read(&Directory::galaxy()), read(&other));
}

#[test]
fn labels_that_look_like_other_types_survive() {
    let directory = Directory::galaxy();
    let odd = pod("odd", 1, 30).replace(
        "labels: {",
        "labels: {a: 'true', b: '1e3', c: '', d: 'null', e: '0x10', f: '~', g: \"x: y # z\", ",
    );
    directory.write("odd.yaml", &odd);
    allocate(directory.path(), &Site::default()).unwrap();
    assert_eq!(texts(&directory.load()), Vec::<String>::new());
}

#[test]
fn what_was_there_is_kept() {
    let directory = Directory::galaxy();
    let before = std::fs::read_to_string(directory.file(IDENTITIES_FILE)).unwrap();
    directory.write(IDENTITIES_FILE, format!("# mine\n{before}").trim_end());
    directory.write("more.yaml", &pod("bwing", 1, 30));
    allocate(directory.path(), &Site::default()).unwrap();
    let after = std::fs::read_to_string(directory.file(IDENTITIES_FILE)).unwrap();
    assert!(after.starts_with(&format!("# mine\n{}---\n", before)), "{after}");
    assert_eq!(directory.load().pod("default", "bwing").unwrap().identity, Some(258));
}

#[test]
fn numbers_of_removed_documents_are_not_given_again() {
    let directory = Directory::galaxy();
    std::fs::remove_file(directory.file(IDENTITIES_FILE)).unwrap();
    let summary = allocate(directory.path(), &Site::default()).unwrap();
    assert_eq!(summary.identities.keys().copied().collect::<Vec<_>>(), [258, 259]);
    assert_eq!(summary.nodes["node1"], 3);
}

#[test]
fn refuses_while_something_that_matters_is_wrong() {
    for (text, expected) in [
        ("a: [\n", "z.yaml:"),
        (
            &pod("bwing", 1, 30).replace("node1", "7") as &str,
            "z.yaml:4: Pod default/bwing: spec.nodeName: invalid type",
        ),
        (
            &pod("bwing", 1, 30).replace("name: bwing", "name: bwing, namespace: hoth"),
            "there is no Namespace hoth",
        ),
        (&node(3).replace("10.244.3.0/24", "10.244.3.0/99"), "z.yaml:4: Node node3: spec.podCIDRs[0]"),
    ] {
        let directory = Directory::galaxy();
        let before = std::fs::read(directory.file(IDENTITIES_FILE)).unwrap();
        directory.write("z.yaml", text);
        let error = allocate(directory.path(), &Site::default()).unwrap_err().to_string();
        assert!(
            error.starts_with("nothing allocated: mend this first:\n  ") && error.contains(expected),
            "{error}"
        );
        assert_eq!(std::fs::read(directory.file(IDENTITIES_FILE)).unwrap(), before);
    }
}

#[test]
fn errors_in_policies_do_not_matter() {
    let directory = Directory::galaxy();
    directory.write(
        "z.yaml",
        &documents(&[policy("rule", "x").replace("ingress:", "ingres:"), pod("bwing", 1, 30)]),
    );
    assert!(allocate(directory.path(), &Site::default()).is_ok());
}

#[test]
fn a_mangled_memory_is_not_guessed_at() {
    let directory = Directory::galaxy();
    std::fs::write(directory.file(".authd-identities.highest"), "many\n").unwrap();
    let error = allocate(directory.path(), &Site::default()).unwrap_err().to_string();
    assert!(
        error.contains("write the highest identity number and the highest node number into it"),
        "{error}"
    );
}

#[test]
fn an_absent_directory_is_named() {
    assert!(
        allocate(Path::new("/nonexistent"), &Site::default())
            .unwrap_err()
            .to_string()
            .starts_with("cluster directory /nonexistent: ")
    );
}

#[test]
fn two_at_once_give_no_number_twice() {
    let directory = Directory::new();
    let pods: Vec<_> = (1..=20).map(|host| pod(&format!("p{host}"), 1, host)).collect();
    directory.write("base.yaml", &documents(&[namespace("default"), node(1)]));
    directory.write("pods.yaml", &documents(&pods));
    let allocated: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| allocate(directory.path(), &Site::default()).unwrap().identities.len()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(allocated, 20);
    assert_eq!(texts(&directory.load()), Vec::<String>::new());
}

/// A copy of the demo's manifests, with numbers.
pub(super) fn demo() -> Directory {
    let directory = Directory::new();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/manifests");
    for entry in std::fs::read_dir(manifests).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    allocate(directory.path(), &Site::default()).unwrap();
    directory
}

#[test]
fn the_demo_has_no_problems() {
    let directory = demo();
    let cluster = directory.load();
    assert_eq!(texts(&cluster), Vec::<String>::new());
    let names = |node: &str| cluster.local_pods(node).map(|pod| pod.name.clone()).collect::<Vec<_>>();
    assert_eq!(names("node1"), ["interceptor", "tiefighter", "xwing"]);
    assert_eq!(names("node2"), ["deathstar", "stormtrooper"]);
    assert!(cluster.pods.iter().all(|pod| pod.identity.is_some() && pod.addresses.len() == 2));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Pods and nodes come and go: numbers stay what they are and are never given again.
    #[test]
    fn numbers_stay(rounds in proptest::collection::vec((proptest::collection::btree_set(1_u8..12, 0..6), 1_u8..5), 1..6)) {
        let directory = Directory::new();
        let (mut identities, mut nodes) = (BTreeMap::new(), BTreeMap::new());
        for (pods, node_count) in rounds {
            let mut all = vec![namespace("default")];
            all.extend((1..=node_count).map(node));
            all.extend(pods.iter().map(|host| pod(&format!("p{host}"), 1, *host)));
            directory.write("all.yaml", &documents(&all));
            let first = allocate(directory.path(), &Site::default()).unwrap();
            for (number, identity) in first.identities {
                prop_assert!(identities.insert(number, identity.hash).is_none());
            }
            for (name, number) in first.nodes {
                prop_assert!(nodes.insert(number, name).is_none());
            }
            let again = allocate(directory.path(), &Site::default()).unwrap();
            prop_assert!(again.identities.is_empty() && again.nodes.is_empty());
            let cluster = directory.load();
            prop_assert_eq!(texts(&cluster), Vec::<String>::new());
            for pod in &cluster.pods {
                let identity = cluster.identities.get(pod.identity.unwrap()).unwrap();
                prop_assert_eq!(&identities[&identity.number()], &identity.labels().hash());
            }
        }
    }
}
