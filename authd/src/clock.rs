//! Boot time: the only time in which deadlines are kept.
//!
//! A step of the wall clock moves no deadline, and suspend counts. NotAfter is converted once, when it is
//! received. Code that decides takes its time as an argument or from a [`Clock`], never from the system.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of boot time (`CLOCK_BOOTTIME`), as they stand in the maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(pub u64);

impl BootTime {
    /// The beginning: before every deadline.
    pub const ZERO: Self = Self(0);
    /// Beyond every deadline.
    pub const MAX: Self = Self(u64::MAX);

    /// This time `later`, or `None` if it can't be expressed.
    #[must_use]
    pub fn checked_add(self, later: Duration) -> Option<Self> {
        self.0.checked_add(u64::try_from(later.as_nanos()).ok()?).map(Self)
    }

    /// This time `later`, or [`BootTime::MAX`].
    #[must_use]
    pub fn saturating_add(self, later: Duration) -> Self {
        self.checked_add(later).unwrap_or(Self::MAX)
    }

    /// How long it was from `earlier` until this time; zero if that is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Boot time now.
    fn now(&self) -> BootTime;

    /// The wall clock, only for what certificates say.
    fn wall(&self) -> SystemTime;

    /// The boot time at which the wall clock, as it goes now, will show `deadline`; now if it has passed.
    fn deadline(&self, deadline: SystemTime) -> BootTime {
        let left = deadline.duration_since(self.wall()).unwrap_or_default();
        self.now().saturating_add(left)
    }
}

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> BootTime {
        boot_now()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Boot time now. A kernel without the clock gives [`BootTime::MAX`], at which everything has expired.
#[must_use]
pub fn boot_now() -> BootTime {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|time| {
            let seconds = u64::try_from(time.tv_sec()).ok()?.checked_mul(1_000_000_000)?;
            seconds.checked_add(u64::try_from(time.tv_nsec()).ok()?)
        })
        .map_or(BootTime::MAX, BootTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_goes_forward() {
        let before = boot_now();
        let after = boot_now();
        assert!(BootTime::ZERO < before && before <= after && after < BootTime::MAX);
    }

    #[test]
    fn arithmetic_saturates_and_checks() {
        assert_eq!(BootTime(5).checked_add(Duration::from_nanos(7)), Some(BootTime(12)));
        assert_eq!(BootTime::MAX.checked_add(Duration::from_nanos(1)), None);
        assert_eq!(BootTime(5).saturating_add(Duration::MAX), BootTime::MAX);
        assert_eq!(BootTime(5).since(BootTime(9)), Duration::ZERO);
    }

    #[test]
    fn a_passed_deadline_is_now() {
        let clock = BootClock;
        let deadline = clock.deadline(SystemTime::UNIX_EPOCH);
        assert!(deadline <= clock.now());
        assert!(clock.deadline(clock.wall() + Duration::from_secs(60)) > clock.now());
    }
}
