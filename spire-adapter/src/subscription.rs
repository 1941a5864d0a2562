//! A supervised task per identity: it follows one stream, times NotAfter and publishes snapshots to whoever
//! watches, each only if it differs in content from the one before.

use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::SpiffeId;
use crate::snapshot::{Heard, Message, Snapshot, Tracker, Trust};
use crate::stream::Parse;

/// Longest time without a look at the wall clock, which may be set.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// One identity's snapshots. Dropping it closes the stream.
#[derive(Debug)]
pub struct Subscription {
    spiffe_id: SpiffeId,
    snapshots: watch::Receiver<Snapshot>,
    _close: DropGuard,
}

impl Subscription {
    /// Whose snapshots these are.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// A receiver of every change. It outlives the subscription, then without changes.
    pub fn watch(&self) -> watch::Receiver<Snapshot> {
        self.snapshots.clone()
    }

    /// The latest snapshot.
    pub fn current(&self) -> Snapshot {
        self.snapshots.borrow().clone()
    }
}

/// Reads messages about one identity, and expects newer ones in time.
pub(crate) struct Svids<F>(pub(crate) F);

impl<R, F: Fn(R) -> Result<Message, crate::Error>> Parse<R, Message> for Svids<F> {
    fn parse(&self, response: R) -> Result<Message, crate::Error> {
        (self.0)(response)
    }

    fn silence(&self, message: &Message) -> Option<Duration> {
        message.silence(SystemTime::now())
    }
}

/// Starts the task of one identity. `follow` makes the future that feeds the stream into its sink; `trust`
/// brings the agent's bundles, where they come on a stream of their own.
pub(crate) fn start<F>(
    expected: SpiffeId,
    trust: watch::Receiver<Trust>,
    follow: impl FnOnce(mpsc::Sender<Heard<Message>>) -> F,
) -> Subscription
where
    F: Future<Output = ()> + Send + 'static,
{
    let token = CancellationToken::new();
    let (sender, snapshots) = watch::channel(Snapshot::default());
    let (sink, heard) = mpsc::channel(4);
    let feed = follow(sink);
    let publish = publish(expected.clone(), heard, trust, sender);
    let cancelled = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = cancelled.cancelled() => {}
            () = feed => {}
            () = publish => {}
        }
    });
    Subscription { spiffe_id: expected, snapshots, _close: token.drop_guard() }
}

async fn publish(
    expected: SpiffeId,
    mut heard: mpsc::Receiver<Heard<Message>>,
    mut trust: watch::Receiver<Trust>,
    snapshots: watch::Sender<Snapshot>,
) {
    let mut tracker = Tracker::new(&expected);
    loop {
        let expiry = until_expiry(&tracker, SystemTime::now());
        tokio::select! {
            next = heard.recv() => match next {
                Some(next) => tracker.hear(next),
                None => return,
            },
            changed = trust.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(expiry) => {}
        }
        let next = tracker.snapshot(SystemTime::now(), &trust.borrow_and_update());
        snapshots.send_if_modified(|current| {
            let modified = *current != next;
            if modified {
                log(&expected, current, &next);
                *current = next;
            }
            modified
        });
    }
}

fn until_expiry(tracker: &Tracker, now: SystemTime) -> Duration {
    let Some(not_after) = tracker.not_after() else {
        return CLOCK_CHECK;
    };
    // One step beyond, since at NotAfter itself the SVID is still valid.
    let left = not_after.duration_since(now).unwrap_or_default().saturating_add(Duration::from_millis(1));
    left.min(CLOCK_CHECK)
}

fn log(spiffe_id: &SpiffeId, before: &Snapshot, after: &Snapshot) {
    if before.state != after.state {
        let not_after = after.svid().map(|svid| crate::der::unix_seconds(svid.not_after()));
        info!(%spiffe_id, state = after.state.as_str(), not_after, "SVID");
    }
    if let Some(problem) = &after.problem
        && before.problem != after.problem
    {
        warn!(%spiffe_id, state = after.state.as_str(), %problem, "SPIRE agent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::CertificateAuthority;

    #[test]
    fn the_timer_is_set_to_just_beyond_not_after() {
        let id = SpiffeId::new("spiffe://a.test/x").unwrap();
        let mut tracker = Tracker::new(&id);
        let now = SystemTime::now();
        assert_eq!(until_expiry(&tracker, now), CLOCK_CHECK);
        let ca = CertificateAuthority::new(id.trust_domain()).unwrap();
        let svid = ca.issue(&id, Duration::from_secs(3600)).unwrap().to_svid().unwrap();
        let not_after = svid.not_after();
        tracker.hear(Heard::Message(Message { svid: Some(svid), ..Message::default() }));
        let step = Duration::from_millis(1);
        let ten = Duration::from_secs(10);
        assert_eq!(until_expiry(&tracker, not_after - ten), ten + step);
        assert_eq!(until_expiry(&tracker, not_after), step);
        assert_eq!(until_expiry(&tracker, not_after + ten), step);
        assert_eq!(until_expiry(&tracker, not_after - 2 * CLOCK_CHECK), CLOCK_CHECK);
    }
}
