//! When SVIDs end, in boot time: reckoned once, when one is seen first. A wall clock that is set meanwhile neither
//! prolongs nor shortens any, whoever shows it again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::clock::{BootTime, Clock};

/// How long an SVID that has ended is remembered: so long it can't come to life again.
const MEMORY: Duration = Duration::from_secs(60 * 60);
/// SVIDs below which nobody looks for those that can be forgotten.
const FEW: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Deadlines(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// By the leaf's hash.
    ends: BTreeMap<[u8; 32], BootTime>,
    /// How many there may be before the next look.
    look_at: usize,
}

impl Deadlines {
    /// The end of the SVID with this leaf.
    pub(super) fn of(&self, leaf_hash: [u8; 32], not_after: SystemTime, clock: &dyn Clock) -> BootTime {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = seen.ends.get(&leaf_hash) {
            return *end;
        }
        if seen.ends.len() >= seen.look_at.max(FEW) {
            let now = clock.now();
            seen.ends.retain(|_, end| now.since(*end) < MEMORY);
            seen.look_at = seen.ends.len() * 2;
        }
        let end = clock.deadline(not_after);
        seen.ends.insert(leaf_hash, end);
        end
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Both clocks in seconds.
    #[derive(Default)]
    struct Set {
        boot: AtomicU64,
        wall: AtomicU64,
    }

    impl Clock for Set {
        fn now(&self) -> BootTime {
            BootTime(self.boot.load(Ordering::Relaxed) * 1_000_000_000)
        }

        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(self.wall.load(Ordering::Relaxed))
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn steps_of_the_wall_clock_move_no_deadline() {
        let (clock, deadlines) = (Set::default(), Deadlines::default());
        clock.wall.store(100_000, Ordering::Relaxed);
        let end = BootTime(3_600_000_000_000);
        assert_eq!(deadlines.of([1; 32], at(103_600), &clock), end);
        for wall in [0, 82_000, 118_000] {
            clock.wall.store(wall, Ordering::Relaxed);
            assert_eq!(deadlines.of([1; 32], at(103_600), &clock), end);
        }
        // Nor does one that has ended come to life.
        clock.boot.store(4_000, Ordering::Relaxed);
        clock.wall.store(82_000, Ordering::Relaxed);
        assert_eq!(deadlines.of([1; 32], at(103_600), &clock), end);
    }

    #[test]
    fn what_has_ended_is_forgotten_in_time() {
        let (clock, deadlines) = (Set::default(), Deadlines::default());
        for number in 0..100_000u32 {
            clock.boot.store(u64::from(number), Ordering::Relaxed);
            clock.wall.store(u64::from(number), Ordering::Relaxed);
            let mut leaf = [0; 32];
            leaf[..4].copy_from_slice(&number.to_be_bytes());
            deadlines.of(leaf, at(u64::from(number) + 60), &clock);
        }
        let seen = deadlines.0.lock().unwrap();
        assert!(seen.ends.len() < 10_000, "{}", seen.ends.len());
    }
}
