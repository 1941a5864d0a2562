//! A demo that stays: how to look around in it, and how to end it.
#![expect(clippy::print_stdout, reason = "tells people what they can do")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use authd_tests::binaries;
use authd_tests::lab::processes_of;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scene::Scene;

/// The file beside the script that says which process keeps the lab.
const KEEPER: &str = "keeper";

/// Leaves the lab running and says how to use it. The process must exit without destructors afterwards.
pub(crate) fn keep(scene: &Scene, directory: &Path) -> Result<()> {
    let own = directory.join(scene.lab.name());
    fs::create_dir_all(&own)?;
    let script = own.join("on");
    fs::write(&script, script_text(scene)?)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let shortcut = directory.join("on");
    drop(fs::remove_file(&shortcut));
    symlink(&script, &shortcut).context("link the script")?;
    let keeper = scene.lab.keep()?;
    fs::write(own.join(KEEPER), keeper.to_string())?;
    let on = shortcut.display();
    println!(
        "\nThe demo goes on. Look around:\n\
         \x20 {on} node1 authctl status\n\
         \x20 {on} node2 authctl auth list\n\
         \x20 {on} node1 authctl encrypt status\n\
         \x20 {on} node2 authctl observe -f\n\
         \x20 {on} tiefighter curl -s -XPOST 10.244.2.10/v1/request-landing\n\
         \x20 {on} underlay tcpdump -ni underlay\n\
         \x20 {on} node1 tail -f /run/lab/logs/authd-node1.log\n\
         End it: make demo-stop"
    );
    Ok(())
}

/// Ends every demo that was kept, and says so.
pub(crate) fn stop(directory: &Path) -> Result<()> {
    let mut ended = 0;
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let own = entry?.path();
        let Ok(keeper) = fs::read_to_string(own.join(KEEPER)) else { continue };
        let lab = own.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let keeper: u32 = keeper.trim().parse().context("the keeper's process id")?;
        // The id may belong to somebody else by now.
        if processes_of(lab)?.contains(&keeper) {
            kill(Pid::from_raw(i32::try_from(keeper)?), Signal::SIGTERM).context("end the keeper")?;
            ended += 1;
        }
        fs::remove_dir_all(&own)?;
    }
    drop(fs::remove_file(directory.join("on")));
    println!("{ended} kept demos ended");
    Ok(())
}

/// A script that runs a command on a node, in a pod or in the underlay.
fn script_text(scene: &Scene) -> Result<String> {
    let world = scene.world();
    let nodes = world.nodes.values().map(|node| &**node);
    let pods = world.pods.values().map(|pod| &**pod);
    let mut cases = String::new();
    for place in nodes.chain(pods).chain([scene.lab.underlay()]) {
        cases += &format!("    {}) options='{}' ;;\n", place.name(), place.nsenter_options());
    }
    let authctl = binaries::path("authctl")?;
    let programs = authctl.parent().context("no directory of programs")?.display();
    let lab = scene.lab.name();
    Ok(format!(
        "#!/bin/sh\n\
         # Runs a command on a node, in a pod or in the underlay of demo {lab}.\n\
         [ $# -gt 1 ] || set -- ''\n\
         case $1 in\n{cases}\
         \x20   *) echo \"usage: $0 NODE|POD|underlay COMMAND...\" >&2; exit 2 ;;\n\
         esac\n\
         shift\n\
         PATH={programs}:$PATH exec nsenter $options -- \"$@\"\n"
    ))
}
