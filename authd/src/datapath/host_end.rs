//! Which interface of this host is a pod's. Pure.
//!
//! A host route to the pod's address is the host's own word, and comes first. Otherwise the pod's own end is
//! looked for, by its address; both ends of a pair must name each other. A pod may give itself addresses
//! that are another's, so a claim against one that is known already counts for nothing.

use std::{collections::BTreeSet, fmt};

use super::{interfaces::PodLink, plan::Inputs};
use crate::cluster::Pod;

const VETH: &str = "veth";

/// Why a pod's interface cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its packets do not pass the host's end of a veth pair.
    Bypass {
        /// The interface in the pod.
        interface: String,
        /// Its kind, or the kind of what a route leads to; empty for hardware.
        kind: String,
    },
    /// Several network namespaces have its address.
    Contested {
        /// How many.
        claims: usize,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bypass { interface, kind } => {
                let kind = if kind.is_empty() { "a device of its own (SR-IOV?)" } else { kind.as_str() };
                write!(
                    f,
                    "its interface {interface} is {kind}, whose packets go round the host, where authd would \
                     check them; use a CNI with veth pairs"
                )
            }
            Self::Contested { claims } => {
                write!(f, "{claims} network namespaces have its address; which is the pod's is undecidable")
            }
        }
    }
}

/// The index of the host end of a pod's interface; `None` while it is not there.
pub(super) fn host_end(inputs: &Inputs<'_>, pod: &Pod, before: Option<u32>) -> Result<Option<u32>, Refusal> {
    let interfaces = inputs.interfaces;
    let is_veth = |index: &u32| interfaces.links.get(index).is_some_and(|link| link.kind == VETH);
    let routed = pod.addresses.iter().find_map(|address| interfaces.host_routes.get(address));
    if let Some(index) = routed.filter(|index| is_veth(index)) {
        return Ok(Some(*index));
    }
    let links = pod.addresses.iter().filter_map(|address| interfaces.sandboxes.get(address)).flatten();
    let claims: BTreeSet<u64> = links.clone().map(|link| link.namespace).collect();
    let paired = |link: &PodLink| {
        let index = link.link.peer.filter(|_| link.link.kind == VETH)?;
        let host = interfaces.links.get(&index)?;
        (host.kind == VETH && host.peer == Some(link.ifindex)).then_some(index)
    };
    let mut ends = links.clone().filter_map(paired);
    if let Some(before) = before.filter(|before| links.clone().filter_map(paired).any(|end| end == *before)) {
        return Ok(Some(before));
    }
    if claims.len() > 1 {
        return Err(Refusal::Contested { claims: claims.len() });
    }
    if let Some(end) = ends.next() {
        return Ok(Some(end));
    }
    match links.clone().find(|link| link.link.kind != VETH) {
        Some(link) => Err(Refusal::Bypass { interface: link.name.clone(), kind: link.link.kind.clone() }),
        None => Ok(None),
    }
}
