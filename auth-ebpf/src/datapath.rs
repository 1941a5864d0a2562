//! Loading and attaching the programs.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use auth_ebpf_abi::{Hook, SCHEMA_VERSION, Setting, map};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};

use crate::Events;
use crate::error::{Error, Source};
use crate::links::{self, Attachment, Pin, attach_error, links_dir, remove};
use crate::maps::{Maps, io_error};
use crate::object::{OBJECT, attach_type};

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
    pin_dir: PathBuf,
    pub(crate) ebpf: Ebpf,
    maps: Maps,
}

impl Datapath {
    /// Loads the programs, and adopts the maps pinned under the directory or makes them. Attaches nothing;
    /// programs that are attached already go on until [`Datapath::attach`] replaces them.
    ///
    /// # Errors
    /// No BPF file system, no permission, a kernel without TCX, pinned maps of another version, or a
    /// program that the kernel refuses. Nothing that was pinned before has been touched then.
    pub fn open(options: &Options) -> Result<Self, Error> {
        let pin_dir = options.pin_dir.clone();
        check_tcx()?;
        check_bpffs(&pin_dir)?;
        make_directory(&links_dir(&pin_dir))?;
        check_schema(&pin_dir)?;
        let ebpf = load(&pin_dir)?;
        let maps = Maps::open_unversioned(&pin_dir)?;
        maps.config().set(Setting::Schema, SCHEMA_VERSION)?;
        Ok(Self { pin_dir, ebpf, maps })
    }

    /// Attaches the program of `hook` to `interface` of this thread's network namespace, ahead of all
    /// others. If it is attached already, the program is replaced without a gap, unless it is this very
    /// one; if others have got ahead of it, or the interface was made anew, it is attached afresh.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses.
    pub fn attach(&mut self, hook: Hook, interface: &str) -> Result<(), Error> {
        let pin = Pin { hook, interface: interface.to_owned(), ifindex: links::ifindex(interface)? };
        let path = pin.path(&self.pin_dir);
        if !self.adopt(&pin, &path)? {
            self.attach_anew(&pin, &path)?;
        }
        self.unpin(hook, interface, Some(pin.ifindex))?;
        Ok(())
    }

    /// Detaches the program of `hook` from `interface`, which may have gone meanwhile. The kernel follows
    /// within milliseconds.
    ///
    /// # Errors
    /// If the link cannot be removed.
    pub fn detach(&mut self, hook: Hook, interface: &str) -> Result<(), Error> {
        self.unpin(hook, interface, None)
    }

    /// What is attached, by this process or one before it.
    ///
    /// # Errors
    /// If the links cannot be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        links::attachments(&self.pin_dir)
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

    /// Puts our program into the pinned link, if that is alive and at the head.
    fn adopt(&mut self, pin: &Pin, path: &Path) -> Result<bool, Error> {
        let link = match PinnedLink::from_pin(path) {
            Ok(link) => FdLink::from(link),
            Err(error) if is_missing(&error) => return Ok(false),
            Err(error) => return Err(attach_error(pin, "open its pinned link", error.into())),
        };
        let attached =
            link.info().map_err(|error| attach_error(pin, "inspect its link", error.into()))?.program_id();
        if links::programs(pin)?.first() != Some(&attached) {
            return Ok(false);
        }
        let program = self.program(pin.hook)?;
        let failed = |source: Source| attach_error(pin, "replace the program", source);
        let ours = program.info().map_err(|error| failed(error.into()))?.id();
        if ours != attached {
            let link = SchedClassifierLink::try_from(link).map_err(|error| failed(error.into()))?;
            let id = program.attach_to_link(link).map_err(|error| failed(error.into()))?;
            drop(take_link(program, id).map_err(failed)?);
        }
        Ok(true)
    }

    /// Makes a new link at the head. One that is pinned already goes only afterwards, so no packet passes
    /// unseen.
    fn attach_anew(&mut self, pin: &Pin, path: &Path) -> Result<(), Error> {
        let link = match self.link_at_head(pin) {
            // It is there already: displaced, or about to go. A copy of it may come in besides.
            Err(error) if is_errno(&error, libc::EEXIST) => {
                self.ebpf = load(&self.pin_dir)?;
                self.link_at_head(pin)
            }
            outcome => outcome,
        };
        let link = link.map_err(|source| attach_error(pin, "attach the program", source))?;
        remove(path)?;
        link.pin(path).map_err(|error| attach_error(pin, "pin its link", error.into()))?;
        Ok(())
    }

    fn link_at_head(&mut self, pin: &Pin) -> Result<FdLink, Source> {
        let program = self.program(pin.hook)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(&pin.interface, attach_type(pin.hook), options)?;
        take_link(program, id)
    }

    /// Removes the pins of `hook` at `interface`, but for the one with index `keep`.
    fn unpin(&self, hook: Hook, interface: &str, keep: Option<u32>) -> Result<(), Error> {
        for pin in links::pins(&self.pin_dir)? {
            if pin.hook == hook && pin.interface == interface && Some(pin.ifindex) != keep {
                remove(&pin.path(&self.pin_dir))?;
            }
        }
        Ok(())
    }

    fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier, Error> {
        program(&mut self.ebpf, hook)
    }
}

impl std::fmt::Debug for Datapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datapath").field("pin_dir", &self.pin_dir).finish_non_exhaustive()
    }
}

/// Takes a link out of aya's hands, which would keep it open and thus attached after its pin has gone.
fn take_link(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<FdLink, Source> {
    let link = program.take_link(id)?;
    Ok(FdLink::try_from(link)?)
}

pub(crate) fn program(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, Error> {
    program_named(ebpf, hook.as_str())
}

pub(crate) fn program_named<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    let program =
        ebpf.program_mut(name).ok_or_else(|| Error::Load(format!("it has no program {name}").into()))?;
    program.try_into().map_err(|error: ProgramError| Error::Load(error.into()))
}

fn load(pin_dir: &Path) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    for name in map::ALL {
        loader.map_pin_path(name, pin_dir.join(name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| refused("load the eBPF object", error.into()))?;
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

/// A kernel without TCX doesn't know what it is asked here.
fn check_tcx() -> Result<(), Error> {
    let Err(error) = SchedClassifier::query_tcx("lo", TcAttachType::Ingress) else { return Ok(()) };
    match io_error(&error).map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput) => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            Err(Error::NoTcx { release: release.trim().to_owned() })
        }
        Some(io::ErrorKind::PermissionDenied) => {
            Err(Error::Permission { action: "ask the kernel for its TCX programs".to_owned() })
        }
        _ => Err(Error::Load(error.into())),
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

fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    io_error(error).is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn is_errno(error: &Source, errno: i32) -> bool {
    io_error(error.as_ref()).and_then(io::Error::raw_os_error) == Some(errno)
}
