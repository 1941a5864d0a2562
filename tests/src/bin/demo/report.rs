//! What was expected and what was seen: a line for people, an entry for programs.
#![expect(clippy::print_stdout, reason = "the report is the demo's output")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

/// One expectation and its figure.
#[derive(Clone, Debug, Serialize)]
struct Expectation {
    name: String,
    ok: bool,
    value: Value,
    unit: &'static str,
}

/// Everything seen so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    expectations: Vec<Expectation>,
}

impl Report {
    /// Begins a part of the demo.
    pub(crate) fn part(&self, title: &str) {
        println!("\n{title}");
    }

    /// Says something that is no expectation.
    pub(crate) fn say(&self, text: &str) {
        println!("    {text}");
    }

    /// Records a figure.
    pub(crate) fn figure(&mut self, name: &str, ok: bool, value: impl Into<Value>, unit: &'static str) {
        let value = value.into();
        let mark = if ok { '✔' } else { '✘' };
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        println!("  {mark} {name}: {shown} {unit}");
        self.expectations.push(Expectation { name: name.to_owned(), ok, value, unit });
    }

    /// Records a time; none means that what was awaited did not happen.
    pub(crate) fn time(&mut self, name: &str, time: Option<Duration>, limit: Duration) {
        match time {
            Some(time) => self.figure(name, time <= limit, milliseconds(time), "ms"),
            None => self.figure(name, false, "did not happen", ""),
        }
    }

    /// Whether there is anything, and all of it as expected.
    pub(crate) fn ok(&self) -> bool {
        !self.expectations.is_empty() && self.expectations.iter().all(|it| it.ok)
    }

    /// Prints the sum of it.
    pub(crate) fn summary(&self) {
        let seen = self.expectations.iter().filter(|it| it.ok).count();
        println!("\n{seen} of {} expectations observed", self.expectations.len());
    }

    /// Writes the entries to a file, all at once.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let temporary = path.with_extension(format!("json.{}", std::process::id()));
        fs::write(&temporary, serde_json::to_string_pretty(&self.expectations)? + "\n")?;
        fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
    }
}

/// Milliseconds with one decimal.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_well_only_if_everything_is() {
        let mut report = Report::default();
        assert!(!report.ok(), "nothing seen proves nothing");
        report.time("in time", Some(Duration::from_millis(5)), Duration::from_millis(10));
        assert!(report.ok());
        report.time("never", None, Duration::from_millis(10));
        assert!(!report.ok());
    }

    #[test]
    fn times_have_one_decimal() {
        assert_eq!(milliseconds(Duration::from_micros(1234)), 1.2);
    }
}
