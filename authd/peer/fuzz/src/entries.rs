//! What is done with fuzzed bytes of another node, and what must hold of them whatever they are. The tests of
//! `authd` replay the corpus through the same functions.

use std::pin::{Pin, pin};
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use aws_lc_rs::{digest, hmac};
use prost::Message;
use rustls::pki_types::CertificateDer;
use spire_adapter::authority::CertificateAuthority;
use spire_adapter::{Svid, TrustDomain};
use tokio::io::{AsyncRead, ReadBuf};

use super::authenticator::{Authenticators, Hash, Invalid, context_of};
use super::role::Role;
use super::wire::{HandshakeFrame, MAX_FRAME, MAX_HANDSHAKE_FRAME, Reader, SessionFrame, WireError, encode};

/// Frames of both kinds of connection, of which so many bytes come at a time as the first byte says.
pub fn frames(data: &[u8]) {
    let Some((at_a_time, bytes)) = data.split_first() else { return };
    let at_a_time = usize::from(*at_a_time).max(1);
    frames_of::<SessionFrame>(bytes, at_a_time, MAX_FRAME);
    frames_of::<HandshakeFrame>(bytes, at_a_time, MAX_HANDSHAKE_FRAME);
}

fn frames_of<M: Message + Default + PartialEq>(bytes: &[u8], at_a_time: usize, limit: usize) {
    let (messages, error) = read_all::<M>(bytes, bytes.len(), limit);
    let (in_parts, other_error) = read_all::<M>(bytes, at_a_time, limit);
    assert!(messages == in_parts, "a frame is the same in however many parts it comes");
    assert_eq!(error.to_string(), other_error.to_string());
    for message in messages {
        let written = encode(&message, usize::MAX).expect("there is no limit");
        let (again, _) = read_all::<M>(&written, written.len(), usize::MAX);
        assert!(again == [message], "what was understood can be said");
    }
}

/// Every message, and what ended them.
fn read_all<M: Message + Default>(data: &[u8], at_a_time: usize, limit: usize) -> (Vec<M>, WireError) {
    let mut reader = Reader::new(Parts { data, at_a_time }, limit);
    let mut messages = Vec::new();
    loop {
        let next = pin!(reader.next()).poll(&mut Context::from_waker(Waker::noop()));
        match next {
            Poll::Ready(Ok(message)) => messages.push(message),
            Poll::Ready(Err(error)) => return (messages, error),
            Poll::Pending => panic!("there is always something to read, or the end"),
        }
    }
}

/// Gives no more than so many bytes at a time.
struct Parts<'a> {
    data: &'a [u8],
    at_a_time: usize,
}

impl AsyncRead for Parts<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let length = self.at_a_time.min(self.data.len()).min(buffer.remaining());
        let (part, rest) = self.data.split_at(length);
        buffer.put_slice(part);
        self.data = rest;
        Poll::Ready(Ok(()))
    }
}

/// An exported authenticator: a byte that says which end and which hash, a request behind its length in two bytes,
/// then Certificate and CertificateVerify. The Finished that fits is made here: the other end of a session can make
/// it for whatever it likes.
pub fn authenticator(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else { return };
    let Some((length, rest)) = rest.split_first_chunk::<2>() else { return };
    let Some((request, messages)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
        return;
    };
    let session = Session::of(*flags);
    let authenticators = &session.authenticators;
    let refused = authenticators.verify(session.prover, request, messages);
    assert!(refused.is_err(), "nothing counts without a MAC");
    let asked = context_of(session.prover, request);
    let whole = [messages, &session.finished(request, messages)].concat();
    match authenticators.verify(session.prover, request, &whole) {
        Ok(chain) => {
            let context = asked.expect("it answers a request");
            assert!(messages.starts_with(&certificate(context, &chain)), "there is one way to write a chain");
        }
        Err(error) => assert_ne!(error, Invalid::Finished, "the MAC fits"),
    }
    answers(&session, request, asked.is_ok());
}

/// To what is a request there is an answer that fits it alone, unless it offers no scheme of the key's.
fn answers(session: &Session, request: &[u8], is_request: bool) {
    let authenticators = &session.authenticators;
    let answer = authenticators.prove(session.prover, request, SVID.chain(), &*SVID.signing_key());
    match answer {
        Ok(answer) => {
            assert_eq!(authenticators.verify(session.prover, request, &answer).expect("ours"), SVID.chain());
            let role = session.prover.other();
            assert_eq!(authenticators.verify(role, request, &answer), Err(Invalid::Role));
        }
        Err(error) => assert_eq!(is_request, error == Invalid::Scheme, "{error}"),
    }
}

static SVID: LazyLock<Svid> = LazyLock::new(|| {
    let trust_domain = TrustDomain::new("a.test").expect("a trust domain");
    let ca = CertificateAuthority::new(&trust_domain).expect("a CA");
    let id = "spiffe://a.test/identity/256".parse().expect("a SPIFFE ID");
    let issued = ca.issue(&id, Duration::from_secs(3600)).expect("an SVID");
    issued.to_svid().expect("it is one")
});

/// A session whose secrets are known, and who proves something over it.
struct Session {
    algorithm: &'static digest::Algorithm,
    mac: hmac::Algorithm,
    prover: Role,
    authenticators: Authenticators,
}

impl Session {
    fn of(flags: u8) -> Self {
        let (hash, algorithm, mac) = match flags & 2 {
            0 => (Hash::Sha384, &digest::SHA384, hmac::HMAC_SHA384),
            _ => (Hash::Sha256, &digest::SHA256, hmac::HMAC_SHA256),
        };
        let export = |output: &mut [u8], label: &[u8]| -> Result<(), WireError> {
            output.copy_from_slice(&export(label, output.len()));
            Ok(())
        };
        let authenticators = Authenticators::new(hash, export).expect("this exporter never fails");
        let prover = if flags & 1 == 0 { Role::Client } else { Role::Server };
        Self { algorithm, mac, prover, authenticators }
    }

    /// RFC 9261, 5.2.3.
    fn finished(&self, request: &[u8], messages: &[u8]) -> Vec<u8> {
        let end = match self.prover {
            Role::Client => "client",
            Role::Server => "server",
        };
        let exported = |what: &str| {
            let label = format!("EXPORTER-{end} authenticator {what}");
            export(label.as_bytes(), self.algorithm.output_len())
        };
        let key = hmac::Key::new(self.mac, &exported("finished key"));
        let covered = [&exported("handshake context"), request, messages].concat();
        let mac = hmac::sign(&key, digest::digest(self.algorithm, &covered).as_ref());
        [&[20, 0, 0, u8::try_from(mac.as_ref().len()).expect("a short MAC")], mac.as_ref()].concat()
    }
}

fn export(label: &[u8], length: usize) -> Vec<u8> {
    let digest = digest::digest(&digest::SHA384, label);
    digest.as_ref().iter().copied().take(length).collect()
}

/// A Certificate as RFC 8446 has it in section 4.4.2.
fn certificate(context: &[u8], chain: &[CertificateDer<'_>]) -> Vec<u8> {
    let three = |length: usize| u32::try_from(length).expect("short").to_be_bytes().into_iter().skip(1);
    let mut list = Vec::new();
    for one in chain {
        list.extend(three(one.len()).chain(one.iter().copied()).chain([0, 0]));
    }
    let mut body = vec![u8::try_from(context.len()).expect("short")];
    body.extend(context.iter().copied().chain(three(list.len())).chain(list));
    [11].into_iter().chain(three(body.len())).chain(body).collect()
}
