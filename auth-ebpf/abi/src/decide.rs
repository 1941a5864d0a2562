//! The decision: what happens to one packet at one hook. Kernel and tests run this very code.
//!
//! Everything is looked up through [`State`]. A check that fails calls `Judge::refuse`, which knows the
//! modes: it ends the decision where they enforce, and notes the reason where they only observe. All is
//! inlined, since the verifier follows one program much better than calls with pointers to the stack.

use core::cell::Cell;

use crate::packet::{Bytes, Frame, Packet, ethertype, parse_ethernet, parse_ip};
use crate::{
    Address, AddressEntry, AddressFlags, AuthEntry, AuthKey, ConnectionEntry, ConnectionKey, Direction,
    DropReason, EndpointEntry, Event, EventKind, Held, Hook, Mode, NodeEntry, NodeNumber, PolicyEntry,
    PolicyKey, Setting, Verdict, identity,
};

mod border;
mod exchange;
mod hold;
mod pod;

pub use hold::{come_back, hook_of};

/// How long a TCP connection is remembered after the last packet in its opening direction.
pub const TCP_TIMEOUT: u64 = 6 * 3600 * 1_000_000_000;
/// The same for every other protocol.
pub const CONNECTION_TIMEOUT: u64 = 120 * 1_000_000_000;

/// What became of a packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// It is new.
    New,
    /// It was known, and has been refreshed.
    Known,
    /// It was not known, and this packet may not open it.
    Absent,
    /// The map has no room for it.
    Full,
}

/// The maps and the clock.
pub trait State {
    /// A slot of the `config` map; 0 if unset.
    fn setting(&self, setting: Setting) -> u64;
    /// Exact match in `addresses`.
    fn address(&self, address: &Address) -> Option<AddressEntry>;
    /// Longest match in `prefixes`.
    fn prefix(&self, address: &Address) -> Option<AddressEntry>;
    /// The endpoint with this address.
    fn endpoint(&self, address: &Address) -> Option<EndpointEntry>;
    /// Longest match in `policy`.
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry>;
    /// What is known of a node.
    fn node(&self, node: NodeNumber) -> Option<NodeEntry>;
    /// An authentication, expired ones included.
    fn auth(&self, key: &AuthKey) -> Option<AuthEntry>;
    /// A connection, expired ones included.
    fn connection(&self, key: &ConnectionKey) -> Option<ConnectionEntry>;
    /// Boot time in nanoseconds.
    fn now(&self) -> u64;
    /// Adds a packet in the opening direction to its connection, whose other fields become those of
    /// `entry`; makes the connection if `create`.
    fn track(&self, key: &ConnectionKey, entry: &ConnectionEntry, create: bool) -> Tracked;
    /// Counts a reply of a connection.
    fn replied(&self, key: &ConnectionKey);
    /// Hands an event to user space.
    fn report(&self, event: &Event);
    /// Counts a packet at a [`metric`](crate::metric) index.
    fn count(&self, index: u32, length: u32);
    /// The packet that has this token.
    fn held(&self, token: u16) -> Option<Held>;
    /// Writes what is known of the packet with this token.
    fn hold(&self, token: u16, held: &Held);
    /// Adds to a place of [`Credits`](crate::Credits), round the end, and returns what was there before.
    fn credit(&self, place: u32, change: u64) -> u64;
}

/// Where a packet is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The hook.
    pub hook: Hook,
    /// Index of the interface at the hook.
    pub ifindex: u32,
    /// Index of the interface by which it came into this host; 0 if the host made it.
    pub ingress_ifindex: u32,
    /// Its length in bytes.
    pub length: u32,
    /// It carries a VLAN tag that has been taken out of its bytes.
    pub tagged: bool,
    /// That tag.
    pub tag: u16,
    /// It stands for several segments, which a device may have to make of it.
    pub segments: bool,
    /// Since when it was held, if it comes back from there; else 0.
    pub held_since: u64,
}

/// What a decision works on. The programs' stack is too small for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Workspace {
    /// The packet's header.
    pub packet: Packet,
    /// What to report of it.
    pub event: Event,
    /// What of it is held: with [`Verdict::Held`], its token.
    pub token: u16,
}

/// Decides what happens to a packet; counts and reports it. Whatever is in `workspace` is overwritten.
#[inline(always)]
pub fn decide<S: State, B: Bytes + ?Sized>(
    state: &S,
    bytes: &B,
    context: &Context,
    workspace: &mut Workspace,
) -> Verdict {
    let Workspace { packet, event, token } = workspace;
    *packet = Packet::default();
    let mut judge = Judge::new(state, context, event, token);
    let outcome = judge.inspect(bytes, packet);
    judge.conclude(outcome)
}

/// The end of a decision: it passes, unless it drops for a reason.
type Outcome = Result<(), DropReason>;

/// One decision in the making.
struct Judge<'a, S> {
    state: &'a S,
    context: &'a Context,
    event: &'a mut Event,
    token: &'a mut u16,
    /// First reason that would have dropped the packet if it were enforced.
    audit: Option<DropReason>,
    /// Policy would have dropped the packet if it were enforced.
    policy_audited: bool,
    /// The policy entry that decides is only tried.
    entry_audited: bool,
    auth_wanted: bool,
    /// The packet only lacks the authentication of `hold_key`, and may wait for it.
    may_wait: bool,
    hold_key: AuthKey,
    /// The packet opens a connection.
    opening: bool,
    now: Cell<u64>,
}

impl<'a, S: State> Judge<'a, S> {
    #[inline(always)]
    fn new(state: &'a S, context: &'a Context, event: &'a mut Event, token: &'a mut u16) -> Self {
        let direction = match context.hook {
            Hook::FromPod | Hook::ToWireguard | Hook::ToUplink | Hook::ToHold => Direction::Egress,
            Hook::ToPod | Hook::FromWireguard | Hook::FromUplink | Hook::FromHold => Direction::Ingress,
        };
        *event = Event {
            hook: context.hook as u8,
            ifindex: context.ifindex,
            length: context.length,
            direction: direction as u8,
            ..Event::default()
        };
        Self {
            state,
            context,
            event,
            token,
            audit: None,
            policy_audited: false,
            entry_audited: false,
            auth_wanted: false,
            may_wait: false,
            hold_key: AuthKey { local: 0, remote: 0, node: 0, auth_type: 0, pad: 0 },
            opening: false,
            now: Cell::new(0),
        }
    }

    #[inline(always)]
    fn inspect<B: Bytes + ?Sized>(&mut self, bytes: &B, packet: &mut Packet) -> Outcome {
        let frame = match self.context.hook {
            Hook::FromPod | Hook::ToPod => parse_ethernet(bytes, false, packet),
            Hook::FromUplink | Hook::ToUplink => parse_ethernet(bytes, !self.context.tagged, packet),
            Hook::FromWireguard | Hook::ToWireguard => parse_ip(bytes, 0, packet),
            Hook::ToHold => return self.enter_hold(),
            Hook::FromHold => return self.leave_hold(),
        };
        match frame {
            None => self.refuse(DropReason::InvalidPacket),
            Some(Frame::Ip) => self.ip(packet),
            Some(Frame::Arp) => self.arp(&packet.source),
            Some(Frame::Other(kind)) => self.other(kind),
        }
    }

    #[inline(always)]
    fn ip(&mut self, packet: &Packet) -> Outcome {
        self.event.source = packet.source;
        self.event.destination = packet.destination;
        self.event.source_port = packet.source_port;
        self.event.destination_port = packet.destination_port;
        self.event.protocol = packet.protocol;
        match self.context.hook {
            Hook::FromPod => self.pod_sends(packet),
            Hook::ToPod => self.pod_receives(packet),
            Hook::FromWireguard => self.wireguard_receives(packet),
            Hook::ToWireguard => self.wireguard_sends(packet),
            Hook::FromUplink => self.uplink_receives(packet),
            Hook::ToUplink => self.uplink_sends(packet),
            Hook::FromHold | Hook::ToHold => Err(DropReason::NotHeld),
        }
    }

    /// A pod speaks ARP under its own addresses only; elsewhere ARP carries nobody's traffic.
    #[inline(always)]
    fn arp(&mut self, sender: &Address) -> Outcome {
        self.event.source = *sender;
        match self.context.hook {
            Hook::FromPod if self.context.tagged => self.refuse(DropReason::UnsupportedL3),
            Hook::FromPod if !sender.is_unspecified_v4() && self.own_endpoint(sender).is_none() => {
                self.refuse(DropReason::Spoofed)
            }
            Hook::FromPod
            | Hook::ToPod
            | Hook::FromWireguard
            | Hook::ToWireguard
            | Hook::FromUplink
            | Hook::ToUplink
            | Hook::FromHold
            | Hook::ToHold => Ok(()),
        }
    }

    /// What is not IP: pods have no use for it. An uplink lets it pass (LLDP, spanning tree, LACP), unless
    /// it carries other packets, since those could be the cluster's.
    #[inline(always)]
    fn other(&mut self, kind: u16) -> Outcome {
        let uplink = matches!(self.context.hook, Hook::FromUplink | Hook::ToUplink);
        if uplink && !ethertype::encapsulates(kind) { Ok(()) } else { self.refuse(DropReason::UnsupportedL3) }
    }

    /// The endpoint with this address, if its interface is the one at the hook.
    #[inline(always)]
    fn own_endpoint(&self, address: &Address) -> Option<EndpointEntry> {
        match self.state.endpoint(address) {
            Some(endpoint) if endpoint.ifindex == self.context.ifindex => Some(endpoint),
            _ => None,
        }
    }

    /// Whose address this is; nobody's is the world's.
    #[inline(always)]
    fn resolve(&self, address: &Address) -> AddressEntry {
        if let Some(entry) = self.state.address(address) {
            return entry;
        }
        match self.state.prefix(address) {
            Some(entry) => entry,
            None => AddressEntry { identity: identity::WORLD, node: 0, flags: 0 },
        }
    }

    /// Whether `address` is one of this host's own.
    #[inline(always)]
    fn is_host(&self, address: &Address) -> bool {
        matches!(self.state.address(address), Some(entry) if entry.identity == identity::HOST)
    }

    /// Drops the packet for `reason`, or notes it and goes on where that reason is only observed.
    #[inline(always)]
    fn refuse(&mut self, reason: DropReason) -> Outcome {
        let encryption = matches!(reason, DropReason::Unencrypted | DropReason::NoNodeSession)
            || matches!(self.context.hook, Hook::FromUplink | Hook::ToUplink);
        let enforced = if encryption {
            self.enforces(Setting::EncryptionMode, Setting::EncryptionOffUntil)
        } else {
            !self.entry_audited && self.enforces(Setting::PolicyMode, Setting::PolicyOffUntil)
        };
        if enforced {
            return Err(reason);
        }
        // What an audited entry lets pass, the policies in force allow: its connection is as good as any.
        self.policy_audited |= !encryption && !self.entry_audited;
        if self.audit.is_none() {
            self.audit = Some(reason);
        }
        Ok(())
    }

    #[inline(always)]
    fn enforces(&self, mode: Setting, off_until: Setting) -> bool {
        if Mode::from_number(self.state.setting(mode)) == Mode::Observe {
            return false;
        }
        let off_until = self.state.setting(off_until);
        off_until == 0 || off_until <= self.now()
    }

    /// Boot time, read at most once for a packet, and only if something depends on it.
    #[inline(always)]
    fn now(&self) -> u64 {
        if self.now.get() == 0 {
            self.now.set(self.state.now());
        }
        self.now.get()
    }

    #[inline(always)]
    fn conclude(&mut self, outcome: Outcome) -> Verdict {
        let (verdict, reason) = match (outcome, self.audit) {
            (Err(DropReason::AuthRequired), _) if self.may_wait => match self.take_hold() {
                Ok(()) => (Verdict::Held, None),
                Err(reason) => (Verdict::Dropped, Some(reason)),
            },
            (Err(reason), _) => (Verdict::Dropped, Some(reason)),
            (Ok(()), Some(reason)) => (Verdict::Audit, Some(reason)),
            (Ok(()), None) => (Verdict::Forwarded, None),
        };
        let index = crate::metric::index(self.context.hook, verdict, reason);
        self.state.count(index, self.context.length);
        // What only waits behind others has lost nothing and asks for nothing.
        let silent = match verdict {
            Verdict::Forwarded => !self.opening,
            Verdict::Held => !self.auth_wanted,
            Verdict::Dropped | Verdict::Audit => false,
        };
        if silent {
            return verdict;
        }
        self.event.time = self.now();
        self.event.verdict = verdict as u8;
        self.event.reason = reason.map_or(0, |reason| reason as u8);
        if self.auth_wanted {
            self.event.kind = EventKind::AuthWanted as u8;
            self.state.report(self.event);
        }
        self.event.kind = EventKind::Verdict as u8;
        self.state.report(self.event);
        verdict
    }
}

impl AddressEntry {
    /// Whether this is a range of the cluster, in which nobody has this address.
    #[inline(always)]
    const fn is_cluster_range(&self) -> bool {
        self.flags & AddressFlags::CLUSTER_RANGE != 0
    }

    /// Whether this is a node's own address, this one's or another's.
    #[inline(always)]
    const fn is_of_node(&self) -> bool {
        self.identity == identity::HOST || self.is_of_remote_node()
    }

    /// Whether this is another node's own address.
    #[inline(always)]
    const fn is_of_remote_node(&self) -> bool {
        self.node != 0 && identity::is_reserved(self.identity) && !self.is_cluster_range()
    }

    /// Whether this is a workload's address.
    #[inline(always)]
    const fn is_of_pod(&self) -> bool {
        !identity::is_reserved(self.identity)
    }
}
