//! The decision: what happens to one packet at one hook. Kernel and tests run this very code.
//!
//! Everything is looked up through [`State`]. A check that fails calls `Judge::refuse`, which knows the
//! modes: it ends the decision where they enforce, and notes the reason where they only observe. All is
//! inlined, since the verifier follows one program much better than calls with pointers to the stack.

use core::ops::DerefMut;

use crate::packet::{Bytes, Fragment, Frame, Packet, ethertype, parse_ethernet, parse_ip};
use crate::{
    Address, AddressEntry, AddressFlags, AffinityEntry, AffinityKey, AuthEntry, AuthKey, BackendEntry,
    BackendKey, ConnectionEntry, ConnectionKey, DropReason, EndpointEntry, Event, EventKind, FragmentEntry,
    FragmentKey, Held, Hook, Mode, NodeEntry, NodeNumber, OutsideEntry, OutsideKey, PolicyEntry, PolicyKey,
    Ruling, ServiceEntry, ServiceKey, Setting, Translation, TranslationKind, Verdict, identity,
};

mod border;
mod direct;
mod exchange;
mod fragment;
mod hold;
mod outside;
mod pod;
mod related;
mod rules;
mod service;
mod standing;

pub use hold::{come_back, hook_of};
pub use rules::{longest, ruling};

/// The maps and the clock.
pub trait State {
    /// An entry in its map.
    type Entry<'a>: DerefMut<Target = ConnectionEntry>
    where
        Self: 'a;

    /// A slot of the `config` map; 0 if unset.
    fn setting(&self, setting: Setting) -> u64;
    /// Exact match in `addresses`.
    fn address(&self, address: &Address) -> Option<AddressEntry>;
    /// Longest match in `prefixes`.
    fn prefix(&self, address: &Address) -> Option<AddressEntry>;
    /// The endpoint with this address.
    fn endpoint(&self, address: &Address) -> Option<EndpointEntry>;
    /// What policy says about packets under `key`: by [`ruling`].
    fn ruling(&self, key: &PolicyKey, classes: [u32; 2]) -> Ruling
    where
        Self: Sized,
    {
        ruling(self, key, classes)
    }
    /// The entry in `policy` of the longest prefix of `key`, among the lengths in `classes`
    /// ([`PolicyClasses`](crate::PolicyClasses)): by [`longest`].
    fn policy(&self, key: &PolicyKey, classes: u32) -> Option<PolicyEntry>;
    /// What is known of a node.
    fn node(&self, node: NodeNumber) -> Option<NodeEntry>;
    /// Has the processor fetch an authentication that will be looked up.
    fn foresee(&self, _key: &AuthKey) {}
    /// An authentication, expired ones included.
    fn auth(&self, key: &AuthKey) -> Option<AuthEntry>;
    /// A counter of `generations`.
    fn generation(&self, slot: u32) -> u32;
    /// An entry of `connections`, expired ones included.
    fn established(&self, key: &ConnectionKey) -> Option<Self::Entry<'_>>;
    /// The same of `half_open`.
    fn half_open(&self, key: &ConnectionKey) -> Option<Self::Entry<'_>>;
    /// Puts a connection into `half_open`; whether there was room.
    fn open(&self, key: &ConnectionKey, entry: &ConnectionEntry) -> bool;
    /// Moves a connection from `half_open` to `connections`, as far as its interface's quota goes.
    fn establish(&self, key: &ConnectionKey, entry: &ConnectionEntry);
    /// What the first fragment of a datagram has told, expired ones included.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry>;
    /// Remembers a first fragment.
    fn lead(&self, key: &FragmentKey, entry: &FragmentEntry);
    /// The service with this address and port.
    fn service(&self, key: &ServiceKey) -> Option<ServiceEntry>;
    /// A backend of a service.
    fn backend(&self, key: &BackendKey) -> Option<BackendEntry>;
    /// The backend that a client keeps, ended ones included.
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry>;
    /// Has a client keep a backend.
    fn stick(&self, key: &AffinityKey, entry: &AffinityEntry);
    /// Whether this interface leads out of the cluster.
    fn is_uplink(&self, ifindex: u32) -> bool;
    /// What a flow from outside is called on this node.
    fn outside(&self, key: &OutsideKey) -> Option<OutsideEntry>;
    /// Remembers that; whether there was room.
    fn forward_outside(&self, key: &OutsideKey, entry: &OutsideEntry) -> bool;
    /// Boot time in nanoseconds, at most a tick of the kernel old.
    fn now(&self) -> u64;
    /// Hands an event to user space.
    fn report(&self, event: &Event);
    /// Counts a packet at a [`metric`](crate::metric) index.
    fn count(&self, index: u32, length: u32);
    /// The packet that has this token.
    fn held(&self, token: u16) -> Option<Held>;
    /// Writes what is known of the packet with this token.
    fn hold(&self, token: u16, held: &Held);
    /// Whether an identity on this node has not got its SVID yet.
    fn is_svid_pending(&self, identity: crate::IdentityNumber) -> bool;
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
    /// Where it stands for several segments, which a device may have to make of it, how much of its payload each
    /// has; else 0.
    pub segment: u32,
    /// Since when it was held, if it comes back from there; else 0.
    pub held_since: u64,
    /// [`AuthType`](crate::AuthType) for which it was held: none where it was for an announcement.
    pub held_for: u8,
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
    /// Its place among connections and fragments.
    pub place: Place,
    notes: Notes,
}

impl Workspace {
    /// Where a packet that has passed goes [straight](ConnectionEntry::DIRECT), if it does: the index of the
    /// interface, and the address of the pod there.
    #[must_use]
    #[inline(always)]
    pub const fn straight_to(&self) -> Option<(u32, Address)> {
        let Self { packet, place, .. } = self;
        // What follows a fragment does not show its connection, and the host must have all or none.
        if place.straight_to == 0 || !matches!(packet.fragment, Fragment::Whole) {
            return None;
        }
        let translated = place.translation.kind != TranslationKind::NONE;
        Some((place.straight_to, if translated { place.translation.new } else { packet.destination }))
    }
}

/// Keys and entries under which a packet is looked for and remembered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Its connection.
    pub connection: ConnectionKey,
    /// What is remembered of it.
    pub entry: ConnectionEntry,
    /// Its datagram, if it is a fragment.
    pub datagram: FragmentKey,
    /// What is remembered of that.
    pub first: FragmentEntry,
    /// Its connection with a service's address, of which `connection` is the one with the backend.
    pub service: ConnectionKey,
    /// How it has to change once it has passed; not before it is held.
    pub translation: Translation,
    /// Itself as the client of a service that has affinity, and until when it keeps its backend; 0 for not.
    affinity: AffinityKey,
    stick_until: u64,
    /// Its connection as its other end has it, if that is an endpoint here.
    opposite: ConnectionKey,
    /// [`ConnectionEntry::straight_to`] of its connection, if a pod sends it.
    straight_to: u32,
    /// What its destination's address says by itself.
    owner: AddressEntry,
    /// What its connection says, if that has to be looked at again.
    known: standing::Known,
    /// Its other end.
    remote: pod::Remote,
    /// Its flow, if it is one from outside, and what that is called here.
    outside_key: OutsideKey,
    outside: OutsideEntry,
}

/// What a decision in the making has come to.
///
/// In the maps' memory and read through [`Judge::notes`], so that the verifier takes it for unknown: what it
/// knows, it follows in every combination, and there are too many.
#[derive(Clone, Copy, Debug)]
struct Notes {
    /// Until when what the decision rests on holds.
    valid_until: u64,
    /// First reason that would have dropped the packet if it were enforced; 0 for none.
    audit: u8,
    /// Policy would have dropped the packet if it were enforced.
    policy_audited: bool,
    /// The policy entry that decides is only tried.
    entry_audited: bool,
    /// The [`EventKind`] by which the packet asks for something, or 0.
    wanted: u8,
    /// The packet opens a connection.
    opening: bool,
    /// The packet only lacks the authentication of `hold_key`, or an announcement to its node, and may wait.
    may_wait: bool,
    hold_key: AuthKey,
    /// [`Context::held_since`].
    held_since: u64,
    /// [`Context::held_for`].
    held_for: u8,
}

impl Default for Notes {
    fn default() -> Self {
        Self {
            valid_until: u64::MAX,
            audit: 0,
            policy_audited: false,
            entry_audited: false,
            wanted: 0,
            opening: false,
            may_wait: false,
            hold_key: AuthKey { local: 0, remote: 0, node: 0, auth_type: 0, pad: 0 },
            held_since: 0,
            held_for: 0,
        }
    }
}

/// Decides what happens to a packet; counts and reports it. Whatever is in `workspace` is overwritten.
#[inline(always)]
pub fn decide<S: State, B: Bytes + ?Sized>(
    state: &S,
    bytes: &B,
    context: &Context,
    workspace: &mut Workspace,
) -> Verdict {
    let Workspace { packet, event, token, place, notes } = workspace;
    packet.clear();
    place.translation.kind = TranslationKind::NONE;
    place.translation.news = false;
    place.straight_to = 0;
    notes.held_since = context.held_since;
    // Before anything that the decision rests on.
    let at_pod = matches!(context.hook, Hook::FromPod | Hook::ToPod);
    let everything = if at_pod { state.setting(Setting::Generation) as u32 } else { 0 };
    let mut judge = Judge { state, context: *context, event, token, notes, now: state.now(), everything };
    match judge.inspect(bytes, packet, place) {
        Ok(Passage::Settled) => judge.forward(),
        Ok(Passage::Decided) => judge.conclude(Ok(())),
        Err(reason) => judge.conclude(Err(reason)),
    }
}

/// The end of a decision: it passes, unless it drops for a reason.
type Outcome = Result<(), DropReason>;

/// How a packet passes.
#[derive(Clone, Copy)]
enum Passage {
    /// As others of its connection have: there is nothing to note or report.
    Settled,
    /// By a decision of its own.
    Decided,
}

/// One decision in the making.
struct Judge<'a, S> {
    state: &'a S,
    /// By value: each program knows its hook, and the compiler leaves out what belongs to others.
    context: Context,
    event: &'a mut Event,
    token: &'a mut u16,
    notes: &'a mut Notes,
    now: u64,
    /// The generation of everything, at a pod.
    everything: u32,
}

impl<S: State> Judge<'_, S> {
    #[inline(always)]
    fn notes(&mut self) -> &mut Notes {
        core::hint::black_box(&mut *self.notes)
    }

    #[inline(always)]
    const fn now(&self) -> u64 {
        self.now
    }

    #[inline(always)]
    fn inspect<B: Bytes + ?Sized>(
        &mut self,
        bytes: &B,
        packet: &mut Packet,
        place: &mut Place,
    ) -> Result<Passage, DropReason> {
        let frame = match self.context.hook {
            Hook::FromPod | Hook::ToPod => parse_ethernet(bytes, false, packet),
            Hook::FromUplink | Hook::ToUplink => parse_ethernet(bytes, !self.context.tagged, packet),
            Hook::FromWireguard | Hook::ToWireguard => parse_ip(bytes, packet),
            Hook::FromHold | Hook::ToHold => {
                self.describe(packet);
                let outcome = if matches!(self.context.hook, Hook::ToHold) {
                    self.enter_hold()
                } else {
                    self.leave_hold()
                };
                return outcome.map(|()| Passage::Decided);
            }
        };
        if let Some(Frame::Ip) = frame {
            return self.ip(bytes, packet, place);
        }
        // What could be read of it may say as little as it likes.
        *packet = Packet { source: packet.source, ..Packet::default() };
        self.describe(packet);
        let outcome = match frame {
            Some(Frame::Arp) => self.arp(&packet.source),
            Some(Frame::Other(kind)) => self.other(kind),
            Some(Frame::Ip) | None => self.refuse(DropReason::InvalidPacket),
        };
        outcome.map(|()| Passage::Decided)
    }

    #[inline(always)]
    fn ip<B: Bytes + ?Sized>(
        &mut self,
        bytes: &B,
        packet: &mut Packet,
        place: &mut Place,
    ) -> Result<Passage, DropReason> {
        if matches!(self.context.hook, Hook::FromPod | Hook::ToPod) {
            return self.at_pod(packet, place);
        }
        self.describe(packet);
        let outcome = match self.context.hook {
            Hook::FromWireguard => self.wireguard_receives(packet, place),
            Hook::ToWireguard => self.wireguard_sends(packet, place),
            Hook::FromUplink => self.uplink_receives(bytes, packet),
            Hook::ToUplink => self.uplink_sends(bytes, packet),
            Hook::FromPod | Hook::ToPod => Ok(()),
            Hook::FromHold | Hook::ToHold => Err(DropReason::NotHeld),
        };
        outcome.map(|()| Passage::Decided)
    }

    /// Begins the notes and the event of a packet. Put off until it is clear that there may be one: most packets pass
    /// without.
    #[inline(always)]
    fn describe(&mut self, packet: &Packet) {
        let Context { held_since, held_for, .. } = self.context;
        *self.notes = Notes { held_since, held_for, ..Notes::default() };
        *self.event = Event {
            hook: self.context.hook as u8,
            ifindex: self.context.ifindex,
            length: self.context.length,
            direction: self.context.hook.direction() as u8,
            source: packet.source,
            destination: packet.destination,
            source_port: packet.source_port(),
            destination_port: packet.destination_port(),
            protocol: packet.protocol,
            ..Event::default()
        };
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
        self.resolve_owned(address, self.owner(address))
    }

    /// The same of one of which `owner` is known already.
    #[inline(always)]
    fn resolve_owned(&self, address: &Address, owner: AddressEntry) -> AddressEntry {
        if owner.identity != identity::UNKNOWN {
            return owner;
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
            !self.notes().entry_audited && self.enforces(Setting::PolicyMode, Setting::PolicyOffUntil)
        };
        if enforced {
            return Err(reason);
        }
        let notes = self.notes();
        // What an audited entry lets pass, the policies in force allow: its connection is as good as any.
        notes.policy_audited |= !encryption && !notes.entry_audited;
        if notes.audit == 0 {
            notes.audit = reason as u8;
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

    /// Passes a packet about which there is nothing to say.
    #[inline(always)]
    fn forward(&self) -> Verdict {
        self.state.count(crate::metric::place(self.context.hook, Verdict::Forwarded, 0), self.context.length);
        Verdict::Forwarded
    }

    #[inline(always)]
    fn conclude(&mut self, outcome: Outcome) -> Verdict {
        let notes = *self.notes();
        let (verdict, reason) = match outcome {
            Err(DropReason::AuthRequired | DropReason::AddressUnannounced) if notes.may_wait => {
                match self.take_hold(notes.hold_key) {
                    Ok(()) => (Verdict::Held, 0),
                    Err(reason) => (Verdict::Dropped, reason as u8),
                }
            }
            Err(reason) => (Verdict::Dropped, reason as u8),
            Ok(()) if notes.audit != 0 => (Verdict::Audit, notes.audit),
            Ok(()) => (Verdict::Forwarded, 0),
        };
        let index = crate::metric::place(self.context.hook, verdict, reason);
        self.state.count(index, self.context.length);
        // What only waits behind others has lost nothing and asks for nothing.
        let silent = match verdict {
            Verdict::Forwarded => !notes.opening,
            Verdict::Held => notes.wanted == 0,
            Verdict::Dropped | Verdict::Audit => false,
        };
        if silent {
            return verdict;
        }
        self.event.time = self.now();
        self.event.verdict = verdict as u8;
        self.event.reason = reason;
        if notes.wanted != 0 {
            self.event.kind = notes.wanted;
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
        self.node != 0
            && identity::is_reserved(self.identity)
            && !self.is_cluster_range()
            && !self.is_outside()
    }

    /// Whether this is the address under which another node forwards what comes from outside.
    #[inline(always)]
    const fn is_outside(&self) -> bool {
        self.node != 0 && self.identity == identity::WORLD
    }

    /// Whether this is a workload's address.
    #[inline(always)]
    const fn is_of_pod(&self) -> bool {
        !identity::is_reserved(self.identity)
    }
}
