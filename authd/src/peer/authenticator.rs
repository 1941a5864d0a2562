//! Exported authenticators (RFC 9261): one end of a TLS connection that stands proves to the other that it holds
//! the key of a certificate. Bytes in, bytes out; whether the certificate is to be trusted is the caller's to judge.
//!
//! The verifier asks with a context that nobody can foretell. The answer is a Certificate, a CertificateVerify,
//! which is a signature over an exporter of the connection, the request and the certificate, and a Finished, which
//! is a MAC over all of it under another exporter. Exporters and types of requests differ by which end is asked, so
//! an answer counts on its own connection, for its own request and from its own end only.
//!
//! Of the RFC these are left out, and refused: spontaneous and empty authenticators (a refusal is a message of the
//! session), extensions of certificates, and empty contexts. A prover has one chain, however it is signed, and keeps
//! no record of contexts: whoever asks draws each anew, and takes one answer.

// With its path, so that the fuzz targets can have this file too.
#[path = "authenticator/message.rs"]
mod message;
#[cfg(test)]
mod tests;

use aws_lc_rs::{digest, hmac};
use rustls::crypto::hash::HashAlgorithm;
use rustls::pki_types::CertificateDer;
use rustls::sign::SigningKey;
use rustls::{CommonState, SupportedCipherSuite};
use zeroize::Zeroizing;

use super::role::Role;
use message::{Message, Request};

/// Longest context that a request can have.
pub(super) const MAX_CONTEXT: usize = 255;

/// What a signature covers before the transcript's hash: 64 spaces, the context string and a separator.
const SIGNED: &[u8] =
    b"                                                                Exported Authenticator\0";

/// Why there is no authenticator, or why it proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    /// It is not of the form of RFC 8446.
    #[error("malformed")]
    Malformed,
    /// The request is not one that this end of the connection answers.
    #[error("a request for the other end")]
    Role,
    /// It answers another request.
    #[error("of another request")]
    Context,
    /// The MAC is wrong: it was made on another connection, by the other end, or has been changed.
    #[error("not of this connection")]
    Finished,
    /// No scheme that both ends know fits the key.
    #[error("no signature scheme in common")]
    Scheme,
    /// The signature is not the certificate's.
    #[error("not signed by the certificate's key")]
    Signature,
    /// It would be longer than its messages may be.
    #[error("too long")]
    TooLong,
}

/// Hash of a connection's cipher suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    /// That of a connection; `None` before it has agreed on a suite of TLS 1.3.
    pub(super) fn of(connection: &CommonState) -> Option<Self> {
        let Some(SupportedCipherSuite::Tls13(suite)) = connection.negotiated_cipher_suite() else {
            return None;
        };
        let algorithm = suite.common.hash_provider.algorithm();
        let known = [(HashAlgorithm::SHA256, Self::Sha256), (HashAlgorithm::SHA384, Self::Sha384)];
        known.into_iter().find(|(known, _)| *known == algorithm).map(|(_, hash)| hash)
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
        }
    }
}

/// What a connection gives to the authenticators of both its ends.
pub(super) struct Authenticators {
    hash: Hash,
    client: Secrets,
    server: Secrets,
}

/// What it gives to those of one end (section 5.1).
struct Secrets {
    context: Zeroizing<Vec<u8>>,
    finished: hmac::Key,
}

impl std::fmt::Debug for Authenticators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticators").finish_non_exhaustive()
    }
}

impl Secrets {
    fn new<E>(
        hash: Hash,
        export: &impl Fn(&mut [u8], &[u8]) -> Result<(), E>,
        context_label: &[u8],
        finished_label: &[u8],
    ) -> Result<Self, E> {
        let exported = |label| {
            let mut output = Zeroizing::new(vec![0; hash.digest().output_len()]);
            export(&mut output, label).map(|()| output)
        };
        let finished = hmac::Key::new(hash.hmac(), &exported(finished_label)?);
        Ok(Self { context: exported(context_label)?, finished })
    }
}

/// The request for an authenticator that `prover` is to make. Its context must be used once only.
pub(super) fn request(prover: Role, context: &[u8]) -> Result<Vec<u8>, Invalid> {
    Request::write(prover, context)
}

/// The context of a request that `prover` has got.
pub(super) fn context_of(prover: Role, request: &[u8]) -> Result<&[u8], Invalid> {
    Request::read(prover, request).map(|request| request.context)
}

impl Authenticators {
    /// From the exporter of a connection, as `export(output, label)`.
    pub(super) fn new<E>(hash: Hash, export: impl Fn(&mut [u8], &[u8]) -> Result<(), E>) -> Result<Self, E> {
        let client = Secrets::new(
            hash,
            &export,
            b"EXPORTER-client authenticator handshake context",
            b"EXPORTER-client authenticator finished key",
        )?;
        let server = Secrets::new(
            hash,
            &export,
            b"EXPORTER-server authenticator handshake context",
            b"EXPORTER-server authenticator finished key",
        )?;
        Ok(Self { hash, client, server })
    }

    /// Proves, as `prover`, that `key` is ours, which is that of the chain's first certificate.
    pub(super) fn prove(
        &self,
        prover: Role,
        request: &[u8],
        chain: &[CertificateDer<'_>],
        key: &dyn SigningKey,
    ) -> Result<Vec<u8>, Invalid> {
        let asked = Request::read(prover, request)?;
        let signer = key.choose_scheme(&asked.schemes).ok_or(Invalid::Scheme)?;
        let mut authenticator = message::certificate(asked.context, chain)?;
        let mut transcript = self.transcript(prover, request);
        transcript.update(&authenticator);
        let signed = signed(transcript.clone().finish().as_ref());
        let signature = signer.sign(&signed).map_err(|_unable| Invalid::Signature)?;
        let verify = message::certificate_verify(signer.scheme(), &signature)?;
        transcript.update(&verify);
        authenticator.extend(verify);
        let mac = hmac::sign(&self.of(prover).finished, transcript.finish().as_ref());
        authenticator.extend(message::finished(mac.as_ref())?);
        Ok(authenticator)
    }

    /// The chain whose first certificate's key `prover` has shown to hold, in answer to this request of ours.
    pub(super) fn verify(
        &self,
        prover: Role,
        request: &[u8],
        authenticator: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, Invalid> {
        let asked = Request::read(prover, request)?;
        let [certificate, verify, finished] = Message::three(authenticator)?;
        let mut transcript = self.transcript(prover, request);
        transcript.update(certificate.whole);
        let signed = signed(transcript.clone().finish().as_ref());
        transcript.update(verify.whole);
        // The MAC first: whoever is not the other end has nobody spend a signature's time on him.
        let mac = message::read_finished(finished)?;
        hmac::verify(&self.of(prover).finished, transcript.finish().as_ref(), mac)
            .map_err(|_differs| Invalid::Finished)?;
        let (context, chain) = message::read_certificate(certificate)?;
        if context != asked.context {
            return Err(Invalid::Context);
        }
        let (scheme, signature) = message::read_certificate_verify(verify)?;
        if !asked.schemes.contains(&scheme) {
            return Err(Invalid::Scheme);
        }
        let leaf = chain.first().ok_or(Invalid::Malformed)?;
        if !spire_adapter::tls::is_signed(&signed, leaf, scheme, signature) {
            return Err(Invalid::Signature);
        }
        Ok(chain)
    }

    /// What every hash begins with.
    fn transcript(&self, prover: Role, request: &[u8]) -> digest::Context {
        let mut transcript = digest::Context::new(self.hash.digest());
        transcript.update(&self.of(prover).context);
        transcript.update(request);
        transcript
    }

    const fn of(&self, prover: Role) -> &Secrets {
        match prover {
            Role::Client => &self.client,
            Role::Server => &self.server,
        }
    }
}

fn signed(transcript: &[u8]) -> Vec<u8> {
    [SIGNED, transcript].concat()
}
