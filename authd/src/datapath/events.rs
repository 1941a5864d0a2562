//! Takes events out of the ring buffer: requests for authentication to the machine, verdicts to the flows.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use auth_ebpf::{Events, Maps};
use auth_ebpf_abi::{AuthKey, Event, EventKind};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::Handle,
    flows::Flows,
    metrics::{Counted, PacketCount},
    peer::Peers,
};

/// How long the thread sleeps at most before it looks whether it is to stop.
const NAP: Duration = Duration::from_millis(200);

/// Takes events on a thread of its own until `stop`: the ring buffer is memory shared with the kernel, and
/// a thread that polls it keeps no other task waiting.
///
/// # Errors
/// The thread can't be started, or the ring buffer can't be polled.
pub async fn pump(
    events: Events,
    auth: Handle,
    peers: Peers,
    flows: Arc<Flows>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new().name("events".to_owned()).spawn(move || {
        // If nobody waits any more, nobody wants to know.
        drop(ended.send(take(events, &auth, &peers, &flows, &stop)));
    })?;
    end.await.unwrap_or(Ok(()))
}

fn take(
    mut events: Events,
    auth: &Handle,
    peers: &Peers,
    flows: &Flows,
    stop: &CancellationToken,
) -> std::io::Result<()> {
    let nap = PollTimeout::try_from(NAP).unwrap_or(PollTimeout::ZERO);
    while !stop.is_cancelled() {
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], nap) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        while let Some(event) = events.next() {
            dispatch(&event, auth, peers, flows);
        }
    }
    Ok(())
}

fn dispatch(event: &Event, auth: &Handle, peers: &Peers, flows: &Flows) {
    match EventKind::from_number(event.kind) {
        // A full queue counts it; the packet's sender tries again.
        Some(EventKind::AuthWanted) => drop(auth.ask(auth_key(event))),
        Some(EventKind::AnnouncementWanted) => peers.announce(event.node),
        Some(EventKind::Verdict) => flows.publish(event),
        None => tracing::warn!(kind = event.kind, "unknown event; programs of another version are attached"),
    }
}

const fn auth_key(event: &Event) -> AuthKey {
    AuthKey { local: event.local, remote: event.remote, node: event.node, auth_type: event.auth_type, pad: 0 }
}

/// What the programs have counted, as the metrics show it.
#[must_use]
pub fn packet_counts(maps: &Maps) -> Counted {
    let counted = match maps.metrics() {
        Ok(counted) => counted,
        Err(error) => {
            tracing::warn!(%error, "the programs' counters can't be read");
            return Counted::default();
        }
    };
    let packets = counted
        .counters
        .iter()
        .map(|((hook, verdict, reason), counter)| PacketCount {
            hook: hook.as_str(),
            verdict: verdict.as_str(),
            reason: reason.map_or("", auth_ebpf_abi::DropReason::as_str),
            packets: counter.packets,
            bytes: counter.bytes,
        })
        .collect();
    Counted { packets, lost_events: counted.lost_events }
}
