//! Handshakes become metrics.

use std::{sync::Arc, time::Duration};

use crate::{
    auth::stats::{Observer, Proving, Side},
    metrics::Metrics,
};

/// Counts handshakes and proofs in the daemon's metrics.
pub(super) struct HandshakeObserver(pub(super) Arc<Metrics>);

impl Observer for HandshakeObserver {
    fn proof(&self, proving: Proving, outcome: Result<(), &'static str>) {
        self.0.proof(proving.as_str(), outcome);
    }

    fn handshake(&self, side: Side, outcome: Result<(), &'static str>, latency: Duration) {
        self.0.handshake(side.as_str(), outcome, latency);
    }
}
