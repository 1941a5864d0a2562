//! How long an SVID was missing, as whoever watches it would see.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spire_adapter::{Snapshot, Subscription};
use tokio::task::JoinHandle;

/// Watches a subscription until it is asked.
pub(crate) struct Recorder {
    record: Arc<Mutex<Record>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Record {
    missing: Option<Instant>,
    gaps: Vec<Duration>,
    svids: usize,
}

impl Recorder {
    /// From an SVID that is there.
    pub(crate) fn start(subscription: &Subscription) -> Self {
        let mut watch = subscription.watch();
        let record = Arc::new(Mutex::new(Record::default()));
        let shared = Arc::clone(&record);
        let task = tokio::spawn(async move {
            let mut last = watch.borrow_and_update().svid().cloned();
            while watch.changed().await.is_ok() {
                let snapshot = watch.borrow_and_update().clone();
                let mut record = shared.lock().unwrap();
                record.hear(&snapshot);
                if snapshot.svid().is_some() && snapshot.svid() != last.as_ref() {
                    record.svids += 1;
                    last = snapshot.svid().cloned();
                }
            }
        });
        Self { record, task }
    }

    /// How long the SVID was missing, each time; the last may not have ended.
    pub(crate) fn gaps(&self) -> Vec<Duration> {
        let record = self.record.lock().unwrap();
        let open = record.missing.map(|since| since.elapsed());
        record.gaps.iter().copied().chain(open).collect()
    }

    /// How many new SVIDs have come.
    pub(crate) fn svids(&self) -> usize {
        self.record.lock().unwrap().svids
    }
}

impl Record {
    fn hear(&mut self, snapshot: &Snapshot) {
        match (snapshot.svid(), self.missing) {
            (None, None) => self.missing = Some(Instant::now()),
            (Some(_), Some(since)) => {
                self.gaps.push(since.elapsed());
                self.missing = None;
            }
            (None, Some(_)) | (Some(_), None) => {}
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}
