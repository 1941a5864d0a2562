//! Reads the device and does what the queue says.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use auth_ebpf::Maps;
use auth_ebpf_abi::{NodeNumber, Setting};
use tokio_util::sync::CancellationToken;

use super::{
    device::{self, BUFFER, Device},
    outcomes::{Outcome, Outcomes, Pending},
    queue::{Action, Event, Frame, Queue, is_announcement},
    table::HoldingAuth,
};
use crate::{
    auth::Handle,
    clock::{BootTime, Clock},
    metrics::{Metrics, saturate},
};

/// For how long the programs may send packets here, from the last time that this task was seen to run.
const LEASE: Duration = Duration::from_secs(1);
/// How often the lease is prolonged.
const PROLONG: Duration = Duration::from_millis(200);
/// How often a device that can't be had is tried again.
const REOPEN: Duration = Duration::from_secs(1);
/// Frames that are read, or given back, before something else has its turn.
const BURST: usize = 64;
/// After how long without anything held credits must all have come back.
const SETTLED: Duration = Duration::from_secs(5);

/// What the task is made of.
pub struct Parts {
    /// The programs' maps.
    pub maps: Maps,
    /// The `auth` map.
    pub table: Arc<HoldingAuth>,
    /// Whom to ask for authentication.
    pub auth: Handle,
    /// Has a node told whose the addresses here are.
    pub announce: Box<dyn Fn(NodeNumber) + Send + Sync>,
    /// What becomes of pairs.
    pub outcomes: Arc<Outcomes>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

/// Holds packets.
pub struct Task {
    parts: Parts,
    device: Option<Device>,
    queue: Queue,
    /// What the queue wants done, in its order.
    outgoing: VecDeque<Action>,
    buffer: Box<[u8]>,
    idle_since: Option<BootTime>,
}

/// Has the programs hold nothing from now on.
///
/// # Errors
/// When the map can't be written.
pub(crate) fn switch_off(maps: &Maps) -> Result<(), auth_ebpf::Error> {
    maps.config().set(Setting::HoldUntil, 0)?;
    maps.config().set(Setting::HoldIfindex, 0)
}

impl Task {
    /// A task that has tried to attach to the device.
    ///
    /// # Errors
    /// When the maps can't be written.
    pub fn new(parts: Parts) -> Result<Self, auth_ebpf::Error> {
        let mut task = Self {
            parts,
            device: None,
            queue: Queue::default(),
            outgoing: VecDeque::new(),
            buffer: vec![0; BUFFER].into(),
            idle_since: None,
        };
        task.open()?;
        Ok(task)
    }

    /// Runs until `stop`. What is held then goes back, and drops by its true reason.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut prolong = tokio::time::interval(PROLONG);
        let mut reopen = tokio::time::interval(REOPEN);
        loop {
            let pause = self.pause();
            let waits = self.outgoing.is_empty();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = prolong.tick(), if self.device.is_some() => self.prolong(),
                _ = reopen.tick(), if self.device.is_none() => self.reopen(),
                () = self.parts.outcomes.come() => self.outcomes(),
                ended = readable(self.device.as_ref()), if waits => match ended {
                    Ok(()) => {
                        self.receive();
                    }
                    Err(error) => self.lose(&error),
                },
                () = tokio::time::sleep(pause), if waits => if self.receive() {
                    self.handle(Event::Tick);
                },
                () = tokio::task::yield_now(), if !waits => {
                    self.receive();
                }
            }
            self.give_back();
        }
        self.log_failure(self.parts.maps.config().set(Setting::HoldUntil, 0));
        self.receive();
        self.handle(Event::Ended);
        while !self.outgoing.is_empty() {
            self.give_back();
        }
        self.log_failure(switch_off(&self.parts.maps));
    }

    fn pause(&self) -> Duration {
        let left = self.queue.next_deadline().map(|at| at.since(self.parts.clock.now()));
        left.map_or(PROLONG, |left| left.min(PROLONG))
    }

    /// Attaches to the device, with no credit taken.
    fn open(&mut self) -> Result<(), auth_ebpf::Error> {
        // The programs at it are looked after elsewhere; until then, this may be another device.
        switch_off(&self.parts.maps)?;
        self.parts.metrics.hold_up.set(0);
        match Device::open() {
            Ok(device) => {
                // What was held before has gone with whoever held it.
                self.parts.maps.hold().forget_all()?;
                let takes_datagrams = u64::from(device.takes_datagrams());
                self.parts.maps.config().set(Setting::HoldDatagrams, takes_datagrams)?;
                tracing::info!(interface = device::INTERFACE, "attached to the hold device");
                self.device = Some(device);
                self.prolong();
            }
            Err(error) => tracing::error!(
                interface = device::INTERFACE,
                %error,
                "first packets of pairs drop: the hold device can't be had; \
                 CAP_NET_ADMIN and /dev/net/tun are needed, and no other interface of that name"
            ),
        }
        Ok(())
    }

    fn reopen(&mut self) {
        let opened = self.open();
        self.log_failure(opened);
    }

    fn lose(&mut self, error: &io::Error) {
        tracing::error!(interface = device::INTERFACE, %error, "the hold device was taken away");
        self.device = None;
        self.log_failure(switch_off(&self.parts.maps));
    }

    fn prolong(&mut self) {
        let now = self.parts.clock.now();
        let until = now.saturating_add(LEASE).0;
        let prolonged = self.parts.maps.config().set(Setting::HoldUntil, until);
        self.parts.metrics.hold_up.set(prolonged.is_ok().into());
        self.log_failure(prolonged);
        self.mend(now);
    }

    /// What went with an interface has not given its credits back.
    fn mend(&mut self, now: BootTime) {
        if !self.queue.is_idle() || !self.outgoing.is_empty() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        let hold = self.parts.maps.hold();
        if now.since(since) >= SETTLED && hold.taken().is_ok_and(|units| units != 0) {
            tracing::debug!("giving back the credits of packets that never came back");
            self.log_failure(hold.give_back_all());
        }
    }

    fn outcomes(&mut self) {
        let Pending { pairs, announced } = self.parts.outcomes.take();
        for (key, outcome) in pairs {
            self.handle(match outcome {
                Outcome::Authenticated => Event::Authenticated(key),
                Outcome::Failed => Event::Failed(key),
            });
        }
        for node in announced {
            self.handle(Event::Announced(node));
        }
    }

    /// Takes what the device has to give, up to a burst; whether that was all.
    fn receive(&mut self) -> bool {
        for _ in 0..BURST {
            let Some(device) = &self.device else { return true };
            match device.receive(&mut self.buffer) {
                Ok(Some(length)) => self.arrived(length),
                Ok(None) => return true,
                Err(error) => {
                    self.lose(&error);
                    return true;
                }
            }
        }
        false
    }

    fn arrived(&mut self, length: usize) {
        self.idle_since = None;
        let Some(bytes) = self.buffer.get(..length) else { return };
        // Only the programs send here, so each has a token.
        let Some(token) = device::token(bytes) else { return };
        let held = match self.parts.maps.hold().held(token) {
            Ok(held) => held,
            Err(error) => return self.log_failure(Err(error)),
        };
        let frame = Frame { key: held.key(), since: BootTime(held.since), bytes: bytes.to_vec() };
        let come = self.parts.table.is_there(&frame.key).unwrap_or(false);
        self.handle(Event::Arrived(frame, come));
    }

    fn handle(&mut self, event: Event) {
        self.queue.handle(event, self.parts.clock.now());
        self.outgoing.extend(self.queue.actions());
        self.parts.metrics.held_packets.set(saturate(self.queue.held()));
    }

    fn give_back(&mut self) {
        let now = self.parts.clock.now();
        for _ in 0..BURST {
            match self.outgoing.pop_front() {
                Some(Action::Release(frame)) => self.release(&frame, now),
                Some(Action::Ask(key)) if is_announcement(&key) => (self.parts.announce)(key.node),
                // A full queue counts it; the pair's next packet after these asks again.
                Some(Action::Ask(key)) => drop(self.parts.auth.ask(key)),
                Some(Action::Settle(key)) => self.log_failure(self.parts.table.settle(&key)),
                None => return,
            }
        }
    }

    /// The programs have decided on the frame when this returns, one way or the other.
    fn release(&self, frame: &Frame, now: BootTime) {
        let Some(device) = &self.device else { return };
        if let Err(error) = device.send(&frame.bytes) {
            tracing::debug!(%error, "a frame could not be given back");
        }
        self.parts.metrics.hold_time.observe(now.since(frame.since).as_secs_f64());
    }

    fn log_failure(&self, outcome: Result<(), auth_ebpf::Error>) {
        if let Err(error) = outcome {
            tracing::error!(error = &error as &dyn std::error::Error, "holding packets");
        }
    }
}

async fn readable(device: Option<&Device>) -> io::Result<()> {
    match device {
        Some(device) => device.readable().await,
        None => std::future::pending().await,
    }
}
