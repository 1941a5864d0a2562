//! Figures: printed, and written to `target/bench/policy.json`.

use std::path::Path;

use serde_json::{Value, json};

/// Figures, each with its goal: at most this.
pub(crate) struct Report {
    figures: Vec<Value>,
    /// Whether the figures mean anything: not in a test.
    counts: bool,
}

impl Report {
    pub(crate) const fn new(counts: bool) -> Self {
        Self { figures: Vec::new(), counts }
    }

    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &str, goal: Option<f64>) {
        let goal = goal.filter(|_| self.counts);
        let met = goal.map(|goal| value <= goal);
        let verdict = met.map_or("", |met| if met { "met" } else { "NOT MET" });
        let wanted = goal.map_or(String::new(), |goal| format!("<= {goal}"));
        println!("{name:<80} {value:>10.2} {unit:<7} {wanted:<8} {verdict}");
        let value = (value * 100.0).round() / 100.0;
        self.figures.push(json!({"name": name, "value": value, "unit": unit, "goal": goal, "met": met}));
    }

    pub(crate) fn write(&self) {
        if !self.counts {
            return;
        }
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        std::fs::create_dir_all(&directory).unwrap();
        let json = serde_json::to_string_pretty(&self.figures).unwrap();
        std::fs::write(directory.join("policy.json"), json + "\n").unwrap();
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
