//! `make demo`: the whole promise on real packets, each expectation measured from outside.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod authctl;
mod crash;
mod kept;
mod land;
mod report;
mod scene;
mod start;
mod withdraw;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use authd_tests::issuer::Kind;
use authd_tests::lab::processes_of;
use authd_tests::{Capture, binaries, wait};
use clap::Parser;
use nix::unistd::Uid;

use self::report::Report;
use self::scene::Scene;

/// The demo ends within this time, well or not.
const LIMIT: Duration = Duration::from_secs(240);

/// Shows on two nodes made of network namespaces what authd does.
#[derive(Debug, Parser)]
#[command(name = "demo")]
struct Options {
    /// Leave it running and say how to look around.
    #[arg(long)]
    keep: bool,
    /// End every demo that was left running.
    #[arg(long)]
    stop: bool,
    /// The directory of manifests.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../demo/manifests"))]
    manifests: PathBuf,
    /// Filtering of reverse paths on the nodes: 0 off, 1 strict, 2 loose as Debian has it.
    #[arg(long, value_name = "MODE", default_value_t = 1)]
    rp_filter: u8,
    /// Who issues SVIDs.
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Kind::Embedded)]
    spire: Kind,
    /// Where to write the report [default: demo/report.json in cargo's target directory]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    match demo(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything expected was seen.
fn demo(options: &Options) -> Result<bool> {
    let program = std::env::current_exe().context("path of this program")?;
    let target = program.ancestors().nth(2).context("cargo's target directory")?;
    let directory = target.join("demo");
    if options.stop {
        return kept::stop(&directory).map(|()| true);
    }
    anyhow::ensure!(Uid::effective().is_root(), "needs root, for network namespaces and eBPF");
    for program in ["authd", "authctl", "deathstar"] {
        binaries::path(program)?;
    }
    let watchdog = watch();
    let mut report = Report::default();
    let mut scene = Scene::new(&options.manifests, options.rp_filter).context("build the scene")?;
    if let Err(error) = play(&mut scene, options.spire, &mut report) {
        report.figure("the demo runs to its end", false, format!("{error:#}"), "");
    }
    drop(watchdog);
    let path = options.report.clone().unwrap_or_else(|| directory.join("report.json"));
    if options.keep {
        kept::keep(&scene, &directory)?;
        finish(&report, &path)?;
        // No destructor may end what is to stay.
        std::process::exit(i32::from(!report.ok()));
    }
    if !report.ok() {
        save_logs(&scene, &directory.join("logs"))?;
    }
    end(scene, &mut report)?;
    finish(&report, &path)?;
    Ok(report.ok())
}

/// All of it, in the order of the issue.
fn play(scene: &mut Scene, issuer: Kind, report: &mut Report) -> Result<()> {
    start::in_the_clear(scene, report)?;
    let registry = start::issuer(scene, issuer, report)?;
    let mut capture = scene.lab.capture()?;
    start::daemons(scene, report)?;
    land::tiefighter(scene, report)?;
    land::stormtrooper(scene, report)?;
    land::xwing(scene, report)?;
    land::entries(scene, report)?;
    let mut connection = land::keep_open(scene)?;
    withdraw::withdraw(scene, &registry, &mut connection, report)?;
    crash::crash(scene, &mut capture, &mut connection, report)?;
    on_the_wire(scene, capture, report)
}

/// What has crossed the wire since authd was started.
fn on_the_wire(scene: &Scene, capture: Capture, report: &mut Report) -> Result<()> {
    report.part("On the wire between the nodes, from start to end");
    let frames = capture.stop()?;
    let counts = frames.count(&scene.expected());
    let leaked: usize = scene.needles().iter().map(|needle| frames.containing(needle)).sum();
    report.figure("on the wire: WireGuard", counts.wireguard > 0, counts.wireguard, "packets");
    report.figure("on the wire: handshake port", counts.handshake > 0, counts.handshake, "packets");
    report.figure("on the wire: neighbour discovery and ARP", counts.link == 0, counts.link, "packets");
    report.figure("on the wire: anything else", counts.other == 0, counts.other, "packets");
    for example in &counts.examples {
        report.say(example);
    }
    report.figure("on the wire: packets with the payload", leaked == 0, leaked, "packets");
    Ok(())
}

/// Takes the scene down and looks for what it has left.
fn end(scene: Scene, report: &mut Report) -> Result<()> {
    report.part("End");
    let name = scene.lab.name().to_owned();
    drop(scene);
    let left = || processes_of(&name).map(|processes| processes.len());
    let gone = wait::until(Duration::from_secs(5), || left().is_ok_and(|count| count == 0).then_some(()));
    report.figure("left behind", gone.is_some(), left()?, "processes");
    Ok(())
}

fn finish(report: &Report, path: &Path) -> Result<()> {
    report.summary();
    report.write(path)?;
    println!("report: {}", path.display());
    Ok(())
}

/// Copies the logs to where they stay.
fn save_logs(scene: &Scene, directory: &Path) -> Result<()> {
    drop(std::fs::remove_dir_all(directory));
    std::fs::create_dir_all(directory)?;
    for log in std::fs::read_dir(scene.lab.outside("logs"))? {
        let log = log?;
        std::fs::copy(log.path(), directory.join(log.file_name()))?;
    }
    println!("\nlogs: {}", directory.display());
    Ok(())
}

/// Ends the process when the demo takes too long; its end ends the lab. Stops watching when dropped.
fn watch() -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        if receiver.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("demo: still not at its end after {LIMIT:?}");
            std::process::exit(1);
        }
    });
    sender
}
