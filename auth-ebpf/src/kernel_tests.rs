//! What only a kernel can answer: whether it accepts the programs, decides as the host does on the same
//! packets, and keeps maps and links over a change of process.
//!
//! Each test runs in a thread with a network and a mount namespace of its own, and a BPF file system
//! mounted there: all of it goes with the thread, even if the test panics.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use auth_ebpf_abi::{Hook, map};
use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramInfo, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::{Datapath, Maps, Mechanism, Options};

#[path = "../abi/tests/decide/checksum.rs"]
mod checksum;
#[path = "../abi/tests/decide/flow_model.rs"]
mod flow_model;
#[path = "../abi/tests/decide/frames.rs"]
#[expect(dead_code, reason = "the decision's own tests use the rest")]
mod frames;
#[path = "../abi/tests/decide/life.rs"]
mod life;
#[path = "../abi/tests/decide/scene.rs"]
#[expect(dead_code, reason = "the decision's own tests use the rest")]
mod scene;
#[path = "../abi/tests/decide/service_model.rs"]
mod service_model;
#[path = "../abi/tests/decide/tables.rs"]
mod tables;

mod attaching;
mod connections;
mod direct;
mod fill;
mod flows;
mod forwarding;
mod opening;
mod outside;
#[cfg(feature = "sctp")]
mod sctp;
mod service_flows;
mod services;
mod slots;
mod stack;
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

/// Runs `test` for each mechanism by which this kernel can attach programs.
fn with_each_mechanism(name: &str, test: impl Fn(PathBuf, Mechanism) + Clone + Send + 'static) {
    let mechanisms = match Mechanism::detect() {
        Ok(Mechanism::Clsact) => vec![Mechanism::Clsact],
        // Without permission, it is the test that says so.
        Ok(Mechanism::Tcx) | Err(_) => vec![Mechanism::Tcx, Mechanism::Clsact],
    };
    for mechanism in mechanisms {
        let test = test.clone();
        in_namespaces(name, move |pin_dir| test(pin_dir, mechanism));
    }
}

fn open(pin_dir: &Path, mechanism: Mechanism) -> Datapath {
    Datapath::open_with(&Options { pin_dir: pin_dir.to_owned() }, mechanism).unwrap()
}

/// Makes a pair of interfaces, both up.
fn veth(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}-p"));
    ip(&format!("link set {name} up"));
    ip(&format!("link set {name}-p up"));
}

/// Waits, in this test's own thread, for what the kernel does a little later.
#[expect(clippy::disallowed_methods, reason = "no runtime here whose thread it could block")]
fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within ten seconds");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Ids of the programs at an interface, in their order.
fn programs_at(hook: Hook, interface: &str, mechanism: Mechanism) -> Vec<u32> {
    let direction = crate::object::attach_type(hook);
    match mechanism {
        Mechanism::Tcx => {
            let (_, programs) = SchedClassifier::query_tcx(interface, direction).unwrap();
            programs.iter().map(ProgramInfo::id).collect()
        }
        Mechanism::Clsact => {
            let ifindex = nix::net::if_::if_nametoindex(interface).unwrap();
            let filters = crate::attach::filters::list(ifindex, direction).unwrap();
            filters.iter().map(|filter| filter.program).filter(|program| *program != 0).collect()
        }
    }
}

/// A program of somebody else at an interface: one of ours, with maps of its own. It stays while this
/// lives.
struct Stranger {
    ebpf: Ebpf,
    metrics: PathBuf,
}

impl Stranger {
    /// With clsact, `first` decides whether it gets ahead of what has the first priority.
    fn attach(pins: &Path, hook: Hook, interface: &str, mechanism: Mechanism, first: bool) -> Self {
        let mut loader = EbpfLoader::new();
        std::fs::create_dir(pins).unwrap();
        for name in map::ALL {
            loader.map_pin_path(name, pins.join(name));
        }
        let mut ebpf = loader.load(crate::object::OBJECT).unwrap();
        let program: &mut SchedClassifier = ebpf.program_mut("from_uplink").unwrap().try_into().unwrap();
        program.load().unwrap();
        let options = match mechanism {
            Mechanism::Tcx if first => TcAttachOptions::TcxOrder(LinkOrder::first()),
            Mechanism::Tcx => TcAttachOptions::TcxOrder(LinkOrder::last()),
            Mechanism::Clsact => {
                drop(qdisc_add_clsact(interface));
                let priority = if first { 1 } else { 2 };
                TcAttachOptions::Netlink(NlOptions { priority, ..NlOptions::default() })
            }
        };
        program.attach_with_options(interface, crate::object::attach_type(hook), options).unwrap();
        Self { ebpf, metrics: pins.to_owned() }
    }

    fn id(&mut self) -> u32 {
        let program: &mut SchedClassifier = self.ebpf.program_mut("from_uplink").unwrap().try_into().unwrap();
        program.info().unwrap().id()
    }

    /// How many packets it has seen.
    fn seen(&self) -> u64 {
        let metrics = Maps::open_unversioned(&self.metrics).unwrap().metrics().unwrap();
        metrics.counters.values().map(|counter| counter.packets).sum()
    }
}

/// Runs `ip` in this thread's namespaces.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
