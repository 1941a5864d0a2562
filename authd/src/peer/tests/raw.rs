//! Clients as no honest node has them.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use spire_adapter::tls::Groups;

/// A client that believes any server, and has no certificate.
pub(super) fn bare_client(groups: Groups) -> ClientConfig {
    let mut provider = CryptoProvider::clone(&spire_adapter::tls::provider(groups));
    if groups == Groups::Any {
        provider.kx_groups.retain(|group| group.name() == rustls::NamedGroup::X25519);
    }
    let provider = Arc::new(provider);
    ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider)))
        .with_no_client_auth()
}

#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A ClientHello of TLS 1.2, byte by byte: no library here speaks it any more.
pub(super) fn client_hello_1_2(alpn: &[u8], server_name: &str) -> Vec<u8> {
    let with_length =
        |bytes: Vec<u8>| [u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec(), bytes].concat();
    let extension = |number: u16, body: Vec<u8>| [number.to_be_bytes().to_vec(), with_length(body)].concat();
    let name = [vec![0], with_length(server_name.as_bytes().to_vec())].concat();
    let protocol = [vec![u8::try_from(alpn.len()).unwrap()], alpn.to_vec()].concat();
    let extensions = [
        extension(0, with_length(name)),
        extension(10, with_length(vec![0, 29, 0, 23])),
        extension(11, vec![1, 0]),
        extension(13, with_length(vec![4, 3, 8, 4])),
        extension(16, with_length(protocol)),
        extension(23, vec![]),
    ];
    let body = [
        vec![3, 3],
        vec![7; 32],
        vec![0],
        with_length(vec![0xc0, 0x2b, 0xc0, 0x2f]),
        vec![1, 0],
        with_length(extensions.concat()),
    ]
    .concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let handshake = [vec![1, length[1], length[2], length[3]], body].concat();
    [vec![22, 3, 1], with_length(handshake)].concat()
}
