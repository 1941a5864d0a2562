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
#[path = "fuzz_corpus/failing.rs"]
mod failing;

use std::path::PathBuf;

use failing::failing;

#[test]
fn policies() {
    assert_eq!(failing("fuzz/corpus/policy", entries::policy), Vec::<PathBuf>::new());
}

#[test]
fn selectors() {
    assert_eq!(failing("fuzz/corpus/selector", entries::selector), Vec::<PathBuf>::new());
}

#[test]
fn labels() {
    assert_eq!(failing("fuzz/corpus/label", entries::label), Vec::<PathBuf>::new());
}
