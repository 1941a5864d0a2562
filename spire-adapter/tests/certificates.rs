//! The certificate matrix against the verifier: directly, as TLS server and as TLS client. And what the TLS
//! configurations promise beside it: TLS 1.3, X25519MLKEM768, client certificates, no resumption.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod certificates {
    pub(crate) mod matrix;
    pub(crate) mod tls;
}

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use certificates::matrix::{Authorities, DAY, Row};
use certificates::tls::{self, Side};
use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
use spire_adapter::authority::CertificateAuthority;
use spire_adapter::tls::{Cipher, Options, client_config, server_config};
use spire_adapter::verify::{KeyType, verify_chain_with, violations};
use spire_adapter::{
    Bundles, ExpectedPeer, Groups, Rules, SpiffeId, Svid, TrustDomain, Violation, peer_svid, verify_chain,
};

/// Anybody of the leaf's own trust domain whose path begins as the good rows' do.
fn expected(row: &Row) -> ExpectedPeer {
    let trust_domain = peer_svid(&row.chain)
        .map_or_else(|_unreadable| domain("a.test"), |peer| peer.spiffe_id.trust_domain().clone());
    ExpectedPeer::PathPrefix(trust_domain, "/ns".to_owned())
}

#[test]
fn matrix_directly() {
    let authorities = Authorities::new();
    let bundles = authorities.bundles();
    let rows = authorities.rows();
    assert!(rows.len() >= 110, "{}", rows.len());
    let mut wrong = Vec::new();
    // Each twice: who has been met before is judged as anybody else.
    for row in rows.iter().chain(&rows) {
        let result = verify_chain(&row.chain, &bundles, &expected(row), SystemTime::now());
        let reason = result.as_ref().err().map(Violation::as_str);
        if reason != row.expected {
            wrong.push(format!("{}: {reason:?} instead of {:?}", row.name, row.expected));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_violated_clause_is_explained() {
    let authorities = Authorities::new();
    let bundles = authorities.bundles();
    for row in authorities.rows() {
        let found = violations(&row.chain, Some(&bundles), &Rules::default(), SystemTime::now());
        // Who is expected is no property of the chain.
        let expected = row.expected.filter(|reason| *reason != "unexpected_peer");
        let names: Vec<_> = found.iter().map(Violation::as_str).collect();
        assert_eq!(names.is_empty(), expected.is_none(), "{}: {names:?}", row.name);
        assert!(expected.is_none_or(|reason| names.contains(&reason)), "{}: {names:?}", row.name);
        assert!(found.iter().all(|violation| !violation.clause().is_empty()));
    }
}

#[test]
fn matrix_in_both_roles_of_tls() {
    let authorities = Authorities::new();
    let bundles = authorities.bundles();
    let ours = svid_of_a();
    let mut wrong = Vec::new();
    for row in authorities.rows() {
        let Ok(peer) = tls::Peer::presenting(&row.chain, &row.key) else {
            continue;
        };
        // A configuration for a domain without bundle is refused before any handshake.
        if row.expected == Some("unknown_trust_domain") {
            let refused = tls::our_client(&ours, &bundles, expected(&row));
            assert!(refused.unwrap_err().to_string().contains("no trust bundle"), "{}", row.name);
            continue;
        }
        let client = tls::our_client(&ours, &bundles, expected(&row)).unwrap();
        let server = tls::our_server(&ours, &bundles, expected(&row)).unwrap();
        let outcomes = [
            tls::handshake(client, peer.server(), Side::Client),
            tls::handshake(peer.client(), server, Side::Server),
        ];
        for (side, outcome) in ["client", "server"].into_iter().zip(outcomes) {
            let reason = outcome.err().map(|error| tls::reason(&error));
            if reason.as_deref() != row.expected {
                wrong.push(format!("{} as {side}: {reason:?} instead of {:?}", row.name, row.expected));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn bundles_are_never_pooled() {
    let a = CertificateAuthority::new(&domain("a.test")).unwrap();
    let svid = a.issue(&id("spiffe://a.test/x"), DAY).unwrap().to_svid().unwrap();
    let expected = ExpectedPeer::Exact(id("spiffe://a.test/x"));
    // The very CA that signed it, but as another domain's anchor.
    let der = a.certificate().to_vec();
    let misfiled: Bundles =
        [spire_adapter::Bundle::from_der(domain("b.test"), &der).unwrap()].into_iter().collect();
    let refused = verify_chain(svid.chain(), &misfiled, &expected, SystemTime::now()).unwrap_err();
    assert_eq!(refused, Violation::UnknownTrustDomain { trust_domain: domain("a.test") });
    let refused = verify_chain(svid.chain(), &Bundles::new(), &expected, SystemTime::now());
    assert!(refused.is_err());
}

#[test]
fn an_anchor_of_another_domain_vouches_for_nobody() {
    let a = CertificateAuthority::new(&domain("a.test")).unwrap();
    let b = CertificateAuthority::new(&domain("b.test")).unwrap();
    // b's CA, whose own SPIFFE ID says b.test, filed under a.test beside a's.
    let der = [a.certificate().to_vec(), b.certificate().to_vec()].concat();
    let bundles: Bundles =
        [spire_adapter::Bundle::from_der(domain("a.test"), &der).unwrap()].into_iter().collect();
    let forged = b.issue(&id("spiffe://a.test/x"), DAY).unwrap().to_svid().unwrap();
    let expected = ExpectedPeer::Exact(id("spiffe://a.test/x"));
    let refused = verify_chain(forged.chain(), &bundles, &expected, SystemTime::now()).unwrap_err();
    assert_eq!(refused, Violation::IssuerOfOtherTrustDomain);
}

#[test]
fn rules_can_be_set() {
    let authorities = Authorities::new();
    let bundles = authorities.bundles();
    let rows = authorities.rows();
    let row = |name: &str| rows.iter().find(|row| row.name.starts_with(name)).unwrap();
    let check = |row: &Row, rules: &Rules| {
        verify_chain_with(&row.chain, &bundles, &expected(row), SystemTime::now(), rules)
            .map(|_| ())
            .map_err(|violation| violation.as_str())
    };
    let lenient = Rules {
        max_lifetime: 30 * DAY,
        not_before_tolerance: Duration::from_secs(7200),
        key_types: vec![KeyType::Ed25519, KeyType::EcP256],
    };
    assert_eq!(check(row("53 far"), &lenient), Ok(()));
    assert_eq!(check(row("51 not yet"), &lenient), Ok(()));
    assert_eq!(check(row("57 Ed25519"), &lenient), Ok(()));
    assert_eq!(check(row("57 P-384"), &lenient), Err("key_type_not_allowed"));
    let strict = Rules { max_lifetime: Duration::from_secs(1800), ..Rules::default() };
    assert_eq!(check(row("00 good"), &strict), Err("lifetime_too_long"));
}

#[test]
fn time_is_judged_at_the_given_moment() {
    let a = CertificateAuthority::new(&domain("a.test")).unwrap();
    let svid = a.issue(&id("spiffe://a.test/x"), DAY).unwrap().to_svid().unwrap();
    let bundles: Bundles = [a.bundle().unwrap()].into_iter().collect();
    let expected = ExpectedPeer::Exact(id("spiffe://a.test/x"));
    let at = |moment| verify_chain(svid.chain(), &bundles, &expected, moment).map(|_| ());
    assert_eq!(at(svid.not_after()), Ok(()));
    assert_eq!(at(svid.not_after() + Duration::from_secs(1)), Err(Violation::Expired));
    assert_eq!(at(svid.not_before() - Duration::from_secs(60)), Ok(()));
    assert_eq!(at(svid.not_before() - Duration::from_secs(61)), Err(Violation::NotYetValid));
}

/// What may change from one meeting to the next: each of it is judged anew.
#[test]
fn a_chain_that_has_been_met_is_refused_for_all_that_has_changed() {
    let authorities = Authorities::new();
    let bundles = authorities.bundles();
    let rows = authorities.rows();
    let hours = |hours: u32| SystemTime::now() + hours * DAY / 24;
    let check = |row: &Row, bundles: &Bundles, expected: &ExpectedPeer, now, rules: &Rules| {
        let peer = verify_chain_with(&row.chain, bundles, expected, now, rules);
        peer.map(|_| ()).map_err(|violation| violation.as_str())
    };
    let (now, rules) = (SystemTime::now(), Rules::default());
    let without_anchor: Bundles = bundles.iter().skip(1).cloned().collect();
    let of_others = Authorities::new().bundles();
    let short = Rules { max_lifetime: Duration::from_secs(1), ..rules.clone() };
    let keyless = Rules { key_types: Vec::new(), ..rules.clone() };
    let somebody = ExpectedPeer::Exact(id("spiffe://a.test/ns/somebody"));
    for row in rows.iter().filter(|row| row.expected.is_none()) {
        let expected = expected(row);
        assert_eq!(check(row, &bundles, &expected, now, &rules), Ok(()), "{}", row.name);
        let again = |bundles, expected, now, rules| check(row, bundles, expected, now, rules).is_ok();
        assert!(again(&bundles, &expected, now, &rules), "{}", row.name);
        assert!(!again(&of_others, &expected, now, &rules), "{}: another bundle", row.name);
        let of_a = expected.trust_domain().as_str() == "a.test";
        assert!(!(of_a && again(&without_anchor, &expected, now, &rules)), "{}: no bundle", row.name);
        assert!(!again(&bundles, &somebody, now, &rules), "{}: another peer", row.name);
        assert!(!again(&bundles, &expected, hours(24 * 400), &rules), "{}: later", row.name);
        assert!(!again(&bundles, &expected, now - DAY, &rules), "{}: before its time", row.name);
        assert!(!again(&bundles, &expected, now, &short), "{}: stricter rules", row.name);
        assert!(!again(&bundles, &expected, now, &keyless), "{}: another kind of key", row.name);
        assert!(again(&bundles, &expected, now, &rules), "{}: as before", row.name);
    }
    let in_three_quarters = |name: &str| {
        let row = rows.iter().find(|row| row.name == name).unwrap();
        check(row, &bundles, &expected(row), now + DAY / 32, &rules)
    };
    assert_eq!(in_three_quarters("70 intermediate"), Ok(()));
    assert_eq!(in_three_quarters("81 ends before the leaf"), Err("issuer_expired"));
    assert_eq!(in_three_quarters("84 anchor ends before the leaf"), Err("anchor_expired"));
}

/// Every byte of a certificate that has been met counts, its signature's too.
#[test]
fn a_chain_that_differs_in_a_byte_from_one_that_has_been_met_is_verified_for_itself() {
    let (ca, bundles) = ca();
    let svid = issue(&ca, "/one");
    let verify =
        |leaf: &[u8]| verify_chain(&[CertificateDer::from(leaf)], &bundles, &exact(&svid), SystemTime::now());
    let leaf = svid.chain()[0].to_vec();
    verify(&leaf).unwrap();
    for at in 0..leaf.len() {
        let mut other = leaf.clone();
        other[at] ^= 1;
        assert!(verify(&other).is_err(), "byte {at}");
    }
    verify(&leaf).unwrap();
}

#[test]
fn expected_peers_match_whole_segments() {
    let prefix = |path: &str| ExpectedPeer::PathPrefix(domain("a.test"), path.to_owned());
    for path in ["/authd/node/", "/authd/node"] {
        assert!(prefix(path).matches(&id("spiffe://a.test/authd/node/n1")));
        assert!(!prefix(path).matches(&id("spiffe://a.test/authd/nodes")));
        assert!(!prefix(path).matches(&id("spiffe://a.test/authd/node")));
        assert!(!prefix(path).matches(&id("spiffe://b.test/authd/node/n1")));
    }
    let exact = ExpectedPeer::Exact(id("spiffe://a.test/x"));
    assert!(exact.matches(&id("spiffe://a.test/x")));
    assert!(!exact.matches(&id("spiffe://a.test/x/y")));
}

#[test]
fn every_reason_is_distinct() {
    let authorities = Authorities::new();
    let reasons: std::collections::BTreeSet<_> =
        authorities.rows().iter().filter_map(|row| row.expected).collect();
    assert!(reasons.len() >= 28, "{reasons:?}");
}

#[test]
fn chains_of_garbage_are_malformed() {
    let authorities = Authorities::new();
    let bundles = authorities.bundles();
    let good = authorities.rows().remove(0);
    let expected = expected(&good);
    let verify = |chain: &[CertificateDer<'_>]| {
        verify_chain(chain, &bundles, &expected, SystemTime::now()).unwrap_err().as_str()
    };
    assert_eq!(verify(&[]), "no_certificate");
    assert_eq!(verify(&[CertificateDer::from(vec![])]), "malformed");
    assert_eq!(verify(&[CertificateDer::from(vec![0x30, 0x82])]), "malformed");
    let mut trailing = good.chain[0].to_vec();
    trailing.push(0);
    assert_eq!(verify(&[CertificateDer::from(trailing)]), "malformed");
    assert_eq!(verify(&[good.chain[0].clone(), CertificateDer::from(vec![1, 2, 3])]), "malformed");
    assert_eq!(verify(&[CertificateDer::from(vec![0; 40_000])]), "chain_too_large");
}

#[test]
fn peers_meet_with_post_quantum_key_exchange_and_without_resumption() {
    let (ca, bundles) = ca();
    let (one, other) = (issue(&ca, "/one"), issue(&ca, "/other"));
    let client = tls::our_client(&one, &bundles, exact(&other)).unwrap();
    let server = tls::our_server(&other, &bundles, exact(&one)).unwrap();
    for _ in 0..2 {
        let met = tls::handshake(Arc::clone(&client), Arc::clone(&server), Side::Both).unwrap();
        assert_eq!(met.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = met.client.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
        assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(met.server.alpn_protocol(), Some(tls::ALPN));
        assert_eq!(met.client.tls13_tickets_received(), 0);
        let seen = peer_svid(met.server.peer_certificates().unwrap()).unwrap();
        assert_eq!(seen.spiffe_id, *one.spiffe_id());
        assert_eq!(seen.leaf_hash, one.leaf_hash());
        assert_eq!(seen.not_after, one.not_after());
        let seen = peer_svid(met.client.peer_certificates().unwrap()).unwrap();
        assert_eq!(seen.spiffe_id, *other.spiffe_id());
    }
}

#[test]
fn the_dialling_side_says_which_cipher_suite_is_preferred() {
    let (ca, bundles) = ca();
    let (one, other) = (issue(&ca, "/one"), issue(&ca, "/other"));
    let (proof, secret) = (Options { cipher: Cipher::Aes128, ..Options::default() }, Options::default());
    let met = |dialling: &Options, accepting: &Options| {
        let client = client_config(&one, &bundles, exact(&other), tls::ALPN, dialling).unwrap();
        let server = server_config(&other, &bundles, exact(&one), tls::ALPN, accepting).unwrap();
        tls::handshake(client, server, Side::Both).unwrap().server.negotiated_cipher_suite().unwrap().suite()
    };
    for accepting in [&proof, &secret] {
        assert_eq!(met(&proof, accepting), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(met(&secret, accepting), CipherSuite::TLS13_AES_256_GCM_SHA384);
    }
}

#[test]
fn classical_key_exchange_is_refused_unless_allowed() {
    let (ca, bundles) = ca();
    let (one, other) = (issue(&ca, "/one"), issue(&ca, "/other"));
    let classical = tls::classical_client(&one);
    let strict = tls::our_server(&other, &bundles, exact(&one)).unwrap();
    assert!(tls::handshake(Arc::clone(&classical), strict, Side::Server).is_err());
    let any = Options::from(Groups::Any);
    let lenient = server_config(&other, &bundles, exact(&one), tls::ALPN, &any).unwrap();
    tls::handshake(classical, lenient, Side::Both).unwrap();
}

#[test]
fn a_client_without_certificate_is_refused() {
    let (ca, bundles) = ca();
    let (one, other) = (issue(&ca, "/one"), issue(&ca, "/other"));
    let server = tls::our_server(&other, &bundles, exact(&one)).unwrap();
    let error = tls::handshake(tls::anonymous_client(), server, Side::Server).unwrap_err();
    assert!(matches!(error, rustls::Error::NoCertificatesPresented), "{error}");
}

#[test]
fn a_valid_certificate_without_its_key_is_refused() {
    let (ca, bundles) = ca();
    let (one, other) = (issue(&ca, "/one"), issue(&ca, "/other"));
    let thief = tls::Peer::stolen(one.chain(), &rcgen::KeyPair::generate().unwrap());
    let server = tls::our_server(&other, &bundles, exact(&one)).unwrap();
    let error = tls::handshake(thief.client(), server, Side::Server).unwrap_err();
    assert_eq!(error, rustls::CertificateError::BadSignature.into());
    let client = tls::our_client(&other, &bundles, exact(&one)).unwrap();
    let error = tls::handshake(client, thief.server(), Side::Client).unwrap_err();
    assert_eq!(error, rustls::CertificateError::BadSignature.into());
}

#[tokio::test]
async fn over_a_stream_the_client_hello_says_which_svid_to_present() {
    use tokio_rustls::{LazyConfigAcceptor, TlsConnector};
    let (ca, bundles) = ca();
    let (one, other) = (issue(&ca, "/one"), issue(&ca, "/other"));
    let (client_end, server_end) = tokio::io::duplex(16 * 1024);
    let server = tls::our_server(&other, &bundles, exact(&one)).unwrap();
    let accepted = tokio::spawn(async move {
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), server_end).await.unwrap();
        assert_eq!(hello.client_hello().server_name(), Some("256.a.test"));
        assert_eq!(hello.client_hello().alpn().unwrap().collect::<Vec<_>>(), [tls::ALPN]);
        hello.into_stream(server).await.unwrap()
    });
    let client = tls::our_client(&one, &bundles, exact(&other)).unwrap();
    let name = "256.a.test".try_into().unwrap();
    let stream = TlsConnector::from(client).connect(name, client_end).await.unwrap();
    let accepted = accepted.await.unwrap();
    let export = |connection: &rustls::ConnectionCommon<_>| {
        connection.export_keying_material([0_u8; 32], b"EXPORTER-test", None).unwrap()
    };
    assert_eq!(
        stream.get_ref().1.export_keying_material([0_u8; 32], b"EXPORTER-test", None).unwrap(),
        export(accepted.get_ref().1)
    );
}

#[tokio::test]
async fn the_violation_is_found_in_the_stream_error() {
    use tokio_rustls::{TlsAcceptor, TlsConnector};
    let (ca, bundles) = ca();
    let (one, other) = (issue(&ca, "/one"), issue(&ca, "/other"));
    let (client_end, server_end) = tokio::io::duplex(16 * 1024);
    let server = tls::our_server(&other, &bundles, exact(&one)).unwrap();
    let accept = tokio::spawn(async move { TlsAcceptor::from(server).accept(server_end).await.map(|_| ()) });
    let wanted = ExpectedPeer::Exact(id("spiffe://a.test/somebody-else"));
    let client = tls::our_client(&one, &bundles, wanted).unwrap();
    let error = TlsConnector::from(client).connect("x.a.test".try_into().unwrap(), client_end).await;
    let error = error.unwrap_err();
    let violation = spire_adapter::tls::violation_of_io(&error).unwrap();
    assert_eq!(violation.as_str(), "unexpected_peer");
    assert!(violation.to_string().contains("spiffe://a.test/other"));
    assert!(accept.await.unwrap().is_err());
}

#[test]
fn svids_are_read_with_care() {
    let (ca, _) = ca();
    let issued = |path: &str| issue(&ca, path);
    let svid = issued("/one");
    assert_eq!(svid, svid.clone());
    assert_ne!(svid, issued("/one"));
    let authorities = Authorities::new();
    for row in authorities.rows() {
        let result = Svid::from_chain(row.chain.clone(), row.key.serialized_der());
        let only_webpki_notices = ["60 unknown critical extension", "64 two signature algorithms"];
        let leaf_is_fine = peer_svid(&row.chain).is_ok() && !only_webpki_notices.contains(&row.name);
        assert_eq!(result.is_ok(), leaf_is_fine && row.has_its_key(), "{}: {result:?}", row.name);
    }
    let good = authorities.rows().remove(0);
    let chain = good.chain.iter().flat_map(|der| der.to_vec()).collect::<Vec<_>>();
    let fails = |chain: &[u8], key: &[u8]| Svid::from_der(chain, key).unwrap_err().to_string();
    let other = rcgen::KeyPair::generate().unwrap();
    assert!(fails(&chain, other.serialized_der()).contains("does not belong to the leaf"));
    assert!(fails(&chain, b"").contains("private key cannot be used"));
    assert!(fails(&chain, &chain).contains("private key cannot be used"));
    assert!(fails(b"", good.key.serialized_der()).contains("no certificate"));
    assert!(fails(&chain[1..], good.key.serialized_der()).contains("not valid DER"));
    assert!(fails(&chain.repeat(17), good.key.serialized_der()).contains("more than 16 certificates"));
    assert!(fails(&[0; 100_000], good.key.serialized_der()).contains("more than the limit"));
    assert!(format!("{svid:?}").starts_with("Svid { spiffe_id: \"spiffe://a.test/one\""));
}

fn ca() -> (CertificateAuthority, Bundles) {
    let ca = CertificateAuthority::new(&domain("a.test")).unwrap();
    let bundles = [ca.bundle().unwrap()].into_iter().collect();
    (ca, bundles)
}

fn svid_of_a() -> Svid {
    issue(&CertificateAuthority::new(&domain("a.test")).unwrap(), "/us")
}

fn issue(ca: &CertificateAuthority, path: &str) -> Svid {
    ca.issue(&id(&format!("spiffe://a.test{path}")), DAY).unwrap().to_svid().unwrap()
}

fn exact(svid: &Svid) -> ExpectedPeer {
    ExpectedPeer::Exact(svid.spiffe_id().clone())
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn id(id: &str) -> SpiffeId {
    SpiffeId::new(id).unwrap()
}
