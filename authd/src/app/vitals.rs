//! Figures that are read rather than counted, brought up to date once a second, and a log line whenever a
//! guard changes: an override written by `authctl` goes past the daemon.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use auth_ebpf::Maps;
use auth_ebpf_abi::{Mode, Setting};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::Handle,
    clock::{BootTime, Clock},
    cluster::Cluster,
    flows::wall_time,
    metrics::{Metrics, ModeLabels, saturate},
    svids::{Credential, Svids},
};

const PERIOD: Duration = Duration::from_secs(1);

/// Keeps the metrics' gauges true.
pub(super) struct VitalsTask {
    pub(super) metrics: Arc<Metrics>,
    pub(super) maps: Maps,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) cluster: watch::Receiver<Arc<Cluster>>,
    pub(super) svids: Svids,
    pub(super) auth: Handle,
    pub(super) stop: CancellationToken,
}

/// A guard's name and its slots.
const GUARDS: [(&str, Setting, Setting); 2] = [
    ("policy", Setting::PolicyMode, Setting::PolicyOffUntil),
    ("encryption", Setting::EncryptionMode, Setting::EncryptionOffUntil),
];

impl VitalsTask {
    pub(super) async fn run(self) {
        let mut period = tokio::time::interval(PERIOD);
        let mut known = [None; GUARDS.len()];
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = period.tick() => {}
            }
            self.count();
            for ((name, mode, off), known) in GUARDS.into_iter().zip(&mut known) {
                self.look_at_guard(name, mode, off, known);
            }
        }
    }

    fn count(&self) {
        let metrics = &self.metrics;
        metrics.auth_entries.set(saturate(self.auth.records().borrow().len()));
        metrics.auth_requests_dropped.inner().store(self.auth.dropped(), Ordering::Relaxed);
        metrics.cluster_problems.set(saturate(self.cluster.borrow().problems.len()));
        let (running, waiting) = self.auth.load();
        metrics.handshakes_running.set(saturate(running));
        metrics.handshakes_waiting.set(saturate(waiting));
        metrics.auth_rewritten.inner().store(self.auth.counters().rewritten, Ordering::Relaxed);
        let all = self.svids.all();
        let valid = all.keys().filter(|identity| self.svids.identity(**identity).is_some()).count();
        metrics.set_svids(valid, all.len().saturating_sub(valid));
        metrics.svids_refused.inner().store(self.svids.refused(), Ordering::Relaxed);
        metrics.agent_stuck.set(self.svids.agent_is_stuck().into());
        let wall = self.clock.wall();
        let left = |credential: &Credential| {
            credential.svid.not_after().duration_since(wall).unwrap_or_default().as_secs_f64()
        };
        metrics.node_svid_expiry.set(self.svids.node().as_ref().map_or(0.0, left));
        let first = all.values().filter_map(|known| known.credential.as_ref()).map(left).reduce(f64::min);
        metrics.svid_expiry.set(first.unwrap_or_default());
    }

    /// Shows whether a guard lets pass what it would drop, and logs when its override has changed.
    fn look_at_guard(&self, name: &'static str, mode: Setting, off: Setting, known: &mut Option<BootTime>) {
        let config = self.maps.config();
        let (Ok(mode), Ok(off)) = (config.get(mode), config.get(off)) else { return };
        let now = self.clock.now();
        let until = Some(BootTime(off)).filter(|until| *until > now);
        let observes = Mode::from_number(mode) == Mode::Observe || until.is_some();
        self.metrics.observing.get_or_create(&ModeLabels { of: name }).set(observes.into());
        if *known == until {
            return;
        }
        *known = until;
        match until {
            Some(until) => {
                let until = wall_time(&*self.clock, until).to_jiff().map(tracing::field::display);
                tracing::warn!(guard = name, until, "a guard is off");
            }
            None => tracing::warn!(guard = name, "a guard is on again"),
        }
    }
}
