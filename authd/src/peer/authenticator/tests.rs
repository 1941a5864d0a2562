//! Against a second implementation, made from the RFC's words alone, and against those who have the session's keys;
//! `go` has a third one, on another TLS.

mod go;

use std::time::Duration;

use aws_lc_rs::digest::{Algorithm, SHA256, SHA384, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use proptest::prelude::*;
use rustls::SignatureScheme;
use spiffe::TrustDomain;
use spire_adapter::Svid;
use spire_adapter::authority::CertificateAuthority;

use super::*;

const LABELS: [(Role, &str); 2] = [(Role::Client, "client"), (Role::Server, "server")];

/// Writes what a session exports under a label.
type Exporter<'a> = Box<dyn Fn(&mut [u8], &[u8]) -> Result<(), rustls::Error> + 'a>;

/// The exporter of a session that never was.
fn exporter(session: u8) -> impl Fn(&mut [u8], &[u8]) -> Result<(), rustls::Error> {
    move |output, label| {
        let exported = digest(&SHA384, &[&[session], label].concat());
        output.copy_from_slice(&exported.as_ref()[..output.len()]);
        Ok(())
    }
}

fn authenticators(hash: Hash, session: u8) -> Authenticators {
    Authenticators::new(hash, exporter(session)).unwrap()
}

fn svids() -> (Svid, Svid) {
    let trust_domain = TrustDomain::new("example.test").unwrap();
    let ca = CertificateAuthority::new(&trust_domain).unwrap();
    let issue = |name: &str| {
        let id = format!("spiffe://example.test/identity/{name}").parse().unwrap();
        ca.issue(&id, Duration::from_secs(60)).unwrap().to_svid().unwrap()
    };
    (issue("256"), issue("300"))
}

fn prove(by: &Authenticators, role: Role, request: &[u8], svid: &Svid) -> Vec<u8> {
    by.prove(role, request, svid.chain(), &*svid.signing_key()).unwrap()
}

/// RFC 9261 as it stands there, without regard to speed or to what is ours.
struct Naive<'a> {
    algorithm: &'static Algorithm,
    block: usize,
    exporter: Exporter<'a>,
    sender: &'static str,
}

impl Naive<'_> {
    fn export(&self, what: &str) -> Vec<u8> {
        let mut output = vec![0; self.algorithm.output_len()];
        let label = format!("EXPORTER-{} authenticator {what}", self.sender);
        (self.exporter)(&mut output, label.as_bytes()).unwrap();
        output
    }

    fn hash(&self, parts: &[&[u8]]) -> Vec<u8> {
        digest(self.algorithm, &parts.concat()).as_ref().to_vec()
    }

    /// RFC 2104.
    fn hmac(&self, key: &[u8], message: &[u8]) -> Vec<u8> {
        let padded = |with: u8| -> Vec<u8> {
            (0..self.block).map(|at| key.get(at).copied().unwrap_or(0) ^ with).collect()
        };
        let inner = self.hash(&[&padded(0x36), message]);
        self.hash(&[&padded(0x5c), &inner])
    }

    fn signed(&self, request: &[u8], certificate: &[u8]) -> Vec<u8> {
        let transcript = self.hash(&[&self.export("handshake context"), request, certificate]);
        [vec![0x20; 64], b"Exported Authenticator".to_vec(), vec![0], transcript].concat()
    }

    fn finished(&self, request: &[u8], certificate: &[u8], verify: &[u8]) -> Vec<u8> {
        let transcript = self.hash(&[&self.export("handshake context"), request, certificate, verify]);
        let mac = self.hmac(&self.export("finished key"), &transcript);
        [vec![20, 0, 0, u8::try_from(mac.len()).unwrap()], mac].concat()
    }

    /// A Certificate of one or more certificates, each of at least 256 bytes.
    fn certificate(context: &[u8], chain: &[CertificateDer<'_>]) -> Vec<u8> {
        let three = |number: usize| u32::try_from(number).unwrap().to_be_bytes()[1..].to_vec();
        let entries: Vec<u8> =
            chain.iter().flat_map(|one| [three(one.len()), one.to_vec(), vec![0, 0]].concat()).collect();
        let context = [&[u8::try_from(context.len()).unwrap()], context].concat();
        let body = [context, three(entries.len()), entries].concat();
        [vec![11], three(body.len()), body].concat()
    }

    /// The same with an extension of its last certificate, which nobody asks for; its context has 36 bytes.
    fn extended(certificate: &[u8]) -> Vec<u8> {
        let mut extended = certificate[..certificate.len() - 2].to_vec();
        extended.extend([0, 4, 0, 5, 0, 0]);
        for at in [3, 3 + 37 + 3] {
            let length = u16::from_be_bytes([extended[at - 1], extended[at]]) + 4;
            extended[at - 1..=at].copy_from_slice(&length.to_be_bytes());
        }
        extended
    }

    fn verify_message(signature: &[u8]) -> Vec<u8> {
        let two = |number: usize| u16::try_from(number).unwrap().to_be_bytes().to_vec();
        let body = [two(0x0403), two(signature.len()), signature.to_vec()].concat();
        [vec![15, 0], two(body.len()), body].concat()
    }

    /// Made with the key of `signer`, whoever's `chain` is shown.
    fn prove(&self, request: &[u8], context: &[u8], chain: &[CertificateDer<'_>], signer: &Svid) -> Vec<u8> {
        self.prove_certificate(request, &Self::certificate(context, chain), signer)
    }

    fn prove_certificate(&self, request: &[u8], certificate: &[u8], signer: &Svid) -> Vec<u8> {
        let key = signer.signing_key();
        let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
        let verify = Self::verify_message(&signer.sign(&self.signed(request, certificate)).unwrap());
        self.finish(request, certificate, &verify)
    }

    /// What has been changed, with a MAC that fits: whoever is at the other end of the session has its keys.
    fn finish(&self, request: &[u8], certificate: &[u8], verify: &[u8]) -> Vec<u8> {
        [certificate.to_vec(), verify.to_vec(), self.finished(request, certificate, verify)].concat()
    }

    /// Holds an authenticator of one short chain to the RFC.
    fn check(&self, request: &[u8], context: &[u8], svid: &Svid, authenticator: &[u8]) {
        let certificate = Self::certificate(context, svid.chain());
        let rest = authenticator.strip_prefix(certificate.as_slice()).expect("Certificate");
        assert_eq!(&rest[..2], &[15, 0]);
        let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        let (verify, finished) = rest.split_at(4 + length);
        assert_eq!(&verify[4..6], &[4, 3], "ecdsa_secp256r1_sha256");
        assert_eq!(usize::from(u16::from_be_bytes([verify[6], verify[7]])), length - 4);
        let key = svid.signing_key();
        let spki = key.public_key().unwrap();
        let point = &spki[spki.len() - 65..];
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
            .verify(&self.signed(request, &certificate), &verify[8..])
            .expect("signature");
        assert_eq!(finished, self.finished(request, &certificate, verify), "Finished");
    }
}

fn naive<'a>(
    hash: Hash,
    exporter: impl Fn(&mut [u8], &[u8]) -> Result<(), rustls::Error> + 'a,
    sender: &'static str,
) -> Naive<'a> {
    let exporter = Box::new(exporter);
    match hash {
        Hash::Sha256 => Naive { algorithm: &SHA256, block: 64, exporter, sender },
        Hash::Sha384 => Naive { algorithm: &SHA384, block: 128, exporter, sender },
    }
}

#[test]
fn each_implementation_believes_the_other() {
    let (svid, _) = svids();
    for hash in [Hash::Sha256, Hash::Sha384] {
        let ours = authenticators(hash, 1);
        for (role, sender) in LABELS {
            let context = [7; 36];
            let request = request(role, &context).unwrap();
            let naive = naive(hash, exporter(1), sender);
            naive.check(&request, &context, &svid, &prove(&ours, role, &request, &svid));
            let theirs = naive.prove(&request, &context, svid.chain(), &svid);
            assert_eq!(ours.verify(role, &request, &theirs).unwrap(), svid.chain());
        }
    }
}

/// Type, length, context, two extensions: signature_algorithms with five schemes, and signature_algorithms_cert with
/// all that our verifier knows, among them PKCS #1 v1.5.
#[test]
fn a_request_is_that_of_the_rfc() {
    let schemes = [4, 3, 5, 3, 8, 4, 8, 5, 8, 6];
    let known = spire_adapter::tls::certificate_schemes();
    assert!(known.contains(&SignatureScheme::RSA_PKCS1_SHA256));
    let of_certificates: Vec<u8> =
        known.into_iter().flat_map(|scheme| u16::from(scheme).to_be_bytes()).collect();
    let length = u8::try_from(of_certificates.len()).unwrap();
    for (role, kind) in [(Role::Client, 13), (Role::Server, 17)] {
        let expected = [
            &[kind, 0, 0, 27 + length, 2, 9, 9, 0, 22 + length, 0, 13, 0, 12, 0, 10][..],
            &schemes,
            &[0, 50, 0, 2 + length, 0, length],
            &of_certificates,
        ]
        .concat();
        assert_eq!(request(role, &[9, 9]).unwrap(), expected);
        assert_eq!(context_of(role, &expected), Ok(&[9, 9][..]));
    }
    assert_eq!(request(Role::Client, &[]), Err(Invalid::TooLong));
    assert_eq!(request(Role::Client, &[0; 256]), Err(Invalid::TooLong));
}

#[test]
fn what_others_add_to_a_request_is_skipped_and_old_schemes_count_for_nothing() {
    let (svid, _) = svids();
    let ours = authenticators(Hash::Sha384, 1);
    let with = |schemes: &[u8]| {
        let extension = [&[0, 13, 0, 4, 0, 2][..], schemes, &[0xfa, 0xfa, 0, 1, 9]].concat();
        let body = [&[1, 9, 0, u8::try_from(extension.len()).unwrap()][..], &extension].concat();
        [&[13, 0, 0, u8::try_from(body.len()).unwrap()][..], &body].concat()
    };
    let modern = with(&[4, 3]);
    let answer = prove(&ours, Role::Client, &modern, &svid);
    assert!(ours.verify(Role::Client, &modern, &answer).is_ok());
    // PKCS #1 v1.5, ECDSA with SHA-1, and a curve that is not the key's.
    for old in [[4, 1], [2, 3], [5, 3]] {
        let proved = ours.prove(Role::Client, &with(&old), svid.chain(), &*svid.signing_key());
        assert_eq!(proved, Err(Invalid::Scheme), "{old:?}");
    }
    let without = [13, 0, 0, 4, 1, 9, 0, 0];
    assert!(matches!(context_of(Role::Client, &without), Err(Invalid::Malformed)));
}

#[test]
fn it_counts_on_its_own_session_from_its_own_end_and_for_its_own_request_only() {
    let (svid, other) = svids();
    let ours = authenticators(Hash::Sha384, 1);
    let asked = request(Role::Server, &[7; 36]).unwrap();
    let answer = prove(&ours, Role::Server, &asked, &svid);
    assert_eq!(ours.verify(Role::Server, &asked, &answer).unwrap(), svid.chain());
    let elsewhere = authenticators(Hash::Sha384, 2);
    assert_eq!(elsewhere.verify(Role::Server, &asked, &answer), Err(Invalid::Finished), "relayed");
    let again = request(Role::Server, &[8; 36]).unwrap();
    assert_eq!(ours.verify(Role::Server, &again, &answer), Err(Invalid::Finished), "replayed");
    let mirrored = request(Role::Client, &[7; 36]).unwrap();
    assert_eq!(ours.verify(Role::Client, &mirrored, &answer), Err(Invalid::Finished), "reflected");
    assert_eq!(ours.verify(Role::Client, &asked, &answer), Err(Invalid::Role));
    assert_eq!(ours.prove(Role::Client, &asked, svid.chain(), &*svid.signing_key()), Err(Invalid::Role));
    let with_other_key = ours.prove(Role::Server, &asked, svid.chain(), &*other.signing_key()).unwrap();
    assert_eq!(ours.verify(Role::Server, &asked, &with_other_key), Err(Invalid::Signature));
    let without_certificate = ours.prove(Role::Server, &asked, &[], &*svid.signing_key()).unwrap();
    assert_eq!(ours.verify(Role::Server, &asked, &without_certificate), Err(Invalid::Malformed));
}

/// The node at the other end can make any MAC of the session. What it can't make is the signature.
#[test]
fn who_has_the_sessions_keys_has_not_the_identitys() {
    let (victim, own) = svids();
    let ours = authenticators(Hash::Sha384, 1);
    let naive = naive(Hash::Sha384, exporter(1), "server");
    let (context, old) = ([7; 36], [8; 36]);
    let asked = request(Role::Server, &context).unwrap();
    let refused = |authenticator: &[u8], reason| {
        assert_eq!(ours.verify(Role::Server, &asked, authenticator), Err(reason));
    };
    // The victim's certificate with one's own key, alone or before one's own certificate.
    refused(&naive.prove(&asked, &context, victim.chain(), &own), Invalid::Signature);
    let both = [victim.chain(), own.chain()].concat();
    refused(&naive.prove(&asked, &context, &both, &own), Invalid::Signature);
    // What the victim said in another session, or in answer to another request, or as the other end.
    let certificate = Naive::certificate(&context, victim.chain());
    let take = |said: &[u8], certificate: &[u8]| {
        let rest = said.strip_prefix(certificate).unwrap();
        rest[..rest.len() - 52].to_vec()
    };
    let relayed = prove(&authenticators(Hash::Sha384, 2), Role::Server, &asked, &victim);
    refused(&naive.finish(&asked, &certificate, &take(&relayed, &certificate)), Invalid::Signature);
    let before = request(Role::Server, &old).unwrap();
    let replayed = prove(&ours, Role::Server, &before, &victim);
    let old_certificate = Naive::certificate(&old, victim.chain());
    let verify = take(&replayed, &old_certificate);
    refused(&naive.finish(&asked, &certificate, &verify), Invalid::Signature);
    refused(&naive.finish(&asked, &old_certificate, &verify), Invalid::Context);
    let mirrored = request(Role::Client, &context).unwrap();
    let reflected = prove(&ours, Role::Client, &mirrored, &victim);
    refused(&naive.finish(&asked, &certificate, &take(&reflected, &certificate)), Invalid::Signature);
    // A certificate more behind what the victim has signed; and an extension that nobody asked for.
    let honest = prove(&ours, Role::Server, &asked, &victim);
    let verify = take(&honest, &certificate);
    let longer = Naive::certificate(&context, &both);
    refused(&naive.finish(&asked, &longer, &verify), Invalid::Signature);
    refused(&naive.finish(&asked, &Naive::extended(&certificate), &verify), Invalid::Malformed);
    // A scheme that was not offered.
    let mut scheme = verify.clone();
    scheme[4..6].copy_from_slice(&[2, 3]);
    refused(&naive.finish(&asked, &certificate, &scheme), Invalid::Scheme);
    // An empty authenticator, which the RFC has for refusals.
    let empty = naive.finished(&asked, &Naive::certificate(&context, &[]), &[]);
    refused(&empty, Invalid::Malformed);
    assert_eq!(
        ours.verify(Role::Server, &asked, &naive.finish(&asked, &certificate, &verify)).unwrap(),
        victim.chain()
    );
}

#[test]
fn no_secret_is_shown() {
    assert_eq!(format!("{:?}", authenticators(Hash::Sha384, 1)), "Authenticators { .. }");
}

#[test]
fn every_cut_and_every_flipped_byte_is_refused() {
    let (svid, _) = svids();
    let ours = authenticators(Hash::Sha256, 1);
    let asked = request(Role::Client, &[7; 36]).unwrap();
    let answer = prove(&ours, Role::Client, &asked, &svid);
    for at in 0..answer.len() {
        assert!(ours.verify(Role::Client, &asked, &answer[..at]).is_err(), "cut at {at}");
        for bit in [1, 0x80] {
            let mut flipped = answer.clone();
            flipped[at] ^= bit;
            assert!(ours.verify(Role::Client, &asked, &flipped).is_err(), "flipped at {at}");
        }
    }
    for at in 0..asked.len() {
        let mut flipped = asked.clone();
        flipped[at] ^= 1;
        assert!(ours.verify(Role::Client, &flipped, &answer).is_err(), "request flipped at {at}");
    }
    assert!(ours.verify(Role::Client, &asked, &[answer, vec![0]].concat()).is_err(), "longer");
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused(request_bytes in prop::collection::vec(any::<u8>(), 0..200),
        answer in prop::collection::vec(any::<u8>(), 0..400)) {
        let ours = authenticators(Hash::Sha384, 1);
        prop_assert!(ours.verify(Role::Client, &request_bytes, &answer).is_err());
        let asked = request(Role::Client, &[7; 36]).unwrap();
        prop_assert!(ours.verify(Role::Client, &asked, &answer).is_err());
    }

    /// Of the right shape, with a MAC that fits: still no panic, and no belief.
    #[test]
    fn arbitrary_messages_with_a_right_mac_are_refused(
        certificate in prop::collection::vec(any::<u8>(), 0..200),
        verify in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let asked = request(Role::Client, &[7; 36]).unwrap();
        let wrap = |kind: u8, body: &[u8]| [&[kind, 0, 0, u8::try_from(body.len()).unwrap()][..], body].concat();
        let naive = naive(Hash::Sha384, exporter(1), "client");
        let bytes = naive.finish(&asked, &wrap(11, &certificate), &wrap(15, &verify));
        let refused = authenticators(Hash::Sha384, 1).verify(Role::Client, &asked, &bytes);
        prop_assert!(refused.is_err() && refused != Err(Invalid::Finished), "{refused:?}");
    }
}
