//! Handshakes in memory, between our configurations and peers that present anything and believe everything.

use std::sync::Arc;

use rcgen::KeyPair;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{kx_group, sign::any_supported_type};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    ServerConnection, SignatureScheme,
};
use spire_adapter::tls::{Options, client_config, provider, server_config, violation};
use spire_adapter::{Bundles, ExpectedPeer, Groups, Svid};

pub(crate) const ALPN: &[u8] = b"test/1";

/// Whose error is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
    Both,
}

/// Both ends after a handshake.
#[derive(Debug)]
pub(crate) struct Met {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
}

pub(crate) fn our_client(
    svid: &Svid,
    bundles: &Bundles,
    expected: ExpectedPeer,
) -> Result<Arc<ClientConfig>, spire_adapter::Error> {
    client_config(svid, bundles, expected, ALPN, &Options::default())
}

pub(crate) fn our_server(
    svid: &Svid,
    bundles: &Bundles,
    expected: ExpectedPeer,
) -> Result<Arc<ServerConfig>, spire_adapter::Error> {
    server_config(svid, bundles, expected, ALPN, &Options::default())
}

/// A peer that presents a chain of our choice.
pub(crate) struct Peer(Arc<CertifiedKey>);

impl Peer {
    pub(crate) fn presenting(chain: &[CertificateDer<'static>], key: &KeyPair) -> Result<Self, Error> {
        let key = any_supported_type(&der(key))?;
        Ok(Self(Arc::new(CertifiedKey::new(chain.to_vec(), key))))
    }

    /// With a key that is not the certificate's.
    pub(crate) fn stolen(chain: &[CertificateDer<'static>], key: &KeyPair) -> Self {
        Self::presenting(chain, key).unwrap()
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        let mut config = credulous_client(provider(Groups::Any))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.0))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        Arc::new(config)
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(provider(Groups::Any))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(Credulous))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.0))));
        config.alpn_protocols = vec![ALPN.to_vec()];
        Arc::new(config)
    }
}

/// A client that speaks X25519 alone.
pub(crate) fn classical_client(svid: &Svid) -> Arc<ClientConfig> {
    let mut classical = CryptoProvider::clone(&provider(Groups::Any));
    classical.kx_groups = vec![kx_group::X25519];
    let certified = CertifiedKey::new(svid.chain().to_vec(), svid.signing_key());
    let mut config = credulous_client(Arc::new(classical))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

/// A client that presents nothing.
pub(crate) fn anonymous_client() -> Arc<ClientConfig> {
    let mut config = credulous_client(provider(Groups::Any)).with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Arc::new(config)
}

fn credulous_client(
    provider: Arc<CryptoProvider>,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
}

/// Runs a handshake to its end; the error is that of the side that is asked for.
pub(crate) fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    side: Side,
) -> Result<Met, Error> {
    let name = ServerName::try_from("256.a.test").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..10 {
        let to_server = drain(|buffer| client.write_tls(buffer));
        let result = feed(&to_server, |bytes| {
            server.read_tls(bytes).map_err(|error| Error::General(error.to_string()))?;
            server.process_new_packets()
        });
        if side != Side::Client {
            result?;
        }
        let to_client = drain(|buffer| server.write_tls(buffer));
        let result = feed(&to_client, |bytes| {
            client.read_tls(bytes).map_err(|error| Error::General(error.to_string()))?;
            client.process_new_packets()
        });
        if side != Side::Server {
            result?;
        }
        if to_server.is_empty() && to_client.is_empty() {
            break;
        }
    }
    if client.is_handshaking() || server.is_handshaking() {
        return Err(Error::General("the other side gave up".to_owned()));
    }
    Ok(Met { client, server })
}

fn drain(mut write: impl FnMut(&mut Vec<u8>) -> std::io::Result<usize>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while write(&mut bytes).unwrap() > 0 {}
    bytes
}

/// One read after the other, since a connection takes only so much before it is looked at.
fn feed(
    mut bytes: &[u8],
    mut read: impl FnMut(&mut &[u8]) -> Result<rustls::IoState, Error>,
) -> Result<(), Error> {
    while !bytes.is_empty() {
        read(&mut bytes)?;
    }
    Ok(())
}

/// What our verifier said, or rustls in its place.
pub(crate) fn reason(error: &Error) -> String {
    violation(error).map_or_else(|| format!("{error:?}"), |violation| violation.as_str().to_owned())
}

fn der(key: &KeyPair) -> PrivateKeyDer<'_> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()))
}

/// Believes any certificate and any signature.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider(Groups::Any).signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Credulous {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}
