//! The TUN interface. It is persistent: index, addresses, routes and attached programs stay when the
//! process goes, packets sent into it meanwhile are dropped, and the next process attaches to it again.

use std::io;

use tun_rs::{AsyncDevice, DeviceBuilder};

use super::{Error, lock::interface_holder};
use crate::{DEFAULT_MTU, steering};

/// An attached interface.
pub(super) struct Interface {
    device: AsyncDevice,
    name: String,
    index: u32,
}

impl Interface {
    /// Attaches to `name` in the calling thread's network namespace, and makes it if need be. Whether it
    /// is up is not changed: steering brings it up.
    pub(super) fn attach(name: &str) -> Result<Self, Error> {
        let fail = |hint| move |source| Error::Interface { interface: name.to_owned(), source, hint };
        let is_new = nix::net::if_::if_nametoindex(name).is_err();
        let built = DeviceBuilder::new().name(name).inherit_enable_state().build_async();
        let device =
            built.map_err(|source| match source.raw_os_error().map(nix::errno::Errno::from_raw) {
                Some(nix::errno::Errno::EBUSY) => {
                    Error::InterfaceHeld { interface: name.to_owned(), holder: interface_holder(name) }
                }
                Some(nix::errno::Errno::EINVAL) => fail(
                    "there is an interface of that name which is no TUN device; remove it or choose another",
                )(source),
                _ => fail("CAP_NET_ADMIN and /dev/net/tun are needed")(source),
            })?;
        device.persist().map_err(fail("it cannot be made to stay"))?;
        if is_new {
            device.set_mtu(DEFAULT_MTU).map_err(fail("its MTU cannot be set"))?;
        }
        let index = device.if_index().map_err(fail("it has just gone"))?;
        tracing::info!(interface = name, ifindex = index, is_new, "attached to the interface");
        Ok(Self { device, name: name.to_owned(), index })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn mtu(&self) -> Result<u16, Error> {
        self.device.mtu().map_err(|source| self.gone(source))
    }

    pub(super) fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        self.device.set_mtu(mtu)
    }

    pub(super) async fn readable(&self) -> Result<(), Error> {
        self.device.readable().await.map_err(|source| self.gone(source))
    }

    /// The next packet, or nothing if none waits.
    pub(super) fn try_recv(&self, buffer: &mut [u8]) -> Result<Option<usize>, Error> {
        match self.device.try_recv(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(source) => Err(self.gone(source)),
        }
    }

    pub(super) fn try_send(&self, packet: &[u8]) -> io::Result<()> {
        self.device.try_send(packet).map(|_length| ())
    }

    /// Takes the interface away, with its routes and programs.
    pub(super) async fn remove(self) -> Result<(), Error> {
        let removed = steering::remove_link(self.index).await;
        removed.map_err(|error| Error::Interface {
            interface: self.name.clone(),
            source: io::Error::other(error.to_string()),
            hint: "it stays; remove it with `ip link delete`",
        })
    }

    fn gone(&self, source: io::Error) -> Error {
        let hint = "it was taken away from under the tunnel; start the tunnel anew";
        Error::Interface { interface: self.name.clone(), source, hint }
    }
}
