//! Attaching programs to interfaces, by either of the kernel's two mechanisms.

use std::path::Path;
use std::{fs, io};

use auth_ebpf_abi::{Hook, map};
use aya::programs::{SchedClassifier, TcAttachType};

use crate::datapath::Datapath;
use crate::error::{Error, Source};
use crate::links::{self, links_dir, names, remove};
use crate::maps::io_error;

mod clsact;
pub(crate) mod filters;
mod tcx;

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mechanism {
    /// BPF links of traffic control, pinned: Linux 6.6 and later.
    Tcx,
    /// Direct-action filters of a `clsact` qdisc: what earlier kernels have. The kernel keeps them until
    /// they are deleted, and they tell by themselves whose they are.
    Clsact,
}

impl Mechanism {
    /// The word for configuration, status and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    /// The best that this kernel has.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn detect() -> Result<Self, Error> {
        // A kernel without TCX doesn't know what it is asked here.
        let Err(error) = SchedClassifier::query_tcx("lo", TcAttachType::Ingress) else {
            return Ok(Self::Tcx);
        };
        match io_error(&error).map(io::Error::kind) {
            Some(io::ErrorKind::InvalidInput) => Ok(Self::Clsact),
            Some(io::ErrorKind::PermissionDenied) => {
                Err(Error::Permission { action: "ask the kernel for its TCX programs".to_owned() })
            }
            _ => Err(Error::Load(error.into())),
        }
    }

    /// Whether this kernel has it.
    pub(crate) fn check(self) -> Result<(), Error> {
        if self == Self::Tcx && Self::detect()? == Self::Clsact {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            return Err(Error::NoTcx { release: release.trim().to_owned() });
        }
        Ok(())
    }
}

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

/// What [`Datapath::attach`] has found, and mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// The very program was in its place.
    Kept,
    /// An earlier process's program was there, and has been replaced without a gap.
    Replaced,
    /// Nothing was there.
    Anew,
    /// Another program had got ahead of ours, which is ahead again. All packets had met ours nevertheless,
    /// but for those that the other had kept from it.
    Displaced,
    /// This process had attached it, and somebody has taken it off, or put another in its place; what came
    /// meanwhile did not meet it.
    Removed,
    /// It is in place, but a filter of another kind comes first and can keep packets from it. Only with
    /// clsact.
    Behind,
}

/// One place for a program.
#[derive(Clone, Debug)]
struct Place {
    hook: Hook,
    interface: String,
    ifindex: u32,
}

impl Place {
    fn error(&self, action: &'static str, source: Source) -> Error {
        Error::Attach { hook: self.hook, interface: self.interface.clone(), action, source }
    }
}

impl Datapath {
    /// Attaches the program of `hook` to `interface` of this thread's network namespace, ahead of all
    /// others. If it is attached already, the program is replaced without a gap, unless it is this very
    /// one; if others have got ahead of it, or the interface was made anew, it is attached afresh.
    ///
    /// With clsact, a filter of another kind that holds the first priority stays ahead.
    ///
    /// # Errors
    /// If there is no such interface, or the kernel refuses.
    pub fn attach(&mut self, hook: Hook, interface: &str) -> Result<Attached, Error> {
        let ifindex = index_of(interface)?;
        let place = Place { hook, interface: interface.to_owned(), ifindex };
        let found = match self.mechanism {
            Mechanism::Tcx => self.attach_tcx(&place)?,
            Mechanism::Clsact => self.attach_clsact(&place)?,
        };
        // Once ours is there, what an earlier process attached by the other mechanism, or to an interface
        // of that name before this one, has had its time.
        if self.mechanism == Mechanism::Tcx && found == Attached::Anew {
            clsact::detach(&place)?;
        }
        let keep = (self.mechanism == Mechanism::Tcx).then_some(ifindex);
        self.unpin(hook, interface, keep)?;
        let program = self.program(hook)?.info().map_err(|error| place.error("inspect it", error.into()))?;
        let before = self.attached.insert((hook, ifindex), program.id());
        Ok(if found == Attached::Anew && before.is_some() { Attached::Removed } else { found })
    }

    /// What it means that another program than ours was in our place: an earlier process's, unless this one
    /// has put its own there since.
    fn replaced(&self, place: &Place, found: u32) -> Attached {
        match self.attached.get(&(place.hook, place.ifindex)) {
            Some(own) if *own != found => Attached::Removed,
            _ => Attached::Replaced,
        }
    }

    /// Detaches the program of `hook` from `interface`, which may have gone meanwhile. The kernel follows
    /// within milliseconds.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn detach(&mut self, hook: Hook, interface: &str) -> Result<(), Error> {
        if let Ok(ifindex) = index_of(interface) {
            self.attached.remove(&(hook, ifindex));
            clsact::detach(&Place { hook, interface: interface.to_owned(), ifindex })?;
        }
        self.unpin(hook, interface, None)
    }

    /// Forgets interfaces that are no more: `alive` says which are.
    ///
    /// # Errors
    /// If what is pinned for them cannot be removed.
    pub fn forget_gone(&mut self, alive: impl Fn(u32) -> bool) -> Result<(), Error> {
        self.attached.retain(|(_, ifindex), _| alive(*ifindex));
        for pin in links::pins(&self.pin_dir)?.into_iter().filter(|pin| !alive(pin.ifindex)) {
            remove(&pin.path(&self.pin_dir))?;
        }
        Ok(())
    }

    /// What is attached, by this process or one before it.
    ///
    /// # Errors
    /// If the kernel or the pins cannot be read.
    pub fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        match self.mechanism {
            Mechanism::Tcx => tcx::attachments(&self.pin_dir),
            Mechanism::Clsact => clsact::attachments(),
        }
    }

    /// How the programs are attached.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
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
}

/// The index of an interface in this thread's network namespace.
fn index_of(interface: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|_errno| Error::NoInterface { interface: interface.to_owned() })
}

/// What is attached in this network namespace, by links pinned under `pin_dir` or as filters, with or
/// without a daemon.
///
/// # Errors
/// If the directory, the links or the filters cannot be read.
pub fn attachments(pin_dir: &Path) -> Result<Vec<Attachment>, Error> {
    let mut attachments = tcx::attachments(pin_dir)?;
    attachments.extend(clsact::attachments()?);
    Ok(attachments)
}

/// Takes the datapath off: detaches every program, and removes every map pinned under `pin_dir`. Returns
/// how many programs were attached. Works without a daemon. Qdiscs stay: others may use them too.
///
/// # Errors
/// If something cannot be removed. Programs go first, and one that stays doesn't keep the others.
pub fn detach_all(pin_dir: &Path) -> Result<usize, Error> {
    let mut detached = 0;
    let mut failure = None;
    match clsact::detach_all() {
        Ok(filters) => detached += filters,
        Err(error) => failure = Some(error),
    }
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
