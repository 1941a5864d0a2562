//! Where a packet's connection stands: the one lookup by which most packets pass.

use super::{Judge, Place, State};
use crate::connection::opened;
use crate::packet::{Fragment, Packet, Ports};
use crate::{
    Address, ConnectionEntry, ConnectionKey, Direction, IdentityNumber, NodeNumber, Translation,
    generation_slot,
};

/// Where a connection stands.
#[derive(Clone, Copy)]
pub(super) enum Standing {
    /// There is none, or none that counts any more.
    Unknown,
    /// All that it rests on still holds: the packet passes, and is taken down.
    Settled,
    /// It has to be looked at again: [`Place::known`]. Not in here, since the verifier minds what a register
    /// holds of it where there is none.
    Open,
}

/// What a connection says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) local: IdentityNumber,
    pub(super) remote: IdentityNumber,
    pub(super) node: NodeNumber,
    pub(super) auth_type: u8,
    pub(super) opened: Direction,
    /// Policy would have refused it.
    pub(super) audited: bool,
    /// Policy and authentication are what they were when it was decided.
    pub(super) current: bool,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            local: 0,
            remote: 0,
            node: 0,
            auth_type: 0,
            opened: Direction::Egress,
            audited: false,
            current: false,
        }
    }
}

impl<S: State> Judge<'_, S> {
    /// The direction in which a packet at this hook goes, seen from the endpoint.
    #[inline(always)]
    pub(super) const fn direction(&self) -> Direction {
        self.context.hook.direction()
    }

    /// Where the packet's connection stands. One that opens a connection is always decided anew.
    #[inline(always)]
    pub(super) fn standing(&mut self, packet: &Packet, place: &mut Place) -> Standing {
        if packet.is_syn() || !is_tracked(packet) {
            return Standing::Unknown;
        }
        let standing = self.find(packet, place);
        if place.translation.news {
            let state = place.translation.state;
            self.tell_partner(place, self.now(), state);
        }
        standing
    }

    #[inline(always)]
    fn find(&mut self, packet: &Packet, place: &mut Place) -> Standing {
        let Place { connection: key, entry: copy, translation, known, straight_to, .. } = place;
        let state = self.state;
        if let Some(mut entry) = state.established(key) {
            return self.look(packet, &mut entry, translation, known, straight_to);
        }
        let Some(mut entry) = state.half_open(key) else { return Standing::Unknown };
        let standing = self.look(packet, &mut entry, translation, known, straight_to);
        if matches!(standing, Standing::Settled) && entry.is_answered() {
            *copy = *entry;
            drop(entry);
            state.establish(key, copy);
        }
        standing
    }

    #[inline(always)]
    fn look(
        &mut self,
        packet: &Packet,
        entry: &mut ConnectionEntry,
        translation: &mut Translation,
        known: &mut Known,
        straight_to: &mut u32,
    ) -> Standing {
        let now = self.now();
        if !entry.is_alive(packet.protocol, now) {
            return Standing::Unknown;
        }
        let direction = self.direction();
        // Whether a pod may talk to itself, nobody has to decide anew.
        let current = entry.generation == self.generation(entry.local_identity, entry.remote_identity)
            || entry.flags & ConnectionEntry::HAIRPIN != 0;
        let by_its_way = match direction {
            Direction::Egress => true,
            Direction::Ingress => entry.peer_sends_by(self.context.ingress_ifindex),
        };
        let translates = entry.flags & ConnectionEntry::TRANSLATES != 0;
        if translates {
            translation.by_entry(packet, entry, direction);
        }
        // What comes back from where it was held is decided as a whole: it may be late.
        let straight = self.notes().held_since == 0;
        if current
            && straight
            && now < entry.valid_until
            && entry.ifindex == self.context.ifindex
            && by_its_way
            && (!translates || entry.is_found_by(direction))
        {
            let reply = entry.direction != direction as u8;
            let before = (entry.last_seen, entry.state);
            entry.record(packet, reply, now);
            if translates {
                translation.tell(before, entry);
            }
            if matches!(direction, Direction::Egress) {
                *straight_to = entry.straight_to();
            }
            return Standing::Settled;
        }
        *known = Known {
            local: entry.local_identity,
            remote: entry.remote_identity,
            node: entry.node,
            auth_type: entry.auth_type,
            opened: opened(entry.direction),
            audited: entry.flags & ConnectionEntry::AUDITED != 0,
            current,
        };
        Standing::Open
    }

    /// The generation under which these two are decided now. Read before policy and authentication, as that
    /// of everything is before all else: a change that comes between makes the connection one to be decided
    /// again.
    #[inline(always)]
    pub(super) fn generation(&self, local: IdentityNumber, remote: IdentityNumber) -> u32 {
        self.everything.wrapping_add(self.state.generation(generation_slot(local, remote)))
    }
}

/// Whether the packet can belong to a connection. Of ICMP only echoes do; and a pod that talks to itself
/// between equal ports would have one key for both ends.
#[inline(always)]
pub(super) fn is_tracked(packet: &Packet) -> bool {
    if packet.is_icmp() {
        return packet.is_echo_request() || packet.is_echo_reply();
    }
    packet.ports != packet.ports.reverse() || !packet.source.is(&packet.destination)
}

/// The key, from the endpoint's view, of the connection that this packet belongs to.
#[inline(always)]
pub(super) fn connection_key(packet: &Packet, direction: Direction) -> ConnectionKey {
    let (local, remote) = ends(&packet.source, &packet.destination, direction);
    let ports = if packet.is_icmp() {
        Ports::new(packet.source_port(), packet.source_port())
    } else {
        match direction {
            Direction::Egress => packet.ports,
            Direction::Ingress => packet.ports.reverse(),
        }
    };
    let asked = if packet.is_echo_request() {
        direction as u8
    } else if packet.is_echo_reply() {
        direction.reverse() as u8
    } else {
        0
    };
    ConnectionKey { local, remote, ports, kind: ConnectionKey::kind(packet.protocol, asked) }
}

/// The endpoint's address and the other one of a packet that goes in `direction`.
#[inline(always)]
const fn ends(source: &Address, destination: &Address, direction: Direction) -> (Address, Address) {
    match direction {
        Direction::Egress => (*source, *destination),
        Direction::Ingress => (*destination, *source),
    }
}

/// Whether a packet that passes may be the first of a connection. Who opened a TCP connection is clear from
/// its first segment alone: a later one that nobody knows must not turn its direction round, and with it
/// the rules that apply. Of SCTP there may be none: an association goes over to another of its addresses by HEARTBEAT.
#[inline(always)]
pub(super) fn may_open(packet: &Packet) -> bool {
    if matches!(packet.fragment, Fragment::Later) || !is_tracked(packet) {
        return false;
    }
    if packet.is_icmp() {
        return packet.is_echo_request();
    }
    packet.protocol != crate::packet::protocol::TCP || packet.is_syn()
}
