use super::super::interfaces::{Link, PodLink};
use super::*;
use crate::cluster::Node;

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for (name, number, pods) in [("n1", 1, "10.244.1.0/24"), ("n2", 2, "10.244.2.0/24")] {
        cluster.nodes.insert(
            name.into(),
            Node {
                name: name.into(),
                number: Some(number),
                addresses: vec![format!("10.0.0.{number}").parse().unwrap()],
                pod_cidrs: vec![pods.parse().unwrap()],
            },
        );
    }
    cluster.pods = vec![
        pod("here", "n1", &["10.244.1.10", "fd00::10"], Some(256)),
        pod("there", "n2", &["10.244.2.10"], Some(257)),
        pod("nameless", "n2", &["10.244.2.11"], None),
    ];
    cluster
}

fn pod(name: &str, node: &str, addresses: &[&str], identity: Option<u32>) -> Pod {
    Pod {
        namespace: "default".into(),
        name: name.into(),
        node: Some(node.into()),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        host_network: false,
        mirror: false,
        service_account: "default".into(),
        named_ports: Vec::new(),
        labels: BTreeMap::new(),
        identity,
    }
}

fn veth(peer: u32) -> Link {
    Link { kind: "veth".into(), peer: Some(peer), master: None, mtu: 1500 }
}

fn interfaces() -> Interfaces {
    Interfaces {
        names: BTreeMap::from([(2, "eth0".into()), (7, "lxc-here".into())]),
        addresses: BTreeMap::from([("10.0.0.1".parse().unwrap(), 2), ("fe80::1".parse().unwrap(), 2)]),
        host_routes: BTreeMap::from([("10.244.1.10".parse().unwrap(), 7)]),
        links: BTreeMap::from([(7, veth(3))]),
        ..Interfaces::default()
    }
}

fn plan(cluster: &Cluster, sessions: &BTreeMap<NodeNumber, (BootTime, u32)>) -> Plan {
    plan_with(cluster, sessions, &Claims::default())
}

fn plan_with(cluster: &Cluster, sessions: &BTreeMap<NodeNumber, (BootTime, u32)>, claims: &Claims) -> Plan {
    let interfaces = interfaces();
    let before = BTreeMap::new();
    Plan::make(
        &Inputs {
            cluster,
            node: "n1",
            interfaces: &interfaces,
            cluster_cidrs: &[],
            outside: &OutsideRanges::default(),
            sessions,
            before: &before,
            forwards_directly: false,
        },
        claims,
    )
}

fn entry(plan: &Plan, address: &str) -> Option<AddressEntry> {
    plan.addresses.get(&address.parse::<IpAddr>().unwrap().into()).copied()
}

#[test]
fn addresses_tell_who_is_where() {
    let plan = plan(&cluster(), &BTreeMap::new());
    let of = |address| entry(&plan, address).map(|entry| (entry.identity, entry.node));
    assert_eq!(of("10.244.1.10"), Some((256, 0)));
    assert_eq!(of("fd00::10"), Some((256, 0)));
    assert_eq!(of("10.244.2.10"), Some((257, 2)));
    assert_eq!(of("10.0.0.1"), Some((identity::HOST, 0)));
    assert_eq!(of("10.0.0.2"), Some((identity::REMOTE_NODE, 2)));
    assert_eq!(of("fe80::1"), None, "a link-local address names nobody");
}

#[test]
fn an_address_that_its_node_says_is_anothers_is_nobodys_until_cluster_state_says_so_too() {
    let claim = |node, address: &str, identity| {
        let mut claims = Claims::default();
        claims.take(node, [(address.parse().unwrap(), identity)].into(), BootTime(1));
        entry(&plan_with(&cluster(), &BTreeMap::new(), &claims), address)
    };
    let known = AddressEntry { identity: 257, node: 2, flags: 0 };
    assert_eq!(claim(2, "10.244.2.10", 257), Some(known));
    assert_eq!(claim(2, "10.244.2.10", 300), Some(withheld(2)));
    assert_eq!(claim(3, "10.244.2.10", 300), Some(known), "another node has no say in it");
    assert_eq!(claim(0, "10.244.1.10", 300).map(|entry| entry.identity), Some(256), "cluster state is ours");
    assert_eq!(claim(2, "10.244.2.99", 300), None, "a claim alone gives nothing");
}

#[test]
fn a_pod_without_identity_stays_unknown() {
    let plan = plan(&cluster(), &BTreeMap::new());
    assert_eq!(entry(&plan, "10.244.2.11"), None);
    let key = prefix_key("10.244.2.11/32".parse().unwrap());
    assert_eq!(plan.prefixes[&key].flags, AddressFlags::CLUSTER_RANGE);
}

#[test]
fn prefixes_of_policies_never_take_the_clusters_own() {
    let (cluster, sessions, interfaces) = (cluster(), BTreeMap::new(), interfaces());
    let before = BTreeMap::new();
    let inputs = Inputs {
        cluster: &cluster,
        node: "n1",
        interfaces: &interfaces,
        cluster_cidrs: &[],
        outside: &OutsideRanges::default(),
        sessions: &sessions,
        before: &before,
        forwards_directly: false,
    };
    let mut plan = Plan::make(&inputs, &Claims::default());
    let before = plan.prefixes.clone();
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let named = ["10.0.0.0/8", "10.244.1.0/24", "10.244.2.11/32", "10.244.2.128/25"];
    plan.add_prefixes(&named.into_iter().map(|text| (net(text), 1 << 24)).collect(), &inputs);
    assert_eq!(plan.prefixes.len(), before.len() + 1);
    assert_eq!(plan.prefixes[&prefix_key(net("10.0.0.0/8"))].identity, 1 << 24);
}

#[test]
fn nodes_that_policies_choose_have_identities_of_their_own() {
    let (cluster, sessions, interfaces) = (cluster(), BTreeMap::new(), interfaces());
    let before = BTreeMap::new();
    let inputs = Inputs {
        cluster: &cluster,
        node: "n1",
        interfaces: &interfaces,
        cluster_cidrs: &[],
        outside: &OutsideRanges::default(),
        sessions: &sessions,
        before: &before,
        forwards_directly: false,
    };
    let mut plan = Plan::make(&inputs, &Claims::default());
    let nodes = ["n1", "n2", "gone"].map(|name| (name.to_owned(), 1 << 24));
    plan.add_nodes(&nodes.into(), &inputs);
    let of = |address| entry(&plan, address).map(|entry| (entry.identity, entry.node));
    assert_eq!(of("10.0.0.2"), Some((1 << 24, 2)));
    assert_eq!(of("10.0.0.1"), Some((identity::HOST, 0)), "this node is the host");
}

#[test]
fn each_node_has_what_stands_for_the_world_and_nobody_else() {
    let mut cluster = cluster();
    // Claimed, as a node's or a pod's.
    cluster.nodes.get_mut("n2").unwrap().addresses.push("198.18.0.3".parse().unwrap());
    cluster.pods.push(pod("thief", "n2", &["fd41:7574:6864:6f75::3"], Some(257)));
    let mut third = cluster.nodes["n2"].clone();
    (third.name, third.number, third.addresses) = ("n3".into(), Some(3), Vec::new());
    cluster.nodes.insert("n3".into(), third.clone());
    (third.name, third.number) = ("n4".into(), None);
    cluster.nodes.insert("n4".into(), third);
    let plan = plan(&cluster, &BTreeMap::new());
    let of = |address| entry(&plan, address).map(|entry| (entry.identity, entry.node));
    assert_eq!(of("198.18.0.2"), Some((identity::WORLD, 2)));
    assert_eq!(of("198.18.0.3"), Some((identity::WORLD, 3)));
    assert_eq!(of("fd41:7574:6864:6f75::3"), Some((identity::WORLD, 3)));
    assert_eq!((of("198.18.0.1"), of("198.18.0.4")), (None, None), "this node's, and nobody's");
    let range = prefix_key("198.18.0.0/16".parse().unwrap());
    assert_eq!(plan.prefixes[&range].flags, AddressFlags::CLUSTER_RANGE);
    let own: Vec<IpAddr> = OutsideRanges::default().of(1).collect();
    assert_eq!(plan.outside, own);
}

#[test]
fn a_node_without_a_number_and_its_pods_stay_unknown() {
    let mut cluster = cluster();
    cluster.nodes.get_mut("n2").unwrap().number = None;
    let plan = plan(&cluster, &BTreeMap::new());
    assert_eq!(entry(&plan, "10.244.2.10"), None);
    assert_eq!(entry(&plan, "10.0.0.2"), None);
}

#[test]
fn every_address_of_a_local_pod_is_an_endpoint_at_its_interface() {
    let plan = plan(&cluster(), &BTreeMap::new());
    let interfaces: BTreeSet<u32> = plan.endpoints.values().map(|endpoint| endpoint.ifindex).collect();
    assert_eq!((plan.endpoints.len(), interfaces), (2, BTreeSet::from([7])));
    assert_eq!(plan.pods[0].interface, Some((7, "lxc-here".into())));
    assert_eq!(plan.local_identities(), BTreeSet::from([256]));
}

#[test]
fn packets_go_straight_to_an_interface_that_the_host_itself_would_send_them_to() {
    let (cluster, sessions, before) = (cluster(), BTreeMap::new(), BTreeMap::new());
    let mtus = |interfaces: &Interfaces, forwards_directly| {
        let inputs = Inputs {
            cluster: &cluster,
            node: "n1",
            interfaces,
            cluster_cidrs: &[],
            sessions: &sessions,
            before: &before,
            forwards_directly,
            outside: &OutsideRanges::default(),
        };
        let plan = Plan::make(&inputs, &Claims::default());
        ["10.244.1.10", "fd00::10"]
            .map(|address| plan.endpoints[&address.parse::<IpAddr>().unwrap().into()].direct_mtu)
    };
    let routed = interfaces();
    assert_eq!(mtus(&routed, false), [0, 0]);
    assert_eq!(mtus(&routed, true), [1500, 0], "no route leads to its address of the other family");
    let mut ported = routed.clone();
    ported.links.insert(7, Link { master: Some(9), ..veth(3) });
    assert_eq!(mtus(&ported, true), [0, 0]);
    let mut elsewhere = routed;
    elsewhere.host_routes.insert("fd00::10".parse().unwrap(), 8);
    assert_eq!(mtus(&elsewhere, true), [1500, 0]);
}

#[test]
fn ranges_of_both_families_are_keyed_in_ipv6_bits() {
    assert_eq!(prefix_key("10.244.1.0/24".parse().unwrap()).1, 120);
    assert_eq!(prefix_key("fd00::/48".parse().unwrap()).1, 48);
    let plan = plan(&cluster(), &BTreeMap::new());
    assert!(plan.prefixes.contains_key(&prefix_key("10.244.2.0/24".parse().unwrap())));
}

#[test]
fn sessions_become_nodes() {
    let plan = plan(&cluster(), &BTreeMap::from([(2, (BootTime(77), 3))]));
    assert_eq!(plan.nodes[&2], NodeEntry { expires: 77, epoch: 3, acknowledged: 0 });
}

/// A node whose pod `here` is a port of a bridge.
fn bridged(claims: Vec<PodLink>) -> Interfaces {
    let mut interfaces = interfaces();
    interfaces.host_routes.clear();
    interfaces.names.extend([(9, "cni0".into()), (8, "veth-other".into())]);
    interfaces.links.insert(7, Link { master: Some(9), ..veth(3) });
    interfaces.links.insert(8, Link { master: Some(9), ..veth(4) });
    interfaces.links.insert(9, Link { kind: "bridge".into(), ..Link::default() });
    interfaces.sandboxes.insert("10.244.1.10".parse().unwrap(), claims);
    interfaces
}

fn claim(namespace: u64, ifindex: u32, link: Link) -> PodLink {
    PodLink { namespace, name: "eth0".into(), ifindex, link }
}

fn find(interfaces: &Interfaces, before: Option<u32>) -> (Option<u32>, Option<String>, u32) {
    let (cluster, sessions) = (cluster(), BTreeMap::new());
    let before = before.map(|index| ("default/here".to_owned(), index)).into_iter().collect();
    let plan = Plan::make(
        &Inputs {
            cluster: &cluster,
            node: "n1",
            interfaces,
            cluster_cidrs: &[],
            outside: &OutsideRanges::default(),
            sessions: &sessions,
            before: &before,
            forwards_directly: false,
        },
        &Claims::default(),
    );
    let bridge = plan.endpoints.values().map(|endpoint| endpoint.bridge).max().unwrap_or_default();
    let pod = &plan.pods[0];
    (pod.interface.as_ref().map(|it| it.0), pod.refused.as_ref().map(ToString::to_string), bridge)
}

#[test]
fn a_pod_on_a_bridge_is_found_by_its_own_end() {
    assert_eq!(find(&bridged(vec![claim(1, 3, veth(7))]), None), (Some(7), None, 9));
    assert_eq!(find(&bridged(vec![]), None), (None, None, 0));
    let lie = claim(1, 5, veth(7));
    assert_eq!(find(&bridged(vec![lie]), None).0, None, "the host end names another peer");
}

#[test]
fn a_second_claim_to_an_address_changes_nothing() {
    let (own, thief) = (claim(1, 3, veth(7)), claim(2, 4, veth(8)));
    let both = bridged(vec![thief.clone(), own]);
    assert_eq!(find(&both, Some(7)), (Some(7), None, 9));
    let (interface, refused, _) = find(&both, None);
    assert_eq!(interface, None);
    assert!(refused.unwrap().starts_with("2 network namespaces have its address"));
    assert_eq!(find(&bridged(vec![thief]), Some(7)).0, Some(8), "the pod has moved");
}

#[test]
fn devices_that_go_round_the_host_are_refused_in_words() {
    for (kind, said) in [("macvlan", "macvlan"), ("netkit", "netkit"), ("", "SR-IOV")] {
        let link = Link { kind: kind.into(), peer: Some(2), master: None, mtu: 1500 };
        let (interface, refused, _) = find(&bridged(vec![claim(1, 3, link)]), None);
        assert_eq!(interface, None);
        assert!(refused.unwrap().contains(said));
    }
}
