//! Services: what a pod sends to one goes to a backend, and what that answers comes from the service.

use core::hint::black_box;

use super::standing::Standing;
use super::{Judge, Outcome, Place, State};
use crate::packet::{Packet, Ports, protocol};
use crate::service::may_serve;
use crate::{
    Address, AddressEntry, AddressFlags, AffinityEntry, AffinityKey, BackendKey, ConnectionEntry,
    ConnectionKey, Direction, DropReason, ServiceKey, Translation, TranslationKind, loopback,
};

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// To what a connection's entry translates a packet at this hook, if it does.
#[inline(always)]
const fn kind_of(entry: &ConnectionEntry, direction: Direction) -> u8 {
    const TO: u8 = ConnectionEntry::TO_BACKEND;
    const FROM: u8 = ConnectionEntry::FROM_SERVICE;
    const HAIRPIN: u8 = ConnectionEntry::HAIRPIN;
    match (direction, entry.flags & (TO | FROM | HAIRPIN)) {
        (Direction::Egress, TO) | (Direction::Ingress, FROM) => TranslationKind::END,
        (Direction::Egress, flags) if flags == TO | HAIRPIN => TranslationKind::HAIRPIN,
        (Direction::Egress, flags) if flags == FROM | HAIRPIN => TranslationKind::HAIRPIN_REPLY,
        _ => TranslationKind::NONE,
    }
}

impl ConnectionEntry {
    /// Whether what is met in this direction can be of this connection: what a pod sends to a backend itself
    /// is not what it sends to the service, nor does the service's own address ever answer.
    #[inline(always)]
    pub(super) const fn is_found_by(&self, direction: Direction) -> bool {
        let stranger = match direction {
            Direction::Egress => Self::FROM_SERVICE,
            Direction::Ingress => Self::TO_BACKEND,
        };
        self.flags & (stranger | Self::HAIRPIN) != stranger
    }
}

impl Translation {
    /// Takes down how a packet of this connection changes.
    #[inline(always)]
    pub(super) fn by_entry(&mut self, packet: &Packet, entry: &ConnectionEntry, direction: Direction) {
        self.kind = kind_of(entry, direction);
        (self.old, self.old_port) = match direction {
            Direction::Egress => (packet.destination, packet.destination_port()),
            Direction::Ingress => (packet.source, packet.source_port()),
        };
        self.new = entry.translation;
        self.new_port = entry.translation_port;
    }

    /// Takes down whether a connection's entry has something to tell the other one now that a packet has
    /// passed: what it has written itself.
    #[inline(always)]
    pub(super) const fn tell(&mut self, before: (u64, u8), entry: &ConnectionEntry) {
        self.state = entry.state;
        // Of itself, a pod has both directions in each.
        self.news = entry.flags & ConnectionEntry::HAIRPIN == 0
            && (before.0 != entry.last_seen || before.1 != entry.state);
    }
}

impl<S: State> Judge<'_, S> {
    /// Tells the other entry of a connection what this packet has changed: when one was last seen, and the state.
    #[inline(always)]
    pub(super) fn tell_partner(&mut self, place: &mut Place, seen: u64, state: u8) {
        let Place { connection, service, translation, .. } = place;
        *service = ConnectionKey {
            remote: translation.new,
            ports: Ports::new(connection.ports.source(), translation.new_port),
            ..*connection
        };
        let end = (connection.remote, connection.ports.destination());
        let tell = |entry: &mut ConnectionEntry| {
            // The service's port may have been called anew, and lead to another backend.
            if entry.translation == end.0 && entry.translation_port == end.1 {
                entry.last_seen = entry.last_seen.max(seen);
                entry.state |= state;
            }
        };
        if let Some(mut entry) = self.state.established(service) {
            return tell(&mut entry);
        }
        if let Some(mut entry) = self.state.half_open(service) {
            tell(&mut entry);
        }
    }

    /// Gives a packet to a service the address of a backend, so that all that is decided from here on is
    /// about that. `place.owner` becomes who has the address.
    #[inline(always)]
    pub(super) fn send_to_backend(
        &mut self,
        packet: &mut Packet,
        place: &mut Place,
        standing: Standing,
    ) -> Outcome {
        place.owner = self.owner(&packet.destination);
        if !may_serve(packet.protocol) || place.translation.kind == TranslationKind::HAIRPIN_REPLY {
            place.translation.kind = TranslationKind::NONE;
            return Ok(());
        }
        if place.translation.kind == TranslationKind::NONE {
            // What has gone there directly so far goes on, as do answers to whoever has that address.
            let goes_on = match standing {
                Standing::Open => {
                    packet.protocol != protocol::UDP || matches!(place.known.opened, Direction::Ingress)
                }
                Standing::Unknown | Standing::Settled => false,
            };
            if goes_on {
                return Ok(());
            }
            let has_services = black_box(&mut place.owner).flags & AddressFlags::SERVICE != 0;
            if !has_services || !self.choose_backend(packet, place)? {
                return Ok(());
            }
        }
        let Place { connection, service, translation, owner, .. } = place;
        if translation.new == packet.source {
            translation.kind = TranslationKind::HAIRPIN;
        }
        *service = *connection;
        connection.remote = translation.new;
        connection.ports = Ports::new(connection.ports.source(), translation.new_port);
        packet.destination = translation.new;
        packet.ports = Ports::new(packet.source_port(), translation.new_port);
        self.event.service = translation.old;
        self.event.service_port = translation.old_port;
        self.event.destination = translation.new;
        self.event.destination_port = translation.new_port;
        *owner = self.owner(&translation.new);
        Ok(())
    }

    /// Chooses a backend, if a service has the packet's destination and port.
    #[inline(always)]
    fn choose_backend(&mut self, packet: &Packet, place: &mut Place) -> Result<bool, DropReason> {
        let Place { translation, owner, affinity, stick_until, .. } = place;
        let key = ServiceKey {
            address: packet.destination,
            port: packet.destination_port(),
            protocol: packet.protocol,
            pad: [0; 5],
        };
        let found = match self.state.service(&key) {
            None if owner.is_of_node() => self.state.service(&key.of_any_node()),
            found => found,
        };
        let Some(service) = found else { return Ok(false) };
        if service.backends == 0 {
            self.refuse(DropReason::NoServiceBackend)?;
            return Ok(false);
        }
        translation.old = packet.destination;
        translation.old_port = packet.destination_port();
        let mut kept = None;
        if service.affinity != 0 {
            *affinity = AffinityKey { client: packet.source, set: service.set, pad: 0 };
            *stick_until = self.now().saturating_add(service.affinity as u64 * SECOND);
            kept = self.state.affinity(affinity);
        }
        match kept {
            Some(kept) if self.now() < kept.until => {
                translation.new = kept.address;
                translation.new_port = kept.port;
            }
            _ => {
                let slot = service.slot(&packet.source, packet.source_port());
                let Some(backend) = self.state.backend(&BackendKey { set: service.set, slot }) else {
                    self.refuse(DropReason::MapError)?;
                    return Ok(false);
                };
                translation.new = backend.address;
                translation.new_port = backend.port;
            }
        }
        // One that is its own backend needs no translation, and would have one key for both its entries.
        let moves = translation.new != translation.old || translation.new_port != translation.old_port;
        translation.kind = if moves { TranslationKind::END } else { TranslationKind::NONE };
        Ok(moves)
    }

    /// Remembers to which backend a connection that has passed goes, and the client's if it keeps one.
    #[inline(always)]
    pub(super) fn remember_backend(&mut self, place: &mut Place) -> Outcome {
        let Place { service: key, entry, translation, affinity, stick_until, .. } = place;
        // What belongs to no connection leaves nothing behind.
        if translation.kind != TranslationKind::END || entry.last_seen == 0 {
            return Ok(());
        }
        entry.flags = entry.flags & !ConnectionEntry::FROM_SERVICE | ConnectionEntry::TO_BACKEND;
        entry.translation = translation.new;
        entry.translation_port = translation.new_port;
        if *stick_until != 0 && self.notes().opening {
            let kept = AffinityEntry {
                address: translation.new,
                until: *stick_until,
                port: translation.new_port,
                pad: [0; 6],
            };
            self.state.stick(affinity, &kept);
        }
        self.keep(key, entry)
    }

    /// A pod meets itself behind a service: nobody else's say, and both directions under addresses that are
    /// not its own.
    #[inline(always)]
    pub(super) fn send_to_itself(&mut self, place: &mut Place, identity: u32) -> Outcome {
        let Place { service, connection, entry, translation, .. } = place;
        let local_port = connection.ports.source();
        *entry = ConnectionEntry {
            last_seen: self.now(),
            valid_until: u64::MAX,
            translation: translation.new,
            translation_port: translation.new_port,
            local_identity: identity,
            remote_identity: identity,
            ifindex: self.context.ifindex,
            peer_ifindex: self.context.ifindex,
            direction: Direction::Egress as u8,
            flags: ConnectionEntry::TO_BACKEND | ConnectionEntry::HAIRPIN,
            generation: self.generation(identity, identity),
            ..ConnectionEntry::default()
        };
        self.keep(service, entry)?;
        connection.remote = loopback(&service.local);
        connection.ports = Ports::new(translation.new_port, local_port);
        entry.translation = translation.old;
        entry.translation_port = translation.old_port;
        entry.direction = Direction::Ingress as u8;
        entry.flags = ConnectionEntry::FROM_SERVICE | ConnectionEntry::HAIRPIN;
        self.keep(connection, entry)?;
        self.notes().opening = true;
        Ok(())
    }

    /// Writes an entry, in the place of one that is there.
    #[inline(always)]
    fn keep(&mut self, key: &ConnectionKey, entry: &ConnectionEntry) -> Outcome {
        if let Some(mut known) = self.state.established(key) {
            *known = *entry;
            return Ok(());
        }
        if !self.state.open(key, entry) {
            return self.refuse(DropReason::MapError);
        }
        if entry.is_answered() {
            self.state.establish(key, entry);
        }
        Ok(())
    }

    /// What is known of an address by itself; nothing stands for what only its range can tell.
    #[inline(always)]
    pub(super) fn owner(&self, address: &Address) -> AddressEntry {
        match self.state.address(address) {
            Some(entry) => entry,
            None => AddressEntry { identity: 0, node: 0, flags: 0 },
        }
    }
}
