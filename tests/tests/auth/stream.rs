//! A steady stream of numbered datagrams, each of which comes back: what is missing was lost on the way or back.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use authd_tests::lab::node::Family;
use authd_tests::star_wars::PATIENCE;
use authd_tests::{Pod, StarWars, wait};

/// A port of the deathstar for which [`POLICY`] wants authentication.
pub(crate) const PORT: u16 = 9000;
/// Time between two datagrams.
pub(crate) const INTERVAL: Duration = Duration::from_millis(2);
/// How long the last ones may be under way.
const STRAGGLERS: Duration = Duration::from_millis(700);

/// Both ends want authentication.
pub(crate) const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: both-ends, namespace: default}
specs:
  - endpointSelector: {matchLabels: {class: deathstar}}
    ingress:
      - authentication: {mode: required}
        fromEndpoints: [{matchLabels: {org: empire}}]
        toPorts: [{ports: [{port: \"9000\", protocol: ANY}]}]
  - endpointSelector: {matchLabels: {class: tiefighter}}
    egress:
      - authentication: {mode: required}
        toEndpoints: [{matchLabels: {class: deathstar}}]
";

/// What became of the datagrams, in the order in which they were sent.
#[derive(Debug, Default)]
pub(crate) struct Stream(Vec<(Instant, bool)>);

impl Stream {
    /// Sends from tiefighter to deathstar while `meanwhile` runs.
    pub(crate) fn during<T>(
        scene: &mut StarWars,
        family: Family,
        meanwhile: impl FnOnce(&mut StarWars) -> Result<T>,
    ) -> Result<(Self, T)> {
        let to = SocketAddr::new(scene.pod("deathstar")?.address(family)?, PORT);
        let (from, echo) =
            (bound(scene.pod("tiefighter")?, family, 0)?, bound(scene.pod("deathstar")?, family, PORT)?);
        let (done, over) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let echoing = scope.spawn(|| send_back(&echo, &over));
            let begun = wait::until(PATIENCE, || is_echoed(&from, to).then_some(()));
            let sending = begun.map(|_| scope.spawn(|| Self::default().send(&from, to, &done)));
            let outcome = sending.is_some().then(|| meanwhile(scene));
            done.store(true, Ordering::Relaxed);
            let stream = sending.map(|sending| sending.join());
            over.store(true, Ordering::Relaxed);
            drop(echoing.join());
            let stream = stream.context("nothing comes back")?;
            let stream = stream.map_err(|_panicked| anyhow::anyhow!("the sender has panicked"))??;
            Ok((stream, outcome.context("not begun")??))
        })
    }

    fn send(mut self, from: &UdpSocket, to: SocketAddr, done: &AtomicBool) -> Result<Self> {
        from.set_nonblocking(true)?;
        let begun = Instant::now();
        while !done.load(Ordering::Relaxed) {
            let number = u32::try_from(self.0.len())?;
            self.0.push((Instant::now(), false));
            // While nothing leads there, the kernel says so here; then it is lost.
            drop(from.send_to(&number.to_be_bytes(), to));
            self.take_back(from);
            let next = begun + INTERVAL * (number + 1);
            wait::pause(next.saturating_duration_since(Instant::now()));
        }
        let ended = Instant::now();
        while ended.elapsed() < STRAGGLERS {
            self.take_back(from);
            wait::pause(INTERVAL);
        }
        Ok(self)
    }

    fn take_back(&mut self, from: &UdpSocket) {
        let mut datagram = [0; 4];
        while let Ok(4) = from.recv(&mut datagram) {
            let number = usize::try_from(u32::from_be_bytes(datagram)).unwrap_or(usize::MAX);
            if let Some((_, came)) = self.0.get_mut(number) {
                *came = true;
            }
        }
    }

    /// How many were sent.
    pub(crate) fn sent(&self) -> usize {
        self.0.len()
    }

    /// When those were sent that are missing.
    pub(crate) fn lost(&self) -> Vec<Instant> {
        self.0.iter().filter(|(_, came)| !came).map(|(at, _)| *at).collect()
    }

    /// What is missing, in words: of how many, and for how long each time.
    pub(crate) fn gaps(&self) -> String {
        let Some((begun, _)) = self.0.first() else { return "nothing was sent".to_owned() };
        let mut gaps: Vec<(Instant, Instant, u32)> = Vec::new();
        for pair in self.0.windows(2) {
            let [(before, came_before), (at, came)] = pair else { continue };
            if *came {
                continue;
            }
            match gaps.last_mut().filter(|_| !came_before) {
                Some((_, until, count)) => (*until, *count) = (*at, *count + 1),
                None => gaps.push((*before, *at, 1)),
            }
        }
        let told = gaps.iter().map(|(from, until, count)| {
            format!("{count} in {:?} from {:?}", *until - *from, from.duration_since(*begun))
        });
        format!("{} of {} are lost: {}", self.lost().len(), self.sent(), told.collect::<Vec<_>>().join(", "))
    }

    /// When the last one was sent that came back, of those from before `until`.
    pub(crate) fn last_before(&self, until: Instant) -> Option<Instant> {
        self.0.iter().filter(|(at, came)| *came && *at < until).map(|(at, _)| *at).next_back()
    }

    /// When the first one was sent that came back, of those from after `since`.
    pub(crate) fn first_after(&self, since: Instant) -> Option<Instant> {
        self.0.iter().find(|(at, came)| *came && *at > since).map(|(at, _)| *at)
    }
}

fn bound(pod: &Pod, family: Family, port: u16) -> Result<UdpSocket> {
    pod.udp_bind(SocketAddr::new(pod.address(family)?, port))
}

fn send_back(socket: &UdpSocket, over: &AtomicBool) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut datagram = [0; 8];
    while !over.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut datagram) {
            drop(socket.send_to(datagram.get(..length).unwrap_or_default(), from));
        }
    }
    Ok(())
}

/// Whether one that is no number of the stream comes back soon.
fn is_echoed(from: &UdpSocket, to: SocketAddr) -> bool {
    let send = || from.send_to(b"first", to).is_ok();
    let mut datagram = [0; 8];
    from.set_nonblocking(false).is_ok()
        && from.set_read_timeout(Some(Duration::from_millis(500))).is_ok()
        && send()
        && from.recv(&mut datagram).is_ok()
}
