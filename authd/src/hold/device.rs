//! The TAP device. It is persistent: its index and the programs at it stay when the daemon goes, and
//! what is sent there without a reader drops.

use std::{fs, io};

use auth_ebpf_abi::HOLD_UNITS;
use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

/// Name of the device.
pub const INTERFACE: &str = "authd-hold";
/// Length of the header that the kernel puts before each frame (`struct virtio_net_hdr`): what it must know
/// to take checksums and segments up where they were left.
const HEADER: usize = 10;
/// Where the tag is in a frame: behind the link-layer addresses.
const TAG: usize = HEADER + 12;
/// The type of a VLAN tag.
const VLAN: [u8; 2] = [0x81, 0x00];
/// Largest frame with its header and tag.
pub(super) const BUFFER: usize = HEADER + 65_536 + 32;
/// Frames that the device queues: all that the programs have credits for, and a last one on each CPU.
const QUEUE: u64 = HOLD_UNITS + 1024;

/// The device, attached.
pub(super) struct Device {
    device: AsyncDevice,
}

impl Device {
    /// Attaches to the device in this thread's network namespace, and makes it if need be.
    pub(super) fn open() -> io::Result<Self> {
        let device = DeviceBuilder::new()
            .name(INTERFACE)
            .layer(Layer::L2)
            .offload(true)
            .inherit_enable_state()
            .build_async()?;
        device.persist()?;
        device.set_tx_queue_len(u32::try_from(QUEUE).unwrap_or(u32::MAX))?;
        // The kernel would speak on it, to nobody: the programs drop that, and count it as somebody's try.
        if let Err(error) = fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6"), "1") {
            tracing::debug!(%error, "IPv6 stays on at the hold device");
        }
        device.enabled(true)?;
        Ok(Self { device })
    }

    /// Whether it takes datagrams in one (since Linux 6.2); else the kernel would make a frame of each.
    pub(super) fn takes_datagrams(&self) -> bool {
        self.device.udp_gso()
    }

    /// Waits until there is a frame.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.device.readable().await
    }

    /// The next frame, if there is one.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.device.try_recv(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives a frame back. The kernel takes it as far as it goes before this returns.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.device.try_send(frame).map(|_length| ())
    }
}

/// The token of a frame.
pub(super) fn token(frame: &[u8]) -> Option<u16> {
    let tag = frame.get(TAG..TAG + 4)?.strip_prefix(&VLAN)?;
    Some(u16::from_be_bytes(tag.try_into().ok()?))
}
