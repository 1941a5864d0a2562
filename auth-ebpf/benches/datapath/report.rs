//! Collects figures, prints them, and writes `target/bench/datapath.json`.

use std::path::Path;

/// A figure and what it shall be at most.
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Option<f64>,
}

#[derive(Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// Nanoseconds a packet.
    pub(crate) fn cost(&mut self, name: &str, value: f64, goal: Option<f64>) {
        self.add(name, value, "ns", goal);
    }

    /// A ratio.
    pub(crate) fn ratio(&mut self, name: &str, value: f64, goal: f64) {
        self.add(name, value, "ratio", Some(goal));
    }

    /// The value of a figure that is there already.
    pub(crate) fn value(&self, name: &str) -> f64 {
        self.figures.iter().find(|figure| figure.name == name).expect("measured before").value
    }

    fn add(&mut self, name: &str, value: f64, unit: &'static str, goal: Option<f64>) {
        let met = goal.map_or("", |goal| if value <= goal { "met" } else { "NOT MET" });
        let goal_text = goal.map_or(String::new(), |goal| format!("<= {goal}"));
        println!("{name:<60} {value:>8.2} {unit:<6} {goal_text:<10} {met}");
        self.figures.push(Figure { name: name.to_owned(), value, unit, goal });
    }

    pub(crate) fn finish(&self) {
        let figures: Vec<serde_json::Value> = self
            .figures
            .iter()
            .map(|figure| {
                serde_json::json!({
                    "name": figure.name,
                    "value": (figure.value * 100.0).round() / 100.0,
                    "unit": figure.unit,
                    "goal": figure.goal,
                    "met": figure.goal.map(|goal| figure.value <= goal),
                })
            })
            .collect();
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        std::fs::create_dir_all(&directory).unwrap();
        let json = serde_json::to_string_pretty(&figures).unwrap();
        std::fs::write(directory.join("datapath.json"), json + "\n").unwrap();
    }
}

/// The middle of `values`.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
