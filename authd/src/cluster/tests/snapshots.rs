//! What a snapshot holds, and what it refuses.

use super::*;

#[test]
fn joins_pods_nodes_and_identities() {
    let cluster = Directory::galaxy().load();
    assert_eq!(texts(&cluster), Vec::<String>::new());
    assert_eq!(cluster.nodes["node1"].number, Some(1));
    assert_eq!(cluster.nodes["node1"].addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(cluster.node_by_number(2).map(|node| node.name.as_str()), Some("node2"));
    let deathstar = cluster.pod("default", "deathstar").unwrap();
    let identity = deathstar.identity.unwrap();
    assert_eq!(cluster.identities.get(identity).unwrap().namespace(), "default");
    assert_eq!(cluster.local_pods("node2").collect::<Vec<_>>(), [deathstar]);
    assert_eq!(cluster.pods_with_identity(identity).collect::<Vec<_>>(), [deathstar]);
    assert_eq!(cluster.nodes_of_identity(identity), BTreeSet::from(["node2"]));
    assert!(cluster.identity_runs_on(identity, "node2") && !cluster.identity_runs_on(identity, "node1"));
}

#[test]
fn pods_without_identity_are_listed() {
    let directory = Directory::galaxy();
    directory.write("more.yaml", &pod("bwing", 1, 12));
    let cluster = directory.load();
    assert_eq!(cluster.pod("default", "bwing").unwrap().identity, None);
    assert_eq!(
        texts(&cluster),
        ["more.yaml:1: Pod default/bwing: no identity; run `authctl identities allocate DIR`"]
    );
    assert!(!cluster.has_errors());
}

#[test]
fn pods_without_namespace_have_no_identity() {
    let directory = Directory::galaxy();
    directory
        .write("more.yaml", &pod("bwing", 1, 12).replace("name: bwing,", "name: bwing, namespace: hoth,"));
    assert_eq!(
        texts(&directory.load()),
        [
            "more.yaml:3: Pod hoth/bwing: metadata.namespace: there is no Namespace hoth; the pod has no identity until there is"
        ]
    );
}

#[test]
fn labels_of_the_namespace_are_part_of_the_identity() {
    let directory = Directory::galaxy();
    let before = directory.load().pod("default", "xwing").unwrap().identity;
    assert!(before.is_some());
    let base = documents(&[namespace("default").replace("team: default", "team: other"), node(1), node(2)]);
    directory.write("base.yaml", &base);
    assert_eq!(directory.load().pod("default", "xwing").unwrap().identity, None);
}

#[test]
fn host_network_pods_have_neither_address_nor_identity() {
    let directory = Directory::galaxy();
    let agent = pod("agent", 1, 20)
        .replace("spec: {", "spec: {hostNetwork: true, ")
        .replace("10.244.1.20", "10.0.0.1");
    directory.write("more.yaml", &agent);
    let cluster = directory.load();
    assert_eq!(texts(&cluster), Vec::<String>::new());
    let agent = cluster.pod("default", "agent").unwrap();
    assert!(agent.host_network && agent.addresses.is_empty() && agent.identity.is_none());
}

#[test]
fn ended_pods_are_gone() {
    let directory = Directory::galaxy();
    directory.write("more.yaml", &pod("job", 1, 11).replace("status: {", "status: {phase: Succeeded, "));
    let cluster = directory.load();
    assert_eq!(texts(&cluster), Vec::<String>::new());
    assert_eq!(cluster.pod("default", "job"), None);
}

#[test]
fn a_second_claim_to_an_address_is_refused() {
    let directory = Directory::galaxy();
    directory.write("z.yaml", &pod("thief", 1, 11));
    let cluster = directory.load();
    assert_eq!(
        errors(&cluster),
        [
            "z.yaml:5: Pod default/thief: status.podIPs[0].ip: 10.244.1.11 belongs to Pod default/xwing; this second claim is refused",
            "z.yaml:5: Pod default/thief: status.podIPs[1].ip: fd00:10:244:1::11 belongs to Pod default/xwing; this second claim is refused",
        ]
    );
    assert!(cluster.pod("default", "thief").unwrap().addresses.is_empty());
    assert_eq!(cluster.pod("default", "xwing").unwrap().addresses.len(), 2);
}

#[test]
fn addresses_of_nodes_and_outside_the_range_are_refused() {
    let directory = Directory::galaxy();
    directory.write("z.yaml", &pod("thief", 1, 12).replace("10.244.1.12", "10.0.0.2"));
    assert_eq!(
        errors(&directory.load()),
        [
            "z.yaml:5: Pod default/thief: status.podIPs[0].ip: 10.0.0.2 is in no podCIDR of node node1; the address is not used"
        ]
    );
    let without_ranges = node(1).replace("podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']", "");
    directory.write("base.yaml", &documents(&[namespace("default"), without_ranges, node(2)]));
    assert_eq!(
        errors(&directory.load()),
        [
            "z.yaml:5: Pod default/thief: status.podIPs[0].ip: 10.0.0.2 belongs to Node node2; this second claim is refused"
        ]
    );
}

#[test]
fn pods_take_no_address_from_the_ranges_of_others() {
    let directory = Directory::galaxy();
    let ghost = pod("ghost", 2, 50).replace("nodeName: node2", "nodeName: node9");
    let homeless = pod("homeless", 2, 51).replace("nodeName: node2", "");
    directory.write("z.yaml", &documents(&[ghost, homeless]));
    let cluster = directory.load();
    let errors = errors(&cluster);
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(
        errors[0].ends_with("10.244.2.50 is in a podCIDR of node node2; the address is not used"),
        "{errors:?}"
    );
    assert!(
        errors[2]
            .ends_with("10.244.2.51 is the address of a pod without spec.nodeName; the address is not used"),
        "{errors:?}"
    );
    assert!(
        ["ghost", "homeless"].iter().all(|name| cluster.pod("default", name).unwrap().addresses.is_empty())
    );
}

#[test]
fn addresses_that_mean_something_else_are_refused() {
    for (address, kind) in [
        ("127.0.0.1", "a loopback address"),
        ("0.0.0.0", "unspecified"),
        ("224.0.0.1", "a multicast address"),
        ("169.254.0.1", "link-local"),
        ("fe80::1", "link-local"),
        ("::1", "a loopback address"),
    ] {
        let directory = Directory::new();
        directory.write("n.yaml", &node(1).replace("10.0.0.1", &format!("'{address}'")));
        allocate(directory.path(), &Site::default()).ok();
        let texts = texts(&directory.load());
        let expected = format!(
            "n.yaml:5: Node node1: status.addresses[0].address: {address} is {kind}; the address is not used"
        );
        assert!(texts.contains(&expected), "{texts:?}");
    }
}

#[test]
fn overlapping_ranges_are_refused() {
    let directory = Directory::galaxy();
    directory.write("z.yaml", &node(3).replace("10.244.3.0/24", "10.244.0.0/16"));
    allocate(directory.path(), &Site::default()).unwrap_err();
    let cluster = directory.load();
    let refused = "z.yaml:4: Node node3: spec.podCIDRs[0]: 10.244.0.0/16 overlaps a range of node node1; it is not used";
    assert!(texts(&cluster).contains(&refused.to_owned()), "{:?}", texts(&cluster));
    assert_eq!(cluster.nodes["node3"].pod_cidrs, ["fd00:10:244:3::/64".parse().unwrap()]);
    assert_eq!(cluster.nodes["node1"].pod_cidrs.len(), 2);
}

#[test]
fn nodes_without_number_and_pods_without_node_are_listed() {
    let directory = Directory::galaxy();
    directory.write("z.yaml", &documents(&[node(3), pod("bwing", 9, 1)]));
    assert_eq!(
        texts(&directory.load()),
        [
            "z.yaml:1: Node node3: no number; run `authctl identities allocate DIR`",
            "z.yaml:7: Pod default/bwing: no identity; run `authctl identities allocate DIR`",
            "z.yaml:10: Pod default/bwing: spec.nodeName: there is no Node node9; the pod has no traffic until there is",
        ]
    );
}

#[test]
fn duplicate_node_numbers_are_refused() {
    let directory = Directory::galaxy();
    directory.write(
        "z.yaml",
        &documents(&[
            node(3),
            "apiVersion: authd.io/v1alpha1\nkind: NodeNumber\nmetadata: {name: node3}\nspec: {number: 1}\n"
                .into(),
        ]),
    );
    let cluster = directory.load();
    let refused = "z.yaml:10: NodeNumber node3: spec.number: 1 is the number of node node1; numbers are never used again";
    assert!(texts(&cluster).contains(&refused.to_owned()), "{:?}", texts(&cluster));
    assert_eq!(cluster.nodes["node3"].number, None);
    assert_eq!(cluster.node_by_number(1).map(|node| node.name.as_str()), Some("node1"));
}

#[test]
fn duplicate_objects_are_refused() {
    let directory = Directory::galaxy();
    directory.write("z.yaml", &documents(&[pod("xwing", 2, 99), pod("ywing", 1, 12), pod("ywing", 1, 13)]));
    allocate(directory.path(), &Site::default()).unwrap_err();
    let cluster = directory.load();
    let texts = texts(&cluster);
    for expected in [
        "z.yaml:3: Pod default/xwing: metadata.name: there twice; the one in pods.yaml:1 stays, remove one of them",
        "z.yaml:15: Pod default/ywing: metadata.name: there twice; the one in z.yaml:7 stays, remove one of them",
    ] {
        assert!(texts.contains(&expected.to_owned()), "{texts:?}");
    }
    assert_eq!(cluster.pod("default", "xwing").unwrap().node.as_deref(), Some("node1"));
}

#[test]
fn two_identities_with_the_same_labels_are_refused() {
    let directory = Directory::galaxy();
    let text = std::fs::read_to_string(directory.file(IDENTITIES_FILE)).unwrap();
    let at = text.find("---\napiVersion: authd.io/v1alpha1\nkind: Identity").unwrap();
    let first = text[at..].split("---\n").nth(1).unwrap();
    assert!(first.contains("\"256\"") || first.contains("'256'"), "{first}");
    directory.write("z.yaml", &first.replace("256", "999"));
    let cluster = directory.load();
    assert!(
        texts(&cluster)[0].ends_with("identity 999: identity 256 has the same labels"),
        "{:?}",
        texts(&cluster)
    );
    assert!(cluster.identities.get(999).is_none());
}

#[test]
fn unreadable_files_are_problems() {
    let directory = Directory::galaxy();
    directory.write("z.yaml", "a: [\n");
    std::os::unix::fs::symlink("base.yaml", directory.file("link.yaml")).unwrap();
    let cluster = directory.load();
    let texts = texts(&cluster);
    assert!(
        texts[0].starts_with("link.yaml: symbolic links are not followed; copy the file here"),
        "{texts:?}"
    );
    assert!(texts[1].starts_with("z.yaml:"), "{texts:?}");
    assert_eq!((texts.len(), cluster.pods.len()), (2, 2));
}

#[test]
fn a_revocation_names_an_identity_or_a_node_and_goes_with_its_file() {
    let directory = Directory::galaxy();
    let node = Revoked::Node("node2".to_owned());
    let file = revoke(directory.path(), &node, "stolen").unwrap();
    revoke(directory.path(), &Revoked::Identity(256), "key found").unwrap();
    let again = revoke(directory.path(), &node, "once more").unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    let cluster = directory.load();
    assert_eq!(texts(&cluster), Vec::<String>::new());
    assert_eq!(cluster.revoked.nodes, BTreeSet::from(["node2".to_owned()]));
    assert_eq!(cluster.revoked.identities, BTreeSet::from([256]));
    std::fs::remove_file(file).unwrap();
    assert!(directory.load().revoked.nodes.is_empty());
    let both = "apiVersion: authd.io/v1alpha1\nkind: Revocation\nmetadata: {name: x}\nspec: {identity: 1, node: n}\n";
    directory.write("both.yaml", both);
    assert!(texts(&directory.load())[0].contains("not both"));
}
