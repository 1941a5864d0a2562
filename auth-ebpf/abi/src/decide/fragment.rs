//! Fragments follow their first one: it is judged with its ports, and those after it with the same.

use super::{Judge, Outcome, Place, State};
use crate::packet::{Fragment, Packet, Ports, tcp};
use crate::{DropReason, FRAGMENT_TIMEOUT, FragmentEntry, FragmentKey};

impl<S: State> Judge<'_, S> {
    /// Gives a later fragment the ports of its first one. Without one, or where it would write over what was
    /// judged, it drops; so does a first one that hides its ports.
    #[inline(always)]
    pub(super) fn follow(&mut self, packet: &mut Packet, place: &mut Place) -> Outcome {
        match packet.fragment {
            Fragment::Whole | Fragment::First => Ok(()),
            Fragment::Broken => Err(DropReason::Fragment),
            Fragment::Later => {
                place.datagram = self.datagram(packet);
                let Some(first) = self.state.fragment(&place.datagram) else {
                    return Err(DropReason::Fragment);
                };
                if first.expires <= self.now() || packet.fragment_offset < first.end {
                    return Err(DropReason::Fragment);
                }
                packet.ports = Ports::new(first.source_port, first.destination_port);
                packet.protocol = first.protocol;
                // It opens and ends nothing.
                packet.tcp_flags = tcp::ACK;
                Ok(())
            }
        }
    }

    /// Lets the fragments that come after this first one follow it.
    #[inline(always)]
    pub(super) fn lead(&mut self, packet: &Packet, place: &mut Place) {
        if !matches!(packet.fragment, Fragment::First) {
            return;
        }
        place.datagram = self.datagram(packet);
        place.first = FragmentEntry {
            expires: self.now().saturating_add(FRAGMENT_TIMEOUT),
            source_port: packet.source_port(),
            destination_port: packet.destination_port(),
            end: packet.fragment_end,
            protocol: packet.protocol,
            pad: 0,
        };
        self.state.lead(&place.datagram, &place.first);
    }

    #[inline(always)]
    fn datagram(&self, packet: &Packet) -> FragmentKey {
        FragmentKey {
            source: packet.source,
            destination: packet.destination,
            identification: packet.identification,
            ifindex: self.context.ifindex,
            protocol: if packet.source.is_v4() { packet.protocol } else { 0 },
            direction: self.direction() as u8,
            pad: [0; 6],
        }
    }
}
