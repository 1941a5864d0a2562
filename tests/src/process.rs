//! Long-running programs, in a lab or on this machine, with their logs.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Lab;
use crate::lab::namespace::Namespace;
use crate::wait;

/// How many lines of a log an error shows.
const TAIL: usize = 25;

/// Where a program on this machine may listen: a loopback address of this process's own, so that nobody takes the port
/// before it does, and each port once, below those that the kernel gives away.
#[must_use]
pub fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, 64 + a % 64, b, c), NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

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
        write_to(&log, &mut command)?;
        let child = namespace.spawn(command)?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Starts a program on this machine, outside any lab, with a log in `directory`. It is killed when
    /// the calling thread ends, however that happens.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_here(directory: &Path, name: &str, command: &Command) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        write_to(&log, bound.stdin(Stdio::null()))?;
        let child = bound.spawn().with_context(|| format!("start {name}"))?;
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

/// Continues a log that is there already.
fn write_to(log: &Path, command: &mut Command) -> Result<()> {
    let file = File::options().create(true).append(true).open(log).context("open its log")?;
    command.stdout(file.try_clone()?).stderr(file);
    Ok(())
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
