//! Frames on an interface of the calling thread's network namespace, link-layer header and all.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket},
};

/// Sends a frame. That a program drops it there is no error of this.
pub(crate) fn send(interface: &str, frame: &[u8]) -> Result<()> {
    let mut all = getifaddrs()?.filter(|found| found.interface_name == interface);
    let address: LinkAddr = all
        .find_map(|found| found.address?.as_link_addr().copied())
        .with_context(|| format!("no {interface}"))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    match sendto(socket.as_raw_fd(), frame, &address, MsgFlags::empty()) {
        Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
