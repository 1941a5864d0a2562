//! Against an implementation that shares nothing with ours, not even TLS: `tests/peers/gospiffe/authenticator.go`
//! was written from the RFC's text, on Go's `crypto/tls` and its exporters. Over real connections of both kinds each
//! believes the other, and nothing else.

#[path = "../../../../../spire-adapter/tests/certificates/matrix.rs"]
#[expect(dead_code, reason = "the certificate tests use the rest")]
mod matrix;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::time::SystemTime;

use authd_tests::gospiffe::GoSpiffe;
use authd_tests::{skip, wait};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConfig, ServerConnection};
use serde_json::{Value, json};
use spire_adapter::tls::{Options, SIGNATURE_SCHEMES, client_config, server_config};
use spire_adapter::{Bundles, ExpectedPeer, verify_chain};

use self::matrix::{Authorities, Row};
use super::*;

const PROTOCOL: &str = "test/1";
const PATIENCE: Duration = Duration::from_secs(20);
const ID: &str = "spiffe://a.test/ns/shop";

/// Rows of the matrix, and by what their keys sign.
const CASES: [(&str, SignatureScheme); 7] = [
    ("00 good", SignatureScheme::ECDSA_NISTP256_SHA256),
    ("70 intermediate", SignatureScheme::ECDSA_NISTP256_SHA256),
    ("56 below a CA with an RSA key", SignatureScheme::ECDSA_NISTP256_SHA256),
    ("57 P-384", SignatureScheme::ECDSA_NISTP384_SHA384),
    ("56 RSA of 2048 bits", SignatureScheme::RSA_PSS_SHA256),
    ("56 RSA of 2048 bits", SignatureScheme::RSA_PSS_SHA384),
    ("56 RSA of 2048 bits", SignatureScheme::RSA_PSS_SHA512),
];

/// Go, the certificates of both of us, and how many contexts have been used.
struct Peer {
    go: GoSpiffe,
    bundles: Bundles,
    rows: Vec<Row>,
    contexts: u8,
}

/// A connection with Go.
struct Met {
    /// As Go has numbered it.
    number: Value,
    /// Which end is ours.
    own: Role,
    hash: Hash,
    connection: Connection,
    ours: Authenticators,
}

impl Met {
    /// What this connection exports.
    fn exporter(&self) -> impl Fn(&mut [u8], &[u8]) -> Result<(), rustls::Error> {
        |output, label| self.connection.export_keying_material(output, label, None).map(|_| ())
    }

    /// Makes whatever it is told to, as our end or as Go's.
    fn naive(&self, sender: Role) -> Naive<'_> {
        let label = LABELS.into_iter().find(|(role, _)| *role == sender).unwrap().1;
        naive(self.hash, self.exporter(), label)
    }

    fn verify(&self, asked: &[u8], answer: &[u8]) -> Result<Vec<CertificateDer<'static>>, Invalid> {
        self.ours.verify(self.own.other(), asked, answer)
    }
}

impl Peer {
    /// `None` where Go is not.
    fn start(test: &str) -> Option<Self> {
        if !skip::go_spiffe_available(test) {
            return None;
        }
        let authorities = Authorities::new();
        let (bundles, rows) = (authorities.bundles(), authorities.rows());
        Some(Self { go: GoSpiffe::start().unwrap(), bundles, rows, contexts: 0 })
    }

    fn row(&self, name: &str) -> &Row {
        self.rows.iter().find(|row| row.name == name).expect(name)
    }

    fn svid(&self, name: &str) -> Svid {
        let row = self.row(name);
        Svid::from_chain(row.chain.clone(), row.key.serialized_der()).unwrap()
    }

    /// One that no request has had.
    fn context(&mut self) -> [u8; 36] {
        self.contexts += 1;
        [self.contexts; 36]
    }

    /// Has Go present, or prove, this certificate.
    fn request(&self, what: &str, row: &Row) -> Value {
        let mut request = GoSpiffe::request(what, &row.chain, &self.bundles);
        request["Key"] = json!(GoSpiffe::base64(row.key.serialized_der()));
        request["Protocol"] = json!(PROTOCOL);
        request
    }

    fn answer(&mut self, request: &Value) -> Result<Value, String> {
        let answer = self.go.ask(request).unwrap();
        match answer["Error"].as_str().unwrap() {
            "" => Ok(answer),
            error => Err(error.to_owned()),
        }
    }

    /// A connection on loopback as nodes make it, but that Go likes AES-128 more than AES-256: where it is the server,
    /// the hash is SHA-256.
    fn meet(&mut self, own: Role) -> Met {
        let svid = self.svid("00 good");
        let expected = || ExpectedPeer::Exact(ID.parse().unwrap());
        let (protocol, options) = (PROTOCOL.as_bytes(), Options::default());
        let (mut connection, mut stream): (Connection, _) = match own {
            Role::Client => {
                let listening = self.answer(&json!({"Do": "listen"})).unwrap();
                self.go.send(&self.request("accept", self.row("00 good"))).unwrap();
                let config = client_config(&svid, &self.bundles, expected(), protocol, &options).unwrap();
                let name = ServerName::try_from("256.a.test").unwrap();
                let stream = TcpStream::connect(listening["Address"].as_str().unwrap()).unwrap();
                (ClientConnection::new(config, name).unwrap().into(), stream)
            }
            Role::Server => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                listener.set_nonblocking(true).unwrap();
                let mut dial = self.request("dial", self.row("00 good"));
                dial["Address"] = json!(listener.local_addr().unwrap());
                self.go.send(&dial).unwrap();
                let (stream, _) = wait::until(PATIENCE, || listener.accept().ok()).expect("Go dials").0;
                stream.set_nonblocking(false).unwrap();
                let config = server_config(&svid, &self.bundles, expected(), protocol, &options).unwrap();
                let mut config = ServerConfig::clone(&config);
                config.ignore_client_order = true;
                (ServerConnection::new(config.into()).unwrap().into(), stream)
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // It waits for a byte.
        connection.writer().write_all(b"x").unwrap();
        while connection.is_handshaking() || connection.wants_write() {
            connection.complete_io(&mut stream).unwrap();
        }
        let answer = self.go.receive().unwrap();
        assert_eq!((&answer["Error"], &answer["Version"]), (&json!(""), &json!("TLS 1.3")));
        let hash = Hash::of(&connection).unwrap();
        let export = |output: &mut [u8], label: &[u8]| {
            connection.export_keying_material(output, label, None).map(|_| ())
        };
        let ours = Authenticators::new(hash, export).unwrap();
        Met { number: answer["Connection"].clone(), own, hash, connection, ours }
    }

    /// Go's request for an authenticator of ours.
    fn ask(&mut self, met: &Met, context: &[u8], schemes: &[SignatureScheme]) -> Vec<u8> {
        let schemes: Vec<_> = schemes.iter().map(|scheme| u16::from(*scheme)).collect();
        let context = GoSpiffe::base64(context);
        let request = json!({"Do": "ask", "Connection": met.number, "Context": context, "Schemes": schemes});
        GoSpiffe::bytes(&self.answer(&request).unwrap()["Message"]).unwrap()
    }

    /// Go's authenticator of the certificate in `request`.
    fn prove(&mut self, met: &Met, asked: &[u8], mut request: Value, lies: Value) -> Vec<u8> {
        request["Connection"] = met.number.clone();
        request["Request"] = json!(GoSpiffe::base64(asked));
        request["Lies"] = lies;
        GoSpiffe::bytes(&self.answer(&request).unwrap()["Message"]).unwrap()
    }

    /// Whose authenticator of ours Go takes it for, and by which scheme.
    fn judge(&mut self, met: &Met, asked: &[u8], authenticator: &[u8]) -> Result<(Value, Value), String> {
        let mut request = GoSpiffe::request::<&[u8]>("judge", &[], &self.bundles);
        request["Connection"] = met.number.clone();
        request["Request"] = json!(GoSpiffe::base64(asked));
        request["Authenticator"] = json!(GoSpiffe::base64(authenticator));
        self.answer(&request).map(|answer| (answer["ID"].clone(), answer["Scheme"].clone()))
    }
}

/// Each with one byte changed, of the request or of the answer.
fn changed(asked: &[u8], answer: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let variants = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let flip = |at| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 1_u8 << (at % 8);
            bytes
        };
        (0..bytes.len()).map(flip).collect()
    };
    let requests = variants(asked).into_iter().map(|asked| (asked, answer.to_vec()));
    requests.chain(variants(answer).into_iter().map(|answer| (asked.to_vec(), answer))).collect()
}

#[test]
fn go_and_we_believe_each_other() {
    let Some(mut peer) = Peer::start("go_and_we_believe_each_other") else { return };
    assert!(SIGNATURE_SCHEMES.iter().all(|scheme| CASES.iter().any(|(_, tried)| tried == scheme)));
    for (own, hash) in [(Role::Client, Hash::Sha256), (Role::Server, Hash::Sha384)] {
        let met = peer.meet(own);
        assert_eq!(met.hash, hash);
        for (name, scheme) in CASES {
            let case = format!("{name}, {scheme:?}, {own:?}");
            let svid = peer.svid(name);
            let asked = request(own.other(), &peer.context()).unwrap();
            let proving = peer.request("prove", peer.row(name));
            let theirs = peer.prove(&met, &asked, proving, json!({"Scheme": u16::from(scheme)}));
            let chain = met.verify(&asked, &theirs).expect(&case);
            assert_eq!(chain, svid.chain(), "{case}");
            let expected = ExpectedPeer::Exact(ID.parse().unwrap());
            verify_chain(&chain, &peer.bundles, &expected, SystemTime::now()).expect(&case);
            let context = peer.context();
            // Of schemes that we don't know, one comes first.
            let asked = peer.ask(&met, &context, &[SignatureScheme::ED25519, scheme]);
            assert_eq!(context_of(own, &asked), Ok(&context[..]), "{case}");
            let ours = prove(&met.ours, own, &asked, &svid);
            let judged = peer.judge(&met, &asked, &ours).expect(&case);
            assert_eq!(judged, (json!(ID), json!(u16::from(scheme))), "{case}");
        }
    }
}

#[test]
fn neither_believes_what_has_been_changed_or_moved() {
    let Some(mut peer) = Peer::start("neither_believes_what_has_been_changed_or_moved") else { return };
    let svid = peer.svid("00 good");
    for own in [Role::Client, Role::Server] {
        let (met, elsewhere) = (peer.meet(own), peer.meet(own));
        let asked = request(own.other(), &peer.context()).unwrap();
        let proving = peer.request("prove", peer.row("00 good"));
        let theirs = peer.prove(&met, &asked, proving, json!({}));
        for (at, (asked, theirs)) in changed(&asked, &theirs).into_iter().enumerate() {
            assert!(met.verify(&asked, &theirs).is_err(), "{at}");
        }
        let other = request(own.other(), &peer.context()).unwrap();
        assert_eq!(met.verify(&other, &theirs), Err(Invalid::Finished));
        assert_eq!(elsewhere.verify(&asked, &theirs), Err(Invalid::Finished));
        assert_eq!(met.verify(&asked, &theirs).unwrap(), svid.chain());

        let context = peer.context();
        let asked = peer.ask(&met, &context, &SIGNATURE_SCHEMES);
        let ours = prove(&met.ours, own, &asked, &svid);
        let mut reasons = BTreeSet::new();
        for (at, (asked, ours)) in changed(&asked, &ours).into_iter().enumerate() {
            reasons.insert(peer.judge(&met, &asked, &ours).expect_err(&at.to_string()));
        }
        for reason in ["a wrong signature", "a wrong Finished", "the context of another request"] {
            assert!(reasons.contains(reason), "{reason}: {reasons:?}");
        }
        let context = peer.context();
        let other = peer.ask(&met, &context, &SIGNATURE_SCHEMES);
        let refused = |judged: Result<_, String>| judged.unwrap_err();
        assert_eq!(refused(peer.judge(&met, &other, &ours)), "the context of another request");
        assert_eq!(refused(peer.judge(&elsewhere, &asked, &ours)), "a wrong signature");
        peer.judge(&met, &asked, &ours).unwrap();
        assert_eq!(refused(peer.judge(&met, &asked, &ours)), "this context has been answered");
    }
}

/// Signature and MAC are right: these are the lies of those who have both keys.
#[test]
fn neither_believes_what_the_rfc_forbids() {
    let Some(mut peer) = Peer::start("neither_believes_what_the_rfc_forbids") else { return };
    let own = Role::Client;
    let met = peer.meet(own);
    let (svid, other) = (peer.svid("00 good"), peer.svid("02 no EKU"));

    let good = peer.request("prove", peer.row("00 good"));
    let ed25519 = peer.request("prove", peer.row("57 Ed25519"));
    let mut stolen = good.clone();
    stolen["Key"] = json!(GoSpiffe::base64(peer.row("02 no EKU").key.serialized_der()));
    let mut declined = good.clone();
    declined["Do"] = json!("decline");
    let context = GoSpiffe::base64(&[0; 36]);
    let extension = GoSpiffe::base64(&[0, 5, 0, 0]);
    let scheme = u16::from(SignatureScheme::ED25519);
    for (proving, lies, reason) in [
        (&good, json!({"Context": context}), Invalid::Context),
        (&good, json!({"Extensions": extension}), Invalid::Malformed),
        (&good, json!({"Role": true}), Invalid::Finished),
        (&ed25519, json!({"Scheme": scheme}), Invalid::Scheme),
        (&stolen, json!({}), Invalid::Signature),
        (&declined, json!({}), Invalid::Malformed),
    ] {
        let asked = request(own.other(), &peer.context()).unwrap();
        let theirs = peer.prove(&met, &asked, proving.clone(), lies.clone());
        assert_eq!(met.verify(&asked, &theirs), Err(reason), "{lies}");
    }

    let context = peer.context();
    let asked = peer.ask(&met, &context, &SIGNATURE_SCHEMES);
    let naive = met.naive(own);
    let certificate = Naive::certificate(&context, svid.chain());
    let empty = naive.finished(&asked, &Naive::certificate(&context, &[]), &[]);
    for (ours, reason) in [
        (naive.prove(&asked, &[0; 36], svid.chain(), &svid), "the context of another request"),
        (
            naive.prove_certificate(&asked, &Naive::extended(&certificate), &svid),
            "extension 5, which was not asked for",
        ),
        (met.naive(own.other()).prove(&asked, &context, svid.chain(), &svid), "a wrong signature"),
        (naive.prove(&asked, &context, svid.chain(), &other), "a wrong signature"),
        (empty, "the peer proves nothing"),
    ] {
        assert_eq!(peer.judge(&met, &asked, &ours), Err(reason.to_owned()));
    }
    peer.judge(&met, &asked, &naive.prove(&asked, &context, svid.chain(), &svid)).unwrap();

    let context = peer.context();
    let asked = peer.ask(&met, &context, &[SignatureScheme::ECDSA_NISTP384_SHA384]);
    let unable = met.ours.prove(own, &asked, svid.chain(), &*svid.signing_key());
    assert_eq!(unable, Err(Invalid::Scheme));
    let ours = naive.prove(&asked, &context, svid.chain(), &svid);
    assert_eq!(
        peer.judge(&met, &asked, &ours),
        Err("ECDSAWithP256AndSHA256, which was not asked for".to_owned())
    );
}
