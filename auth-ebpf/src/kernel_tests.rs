//! What only a kernel can answer: whether it accepts the programs, decides as the host does on the same
//! packets, and keeps maps and links over a change of process.
//!
//! Each test runs in a thread with a network and a mount namespace of its own, and a BPF file system
//! mounted there: all of it goes with the thread, even if the test panics.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

#[path = "../abi/tests/decide/frames.rs"]
#[expect(dead_code, reason = "the decision's own tests use the rest")]
mod frames;
#[path = "../abi/tests/decide/scene.rs"]
#[expect(dead_code, reason = "the decision's own tests use the rest")]
mod scene;
#[path = "../abi/tests/decide/tables.rs"]
mod tables;

mod attaching;
mod fill;
mod opening;
mod verdicts;

/// Runs `test` with a pin directory in namespaces of its own, or says why it can't.
fn in_namespaces(name: &str, test: impl FnOnce(PathBuf) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{name} needs root");
        // Past the capture of the test runner: `scripts/test` counts these lines.
        let _unread = writeln!(std::io::stderr(), "SKIPPED: {name}: needs root");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mountpoint = scratch.path().to_owned();
    let outcome = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("bpf"), &mountpoint, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        ip("link set lo up");
        test(mountpoint.join("authd"));
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in this thread's namespaces.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
