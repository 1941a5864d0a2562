//! Pinned links: one file for each hook and interface, named `<hook>@<interface>:<ifindex>`.
//!
//! BPF file systems allow no dots in names, and interfaces no colons: a dot of the interface is written as
//! a colon. The pin is what keeps a program attached. No process holds the link open besides, so removing
//! the file detaches it, whoever does it; the kernel takes some milliseconds.

use std::path::{Path, PathBuf};
use std::{fs, io};

use auth_ebpf_abi::Hook;

use crate::error::Error;

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
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, Error> {
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
