//! What comes from outside and is masqueraded on its way to another node, or a pod there: this node forwards it under an
//! address of its own that stands for the world, and remembers whose place that takes.

use crate::layout::plain;
use crate::packet::{Embedded, Packet, Ports, icmp, protocol};
use crate::{Address, Setting};

plain! {
    /// A flow from outside, as this node forwards it to another node or a pod there.
    pub struct OutsideKey [24] {
        /// Whom it goes to.
        pub remote: Address,
        /// The port at this node and theirs; of an ICMP echo the identifier, twice.
        pub ports: Ports,
        /// IP protocol number. One word, for the reason that [`Ports`] is one.
        pub protocol: u32,
    }
}

plain! {
    /// What such a flow is called on this node.
    pub struct OutsideEntry [16] {
        /// The address of this host that it was masqueraded with.
        pub address: Address,
    }
}

plain! {
    /// That an interface leads out of the cluster.
    pub struct UplinkEntry [4] {
        /// 1: there is nothing else to say of it.
        pub uplink: u32,
    }
}

impl OutsideKey {
    /// The flow of a packet to the pod, or, with `answers`, from it. `None` if there can't be an answer to it.
    #[inline(always)]
    pub(crate) fn of(packet: &Packet, answers: bool) -> Option<Self> {
        let remote = if answers { &packet.source } else { &packet.destination };
        Self::between(remote, packet.protocol, packet.ports, answers)
    }

    /// The flow of the packet that an ICMP error is about.
    #[inline(always)]
    pub(crate) fn of_embedded(embedded: &Embedded, answers: bool) -> Option<Self> {
        let remote = if answers { &embedded.source } else { &embedded.destination };
        let ports = Ports::new(embedded.source_port, embedded.destination_port);
        Self::between(remote, embedded.protocol, ports, answers)
    }

    #[inline(always)]
    fn between(remote: &Address, protocol: u8, ports: Ports, answers: bool) -> Option<Self> {
        let [kind, _] = ports.destination();
        let ports = match (protocol, answers) {
            (protocol::TCP | protocol::UDP | protocol::SCTP, false) => ports,
            (protocol::TCP | protocol::UDP | protocol::SCTP, true) => ports.reverse(),
            (protocol::ICMP, _) if kind == if answers { icmp::ECHO_REPLY } else { icmp::ECHO } => {
                Ports::new(ports.source(), ports.source())
            }
            (protocol::ICMPV6, _) if kind == if answers { icmp::V6_ECHO_REPLY } else { icmp::V6_ECHO } => {
                Ports::new(ports.source(), ports.source())
            }
            _ => return None,
        };
        Some(Self { remote: *remote, ports, protocol: protocol.into() })
    }
}

impl Setting {
    /// What these slots hold of this node's outside addresses, in the order in which they are to be written, each
    /// time: an address of IPv6 counts only while its last half is there.
    #[must_use]
    pub fn outside(v4: Option<Address>, v6: Option<Address>) -> [(Self, u64); 4] {
        let [first, last] = v6.map_or([0; 2], |address| address.halves());
        let [_, v4] = v4.map_or([0; 2], |address| address.halves());
        [
            (Self::OutsideV6Last, 0),
            (Self::OutsideV6First, first),
            (Self::OutsideV6Last, last),
            (Self::OutsideV4, v4),
        ]
    }
}
