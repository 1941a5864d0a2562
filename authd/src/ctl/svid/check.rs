//! What is wrong with the certificates in a file, clause by clause.

use std::{path::Path, time::SystemTime};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;
use spire_adapter::{Bundle, Bundles, Rules, Violation, peer_svid, verify::violations};

use crate::ctl::{
    cli::{Format, SvidCheckArgs},
    error::Error,
    output::{Output, json},
    table::{count, printable},
};

/// What is printed as JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// `null` if the leaf has none that can be read.
    spiffe_id: Option<String>,
    certificates: usize,
    /// Whether a bundle was at hand.
    signatures_checked: bool,
    violations: Vec<Finding>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    name: &'static str,
    clause: &'static str,
    message: String,
    way_out: &'static str,
}

/// Prints what is wrong; the exit status is 1 if anything is.
pub(in crate::ctl) fn run(args: &SvidCheckArgs, output: &mut Output<'_>) -> Result<u8, Error> {
    let chain = certificates(&args.file)?;
    let bundles = match &args.bundle {
        Some(file) => Some(bundle(file, &chain)?),
        None => None,
    };
    let report = report(&chain, bundles.as_ref(), SystemTime::now());
    let text = match output.format {
        Format::Table => words(&report),
        Format::Json => json(&report)?,
    };
    output.text(&text)?;
    Ok(u8::from(!report.violations.is_empty()))
}

fn report(chain: &[CertificateDer<'_>], bundles: Option<&Bundles>, now: SystemTime) -> Report {
    let found = violations(chain, bundles, &Rules::default(), now);
    let finding = |violation: &Violation| Finding {
        name: violation.as_str(),
        clause: violation.clause(),
        message: violation.to_string(),
        way_out: violation.way_out(),
    };
    Report {
        spiffe_id: peer_svid(chain).ok().map(|peer| peer.spiffe_id.to_string()),
        certificates: chain.len(),
        signatures_checked: bundles.is_some(),
        violations: found.iter().map(finding).collect(),
    }
}

fn words(report: &Report) -> String {
    let whose = report.spiffe_id.as_deref().unwrap_or("no X509-SVID");
    let certificates = count(report.certificates, "certificate", "certificates");
    let mut text = format!("{}: {certificates}\n", printable(whose));
    let mut ways_out: Vec<&str> = Vec::new();
    for Finding { name, clause, message, way_out } in &report.violations {
        if !ways_out.contains(way_out) {
            ways_out.push(way_out);
        }
        text.push_str(&format!("{name} ({clause}): {}\n", printable(message)));
    }
    let number = count(report.violations.len(), "clause violated", "clauses violated");
    let unchecked = if report.signatures_checked { "" } else { "; signatures not checked: name a --bundle" };
    text.push_str(&format!("{number}{unchecked}\n"));
    text.extend(ways_out.iter().map(|way_out| format!("Way out: {way_out}\n")));
    text
}

/// The certificates of a file, PEM or DER.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unusable = |reason: String| Error::Certificates { file: file.to_owned(), reason };
    let bytes = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    let chain = if bytes.starts_with(&[0x30]) {
        vec![CertificateDer::from(bytes)]
    } else {
        CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable(format!("no PEM: {error}")))?
    };
    if chain.is_empty() {
        return Err(unusable("holds no certificate, PEM or DER".to_owned()));
    }
    Ok(chain)
}

/// A file as the bundle of the leaf's trust domain.
fn bundle(file: &Path, chain: &[CertificateDer<'_>]) -> Result<Bundles, Error> {
    let unusable = |reason: String| Error::Certificates { file: file.to_owned(), reason };
    let Ok(peer) = peer_svid(chain) else {
        return Ok(Bundles::new());
    };
    let der: Vec<u8> = certificates(file)?.iter().flat_map(|certificate| certificate.to_vec()).collect();
    let bundle = Bundle::from_der(peer.spiffe_id.trust_domain().clone(), &der);
    Ok([bundle.map_err(|error| unusable(error.to_string()))?].into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use spire_adapter::authority::CertificateAuthority;
    use spire_adapter::{SpiffeId, TrustDomain};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority() -> CertificateAuthority {
        CertificateAuthority::new(&TrustDomain::new("a.test").unwrap()).unwrap()
    }

    #[test]
    fn a_good_svid_has_nothing_wrong_and_a_late_one_has_all_its_faults_told() {
        let ca = authority();
        let id = SpiffeId::new("spiffe://a.test/identity/256").unwrap();
        let svid = ca.issue(&id, 30 * 24 * HOUR).unwrap().to_svid().unwrap();
        let bundles: Bundles = [ca.bundle().unwrap()].into_iter().collect();
        let short = ca.issue(&id, HOUR).unwrap().to_svid().unwrap();
        let good = report(short.chain(), Some(&bundles), SystemTime::now());
        assert_eq!(words(&good), "spiffe://a.test/identity/256: 1 certificate\n0 clauses violated\n");
        let others: Bundles = [authority().bundle().unwrap()].into_iter().collect();
        let late = report(svid.chain(), Some(&others), svid.not_after() + HOUR);
        assert_eq!(
            words(&late),
            "spiffe://a.test/identity/256: 1 certificate\n\
             expired (RFC 5280, 6.1.3): the leaf has expired\n\
             lifetime_too_long (authd: lifetime): the leaf is valid for 30 days, longer than accepted\n\
             untrusted (RFC 5280, 6.1): the chain ends at no trust anchor of its trust domain\n\
             3 clauses violated\n\
             Way out: its agent renews it at half of its lifetime: `authctl svid list` there says what it lacks for that\n\
             Way out: shorten the server's `default_x509_svid_ttl`, or the entry's own TTL\n\
             Way out: compare its issuer with `authctl bundle list`: an anchor that is missing there is another trust \
             domain's, was revoked, or has not come yet\n"
        );
    }

    #[test]
    fn files_are_read_as_pem_or_der_and_anything_else_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("svid");
        let ca = authority();
        std::fs::write(&file, ca.certificate()).unwrap();
        assert_eq!(certificates(&file).unwrap().len(), 1);
        for text in ["", "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            std::fs::write(&file, text).unwrap();
            let error = certificates(&file).unwrap_err().to_string();
            assert!(error.contains("svid: holds no certificate"), "{error}");
        }
        let error = certificates(Path::new("/nonexistent/svid.pem")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/svid.pem"), "{error}");
    }
}
