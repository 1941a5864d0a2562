//! The hooks at a pod's interface.

use core::hint::black_box;

use super::standing::{Standing, connection_key};
use super::{Judge, Outcome, Passage, Place, State};
use crate::packet::{Fragment, Packet, Ports, icmp, protocol};
use crate::{
    Address, AddressEntry, ConnectionEntry, Direction, DropReason, EndpointEntry, Setting, TranslationKind,
    identity, loopback,
};

/// The other end of a packet at a pod.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Remote {
    pub(super) entry: AddressEntry,
    /// Index of the interface by which its packets come in; [`ConnectionEntry::ANY`].
    pub(super) ifindex: u32,
    /// Another one, as [`ConnectionEntry::peer_bridge`].
    pub(super) bridge: u32,
    /// [`EndpointEntry::direct_mtu`].
    pub(super) direct_mtu: u32,
}

impl Remote {
    /// Whoever has this address, wherever its packets come in.
    #[inline(always)]
    const fn anywhere(entry: AddressEntry) -> Self {
        Self { entry, ifindex: ConnectionEntry::ANY, bridge: 0, direct_mtu: 0 }
    }

    /// It is this pod here.
    #[inline(always)]
    const fn comes_by(&mut self, endpoint: &EndpointEntry) {
        self.ifindex = endpoint.ifindex;
        self.bridge = endpoint.bridge;
        self.direct_mtu = endpoint.direct_mtu;
    }
}

impl<S: State> Judge<'_, S> {
    /// A packet at a pod's interface: most belong to a connection that lets them pass.
    #[inline(always)]
    pub(super) fn at_pod(&mut self, packet: &mut Packet, place: &mut Place) -> Result<Passage, DropReason> {
        let mut passage = Passage::Settled;
        if self.context.tagged || !matches!(packet.fragment, Fragment::Whole) {
            self.describe(packet);
            let fault =
                if self.context.tagged { Err(DropReason::UnsupportedL3) } else { self.follow(packet, place) };
            if let Err(reason) = fault {
                return self.refuse(reason).map(|()| Passage::Decided);
            }
        }
        place.connection = connection_key(packet, self.direction());
        let standing = self.standing(packet, place);
        if !matches!(standing, Standing::Settled) {
            passage = Passage::Decided;
            self.describe(packet);
            let judged = match self.direction() {
                Direction::Egress => {
                    place.stick_until = 0;
                    let judged = self.pod_sends(packet, place, standing);
                    // What follows this fragment bears the service's address as it did.
                    if matches!(place.translation.kind, TranslationKind::END | TranslationKind::HAIRPIN) {
                        packet.destination = place.translation.old;
                        packet.ports = Ports::new(packet.source_port(), place.translation.old_port);
                    }
                    judged
                }
                Direction::Ingress => self.pod_receives(packet, place, standing),
            };
            if let Err(reason) = judged {
                // What follows a fragment that waits is judged by itself, and waits behind it.
                if self.notes().may_wait {
                    self.lead(packet, place);
                }
                return Err(reason);
            }
        }
        self.lead(packet, place);
        Ok(passage)
    }

    /// A pod sends: the address is its own, the destination is known, and then the exchange.
    #[inline(always)]
    fn pod_sends(&mut self, packet: &mut Packet, place: &mut Place, standing: Standing) -> Outcome {
        if packet.is_neighbour_discovery() || packet.is_multicast_listener() {
            if !self.may_signal(packet) {
                return self.refuse(DropReason::Spoofed);
            }
            if self.is_on_link(&packet.destination) {
                return Ok(());
            }
        }
        let Some(endpoint) = self.own_endpoint(&packet.source) else {
            return self.refuse(DropReason::Spoofed);
        };
        self.event.local = endpoint.identity;
        if packet.destination.is_loopback() {
            // With route_localnet (kube-proxy sets it) the host would take it for its own.
            return self.refuse(DropReason::InvalidPacket);
        }
        self.send_to_backend(packet, place, standing)?;
        if place.translation.is_hairpin() {
            return self.send_to_itself(place, endpoint.identity);
        }
        place.remote = self.recipient(&packet.destination, place.owner)?;
        let remote = *black_box(&mut place.remote);
        self.event.remote = remote.entry.identity;
        self.event.node = remote.entry.node;
        // A service's address may lie in the cluster's ranges, where nobody else has it.
        if self.is_related(packet, place, &remote.entry) {
            self.event.reply = 1;
            return Ok(());
        }
        if remote.entry.is_cluster_range() || self.opens_outside(&remote.entry, place, standing) {
            return self.refuse(DropReason::UnknownDestination);
        }
        let heard_here = remote.entry.is_of_node() || packet.destination.is_nobodys();
        if heard_here && self.is_reserved_port(packet) {
            self.refuse(DropReason::ReservedPort)?;
        }
        let mut remote = remote;
        // The host translates what comes from outside, and has its own address stand for the world's.
        let of_world = matches!(standing, Standing::Open) && place.known.remote == identity::WORLD;
        if of_world && remote.entry.identity == identity::HOST {
            remote.entry.identity = identity::WORLD;
            self.event.remote = identity::WORLD;
            // What comes next says by which way.
            remote.ifindex = self.context.ifindex;
        }
        self.exchange(packet, place, standing, &endpoint, &remote)?;
        self.remember_backend(place)
    }

    /// Whom a pod's packet goes to.
    #[inline(always)]
    fn recipient(&mut self, destination: &Address, owner: AddressEntry) -> Result<Remote, DropReason> {
        let mut remote = Remote::anywhere(self.resolve_owned(destination, owner));
        // A link has nobody but the pod and this host, or pods to which no program lets it pass.
        if destination.is_link_local() {
            remote.entry = AddressEntry { identity: identity::HOST, node: 0, flags: 0 };
        }
        if remote.entry.identity == identity::HOST {
            remote.ifindex = 0;
        }
        if remote.entry.node != 0 {
            remote.ifindex = self.tunnel();
        }
        if remote.entry.is_of_pod() && remote.entry.node == 0 {
            match self.state.endpoint(destination) {
                Some(endpoint) => remote.comes_by(&endpoint),
                // Without a program at its interface, nothing would judge the packet on its way in.
                None => self.refuse(DropReason::NoEndpoint)?,
            }
        }
        Ok(remote)
    }

    /// A pod receives: it is here, the packet came the way its source must come, and then the exchange.
    #[inline(always)]
    fn pod_receives(&mut self, packet: &Packet, place: &mut Place, standing: Standing) -> Outcome {
        if self.is_link_signalling_from_host(packet) {
            return Ok(());
        }
        let Some(endpoint) = self.own_endpoint(&packet.destination) else {
            return self.refuse(DropReason::NoEndpoint);
        };
        self.event.local = endpoint.identity;
        // Its own, turned round by the program at the same interface, which lets out nothing else from there.
        if self.context.ingress_ifindex == self.context.ifindex
            && packet.source == loopback(&packet.destination)
        {
            return Ok(());
        }
        if packet.source.is_nobodys() {
            return self.refuse(DropReason::Spoofed);
        }
        place.remote = self.provenance(&packet.source)?;
        let remote = *black_box(&mut place.remote);
        self.event.remote = remote.entry.identity;
        self.event.node = remote.entry.node;
        if remote.entry.is_cluster_range() {
            return self.refuse(DropReason::UnknownSource);
        }
        if self.is_related(packet, place, &remote.entry) {
            self.event.reply = 1;
            return Ok(());
        }
        self.exchange(packet, place, standing, &endpoint, &remote)?;
        if place.translation.kind == TranslationKind::END {
            let ConnectionEntry { last_seen, state, .. } = place.entry;
            self.tell_partner(place, last_seen, state);
        }
        Ok(())
    }

    /// Who sent this, judged by where the kernel says that it came in.
    #[inline(always)]
    fn provenance(&mut self, source: &Address) -> Result<Remote, DropReason> {
        let ingress = self.context.ingress_ifindex;
        let mut remote = Remote::anywhere(AddressEntry::default());
        if let Some(sender) = self.state.endpoint(source) {
            remote.entry.identity = sender.identity;
            remote.comes_by(&sender);
            if !sender.sends_by(ingress) {
                self.refuse(DropReason::Spoofed)?;
            }
            return Ok(remote);
        }
        remote.entry = self.resolve(source);
        if remote.entry.node != 0 {
            remote.ifindex = self.tunnel();
            if !self.is_wireguard(ingress) {
                self.refuse(DropReason::Unencrypted)?;
                // Only the tunnel proves that a node sent it.
                if remote.entry.is_of_remote_node() || remote.entry.is_outside() {
                    remote.entry = AddressEntry { identity: identity::WORLD, node: 0, flags: 0 };
                }
            }
        } else if remote.entry.identity == identity::HOST {
            remote.ifindex = ingress;
            if ingress != 0 {
                remote.entry.identity = identity::WORLD;
            }
        } else if remote.entry.is_of_pod() {
            self.refuse(DropReason::NoEndpoint)?;
        }
        Ok(remote)
    }

    /// Index of the WireGuard device. While there is none, no packet comes in by it.
    #[inline(always)]
    fn tunnel(&mut self) -> u32 {
        match self.state.setting(Setting::WireguardIfindex) as u32 {
            // Index 0 would stand for this host.
            0 => {
                self.notes().valid_until = 0;
                ConnectionEntry::ANY
            }
            index => index,
        }
    }

    /// Whether `ifindex` is the WireGuard device.
    #[inline(always)]
    pub(super) fn is_wireguard(&self, ifindex: u32) -> bool {
        ifindex != 0 && u64::from(ifindex) == self.state.setting(Setting::WireguardIfindex)
    }

    /// Whether what is sent to `destination` stays on the link.
    #[inline(always)]
    fn is_on_link(&self, destination: &Address) -> bool {
        destination.is_multicast() || destination.is_link_local() || self.is_host(destination)
    }

    /// Whether a pod may say this: under its own address, about its own address, and not as a router. An
    /// advertisement about another's address, or the probe that is taken for one (RFC 4862), would bring
    /// that one's traffic here, or cut it off, where pods share a bridge.
    #[inline(always)]
    fn may_signal(&self, packet: &Packet) -> bool {
        let [kind, _] = packet.destination_port();
        let source = &packet.source;
        let own = |address: &Address| address.is_link_local() || self.own_endpoint(address).is_some();
        if packet.is_multicast_listener() {
            return source.is_unspecified() || own(source);
        }
        match kind {
            icmp::V6_ROUTER_ADVERTISEMENT | icmp::V6_NEIGHBOUR_LAST => false,
            icmp::V6_NEIGHBOUR_ADVERTISEMENT => own(source) && own(&packet.target),
            icmp::V6_NEIGHBOUR_SOLICITATION if source.is_unspecified() => own(&packet.target),
            _ => source.is_unspecified() || own(source),
        }
    }

    /// The host, or on a bridge another pod, discovers a pod. Only the host is a router to it.
    #[inline(always)]
    fn is_link_signalling_from_host(&self, packet: &Packet) -> bool {
        let source = &packet.source;
        if !packet.is_neighbour_discovery() && !packet.is_multicast_listener() {
            return false;
        }
        let from_host = self.context.ingress_ifindex == 0;
        let router =
            matches!(packet.destination_port()[0], icmp::V6_ROUTER_ADVERTISEMENT | icmp::V6_NEIGHBOUR_LAST);
        if packet.is_neighbour_discovery() && router && !from_host {
            return false;
        }
        if source.is_unspecified() || source.is_link_local() {
            return true;
        }
        match self.state.endpoint(source) {
            Some(sender) => sender.sends_by(self.context.ingress_ifindex),
            None => from_host && self.is_host(source),
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
        self.state.setting(setting) == u64::from(u16::from_be_bytes(packet.destination_port()))
    }
}
