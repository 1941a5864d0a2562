//! The hooks at a pod's interface.

use super::{Judge, Outcome, State};
use crate::packet::{Packet, protocol};
use crate::{Address, AddressEntry, Direction, DropReason, Setting, identity};

/// The other end of a packet at a pod.
#[derive(Clone, Copy)]
pub(super) struct Remote {
    pub(super) address: Address,
    pub(super) entry: AddressEntry,
    /// It is this very host, which reaches its pods without policy and authentication.
    pub(super) is_this_host: bool,
}

impl<S: State> Judge<'_, S> {
    /// A pod sends: the address is its own, the destination is known, and then the exchange.
    #[inline(always)]
    pub(super) fn pod_sends(&mut self, packet: &Packet) -> Outcome {
        if self.context.tagged {
            return self.refuse(DropReason::UnsupportedL3);
        }
        if self.is_link_signalling(packet, &packet.destination) && self.may_signal(packet) {
            return Ok(());
        }
        let Some(endpoint) = self.own_endpoint(&packet.source) else {
            return self.refuse(DropReason::Spoofed);
        };
        self.event.local = endpoint.identity;
        let entry = self.resolve(&packet.destination);
        self.event.remote = entry.identity;
        self.event.node = entry.node;
        if packet.fragment {
            return self.refuse(DropReason::Fragment);
        }
        if entry.is_cluster_range() {
            return self.refuse(DropReason::UnknownDestination);
        }
        if entry.is_of_node() && self.is_reserved_port(packet) {
            self.refuse(DropReason::ReservedPort)?;
        }
        // Without a program at its interface, nothing would judge the packet on its way in.
        if entry.is_of_pod() && entry.node == 0 && self.state.endpoint(&packet.destination).is_none() {
            self.refuse(DropReason::NoEndpoint)?;
        }
        let remote = Remote { address: packet.destination, entry, is_this_host: false };
        self.exchange(packet, Direction::Egress, &packet.source, endpoint.identity, &remote)
    }

    /// A pod receives: it is here, the packet came the way its source must come, and then the exchange.
    #[inline(always)]
    pub(super) fn pod_receives(&mut self, packet: &Packet) -> Outcome {
        if self.context.tagged {
            return self.refuse(DropReason::UnsupportedL3);
        }
        if self.is_link_signalling_from_host(packet) {
            return Ok(());
        }
        let Some(endpoint) = self.own_endpoint(&packet.destination) else {
            return self.refuse(DropReason::NoEndpoint);
        };
        self.event.local = endpoint.identity;
        let remote = self.provenance(&packet.source)?;
        self.event.remote = remote.entry.identity;
        self.event.node = remote.entry.node;
        if packet.fragment {
            return self.refuse(DropReason::Fragment);
        }
        if remote.entry.is_cluster_range() {
            return self.refuse(DropReason::UnknownSource);
        }
        self.exchange(packet, Direction::Ingress, &packet.destination, endpoint.identity, &remote)
    }

    /// Who sent this, judged by where the kernel says that it came in.
    #[inline(always)]
    fn provenance(&mut self, source: &Address) -> Result<Remote, DropReason> {
        let ingress = self.context.ingress_ifindex;
        let mut remote = Remote { address: *source, entry: AddressEntry::default(), is_this_host: false };
        if let Some(sender) = self.state.endpoint(source) {
            remote.entry.identity = sender.identity;
            if !sender.sends_by(ingress) {
                self.refuse(DropReason::Spoofed)?;
            }
            return Ok(remote);
        }
        remote.entry = self.resolve(source);
        if remote.entry.node != 0 {
            if !self.is_wireguard(ingress) {
                self.refuse(DropReason::Unencrypted)?;
                // Only the tunnel proves that a node sent it.
                if remote.entry.is_of_remote_node() {
                    remote.entry = AddressEntry { identity: identity::WORLD, node: 0, flags: 0 };
                }
            }
        } else if remote.entry.identity == identity::HOST {
            remote.is_this_host = ingress == 0;
            if ingress != 0 {
                remote.entry.identity = identity::WORLD;
            }
        } else if remote.entry.is_of_pod() {
            self.refuse(DropReason::NoEndpoint)?;
        }
        Ok(remote)
    }

    /// Whether `ifindex` is the WireGuard device.
    #[inline(always)]
    pub(super) fn is_wireguard(&self, ifindex: u32) -> bool {
        ifindex != 0 && u64::from(ifindex) == self.state.setting(Setting::WireguardIfindex)
    }

    /// Neighbour discovery or multicast listener discovery whose `target` is on the link.
    #[inline(always)]
    fn is_link_signalling(&self, packet: &Packet, target: &Address) -> bool {
        (packet.is_neighbour_discovery() || packet.is_multicast_listener())
            && (target.is_multicast() || target.is_link_local() || self.is_host(target))
    }

    #[inline(always)]
    fn may_signal(&self, packet: &Packet) -> bool {
        let source = &packet.source;
        source.is_unspecified() || source.is_link_local() || self.own_endpoint(source).is_some()
    }

    /// The host, or on a bridge another pod, discovers a pod.
    #[inline(always)]
    fn is_link_signalling_from_host(&self, packet: &Packet) -> bool {
        let source = &packet.source;
        if !packet.is_neighbour_discovery() && !packet.is_multicast_listener() {
            return false;
        }
        if source.is_unspecified() || source.is_link_local() {
            return true;
        }
        match self.state.endpoint(source) {
            Some(sender) => sender.sends_by(self.context.ingress_ifindex),
            None => self.context.ingress_ifindex == 0 && self.is_host(source),
        }
    }

    /// Whether this goes to a port of a node that only nodes may use.
    #[inline(always)]
    fn is_reserved_port(&self, packet: &Packet) -> bool {
        let setting = match packet.protocol {
            protocol::UDP => Setting::WireguardPort,
            protocol::TCP => Setting::HandshakePort,
            _ => return false,
        };
        self.state.setting(setting) == u64::from(u16::from_be_bytes(packet.destination_port))
    }
}
