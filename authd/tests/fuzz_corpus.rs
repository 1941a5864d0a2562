//! The manifests that fuzzing has kept, through the function that it calls.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../fuzz/src/entries.rs"]
#[expect(
    unreachable_pub,
    clippy::expect_used,
    reason = "a crate of its own for the fuzzer; what fails is a finding"
)]
mod entries;
#[path = "../../policy/tests/fuzz_corpus/failing.rs"]
mod failing;

use std::path::PathBuf;

use failing::failing;

#[test]
fn manifests() {
    assert_eq!(failing("fuzz/corpus/manifests", entries::manifests), Vec::<PathBuf>::new());
}
