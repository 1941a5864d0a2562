//! The SPIFFE Workload API: this process's own SVID, with the bundles that come in the same message.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tokio::sync::watch;
use tracing::warn;

use crate::proto::workload::{FETCH_X509_SVID, SECURITY_HEADER, SERVICE, X509SvidRequest, X509SvidResponse};
use crate::snapshot::{Message, Trust};
use crate::stream::{self, Agent, Call};
use crate::subscription::{self, Subscription, Svids};
use crate::{Bundle, Bundles, Error, SpiffeId, Svid, TrustDomain};

/// Most SVIDs of one message. An agent gives a caller those of its own entries: a few, or some dozens.
pub(crate) const MAX_SVIDS: usize = 1000;
/// Most bundles of one message: one for each trust domain that is federated with.
pub(crate) const MAX_BUNDLES: usize = 1000;

/// Follows the SVID of `expected` on the Workload API at `socket`. The agent may have more SVIDs for this
/// process; they are not looked at. Must be called within a tokio runtime.
pub fn subscribe(socket: impl Into<PathBuf>, expected: SpiffeId) -> Subscription {
    let agent = Agent::new(socket.into());
    let request = X509SvidRequest {};
    let call = Call { api: SERVICE, method: FETCH_X509_SVID, header: Some(SECURITY_HEADER), request };
    let (keep, trust) = watch::channel(Trust::default());
    let wanted = expected.clone();
    subscription::start(expected, trust, move |sink| async move {
        let parse = Svids(|response: X509SvidResponse| read(&response, &wanted));
        stream::follow(&agent, call, parse, sink).await;
        drop(keep);
    })
}

pub(crate) fn read(response: &X509SvidResponse, expected: &SpiffeId) -> Result<Message, Error> {
    check_count("SVIDs", response.svids.len(), MAX_SVIDS)?;
    check_count("bundles", response.federated_bundles.len(), MAX_BUNDLES)?;
    let name = expected.to_string();
    let mut chosen: Option<Svid> = None;
    let mut bundles = Vec::new();
    for offered in response.svids.iter().filter(|offered| offered.spiffe_id == name) {
        let svid = Svid::from_der(&offered.x509_svid, &offered.x509_svid_key)?;
        let bundle = Bundle::from_der(expected.trust_domain().clone(), &offered.bundle)?;
        if later(&svid, chosen.as_ref(), expected)? {
            chosen = Some(svid);
            bundles = vec![bundle];
        }
    }
    let federated = foreign_bundles(&response.federated_bundles, expected.trust_domain());
    let federates_with: BTreeSet<TrustDomain> =
        federated.iter().map(|bundle| bundle.trust_domain().clone()).collect();
    bundles.extend(federated);
    let bundles = Some(bundles.into_iter().collect::<Bundles>());
    let other = response.svids.first().filter(|_| chosen.is_none()).map(|other| named(&other.spiffe_id));
    Ok(Message { svid: chosen, federates_with, bundles, other })
}

/// Whether `svid` is the expected one, and valid for longer than the one chosen so far.
pub(crate) fn later(svid: &Svid, chosen: Option<&Svid>, expected: &SpiffeId) -> Result<bool, Error> {
    if svid.spiffe_id() != expected {
        return Err(Error::OtherIdentity {
            expected: expected.to_string(),
            found: svid.spiffe_id().to_string(),
        });
    }
    Ok(chosen.is_none_or(|chosen| svid.not_after() > chosen.not_after()))
}

/// Refuses a message that holds more than any agent sends.
pub(crate) fn check_count(what: &'static str, found: usize, limit: usize) -> Result<(), Error> {
    if found > limit { Err(Error::Crowded { what, found, limit }) } else { Ok(()) }
}

/// Bundles of foreign trust domains. One that cannot be read is left out, which fails closed for that domain
/// and leaves the others alone; the own domain's never comes from here.
fn foreign_bundles(named: &BTreeMap<String, Vec<u8>>, own: &TrustDomain) -> Vec<Bundle> {
    let mut bundles = readable_bundles(named);
    bundles.retain(|bundle| bundle.trust_domain() != own);
    bundles
}

/// What a message calls somebody, short enough to be told.
pub(crate) fn named(text: &str) -> String {
    /// The longest SPIFFE ID.
    const LONGEST: usize = 2048;
    text.chars().take(LONGEST).collect()
}

/// Every bundle that can be read, with a warning for the others.
pub(crate) fn readable_bundles(named: &BTreeMap<String, Vec<u8>>) -> Vec<Bundle> {
    let mut bundles = Vec::with_capacity(named.len());
    for (name, der) in named {
        let Ok(trust_domain) = TrustDomain::new(name) else {
            warn!(name, "bundle of an invalid trust domain left out");
            continue;
        };
        match Bundle::from_der(trust_domain, der) {
            Ok(bundle) => bundles.push(bundle),
            Err(error) => warn!(%error, "bundle left out"),
        }
    }
    bundles
}
