//! The one verifier behind both of rustls' traits.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};

use super::signature_algorithms;
use crate::verify::verify_chain_with;
use crate::{Bundles, Error, ExpectedPeer, Rules, Violation};

/// Accepts one expected peer (or pattern), by the bundle of its trust domain.
#[derive(Debug)]
pub(crate) struct Verifier {
    bundles: Bundles,
    expected: ExpectedPeer,
    rules: Rules,
}

impl Verifier {
    /// Without a bundle for the expected peer every handshake would fail: better said at once.
    pub(crate) fn new(bundles: &Bundles, expected: ExpectedPeer, rules: &Rules) -> Result<Self, Error> {
        let trust_domain = expected.trust_domain();
        if bundles.get(trust_domain).is_none() {
            return Err(Error::NoBundle { trust_domain: trust_domain.clone() });
        }
        Ok(Self { bundles: bundles.clone(), expected, rules: rules.clone() })
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let mut chain = Vec::with_capacity(intermediates.len().saturating_add(1));
        chain.push(CertificateDer::from(end_entity.as_ref()));
        chain.extend(intermediates.iter().map(|certificate| CertificateDer::from(certificate.as_ref())));
        let now = UNIX_EPOCH.checked_add(Duration::from_secs(now.as_secs())).unwrap_or_else(SystemTime::now);
        verify_chain_with(&chain, &self.bundles, &self.expected, now, &self.rules)
            .map(|_peer| ())
            .map_err(certificate_error)
    }
}

fn certificate_error(violation: Violation) -> rustls::Error {
    CertificateError::Other(OtherError(std::sync::Arc::new(violation))).into()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &signature_algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature_algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature_algorithms().supported_schemes()
    }
}
