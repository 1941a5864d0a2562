//! Rewriting a packet, between a pod and a backend of a service or between outside and a pod: addresses, ports
//! and checksums.
//!
//! What changes follows from the header that the parser has found; how bytes and checksums change is up to
//! [`Rewrite`], so that the same code runs on a socket buffer in the kernel and on a slice in tests.

use crate::packet::{Fragment, Packet, protocol};
use crate::{Address, Direction};

const V4_CHECKSUM: u32 = 10;
const V4_SOURCE: u32 = 12;
const V4_DESTINATION: u32 = 16;
const V6_SOURCE: u32 = 8;
const V6_DESTINATION: u32 = 24;
const ICMP_CHECKSUM: u32 = 2;

/// What a translation changes.
pub struct TranslationKind;

impl TranslationKind {
    /// Nothing.
    pub const NONE: u8 = 0;
    /// The address and port of the other end: of what a pod sends the destination, of what it receives the
    /// source.
    pub const END: u8 = 1;
    /// The same within the packet that an ICMP error is about.
    pub const ERROR: u8 = 2;
    /// The same, and the address of the other end, which is whose error it is.
    pub const ERROR_OF_END: u8 = 3;
    /// To a service behind which is the pod itself: the destination, and as source [`loopback`], since no
    /// pod takes what comes from its own address.
    pub const HAIRPIN: u8 = 4;
    /// The answer to that: the source becomes the service's, the destination the pod's.
    pub const HAIRPIN_REPLY: u8 = 5;
}

/// How a packet has to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// [`TranslationKind`].
    pub kind: u8,
    /// What its entry tells has changed, and its partner does not know yet.
    pub(crate) news: bool,
    /// [`ConnectionEntry::state`](crate::ConnectionEntry) of it.
    pub(crate) state: u8,
    /// The port as it is, network order.
    pub old_port: [u8; 2],
    /// The port as it shall be, network order.
    pub new_port: [u8; 2],
    /// The address as it is.
    pub old: Address,
    /// The address as it shall be.
    pub new: Address,
}

impl Translation {
    /// Whether the packet goes back to the pod that it comes from.
    #[must_use]
    #[inline(always)]
    pub const fn is_hairpin(&self) -> bool {
        matches!(self.kind, TranslationKind::HAIRPIN | TranslationKind::HAIRPIN_REPLY)
    }
}

/// Under which address a pod meets itself behind a service: no host's (RFC 3927 link-local, the one that
/// Cilium takes too; RFC 6666 discard-only).
#[must_use]
#[inline(always)]
pub const fn loopback(pod: &Address) -> Address {
    if pod.is_v4() {
        Address::from_v4([169, 254, 42, 1])
    } else {
        Address([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x42, 1])
    }
}

/// A packet that can be changed.
pub trait Rewrite {
    /// Where its IP header begins.
    const NETWORK: u32;
    /// Puts bytes in place of others.
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()>;
    /// Mends the checksum of an IPv4 header: `difference` is that of sums in the machine's order.
    fn mend_network(&mut self, offset: u32, difference: u32) -> Option<()>;
    /// Mends the checksum of a transport header, of what it covers itself.
    fn mend_transport(&mut self, offset: u32, difference: u32, optional: bool) -> Option<()>;
    /// The same of addresses, which it covers as a pseudo-header; `v6` without a checksum of their own.
    /// With `optional`, a checksum of 0 is none.
    fn mend_pseudo(&mut self, offset: u32, difference: u32, optional: bool, v6: bool) -> Option<()>;
}

/// Changes a packet as `translation` says; `header` is what the parser has found in it. `None` if it can't be
/// changed, and may have been in part.
#[inline(always)]
pub fn translate<R: Rewrite>(
    packet: &mut R,
    header: &Packet,
    direction: Direction,
    translation: &Translation,
) -> Option<()> {
    let Translation { old, new, old_port, new_port, .. } = translation;
    let outwards = matches!(direction, Direction::Egress);
    let pod = if outwards { &header.source } else { &header.destination };
    match translation.kind {
        TranslationKind::NONE => Some(()),
        TranslationKind::END => end(packet, header, !outwards, (old, old_port), (new, new_port)),
        TranslationKind::HAIRPIN => {
            end(packet, header, false, (old, old_port), (new, new_port))?;
            end(packet, header, true, (pod, old_port), (&loopback(pod), old_port))
        }
        TranslationKind::HAIRPIN_REPLY => {
            end(packet, header, true, (pod, &header.source_port()), (new, new_port))?;
            end(packet, header, false, (&loopback(pod), old_port), (pod, old_port))
        }
        kind => {
            if kind == TranslationKind::ERROR_OF_END {
                end(packet, header, !outwards, (old, old_port), (new, old_port))?;
            }
            embedded(packet, header, outwards, (old, old_port), (new, new_port))
        }
    }
}

type End<'a> = (&'a Address, &'a [u8; 2]);

/// Changes one end of the packet.
#[inline(always)]
fn end<R: Rewrite>(
    packet: &mut R,
    header: &Packet,
    is_source: bool,
    (old, old_port): End<'_>,
    (new, new_port): End<'_>,
) -> Option<()> {
    let difference = address(packet, R::NETWORK, is_source, old, new)?;
    if matches!(header.fragment, Fragment::Later) {
        return Some(());
    }
    let transport = u32::from(header.transport);
    let (checksum, optional) = match header.protocol {
        protocol::TCP => (transport + 16, false),
        protocol::UDP => (transport + 6, true),
        // In IPv4 it covers no addresses.
        protocol::ICMPV6 => (transport + ICMP_CHECKSUM, false),
        // SCTP's does not cover addresses, and the ports that it covers are never changed.
        _ => return Some(()),
    };
    packet.mend_pseudo(checksum, difference, optional, !old.is_v4())?;
    if header.protocol == protocol::ICMPV6 || old_port == new_port {
        return Some(());
    }
    let difference = sum_difference(&wide(*old_port), &wide(*new_port));
    packet.mend_transport(checksum, difference, optional)?;
    packet.store(if is_source { transport } else { transport + 2 }, new_port)
}

/// Changes one end of the packet that an ICMP error is about.
#[inline(always)]
fn embedded<R: Rewrite>(
    packet: &mut R,
    header: &Packet,
    is_source: bool,
    (old, old_port): End<'_>,
    (new, new_port): End<'_>,
) -> Option<()> {
    let checksum = u32::from(header.transport) + ICMP_CHECKSUM;
    // An IPv4 header's own checksum makes up for its address.
    let difference = address(packet, u32::from(header.embedded.network), is_source, old, new)?;
    if !old.is_v4() {
        packet.mend_transport(checksum, difference, false)?;
    }
    if old_port == new_port {
        return Some(());
    }
    let difference = sum_difference(&wide(*old_port), &wide(*new_port));
    packet.mend_transport(checksum, difference, false)?;
    let transport = u32::from(header.embedded.transport);
    packet.store(if is_source { transport } else { transport + 2 }, new_port)
}

/// Changes an address of the IP header at `network`, and returns by how much its sum has changed.
#[inline(always)]
fn address<R: Rewrite>(
    packet: &mut R,
    network: u32,
    is_source: bool,
    old: &Address,
    new: &Address,
) -> Option<u32> {
    if old.is_v4() {
        let (old, new) = (old.v4_octets(), new.v4_octets());
        let difference = sum_difference(&old, &new);
        packet.mend_network(network + V4_CHECKSUM, difference)?;
        packet.store(network + if is_source { V4_SOURCE } else { V4_DESTINATION }, &new)?;
        return Some(difference);
    }
    let difference = sum_difference(&old.0, &new.0);
    packet.store(network + if is_source { V6_SOURCE } else { V6_DESTINATION }, &new.0)?;
    Some(difference)
}

/// By how much a sum over these bytes changes (RFC 1624): a sum in the machine's order, as the kernel's are.
#[inline(always)]
fn sum_difference<const N: usize>(old: &[u8; N], new: &[u8; N]) -> u32 {
    let (old, _) = old.as_chunks::<4>();
    let (new, _) = new.as_chunks::<4>();
    let mut sum = 0;
    for (old, new) in old.iter().zip(new) {
        sum += u64::from(!u32::from_ne_bytes(*old)) + u64::from(u32::from_ne_bytes(*new));
    }
    // Twice, since the first carry can make another.
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    ((sum >> 32) + (sum & 0xffff_ffff)) as u32
}

/// A port as sums take it, by four bytes.
const fn wide([high, low]: [u8; 2]) -> [u8; 4] {
    [high, low, 0, 0]
}
