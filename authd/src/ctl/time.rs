//! Times as people read them, and the durations they write.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

use crate::api;

/// The longest that `authctl off` may last.
const MAX_OVERRIDE: Duration = Duration::from_secs(24 * 60 * 60);

/// Now, by the wall clock and by the boot time that the maps are in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) wall: Timestamp,
    pub(super) boot_nanos: u64,
}

impl Clock {
    pub(super) fn read() -> std::io::Result<Self> {
        let boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
        let boot_nanos = u64::try_from(boot.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self { wall: Timestamp::now(), boot_nanos })
    }

    /// The wall-clock time of a boot time; `None` for one so far away that it means "never".
    pub(super) fn wall_time(&self, boot_nanos: u64) -> Option<Timestamp> {
        let distance = i64::try_from(i128::from(boot_nanos) - i128::from(self.boot_nanos)).ok()?;
        self.wall.checked_add(SignedDuration::from_nanos(distance)).ok()
    }
}

/// `in 42m10s`, `1h5m ago`, `now`; empty without a time.
pub(super) fn relative(time: Option<api::Timestamp>, now: Timestamp) -> String {
    let Some(time) = time.and_then(api::Timestamp::to_jiff) else { return String::new() };
    let distance = time.duration_since(now);
    match (compact(distance.unsigned_abs()), distance.is_negative()) {
        (span, _) if span == "0s" => "now".to_owned(),
        (span, false) => format!("in {span}"),
        (span, true) => format!("{span} ago"),
    }
}

/// The two largest units of a duration, rounded down: `2d3h`, `42m10s`, `5s`.
pub(super) fn compact(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let Some(first) = units.iter().position(|(unit, _)| seconds >= *unit) else { return "0s".to_owned() };
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, letter) in units.into_iter().skip(first).take(2) {
        if rest >= unit {
            text.push_str(&format!("{}{letter}", rest / unit));
            rest %= unit;
        }
    }
    text
}

/// Parses how long to wait for the daemon.
pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    parse(text)
}

/// Parses how long a guard is off.
pub(super) fn parse_override(text: &str) -> Result<Duration, String> {
    let duration = parse(text)?;
    if duration < Duration::from_secs(1) {
        return Err("shorter than a second".to_owned());
    }
    if duration > MAX_OVERRIDE {
        return Err("longer than 24h; set the mode to observe in the configuration instead".to_owned());
    }
    Ok(duration)
}

fn parse(text: &str) -> Result<Duration, String> {
    let example = "write it like 30s, 30m or 1h30m";
    let duration: SignedDuration = text.parse().map_err(|error| format!("{error}; {example}"))?;
    match Duration::try_from(duration) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err(format!("no time at all; {example}")),
        Err(_negative) => Err(format!("time that runs backwards; {example}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(text: &str) -> u64 {
        parse_override(text).unwrap().as_secs()
    }

    #[test]
    fn durations_as_people_write_them() {
        assert_eq!(seconds("30m"), 1_800);
        assert_eq!(seconds("1h30m"), 5_400);
        assert_eq!(seconds("1h 30m"), 5_400);
        assert_eq!(seconds("90s"), 90);
        assert_eq!(seconds("24h"), 86_400);
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in ["", "30", "m", "half an hour", "-30m", "0s", "1mo"] {
            let error = parse_override(text).unwrap_err();
            assert!(error.contains("30m"), "{text}: {error}");
        }
    }

    #[test]
    fn an_override_has_bounds() {
        assert!(parse_override("24h1s").unwrap_err().contains("24h"));
        assert!(parse_override("10ms").is_err());
        assert_eq!(parse_timeout("10ms").unwrap(), Duration::from_millis(10));
    }

    #[test]
    fn two_units_are_enough() {
        let compact = |seconds| compact(Duration::from_secs(seconds));
        assert_eq!(compact(0), "0s");
        assert_eq!(compact(59), "59s");
        assert_eq!(compact(60), "1m");
        assert_eq!(compact(2_530), "42m10s");
        assert_eq!(compact(3_605), "1h");
        assert_eq!(compact(2 * 86_400 + 3 * 3_600 + 59), "2d3h");
    }

    #[test]
    fn times_are_relative_to_now() {
        let now = Timestamp::from_second(1_000).unwrap();
        let at = |second| relative(Some(Timestamp::from_second(second).unwrap().into()), now);
        assert_eq!(at(1_070), "in 1m10s");
        assert_eq!(at(995), "5s ago");
        assert_eq!(at(1_000), "now");
        assert_eq!(relative(None, now), "");
    }

    #[test]
    fn what_never_comes_has_no_wall_time() {
        let clock = Clock { wall: Timestamp::from_second(1_000).unwrap(), boot_nanos: 5_000_000_000 };
        assert_eq!(clock.wall_time(u64::MAX), None);
        assert_eq!(clock.wall_time(6_000_000_000), Timestamp::from_second(1_001).ok());
        assert_eq!(clock.wall_time(0), Timestamp::from_second(995).ok());
    }

    proptest! {
        #[test]
        fn whole_durations_are_read_as_written(hours in 0u64..24, minutes in 0u64..60, rest in 1u64..60) {
            let text = format!("{hours}h{minutes}m{rest}s");
            prop_assert_eq!(seconds(&text), hours * 3_600 + minutes * 60 + rest);
        }

        #[test]
        fn anything_is_parsed_or_refused(text in ".{0,16}") {
            _ = parse_override(&text);
        }
    }
}
