//! Parser and decision, the very code of the kernel, on hostile bytes: `cargo +nightly fuzz run decide` in
//! `auth-ebpf`.

#![no_main]

#[path = "../../abi/tests/decide/frames.rs"]
#[allow(dead_code, reason = "the decision's own tests use the rest")]
mod frames;
#[path = "../../abi/tests/decide/hostile.rs"]
mod hostile;
#[path = "../../abi/tests/decide/scene.rs"]
#[allow(dead_code, reason = "the decision's own tests use the rest")]
mod scene;
#[path = "../../abi/tests/decide/tables.rs"]
mod tables;

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostile::decide_all(data));
