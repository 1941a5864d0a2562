//! The lab's first process, on which everything hangs.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::marked;

/// A private /run, so that named network namespaces, pid files and sockets are the lab's own.
const SCRIPT: &str = "
    mount -t tmpfs -o mode=755 lab /run
    mkdir -p /run/netns /run/authd /run/lab/logs
    ip link set lo up
    echo ready
    exec cat >/dev/null";

/// `unshare`, whose one child is process 1 of the lab and dies with it, or at the end of its input.
#[derive(Debug)]
pub(super) struct Holder {
    name: String,
    pid: u32,
    child: Mutex<Child>,
}

impl Holder {
    pub(super) fn start(name: &str) -> Result<Self> {
        let mut child = marked("unshare", name)
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "sh", "-ceu", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let stdout = child.stdout.take().context("no pipe from the holder")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("wait for the holder")?;
        let holder = Self { name: name.to_owned(), pid: child.id(), child: Mutex::new(child) };
        if line.trim() != "ready" {
            bail!("the holder did not get ready: are you root?");
        }
        Ok(holder)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// One of its namespaces, as a file. `unshare` itself is in all of them but that of processes.
    pub(super) fn namespace(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.pid))
    }

    /// Its file system, seen from this process.
    pub(super) fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// Hands the pipe that keeps the lab alive to a process that outlives this one.
    pub(super) fn keep(&self) -> Result<u32> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = child.stdin.take().context("the lab is kept already")?;
        let mut command = Command::new("setsid");
        let keeper = command
            .args(["sleep", "infinity"])
            .env(super::namespace::VARIABLE, &self.name)
            .stdin(Stdio::null())
            .stdout(pipe)
            .stderr(Stdio::null())
            .spawn()
            .context("start the keeper")?;
        Ok(keeper.id())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(child.stdin.take());
        // Its death kills process 1, and with that all others.
        drop(child.kill());
        drop(child.wait());
    }
}
