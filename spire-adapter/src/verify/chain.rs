//! Path building by webpki, with what it leaves out: expiry and SPIFFE ID of anchors, junk in the chain, and a
//! tolerance for clocks that run ahead.

use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, Der, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::X509Certificate;

use super::{Rules, Violation, issuer, leaf, met};
use crate::bundle::Authority;
use crate::{Bundle, der, tls};

/// Real chains have one to three certificates.
const MAX_CERTIFICATES: usize = 8;
const MAX_BYTES: usize = 32 * 1024;

/// Refuses a chain that is too long before anything in it is parsed.
pub(crate) fn check_size(chain: &[CertificateDer<'_>]) -> Result<(), Violation> {
    if chain.len() > MAX_CERTIFICATES {
        return Err(Violation::TooManyCertificates { limit: MAX_CERTIFICATES });
    }
    if chain.iter().map(|certificate| certificate.len()).sum::<usize>() > MAX_BYTES {
        return Err(Violation::ChainTooLarge { limit: MAX_BYTES });
    }
    Ok(())
}

/// Verifies the way from `first`, which is `leaf` when parsed, to an anchor of `bundle`. If it has been found
/// before, all that could make a difference now is time.
pub(crate) fn verify(
    first: &CertificateDer<'_>,
    leaf: &X509Certificate<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &Bundle,
    now: SystemTime,
    rules: &Rules,
) -> Result<(), Violation> {
    let mut top_issuer = leaf.issuer().as_raw().to_vec();
    let mut latest_start = der::system_time(leaf.validity().not_before);
    let mut earliest_end = der::system_time(leaf.validity().not_after);
    for (position, certificate) in intermediates.iter().enumerate() {
        let parsed = leaf::parse(certificate)?;
        issuer::check(&parsed, position.saturating_add(1), bundle.trust_domain())?;
        latest_start = latest_start.max(der::system_time(parsed.validity().not_before));
        earliest_end = earliest_end.min(der::system_time(parsed.validity().not_after));
        if parsed.subject().as_raw() == top_issuer {
            top_issuer = parsed.issuer().as_raw().to_vec();
        }
    }
    let time = tolerant_time(now, latest_start, rules.not_before_tolerance);
    let chain = met::chain(first, intermediates);
    if latest_start <= time && bundle.met().until(&chain).is_some_and(|until| time <= until) {
        return Ok(());
    }
    let (usable, unusable): (Vec<_>, Vec<_>) = bundle
        .authorities()
        .iter()
        .partition(|authority| authority.violation.is_none() && now <= authority.not_after);
    let anchor_end = build_path(first, intermediates, &usable, time)
        .map_err(|violation| explain(violation, &unusable, &top_issuer))?;
    bundle.met().keep(chain, earliest_end.min(anchor_end));
    Ok(())
}

/// The time to verify at: now, or the start of a certificate that begins within the tolerance.
fn tolerant_time(now: SystemTime, latest_start: SystemTime, tolerance: Duration) -> SystemTime {
    let ahead = latest_start.duration_since(now).unwrap_or_default();
    if ahead <= tolerance { now.max(latest_start) } else { now }
}

/// When the anchor ends to which the chain leads.
fn build_path(
    first: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usable: &[&Authority],
    time: SystemTime,
) -> Result<SystemTime, Violation> {
    let leaf = EndEntityCert::try_from(first).map_err(violation)?;
    let algorithms = tls::signature_algorithms().all;
    let anchors: Vec<TrustAnchor<'_>> = usable.iter().map(|authority| borrowed(&authority.anchor)).collect();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(der::unix_seconds(time)));
    // The leaf has both purposes or none, so that one of them serves for both roles.
    let path = leaf
        .verify_for_usage(algorithms, &anchors, intermediates, time, KeyUsage::server_auth(), None, None)
        .map_err(violation)?;
    // The same key under the same name may stand in the bundle twice.
    let same = usable.iter().filter(|authority| authority.anchor == *path.anchor());
    Ok(same.map(|authority| authority.not_after).min().unwrap_or(SystemTime::UNIX_EPOCH))
}

/// The same anchor without a copy of it.
fn borrowed<'a>(anchor: &'a TrustAnchor<'static>) -> TrustAnchor<'a> {
    TrustAnchor {
        subject: Der::from_slice(&anchor.subject),
        subject_public_key_info: Der::from_slice(&anchor.subject_public_key_info),
        name_constraints: anchor.name_constraints.as_deref().map(Der::from_slice),
    }
}

/// Says so if the chain would have ended at an anchor that may not be used.
fn explain(violation: Violation, unusable: &[&Authority], top_issuer: &[u8]) -> Violation {
    if violation != Violation::Untrusted {
        return violation;
    }
    match unusable.iter().find(|authority| authority.subject == top_issuer) {
        Some(authority) => authority.violation.clone().unwrap_or(Violation::AnchorExpired),
        None => violation,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "webpki's errors are many and most cannot occur here")]
#[expect(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn violation(error: webpki::Error) -> Violation {
    use webpki::Error as E;
    match error {
        E::BadDer | E::BadDerTime | E::TrailingData(_) | E::MalformedExtensions => {
            Violation::Malformed { reason: "not DER of a certificate" }
        }
        E::CertExpired { .. } | E::CertNotValidYet { .. } | E::InvalidCertValidity => {
            Violation::IssuerExpired
        }
        E::UnknownIssuer => Violation::Untrusted,
        E::InvalidSignatureForPublicKey => Violation::BadSignature,
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::SignatureAlgorithmMismatch => Violation::SignatureAlgorithm,
        E::PathLenConstraintViolated | E::MaximumPathDepthExceeded => Violation::PathLength,
        E::NameConstraintViolation | E::MalformedNameConstraint => Violation::NameConstraint,
        E::UnsupportedCriticalExtension => Violation::UnknownCriticalExtension,
        E::RequiredEkuNotFoundContext(_) => Violation::IssuerExtendedKeyUsage,
        _ => Violation::Path,
    }
}
