//! What policy says: the lookups, and what follows from the entry that decides.

use super::pod::Remote;
use super::{Judge, State};
use crate::packet::{Packet, icmp, protocol};
use crate::{
    AuthType, Direction, DropReason, EndpointEntry, PolicyClasses, PolicyEntry, PolicyKey, Setting, choose,
    identity,
};

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
        let mut key = PolicyKey {
            local: endpoint.identity,
            remote: remote.entry.identity,
            direction: opened as u8,
            protocol: packet.protocol,
            port: asked_port(packet, opened != self.direction()),
        };
        let [certain, any] = endpoint.classes.of(opened);
        let with_identity = self.longest(&key, certain);
        key.remote = identity::UNKNOWN;
        let any_identity = self.longest(&key, any);
        let Some(choice) = choose(with_identity.entry(), any_identity.entry()) else {
            self.refuse(DropReason::PolicyDenied)?;
            return Ok(AuthType::Disabled as u8);
        };
        self.event.cookie = choice.entry.cookie;
        self.notes().entry_audited = choice.entry.audit != 0;
        if choice.entry.deny != 0 {
            self.refuse(DropReason::PolicyDeny)?;
            return Ok(AuthType::Disabled as u8);
        }
        let off_the_mesh =
            remote.entry.node == 0 && !remote.entry.is_of_pod() && remote.entry.identity != identity::HOST;
        if choice.entry.encryption != 0 && (off_the_mesh || self.wants_encryption_here(remote)) {
            self.refuse(DropReason::Unencrypted)?;
        }
        Ok(choice.auth_type)
    }

    /// Whether packets of this pod, which never leave the node and so are never encrypted, are not exempt.
    #[inline(always)]
    fn wants_encryption_here(&self, remote: &Remote) -> bool {
        remote.entry.node == 0
            && remote.entry.is_of_pod()
            && self.state.setting(Setting::SameNodeEncryption) != 0
    }

    /// The entry of the longest prefix of `key`, among the lengths in `classes`.
    #[inline(always)]
    fn longest(&self, key: &PolicyKey, classes: u32) -> Match {
        if classes & PolicyClasses::PORT != 0 {
            let entry = self.exact(key, PolicyKey::FULL_BITS);
            if entry.found {
                return entry;
            }
        }
        if classes & PolicyClasses::RANGES != 0 {
            let entry = Match::of(self.state.policy_range(key, classes));
            if entry.found {
                return entry;
            }
        }
        if classes & PolicyClasses::PROTOCOL != 0 {
            let entry = self.exact(key, PolicyKey::prefix_len(Some(0)));
            if entry.found {
                return entry;
            }
        }
        if classes & PolicyClasses::ANY != 0 {
            return self.exact(key, PolicyKey::prefix_len(None));
        }
        Match::default()
    }

    /// The entry of just this prefix of `key`.
    #[inline(always)]
    fn exact(&self, key: &PolicyKey, prefix_len: u32) -> Match {
        Match::of(self.state.policy(&key.masked(prefix_len), prefix_len))
    }
}

/// An entry that matches, if one has been found.
///
/// Not an `Option`: its missing half is made of whatever a register holds, which the verifier minds.
#[derive(Clone, Copy, Default)]
struct Match {
    found: bool,
    entry: PolicyEntry,
}

impl Match {
    #[inline(always)]
    fn of(entry: Option<PolicyEntry>) -> Self {
        match entry {
            Some(entry) => Self { found: true, entry },
            None => Self::default(),
        }
    }

    #[inline(always)]
    const fn entry(self) -> Option<PolicyEntry> {
        if self.found { Some(self.entry) } else { None }
    }
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
