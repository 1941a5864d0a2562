//! The handshake messages of TLS 1.3 (RFC 8446, section 4) of which requests and authenticators are made.

use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;

use super::super::role::Role;
use super::{Invalid, MAX_CONTEXT};

/// `HandshakeType`.
const CERTIFICATE: u8 = 11;
const CERTIFICATE_REQUEST: u8 = 13;
const CERTIFICATE_VERIFY: u8 = 15;
const CLIENT_CERTIFICATE_REQUEST: u8 = 17;
const FINISHED: u8 = 20;
/// `ExtensionType`.
const SIGNATURE_ALGORITHMS: u16 = 13;
const SIGNATURE_ALGORITHMS_CERT: u16 = 50;

/// A handshake message.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    kind: u8,
    body: &'a [u8],
    /// With type and length, as it goes into a transcript.
    pub(super) whole: &'a [u8],
}

impl<'a> Message<'a> {
    /// Exactly three messages.
    pub(super) fn three(bytes: &'a [u8]) -> Result<[Self; 3], Invalid> {
        let mut from = Bytes(bytes);
        let three = [from.message()?, from.message()?, from.message()?];
        from.end()?;
        Ok(three)
    }

    fn body(self, kind: u8) -> Result<Bytes<'a>, Invalid> {
        if self.kind == kind { Ok(Bytes(self.body)) } else { Err(Invalid::Malformed) }
    }
}

/// `CertificateRequest`, or `ClientCertificateRequest` if it is the client who asks.
pub(super) struct Request<'a> {
    pub(super) context: &'a [u8],
    pub(super) schemes: Vec<SignatureScheme>,
}

impl<'a> Request<'a> {
    const fn kind(prover: Role) -> u8 {
        match prover {
            Role::Client => CERTIFICATE_REQUEST,
            Role::Server => CLIENT_CERTIFICATE_REQUEST,
        }
    }

    pub(super) fn write(prover: Role, context: &[u8]) -> Result<Vec<u8>, Invalid> {
        if context.is_empty() || context.len() > MAX_CONTEXT {
            return Err(Invalid::TooLong);
        }
        let extension = |kind: u16, schemes: &[SignatureScheme]| {
            let schemes: Vec<u8> =
                schemes.iter().flat_map(|scheme| u16::from(*scheme).to_be_bytes()).collect();
            Ok([kind.to_be_bytes().as_slice(), &vector::<2>(&vector::<2>(&schemes)?)?].concat())
        };
        let extensions = [
            extension(SIGNATURE_ALGORITHMS, &spire_adapter::tls::SIGNATURE_SCHEMES)?,
            // Without it the former counts for certificates too, and an authority may sign by PKCS #1 v1.5.
            extension(SIGNATURE_ALGORITHMS_CERT, &spire_adapter::tls::certificate_schemes())?,
        ]
        .concat();
        message(Self::kind(prover), &[vector::<1>(context)?, vector::<2>(&extensions)?].concat())
    }

    /// Extensions that are not known here are skipped, as they must be.
    pub(super) fn read(prover: Role, bytes: &'a [u8]) -> Result<Self, Invalid> {
        let mut from = Bytes(bytes);
        let message = from.message()?;
        from.end()?;
        if message.kind != Self::kind(prover) {
            return Err(Invalid::Role);
        }
        let mut body = Bytes(message.body);
        let context = body.vector::<1>()?.0;
        let mut extensions = body.vector::<2>()?;
        body.end()?;
        let mut schemes = None;
        while !extensions.0.is_empty() {
            let (kind, mut data) = (extensions.number()?, extensions.vector::<2>()?);
            if kind != SIGNATURE_ALGORITHMS {
                continue;
            }
            let mut list = data.vector::<2>()?;
            data.end()?;
            let mut known = Vec::new();
            while !list.0.is_empty() {
                known.push(SignatureScheme::from(list.number()?));
            }
            if schemes.replace(known).is_some() {
                return Err(Invalid::Malformed);
            }
        }
        // What TLS 1.3 doesn't allow counts for nothing, whoever offers it.
        let mut schemes = schemes.ok_or(Invalid::Malformed)?;
        schemes.retain(|scheme| spire_adapter::tls::SIGNATURE_SCHEMES.contains(scheme));
        if context.is_empty() {
            return Err(Invalid::Malformed);
        }
        Ok(Self { context, schemes })
    }
}

/// `Certificate`, without extensions: none are asked for.
pub(super) fn certificate(context: &[u8], chain: &[CertificateDer<'_>]) -> Result<Vec<u8>, Invalid> {
    let mut list = Vec::new();
    for certificate in chain {
        list.extend(vector::<3>(certificate)?);
        list.extend(vector::<2>(&[])?);
    }
    message(CERTIFICATE, &[vector::<1>(context)?, vector::<3>(&list)?].concat())
}

pub(super) fn read_certificate(
    message: Message<'_>,
) -> Result<(&[u8], Vec<CertificateDer<'static>>), Invalid> {
    let mut body = message.body(CERTIFICATE)?;
    let (context, mut list) = (body.vector::<1>()?.0, body.vector::<3>()?);
    body.end()?;
    let mut chain = Vec::new();
    while !list.0.is_empty() {
        let certificate = list.vector::<3>()?.0;
        // Nobody has asked for an extension.
        list.vector::<2>()?.end()?;
        if certificate.is_empty() {
            return Err(Invalid::Malformed);
        }
        chain.push(CertificateDer::from(certificate.to_vec()));
    }
    Ok((context, chain))
}

/// `CertificateVerify`.
pub(super) fn certificate_verify(scheme: SignatureScheme, signature: &[u8]) -> Result<Vec<u8>, Invalid> {
    let scheme = u16::from(scheme).to_be_bytes();
    message(CERTIFICATE_VERIFY, &[scheme.as_slice(), &vector::<2>(signature)?].concat())
}

pub(super) fn read_certificate_verify(message: Message<'_>) -> Result<(SignatureScheme, &[u8]), Invalid> {
    let mut body = message.body(CERTIFICATE_VERIFY)?;
    let (scheme, signature) = (SignatureScheme::from(body.number()?), body.vector::<2>()?.0);
    body.end()?;
    Ok((scheme, signature))
}

/// `Finished`.
pub(super) fn finished(mac: &[u8]) -> Result<Vec<u8>, Invalid> {
    message(FINISHED, mac)
}

/// The MAC; of its length its verification takes care.
pub(super) fn read_finished(message: Message<'_>) -> Result<&[u8], Invalid> {
    message.body(FINISHED).map(|body| body.0)
}

fn message(kind: u8, body: &[u8]) -> Result<Vec<u8>, Invalid> {
    Ok([&[kind], vector::<3>(body)?.as_slice()].concat())
}

/// Bytes with their length before them, in so many bytes.
fn vector<const LENGTH: usize>(bytes: &[u8]) -> Result<Vec<u8>, Invalid> {
    let length = u32::try_from(bytes.len()).map_err(|_too_large| Invalid::TooLong)?.to_be_bytes();
    let (zeros, length) =
        length.split_at_checked(length.len().saturating_sub(LENGTH)).ok_or(Invalid::TooLong)?;
    if zeros.iter().any(|byte| *byte != 0) {
        return Err(Invalid::TooLong);
    }
    Ok([length, bytes].concat())
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Invalid> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Invalid::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn length<const LENGTH: usize>(&mut self) -> Result<usize, Invalid> {
        Ok(self.take(LENGTH)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }

    fn vector<const LENGTH: usize>(&mut self) -> Result<Self, Invalid> {
        let length = self.length::<LENGTH>()?;
        self.take(length).map(Self)
    }

    fn number(&mut self) -> Result<u16, Invalid> {
        self.take(2)?.try_into().map(u16::from_be_bytes).map_err(|_two| Invalid::Malformed)
    }

    fn message(&mut self) -> Result<Message<'a>, Invalid> {
        let before = self.0;
        let kind = *self.take(1)?.first().ok_or(Invalid::Malformed)?;
        let body = self.vector::<3>()?.0;
        let whole = before.get(..body.len().saturating_add(4)).ok_or(Invalid::Malformed)?;
        Ok(Message { kind, body, whole })
    }

    fn end(&self) -> Result<(), Invalid> {
        if self.0.is_empty() { Ok(()) } else { Err(Invalid::Malformed) }
    }
}
