//! Takes dead connections out of the kernel's map, a few at a time.

use std::time::{Duration, Instant};

use auth_ebpf::Maps;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::clock::boot_now;

/// Between two strides of a sweep: with their length, it bounds the share of a CPU that sweeping takes.
const PAUSE: Duration = Duration::from_millis(200);
/// From the beginning of one sweep to that of the next, if the first isn't longer.
const INTERVAL: Duration = Duration::from_secs(30);

/// Sweeps on a thread of its own until `stop`, since the map is read by system calls that wait for nothing.
///
/// # Errors
/// The thread can't be started. A sweep that fails is logged, and comes again.
pub async fn keep(maps: Maps, stop: CancellationToken) -> std::io::Result<()> {
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new().name("sweep".to_owned()).spawn(move || {
        sweep(&maps, &stop);
        // If nobody waits any more, nobody wants to know.
        let _unheard = ended.send(());
    })?;
    drop(end.await);
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, which may block")]
fn sweep(maps: &Maps, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        let began = Instant::now();
        let pause = || {
            std::thread::sleep(PAUSE);
            !stop.is_cancelled()
        };
        match maps.sweep(|| boot_now().0, pause) {
            Ok(swept) if swept.removed != 0 => {
                tracing::debug!(alive = swept.alive, removed = swept.removed, "connections swept");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "dead connections stay in the map"),
        }
        while began.elapsed() < INTERVAL && pause() {}
    }
}
