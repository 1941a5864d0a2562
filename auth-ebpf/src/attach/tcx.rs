//! TCX: links at the head of an interface's programs, kept by their pins.

use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramInfo, SchedClassifier};

use super::{Attached, Attachment, Place, index_of};
use crate::datapath::{Datapath, load};
use crate::error::{Error, Source};
use crate::links::{self, Pin, remove};
use crate::maps::io_error;
use crate::object::attach_type;

impl Datapath {
    pub(super) fn attach_tcx(&mut self, place: &Place) -> Result<Attached, Error> {
        let pin = Pin { hook: place.hook, interface: place.interface.clone(), ifindex: place.ifindex };
        let path = pin.path(&self.pin_dir);
        let found = self.adopt(place, &path)?;
        if matches!(found, Attached::Anew | Attached::Displaced) {
            self.attach_anew(place, &path)?;
        }
        Ok(found)
    }

    /// Puts our program into the pinned link, if that is alive and at the head.
    fn adopt(&mut self, place: &Place, path: &Path) -> Result<Attached, Error> {
        let link = match PinnedLink::from_pin(path) {
            Ok(link) => FdLink::from(link),
            Err(error) if is_missing(&error) => return Ok(Attached::Anew),
            Err(error) => return Err(place.error("open its pinned link", error.into())),
        };
        let attached =
            link.info().map_err(|error| place.error("inspect its link", error.into()))?.program_id();
        let programs = programs(place)?;
        if programs.first() != Some(&attached) {
            // One that is not there at all died with an interface that had the same index, or was detached.
            let displaced = programs.contains(&attached);
            return Ok(if displaced { Attached::Displaced } else { Attached::Anew });
        }
        let replaced = self.replaced(place, attached);
        let program = self.program(place.hook)?;
        let failed = |source: Source| place.error("replace the program", source);
        let ours = program.info().map_err(|error| failed(error.into()))?.id();
        if ours == attached {
            return Ok(Attached::Kept);
        }
        let link = SchedClassifierLink::try_from(link).map_err(|error| failed(error.into()))?;
        let id = program.attach_to_link(link).map_err(|error| failed(error.into()))?;
        drop(take_link(program, id).map_err(failed)?);
        Ok(replaced)
    }

    /// Makes a new link at the head. One that is pinned already goes only afterwards, so no packet passes
    /// unseen.
    fn attach_anew(&mut self, place: &Place, path: &Path) -> Result<(), Error> {
        let link = match self.link_at_head(place) {
            // It is there already: displaced, or about to go. A copy of it may come in besides.
            Err(error) if is_errno(&error, libc::EEXIST) => {
                self.ebpf = load(&self.pin_dir)?;
                self.link_at_head(place)
            }
            outcome => outcome,
        };
        let link = link.map_err(|source| place.error("attach the program", source))?;
        remove(path)?;
        link.pin(path).map_err(|error| place.error("pin its link", error.into()))?;
        Ok(())
    }

    fn link_at_head(&mut self, place: &Place) -> Result<FdLink, Source> {
        let program = self.program(place.hook)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(&place.interface, attach_type(place.hook), options)?;
        take_link(program, id)
    }
}

/// Takes a link out of aya's hands, which would keep it open and thus attached after its pin has gone.
fn take_link(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<FdLink, Source> {
    let link = program.take_link(id)?;
    Ok(FdLink::try_from(link)?)
}

/// What is attached by links pinned under `pin_dir`.
pub(super) fn attachments(pin_dir: &Path) -> Result<Vec<Attachment>, Error> {
    let mut attachments = Vec::new();
    for pin in links::pins(pin_dir)? {
        if index_of(&pin.interface).ok() != Some(pin.ifindex) {
            continue; // the interface has gone, and the link with it
        }
        let path = pin.path(pin_dir);
        let place = Place { hook: pin.hook, interface: pin.interface, ifindex: pin.ifindex };
        let program = PinnedLink::from_pin(path)
            .and_then(|link| FdLink::from(link).info())
            .map_err(|error| place.error("inspect its link", error.into()))?
            .program_id();
        let programs = programs(&place)?;
        if !programs.contains(&program) {
            continue; // the link died with an interface that had the same index
        }
        let at_head = programs.first() == Some(&program);
        let Place { hook, interface, ifindex } = place;
        attachments.push(Attachment { hook, interface, ifindex, at_head });
    }
    Ok(attachments)
}

/// Ids of the programs at an interface, in their order.
fn programs(place: &Place) -> Result<Vec<u32>, Error> {
    let (_, programs) = SchedClassifier::query_tcx(&place.interface, attach_type(place.hook))
        .map_err(|error| place.error("list the programs", error.into()))?;
    Ok(programs.iter().map(ProgramInfo::id).collect())
}

fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    io_error(error).is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn is_errno(error: &Source, errno: i32) -> bool {
    io_error(error.as_ref()).and_then(io::Error::raw_os_error) == Some(errno)
}
