//! Handshakes become metrics.

use std::{sync::Arc, time::Duration};

use crate::{
    auth::stats::{Observer, Side},
    metrics::Metrics,
};

/// Counts handshakes in the daemon's metrics.
pub(super) struct HandshakeObserver(pub(super) Arc<Metrics>);

impl Observer for HandshakeObserver {
    fn handshake(&self, side: Side, outcome: Result<(), &'static str>, latency: Duration) {
        self.0.handshake(side.as_str(), outcome, latency);
    }
}
