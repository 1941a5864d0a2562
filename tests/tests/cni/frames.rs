//! Whole Ethernet frames out of the calling thread's `eth0`, under any name.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, sendto, socket,
};

/// A link-layer address.
pub(crate) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
/// ARP, in an Ethernet header.
const ARP: [u8; 2] = [0x08, 0x06];
/// Ethernet and IPv4, lengths of their addresses, and a reply.
const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];

fn eth0() -> Result<LinkAddr> {
    let found = getifaddrs()?
        .filter(|it| it.interface_name == "eth0")
        .find_map(|it| it.address.as_ref().and_then(SockaddrStorage::as_link_addr).copied());
    found.context("no eth0")
}

/// The link-layer address of `eth0`.
pub(crate) fn mac() -> Result<Mac> {
    eth0()?.addr().context("eth0 has no link-layer address")
}

fn send(frame: &[u8]) -> Result<()> {
    let to = eth0()?;
    ensure!(to.family() == Some(AddressFamily::Packet));
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    ensure!(sendto(socket.as_raw_fd(), frame, &to, MsgFlags::empty())? == frame.len());
    Ok(())
}

/// Says to everybody that `address` is at `mac`.
pub(crate) fn poison(mac: Mac, address: Ipv4Addr) -> Result<()> {
    let address = address.octets();
    let parts: [&[u8]; 8] = [&BROADCAST, &mac, &ARP, &REPLY, &mac, &address, &BROADCAST, &address];
    send(&parts.concat())
}

/// Advertises to everybody, under an own address, that `target` is at `mac` (RFC 4861, section 4.4).
pub(crate) fn advertise(mac: Mac, own: Ipv6Addr, target: Ipv6Addr) -> Result<()> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ADVERTISEMENT: u8 = 136;
    const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];
    let builder = PacketBuilder::ethernet2(mac, [0x33, 0x33, 0, 0, 0, 1]);
    let builder = builder.ipv6(own.octets(), ALL_NODES.octets(), 255).icmpv6_raw(ADVERTISEMENT, 0, OVERRIDE);
    // The target, and the option that has its link-layer address.
    let rest = [target.octets().as_slice(), &[2, 1], &mac].concat();
    let mut frame = Vec::new();
    builder.write(&mut frame, &rest)?;
    send(&frame)
}

/// A datagram between these, however they are called.
pub(crate) fn datagram(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Result<()> {
    let builder = PacketBuilder::ethernet2(from.0, to.0).ipv4(from.1.octets(), to.1.octets(), 64).udp(80, 80);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"It's a trap!")?;
    send(&frame)
}
