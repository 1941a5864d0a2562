//! The certificate matrix before `spiffe-rustls`, which verifies the same standards with the same webpki: where it
//! is of another opinion than our verifier is known by name, with the reason.
//!
//! It takes nothing but a Workload API, so it gets one that serves the matrix's own bundles.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use spiffe::X509SourceBuilder;
use spiffe_rustls::{authorizer, mtls_client, mtls_server};

use crate::proto::workload::{X509Svid, X509SvidResponse};
use crate::traps::StandIn;

#[path = "../tests/certificates/matrix.rs"]
mod matrix;
#[expect(dead_code, reason = "the peers that present a row serve here")]
#[path = "../tests/certificates/tls.rs"]
mod tls;

use matrix::{Authorities, Row};
use tls::Side;

const OURS: &str = "stricter than the standards";
const MUST: &str = "a MUST of X509-SVID that it does not check";
const ONE_ROLE: &str = "it asks for the purpose of the role alone";
const CLOCK: &str = "it makes no allowance for clocks";

/// Rows, in one role where that is said, that it accepts and we refuse, and why.
const ONLY_WE_REFUSE: &[(&str, &str)] = &[
    ("23 key usage not critical", MUST),
    ("25 EKU server only as client", ONE_ROLE),
    ("26 EKU client only as server", ONE_ROLE),
    ("36 upper case domain", OURS),
    ("41 upper case scheme", OURS),
    ("43 a name of unknown kind beside the URI", OURS),
    ("53 far future", OURS),
    ("57 Ed25519", OURS),
    ("57 P-521", OURS),
    ("59 empty subject, SAN not critical", MUST),
    ("72 no key usage", MUST),
    ("73 its ID has a path", MUST),
    ("73 its URI is no SPIFFE ID", OURS),
    ("74 of another domain", OURS),
    ("75 with two URIs", OURS),
    ("84 anchor expired", "webpki does not look at anchors' times"),
    ("85 issuer for servers as client", ONE_ROLE),
    ("85 issuer for clients as server", ONE_ROLE),
    ("91 another leaf in the chain", "not on the way to the anchor"),
    ("92 nine certificates", OURS),
    ("93 a chain of 33 kilobytes", OURS),
];

/// The other way round.
const ONLY_IT_REFUSES: &[(&str, &str)] =
    &[("51 ahead by less than the tolerance", CLOCK), ("81 ahead by less than the tolerance", CLOCK)];

#[tokio::test]
async fn spiffe_rustls_differs_only_where_it_should() {
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let (client, server) = oracle(&authorities, &rows[0]).await;
    let mut wrong = Vec::new();
    for row in &rows {
        let Ok(peer) = tls::Peer::presenting(&row.chain, &row.key) else { continue };
        // Who is expected was not said to it, and whether a peer has its key is no question of the matrix.
        if row.expected == Some("unexpected_peer") || !row.has_its_key() {
            continue;
        }
        let outcomes = [
            ("client", tls::handshake(Arc::clone(&client), peer.server(), Side::Client)),
            ("server", tls::handshake(peer.client(), Arc::clone(&server), Side::Server)),
        ];
        for (role, outcome) in outcomes {
            let name = format!("{} as {role}", row.name);
            let listed = |list: &[(&str, &str)]| list.iter().any(|(listed, _why)| name.starts_with(listed));
            let accepts = match row.expected {
                Some(_) => listed(ONLY_WE_REFUSE),
                None => !listed(ONLY_IT_REFUSES),
            };
            if outcome.is_ok() != accepts {
                let theirs = outcome.err();
                wrong.push(format!("{name}: {theirs:?}, ours {:?}", row.expected));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Configurations of both roles that present the good row and verify by the matrix's bundles.
async fn oracle(authorities: &Authorities, good: &Row) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let agent = StandIn::start();
    let der = |domain: &str| {
        let bundles = authorities.bundles();
        let bundle = bundles.iter().find(|bundle| bundle.trust_domain().as_str() == domain).unwrap();
        bundle.certificates().flat_map(|certificate| certificate.to_vec()).collect::<Vec<_>>()
    };
    agent.send_workload(X509SvidResponse {
        svids: vec![X509Svid {
            spiffe_id: "spiffe://a.test/ns/shop".to_owned(),
            x509_svid: good.chain[0].to_vec(),
            x509_svid_key: good.key.serialize_der(),
            bundle: der("a.test"),
            hint: String::new(),
        }],
        crl: Vec::new(),
        federated_bundles: [("spiffe://b.test".to_owned(), der("b.test"))].into(),
    });
    let source =
        X509SourceBuilder::new().endpoint(format!("unix:{}", agent.path.display())).build().await.unwrap();
    let alpn = || [tls::ALPN.to_vec()];
    let client = mtls_client(source.clone()).authorize(authorizer::any()).with_alpn_protocols(alpn());
    let server = mtls_server(source).authorize(authorizer::any()).with_alpn_protocols(alpn());
    (Arc::new(client.build().unwrap()), Arc::new(server.build().unwrap()))
}
