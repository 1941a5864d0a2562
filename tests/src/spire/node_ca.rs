//! The CA by whose certificates nodes prove to SPIRE which machine they are (`x509pop`).

use std::time::{Duration, SystemTime};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use spire_adapter::TrustDomain;

const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A CA for one run of the tests.
pub(super) struct NodeCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl NodeCa {
    pub(super) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params("authd test nodes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Its certificate, in PEM.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A node's certificate and key, in PEM.
    pub(super) fn issue(&self, node: &str, trust_domain: &TrustDomain) -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut params = params(node);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("x509pop://{trust_domain}/node/{node}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }
}

fn params(common_name: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + LIFETIME).into();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}
