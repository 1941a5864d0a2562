//! The hooks where traffic enters and leaves the node: the WireGuard device and the uplinks.

use super::{Judge, Outcome, Place, State};
use crate::packet::{Bytes, Fragment, Packet, parse_inner, protocol};
use crate::{Address, AddressEntry, DropReason, Setting, identity};

impl<S: State> Judge<'_, S> {
    /// Out of the tunnel: another node's source, for somebody here.
    #[inline(always)]
    pub(super) fn wireguard_receives(&mut self, packet: &mut Packet, place: &mut Place) -> Outcome {
        let source = self.resolve(&packet.source);
        self.event.remote = source.identity;
        self.event.node = source.node;
        self.event.encrypted = 1;
        if source.node == 0 || source.is_cluster_range() {
            return self.refuse(DropReason::UnknownSource);
        }
        if let Some(endpoint) = self.state.endpoint(&packet.destination) {
            self.event.local = endpoint.identity;
            return Ok(());
        }
        if self.is_own_outside(&packet.destination) {
            return self.outside_receives(packet, place, &source);
        }
        self.event.local = identity::HOST;
        if self.is_host(&packet.destination) { Ok(()) } else { self.refuse(DropReason::NoEndpoint) }
    }

    /// Into the tunnel: a pod's packet from that pod's interface, the host's own, or what it forwards for the world.
    #[inline(always)]
    pub(super) fn wireguard_sends(&mut self, packet: &mut Packet, place: &mut Place) -> Outcome {
        let ingress = self.context.ingress_ifindex;
        // The kernel solicits routers on every device; no peer is there to hear it.
        if ingress == 0 && (packet.is_neighbour_discovery() || packet.is_multicast_listener()) {
            return Ok(());
        }
        let destination = self.resolve(&packet.destination);
        self.event.remote = destination.identity;
        self.event.node = destination.node;
        self.event.encrypted = 1;
        if let Some(endpoint) = self.state.endpoint(&packet.source) {
            self.event.local = endpoint.identity;
            return if endpoint.sends_by(ingress) { Ok(()) } else { self.refuse(DropReason::Spoofed) };
        }
        if !self.is_host(&packet.source) {
            return self.refuse(DropReason::Spoofed);
        }
        self.event.local = identity::HOST;
        if ingress == 0 {
            self.host_tells_of_outside(packet, place);
            return Ok(());
        }
        self.outside_sends(packet, place, &destination)
    }

    /// In by an uplink: nothing that says it comes from within the cluster, on its outside or within.
    #[inline(always)]
    pub(super) fn uplink_receives<B: Bytes + ?Sized>(&mut self, bytes: &B, packet: &Packet) -> Outcome {
        if packet.is_neighbour_discovery() {
            return Ok(());
        }
        let source = self.resolve(&packet.source);
        self.event.remote = source.identity;
        self.event.node = source.node;
        if source.identity == identity::HOST {
            // Nobody else has it, and a pod could not tell him from what the host translates.
            return self.refuse(DropReason::Spoofed);
        }
        let is_endpoint = self.state.endpoint(&packet.source).is_some();
        if !is_endpoint && !source.is_mesh() {
            return match parse_inner(bytes, packet) {
                Some((source, _)) => self.carries(&source),
                None => Ok(()),
            };
        }
        let bootstrap =
            source.is_of_remote_node() && self.is_host(&packet.destination) && self.is_bootstrap(packet);
        if bootstrap { Ok(()) } else { self.refuse(DropReason::Unencrypted) }
    }

    /// Out by an uplink: nothing for somebody within the cluster, whatever the routing table says, and
    /// whoever is to unpack it. Between nodes, that goes for every encapsulation.
    #[inline(always)]
    pub(super) fn uplink_sends<B: Bytes + ?Sized>(&mut self, bytes: &B, packet: &Packet) -> Outcome {
        if packet.is_neighbour_discovery() {
            return Ok(());
        }
        let destination = self.resolve(&packet.destination);
        self.event.remote = destination.identity;
        self.event.node = destination.node;
        if !destination.is_mesh() {
            return match parse_inner(bytes, packet) {
                Some((_, destination)) => self.carries(&destination),
                None => Ok(()),
            };
        }
        let bootstrap = destination.is_of_remote_node()
            && self.context.ingress_ifindex == 0
            && self.is_host(&packet.source)
            && self.is_bootstrap(packet);
        if bootstrap { Ok(()) } else { self.refuse(DropReason::Unencrypted) }
    }

    /// An encapsulated packet from or to this address.
    #[inline(always)]
    fn carries(&mut self, address: &Address) -> Outcome {
        let inner = self.resolve(address);
        if !inner.is_mesh() {
            return Ok(());
        }
        self.event.remote = inner.identity;
        self.event.node = inner.node;
        self.refuse(DropReason::Unencrypted)
    }

    /// WireGuard itself and the handshakes, from which tunnels come: they cannot run in one.
    #[inline(always)]
    fn is_bootstrap(&self, packet: &Packet) -> bool {
        let setting = match packet.protocol {
            protocol::UDP => Setting::WireguardPort,
            protocol::TCP => Setting::HandshakePort,
            _ => return false,
        };
        let port = self.state.setting(setting);
        let is = |bytes| u64::from(u16::from_be_bytes(bytes)) == port;
        let whole = matches!(packet.fragment, Fragment::Whole);
        port != 0 && whole && (is(packet.source_port()) || is(packet.destination_port()))
    }
}

impl AddressEntry {
    /// Whether this address belongs to the cluster, but isn't this host's own.
    #[inline(always)]
    const fn is_mesh(&self) -> bool {
        self.node != 0 || self.is_cluster_range() || self.is_of_pod()
    }
}
