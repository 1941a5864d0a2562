//! What fuzzing has kept of what other nodes send, through the functions that it calls.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use crate::peer::{authenticator, role, wire};

#[path = "../../../peer/fuzz/src/entries.rs"]
#[expect(unreachable_pub, reason = "a crate of its own for the fuzzer")]
mod entries;

/// The files of a target's corpus that its entry fails on.
fn failing(target: &str, entry: fn(&[u8])) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer/fuzz/corpus").join(target);
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
fn frames() {
    assert_eq!(failing("frames", entries::frames), Vec::<PathBuf>::new());
}

#[test]
fn authenticators() {
    assert_eq!(failing("authenticator", entries::authenticator), Vec::<PathBuf>::new());
}
