//! What policy says: the lookups, and what follows from the entry that decides.

use super::pod::Remote;
use super::{Judge, State};
use crate::packet::{Packet, icmp, protocol};
use crate::{
    AuthType, Direction, DropReason, EndpointEntry, PolicyClasses, PolicyKey, Ruling, Setting, identity,
};

/// How often a packet asks again what is being written. An entry takes longer to write than to look up.
const TRIES: u32 = 8;

impl<S: State> Judge<'_, S> {
    /// Asks policy about the connection that was opened in the direction `opened` by this packet, or by one
    /// that it replies to; returns the authentication type that it wants.
    #[inline(always)]
    pub(super) fn policy(
        &mut self,
        packet: &Packet,
        opened: Direction,
        endpoint: &EndpointEntry,
        remote: &Remote,
    ) -> Result<u8, DropReason> {
        let key = PolicyKey {
            local: endpoint.identity,
            remote: remote.entry.identity,
            direction: opened as u8,
            protocol: packet.protocol,
            port: asked_port(packet, opened != self.direction()),
        };
        let Some(ruling) = self.ruling(&key, endpoint.classes.of(opened)) else {
            self.refuse(DropReason::PolicyChanging)?;
            return Ok(AuthType::Disabled as u8);
        };
        if !ruling.is_found() {
            self.refuse(DropReason::PolicyDenied)?;
            return Ok(AuthType::Disabled as u8);
        }
        self.event.cookie = ruling.cookie();
        self.notes().entry_audited = ruling.is_audited();
        if ruling.denies() {
            self.refuse(DropReason::PolicyDeny)?;
            return Ok(AuthType::Disabled as u8);
        }
        // From outside, only the last of its way is encrypted.
        let off_the_mesh = (remote.entry.node == 0 || remote.entry.is_outside())
            && !remote.entry.is_of_pod()
            && remote.entry.identity != identity::HOST;
        if ruling.wants_encryption() && (off_the_mesh || self.wants_encryption_here(remote)) {
            self.refuse(DropReason::Unencrypted)?;
        }
        Ok(ruling.auth_type())
    }

    /// What one state of the map says. A decision takes several lookups, and what is written between two of
    /// them could make it one by no state at all: whoever writes raises the generation of the pair before
    /// each entry, and what is found under two of them is looked up again.
    #[inline(always)]
    fn ruling(&self, key: &PolicyKey, classes: [u32; 2]) -> Option<Ruling> {
        let mut generation = self.generation(key.local, key.remote);
        let mut tries = 0;
        while tries < TRIES {
            let ruling = self.state.ruling(key, classes);
            let now = self.generation(key.local, key.remote);
            if now == generation {
                return Some(ruling);
            }
            generation = now;
            tries += 1;
        }
        None
    }

    /// Whether packets of this pod, which never leave the node and so are never encrypted, are not exempt.
    #[inline(always)]
    fn wants_encryption_here(&self, remote: &Remote) -> bool {
        remote.entry.node == 0
            && remote.entry.is_of_pod()
            && self.state.setting(Setting::SameNodeEncryption) != 0
    }
}

/// What the entries for the identity at the other end and for any say about packets under `key`, among the lengths in
/// `classes` of the one and the other.
#[inline(always)]
pub fn ruling<S: State>(state: &S, key: &PolicyKey, [certain, any]: [u32; 2]) -> Ruling {
    let any_identity = PolicyKey { remote: identity::UNKNOWN, ..*key };
    Ruling::between(state.policy(key, certain), state.policy(&any_identity, any))
}

/// The entry of the longest prefix of `key`, among the lengths in `classes`: what `find` says, who is asked about the
/// key and a length.
#[inline(always)]
pub fn longest<K, T>(key: &K, classes: u32, find: impl Fn(&K, u32) -> Option<T>) -> Option<T> {
    if classes & PolicyClasses::PORT != 0
        && let Some(found) = find(key, PolicyKey::FULL_BITS)
    {
        return Some(found);
    }
    if classes & PolicyClasses::RANGES != 0 {
        let mut bits = 15;
        while bits > 0 {
            if classes >> bits & 2 != 0
                && let Some(found) = find(key, PolicyKey::prefix_len(Some(bits)))
            {
                return Some(found);
            }
            bits -= 1;
        }
    }
    if classes & PolicyClasses::PROTOCOL != 0
        && let Some(found) = find(key, PolicyKey::prefix_len(Some(0)))
    {
        return Some(found);
    }
    if classes & PolicyClasses::ANY != 0 {
        return find(key, PolicyKey::prefix_len(None));
    }
    None
}

/// The port for which the opener asks, or the type of ICMP.
#[inline(always)]
const fn asked_port(packet: &Packet, reply: bool) -> [u8; 2] {
    if packet.is_icmp() {
        let [kind, _] = packet.destination_port();
        return match (reply, packet.protocol) {
            (false, _) => [kind, 0],
            (true, protocol::ICMP) => [icmp::ECHO, 0],
            (true, _) => [icmp::V6_ECHO, 0],
        };
    }
    if reply { packet.source_port() } else { packet.destination_port() }
}
