//! Private keys are nowhere to be seen: in no `Debug`, in no log line of any crate, in no memory that was freed.

use std::fmt::Debug;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use zeroize::Zeroize;

use super::*;
use crate::proto::delegated::SvidWithKey;
use crate::snapshot::{Heard, Message, Tracker, Trust};
use crate::tls::{self, Options};
use crate::{Bundles, ExpectedPeer};

/// How one would know a private key again in text.
struct Secret {
    traces: Vec<String>,
}

impl Secret {
    /// Of any eight bytes of the private scalar in a PKCS#8 key of P-256.
    fn of(issued: &Issued) -> Self {
        let scalar = &issued.key[36..68];
        assert_eq!(issued.key[34..36], [4, 32], "an octet string of 32 bytes");
        let mut traces = Vec::new();
        for part in scalar.windows(8) {
            let decimal = format!("{part:?}");
            traces.push(decimal.trim_matches(['[', ']']).to_owned());
            traces.push(part.iter().map(|byte| format!("{byte:02x}")).collect());
            traces.push(part.iter().map(|byte| format!("\\x{byte:02x}")).collect());
        }
        Self { traces }
    }

    fn is_hidden_in(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        !self.traces.iter().any(|trace| text.contains(trace))
    }
}

#[test]
fn no_type_that_holds_a_key_shows_it() {
    let ca = CertificateAuthority::new(&TrustDomain::new("a.test").unwrap()).unwrap();
    let issued = ca.issue(&expected(), HOUR).unwrap();
    let secret = Secret::of(&issued);
    assert!(!secret.is_hidden_in(&format!("{:?}", &issued.key[..])), "it would be found");
    let svid = issued.to_svid().unwrap();
    let bundles: Bundles = [ca.bundle().unwrap()].into_iter().collect();
    let mut workload = X509Svid::default();
    workload.x509_svid_key = issued.key.to_vec();
    let workload = X509SvidResponse { svids: vec![workload], ..X509SvidResponse::default() };
    let heard = Message { svid: Some(svid.clone()), ..Message::default() };
    let mut tracker = Tracker::new(&expected());
    tracker.hear(Heard::Message(heard.clone()));
    let peer = || ExpectedPeer::Exact(expected());
    let options = Options::default();
    let client = tls::client_config(&svid, &bundles, peer(), b"x", &options).unwrap();
    let server = tls::server_config(&svid, &bundles, peer(), b"x", &options).unwrap();
    let other = ca.issue(&id("/identity/1"), HOUR).unwrap();
    let mismatch = crate::Svid::from_der(&issued.certificate, &other.key).unwrap_err();
    let unreadable = crate::Svid::from_der(&issued.certificate, &issued.key[1..]).unwrap_err();
    let shown: [&dyn Debug; 16] = [
        &ca,
        &issued,
        &svid,
        &svid.certified(),
        &svid.signing_key(),
        &workload,
        &message(&[&issued]),
        &Reply::Message(message(&[&issued])),
        &Heard::Message(heard.clone()),
        &heard,
        &Snapshot { state: State::Usable(svid.clone()), ..Snapshot::default() },
        &(tracker.snapshot(SystemTime::now(), &Trust::default()), &tracker),
        &client,
        &server,
        &(&mismatch, mismatch.to_string()),
        &(&unreadable, unreadable.to_string()),
    ];
    for value in shown {
        for text in [format!("{value:?}"), format!("{value:#?}")] {
            let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(secret.is_hidden_in(&flat), "{text}");
            assert!(!flat.contains("_key:"), "{text}");
        }
    }
}

/// Everything of every crate on one writer.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_shows_a_key_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let other = ca.issue(&id("/identity/1"), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    agent.send(message(&[&svid, &other]));
    until(&subscription, |next| next.svid().is_some()).await;
    // Refused for another's key, for a key that is none, and for no certificate to a key.
    let mut wrong_key = message(&[&svid]);
    wrong_key.x509_svids[0].x509_svid_key = other.key.to_vec();
    let mut cut_key = message(&[&svid]);
    cut_key.x509_svids[0].x509_svid_key.truncate(100);
    let mut garbage = message(&[&svid]);
    garbage.x509_svids[0].x509_svid.as_mut().unwrap().cert_chain.clear();
    for bad in [wrong_key, cut_key, garbage] {
        agent.send(bad);
        until(&subscription, |next| next.stale).await;
        agent.send(message(&[&svid]));
        until(&subscription, |next| !next.stale).await;
    }
    agent.reply(Reply::Status(Status::permission_denied("no")));
    until(&subscription, |next| next.state == State::Withdrawn).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("TRACE") && text.contains("h2") && text.contains("does not belong"), "{text}");
    for secret in [Secret::of(&svid), Secret::of(&other)] {
        assert!(secret.is_hidden_in(&text), "{text}");
    }
}

/// Whether the bytes that were at `address` are still there.
fn remain(bytes: &[u8], address: usize) -> bool {
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    // On the stack: an allocation might take the very place.
    let mut found = [0; 256];
    let found = &mut found[..bytes.len()];
    match memory.read_exact_at(found, u64::try_from(address).unwrap()) {
        // An allocator writes its own at the beginning.
        Ok(()) => found[32..] == bytes[32..],
        Err(_) => false,
    }
}

#[test]
fn keys_of_messages_are_wiped_when_they_are_dropped() {
    let ca = CertificateAuthority::new(&TrustDomain::new("a.test").unwrap()).unwrap();
    let issued = ca.issue(&expected(), HOUR).unwrap();
    let mut key = issued.key.to_vec();
    let address = |bytes: &[u8]| bytes.as_ptr().addr();

    let forgotten = key.clone();
    let at = address(&forgotten);
    drop(forgotten);
    assert!(remain(&key, at), "what is not wiped remains, so that this test can fail");

    let delegated = SvidWithKey { x509_svid: None, x509_svid_key: key.clone() };
    let at = address(&delegated.x509_svid_key);
    drop(vec![delegated]);
    assert!(!remain(&key, at));

    let mut workload = X509Svid::default();
    workload.x509_svid_key = key.clone();
    let at = address(&workload.x509_svid_key);
    drop(vec![workload]);
    assert!(!remain(&key, at));

    let at = address(&issued.key);
    drop(issued);
    assert!(!remain(&key, at));
    key.zeroize();
}
