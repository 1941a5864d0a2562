//! SPIRE's Delegated Identity API: SVIDs of other workloads on this node, by their selectors or their process.
//!
//! One stream per identity, and one for bundles that all of them share. A foreign bundle is usable only while
//! the identity's own stream lists its trust domain: the agent never takes one off the bundle stream.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::broker::Process;
use crate::proto::SelectorParts;
use crate::proto::delegated::{
    BundlesRequest, BundlesResponse, SERVICE, SUBSCRIBE_TO_X509_BUNDLES, SUBSCRIBE_TO_X509_SVIDS,
    SvidWithKey, SvidsRequest, SvidsResponse,
};
use crate::snapshot::{Heard, Message, Trust};
use crate::stream::{self, Agent, Call};
use crate::subscription::{self, Subscription, Svids};
use crate::workload::{MAX_BUNDLES, MAX_SVIDS, check_count, later, readable_bundles};
use crate::{Bundles, Error, Selector, SpiffeId, Svid, TrustDomain};

/// An agent's admin socket. Cheap to clone; the last one of it and of its subscriptions closes the bundle
/// stream.
#[derive(Debug, Clone)]
pub struct DelegatedAgent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    agent: Arc<Agent>,
    trust: watch::Receiver<Trust>,
    _close: DropGuard,
}

impl DelegatedAgent {
    /// Starts to follow the bundles at the admin socket `socket`. Must be called within a tokio runtime.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let agent = Agent::new(socket.into());
        let token = CancellationToken::new();
        let (sender, trust) = watch::channel(Trust::default());
        let task = follow_bundles(Arc::clone(&agent), sender);
        let cancelled = token.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = cancelled.cancelled() => {}
                () = task => {}
            }
        });
        Self(Arc::new(Inner { agent, trust, _close: token.drop_guard() }))
    }

    /// Follows the SVID of `expected`, which the agent gives for workloads that have `selectors`. Must be
    /// called within a tokio runtime.
    pub fn subscribe(
        &self,
        selectors: impl IntoIterator<Item = Selector>,
        expected: SpiffeId,
    ) -> Subscription {
        let selectors = selectors.into_iter().map(|selector| SelectorParts::from(&selector)).collect();
        let inner = Arc::clone(&self.0);
        let wanted = expected.clone();
        subscription::start(expected, self.0.trust.clone(), move |sink| async move {
            inner.follow(SvidsRequest { selectors, pid: 0 }, wanted, sink).await;
        })
    }

    /// Follows the SVID of `expected`, which the agent gives to `process`, for as long as that lives: the agent
    /// attests it itself. Must be called within a tokio runtime.
    pub fn subscribe_process(&self, process: Process, expected: SpiffeId) -> Subscription {
        let inner = Arc::clone(&self.0);
        let wanted = expected.clone();
        subscription::start(expected, self.0.trust.clone(), move |sink| async move {
            let request = SvidsRequest { selectors: Vec::new(), pid: process.pid() };
            let stream = inner.follow(request, wanted, sink.clone());
            process.follow(&inner.agent, sink, stream).await;
        })
    }

    /// Every bundle on the agent's stream now, whoever may use it. That may be nobody: a trust domain with which
    /// nothing federates any more stays on the stream for as long as it is open.
    pub fn announced(&self) -> Bundles {
        self.0.trust.borrow().bundles.clone()
    }

    /// The admin socket.
    pub fn path(&self) -> &Path {
        self.0.agent.path()
    }
}

impl Inner {
    async fn follow(&self, request: SvidsRequest, wanted: SpiffeId, sink: mpsc::Sender<Heard<Message>>) {
        let call = Call { api: SERVICE, method: SUBSCRIBE_TO_X509_SVIDS, header: None, request };
        let parse = Svids(|response: SvidsResponse| read(&response, &wanted));
        stream::follow(&self.agent, call, parse, sink).await;
    }
}

async fn follow_bundles(agent: Arc<Agent>, trust: watch::Sender<Trust>) {
    let (sink, mut heard) = mpsc::channel(4);
    let request = BundlesRequest {};
    let call = Call { api: SERVICE, method: SUBSCRIBE_TO_X509_BUNDLES, header: None, request };
    let parse = |response: BundlesResponse| {
        check_count("bundles", response.ca_certificates.len(), MAX_BUNDLES)?;
        Ok(readable_bundles(&response.ca_certificates).into_iter().collect::<Bundles>())
    };
    let apply = async {
        while let Some(next) = heard.recv().await {
            trust.send_if_modified(|current| {
                let before = current.clone();
                current.hear(next);
                *current != before
            });
        }
    };
    tokio::join!(stream::follow(&agent, call, parse, sink), apply);
}

fn read(response: &SvidsResponse, expected: &SpiffeId) -> Result<Message, Error> {
    check_count("SVIDs", response.x509_svids.len(), MAX_SVIDS)?;
    check_count("federated trust domains", response.federates_with.len(), MAX_BUNDLES)?;
    let mut chosen: Option<Svid> = None;
    for offered in response.x509_svids.iter().filter(|offered| names(offered, expected)) {
        let chain = offered.x509_svid.as_ref().map(|svid| svid.cert_chain.concat()).unwrap_or_default();
        let svid = Svid::from_der(&chain, &offered.x509_svid_key)?;
        if later(&svid, chosen.as_ref(), expected)? {
            chosen = Some(svid);
        }
    }
    let federates_with: BTreeSet<TrustDomain> =
        response.federates_with.iter().filter_map(|name| TrustDomain::new(name).ok()).collect();
    let other = response.x509_svids.first().filter(|_| chosen.is_none()).map(|other| {
        let id = other.x509_svid.as_ref().and_then(|svid| svid.id.as_ref());
        let id = id.and_then(super::proto::SpiffeIdParts::to_id);
        id.map_or_else(|| "an unreadable SPIFFE ID".to_owned(), |id| id.to_string())
    });
    Ok(Message { svid: chosen, federates_with, bundles: None, other })
}

fn names(offered: &SvidWithKey, expected: &SpiffeId) -> bool {
    let id = offered.x509_svid.as_ref().and_then(|svid| svid.id.as_ref());
    id.and_then(super::proto::SpiffeIdParts::to_id).as_ref() == Some(expected)
}
