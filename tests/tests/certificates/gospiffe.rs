//! go-spiffe as peer of our TLS endpoints, and its own verdict on the same certificates.

use std::net::TcpListener;

use authd_tests::gospiffe::GoSpiffe;
use authd_tests::skip;
use serde_json::{Value, json};
use spire_adapter::Groups;

use crate::endpoint::{self, Endpoint, LABEL, reason};
use crate::matrix::{Authorities, Row};
use crate::verdicts::Differences;

const MUST: &str = "a MUST of X509-SVID that it does not check";
const OURS: &str = "stricter than the standards";
const CLOCK: &str = "it makes no allowance for clocks";

const GO_SPIFFE: Differences = Differences {
    unknown_to_them: &[
        ("spiffe_id_without_path", MUST),
        ("digital_signature_missing", MUST),
        ("key_usage_missing", MUST),
        ("key_usage_not_critical", MUST),
        ("extended_key_usage_incomplete", MUST),
        ("issuer_extended_key_usage", MUST),
        ("issuer_spiffe_id_with_path", MUST),
        ("san_not_critical", MUST),
        ("basic_constraints_missing", OURS),
        ("issuer_of_other_trust_domain", OURS),
        ("issuer_spiffe_id_invalid", OURS),
        ("key_type_not_allowed", OURS),
        ("lifetime_too_long", OURS),
        ("spiffe_id_not_canonical", OURS),
        ("spiffe_id_too_long", OURS),
        ("too_many_certificates", OURS),
        ("chain_too_large", OURS),
        ("unexpected_peer", "nobody told it whom to expect"),
    ],
    refused_all_the_same: &[
        ("04 a CA as leaf", "for cA"),
        ("36 upper case domain", "it refuses capitals in a domain, though not in the scheme"),
        ("57 secp256k1", "Go does not know the curve"),
    ],
    only_we_refuse: &[
        ("43 a name of unknown kind beside the URI", "Go skips what it does not know"),
        ("72 no key usage", MUST),
        ("76 URI constraint, satisfied: not supported", "webpki supports no URI constraints"),
        ("91 another leaf in the chain", "not on the way to the anchor"),
    ],
    only_they_refuse: &[
        ("51 ahead by less than the tolerance", CLOCK),
        ("81 ahead by less than the tolerance", CLOCK),
    ],
};

/// What every request about a row says.
fn request(what: &str, row: &Row, endpoint: &Endpoint) -> Value {
    let mut request = GoSpiffe::request(what, &row.chain, &endpoint.bundles);
    request["Key"] = json!(GoSpiffe::base64(row.key.serialized_der()));
    request["Protocol"] = json!("test/1");
    request["Label"] = json!(LABEL);
    request
}

#[test]
fn go_spiffe_presents_every_certificate_in_both_roles() {
    if !skip::go_spiffe_available("go_spiffe_presents_every_certificate_in_both_roles") {
        return;
    }
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let endpoint = Endpoint::new(&authorities, &rows);
    let mut peer = GoSpiffe::start().unwrap();
    let theirs = peer.ask(&json!({"Do": "listen"})).unwrap()["Address"].as_str().unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = listener.local_addr().unwrap().to_string();
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for row in &rows {
        // As it comes: post-quantum key exchange alone.
        let groups = Groups::default();
        let (Some(as_server), Some(as_client)) = (endpoint.server(row, groups), endpoint.client(row, groups))
        else {
            assert_eq!(row.expected, Some("unknown_trust_domain"));
            continue;
        };
        let mut dial = request("dial", row, &endpoint);
        dial["Address"] = json!(ours);
        peer.send(&dial).unwrap();
        let accepted = endpoint::accept(&listener, as_server, || false).unwrap();
        let dialler = peer.receive().unwrap();
        peer.send(&request("accept", row, &endpoint)).unwrap();
        let dialled = endpoint::dial(&theirs, as_client);
        let acceptor = peer.receive().unwrap();
        for (role, met, answer) in [("server", accepted, dialler), ("client", dialled, acceptor)] {
            tried += 1;
            let found = met.as_ref().err().map(reason);
            if found.as_deref() != row.expected {
                wrong.push(format!(
                    "{} as {role}: {found:?} instead of {:?}; {answer}",
                    row.name, row.expected
                ));
            } else if let Ok(met) = met {
                assert_eq!(answer["Error"], "", "{}", row.name);
                assert_eq!(met.group, "X25519MLKEM768");
                assert_eq!(answer["Group"], "X25519MLKEM768");
                assert_eq!(answer["Exporter"], met.exporter);
                assert_eq!(answer["ID"], "spiffe://a.test/ns/shop", "ours");
                assert_eq!((&answer["Version"], &answer["Resumed"]), (&json!("TLS 1.3"), &json!(false)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(tried > 200, "{tried}");
}

#[test]
fn go_spiffe_refuses_us_where_it_has_no_bundle_for_us() {
    if !skip::go_spiffe_available("go_spiffe_refuses_us_where_it_has_no_bundle_for_us") {
        return;
    }
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let endpoint = Endpoint::new(&authorities, &rows);
    let mut peer = GoSpiffe::start().unwrap();
    let address = peer.ask(&json!({"Do": "listen"})).unwrap()["Address"].as_str().unwrap().to_owned();
    let mut request = request("accept", &rows[0], &endpoint);
    request["Bundles"].as_object_mut().unwrap().remove("a.test");
    peer.send(&request).unwrap();
    let refused =
        endpoint::dial(&address, endpoint.client(&rows[0], Groups::default()).unwrap()).unwrap_err();
    assert!(refused.to_string().contains("BadCertificate"), "{refused}");
    let answer = peer.receive().unwrap();
    assert!(answer["Error"].as_str().unwrap().contains("no X.509 bundle for trust domain"), "{answer}");
}

#[test]
fn go_spiffe_differs_only_where_it_should() {
    if !skip::go_spiffe_available("go_spiffe_differs_only_where_it_should") {
        return;
    }
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let endpoint = Endpoint::new(&authorities, &rows);
    let mut peer = GoSpiffe::start().unwrap();
    let mut verdict = |row| {
        let answer = peer.ask(&request("verify", row, &endpoint)).unwrap();
        match answer["Error"].as_str().unwrap() {
            "" => Ok(()),
            error => Err(error.to_owned()),
        }
    };
    let verdicts: Vec<_> = rows.iter().map(|row| (row, verdict(row))).collect();
    GO_SPIFFE.check(&verdicts);
}
