//! `authctl svid check` on every certificate of the matrix.

use std::path::Path;
use std::process::{Command, Output};

use authd_tests::binaries;
use serde_json::Value;
use spire_adapter::{Bundle, Bundles};

use crate::matrix::Authorities;
use crate::openssl::write_pem;

fn check(file: &Path, bundle: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(binaries::path("authctl").unwrap());
    command.args(["svid", "check"]).arg(file).arg("--bundle").arg(bundle).args(more);
    command.output().unwrap()
}

#[test]
fn authctl_explains_each_violated_clause() {
    let authorities = Authorities::new();
    let directory = tempfile::tempdir().unwrap();
    let bundles = write_bundles(&authorities.bundles(), directory.path());
    let mut wrong = Vec::new();
    for (number, row) in authorities.rows().iter().enumerate() {
        let file = directory.path().join(format!("{number}.pem"));
        write_pem(&file, row.chain.iter());
        let of_b = spire_adapter::peer_svid(&row.chain)
            .is_ok_and(|peer| peer.spiffe_id.trust_domain_name() == "b.test");
        let bundle = &bundles[usize::from(of_b)];
        let output = check(&file, bundle, &["--output", "json"]);
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}: {}", row.name, String::from_utf8_lossy(&output.stderr)));
        let expected = match row.expected {
            // Who is expected is no property of a certificate.
            Some("unexpected_peer") => None,
            // The named bundle counts as that of the leaf's trust domain, which its anchors don't claim to be.
            Some("unknown_trust_domain") => Some("issuer_of_other_trust_domain"),
            expected => expected,
        };
        let found = report["violations"].as_array().unwrap();
        let told = |name: &str| found.iter().any(|violation| violation["name"] == name);
        let explained =
            |key: &str| found.iter().all(|violation| !violation[key].as_str().unwrap().is_empty());
        if !expected.map_or(found.is_empty(), told)
            || output.status.code() != Some(i32::from(expected.is_some()))
            || !explained("clause")
            || !explained("message")
            || !explained("wayOut")
        {
            wrong.push(format!("{}: {report} instead of {expected:?}, {}", row.name, output.status));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_authctl_says_reads_like_this() {
    let authorities = Authorities::new();
    let rows = authorities.rows();
    let directory = tempfile::tempdir().unwrap();
    let bundles = write_bundles(&authorities.bundles(), directory.path());
    let file = directory.path().join("svid.pem");
    for (name, words) in [
        ("00 good", "spiffe://a.test/ns/shop: 1 certificate\n0 clauses violated\n"),
        (
            "04 a CA as leaf",
            "no X509-SVID: 1 certificate\n\
             spiffe_id_without_path (X509-SVID, 5.2): the leaf's SPIFFE ID has no path\n\
             leaf_is_ca (X509-SVID, 4.1): the leaf is a CA certificate\n\
             leaf_with_cert_sign (X509-SVID, 4.3): the leaf's key usage has keyCertSign\n\
             leaf_with_crl_sign (X509-SVID, 4.3): the leaf's key usage has cRLSign\n\
             digital_signature_missing (X509-SVID, 4.3): the leaf's key usage lacks digitalSignature\n\
             5 clauses violated\n\
             Way out: SPIRE issues no such leaf: find out who has issued it, and register the workload with SPIRE\n",
        ),
        (
            "73 its ID has a path",
            "spiffe://a.test/ns/shop: 2 certificates\n\
             issuer_spiffe_id_with_path (X509-SVID, 3.2): an issuer's SPIFFE ID has a path\n\
             1 clause violated\n\
             Way out: have the server's upstream authority issue the CA as the clause says\n",
        ),
    ] {
        write_pem(&file, rows.iter().find(|row| row.name == name).unwrap().chain.iter());
        let output = check(&file, &bundles[0], &[]);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), words, "{name}");
    }
}

/// Those of `a.test` and `b.test`, in this order.
fn write_bundles(bundles: &Bundles, directory: &Path) -> Vec<std::path::PathBuf> {
    let write = |bundle: &Bundle| {
        let path = directory.join(format!("{}.bundle.pem", bundle.trust_domain()));
        write_pem(&path, bundle.certificates());
        path
    };
    bundles.iter().map(write).collect()
}
