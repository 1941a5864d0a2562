//! Loading the programs, and their maps.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use auth_ebpf_abi::{Hook, Multipliers, SCHEMA_VERSION, Setting, map};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

use crate::Events;
use crate::attach::Mechanism;
use crate::error::{Error, Source};
use crate::links::links_dir;
use crate::maps::{Maps, io_error};
use crate::object::OBJECT;

/// Lines of the verifier's log that an error shows.
const VERIFIER_LOG_LINES: usize = 20;

/// How to open a [`Datapath`].
#[derive(Clone, Debug)]
pub struct Options {
    /// A directory on a BPF file system, made if missing. Whoever opens the same directory later adopts
    /// what is pinned there. No dots in its name: that file system allows none.
    pub pin_dir: PathBuf,
}

/// The loaded programs and their maps, pinned under one directory.
///
/// Dropping it changes nothing at the hooks: what is pinned stays attached.
pub struct Datapath {
    pub(crate) pin_dir: PathBuf,
    pub(crate) ebpf: Ebpf,
    pub(crate) mechanism: Mechanism,
    /// The programs that this process has attached, by hook and interface index.
    pub(crate) attached: BTreeMap<(Hook, u32), u32>,
    maps: Maps,
}

impl Datapath {
    /// As [`Datapath::open_with`], by the mechanism that suits this kernel.
    ///
    /// # Errors
    /// As there.
    pub fn open(options: &Options) -> Result<Self, Error> {
        Self::open_with(options, Mechanism::detect()?)
    }

    /// Loads the programs, and adopts the maps pinned under the directory or makes them. Attaches nothing;
    /// programs that are attached already go on until [`Datapath::attach`] replaces them.
    ///
    /// # Errors
    /// No BPF file system, no permission, a kernel without that mechanism, pinned maps of another version,
    /// or a program that the kernel refuses. Nothing that was pinned before has been touched then.
    pub fn open_with(options: &Options, mechanism: Mechanism) -> Result<Self, Error> {
        let pin_dir = options.pin_dir.clone();
        mechanism.check()?;
        check_bpffs(&pin_dir)?;
        make_directory(&links_dir(&pin_dir))?;
        check_schema(&pin_dir)?;
        let ebpf = load(&pin_dir)?;
        let maps = Maps::open_unversioned(&pin_dir)?;
        maps.config().set(Setting::Schema, SCHEMA_VERSION)?;
        // A process before this one may have ended between a change and the word of it.
        maps.reopen_connections()?;
        Ok(Self { pin_dir, ebpf, mechanism, attached: BTreeMap::new(), maps })
    }

    /// The maps.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The events. One reader at a time.
    ///
    /// # Errors
    /// If the ring buffer cannot be mapped.
    pub fn events(&mut self) -> Result<Events, Error> {
        Events::open(&self.pin_dir)
    }

    pub(crate) fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier, Error> {
        program(&mut self.ebpf, hook)
    }
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath").field("pin_dir", &self.pin_dir).finish_non_exhaustive()
    }
}

pub(crate) fn program(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, Error> {
    program_named(ebpf, hook.as_str())
}

pub(crate) fn program_named<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    let program =
        ebpf.program_mut(name).ok_or_else(|| Error::Load(format!("it has no program {name}").into()))?;
    program.try_into().map_err(|error: ProgramError| Error::Load(error.into()))
}

/// The seed by which the pinned tables in slots were filled, or one for those that will be made.
fn seed(pin_dir: &Path) -> Result<u64, Error> {
    let kept = match crate::maps::Config::open(pin_dir) {
        Ok(config) => config.get(Setting::Seed)?,
        Err(Error::NotPinned { .. }) => 0,
        Err(error) => return Err(error),
    };
    if kept != 0 {
        return Ok(kept);
    }
    // Without it, nobody finds anything in them.
    for name in map::IN_SLOTS {
        let path = pin_dir.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Path { path, action: "remove it", source });
            }
            _ => {}
        }
    }
    // A hasher of the standard library's begins with random numbers of the system's.
    Ok(RandomState::new().build_hasher().finish().max(1))
}

pub(crate) fn load(pin_dir: &Path) -> Result<Ebpf, Error> {
    let seed = seed(pin_dir)?;
    let Multipliers(multipliers) = Multipliers::from_seed(seed);
    let mut loader = EbpfLoader::new();
    loader.override_global("MULTIPLIERS", multipliers.as_slice(), true);
    for name in map::ALL {
        loader.map_pin_path(name, pin_dir.join(name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| refused("load the eBPF object", error.into()))?;
    crate::maps::Config::open(pin_dir)?.set(Setting::Seed, seed)?;
    for hook in Hook::ALL {
        program(&mut ebpf, hook)?.load().map_err(|error| unverified(hook, error))?;
    }
    Ok(ebpf)
}

fn unverified(hook: Hook, error: ProgramError) -> Error {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(VERIFIER_LOG_LINES)..).unwrap_or_default().join("\n");
        // Without the capability, the kernel doesn't come to verifying.
        if tail.is_empty() && io_error.kind() == io::ErrorKind::PermissionDenied {
            return Error::Permission { action: format!("load the program {}", hook.as_str()) };
        }
        return Error::Verifier { program: hook.as_str(), source: io_error, log: tail };
    }
    refused("load the eBPF programs", error.into())
}

fn refused(action: &str, error: Source) -> Error {
    match io_error(error.as_ref()).map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => Error::Permission { action: action.to_owned() },
        _ => Error::Load(error),
    }
}

/// The pin directory, or where it will be made, must be on a BPF file system.
fn check_bpffs(pin_dir: &Path) -> Result<(), Error> {
    let existing = pin_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let kind = nix::sys::statfs::statfs(existing).map_err(|errno| Error::Path {
        path: existing.into(),
        action: "find its file system",
        source: errno.into(),
    })?;
    if kind.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
        Ok(())
    } else {
        Err(Error::NotBpffs { path: pin_dir.into() })
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| Error::Path {
        path: path.into(),
        action: "make the directory",
        source,
    })
}

/// Pinned maps must be ours. A `config` without a version was made, but never used.
fn check_schema(pin_dir: &Path) -> Result<(), Error> {
    let config = match crate::maps::Config::open(pin_dir) {
        Ok(config) => config,
        Err(Error::NotPinned { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    match config.get(Setting::Schema)? {
        0 | SCHEMA_VERSION => {}
        found => return Err(Error::Schema { path: pin_dir.into(), found, expected: SCHEMA_VERSION }),
    }
    for name in map::ALL {
        match crate::maps::open_map(pin_dir, name) {
            Ok(_) | Err(Error::NotPinned { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
