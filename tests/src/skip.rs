//! What a machine may lack: then a test says so and passes, but never in CI.

use std::env;
use std::io::Write as _;

use nix::unistd::Uid;

/// Whether labs can be made here; otherwise says which test is skipped and why.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
#[must_use]
pub fn lab_available(test: &str) -> bool {
    if Uid::effective().is_root() {
        return true;
    }
    let why = "needs root, for network namespaces and eBPF";
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{test} {why}");
    // Past the capture of the test runner: `scripts/test` counts these lines.
    let _unread = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
    false
}
