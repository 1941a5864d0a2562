//! The figures, as a table for people and a list for programs.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

/// What the first connection of a pair may take.
const MEDIAN_GOAL: f64 = 3.0;
const TAIL_GOAL: f64 = 15.0;

/// How long pairs took to connect for the first time, and again.
#[derive(Default)]
pub(crate) struct Report {
    first: Vec<f64>,
    later: Vec<f64>,
    /// SYNs that were sent again.
    pub(crate) sent_again: u64,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    value: f64,
    unit: &'static str,
    goal: Option<String>,
    met: Option<bool>,
}

impl Line {
    fn new(name: &'static str, value: f64, unit: &'static str, goal: Option<f64>) -> Self {
        Self {
            name,
            value,
            unit,
            goal: goal.map(|goal| format!("<= {goal}")),
            met: goal.map(|goal| value <= goal),
        }
    }
}

impl Report {
    pub(crate) fn add(&mut self, first: Duration, later: Duration) {
        self.first.push(first.as_secs_f64() * 1e3);
        self.later.push(later.as_secs_f64() * 1e3);
    }

    /// Writes `target/bench/auth.json`.
    pub(crate) fn write(&self) -> Result<()> {
        authd_tests::bench::write("auth", &self.lines())
    }

    fn lines(&self) -> Vec<Line> {
        let again = self.sent_again as f64;
        vec![
            Line::new("first connection, median", quantile(&self.first, 0.5), "ms", Some(MEDIAN_GOAL)),
            Line::new(
                "first connection, 99th percentile",
                quantile(&self.first, 0.99),
                "ms",
                Some(TAIL_GOAL),
            ),
            Line::new("second connection, median", quantile(&self.later, 0.5), "ms", None),
            Line::new("second connection, 99th percentile", quantile(&self.later, 0.99), "ms", None),
            Line::new("SYNs sent again", again, "", Some(0.0)),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} pairs\n\n| measure | value | goal |\n|---|---|---|", self.first.len())?;
        for line in self.lines() {
            let goal = line.goal.unwrap_or_default();
            writeln!(f, "| {} | {:.2} {} | {goal} |", line.name, line.value, line.unit)?;
        }
        Ok(())
    }
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * part) as usize;
    values.get(place.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
