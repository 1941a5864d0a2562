//! The last good version of a file stays when it breaks, and who was first stays first.

use proptest::prelude::*;

use super::super::loader::Loader;
use super::*;

struct Running {
    directory: Directory,
    loader: Loader,
}

impl Running {
    fn new() -> Self {
        let directory = Directory::galaxy();
        let mut loader = Loader::new(directory.path(), &Site::default());
        assert_eq!(texts(&loader.load().unwrap()), Vec::<String>::new());
        Self { directory, loader }
    }

    fn after(&mut self, file: &str, text: &str) -> Cluster {
        self.directory.write(file, text);
        self.loader.load().unwrap()
    }
}

#[test]
fn a_file_that_breaks_stays_as_it_was() {
    for broken in ["a: [\n", "\u{1}", &pod("xwing", 1, 11).replace("node1", "7"), "apiVersion: v1\n"] {
        let mut running = Running::new();
        let good = running.loader.load().unwrap();
        let text = documents(&[pod("bwing", 1, 30), broken.to_owned()]);
        let cluster = running.after("pods.yaml", &text);
        assert_eq!((&cluster.pods, &cluster.identities), (&good.pods, &good.identities), "{broken}");
        assert_eq!(cluster.problems.len(), 1, "{broken}: {:?}", texts(&cluster));
        let problem = &cluster.problems[0].to_string();
        assert!(problem.starts_with("pods.yaml:"), "{problem}");
        assert!(problem.ends_with("; the last good version of pods.yaml stays in force"), "{problem}");
        let mended = running.after("pods.yaml", &pod("xwing", 1, 11));
        assert_eq!(texts(&mended), Vec::<String>::new());
        assert_eq!(mended.pods.len(), 1);
    }
}

#[test]
fn a_file_that_becomes_a_link_stays_as_it_was() {
    let mut running = Running::new();
    std::fs::remove_file(running.directory.file("pods.yaml")).unwrap();
    std::os::unix::fs::symlink("base.yaml", running.directory.file("pods.yaml")).unwrap();
    let cluster = running.loader.load().unwrap();
    assert_eq!(cluster.pods.len(), 2);
    assert_eq!(
        texts(&cluster),
        [
            "pods.yaml: symbolic links are not followed; copy the file here; the last good version of pods.yaml stays in force"
        ]
    );
}

#[test]
fn a_file_that_is_removed_is_gone() {
    let mut running = Running::new();
    std::fs::remove_file(running.directory.file("pods.yaml")).unwrap();
    let cluster = running.loader.load().unwrap();
    assert_eq!((cluster.pods.len(), texts(&cluster).len()), (0, 0));
}

#[test]
fn a_new_file_takes_nothing_from_an_older_one() {
    let mut running = Running::new();
    // Read before every other file.
    let text = documents(&[
        pod("xwing", 2, 66),
        pod("thief", 2, 10),
        node(3).replace("10.244.3.0/24", "10.244.1.0/25"),
    ]);
    let cluster = running.after("a.yaml", &text);
    assert_eq!(cluster.pod("default", "xwing").unwrap().node.as_deref(), Some("node1"));
    assert_eq!(cluster.pod("default", "deathstar").unwrap().addresses.len(), 2);
    assert!(cluster.pod("default", "thief").unwrap().addresses.is_empty());
    assert_eq!(cluster.nodes["node1"].pod_cidrs.len(), 2);
    let refused = texts(&cluster).join("\n");
    for expected in [
        "a.yaml:3: Pod default/xwing: metadata.name: there twice; the one in pods.yaml:1 stays, remove one of them",
        "10.244.2.10 belongs to Pod default/deathstar; this second claim is refused",
        "10.244.1.0/25 overlaps a range of node node1; it is not used",
    ] {
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn a_changed_identity_is_refused() {
    let mut running = Running::new();
    let before = running.loader.load().unwrap();
    // Edited consistently, with the right hash: the two identities change places.
    let path = running.directory.file(IDENTITIES_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let swapped = text.replace("256", "tmp").replace("257", "256").replace("tmp", "257");
    let cluster = running.after(IDENTITIES_FILE, &swapped);
    assert_eq!((&cluster.identities, &cluster.pods), (&before.identities, &before.pods));
    let texts = texts(&cluster);
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts.iter().all(|text| {
        text.contains("the identity was changed; identities can't be, so the first version stays")
    }));
}

#[test]
fn an_identity_number_is_not_used_again() {
    let mut running = Running::new();
    let path = running.directory.file(IDENTITIES_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let (nodes, _) = text.split_once("---\napiVersion: authd.io/v1alpha1\nkind: Identity").unwrap();
    let gone = running.after(IDENTITIES_FILE, nodes);
    assert!(gone.identities.get(256).is_none() && gone.pods.iter().all(|pod| pod.identity.is_none()));
    let swapped = text.replace("256", "tmp").replace("257", "256").replace("tmp", "257");
    let cluster = running.after(IDENTITIES_FILE, &swapped);
    assert_eq!(texts(&cluster).len(), 2, "{:?}", texts(&cluster));
}

#[test]
fn a_changed_node_number_is_refused() {
    let mut running = Running::new();
    let path = running.directory.file(IDENTITIES_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = text.replacen("number: 1", "number: 7", 1);
    let cluster = running.after(IDENTITIES_FILE, &changed);
    assert_eq!(cluster.nodes["node1"].number, Some(1));
    assert!(
        texts(&cluster)[0]
            .ends_with("NodeNumber node1: spec.number: the node's number is 1; numbers can't be changed")
    );
}

#[test]
fn nothing_changes_when_nothing_changed() {
    let mut running = Running::new();
    assert_eq!(running.loader.load().unwrap(), running.loader.load().unwrap());
}

#[test]
fn a_new_number_for_known_labels_is_refused() {
    let mut running = Running::new();
    let before = running.loader.load().unwrap();
    let text = std::fs::read_to_string(running.directory.file(IDENTITIES_FILE)).unwrap();
    let identity = text.split("---\n").find(|document| document.contains("256")).unwrap();
    // Read before the file that has the labels already.
    let cluster = running.after("a.yaml", &identity.replace("256", "999"));
    assert_eq!((&cluster.identities, &cluster.pods), (&before.identities, &before.pods));
    assert!(texts(&cluster)[0].starts_with("a.yaml:"), "{:?}", texts(&cluster));
}

/// Documents of which some are broken, some contradict others, and some are good.
fn pool() -> Vec<String> {
    let number = |name: &str, number: u8| {
        format!(
            "apiVersion: authd.io/v1alpha1\nkind: NodeNumber\nmetadata: {{name: {name}}}\nspec: {{number: {number}}}\n"
        )
    };
    vec![
        namespace("default"),
        node(1),
        node(2),
        node(3).replace("10.244.3.0/24", "10.244.0.0/16"),
        pod("a", 1, 1),
        pod("b", 1, 1),
        pod("a", 2, 2),
        pod("c", 2, 2).replace("10.244.2.2", "10.0.0.1"),
        number("node1", 1),
        number("node1", 2),
        number("node2", 1),
        policy("p", "a"),
        policy("p", "b"),
        policy("q", "b").replace("ingress:", "ingres:"),
        "kind: [\n".to_owned(),
        "apiVersion: v1\nkind: Pods\n".to_owned(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is written in whatever order: nothing belongs to two, reading again changes nothing, and
    /// whoever has an address or a number keeps it while he asks for it.
    #[test]
    fn nothing_belongs_to_two(
        writes in proptest::collection::vec((0_u8..3, proptest::collection::vec(0_usize..16, 0..5)), 1..8)
    ) {
        let (directory, pool) = (Directory::new(), pool());
        let mut loader = Loader::new(directory.path(), &Site::default());
        let mut numbers = BTreeMap::new();
        for (file, chosen) in writes {
            let text: Vec<_> = chosen.iter().map(|index| pool[*index].clone()).collect();
            directory.write(&format!("{file}.yaml"), &documents(&text));
            let cluster = loader.load().unwrap();
            prop_assert_eq!(&loader.load().unwrap(), &cluster);
            let pods = cluster.pods.iter().flat_map(|pod| &pod.addresses);
            let addresses: Vec<_> = cluster.nodes.values().flat_map(|node| &node.addresses).chain(pods).collect();
            prop_assert_eq!(addresses.len(), addresses.iter().collect::<BTreeSet<_>>().len());
            for node in cluster.nodes.values() {
                let Some(number) = node.number else { continue };
                prop_assert_eq!(numbers.entry(number).or_insert_with(|| node.name.clone()), &node.name);
                for other in cluster.nodes.values().filter(|other| other.name != node.name) {
                    let overlap = |range: &IpNet| other.pod_cidrs.iter().any(|o| o.contains(range) || range.contains(o));
                    prop_assert!(!node.pod_cidrs.iter().any(overlap));
                }
            }
        }
    }
}
