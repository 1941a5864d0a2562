use std::time::{Duration, UNIX_EPOCH};

use policy::Identity;
use spire_adapter::Selector;
use spire_adapter::registration::Owner;

use super::*;
use crate::cluster::{Node, Pod};
use crate::operator::agents::AgentRule;
use crate::peer::Naming;

const NOW: SystemTime = UNIX_EPOCH;

fn rules(template: &str) -> Rules {
    Rules {
        naming: Naming::new("a.test".parse().unwrap(), template, "default").unwrap(),
        owner: Owner::default(),
        agent: AgentRule::by_selector(Selector::new("k8s_psat", "agent_node_name:{node}")).unwrap(),
        node_selectors: vec![Selector::new("k8s", "ns:authd")],
        svid_ttl: Some(Duration::from_secs(600)),
    }
}

fn agent(id: &str, node: &str) -> AttestedAgent {
    AttestedAgent {
        spiffe_id: SpiffeId::new(format!("spiffe://a.test/spire/agent/{id}")).unwrap(),
        attestation_type: "k8s_psat".to_owned(),
        selectors: [
            Selector::new("k8s_psat", format!("agent_node_name:{node}")),
            Selector::new("k8s_psat", "cluster:west"),
        ]
        .into(),
        expires: NOW + Duration::from_secs(60),
        banned: false,
    }
}

/// Nodes `n1` and `n2`; pods by identity and node.
fn cluster(pods: &[(IdentityNumber, Option<&str>)]) -> Cluster {
    let mut cluster = Cluster::default();
    for (index, name) in ["n1", "n2"].into_iter().enumerate() {
        let node = Node {
            name: name.to_owned(),
            number: u16::try_from(index + 1).ok(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
        };
        cluster.nodes.insert(name.to_owned(), node);
    }
    let mut identities = Vec::new();
    for (index, (identity, node)) in pods.iter().enumerate() {
        let labels = policy::Pod { cluster: "default", namespace: "shop", service_account: "web" };
        let labels = labels.labels([("number", identity.to_string().as_str())], []).unwrap();
        identities.push(Identity::new(*identity, labels).unwrap());
        cluster.pods.push(Pod {
            namespace: "shop".to_owned(),
            name: format!("web-{index}"),
            node: node.map(str::to_owned),
            addresses: Vec::new(),
            host_network: false,
            mirror: false,
            service_account: "web".to_owned(),
            named_ports: Vec::new(),
            labels: BTreeMap::new(),
            identity: Some(*identity),
        });
    }
    for identity in identities {
        drop(cluster.identities.insert(identity));
    }
    cluster
}

/// Path of the SPIFFE ID, and of its parent below the agents'.
fn pairs(wishes: &Wishes) -> BTreeSet<(String, String)> {
    let agents = "/spire/agent/";
    let pair = |entry: &Entry| {
        let parent = entry.parent_id.path().strip_prefix(agents).unwrap();
        (entry.spiffe_id.path().to_owned(), parent.to_owned())
    };
    wishes.wanted.iter().map(pair).collect()
}

fn set(pairs: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    pairs.iter().map(|(id, parent)| ((*id).to_owned(), (*parent).to_owned())).collect()
}

const NODES: [(&str, &str); 2] = [("/authd/node/n1", "one"), ("/authd/node/n2", "two")];

#[test]
fn each_node_gets_what_it_hosts_below_its_own_agent() {
    let agents = [agent("one", "n1"), agent("two", "n2"), agent("three", "n3")];
    let pods = [(256, Some("n1")), (256, Some("n1")), (257, Some("n1")), (257, Some("n2")), (258, None)];
    let wishes = wishes(&cluster(&pods), &agents, &rules("/identity/{id}"), NOW);
    let identities = [("/identity/256", "one"), ("/identity/257", "one"), ("/identity/257", "two")];
    assert_eq!(pairs(&wishes), set(&[&NODES[..], &identities].concat()));
    assert!(wishes.problems.is_empty(), "{:?}", wishes.problems);
    for entry in wishes.wanted.iter() {
        let (selectors, ttl) = match entry.spiffe_id.path().strip_prefix("/identity/") {
            Some(number) => ([Selector::new("authd", format!("identity:{number}"))], Some(600)),
            None => ([Selector::new("k8s", "ns:authd")], None),
        };
        assert_eq!((&entry.selectors, entry.svid_ttl), (&selectors.into(), ttl.map(Duration::from_secs)));
        assert!(!entry.admin && !entry.downstream && entry.dns_names.is_empty());
    }
}

#[test]
fn a_node_without_an_agent_gets_nothing_and_is_told_why() {
    let mut banned = agent("one", "n1");
    banned.banned = true;
    let pods = cluster(&[(256, Some("n1")), (256, Some("n2"))]);
    let found = wishes(&pods, &[banned], &rules("/identity/{id}"), NOW);
    assert_eq!(pairs(&found), set(&[]));
    assert_eq!(found.without_agent, 2);
    assert!(found.problems["n1"].contains("banned"), "{:?}", found.problems);
    assert!(found.problems["n2"].contains("k8s_psat:agent_node_name:n2"), "{:?}", found.problems);

    let mut by_path = rules("/identity/{id}");
    by_path.agent = AgentRule::by_path(by_path.naming.trust_domain(), "/spire/agent/{node}").unwrap();
    let found = wishes(&pods, &[agent("n1", "x")], &by_path, NOW);
    assert_eq!(pairs(&found), set(&[("/authd/node/n1", "n1"), ("/identity/256", "n1")]));
    assert!(found.problems["n2"].contains("spiffe://a.test/spire/agent/n2"), "{:?}", found.problems);
}

#[test]
fn of_two_agents_the_later_is_taken_and_both_are_told() {
    let mut later = agent("later", "n1");
    later.expires += Duration::from_secs(60);
    let pods = cluster(&[(256, Some("n1"))]);
    for agents in [[agent("one", "n1"), later.clone()], [later.clone(), agent("one", "n1")]] {
        let found = wishes(&pods, &agents, &rules("/identity/{id}"), NOW);
        assert_eq!(pairs(&found), set(&[("/authd/node/n1", "later"), ("/identity/256", "later")]));
        assert!(found.problems["n1"].contains("claim to be this node"), "{:?}", found.problems);
    }
    // One that has expired is what a node's former life has left.
    let agents = [agent("one", "n1"), later];
    let found = wishes(&pods, &agents, &rules("/identity/{id}"), NOW + Duration::from_secs(90));
    assert_eq!(found.problems.get("n1"), None);
}

#[test]
fn the_images_of_static_pods_get_nothing() {
    let mut cluster = cluster(&[(256, Some("n1"))]);
    cluster.pods[0].mirror = true;
    let agents = [agent("one", "n1"), agent("two", "n2")];
    assert_eq!(pairs(&wishes(&cluster, &agents, &rules("/identity/{id}"), NOW)), set(&NODES));
}

#[test]
fn of_service_accounts_only_nodes_are_registered() {
    let agents = [agent("one", "n1"), agent("two", "n2")];
    let rules = rules("/ns/{namespace}/sa/{serviceaccount}");
    let mut cluster = cluster(&[(256, Some("n1"))]);
    cluster.revoked.identities.insert(256);
    let found = wishes(&cluster, &agents, &rules, NOW);
    assert_eq!(pairs(&found), set(&NODES));
    let mut plain = Wanted::new(rules.owner);
    found.wanted.iter().for_each(|entry| plain.add(entry.clone()));
    assert_eq!(found.wanted, plain, "what others share is not revoked");
}

#[test]
fn what_is_revoked_goes() {
    let agents = [agent("one", "n1"), agent("two", "n2")];
    let mut cluster = cluster(&[(256, Some("n1")), (256, Some("n2")), (257, Some("n1"))]);
    cluster.revoked.identities.insert(256);
    cluster.revoked.nodes.insert("n2".to_owned());
    let rules = rules("/identity/{id}");
    let found = wishes(&cluster, &agents, &rules, NOW);
    assert_eq!(pairs(&found), set(&[("/authd/node/n1", "one"), ("/identity/257", "one")]));
    let mut expected = Wanted::new(Owner::default());
    found.wanted.iter().for_each(|entry| expected.add(entry.clone()));
    for path in ["/identity/256", "/authd/node/n2", "/spire/agent/two"] {
        expected.revoke(SpiffeId::new(format!("spiffe://a.test{path}")).unwrap());
    }
    assert_eq!(found.wanted, expected);
}
