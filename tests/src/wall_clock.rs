//! A wall clock that a test sets. The machine's own is everybody's, and no namespace has one.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;

const LIBRARY: &str = "wall-clock/preload.so";
const SECONDS: &str = "wall-clock/seconds";

/// The wall clock of all nodes' daemons in a lab that start after it was made.
#[derive(Debug)]
pub struct WallClock {
    seconds: PathBuf,
}

impl WallClock {
    /// A clock that is right.
    ///
    /// # Errors
    /// When there is no C compiler.
    pub fn new(lab: &Lab) -> Result<Self> {
        let (library, seconds) = (lab.outside(LIBRARY), lab.outside(SECONDS));
        fs::create_dir_all(library.parent().context("a directory")?)?;
        fs::write(&seconds, 0_i64.to_ne_bytes())?;
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wall_clock/preload.c");
        let compiler =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", source, "-o"]).arg(&library).output();
        let output = compiler.context("cc, the C compiler")?;
        ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self { seconds })
    }

    /// Sets it to so many hours from the machine's.
    ///
    /// # Errors
    /// When the lab is gone.
    pub fn set(&self, hours: i64) -> Result<()> {
        // In place: it is mapped into the daemons' memory.
        let mut file = OpenOptions::new().write(true).open(&self.seconds)?;
        Ok(file.write_all(&(hours * 3600).to_ne_bytes())?)
    }

    /// What a daemon is started with, if the lab has such a clock.
    pub(crate) fn environment(lab: &Lab) -> Vec<(&'static str, OsString)> {
        if !lab.outside(LIBRARY).exists() {
            return Vec::new();
        }
        vec![("LD_PRELOAD", lab.inside(LIBRARY).into()), ("WALL_CLOCK", lab.inside(SECONDS).into())]
    }
}
