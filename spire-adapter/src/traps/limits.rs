//! Every bound on what an agent sends, at it and over it.

use prost::Message as _;

use super::*;
use crate::stream::MAX_MESSAGE;
use crate::workload::{MAX_BUNDLES, MAX_SVIDS};
use crate::{Bundle, Svid};

/// A message that is good, and `excess` bytes larger than the largest that is taken.
fn padded(svid: &Issued, excess: usize) -> SvidsResponse {
    let mut message = message(&[svid]);
    message.federates_with = vec!["x".repeat(MAX_MESSAGE)];
    let over = message.encoded_len() - MAX_MESSAGE;
    message.federates_with = vec!["x".repeat(MAX_MESSAGE - over + excess)];
    assert_eq!(message.encoded_len(), MAX_MESSAGE + excess);
    message
}

#[tokio::test]
async fn a_message_may_have_twenty_megabytes_and_no_byte_more() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    agent.send(padded(&svid, 0));
    until(&subscription, |next| next.svid().is_some()).await;
    agent.send(padded(&svid, 1));
    let kept = until(&subscription, |next| next.stale).await;
    assert!(kept.svid().is_some() && kept.problem.unwrap().to_string().contains("too large"));
}

#[tokio::test]
async fn a_message_may_have_a_thousand_svids_and_as_many_federated_domains() {
    let (agent, ca) = rig();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    let svids = |count| message(&vec![&svid; count]);
    let federating = |count: usize| {
        let federates_with = (0..count).map(|number| format!("spiffe://d{number}.test")).collect();
        SvidsResponse { federates_with, ..message(&[&svid]) }
    };
    for (good, bad, words) in [
        (svids(MAX_SVIDS), svids(MAX_SVIDS + 1), "1001 SVIDs are more than the limit of 1000"),
        (
            federating(MAX_BUNDLES),
            federating(MAX_BUNDLES + 1),
            "1001 federated trust domains are more than the limit of 1000",
        ),
    ] {
        agent.send(good);
        until(&subscription, |next| next.svid().is_some() && !next.stale).await;
        agent.send(bad);
        let kept = until(&subscription, |next| next.stale).await;
        let problem = kept.problem.unwrap().to_string();
        assert!(kept.state.as_str() == "usable" && problem.contains(words), "{problem}");
    }
}

#[test]
fn the_workload_api_has_the_same_bounds() {
    let (mut response, ca) = workload_response();
    let svid = response.svids[0].clone();
    let read = |response: &X509SvidResponse| workload::read(response, &expected());
    response.svids = vec![svid.clone(); MAX_SVIDS];
    assert!(read(&response).unwrap().svid.is_some());
    response.svids.push(svid);
    let refused = read(&response).unwrap_err().to_string();
    assert_eq!(refused, "message: 1001 SVIDs are more than the limit of 1000");
    response.svids.truncate(1);
    let bundle = |number: usize| (format!("spiffe://d{number}.test"), ca.certificate().to_vec());
    response.federated_bundles = (0..MAX_BUNDLES).map(bundle).collect();
    assert_eq!(read(&response).unwrap().bundles.unwrap().len(), MAX_BUNDLES + 1);
    response.federated_bundles.extend([bundle(MAX_BUNDLES)]);
    let refused = read(&response).unwrap_err().to_string();
    assert_eq!(refused, "message: 1001 bundles are more than the limit of 1000");
}

#[tokio::test]
async fn too_many_bundles_on_the_agents_stream_change_nothing() {
    let (agent, ca) = rig();
    let foreign = TrustDomain::new("d0.test").unwrap();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let subscription = agent.subscribe(&expected());
    let mut federated = message(&[&svid]);
    federated.federates_with = vec![foreign.to_string()];
    agent.send(federated);
    until(&subscription, |next| next.svid().is_some()).await;
    let names: Vec<_> = (0..MAX_BUNDLES).map(|number| format!("spiffe://d{number}.test")).collect();
    let own = [("spiffe://a.test", ca.certificate())];
    let bundles = |count: usize| {
        let others = names.iter().take(count).map(|name| (name.as_str(), ca.certificate()));
        others.chain(own).collect::<Vec<_>>()
    };
    agent.send_bundles(&bundles(MAX_BUNDLES));
    let kept = until(&subscription, |next| next.stale).await;
    assert_eq!(kept.bundles.len(), 1, "the last good ones");
    assert!(kept.problem.unwrap().to_string().contains("1001 bundles"));
    agent.send_bundles(&bundles(MAX_BUNDLES - 1));
    until(&subscription, |next| next.bundles.get(&foreign).is_some()).await;
}

#[test]
fn an_svid_may_have_sixteen_certificates_and_a_bundle_512() {
    let (response, ca) = workload_response();
    let svid = &response.svids[0];
    let chain = |count: usize| [svid.x509_svid.as_slice(), &ca.certificate().repeat(count - 1)].concat();
    let read = |chain: &[u8]| Svid::from_der(chain, &svid.x509_svid_key);
    assert_eq!(read(&chain(16)).unwrap().chain().len(), 16);
    assert_eq!(read(&chain(17)).unwrap_err().to_string(), "SVID: more than 16 certificates");
    let bundle = |count: usize| Bundle::from_der(ca_domain(), &ca.certificate().repeat(count));
    assert_eq!(bundle(512).unwrap().certificates().len(), 512);
    assert_eq!(bundle(513).unwrap_err().to_string(), "bundle of a.test: more than 512 certificates");
}

#[test]
fn bytes_are_counted_before_anything_is_read() {
    let (response, _) = workload_response();
    let key = &response.svids[0].x509_svid_key;
    let svid = |bytes: usize| Svid::from_der(&vec![0x30; bytes], key).unwrap_err().to_string();
    assert!(svid(64 << 10).contains("not valid DER"));
    assert_eq!(svid((64 << 10) + 1), "SVID: 65537 bytes are more than the limit of 65536");
    let bundle = |bytes: usize| Bundle::from_der(ca_domain(), &vec![0x30; bytes]).unwrap_err().to_string();
    assert!(bundle(1 << 20).contains("not valid DER"));
    assert_eq!(bundle((1 << 20) + 1), "bundle of a.test: 1048577 bytes are more than the limit of 1048576");
}

fn ca_domain() -> TrustDomain {
    expected().trust_domain().clone()
}

fn workload_response() -> (X509SvidResponse, CertificateAuthority) {
    let ca = CertificateAuthority::new(&ca_domain()).unwrap();
    let svid = ca.issue(&expected(), HOUR).unwrap();
    let svid = X509Svid {
        spiffe_id: expected().to_string(),
        x509_svid: svid.certificate.to_vec(),
        x509_svid_key: svid.key.to_vec(),
        bundle: ca.certificate().to_vec(),
        hint: String::new(),
    };
    (X509SvidResponse { svids: vec![svid], ..X509SvidResponse::default() }, ca)
}
