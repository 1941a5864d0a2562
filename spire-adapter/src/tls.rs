//! Mutual TLS 1.3 between SPIFFE identities: configurations for both roles, with verifiers that take a peer's
//! trust domain from its own SPIFFE ID and never look at DNS names.
//!
//! No resumption, no tickets and no early data: each connection is a fresh proof. A server that serves several
//! identities reads the ClientHello first (`tokio_rustls::LazyConfigAcceptor`) and picks a [`server_config`].
//! A peer that offers or selects no ALPN protocol at all is let through by rustls: both ends must look at what
//! was negotiated.

mod flights;
mod verifier;

use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms};
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{CipherSuite, ClientConfig, ServerConfig, SignatureScheme};

pub use flights::Flights;

use verifier::Verifier;

use crate::{Bundles, Error, ExpectedPeer, Rules, Svid, Violation};

/// Which key exchanges may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Groups {
    /// X25519MLKEM768 alone: what is agreed on now stays secret from a later quantum computer.
    #[default]
    PostQuantum,
    /// The classical groups too, X25519MLKEM768 preferred.
    Any,
}

/// Which cipher suite the dialling side prefers. Each side accepts every one of TLS 1.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    /// AES-256 with SHA-384: no weaker, against a quantum computer, than the key exchange.
    #[default]
    Aes256,
    /// AES-128 with SHA-256, for connections that prove something and carry no secret: processors have instructions
    /// for this hash, and the signatures of P-256 are no stronger.
    Aes128,
}

/// What both roles can be told beside SVID, bundles and peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Which key exchanges may be used.
    pub groups: Groups,
    /// Which cipher suite is preferred.
    pub cipher: Cipher,
    /// What is asked of the peer's certificate beyond the standard.
    pub rules: Rules,
}

impl From<Groups> for Options {
    fn from(groups: Groups) -> Self {
        Self { groups, ..Self::default() }
    }
}

static POST_QUANTUM: &[&dyn SupportedKxGroup] = &[kx_group::X25519MLKEM768];
static ANY: &[&dyn SupportedKxGroup] =
    &[kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];

static POST_QUANTUM_PROVIDERS: LazyLock<Providers> = LazyLock::new(|| Providers::new(POST_QUANTUM));
static ANY_PROVIDERS: LazyLock<Providers> = LazyLock::new(|| Providers::new(ANY));

/// One for each preference.
struct Providers {
    aes_256: Arc<CryptoProvider>,
    aes_128: Arc<CryptoProvider>,
}

impl Providers {
    fn new(groups: &[&'static dyn SupportedKxGroup]) -> Self {
        let preferring = |suite| {
            let mut provider = aws_lc_rs::default_provider();
            provider.kx_groups = groups.to_vec();
            provider.cipher_suites.sort_by_key(|known| known.suite() != suite);
            Arc::new(provider)
        };
        Self {
            aes_256: preferring(CipherSuite::TLS13_AES_256_GCM_SHA384),
            aes_128: preferring(CipherSuite::TLS13_AES_128_GCM_SHA256),
        }
    }

    const fn preferring(&self, cipher: Cipher) -> &Arc<CryptoProvider> {
        match cipher {
            Cipher::Aes256 => &self.aes_256,
            Cipher::Aes128 => &self.aes_128,
        }
    }
}

/// The crypto provider with these key exchanges. The process's default provider is never used or set.
pub fn provider(groups: Groups) -> Arc<CryptoProvider> {
    preferring(groups, Cipher::default())
}

fn preferring(groups: Groups, cipher: Cipher) -> Arc<CryptoProvider> {
    let providers: &Providers = match groups {
        Groups::PostQuantum => &POST_QUANTUM_PROVIDERS,
        Groups::Any => &ANY_PROVIDERS,
    };
    Arc::clone(providers.preferring(cipher))
}

pub(crate) fn signature_algorithms() -> WebPkiSupportedAlgorithms {
    ANY_PROVIDERS.aes_256.signature_verification_algorithms
}

/// The dialling side: presents `svid`, accepts `expected` alone. The server name it is used with is only a hint
/// for the peer which SVID to present.
pub fn client_config(
    svid: &Svid,
    bundles: &Bundles,
    expected: ExpectedPeer,
    alpn: &[u8],
    options: &Options,
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = Verifier::new(bundles, expected, &options.rules)?;
    let mut config = ClientConfig::builder_with_provider(preferring(options.groups, options.cipher))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// The accepting side: presents `svid`, demands a client certificate and accepts `expected` alone.
pub fn server_config(
    svid: &Svid,
    bundles: &Bundles,
    expected: ExpectedPeer,
    alpn: &[u8],
    options: &Options,
) -> Result<Arc<ServerConfig>, Error> {
    let verifier = Verifier::new(bundles, expected, &options.rules)?;
    let mut config = ServerConfig::builder_with_provider(preferring(options.groups, options.cipher))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// Signature schemes of TLS 1.3 (RFC 8446, 4.2.3) for the kinds of keys that an SVID may have, the preferred first.
pub const SIGNATURE_SCHEMES: [SignatureScheme; 5] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Signature schemes by which certificates of a peer's chain may be signed: more than those of SVIDs' own keys.
#[must_use]
pub fn certificate_schemes() -> Vec<SignatureScheme> {
    signature_algorithms().supported_schemes()
}

/// Whether the holder of this certificate's key has signed `message`, by the rules and the code of a TLS 1.3
/// CertificateVerify. Says nothing of the certificate: that is [`crate::verify_chain`]'s to judge.
#[must_use]
pub fn is_signed(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    scheme: SignatureScheme,
    signature: &[u8],
) -> bool {
    // Of a scheme's algorithms the first is the one that TLS 1.3 means: with its curve.
    let algorithm = signature_algorithms()
        .mapping
        .iter()
        .find(|(known, _)| *known == scheme && SIGNATURE_SCHEMES.contains(known))
        .and_then(|(_, algorithms)| algorithms.first());
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return false };
    algorithm.is_some_and(|algorithm| certificate.verify_signature(*algorithm, message, signature).is_ok())
}

/// The clause for which our verifier ended a handshake, if that is what `error` says.
pub fn violation(error: &rustls::Error) -> Option<&Violation> {
    let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = error else {
        return None;
    };
    other.0.downcast_ref()
}

/// The same for an error of the stream, as `tokio_rustls` returns it.
pub fn violation_of_io(error: &std::io::Error) -> Option<&Violation> {
    violation(error.get_ref()?.downcast_ref()?)
}
