//! The CA of the development authority: certificates shaped like SPIRE's (EC P-256, critical key usage, both
//! extended key usages, ten seconds backdated, chains of one certificate).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, string::Ia5String,
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::AuthorityError;
use crate::{Bundle, Error, SpiffeId, Svid, TrustDomain, der};

const CA_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
const BACKDATING: Duration = Duration::from_secs(10);
/// x500UniqueIdentifier, which SPIRE puts into every subject to keep them apart.
const UNIQUE_IDENTIFIER: [u64; 4] = [2, 5, 4, 45];

/// A self-signed CA of one trust domain. Its key stays in this process's memory.
pub struct CertificateAuthority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
}

impl CertificateAuthority {
    /// A new CA with a new key.
    pub fn new(trust_domain: &TrustDomain) -> Result<Self, AuthorityError> {
        let subject = trust_domain.id_string();
        let failed = |error: rcgen::Error| failed(&subject, &error);
        let key = KeyPair::generate().map_err(failed)?;
        let now = whole_seconds(SystemTime::now());
        let not_after = now + CA_LIFETIME;
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATING).into();
        params.not_after = not_after.into();
        params.distinguished_name = name("SPIFFE", Sha256::digest(key.public_key_raw()).as_slice());
        params.subject_alt_names = vec![uri(&subject)?];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?.der().clone();
        let issuer = Issuer::new(params, key);
        Ok(Self { trust_domain: trust_domain.clone(), issuer, certificate, not_after })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The bundle that consists of this CA alone.
    pub fn bundle(&self) -> Result<Bundle, Error> {
        Bundle::from_der(self.trust_domain.clone(), &self.certificate)
    }

    /// Issues an SVID with a new key. It never outlives the CA.
    pub fn issue(&self, spiffe_id: &SpiffeId, ttl: Duration) -> Result<Issued, AuthorityError> {
        let subject = spiffe_id.to_string();
        let failed = |error: rcgen::Error| failed(&subject, &error);
        let key = KeyPair::generate().map_err(failed)?;
        let now = whole_seconds(SystemTime::now());
        let not_after = (now + whole_seconds_of(ttl)).min(self.not_after);
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATING).into();
        params.not_after = not_after.into();
        params.distinguished_name = name("SPIRE", Sha256::digest(subject.as_bytes()).as_slice());
        params.subject_alt_names = vec![uri(&subject)?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyAgreement,
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Issued {
            spiffe_id: spiffe_id.clone(),
            certificate: certificate.der().clone(),
            key: Zeroizing::new(key.serialize_der()),
            not_after,
        })
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CertificateAuthority({})", self.trust_domain)
    }
}

/// A freshly issued SVID, in the form in which the APIs hand it out.
#[derive(Clone)]
pub struct Issued {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) not_after: SystemTime,
}

impl Issued {
    /// The SVID as a client would read it.
    pub fn to_svid(&self) -> Result<Svid, Error> {
        Svid::from_der(&self.certificate, &self.key)
    }

    pub(crate) fn expires_at(&self) -> i64 {
        i64::try_from(der::unix_seconds(self.not_after)).unwrap_or(i64::MAX)
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issued({})", self.spiffe_id)
    }
}

/// Certificates know no fractions of seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(der::unix_seconds(time))
}

fn whole_seconds_of(ttl: Duration) -> Duration {
    Duration::from_secs(ttl.as_secs().max(1))
}

fn name(organization: &str, unique: &[u8]) -> DistinguishedName {
    let unique: String = unique.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::CountryName, "US");
    name.push(DnType::OrganizationName, organization);
    name.push(DnType::CustomDnType(UNIQUE_IDENTIFIER.to_vec()), unique);
    name
}

fn uri(uri: &str) -> Result<SanType, AuthorityError> {
    let ascii = Ia5String::try_from(uri.to_owned()).map_err(|error| failed(uri, &error))?;
    Ok(SanType::URI(ascii))
}

fn failed(subject: &str, error: &rcgen::Error) -> AuthorityError {
    AuthorityError::Certificate { subject: subject.to_owned(), reason: error.to_string() }
}
