//! The manifests that fuzzing has kept, through the function that it calls.

#[path = "../fuzz/src/entries.rs"]
#[expect(
    unreachable_pub,
    clippy::expect_used,
    reason = "a crate of its own for the fuzzer; what fails is a finding"
)]
mod entries;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

#[test]
fn manifests() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/manifests");
    let mut files: Vec<PathBuf> =
        fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    files.retain(|file| {
        let data = fs::read(file).unwrap();
        catch_unwind(|| entries::manifests(&data)).is_err()
    });
    assert_eq!(files, Vec::<PathBuf>::new());
}
