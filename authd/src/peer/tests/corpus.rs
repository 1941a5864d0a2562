//! What fuzzing has kept of what other nodes send, through the functions that it calls.

use std::path::PathBuf;

use failing::failing;

use crate::peer::{authenticator, role, wire};

#[path = "../../../peer/fuzz/src/entries.rs"]
#[expect(unreachable_pub, reason = "a crate of its own for the fuzzer")]
mod entries;
#[path = "../../../../policy/tests/fuzz_corpus/failing.rs"]
mod failing;

#[test]
fn frames() {
    assert_eq!(failing("peer/fuzz/corpus/frames", entries::frames), Vec::<PathBuf>::new());
}

#[test]
fn authenticators() {
    assert_eq!(failing("peer/fuzz/corpus/authenticator", entries::authenticator), Vec::<PathBuf>::new());
}
