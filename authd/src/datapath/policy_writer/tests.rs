//! Against a kernel's map, which is as large as it is.

use std::io::Write as _;
use std::path::PathBuf;

use auth_ebpf::{Datapath, Options};
use auth_ebpf_abi::Direction;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use policy::{
    Identity, IdentitySet, Label, LabelSet, Policy, PolicyMap, PolicySet, Source, compile, lookup, protocol,
};
use serde_json::json;

use super::super::interfaces::Interfaces;
use super::*;
use crate::cluster::{Node, Pod};
use crate::outside::OutsideRanges;

/// Enough that a rule about all of them with a range of ports has no room.
const PEERS: IdentityNumber = 4_400;
const LOCAL: IdentityNumber = 256;
const BANNED: IdentityNumber = 300;

/// Runs `test` with the maps of a datapath of its own, or says why it can't.
fn with_maps(name: &str, test: impl FnOnce(&Maps) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} needs root");
        // Past the capture of the test runner: `scripts/test` counts these lines.
        let _unread = writeln!(std::io::stderr(), "SKIPPED: {name}: needs root");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mountpoint: PathBuf = scratch.path().to_owned();
    // The mount goes with the thread, even if the test panics.
    let outcome = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("bpf"), &mountpoint, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        let datapath = Datapath::open(&Options { pin_dir: mountpoint.join("authd") }).unwrap();
        test(datapath.maps());
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn identities() -> IdentitySet {
    let identity = |number: IdentityNumber| {
        let pod = policy::Pod { cluster: "default", namespace: "default", service_account: "default" };
        let app = number.to_string();
        Identity::new(number, pod.labels([("app", app.as_str())], []).unwrap()).unwrap()
    };
    IdentitySet::from_identities((LOCAL..LOCAL + PEERS).map(identity)).unwrap()
}

fn cluster(policies: &[(&str, serde_json::Value)]) -> Arc<Cluster> {
    let policy = |(name, rules): &(&str, serde_json::Value)| {
        let mut spec = json!({"endpointSelector": {"matchLabels": {"app": "256"}}});
        spec.as_object_mut().unwrap().extend(rules.as_object().unwrap().clone());
        Policy::from_value(&json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        }))
        .unwrap()
    };
    let pod = Pod {
        namespace: "default".into(),
        name: "here".into(),
        node: Some("n1".into()),
        addresses: vec!["10.244.1.10".parse().unwrap()],
        host_network: false,
        mirror: false,
        service_account: "default".into(),
        named_ports: Vec::new(),
        labels: BTreeMap::new(),
        identity: Some(LOCAL),
    };
    Arc::new(Cluster {
        identities: identities(),
        policies: policies.iter().map(policy).collect::<PolicySet>(),
        pods: vec![pod],
        ..Cluster::default()
    })
}

fn write(writer: &mut PolicyWriter, maps: &Maps, cluster: &Arc<Cluster>) -> PolicyMap {
    let (sessions, before, interfaces) = (BTreeMap::new(), BTreeMap::new(), Interfaces::default());
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
    writer.write(maps, cluster, &Plan::make(&inputs, &crate::handover::Claims::default()), &inputs).unwrap();
    maps.policy().entries().unwrap().into_iter().collect()
}

fn passes(map: &PolicyMap, remote: IdentityNumber, port: u16) -> bool {
    let choice = lookup(map, LOCAL, remote, Direction::Ingress, protocol::TCP, port);
    choice.is_some_and(|choice| choice.entry.deny == 0)
}

#[test]
fn what_does_not_fit_restricts_and_is_named_and_changes_nothing_else() {
    with_maps("what_does_not_fit_restricts_and_is_named_and_changes_nothing_else", |maps| {
        let mut writer = PolicyWriter::default();
        let some = (
            "some",
            json!({"ingress": [{"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}]}),
        );
        let ban = (
            "ban",
            json!({"ingressDeny": [{"fromEndpoints": [{"matchLabels": {"app": BANNED.to_string()}}]}]}),
        );
        let wide = (
            "wide",
            json!({"ingress": [{"fromEndpoints": [{}], "toPorts": [{"ports": [{"port": "1", "endPort": 65534, "protocol": "TCP"}]}]}]}),
        );
        let before = write(&mut writer, maps, &cluster(std::slice::from_ref(&some)));
        assert!(writer.overflow().is_none() && passes(&before, BANNED, 80) && passes(&before, 301, 80));

        let after = write(&mut writer, maps, &cluster(&[some.clone(), ban.clone(), wide]));
        let overflow = writer.overflow().unwrap();
        assert!(overflow.needed > capacity::POLICY, "{overflow}");
        let conditions = writer.conditions();
        let named = conditions.iter().find(|(_, text)| text.starts_with("Capacity: "));
        assert_eq!(named.unwrap().0, "CiliumNetworkPolicy default/wide", "{conditions:?}");
        // What is newly denied is denied, and nothing is newly allowed.
        for port in [80, 443] {
            assert!(!passes(&after, BANNED, port));
        }
        for remote in [301, LOCAL + PEERS - 1] {
            assert!(passes(&after, remote, 80) && !passes(&after, remote, 443), "{remote}");
        }
        assert_eq!(writer.len(), after.len());

        let now = cluster(&[some, ban]);
        let after = write(&mut writer, maps, &now);
        assert!(writer.overflow().is_none() && writer.conditions().is_empty());
        assert_eq!(after, compile(now.policy_input(), [LOCAL]).map);
    });
}

#[test]
fn a_nodes_address_has_the_identity_that_policies_want() {
    with_maps("a_nodes_address_has_the_identity_that_policies_want", |maps| {
        let with_node = |policy: (&str, serde_json::Value), is_there: bool| {
            let mut cluster = Cluster::clone(&cluster(&[policy]));
            let address = "10.0.0.2".parse().unwrap();
            let node =
                Node { name: "n2".into(), number: Some(2), addresses: vec![address], pod_cidrs: Vec::new() };
            let labels = LabelSet::from_labels([Label::new(Source::K8s, "zone", "a").unwrap()]).unwrap();
            if is_there {
                cluster.nodes.insert("n2".into(), node);
                let node = policy::Node { labels, addresses: [address].into() };
                cluster.surroundings.nodes.insert("n2".into(), node);
            }
            Arc::new(cluster)
        };
        let all = ("p", json!({"ingress": [{"fromEntities": ["remote-node"]}]}));
        let zone = ("p", json!({"ingress": [{"fromNodes": [{"matchLabels": {"zone": "a"}}]}]}));
        let address = Address::from("10.0.0.2".parse::<std::net::IpAddr>().unwrap());
        let before = AddressEntry { identity: identity::REMOTE_NODE, node: 2, flags: 0 };
        maps.addresses().insert(&address, &before).unwrap();
        let mut writer = PolicyWriter::default();
        let mut write = |policy: &(&'static str, serde_json::Value), is_there| {
            let map = write(&mut writer, maps, &with_node(policy.clone(), is_there));
            let entry = maps.addresses().get(&address).unwrap();
            (entry.map(|entry| (entry.identity, passes(&map, entry.identity, 80))), writer.nodes().len())
        };
        assert_eq!(write(&all, true), (Some((identity::REMOTE_NODE, true)), 0));
        let (own, nodes) = write(&zone, true);
        let (number, passes) = own.unwrap();
        assert!(number >= identity::FIRST_LOCAL && passes && nodes == 1);
        assert_eq!(write(&zone, false), (None, 0), "the address of a node that is gone is nobody's");
        maps.addresses().insert(&address, &before).unwrap();
        assert_eq!(write(&all, true), (Some((identity::REMOTE_NODE, true)), 0));
        assert_eq!(write(&zone, true), (own, 1));
        assert_eq!(write(&all, true), (Some((identity::REMOTE_NODE, true)), 0));
    });
}
