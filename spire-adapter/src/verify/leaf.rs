//! The clauses of the X509-SVID standard that concern the leaf, and the stricter ones of [`Rules`].

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, KeyUsage};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::{KeyType, Rules, Violation};
use crate::{SpiffeId, der};

/// SPIFFE-ID, 2.3.
const MAX_SPIFFE_ID: usize = 2048;
/// SPIRE backdates NotBefore by 10 s; the lifetime cap must not refuse an SVID of exactly that length.
const BACKDATING: Duration = Duration::from_secs(60);

/// What a leaf says, once it has passed the standard's clauses.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    key_type: Option<KeyType>,
}

/// Reads a leaf and checks every clause that needs neither a clock nor a bundle.
pub(crate) fn read(certificate: &CertificateDer<'_>) -> Result<Leaf, Violation> {
    Leaf::of(&parse(certificate)?)
}

/// Every violation of the clauses on the leaf's extensions, the first to be told first.
pub(crate) fn form(parsed: &X509Certificate<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    violations.extend(check_basic_constraints(parsed).err());
    violations.extend(key_usage(parsed));
    violations.extend(check_extended_key_usage(parsed).err());
    violations.extend(check_subject(parsed).err());
    violations
}

/// Every violation of what the rules ask beyond the standard, and of the leaf's times.
pub(crate) fn rule_violations(
    parsed: &X509Certificate<'_>,
    rules: &Rules,
    now: SystemTime,
) -> Vec<Violation> {
    let validity = parsed.validity();
    let (not_before, not_after) =
        (der::system_time(validity.not_before), der::system_time(validity.not_after));
    judge(key_type(parsed), not_before, not_after, rules, now)
}

impl Leaf {
    /// The same as [`read`], of what has been parsed.
    pub(crate) fn of(parsed: &X509Certificate<'_>) -> Result<Self, Violation> {
        let spiffe_id = spiffe_id(parsed)?;
        if let Some(violation) = form(parsed).into_iter().next() {
            return Err(violation);
        }
        let validity = parsed.validity();
        Ok(Self {
            spiffe_id,
            not_before: der::system_time(validity.not_before),
            not_after: der::system_time(validity.not_after),
            key_type: key_type(parsed),
        })
    }

    /// Checks what the rules ask beyond the standard, and the leaf's times.
    pub(crate) fn check_rules(&self, rules: &Rules, now: SystemTime) -> Result<(), Violation> {
        let violations = judge(self.key_type, self.not_before, self.not_after, rules, now);
        violations.into_iter().next().map_or(Ok(()), Err)
    }
}

fn judge(
    key_type: Option<KeyType>,
    not_before: SystemTime,
    not_after: SystemTime,
    rules: &Rules,
    now: SystemTime,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    if !key_type.is_some_and(|key_type| rules.key_types.contains(&key_type)) {
        violations.push(Violation::KeyTypeNotAllowed);
    }
    if now > not_after {
        violations.push(Violation::Expired);
    }
    if not_before > now.checked_add(rules.not_before_tolerance).unwrap_or(now) {
        violations.push(Violation::NotYetValid);
    }
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    if lifetime > rules.max_lifetime.saturating_add(BACKDATING) {
        violations.push(Violation::LifetimeTooLong { days: lifetime.as_secs() / 86_400 });
    }
    violations
}

/// Parses one certificate; trailing bytes and repeated extensions are refused.
pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Violation> {
    let Ok((rest, parsed)) = X509Certificate::from_der(certificate.as_ref()) else {
        return Err(Violation::Malformed { reason: "not DER of a certificate" });
    };
    if !rest.is_empty() {
        return Err(Violation::Malformed { reason: "bytes after the certificate" });
    }
    if repeats(&parsed) {
        return Err(Violation::DuplicateExtension);
    }
    Ok(parsed)
}

/// Whether an extension stands there twice, in a time that many of them can't make long.
fn repeats(parsed: &X509Certificate<'_>) -> bool {
    let mut kinds: Vec<&[u8]> =
        parsed.extensions().iter().map(|extension| extension.oid.as_bytes()).collect();
    kinds.sort_unstable();
    !kinds.is_sorted_by(|one, next| one < next)
}

/// Every URI in the subject alternative name.
pub(crate) fn uri_sans<'a>(parsed: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, Violation> {
    let Ok(extension) = parsed.subject_alternative_name() else {
        return Err(Violation::Malformed { reason: "subject alternative name" });
    };
    let mut uris = Vec::new();
    for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
        // A name that one parser skips and another reads could hide a second URI.
        if let GeneralName::Invalid(..) = name {
            return Err(Violation::Malformed { reason: "subject alternative name" });
        }
        if let GeneralName::URI(uri) = name {
            uris.push(*uri);
        }
    }
    Ok(uris)
}

/// The one SPIFFE ID of a leaf.
pub(crate) fn spiffe_id(parsed: &X509Certificate<'_>) -> Result<SpiffeId, Violation> {
    let uris = uri_sans(parsed)?;
    let uri = match uris.as_slice() {
        [] => return Err(Violation::NoUriSan),
        [uri] => *uri,
        [..] => return Err(Violation::SeveralUriSans),
    };
    if uri.len() > MAX_SPIFFE_ID {
        return Err(Violation::SpiffeIdTooLong);
    }
    let Ok(spiffe_id) = SpiffeId::new(uri) else {
        return Err(Violation::SpiffeIdInvalid);
    };
    if spiffe_id.to_string() != uri {
        return Err(Violation::SpiffeIdNotCanonical);
    }
    if spiffe_id.path().is_empty() {
        return Err(Violation::SpiffeIdWithoutPath);
    }
    Ok(spiffe_id)
}

fn check_basic_constraints(parsed: &X509Certificate<'_>) -> Result<(), Violation> {
    match parsed.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => Err(Violation::LeafIsCa),
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Violation::BasicConstraintsMissing),
        Err(_) => Err(Violation::Malformed { reason: "basic constraints" }),
    }
}

fn key_usage(parsed: &X509Certificate<'_>) -> Vec<Violation> {
    let extension = match parsed.key_usage() {
        Err(_) => return vec![Violation::Malformed { reason: "key usage" }],
        Ok(None) => return vec![Violation::KeyUsageMissing],
        Ok(Some(extension)) => extension,
    };
    let usage: &KeyUsage = extension.value;
    [
        (usage.key_cert_sign(), Violation::LeafWithCertSign),
        (usage.crl_sign(), Violation::LeafWithCrlSign),
        (!usage.digital_signature(), Violation::DigitalSignatureMissing),
        (!extension.critical, Violation::KeyUsageNotCritical),
    ]
    .into_iter()
    .filter_map(|(violated, violation)| violated.then_some(violation))
    .collect()
}

fn check_extended_key_usage(parsed: &X509Certificate<'_>) -> Result<(), Violation> {
    match parsed.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.server_auth && usage.value.client_auth => Ok(()),
        Ok(Some(_)) => Err(Violation::ExtendedKeyUsageIncomplete),
        Err(_) => Err(Violation::Malformed { reason: "extended key usage" }),
    }
}

fn check_subject(parsed: &X509Certificate<'_>) -> Result<(), Violation> {
    let critical = matches!(parsed.subject_alternative_name(), Ok(Some(extension)) if extension.critical);
    if parsed.subject().iter_rdn().next().is_none() && !critical {
        return Err(Violation::SanNotCritical);
    }
    Ok(())
}

fn key_type(parsed: &X509Certificate<'_>) -> Option<KeyType> {
    let public_key = parsed.public_key();
    let algorithm = &public_key.algorithm;
    if algorithm.algorithm == OID_SIG_ED25519 {
        return Some(KeyType::Ed25519);
    }
    if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm.parameters.as_ref()?.as_oid().ok()?;
        return match curve {
            curve if curve == OID_EC_P256 => Some(KeyType::EcP256),
            curve if curve == OID_NIST_EC_P384 => Some(KeyType::EcP384),
            _ => None,
        };
    }
    if algorithm.algorithm == OID_PKCS1_RSAENCRYPTION
        && let Ok(PublicKey::RSA(key)) = public_key.parsed()
    {
        return (2048..=8192).contains(&key.key_size()).then_some(KeyType::Rsa);
    }
    None
}
