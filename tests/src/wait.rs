//! Waiting with a deadline, for what shows its state only when asked.

use std::time::{Duration, Instant};

/// How often a state is looked at.
const INTERVAL: Duration = Duration::from_millis(5);

/// Calls `attempt` until it yields a value; the time that took, or nothing after `limit`.
pub fn until<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<(T, Duration)> {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return Some((value, start.elapsed()));
        }
        if start.elapsed() >= limit {
            return None;
        }
        pause(INTERVAL);
    }
}

/// Blocks this thread.
#[expect(clippy::disallowed_methods, reason = "the harness is blocking code on threads of its own")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yields_the_first_value_and_the_time_it_took() {
        let mut left = 3;
        let found = until(Duration::from_secs(5), || {
            left -= 1;
            (left == 0).then_some("here")
        });
        let (value, took) = found.unwrap();
        assert_eq!(value, "here");
        assert!(took >= 2 * INTERVAL);
    }

    #[test]
    fn gives_up_at_the_limit() {
        assert_eq!(until(Duration::from_millis(20), || None::<()>), None);
    }
}
