//! Numbers of the protocols that are looked into.

/// Ethernet types.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// VLAN tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// An Ethernet frame, in an encapsulation.
    pub const TRANSPARENT_BRIDGING: u16 = 0x6558;
    /// Outer VLAN tag of a provider.
    pub const PROVIDER_VLAN: u16 = 0x88a8;
    /// Outer VLAN tag, before it had a number of its own.
    pub const OLD_PROVIDER_VLAN: u16 = 0x9100;

    /// Whether frames of this type carry other packets, which nobody has looked at.
    #[must_use]
    #[inline(always)]
    pub const fn encapsulates(ethertype: u16) -> bool {
        const MPLS: u16 = 0x8847;
        const MPLS_MULTICAST: u16 = 0x8848;
        const PPPOE_SESSION: u16 = 0x8864;
        const NSH: u16 = 0x894f;
        const PROVIDER_BACKBONE: u16 = 0x88e7;
        matches!(
            ethertype,
            VLAN | PROVIDER_VLAN
                | OLD_PROVIDER_VLAN
                | TRANSPARENT_BRIDGING
                | MPLS
                | MPLS_MULTICAST
                | PPPOE_SESSION
                | NSH
                | PROVIDER_BACKBONE
        )
    }
}

/// IP protocols and IPv6 extension headers.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Generic routing encapsulation.
    pub const GRE: u8 = 47;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// IPv6 mobility header.
    pub const MOBILITY: u8 = 135;
    /// Host identity protocol.
    pub const HIP: u8 = 139;
    /// Shim6.
    pub const SHIM6: u8 = 140;
}

/// UDP ports of encapsulations.
pub mod port {
    /// VXLAN, by IANA.
    pub const VXLAN: u16 = 4789;
    /// VXLAN, where Linux is not told another port; flannel's and Cilium's.
    pub const VXLAN_LINUX: u16 = 8472;
    /// Geneve.
    pub const GENEVE: u16 = 6081;
}

/// Types of ICMP and, with `V6`, of ICMPv6.
pub mod icmp {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable, with "fragmentation needed".
    pub const UNREACHABLE: u8 = 3;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Destination unreachable, the first error; "packet too big" and time exceeded follow.
    pub const V6_ERROR_FIRST: u8 = 1;
    /// Parameter problem, the last error.
    pub const V6_ERROR_LAST: u8 = 4;
    /// Echo request.
    pub const V6_ECHO: u8 = 128;
    /// Echo reply.
    pub const V6_ECHO_REPLY: u8 = 129;
    /// Multicast listener query.
    pub const V6_MLD_FIRST: u8 = 130;
    /// Multicast listener done.
    pub const V6_MLD_LAST: u8 = 132;
    /// Router solicitation, the first message of neighbour discovery.
    pub const V6_NEIGHBOUR_FIRST: u8 = 133;
    /// Router advertisement.
    pub const V6_ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const V6_NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const V6_NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect, the last message of neighbour discovery.
    pub const V6_NEIGHBOUR_LAST: u8 = 137;
    /// Multicast listener report, version 2.
    pub const V6_MLD2_REPORT: u8 = 143;
}

/// Flags of TCP.
pub mod tcp {
    /// Finish.
    pub const FIN: u8 = 0x01;
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledge.
    pub const ACK: u8 = 0x10;
}
