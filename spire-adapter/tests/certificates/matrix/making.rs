//! Certificate authorities and leaves in the making: good ones, until they are edited.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;

use super::{Row, der};

pub(crate) struct Ca {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Ca {
    pub(super) fn root(name: &str, id: &str, edit: impl Fn(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name, id);
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub(super) fn intermediate(&self, id: &str, edit: impl Fn(&mut CertificateParams)) -> Self {
        self.named_intermediate("intermediate", id, edit)
    }

    pub(super) fn named_intermediate(
        &self,
        name: &str,
        id: &str,
        edit: impl Fn(&mut CertificateParams),
    ) -> Self {
        self.keyed_intermediate(KeyPair::generate().unwrap(), name, id, edit)
    }

    fn keyed_intermediate(
        &self,
        key: KeyPair,
        name: &str,
        id: &str,
        edit: impl Fn(&mut CertificateParams),
    ) -> Self {
        let mut params = ca_params(name, id);
        edit(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        // Whatever the certificate says, this one signs.
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// An intermediate that signs as TLS 1.3 has certificates signed, but no handshakes: PKCS #1 v1.5.
    pub(super) fn rsa_intermediate(&self, id: &str) -> Self {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        self.keyed_intermediate(key, "intermediate", id, |_| {})
    }

    /// A leaf below a new intermediate.
    pub(super) fn int(
        &self,
        name: &'static str,
        expected: Option<&'static str>,
        id: &str,
        edit: impl Fn(&mut CertificateParams),
    ) -> Row {
        let intermediate = self.intermediate(id, edit);
        let mut row = intermediate.row(name, expected, |_| {});
        row.chain.push(intermediate.certificate);
        row
    }

    pub(crate) fn row(
        &self,
        name: &'static str,
        expected: Option<&'static str>,
        edit: impl Fn(&mut Leaf),
    ) -> Row {
        let mut leaf = Leaf::new();
        edit(&mut leaf);
        let key = leaf.key();
        let certificate = leaf.params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Row { name, chain: vec![certificate], key, expected }
    }

    /// A row whose leaf is signed anew after its parts have been edited; see [`der::Parts`].
    pub(super) fn spliced(
        &self,
        name: &'static str,
        expected: &'static str,
        edit: impl Fn(&mut der::Parts),
    ) -> Row {
        let mut row = self.row(name, Some(expected), |_| {});
        row.chain[0] = der::spliced(&row.chain[0], self.issuer.key(), edit);
        row
    }
}

/// A leaf in the making: a good one, until it is edited.
pub(crate) struct Leaf {
    pub(crate) params: CertificateParams,
    pub(super) algorithm: &'static SignatureAlgorithm,
}

impl Leaf {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.not_before = at(-10).into();
        params.not_after = at(3600).into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "SPIRE");
        params.subject_alt_names = vec![uri("spiffe://a.test/ns/shop")];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Self { params, algorithm: &rcgen::PKCS_ECDSA_P256_SHA256 }
    }

    pub(super) fn key(&self) -> KeyPair {
        if self.algorithm == &PKCS_RSA_SHA256 {
            KeyPair::generate_rsa_for(self.algorithm, RsaKeySize::_2048).unwrap()
        } else {
            KeyPair::generate_for(self.algorithm).unwrap()
        }
    }

    pub(super) fn uri(&mut self, id: &str) {
        self.params.subject_alt_names = vec![uri(id)];
    }

    pub(super) fn add_uri(&mut self, id: &str) {
        self.params.subject_alt_names.push(uri(id));
    }

    pub(super) fn extension(&mut self, oid: &[u64], content: &[u8], critical: bool) {
        self.params.custom_extensions.push(extension(oid, content, critical));
    }
}

pub(super) fn extension(oid: &[u64], content: &[u8], critical: bool) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

pub(super) fn ca_params(name: &str, id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = at(-3600).into();
    params.not_after = at(365 * 86_400).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = if id.is_empty() { Vec::new() } else { vec![uri(id)] };
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(super) fn uri(id: &str) -> SanType {
    SanType::URI(id.to_owned().try_into().unwrap())
}

/// `spiffe://a.test/ns/xx…` of so many bytes.
pub(super) fn long_id(length: usize) -> String {
    let head = "spiffe://a.test/ns/";
    format!("{head}{}", "x".repeat(length - head.len()))
}

/// So many seconds from now.
pub(super) fn at(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
}
