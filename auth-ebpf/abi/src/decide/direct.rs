//! Between pods of one node, straight from one's interface to the other's: round the host's stack, and past the
//! program there all the same.

use super::pod::Remote;
use super::{Judge, Place, State};
use crate::{ConnectionEntry, Direction, EndpointEntry};

impl<S: State> Judge<'_, S> {
    /// What a connection that was opened in this direction has as [`ConnectionEntry::DIRECT`], or 0.
    ///
    /// Who opens it decides, and the other end does as that one does. Where the host has translated the address that
    /// the pod sent to (a `hostPort`, a service that only kube-proxy knows), the pod has another connection than the
    /// one its packets arrive by, and answers must pass the host as well.
    #[inline(always)]
    pub(super) fn direct(
        &self,
        place: &mut Place,
        opened: Direction,
        endpoint: &EndpointEntry,
        remote: &Remote,
    ) -> u8 {
        // What is too large for the other one the host would have to answer.
        if endpoint.direct_mtu == 0 || endpoint.direct_mtu != remote.direct_mtu {
            return 0;
        }
        if matches!(opened, Direction::Egress) {
            return ConnectionEntry::DIRECT;
        }
        let Place { connection, opposite, .. } = place;
        *opposite = connection.of_other_end();
        if let Some(entry) = self.state.established(opposite) {
            return entry.direct(opposite.protocol(), self.now());
        }
        match self.state.half_open(opposite) {
            Some(entry) => entry.direct(opposite.protocol(), self.now()),
            None => 0,
        }
    }
}

impl ConnectionEntry {
    /// [`ConnectionEntry::DIRECT`] if it has that and still stands.
    #[inline(always)]
    const fn direct(&self, protocol: u8, now: u64) -> u8 {
        if self.is_alive(protocol, now) { self.flags & Self::DIRECT } else { 0 }
    }
}
