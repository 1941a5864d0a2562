//! Figures of a benchmark, for programs.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result};
use serde::Serialize;

/// The middle one of some values; not a number if there are none.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Writes `lines` to `bench/NAME.json` under the directory that cargo builds in.
///
/// # Errors
/// When the file can't be written.
pub fn write<T: Serialize>(name: &str, lines: &[T]) -> Result<()> {
    // Cargo runs benchmarks in their package's directory.
    let beside = || concat!(env!("CARGO_MANIFEST_DIR"), "/../target").into();
    let directory = env::var_os("CARGO_TARGET_DIR").map_or_else(beside, PathBuf::from).join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let path = directory.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec_pretty(lines)?).with_context(|| format!("write {}", path.display()))
}
