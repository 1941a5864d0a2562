//! Where the programs under test are.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The path of one of this workspace's programs: in `AUTHD_BIN_DIR`, or where cargo put this one.
///
/// # Errors
/// When it is not there.
pub fn path(program: &str) -> Result<PathBuf> {
    let path = directory()?.join(program);
    if !path.is_file() {
        bail!("{} is missing: `cargo build --bins` makes it, or set AUTHD_BIN_DIR", path.display());
    }
    Ok(path)
}

/// The path of a real peer that `scripts/peers` has built: in `AUTHD_PEERS_DIR`, or in `target/tools/peers`.
///
/// # Errors
/// When it is not there.
pub fn peer(program: &str) -> Result<PathBuf> {
    let built = || concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/peers").into();
    let directory = env::var_os("AUTHD_PEERS_DIR").map_or_else(built, PathBuf::from);
    let path = directory.join(program);
    if !path.is_file() {
        bail!("{} is missing: scripts/peers makes it, or set AUTHD_PEERS_DIR", path.display());
    }
    Ok(path.canonicalize()?)
}

fn directory() -> Result<PathBuf> {
    if let Some(directory) = env::var_os("AUTHD_BIN_DIR") {
        return Ok(directory.into());
    }
    let program = env::current_exe().context("path of this program")?;
    let directory = program.parent().context("directory of this program")?;
    // Tests lie one level deeper than programs.
    let directory = match directory.file_name() {
        Some(name) if name == "deps" => directory.parent().context("directory above `deps`")?,
        _ => directory,
    };
    Ok(directory.to_owned())
}
