//! clsact: direct-action filters, which the kernel keeps until somebody deletes them.
//!
//! Ours are known by handle and name: major number one of [`MAJORS`], minor number the hook's, name the
//! program's. They take priority 1, within which the filter that came last is met first; where a filter of
//! another kind holds that, the next. One that others have overtaken is added once more, under the other
//! major number, before it goes: no packet meets none.

use auth_ebpf_abi::Hook;
use aya::programs::links::Link;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};

use super::filters::{Filter, list};
use super::{Attached, Attachment, Place};
use crate::datapath::Datapath;
use crate::error::{Error, Source};
use crate::object::attach_type;

/// Major numbers of our handles: `au`, and the next.
const MAJORS: [u16; 2] = [0x6175, 0x6176];

impl Datapath {
    pub(super) fn attach_clsact(&mut self, place: &Place) -> Result<Attached, Error> {
        let filters = filters(place)?;
        let best = best_priority(&filters);
        let found = self.put_ahead(place, best, &filters)?;
        let behind = filters.iter().any(|filter| filter.handle != 0 && filter.priority < best);
        Ok(if behind { Attached::Behind } else { found })
    }

    /// Gets our filter ahead of all others with this priority.
    fn put_ahead(&mut self, place: &Place, best: u16, filters: &[Filter]) -> Result<Attached, Error> {
        let ours: Vec<&Filter> = filters.iter().filter(|filter| filter.is_of(place.hook)).collect();
        let Some((first, rest)) = ours.split_first() else {
            self.add(place, best, MAJORS[0])?;
            return Ok(Attached::Anew);
        };
        // More than one, if a process has ended in the middle of what follows.
        remove(place, rest)?;
        if filters.iter().find(|filter| filter.handle != 0 && filter.priority == best) == Some(*first) {
            return self.replace(place, first);
        }
        let [major, other] = MAJORS;
        self.add(place, best, if first.major() == major { other } else { major })?;
        remove(place, &[first])?;
        Ok(Attached::Displaced)
    }

    /// Adds our program ahead of all that have this priority.
    fn add(&mut self, place: &Place, priority: u16, major: u16) -> Result<(), Error> {
        // It may be there already; if it can't be, what follows fails.
        drop(qdisc_add_clsact(&place.interface));
        let options = NlOptions { priority, handle: TcHandle::new(major, minor(place.hook)), classid: None };
        let program = self.program(place.hook)?;
        program
            .attach_with_options(&place.interface, attach_type(place.hook), TcAttachOptions::Netlink(options))
            .and_then(|id| program.take_link(id))
            .map(leave)
            .map_err(|error| place.error("add the clsact filter", error.into()))
    }

    /// Puts our program into the filter, in one step.
    fn replace(&mut self, place: &Place, filter: &Filter) -> Result<Attached, Error> {
        let replaced = self.replaced(place, filter.program);
        let program = self.program(place.hook)?;
        let failed = |source: Source| place.error("replace the program", source);
        if program.info().map_err(|error| failed(error.into()))?.id() == filter.program {
            return Ok(Attached::Kept);
        }
        program
            .attach_to_link(link(place, filter).map_err(failed)?)
            .and_then(|id| program.take_link(id))
            .map(leave)
            .map_err(|error| failed(error.into()))?;
        Ok(replaced)
    }
}

/// The lowest priority into which our filters fit.
fn best_priority(filters: &[Filter]) -> u16 {
    let taken = |priority| filters.iter().any(|filter| filter.priority == priority && !filter.is_bpf);
    (1..=u16::MAX).find(|priority| !taken(*priority)).unwrap_or(u16::MAX)
}

/// Takes a link out of aya's hands, which would delete the filter at the end of this process.
fn leave(link: SchedClassifierLink) {
    std::mem::forget(link);
}

fn link(place: &Place, filter: &Filter) -> Result<SchedClassifierLink, Source> {
    let (interface, direction) = (&place.interface, attach_type(place.hook));
    Ok(SchedClassifierLink::attached(interface, direction, filter.priority, filter.handle.into(), None)?)
}

fn filters(place: &Place) -> Result<Vec<Filter>, Error> {
    list(place.ifindex, attach_type(place.hook))
        .map_err(|source| Error::Filters { interface: place.interface.clone(), source })
}

fn remove(place: &Place, filters: &[&Filter]) -> Result<(), Error> {
    for filter in filters {
        link(place, filter)
            .and_then(|link| Ok(link.detach()?))
            .map_err(|source| place.error("delete the clsact filter", source))?;
    }
    Ok(())
}

/// Deletes our filters of a hook at an interface; how many there were.
pub(super) fn detach(place: &Place) -> Result<usize, Error> {
    let filters = filters(place)?;
    let ours: Vec<&Filter> = filters.iter().filter(|filter| filter.is_of(place.hook)).collect();
    remove(place, &ours)?;
    Ok(ours.len())
}

/// Our filters in this network namespace.
pub(super) fn attachments() -> Result<Vec<Attachment>, Error> {
    let mut attachments = Vec::new();
    for place in places()? {
        let filters = filters(&place)?;
        let mut programs = filters.iter().filter(|filter| filter.handle != 0);
        if let Some(position) = programs.position(|filter| filter.is_of(place.hook)) {
            let Place { hook, interface, ifindex } = place;
            attachments.push(Attachment { hook, interface, ifindex, at_head: position == 0 });
        }
    }
    Ok(attachments)
}

/// Deletes all our filters in this network namespace; how many there were.
pub(super) fn detach_all() -> Result<usize, Error> {
    places()?.iter().map(detach).sum()
}

/// Every place in this network namespace.
fn places() -> Result<Vec<Place>, Error> {
    let interfaces = nix::net::if_::if_nameindex()
        .map_err(|errno| Error::Filters { interface: "*".to_owned(), source: errno.into() })?;
    let named = interfaces.iter().filter_map(|it| Some((it.index(), it.name().to_str().ok()?.to_owned())));
    Ok(named
        .flat_map(|(ifindex, interface)| {
            Hook::ALL.map(|hook| Place { hook, interface: interface.clone(), ifindex })
        })
        .collect())
}

impl Filter {
    fn is_of(&self, hook: Hook) -> bool {
        let [_, _, high, low] = self.handle.to_be_bytes();
        self.is_bpf
            && MAJORS.contains(&self.major())
            && u16::from_be_bytes([high, low]) == minor(hook)
            && self.name == hook.as_str()
    }

    fn major(&self) -> u16 {
        let [high, low, ..] = self.handle.to_be_bytes();
        u16::from_be_bytes([high, low])
    }
}

const fn minor(hook: Hook) -> u16 {
    hook as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(priority: u16, handle: u32, name: &str, is_bpf: bool) -> Filter {
        Filter { priority, handle, is_bpf, name: name.to_owned(), program: 7 }
    }

    #[test]
    fn ours_are_known_by_handle_and_name() {
        let ours = filter(1, 0x6175_0001, "from_pod", true);
        assert!(ours.is_of(Hook::FromPod));
        assert!(filter(9, 0x6176_0001, "from_pod", true).is_of(Hook::FromPod));
        assert!(!ours.is_of(Hook::ToPod));
        for other in [
            filter(1, 1, "from_pod", true),
            filter(1, 0x6177_0001, "from_pod", true),
            filter(1, 0x6175_0001, "cil_from_pod", true),
            filter(1, 0x6175_0001, "from_pod", false),
        ] {
            assert!(!other.is_of(Hook::FromPod), "{other:?}");
        }
    }

    #[test]
    fn another_kind_of_filter_keeps_its_priority() {
        assert_eq!(best_priority(&[]), 1);
        assert_eq!(best_priority(&[filter(1, 1, "x", true), filter(3, 1, "", false)]), 1);
        assert_eq!(best_priority(&[filter(1, 1, "", false), filter(2, 1, "x", true)]), 2);
        assert_eq!(best_priority(&[filter(1, 0, "", false), filter(2, 0, "", false)]), 3);
    }
}
