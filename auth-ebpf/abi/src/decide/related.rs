//! ICMP errors: they belong to the connection of the packet that they are about.

use super::{Judge, Place, State};
use crate::packet::{Embedded, Packet, Ports, icmp, protocol};
use crate::{AddressEntry, ConnectionEntry, ConnectionKey, Direction, Translation, TranslationKind};

impl<S: State> Judge<'_, S> {
    /// Whether this is an error about a packet of a connection that is settled here. `sender` is whose
    /// address sends it. It opens nothing, and prolongs nothing.
    #[inline(always)]
    pub(super) fn is_related(&self, packet: &Packet, place: &mut Place, sender: &AddressEntry) -> bool {
        let embedded = &packet.embedded;
        if !packet.is_icmp_error() || !embedded.present {
            return false;
        }
        // The packet went the other way, from who gets the error now. Routers may send errors, pods are none.
        let direction = self.direction();
        let returned = embedded.source == packet.destination;
        let by_its_end = embedded.destination == packet.source;
        let by_router = matches!(direction, Direction::Ingress) && !sender.is_of_pod();
        if !returned || !(by_its_end || by_router) {
            return false;
        }
        place.connection = embedded_key(embedded, direction.reverse());
        let protocol = embedded.protocol;
        let Place { connection, translation, .. } = place;
        let settled = if let Some(entry) = self.state.established(connection) {
            self.is_settled(packet, protocol, &entry, translation)
        } else if let Some(entry) = self.state.half_open(connection) {
            self.is_settled(packet, protocol, &entry, translation)
        } else {
            false
        };
        let of_end = matches!(direction, Direction::Egress) || by_its_end;
        translation.kind = match (settled && translation.kind == TranslationKind::END, of_end) {
            (false, _) => TranslationKind::NONE,
            (true, true) => TranslationKind::ERROR_OF_END,
            (true, false) => TranslationKind::ERROR,
        };
        translation.old = connection.remote;
        translation.old_port = connection.ports.destination();
        settled
    }

    #[inline(always)]
    fn is_settled(
        &self,
        packet: &Packet,
        protocol: u8,
        entry: &ConnectionEntry,
        translation: &mut Translation,
    ) -> bool {
        if entry.flags & ConnectionEntry::TRANSLATES != 0 {
            translation.by_entry(packet, entry, self.direction());
        }
        entry.is_alive(protocol, self.now())
            && self.now() < entry.valid_until
            && entry.ifindex == self.context.ifindex
            && entry.generation == self.generation(entry.local_identity, entry.remote_identity)
    }
}

/// The key of the connection to which the embedded packet belongs, which went in `direction`.
#[inline(always)]
const fn embedded_key(embedded: &Embedded, direction: Direction) -> ConnectionKey {
    let [kind, _] = embedded.destination_port;
    let (requests, ports) = match embedded.protocol {
        protocol::ICMP => (kind == icmp::ECHO, true),
        protocol::ICMPV6 => (kind == icmp::V6_ECHO, true),
        _ => (false, false),
    };
    // Of an echo, the identifier is both.
    let (source_port, destination_port) = if ports {
        (embedded.source_port, embedded.source_port)
    } else {
        (embedded.source_port, embedded.destination_port)
    };
    let asked = match (ports, requests) {
        (false, _) => 0,
        (true, true) => direction as u8,
        (true, false) => direction.reverse() as u8,
    };
    let (local, remote, local_port, remote_port) = match direction {
        Direction::Egress => (embedded.source, embedded.destination, source_port, destination_port),
        Direction::Ingress => (embedded.destination, embedded.source, destination_port, source_port),
    };
    ConnectionKey {
        local,
        remote,
        ports: Ports::new(local_port, remote_port),
        kind: ConnectionKey::kind(embedded.protocol, asked),
    }
}
