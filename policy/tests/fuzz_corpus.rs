//! The inputs that fuzzing has kept, through the functions that it calls.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../fuzz/src/entries.rs"]
#[expect(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "a crate of its own for the fuzzer; a property that fails is a finding"
)]
mod entries;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// The files of a target's corpus that its entry fails on.
fn failing(target: &str, entry: fn(&[u8])) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> =
        fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files.retain(|file| {
        let data = fs::read(file).unwrap();
        catch_unwind(|| entry(&data)).is_err()
    });
    files
}

#[test]
fn policies() {
    assert_eq!(failing("policy", entries::policy), Vec::<PathBuf>::new());
}

#[test]
fn selectors() {
    assert_eq!(failing("selector", entries::selector), Vec::<PathBuf>::new());
}

#[test]
fn labels() {
    assert_eq!(failing("label", entries::label), Vec::<PathBuf>::new());
}
