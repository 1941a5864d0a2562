//! What a packet costs in the kernel, over a program that does nothing: `make bench-datapath`.
//!
//! Runs in a network and a mount namespace of its own. Rounds are interleaved, so that whatever else the
//! machine does meanwhile hits all cases alike; figures are medians over the rounds.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on should stop, and prints its results"
)]

#[path = "../../src/kernel_tests/fill.rs"]
mod fill;
#[path = "../../abi/tests/decide/frames.rs"]
#[expect(dead_code, reason = "the decision's own tests use the rest")]
mod frames;
#[path = "../../abi/tests/decide/scene.rs"]
#[expect(dead_code, reason = "the decision's own tests use the rest")]
mod scene;
#[path = "../../abi/tests/decide/tables.rs"]
mod tables;

mod cases;
mod growth;
mod report;

use auth_ebpf::{Datapath, Options};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use report::Report;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: bench-datapath: needs root");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("bpf"), scratch.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success(), "the loopback device doesn't come up");

    let mut datapath = Datapath::open(&Options { pin_dir: scratch.path().join("authd") }).unwrap();
    let mut report = Report::default();
    cases::measure(&mut datapath, &mut report);
    growth::measure(&mut datapath, &mut report);
    report.finish();
    drop(datapath);
    nix::mount::umount2(scratch.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}
