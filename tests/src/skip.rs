//! What a machine may lack: then a test says so and passes, but never in CI.

use std::env;
use std::io::Write as _;
use std::process::Command;

use nix::unistd::Uid;

use crate::binaries;

/// Whether labs can be made here; otherwise says which test is skipped and why.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
#[must_use]
pub fn lab_available(test: &str) -> bool {
    if Uid::effective().is_root() {
        return true;
    }
    skipped(test, "needs root, for network namespaces and eBPF")
}

/// Whether real SPIRE has been built; otherwise says which test is skipped and why.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
#[must_use]
pub fn spire_available(test: &str) -> bool {
    if binaries::peer("spire-server").is_ok() && binaries::peer("spire-agent").is_ok() {
        return true;
    }
    skipped(test, "needs spire-server and spire-agent, which scripts/peers builds where Go is")
}

/// Whether pods can be wired by real CNI plugins; otherwise says which test is skipped and why.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
#[must_use]
pub fn cni_available(test: &str) -> bool {
    if binaries::peer("cni/bridge").is_err() {
        return skipped(test, "needs CNI plugins, which scripts/peers builds where Go is");
    }
    lab_available(test)
}

/// Whether kube-proxy has been built and labs can be made here; otherwise says which test is skipped and why.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
#[must_use]
pub fn kube_proxy_available(test: &str) -> bool {
    if binaries::peer("kube-proxy").is_err() {
        return skipped(test, "needs kube-proxy, which scripts/peers builds where Go is");
    }
    lab_available(test)
}

/// Whether the peer with go-spiffe has been built; otherwise says which test is skipped and why.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
#[must_use]
pub fn go_spiffe_available(test: &str) -> bool {
    binaries::peer("gospiffe").is_ok()
        || skipped(test, "needs a peer with go-spiffe, which scripts/peers builds where Go is")
}

/// Whether Envoy has been unpacked; otherwise says which test is skipped and why.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
#[must_use]
pub fn envoy_available(test: &str) -> bool {
    binaries::peer("envoy").is_ok()
        || skipped(test, "needs Envoy, which scripts/peers unpacks where Python with pip is")
}

/// Whether there is OpenSSL 3; otherwise says which test is skipped and why.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
#[must_use]
pub fn openssl_available(test: &str) -> bool {
    let version = Command::new("openssl").arg("version").output();
    version.is_ok_and(|output| output.stdout.starts_with(b"OpenSSL 3."))
        || skipped(test, "needs OpenSSL 3, which scripts/setup installs")
}

/// Says that this kernel lacks something, without which a test is skipped.
///
/// # Panics
/// With `CI=true`, where nothing may be skipped.
pub fn kernel_lacks(test: &str, what: &str) {
    skipped(test, &format!("needs a kernel with {what}"));
}

fn skipped(test: &str, why: &str) -> bool {
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{test} {why}");
    // Past the capture of the test runner: `scripts/test` counts these lines.
    let _unread = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
    false
}
