//! What comes from outside for another node or a pod there.
//!
//! kube-proxy gives it this node's own address, under which it would be taken for the node itself. In the tunnel
//! it travels under the node's outside address, which is the world's to everybody else; what answers it gets the
//! address back that it had.

use super::standing::Standing;
use super::{Judge, Outcome, Place, State};
use crate::packet::Packet;
use crate::{
    Address, AddressEntry, Direction, DropReason, OutsideEntry, OutsideKey, Setting, TranslationKind,
    identity,
};

impl<S: State> Judge<'_, S> {
    /// Under this host's address, and from elsewhere: what came in by an uplink goes on to another node, or a pod
    /// there, under the outside address. Of all else nobody knows whose it is.
    #[inline(always)]
    pub(super) fn outside_sends(
        &mut self,
        packet: &mut Packet,
        place: &mut Place,
        destination: &AddressEntry,
    ) -> Outcome {
        let own = self.own_outside(packet.source.is_v4());
        let is_forwarded = destination.node != 0
            && (destination.is_of_pod() || destination.is_of_remote_node())
            && self.state.is_uplink(self.context.ingress_ifindex);
        let (Some(own), true) = (own, is_forwarded) else {
            return self.refuse(DropReason::Masqueraded);
        };
        if let Err(reason) = self.follow(packet, place) {
            return self.refuse(reason);
        }
        if packet.is_icmp_error() {
            if !self.is_about_outside(packet, place, false) || place.outside.address != packet.source {
                return self.refuse(DropReason::Masqueraded);
            }
            turn(place, TranslationKind::ERROR_OF_END, packet.source, own);
            return Ok(());
        }
        let Some(key) = OutsideKey::of(packet, false) else {
            return self.refuse(DropReason::Masqueraded);
        };
        place.outside_key = key;
        place.outside = OutsideEntry { address: packet.source };
        let known = self.state.outside(&place.outside_key);
        if known != Some(place.outside) && !self.state.forward_outside(&place.outside_key, &place.outside) {
            return self.refuse(DropReason::MapError);
        }
        turn(place, TranslationKind::END, packet.source, own);
        self.lead(packet, place);
        Ok(())
    }

    /// This host's own error about what a pod has answered to the outside address: the pod knows no other.
    #[inline(always)]
    pub(super) fn host_tells_of_outside(&mut self, packet: &Packet, place: &mut Place) {
        if !packet.is_icmp_error() {
            return;
        }
        let Some(own) = self.own_outside(packet.source.is_v4()) else { return };
        if self.is_about_outside(packet, place, false) {
            let address = place.outside.address;
            turn(place, TranslationKind::ERROR, address, own);
        }
    }

    /// What another node or a pod there answers, or the node has to say of that. Nothing is opened from there.
    #[inline(always)]
    pub(super) fn outside_receives(
        &mut self,
        packet: &mut Packet,
        place: &mut Place,
        source: &AddressEntry,
    ) -> Outcome {
        self.event.local = identity::WORLD;
        if let Err(reason) = self.follow(packet, place) {
            return self.refuse(reason);
        }
        if packet.is_icmp_error() {
            // A node is a router to its own pods only.
            let of_its_own = self.resolve(&packet.embedded.destination).node == source.node;
            if !of_its_own || !self.is_about_outside(packet, place, true) {
                return self.refuse(DropReason::UnknownDestination);
            }
            let address = place.outside.address;
            turn(place, TranslationKind::ERROR_OF_END, packet.destination, address);
            return Ok(());
        }
        let Some(key) = OutsideKey::of(packet, true) else {
            return self.refuse(DropReason::UnknownDestination);
        };
        place.outside_key = key;
        let Some(known) = self.state.outside(&place.outside_key) else {
            return self.refuse(DropReason::UnknownDestination);
        };
        turn(place, TranslationKind::END, packet.destination, known.address);
        self.lead(packet, place);
        Ok(())
    }

    /// Whether a pod's packet to another node's outside address is anything but an answer: nobody is there to whom
    /// it could open something.
    #[inline(always)]
    pub(super) fn opens_outside(&self, remote: &AddressEntry, place: &Place, standing: Standing) -> bool {
        let known = &place.known;
        let answers = matches!(standing, Standing::Open)
            && matches!(known.opened, Direction::Ingress)
            && known.remote == identity::WORLD
            && known.node == remote.node;
        remote.is_outside() && !answers
    }

    /// Whether `address` is this node's outside address.
    #[inline(always)]
    pub(super) fn is_own_outside(&self, address: &Address) -> bool {
        matches!(self.own_outside(address.is_v4()), Some(own) if own.is(address))
    }

    /// This node's outside address of a family.
    #[inline(always)]
    fn own_outside(&self, v4: bool) -> Option<Address> {
        let (first, last) = if v4 {
            (0, self.state.setting(Setting::OutsideV4))
        } else {
            (self.state.setting(Setting::OutsideV6First), self.state.setting(Setting::OutsideV6Last))
        };
        (last != 0).then_some(Address::from_halves([first, last]))
    }

    /// Whether an ICMP error is about a packet of a flow from outside: one that went to the pod, as the pod has met
    /// it, or else what the pod has answered, as this node has met it. What the flow is called is in `place` then.
    #[inline(always)]
    fn is_about_outside(&self, packet: &Packet, place: &mut Place, to_pod: bool) -> bool {
        let embedded = &packet.embedded;
        if !embedded.present {
            return false;
        }
        let Some(key) = OutsideKey::of_embedded(embedded, !to_pod) else { return false };
        place.outside_key = key;
        let Some(known) = self.state.outside(&place.outside_key) else { return false };
        place.outside = known;
        // The packet went the other way, from who gets the error now.
        if to_pod {
            embedded.source == packet.destination
        } else {
            embedded.source == packet.destination && embedded.destination == known.address
        }
    }
}

/// Has the packet, or what it is about, bear `new` in place of `old`.
#[inline(always)]
const fn turn(place: &mut Place, kind: u8, old: Address, new: Address) {
    let translation = &mut place.translation;
    translation.kind = kind;
    translation.old = old;
    translation.new = new;
    translation.old_port = [0; 2];
    translation.new_port = [0; 2];
}
