use std::{
    collections::BTreeSet,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, SystemTime},
};

use auth_ebpf_abi::Mode;
use wg_mesh::{BackendKind, Counters, PeerStatus, PresharedKey};

use super::*;

const GRACE: Duration = Duration::from_secs(60);
const NOW: BootTime = BootTime(1_000_000_000_500);

fn key(number: u8) -> [u8; 32] {
    let mut key = [0; 32];
    key[0] = number;
    key
}

fn preshared(byte: u8) -> PresharedKey {
    PresharedKey::new([byte; 32].into())
}

/// What a plan is made from; tests change what they are about.
struct Given {
    cluster: Cluster,
    sessions: SessionMap,
    known: BTreeMap<NodeNumber, NodeEntry>,
    observed: Option<Status>,
    config: EncryptionConfig,
    enforced: Enforced,
}

impl Given {
    fn new() -> Self {
        let node = |name: &str, number: u16| Node {
            name: name.into(),
            number: Some(number),
            addresses: vec![
                format!("10.0.0.{number}").parse().unwrap(),
                format!("fd00::{number}").parse().unwrap(),
            ],
            pod_cidrs: vec![format!("10.244.{number}.0/24").parse().unwrap()],
        };
        let mut cluster = Cluster::default();
        for (name, number) in [("n1", 1), ("n2", 2)] {
            cluster.nodes.insert(name.into(), node(name, number));
        }
        Self {
            cluster,
            sessions: SessionMap::default(),
            known: BTreeMap::new(),
            observed: None,
            config: EncryptionConfig {
                drops_same_node: false,
                mode: Mode::Enforce,
                tunnel_socket: "/run/t.sock".into(),
                interface: "authd0".into(),
                port: NonZeroU16::new(51871).unwrap(),
                uplinks: Vec::new(),
                cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                outside: OutsideRanges::default(),
                svid_grace: GRACE,
            },
            enforced: Enforced::Yes,
        }
    }

    fn with_session(mut self, expires_in: i64, live: bool) -> Self {
        // What the wall clock says of its end is for people alone.
        let expires = SystemTime::UNIX_EPOCH;
        let ends = BootTime(NOW.0.saturating_add_signed(expires_in * 1_000_000_000));
        let session = Session {
            number: 2,
            spiffe_id: "spiffe://a.test/authd/node/n2".parse().unwrap(),
            wireguard_key: Some(key(2)),
            preshared_key: Some(preshared(1)),
            preshared_since: None,
            wireguard_endpoint: "10.0.0.2:51871".parse().unwrap(),
            handshake_endpoint: "10.0.0.2:4250".parse().unwrap(),
            identities: Arc::default(),
            epoch: 1,
            group: "X25519MLKEM768",
            version: 1,
            since: expires,
            expires,
            ends,
            live,
        };
        self.sessions = Arc::new(BTreeMap::from([("n2".to_owned(), session)]));
        self
    }

    fn with_tunnel_peer(mut self, known_for: u64) -> Self {
        self.known.insert(2, NodeEntry { expires: NOW.0 + known_for, epoch: 1, acknowledged: 0 });
        self.observed = Some(Status {
            public_key: PublicKey::from_bytes(key(1)).unwrap(),
            interface: "authd0".into(),
            ifindex: 9,
            listen_port: Some(51871),
            mtu: 1420,
            peers: vec![PeerStatus {
                public_key: PublicKey::from_bytes(key(7)).unwrap(),
                endpoint: "10.0.0.2:51871".parse().unwrap(),
                configured_endpoint: "10.0.0.2:51871".parse().unwrap(),
                allowed_ips: allowed_ips(&self.inputs(), &self.cluster.nodes["n2"]),
                persistent_keepalive: None,
                preshared_key: Some(preshared(9).without_secret()),
                rekeying: None,
                last_handshake: None,
                rx_bytes: 0,
                tx_bytes: 0,
            }],
            backend: BackendKind::Userspace,
            counters: Counters::default(),
        });
        self
    }

    fn wanted(&self) -> Wanted {
        Wanted::make(&self.inputs())
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            cluster: &self.cluster,
            node: "n1",
            sessions: &self.sessions,
            known: &self.known,
            observed: self.observed.as_ref(),
            config: &self.config,
            outside: &self.config.outside,
            handshake_port: 4250,
            enforced: self.enforced,
            mtu: 1420,
            now: NOW,
        }
    }

    fn keys(&self) -> BTreeSet<u8> {
        self.wanted().desired.peers.keys().map(|key| key.as_bytes()[0]).collect()
    }
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_session_makes_a_peer_with_the_nodes_and_its_pods_addresses() {
    let wanted = Given::new().with_session(100, true).wanted();
    let peer = wanted.desired.peers.values().next().unwrap();
    let outside = ["198.18.0.2/32", "fd41:7574:6864:6f75::2/128"];
    assert_eq!(
        peer.allowed_ips,
        nets(&[&["10.0.0.2/32", "fd00::2/128", "10.244.2.0/24"], &outside[..]].concat())
    );
    assert_eq!(peer.endpoint, "10.0.0.2:51871".parse().unwrap());
    assert_eq!(wanted.nodes[&peer.public_key], "n2");
    assert_eq!(wanted.steering.unwrap().routes, peer.allowed_ips);
}

#[test]
fn without_a_session_there_is_no_peer_and_the_ranges_are_unreachable() {
    let wanted = Given::new().wanted();
    assert!(wanted.desired.peers.is_empty());
    let steering = wanted.steering.unwrap();
    assert!(steering.routes.is_empty());
    let outside = ["198.18.0.0/16", "fd41:7574:6864:6f75::/112"];
    let guarded = [&["10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24"], &outside[..]].concat();
    assert_eq!(steering.guarded, nets(&guarded));
    assert_eq!(steering.local, nets(&["10.244.1.0/24"]));
}

#[test]
fn a_lost_session_keeps_its_tunnel_for_the_grace_and_no_longer() {
    assert_eq!(Given::new().with_session(10, false).keys(), BTreeSet::from([2]));
    assert_eq!(Given::new().with_session(-59, false).keys(), BTreeSet::from([2]));
    assert_eq!(Given::new().with_session(-60, false).keys(), BTreeSet::new());
}

#[test]
fn a_restarted_daemon_keeps_the_tunnels_peer_while_the_map_vouches_for_its_node() {
    assert_eq!(Given::new().with_tunnel_peer(1).keys(), BTreeSet::from([7]));
    assert_eq!(Given::new().with_tunnel_peer(0).keys(), BTreeSet::new(), "its time has run out");
    let mut unknown = Given::new().with_tunnel_peer(1);
    unknown.known.clear();
    assert_eq!(unknown.keys(), BTreeSet::new(), "nobody vouches for it");
}

#[test]
fn a_session_overrules_what_the_tunnel_has() {
    assert_eq!(Given::new().with_tunnel_peer(1).with_session(100, true).keys(), BTreeSet::from([2]));
}

#[test]
fn a_node_that_has_gone_has_no_peer() {
    let mut given = Given::new().with_tunnel_peer(1).with_session(100, true);
    given.cluster.nodes.remove("n2");
    assert_eq!(given.keys(), BTreeSet::new());
}

#[test]
fn observe_guards_no_range_and_off_steers_nothing() {
    let mut given = Given::new().with_session(100, true);
    given.enforced = Enforced::No;
    let steering = given.wanted().steering.unwrap();
    assert!(steering.guarded.is_empty() && !steering.routes.is_empty());
    given.enforced = Enforced::Off;
    assert_eq!(given.wanted().steering, None);
    assert!(!given.wanted().desired.peers.is_empty(), "the tunnel stays ready");
}

#[test]
fn handshakes_and_wireguard_stay_out_of_the_tunnel() {
    let bootstrap = Given::new().wanted().steering.unwrap().bootstrap;
    assert_eq!(
        bootstrap.iter().map(|flow| flow.port).collect::<BTreeSet<_>>(),
        BTreeSet::from([4250, 51871])
    );
}

#[test]
fn without_ranges_nobody_has_an_outside_address() {
    let mut given = Given::new().with_session(100, true);
    given.config.outside = OutsideRanges::none();
    let wanted = given.wanted();
    let peer = wanted.desired.peers.values().next().unwrap();
    assert_eq!(peer.allowed_ips, nets(&["10.0.0.2/32", "fd00::2/128", "10.244.2.0/24"]));
    let guarded = wanted.steering.unwrap().guarded;
    assert_eq!(guarded, nets(&["10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24"]));
}

/// Cluster ranges that no peer has are unreachable in the mesh's table; pods here are not the mesh's.
#[test]
fn pods_here_stay_reachable_where_their_node_has_no_range() {
    let mut given = Given::new();
    let own = given.cluster.nodes.get_mut("n1").unwrap();
    own.pod_cidrs.clear();
    let pod = |name: &str, address: &str, host_network| crate::cluster::Pod {
        namespace: "default".into(),
        name: name.into(),
        node: Some("n1".into()),
        addresses: vec![address.parse().unwrap()],
        host_network,
        service_account: "default".into(),
        named_ports: Vec::new(),
        labels: BTreeMap::new(),
        identity: Some(256),
        mirror: false,
    };
    given.cluster.pods = vec![pod("here", "10.244.9.1", false), pod("host", "10.0.0.1", true)];
    let steering = given.wanted().steering.unwrap();
    assert_eq!(steering.local, ["10.244.9.1/32".parse().unwrap()].into());
    assert!(steering.guarded.contains(&"10.244.0.0/16".parse().unwrap()));
}

/// A device takes a desired state whole or not at all: what one node says must not freeze the mesh.
#[test]
fn a_node_that_announces_nonsense_costs_itself_alone() {
    let with = |change: &dyn Fn(&mut Given, &mut Session)| {
        let mut given = Given::new().with_tunnel_peer(1).with_session(100, true);
        let mut node = given.cluster.nodes["n2"].clone();
        (node.name, node.number) = ("n3".into(), Some(3));
        node.addresses = vec!["10.0.0.3".parse().unwrap()];
        node.pod_cidrs.clear();
        given.cluster.nodes.insert("n3".into(), node);
        let mut third = given.sessions["n2"].clone();
        (third.number, third.wireguard_key) = (3, Some(key(3)));
        change(&mut given, &mut third);
        Arc::make_mut(&mut given.sessions).insert("n3".into(), third);
        let wanted = given.wanted();
        assert_eq!(wanted.desired.check(Some(&PublicKey::from_bytes(key(1)).unwrap())), Ok(()));
        assert!(wanted.nodes.values().any(|node| node == "n2"), "{wanted:?}");
        wanted.refused.get("n3").cloned()
    };
    let claims = |given: &mut Given, address: &str| {
        given.cluster.nodes.get_mut("n3").unwrap().addresses.push(address.parse().unwrap());
    };
    assert_eq!(with(&|_, _| ()), None);
    assert!(with(&|_, third| third.wireguard_endpoint.set_port(0)).unwrap().contains("endpoint"));
    assert!(with(&|_, third| third.wireguard_key = Some(key(1))).unwrap().contains("own"));
    assert!(with(&|given, _| claims(given, "10.244.2.7")).unwrap().contains("overlaps"));
    assert!(with(&|given, _| claims(given, "10.244.1.7")).unwrap().contains("this node's"));
    assert!(with(&|given, _| claims(given, "198.18.0.1")).unwrap().contains("this node's"));
    for of_others in ["198.18.0.2", "198.18.9.9"] {
        assert!(with(&|given, _| claims(given, of_others)).unwrap().contains("outside-ranges"));
    }
}

#[test]
fn a_tunnel_without_a_preshared_key_is_not_made_and_never_comes_to_be() {
    let with = |given: &mut Given| {
        let session = Arc::make_mut(&mut given.sessions).get_mut("n2").unwrap();
        (session.wireguard_key, session.preshared_key) = (Some(key(7)), None);
        given.wanted().desired.peers.values().next().map(|peer| peer.preshared_key.clone().unwrap())
    };
    assert_eq!(with(&mut Given::new().with_session(100, true)), None);
    // A restarted daemon has a session and has not come to a key on it yet; the tunnel has one.
    let mut restarted = Given::new().with_tunnel_peer(1).with_session(100, true);
    assert_eq!(with(&mut restarted), Some(preshared(9)));
    let restarted = Given::new().with_tunnel_peer(1).wanted();
    assert!(restarted.desired.peers.values().all(|peer| peer.preshared_key == Some(preshared(9))));
}

#[test]
fn a_revoked_node_has_no_peer_whatever_the_tunnel_still_has() {
    let mut given = Given::new().with_tunnel_peer(1);
    given.cluster.revoked.nodes.insert("n2".to_owned());
    assert_eq!(given.keys(), BTreeSet::new());
    let steering = given.wanted().steering.unwrap();
    assert!(steering.guarded.contains(&"10.244.2.0/24".parse().unwrap()), "and nothing in the clear either");
}
