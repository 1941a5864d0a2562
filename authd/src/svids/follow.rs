//! One subscription for each identity that runs here, opened when it comes and closed when it goes, and what
//! the machine is told of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use auth_ebpf_abi::IdentityNumber;
use spiffe::SpiffeId;
use spire_adapter::{ApiError, Bundles, State};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Credential, Feed, IdentitySvid, Offer, SvidSource, Svids};
use crate::auth::{Event, Handle};
use crate::peer::Directory;

/// How long an SVID may be missing before that is a withdrawal.
const GRACE: Duration = Duration::from_millis(400);

/// What [`follow`] needs.
pub struct Following {
    /// Where the SVIDs go.
    pub svids: Svids,
    /// Where they come from.
    pub source: Arc<dyn SvidSource>,
    /// This node's name.
    pub node: String,
    /// What runs here.
    pub directory: watch::Receiver<Arc<Directory>>,
    /// Who is told.
    pub auth: Handle,
}

/// Follows the SVIDs of all identities that run here, until `stop`.
pub async fn follow(following: Following, stop: CancellationToken) {
    let Following { svids, source, node, mut directory, auth } = following;
    let mut open: BTreeMap<IdentityNumber, (SpiffeId, DropGuard)> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let now = Arc::clone(&directory.borrow_and_update());
        let wanted = running_here(&now, &node);
        let gone: Vec<IdentityNumber> = open
            .iter()
            .filter(|(identity, (spiffe_id, _))| wanted.get(identity) != Some(spiffe_id))
            .map(|(identity, _)| *identity)
            .collect();
        open.retain(|identity, _| !gone.contains(identity));
        // In one change: whatever is announced in between would look to other nodes like a withdrawal.
        if now.nodes.contains_key(&node) || !gone.is_empty() {
            svids.change(|known| {
                known.retain(|identity, _| !gone.contains(identity));
                let new = wanted.iter().filter(|(identity, _)| !open.contains_key(*identity));
                known.extend(new.map(|(identity, spiffe_id)| (*identity, IdentitySvid::unknown(spiffe_id))));
            });
        }
        for identity in gone {
            auth.tell(Event::SvidMissing(identity)).await;
        }
        for (identity, spiffe_id) in wanted {
            open.entry(identity).or_insert_with(|| {
                let closed = CancellationToken::new();
                let one = One { identity, svids: svids.clone(), auth: auth.clone(), bundles: Bundles::new() };
                let feed = source.subscribe(identity, &spiffe_id);
                tasks.spawn(closed.clone().run_until_cancelled_owned(one.run(feed)));
                (spiffe_id, closed.drop_guard())
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = directory.changed() => if changed.is_err() { break },
            Some(_) = tasks.join_next() => {}
        }
    }
    tasks.shutdown().await;
}

fn running_here(directory: &Directory, node: &str) -> BTreeMap<IdentityNumber, SpiffeId> {
    let here = directory.nodes.get(node).map(|node| node.identities.iter()).into_iter().flatten();
    here.filter_map(|identity| Some((*identity, directory.identities.get(identity)?.clone()))).collect()
}

/// One identity's stream.
struct One {
    identity: IdentityNumber,
    svids: Svids,
    auth: Handle,
    /// By which peers were verified last.
    bundles: Bundles,
}

impl One {
    async fn run(mut self, feed: Feed) {
        let Feed { offers: mut told, keep: _keep } = feed;
        let mut ends: Option<Instant> = None;
        loop {
            let now = told.borrow_and_update().clone();
            let missing = self.take_in(&now).await;
            // Further messages without the SVID don't prolong the gap.
            ends = missing.then(|| ends.unwrap_or_else(|| Instant::now() + GRACE));
            let end = async {
                match ends {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = told.changed() => if changed.is_err() { return },
                () = end => self.withdraw().await,
            }
        }
    }

    /// Whether the SVID is missing now and may be withdrawn.
    async fn take_in(&mut self, told: &Offer) -> bool {
        let Offer { snapshot, api, unused } = told;
        let credential = Credential::of(snapshot);
        let mut anchor_lost = false;
        if let Some(credential) = &credential {
            let before = std::mem::replace(&mut self.bundles, credential.bundles.clone());
            anchor_lost = credential.bundles.lack_anchor_of(&before, self.svids.0.clock.wall());
        }
        let ends = |usable: &Credential| self.svids.ends(usable.svid.leaf_hash(), usable.svid.not_after());
        let expires = credential.as_ref().map(ends);
        let mut withdrawn = false;
        self.svids.change(|known| {
            if let Some(known) = known.get_mut(&self.identity) {
                known.withdrawn &= credential.is_none();
                known.arrived |= credential.is_some();
                known.credential = credential;
                (known.api, known.unused) = (*api, *unused);
                if matches!(snapshot.problem, Some(ApiError::OtherIdentity { .. }))
                    && known.problem != snapshot.problem
                {
                    self.svids.0.refused.fetch_add(1, Ordering::Relaxed);
                }
                known.problem.clone_from(&snapshot.problem);
                withdrawn = known.withdrawn;
            }
        });
        let identity = self.identity;
        match expires {
            Some(expires) => self.auth.tell(Event::SvidChanged { identity, expires }).await,
            None => self.auth.tell(Event::SvidMissing(identity)).await,
        }
        if anchor_lost {
            tracing::warn!(
                identity,
                "an anchor has left its trust bundle; what may rest on it is proven anew"
            );
            self.auth.tell(Event::AnchorLost(identity)).await;
        }
        snapshot.state == State::Withdrawn && !withdrawn
    }

    async fn withdraw(&self) {
        let identity = self.identity;
        self.svids.change(|known| {
            if let Some(known) = known.get_mut(&identity) {
                known.withdrawn = true;
            }
        });
        tracing::warn!(identity, "SVID withdrawn");
        self.auth.tell(Event::SvidWithdrawn(identity)).await;
    }
}
