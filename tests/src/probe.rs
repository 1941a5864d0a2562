//! A steady trickle of connections, to see to a few milliseconds when traffic stops and flows again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::net::TcpStream;
use tokio::time;

use crate::lab::namespace::Namespace;
use crate::wait;

/// Time between two connections.
pub const INTERVAL: Duration = Duration::from_millis(10);
/// How long one may take: less than a second, after which the kernel would send its SYN again. So each
/// connection is an attempt at one moment.
const LIMIT: Duration = Duration::from_millis(500);

/// When connections were begun that came about.
type Made = Arc<Mutex<Vec<Instant>>>;

/// A client that connects, and connects, and connects.
#[derive(Debug)]
pub struct Probe {
    ended: Arc<AtomicBool>,
    made: Made,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Probe {
    /// Starts connecting from a namespace.
    #[must_use]
    pub fn start(from: &Namespace, to: SocketAddr) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let made = Made::default();
        let (end, record) = (Arc::clone(&ended), Arc::clone(&made));
        let thread = from.start(move || {
            // Threads of a runtime are made here, so their sockets are of the namespace.
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
                runtime.block_on(trickle(to, &end, &record));
            }
        });
        Self { ended, made, thread: Some(thread) }
    }

    /// When the latest connection was begun that came about.
    #[must_use]
    pub fn last(&self) -> Option<Instant> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).iter().max().copied()
    }

    /// Waits for a connection that is begun after `time`; how much later it was begun.
    #[must_use]
    pub fn flows_after(&self, time: Instant, limit: Duration) -> Option<Duration> {
        let first = || {
            let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.iter().filter(|begun| **begun > time).min().copied()
        };
        wait::until(limit, first).map(|(begun, _)| begun - time)
    }

    /// Waits until none has come about for `quiet`; the time from `time` to the beginning of the last
    /// that did. None if there still are some after `limit`.
    #[must_use]
    pub fn stops_after(&self, time: Instant, quiet: Duration, limit: Duration) -> Option<Duration> {
        let stopped = || {
            let last = self.last().map_or(time, |last| last.max(time));
            (last.elapsed() >= quiet).then(|| last - time)
        };
        wait::until(limit, stopped).map(|(stopped, _)| stopped)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn trickle(to: SocketAddr, end: &AtomicBool, made: &Made) {
    let mut tick = time::interval(INTERVAL);
    while !end.load(Ordering::Relaxed) {
        tick.tick().await;
        let made = Arc::clone(made);
        tokio::spawn(async move {
            let begun = Instant::now();
            if let Ok(Ok(stream)) = time::timeout(LIMIT, TcpStream::connect(to)).await {
                made.lock().unwrap_or_else(PoisonError::into_inner).push(begun);
                // Reset at the end, which leaves nothing waiting at either side.
                drop(stream.set_zero_linger());
            }
        });
    }
}
