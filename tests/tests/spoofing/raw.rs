//! Datagrams under any name, by raw sockets of the calling thread's network namespace.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use anyhow::{Result, bail};
use etherparse::PacketBuilder;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};

const PAYLOAD: &[u8] = b"It's a trap!";
/// Length of an IPv6 header, and the number that says that a fragment header follows.
const IPV6_HEADER: usize = 40;
const IPV6_FRAGMENT: u8 = 44;

/// A UDP datagram as it is to be on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    /// The first fragment of it, whose rest never comes.
    pub(crate) fragment: bool,
}

/// Sends it, headers and all.
pub(crate) fn send(datagram: &Datagram) -> Result<()> {
    let bytes = datagram.bytes()?;
    // With this protocol the kernel takes the header from the bytes, in both families.
    let open = |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
    let sent = match datagram.destination {
        SocketAddr::V4(to) => {
            let socket = open(AddressFamily::Inet)?;
            sendto(socket.as_raw_fd(), &bytes, &SockaddrIn::from(to), MsgFlags::empty())?
        }
        SocketAddr::V6(mut to) => {
            to.set_port(0);
            let socket = open(AddressFamily::Inet6)?;
            sendto(socket.as_raw_fd(), &bytes, &SockaddrIn6::from(to), MsgFlags::empty())?
        }
    };
    if sent == bytes.len() { Ok(()) } else { bail!("only {sent} of {} bytes were sent", bytes.len()) }
}

impl Datagram {
    fn bytes(&self) -> Result<Vec<u8>> {
        let builder = match (self.source, self.destination) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), 64)
            }
            _ => bail!("{self:?} is of two families"),
        };
        let builder = builder.udp(self.source.port(), self.destination.port());
        let mut bytes = Vec::with_capacity(builder.size(PAYLOAD.len()));
        builder.write(&mut bytes, PAYLOAD)?;
        Ok(if self.fragment { fragment(&bytes) } else { bytes })
    }
}

/// Says in the header that more fragments follow.
fn fragment(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.first().is_some_and(|first| first >> 4 == 4) {
        // "Don't fragment" goes; the kernel mends the checksum.
        bytes.splice(6..7, [0x20]);
        return bytes;
    }
    let (header, rest) = bytes.split_at(IPV6_HEADER);
    let next = header.get(6).copied().unwrap_or_default();
    let length = u16::try_from(rest.len() + 8).unwrap_or_default().to_be_bytes();
    let mut fragment = header.to_vec();
    fragment.splice(4..7, [length[0], length[1], IPV6_FRAGMENT]);
    fragment.extend([next, 0, 0, 1, 0, 0, 0, 1]);
    fragment.extend(rest);
    fragment
}
