//! Two nodes with SVIDs from the embedded authority, by the APIs of SPIRE's agents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spire_adapter::authority::{Authority, Config, Running};
use spire_adapter::{
    BrokerAgent, DelegatedAgent, Entry, EntryClient, Outcome, Selector, Subscription, workload,
};
use tokio::sync::watch;

use super::cluster::{TestNode, assemble, key, listen, naming, until};
use crate::peer::{Directory, Node, Options};
use crate::svids::{Choice, Seen, SpireAgent};

struct Rig {
    authority: Running,
    entries: EntryClient,
    nodes: BTreeMap<&'static str, TestNode>,
    _streams: Vec<Subscription>,
    _dir: tempfile::TempDir,
}

async fn register(authority: &Running, entries: &EntryClient, node: &str, identity: u32) -> String {
    let selector = Selector::new("authd", format!("identity:{identity}"));
    let parent = authority.agent_id(node).unwrap();
    let entry = Entry::new(parent, naming().numbered(identity).unwrap(), [selector]);
    let outcome = entries.create(&[entry]).await.unwrap().remove(0);
    let Outcome::Created(entry) = outcome else { panic!("{outcome:?}") };
    entry.id
}

async fn rig(ttl: Duration) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let naming = naming();
    let mut config = Config::new(naming.trust_domain().clone(), dir.path().join("run"));
    config.nodes = vec!["n1".to_owned(), "n2".to_owned()];
    config.svid_ttl = ttl;
    config.delegate_uid = Some(nix::unistd::getuid().as_raw());
    let authority = Authority::start(config).unwrap();
    let entries = EntryClient::new(authority.server_socket());
    let mut directory = Directory::default();
    let mut listeners = Vec::new();
    for (number, name, identity) in [(1, "n1", 256), (2, "n2", 300)] {
        let listener = listen().await;
        let addresses = vec![listener.local_addr().unwrap()];
        let spiffe_id = naming.node(name).unwrap();
        directory.identities.insert(identity, naming.numbered(identity).unwrap());
        directory
            .nodes
            .insert(name.to_owned(), Node { number, spiffe_id, addresses, identities: [identity].into() });
        listeners.push((name, listener));
    }
    let directory = Arc::new(directory);
    let (mut nodes, mut streams) = (BTreeMap::new(), Vec::new());
    for (name, listener) in listeners {
        let stream = workload::subscribe(authority.workload_socket(name), naming.node(name).unwrap());
        let agent = Arc::new(SpireAgent {
            choice: Choice::Delegated,
            broker: BrokerAgent::new(authority.broker_socket(name), stream.watch()),
            seen: watch::channel(Seen::default()).1,
            look: Arc::default(),
            delegated: DelegatedAgent::new(authority.admin_socket(name)),
            selectors: Arc::new(|identity| vec![Selector::new("authd", format!("identity:{identity}"))]),
        });
        let options = Options::new(name.to_owned(), naming.clone());
        nodes.insert(
            name,
            assemble(options, listener, &directory, Arc::default(), stream.watch(), agent).await,
        );
        streams.push(stream);
    }
    Rig { authority, entries, nodes, _streams: streams, _dir: dir }
}

#[tokio::test]
async fn an_entry_deleted_at_the_server_ends_authentication_at_both_nodes_within_a_second() {
    let Rig { authority, entries, nodes, _streams, _dir } = rig(Duration::from_secs(3600)).await;
    let (n1, n2) = (&nodes["n1"], &nodes["n2"]);
    register(&authority, &entries, "n2", 300).await;
    assert!(n1.auth.ask(key(256, 300, 2)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((n1.entries(), n2.entries()), (0, 0), "no SVID of 256 yet");
    let mut id = register(&authority, &entries, "n1", 256).await;
    for _ in 0..2 {
        until("entries", || n1.entries() == 1 && n2.entries() == 1).await;
        let began = Instant::now();
        entries.delete(&[id]).await.unwrap();
        until("gone", || n1.entries() == 0 && n2.entries() == 0).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(n1.auth.ask(key(256, 300, 2)));
        id = register(&authority, &entries, "n1", 256).await;
    }
    until("entries", || n1.entries() == 1 && n2.entries() == 1).await;
}

#[tokio::test]
async fn rotation_by_the_agent_leaves_no_gap() {
    let Rig { authority, entries, nodes, _streams, _dir } = rig(Duration::from_secs(6)).await;
    let (n1, n2) = (&nodes["n1"], &nodes["n2"]);
    register(&authority, &entries, "n1", 256).await;
    register(&authority, &entries, "n2", 300).await;
    assert!(n2.auth.ask(key(300, 256, 1)));
    until("entries", || n1.entries() == 1 && n2.entries() == 1).await;
    let first = n1.session("n2").unwrap().expires;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        assert_eq!((n1.entries(), n2.entries()), (1, 1), "after {:?}", began.elapsed());
        assert!(n1.session("n2").unwrap().live && n2.session("n1").unwrap().live);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(n1.session("n2").unwrap().expires > first);
}
