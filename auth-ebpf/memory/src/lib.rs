//! The memory of an eBPF array that was made for it (`BPF_F_MMAPABLE`), as atomic words: what one process
//! stores, programs and other processes load. And the wait until no program can be looking at what was
//! there before.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use std::{io, thread};

use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The words of an array, for as long as this lives.
#[derive(Debug)]
pub struct Words {
    start: NonNull<c_void>,
    count: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and its words are atomic.
unsafe impl Send for Words {}
// SAFETY: the same.
unsafe impl Sync for Words {}

impl Words {
    /// Maps the first `count` words of the array behind `map`.
    ///
    /// # Errors
    /// If it is no array that can be mapped, if it has less, or for lack of permission.
    pub fn map(map: impl AsFd, count: usize) -> io::Result<Self> {
        let length = count.checked_mul(size_of::<u64>()).and_then(NonZeroUsize::new);
        let length = length.ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice, touches no other.
        let start = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(Self { start, count })
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the kernel has mapped as many bytes, or more, at a page's start, and does not let a map of
        // eBPF shrink. Zeroes and all else are valid words; all who write them do so by whole words.
        unsafe { slice::from_raw_parts(self.start.cast().as_ptr(), self.count) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nothing borrows from it any more.
        let _unmapped = unsafe { munmap(self.start, self.count * size_of::<u64>()) };
    }
}

/// Waits until every program that runs now has ended: none still looks at what has been unlinked before.
pub fn wait_for_programs() {
    const GLOBAL: libc::c_int = 1;
    // Far longer than any program runs, for kernels that have no such call (`nohz_full`).
    const LONG: Duration = Duration::from_secs(1);
    // SAFETY: the call touches no memory of this process. For the kernel it is a grace period of RCU, which
    // programs run under.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if done != 0 {
        pause(LONG);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a writer waits as long for the kernel, where that can be asked"
)]
fn pause(time: Duration) {
    thread::sleep(time);
}
