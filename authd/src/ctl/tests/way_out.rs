//! authctl over the maps of a real datapath, with no daemon: needs root and a kernel that loads programs.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use auth_ebpf::{Datapath, Maps, Options};
use auth_ebpf_abi::{self as abi, AuthKey, Mode, NodeEntry, Setting};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Done, Fake, Server, run};

/// A BPF file system of its own with a datapath pinned in it; gone afterwards.
struct Pins {
    mountpoint: tempfile::TempDir,
}

impl Pins {
    /// `None`, loudly, where that is impossible.
    fn new(test: &str) -> Option<Self> {
        let mountpoint = tempfile::tempdir().unwrap();
        let mounted = mount(Some("bpf"), mountpoint.path(), Some("bpf"), MsFlags::empty(), None::<&str>);
        if let Err(error) = mounted {
            return skip(test, &format!("cannot mount a BPF file system: {error}"));
        }
        let pins = Self { mountpoint };
        if let Err(error) = Datapath::open(&Options { pin_dir: pins.pin_dir() }) {
            return skip(test, &format!("cannot load the datapath: {error}"));
        }
        Some(pins)
    }

    fn pin_dir(&self) -> PathBuf {
        self.mountpoint.path().join("authd")
    }

    fn maps(&self) -> Maps {
        Maps::open_pinned(&self.pin_dir()).unwrap()
    }

    fn authctl(&self, arguments: &[&str]) -> Done {
        authctl(&self.mountpoint.path().with_extension("sock"), &self.pin_dir(), arguments)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        _ = umount2(self.mountpoint.path(), MntFlags::MNT_DETACH);
    }
}

fn skip<T>(test: &str, why: &str) -> Option<T> {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{test}: {why}");
    // Past the capture of the test runner: `scripts/test` counts these lines.
    let _unread = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
    None
}

fn authctl(socket: &Path, pin_dir: &Path, arguments: &[&str]) -> Done {
    let global = ["authctl", "--socket", socket.to_str().unwrap(), "--pin-dir", pin_dir.to_str().unwrap()];
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = run(global.iter().chain(arguments), &mut stdout, &mut stderr);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { status, stdout: text(stdout), stderr: text(stderr) }
}

/// Puts one authentication that counts into the maps.
fn authenticate(maps: &Maps) {
    let key = AuthKey { local: 256, remote: 257, node: 2, auth_type: 1, pad: 0 };
    let far = u64::MAX / 4;
    maps.auth().insert(&key, &abi::AuthEntry { expires: far, epoch: 1, flags: 0 }).unwrap();
    maps.nodes().insert(&2, &NodeEntry { expires: far, epoch: 1, acknowledged: 0 }).unwrap();
    maps.config().set(Setting::PolicyMode, Mode::Enforce as u64).unwrap();
}

#[test]
fn without_a_daemon_the_maps_answer() {
    let Some(pins) = Pins::new("without_a_daemon_the_maps_answer") else { return };
    authenticate(&pins.maps());

    let done = pins.authctl(&["status"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    let mut lines = done.stdout.lines();
    assert!(lines.next().unwrap().starts_with("authd is not running: "), "{done:?}");
    assert!(lines.next().unwrap().starts_with("what follows is read from the maps pinned in "), "{done:?}");
    assert!(lines.next().unwrap().ends_with("enforce"), "{done:?}");

    let done = pins.authctl(&["status", "--brief"]);
    assert_eq!(done.status, 1);
    assert!(done.stdout.contains("degraded: authd does not answer"), "{done:?}");

    let done = pins.authctl(&["auth", "list", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(value["source"], "pinned maps");
    assert_eq!(value["entries"][0]["remoteIdentity"], 257);
    assert_eq!(value["entries"][0]["valid"], true);

    let done = pins.authctl(&["drops"]);
    assert_eq!(done.status, 0, "{done:?}");

    let done = pins.authctl(&["auth", "flush"]);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(pins.maps().auth().entries().unwrap().is_empty());
}

#[test]
fn off_and_on_work_without_a_daemon() {
    let Some(pins) = Pins::new("off_and_on_work_without_a_daemon") else { return };
    let maps = pins.maps();
    maps.config().set(Setting::EncryptionOffUntil, 7).unwrap();
    let off = || maps.config().get(Setting::PolicyOffUntil).unwrap();

    let done = pins.authctl(&["off", "policy", "--for", "30m", "--reason", "SPIRE is down"]);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(done.stdout.starts_with("policy is off until "), "{done:?}");
    assert!(done.stderr.starts_with("authctl: done, but in no audit: authd is not running"), "{done:?}");
    let now = super::super::time::Clock::read().unwrap().boot_nanos;
    let left = std::time::Duration::from_nanos(off().checked_sub(now).unwrap());
    assert!((1_790..=1_800).contains(&left.as_secs()), "{left:?}");
    assert!(pins.authctl(&["status"]).stdout.contains("OFF by `authctl off`, ends in 29m"));

    let done = pins.authctl(&["on", "policy"]);
    assert!(done.stdout.starts_with("policy is on again"), "{done:?}");
    assert_eq!(off(), 0);
    assert_eq!(maps.config().get(Setting::EncryptionOffUntil).unwrap(), 7, "the other guard's");
}

#[tokio::test]
async fn a_live_daemon_is_told_of_off() {
    let Some(pins) = Pins::new("a_live_daemon_is_told_of_off") else { return };
    let server = Server::start(Fake::default());
    let (socket, pin_dir) = (server.socket.clone(), pins.pin_dir());
    let arguments = ["off", "encryption", "--for", "1h", "--reason", "incident 4711", "-o", "json"];
    let calling = tokio::task::spawn_blocking(move || authctl(&socket, &pin_dir, &arguments));
    let done = calling.await.unwrap();
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    let value: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(value["recorded"], true);
    assert_eq!(value["guard"], "ENCRYPTION");

    let overrides = server.source.overrides.lock().unwrap();
    let (note, _) = overrides.first().unwrap();
    assert_eq!(note.reason, "incident 4711");
    assert!(note.off_until.is_some());
}

#[test]
fn detach_wants_a_yes_and_leaves_nothing() {
    let Some(pins) = Pins::new("detach_wants_a_yes_and_leaves_nothing") else { return };
    // The machine's own routes are none of this test's business.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let done = pins.authctl(&["detach"]);
    assert_eq!(done.status, 2, "{done:?}");
    assert!(done.stderr.contains("--yes"));
    assert!(pins.maps().config().get(Setting::Schema).is_ok(), "nothing has happened");

    let done = pins.authctl(&["detach", "--yes"]);
    assert_eq!(done.status, 0, "{done:?}");
    assert!(!pins.pin_dir().exists());

    let done = pins.authctl(&["status"]);
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.stderr.contains("authd is not running"), "{done:?}");
    assert!(done.stderr.contains("no datapath is pinned under"), "{done:?}");
}
