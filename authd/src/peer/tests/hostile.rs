//! A node that has its own SVID and session, and says over it what it likes.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use spire_adapter::Svid;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::attacks::say_hello;
use super::cluster::{Cluster, until};
use crate::peer::authenticator::{self, Authenticators, Hash};
use crate::peer::binding::SessionKey;
use crate::peer::role::Role;
use crate::peer::wire::{
    self, Announcement, MAX_FRAME, PairAnswer, PairRequest, ProofAnswer, ProofRequest, Reader, SessionFrame,
    SessionMessage,
};

/// `n1`, whose daemon has been stopped, as the client of a session with another node.
pub(super) struct Hostile {
    write: WriteHalf<TlsStream<TcpStream>>,
    read: Reader<ReadHalf<TlsStream<TcpStream>>>,
    authenticators: Arc<Authenticators>,
}

pub(super) fn hello(identities: &[u32]) -> Announcement {
    Announcement {
        version: wire::VERSION,
        node: "n1".to_owned(),
        wireguard_key: Vec::new(),
        wireguard_port: 51871,
        epoch: 1,
        identities: identities.to_vec(),
        handshake_port: 4250,
    }
}

impl Hostile {
    /// Takes the place of `n1` at that node.
    pub(super) async fn join(cluster: &Cluster, at: &str, hello: Announcement) -> Self {
        let node = cluster.node(at);
        let before = node.session("n1").map(|session| session.since);
        let svid = cluster.svid(&cluster.naming.node("n1").unwrap());
        let tls = say_hello(cluster, at, &svid, hello).await;
        let (_, connection) = tls.get_ref();
        let export = |output: &mut [u8], label: &[u8]| {
            connection.export_keying_material(output, label, None).map(|_| ())
        };
        let key = SessionKey::new(Hash::of(connection).unwrap(), export).unwrap();
        until("joined", || {
            node.session("n1").is_some_and(|session| session.live && Some(session.since) != before)
        })
        .await;
        let (read, write) = tokio::io::split(tls);
        Self { write, read: Reader::new(read, MAX_FRAME), authenticators: key.authenticators }
    }

    pub(super) async fn try_say(&mut self, message: SessionMessage) -> Result<(), wire::WireError> {
        wire::write(&mut self.write, &SessionFrame { message: Some(message) }, MAX_FRAME).await
    }

    pub(super) async fn say(&mut self, message: SessionMessage) {
        self.try_say(message).await.unwrap();
    }

    /// The next message of the exchange of proofs; `None` if none comes for a while.
    pub(super) async fn heard(&mut self, within: Duration) -> Option<SessionMessage> {
        let next = async {
            loop {
                let frame: SessionFrame = self.read.next().await.ok()?;
                if frame.is_of_proofs() {
                    return frame.message;
                }
            }
        };
        tokio::time::timeout(within, next).await.ok().flatten()
    }

    pub(super) async fn hear(&mut self) -> SessionMessage {
        self.heard(Duration::from_secs(10)).await.expect("a message about proofs")
    }

    pub(super) async fn asked(&mut self) -> ProofRequest {
        let SessionMessage::ProofRequest(asked) = self.hear().await else { panic!("no request for a proof") };
        asked
    }

    pub(super) async fn proof(&mut self) -> ProofAnswer {
        let SessionMessage::ProofAnswer(answer) = self.hear().await else { panic!("no proof") };
        answer
    }

    pub(super) async fn pair(&mut self) -> PairAnswer {
        let SessionMessage::PairAnswer(answer) = self.hear().await else { panic!("no answer about a pair") };
        answer
    }

    /// Asks for the proof of an identity at the other end.
    pub(super) async fn ask(&mut self, identity: u32, context: &[u8]) {
        let request = authenticator::request(Role::Server, context).unwrap();
        self.say(SessionMessage::ProofRequest(ProofRequest { identity, request })).await;
    }

    /// The leaf of an identity at the other end, which it proves.
    pub(super) async fn leaf_of(&mut self, identity: u32) -> Vec<u8> {
        let context = context(identity, 77);
        self.ask(identity, &context).await;
        let answer = self.proof().await;
        let request = authenticator::request(Role::Server, &context).unwrap();
        let chain = self.authenticators.verify(Role::Server, &request, &answer.authenticator).unwrap();
        spire_adapter::peer_svid(&chain).unwrap().leaf_hash.to_vec()
    }

    /// An authenticator of this session, made with the key of `svid` whatever chain is shown.
    pub(super) fn authenticator(&self, request: &[u8], chain: &[CertificateDer<'_>], svid: &Svid) -> Vec<u8> {
        self.authenticators.prove(Role::Client, request, chain, &*svid.signing_key()).unwrap()
    }

    /// Answers a request with this.
    pub(super) async fn answer(&mut self, asked: &ProofRequest, authenticator: Vec<u8>) {
        let context = authenticator::context_of(Role::Client, &asked.request).unwrap().to_vec();
        let answer = ProofAnswer { context, authenticator, refused: String::new() };
        self.say(SessionMessage::ProofAnswer(answer)).await;
    }

    /// Waits for a request for a proof, and proves that it has the key of `svid`.
    pub(super) async fn prove_when_asked(&mut self, svid: &Svid) {
        let asked = self.asked().await;
        self.prove(&asked, svid).await;
    }

    /// Answers a request as an honest node does.
    pub(super) async fn prove(&mut self, asked: &ProofRequest, svid: &Svid) {
        let authenticator = self.authenticator(&asked.request, svid.chain(), svid);
        self.answer(asked, authenticator).await;
    }

    /// Asks for a pair, with these leaves.
    pub(super) async fn request(&mut self, from: u32, to: u32, from_leaf: &[u8], to_leaf: &[u8]) {
        let (from_leaf, to_leaf) = (from_leaf.to_vec(), to_leaf.to_vec());
        self.say(SessionMessage::PairRequest(PairRequest { number: 7, from, to, from_leaf, to_leaf })).await;
    }
}

pub(super) fn context(identity: u32, random: u8) -> Vec<u8> {
    [identity.to_be_bytes().to_vec(), vec![random; 32]].concat()
}
