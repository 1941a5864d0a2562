//! A token bucket in boot time, in its "virtual scheduling" form: one number, no timer.

use std::time::Duration;

use crate::clock::BootTime;

/// Lets a burst through and then one after each interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    burst: u32,
    interval: Duration,
    /// When the bucket will be full again.
    full_at: BootTime,
}

impl Pace {
    pub(super) const fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, full_at: BootTime::ZERO }
    }

    /// How long until one more may pass; `None` if it may now.
    pub(super) fn wait(&self, now: BootTime) -> Option<Duration> {
        let room = self.interval.saturating_mul(self.burst.saturating_sub(1));
        let ahead = self.full_at.since(now);
        ahead.checked_sub(room).filter(|wait| !wait.is_zero())
    }

    /// Takes one; false if it may not pass yet.
    pub(super) fn take(&mut self, now: BootTime) -> bool {
        let may = self.wait(now).is_none();
        if may {
            self.full_at = self.full_at.max(now).saturating_add(self.interval);
        }
        may
    }

    /// Whether nothing of it is left to remember.
    pub(super) fn is_full(&self, now: BootTime) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let mut pace = Pace::new(5, Duration::from_millis(50));
        let at = |milliseconds: u64| BootTime(1_000_000_000 + milliseconds * 1_000_000);
        assert!(pace.is_full(at(0)));
        assert_eq!((0..10).filter(|_| pace.take(at(0))).count(), 5);
        assert_eq!(pace.wait(at(0)), Some(Duration::from_millis(50)));
        assert_eq!((1..=1000).filter(|ms| pace.take(at(*ms))).count(), 20);
        assert!(!pace.is_full(at(1000)) && pace.is_full(at(2000)));
    }
}
