//! One tunnel per socket and per interface, and words for whoever comes second.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::Error;

/// Holds `<socket>.lock` for as long as it lives; the kernel gives it back when the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    pub(super) fn acquire(socket: &Path) -> Result<Self, Error> {
        let path = lock_path(socket);
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(|source| Error::Lock { path: path.clone(), source })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let written = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
                written.map_err(|source| Error::Lock { path, source })?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let holder =
                    file.read_to_string(&mut holder).ok().and_then(|_length| holder.trim().parse().ok());
                Err(Error::SocketHeld { socket: socket.to_owned(), holder: Holder(holder) })
            }
            Err((_, errno)) => Err(Error::Lock { path, source: errno.into() }),
        }
    }
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

/// A process, if it could be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(pub Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// The process of this network namespace that has `interface` open as a TUN device.
pub(super) fn interface_holder(interface: &str) -> Holder {
    let ours = std::fs::read_link("/proc/thread-self/ns/net").ok();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let wanted = format!("iff:\t{interface}");
    Holder(pids.find(|pid| {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).ok() == ours && has_open(*pid, &wanted)
    }))
}

fn has_open(pid: u32, wanted: &str) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let mut infos = descriptors.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    infos.any(|info| info.lines().any(|line| line == wanted))
}
