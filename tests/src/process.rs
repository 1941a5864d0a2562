//! Long-running programs in a lab, with their logs.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Lab;
use crate::lab::namespace::Namespace;
use crate::wait;

/// How many lines of a log an error shows.
const TAIL: usize = 25;

/// A program that runs until it is killed, or dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command, whose output goes to the log of this name in the lab's directory; a log that
    /// is there already is continued.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(lab: &Lab, namespace: &Namespace, name: &str, mut command: Command) -> Result<Self> {
        let log = lab.outside(&format!("logs/{name}.log"));
        let file = File::options().create(true).append(true).open(&log).context("open its log")?;
        command.stdout(file.try_clone()?).stderr(file);
        let child = namespace.spawn(command)?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// The name of its log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id, as this process's namespace counts.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("read the log of {}", self.name))
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Kills it at once, as a crash would end it.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// When it does not end in time; then it still runs.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let ended = wait::until(limit, || self.child.try_wait().transpose());
        let (status, _) = ended.ok_or_else(|| self.failure("does not end on SIGTERM"))?;
        Ok(status?)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("signal {}", self.name))
    }

    /// An error about it that shows the end of its log.
    #[must_use]
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let log = self.log().unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default().join("\n  ");
        anyhow!("{} {what}; the end of its log:\n  {tail}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
