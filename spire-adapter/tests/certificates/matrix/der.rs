//! Certificates taken apart and put together otherwise, for what rcgen rightly refuses to write.

use rcgen::{KeyPair, SigningKey};
use rustls::pki_types::CertificateDer;

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 3;

// `AlgorithmIdentifier`s of signatures.
pub(super) const ECDSA_WITH_SHA1: &[u8] = &[0x30, 9, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1];
pub(super) const ECDSA_WITH_SHA384: &[u8] = &[0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
pub(super) const RSA_WITH_MD5: &[u8] = &[0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 4, 5, 0];

/// What a certificate is made of, each with its tag and length.
pub(super) struct Parts {
    /// Version, serial, signature algorithm, issuer, validity, subject, public key, extensions.
    pub(super) signed: Vec<Vec<u8>>,
    /// The signature algorithm as it stands beside the signature.
    pub(super) algorithm: Vec<u8>,
}

impl Parts {
    /// Both mentions of the signature algorithm; the signature stays what it is.
    pub(super) fn claim_algorithm(&mut self, identifier: &[u8]) {
        self.signed[2] = identifier.to_vec();
        self.algorithm = identifier.to_vec();
    }

    pub(super) fn public_key(&mut self, info: Vec<u8>) {
        self.signed[6] = info;
    }
}

/// The certificate with its parts edited, signed by `key` (ECDSA with SHA-256, whatever it claims).
pub(super) fn spliced(
    certificate: &CertificateDer<'_>,
    key: &KeyPair,
    edit: impl Fn(&mut Parts),
) -> CertificateDer<'static> {
    let [signed, algorithm, _signature] = elements(content(certificate)).try_into().unwrap();
    let signed = elements(content(signed)).into_iter().map(<[u8]>::to_vec).collect();
    let mut parts = Parts { signed, algorithm: algorithm.to_vec() };
    edit(&mut parts);
    let signed = wrap(SEQUENCE, &parts.signed.concat());
    let signature = bit_string(&key.sign(&signed).unwrap());
    wrap(SEQUENCE, &[signed, parts.algorithm, signature].concat()).into()
}

/// The certificate with the last bit of its signature flipped.
pub(super) fn forged(certificate: &CertificateDer<'_>) -> CertificateDer<'static> {
    let mut der = certificate.to_vec();
    *der.last_mut().unwrap() ^= 1;
    der.into()
}

/// `SubjectPublicKeyInfo` of an RSA key of so many bits. Nobody has its private half.
pub(super) fn rsa_key(bits: usize) -> Vec<u8> {
    let mut modulus = vec![0xff; bits / 8 + 1];
    modulus[0] = 0;
    let key = wrap(SEQUENCE, &[wrap(2, &modulus), vec![2, 3, 1, 0, 1]].concat());
    let algorithm = [0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 1, 5, 0];
    wrap(SEQUENCE, &[algorithm.to_vec(), bit_string(&key)].concat())
}

/// `SubjectPublicKeyInfo` of the generator of secp256k1, whose private half is one.
pub(super) fn secp256k1_key() -> Vec<u8> {
    const GENERATOR: [u8; 65] = [
        0x04, 0x79, 0xbe, 0x66, 0x7e, 0xf9, 0xdc, 0xbb, 0xac, 0x55, 0xa0, 0x62, 0x95, 0xce, 0x87, 0x0b, 0x07,
        0x02, 0x9b, 0xfc, 0xdb, 0x2d, 0xce, 0x28, 0xd9, 0x59, 0xf2, 0x81, 0x5b, 0x16, 0xf8, 0x17, 0x98, 0x48,
        0x3a, 0xda, 0x77, 0x26, 0xa3, 0xc4, 0x65, 0x5d, 0xa4, 0xfb, 0xfc, 0x0e, 0x11, 0x08, 0xa8, 0xfd, 0x17,
        0xb4, 0x48, 0xa6, 0x85, 0x54, 0x19, 0x9c, 0x47, 0xd0, 0x8f, 0xfb, 0x10, 0xd4, 0xb8,
    ];
    let algorithm = [0x30, 16, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 10];
    wrap(SEQUENCE, &[algorithm.to_vec(), bit_string(&GENERATOR)].concat())
}

/// `SEQUENCE { [tag] content }`, as a SAN with one name or a subtree.
pub(super) fn sequence(tag: u8, content: &[u8]) -> Vec<u8> {
    wrap(SEQUENCE, &wrap(0x80 | tag, content))
}

pub(super) fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match content.len() {
        short @ 0..0x80 => der.push(u8::try_from(short).unwrap()),
        medium @ 0x80..0x100 => der.extend([0x81, u8::try_from(medium).unwrap()]),
        long => {
            let length = u16::try_from(long).unwrap().to_be_bytes();
            der.push(0x82);
            der.extend(length);
        }
    }
    der.extend(content);
    der
}

fn bit_string(bytes: &[u8]) -> Vec<u8> {
    wrap(BIT_STRING, &[&[0], bytes].concat())
}

/// What is in an element.
fn content(element: &[u8]) -> &[u8] {
    &element[header(element)..]
}

/// The elements of a sequence's content, each with its header.
fn elements(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (element, behind) = rest.split_at(header(rest) + length(rest));
        found.push(element);
        rest = behind;
    }
    found
}

fn header(element: &[u8]) -> usize {
    if element[1] < 0x80 { 2 } else { 2 + usize::from(element[1] & 0x7f) }
}

fn length(element: &[u8]) -> usize {
    if element[1] < 0x80 {
        return element[1].into();
    }
    element[2..header(element)].iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
}
