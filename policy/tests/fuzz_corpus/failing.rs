//! A fuzzer's corpus as a test. Other crates take this file for theirs.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// The files below a directory of this package that a target's entry fails on.
pub(crate) fn failing(directory: &str, entry: fn(&[u8])) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<PathBuf> =
        fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files.retain(|file| {
        let data = fs::read(file).unwrap();
        catch_unwind(|| entry(&data)).is_err()
    });
    files
}
