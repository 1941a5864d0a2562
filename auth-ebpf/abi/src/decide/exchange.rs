//! What an endpoint and its other end may exchange: connection, policy, authentication, encryption.

use super::pod::Remote;
use super::{CONNECTION_TIMEOUT, Judge, Outcome, State, TCP_TIMEOUT, Tracked};
use crate::packet::{Packet, protocol};
use crate::{
    Address, AuthKey, AuthType, ConnectionEntry, ConnectionKey, Direction, DropReason, IdentityNumber,
    NodeEntry, NodeNumber, PolicyKey, Setting, choose, identity,
};

impl<S: State> Judge<'_, S> {
    /// Judges a packet between an endpoint and its other end, and remembers the connection if it passes.
    #[inline(always)]
    pub(super) fn exchange(
        &mut self,
        packet: &Packet,
        direction: Direction,
        address: &Address,
        local: IdentityNumber,
        remote: &Remote,
    ) -> Outcome {
        let mut key = connection_key(packet, direction, address, &remote.address);
        key.direction = direction.reverse() as u8;
        let reply = if may_reply(packet) { self.opened(&key, local, remote) } else { None };
        let auth_type = match reply {
            Some(auth_type) => {
                self.event.reply = 1;
                auth_type
            }
            None if remote.is_this_host => AuthType::Disabled as u8,
            None => self.policy(packet, direction, local, remote)?,
        };
        let node = self.session(remote.entry.node);
        if !remote.is_this_host {
            self.authenticate(local, remote, auth_type, node)?;
        }
        self.encrypt(remote, node)?;
        if self.event.reply == 1 {
            self.state.replied(&key);
            return Ok(());
        }
        key.direction = direction as u8;
        // What is only tried binds no reply.
        let auth_type = if self.entry_audited { AuthType::Disabled as u8 } else { auth_type };
        self.track(packet, &key, local, remote, auth_type)
    }

    /// The authentication type of the connection under `key`, if it is alive and between these two.
    #[inline(always)]
    fn opened(&self, key: &ConnectionKey, local: IdentityNumber, remote: &Remote) -> Option<u8> {
        let connection = self.state.connection(key)?;
        // An address that has changed hands since takes no connection with it.
        let same = connection.local_identity == local
            && connection.remote_identity == remote.entry.identity
            && connection.node == remote.entry.node;
        let timeout = if key.protocol == protocol::TCP { TCP_TIMEOUT } else { CONNECTION_TIMEOUT };
        if !same || connection.last_seen.wrapping_add(timeout) <= self.now() {
            return None;
        }
        if connection.flags & ConnectionEntry::AUDITED != 0
            && self.enforces(Setting::PolicyMode, Setting::PolicyOffUntil)
        {
            return None;
        }
        Some(connection.auth_type)
    }

    /// Asks policy, and returns the authentication type that it wants.
    #[inline(always)]
    fn policy(
        &mut self,
        packet: &Packet,
        direction: Direction,
        local: IdentityNumber,
        remote: &Remote,
    ) -> Result<u8, DropReason> {
        let port = if packet.is_icmp() { [packet.destination_port[0], 0] } else { packet.destination_port };
        let mut key = PolicyKey {
            local,
            remote: remote.entry.identity,
            direction: direction as u8,
            protocol: packet.protocol,
            port,
        };
        let with_identity = self.state.policy(&key);
        key.remote = identity::UNKNOWN;
        let any_identity = self.state.policy(&key);
        let Some(choice) = choose(with_identity, any_identity) else {
            self.refuse(DropReason::PolicyDenied)?;
            return Ok(AuthType::Disabled as u8);
        };
        self.event.cookie = choice.entry.cookie;
        self.entry_audited = choice.entry.audit != 0;
        if choice.entry.deny != 0 {
            self.refuse(DropReason::PolicyDeny)?;
            return Ok(AuthType::Disabled as u8);
        }
        let off_the_mesh =
            remote.entry.node == 0 && !remote.entry.is_of_pod() && remote.entry.identity != identity::HOST;
        if choice.entry.encryption != 0 && off_the_mesh {
            self.refuse(DropReason::Unencrypted)?;
        }
        Ok(choice.auth_type)
    }

    /// The session with a node; one that never was for this node, and for a node without any.
    ///
    /// Not an `Option`: its missing half is made of whatever a register holds, which the verifier minds.
    #[inline(always)]
    fn session(&self, node: NodeNumber) -> NodeEntry {
        let none = NodeEntry { expires: 0, epoch: 0, acknowledged: 0 };
        if node == 0 { none } else { self.state.node(node).unwrap_or(none) }
    }

    #[inline(always)]
    fn authenticate(
        &mut self,
        local: IdentityNumber,
        remote: &Remote,
        auth_type: u8,
        node: NodeEntry,
    ) -> Outcome {
        if auth_type == AuthType::Disabled as u8 {
            return Ok(());
        }
        self.event.auth_type = auth_type;
        if identity::is_reserved(remote.entry.identity) || identity::is_reserved(local) {
            return self.refuse(DropReason::AuthImpossible);
        }
        if auth_type != AuthType::Spire as u8 {
            return self.refuse(DropReason::AuthRequired);
        }
        let key =
            AuthKey { local, remote: remote.entry.identity, node: remote.entry.node, auth_type, pad: 0 };
        if let Some(auth) = self.state.auth(&key) {
            let vouched = remote.entry.node == 0 || (node.expires != 0 && node.epoch == auth.epoch);
            if vouched && self.now() < auth.expires {
                return self.queue_behind(auth, key);
            }
        }
        self.lack_authentication(key)
    }

    /// Traffic with a pod on another node needs that node's session, without which no tunnel leads there.
    #[inline(always)]
    fn encrypt(&mut self, remote: &Remote, node: NodeEntry) -> Outcome {
        if remote.entry.node == 0 {
            return Ok(());
        }
        let tunnelled = || self.now() < node.expires && self.state.setting(Setting::WireguardIfindex) != 0;
        if remote.entry.is_of_pod() && !tunnelled() {
            return self.refuse(DropReason::NoNodeSession);
        }
        self.event.encrypted = 1;
        Ok(())
    }

    /// Remembers the connection, so that its replies need no policy of their own.
    #[inline(always)]
    fn track(
        &mut self,
        packet: &Packet,
        key: &ConnectionKey,
        local: IdentityNumber,
        remote: &Remote,
        auth_type: u8,
    ) -> Outcome {
        if packet.is_icmp() && !packet.is_echo_request() {
            return Ok(());
        }
        let entry = ConnectionEntry {
            last_seen: self.now(),
            packets: 1,
            bytes: u64::from(self.context.length),
            local_identity: local,
            remote_identity: remote.entry.identity,
            node: remote.entry.node,
            auth_type,
            flags: if self.policy_audited { ConnectionEntry::AUDITED } else { 0 },
            ..ConnectionEntry::default()
        };
        // Who opened a TCP connection is clear from its first segment alone: a later one that nobody knows
        // must not turn its direction round, and with it the rules that apply.
        let create = packet.protocol != protocol::TCP || packet.is_syn();
        match self.state.track(key, &entry, create) {
            Tracked::New => self.opening = true,
            Tracked::Known | Tracked::Absent => {}
            Tracked::Full => self.refuse(DropReason::MapError)?,
        }
        Ok(())
    }
}

/// The key, from the endpoint's view, of the connection that this packet belongs to.
#[inline(always)]
fn connection_key(packet: &Packet, direction: Direction, local: &Address, remote: &Address) -> ConnectionKey {
    let (local_port, remote_port) = match direction {
        _ if packet.is_icmp() => (packet.source_port, packet.source_port),
        Direction::Egress => (packet.source_port, packet.destination_port),
        Direction::Ingress => (packet.destination_port, packet.source_port),
    };
    ConnectionKey {
        local: *local,
        remote: *remote,
        local_port,
        remote_port,
        protocol: packet.protocol,
        direction: direction as u8,
        pad: 0,
    }
}

/// Whether a packet can be the reply of a connection at all.
#[inline(always)]
const fn may_reply(packet: &Packet) -> bool {
    if packet.is_icmp() { packet.is_echo_reply() } else { !packet.is_syn() }
}
