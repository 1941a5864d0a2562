//! The tunnel process: WireGuard in user space, for nodes whose kernel has none.
//!
//! It owns a private key that never leaves it, a TUN interface that stays when it dies, and a control
//! socket. One task owns everything that packets touch, so there is no lock on their way. It keeps its last
//! desired state for as long as it lives, and depends on nothing but its socket and its interface.

mod allowed_ips;
mod control;
mod device;
mod flood;
mod interface;
mod lock;
mod packet;
mod peer;
mod socket;

use std::{io, net::SocketAddr, path::PathBuf, time::Instant};

use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub use self::lock::Holder;
use self::{
    control::{Call, Control},
    device::{BUFFER, Device, TICK, Wire},
    interface::Interface,
    lock::Lock,
    socket::Underlay,
};
use crate::{
    Applied, Desired, PrivateKey,
    protocol::{Hello, Refusal, Request, Response, Verb},
};

/// Packets taken from one side before the other gets its turn.
const BATCH: usize = 64;

/// What a tunnel process needs to know at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Name of the interface; made if it is not there.
    pub interface: String,
}

/// Why a tunnel cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface cannot be made or attached to.
    #[error("interface {interface}: {source}; {hint}")]
    Interface {
        /// Its name.
        interface: String,
        /// What the system says.
        source: io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// A tunnel is attached to the interface.
    #[error("interface {interface} is held by {holder}; stop that tunnel or choose another --interface")]
    InterfaceHeld {
        /// Its name.
        interface: String,
        /// By whom.
        holder: Holder,
    },
    /// A tunnel serves this socket.
    #[error("socket {} is held by {holder}; stop that tunnel or choose another --socket", socket.display())]
    SocketHeld {
        /// The socket's path.
        socket: PathBuf,
        /// By whom.
        holder: Holder,
    },
    /// The lock file beside the socket cannot be had.
    #[error("lock file {}: {source}; the directory must exist and be writable", path.display())]
    Lock {
        /// The file's path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The control socket cannot be bound.
    #[error("control socket {}: {source}", socket.display())]
    Socket {
        /// The socket's path.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Runs a tunnel until `shutdown` or a `shutdown` request. The interface stays, unless the request says
/// otherwise, and drops what is sent into it until the next tunnel attaches.
///
/// Everything is made in the network namespace of the thread that first polls this.
///
/// # Errors
/// When it cannot start, or the interface is taken away from under it.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let lock = Lock::acquire(&config.socket)?;
    let interface = Interface::attach(&config.interface)?;
    let bound = Control::bind(&config.socket);
    let control = bound.map_err(|source| Error::Socket { socket: config.socket.clone(), source })?;
    let mut device = Device::new(PrivateKey::generate());
    device.set_mtu(interface.mtu()?);
    let mut tunnel = Tunnel { device, interface, underlay: None, remove_device: false };
    tracing::info!(
        interface = config.interface,
        ifindex = tunnel.interface.index(),
        public_key = %tunnel.device.public_key(),
        socket = %config.socket.display(),
        "tunnel is up"
    );
    let (calls, requests) = mpsc::channel(1);
    let stop = shutdown.child_token();
    tokio::select! {
        ended = tunnel.run(requests, &stop) => ended?,
        () = control.serve(calls, stop.clone()) => {}
    }
    if tunnel.remove_device {
        tunnel.interface.remove().await?;
    }
    tracing::info!(interface = config.interface, "tunnel is down");
    // Only now may another one start.
    drop((control, lock));
    Ok(())
}

struct Tunnel {
    device: Device,
    interface: Interface,
    underlay: Option<Underlay>,
    /// Asked for by a `shutdown` request.
    remove_device: bool,
}

/// Both ways out of the device. Nothing waits: a full socket is congestion, and congestion drops.
struct Outlets<'a> {
    interface: &'a Interface,
    underlay: Option<&'a Underlay>,
}

impl Wire for Outlets<'_> {
    fn to_network(&mut self, datagram: &[u8], to: SocketAddr) -> bool {
        let Some(underlay) = self.underlay else { return false };
        let sent = underlay.try_send(datagram, to);
        if let Err(error) = &sent {
            tracing::debug!(%to, %error, "datagram not sent");
        }
        sent.is_ok()
    }

    fn to_interface(&mut self, packet: &[u8]) -> bool {
        self.interface.try_send(packet).is_ok()
    }
}

impl Tunnel {
    async fn run(
        &mut self,
        mut requests: mpsc::Receiver<Call>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut buffer = vec![0; BUFFER].into_boxed_slice();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some((request, reply)) = requests.recv() => {
                    // A client that has gone needs no answer.
                    drop(reply.send(self.answer(request)));
                }
                _ = ticks.tick() => {
                    let mut outlets = Outlets { interface: &self.interface, underlay: self.underlay.as_ref() };
                    self.device.tick(Instant::now(), &mut outlets);
                }
                ready = self.interface.readable() => {
                    ready?;
                    self.drain_interface(&mut buffer)?;
                }
                () = readable(self.underlay.as_ref()) => self.drain_underlay(&mut buffer),
            }
        }
    }

    fn drain_interface(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let mut outlets = Outlets { interface: &self.interface, underlay: self.underlay.as_ref() };
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some(length) = self.interface.try_recv(buffer)? else { break };
            self.device.take_packet(buffer, length, now, &mut outlets);
        }
        Ok(())
    }

    fn drain_underlay(&mut self, buffer: &mut [u8]) {
        let Some(underlay) = &self.underlay else { return };
        let mut outlets = Outlets { interface: &self.interface, underlay: Some(underlay) };
        let now = Instant::now();
        for _ in 0..BATCH {
            match underlay.try_recv(buffer) {
                Ok((length, from)) => {
                    let datagram = buffer.get(..length).unwrap_or_default();
                    self.device.take_datagram(datagram, from, now, &mut outlets);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "datagram not received");
                    break;
                }
            }
        }
    }

    fn answer(&mut self, request: Request) -> Response {
        match (request.request, request.desired) {
            (Verb::Hello, _) => Response { hello: Some(self.hello()), ..Response::new() },
            (Verb::Status, _) => {
                let (name, index) = (self.interface.name().to_owned(), self.interface.index());
                Response { status: Some(self.device.status(name, index, Instant::now())), ..Response::new() }
            }
            (Verb::Shutdown, _) => {
                self.remove_device = request.remove_device;
                Response::new()
            }
            (Verb::Apply, Some(desired)) => match self.apply(&desired) {
                Ok(applied) => Response { applied: Some(applied), ..Response::new() },
                Err(refusal) => {
                    tracing::warn!(
                        field = refusal.field,
                        problem = refusal.message,
                        "refused a desired state"
                    );
                    refusal.into()
                }
            },
            (Verb::Apply, None) => {
                Refusal::new(Some("desired".into()), "missing field `desired`".into()).into()
            }
        }
    }

    /// First what may fail, then what cannot: so nothing is ever half applied.
    fn apply(&mut self, desired: &Desired) -> Result<Applied, Refusal> {
        let public_key = self.device.public_key();
        let checked = desired.check(Some(&public_key));
        checked
            .map_err(|error| Refusal::new(Some(format!("desired.{}", error.field())), error.to_string()))?;
        let underlay = if self.device.listen_port() == Some(desired.listen_port) {
            None
        } else {
            let bound = Underlay::bind(desired.listen_port);
            Some(bound.map_err(|error| {
                Refusal::new(
                    Some("desired.listen_port".into()),
                    format!("port {}: {error}", desired.listen_port),
                )
            })?)
        };
        if self.device.mtu() != desired.mtu {
            let set = self.interface.set_mtu(desired.mtu);
            set.map_err(|error| Refusal::new(Some("desired.mtu".into()), error.to_string()))?;
        }
        if underlay.is_some() {
            self.underlay = underlay;
        }
        let changes = self.device.apply(desired);
        if !changes.is_empty() {
            tracing::info!(changes = changes.len(), peers = desired.peers.len(), "desired state applied");
        }
        let (interface, ifindex) = (self.interface.name().to_owned(), self.interface.index());
        Ok(Applied { public_key, interface, ifindex, changes })
    }

    fn hello(&self) -> Hello {
        Hello {
            interface: self.interface.name().to_owned(),
            pid: std::process::id(),
            program: concat!("authd tunnel ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

async fn readable(underlay: Option<&Underlay>) {
    match underlay {
        Some(underlay) => {
            if let Err(error) = underlay.readable().await {
                tracing::debug!(%error, "underlay socket");
            }
        }
        None => std::future::pending().await,
    }
}
