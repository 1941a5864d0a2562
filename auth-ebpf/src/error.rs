//! What can go wrong, in words that name the object and the way out.

use std::io;
use std::path::PathBuf;

use auth_ebpf_abi::Hook;

/// An error of another library, whose type is no part of this one's interface.
pub(crate) type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why the datapath cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The pin directory is on another file system.
    #[error("pin directory {}: not on a BPF file system; mount one: mount -t bpf bpf /sys/fs/bpf", path.display())]
    NotBpffs {
        /// The pin directory.
        path: PathBuf,
    },
    /// A file or directory under the pin directory is out of reach.
    #[error("{}: cannot {action}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A capability is missing.
    #[error(
        "cannot {action}: permission denied; authd needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN"
    )]
    Permission {
        /// What was tried.
        action: String,
    },
    /// The kernel is too old for what was asked of it.
    #[error(
        "kernel {release} has no TCX, which came with Linux 6.6; leave the choice to authd, or say `clsact`"
    )]
    NoTcx {
        /// The kernel's release.
        release: String,
    },
    /// Pinned maps of another version.
    #[error(
        "maps pinned under {}: schema version {found}, this authd has {expected}; \
         take the old datapath off with `authctl detach`", path.display()
    )]
    Schema {
        /// The pin directory.
        path: PathBuf,
        /// Version of the pinned maps.
        found: u64,
        /// Version that this crate needs.
        expected: u64,
    },
    /// A pinned map is not what its name says.
    #[error(
        "pinned map {}: its {field} is {found}, this authd needs {expected}; \
         take the old datapath off with `authctl detach`", path.display()
    )]
    Layout {
        /// Where it is pinned.
        path: PathBuf,
        /// What differs.
        field: &'static str,
        /// The map's.
        found: u32,
        /// What this crate needs.
        expected: u32,
    },
    /// No maps are pinned.
    #[error("no datapath is pinned under {}; has authd run with this pin directory?", path.display())]
    NotPinned {
        /// The pin directory.
        path: PathBuf,
    },
    /// The kernel refuses a program.
    #[error("program {program}: the kernel refuses it: {source}; end of the verifier's log:\n{log}")]
    Verifier {
        /// The program.
        program: &'static str,
        /// What the kernel returned.
        source: io::Error,
        /// The last lines of its log.
        log: String,
    },
    /// Loading failed otherwise.
    #[error("cannot load the eBPF object")]
    Load(#[source] Source),
    /// A map operation failed.
    #[error("map {map}: cannot {action}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: Source,
    },
    /// A map has no room.
    #[error("map {map} is full: it holds {capacity} entries")]
    Full {
        /// The map.
        map: &'static str,
        /// How many entries it holds.
        capacity: u32,
    },
    /// There is no such interface.
    #[error("interface {interface}: no such interface in this network namespace")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// The filters at an interface cannot be listed.
    #[error("cannot list the traffic control filters at interface {interface}")]
    Filters {
        /// The interface's name.
        interface: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program cannot be attached or replaced.
    #[error("{}: cannot {action} at interface {interface}", hook.as_str())]
    Attach {
        /// The hook.
        hook: Hook,
        /// The interface's name.
        interface: String,
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: Source,
    },
}
