use std::collections::BTreeMap;

use policy::{Label, LabelSet};

use super::super::interfaces::Interfaces;
use super::*;
use crate::cluster::{Cluster, Node, Pod, Slice, SlicePort};
use crate::handover::Claims;
use crate::outside::OutsideRanges;

const TCP: u8 = 6;
const UDP: u8 = 17;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ready(address: &str, node: &str) -> ServiceEndpoint {
    let node = Some(node.to_owned());
    ServiceEndpoint { addresses: vec![ip(address)], node, is_ready: true, ..ServiceEndpoint::default() }
}

fn slice(protocol: u8, port: u16, endpoints: Vec<ServiceEndpoint>) -> Slice {
    Slice { ports: vec![SlicePort { name: "web".into(), protocol, port }], endpoints }
}

fn service(addresses: &[&str], slices: Vec<Slice>) -> Service {
    let port = ServicePort { name: "web".into(), protocol: TCP, port: 80, ..ServicePort::default() };
    let addresses = addresses.iter().map(|address| ip(address)).collect();
    Service { addresses, ports: vec![port], slices, ..Service::default() }
}

fn cluster(service: Service) -> Cluster {
    let mut cluster = Cluster::default();
    for (name, number) in [("n1", 1), ("n2", 2), ("n3", 3)] {
        let addresses = vec![ip(&format!("10.0.0.{number}"))];
        let node = Node { name: name.into(), number: Some(number), addresses, pod_cidrs: Vec::new() };
        cluster.nodes.insert(name.into(), node);
        let zone = Label::new(Source::K8s, ZONE, if number == 3 { "east" } else { "west" }).unwrap();
        let labels = LabelSet::from_labels([zone]).unwrap();
        let node = policy::Node { labels, ..policy::Node::default() };
        cluster.surroundings.nodes.insert(name.into(), node);
    }
    cluster.services.insert(("default".into(), "web".into()), service);
    cluster
}

fn plan(cluster: &Cluster) -> Plan {
    let interfaces = Interfaces { addresses: BTreeMap::from([(ip("10.0.0.1"), 2)]), ..Interfaces::default() };
    let (sessions, before) = (BTreeMap::new(), BTreeMap::new());
    let inputs = Inputs {
        cluster,
        node: "n1",
        interfaces: &interfaces,
        cluster_cidrs: &[],
        outside: &OutsideRanges::default(),
        sessions: &sessions,
        before: &before,
        forwards_directly: false,
    };
    Plan::make(&inputs, &Claims::default())
}

/// The backends to which this port leads; `None` where nothing is translated.
fn leads_to(plan: &Plan, address: &str, port: u16, protocol: u8) -> Option<Vec<String>> {
    let key = key(ip(address).into(), port, protocol);
    let group = plan.backends.iter().find(|group| group.ports.contains(&key))?;
    Some(group.backends.iter().map(|(address, port)| format!("{}:{port}", address.to_ip())).collect())
}

fn found(service: Service, address: &str, port: u16) -> Option<Vec<String>> {
    leads_to(&plan(&cluster(service)), address, port, TCP)
}

fn list(ends: &[&str]) -> Option<Vec<String>> {
    Some(ends.iter().map(|end| (*end).to_owned()).collect())
}

#[test]
fn each_family_has_its_own_backends() {
    let endpoints = vec![ready("10.1.1.1", "n1"), ready("10.1.2.1", "n2")];
    let six = vec![ready("fd00::1", "n1")];
    let both = service(&["10.96.0.1", "fd96::1"], vec![slice(TCP, 8080, endpoints), slice(TCP, 8080, six)]);
    assert_eq!(found(both.clone(), "10.96.0.1", 80), list(&["10.1.1.1:8080", "10.1.2.1:8080"]));
    assert_eq!(found(both.clone(), "fd96::1", 80), list(&["fd00::1:8080"]));
    let plan = plan(&cluster(both));
    let flags = |address: &str| plan.addresses[&Address::from(ip(address))].flags;
    assert_eq!((flags("10.96.0.1"), flags("fd96::1")), (AddressFlags::SERVICE, AddressFlags::SERVICE));
    assert_eq!(flags("10.0.0.2"), 0, "no port of nodes, so nobody looks there");
}

#[test]
fn ports_get_the_numbers_that_each_slice_gives_their_names() {
    let mut web = service(
        &["10.96.0.1"],
        vec![
            slice(TCP, 8080, vec![ready("10.1.1.1", "n1")]),
            slice(TCP, 9090, vec![ready("10.1.2.1", "n2")]),
        ],
    );
    web.ports.push(ServicePort { name: "web".into(), protocol: UDP, port: 80, ..ServicePort::default() });
    web.ports.push(ServicePort { name: "admin".into(), protocol: TCP, port: 81, ..ServicePort::default() });
    web.slices.push(slice(UDP, 53, vec![ready("10.1.3.1", "n3")]));
    let plan = plan(&cluster(web));
    assert_eq!(leads_to(&plan, "10.96.0.1", 80, TCP), list(&["10.1.1.1:8080", "10.1.2.1:9090"]));
    assert_eq!(leads_to(&plan, "10.96.0.1", 80, UDP), list(&["10.1.3.1:53"]));
    assert_eq!(leads_to(&plan, "10.96.0.1", 81, TCP), list(&[]), "a port that no slice has");
    assert_eq!(leads_to(&plan, "10.96.0.1", 82, TCP), None);
}

#[test]
fn what_is_not_ready_takes_nothing_unless_all_are_about_to_end() {
    let unready = |endpoint| ServiceEndpoint { is_ready: false, ..endpoint };
    let ending = |endpoint| ServiceEndpoint { is_last_resort: true, ..unready(endpoint) };
    let (a, b, c) = (ready("10.1.1.1", "n1"), ready("10.1.2.1", "n2"), ready("10.1.3.1", "n3"));
    for (endpoints, expected) in [
        (vec![a.clone(), ending(b.clone()), unready(c.clone())], &["10.1.1.1:80"][..]),
        (vec![unready(a.clone()), ending(b.clone()), ending(c.clone())], &["10.1.2.1:80", "10.1.3.1:80"]),
        (vec![unready(a), unready(b)], &[]),
    ] {
        let web = service(&["10.96.0.1"], vec![slice(TCP, 80, endpoints)]);
        assert_eq!(found(web, "10.96.0.1", 80), list(expected));
    }
}

#[test]
fn local_traffic_stays_on_its_node() {
    let endpoints = vec![ready("10.1.1.1", "n1"), ready("10.1.2.1", "n2"), ready("10.1.2.2", "n2")];
    let mut web = service(&["10.96.0.1", "192.0.2.1"], vec![slice(TCP, 8080, endpoints)]);
    web.external.insert(ip("192.0.2.1"));
    web.ports[0].node_port = 30080;
    let everywhere = list(&["10.1.1.1:8080", "10.1.2.1:8080", "10.1.2.2:8080"]);
    let plain = plan(&cluster(web.clone()));
    for (address, port) in [("10.96.0.1", 80), ("192.0.2.1", 80), ("0.0.0.0", 30080)] {
        assert_eq!(leads_to(&plain, address, port, TCP), everywhere);
    }
    assert_eq!(plain.backends.iter().filter(|group| !group.backends.is_empty()).count(), 1, "one set");
    let flags = |address: &str| plain.addresses[&Address::from(ip(address))].flags;
    assert_eq!((flags("10.0.0.1"), flags("10.0.0.2")), (AddressFlags::SERVICE, AddressFlags::SERVICE));
    let inside = plan(&cluster(Service { internal_local: true, ..web.clone() }));
    assert_eq!(leads_to(&inside, "10.96.0.1", 80, TCP), list(&["10.1.1.1:8080"]));
    assert_eq!(leads_to(&inside, "192.0.2.1", 80, TCP), everywhere);
    // As kube-proxy has it: for a pod, what is here is short of the way outside; another node keeps to its own.
    let outside = plan(&cluster(Service { external_local: true, ..web }));
    assert_eq!(leads_to(&outside, "10.96.0.1", 80, TCP), everywhere);
    assert_eq!(leads_to(&outside, "192.0.2.1", 80, TCP), everywhere);
    assert_eq!(leads_to(&outside, "0.0.0.0", 30080, TCP), everywhere);
    assert_eq!(leads_to(&outside, "10.0.0.2", 30080, TCP), list(&["10.1.2.1:8080", "10.1.2.2:8080"]));
    assert_eq!(leads_to(&outside, "10.0.0.3", 30080, TCP), list(&[]));
}

#[test]
fn hints_count_where_all_have_them_and_one_means_here() {
    let zone = |endpoint, zone: &str| ServiceEndpoint { for_zones: vec![zone.to_owned()], ..endpoint };
    let node = |endpoint, node: &str| ServiceEndpoint { for_nodes: vec![node.to_owned()], ..endpoint };
    let (a, b) = (ready("10.1.1.1", "n1"), ready("10.1.3.1", "n3"));
    let both = &["10.1.1.1:80", "10.1.3.1:80"][..];
    for (endpoints, expected) in [
        (vec![zone(a.clone(), "west"), zone(b.clone(), "east")], &["10.1.1.1:80"][..]),
        (vec![zone(a.clone(), "west"), b.clone()], both),
        (vec![zone(a.clone(), "north"), zone(b.clone(), "east")], both),
        (vec![zone(node(a.clone(), "n2"), "west"), zone(node(b.clone(), "n1"), "east")], &["10.1.3.1:80"]),
        (vec![zone(node(a, "n2"), "west"), zone(b, "east")], &["10.1.1.1:80"]),
    ] {
        let web = service(&["10.96.0.1"], vec![slice(TCP, 80, endpoints)]);
        assert_eq!(found(web, "10.96.0.1", 80), list(expected));
    }
}

#[test]
fn sctp_keeps_its_port_or_has_no_backend() {
    let endpoints = || vec![ready("10.1.1.1", "n1")];
    for (target, expected) in [(80, list(&["10.1.1.1:80"])), (8080, list(&[]))] {
        let mut web = service(&["10.96.0.1"], vec![slice(SCTP, target, endpoints())]);
        web.ports[0].protocol = SCTP;
        assert_eq!(leads_to(&plan(&cluster(web)), "10.96.0.1", 80, SCTP), expected);
    }
}

#[test]
fn an_address_belongs_to_one() {
    let slices = vec![slice(TCP, 80, vec![ready("10.1.1.1", "n1")])];
    let mut cluster = cluster(service(&["10.96.0.1", "10.1.1.1", "0.0.0.0", "fe80::1"], slices));
    cluster.services.insert(("tenant".into(), "thief".into()), service(&["10.96.0.1"], vec![]));
    cluster.pods.push(Pod {
        namespace: "default".into(),
        name: "pod".into(),
        node: Some("n2".into()),
        addresses: vec![ip("10.1.1.1")],
        host_network: false,
        service_account: "default".into(),
        named_ports: Vec::new(),
        labels: BTreeMap::new(),
        identity: Some(300),
        mirror: false,
    });
    let plan = plan(&cluster);
    assert_eq!(leads_to(&plan, "10.96.0.1", 80, TCP), list(&["10.1.1.1:80"]));
    assert_eq!(leads_to(&plan, "10.1.1.1", 80, TCP), None);
    assert_eq!(leads_to(&plan, "0.0.0.0", 80, TCP), None, "it would stand for every node");
    let refused: Vec<&str> = plan.refused_services.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(refused, ["default/web", "default/web", "default/web", "tenant/thief"]);
}

#[test]
fn what_is_left_alone_has_no_address_here() {
    let left = Service { is_left_alone: true, ..service(&["10.96.0.1"], vec![]) };
    let plan = plan(&cluster(left));
    assert!(plan.backends.is_empty());
    assert!(!plan.addresses.contains_key(&Address::from(ip("10.96.0.1"))));
}
