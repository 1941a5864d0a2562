//! What an endpoint and its other end may exchange: connection, policy, authentication, encryption.

use super::pod::Remote;
use super::standing::{Known, Standing, is_tracked, may_open};
use super::{Judge, Outcome, Place, State};
use crate::packet::Packet;
use crate::{
    AuthKey, AuthType, ConnectionEntry, Direction, DropReason, EndpointEntry, Hook, IdentityNumber,
    NodeEntry, NodeNumber, Setting, TranslationKind, identity,
};

impl<S: State> Judge<'_, S> {
    /// Judges a packet between an endpoint and its other end that nothing settled lets pass, and remembers
    /// what comes of it.
    #[inline(always)]
    pub(super) fn exchange(
        &mut self,
        packet: &Packet,
        place: &mut Place,
        standing: Standing,
        endpoint: &EndpointEntry,
        remote: &Remote,
    ) -> Outcome {
        let local = endpoint.identity;
        // In a large table it is far from the processor, which can fetch it while policy is looked up.
        self.state.foresee(&AuthKey {
            local,
            remote: remote.entry.identity,
            node: remote.entry.node,
            auth_type: AuthType::Spire as u8,
            pad: 0,
        });
        let generation = self.generation(local, remote.entry.identity);
        let known = match standing {
            // An address that has changed hands since takes no connection with it.
            Standing::Open if place.known.is_between(local, remote) => Some(place.known),
            Standing::Open | Standing::Unknown | Standing::Settled => None,
        };
        let opened = match known {
            Some(known) => known.opened,
            None => self.direction(),
        };
        let outwards = matches!(self.direction(), Direction::Egress);
        if known.is_none() && !outwards {
            // Whoever has the backend's address now answers for no service.
            place.translation.kind = TranslationKind::NONE;
        }
        self.event.reply = u8::from(opened != self.direction());
        let auth_type = self.wanted(packet, opened, known, endpoint, remote)?;
        let node = self.session(remote.entry.node);
        self.authenticate(endpoint, remote, auth_type, node)?;
        self.encrypt(remote, node)?;
        let direct = self.direct(place, opened, endpoint, remote);
        place.entry = ConnectionEntry {
            local_identity: local,
            generation,
            auth_type,
            direction: opened as u8,
            flags: direct,
            ..self.entry_with(remote)
        };
        if outwards && place.translation.kind != TranslationKind::NONE {
            place.entry.flags |= ConnectionEntry::FROM_SERVICE;
            place.entry.translation = place.translation.old;
            place.entry.translation_port = place.translation.old_port;
        }
        self.mark_tried(&mut place.entry);
        self.track(packet, place)
    }

    /// An entry about this other end, for as long as what was decided holds.
    #[inline(always)]
    fn entry_with(&mut self, remote: &Remote) -> ConnectionEntry {
        ConnectionEntry {
            valid_until: self.notes().valid_until,
            remote_identity: remote.entry.identity,
            ifindex: self.context.ifindex,
            peer_ifindex: remote.ifindex,
            peer_bridge: remote.bridge,
            node: remote.entry.node,
            ..ConnectionEntry::default()
        }
    }

    /// What was only observed settles nothing, since it ends with observing; what is only tried binds no reply.
    #[inline(always)]
    fn mark_tried(&mut self, entry: &mut ConnectionEntry) {
        let notes = *self.notes();
        if notes.audit != 0 || notes.policy_audited {
            entry.valid_until = 0;
        }
        if notes.policy_audited {
            entry.flags |= ConnectionEntry::AUDITED;
        }
        if notes.entry_audited {
            entry.auth_type = AuthType::Disabled as u8;
        }
    }

    /// The authentication type that the packet needs. A reply needs what its connection rests on, and asks
    /// policy only if that has changed since: about the connection, not about itself.
    #[inline(always)]
    fn wanted(
        &mut self,
        packet: &Packet,
        opened: Direction,
        known: Option<Known>,
        endpoint: &EndpointEntry,
        remote: &Remote,
    ) -> Result<u8, DropReason> {
        // What this host itself opens needs neither policy nor authentication; what bears its address and
        // came in from elsewhere is the world's by now.
        if matches!(opened, Direction::Ingress) && remote.entry.identity == identity::HOST {
            return Ok(AuthType::Disabled as u8);
        }
        if let Some(known) = known
            && known.current
            && self.event.reply == 1
            && !(known.audited && self.enforces(Setting::PolicyMode, Setting::PolicyOffUntil))
        {
            self.notes().policy_audited |= known.audited;
            return Ok(known.auth_type);
        }
        self.policy(packet, opened, endpoint, remote)
    }

    /// The session with a node; one that never was for this node, and for a node without any.
    ///
    /// Not an `Option`: its missing half is made of whatever a register holds, which the verifier minds.
    #[inline(always)]
    fn session(&self, node: NodeNumber) -> NodeEntry {
        let none = NodeEntry { expires: 0, epoch: 0, acknowledged: 0 };
        if node == 0 { none } else { self.state.node(node).unwrap_or(none) }
    }

    /// The other end's node knows whose this address is, and both identities have authenticated as far as
    /// policy wants it.
    #[inline(always)]
    fn authenticate(
        &mut self,
        endpoint: &EndpointEntry,
        remote: &Remote,
        auth_type: u8,
        node: NodeEntry,
    ) -> Outcome {
        let local = endpoint.identity;
        let mut key =
            AuthKey { local, remote: remote.entry.identity, node: remote.entry.node, auth_type, pad: 0 };
        self.event.auth_type = auth_type;
        let unannounced = is_unannounced(endpoint, remote, node);
        if unannounced && matches!(self.context.hook, Hook::FromPod) {
            key.auth_type = AuthType::Disabled as u8;
        } else {
            if unannounced {
                // What comes in settles nothing: the answer waits for the announcement.
                self.notes().valid_until = 0;
            }
            if auth_type == AuthType::Disabled as u8 {
                return Ok(());
            }
            if identity::is_reserved(remote.entry.identity) || identity::is_reserved(local) {
                return self.refuse(DropReason::AuthImpossible);
            }
            if auth_type != AuthType::Spire as u8 {
                return self.refuse(DropReason::AuthRequired);
            }
            if let Some(auth) = self.state.auth(&key) {
                let vouched = remote.entry.node == 0 || (node.expires != 0 && node.epoch == auth.epoch);
                if vouched && self.now() < auth.expires {
                    return self.queue_behind(auth, key);
                }
            }
        }
        self.lack(key)
    }

    /// Traffic with a pod on another node needs that node's session, without which no tunnel leads there.
    #[inline(always)]
    fn encrypt(&mut self, remote: &Remote, node: NodeEntry) -> Outcome {
        if remote.entry.node == 0 {
            return Ok(());
        }
        let tunnelled = || self.now() < node.expires && self.state.setting(Setting::WireguardIfindex) != 0;
        if remote.entry.is_of_pod() {
            if !tunnelled() {
                return self.refuse(DropReason::NoNodeSession);
            }
            let notes = self.notes();
            notes.valid_until = notes.valid_until.min(node.expires);
        }
        self.event.encrypted = 1;
        Ok(())
    }

    /// Remembers the connection, so that its next packets need only it.
    #[inline(always)]
    fn track(&mut self, packet: &Packet, place: &mut Place) -> Outcome {
        if !is_tracked(packet) {
            return Ok(());
        }
        let Place { connection: key, entry, straight_to, .. } = place;
        let opens = may_open(packet);
        if let Some(mut known) = self.state.established(key) {
            return self.renew(packet, entry, &mut known, straight_to);
        }
        if let Some(mut known) = self.state.half_open(key) {
            return self.renew(packet, entry, &mut known, straight_to);
        }
        if !opens {
            return Ok(());
        }
        entry.record(packet, false, self.now());
        if self.state.open(key, entry) {
            self.notes().opening = true;
            *straight_to = entry.straight_to();
            return Ok(());
        }
        self.refuse(DropReason::MapError)
    }
}

impl<S: State> Judge<'_, S> {
    #[inline(always)]
    fn renew(
        &mut self,
        packet: &Packet,
        decided: &mut ConnectionEntry,
        known: &mut ConnectionEntry,
        straight_to: &mut u32,
    ) -> Outcome {
        let reply = decided.direction != self.direction() as u8;
        let outwards = matches!(self.direction(), Direction::Egress);
        let opens = may_open(packet);
        let alive = known.is_alive(packet.protocol, self.now());
        // The answers to both would come from the same address and port.
        if outwards && !reply && alive && !known.is_closed() && !known.is_by_way_of(decided) {
            return self.refuse(DropReason::ServiceConflict);
        }
        // What comes from a service's own address is no answer of it.
        if !outwards && alive && known.flags & ConnectionEntry::TO_BACKEND != 0 {
            return Ok(());
        }
        let renewal = known.renew(decided, opens, alive, self.now());
        if matches!(renewal, Renewal::Refused) {
            return Ok(());
        }
        known.record(packet, reply, self.now());
        decided.last_seen = known.last_seen;
        decided.state = known.state;
        decided.flags = decided.flags & !ConnectionEntry::DIRECT | known.flags & ConnectionEntry::DIRECT;
        *straight_to = known.straight_to();
        self.notes().opening = matches!(renewal, Renewal::New);
        Ok(())
    }
}

impl Known {
    /// Whether it is a connection of these two.
    #[inline(always)]
    const fn is_between(&self, local: IdentityNumber, remote: &Remote) -> bool {
        self.local == local && self.remote == remote.entry.identity && self.node == remote.entry.node
    }
}

/// Whether the other node may still take this pod for the one that had its address before: it has not
/// acknowledged this assignment.
#[inline(always)]
const fn is_unannounced(endpoint: &EndpointEntry, remote: &Remote, node: NodeEntry) -> bool {
    node.expires != 0 && endpoint.epoch > node.acknowledged && remote.entry.is_of_pod()
}

/// What has become of an entry that was there.
#[derive(Clone, Copy)]
enum Renewal {
    /// It goes on.
    Same,
    /// Another connection has taken its place.
    New,
    /// It stays as it is: the packet belongs to no connection.
    Refused,
}

impl ConnectionEntry {
    /// Makes this the entry that was decided on now. State goes on if it is the same connection.
    #[inline(always)]
    fn renew(&mut self, decided: &Self, opens: bool, alive: bool, now: u64) -> Renewal {
        let same = alive
            && self.local_identity == decided.local_identity
            && self.remote_identity == decided.remote_identity
            && self.node == decided.node
            && self.direction == decided.direction
            && !(opens && self.is_closed());
        if !same && !opens {
            return Renewal::Refused;
        }
        if !same {
            self.last_seen = now;
            self.state = 0;
            self.translation = decided.translation;
            self.translation_port = decided.translation_port;
        }
        let kept = if same { self.flags } else { decided.flags } & (Self::FROM_SERVICE | Self::DIRECT);
        self.local_identity = decided.local_identity;
        self.remote_identity = decided.remote_identity;
        self.ifindex = decided.ifindex;
        self.peer_ifindex = decided.peer_ifindex;
        self.peer_bridge = decided.peer_bridge;
        self.node = decided.node;
        self.auth_type = decided.auth_type;
        self.direction = decided.direction;
        self.flags = decided.flags & !Self::DIRECT | kept;
        if decided.peer_bridge != 0 || decided.peer_ifindex == Self::ANY {
            self.flags &= !Self::DIRECT;
        }
        self.valid_until = decided.valid_until;
        self.generation = decided.generation;
        if same { Renewal::Same } else { Renewal::New }
    }
}
