//! The ring buffer.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use auth_ebpf_abi::{Event, Layout, map};
use aya::maps::{Map, MapData, RingBuf};

use crate::error::Error;
use crate::maps::open_map;

/// The events that the programs report. Its descriptor becomes readable when there are some; read with
/// [`Events::next`] until there are none. One reader at a time: what one takes, another doesn't see.
pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub(crate) fn open(pin_dir: &Path) -> Result<Self, Error> {
        let data = open_map(pin_dir, map::EVENTS)?;
        let ring = RingBuf::try_from(Map::RingBuf(data)).map_err(|source| Error::Map {
            map: map::EVENTS,
            action: "map it into memory",
            source: source.into(),
        })?;
        Ok(Self { ring })
    }

    /// The oldest event not yet taken.
    #[expect(clippy::should_implement_trait, reason = "None is not the end, more can come")]
    pub fn next(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            // Another length can only come from a program of another version: skip it.
            if let Some(event) = Event::from_bytes(&item) {
                return Some(event);
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
