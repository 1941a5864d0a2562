//! The figures, as a table for people and a list for programs.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use authd_tests::bench::median;
use serde::Serialize;

use crate::load::Figures;
use crate::wall::Wall;

/// What must be left of the throughput and rates without any rules.
const GOAL: f64 = 0.99;

/// One measure of all three.
type Measure = (&'static str, fn(&Figures) -> f64);
const MEASURES: [Measure; 3] = [
    ("requests", |figures| figures.requests),
    ("connections", |figures| figures.connections),
    ("bulk", |figures| figures.bits),
];

/// Pairs of figures, without and behind a wall, by wall.
#[derive(Default)]
pub(crate) struct Report {
    pairs: BTreeMap<Wall, Vec<(Figures, Figures)>>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Option<String>,
    met: Option<bool>,
}

impl Report {
    pub(crate) fn add(&mut self, wall: Wall, bare: Figures, behind: Figures) {
        self.pairs.entry(wall).or_default().push((bare, behind));
    }

    /// Writes `target/bench/forwarding.json`.
    pub(crate) fn write(&self) -> Result<()> {
        authd_tests::bench::write("forwarding", &self.lines())
    }

    fn lines(&self) -> Vec<Line> {
        let of_wall = |(wall, pairs): (&Wall, &Vec<(Figures, Figures)>)| {
            let wall = *wall;
            MEASURES.map(|(name, of)| {
                let value = median(pairs.iter().map(|(bare, behind)| of(behind) / of(bare)));
                // A new connection is decided anew and written into a map: what that costs is no goal.
                let has_goal = wall.kind.is_ours() && name != "connections";
                Line {
                    name: format!("{wall}: {name}"),
                    value,
                    unit: "of the same without rules",
                    goal: has_goal.then(|| format!(">= {GOAL}")),
                    met: has_goal.then_some(value >= GOAL),
                }
            })
        };
        self.pairs.iter().flat_map(of_wall).collect()
    }
}

/// Between which of `ratios` their true median lies with 95 % certainty, by their ranks: all of them if they are
/// few.
fn certain(ratios: &[f64]) -> [f64; 2] {
    let mut sorted = ratios.to_vec();
    sorted.sort_by(f64::total_cmp);
    let beside = (0.98 * (sorted.len() as f64).sqrt()).ceil() as usize;
    let middle = sorted.len() / 2;
    let at = |rank: usize| sorted.get(rank.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN);
    [at(middle.saturating_sub(beside)), at(middle + beside)]
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = |of: fn(&Figures) -> f64| median(self.pairs.values().flatten().map(|(bare, _)| of(bare)));
        let [(_, requests), (_, connections), (_, bits)] = MEASURES;
        writeln!(
            f,
            "without any rules: {:.0} requests/s, {:.0} connections/s, {:.1} Gbit/s\n",
            bare(requests),
            bare(connections),
            bare(bits) / 1e9
        )?;
        writeln!(f, "| who decides | rules | requests | connections | bulk |\n|---|---|---|---|---|")?;
        for (wall, pairs) in &self.pairs {
            write!(f, "| {} | {} |", wall.kind.as_str(), wall.rules)?;
            for (_, of) in MEASURES {
                let ratios: Vec<f64> = pairs.iter().map(|(bare, behind)| of(behind) / of(bare)).collect();
                let [low, high] = certain(&ratios).map(|ratio| 100.0 * ratio);
                write!(f, " {:.1} % ({low:.1} to {high:.1}) |", 100.0 * median(ratios))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
