//! What somebody on the underlay sees.

use std::{
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket,
            sockopt::{RcvBufForce, ReceiveTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use wg_mesh::DEFAULT_LISTEN_PORT;

use crate::namespace::Namespace;

/// Frames of every interface but `lo` and the tunnel, counted by what they are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// WireGuard: initiations, then all other messages.
    pub(crate) initiations: usize,
    pub(crate) wireguard: usize,
    /// TCP and UDP of other ports and everything else with addresses of hosts in it.
    pub(crate) clear: usize,
    /// Data messages whose length is no multiple of 16.
    pub(crate) unpadded: usize,
    /// Frames that contain the marker.
    pub(crate) marked: usize,
}

/// A running capture.
pub(crate) struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Capture {
    /// Starts one on `under0`; frames that contain `marker` are counted.
    pub(crate) fn start(namespace: &Namespace, marker: &'static [u8]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = namespace.spawn(move || {
            let index = nix::net::if_::if_nametoindex("under0").expect("under0");
            let fd =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                    .expect("packet socket");
            setsockopt(&fd, RcvBufForce, &(64 << 20)).expect("buffer");
            setsockopt(&fd, ReceiveTimeout, &TimeVal::milliseconds(50)).expect("timeout");
            ready.send(()).expect("test waits");
            let (mut seen, mut frame) = (Seen::default(), vec![0; 65_536]);
            loop {
                let from =
                    nix::sys::socket::recvfrom::<nix::sys::socket::LinkAddr>(fd.as_raw_fd(), &mut frame);
                match from {
                    Ok((length, Some(from))) if from.ifindex() == index as usize => {
                        seen.count(&frame[..length], marker);
                    }
                    Ok(_) => {}
                    Err(Errno::EAGAIN) if stopping.load(Ordering::Relaxed) => return seen,
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(error) => panic!("capture: {error}"),
                }
            }
        });
        is_ready.recv().expect("capture");
        Self { stop, thread }
    }

    /// Ends it after what is under way.
    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("capture thread")
    }
}

impl Seen {
    fn count(&mut self, frame: &[u8], marker: &[u8]) {
        self.marked += usize::from(frame.windows(marker.len()).any(|window| window == marker));
        let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
        let (protocol, transport) = match ethertype {
            0x0800 => (frame[23], 14 + usize::from(frame[14] & 0x0f) * 4),
            0x86dd => (frame[20], 54),
            _ => return,
        };
        match protocol {
            // Neighbour discovery and multicast listener reports.
            0 | 58 => {}
            17 if ports(frame, transport).contains(&DEFAULT_LISTEN_PORT) => {
                let length =
                    usize::from(u16::from_be_bytes([frame[transport + 4], frame[transport + 5]])) - 8;
                match frame[transport + 8] {
                    1 => self.initiations += 1,
                    kind => {
                        self.wireguard += 1;
                        // The MTU may cut padding short.
                        self.unpadded += usize::from(kind == 4 && length % 16 != 0 && length < 1440);
                    }
                }
            }
            _ => self.clear += 1,
        }
    }
}

fn ports(frame: &[u8], at: usize) -> [u16; 2] {
    [u16::from_be_bytes([frame[at], frame[at + 1]]), u16::from_be_bytes([frame[at + 2], frame[at + 3]])]
}
