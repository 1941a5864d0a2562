//! The underlay: one UDP socket for both families where the kernel has IPv6, else one for IPv4.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
        sockopt::{Ipv6V6Only, RcvBufForce, SndBufForce},
    },
};
use tokio::net::UdpSocket;

use super::device::canonical;

/// Room for a burst of a whole round trip; the default holds 200 packets.
const KERNEL_BUFFER: usize = 4 << 20;

/// A bound socket.
#[derive(Debug)]
pub(super) struct Underlay {
    socket: UdpSocket,
    is_dual_stack: bool,
}

impl Underlay {
    /// Binds `port` at every address of the calling thread's network namespace.
    pub(super) fn bind(port: u16) -> io::Result<Self> {
        match Self::bind_family(AddressFamily::Inet6, port) {
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
                tracing::info!("no IPv6 here; the tunnel listens on IPv4 alone");
                Ok(Self::bind_family(AddressFamily::Inet, port)??)
            }
            other => Ok(other??),
        }
    }

    fn bind_family(family: AddressFamily, port: u16) -> Result<io::Result<Self>, Errno> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(family, SockType::Datagram, flags, None)?;
        let is_dual_stack = family == AddressFamily::Inet6;
        if is_dual_stack {
            setsockopt(&fd, Ipv6V6Only, &false)?;
        }
        // Needs CAP_NET_ADMIN; without it the default works, only with more loss.
        if let Err(error) = setsockopt(&fd, RcvBufForce, &KERNEL_BUFFER)
            .and_then(|()| setsockopt(&fd, SndBufForce, &KERNEL_BUFFER))
        {
            tracing::info!(%error, "UDP socket keeps its default buffers");
        }
        let address = match is_dual_stack {
            true => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            false => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        };
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address))?;
        let socket = UdpSocket::from_std(std::net::UdpSocket::from(fd));
        Ok(socket.map(|socket| Self { socket, is_dual_stack }))
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    pub(super) fn try_recv(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.try_recv_from(buffer).map(|(length, from)| (length, canonical(from)))
    }

    pub(super) fn try_send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        let to = match to {
            SocketAddr::V4(to) if self.is_dual_stack => mapped(to).into(),
            SocketAddr::V4(_) | SocketAddr::V6(_) => to,
        };
        self.socket.try_send_to(datagram, to).map(|_length| ())
    }
}

const fn mapped(address: SocketAddrV4) -> SocketAddrV6 {
    SocketAddrV6::new(address.ip().to_ipv6_mapped(), address.port(), 0, 0)
}
