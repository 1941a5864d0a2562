//! What is done with hostile bytes, and what must hold whatever they are. Run by the fuzzer, and by
//! `tests/corpus.rs` on every file of the corpus.

use std::time::{Duration, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use spire_adapter::verify::violations;
use spire_adapter::{
    Bundle, ExpectedPeer, Rules, SpiffeId, Svid, Template, TrustDomain, peer_svid, verify_chain,
};

/// A SPIFFE ID: one that is accepted is canonical, has a harmless path, and reads back as itself.
pub(crate) fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(id) = SpiffeId::new(text) {
        let canonical = id.to_string();
        assert_eq!(SpiffeId::new(&canonical).ok().as_ref(), Some(&id));
        assert!(canonical.starts_with("spiffe://") && canonical.is_ascii());
        let mut segments = id.path().split('/').skip(1);
        assert!(segments.all(|segment| !segment.is_empty() && !matches!(segment, "." | "..")));
        assert!(!id.path().contains(['%', '?', '#', '@', ':']));
    }
    // The same text as a template: nothing that it yields is reserved.
    let trust_domain = TrustDomain::new("a.test").expect("a trust domain");
    if let Ok(template) = Template::new(trust_domain, text, &["id"])
        && let Ok(id) = template.spiffe_id(|_| Some("authd"))
    {
        let path = id.path().to_owned() + "/";
        assert!(!path.starts_with("/authd/") && !path.starts_with("/spire/"));
    }
}

/// A chain, each certificate behind its length in two bytes, against the bundle that is the last of them.
pub(crate) fn svid_chain(data: &[u8]) {
    let chain = split(data);
    let certificates: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let peer = peer_svid(&certificates);
    let found = violations(&certificates, None, &Rules::default(), now);
    // Who cannot be read has at least one fault that is explained.
    assert!(peer.is_ok() || !found.is_empty());
    drop(Svid::from_chain(certificates.clone(), b"no key"));
    let Ok(peer) = peer else { return };
    let anchor = chain.last().copied().unwrap_or_default();
    let Ok(bundle) = Bundle::from_der(peer.spiffe_id.trust_domain().clone(), anchor) else { return };
    let bundles = [bundle].into_iter().collect();
    let expected = ExpectedPeer::Exact(peer.spiffe_id.clone());
    let verified = verify_chain(&certificates, &bundles, &expected, now);
    let explained = violations(&certificates, Some(&bundles), &Rules::default(), now);
    assert_eq!(verified.is_ok(), explained.is_empty(), "{verified:?} but {explained:?}");
}

/// A trust bundle: one that is accepted reads back as itself from its certificates.
pub(crate) fn bundle(data: &[u8]) {
    let trust_domain = TrustDomain::new("a.test").expect("a trust domain");
    if let Ok(bundle) = Bundle::from_der(trust_domain.clone(), data) {
        let der: Vec<u8> = bundle.certificates().flat_map(|certificate| certificate.to_vec()).collect();
        assert_eq!(der, data);
        assert_eq!(Bundle::from_der(trust_domain, &der).ok(), Some(bundle));
    }
}

/// A file of the corpus as [`svid_chain`] reads it.
pub(crate) fn join(chain: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    for der in chain {
        let length = u16::try_from(der.len()).unwrap_or(u16::MAX);
        data.extend_from_slice(&length.to_be_bytes());
        data.extend(der.iter().take(length.into()));
    }
    data
}

fn split(data: &[u8]) -> Vec<&[u8]> {
    let mut rest = data;
    let mut parts = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(behind.len());
        let (part, behind) = behind.split_at(length);
        parts.push(part);
        rest = behind;
    }
    parts
}
