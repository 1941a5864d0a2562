//! The `metrics` map: what each CPU has counted.

use crate::layout::plain;

plain! {
    /// Packets and bytes that met one fate at one hook.
    pub struct Counter [16] {
        /// Packets.
        pub packets: u64,
        /// Bytes, with the headers that the hook sees.
        pub bytes: u64,
    }
}

/// Places in the `metrics` map.
pub mod metric {
    use crate::{DropReason, Hook, Verdict};

    /// Events that the ring buffer had no room for.
    pub const LOST_EVENTS: u32 = 0;
    /// Number of places.
    pub const COUNT: u32 = (Hook::ToHold as u32 + 1) * PER_HOOK;

    const PER_HOOK: u32 = 512;
    /// There is no audit without a reason, so its place is free.
    const HELD: u32 = AUDIT;
    const AUDIT: u32 = 256;

    /// Where packets with this fate are counted.
    #[must_use]
    #[inline(always)]
    pub const fn index(hook: Hook, verdict: Verdict, reason: Option<DropReason>) -> u32 {
        match reason {
            Some(reason) => place(hook, verdict, reason as u8),
            None => place(hook, verdict, 0),
        }
    }

    /// The same with the number of a reason, or 0 for none.
    #[inline(always)]
    pub(crate) const fn place(hook: Hook, verdict: Verdict, reason: u8) -> u32 {
        let fate = match verdict {
            Verdict::Forwarded => 0,
            Verdict::Dropped => reason as u32,
            Verdict::Audit => AUDIT + reason as u32,
            Verdict::Held => HELD,
        };
        hook as u32 * PER_HOOK + fate
    }
}
