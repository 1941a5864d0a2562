//! Pinned links: one file for each hook and interface, named `<hook>@<interface>:<ifindex>`.
//!
//! BPF file systems allow no dots in names, and interfaces no colons: a dot of the interface is written as
//! a colon. The pin is what keeps a program attached. No process holds the link open besides, so removing
//! the file detaches it, whoever does it; the kernel takes some milliseconds.

use std::path::{Path, PathBuf};
use std::{fs, io};

use auth_ebpf_abi::{Hook, map};
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};

use crate::error::Error;
use crate::object::attach_type;

/// Where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The hook.
    pub hook: Hook,
    /// Name of the interface.
    pub interface: String,
    /// Index of the interface.
    pub ifindex: u32,
    /// No other program comes before it.
    pub at_head: bool,
}

/// The name of a pinned link, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) hook: Hook,
    pub(crate) interface: String,
    pub(crate) ifindex: u32,
}

impl Pin {
    pub(crate) fn file_name(&self) -> String {
        format!("{}@{}:{}", self.hook.as_str(), self.interface.replace('.', ":"), self.ifindex)
    }

    pub(crate) fn parse(file_name: &str) -> Option<Self> {
        let (hook, rest) = file_name.split_once('@')?;
        let (interface, ifindex) = rest.rsplit_once(':')?;
        let hook = Hook::ALL.into_iter().find(|known| known.as_str() == hook)?;
        Some(Self { hook, interface: interface.replace(':', "."), ifindex: ifindex.parse().ok()? })
    }

    pub(crate) fn path(&self, pin_dir: &Path) -> PathBuf {
        links_dir(pin_dir).join(self.file_name())
    }
}

pub(crate) fn links_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("links")
}

/// Every pinned link, dead ones too.
pub(crate) fn pins(pin_dir: &Path) -> Result<Vec<Pin>, Error> {
    let names = names(&links_dir(pin_dir))?;
    Ok(names.iter().filter_map(|name| Pin::parse(name)).collect())
}

/// The names in a directory; none if it is missing.
fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Path { path: directory.into(), action: "list it", source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Removes a file; whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Path { path: path.into(), action: "remove it", source }),
    }
}

/// What is attached in this network namespace by links pinned under `pin_dir`, with or without a daemon.
///
/// # Errors
/// If the directory or the links cannot be read.
pub fn attachments(pin_dir: &Path) -> Result<Vec<Attachment>, Error> {
    let mut attachments = Vec::new();
    for pin in pins(pin_dir)? {
        if ifindex(&pin.interface).ok() != Some(pin.ifindex) {
            continue; // the interface has gone, and the link with it
        }
        let program = PinnedLink::from_pin(pin.path(pin_dir))
            .and_then(|link| FdLink::from(link).info())
            .map_err(|error| attach_error(&pin, "inspect its link", error.into()))?
            .program_id();
        let programs = programs(&pin)?;
        if !programs.contains(&program) {
            continue; // the link died with an interface that had the same index
        }
        let at_head = programs.first() == Some(&program);
        attachments.push(Attachment {
            hook: pin.hook,
            interface: pin.interface,
            ifindex: pin.ifindex,
            at_head,
        });
    }
    Ok(attachments)
}

/// Ids of the programs at an interface, in their order.
pub(crate) fn programs(pin: &Pin) -> Result<Vec<u32>, Error> {
    let (_, programs) = SchedClassifier::query_tcx(&pin.interface, attach_type(pin.hook))
        .map_err(|error| attach_error(pin, "list the programs", error.into()))?;
    Ok(programs.iter().map(aya::programs::ProgramInfo::id).collect())
}

pub(crate) fn attach_error(pin: &Pin, action: &'static str, source: crate::error::Source) -> Error {
    Error::Attach { hook: pin.hook, interface: pin.interface.clone(), action, source }
}

/// The index of an interface in this thread's network namespace.
pub(crate) fn ifindex(interface: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|_errno| Error::NoInterface { interface: interface.to_owned() })
}

/// Takes the datapath off: detaches every program and removes every map pinned under `pin_dir`. Returns how
/// many links there were. Works without a daemon.
///
/// # Errors
/// If something cannot be removed. Links go first, and one that stays doesn't keep the others.
pub fn detach_all(pin_dir: &Path) -> Result<usize, Error> {
    let mut detached = 0;
    let mut failure = None;
    let links = links_dir(pin_dir);
    let all_links = names(&links)?.into_iter().map(|name| (links.join(name), true));
    let all_maps = map::ALL.into_iter().map(|name| (pin_dir.join(name), false));
    for (path, is_link) in all_links.chain(all_maps) {
        match remove(&path) {
            Ok(removed) => detached += usize::from(removed && is_link),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    if let Some(error) = failure {
        return Err(error);
    }
    for directory in [links.as_path(), pin_dir] {
        match fs::remove_dir(directory) {
            Ok(()) => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {}
            Err(source) => return Err(Error::Path { path: directory.into(), action: "remove it", source }),
        }
    }
    Ok(detached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pins_have_no_dots_and_read_back() {
        for (interface, expected) in
            [("eth0", "from_pod@eth0:7"), ("eth0.100", "from_pod@eth0:100:7"), ("a@b", "from_pod@a@b:7")]
        {
            let pin = Pin { hook: Hook::FromPod, interface: interface.into(), ifindex: 7 };
            assert_eq!(pin.file_name(), expected);
            assert_eq!(Pin::parse(expected), Some(pin));
        }
    }

    #[test]
    fn foreign_names_are_no_pins() {
        for name in ["", "from_pod", "from_pod@eth0", "nothing@eth0:7", "from_pod@eth0:x"] {
            assert_eq!(Pin::parse(name), None, "{name}");
        }
    }
}
