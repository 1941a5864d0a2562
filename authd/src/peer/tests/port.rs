//! The handshake port, fed with whatever generators come up with: bytes, damaged ClientHellos, damaged and
//! foreign certificates, and frames from whoever has a true SVID. Nothing of it leaves an entry or a session, and
//! honest nodes are served all the while. `PROPTEST_CASES` says how much of it.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use rustls::ClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use spire_adapter::Svid;
use spire_adapter::tls::Groups;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::cluster::{Cluster, TTL, key, naming, until};
use super::raw::bare_client;
use crate::auth::stats::Side;
use crate::peer::{IDENTITY_ALPN, NODE_ALPN};

/// Longer than a node waits for a connection to become something.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a node of this test waits.
const SETUP: Duration = Duration::from_millis(300);

/// What is done to bytes that were good.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Flip(at, with) => {
                let at = at.index(bytes.len());
                bytes[at] ^= with;
            }
            Self::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Self::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
        }
    }
}

/// A certificate of a chain that is shown.
#[derive(Clone, Debug)]
enum Shown {
    /// The own one, a victim's, or the authority's.
    True(u8),
    Damaged(u8, Vec<Damage>),
    Bytes(Vec<u8>),
}

#[derive(Clone, Debug)]
enum Attempt {
    Bytes(Vec<u8>),
    /// A ClientHello that was good, and what is said behind it.
    Hello {
        node: bool,
        damage: Vec<Damage>,
        behind: Vec<u8>,
    },
    /// A handshake to its end, with a key that is one's own.
    Chain {
        node: bool,
        chain: Vec<Shown>,
    },
    /// A handshake with a true SVID, then frames of any kind.
    Frames {
        node: bool,
        frames: Vec<Vec<u8>>,
        behind: Vec<u8>,
    },
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let damage = prop_oneof![
        4 => (any::<Index>(), 1..=255_u8).prop_map(|(at, with)| Damage::Flip(at, with)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), bytes(40)).prop_map(|(at, more)| Damage::Insert(at, more)),
    ];
    prop::collection::vec(damage, 1..4)
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let shown = prop_oneof![
        2 => (0..3_u8).prop_map(Shown::True),
        4 => (0..3_u8, damages()).prop_map(|(which, damage)| Shown::Damaged(which, damage)),
        1 => bytes(300).prop_map(Shown::Bytes),
    ];
    prop_oneof![
        bytes(600).prop_map(Attempt::Bytes),
        (any::<bool>(), damages(), bytes(100)).prop_map(|(node, damage, behind)| Attempt::Hello {
            node,
            damage,
            behind
        }),
        (any::<bool>(), prop::collection::vec(shown, 0..5))
            .prop_map(|(node, chain)| Attempt::Chain { node, chain }),
        (any::<bool>(), prop::collection::vec(bytes(200), 0..4), bytes(50))
            .prop_map(|(node, frames, behind)| Attempt::Frames { node, frames, behind }),
    ]
}

/// What an attacker has: SVIDs of an identity and of a node that is not there, and what everybody can see.
struct Attacker {
    identity: Svid,
    node: Svid,
    victim: Svid,
    authority: CertificateDer<'static>,
}

impl Attacker {
    const fn own(&self, node: bool) -> &Svid {
        if node { &self.node } else { &self.identity }
    }

    fn shown(&self, node: bool, shown: &Shown) -> CertificateDer<'static> {
        let true_one = |which| match which {
            0 => self.own(node).chain()[0].clone(),
            1 => self.victim.chain()[0].clone(),
            _ => self.authority.clone(),
        };
        match shown {
            Shown::True(which) => true_one(*which),
            Shown::Damaged(which, damage) => {
                let mut bytes = true_one(*which).to_vec();
                damage.iter().for_each(|damage| damage.apply(&mut bytes));
                bytes.into()
            }
            Shown::Bytes(bytes) => bytes.clone().into(),
        }
    }

    fn client(&self, node: bool, chain: Vec<CertificateDer<'static>>) -> rustls::ClientConfig {
        let mut config = bare_client(Groups::PostQuantum);
        config.alpn_protocols = vec![if node { NODE_ALPN } else { IDENTITY_ALPN }.to_vec()];
        let certified = rustls::sign::CertifiedKey::new(chain, self.own(node).signing_key());
        config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        config
    }
}

fn server_name() -> ServerName<'static> {
    naming().server_name(300).unwrap()
}

/// Says it, and hears the other end out. Whatever comes of it is for the cluster to show.
async fn make(attempt: &Attempt, attacker: &Attacker, mut stream: TcpStream) {
    let own = |node| attacker.own(node).chain().to_vec();
    match attempt {
        Attempt::Bytes(bytes) => drop(stream.write_all(bytes).await),
        Attempt::Hello { node, damage, behind } => {
            let config = Arc::new(attacker.client(*node, own(*node)));
            let mut hello = Vec::new();
            ClientConnection::new(config, server_name()).unwrap().write_tls(&mut hello).unwrap();
            damage.iter().for_each(|damage| damage.apply(&mut hello));
            hello.extend(behind);
            drop(stream.write_all(&hello).await);
        }
        Attempt::Chain { node, chain } => {
            let chain = chain.iter().map(|shown| attacker.shown(*node, shown)).collect();
            let config = Arc::new(attacker.client(*node, chain));
            if let Ok(mut tls) = TlsConnector::from(config).connect(server_name(), stream).await {
                drop(tls.read(&mut [0; 1000]).await);
            }
            return;
        }
        Attempt::Frames { node, frames, behind } => {
            let config = Arc::new(attacker.client(*node, own(*node)));
            let Ok(mut tls) = TlsConnector::from(config).connect(server_name(), stream).await else { return };
            for frame in frames {
                let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
                drop(tls.write_all(&[&length, frame.as_slice()].concat()).await);
            }
            drop(tls.write_all(behind).await);
            drop(tls.shutdown().await);
            drop(tls.read_to_end(&mut Vec::new()).await);
            return;
        }
    }
    drop(stream.shutdown().await);
    drop(stream.read_to_end(&mut Vec::new()).await);
}

/// The third node is the attacker's: its SVID is true, but it is not there.
async fn cluster() -> Cluster {
    let mut cluster = Cluster::start_with(&[&[256], &[300], &[257]], TTL, |options| {
        if options.node == "n2" {
            options.setup_timeout = SETUP;
        }
    })
    .await;
    cluster.stop("n3").await;
    until("sessions", || cluster.node("n1").session("n2").is_some_and(|session| session.live)).await;
    cluster
}

#[test]
fn whatever_comes_leaves_nothing_and_keeps_nobody_waiting() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cluster = runtime.block_on(cluster());
    let id = |identity| cluster.naming.numbered(identity).unwrap();
    let attacker = Attacker {
        identity: cluster.svid(&id(257)),
        node: cluster.svid(&cluster.naming.node("n3").unwrap()),
        victim: cluster.svid(&id(256)),
        authority: cluster.ca.bundle().unwrap().certificates().next().unwrap().clone(),
    };
    let n2 = cluster.node("n2");
    let mut runner = TestRunner::default();
    let outcome = runner.run(&attempt(), |attempt| {
        runtime.block_on(async {
            let stream = TcpStream::connect(n2.address).await.unwrap();
            let made = tokio::time::timeout(PATIENCE, make(&attempt, &attacker, stream)).await;
            prop_assert!(made.is_ok(), "the connection is kept");
            prop_assert_eq!(n2.entries(), 0);
            let of_nobody = n2.session("n3").is_some_and(|session| session.live);
            prop_assert!(!of_nobody, "a session with a node that said nothing");
            prop_assert!(n2.session("n1").is_some_and(|session| session.live));
            Ok(())
        })
    });
    outcome.unwrap();
    // Each got as far as it was meant to.
    for (side, reason) in [
        (Side::Stranger, "tls"),
        (Side::Server, "certificate"),
        (Side::Server, "wire"),
        (Side::SessionServer, "certificate"),
        (Side::SessionServer, "wire"),
    ] {
        assert!(n2.stats.count(side, reason) > 0, "no {reason} of {side:?}");
    }
    runtime.block_on(async {
        assert!(cluster.node("n1").auth.ask(key(256, 300, 2)));
        until("entry", || n2.entry(key(300, 256, 1)).is_some()).await;
    });
}
