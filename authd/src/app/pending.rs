//! Tells the programs whose SVID has not come yet, so that what drops for it says so.

use std::collections::{BTreeMap, BTreeSet};

use auth_ebpf::Maps;
use auth_ebpf_abi::{IdentityNumber, PendingEntry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Keeps the map as `pending` says, until `stop`. Nothing rests on it: a write that fails is only logged.
pub(super) async fn show(
    mut pending: watch::Receiver<BTreeSet<IdentityNumber>>,
    maps: Maps,
    stop: CancellationToken,
) {
    loop {
        let entry = |identity: &IdentityNumber| (*identity, PendingEntry { pending: 1 });
        let now: BTreeMap<_, _> = pending.borrow_and_update().iter().map(entry).collect();
        if let Err(error) = maps.svid_pending().reconcile(&now) {
            tracing::warn!(%error, "drops don't say SVID_PENDING");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = pending.changed() => if changed.is_err() { return },
        }
    }
}
